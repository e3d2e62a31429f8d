// What the tiles of matrix products have in common, by whatever they are multiplied: the places of the blocks, and how
// results that tensor cores leave are stored by fours.
#pragma once
#include "common.cuh"

// Which tile and layer of a rows x columns product this block computes.
struct TilePlace {
    int m, n, layer;  // the tile's first row and column
};

static __device__ __forceinline__ TilePlace tile_place(int rows, int columns) {
    const int tiles_m = ceil_div(rows, TILE_M), tiles_n = ceil_div(columns, TILE_N), block = (int)blockIdx.x;
    return {block % tiles_m * TILE_M, block / tiles_m % tiles_n * TILE_N, block / tiles_m / tiles_n};
}

// Four neighbouring results. A lane has two of row g and two of row g + 8: it gives one row's to the next lane, and takes
// the other row's. It keeps row g + 8 if `lower`: an odd lane.
static __device__ __forceinline__ Four four_of_a_row(const float* own, bool lower) {
    const float first = __shfl_xor_sync(0xffffffffu, lower ? own[0] : own[2], 1);
    const float second = __shfl_xor_sync(0xffffffffu, lower ? own[1] : own[3], 1);
    return lower ? Four{{first, second, own[2], own[3]}} : Four{{own[0], own[1], first, second}};
}
