#include "plane_product.h"

#include <algorithm>

#include "variant.h"

namespace mest {
namespace {

// Single rows take the way back by gathering: it costs one load a multiply-add, where spreading would
// cost a load and a store.
PlaneWay plane_way(Way way, int rows) {
    if (way == Way::forward) return PlaneWay::walk;
    if (way == Way::values) return PlaneWay::dots;
    return rows == 1 ? PlaneWay::gather : PlaneWay::spread;
}

}  // namespace

PlaneProduct::PlaneProduct(Way way, const PlaneWindow& window, int rows, const Planes& x,
                           const Planes& y)
    : geometry_(window, x, y),
      way_(plane_way(way, rows)),
      lists_(way_, geometry_, rows, variant().planes->width),
      kernels_(*variant().planes) {}

void PlaneProduct::reserve(int64_t entries) { lists_.reserve(entries); }

int64_t PlaneProduct::scratch_floats() const {
    return geometry_.phases.empty() ? 0 : geometry_.taken.floats();
}

// work(first, count, taken): images a few at a time, so that they stay in a cache.
template <class Work>
void PlaneProduct::for_sets(const PlaneImages& images, const Work& work) const {
    const int64_t most = geometry_.taken.images;
    for (int64_t first = images.begin; first < images.end; first += most) {
        work(first, std::min(most, images.end - first));
    }
}

// Zeroes whatever is no element of images, and what lies behind the last one.
void PlaneProduct::clear(const Planes& planes, float* buffer, int64_t first, int64_t images) const {
    kernels_.clear({planes.image(), planes.pitch(), planes.channels},
                   static_cast<int>(planes.plane()), planes.lead(), buffer + planes.at(first, 0),
                   images);
    if (first + images < planes.images) return;
    std::fill(buffer + planes.images * planes.image(), buffer + planes.floats(), 0.0f);
}

const float* PlaneProduct::split(const float* x, float* scratch, int64_t images) const {
    const PlaneGeometry& g = geometry_;
    if (g.phases.empty()) return x;
    float* phases = scratch + g.taken.lead();
    for (int64_t image = 0; image < images; ++image) {
        for (int c = 0; c < g.x.channels; ++c) {
            for (int i = 0; i < g.phase_count(); ++i) {
                kernels_.split(g.phases[i], x + image * g.x.image() + c * g.x.pitch(),
                               phases + image * g.taken.image() +
                                   (int64_t{c} * g.phase_count() + i) * g.taken.pitch());
            }
        }
    }
    clear(g.taken, scratch, 0, images);
    return phases;
}

void PlaneProduct::join(const float* phases, float* dx, bool add, int64_t images) const {
    const PlaneGeometry& g = geometry_;
    for (int64_t image = 0; image < images; ++image) {
        for (int c = 0; c < g.x.channels; ++c) {
            kernels_.join(g.phases.data(), g.phase_count(),
                          phases + image * g.taken.image() +
                              int64_t{c} * g.phase_count() * g.taken.pitch(),
                          g.taken.pitch(), dx + image * g.x.image() + c * g.x.pitch(), add);
        }
    }
}

void PlaneProduct::forward(const float* values, const float* x, const float* bias, float* y,
                           PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    for_sets(images, [&](int64_t first, int64_t count) {
        const float* from = split(x + g.x.at(first, 0), images.scratch, count);
        kernels_.walk(task, values, from, bias, y + g.y.at(first, 0), count, false);
        clear(g.y, y, first, count);
    });
}

void PlaneProduct::input(const float* values, const float* dy, float* dx, bool add,
                         PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    const bool phased = !g.phases.empty(), added = add && !phased;
    for_sets(images, [&](int64_t first, int64_t count) {
        const float* from = dy + g.y.at(first, 0);
        float* to = phased ? images.scratch + g.taken.lead() : dx + g.x.at(first, 0);
        if (way_ == PlaneWay::gather) {
            kernels_.walk(task, values, from, nullptr, to, count, added);
        } else {
            kernels_.spread(task, values, from, to, count, added);
        }
        if (phased) join(to, dx + g.x.at(first, 0), add, count);
        clear(g.x, dx, first, count);
    });
}

void PlaneProduct::values(const float* x, const float* dy, float* gradient,
                          PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    for_sets(images, [&](int64_t first, int64_t count) {
        const float* from = split(x + g.x.at(first, 0), images.scratch, count);
        kernels_.dots(task, dy + g.y.at(first, 0), from, gradient, count);
    });
}

}  // namespace mest
