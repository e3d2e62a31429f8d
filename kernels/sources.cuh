// Where the operands of a tile's product lie in memory: which 16 bytes a thread takes for each step of k.
//
// Chunk    16 bytes, CHUNK scalars that are neighbours in memory: along k, or across it (neighbouring rows or columns);
//          or one scalar.
// Place    The tile says which chunks are a thread's: COUNT of them, all at the same k, in different rows. Place::k() is
//          the first k of the thread's chunks in step 0, Place::row(i) the first row (of a) or column (of b) of the
//          i-th, counted from the tile's own first; a step is Place::STEP k.
// Source   chunk(i) is the thread's i-th of this step; advance() goes on to the next. What is the same for all of them
//          is found once a step. The tile asks for no terms beyond the last; rows beyond the last repeat it, for sums
//          that are not stored.
#pragma once
#include "common.cuh"

#ifndef CHUNK  // gemm_tile.cuh takes one scalar at a time
#define CHUNK ((int)(16 / sizeof(SCALAR)))
#endif

// Zeros if it is not inside; nothing may be read then.
struct Chunk {
    const SCALAR* from;
    bool inside;
};

// The same number, which the compiler keeps in a register from here on: it would find it anew in each step.
static __device__ __forceinline__ int kept(int x) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// A matrix [rows, stride] whose rows run along k: the tile's from row `first` and from k = `from`.
template <class Place>
struct Rows {
    const SCALAR* at;
    int offset[Place::COUNT];

    __device__ __forceinline__ Rows(const SCALAR* matrix, int rows, int stride, int first, int from)
        : at(matrix + from + Place::k()) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) offset[i] = min(first + Place::row(i), rows - 1) * stride;
    }
    __device__ __forceinline__ Chunk chunk(int i) const { return {at + offset[i], true}; }
    __device__ __forceinline__ void advance() { at += Place::STEP; }
};

// A matrix [., stride] whose columns run along k: the tile's from column `first`, of `columns`, and from k = `from`.
template <class Place>
struct Columns {
    const SCALAR* at;
    const int step;
    int offset[Place::COUNT];

    __device__ __forceinline__ Columns(const SCALAR* matrix, int columns, int stride, int first, int from)
        : at(matrix + (from + Place::k()) * stride), step(Place::STEP * stride) {
#pragma unroll
        for (int i = 0; i < Place::COUNT; ++i) offset[i] = min(first + Place::row(i), columns - CHUNK);
    }
    __device__ __forceinline__ Chunk chunk(int i) const { return {at + offset[i], true}; }
    __device__ __forceinline__ void advance() { at += step; }
};

// One of the two, as the matrix lies.
template <class Place, bool ALONG>
struct RowsOrColumns : Rows<Place> {
    using Rows<Place>::Rows;
};
template <class Place>
struct RowsOrColumns<Place, false> : Columns<Place> {
    using Columns<Place>::Columns;
};

// A number written by three digits: the last counts to `lows`, the middle one to `middles`.
struct Digits {
    int high, middle, low;
};

static __device__ __forceinline__ Digits digits_of(int n, int middles, int lows) {
    return {n / lows / middles, n / lows % middles, n % lows};
}

static __device__ __forceinline__ void add(Digits& to, const Digits& by, int middles, int lows) {
    const bool one = to.low >= lows - by.low;
    to.low += one ? by.low - lows : by.low;
    to.middle += one ? by.middle + 1 : by.middle;
    const bool ten = to.middle >= middles;
    to.middle -= ten ? middles : 0;
    to.high += ten ? by.high + 1 : by.high;
}
