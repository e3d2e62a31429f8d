// The matrices that a convolution multiplies, none of them stored, as sources (sources.cuh).
//
// Letters as in conv2d.cu; `channels` and `filters` are those of a group, multiples of CHUNK.
#pragma once
#include "sources.cuh"
#include "window.cuh"

// The im2col matrix along its rows: pixels (n,p,q), k = (r,s,c) from `from`.
template <class Place>
struct Patches {
    const SCALAR* x;
    const int H, W, C, channels;
    Digits tap;
    const Digits step;
    int offset[Place::COUNT], h[Place::COUNT], v[Place::COUNT];  // of a row's first tap

    __device__ __forceinline__ Patches(
        const SCALAR* x, int pixels, int H, int W, int C, int P, int Q, int channels, int group, int first, int from)
        : x(x), H(H), W(W), C(C), channels(channels), tap(digits_of(from + Place::k(), KERNEL_W, channels)),
          step(digits_of(Place::STEP, KERNEL_W, channels)) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) {
            const Digits pixel = digits_of(min(first + Place::row(i), pixels - 1), P, Q);
            h[i] = row_of(pixel.middle, 0);
            v[i] = column_of(pixel.low, 0);
            offset[i] = ((pixel.high * H + h[i]) * W + v[i]) * C + group * channels;
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int down = tap.high * DILATION_H, right = tap.middle * DILATION_W;
        const int further = (down * W + right) * C + tap.low;
        const bool inside = (unsigned int)(h[i] + down) < (unsigned int)H && (unsigned int)(v[i] + right) < (unsigned int)W;
        return {x + (offset[i] + further), inside};
    }
    __device__ __forceinline__ void advance() { add(tap, step, KERNEL_W, channels); }
};

// The outputs that read a pixel (n,h,v) of x: rows of pixels, k = (r,s,k).
template <class Place>
struct Gradients {
    const SCALAR* dy;
    const int K, P, Q, filters;
    Digits tap;
    const Digits step;
    unsigned int offset[Place::COUNT];  // of the image, or of its first tap: that may lie beyond dy, and beyond 2^31
    int h[Place::COUNT], v[Place::COUNT];  // with the padding

    __device__ __forceinline__ Gradients(
        const SCALAR* dy, int pixels, int H, int W, int K, int P, int Q, int filters, int group, int first)
        : dy(dy), K(K), P(P), Q(Q), filters(filters), tap(digits_of(Place::k(), KERNEL_W, filters)),
          step(digits_of(Place::STEP, KERNEL_W, filters)) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) {
            const Digits pixel = digits_of(min(first + Place::row(i), pixels - 1), H, W);
            h[i] = pixel.middle + PAD_TOP;
            v[i] = pixel.low + PAD_LEFT;
            offset[i] = pixel.high * P * Q * K + group * filters;
#if STRIDE_H == 1 && STRIDE_W == 1
            offset[i] += (unsigned int)(h[i] * Q + v[i]) * K;
#endif
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int down = tap.high * DILATION_H, right = tap.middle * DILATION_W;
        const int p = (h[i] - down) / STRIDE_H, q = (v[i] - right) / STRIDE_W;
        const bool whole = p * STRIDE_H == h[i] - down && q * STRIDE_W == v[i] - right;
        const bool inside = whole && (unsigned int)p < (unsigned int)P && (unsigned int)q < (unsigned int)Q;
#if STRIDE_H == 1 && STRIDE_W == 1
        return {dy + (int)(offset[i] + (tap.low - (down * Q + right) * K)), inside};
#else
        return {dy + (int)(offset[i] + ((p * Q + q) * K + tap.low)), inside};
#endif
    }
    __device__ __forceinline__ void advance() { add(tap, step, KERNEL_W, filters); }
};

// The filters turned for the input's gradient: k = (r,s,k), across columns c.
template <class Place>
struct Filters {
    const SCALAR* w;
    const int channels, filters;
    Digits tap;
    const Digits step;
    int offset[Place::COUNT];  // of the channels

    __device__ __forceinline__ Filters(const SCALAR* w, int channels, int filters, int group, int first)
        : w(w), channels(channels), filters(filters), tap(digits_of(Place::k(), KERNEL_W, filters)),
          step(digits_of(Place::STEP, KERNEL_W, filters)) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i)
            offset[i] = group * filters * KERNEL_H * KERNEL_W * channels + min(first + Place::row(i), channels - CHUNK);
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int further = ((tap.low * KERNEL_H + tap.high) * KERNEL_W + tap.middle) * channels;
        return {w + (offset[i] + further), true};
    }
    __device__ __forceinline__ void advance() { add(tap, step, KERNEL_W, filters); }
};

// The im2col matrix along its columns: k = pixels (n,p,q) from `from`, across (r,s,c).
template <class Place>
struct PatchColumns {
    const SCALAR* x;
    const int H, W, C, P, Q;
    Digits pixel;
    const Digits step;
    int offset[Place::COUNT], down[Place::COUNT], right[Place::COUNT];  // of a column's tap, from the pixel's first

    __device__ __forceinline__ PatchColumns(
        const SCALAR* x, int H, int W, int C, int P, int Q, int channels, int group, int first, int from)
        : x(x), H(H), W(W), C(C), P(P), Q(Q), pixel(digits_of(from + Place::k(), P, Q)),
          step(digits_of(Place::STEP, P, Q)) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) {
            const int column = min(first + Place::row(i), KERNEL_H * KERNEL_W * channels - CHUNK);
            const Digits tap = digits_of(column, KERNEL_W, channels);
            down[i] = row_of(0, tap.high);
            right[i] = column_of(0, tap.middle);
            offset[i] = (down[i] * W + right[i]) * C + group * channels + tap.low;
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int h = pixel.middle * STRIDE_H, v = pixel.low * STRIDE_W;
        const int first = ((pixel.high * H + h) * W + v) * C;
        const bool inside = (unsigned int)(h + down[i]) < (unsigned int)H && (unsigned int)(v + right[i]) < (unsigned int)W;
        return {x + (offset[i] + first), inside};
    }
    __device__ __forceinline__ void advance() { add(pixel, step, P, Q); }
};
