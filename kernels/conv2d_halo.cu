// Convolution of stride and dilation 1 on tensor cores, from halos; conv2d_mma.cu is its sibling.
//
// Needs      sm_80
// Layout     As in conv2d.cu. C / groups and K / groups are multiples of CHUNK (sources.cuh); x, w, y and their gradients
//            begin at a multiple of 16 bytes.
// Grid       halo_tile.cuh.
// Constants  Those of conv2d.cu and of mma_tile.cuh; HALF for half_tile.cuh, where SCALAR is float16 or bfloat16.
// Cost       2 N P Q K R S C/groups FLOP, and those of the tiles' pixels outside of the image; bound by the tensor cores.
// Order      halo_tile.cuh; terms of the padding are zeros.
#include "activation.cuh"
#include "halo_tile.cuh"

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]).
extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) conv2d_halo_forward(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ w,         // [K, KERNEL_H, KERNEL_W, C / groups]
    const RESULT* __restrict__ b,         // [K] or null
    const RESULT* __restrict__ scale,     // [K] or null
    const RESULT* __restrict__ residual,  // [N, P, Q, K] or null
    RESULT* __restrict__ y,               // [N, P, Q, K]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ HaloTiles tiles;
    const int channels = C / groups, filters = K / groups;
    const HaloPlace at = halo_place(N, P, Q, filters);
    halo_tile<false>(
        tiles, Halo(x, H, W, C, channels, at.image, row_of(at.p, 0), column_of(at.q, 0), at.group * channels),
        {w + at.group * filters * TAPS * channels, channels, filters, at.n},
        [=](int row, int column, int n, const Four& four) {
            const int p = at.p + row, q = at.q + column;
            if (p >= P || q >= Q || at.n + n >= filters) return;
            const int k = at.group * filters + at.n + n;
            const long long i = ((long long)(at.image * P + p) * Q + q) * K + k;
            put_four(y + i, conv2d_results(four, b, scale, residual, i, k));
        });
}

// dx[n,h,v,c] = sum over r, s, k of dy[n,p,q,k] * w[k,r,s,c], where row_of(p, r) = h and column_of(q, s) = v: the same
// of dy, by the turned filters. The halo of a pixel begins at the output whose last tap reads it.
extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) conv2d_halo_backward_input(
    const SCALAR* __restrict__ dy,  // [N, P, Q, K]
    const SCALAR* __restrict__ w,   // [K, KERNEL_H, KERNEL_W, C / groups]
    RESULT* __restrict__ dx,        // [N, H, W, C]
    int N, int H, int W, int C, int K, int P, int Q, int groups) {
    __shared__ HaloTiles tiles;
    const int channels = C / groups, filters = K / groups;
    const HaloPlace at = halo_place(N, H, W, channels);
    const int first_p = at.p - row_of(0, KERNEL_H - 1), first_q = at.q - column_of(0, KERNEL_W - 1);
    halo_tile<true>(
        tiles, Halo(dy, P, Q, K, filters, at.image, first_p, first_q, at.group * filters),
        {w + at.group * filters * TAPS * channels, channels, filters, at.n},
        [=](int row, int column, int n, const Four& four) {
            const int h = at.p + row, v = at.q + column;
            if (h >= H || v >= W || at.n + n >= channels) return;
            const int c = at.group * channels + at.n + n;
            put_four(dx + ((long long)(at.image * H + h) * W + v) * C + c, four);
        });
}
