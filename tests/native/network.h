// A step of a small network with a sparse and a dense convolution: on planes in place, or in C order.
#pragma once

#include <random>

#include "machine.h"

namespace selftest {

constexpr int64_t batch = 5, classes = 3;  // examples of a group
constexpr int64_t capacity = 20, active = 17, all_slots = 2 * 2 * 9;  // strips of 4 rows
constexpr int64_t rows = 4;

// What a step is given and keeps, by number of its buffer.
struct Network {
    Description d;
    int64_t x, slots, values, momentum, w, gamma, beta, head, rates, share, targets, loss, logits;
};

// What passes from the forward pass to the backward pass.
struct Passed {
    int64_t copy, h, y, mean, scale, where, features, p;
};

inline void add_bound(Network& n, int64_t groups) {
    Description& d = n.d;
    n.x = d.bound(floats, {batch, 2, 9, 7}, mest_rows);
    n.targets = d.bound(longs, {batch}, mest_rows);
    n.logits = d.bound(floats, {batch, classes}, mest_rows);
    n.loss = d.bound(floats, {}, mest_sum);
    n.rates = d.bound(floats, {1});
    n.share = d.bound(floats, {1});
    n.slots = d.bound(ints, {capacity});
    n.values = d.bound(floats, {capacity, rows});
    n.momentum = d.bound(floats, {capacity, rows});
    n.w = d.bound(floats, {8, 8 / groups, 3, 3});
    n.gamma = d.bound(floats, {8});
    n.beta = d.bound(floats, {8});
    n.head = d.bound(floats, {classes, 8});
}

inline Passed add_forward(Network& n, bool planes, int64_t groups) {
    Description& d = n.d;
    Passed it{};
    it.copy = d.held(floats, {batch, 2, 9, 7}, planes);
    it.h = d.held(floats, {batch, 8, 9, 7}, planes);
    it.y = d.held(floats, {batch, 8, 9, 7}, planes);
    it.mean = d.held(floats, {batch, 2});
    it.scale = d.held(floats, {batch, 2});
    const int64_t z = d.held(floats, {batch, 8, 5, 4}, planes);
    const int64_t small = d.held(floats, {batch, 8, 2, 2}, 1);
    it.where = d.held(bytes, {batch, 8, 2, 2});
    it.features = d.held(floats, {batch, 8});
    it.p = d.held(floats, {batch, classes});
    const int64_t loss = d.held(floats, {});
    d.apply("copy", {n.x, it.copy});
    d.apply("sparse_conv2d", {it.copy, n.values, n.slots, -1, it.h, 1, 1, 1, 1, 8, 2, 3, 3, rows});
    d.apply("group_norm", {it.h, n.gamma, n.beta, -1, it.y, it.mean, it.scale, 2, 1}, {1e-5});
    d.apply("conv2d", {it.y, n.w, -1, z, 2, 2, 1, 1, groups});
    d.apply("max_pool2d", {z, small, it.where, 2, 2, 2, 2, 0, 0, 0});
    d.apply("global_average_pool", {small, it.features});
    d.apply("linear", {it.features, n.head, -1, n.logits});
    d.apply("cross_entropy", {n.logits, n.targets, n.share, loss, it.p});
    d.apply("accumulate", {loss, n.loss});
    return it;
}

// The gradients of values, w and head, which the update reads.
inline std::vector<int64_t> add_backward(Network& n, const Passed& it, bool planes, int64_t groups) {
    Description& d = n.d;
    const int64_t dlogits = d.held(floats, {batch, classes}), dhead = d.held(floats, {classes, 8});
    const int64_t dfeatures = d.held(floats, {batch, 8});
    const int64_t dsmall = d.held(floats, {batch, 8, 2, 2}, 2);  // more than pools need
    const int64_t dz = d.held(floats, {batch, 8, 5, 4}, planes);
    const int64_t dw = d.held(floats, {8, 8 / groups, 3, 3});
    const int64_t dy = d.held(floats, {batch, 8, 9, 7}, planes);
    const int64_t dh = d.held(floats, {batch, 8, 9, 7}, planes);
    const int64_t dcopy = d.held(floats, {batch, 2, 9, 7}, planes);
    const int64_t dgamma = d.held(floats, {8}), dbeta = d.held(floats, {8});
    const int64_t dvalues = d.held(floats, {capacity, rows});
    d.apply("cross_entropy_gradient", {it.p, n.targets, n.share, dlogits});
    d.apply("linear_weight_gradient", {it.features, dlogits, dhead});
    d.apply("linear_input_gradient", {n.head, dlogits, dfeatures});
    d.apply("global_average_pool_gradient", {dfeatures, dsmall});
    d.apply("max_pool2d_gradient", {it.where, dsmall, dz, 2, 2, 2, 2, 0, 0, 0});
    d.apply("conv2d_weight_gradient", {it.y, dz, dw, 2, 2, 1, 1, groups});
    d.apply("conv2d_input_gradient", {n.w, dz, dy, 2, 2, 1, 1, groups});
    d.apply("group_norm_gradient",
            {it.h, it.y, it.mean, it.scale, n.gamma, dy, -1, dh, dgamma, dbeta, -1, 2, 1});
    d.apply("sparse_conv2d_input_gradient",
            {n.values, n.slots, dh, dcopy, 1, 1, 1, 1, 8, 2, 3, 3, rows});
    d.apply("sparse_conv2d_values_gradient",
            {it.copy, n.slots, dh, dvalues, 1, 1, 1, 1, 8, 2, 3, 3, rows});
    std::vector<int64_t> sums;
    for (int64_t gradient : {dvalues, dw, dhead}) {
        sums.push_back(d.bound(floats, d.buffers[gradient].shape, mest_sum));
        d.apply("accumulate", {gradient, sums.back()});
    }
    return sums;
}

inline Network network(bool planes) {
    const int64_t groups = planes ? 1 : 2;  // of the dense convolution
    Network n{};
    add_bound(n, groups);
    const Passed passed = add_forward(n, planes, groups);
    const std::vector<int64_t> sums = add_backward(n, passed, planes, groups);
    n.d.group_operators = n.d.count;
    n.d.apply("sgd", {sums[0], n.rates, n.values, n.momentum, 0}, {1e-4, 0.9});
    n.d.apply("sgd", {sums[1], n.rates, n.w, -1, 0}, {0, 0});
    n.d.apply("sgd", {sums[2], n.rates, n.head, -1, 0}, {0, 0});
    return n;
}

// Increasing slots from `first` on, and room for more: -1, where values are zero.
inline void choose_slots(Machine& machine, const Network& n, int first) {
    for (int i = 0; i < capacity; ++i) {
        machine.at<int32_t>(n.slots)[i] = i < active ? first + 2 * i : -1;
    }
    std::fill_n(machine.at(n.values) + active * rows, (capacity - active) * rows, 0.0f);
}

inline void fill(Machine& machine, const Network& n, int64_t groups = 1) {
    std::mt19937 random(1);
    for (int64_t number : {n.x, n.values, n.w, n.head}) {
        const int64_t count = bytes_of(n.d.buffers[number]) / 4 * (number == n.x ? groups : 1);
        for (int64_t i = 0; i < count; ++i) {
            machine.at(number)[i] = static_cast<float>(random() % 2001) / 1000.0f - 1;
        }
    }
    std::fill_n(machine.at(n.gamma), 8, 1.0f);
    choose_slots(machine, n, 0);
    for (int i = 0; i < batch * groups; ++i) machine.at<int64_t>(n.targets)[i] = i % classes;
    *machine.at(n.rates) = 0.05f;
    *machine.at(n.share) = 1.0f / static_cast<float>(batch * groups);
}

}  // namespace selftest
