#include "plane_product.h"

#include <algorithm>
#include <type_traits>

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

// The kernels of a type of planes, under one name.
void split_plane(const PlaneKernels& k, const PlanePhase& p, const float* x, float* phase) {
    k.split(p, x, phase);
}
void split_plane(const PlaneKernels& k, const PlanePhase& p, const bf16* x, bf16* phase) {
    k.narrow.split(p, x, phase);
}
auto clear_of(const PlaneKernels& k, const float*) { return k.clear; }
auto clear_of(const PlaneKernels& k, const bf16*) { return k.narrow.clear; }
auto dots_of(const PlaneKernels& k, const float*) { return k.dots; }
auto dots_of(const PlaneKernels& k, const bf16*) { return k.narrow.dots; }

}  // namespace

PlaneProduct::PlaneProduct(Way way, const PlaneWindow& window, int rows, const Planes& x,
                           const Planes& y, bool narrow)
    : geometry_(window, x, y, narrow ? sizeof(bf16) : sizeof(float)),
      way_(plane_way(way, rows)),
      narrow_(narrow),
      lists_(way_, geometry_, rows, variant().planes->width),
      kernels_(*variant().planes) {}

void PlaneProduct::reserve(int64_t entries) { lists_.reserve(entries); }

int64_t PlaneProduct::scratch_floats() const {
    return geometry_.phases.empty() ? 0 : geometry_.taken.floats();
}

// Of entries, or of rows; single rows gain nothing by that.
bool PlaneProduct::packs() const {
    const bool walks = way_ == PlaneWay::walk || way_ == PlaneWay::spread;
    return narrow_ && kernels_.narrow.pairs && walks && lists_.task().rows > 1;
}

int64_t PlaneProduct::packed_words(int64_t entries) const {
    if (!packs()) return 0;
    const PlaneTask task = lists_.task();
    if (task.shared) entries = int64_t{task.strips} * task.first[task.groups];
    return way_ == PlaneWay::spread ? entries * (task.rows / 2)
                                    : (entries + 2 * task.strips + 2) / 2 * task.rows;
}

PlaneValues PlaneProduct::pack(const float* values, uint32_t* words) const {
    if (packs()) {
        const auto& narrow = kernels_.narrow;
        (way_ == PlaneWay::spread ? narrow.pack_rows : narrow.pack_entries)(lists_.task(), values, words);
    }
    return {values, words};
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
template <class T>
void PlaneProduct::clear(const Planes& planes, T* buffer, int64_t first, int64_t images) const {
    clear_of(kernels_, buffer)({planes.image(), planes.pitch(), planes.channels},
                               static_cast<int>(planes.plane()), planes.lead(),
                               buffer + planes.at(first, 0), images);
    if (first + images < planes.images) return;
    std::fill(buffer + planes.images * planes.image(), buffer + planes.floats(), T{});
}

template <class T>
const T* PlaneProduct::split(const T* x, float* scratch, int64_t images) const {
    const PlaneGeometry& g = geometry_;
    if (g.phases.empty()) return x;
    T *whole = reinterpret_cast<T*>(scratch), *phases = whole + g.taken.lead();
    for (int64_t image = 0; image < images; ++image) {
        for (int c = 0; c < g.x.channels; ++c) {
            for (int i = 0; i < g.phase_count(); ++i) {
                split_plane(kernels_, g.phases[i], x + image * g.x.image() + c * g.x.pitch(),
                            phases + image * g.taken.image() +
                                (int64_t{c} * g.phase_count() + i) * g.taken.pitch());
            }
        }
    }
    clear(g.taken, whole, 0, images);
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

template <class T>
void PlaneProduct::forward(const PlaneValues& values, const T* x, const float* bias, T* y,
                           PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    for_sets(images, [&](int64_t first, int64_t count) {
        const T* from = split(x + g.x.at(first, 0), images.scratch, count);
        if constexpr (std::is_same_v<T, float>) {
            kernels_.walk(task, values.each, from, bias, y + g.y.at(first, 0), count, false);
        } else {
            kernels_.narrow.walk(task, values, from, bias, y + g.y.at(first, 0), count);
        }
        clear(g.y, y, first, count);
    });
}

template <class T>
void PlaneProduct::input(const PlaneValues& values, const T* dy, float* dx, bool add,
                         PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    const bool phased = !g.phases.empty(), added = add && !phased;
    const bool gathers = way_ == PlaneWay::gather;
    for_sets(images, [&](int64_t first, int64_t count) {
        const T* from = dy + g.y.at(first, 0);
        float* to = phased ? images.scratch + g.taken.lead() : dx + g.x.at(first, 0);
        if constexpr (std::is_same_v<T, float>) {
            if (gathers) kernels_.walk(task, values.each, from, nullptr, to, count, added);
            else kernels_.spread(task, values.each, from, to, count, added);
        } else {
            const NarrowPlaneKernels& narrow = kernels_.narrow;
            if (gathers) narrow.gather(task, values.each, from, nullptr, to, count, added);
            else narrow.spread(task, values, from, to, count, added);
        }
        if (phased) join(to, dx + g.x.at(first, 0), add, count);
        clear(g.x, dx, first, count);
    });
}

template <class T>
void PlaneProduct::values(const T* x, const T* dy, float* gradient, PlaneImages images) const {
    const PlaneGeometry& g = geometry_;
    const PlaneTask task = lists_.task();
    for_sets(images, [&](int64_t first, int64_t count) {
        const T* from = split(x + g.x.at(first, 0), images.scratch, count);
        dots_of(kernels_, from)(task, dy + g.y.at(first, 0), from, gradient, count);
    });
}

template void PlaneProduct::forward(const PlaneValues&, const float*, const float*, float*,
                                    PlaneImages) const;
template void PlaneProduct::forward(const PlaneValues&, const bf16*, const float*, bf16*,
                                    PlaneImages) const;
template void PlaneProduct::input(const PlaneValues&, const float*, float*, bool, PlaneImages) const;
template void PlaneProduct::input(const PlaneValues&, const bf16*, float*, bool, PlaneImages) const;
template void PlaneProduct::values(const float*, const float*, float*, PlaneImages) const;
template void PlaneProduct::values(const bf16*, const bf16*, float*, PlaneImages) const;

}  // namespace mest
