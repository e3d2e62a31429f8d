// Mean and deviations of numbers, as a batch norm needs them.
//
// Sound    Numbers are counted from the first of their part. A mean far larger than the deviation costs no digits then,
//          and neither does a first number far from all others: it is off the mean by sqrt(count) deviations at most.
// Order    Eight numbers at a time, one after another.
#pragma once
#include "common.cuh"

// A count of numbers, their mean, and the sum of their squared distances from it.
struct Moments {
    Scalar count, mean, square;

    // Those of all of both, by the formula of Chan, Golub and LeVeque (1979).
    __device__ __forceinline__ void operator+=(const Moments& more) {
        if (count == 0) *this = more;
        else if (more.count > 0) {
            const Scalar both = count + more.count, share = more.count / both, step = more.mean - mean;
            mean = multiply_add(step, share, mean);
            square += multiply_add(step * step, share * count, more.square);
            count = both;
        }
    }
};

// Of `count` numbers, at most 8. First their mean is found, then their squares.
template <class Stored>
static __device__ __forceinline__ Moments moments_of(const Stored* from, int stride, int count, Scalar origin) {
    Scalar value[8], sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = i < count ? from[i * stride] - origin : Scalar(0);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += value[i];
    const Scalar mean = sum / (Scalar)count;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const Scalar deviation = i < count ? value[i] - mean : Scalar(0);
        square = multiply_add(deviation, deviation, square);
    }
    return {(Scalar)count, mean, square};
}

// Of the next eight of `left` numbers `stride` apart, or of all if they are fewer; means are counted from `origin`.
template <class Stored>
static __device__ __forceinline__ Moments next_moments(const Stored* from, int stride, int left, Scalar origin) {
    return left >= 8 ? moments_of(from, stride, 8, origin) : moments_of(from, stride, left, origin);
}

// Of the columns of a tile that this block has stored in y [rows, K], by parts of LENGTH rows, one for each thread that
// multiplied: what batch_norm_statistics has of other parts, the means and squares [parts, K]. The tile, of which `columns`
// exist, begins at row m and column k. It is read again: most of it is in a cache still.
template <int ROWS_OF_TILE, int COLUMNS_OF_TILE, int LENGTH>
static __device__ __forceinline__ void tile_moments(
    const RESULT* y, int m, int k, int rows, int columns, int K, Scalar* means, Scalar* squares) {
    static_assert(LENGTH % 8 == 0, "a part is read by eights");
    __syncthreads();  // the tile is stored
    const int row_of_tile = threadIdx.x / COLUMNS_OF_TILE * LENGTH, column = threadIdx.x % COLUMNS_OF_TILE;
    const int first = m + row_of_tile;
    if (row_of_tile >= ROWS_OF_TILE) return;  // of a warp that only copies
    if (first >= rows || column >= columns) return;
    const RESULT* from = y + (long long)first * K + k + column;
    const Scalar origin = *from;
    Moments of_all = {};
#pragma unroll 2
    for (int row = first; row < min(first + LENGTH, rows); row += 8) {
        of_all += next_moments(from, K, rows - row, origin);
        from += 8 * K;
    }
    const long long i = (long long)(first / LENGTH) * K + k + column;
    means[i] = of_all.mean;
    squares[i] = of_all.square;
}
