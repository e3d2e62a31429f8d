// Sums down the columns of a matrix [rows, columns], by one block over a part of the rows and a few columns.
//
// Threads  COLUMNS x LANES = 256. A warp reads neighbouring columns; lane l of a column adds rows first + l,
//          first + l + LANES, ...; then the first lane adds what the lanes have.
// Shared   256 scalars.
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

// The sum of term(row) over the part's rows, known to every thread of the column.
template <class Term>
static __device__ __forceinline__ Scalar column_sum(Scalar (&partial)[256], const ColumnPart& at, Term term) {
    Scalar sum = 0;
    if (at.inside)
        for (int row = at.first + at.lane; row < at.last; row += LANES) sum += term(row);
    __syncthreads();  // an earlier sum may still be read
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (at.lane == 0) {
        for (int lane = 1; lane < LANES; ++lane) sum += partial[lane * COLUMNS + threadIdx.x];
        partial[threadIdx.x] = sum;
    }
    __syncthreads();
    return partial[threadIdx.x % COLUMNS];
}
