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
// Chunks   Memory moves by 16 bytes, four scalars that are neighbours along k ("along") or along m or n ("across").
//          Chunks of neighbouring rows are swapped (xor) so that neither copies nor reads meet in a bank.
// Rows     A warp's 32 rows of a, or columns of b, belong to 4 tiles of 8 in turn: tile t has t, t + 4, ... t + 28. So
//          four tiles' values are one 16-byte read of a chunk "across", and a lane's results of four tiles are
//          neighbours and are stored by 16 bytes.
// Threads  32 for each warp's part of the tile. Shared: 3 * 16 * (TILE_M + TILE_N) floats.
// Grid     As in gemm_tile.cuh.
// PRODUCTS 1: a and b become TF32 (`about`). 3: each is split into two TF32 numbers whose sum it is, all but 2^-23 of
//          b and 2^-21.4 of a, and of the four products the least is left out: each a * b is off by 2^-20 at most.
//          a is cut and b is rounded, so what is left out has no preferred sign. (Rounding takes an instruction more, and
//          b has fewer. But a across is rounded too: cut, it would have to be moved to where an instruction wants it.)
// Order    In steps of 16 k. With PRODUCTS 1 each step is added to the sum by the tensor core. It cuts its sums off,
//          which for PRODUCTS 3 would be too much: there a step's sum starts from 0, first the small products, and is
//          added to the others outside. (Ootomo and Yokota, 2022.)
#pragma once
#include "async_copy.cuh"
#include "mma.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(WARP_M) || !defined(WARP_N) || !defined(PRODUCTS)
#error "compile with -DTILE_M, -DTILE_N, -DWARP_M, -DWARP_N and -DPRODUCTS"
#endif
#if WARP_M % 32 || WARP_N % 32 || TILE_M % WARP_M || TILE_N % WARP_N || (PRODUCTS != 1 && PRODUCTS != 3)
#error "a warp's part is a multiple of 32 x 32, a tile a multiple of it; PRODUCTS is 1 or 3"
#endif

#define STEP 16
#define STAGES 3
#define WARPS_N (TILE_N / WARP_N)
#define MMA_THREADS (TILE_M / WARP_M * WARPS_N * 32)
#define ROWS_32 (WARP_M / 32)
#define COLUMNS_32 (WARP_N / 32)

// The shared memory of a block; a kernel declares one and hands it over.
struct __align__(128) MmaTiles {
    Scalar a[STAGES][TILE_M * STEP];
    Scalar b[STAGES][TILE_N * STEP];
};

// Four neighbouring scalars in memory; zeros if they are not inside.
struct Chunk {
    const Scalar* from;
    bool inside;
};

// Which chunks of a step's tile, LENGTH rows (of a) or columns (of b) by 16 k, a thread copies, and where they go.
template <int LENGTH, bool ALONG>
struct Chunks {
    static constexpr int COUNT = LENGTH * STEP / 4 / MMA_THREADS;
    static_assert(COUNT * 4 * MMA_THREADS == LENGTH * STEP && MMA_THREADS % 128 == 0, "the same for each thread");

    // The first row and k of a thread's chunk.
    static __device__ __forceinline__ int row(int i) {
        return ALONG ? threadIdx.x / 4 + i * (MMA_THREADS / 4) : threadIdx.x % (LENGTH / 4) * 4;
    }
    static __device__ __forceinline__ int k(int i) {
        return ALONG ? threadIdx.x % 4 * 4 : threadIdx.x / (LENGTH / 4) + i * (MMA_THREADS / (LENGTH / 4));
    }
    // Where the chunk of this row and k begins in the tile. Of a row "along", 64 bytes; of a k "across".
    static __device__ __forceinline__ int place(int row, int k) {
        return 4 * (ALONG ? (row * 4 + k / 4) ^ (row / 4 & 7) : k * (LENGTH / 4) + ((row / 4) ^ ((k & 3) * 2)));
    }

    template <class Source>
    static __device__ __forceinline__ void copy(Scalar* tile, Source& source) {
        Scalar* to = tile + place(row(0), k(0));
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Chunk chunk = source.chunk(i);
            async_copy_or_zero(to + i * 4 * MMA_THREADS, chunk.from, chunk.inside);
        }
        source.advance();
    }

    static constexpr bool ROUND = !ALONG;  // of a; see the top
    // What a lane reads first for the 32 rows from `first`, k = 8 half ... 8 half + 7. The next 32 are NEXT further.
    static constexpr int NEXT = ALONG ? 32 * STEP : 32;
    static __device__ __forceinline__ const Scalar* start(const Scalar* tile, int first, int half) {
        const int lane = threadIdx.x % 32;
        return tile + (ALONG ? place(first + lane % 8 * 4 + lane / 8 % 2, half * 8 + lane / 16 * 4)
                             : place(first + lane / 4 * 4, half * 8 + lane % 4));
    }

    // Four tiles of 8 rows, two by two as multiply_tiles has them: to[i] are rows g of tiles 2 i and 2 i + 1 at k = q,
    // and both again at k = q + 4.
    static __device__ __forceinline__ void read(Scalar (&to)[2][4], const Scalar* from) {
        if (ALONG) {
            load_matrices(to[0], from);
            load_matrices(to[1], from + 2 * STEP);
        } else {
            const Four low = *(const Four*)from, high = *(const Four*)(from + 4 * LENGTH);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                to[i][0] = low.at[2 * i];
                to[i][1] = low.at[2 * i + 1];
                to[i][2] = high.at[2 * i];
                to[i][3] = high.at[2 * i + 1];
            }
        }
    }
};

// Which tile and layer of a rows x columns product this block computes.
struct MmaPlace {
    int m, n, layer;  // the tile's first row and column
};

static __device__ __forceinline__ MmaPlace mma_place(int rows, int columns) {
    const int tiles_m = ceil_div(rows, TILE_M), tiles_n = ceil_div(columns, TILE_N), block = (int)blockIdx.x;
    return {block % tiles_m * TILE_M, block / tiles_m % tiles_n * TILE_N, block / tiles_m / tiles_n};
}

typedef Scalar Sums[ROWS_32][2][COLUMNS_32][4][4];  // of 32 rows each two tiles of 16, of 32 columns four of 8

// The columns 8 j ... 8 j + 7 of b's fragments of 32.
#define COLUMN_TILE(b, j) {b[(j) / 2][(j) % 2], b[(j) / 2][(j) % 2 + 2]}

#if PRODUCTS == 1

template <class A, class B>
static __device__ __forceinline__ void multiply_step(Sums& sums, const Scalar* tile_a, const Scalar* tile_b, int m, int n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Scalar *from_a = A::start(tile_a, m, half), *from_b = B::start(tile_b, n, half);
        Scalar b[COLUMNS_32][2][4];
#pragma unroll
        for (int y = 0; y < COLUMNS_32; ++y) {
            B::read(b[y], from_b + y * B::NEXT);
#pragma unroll
            for (int i = 0; i < 8; ++i) b[y][i / 4][i % 4] = about(b[y][i / 4][i % 4]);
        }
#pragma unroll
        for (int x = 0; x < ROWS_32; ++x) {
            Scalar a[2][4];
            A::read(a, from_a + x * A::NEXT);
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = about(a[i / 4][i % 4]);
#pragma unroll
            for (int y = 0; y < COLUMNS_32; ++y)
#pragma unroll
                for (int i = 0; i < 8; ++i) multiply_tiles(sums[x][i / 4][y][i % 4], a[i / 4], COLUMN_TILE(b[y], i % 4));
        }
    }
}

#else

// Both as `big` and the rest of it as `small`.
static __device__ __forceinline__ void split(Scalar (&big)[2][4], Scalar (&small)[2][4], bool to_nearest) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const Scalar x = big[i / 4][i % 4];
        big[i / 4][i % 4] = to_nearest ? rounded(x) : truncated(x);
        small[i / 4][i % 4] = x - big[i / 4][i % 4];
    }
}

template <class A, class B>
static __device__ __forceinline__ void multiply_step(Sums& sums, const Scalar* tile_a, const Scalar* tile_b, int m, int n) {
    Scalar a[2][ROWS_32][2][4], b[2][COLUMNS_32][2][4], small_b[2][COLUMNS_32][2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Scalar *from_a = A::start(tile_a, m, half), *from_b = B::start(tile_b, n, half);
#pragma unroll
        for (int x = 0; x < ROWS_32; ++x) A::read(a[half][x], from_a + x * A::NEXT);
#pragma unroll
        for (int y = 0; y < COLUMNS_32; ++y) {
            B::read(b[half][y], from_b + y * B::NEXT);
            split(b[half][y], small_b[half][y], true);
        }
    }
#pragma unroll
    for (int x = 0; x < ROWS_32; ++x) {
        Scalar small_a[2][2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) split(a[half][x], small_a[half], A::ROUND);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int y = 0; y < COLUMNS_32; ++y)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    Scalar step[4] = {0, 0, 0, 0};
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        multiply_tiles(step, small_a[half][i], COLUMN_TILE(b[half][y], j));
                        multiply_tiles(step, a[half][x][i], COLUMN_TILE(small_b[half][y], j));
                    }
#pragma unroll
                    for (int half = 0; half < 2; ++half) multiply_tiles(step, a[half][x][i], COLUMN_TILE(b[half][y], j));
#pragma unroll
                    for (int c = 0; c < 4; ++c) sums[x][i][y][j][c] += step[c];
                }
    }
}

#endif

// A source gives the thread's chunks of a step: chunk(i) is the i-th of Chunks<LENGTH, ALONG>, advance() goes 16 k on.
// store(m, n, four) is called for each four neighbouring outputs of the tile; those beyond the matrix too.
template <bool A_ALONG, bool B_ALONG, class SourceA, class SourceB, class Store>
static __device__ __forceinline__ void mma_tile(
    MmaTiles& tiles, const MmaPlace& place, int steps, SourceA source_a, SourceB source_b, Store store) {
    typedef Chunks<TILE_M, A_ALONG> A;
    typedef Chunks<TILE_N, B_ALONG> B;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;

    Sums sums;
#pragma unroll
    for (int i = 0; i < WARP_M * WARP_N / 32; ++i) (&sums[0][0][0][0][0])[i] = 0;

#pragma unroll 1  // unrolled, it costs registers
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        A::copy(tiles.a[stage], source_a);
        B::copy(tiles.b[stage], source_b);
        async_commit();
    }
    int reading = 0, writing = STAGES - 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        async_wait<STAGES - 2>();
        __syncthreads();  // the stage has landed, and all have read the one that is written next
        A::copy(tiles.a[writing], source_a);
        B::copy(tiles.b[writing], source_b);
        async_commit();
        multiply_step<A, B>(sums, tiles.a[reading], tiles.b[reading], m, n);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        writing = writing + 1 == STAGES ? 0 : writing + 1;
    }
    async_wait<0>();  // no copy outlives the block

#pragma unroll
    for (int x = 0; x < ROWS_32; ++x)
#pragma unroll
        for (int t = 0; t < 4; ++t)
#pragma unroll
            for (int y = 0; y < COLUMNS_32; ++y)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Scalar(&of)[4][4] = sums[x][t / 2][y];
                    const int c = t % 2 * 2 + e, row = m + x * 32 + lane / 4 * 4 + t;
                    const int column = n + y * 32 + (lane % 4 * 2 + e) * 4;
                    store(place.m + row, place.n + column, Four{{of[0][c], of[1][c], of[2][c], of[3][c]}});
                }
}

// -- sources of plain matrices ------------------------------------------------------------------------

// What lies beyond the matrix repeats its last row or column, for sums that are not stored.

// A matrix [rows, stride] at array[begin] whose rows run along k: a tile's from row `first`, k from `from` to `to`.
template <int LENGTH>
struct Rows {
    typedef Chunks<LENGTH, true> Own;
    const Scalar* array;
    int k, to, offset[Own::COUNT];

    __device__ __forceinline__ Rows(const Scalar* array, int begin, int rows, int stride, int first, int from, int to)
        : array(array), k(from + Own::k(0)), to(to) {
#pragma unroll
        for (int i = 0; i < Own::COUNT; ++i) offset[i] = begin + min(first + Own::row(i), rows - 1) * stride;
    }
    __device__ __forceinline__ Chunk chunk(int i) const { return {array + (offset[i] + k), k < to}; }
    __device__ __forceinline__ void advance() { k += STEP; }
};

// A matrix [., stride] at array[begin] whose columns run along k: a tile's from column `first`, of `columns`.
template <int LENGTH>
struct Columns {
    typedef Chunks<LENGTH, false> Own;
    const Scalar* array;
    int k, to, stride, offset;

    __device__ __forceinline__ Columns(const Scalar* array, int begin, int columns, int stride, int first, int from, int to)
        : array(array), k(from + Own::k(0)), to(to), stride(stride),
          offset(begin + k * stride + min(first + Own::row(0), columns - 4)) {}
    __device__ __forceinline__ Chunk chunk(int i) const {
        const int further = Own::k(i) - Own::k(0);
        return {array + (offset + further * stride), k + further < to};
    }
    __device__ __forceinline__ void advance() {
        k += STEP;
        offset += STEP * stride;
    }
};

// -- sources that count -------------------------------------------------------------------------------

// A number written by three digits: the last counts to `lows`, the middle one to `middles`.
struct Digits {
    int high, middle, low;
};

static __device__ __forceinline__ Digits digits_of(int n, int middles, int lows) {
    return {n / lows / middles, n / lows % middles, n % lows};
}

static __device__ __forceinline__ void add(Digits& to, const Digits& by, int middles, int lows) {
    to.low += by.low;
    const bool one = to.low >= lows;
    to.low -= one ? lows : 0;
    to.middle += by.middle + one;
    const bool ten = to.middle >= middles;
    to.middle -= ten ? middles : 0;
    to.high += by.high + ten;
}
