// One tile of a matrix product y[m, n] = sum over k of a(m, k) * b(k, n) on Hopper's tensor cores, of float16, bfloat16 or
// float, by TF32, with sums in float; half_tile.cuh and mma_tile.cuh are its portable siblings.
//
// Roles    Two warpgroups multiply, half of the tile's rows each, 64 at a time. The warp behind them copies: one of its
//          threads tells the copy engine what to bring, and nobody else computes an address.
// Ring     STAGES steps of TILE_K, 128 bytes of a row. A stage is `full` when its bytes have come, `empty` when all eight
//          warps are done with it, which they know a step later: the tensor cores have begun with the next one then.
//
//              copies       0  1  2  3 |  4  |  5  |  6  |         4 waits until 0 is empty, 5 for 1, ...
//              multiplies      |  0  |  1  |  2  |  3  |  4  |     0 waits until it is full, ...
//
// Types    HALF: float16 or bfloat16. PRODUCTS 1: float, by TF32, read along alone.
// Threads  288. Shared: STAGES * 128 * (TILE_M + TILE_N) bytes and the mbarriers, of dynamic shared memory.
// Grid     As in gemm_tile.cuh.
// Order    By k: each product of 16 k, of float 8, is added to the sum by the tensor core, which cuts its sums off.
#pragma once
#include "tile.cuh"
#include "wgmma.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(TILE_K) || !defined(STAGES) || !defined(DYNAMIC_SHARED)
#error "compile with -DTILE_M, -DTILE_N, -DTILE_K, -DSTAGES and -DDYNAMIC_SHARED"
#endif
#if TILE_M % 128 || (TILE_N != 64 && TILE_N != 128 && TILE_N != 256)
#error "a tile has a multiple of 128 rows, and 64, 128 or 256 columns"
#endif

static_assert(TILE_K * sizeof(SCALAR) == 128, "a step is 128 bytes of a row");

#define AT_ONCE (32 / (int)sizeof(SCALAR))  // k of an instruction
#define ROWS_64 (TILE_M / 128)              // a warpgroup's
#define MULTIPLYING_WARPS 8
#define WGMMA_THREADS ((MULTIPLYING_WARPS + 1) * 32)
#define WGMMA_BLOCKS (DYNAMIC_SHARED <= 112 * 1024 ? 2 : 1)  // that a multiprocessor has room for

struct __align__(1024) WgmmaTiles {
    SCALAR a[STAGES][TILE_M * TILE_K];
    SCALAR b[STAGES][TILE_N * TILE_K];
    Mbarrier full[STAGES], empty[STAGES];
};
static_assert(sizeof(WgmmaTiles) <= DYNAMIC_SHARED, "a block is launched with less shared memory than it uses");

// A block's shared memory. More than 48 KiB must be dynamic; the emulator's is static, of the size that is used.
#ifdef EMULATOR
__shared__ WgmmaTiles wgmma_tiles;
#else
extern __shared__ __align__(1024) unsigned char dynamic_shared[];
#define wgmma_tiles (*(WgmmaTiles*)dynamic_shared)
#endif

// A step of LENGTH rows, from row `row`, of one of the matrices [., K] ("along") or [K, .], by boxes of BOX rows.
template <int LENGTH, int BOX, bool ALONG>
static __device__ __forceinline__ void copy_rows(
    SCALAR* to, const TensorMap<SCALAR>& map, Mbarrier& full, int matrix, int row, int k) {
#pragma unroll
    for (int i = 0; i < LENGTH; i += BOX)
        copy_box(to + i * TILE_K, map, full, ALONG ? Corner{{k, row + i, matrix}} : Corner{{row + i, k, matrix}});
}

// load(a, b, full, step) is called by one thread for each step: it starts copies of a whole stage. There an operand
// "along" has rows of TILE_K, one "across" 64 k of 64 rows, then of the next 64. store(m, n, four) is called for each
// four neighbouring outputs from row m and column n of the tile; those beyond the matrix too.
template <bool A_ALONG, bool B_ALONG, class Load, class Store>
static __device__ __forceinline__ void wgmma_tile(int steps, Load load, Store store) {
    WgmmaTiles& tiles = wgmma_tiles;
    const int lane = threadIdx.x % 32;
    const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);  // the same for all, as the compiler sees then
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(tiles.full[stage], 1);
            mbarrier_init(tiles.empty[stage], MULTIPLYING_WARPS);
        }
        mbarrier_fence();
    }
    __syncthreads();

    if (warp == MULTIPLYING_WARPS) {
        if (lane > 0) return;
        int stage = 0, round = 0;
        for (int step = 0; step < steps; ++step) {
            mbarrier_wait(tiles.empty[stage], (round & 1) ^ 1);
            mbarrier_expect(tiles.full[stage], (int)(sizeof(tiles.a[0]) + sizeof(tiles.b[0])));
            load(tiles.a[stage], tiles.b[stage], tiles.full[stage], step);
            if (++stage == STAGES) {
                stage = 0;
                ++round;
            }
        }
        return;
    }

    float sums[ROWS_64][TILE_N / 2] = {};
    const int first_row = warp / 4 * (TILE_M / 2);
    const Operand first_a = wgmma_operand(&tiles.a[0][first_row * TILE_K], 0);
    const Operand first_b = wgmma_operand(tiles.b[0], 64 * TILE_K * (int)sizeof(SCALAR));
    int stage = 0, round = 0, last = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        mbarrier_wait(tiles.full[stage], round & 1);
        const Operand a = first_a + stage * (sizeof(tiles.a[0]) >> 4), b = first_b + stage * (sizeof(tiles.b[0]) >> 4);
        wgmma_fence(sums);
#pragma unroll
        for (int k = 0; k < TILE_K / AT_ONCE; ++k)
#pragma unroll
            for (int x = 0; x < ROWS_64; ++x)
                wgmma<TILE_N, A_ALONG, B_ALONG>(
                    sums[x], a + k * (A_ALONG ? NEXT_ALONG : NEXT_ACROSS) + x * NEXT_ROWS,
                    b + k * (B_ALONG ? NEXT_ALONG : NEXT_ACROSS), SCALAR());
        wgmma_commit();
        wgmma_wait<1>();  // the step before is done
        if (step > 0 && lane == 0) mbarrier_arrive(tiles.empty[last]);
        last = stage;
        if (++stage == STAGES) {
            stage = 0;
            ++round;
        }
    }
    wgmma_finish(sums);

    const bool lower = lane % 2;  // of rows g and g + 8
    const int row = first_row + warp % 4 * 16 + lane / 4 + (lower ? 8 : 0);
#pragma unroll
    for (int x = 0; x < ROWS_64; ++x)
#pragma unroll
        for (int j = 0; j < TILE_N / 8; ++j)
            store(row + x * 64, j * 8 + lane % 4 / 2 * 4, four_of_a_row(&sums[x][4 * j], lower));
}
