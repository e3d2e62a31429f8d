// One tile of a matrix product y[m, n] = sum over k of a(m, k) * b(k, n), for matrices of any size.
//
// Tiling   A block computes TILE_M x TILE_N outputs; it walks k in steps of TILE_K, through two shared tiles. There are two
//          of each: while one step is multiplied, the next is on its way into registers, and is then stored.
//
//              k ->                n ->
//            +------+            +-----------+            a thread's THREAD_M x THREAD_N outputs stay in registers;
//          m | a    |          k | b         |            per k it reads THREAD_M + THREAD_N values from shared memory
//          | |      |          | +-----------+            and does THREAD_M * THREAD_N multiply-adds.
//          v +------+          v
//
// Threads  (TILE_M / THREAD_M) * (TILE_N / THREAD_N), in rows along n. A thread's rows are neighbours, read at once; its
//          columns are TILE_N / THREAD_N apart, so neighbouring threads read neighbouring words: no bank conflicts.
// Sources  sources.cuh, one scalar at a time. Neighbouring threads load neighbouring k where these are neighbours in
//          memory, else neighbouring rows or columns.
// Shared   2 * (TILE_M + TILE_N + PAST_ROW of each) * TILE_K scalars. a's tile is stored k-major so that both are read
//          along a row.
// Grid     x alone (y and z end at 65535): tiles along m first, then along n, then layers (groups, parts, batch).
// Order    Each output sums k = 0, 1, 2, ... in one chain of multiply-adds, whatever the tile.
#pragma once
#define CHUNK 1
#include "sources.cuh"
#include "tile.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(TILE_K) || !defined(THREAD_M) || !defined(THREAD_N)
#error "compile with -DTILE_M, -DTILE_N, -DTILE_K, -DTHREAD_M and -DTHREAD_N"
#endif

#define THREADS_M (TILE_M / THREAD_M)
#define THREADS_N (TILE_N / THREAD_N)
#define GEMM_THREADS (THREADS_M * THREADS_N)

// Scalars in 32 banks of shared memory.
#define IN_BANKS (128 / (int)sizeof(Scalar))

// What a thread reads of a at each k, by accesses of up to 16 bytes.
struct __align__(THREAD_M * sizeof(Scalar) < 16 ? THREAD_M * sizeof(Scalar) : 16) ThreadRows {
    Scalar at[THREAD_M];
};

// Which scalars of a step's tile, LENGTH rows (of a) or columns (of b) by TILE_K k, a thread loads, and where they go.
template <int LENGTH, bool ALONG>
struct Scalars {
    static constexpr int STEP = TILE_K, AT_A_K = GEMM_THREADS / TILE_K;  // threads at each k
    static constexpr int COUNT = LENGTH / AT_A_K;
    static_assert(COUNT * AT_A_K == LENGTH && AT_A_K * TILE_K == GEMM_THREADS, "the same for each thread");

    // The threads of a warp store neighbouring k of some rows at once, or some k of neighbouring rows. With so many
    // scalars behind each k of a tile they meet in no bank; where ThreadRows needs some more, two do.
    static constexpr int ROWS_AT_ONCE = ALONG ? IN_BANKS / TILE_K : AT_A_K < IN_BANKS ? AT_A_K : IN_BANKS;
    static constexpr int PAST_ROW = (ROWS_AT_ONCE + IN_BANKS - LENGTH % IN_BANKS) % IN_BANKS;

    static constexpr int ALIGNED = alignof(ThreadRows) / sizeof(Scalar);

    typedef Scalar Tile[TILE_K][(LENGTH + PAST_ROW + ALIGNED - 1) / ALIGNED * ALIGNED];

    static __device__ __forceinline__ int row(int i) {
        return (ALONG ? threadIdx.x / TILE_K : threadIdx.x % AT_A_K) + i * AT_A_K;
    }
    static __device__ __forceinline__ int k() { return ALONG ? threadIdx.x % TILE_K : threadIdx.x / AT_A_K; }

    template <class Source>
    static __device__ __forceinline__ void load(Scalar (&to)[COUNT], Source& source, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Chunk chunk = source.chunk(i);
            to[i] = k() < left && chunk.inside ? Scalar(*chunk.from) : Scalar(0);
        }
        source.advance();
    }

    static __device__ __forceinline__ void store(Tile& tile, const Scalar (&from)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) tile[k()][row(i)] = from[i];
    }
};

// The shared memory of a block; a kernel declares one and hands it over.
template <bool A_ALONG, bool B_ALONG>
struct __align__(16) GemmTiles {
    typename Scalars<TILE_M, A_ALONG>::Tile a[2];
    typename Scalars<TILE_N, B_ALONG>::Tile b[2];
};

// store(m, n, sum) is called for every output of the tile inside the matrix.
template <bool A_ALONG, bool B_ALONG, class SourceA, class SourceB, class Store>
static __device__ __forceinline__ void gemm_tile(
    GemmTiles<A_ALONG, B_ALONG>& tiles, const TilePlace& place, int rows, int columns, int terms, SourceA source_a,
    SourceB source_b, Store store) {
    typedef Scalars<TILE_M, A_ALONG> A;
    typedef Scalars<TILE_N, B_ALONG> B;
    const int thread_m = threadIdx.x / THREADS_N, thread_n = threadIdx.x % THREADS_N;

    Scalar sum[THREAD_M][THREAD_N] = {};
    Scalar next_a[A::COUNT], next_b[B::COUNT];
    A::load(next_a, source_a, terms);
    B::load(next_b, source_b, terms);
    A::store(tiles.a[0], next_a);
    B::store(tiles.b[0], next_b);
    __syncthreads();
    for (int done = 0, stage = 0; done < terms; done += TILE_K, stage ^= 1) {
        A::load(next_a, source_a, terms - done - TILE_K);
        B::load(next_b, source_b, terms - done - TILE_K);
#pragma unroll
        for (int k = 0; k < TILE_K; ++k) {
            const ThreadRows a = *(const ThreadRows*)&tiles.a[stage][k][thread_m * THREAD_M];
            Scalar b[THREAD_N];
#pragma unroll
            for (int j = 0; j < THREAD_N; ++j) b[j] = tiles.b[stage][k][thread_n + j * THREADS_N];
#pragma unroll
            for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_N; ++j) sum[i][j] = multiply_add(a.at[i], b[j], sum[i][j]);
        }
        A::store(tiles.a[stage ^ 1], next_a);  // which all have read before the last barrier
        B::store(tiles.b[stage ^ 1], next_b);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) {
        const int m = place.m + thread_m * THREAD_M + i;
#pragma unroll
        for (int j = 0; j < THREAD_N; ++j) {
            const int n = place.n + thread_n + j * THREADS_N;
            if (m < rows && n < columns) store(m, n, sum[i][j]);
        }
    }
}
