// One tile of a matrix product on tensor cores, of float16 or bfloat16 with sums in float; mma_tile.cuh is its sibling,
// and what it says of tiling, grid and threads holds here too.
//
// Step     32 k: as many bytes as there. A warp's step is WARP_M / 16 * WARP_N / 8 * 2 products of 16 x 16 by 16 x 8.
// Chunks   16 bytes, eight scalars that are neighbours along k ("along") or along m or n ("across"), are swapped (xor)
//          so that the eight rows of a tile lie in different banks. What lies across is turned as it is read.
// Order    By k: each product of 16 k is added to the sum by the tensor core, which cuts its sums off.
#pragma once
#include "mma_block.cuh"

#if WARP_M % 16 || WARP_N % 16 || TILE_M % WARP_M || TILE_N % WARP_N
#error "a warp's part is a multiple of 16 x 16, a tile a multiple of it"
#endif

#define ROWS_16 (WARP_M / 16)
#define COLUMNS_16 (WARP_N / 16)

// Which chunks of a step's tile, LENGTH rows (of a) or columns (of b) by 32 k, a thread copies, and where they go.
template <int LENGTH, bool ALONG>
struct Chunks {
    static constexpr int STEP = MMA_STEP;
    static constexpr int AT_A_K = MMA_THREADS / STEP;  // threads at each k, across
    static constexpr int COUNT = (LENGTH * STEP / CHUNK - 1) / MMA_THREADS + 1;
    static constexpr bool ALL = COUNT * CHUNK * MMA_THREADS == LENGTH * STEP;  // threads copy; else those of the first rows
    static_assert((ALL || COUNT == 1) && CHUNK == 8, "the same for each thread that copies");

    // The first row of a thread's chunk, and the k of all. Across, neighbouring threads' k are 4 apart, for the banks, but
    // where two k fill them.
    static __device__ __forceinline__ int row(int i) {
        return ALONG ? threadIdx.x / 4 + i * (MMA_THREADS / 4) : (threadIdx.x % AT_A_K + i * AT_A_K) * CHUNK;
    }
    static __device__ __forceinline__ int k() {
        const int n = threadIdx.x / AT_A_K;
        return ALONG ? threadIdx.x % 4 * CHUNK : LENGTH <= 32 ? n : n % 2 * 4 + n / 2 % 4 + n / 8 * 8;
    }
    // Where the chunk of this row and k begins in the tile.
    static __device__ __forceinline__ int place(int row, int k) {
        const int swap = ALONG ? row / 2 & 3 : LENGTH == 16 ? k / 4 & 1 : LENGTH == 32 ? k / 2 & 3 : k & 7;
        return CHUNK * (ALONG ? row * 4 + (k / CHUNK ^ swap) : k * (LENGTH / CHUNK) + (row / CHUNK ^ swap));
    }

    template <class Source>
    static __device__ __forceinline__ void copy(SCALAR* tile, Source& source, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (!ALL && row(i) >= LENGTH) break;
            const Chunk chunk = source.chunk(i);
            async_copy_or_zero(tile + place(row(i), k()), chunk.from, k() < left && chunk.inside);
        }
        source.advance();
    }

    // The 16 rows from `first` at k = 16 half ... 16 half + 15, as multiply_tiles has them of a. Of b, the first two words
    // are columns 0 ... 7, the others 8 ... 15: an instruction takes its operand from two registers in a row.
    static __device__ __forceinline__ void read(unsigned int (&to)[4], const SCALAR* tile, int first, int half, bool of_b) {
        const int lane = threadIdx.x % 32, second = lane / 8 % 2 * 8, third = lane / 16 * 8;  // of the four tiles' places
        const int eight = of_b ? third : second, k = half * 16 + (of_b ? second : third);
        if (ALONG)
            load_matrices(to, tile + place(first + lane % 8 + eight, k));
        else
            load_turned(to, tile + place(first + eight, k + lane % 8));
    }
};

typedef float Sums[ROWS_16][COLUMNS_16][2][4];

template <class A, class B>
static __device__ __forceinline__ void multiply_step(Sums& sums, const SCALAR* tile_a, const SCALAR* tile_b, int m, int n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unsigned int b[COLUMNS_16][4];
#pragma unroll
        for (int y = 0; y < COLUMNS_16; ++y) B::read(b[y], tile_b, n + y * 16, half, true);
#pragma unroll
        for (int x = 0; x < ROWS_16; ++x) {
            unsigned int a[4];
            A::read(a, tile_a, m + x * 16, half, false);
#pragma unroll
            for (int y = 0; y < COLUMNS_16; ++y)
#pragma unroll
                for (int j = 0; j < 2; ++j) multiply_tiles(sums[x][y][j], a, {b[y][2 * j], b[y][2 * j + 1]}, SCALAR());
        }
    }
}

// store(tile, g, n, four) is called for each four neighbouring sums of a warp's part: in row g of a tile of 8, the warp's
// 0th, 1st, ..., from column n of its own on.
template <class Store>
static __device__ __forceinline__ void store_sums(const Sums& sums, Store store) {
    const int lane = threadIdx.x % 32;
    const bool lower = lane % 2;  // of rows g and g + 8
#pragma unroll
    for (int x = 0; x < ROWS_16; ++x)
#pragma unroll
        for (int y = 0; y < COLUMNS_16; ++y)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                store(x * 2 + lower, lane / 4, y * 16 + j * 8 + lane % 4 / 2 * 4, four_of_a_row(sums[x][y][j], lower));
}

// store(m, n, four) is called for each four neighbouring outputs of the tile; those beyond the matrix too.
template <bool A_ALONG, bool B_ALONG, class SourceA, class SourceB, class Store>
static __device__ __forceinline__ void mma_tile(
    MmaTiles& tiles, const TilePlace& place, int terms, SourceA source_a, SourceB source_b, Store store) {
    typedef Chunks<TILE_M, A_ALONG> A;
    typedef Chunks<TILE_N, B_ALONG> B;
    const int warp = threadIdx.x / 32;
    const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;

    Sums sums = {};
#pragma unroll 1  // unrolled, it costs registers
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        A::copy(tiles.a[stage], source_a, terms - stage * MMA_STEP);
        B::copy(tiles.b[stage], source_b, terms - stage * MMA_STEP);
        async_commit();
    }
    int reading = 0, writing = STAGES - 1;
#pragma unroll 1
    for (int done = 0; done < terms; done += MMA_STEP) {
        const int left = terms - done - (STAGES - 1) * MMA_STEP;
        async_wait<STAGES - 2>();
        __syncthreads();  // the stage has landed, and all have read the one that is written next
        A::copy(tiles.a[writing], source_a, left);
        B::copy(tiles.b[writing], source_b, left);
        async_commit();
        multiply_step<A, B>(sums, tiles.a[reading], tiles.b[reading], m, n);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        writing = writing + 1 == STAGES ? 0 : writing + 1;
    }
    async_wait<0>();  // no copy outlives the block
    store_sums(sums, [=](int tile, int g, int column, const Four& four) {
        store(place.m + m + tile * 8 + g, place.n + n + column, four);
    });
}
