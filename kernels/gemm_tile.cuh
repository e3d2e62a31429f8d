// One tile of a matrix product y[m, n] = sum over k of a(m, k) * b(k, n), the operands given by functions.
//
// Tiling   A block computes TILE_M x TILE_N outputs; it walks k in steps of TILE_K, through two shared tiles:
//
//              k ->                n ->
//            +------+            +-----------+            a thread's THREAD_M x THREAD_N outputs stay in registers;
//          m | a    |          k | b         |            per k it reads THREAD_M + THREAD_N values from shared memory
//          | |      |          | +-----------+            and does THREAD_M * THREAD_N multiply-adds.
//          v +------+          v
//
// Threads  (TILE_M / THREAD_M) * (TILE_N / THREAD_N), in rows along n. A thread's rows are TILE_M / THREAD_M apart (and
//          columns likewise), so neighbouring threads read neighbouring words of a tile: no bank conflicts.
// Shared   (TILE_M + TILE_N) * TILE_K scalars. a's tile is stored k-major so that both are read along a row.
// Grid     x alone (y and z end at 65535): tiles along m first, then along n, then layers (groups, parts, batch).
// Order    Each output sums k = 0, 1, 2, ... in one chain of multiply-adds, whatever the tile.
#pragma once
#include "tile.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(TILE_K) || !defined(THREAD_M) || !defined(THREAD_N)
#error "compile with -DTILE_M, -DTILE_N, -DTILE_K, -DTHREAD_M and -DTHREAD_N"
#endif

#define THREADS_M (TILE_M / THREAD_M)
#define THREADS_N (TILE_N / THREAD_N)
#define GEMM_THREADS (THREADS_M * THREADS_N)

// The shared memory of a block; a kernel declares one and hands it over.
struct GemmTiles {
    Scalar a[TILE_K][TILE_M];
    Scalar b[TILE_K][TILE_N];
};

// load_a(m, k) and load_b(k, n) are called only inside 0 <= m < rows, first <= k < last, 0 <= n < columns.
// store(m, n, sum) is called for every output of the tile inside the matrix.
template <class LoadA, class LoadB, class Store>
static __device__ __forceinline__ void gemm_tile(
    GemmTiles& tiles, const TilePlace& place, int rows, int columns, int first, int last,
    LoadA load_a, LoadB load_b, Store store) {
    const int thread = threadIdx.x;
    const int thread_m = thread / THREADS_N, thread_n = thread % THREADS_N;
    const int m0 = place.m, n0 = place.n;

    Scalar sum[THREAD_M][THREAD_N];
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
        for (int j = 0; j < THREAD_N; ++j) sum[i][j] = 0;

    for (int k0 = first; k0 < last; k0 += TILE_K) {
        // Neighbouring threads load neighbouring k of a (a row of the im2col matrix is contiguous along channels) and
        // neighbouring k of b for the same reason: filters are stored with channels fastest too.
        for (int i = thread; i < TILE_M * TILE_K; i += GEMM_THREADS) {
            const int m = i / TILE_K, k = i % TILE_K;
            tiles.a[k][m] = m0 + m < rows && k0 + k < last ? load_a(m0 + m, k0 + k) : Scalar(0);
        }
        for (int i = thread; i < TILE_N * TILE_K; i += GEMM_THREADS) {
            const int n = i / TILE_K, k = i % TILE_K;
            tiles.b[k][n] = n0 + n < columns && k0 + k < last ? load_b(k0 + k, n0 + n) : Scalar(0);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE_K; ++k) {
            Scalar a[THREAD_M], b[THREAD_N];
#pragma unroll
            for (int i = 0; i < THREAD_M; ++i) a[i] = tiles.a[k][thread_m + i * THREADS_M];
#pragma unroll
            for (int j = 0; j < THREAD_N; ++j) b[j] = tiles.b[k][thread_n + j * THREADS_N];
#pragma unroll
            for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_N; ++j) sum[i][j] = multiply_add(a[i], b[j], sum[i][j]);
        }
        __syncthreads();  // before the next step overwrites the tiles
    }

#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) {
        const int m = m0 + thread_m + i * THREADS_M;
#pragma unroll
        for (int j = 0; j < THREAD_N; ++j) {
            const int n = n0 + thread_n + j * THREADS_N;
            if (m < rows && n < columns) store(m, n, sum[i][j]);
        }
    }
}
