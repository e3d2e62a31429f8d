// Instance normalisation: y = (x - mean) * invstd * weight + bias, with a mean and an invstd of each channel of each image,
// its statistics and its gradient.
//
// Layout     x, y, dx, dy [N, pixels, C] with pixels = H*W: channels fastest.
//            What an image's channel has one of, and weight and bias, is Scalar, whatever x is.
// Grid       Sums over an image's pixels: column_sum.cuh, a block for a part of one image, then over its parts. The rest:
//            VECTOR neighbouring channels a thread.
// Shared     768 scalars for the statistics, 512 for the sums of the gradient.
// Constants  COLUMNS for the sums; VECTOR for the rest (channels.cuh).
// Cost       Forward: x read once for the statistics and once more, y written: 12 bytes an element. Backward: dy and x twice,
//            dx: 20 bytes. Bound by memory.
// Order      column_sum.cuh, within a part and over the parts of an image; statistics take eight pixels for one.
#include "common.cuh"

#ifdef COLUMNS
#include "column_sum.cuh"
#include "moments.cuh"

// The columns and rows of a block: a part of `length` of an image's pixels; the last part of an image may be shorter.
static __device__ __forceinline__ ColumnPart image_part(int pixels, int C, int length) {
    ColumnPart at = column_part(0, C, length);
    const int parts = ceil_div(pixels, length), image = at.part / parts, within = at.part % parts * length;
    at.first = image * pixels + within;
    at.last = at.first + min(length, pixels - within);
    return at;
}

// Of each part of each image: the mean, counted from the part's first number, and the sum of squared distances from it.
// Pixels are taken by eights.
extern "C" __global__ void __launch_bounds__(256) instance_norm_statistics(
    const SCALAR* __restrict__ x,  // [N, pixels, C]
    Scalar* __restrict__ means,    // [N, parts, C]
    Scalar* __restrict__ squares,  // [N, parts, C]
    int N, int pixels, int C, int parts, int length) {
    __shared__ Moments partial[256];
    ColumnPart at = image_part(pixels, C, length);
    const int count = at.last - at.first;
    const SCALAR* from = x + (long long)at.first * C + min(at.column, C - 1);
    const Scalar origin = *from;
    at.first = 0;
    at.last = ceil_div(count, 8);
    const Moments of_all = column_sum<1>(partial, at, [=](int eight) -> Moments {
        return next_moments(from + (long long)eight * 8 * C, C, count - eight * 8, origin);
    });
    if (at.inside && at.lane == 0) {
        means[(long long)at.part * C + at.column] = of_all.mean;
        squares[(long long)at.part * C + at.column] = of_all.square;
    }
}

// Mean and variance of each image, from its parts.
extern "C" __global__ void __launch_bounds__(256) instance_norm_statistics_combine(
    const SCALAR* __restrict__ x,        // [N, pixels, C]
    const Scalar* __restrict__ means,    // [N, parts, C]
    const Scalar* __restrict__ squares,  // [N, parts, C]
    Scalar* __restrict__ mean,           // [N, C]
    Scalar* __restrict__ variance,       // [N, C]
    int N, int pixels, int C, int parts, int length) {
    __shared__ Moments partial[256];
    const ColumnPart at = column_part(N * parts, C, parts);
    const SCALAR* image = x + (long long)at.part * pixels * C + min(at.column, C - 1);
    const Scalar from = *image;
    const Moments of_all = column_sum<1>(partial, at, [=](int part) -> Moments {
        const long long i = (long long)part * C + at.column;
        const int first = (part - at.first) * length;
        const Scalar further = image[(long long)first * C] - from;
        return {(Scalar)min(length, pixels - first), further + means[i], squares[i]};
    });
    if (at.inside && at.lane == 0) {
        mean[(long long)at.part * C + at.column] = from + of_all.mean;
        variance[(long long)at.part * C + at.column] = of_all.square / (Scalar)pixels;
    }
}

// Of each part of each image: the sums of dy and of dy * (x - mean).
extern "C" __global__ void __launch_bounds__(256) instance_norm_backward_sums(
    const SCALAR* __restrict__ dy,    // [N, pixels, C]
    const SCALAR* __restrict__ x,     // [N, pixels, C]
    const Scalar* __restrict__ mean,  // [N, C]
    Scalar* __restrict__ sums,        // [N, parts, C]
    Scalar* __restrict__ products,    // [N, parts, C]
    int N, int pixels, int C, int parts, int length) {
    __shared__ TwoSums partial[256];
    const ColumnPart at = image_part(pixels, C, length);
    const Scalar center = mean[(long long)(at.part / parts) * C + min(at.column, C - 1)];
    const TwoSums sum = column_sum(partial, at, [=](int pixel) -> TwoSums {
        const long long i = (long long)pixel * C + at.column;
        const Scalar gradient = dy[i];
        return {gradient, gradient * (x[i] - center)};
    });
    if (at.inside && at.lane == 0) {
        sums[(long long)at.part * C + at.column] = sum.first;
        products[(long long)at.part * C + at.column] = sum.second;
    }
}

// What each image adds to dbias and dweight: the sum of dy, and invstd * the sum of dy * (x - mean), from its parts.
extern "C" __global__ void __launch_bounds__(256) instance_norm_backward_combine(
    const Scalar* __restrict__ sums,      // [N, parts, C]
    const Scalar* __restrict__ products,  // [N, parts, C]
    const Scalar* __restrict__ invstd,    // [N, C]
    Scalar* __restrict__ dweights,        // [N, C]
    Scalar* __restrict__ dbiases,         // [N, C]
    int N, int C, int parts) {
    __shared__ TwoSums partial[256];
    const ColumnPart at = column_part(N * parts, C, parts);
    const TwoSums of_all = column_sum(partial, at, [=](int part) -> TwoSums {
        const long long i = (long long)part * C + at.column;
        return {sums[i], products[i]};
    });
    if (at.inside && at.lane == 0) {
        const long long i = (long long)at.part * C + at.column;
        dbiases[i] = of_all.first;
        dweights[i] = of_all.second * invstd[i];
    }
}

#else
#include "channels.cuh"

extern "C" __global__ void instance_norm_forward(
    const SCALAR* __restrict__ x,       // [N, pixels, C]
    const Scalar* __restrict__ mean,    // [N, C]
    const Scalar* __restrict__ invstd,  // [N, C]
    const Scalar* __restrict__ weight,  // [C] or null
    const Scalar* __restrict__ bias,    // [C] or null
    SCALAR* __restrict__ y,             // [N, pixels, C]
    int N, int pixels, int C) {
    const long long first = VECTOR * thread_number();
    if (first >= (long long)N * pixels * C) return;
    const int pixel = (int)first / C, c = (int)first % C, of = pixel / pixels * C + c;
    const Channels<Scalar> means = load_channels(mean + of), invstds = load_channels(invstd + of);
    Channels<Scalar> weights, biases = {};
    if (weight) weights = load_channels(weight + c);
    if (bias) biases = load_channels(bias + c);
    const Channels<Scalar> at = load_channels(x + first);
    Channels<Scalar> results;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const Scalar scale = weight ? invstds.at[i] * weights.at[i] : invstds.at[i];
        results.at[i] = multiply_add(at.at[i] - means.at[i], scale, biases.at[i]);
    }
    store_channels(y + first, results);
}

// dx = weight * invstd * (dy - (dbias + xhat * dweight) / pixels) with xhat = (x - mean) * invstd, dbias and dweight those
// of the image.
extern "C" __global__ void instance_norm_backward(
    const SCALAR* __restrict__ dy,        // [N, pixels, C]
    const SCALAR* __restrict__ x,         // [N, pixels, C]
    const Scalar* __restrict__ mean,      // [N, C]
    const Scalar* __restrict__ invstd,    // [N, C]
    const Scalar* __restrict__ weight,    // [C] or null
    const Scalar* __restrict__ dweights,  // [N, C]
    const Scalar* __restrict__ dbiases,   // [N, C]
    SCALAR* __restrict__ dx,              // [N, pixels, C]
    int N, int pixels, int C) {
    const long long first = VECTOR * thread_number();
    if (first >= (long long)N * pixels * C) return;
    const int pixel = (int)first / C, c = (int)first % C, of = pixel / pixels * C + c;
    const Channels<Scalar> means = load_channels(mean + of), invstds = load_channels(invstd + of);
    const Channels<Scalar> of_weight = load_channels(dweights + of), of_bias = load_channels(dbiases + of);
    Channels<Scalar> weights;
    if (weight) weights = load_channels(weight + c);
    const Channels<Scalar> gradients = load_channels(dy + first), at = load_channels(x + first);
    Channels<Scalar> results;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const Scalar scale = weight ? invstds.at[i] * weights.at[i] : invstds.at[i];
        const Scalar xhat = (at.at[i] - means.at[i]) * invstds.at[i];
        const Scalar shared = multiply_add(xhat, of_weight.at[i], of_bias.at[i]) / (Scalar)pixels;
        results.at[i] = (gradients.at[i] - shared) * scale;
    }
    store_channels(dx + first, results);
}

#endif
