// Convolution without a matrix product: for depthwise filters and few input channels, where the tiles of conv2d.cu
// would be mostly empty.
//
// Layout     x [N, H, W, C], w [K, R, S, CHANNELS], y [N, P, Q, K]; all channels-last.
// Grid       x: one thread per element of the result, channels (filters) fastest: neighbouring threads read
//            neighbouring words of x and dy, or the same one. The weight gradient takes filters fastest, and parts of
//            its long sum.
// Constants  The window's (window.cuh); CHANNELS = C / groups, so that the loop over them is unrolled; KIND, the
//            activation that the forward kernel applies, as in conv2d.cu.
// Cost       2 N P Q K R S CHANNELS FLOP; two words from the caches a multiply-add: bound by them.
// Order      As in conv2d.cu: each sum runs over its terms in the order that its formula names, in one chain. Terms of
//            the padding are left out rather than added as 0; for finite filters the bits are the same.
#include "activation.cuh"
#include "sources.cuh"
#include "window.cuh"

#ifndef CHANNELS
#error "compile with -DCHANNELS=C / groups"
#endif

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]).
extern "C" __global__ void conv2d_direct_forward(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ w,         // [K, KERNEL_H, KERNEL_W, CHANNELS]
    const RESULT* __restrict__ b,         // [K] or null
    const RESULT* __restrict__ scale,     // [K] or null
    const RESULT* __restrict__ residual,  // [N, P, Q, K] or null
    RESULT* __restrict__ y,               // [N, P, Q, K]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    const long long i = thread_number();
    if (i >= N * P * Q * K) return;
    const int k = (int)i % K, q = (int)i / K % Q, p = (int)i / K / Q % P, n = (int)i / K / Q / P;
    const int first_channel = k / (K / groups) * CHANNELS;
    const SCALAR* filter = w + k * KERNEL_H * KERNEL_W * CHANNELS;
    Scalar sum = 0;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = row_of(p, r);
        if (h < 0 || h >= H) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int v = column_of(q, s);
            if (v < 0 || v >= W) continue;
            const SCALAR* pixel = x + (((n * H + h) * W + v) * C + first_channel);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c)
                sum = multiply_add(pixel[c], filter[(r * KERNEL_W + s) * CHANNELS + c], sum);
        }
    }
    y[i] = conv2d_result(sum, b, scale, residual, i, k);
}

// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v.
extern "C" __global__ void conv2d_direct_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ w,   // [K, KERNEL_H, KERNEL_W, CHANNELS]
    RESULT* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    const long long i = thread_number();
    if (i >= N * H * W * C) return;
    const int c = (int)i % C, v = (int)i / C % W, h = (int)i / C / W % H, n = (int)i / C / W / H;
    const int filters = K / groups, first_filter = c / CHANNELS * filters;
    Scalar sum = 0;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int below = h - row_of(0, r);
        if (below < 0 || below % STRIDE_H || below / STRIDE_H >= P) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int right = v - column_of(0, s);
            if (right < 0 || right % STRIDE_W || right / STRIDE_W >= Q) continue;
            const int p = below / STRIDE_H, q = right / STRIDE_W;
            const SCALAR* gradient = dy + (long long)((n * P + p) * Q + q) * K + first_filter;
            const SCALAR* tap = w + (((long long)first_filter * KERNEL_H + r) * KERNEL_W + s) * CHANNELS + c % CHANNELS;
            for (int k = 0; k < filters; ++k)
                sum = multiply_add(gradient[k], tap[(long long)k * KERNEL_H * KERNEL_W * CHANNELS], sum);
        }
    }
    dx[i] = sum;
}

// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] * x[n, row_of(p, r), column_of(q, s), c], cut into `parts` of `length`
// terms; sum_parts adds the parts up in order.
extern "C" __global__ void conv2d_direct_backward_weight(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ x,   // [N, H, W, C]
    Scalar* __restrict__ dw,        // [parts, K, KERNEL_H, KERNEL_W, CHANNELS]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    const int depth = KERNEL_H * KERNEL_W * CHANNELS;
    const long long i = thread_number();
    if (i >= (long long)parts * depth * K) return;
    const int k = (int)(i % K), tap = (int)(i / K % depth), part = (int)(i / K / depth);
    const int c = tap % CHANNELS + k / (K / groups) * CHANNELS;
    const int s = tap / CHANNELS % KERNEL_W, r = tap / CHANNELS / KERNEL_W;
    const int first = part * length, last = min(first + length, N * P * Q);
    Digits pixel = digits_of(first, P, Q);  // counted on: a division for each term would take most of the time
    Scalar sum = 0;
    for (int m = first; m < last; ++m) {
        const int h = row_of(pixel.middle, r), v = column_of(pixel.low, s);
        if (h >= 0 && h < H && v >= 0 && v < W)
            sum = multiply_add(dy[m * K + k], x[((pixel.high * H + h) * W + v) * C + c], sum);
        add(pixel, {0, 0, 1}, P, Q);
    }
    dw[((long long)part * K + k) * depth + tap] = sum;
}
