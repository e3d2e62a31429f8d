// Batched matrix product y[i] = op(a[i]) op(b[i]), op transposing where its constant says so.
//
// Layout     a [.., M, K] or [.., K, M], b [.., K, N] or [.., N, K], y [batch, M, N]; the last axis fastest.
// Grid       gemm_tile.cuh; the layers are the batch, times parts.
// Constants  TRANS_A, TRANS_B, and the tile of gemm_tile.cuh.
// Cost       2 batch M N K FLOP; bound by multiply-adds from about 64 rows and columns, else by memory.
// Order      k = 0, 1, 2, ... within a part of `length` terms, in one chain; sum_parts adds the parts up in order.
#include "gemm_tile.cuh"

#if !defined(TRANS_A) || !defined(TRANS_B)
#error "compile with -DTRANS_A and -DTRANS_B of 0 or 1"
#endif

// a_index and b_index say which matrix of a and of b belongs to each of the batch: how the leading axes broadcast.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1) matmul(
    const SCALAR* __restrict__ a,     // [a_matrices, M, K]
    const SCALAR* __restrict__ b,     // [b_matrices, K, N]
    const int* __restrict__ a_index,  // [batch] or null
    const int* __restrict__ b_index,  // [batch] or null
    Scalar* __restrict__ y,           // [parts, batch, M, N]
    int a_matrices, int b_matrices, int batch, int M, int N, int K, int parts, int length) {
    __shared__ GemmTiles<!TRANS_A, TRANS_B> tiles;
    const TilePlace place = tile_place(M, N);
    const int matrix = place.layer % batch, part = place.layer / batch;
    const SCALAR* left = a + (a_index ? a_index[matrix] : matrix) * M * K;
    const SCALAR* right = b + (b_index ? b_index[matrix] : matrix) * K * N;
    Scalar* out = y + (long long)place.layer * M * N;
    const int from = part * length, to = min(from + length, K);
    const RowsOrColumns<Scalars<TILE_M, !TRANS_A>, !TRANS_A> source_a(left, M, TRANS_A ? M : K, place.m, from);
    const RowsOrColumns<Scalars<TILE_N, TRANS_B>, TRANS_B> source_b(right, N, TRANS_B ? K : N, place.n, from);
    gemm_tile(
        tiles, place, M, N, to - from, source_a, source_b,
        [=](int m, int n, Scalar sum) { out[(long long)m * N + n] = sum; });
}
