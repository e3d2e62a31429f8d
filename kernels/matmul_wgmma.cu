// Batched matrix product y[i] = op(a[i]) op(b[i]) on Hopper's tensor cores, its operands brought by the copy engine; op
// transposes where its constant says so. matmul_mma.cu is its portable twin.
//
// Needs      sm_90a
// Layout     As in matmul.cu. N, and of a and b the length of the last axis, are multiples of 8, of float 4; a, b and y
//            begin at a multiple of 16 bytes. Of float both operands lie along.
// Grid       wgmma_tile.cuh, which has threads and shared memory too; the layers are the batch, times parts.
// Constants  TRANS_A, TRANS_B, BOX_A and BOX_B, the rows of a copy: 64 of an operand that lies across, else the tile's;
//            and those of wgmma_tile.cuh.
// Cost       2 batch M N K FLOP; bound by the tensor cores.
// Order      wgmma_tile.cuh, within a part of `length` terms, a multiple of TILE_K; sum_parts adds the parts in order.
#include "wgmma_tile.cuh"

#if !defined(TRANS_A) || !defined(TRANS_B) || !defined(BOX_A) || !defined(BOX_B)
#error "compile with -DTRANS_A and -DTRANS_B of 0 or 1, -DBOX_A and -DBOX_B"
#endif

extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, WGMMA_BLOCKS) matmul_wgmma(
    const __grid_constant__ TensorMap<SCALAR> a,
    // [a_matrices, M+TRANS_A*(K-M), K+TRANS_A*(M-K)], by [1, BOX_A, TILE_K]
    const __grid_constant__ TensorMap<SCALAR> b,
    // [b_matrices, K+TRANS_B*(N-K), N+TRANS_B*(K-N)], by [1, BOX_B, TILE_K]
    const int* __restrict__ a_index,  // [batch] or null
    const int* __restrict__ b_index,  // [batch] or null
    Scalar* __restrict__ y,           // [parts, batch, M, N]
    int a_matrices, int b_matrices, int batch, int M, int N, int K, int parts, int length) {
    const TilePlace place = tile_place(M, N);
    const int matrix = place.layer % batch, from = place.layer / batch * length, to = min(from + length, K);
    const int left = a_index ? a_index[matrix] : matrix, right = b_index ? b_index[matrix] : matrix;
    wgmma_tile<!TRANS_A, TRANS_B>(
        ceil_div(to - from, TILE_K),
        [&](SCALAR* to_a, SCALAR* to_b, Mbarrier& full, int step) {
            const int k = from + step * TILE_K;
            copy_rows<TILE_M, BOX_A, !TRANS_A>(to_a, a, full, left, place.m, k);
            copy_rows<TILE_N, BOX_B, TRANS_B>(to_b, b, full, right, place.n, k);
        },
        [=](int m, int n, const Four& four) {
            if (place.m + m < M && place.n + n < N)
                put_four(y + ((long long)place.layer * M + place.m + m) * N + place.n + n, four);
        });
}
