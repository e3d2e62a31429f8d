// Another layout, another type: what comes in as [N, C, H, W], or as pixels of a byte, becomes what the kernels take.
//
// Layout     x dense in any order (convert) or [N, C, pixels] (channels_last); y in the same order, or [N, pixels, C].
// Grid       convert: x, one thread per element. channels_last: x, a block of 32 x 8 threads per 32 x 32 tile of one
//            image's matrix [C, pixels]; tiles along pixels first, then along C, then images.
// Shared     A tile of 32 x 33 scalars: with 33 words a row both its rows and its columns lie in different banks.
// Constants  SOURCE: the type of x; it is converted to SCALAR, rounded to nearest; to a type of 16 bits by way of
//            float.
// Cost       The size of x and y in bytes: bound by memory. The tile makes both sides run along memory.
// Order      No sums.
#include "common.cuh"

#ifndef SOURCE
#error "compile with -DSOURCE=the type to convert from"
#endif

extern "C" __global__ void convert(
    const SOURCE* __restrict__ x,  // [count]
    SCALAR* __restrict__ y,        // [count]
    int count) {
    const long long i = thread_number();
    if (i < count) y[i] = (Scalar)x[i];
}

extern "C" __global__ void channels_last(
    const SOURCE* __restrict__ x,  // [N, C, pixels]
    SCALAR* __restrict__ y,        // [N, pixels, C]
    int N, int C, int pixels) {
    __shared__ Scalar tile[32][33];
    const int across = ceil_div(pixels, 32), down = ceil_div(C, 32), block = (int)blockIdx.x;
    const int pixel = block % across * 32, channel = block / across % down * 32, n = block / across / down;
    const int column = threadIdx.x % 32, first_row = threadIdx.x / 32;
    const SOURCE* from = x + (long long)n * C * pixels;
    SCALAR* to = y + (long long)n * C * pixels;
    for (int row = first_row; row < 32; row += 8)
        if (channel + row < C && pixel + column < pixels)
            tile[row][column] = (Scalar)from[(long long)(channel + row) * pixels + pixel + column];
    __syncthreads();
    for (int row = first_row; row < 32; row += 8)
        if (channel + column < C && pixel + row < pixels)
            to[(long long)(pixel + row) * C + channel + column] = tile[column][row];
}
