// Convolution by filters of 3 x 3, stride and dilation 1, with 16 multiply-adds instead of 36: Winograd's F(2x2, 3x3) (Lavin
// and Gray, Fast algorithms for convolutional neural networks, 2016), in one pass.
//
// Formula    The 2 x 2 outputs of a filter k at a place are A' [sum over c of (G g G') * (B' d B)] A, * elementwise: g the
//            filter's taps of channel c, d the 4 x 4 inputs under them, and
//
//                [ 1    0    0  ]        [ 1  0 -1  0 ]        [ 1  1  1  0 ]
//            G = [ 1/2  1/2  1/2]   B' = [ 0  1  1  0 ]   A' = [ 0  1 -1 -1 ]
//                [ 1/2 -1/2  1/2]        [ 0 -1  1  0 ]
//                [ 0    0    1  ]        [ 0  1  0 -1 ]
//
// Tiling     winograd_filters.cu has stored u = G g G'. A block computes 32 places for 64 filters and walks the channels in
//            steps of 4. Two steps are in shared memory: while one is multiplied, the next is on its way.
//
//              x, 4 x 4 of each place             u, 16 numbers of a channel and filter
//                 |  into registers, B' d B          |  cp.async
//                 v                                  v
//              v [16][4 channels][32 places]      u [16][4 channels][64 filters]
//                 |                                  |
//                 +----------- 16 products ----------+    warp i has numbers 2 i and 2 i + 1 of the 16, of each a product
//                                   |                     of 32 x 64: 8 x 8 sums a thread, places and filters by fours
//                                   v                     as in fma_tile.cuh
//              eight places at once together in shared memory: A' . A, f, y
//
// Needs      sm_80
// Layout     As in conv2d.cu, of one group. C and K are multiples of 4; x, u and y begin at a multiple of 16 bytes.
// Grid       x: the places, 32 at once, images and rows one after another; then the filters, 64 at once. 256 threads.
//            Shared: 48 KB, 2 * 16 * 4 * (32 + 64) floats.
// Constants  Those of conv2d.cu. SCALAR is float: in double the sums would not fit into the registers.
// Cost       2 N P Q K R S C / 2.25 FLOP, and those of places across an edge; bound by multiply-adds.
// Order      Each of the 16 sums runs over c = 0, 1, ... in one chain. Its terms are sums themselves, up to four times as
//            large as those of a plain sum; gpucnn.testing.by_winograd has the bound.
#include "activation.cuh"
#include "async_copy.cuh"
#include "sources.cuh"
#include "window.cuh"

#if KERNEL_H != 3 || KERNEL_W != 3 || STRIDE_H != 1 || STRIDE_W != 1 || DILATION_H != 1 || DILATION_W != 1
#error "filters are 3 x 3, stride and dilation are 1"
#endif

#define PLACES 32
#define FILTERS 64
#define TERMS 4  // channels of a step

struct __align__(16) WinogradTiles {
    Scalar u[2][16][TERMS][FILTERS];
    Scalar v[2][16][TERMS][PLACES];  // place i of channel c at i ^ 8 c, for the banks
};

struct __align__(8) Two {
    Scalar at[2];
};

// Two of the four rows of B' d B for a channel of a place: a thread's part. It takes three of the four rows of d.
struct Patch {
    const SCALAR* x;   // from this step's channels on
    const bool lower;  // rows 2 and 3 rather than 0 and 1
    int inside;        // a bit for each of the 3 x 4 numbers
    int offset[12];    // of each; `kept`, or their addresses would be, which are twice as long

    __device__ __forceinline__ Patch(
        const SCALAR* x, int H, int W, int C, int image, int p, int q, int channel, bool lower, bool any)
        : x(x), lower(lower), inside(0) {
#pragma unroll
        for (int i = 0; i < 12; ++i) {
            const int h = row_of(p, lower) + i / 4, v = column_of(q, 0) + i % 4;
            if (any && (unsigned int)h < (unsigned int)H && (unsigned int)v < (unsigned int)W) inside |= 1 << i;
            offset[i] = ((image * H + h) * W + v) * C + channel;
        }
    }

    // Of this step's channel, if there is one; then on to the next step's.
    __device__ __forceinline__ void load(Scalar (&to)[3][4], bool some) {
        const int those = some ? inside : 0;
#pragma unroll
        for (int i = 0; i < 12; ++i) to[i / 4][i % 4] = those >> i & 1 ? x[kept(offset[i])] : Scalar(0);
        x += TERMS;
    }

    // Rows d0 - d2 and d1 + d2, or d2 - d1 and d1 - d3; `outer` is row 0 or 3, `inner` row 1 or 2. Then the same of columns.
    __device__ __forceinline__ void store(Scalar* outer, Scalar* inner, const Scalar (&d)[3][4]) const {
        Scalar a[4], b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            a[j] = d[0][j] - d[2][j];
            b[j] = d[1][j] + (lower ? -d[0][j] : d[2][j]);
        }
        store(outer, a);
        store(inner, b);
    }
    static __device__ __forceinline__ void store(Scalar* to, const Scalar (&t)[4]) {
        to[0 * TERMS * PLACES] = t[0] - t[2];
        to[1 * TERMS * PLACES] = t[1] + t[2];
        to[2 * TERMS * PLACES] = t[2] - t[1];
        to[3 * TERMS * PLACES] = t[1] - t[3];
    }
};

// y[n,p,q,k] = f(b[k] + scale[k] * sum over r, s, c of x[n, row_of(p, r), column_of(q, s), c] * w[k,r,s,c]
//                + residual[n,p,q,k]), by u.
extern "C" __global__ void __launch_bounds__(256, 1) conv2d_winograd(
    const SCALAR* __restrict__ x,         // [N, H, W, C]
    const SCALAR* __restrict__ u,         // [C, 16, K]
    const SCALAR* __restrict__ b,         // [K] or null
    const SCALAR* __restrict__ scale,     // [K] or null
    const SCALAR* __restrict__ residual,  // [N, P, Q, K] or null
    SCALAR* __restrict__ y,               // [N, P, Q, K]
    int N, int H, int W, int C, int K, int P, int Q) {
    __shared__ WinogradTiles tiles;
    const int squares_p = ceil_div(P, 2), squares_q = ceil_div(Q, 2), squares = N * squares_p * squares_q;
    const int blocks = ceil_div(squares, PLACES), block = (int)blockIdx.x;
    const int first = block % blocks * PLACES, first_k = block / blocks * FILTERS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    // A thread's part of v: two rows of a place and channel. Four lanes take 16 bytes of x at once, in the
    // next step their neighbours.
    const int place = warp % 4 * 8 + lane / 4, channel = lane % 4, number = min(first + place, squares - 1);
    const bool lower = warp >= 4;
    Patch patch(x, H, W, C, number / squares_q / squares_p, number / squares_q % squares_p * 2, number % squares_q * 2,
                channel, lower, first + place < squares);
    const int to_v = channel * PLACES + (place ^ channel * 8);
    const int outer = (lower ? 12 : 0) * TERMS * PLACES + to_v, inner = (lower ? 8 : 4) * TERMS * PLACES + to_v;
    const auto put_v = [&](int stage, const Scalar(&d)[3][4]) {
        patch.store(&tiles.v[stage][0][0][0] + outer, &tiles.v[stage][0][0][0] + inner, d);
    };

    // And of u: four filters of one of the 16 numbers, of each channel.
    const int filter = first_k + threadIdx.x % 16 * 4, stride = 16 * K, from_u = threadIdx.x / 16 * K + filter;
    const auto copy_u = [&](int stage, bool some) {
#pragma unroll
        for (int i = 0; i < TERMS; ++i)
            async_copy_or_zero(&tiles.u[stage][threadIdx.x / 16][i][threadIdx.x % 16 * 4], u + (from_u + i * stride),
                               some && filter < K);
        u += TERMS * stride;
        async_commit();
    };

    Scalar sums[2][8][8] = {}, d[3][4];
    const int m = lane / 8 * 4, n = lane % 8 * 4;  // the first of a thread's places and filters
    copy_u(0, true);
    patch.load(d, true);
    put_v(0, d);
    async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int done = 0; done < C; done += 2 * TERMS) {
#pragma unroll
        for (int stage = 0; stage < 2; ++stage) {
            if (stage > 0 && done + TERMS >= C) break;
            const bool more = done + (stage + 1) * TERMS < C;
            copy_u(1 - stage, more);
            patch.load(d, more);
#pragma unroll
            for (int term = 0; term < TERMS; ++term)
#pragma unroll
                for (int f = 0; f < 2; ++f) {
                    Four a[2], w[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        a[i] = *(const Four*)&tiles.v[stage][2 * warp + f][term][(m ^ term % 2 * 8) + (i ^ term / 2) * 16];
                        w[i] = *(const Four*)&tiles.u[stage][2 * warp + f][term][n + i * 32];
                    }
#pragma unroll
                    for (int i = 0; i < 8; ++i)
#pragma unroll
                        for (int j = 0; j < 8; ++j)
                            sums[f][i][j] = multiply_add(a[i / 4].at[i % 4], w[j / 4].at[j % 4], sums[f][i][j]);
                }
            put_v(1 - stage, d);  // which all have read before the last barrier
            async_wait<0>();
            __syncthreads();
        }
    }

    // A lane has sums of places 16 (i / 4) + m + i % 4. Of two i at a time, eight places, the 16 come together in shared
    // memory, where u was; then a warp has one place, a thread two filters of it.
    Scalar(*together)[8][FILTERS] = (Scalar(*)[8][FILTERS])&tiles.u;
    const int k = first_k + lane * 2;
#pragma unroll
    for (int round = 0; round < 4; ++round) {
#pragma unroll
        for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int f = 0; f < 2; ++f)
#pragma unroll
                for (int j = 0; j < 8; j += 4) {
                    const Scalar(&of)[8] = sums[f][2 * round + e];
                    *(Four*)&together[2 * warp + f][lane / 8 * 2 + e][n + j * 8] = {
                        {of[j], of[j + 1], of[j + 2], of[j + 3]}};
                }
        __syncthreads();
        Two rows[2][4];  // A' of the columns of 4 x 4
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            Two from[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) from[i] = *(const Two*)&together[4 * i + j][warp][lane * 2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                rows[0][j].at[e] = from[0].at[e] + from[1].at[e] + from[2].at[e];
                rows[1][j].at[e] = from[1].at[e] - from[2].at[e] - from[3].at[e];
            }
        }
        const int number = first + round / 2 * 16 + warp / 2 * 4 + round % 2 * 2 + warp % 2;
        const int image = number / squares_q / squares_p;
        const int p = number / squares_q % squares_p * 2, q = number % squares_q * 2;
#pragma unroll
        for (int down = 0; down < 2; ++down)
#pragma unroll
            for (int right = 0; right < 2; ++right) {
                if (number >= squares || k >= K || p + down >= P || q + right >= Q) continue;
                const Two(&r)[4] = rows[down];
                const long long i = ((long long)(image * P + p + down) * Q + q + right) * K + k;
                Two two;
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Scalar sum = right ? r[1].at[e] - r[2].at[e] - r[3].at[e] : r[0].at[e] + r[1].at[e] + r[2].at[e];
                    two.at[e] = conv2d_result(sum, b, scale, residual, i + e, k + e);
                }
                *(Two*)(y + i) = two;
            }
        __syncthreads();  // all have read what the next round overwrites
    }
}
