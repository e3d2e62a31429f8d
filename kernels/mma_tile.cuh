// One tile of a matrix product y[m, n] = sum over k of a(m, k) * b(k, n) on tensor cores; gemm_tile.cuh is its sibling.
//
// Tiling   A block computes TILE_M x TILE_N outputs and walks k in steps of 16; a warp has WARP_M x WARP_N of them.
//
//              k ->                n ->
//            +------+            +-----------+           Three steps are in shared memory: while one is multiplied,
//          m | a    |          k | b         |           the next two are on their way there (cp.async).
//          | |      |          | +-----------+           A warp's step is WARP_M / 16 * WARP_N / 8 * 2 products of
//          v +------+          v                         16 x 8 by 8 x 8, each one instruction.
//
// Chunks   Memory moves by 16 bytes, four scalars that are neighbours along k ("along") or along m or n ("across"); the
//          sources (sources.cuh) say where they lie. Those of neighbouring rows are swapped (xor) so that neither copies
//          nor reads meet in a bank.
// Rows     A warp's 32 rows of a, or columns of b, belong to 4 tiles of 8 in turn: tile t has t, t + 4, ... t + 28. So
//          four tiles' values are one 16-byte read of a chunk "across", and a lane's results of four tiles are
//          neighbours and are stored by 16 bytes. Where a warp has but 16, they belong to 2 tiles in turn; of 16 columns
//          a lane has two of each tile for a row, which are neighbours too.
// Threads  32 for each warp's part of the tile. Shared: 3 * 16 * (TILE_M + TILE_N) floats.
// Grid     As in gemm_tile.cuh.
// PRODUCTS 1: a and b become TF32 (`about`). 3: each is split into two TF32 numbers whose sum it is, all but 2^-23 of
//          b and 2^-21.4 of a, and of the four products the least is left out: each a * b is off by 2^-20 at most.
//          a is cut and b is rounded, so what is left out has no preferred sign. (Rounding takes an instruction more, and
//          b has fewer.)
// Order    By k. With PRODUCTS 1 each product is added to the sum by the tensor core. It cuts its sums off, which for
//          PRODUCTS 3 would be too much: there the sum of 48 k starts from 0, for each 8 k the small products first, and
//          is added to the others outside. (Ootomo and Yokota, 2022.)
#pragma once
#include "mma_block.cuh"

#if (WARP_M % 32 && (WARP_M != 16 || TILE_M != 16)) || (WARP_N % 32 && (WARP_N != 16 || TILE_N != 16))
#error "the rows of a warp's part, and its columns, are a multiple of 32, or all 16 of a tile"
#endif
#if TILE_M % WARP_M || TILE_N % WARP_N
#error "a tile is a multiple of a warp's part"
#endif
#if PRODUCTS != 1 && PRODUCTS != 3
#error "PRODUCTS is 1 or 3"
#endif

#define ROWS_32 ((WARP_M + 31) / 32)  // 16 count as 32
#define COLUMNS_32 ((WARP_N + 31) / 32)
#define TURNS_M (WARP_M == 16 ? 2 : 4)  // tiles of 8 rows in turn
#define TURNS_N (WARP_N == 16 ? 2 : 4)

// Which chunks of a step's tile, LENGTH rows (of a) or columns (of b) by 16 k, a thread copies, and where they go.
template <int LENGTH, bool ALONG>
struct Chunks {
    static constexpr int STEP = MMA_STEP;
    static constexpr int TURNS = LENGTH % 32 ? 2 : 4;  // tiles of 8 rows in turn
    static constexpr int AT_A_K = MMA_THREADS / STEP;  // threads at each k, across
    static constexpr int COUNT = (LENGTH * STEP / 4 - 1) / MMA_THREADS + 1;
    static constexpr bool ALL = COUNT * 4 * MMA_THREADS == LENGTH * STEP;  // threads copy; else those of the first rows
    static_assert((ALL || COUNT == 1) && MMA_THREADS % 128 == 0, "the same for each thread that copies");

    // The first row of a thread's chunk, and the k of all.
    static __device__ __forceinline__ int row(int i) {
        return ALONG ? threadIdx.x / 4 + i * (MMA_THREADS / 4) : (threadIdx.x % AT_A_K + i * AT_A_K) * 4;
    }
    static __device__ __forceinline__ int k() { return ALONG ? threadIdx.x % 4 * 4 : threadIdx.x / AT_A_K; }
    static constexpr int FURTHER = ALONG ? 4 * MMA_THREADS : 4 * AT_A_K;  // from one of its chunks to the next
    // Where the chunk of this row and k begins in the tile. Of a row "along", 64 bytes; of a k "across".
    static __device__ __forceinline__ int place(int row, int k) {
        return 4 * (ALONG ? (row * 4 + k / 4) ^ (row / TURNS & 7)
                          : k * (LENGTH / 4) + ((row / 4) ^ (TURNS == 4 ? (k & 3) * 2 : k & 2)));
    }

    template <class Source>
    static __device__ __forceinline__ void copy(Scalar* to, Source& source, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (!ALL && row(i) >= LENGTH) break;
            const Chunk chunk = source.chunk(i);
            async_copy_or_zero(to + i * FURTHER, chunk.from, k() < left && chunk.inside);
        }
        source.advance();
    }

    // What a lane reads first for the 32 (or 16) rows from `first`, k = 8 half ... 8 half + 7. The next are NEXT further.
    static constexpr int NEXT = ALONG ? 32 * STEP : 32;
    static __device__ __forceinline__ int start(int first, int half) {
        const int lane = threadIdx.x % 32, across = first + lane / 4 * TURNS;
        return ALONG ? place(first + lane % 8 * TURNS + lane / 8 % 2, half * 8 + lane / 16 * 4)
                     : place(across, half * 8 + lane % 4) + across % 4;
    }

    // The tiles of 8 rows, two by two as multiply_tiles has them: to[i] are rows g of tiles 2 i and 2 i + 1 at k = q,
    // and both again at k = q + 4.
    static __device__ __forceinline__ void read(Scalar (&to)[TURNS / 2][4], const Scalar* from) {
        if (ALONG) {
#pragma unroll
            for (int i = 0; i < TURNS / 2; ++i) load_matrices(to[i], from + i * 2 * STEP);
        } else {
            struct __align__(4 * TURNS) InTurn {
                Scalar at[TURNS];
            };
            const InTurn low = *(const InTurn*)from, high = *(const InTurn*)(from + 4 * LENGTH);
#pragma unroll
            for (int i = 0; i < TURNS / 2; ++i) {
                to[i][0] = low.at[2 * i];
                to[i][1] = low.at[2 * i + 1];
                to[i][2] = high.at[2 * i];
                to[i][3] = high.at[2 * i + 1];
            }
        }
    }
};

// Of 32 rows each two tiles of 16, of 32 columns four of 8; of 16 half as many.
typedef Scalar Sums[ROWS_32][TURNS_M / 2][COLUMNS_32][TURNS_N][4];

// 8 k of 32 (or 16) rows of a or columns of b; with PRODUCTS 3 as two numbers.
template <int TURNS>
struct Fragment {
    Scalar big[TURNS / 2][4];
#if PRODUCTS == 3
    Scalar small[TURNS / 2][4];
#endif

    // Cut to `mask`, the bits that TF32 has, or rounded. (A constant would do; but then the compiler leaves the cut to
    // multiply_tiles, and must move what lies across to where that wants it, by more instructions.)
    template <class Of, bool CUT>
    __device__ __forceinline__ void read(const Scalar* from, int mask) {
        Of::read(big, from);
#pragma unroll
        for (int i = 0; i < 2 * TURNS; ++i) {
            Scalar& x = big[i / 4][i % 4];
#if PRODUCTS == 1
            x = about(x);
#else
            const Scalar all = x;
            x = CUT ? __int_as_float(__float_as_int(all) & mask) : rounded(all);
            small[i / 4][i % 4] = all - x;
#endif
        }
    }
};

static __device__ __forceinline__ void multiply_32(
    Scalar (&sums)[TURNS_M / 2][COLUMNS_32][TURNS_N][4], int y, const Scalar (&a)[TURNS_M / 2][4],
    const Scalar (&b)[TURNS_N / 2][4]) {
#pragma unroll
    for (int i = 0; i < TURNS_M / 2 * TURNS_N; ++i) {
        const int x = i / TURNS_N, j = i % TURNS_N;  // of 16 rows, of 8 columns
        multiply_tiles(sums[x][y][j], a[x], {b[j / 2][j % 2], b[j / 2][j % 2 + 2]});
    }
}

template <class A, class B>
static __device__ __forceinline__ void multiply_step(
    Sums& sums, const Scalar* tile_a, const Scalar* tile_b, const int (&start_a)[2], const int (&start_b)[2],
    int mask) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Scalar *from_a = tile_a + start_a[half], *from_b = tile_b + start_b[half];
        Fragment<TURNS_N> b[COLUMNS_32];
#pragma unroll
        for (int y = 0; y < COLUMNS_32; ++y) b[y].template read<B, false>(from_b + y * B::NEXT, mask);
#pragma unroll
        for (int x = 0; x < ROWS_32; ++x) {
            Fragment<TURNS_M> a;
            a.template read<A, true>(from_a + x * A::NEXT, mask);
#pragma unroll
            for (int y = 0; y < COLUMNS_32; ++y) {
#if PRODUCTS == 3
                multiply_32(sums[x], y, a.small, b[y].big);
                multiply_32(sums[x], y, a.big, b[y].small);
#endif
                multiply_32(sums[x], y, a.big, b[y].big);
            }
        }
    }
}

// store(tile, g, n, four) is called for each four neighbouring sums of a warp's part: in row g of a tile of 8, the warp's
// 0th, 1st, ..., from column n of its own on.
template <class Store>
static __device__ __forceinline__ void store_sums(const Sums& sums, Store store) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int x = 0; x < ROWS_32; ++x)
#pragma unroll
        for (int t = 0; t < TURNS_M; ++t)
#pragma unroll
            for (int y = 0; y < COLUMNS_32; ++y)
#pragma unroll
                for (int e = 0; e < TURNS_N / 2; ++e) {
                    const Scalar(&of)[TURNS_N][4] = sums[x][t / 2][y];
                    const int c = t % 2 * 2, column = y * 32 + (lane % 4 * (TURNS_N / 2) + e) * 4;
#if TURNS_N == 4
                    const Four four = {{of[0][c + e], of[1][c + e], of[2][c + e], of[3][c + e]}};
#else
                    const Four four = {{of[0][c], of[1][c], of[0][c + 1], of[1][c + 1]}};
#endif
                    store(x * TURNS_M + t, lane / 4, column, four);
                }
}

// store(m, n, four) is called for each four neighbouring outputs of the tile; those beyond the matrix too.
template <bool A_ALONG, bool B_ALONG, class SourceA, class SourceB, class Store>
static __device__ __forceinline__ void mma_tile(
    MmaTiles& tiles, const TilePlace& place, int terms, SourceA source_a, SourceB source_b, Store store) {
    typedef Chunks<TILE_M, A_ALONG> A;
    typedef Chunks<TILE_N, B_ALONG> B;
    const int warp = threadIdx.x / 32;
    const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;

    const int mask = terms > 0 ? ~ABOVE_TF32 : 0;  // always the former, which the compiler does not know
    const int to_a = kept(A::place(A::row(0), A::k())), to_b = kept(B::place(B::row(0), B::k()));
    const int start_a[2] = {kept(A::start(m, 0)), kept(A::start(m, 1))};
    const int start_b[2] = {kept(B::start(n, 0)), kept(B::start(n, 1))};
    Sums sums = {};
#pragma unroll 1  // unrolled, it costs registers
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        A::copy(tiles.a[stage] + to_a, source_a, terms - stage * MMA_STEP);
        B::copy(tiles.b[stage] + to_b, source_b, terms - stage * MMA_STEP);
        async_commit();
    }
#pragma unroll 1
    for (int done = 0; done < terms; done += STAGES * MMA_STEP) {
#if PRODUCTS == 3
        Sums sum = {};
#else
        Sums& sum = sums;
#endif
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) {
            if (stage > 0 && done + stage * MMA_STEP >= terms) break;
            const int next = stage + STAGES - 1, left = terms - done - next * MMA_STEP;
            async_wait<STAGES - 2>();
            __syncthreads();  // the stage has landed, and all have read the one that is written next
            A::copy(tiles.a[next % STAGES] + to_a, source_a, left);
            B::copy(tiles.b[next % STAGES] + to_b, source_b, left);
            async_commit();
            multiply_step<A, B>(sum, tiles.a[stage], tiles.b[stage], start_a, start_b, mask);
        }
#if PRODUCTS == 3
#pragma unroll
        for (int i = 0; i < WARP_M * WARP_N / 32; ++i) (&sums[0][0][0][0][0])[i] += (&sum[0][0][0][0][0])[i];
#endif
    }
    async_wait<0>();  // no copy outlives the block
    store_sums(sums, [=](int tile, int g, int column, const Four& four) {
        store(place.m + m + tile / TURNS_M * 32 + g * TURNS_M + tile % TURNS_M, place.n + n + column, four);
    });
}
