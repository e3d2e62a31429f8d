// A zoo of seeded bugs: every kernel is right as it stands and has the one bug that its BUG constant puts in.
#include "async_copy.cuh"
#include "common.cuh"
#include "mma.cuh"

#ifndef BUG
#define BUG 0
#endif

// y[block] = sum of 64 elements of x, by a tree in shared memory.
extern "C" __global__ void __launch_bounds__(64) tree_sum(
    const SCALAR* __restrict__ x,  // [blocks, 64]
    SCALAR* __restrict__ y,        // [blocks]
    int blocks) {
    __shared__ Scalar part[64];
    const int t = threadIdx.x;
    part[t] = x[blockIdx.x * 64 + t];
#if BUG != 1  // a dropped barrier
    __syncthreads();
#endif
    for (int step = 32; step > 0; step /= 2) {
#if BUG == 2  // a barrier that only some threads reach
        if (t < step) {
            part[t] += part[t + step];
            __syncthreads();
        }
#elif BUG == 3  // off by one in shared memory
        if (t <= step) part[t] += part[t + step + (t == step && step == 32)];
        __syncthreads();
#else
        if (t < step) part[t] += part[t + step];
        __syncthreads();
#endif
    }
    if (t == 0) y[blockIdx.x] = part[0];
}

// y = 2 x, one thread an element.
extern "C" __global__ void twice(
    const SCALAR* __restrict__ x,  // [count]
    SCALAR* __restrict__ y,        // [count]
    int count) {
    const int i = blockIdx.x * 32 + threadIdx.x;
#if BUG == 4  // <= for <
    if (i <= count) y[i] = 2 * x[i];
#elif BUG == 5  // off by one in global memory
    if (i < count) y[i] = 2 * x[i + 1];
#elif BUG == 6  // an element that nobody writes
    if (i < count && i != 5) y[i] = 2 * x[i];
#elif BUG == 7  // float for an int index
    const float at = i;
    if (i < count) y[i] = 2 * x[(int)at];
#elif BUG == 8  // every block writes the same place
    if (i < count) y[threadIdx.x] = 2 * x[i];
#elif BUG == 9  // a loop that never ends
    for (volatile int j = 0; j < 1; j = j * 1) {}
    if (i < count) y[i] = 2 * x[i];
#else
    if (i < count) y[i] = 2 * x[i];
#endif
}

// y[h, w] = sum over the row of x.
extern "C" __global__ void row_sum(
    const SCALAR* __restrict__ x,  // [H, W]
    SCALAR* __restrict__ y,        // [H]
    int H, int W) {
    const int h = threadIdx.x;
    if (h >= H) return;
#if BUG == 10  // an accumulator that nobody set
    Scalar sum;
#else
    Scalar sum = 0;
#endif
#if BUG == 11  // h and w swapped
    for (int w = 0; w < W; ++w) sum += x[h * H + w];
#else
    for (int w = 0; w < W; ++w) sum += x[h * W + w];
#endif
    y[h] = sum;
}

// y = x through shared memory, by an asynchronous copy of four floats a thread.
extern "C" __global__ void __launch_bounds__(32) copy_async(
    const float* __restrict__ x,  // [128]
    float* __restrict__ y         // [128]
) {
    __shared__ __align__(16) float tile[128];
    const int t = threadIdx.x;
    async_copy(&tile[4 * t], &x[4 * t]);
    async_commit();
#if BUG != 12  // a missing wait
    async_wait<0>();
#endif
    __syncthreads();
    for (int i = 0; i < 4; ++i) y[32 * i + t] = tile[32 * i + t];
}

// y[t] = x[t ^ 1], by a shuffle in the warp.
extern "C" __global__ void __launch_bounds__(64) swap_neighbours(
    const SCALAR* __restrict__ x,  // [64]
    SCALAR* __restrict__ y         // [64]
) {
    const int t = threadIdx.x;
    Scalar value = x[t];
#if BUG == 13  // a shuffle that half of the warp does not reach
    if (t % 32 < 16) value = __shfl_xor_sync(0xffffffff, value, 1);
#else
    value = __shfl_xor_sync(0xffffffff, value, 1);
#endif
    y[t] = value;
}

// y = a b on a tensor core, by one warp.
extern "C" __global__ void tensor_core(
    const float* __restrict__ a,  // [16, 8]
    const float* __restrict__ b,  // [8, 8]
    float* __restrict__ y         // [16, 8]
) {
    __shared__ __align__(16) float tile[16][8];
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    for (int i = lane; i < 128; i += 32) tile[i / 8][i % 8] = a[i];
    __syncthreads();
    float left[4], sum[4] = {0, 0, 0, 0};
#if BUG == 14  // rows that are not in shared memory
    (void)tile;
    load_matrices(left, a + lane % 16 * 8 + lane / 16 * 4);
#else
    load_matrices(left, &tile[lane % 16][lane / 16 * 4]);
#endif
    const float right[2] = {b[q * 8 + g], b[(q + 4) * 8 + g]};
#if BUG == 15  // a lane that does not come
    if (lane != 5) multiply_tiles(sum, left, right);
#else
    multiply_tiles(sum, left, right);
#endif
    for (int i = 0; i < 4; ++i) y[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sum[i];
}

// Reads an output before anything is in it.
extern "C" __global__ void reads_its_output(
    SCALAR* __restrict__ y,  // [count]
    int count) {
    y[threadIdx.x] += 1;
}

// An index beyond a declared array, known only when it runs.
extern "C" __global__ void local_array(
    const int* __restrict__ at,  // [1]
    SCALAR* __restrict__ y       // [1]
) {
    Scalar values[4];
    for (int i = 0; i < 4; ++i) values[i] = Scalar(i);
    y[0] = values[at[0]];
}

// y = x, four elements a thread, by 16-byte accesses.
extern "C" __global__ void copy_fours(
    const SCALAR* __restrict__ x,  // [count]
    SCALAR* __restrict__ y,        // [count]
    int count) {
    const int i = 4 * threadIdx.x;
    if (i >= count) return;
    Four four = *(const Four*)(x + i);
    for (int j = 0; j < 4; ++j) four.at[j] += 0;
    *(Four*)(y + i) = four;
}
