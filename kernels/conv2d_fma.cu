// Convolution by implicit GEMM with large tiles of multiply-adds, where channels come by chunks; conv2d.cu is its sibling.
//
// Layout     As in conv2d.cu. C / groups and K / groups are multiples of 4 and of CHUNK (sources.cuh); x, w, y and their
//            gradients begin at a multiple of 16 bytes.
// Grid       fma_tile.cuh; the layers are groups (times parts, for the weight gradient).
// Constants  Those of conv2d.cu; the tile is fma_tile.cuh's.
// Cost       2 N P Q K R S C/groups FLOP; bound by multiply-adds for R S C/groups of 64 or more, else by memory.
// Order      As in conv2d.cu, to the bit.
#include "activation.cuh"
#include "conv2d_sources.cuh"
#include "fma_tile.cuh"
#include "moments.cuh"

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]).
// GEMM: rows (n,p,q), columns k of the group, sum over (r,s,c), perhaps in parts, as in conv2d.cu. `means` and `squares`
// are, for a batch norm behind, those of as many pixels at a time as a thread has sums.
extern "C" __global__ void __launch_bounds__(FMA_THREADS, FMA_BLOCKS) conv2d_fma_forward(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ w,         // [K, KERNEL_H, KERNEL_W, C / groups]
    const SCALAR* __restrict__ b,         // [K] or null
    const SCALAR* __restrict__ scale,     // [K] or null
    const SCALAR* __restrict__ residual,  // [N, P, Q, K] or null
    SCALAR* __restrict__ y,               // [parts, N, P, Q, K]
    Scalar* __restrict__ means,           // [(N * P * Q - 1) / (THREAD_M * THREAD_N) + 1, K] or null
    Scalar* __restrict__ squares,         // [(N * P * Q - 1) / (THREAD_M * THREAD_N) + 1, K] or null
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    __shared__ FmaTiles tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * P * Q;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const TilePlace place = tile_place(pixels, filters);
    const int group = place.layer % groups, part = place.layer / groups;
    const int from = part * length, to = min(from + length, depth);
    fma_tile<true, true>(
        tiles, place, to - from,
        Patches<Chunks<TILE_M, true>>(x, pixels, H, W, C, P, Q, channels, group, place.m, from),
        Rows<Chunks<TILE_N, true>>(w + group * filters * depth, filters, depth, place.n, from),
        [=](int m, int n, const Four& four) {
            if (m >= pixels || n >= filters) return;
            const int k = group * filters + n;
            const long long i = ((long long)part * pixels + m) * K + k;
            store_four(y + i, conv2d_results(four, b, scale, residual, i, k), 4);
        });
    if (means)
        tile_moments<TILE_M, TILE_N, THREAD_M * THREAD_N>(
            y, place.m, group * filters + place.n, pixels, filters - place.n, K, means, squares);
}

// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v; terms
// without such a p or q are absent. GEMM: rows (n,h,v), columns c of the group, sum over (r,s,k).
extern "C" __global__ void __launch_bounds__(FMA_THREADS, FMA_BLOCKS) conv2d_fma_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ w,   // [K, KERNEL_H, KERNEL_W, C / groups]
    SCALAR* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ FmaTiles tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * H * W;
    const TilePlace place = tile_place(pixels, channels);
    const int group = place.layer;
    fma_tile<true, false>(
        tiles, place, KERNEL_H * KERNEL_W * filters,
        Gradients<Chunks<TILE_M, true>>(dy, pixels, H, W, K, P, Q, filters, group, place.m),
        Filters<Chunks<TILE_N, false>>(w, channels, filters, group, place.n),
        [=](int m, int c, const Four& four) {
            if (m < pixels && c < channels) store_four(dx + (long long)m * C + group * channels + c, four, 4);
        });
}

// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] * x[n, row_of(p, r), column_of(q, s), c].
// GEMM: rows k of the group, columns (r,s,c), sum over (n,p,q), cut into `parts` of `length` terms so that small
// filters fill the GPU too; sum_parts adds the parts up in order.
extern "C" __global__ void __launch_bounds__(FMA_THREADS, FMA_BLOCKS) conv2d_fma_backward_weight(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ x,   // [N, H, W, C]
    SCALAR* __restrict__ dw,        // [parts, K, KERNEL_H, KERNEL_W, C / groups]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    __shared__ FmaTiles tiles;
    const int channels = C / groups, filters = K / groups;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const TilePlace place = tile_place(filters, depth);
    const int group = place.layer % groups, part = place.layer / groups;
    const int from = part * length, to = min(from + length, N * P * Q);
    SCALAR* out = dw + ((long long)part * K + group * filters) * depth;
    fma_tile<false, false>(
        tiles, place, to - from,
        Columns<Chunks<TILE_M, false>>(dy + group * filters, filters, K, place.m, from),
        PatchColumns<Chunks<TILE_N, false>>(x, H, W, C, P, Q, channels, group, place.n, from),
        [=](int k, int i, const Four& four) {
            if (k < filters && i < depth) store_four(out + (long long)k * depth + i, four, 4);
        });
}
