// Convolution, activation and max pooling at once, for few input channels: the convolution's own plane is never stored.
//
// Layout     x [N, H, W, C], w [K, R, S, CHANNELS], y, tap [N, U, V, K]; channels-last. The convolution of [H, W] has
//            the plane [P, Q], its pooling [U, V]. tap is the number of the convolution's result that won, NO_TAP where
//            ReLU stops the gradient.
// Constants  The convolution's window (window.cuh) and the pooling's, POOL_...; CHANNELS = C / groups; KIND, RELU or
//            NONE; FILTERS, how many a thread of the forward kernel computes; COLUMNS of the weight gradient
//            (column_sum.cuh).
// Cost       2 N P Q K R S CHANNELS FLOP where the pooling's windows do not overlap, and more where they do. Forward a
//            block has FILTERS filters in shared memory, and a thread a row of pixels in registers: bound by
//            multiply-adds, and by the loads for them.
// Order      Forward each sum runs as in conv2d_direct.cu, so the bits are those of convolution and pooling by
//            themselves; backward as its kernels say. No atomics.
#include "activation.cuh"
#include "common.cuh"
#include "window.cuh"

#if !defined(POOL_H) || !defined(POOL_W) || !defined(POOL_STRIDE_H) || !defined(POOL_STRIDE_W) || \
    !defined(POOL_PAD_TOP) || !defined(POOL_PAD_LEFT) || !defined(POOL_DILATION_H) || !defined(POOL_DILATION_W)
#error "compile with the pooling's window too: POOL_H POOL_W POOL_STRIDE_H ... POOL_DILATION_W"
#endif
#ifndef CHANNELS
#error "compile with -DCHANNELS=C / groups"
#endif
#if KIND != RELU && KIND != NONE
#error "KIND is RELU or NONE"
#endif

#define NO_TAP 255
#define BLOCKS (8 / sizeof(Scalar))  // of a multiprocessor at once, so that a thread may have 128 registers, or 255
#define DEPTH (KERNEL_H * KERNEL_W * CHANNELS)

// The convolution's row that pooling row u looks at with tap row i, which may lie in the padding; and so for columns.
static __device__ __forceinline__ int pooled_row(int u, int i) {
    return u * POOL_STRIDE_H - POOL_PAD_TOP + i * POOL_DILATION_H;
}
static __device__ __forceinline__ int pooled_column(int v, int j) {
    return v * POOL_STRIDE_W - POOL_PAD_LEFT + j * POOL_DILATION_W;
}

// What a product takes of a gradient: rounded as the other operands are.
static __device__ __forceinline__ Scalar operand(RESULT dy) {
    SCALAR rounded;
    rounded = dy;
    return rounded;
}

#ifdef FILTERS

#define AT_ONCE (POOL_W < 4 ? POOL_W : 4)  // neighbouring results of a pooling window's row
#define BETWEEN (POOL_DILATION_W * STRIDE_W)  // columns of x from one of them to the next
#define SPAN ((AT_ONCE - 1) * BETWEEN + EXTENT_W)  // columns of x that they read

// y[n,u,v,k] = the largest over i, j of f(b[k] + sum over r, s, c of x[n, ...] * w[k,r,s,c]) at row
// pooled_row(u, i) and column pooled_column(v, j) of the convolution; tap = i * POOL_W + j of where it is.
// Grid: x: a thread for each (n, u, v), FILTERS filters a block; the parts of the filters are fastest.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv2d_max_pool2d_forward(
    const SCALAR* __restrict__ x,     // [N, H, W, C]
    const SCALAR* __restrict__ w,     // [K, KERNEL_H, KERNEL_W, CHANNELS]
    const RESULT* __restrict__ b,     // [K] or null
    RESULT* __restrict__ y,           // [N, U, V, K]
    unsigned char* __restrict__ tap,  // [N, U, V, K] or null
    int N, int H, int W, int C, int K, int P, int Q, int groups, int U, int V) {
    __shared__ Scalar weights[DEPTH][FILTERS];
    __shared__ Scalar offsets[FILTERS];
    const int filters = K / groups, parts = ceil_div(filters, FILTERS);
    const int layer = blockIdx.x % (groups * parts), group = layer / parts;
    const int first = group * filters + layer % parts * FILTERS, last = min(first + FILTERS, (group + 1) * filters);
    for (int i = threadIdx.x; i < DEPTH * FILTERS; i += blockDim.x) {
        const int k = first + i % FILTERS;
        weights[i / FILTERS][i % FILTERS] = k < last ? w[(long long)k * DEPTH + i / FILTERS] : Scalar(0);
    }
    const int mine = first + threadIdx.x;
    if (threadIdx.x < FILTERS) offsets[threadIdx.x] = b && mine < last ? b[mine] : Scalar(0);
    __syncthreads();
    const long long m = (long long)(blockIdx.x / (groups * parts)) * blockDim.x + threadIdx.x;
    if (m >= N * U * V) return;
    const int v = (int)m % V, u = (int)m / V % U, n = (int)m / V / U;

    // Before any, the first tap inside of the plane leads: it has won where all are -infinity.
    const int leader = ceil_div(max(-pooled_row(u, 0), 0), POOL_DILATION_H) * POOL_W +
                       ceil_div(max(-pooled_column(v, 0), 0), POOL_DILATION_W);
    Scalar best[FILTERS];
    int winner[FILTERS];
#pragma unroll
    for (int k = 0; k < FILTERS; ++k) {
        best[k] = -POSITIVE_INFINITY;
        winner[k] = leader;
    }
#pragma unroll 1
    for (int i = 0; i < POOL_H; ++i) {
        const int p = pooled_row(u, i);
        if (p < 0 || p >= P) continue;
#pragma unroll 1
        for (int j = 0; j < POOL_W; j += AT_ONCE) {
            const int q = pooled_column(v, j), column = column_of(q, 0);
            Scalar sums[AT_ONCE][FILTERS] = {};
#pragma unroll 1
            for (int r = 0; r < KERNEL_H; ++r) {
                const int h = row_of(p, r);
                if (h < 0 || h >= H) continue;
                const int line = ((n * H + h) * W + column) * C + group * CHANNELS;
                Scalar pixels[SPAN][CHANNELS];
#pragma unroll
                for (int t = 0; t < SPAN; ++t) {
                    const bool inside = (unsigned int)(column + t) < (unsigned int)W;
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c) pixels[t][c] = inside ? x[line + t * C + c] : Scalar(0);
                }
#pragma unroll
                for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c)
#pragma unroll
                        for (int k = 0; k < FILTERS; ++k) {
                            const Scalar weight = weights[(r * KERNEL_W + s) * CHANNELS + c][k];
#pragma unroll
                            for (int t = 0; t < AT_ONCE; ++t) {
                                const Scalar pixel = pixels[t * BETWEEN + s * DILATION_W][c];
                                sums[t][k] = multiply_add(pixel, weight, sums[t][k]);
                            }
                        }
            }
#pragma unroll
            for (int t = 0; t < AT_ONCE; ++t) {
                const bool inside = j + t < POOL_W && (unsigned int)(q + t * POOL_DILATION_W) < (unsigned int)Q;
#pragma unroll
                for (int k = 0; k < FILTERS; ++k) {
                    RESULT stored;  // as the convolution would have rounded it
                    stored = b ? sums[t][k] + offsets[k] : sums[t][k];
                    const Scalar candidate = stored;
                    // `beats`, without branches
                    const bool wins = inside & !(candidate <= best[k]) & (best[k] == best[k]);
                    best[k] = wins ? candidate : best[k];
                    winner[k] = wins ? i * POOL_W + j + t : winner[k];
                }
            }
        }
    }
#pragma unroll
    for (int k = 0; k < FILTERS; ++k) {
        if (first + k >= last) continue;
        y[m * K + first + k] = activated(best[k], 0);
        if (tap) tap[m * K + first + k] = (unsigned char)(KIND == RELU && !(best[k] > 0) ? NO_TAP : winner[k]);
    }
}

#elif defined(COLUMNS)
#include "column_sum.cuh"
#include "sources.cuh"

// dw[k,r,s,c] = sum over n, u, v of dy[n,u,v,k] * x[n, ...] under tap (r, s) of the result that won, and db[k] = sum of
// dy; without those that have NO_TAP. Cut into `parts` of `length` terms; sum_parts adds the parts up.
// Grid, shared memory and order: column_sum.cuh, with a column for each (r, k), k fastest.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv2d_max_pool2d_backward(
    const RESULT* __restrict__ dy,         // [N, U, V, K]
    const unsigned char* __restrict__ tap, // [N, U, V, K]
    const SCALAR* __restrict__ x,          // [N, H, W, C]
    Scalar* __restrict__ dw,               // [parts, K, KERNEL_H, KERNEL_W, CHANNELS]
    Scalar* __restrict__ db,               // [parts, K]
    int N, int H, int W, int C, int K, int groups, int U, int V, int parts, int length) {
    __shared__ Scalar partial[256];
    const ColumnPart at = column_part(N * U * V, KERNEL_H * K, length);
    const int k = at.column % K, r = at.column / K, first_channel = k / (K / groups) * CHANNELS;
    Scalar sums[KERNEL_W * CHANNELS] = {}, total = 0;
    if (at.inside) {
        Digits pixel = digits_of(at.first + at.lane, U, V);
        const Digits step = digits_of(LANES, U, V);
        for (int m = at.first + at.lane; m < at.last; m += LANES, add(pixel, step, U, V)) {
            const int won = tap[m * K + k];
            if (won == NO_TAP) continue;
            total += dy[m * K + k];
            const Scalar gradient = operand(dy[m * K + k]);
            const int h = row_of(pooled_row(pixel.middle, won / POOL_W), r);
            const int column = column_of(pooled_column(pixel.low, won % POOL_W), 0);
            if (h < 0 || h >= H) continue;
            const int line = ((pixel.high * H + h) * W + column) * C + first_channel;
#pragma unroll
            for (int s = 0; s < KERNEL_W; ++s) {
                if ((unsigned int)(column + s * DILATION_W) >= (unsigned int)W) continue;
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    Scalar& sum = sums[s * CHANNELS + c];
                    sum = multiply_add(gradient, x[line + s * DILATION_W * C + c], sum);
                }
            }
        }
    }
    Scalar* out = dw + (((long long)at.part * K + k) * KERNEL_H + r) * KERNEL_W * CHANNELS;
#pragma unroll
    for (int i = 0; i < KERNEL_W * CHANNELS; ++i) {
        const Scalar sum = column_total(partial, at, sums[i]);
        if (at.inside && at.lane == 0) out[i] = sum;
    }
    total = column_total(partial, at, total);
    if (at.inside && at.lane == 0 && r == 0) db[(long long)at.part * K + k] = total;
}

#else

// The results of pooling whose windows span row p of the convolution; and so for columns.
static __device__ __forceinline__ int first_pooled(int p, int pad, int extent, int stride) {
    const int beyond = p + pad - extent + stride;
    return beyond < 0 ? 0 : beyond / stride;
}
static __device__ __forceinline__ int last_pooled(int p, int pad, int stride, int count) {
    return min((p + pad) / stride, count - 1);
}

// dx[n,h,v,c] = sum over r, s, k of d * w[k,r,s,c], d the sum of dy over the windows of the pooling in which the
// convolution's result (p, q, k) won, where row_of(p, r) = h and column_of(q, s) = v.
// Grid: x: one thread per element of dx, channels fastest.
extern "C" __global__ void conv2d_max_pool2d_backward_input(
    const RESULT* __restrict__ dy,         // [N, U, V, K]
    const unsigned char* __restrict__ tap, // [N, U, V, K]
    const SCALAR* __restrict__ w,          // [K, KERNEL_H, KERNEL_W, CHANNELS]
    RESULT* __restrict__ dx,               // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int U, int V) {
    const long long i = thread_number();
    if (i >= N * H * W * C) return;
    const int c = (int)i % C, column = (int)i / C % W, h = (int)i / C / W % H, n = (int)i / C / W / H;
    const int filters = K / groups, first_filter = c / CHANNELS * filters;
    Scalar sum = 0;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int below = h - row_of(0, r), p = below / STRIDE_H;
        if (below < 0 || below % STRIDE_H || p >= P) continue;
        const int first_u = first_pooled(p, POOL_PAD_TOP, POOL_DILATION_H * (POOL_H - 1) + 1, POOL_STRIDE_H);
        const int last_u = last_pooled(p, POOL_PAD_TOP, POOL_STRIDE_H, U);
        for (int s = 0; s < KERNEL_W; ++s) {
            const int right = column - column_of(0, s), q = right / STRIDE_W;
            if (right < 0 || right % STRIDE_W || q >= Q) continue;
            const int first_v = first_pooled(q, POOL_PAD_LEFT, POOL_DILATION_W * (POOL_W - 1) + 1, POOL_STRIDE_W);
            const int last_v = last_pooled(q, POOL_PAD_LEFT, POOL_STRIDE_W, V);
            const int tap_of_filter = (r * KERNEL_W + s) * CHANNELS + c % CHANNELS;
            const SCALAR* weight = w + (long long)first_filter * DEPTH + tap_of_filter;
            for (int k = 0; k < filters; ++k) {
                Scalar gradient = 0;
                for (int u = first_u; u <= last_u; ++u) {
                    const int down = p - pooled_row(u, 0);
                    if (down % POOL_DILATION_H) continue;
                    for (int v = first_v; v <= last_v; ++v) {
                        const int across = q - pooled_column(v, 0);
                        if (across % POOL_DILATION_W) continue;
                        const int window = ((n * U + u) * V + v) * K + first_filter + k;
                        if (tap[window] == down / POOL_DILATION_H * POOL_W + across / POOL_DILATION_W)
                            gradient += operand(dy[window]);
                    }
                }
                sum = multiply_add(gradient, weight[(long long)k * DEPTH], sum);
            }
        }
    }
    dx[i] = sum;
}

#endif
