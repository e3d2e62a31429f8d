// The constants of a window (geometry.py's Window): what tap (r, s) of output (p, q) reads, and who reads (h, w).
#pragma once

#if !defined(KERNEL_H) || !defined(KERNEL_W) || !defined(STRIDE_H) || !defined(STRIDE_W) || !defined(PAD_TOP) || \
    !defined(PAD_LEFT) || !defined(DILATION_H) || !defined(DILATION_W)
#error "compile with the window's constants: KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_TOP PAD_LEFT DILATION_H DILATION_W"
#endif

#define EXTENT_H (DILATION_H * (KERNEL_H - 1) + 1)
#define EXTENT_W (DILATION_W * (KERNEL_W - 1) + 1)

// The input row of tap row r of output row p, which may lie in the padding; and so for columns.
static __device__ __forceinline__ int row_of(int p, int r) { return p * STRIDE_H - PAD_TOP + r * DILATION_H; }
static __device__ __forceinline__ int column_of(int q, int s) { return q * STRIDE_W - PAD_LEFT + s * DILATION_W; }

// The outputs whose window spans row h are first_output_row(h) ... last_output_row(h, P); and so for columns.
static __device__ __forceinline__ int first_output_row(int h) {
    const int beyond = h + PAD_TOP - EXTENT_H + STRIDE_H;
    return beyond < 0 ? 0 : beyond / STRIDE_H;
}
static __device__ __forceinline__ int last_output_row(int h, int P) { return min((h + PAD_TOP) / STRIDE_H, P - 1); }
static __device__ __forceinline__ int first_output_column(int w) {
    const int beyond = w + PAD_LEFT - EXTENT_W + STRIDE_W;
    return beyond < 0 ? 0 : beyond / STRIDE_W;
}
static __device__ __forceinline__ int last_output_column(int w, int Q) { return min((w + PAD_LEFT) / STRIDE_W, Q - 1); }
