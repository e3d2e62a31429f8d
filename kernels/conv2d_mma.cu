// Convolution by implicit GEMM on tensor cores; conv2d.cu is its sibling.
//
// Needs      sm_80
// Layout     As in conv2d.cu. C / groups and K / groups are multiples of 4; x, w, y and their gradients begin at a
//            multiple of 16 bytes.
// Grid       mma_tile.cuh; the layers are groups (times parts, for the weight gradient).
// Constants  Those of conv2d.cu and of mma_tile.cuh.
// Cost       2 N P Q K R S C/groups FLOP; bound by the tensor cores for R S C/groups of some 500 or more, else by memory.
// Order      mma_tile.cuh, over the terms in the order that a formula names; terms of the padding are zeros.
#include "activation.cuh"
#include "mma_tile.cuh"
#include "window.cuh"

// The im2col matrix along its rows: pixels (n,p,q), k = (r,s,c).
struct Patches {
    typedef Chunks<TILE_M, true> Own;
    const Scalar* x;
    const int H, W, C, channels;
    Digits tap;  // of the thread's chunks in this step
    const Digits step;
    int offset[Own::COUNT], h[Own::COUNT], v[Own::COUNT];  // of a chunk's first tap

    __device__ __forceinline__ Patches(
        const Scalar* x, int pixels, int H, int W, int C, int P, int Q, int channels, int group, int first)
        : x(x), H(H), W(W), C(C), channels(channels), tap(digits_of(Own::k(0), KERNEL_W, channels)),
          step(digits_of(STEP, KERNEL_W, channels)) {
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) {
            const Digits pixel = digits_of(min(first + Own::row(i), pixels - 1), P, Q);
            h[i] = row_of(pixel.middle, 0);
            v[i] = column_of(pixel.low, 0);
            offset[i] = ((pixel.high * H + h[i]) * W + v[i]) * C + group * channels;
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int down = tap.high * DILATION_H, right = tap.middle * DILATION_W;
        const bool inside = (unsigned int)(h[i] + down) < (unsigned int)H && (unsigned int)(v[i] + right) < (unsigned int)W;
        return {x + (offset[i] + (down * W + right) * C + tap.low), inside && tap.high < KERNEL_H};
    }
    __device__ __forceinline__ void advance() { add(tap, step, KERNEL_W, channels); }
};

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]).
// GEMM: rows (n,p,q), columns k of the group, sum over (r,s,c).
extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) conv2d_mma_forward(
    const SCALAR* __restrict__ x,      // [N, H, W, C]
    const SCALAR* __restrict__ w,      // [K, KERNEL_H, KERNEL_W, C / groups]
    const SCALAR* __restrict__ b,      // [K] or null
    const SCALAR* __restrict__ scale,  // [K] or null
    SCALAR* __restrict__ y,            // [N, P, Q, K]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ MmaTiles tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * P * Q;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const MmaPlace place = mma_place(pixels, filters);
    const int group = place.layer;
    mma_tile<true, true>(
        tiles, place, ceil_div(depth, STEP), Patches(x, pixels, H, W, C, P, Q, channels, group, place.m),
        Rows<TILE_N>(w, group * filters * depth, filters, depth, place.n, 0, depth),
        [=](int m, int n, Four four) {
            if (m >= pixels || n >= filters) return;
            const int k = group * filters + n;
#pragma unroll
            for (int i = 0; i < 4; ++i) four.at[i] = conv2d_result(four.at[i], b, scale, k + i);
            *(Four*)(y + (long long)m * K + k) = four;
        });
}

// The outputs that read a pixel (n,h,v) of x: rows of pixels, k = (r,s,k).
struct Gradients {
    typedef Chunks<TILE_M, true> Own;
    const Scalar* dy;
    const int K, P, Q, filters;
    Digits tap;
    const Digits step;
    int offset[Own::COUNT], h[Own::COUNT], v[Own::COUNT];  // offset of the image; h, v with the padding

    __device__ __forceinline__ Gradients(
        const Scalar* dy, int pixels, int H, int W, int K, int P, int Q, int filters, int group, int first)
        : dy(dy), K(K), P(P), Q(Q), filters(filters), tap(digits_of(Own::k(0), KERNEL_W, filters)),
          step(digits_of(STEP, KERNEL_W, filters)) {
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) {
            const Digits pixel = digits_of(min(first + Own::row(i), pixels - 1), H, W);
            h[i] = pixel.middle + PAD_TOP;
            v[i] = pixel.low + PAD_LEFT;
            offset[i] = pixel.high * P * Q * K + group * filters;
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int down = h[i] - tap.high * DILATION_H, right = v[i] - tap.middle * DILATION_W;
        const int p = down / STRIDE_H, q = right / STRIDE_W;
        const bool read = down >= 0 && right >= 0 && down == p * STRIDE_H && right == q * STRIDE_W && p < P && q < Q;
        return {dy + (offset[i] + (p * Q + q) * K + tap.low), read && tap.high < KERNEL_H};
    }
    __device__ __forceinline__ void advance() { add(tap, step, KERNEL_W, filters); }
};

// The filters turned for the input's gradient: k = (r,s,k), across columns c.
struct Filters {
    typedef Chunks<TILE_N, false> Own;
    const Scalar* w;
    const int channels, filters;
    int offset;  // of the thread's channels
    Digits tap[Own::COUNT];
    const Digits step;

    __device__ __forceinline__ Filters(const Scalar* w, int channels, int filters, int group, int first)
        : w(w), channels(channels), filters(filters),
          offset(group * filters * KERNEL_H * KERNEL_W * channels + min(first + Own::row(0), channels - 4)),
          step(digits_of(STEP, KERNEL_W, filters)) {
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) tap[i] = digits_of(Own::k(i), KERNEL_W, filters);
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int at = (tap[i].low * KERNEL_H + tap[i].high) * KERNEL_W + tap[i].middle;
        return {w + (offset + at * channels), tap[i].high < KERNEL_H};
    }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) add(tap[i], step, KERNEL_W, filters);
    }
};

// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v; terms
// without such a p or q are absent. GEMM: rows (n,h,v), columns c of the group, sum over (r,s,k).
extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) conv2d_mma_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ w,   // [K, KERNEL_H, KERNEL_W, C / groups]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ MmaTiles tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * H * W;
    const MmaPlace place = mma_place(pixels, channels);
    const int group = place.layer;
    mma_tile<true, false>(
        tiles, place, ceil_div(KERNEL_H * KERNEL_W * filters, STEP),
        Gradients(dy, pixels, H, W, K, P, Q, filters, group, place.m),
        Filters(w, channels, filters, group, place.n),
        [=](int m, int c, const Four& four) {
            if (m < pixels && c < channels) *(Four*)(dx + (long long)m * C + group * channels + c) = four;
        });
}

// The im2col matrix along its columns: k = pixels (n,p,q), across (r,s,c).
struct PatchColumns {
    typedef Chunks<TILE_N, false> Own;
    const Scalar* x;
    const int H, W, C, P, Q, last;
    int down, right, channel, k;
    Digits pixel[Own::COUNT];
    const Digits step;

    __device__ __forceinline__ PatchColumns(
        const Scalar* x, int H, int W, int C, int P, int Q, int channels, int group, int column, int from, int to)
        : x(x), H(H), W(W), C(C), P(P), Q(Q), last(to), k(from + Own::k(0)), step(digits_of(STEP, P, Q)) {
        const Digits tap = digits_of(min(column + Own::row(0), KERNEL_H * KERNEL_W * channels - 4), KERNEL_W, channels);
        down = row_of(0, tap.high);
        right = column_of(0, tap.middle);
        channel = group * channels + tap.low;
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) pixel[i] = digits_of(from + Own::k(i), P, Q);
    }
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int h = pixel[i].middle * STRIDE_H + down, v = pixel[i].low * STRIDE_W + right;
        const bool inside = (unsigned int)h < (unsigned int)H && (unsigned int)v < (unsigned int)W;
        const int further = Own::k(i) - Own::k(0);
        return {x + (((pixel[i].high * H + h) * W + v) * C + channel), inside && k + further < last};
    }
    __device__ __forceinline__ void advance() {
        k += STEP;
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) add(pixel[i], step, P, Q);
    }
};

// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] * x[n, row_of(p, r), column_of(q, s), c].
// GEMM: rows k of the group, columns (r,s,c), sum over (n,p,q), cut into `parts` of `length` terms so that small
// filters fill the GPU too; sum_parts adds the parts up in order.
extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) conv2d_mma_backward_weight(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ x,   // [N, H, W, C]
    SCALAR* __restrict__ dw,        // [parts, K, KERNEL_H, KERNEL_W, C / groups]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    __shared__ MmaTiles tiles;
    const int channels = C / groups, filters = K / groups;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const MmaPlace place = mma_place(filters, depth);
    const int group = place.layer % groups, part = place.layer / groups;
    const int from = part * length, to = min(from + length, N * P * Q);
    Scalar* out = dw + ((long long)part * K + group * filters) * depth;
    mma_tile<false, false>(
        tiles, place, ceil_div(to - from, STEP), Columns<TILE_M>(dy, group * filters, filters, K, place.m, from, to),
        PatchColumns(x, H, W, C, P, Q, channels, group, place.n, from, to),
        [=](int k, int i, const Four& four) {
            if (k < filters && i < depth) *(Four*)(out + (long long)k * depth + i) = four;
        });
}
