// A block of threads on tensor cores, whatever it multiplies: its warps, its shared memory, its place. mma_tile.cuh and
// half_tile.cuh go on from here.
#pragma once
#include "async_copy.cuh"
#include "mma.cuh"
#include "sources.cuh"

#if !defined(TILE_M) || !defined(TILE_N) || !defined(WARP_M) || !defined(WARP_N)
#error "compile with -DTILE_M, -DTILE_N, -DWARP_M and -DWARP_N"
#endif

#define MMA_STEP ((int)(64 / sizeof(SCALAR)))  // k: 64 bytes of a row
#define STAGES 3
#define WARPS_N (TILE_N / WARP_N)
#define MMA_THREADS (TILE_M / WARP_M * WARPS_N * 32)

// The shared memory of a block; a kernel declares one and hands it over.
struct __align__(128) MmaTiles {
    SCALAR a[STAGES][TILE_M * MMA_STEP];
    SCALAR b[STAGES][TILE_N * MMA_STEP];
};

// Which tile and layer of a rows x columns product this block computes.
struct MmaPlace {
    int m, n, layer;  // the tile's first row and column
};

static __device__ __forceinline__ MmaPlace mma_place(int rows, int columns) {
    const int tiles_m = ceil_div(rows, TILE_M), tiles_n = ceil_div(columns, TILE_N), block = (int)blockIdx.x;
    return {block % tiles_m * TILE_M, block / tiles_m % tiles_n * TILE_N, block / tiles_m / tiles_n};
}
