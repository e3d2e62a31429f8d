// Sums down the columns of a matrix [rows, columns], by one block over a part of the rows and a few columns.
//
// Threads  COLUMNS x LANES = 256. A warp reads neighbouring columns; lane l of a column adds rows first + l,
//          first + l + LANES, ...; then the first lane adds what the lanes have.
// Shared   256 sums.
// Order    As said: fixed by the shape of the matrix and the constants alone.
#pragma once
#include "common.cuh"

#ifndef COLUMNS
#error "compile with -DCOLUMNS=8 or 32"
#endif

#define LANES (256 / COLUMNS)

// The columns and rows of a block: tiles of columns first, then parts of `length` rows.
struct ColumnPart {
    int part, column, lane, first, last;
    bool inside;  // whether the column exists
};

static __device__ __forceinline__ ColumnPart column_part(int rows, int columns, int length) {
    const int tiles = ceil_div(columns, COLUMNS);
    ColumnPart at;
    at.part = blockIdx.x / tiles;
    at.lane = threadIdx.x / COLUMNS;
    at.column = blockIdx.x % tiles * COLUMNS + threadIdx.x % COLUMNS;
    at.inside = at.column < columns;
    at.first = at.part * length;
    at.last = min(at.first + length, rows);
    return at;
}

// Two sums at once.
struct TwoSums {
    Scalar first, second;
    __device__ __forceinline__ void operator+=(const TwoSums& more) {
        first += more.first;
        second += more.second;
    }
};

// What the lanes of a column have, added up and known to the first of them.
template <class Sum>
static __device__ __forceinline__ Sum column_total(Sum (&partial)[256], const ColumnPart& at, Sum sum) {
    __syncthreads();  // an earlier sum may still be read
    partial[threadIdx.x] = sum;
    __syncthreads();  // all lanes are in their places
    if (at.lane == 0)
        for (int lane = 1; lane < LANES; ++lane) sum += partial[lane * COLUMNS + threadIdx.x];
    return sum;
}

// The sum of term(row), of type Sum, over the part's rows, known to the column's first lane. So many rows are on their way
// at once.
template <int AT_ONCE = 4, class Sum, class Term>
static __device__ __forceinline__ Sum column_sum(Sum (&partial)[256], const ColumnPart& at, Term term) {
    Sum sum = {};
    if (at.inside) {
#pragma unroll AT_ONCE
        for (int row = at.first + at.lane; row < at.last; row += LANES) sum += term(row);
    }
    return column_total(partial, at, sum);
}
