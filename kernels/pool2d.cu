// Pooling: the maximum, minimum, average or sum of each window, per channel; and their gradients.
//
// Layout     x, dx [N, H, W, C], y, dy, tap [N, P, Q, C]; channels-last.
// Grid       x: one thread for VECTOR neighbouring channels of a pixel of the result, channels fastest, so neighbouring
//            threads read neighbours. Backward gathers: a thread looks at the windows that cover its pixel. No atomics,
//            nothing to clear.
// Constants  The window's (window.cuh); VECTOR (channels.cuh); MAXIMUM 1 or 0 (minimum), and TAP, the type of the
//            winners' numbers; DIVISOR: WINDOW (the window clipped to the padded plane; needs PAD_BOTTOM, PAD_RIGHT),
//            REAL (the plane alone) or NUMBER.
// Cost       One word read a tap, mostly from cache: bound by memory at (1 + 1/stride^2) words an input element.
// Order      Taps in row-major order; backward the windows in row-major order.
#include "channels.cuh"
#include "window.cuh"

// The pixel of [.., H, W, C], or of [.., P, Q, C], and the first of the channels that element i is.
struct Place {
    int n, row, column, c;
};

static __device__ __forceinline__ Place place_of(int i, int rows, int columns, int C) {
    const int pixel = i / C, line = pixel / columns, n = line / rows;
    return {n, line - n * rows, pixel - line * columns, i - pixel * C};
}

#if defined(MAXIMUM) && defined(TAP)

// y[n,p,q,c] = the best of x over the window, tap = r * KERNEL_W + s of where it is. Of equals the first wins, a NaN
// beats every number, the padding is not looked at; of a window wholly in the padding y is infinitely bad.
extern "C" __global__ void max_pool2d_forward(
    const SCALAR* __restrict__ x,  // [N, H, W, C]
    SCALAR* __restrict__ y,        // [N, P, Q, C]
    TAP* __restrict__ tap,         // [N, P, Q, C] or null
    int N, int H, int W, int C, int P, int Q) {
    const long long i = thread_number() * VECTOR;
    if (i >= N * P * Q * C) return;
    const Place at = place_of((int)i, P, Q, C);
    Channels<Scalar> best;
    Channels<TAP> winner = {};
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) best.at[j] = MAXIMUM ? -POSITIVE_INFINITY : POSITIVE_INFINITY;
    bool any = false;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = row_of(at.row, r);
        if (h < 0 || h >= H) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int w = column_of(at.column, s);
            if (w < 0 || w >= W) continue;
            const Channels<Scalar> pixel = load_channels(x + ((at.n * H + h) * W + w) * C + at.c);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const Scalar candidate = pixel.at[j], so_far = best.at[j];
                if (any && !(MAXIMUM ? beats(candidate, so_far) : beats(-candidate, -so_far))) continue;
                best.at[j] = candidate;
                winner.at[j] = (TAP)(r * KERNEL_W + s);
            }
            any = true;
        }
    }
    store_channels(y + i, best);
    if (tap) *(Channels<TAP>*)(tap + i) = winner;
}

// dx[n,h,w,c] = sum of dy over the windows in which (h, w) won.
extern "C" __global__ void max_pool2d_backward(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    const TAP* __restrict__ tap,    // [N, P, Q, C]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int P, int Q) {
    const long long i = thread_number() * VECTOR;
    if (i >= N * H * W * C) return;
    const Place at = place_of((int)i, H, W, C);
    Channels<Scalar> sums = {};
    for (int p = first_output_row(at.row); p <= last_output_row(at.row, P); ++p) {
        const int below = at.row - row_of(p, 0);
        if (below % DILATION_H) continue;
        for (int q = first_output_column(at.column); q <= last_output_column(at.column, Q); ++q) {
            const int right = at.column - column_of(q, 0);
            if (right % DILATION_W) continue;
            const int window = ((at.n * P + p) * Q + q) * C + at.c;
            const Channels<TAP> winner = *(const Channels<TAP>*)(tap + window);
            const Channels<Scalar> gradient = load_channels(dy + window);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j)
                if (winner.at[j] == below / DILATION_H * KERNEL_W + right / DILATION_W) sums.at[j] += gradient.at[j];
        }
    }
    store_channels(dx + i, sums);
}

#endif

#ifdef DIVISOR
#define WINDOW 1
#define REAL 2
#define NUMBER 3

// What the sum of the window at (p, q) is divided by; 1 where the window holds nothing, for its sum is 0.
static __device__ __forceinline__ Scalar divisor_of(int p, int q, int H, int W, int number) {
#if DIVISOR == NUMBER
    return (Scalar)number;
#else
#if DIVISOR == WINDOW
    const int top = -PAD_TOP, left = -PAD_LEFT, bottom = H + PAD_BOTTOM, right = W + PAD_RIGHT;
#elif DIVISOR == REAL
    const int top = 0, left = 0, bottom = H, right = W;
#else
#error "compile with -DDIVISOR=WINDOW, REAL or NUMBER"
#endif
    int rows = 0, columns = 0;
    for (int r = 0; r < KERNEL_H; ++r) rows += row_of(p, r) >= top && row_of(p, r) < bottom;
    for (int s = 0; s < KERNEL_W; ++s) columns += column_of(q, s) >= left && column_of(q, s) < right;
    return (Scalar)max(rows * columns, 1);
#endif
}

// y[n,p,q,c] = sum over r, s of x / divisor; padding counts as 0.
extern "C" __global__ void avg_pool2d_forward(
    const SCALAR* __restrict__ x,  // [N, H, W, C]
    SCALAR* __restrict__ y,        // [N, P, Q, C]
    int N, int H, int W, int C, int P, int Q, int number) {
    const long long i = thread_number() * VECTOR;
    if (i >= N * P * Q * C) return;
    const Place at = place_of((int)i, P, Q, C);
    Channels<Scalar> sums = {};
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = row_of(at.row, r);
        if (h < 0 || h >= H) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int w = column_of(at.column, s);
            if (w < 0 || w >= W) continue;
            const Channels<Scalar> pixel = load_channels(x + ((at.n * H + h) * W + w) * C + at.c);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) sums.at[j] += pixel.at[j];
        }
    }
    const Scalar divisor = divisor_of(at.row, at.column, H, W, number);
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) sums.at[j] /= divisor;
    store_channels(y + i, sums);
}

// dx[n,h,w,c] = sum over the windows that hold (h, w) of dy / divisor.
extern "C" __global__ void avg_pool2d_backward(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int P, int Q, int number) {
    const long long i = thread_number() * VECTOR;
    if (i >= N * H * W * C) return;
    const Place at = place_of((int)i, H, W, C);
    Channels<Scalar> sums = {};
    for (int p = first_output_row(at.row); p <= last_output_row(at.row, P); ++p) {
        if ((at.row - row_of(p, 0)) % DILATION_H) continue;
        for (int q = first_output_column(at.column); q <= last_output_column(at.column, Q); ++q) {
            if ((at.column - column_of(q, 0)) % DILATION_W) continue;
            const Channels<Scalar> gradient = load_channels(dy + ((at.n * P + p) * Q + q) * C + at.c);
            const Scalar divisor = divisor_of(p, q, H, W, number);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) sums.at[j] += gradient.at[j] / divisor;
        }
    }
    store_channels(dx + i, sums);
}

#endif
