// The gradient of x[index]: each element of x gets the sum of the shares of where it was taken to.
//
// Layout     Elements by their number in storage order. The host has sorted the shares by destination, keeping order.
// Grid       x: one thread per element of x that was taken.
// Cost       8 bytes a share (float): bound by memory.
// Order      The shares of an element in the order of the index.
#include "common.cuh"

// dx[destinations[i]] = dy[sources[starts[i]]] + ... + dy[sources[starts[i + 1] - 1]]; the rest of dx is 0 already.
extern "C" __global__ void index_backward(
    const SCALAR* __restrict__ dy,         // [shares]
    const int* __restrict__ sources,       // [shares]
    const int* __restrict__ starts,        // [count + 1]
    const int* __restrict__ destinations,  // [count]
    SCALAR* __restrict__ dx,               // [size], in place
    int shares, int size, int count) {
    const long long i = thread_number();
    if (i >= count) return;
    Scalar sum = 0;
    for (int share = starts[i]; share < starts[i + 1]; ++share) sum += dy[sources[share]];
    dx[destinations[i]] = sum;
}
