// Optimiser steps, in place, on all parameters in one launch: PyTorch's SGD, Adam (AdamW) and RMSprop.
//
// Layout     Tables of arrays, one entry a tensor: parameter, gradient, moments. Elementwise, in storage order.
// Grid       x: blocks of 1024 elements of one tensor. first_blocks says where each tensor's blocks begin; a block
//            finds its tensor by bisection (8 steps for a ResNet-50's 161 tensors).
// Constants  BLOCK_ELEMENTS.
// Numbers    Learning rate and the like come from memory: a graph that is launched again finds new ones there.
// Cost       sgd 12 bytes an element, with momentum 20, adam 28 (float): bound by memory.
// Order      No sums.
#include "common.cuh"

#ifndef BLOCK_ELEMENTS
#error "compile with -DBLOCK_ELEMENTS=..."
#endif

// Calls step(tensor, i) for every element i of this block.
template <class Step>
static __device__ __forceinline__ void for_each_element(
    const int* sizes, const int* first_blocks, int tensors, Step step) {
    int tensor = 0, beyond = tensors;
    while (beyond - tensor > 1) {
        const int middle = (tensor + beyond) / 2;
        if (first_blocks[middle] <= (int)blockIdx.x)
            tensor = middle;
        else
            beyond = middle;
    }
    const int first = ((int)blockIdx.x - first_blocks[tensor]) * BLOCK_ELEMENTS;
    const int last = min(first + BLOCK_ELEMENTS, sizes[tensor]);
    for (int i = first + (int)threadIdx.x; i < last; i += blockDim.x) step(tensor, i);
}

// g += weight_decay * w; m = momentum * m + undamped * g, but g at first; w -= lr * (g + momentum * m if nesterov else
// m). Without moments w -= lr * g. undamped is 1 - dampening.
extern "C" __global__ void sgd_update(
    SCALAR* const* __restrict__ parameters,       // [tensors], in place
    const SCALAR* const* __restrict__ gradients,  // [tensors]
    SCALAR* const* __restrict__ moments,          // [tensors], in place, or null
    const int* __restrict__ sizes,                // [tensors]
    const int* __restrict__ first_blocks,         // [tensors]
    const SCALAR* __restrict__ numbers,           // [6]
    int tensors) {
    const Scalar lr = numbers[0], momentum = numbers[1], undamped = numbers[2], weight_decay = numbers[3];
    const bool nesterov = numbers[4] != 0, first = numbers[5] != 0;
    for_each_element(sizes, first_blocks, tensors, [=](int tensor, int i) {
        Scalar* const w = parameters[tensor];
        Scalar g = gradients[tensor][i];
        if (weight_decay != 0) g = multiply_add(weight_decay, w[i], g);
        if (moments) {
            Scalar* const m = moments[tensor];
            m[i] = first ? g : multiply_add(momentum, m[i], undamped * g);
            g = nesterov ? multiply_add(momentum, m[i], g) : m[i];
        }
        w[i] = multiply_add(-lr, g, w[i]);
    });
}

// g += weight_decay * w, w *= decay (of the two only one does anything: Adam, AdamW); m = beta1 * m + (1 - beta1) * g;
// v = beta2 * v + (1 - beta2) * g^2; w -= step_size * m / (sqrt(v) / root + eps), where
// step_size = lr / (1 - beta1^step) and root = sqrt(1 - beta2^step).
extern "C" __global__ void adam_update(
    SCALAR* const* __restrict__ parameters,       // [tensors], in place
    const SCALAR* const* __restrict__ gradients,  // [tensors]
    SCALAR* const* __restrict__ exp_avgs,         // [tensors], in place
    SCALAR* const* __restrict__ exp_avg_sqs,      // [tensors], in place
    const int* __restrict__ sizes,                // [tensors]
    const int* __restrict__ first_blocks,         // [tensors]
    const SCALAR* __restrict__ numbers,           // [9]
    int tensors) {
    const Scalar step_size = numbers[0], beta1 = numbers[1], rest1 = numbers[2], beta2 = numbers[3], rest2 = numbers[4];
    const Scalar root = numbers[5], eps = numbers[6], weight_decay = numbers[7], decay = numbers[8];
    for_each_element(sizes, first_blocks, tensors, [=](int tensor, int i) {
        Scalar* const w = parameters[tensor];
        Scalar* const m = exp_avgs[tensor];
        Scalar* const v = exp_avg_sqs[tensor];
        Scalar g = gradients[tensor][i];
        if (weight_decay != 0) g = multiply_add(weight_decay, w[i], g);
        m[i] = multiply_add(beta1, m[i], rest1 * g);
        v[i] = multiply_add(beta2, v[i], rest2 * (g * g));
        w[i] = multiply_add(-step_size, m[i] / (sqrt(v[i]) / root + eps), decay * w[i]);
    });
}

// g += weight_decay * w; v = alpha * v + (1 - alpha) * g^2; g = g / (sqrt(v) + eps); m = momentum * m + g; w -= lr * m.
// Without moments w -= lr * g. rest is 1 - alpha.
extern "C" __global__ void rmsprop_update(
    SCALAR* const* __restrict__ parameters,       // [tensors], in place
    const SCALAR* const* __restrict__ gradients,  // [tensors]
    SCALAR* const* __restrict__ square_avgs,      // [tensors], in place
    SCALAR* const* __restrict__ moments,          // [tensors], in place, or null
    const int* __restrict__ sizes,                // [tensors]
    const int* __restrict__ first_blocks,         // [tensors]
    const SCALAR* __restrict__ numbers,           // [6]
    int tensors) {
    const Scalar lr = numbers[0], alpha = numbers[1], rest = numbers[2], eps = numbers[3], weight_decay = numbers[4];
    const Scalar momentum = numbers[5];
    for_each_element(sizes, first_blocks, tensors, [=](int tensor, int i) {
        Scalar* const w = parameters[tensor];
        Scalar* const v = square_avgs[tensor];
        Scalar g = gradients[tensor][i];
        if (weight_decay != 0) g = multiply_add(weight_decay, w[i], g);
        v[i] = multiply_add(alpha, v[i], rest * (g * g));
        g = g / (sqrt(v[i]) + eps);
        if (moments) {
            Scalar* const m = moments[tensor];
            m[i] = multiply_add(momentum, m[i], g);
            g = m[i];
        }
        w[i] = multiply_add(-lr, g, w[i]);
    });
}
