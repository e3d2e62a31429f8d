// The filters of conv2d_winograd.cu, which needs sm_80: what Winograd's F(2x2, 3x3) multiplies with.
//
// Needs      sm_80
// Layout     w [K, 3, 3, C], of C and K that are multiples of 4; u [C, 16, K] begins at a multiple of 16 bytes.
// Grid       x: a thread for one channel and four filters. Neighbours take 8 channels, then further filters: so they read
//            whole sectors of w and write whole sectors of u.
// Constants  SCALAR; TURNED, whether the filters are turned for the input's gradient: then channels and filters change
//            places.
// Cost       36 reads and 64 writes a thread; bound by memory.
#include "common.cuh"

#ifndef TURNED
#error "compile with -DTURNED=0 or 1"
#endif

// G g of a column or row of three taps: four numbers.
static __device__ __forceinline__ void transformed(Scalar (&to)[4], Scalar first, Scalar second, Scalar third) {
    const Scalar even = Scalar(0.5) * (first + third), odd = Scalar(0.5) * second;
    to[0] = first;
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = third;
}

// u[c,4i+j,k] is element i, j of G g G' for the taps g of filter k and channel c, G as in conv2d_winograd.cu. TURNED:
// u[k,4i+j,c], of the taps from the last to the first.
extern "C" __global__ void winograd_filters(
    const SCALAR* __restrict__ w,  // [K, 9, C]
    SCALAR* __restrict__ u,        // [C, 16, K]
    int C, int K) {
    const int terms = TURNED ? K : C, columns = TURNED ? C : K;
    const int number = (int)(thread_number() / 8), term = number / (columns / 4) * 8 + threadIdx.x % 8;
    const int column = number % (columns / 4) * 4;
    if (term >= terms) return;
    Four all[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const SCALAR* from = TURNED ? w + (long long)term * 9 * C + column + i : w + (long long)(column + i) * 9 * C + term;
        Scalar half[3][4];  // G g, columns first
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            Scalar g[3];
#pragma unroll
            for (int r = 0; r < 3; ++r) g[r] = from[(TURNED ? 8 - r * 3 - s : r * 3 + s) * C];
            transformed(half[s], g[0], g[1], g[2]);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            Scalar row[4];
            transformed(row, half[0][r], half[1][r], half[2][r]);
#pragma unroll
            for (int s = 0; s < 4; ++s) all[r * 4 + s].at[i] = row[s];
        }
    }
#pragma unroll
    for (int f = 0; f < 16; ++f) put_four(u + (long long)(term * 16 + f) * columns + column, all[f]);
}
