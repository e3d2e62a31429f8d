// One tile of a convolution's outputs on tensor cores, from a halo: the inputs of all its taps are loaded once. Stride and
// dilation are 1. mma_tile.cuh, or half_tile.cuh for float16 and bfloat16, has all that is not about the halo.
//
// Tiling   A block computes TILE_M outputs of one image, TILE_M / 8 rows of 8 pixels, times TILE_N filters. It walks the
//          channels in slices of 64 bytes, and in each slice the taps: a step of the product is one tap of a slice.
//
//              8 + S - 1            n ->
//            +-----------+       +-----------+       Two slices of the halo are in shared memory, one on its way there
//            | +-------+ |       | b         |       while the other is multiplied, and three taps of the filters, of
//            | | tap   | |       +-----------+       which two are on their way. For the next tap the same rows of the
//            | | (0,1) | |       one tap,            halo are read one pixel further on: 8 pixels in a row are the
//            | +-------+ |       one slice           8 rows of an ldmatrix.
//            +-----------+
//            TILE_M / 8 + R - 1 rows of pixels
//
// Banks    A pixel is 4 chunks of 16 bytes, chunk i of a pixel in column v at i ^ (v / 2 & 3). The columns of the halo are
//          even in number, so any 8 neighbours in a row lie in different banks, and rows are a constant apart: a lane
//          needs two addresses for each column of the filter, whatever its row.
// Threads  32 for each warp's part of the tile. Shared: 128 (TILE_M / 8 + R - 1) (8 + S - 1, made even) + 192 TILE_N bytes.
// Grid     x: the tiles of an image by rows, the images, the tiles of a group's filters, the groups.
// Order    By slices, and in a slice by taps. With PRODUCTS 3 the sum of a row of taps starts from 0, as that of 48 k in
//          mma_tile.cuh.
#pragma once
#ifdef HALF
#include "half_tile.cuh"
#else
#include "mma_tile.cuh"
#endif
#include "window.cuh"

#if STRIDE_H != 1 || STRIDE_W != 1 || DILATION_H != 1 || DILATION_W != 1 || KERNEL_H * KERNEL_W < STAGES
#error "stride and dilation are 1, and a slice of the halo lands while the taps of another are multiplied"
#endif

#define TILE_P (TILE_M / 8)
#define TILE_Q 8
#define HALO_H (TILE_P + KERNEL_H - 1)
#define HALO_W ((TILE_Q + KERNEL_W) / 2 * 2)
#define TAPS (KERNEL_H * KERNEL_W)

// The shared memory of a block; a kernel declares one and hands it over.
struct __align__(128) HaloTiles {
    SCALAR halo[2][HALO_H * HALO_W * MMA_STEP];
    SCALAR b[STAGES][TILE_N * MMA_STEP];
};

// The tile of outputs [images, P, Q, groups * columns] that this block computes: its image and group, and its first row,
// column and number of an output in the group.
struct HaloPlace {
    int image, group, p, q, n;
};

static __device__ __forceinline__ HaloPlace halo_place(int images, int P, int Q, int columns) {
    const int tiles_p = ceil_div(P, TILE_P), tiles_q = ceil_div(Q, TILE_Q), tiles_n = ceil_div(columns, TILE_N);
    const int block = (int)blockIdx.x, row = block / tiles_q, image = row / tiles_p, n = image / images;
    return {image % images, n / tiles_n, row % tiles_p * TILE_P, block % tiles_q * TILE_Q, n % tiles_n * TILE_N};
}

// A slice of the halo of an image of x [., H, W, C], [HALO_H, HALO_W, MMA_STEP], from row `first_h`, column `first_v` and
// channel `first_c`, of so many channels; zeros around the image. A thread copies one chunk of a column, in each so many
// rows.
struct Halo {
    static constexpr int ROW = HALO_W * MMA_STEP;  // from a row of pixels to the next
    static constexpr int NEXT = 4 * ROW;           // and to the next 32 pixels of a warp
    static constexpr int ROWS = MMA_THREADS / 4 / HALO_W;

    const SCALAR* at;  // in the first row and slice
    const int channels, H, h, further;  // the image's rows; the thread's first; elements from one of its rows to the next
    const bool inside;  // its column is in the image

    __device__ __forceinline__ Halo(
        const SCALAR* x, int H, int W, int C, int channels, int image, int first_h, int first_v, int first_c)
        : at(x + (((image * H + first_h + row()) * W + first_v + column()) * C + first_c + chunk() * CHUNK)),
          channels(channels), H(H), h(first_h + row()), further(ROWS * W * C),
          inside((unsigned int)(first_v + column()) < (unsigned int)W) {}

    static __device__ __forceinline__ int row() { return threadIdx.x / 4 / HALO_W; }
    static __device__ __forceinline__ int column() { return threadIdx.x / 4 % HALO_W; }
    static __device__ __forceinline__ int chunk() { return threadIdx.x % 4; }
    static __device__ __forceinline__ int place(int h, int v, int chunk) {
        return (h * HALO_W + v) * MMA_STEP + (chunk ^ (v / 2 & 3)) * CHUNK;
    }

    // A slice of the channels into its place in shared memory. (What is `kept` here is not found before the loop, for each
    // row, and kept there: there are no registers for it.)
    __device__ __forceinline__ void copy(SCALAR* to, int slice) const {
        const int row = kept(Halo::row()), first = kept(h), step = kept(further);
        const bool some = inside && slice + chunk() * CHUNK < channels;
        if (row >= ROWS) return;
#pragma unroll
        for (int i = 0; i < (HALO_H + ROWS - 1) / ROWS; ++i)
            if (row + i * ROWS < HALO_H)
                async_copy_or_zero(to + place(row, column(), chunk()) + i * ROWS * ROW, at + (i * step + slice),
                                   some && (unsigned int)(first + i * ROWS) < (unsigned int)H);
    }

    // What a lane reads for the rows of pixels from `first`, tap column s and chunks 2 half, 2 half + 1: of 16 pixels the
    // upper 8 or the lower. The tiles' rows g and g + 8 are pixels below each other.
    static __device__ __forceinline__ int start(int first, int s, int half) {
        const int lane = threadIdx.x % 32;
        return place(first + lane / 8 % 2, lane % 8 + s, half * 2 + lane / 16);
    }
#ifndef HALF
    static __device__ __forceinline__ void read(Scalar (&to)[2][4], const Scalar* from) {
        load_matrices(to[0], from);
        load_matrices(to[1], from + 2 * ROW);
    }
#endif
};

// The filters of a group, w [filters, R, S, channels], as columns k along c, or TURNED as columns c across k, from the last
// tap to the first: a step for each tap of a slice.
template <class Place, bool TURNED>
struct Taps {
    const SCALAR* at;
    const int step, wrap;  // to the next tap, and from the last tap to the next slice's first
    int left, number;      // terms that the slice has at most, and its tap
    int offset[Place::COUNT];

    __device__ __forceinline__ Taps(const SCALAR* w, int channels, int filters, int first)
        : at(w + (TURNED ? (Place::k() * TAPS + TAPS - 1) * channels : Place::k())), step(TURNED ? -channels : channels),
          wrap(TURNED ? (Place::STEP * TAPS + TAPS - 1) * channels : Place::STEP - (TAPS - 1) * channels),
          left(TURNED ? filters : channels), number(0) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) {
            const int n = first + Place::row(i);
            offset[i] = TURNED ? min(n, channels - CHUNK) : min(n, filters - 1) * TAPS * channels;
        }
    }
    __device__ __forceinline__ Chunk chunk(int i) const { return {at + offset[i], true}; }
    __device__ __forceinline__ void advance() {
        const bool last = ++number == TAPS;
        at += last ? wrap : step;
        left -= last ? Place::STEP : 0;
        number = last ? 0 : number;
    }
};

// The next tap of the filters into its place; `to` is where a thread's first chunk goes.
template <bool TURNED>
static __device__ __forceinline__ void copy_tap(SCALAR* tile, int to, Taps<Chunks<TILE_N, !TURNED>, TURNED>& taps) {
    typedef Chunks<TILE_N, !TURNED> B;
#ifdef HALF
    // Chunks::copy finds each place anew. Those of a thread differ in bits in which the first has zeros.
#pragma unroll
    for (int i = 0; i < B::COUNT; ++i) {
        const int place = TURNED ? to ^ i * B::AT_A_K * CHUNK : to + i * MMA_THREADS * CHUNK;
        async_copy_or_zero(tile + place, taps.chunk(i).from, B::k() < taps.left);
    }
    taps.advance();
#else
    B::copy(tile + to, taps, taps.left);
#endif
}

// A tap's product is added to the sums. What a lane reads begins at start of the halo's row and start_b of the filters,
// one for each half of a step.
template <bool TURNED>
static __device__ __forceinline__ void multiply_tap(
    Sums& sums, const SCALAR* halo, const SCALAR* tile_b, const int (&start)[2], const int (&start_b)[2], int mask) {
#ifdef HALF
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unsigned int a[4], b[COLUMNS_16][4];
#pragma unroll
        for (int y = 0; y < COLUMNS_16; ++y)
            if (TURNED)
                load_turned(b[y], tile_b + (start_b[half] ^ y * 2 * CHUNK));
            else
                load_matrices(b[y], tile_b + start_b[half] + y * 16 * MMA_STEP);
#pragma unroll
        for (int x = 0; x < ROWS_16; ++x) {
            load_matrices(a, halo + start[half] + x * 2 * Halo::ROW);
#pragma unroll
            for (int y = 0; y < COLUMNS_16; ++y)
#pragma unroll
                for (int j = 0; j < 2; ++j) multiply_tiles(sums[x][y][j], a, {b[y][2 * j], b[y][2 * j + 1]}, SCALAR());
        }
    }
#else
    multiply_step<Halo, Chunks<TILE_N, !TURNED>>(sums, halo, tile_b, start, start_b, mask);
#endif
}

// Where a lane reads the first of a warp's filters, from number n, in a half of a step. Of half types a read is 16 filters,
// two words for the first eight and then two for the others: an instruction takes its operand from two registers in a row.
template <bool TURNED>
static __device__ __forceinline__ int start_of_filters(int n, int half) {
    typedef Chunks<TILE_N, !TURNED> B;
#ifdef HALF
    const int lane = threadIdx.x % 32, eight = n + lane / 16 * 8, k = half * 16 + lane / 8 % 2 * 8;
    return TURNED ? B::place(eight, k + lane % 8) : B::place(eight + lane % 8, k);
#else
    return B::start(n, half);
#endif
}

// store(row, column, n, four) is called for each four neighbouring filters of the tile's pixels, counted from its first;
// those beyond the image and beyond the filters too.
template <bool TURNED, class Store>
static __device__ __forceinline__ void halo_tile(
    HaloTiles& tiles, const Halo& halo, Taps<Chunks<TILE_N, !TURNED>, TURNED> taps, Store store) {
    typedef Chunks<TILE_N, !TURNED> B;
    const int warp = threadIdx.x / 32;
    const int m = warp / WARPS_N * WARP_M, n = warp % WARPS_N * WARP_N;

    int start[KERNEL_W][2];
#pragma unroll
    for (int s = 0; s < KERNEL_W; ++s)
#pragma unroll
        for (int half = 0; half < 2; ++half) start[s][half] = kept(Halo::start(m / 8, s, half));
    const int start_b[2] = {kept(start_of_filters<TURNED>(n, 0)), kept(start_of_filters<TURNED>(n, 1))};
    const int to_b = kept(B::place(B::row(0), B::k()));
    const int mask = halo.channels > 0 ? ~ABOVE_TF32 : 0;  // always the former, which the compiler does not know

    Sums sums = {};
    halo.copy(tiles.halo[0], 0);
#pragma unroll 1  // unrolled, it costs registers
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        copy_tap<TURNED>(tiles.b[stage], to_b, taps);
        async_commit();
    }
    int reading = 0, writing = STAGES - 1;
#pragma unroll 1
    for (int slice = 0; slice < halo.channels; slice += MMA_STEP) {
        const int current = slice / MMA_STEP % 2;
#pragma unroll 1
        for (int r = 0; r < KERNEL_H; ++r) {
            const SCALAR* row = tiles.halo[current] + r * Halo::ROW;
#if PRODUCTS == 3
            Sums sum = {};
#else
            Sums& sum = sums;
#endif
#pragma unroll
            for (int s = 0; s < KERNEL_W; ++s) {
                async_wait<STAGES - 2>();
                __syncthreads();  // the tap has landed, its slice too, and all have read those that are written next
                if (s == 0 && r == 0 && slice + MMA_STEP < halo.channels)
                    halo.copy(tiles.halo[1 - current], slice + MMA_STEP);
                copy_tap<TURNED>(tiles.b[writing], to_b, taps);
                async_commit();
                multiply_tap<TURNED>(sum, row, tiles.b[reading], start[s], start_b, mask);
                reading = reading + 1 == STAGES ? 0 : reading + 1;
                writing = writing + 1 == STAGES ? 0 : writing + 1;
            }
#if PRODUCTS == 3
#pragma unroll
            for (int i = 0; i < WARP_M * WARP_N / 32; ++i) (&sums[0][0][0][0][0])[i] += (&sum[0][0][0][0][0])[i];
#endif
        }
    }
    async_wait<0>();  // no copy outlives the block

    store_sums(sums, [=](int tile, int g, int column, const Four& four) { store(m / 8 + tile, g, n + column, four); });
}
