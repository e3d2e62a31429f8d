// What becomes of a convolution's sums that were cut into parts: added up in order, then as conv2d.cu applies it.
//
// Layout     terms [parts, pixels, K], y and residual [pixels, K], pixels = N*P*Q; channels-last.
// Grid       x: one thread for VECTOR neighbouring filters of a pixel.
// Constants  VECTOR (channels.cuh); SCALAR is the type of the sums, RESULT that of y; KIND, the activation.
// Cost       A word read for each part and one written: bound by memory.
// Order      Part 0, 1, 2, ...
#include "activation.cuh"
#include "channels.cuh"

// y[i] = f(b[k] + scale[k] * (terms[0, i] + terms[1, i] + ...) + residual[i]), where k = i % K.
extern "C" __global__ void conv2d_sum_parts(
    const SCALAR* __restrict__ terms,     // [parts, pixels, K]
    const RESULT* __restrict__ b,         // [K] or null
    const RESULT* __restrict__ scale,     // [K] or null
    const RESULT* __restrict__ residual,  // [pixels, K] or null
    RESULT* __restrict__ y,               // [pixels, K]
    int parts, int pixels, int K) {
    const long long i = thread_number() * VECTOR;
    if (i >= pixels * K) return;
    Channels<Scalar> sums = load_channels(terms + i);
    for (int part = 1; part < parts; ++part) {
        const Channels<Scalar> more = load_channels(terms + (long long)part * pixels * K + i);
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) sums.at[j] += more.at[j];
    }
#pragma unroll
    for (int j = 0; j < VECTOR; ++j)
        sums.at[j] = conv2d_result(sums.at[j], b, scale, residual, i + j, (int)i % K + j);
    store_channels(y + i, sums);
}
