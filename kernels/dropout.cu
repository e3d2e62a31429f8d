// Dropout: y = x / keep where kept, else 0, with keep = 1 - p. Philox4x32-10 (Salmon et al., SC'11) makes the mask a
// function of seed and offset alone: the same on every backend, and not stored for the backward pass.
//
// Layout     Any: elements in storage order. Element i takes lane i % 4 of counter offset + i / 4.
// Grid       x: one counter a thread, which is four neighbouring elements, moved by 16-byte accesses.
// Cost       8 bytes an element (float), and about 20 integer instructions: bound by memory.
// Order      No sums.
//
// Seed and offset come from memory: a graph that is launched again finds a new offset there.
#include "common.cuh"

struct Words {
    unsigned int at[4];
};

static __device__ __forceinline__ Words philox(unsigned long long counter, unsigned long long seed) {
    unsigned int c0 = (unsigned int)counter, c1 = (unsigned int)(counter >> 32), c2 = 0, c3 = 0;
    unsigned int key0 = (unsigned int)seed, key1 = (unsigned int)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned int high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned int high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c2 = high0 ^ c3 ^ key1;
        c1 = low1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Kept is what has word >> 8 >= threshold, which is p * 2^24 rounded up.
extern "C" __global__ void dropout(
    const SCALAR* __restrict__ x,                     // [count]
    SCALAR* __restrict__ y,                           // [count]
    const unsigned long long* __restrict__ position,  // [2]: seed, offset
    int threshold, Scalar keep, int count) {
    const long long thread = thread_number(), first = 4 * thread;
    if (first >= count) return;
    const int left = count - (int)first;
    const Words words = philox(position[1] + thread, position[0]);
    Four four = load_four(x + first, left);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.at[i] = (int)(words.at[i] >> 8) >= threshold ? four.at[i] / keep : Scalar(0);
    store_four(y + first, four, left);
}
