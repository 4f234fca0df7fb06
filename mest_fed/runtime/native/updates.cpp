// The loss at the end of the way forward, and the updates at the end of a step.
#include <cmath>
#include <stdexcept>

#include "builder.h"
#include "functions.h"
#include "loops.h"
#include "sgd.h"

namespace mest::runtime::MEST_VARIANT {
namespace {

struct Classes {
    int64_t rows, classes;

    // Negative: the row does not count.
    int64_t target(const Run& run, const Tensor& targets, int64_t row) const {
        const int64_t target = run.at<int64_t>(targets)[row];
        if (target < classes) return target;
        throw std::invalid_argument("targets[" + std::to_string(run.earlier(rows) + row) + "] = " +
                                    std::to_string(target) + "; allowed: less than " +
                                    std::to_string(classes));
    }
};

Classes classes_of(const Builder& b, const char* name) {
    const Shape shape = b.dims(name, -2).shape;
    b.expect("targets", Shape(shape.begin(), shape.end() - 1));
    for (const char* other : {"probabilities", "dlogits"}) b.expect(other, shape);
    b.expect("loss", {});
    b.expect("share", {1});
    return {product_of(shape, 0, shape.size() - 1), shape.back()};
}

// The sum over rows of -log softmax(logits)[target] * share.
Step cross_entropy(Builder& b) {
    const Classes c = classes_of(b, "logits");
    const Tensor logits = b["logits"], targets = b["targets"], loss = b["loss"];
    const Tensor probabilities = b["probabilities"], share = b["share"];
    b.doubles(c.rows);
    return [=](const Run& run) {
        double* losses = run.shared.doubles.data();
        for_runs(c.rows, c.classes, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(logits) + row * c.classes;
                float* to = run.at(probabilities) + row * c.classes;
                const int64_t target = c.target(run, targets, row);
                const float wanted = from[std::max<int64_t>(target, 0)];
                const float most = largest_of(c.classes, [=](int64_t i) { return from[i]; });
                MEST_EACH_ALONE
                for (int64_t i = 0; i < c.classes; ++i) to[i] = exp_of(from[i] - most);
                const double total = sum_of(c.classes, [=](int64_t i) { return to[i]; });
                const auto part = static_cast<float>(1 / total);
                MEST_EACH_ALONE
                for (int64_t i = 0; i < c.classes; ++i) to[i] *= part;
                losses[row] = target < 0 ? 0 : std::log(total) - (wanted - most);
            }
        });
        double total = 0;
        for (int64_t row = 0; row < c.rows; ++row) total += losses[row];
        *run.at(loss) = static_cast<float>(total * *run.at(share));
    };
}

Step cross_entropy_gradient(Builder& b) {
    const Classes c = classes_of(b, "probabilities");
    const Tensor targets = b["targets"], probabilities = b["probabilities"], dlogits = b["dlogits"];
    const Tensor share = b["share"];
    return [=](const Run& run) {
        for_runs(c.rows, c.classes, run.threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float* from = run.at(probabilities) + row * c.classes;
                float* to = run.at(dlogits) + row * c.classes;
                const int64_t target = c.target(run, targets, row);
                const float factor = *run.at(share);
                for (int64_t i = 0; i < c.classes; ++i) {
                    to[i] = target < 0 ? 0 : (from[i] - (i == target ? 1 : 0)) * factor;
                }
            }
        });
    };
}

void check_update(const Builder& b) {
    for (const char* name : {"gradient", "momentum_buffer", "first", "second"}) {
        b.expect(name, b["parameter"].shape);
    }
    b.expect("rates", {1});
    b.expect("step", {1});
}

Step sgd(Builder& b) {
    check_update(b);
    const Tensor gradient = b["gradient"], rates = b["rates"], parameter = b["parameter"];
    const Tensor momentum = b["momentum_buffer"];
    const Sgd sgd(b);
    return [=](const Run& run) {
        const float *g = run.at(gradient), rate = *run.at(rates);
        float *p = run.at(parameter), *m = run.at(momentum);
        for_runs(parameter.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            if (m == nullptr) {
                MEST_EACH_ALONE
                for (int64_t i = begin; i < end; ++i) sgd.step<float>(g[i], rate, p[i], nullptr);
                return;
            }
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) {
                sgd.step(g[i], rate, p[i], m + i);
            }
        });
    };
}

// Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019) where decay is decoupled.
Step adam(Builder& b) {
    check_update(b);
    const Tensor gradient = b["gradient"], rates = b["rates"], parameter = b["parameter"];
    const Tensor first = b["first"], second = b["second"], step = b["step"];
    const double beta1 = b.real("beta1"), beta2 = b.real("beta2");
    const auto epsilon = static_cast<float>(b.real("epsilon"));
    const auto decay = static_cast<float>(b.real("weight_decay"));
    const bool decoupled = b.whole("decoupled") != 0;
    return [=](const Run& run) {
        const float *g = run.at(gradient), rate = *run.at(rates);
        float *p = run.at(parameter), *one = run.at(first), *two = run.at(second);
        int64_t& taken = *run.at<int64_t>(step);
        taken = static_cast<int64_t>(static_cast<uint64_t>(taken) + 1);
        const auto count = static_cast<double>(taken);
        const auto move = static_cast<float>(rate / (1 - std::pow(beta1, count)));
        const auto spread = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, count)));
        const auto old1 = static_cast<float>(beta1), new1 = static_cast<float>(1 - beta1);
        const auto old2 = static_cast<float>(beta2), new2 = static_cast<float>(1 - beta2);
        for_runs(parameter.count(), 1, run.threads, [=](int64_t begin, int64_t end) {
            MEST_EACH_ALONE
            for (int64_t i = begin; i < end; ++i) {
                const float d = decoupled ? g[i] : g[i] + decay * p[i];
                if (decoupled) p[i] -= rate * decay * p[i];
                one[i] = old1 * one[i] + new1 * d;
                two[i] = old2 * two[i] + new2 * d * d;
                p[i] -= move * one[i] / (std::sqrt(two[i]) * spread + epsilon);
            }
        });
    };
}

}  // namespace

std::vector<Operator> updates() {
    const Argument targets{"targets", int64}, step{"step", int64};
    const Attribute decay{"weight_decay", 0, 1e6}, epsilon{"epsilon", 0, 1e6};
    const Attribute beta1{"beta1", 0, 1}, beta2{"beta2", 0, 1};
    const Attribute nesterov{"nesterov", 0, 1}, decoupled{"decoupled", 0, 1};
    const Argument gradient{"gradient"}, rates{"rates"}, parameter{"parameter"};
    const Argument momentum_buffer{"momentum_buffer", float32, true};
    return {
        {"cross_entropy", {{"logits"}, targets, {"share"}}, {{"loss"}, {"probabilities"}}, {}, {},
         cross_entropy},
        {"cross_entropy_gradient", {{"probabilities"}, targets, {"share"}}, {{"dlogits"}}, {}, {},
         cross_entropy_gradient},
        {"sgd", {gradient, rates, parameter, momentum_buffer}, {}, {nesterov},
         sgd_reals(), sgd},
        {"adam", {gradient, rates, parameter, {"first"}, {"second"}, step}, {}, {decoupled},
         {beta1, beta2, epsilon, decay}, adam},
    };
}

}  // namespace mest::runtime::MEST_VARIANT
