// Batched matrix product y[i] = op(a[i]) op(b[i]) on tensor cores, op transposing where its constant says so.
//
// Needs      sm_80
// Layout     As in matmul.cu. N, and of a and b the length of the last axis, are multiples of CHUNK (sources.cuh); a, b
//            and y begin at a multiple of 16 bytes.
// Grid       mma_tile.cuh; the layers are the batch, times parts.
// Constants  TRANS_A, TRANS_B, and those of mma_tile.cuh; HALF for half_tile.cuh, where SCALAR is float16 or bfloat16.
// Cost       2 batch M N K FLOP; bound by the tensor cores from some 500 rows, columns and terms, else by memory.
// Order      mma_tile.cuh, within a part of `length` terms (a multiple of CHUNK); sum_parts adds the parts up in order.
#ifdef HALF
#include "half_tile.cuh"
#else
#include "mma_tile.cuh"
#endif

#if !defined(TRANS_A) || !defined(TRANS_B)
#error "compile with -DTRANS_A and -DTRANS_B of 0 or 1"
#endif

extern "C" __global__ void __launch_bounds__(MMA_THREADS, 1) matmul_mma(
    const SCALAR* __restrict__ a,     // [a_matrices, M, K]
    const SCALAR* __restrict__ b,     // [b_matrices, K, N]
    const int* __restrict__ a_index,  // [batch] or null
    const int* __restrict__ b_index,  // [batch] or null
    Scalar* __restrict__ y,           // [parts, batch, M, N]
    int a_matrices, int b_matrices, int batch, int M, int N, int K, int parts, int length) {
    __shared__ MmaTiles tiles;
    const TilePlace place = tile_place(M, N);
    const int matrix = place.layer % batch, part = place.layer / batch;
    const SCALAR* left = a + (a_index ? a_index[matrix] : matrix) * M * K;
    const SCALAR* right = b + (b_index ? b_index[matrix] : matrix) * K * N;
    const int from = part * length, to = min(from + length, K);
    const RowsOrColumns<Chunks<TILE_M, !TRANS_A>, !TRANS_A> source_a(left, M, TRANS_A ? M : K, place.m, from);
    const RowsOrColumns<Chunks<TILE_N, TRANS_B>, TRANS_B> source_b(right, N, TRANS_B ? K : N, place.n, from);
    mma_tile<!TRANS_A, TRANS_B>(
        tiles, place, to - from, source_a, source_b, [=](int m, int n, const Four& four) {
            if (m < M && n < N) put_four(y + ((long long)place.layer * M + m) * N + n, four);
        });
}
