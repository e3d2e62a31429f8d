// y = FUNCTION(x), to test kernels/math.cuh.
#include "../../kernels/math.cuh"

extern "C" __global__ void math(
    const SCALAR* __restrict__ x,  // [count]
    SCALAR* __restrict__ y,        // [count]
    int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = FUNCTION(x[i]);
}
