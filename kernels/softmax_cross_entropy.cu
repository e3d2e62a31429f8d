// Softmax and log loss of logits in one. With z = logits - max over c of logits[c], so that large ones lose nothing:
//
//     lse = log(sum over c of exp(z[c]))
//     loss = (1 - smoothing) * weight[label] * (lse - z[label])
//            + smoothing / C * sum over c of weight[c] * (lse - z[c])
//
// A row whose label is ignore_index has loss and gradient 0. A label that is no class makes both NaN: the host checks
// labels, but not those of a captured step.
//
// Layout     logits [M, C], C fastest.
// Grid       x: four rows a block, a warp each: neighbouring lanes read neighbouring classes.
// Cost       A row is read two or three times, from the cache after the first: 4 bytes an element forward, 8 backward.
// Order      Lane l adds classes l, l + 32, ...; then the lanes pairwise, in a butterfly: all lanes get the same bits.
#include "math.cuh"

#define WHOLE_WARP 0xffffffffu

static __device__ __forceinline__ Scalar warp_sum(Scalar value) {
#pragma unroll
    for (int bit = 16; bit; bit >>= 1) value += __shfl_xor_sync(WHOLE_WARP, value, bit);
    return value;
}

static __device__ __forceinline__ Scalar row_maximum(const Scalar* row, int C, int lane) {
    Scalar value = -POSITIVE_INFINITY;
    for (int c = lane; c < C; c += 32)
        if (beats(row[c], value)) value = row[c];
#pragma unroll
    for (int bit = 16; bit; bit >>= 1) {
        const Scalar other = __shfl_xor_sync(WHOLE_WARP, value, bit);
        if (beats(other, value)) value = other;
    }
    return value;
}

extern "C" __global__ void __launch_bounds__(128, 1) softmax_cross_entropy_forward(
    const SCALAR* __restrict__ logits,     // [M, C]
    const long long* __restrict__ labels,  // [M]
    const SCALAR* __restrict__ weight,     // [C] or null
    SCALAR* __restrict__ loss,             // [M]
    SCALAR* __restrict__ logsumexp,        // [M]
    int M, int C, SCALAR smoothing, long long ignore_index) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= M) return;  // a whole warp at a time
    const Scalar* at = logits + (long long)row * C;

    const Scalar top = row_maximum(at, C, lane);
    Scalar sum = 0;
    for (int c = lane; c < C; c += 32) sum += scalar_exp(at[c] - top);
    const Scalar lse = scalar_log(warp_sum(sum));

    Scalar spread = 0;
    if (smoothing != 0) {
        for (int c = lane; c < C; c += 32)
            spread = multiply_add(weight ? weight[c] : Scalar(1), lse - (at[c] - top), spread);
        spread = warp_sum(spread);
    }
    if (lane) return;
    const long long label = labels[row];
    Scalar result = 0;
    if (label != ignore_index && (label < 0 || label >= C)) {
        result = NOT_A_NUMBER;
    } else if (label != ignore_index) {
        result = (1 - smoothing) * (weight ? weight[label] : Scalar(1)) * (lse - (at[label] - top));
        if (smoothing != 0) result = multiply_add(smoothing / (Scalar)C, spread, result);
    }
    loss[row] = result;
    logsumexp[row] = lse;
}

// dlogits[c] = dloss * ((1 - smoothing) * weight[label] * (p[c] - [c == label])
//                       + smoothing / C * (p[c] * sum of weight - weight[c])) with p[c] = exp(z[c] - lse).
extern "C" __global__ void __launch_bounds__(128, 1) softmax_cross_entropy_backward(
    const SCALAR* __restrict__ dloss,      // [M]
    const SCALAR* __restrict__ logits,     // [M, C]
    const SCALAR* __restrict__ logsumexp,  // [M]
    const long long* __restrict__ labels,  // [M]
    const SCALAR* __restrict__ weight,     // [C] or null
    SCALAR* __restrict__ dlogits,          // [M, C]
    int M, int C, SCALAR smoothing, long long ignore_index) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= M) return;
    const Scalar* at = logits + (long long)row * C;
    const long long label = labels[row];
    const Scalar top = row_maximum(at, C, lane);
    const bool counted = label != ignore_index, known = label >= 0 && label < C;

    Scalar total = (Scalar)C;
    if (weight && smoothing != 0) {
        total = 0;
        for (int c = lane; c < C; c += 32) total += weight[c];
        total = warp_sum(total);
    }
    Scalar own = 0;
    if (counted) own = known ? (1 - smoothing) * (weight ? weight[label] : Scalar(1)) : Scalar(NOT_A_NUMBER);
    const Scalar even = counted ? smoothing / (Scalar)C : Scalar(0);
    for (int c = lane; c < C; c += 32) {
        const Scalar p = scalar_exp(at[c] - top - logsumexp[row]);
        Scalar slope = p * own - (c == label ? own : Scalar(0));
        const Scalar share = weight ? weight[c] : Scalar(1);
        if (smoothing != 0) slope = multiply_add(even, multiply_add(p, total, -share), slope);
        dlogits[(long long)row * C + c] = dloss[row] * slope;
    }
}
