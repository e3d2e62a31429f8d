// Batched matrix product y[i] = op(a[i]) op(b[i]) with large tiles of multiply-adds, op transposing where its constant
// says so; matmul.cu is its sibling.
//
// Layout     As in matmul.cu. N, and of a and b the length of the last axis, are multiples of 4 and of CHUNK (sources.cuh);
//            a, b and y begin at a multiple of 16 bytes.
// Grid       fma_tile.cuh; the layers are the batch, times parts.
// Constants  TRANS_A, TRANS_B; the tile is fma_tile.cuh's.
// Cost       2 batch M N K FLOP; bound by multiply-adds from about 64 rows and columns, else by memory.
// Order      As in matmul.cu, to the bit, with parts of a `length` that is a multiple of CHUNK.
#include "fma_tile.cuh"

#if !defined(TRANS_A) || !defined(TRANS_B)
#error "compile with -DTRANS_A and -DTRANS_B of 0 or 1"
#endif

extern "C" __global__ void __launch_bounds__(FMA_THREADS, FMA_BLOCKS) matmul_fma(
    const SCALAR* __restrict__ a,     // [a_matrices, M, K]
    const SCALAR* __restrict__ b,     // [b_matrices, K, N]
    const int* __restrict__ a_index,  // [batch] or null
    const int* __restrict__ b_index,  // [batch] or null
    SCALAR* __restrict__ y,           // [parts, batch, M, N]
    int a_matrices, int b_matrices, int batch, int M, int N, int K, int parts, int length) {
    __shared__ FmaTiles tiles;
    const TilePlace place = tile_place(M, N);
    const int matrix = place.layer % batch, part = place.layer / batch;
    const SCALAR* left = a + (a_index ? a_index[matrix] : matrix) * M * K;
    const SCALAR* right = b + (b_index ? b_index[matrix] : matrix) * K * N;
    const int from = part * length, to = min(from + length, K);
    const RowsOrColumns<Chunks<TILE_M, !TRANS_A>, !TRANS_A> source_a(left, M, TRANS_A ? M : K, place.m, from);
    const RowsOrColumns<Chunks<TILE_N, TRANS_B>, TRANS_B> source_b(right, N, TRANS_B ? K : N, place.n, from);
    fma_tile<!TRANS_A, TRANS_B>(
        tiles, place, to - from, source_a, source_b, [=](int m, int n, const Four& four) {
            if (m < M && n < N) store_four(y + ((long long)place.layer * M + m) * N + n, four, 4);
        });
}
