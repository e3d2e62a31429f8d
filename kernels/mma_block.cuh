// A block of threads on tensor cores, whatever it multiplies: its warps and its shared memory. mma_tile.cuh and
// half_tile.cuh go on from here.
#pragma once
#include "async_copy.cuh"
#include "mma.cuh"
#include "sources.cuh"
#include "tile.cuh"

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
