// Convolution by implicit GEMM: the im2col matrix is never stored, its elements are found while a tile is loaded.
//
// Layout     x [N, H, W, C], w [K, R, S, C/groups], y [N, P, Q, K]; all channels-last.
// Grid       gemm_tile.cuh; the layers are groups (times parts, for the weight gradient).
// Constants  KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_TOP PAD_LEFT DILATION_H DILATION_W, and the tile of gemm_tile.cuh;
//            KIND, the activation that conv2d_forward applies (activation.cuh): RELU, RELU6, SIGMOID, TANH or NONE.
// Cost       2 N P Q K R S C/groups FLOP; bound by multiply-adds for R S C/groups of 64 or more, else by memory.
// Order      Each sum runs over its terms in the order that its formula names, in one chain for each part.
#include "activation.cuh"
#include "gemm_tile.cuh"

#include "conv2d_sources.cuh"

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]).
// GEMM: rows (n,p,q), columns k of the group, sum over (r,s,c). If it is cut into `parts` of `length` terms y has the sums
// of each alone, and conv2d_parts.cu goes on with them.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1) conv2d_forward(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ w,         // [K, KERNEL_H, KERNEL_W, C / groups]
    const RESULT* __restrict__ b,         // [K] or null
    const RESULT* __restrict__ scale,     // [K] or null
    const RESULT* __restrict__ residual,  // [N, P, Q, K] or null
    RESULT* __restrict__ y,               // [parts, N, P, Q, K]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    __shared__ GemmTiles<true, true> tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * P * Q;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const TilePlace place = tile_place(pixels, filters);
    const int group = place.layer % groups, part = place.layer / groups;
    const int from = part * length, to = min(from + length, depth);
    gemm_tile(
        tiles, place, pixels, filters, to - from,
        Patches<Scalars<TILE_M, true>>(x, pixels, H, W, C, P, Q, channels, group, place.m, from),
        Rows<Scalars<TILE_N, true>>(w + group * filters * depth, filters, depth, place.n, from),
        [=](int m, int n, Scalar sum) {
            const int k = group * filters + n;
            const long long i = ((long long)part * pixels + m) * K + k;
            y[i] = conv2d_result(sum, b, scale, residual, i, k);
        });
}

// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v; terms
// without such a p or q are absent. GEMM: rows (n,h,v), columns c of the group, sum over (r,s,k).
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1) conv2d_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ w,   // [K, KERNEL_H, KERNEL_W, C / groups]
    RESULT* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ GemmTiles<true, false> tiles;
    const int channels = C / groups, filters = K / groups, pixels = N * H * W;
    const TilePlace place = tile_place(pixels, channels);
    const int group = place.layer;
    gemm_tile(
        tiles, place, pixels, channels, KERNEL_H * KERNEL_W * filters,
        Gradients<Scalars<TILE_M, true>>(dy, pixels, H, W, K, P, Q, filters, group, place.m),
        Filters<Scalars<TILE_N, false>>(w, channels, filters, group, place.n),
        [=](int m, int c, Scalar sum) { dx[(long long)m * C + group * channels + c] = sum; });
}

// dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] * x[n, row_of(p, r), column_of(q, s), c].
// GEMM: rows k of the group, columns (r,s,c), sum over (n,p,q), cut into `parts` of `length` terms so that small
// filters fill the GPU too; sum_parts adds the parts up in order.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1) conv2d_backward_weight(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ x,   // [N, H, W, C]
    Scalar* __restrict__ dw,        // [parts, K, KERNEL_H, KERNEL_W, C / groups]
    int N, int H, int W, int C, int K, int P, int Q, int groups, int parts, int length) {
    __shared__ GemmTiles<false, false> tiles;
    const int channels = C / groups, filters = K / groups;
    const int depth = KERNEL_H * KERNEL_W * channels;
    const TilePlace place = tile_place(filters, depth);
    const int group = place.layer % groups, part = place.layer / groups;
    const int from = part * length, to = min(from + length, N * P * Q);
    Scalar* out = dw + ((long long)part * K + group * filters) * depth;
    gemm_tile(
        tiles, place, filters, depth, to - from,
        Columns<Scalars<TILE_M, false>>(dy + group * filters, filters, K, place.m, from),
        PatchColumns<Scalars<TILE_N, false>>(x, H, W, C, P, Q, channels, group, place.n, from),
        [=](int k, int i, Scalar sum) { out[(long long)k * depth + i] = sum; });
}
