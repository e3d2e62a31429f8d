// Convolution by implicit GEMM on Hopper's tensor cores, its operands brought by the copy engine; conv2d_mma.cu is its
// portable twin.
//
// Needs      sm_90a
// Layout     As in conv2d.cu, with one group. C and K are multiples of 8, of float 4; x, w, dy begin at a multiple of
//            16 bytes.
// Walk       Over the pixels that a filter begins at: for a tap the copy engine goes from one to the next by itself,
//            shifted by the tap. The padding is what lies outside of the array: zeros.
// Grid       wgmma_tile.cuh, which has threads and shared memory too; the layers are parts, for the weight gradient.
// Constants  Those of conv2d.cu and of wgmma_tile.cuh; for the input's gradient TURNED, whether filters were turned, and
//            BOX_W, the rows of a copy of them: 64 where they lie across, else the tile's. Floats are read along alone:
//            so their filters are turned, and the weight's gradient is computed by conv2d_mma.cu.
// Cost       2 N P Q K R S C FLOP; bound by the tensor cores.
// Order      wgmma_tile.cuh, over the terms in the order that a formula names; for a tap channels come by TILE_K, and
//            zeros for those beyond the last. Terms of the padding are zeros.
#include "activation.cuh"
#include "moments.cuh"
#include "sources.cuh"
#include "wgmma_tile.cuh"
#include "window.cuh"

#if !defined(TURNED) || !defined(BOX_W)
#error "compile with -DTURNED=0 or 1 and -DBOX_W"
#endif

#define TAPS (KERNEL_H * KERNEL_W)

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]).
// GEMM: rows (n,p,q), columns k, sum over (r,s,c). `means` and `squares` are, for a batch norm behind, those of as many
// pixels at a time as a thread has sums.
extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, WGMMA_BLOCKS) conv2d_wgmma_forward(
    const __grid_constant__ TensorMap<SCALAR> x,  // [N, H, W, C], by [TILE_M, TILE_K]
    const __grid_constant__ TensorMap<SCALAR> w,  // [K, KERNEL_H * KERNEL_W, C], by [TILE_N, 1, TILE_K]
    const RESULT* __restrict__ b,                 // [K] or null
    const RESULT* __restrict__ scale,             // [K] or null
    const RESULT* __restrict__ residual,          // [N, P, Q, K] or null
    RESULT* __restrict__ y,                       // [N, P, Q, K]
    Scalar* __restrict__ means,                   // [(N * P * Q - 1) / (TILE_M * TILE_N / 256) + 1, K] or null
    Scalar* __restrict__ squares,                 // [(N * P * Q - 1) / (TILE_M * TILE_N / 256) + 1, K] or null
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    const int pixels = N * P * Q, slices = ceil_div(C, TILE_K);
    const TilePlace place = tile_place(pixels, K);
    wgmma_tile<true, true>(
        TAPS * slices,
        [&](SCALAR* to_a, SCALAR* to_b, Mbarrier& full, int step) {
            const int tap = step / slices, c = step % slices * TILE_K;
            const Digits first = digits_of(place.m, P, Q);
            const int right = tap % KERNEL_W * DILATION_W, down = tap / KERNEL_W * DILATION_H;
            const int v = column_of(first.low, 0), h = row_of(first.middle, 0);
            copy_pixels(to_a, x, full, {{c, v, h, first.high}, right, down});
            copy_box(to_b, w, full, {{c, tap, place.n}});
        },
        [=](int m, int n, const Four& four) {
            if (place.m + m >= pixels || place.n + n >= K) return;
            const int k = place.n + n;
            const long long i = (long long)(place.m + m) * K + k;
            put_four(y + i, conv2d_results(four, b, scale, residual, i, k));
        });
    if (means)
        tile_moments<TILE_M, TILE_N, TILE_M * TILE_N / (MULTIPLYING_WARPS * 32)>(
            y, place.m, place.n, pixels, K - place.n, K, means, squares);
}

#if STRIDE_H == 1 && STRIDE_W == 1
// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v: a walk
// over dy from the outputs whose last tap a pixel is; the first tap is shifted furthest. The filters [K, r, s, C] are
// read across, TURNED ones [r, s, C, K] along. Beyond a tap's channels come those of the next: columns of no output.
// GEMM: rows (n,h,v), columns c, sum over (r,s,k).
extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, WGMMA_BLOCKS) conv2d_wgmma_backward_input(
    const __grid_constant__ TensorMap<SCALAR> dy,
    // [N, P, Q, K], by [TILE_M, TILE_K]
    const __grid_constant__ TensorMap<SCALAR> w,
    // [1, K+TURNED*(KERNEL_H*KERNEL_W*C-K), KERNEL_H*KERNEL_W*C+TURNED*(K-KERNEL_H*KERNEL_W*C)], by [1, BOX_W, TILE_K]
    RESULT* __restrict__ dx,  // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    const int pixels = N * H * W, slices = ceil_div(K, TILE_K);
    const TilePlace place = tile_place(pixels, C);
    wgmma_tile<true, TURNED>(
        TAPS * slices,
        [&](SCALAR* to_a, SCALAR* to_b, Mbarrier& full, int step) {
            const int tap = step / slices, k = step % slices * TILE_K;
            const Digits first = digits_of(place.m, H, W);
            const int q = first.low - column_of(0, KERNEL_W - 1), p = first.middle - row_of(0, KERNEL_H - 1);
            const int right = (KERNEL_W - 1 - tap % KERNEL_W) * DILATION_W;
            const int down = (KERNEL_H - 1 - tap / KERNEL_W) * DILATION_H;
            copy_pixels(to_a, dy, full, {{k, q, p, first.high}, right, down});
            copy_rows<TILE_N, BOX_W, TURNED>(to_b, w, full, 0, tap * C + place.n, k);
        },
        [=](int m, int c, const Four& four) {
            if (place.m + m >= pixels || place.n + c >= C) return;
            put_four(dx + (long long)(place.m + m) * C + place.n + c, four);
        });
}
#endif

#ifdef HALF
// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] * x[n, row_of(p, r), column_of(q, s), c], in parts of `length` terms, a
// multiple of 64; sum_parts adds the parts up in order. A tile has channels of one tap.
// GEMM: rows k, columns (r,s,c), sum over (n,p,q); both operands across.
extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, WGMMA_BLOCKS) conv2d_wgmma_backward_weight(
    const __grid_constant__ TensorMap<SCALAR> dy,  // [1, N * P * Q, K], by [1, TILE_K, TILE_K]
    const __grid_constant__ TensorMap<SCALAR> x,   // [N, H, W, C], by [TILE_K, TILE_K]
    Scalar* __restrict__ dw,                       // [parts, K, KERNEL_H, KERNEL_W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    const int width = ceil_div(C, TILE_N) * TILE_N;
    const TilePlace place = tile_place(K, TAPS * width);
    const int from = place.layer * length, to = min(from + length, N * P * Q);
    const int tap = place.n / width, first_c = place.n % width;
    Scalar* out = dw + ((long long)place.layer * K * TAPS + tap) * C + first_c;
    wgmma_tile<false, false>(
        ceil_div(to - from, TILE_K),
        [&](SCALAR* to_a, SCALAR* to_b, Mbarrier& full, int step) {
            const int term = from + step * TILE_K;
            const Digits first = digits_of(term, P, Q);
            const int right = tap % KERNEL_W * DILATION_W, down = tap / KERNEL_W * DILATION_H;
            const int v = column_of(first.low, 0), h = row_of(first.middle, 0);
            copy_rows<TILE_M, TILE_K, false>(to_a, dy, full, 0, place.m, term);
#pragma unroll
            for (int c = 0; c < TILE_N; c += TILE_K)
                copy_pixels(to_b + c * TILE_K, x, full, {{first_c + c, v, h, first.high}, right, down});
        },
        [=](int k, int c, const Four& four) {
            if (place.m + k < K && first_c + c < C) put_four(out + (long long)(place.m + k) * TAPS * C + c, four);
        });
}
#endif
