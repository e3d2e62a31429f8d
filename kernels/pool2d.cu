// Pooling: the maximum, minimum, average or sum of each window, per channel; and their gradients.
//
// Layout     x, dx [N, H, W, C], y, dy, tap [N, P, Q, C]; channels-last.
// Grid       x: one thread per element of the result, channels fastest, so neighbouring threads read neighbours.
//            Backward gathers: a thread looks at the windows that cover its element. No atomics, nothing to clear.
// Constants  The window's (window.cuh); MAXIMUM 1 or 0 (minimum), and TAP, the type of the winners' numbers; DIVISOR:
//            WINDOW (the window clipped to the padded plane; needs PAD_BOTTOM, PAD_RIGHT), REAL (the plane alone) or
//            NUMBER.
// Cost       One word read a tap, mostly from cache: bound by memory at (1 + 1/stride^2) words an input element.
// Order      Taps in row-major order; backward the windows in row-major order.
#include "common.cuh"
#include "window.cuh"

// A thread's element of [.., H, W, C], or of [.., P, Q, C].
struct Place {
    int n, row, column, c;
};

static __device__ __forceinline__ Place place_of(int i, int rows, int columns, int C) {
    Place at;
    at.c = i % C;
    at.column = i / C % columns;
    at.row = i / C / columns % rows;
    at.n = i / C / columns / rows;
    return at;
}

#if defined(MAXIMUM) && defined(TAP)

// y[n,p,q,c] = the best of x over the window, tap = r * KERNEL_W + s of where it is. Of equals the first wins, a NaN
// beats every number, the padding is not looked at.
extern "C" __global__ void max_pool2d_forward(
    const SCALAR* __restrict__ x,  // [N, H, W, C]
    SCALAR* __restrict__ y,        // [N, P, Q, C]
    TAP* __restrict__ tap,         // [N, P, Q, C] or null
    int N, int H, int W, int C, int P, int Q) {
    const long long i = thread_number();
    if (i >= N * P * Q * C) return;
    const Place at = place_of((int)i, P, Q, C);
    Scalar best = 0;
    int winner = -1;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = row_of(at.row, r);
        if (h < 0 || h >= H) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int w = column_of(at.column, s);
            if (w < 0 || w >= W) continue;
            const Scalar candidate = x[((at.n * H + h) * W + w) * C + at.c];
            if (winner < 0 || (MAXIMUM ? beats(candidate, best) : beats(-candidate, -best))) {
                best = candidate;
                winner = r * KERNEL_W + s;
            }
        }
    }
    y[i] = best;
    if (tap) tap[i] = (TAP)winner;
}

// dx[n,h,w,c] = sum of dy over the windows in which (h, w) won.
extern "C" __global__ void max_pool2d_backward(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    const TAP* __restrict__ tap,    // [N, P, Q, C]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int P, int Q) {
    const long long i = thread_number();
    if (i >= N * H * W * C) return;
    const Place at = place_of((int)i, H, W, C);
    Scalar sum = 0;
    for (int p = first_output_row(at.row); p <= last_output_row(at.row, P); ++p) {
        const int below = at.row - row_of(p, 0);
        if (below % DILATION_H) continue;
        for (int q = first_output_column(at.column); q <= last_output_column(at.column, Q); ++q) {
            const int right = at.column - column_of(q, 0);
            if (right % DILATION_W) continue;
            const int window = ((at.n * P + p) * Q + q) * C + at.c;
            if (tap[window] == below / DILATION_H * KERNEL_W + right / DILATION_W) sum += dy[window];
        }
    }
    dx[i] = sum;
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
    const long long i = thread_number();
    if (i >= N * P * Q * C) return;
    const Place at = place_of((int)i, P, Q, C);
    Scalar sum = 0;
    for (int r = 0; r < KERNEL_H; ++r) {
        const int h = row_of(at.row, r);
        if (h < 0 || h >= H) continue;
        for (int s = 0; s < KERNEL_W; ++s) {
            const int w = column_of(at.column, s);
            if (w >= 0 && w < W) sum += x[((at.n * H + h) * W + w) * C + at.c];
        }
    }
    y[i] = sum / divisor_of(at.row, at.column, H, W, number);
}

// dx[n,h,w,c] = sum over the windows that hold (h, w) of dy / divisor.
extern "C" __global__ void avg_pool2d_backward(
    const SCALAR* __restrict__ dy,  // [N, P, Q, C]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int P, int Q, int number) {
    const long long i = thread_number();
    if (i >= N * H * W * C) return;
    const Place at = place_of((int)i, H, W, C);
    Scalar sum = 0;
    for (int p = first_output_row(at.row); p <= last_output_row(at.row, P); ++p) {
        if ((at.row - row_of(p, 0)) % DILATION_H) continue;
        for (int q = first_output_column(at.column); q <= last_output_column(at.column, Q); ++q) {
            if ((at.column - column_of(q, 0)) % DILATION_W) continue;
            sum += dy[((at.n * P + p) * Q + q) * C + at.c] / divisor_of(p, q, H, W, number);
        }
    }
    dx[i] = sum;
}

#endif
