// One tile of a matrix product y[m, n] = sum over k of a(m, k) * b(k, n) by multiply-adds, operands taken by 16 bytes.
// gemm_tile.cuh is its sibling for matrices of any size, mma_tile.cuh the one for tensor cores.
//
// Tiling   A block computes TILE_M x TILE_N outputs and walks k in steps of 8. Two steps are in shared memory: while
//          one is multiplied, the next is on its way into registers, and is then stored in the other's place.
//
//              k ->                n ->
//            +------+            +-----------+           A warp has 4 x 8 threads; a thread's THREAD_M x THREAD_N sums
//          m | a    |          k | b         |           stay in registers. Per k it reads its rows and columns by
//          | |      |          | +-----------+           fours: 16 x 8 sums are 6 reads of 16 bytes for 128
//          v +------+          v                         multiply-adds.
//
//          A warp, 16 x 8 sums a thread: where thread t of it has fours of sums, by m and n.
//
//                       n: 0    4    8        28  32   36       60
//            m:  0-3      | t 0 | t 1 | ... | t 7 | t 0 | ... | t 7 |    columns 4 apart for neighbours, so a read of
//                4-7      | t 8 | ...                         | t15 |    eight threads is 128 bytes in a row, and the
//               12-15     | t24 | ...                         | t31 |    rows' are the same for all of them: neither
//               16-19     | t 0 | ...   again, 3 times        | t 7 |    meets in a bank.
//
// Chunks   sources.cuh: 16 bytes along k, or across it. In shared memory both lie k by k; chunks along k are turned on the
//          way there. Rows are 16 bytes longer than the tile, so that what is stored then meets in no bank.
// Threads  TILE_M / THREAD_M * TILE_N / THREAD_N. Shared: 2 * 8 * (TILE_M + TILE_N + padding) scalars.
// Grid     As in gemm_tile.cuh.
// Order    Each output sums k = 0, 1, 2, ... in one chain of multiply-adds, as in gemm_tile.cuh: the same bits.
#pragma once
#include "sources.cuh"
#include "tile.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(THREAD_M) || !defined(THREAD_N)
#error "compile with -DTILE_M, -DTILE_N, -DTHREAD_M and -DTHREAD_N"
#endif
#if THREAD_M % 4 || THREAD_N % 4 || TILE_M % (4 * THREAD_M) || TILE_N % (8 * THREAD_N)
#error "a thread has fours of rows and of columns, a warp 4 x 8 threads, a tile whole warps"
#endif

#define FMA_STEP 8
#define FMA_THREADS (TILE_M / THREAD_M * (TILE_N / THREAD_N))
// Blocks of a multiprocessor at once, so that a thread may have 255, 168 or 128 registers: its sums and as many more.
#define FMA_BLOCKS ((THREAD_M * THREAD_N >= 128 ? 256 : THREAD_M * THREAD_N >= 64 ? 384 : 512) / FMA_THREADS)
#define WARPS_N (TILE_N / (8 * THREAD_N))

struct __align__(16) StoredChunk {
    SCALAR at[CHUNK];
};

// Which chunks of a step's tile, LENGTH rows (of a) or columns (of b) by 8 k, a thread copies, and where they go.
template <int LENGTH, bool ALONG>
struct Chunks {
    static constexpr int STEP = FMA_STEP;
    static constexpr int AT_A_ROW = FMA_STEP / CHUNK, AT_A_K = FMA_THREADS / FMA_STEP;  // threads at each row, along; at each k
    static constexpr int COUNT = LENGTH * FMA_STEP / CHUNK / FMA_THREADS;
    static_assert(COUNT * CHUNK * FMA_THREADS == LENGTH * FMA_STEP && AT_A_ROW && AT_A_K, "the same for each thread");

    typedef Scalar Tile[FMA_STEP][LENGTH + 16 / sizeof(Scalar)];

    // The first row of a thread's chunk, and the k of all.
    static __device__ __forceinline__ int row(int i) {
        return ALONG ? threadIdx.x / AT_A_ROW + i * (FMA_THREADS / AT_A_ROW)
                     : (threadIdx.x % AT_A_K + i * AT_A_K) * CHUNK;
    }
    static __device__ __forceinline__ int k() {
        return ALONG ? threadIdx.x % AT_A_ROW * CHUNK : threadIdx.x / AT_A_K;
    }

    template <class Source>
    static __device__ __forceinline__ void load(StoredChunk (&to)[COUNT], Source& source, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Chunk chunk = source.chunk(i);
            to[i] = StoredChunk{};
            if (k() < left && chunk.inside) to[i] = *(const StoredChunk*)chunk.from;
        }
        source.advance();
    }

    static __device__ __forceinline__ void store(Tile& tile, const StoredChunk (&from)[COUNT]) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (ALONG) {
#pragma unroll
                for (int j = 0; j < CHUNK; ++j) tile[k() + j][row(i)] = from[i].at[j];
            } else {
                struct __align__(16) {
                    Scalar at[CHUNK];
                } chunk;
#pragma unroll
                for (int j = 0; j < CHUNK; ++j) chunk.at[j] = from[i].at[j];
                *(decltype(chunk)*)&tile[k()][row(i)] = chunk;
            }
        }
    }
};

// The shared memory of a block; a kernel declares one and hands it over.
struct __align__(16) FmaTiles {
    Chunks<TILE_M, true>::Tile a[2];
    Chunks<TILE_N, true>::Tile b[2];
};

// store(m, n, four) is called for each four neighbouring outputs of the tile; those beyond the matrix too.
template <bool A_ALONG, bool B_ALONG, class SourceA, class SourceB, class Store>
static __device__ __forceinline__ void fma_tile(
    FmaTiles& tiles, const TilePlace& place, int terms, SourceA source_a, SourceB source_b, Store store) {
    typedef Chunks<TILE_M, A_ALONG> A;
    typedef Chunks<TILE_N, B_ALONG> B;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m = warp / WARPS_N * (4 * THREAD_M) + lane / 8 * 4, n = warp % WARPS_N * (8 * THREAD_N) + lane % 8 * 4;

    Scalar sums[THREAD_M][THREAD_N] = {};
    StoredChunk next_a[A::COUNT], next_b[B::COUNT];
    A::load(next_a, source_a, terms);
    B::load(next_b, source_b, terms);
    A::store(tiles.a[0], next_a);
    B::store(tiles.b[0], next_b);
    __syncthreads();
#pragma unroll 1
    for (int done = 0; done < terms; done += 2 * FMA_STEP) {
#pragma unroll
        for (int stage = 0; stage < 2; ++stage) {
            if (stage > 0 && done + stage * FMA_STEP >= terms) break;
            const int left = terms - done - (stage + 1) * FMA_STEP;
            A::load(next_a, source_a, left);
            B::load(next_b, source_b, left);
#pragma unroll
            for (int k = 0; k < FMA_STEP; ++k) {
                Four a[THREAD_M / 4], b[THREAD_N / 4];
#pragma unroll
                for (int i = 0; i < THREAD_M / 4; ++i) a[i] = *(const Four*)&tiles.a[stage][k][m + i * 16];
#pragma unroll
                for (int j = 0; j < THREAD_N / 4; ++j) b[j] = *(const Four*)&tiles.b[stage][k][n + j * 32];
#pragma unroll
                for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
                    for (int j = 0; j < THREAD_N; ++j)
                        sums[i][j] = multiply_add(a[i / 4].at[i % 4], b[j / 4].at[j % 4], sums[i][j]);
            }
            A::store(tiles.a[1 - stage], next_a);  // which all have read before the last barrier
            B::store(tiles.b[1 - stage], next_b);
            __syncthreads();
        }
    }

#pragma unroll
    for (int i = 0; i < THREAD_M; ++i)
#pragma unroll
        for (int j = 0; j < THREAD_N; j += 4) {
            const Four four = {{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}};
            store(place.m + m + i / 4 * 16 + i % 4, place.n + n + j / 4 * 32, four);
        }
}
