// Depthwise convolution, a filter for each channel, and its gradients.
//
// Layout     x [N, H, W, C], w [C, KERNEL_H, KERNEL_W], y [N, P, Q, C]; channels-last.
// Thread     VECTOR neighbouring channels of a strip: STRIP neighbouring results in a row of an image. A pixel is read
//            once for all of the strip's taps that meet it in a row.
// Grid       x: blocks of 256 threads: LANES threads across channels, for a patch of 8 rows by 32 / LANES strips. Channels
//            fastest, then strips, rows and images. The weight's gradient: channels, then rows of taps, then parts of
//            its long sum, whose strips go round the block's 256 / LANES threads of a channel.
// Constants  The window's (window.cuh); VECTOR, LANES, STRIP; TAP_ROWS, how many rows of taps a block of the weight's
//            gradient sums; KIND, the activation that the forward kernel applies, as in conv2d.cu.
// Shared     The filters of a block's channels (from memory, a tap of neighbouring channels is one word in many).
// Cost       2 N P Q C KERNEL_H KERNEL_W FLOP; x, y and no more come from memory, and caches read a row of the strip for
//            each row of taps: bound by memory for 3 x 3, by caches for 7 x 7.
// Order      Forward and for the input's gradient as in conv2d.cu, one chain. The weight's gradient: each thread a chain
//            over its strips, then the threads of a channel in order, then the parts.
#include "activation.cuh"
#include "channels.cuh"
#include "sources.cuh"
#include "window.cuh"

#if !defined(LANES) || !defined(STRIP)
#error "compile with -DLANES=threads across channels, a power of two, and -DSTRIP=results of a thread"
#endif

#define THREADS 256
#define PATCH_ROWS 8
#define PATCH_STRIPS (THREADS / PATCH_ROWS / LANES)
#define TAPS (KERNEL_H * KERNEL_W)

// The pixels that a strip's taps meet in a row are so many columns right of `from`. Those of a forward convolution:
struct OfOutputs {
    static constexpr int FIRST = -PAD_LEFT;
    static constexpr int COUNT = (STRIP - 1) * STRIDE_W + EXTENT_W;
    static __device__ __forceinline__ int from(int column) { return column * STRIDE_W; }
    static __device__ constexpr int place(int j, int s) { return j * STRIDE_W + s * DILATION_W; }
    // The row that tap row r of row p meets.
    static __device__ __forceinline__ int row(int p, int r) { return row_of(p, r); }
};

// And of its input's gradient, where a strip begins at a multiple of the stride; -1 for a tap that meets none.
struct OfInputs {
    static constexpr int FIRST = (PAD_LEFT - (EXTENT_W - 1)) / STRIDE_W;
    static constexpr int COUNT = (STRIP - 1 + PAD_LEFT) / STRIDE_W - FIRST + 1;
    static __device__ __forceinline__ int from(int column) { return column / STRIDE_W; }
    static __device__ constexpr int place(int j, int s) {
        const int right = j + PAD_LEFT - s * DILATION_W;
        return right % STRIDE_W ? -1 : right / STRIDE_W - FIRST;
    }
    static __device__ __forceinline__ int row(int h, int r) {
        const int below = h - row_of(0, r);
        return below < 0 || below % STRIDE_H ? -1 : below / STRIDE_H;
    }
};

// Whether any tap of a strip meets the pixel at that place: with dilations and strides some lie between.
template <class Of>
static __device__ constexpr bool is_met(int place) {
    for (int j = 0; j < STRIP; ++j)
        for (int s = 0; s < KERNEL_W; ++s)
            if (Of::place(j, s) == place) return true;
    return false;
}

// A row of a strip's pixels. Those outside of the image are 0.
template <class Of>
struct Row {
    Channels<Scalar> at[Of::COUNT];

    __device__ __forceinline__ Row(const SCALAR* __restrict__ row, int column, int width, int C) {
        const int first = Of::from(column) + Of::FIRST;
#pragma unroll
        for (int i = 0; i < Of::COUNT; ++i) {
            if (!is_met<Of>(i)) continue;
            at[i] = {};
            if (first + i >= 0 && first + i < width) at[i] = load_channels(row + (first + i) * C);
        }
    }
};

// A thread's strip of an array [N, rows, columns, C], and its channels.
struct Strip {
    int n, row, column, c;

    __device__ __forceinline__ Strip(int rows, int columns, int C) {
        const int layers = ceil_div(C, LANES * VECTOR), across = ceil_div(columns, PATCH_STRIPS * STRIP);
        const int down = ceil_div(rows, PATCH_ROWS), patch = blockIdx.x / layers;
        const int lane = threadIdx.x % LANES, strip = threadIdx.x / LANES % PATCH_STRIPS;
        c = (blockIdx.x % layers * LANES + lane) * VECTOR;
        column = (patch % across * PATCH_STRIPS + strip) * STRIP;
        row = patch / across % down * PATCH_ROWS + threadIdx.x / LANES / PATCH_STRIPS;
        n = patch / across / down;
    }
};

// The filters of a block's channels, from the first on.
struct Filters {
    __align__(16) Scalar at[TAPS][(LANES + 1) * VECTOR];  // a rest of banks for the copies

    __device__ __forceinline__ void copy(const SCALAR* __restrict__ w, int first, int C) {
        const int count = min(LANES * VECTOR, C - first) * TAPS;
        for (int i = threadIdx.x; i < count; i += THREADS) at[i % TAPS][i / TAPS] = w[first * TAPS + i];
        __syncthreads();
    }
};

// The sums over the taps of a strip of [N, rows, columns, C], where the taps meet an array [N, height, width, C].
// store(i, c, sums) is called for each result's first element and channel.
template <class Of, class Store>
static __device__ __forceinline__ void sum_taps(
    Filters& filters, const SCALAR* __restrict__ array, const SCALAR* __restrict__ w, int rows, int columns, int height,
    int width, int C, Store store) {
    const Strip strip(rows, columns, C);
    filters.copy(w, strip.c - threadIdx.x % LANES * VECTOR, C);
    if (strip.c >= C || strip.row >= rows) return;
    Channels<Scalar> sums[STRIP] = {};
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = Of::row(strip.row, r);
        if (h < 0 || h >= height) continue;
        const Row<Of> pixels(array + (strip.n * height + h) * width * C + strip.c, strip.column, width, C);
#pragma unroll
        for (int s = 0; s < KERNEL_W; ++s) {
            const Channels<Scalar> tap = load_channels(&filters.at[r * KERNEL_W + s][threadIdx.x % LANES * VECTOR]);
#pragma unroll
            for (int j = 0; j < STRIP; ++j)
                if (Of::place(j, s) >= 0)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        sums[j].at[i] = multiply_add(pixels.at[Of::place(j, s)].at[i], tap.at[i], sums[j].at[i]);
        }
    }
    const int i = ((strip.n * rows + strip.row) * columns + strip.column) * C + strip.c;
#pragma unroll
    for (int j = 0; j < STRIP; ++j)
        if (strip.column + j < columns) store(i + j * C, strip.c, sums[j]);
}

#ifndef TAP_ROWS

// y[n,p,q,c] = f(b[c] + scale[c] * sum over r, s of x[n, row_of(p, r), column_of(q, s), c] * w[c,r,s]
//                + residual[n,p,q,c]).
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_depthwise_forward(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ w,         // [C, KERNEL_H, KERNEL_W]
    const RESULT* __restrict__ b,         // [C] or null
    const RESULT* __restrict__ scale,     // [C] or null
    const RESULT* __restrict__ residual,  // [N, P, Q, C] or null
    RESULT* __restrict__ y,               // [N, P, Q, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ Filters filters;
    sum_taps<OfOutputs>(filters, x, w, P, Q, H, W, C, [=](int i, int c, Channels<Scalar> sums) {
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) sums.at[j] = conv2d_result(sums.at[j], b, scale, residual, i + j, c + j);
        store_channels(y + i, sums);
    });
}

// dx[n,h,v,c] = sum over r, s of dy[n,p,q,c] * w[c,r,s], where row_of(p, r) = h and column_of(q, s) = v.
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_depthwise_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    const SCALAR* __restrict__ w,   // [C, KERNEL_H, KERNEL_W]
    RESULT* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ Filters filters;
    sum_taps<OfInputs>(
        filters, dy, w, H, W, P, Q, C, [=](int i, int, const Channels<Scalar>& sums) { store_channels(dx + i, sums); });
}

#else

// dw[c,r,s] = sum over n, p, q of dy[n,p,q,c] * x[n, row_of(p, r), column_of(q, s), c], cut into `parts` of `length`
// terms, which are whole rows of dy; sum_parts adds the parts up in order.
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_depthwise_backward_weight(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    const SCALAR* __restrict__ x,   // [N, H, W, C]
    Scalar* __restrict__ dw,        // [parts, C, KERNEL_H, KERNEL_W]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    const int layers = ceil_div(C, LANES * VECTOR), lane = threadIdx.x % LANES, place = threadIdx.x / LANES;
    const int first_c = blockIdx.x % layers * LANES * VECTOR, c = first_c + lane * VECTOR;
    const int first_r = blockIdx.x / layers % ceil_div(KERNEL_H, TAP_ROWS) * TAP_ROWS;
    const int part = blockIdx.x / layers / ceil_div(KERNEL_H, TAP_ROWS);
    const int across = ceil_div(Q, STRIP), rows = length / Q;
    const int last = min(rows * (part + 1), N * P) * across;
    Channels<Scalar> sums[TAP_ROWS][KERNEL_W] = {};
    const int first = rows * part * across + place;
    const Digits step = digits_of(THREADS / LANES, P, across);
    Digits at = digits_of(first, P, across);
    for (int strip = first; strip < last && c < C; strip += THREADS / LANES, add(at, step, P, across)) {
        const int n = at.high, p = at.middle, q = at.low * STRIP;
        Channels<Scalar> gradients[STRIP];
#pragma unroll
        for (int j = 0; j < STRIP; ++j)
            if (q + j < Q) gradients[j] = load_channels(dy + ((n * P + p) * Q + q + j) * C + c);
#pragma unroll
        for (int r = 0; r < TAP_ROWS; ++r) {
            const int h = row_of(p, first_r + r);
            if (h < 0 || h >= H) continue;
            const Row<OfOutputs> pixels(x + (n * H + h) * W * C + c, q, W, C);
#pragma unroll
            for (int j = 0; j < STRIP; ++j) {
                if (q + j >= Q) break;
#pragma unroll
                for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i)
                        sums[r][s].at[i] = multiply_add(
                            gradients[j].at[i], pixels.at[OfOutputs::place(j, s)].at[i], sums[r][s].at[i]);
            }
        }
    }
    __shared__ Channels<Scalar> together[THREADS / LANES][LANES];
#pragma unroll
    for (int tap = 0; tap < TAP_ROWS * KERNEL_W; ++tap) {
        together[place][lane] = sums[tap / KERNEL_W][tap % KERNEL_W];
        __syncthreads();
        const int i = threadIdx.x, r = first_r + tap / KERNEL_W;
        if (i < LANES * VECTOR && first_c + i < C && r < KERNEL_H) {
            Scalar sum = 0;
#pragma unroll 4
            for (int j = 0; j < THREADS / LANES; ++j) sum += together[j][i / VECTOR].at[i % VECTOR];
            dw[(part * C + first_c + i) * TAPS + r * KERNEL_W + tap % KERNEL_W] = sum;
        }
        __syncthreads();
    }
}

#endif
