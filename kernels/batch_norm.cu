// Batch normalisation: y = f((x - mean) * invstd * weight + bias + residual) per channel, its statistics and its gradient.
//
// Layout     x, y, dx, dy, residual, dr [rows, C] with rows = N*H*W: channels fastest.
//            What a channel has one of is Scalar, whatever x is.
// Grid       Sums over rows: column_sum.cuh, then over their parts. What a channel has: a thread each. The rest: VECTOR
//            neighbouring channels a thread.
// Shared     768 scalars for the statistics, 512 for the sums of the gradient.
// Constants  COLUMNS for the sums; VECTOR for the rest (channels.cuh); KIND, the activation f (activation.cuh): RELU, RELU6,
//            SIGMOID, TANH or NONE; TRAINING 1 or 0 for the gradient: whether mean and invstd depend on x.
// Cost       Forward: x read once for the statistics and once more, y written: 12 bytes an element, 16 with a residual.
//            Backward: dy and x twice, dx: 20 bytes, whatever f is: the y that its slope needs is computed again from x.
//            With a residual y is read once and dr, dy times the slope, is written once and then read in the place of
//            dy: 28 bytes. Bound by memory.
// Order      column_sum.cuh, within a part and over the parts; statistics take eight rows for one.
#ifdef KIND
#include "activation.cuh"
#endif
#include "common.cuh"

#ifdef KIND

// What belongs to a channel.
struct Channel {
    Scalar mean, invstd, scale, shift;
};

static __device__ __forceinline__ Scalar normalised(Scalar x, const Channel& of) {
    return multiply_add(x - of.mean, of.scale, of.shift);
}

// dy times the slope of f, where y = f(normalised(x)), rounded as it was stored.
static __device__ __forceinline__ Scalar sloped(Scalar dy, Scalar x, const Channel& of) {
#if KIND == NONE
    return dy;
#else
    SCALAR y;
    y = activated(normalised(x, of), 0);
    return share(dy, y, 0);
#endif
}

#endif

#ifdef COLUMNS
#include "column_sum.cuh"
#include "moments.cuh"

#ifdef KIND

// Of each part of the rows: the sums of dy' and of dy' * (x - mean), where dy' is dy times the slope of f.
extern "C" __global__ void __launch_bounds__(256) batch_norm_backward_sums(
    const SCALAR* __restrict__ dy,      // [rows, C]
    const SCALAR* __restrict__ x,       // [rows, C]
    const SCALAR* __restrict__ y,       // [rows, C] or null: without a residual
    const Scalar* __restrict__ mean,    // [C]
    const Scalar* __restrict__ invstd,  // [C]
    const Scalar* __restrict__ weight,  // [C] or null
    const Scalar* __restrict__ bias,    // [C] or null
    SCALAR* __restrict__ dr,            // [rows, C] or null: dy', if there is y
    Scalar* __restrict__ sums,          // [parts, C]
    Scalar* __restrict__ products,      // [parts, C]
    int rows, int C, int parts, int length) {
    __shared__ TwoSums partial[256];
    const ColumnPart at = column_part(rows, C, length);
    const int c = min(at.column, C - 1);
    const Channel of = {mean[c], invstd[c], weight ? invstd[c] * weight[c] : invstd[c], bias ? bias[c] : Scalar(0)};
    const TwoSums sum = column_sum(partial, at, [=](int row) -> TwoSums {
        const long long i = (long long)row * C + at.column;
        Scalar share_of_dy;
        if (y) {
            share_of_dy = share(dy[i], y[i], 0);
            dr[i] = share_of_dy;
        } else {
            share_of_dy = sloped(dy[i], x[i], of);
        }
        return {share_of_dy, share_of_dy * (x[i] - of.mean)};
    });
    if (at.inside && at.lane == 0) {
        sums[(long long)at.part * C + at.column] = sum.first;
        products[(long long)at.part * C + at.column] = sum.second;
    }
}

#else

// Of each part of the rows: the mean, counted from the part's first number, and the sum of squared distances from it.
// Rows are taken by eights.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(
    const SCALAR* __restrict__ x,  // [rows, C]
    Scalar* __restrict__ means,    // [parts, C]
    Scalar* __restrict__ squares,  // [parts, C]
    int rows, int C, int parts, int length) {
    __shared__ Moments partial[256];
    const ColumnPart at = column_part(ceil_div(rows, 8), C, length / 8);
    const Scalar origin = x[(long long)at.part * length * C + min(at.column, C - 1)];
    const Moments of_all = column_sum<1>(partial, at, [=](int eight) -> Moments {
        return next_moments(x + (long long)eight * 8 * C + at.column, C, rows - eight * 8, origin);
    });
    if (at.inside && at.lane == 0) {
        means[(long long)at.part * C + at.column] = of_all.mean;
        squares[(long long)at.part * C + at.column] = of_all.square;
    }
}

// Of `every` parts each: the mean, counted from the first number of the first of them, and the sum of squared distances;
// of all parts, if it is so many, the mean itself and the variance. On the way means are counted from the first part's.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics_combine(
    const SCALAR* __restrict__ x,        // [rows, C]
    const Scalar* __restrict__ means,    // [parts, C]
    const Scalar* __restrict__ squares,  // [parts, C]
    Scalar* __restrict__ mean,           // [(parts - 1) / every + 1, C]
    Scalar* __restrict__ variance,       // [(parts - 1) / every + 1, C]
    int rows, int C, int parts, int length, int every) {
    __shared__ Moments partial[256];
    const ColumnPart at = column_part(parts, C, every);
    const int column = min(at.column, C - 1);
    const Scalar from = x[(long long)at.first * length * C + column], origin = means[(long long)at.first * C + column];
    const Moments of_all = column_sum<4>(partial, at, [=](int part) -> Moments {
        const long long i = (long long)part * C + at.column;
        const Scalar further = x[(long long)part * length * C + at.column] - from;
        return {(Scalar)min(length, rows - part * length), further + means[i] - origin, squares[i]};
    });
    if (at.inside && at.lane == 0) {
        const long long i = (long long)at.part * C + at.column;
        const Scalar further = origin + of_all.mean;
        mean[i] = every < parts ? further : from + further;
        variance[i] = every < parts ? of_all.square : of_all.square / (Scalar)rows;
    }
}

// dbias = sum of dy', dweight = invstd * sum of dy' * (x - mean), from the parts.
extern "C" __global__ void __launch_bounds__(256) batch_norm_backward_combine(
    const Scalar* __restrict__ sums,      // [parts, C]
    const Scalar* __restrict__ products,  // [parts, C]
    const Scalar* __restrict__ invstd,    // [C]
    Scalar* __restrict__ dweight,         // [C]
    Scalar* __restrict__ dbias,           // [C]
    int C, int parts) {
    __shared__ TwoSums partial[256];
    const ColumnPart at = column_part(parts, C, parts);
    const TwoSums of_all = column_sum(partial, at, [=](int part) -> TwoSums {
        const long long i = (long long)part * C + at.column;
        return {sums[i], products[i]};
    });
    if (at.inside && at.lane == 0) {
        dbias[at.column] = of_all.first;
        dweight[at.column] = of_all.second * invstd[at.column];
    }
}

#endif

#elif !defined(KIND)

// What follows from the statistics of each channel: invstd = 1 / sqrt(variance + eps); scale and shift, with which
// scale * x + shift is the normalised x; and the running statistics go `momentum` of their way to this batch's, the
// variance to `unbiased` times its own.
extern "C" __global__ void batch_norm_invstd(
    const SCALAR* __restrict__ mean,      // [C]
    const SCALAR* __restrict__ variance,  // [C]
    const SCALAR* __restrict__ weight,    // [C] or null
    const SCALAR* __restrict__ bias,      // [C] or null
    SCALAR* __restrict__ invstd,          // [C] or null
    SCALAR* __restrict__ scale,           // [C] or null, as shift
    SCALAR* __restrict__ shift,           // [C] or null
    SCALAR* __restrict__ running_mean,    // [C] or null, in place
    SCALAR* __restrict__ running_var,     // [C] or null, in place
    int C, Scalar eps, Scalar momentum, Scalar unbiased) {
    const int c = (int)thread_number();
    if (c >= C) return;
    const Scalar inverse = 1 / sqrt(variance[c] + eps);
    if (invstd) invstd[c] = inverse;
    if (scale) {
        const Scalar factor = weight ? inverse * weight[c] : inverse, back = -mean[c] * factor;
        scale[c] = factor;
        shift[c] = bias ? back + bias[c] : back;
    }
    if (running_mean) running_mean[c] = running_mean[c] + momentum * (mean[c] - running_mean[c]);
    if (running_var) running_var[c] = running_var[c] + momentum * (unbiased * variance[c] - running_var[c]);
}

#else
#include "channels.cuh"

static __device__ __forceinline__ void load_of(
    Channel (&of)[VECTOR], const Scalar* mean, const Scalar* invstd, const Scalar* weight, const Scalar* bias, int c) {
    const Channels<Scalar> means = load_channels(mean + c), invstds = load_channels(invstd + c);
    Channels<Scalar> weights, biases = {};
    if (weight) weights = load_channels(weight + c);
    if (bias) biases = load_channels(bias + c);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const Scalar scale = weight ? invstds.at[i] * weights.at[i] : invstds.at[i];
        of[i] = {means.at[i], invstds.at[i], scale, biases.at[i]};
    }
}

#ifdef TRAINING

// dx = weight * invstd * (dy' - (dbias + xhat * dweight) / rows) with xhat = (x - mean) * invstd; the second term only
// if mean and invstd came from x.
extern "C" __global__ void batch_norm_backward(
    const SCALAR* __restrict__ dy,       // [count]
    const SCALAR* __restrict__ x,        // [count]
    const Scalar* __restrict__ mean,     // [C]
    const Scalar* __restrict__ invstd,   // [C]
    const Scalar* __restrict__ weight,   // [C] or null
    const Scalar* __restrict__ bias,     // [C] or null
    const Scalar* __restrict__ dweight,  // [C]
    const Scalar* __restrict__ dbias,    // [C]
    SCALAR* __restrict__ dx,             // [count]
    int C, int count) {
    const long long first = VECTOR * thread_number();
    if (first >= count) return;
    const int c = (int)first % C;
    Channel of[VECTOR];
    load_of(of, mean, invstd, weight, bias, c);
    const Channels<Scalar> gradients = load_channels(dy + first);
#if TRAINING || KIND != NONE
    const Channels<Scalar> at = load_channels(x + first);
#endif
#if TRAINING
    const Channels<Scalar> dweights = load_channels(dweight + c), dbiases = load_channels(dbias + c);
    const Scalar rows = (Scalar)(count / C);
#endif
    Channels<Scalar> results;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        Scalar gradient = gradients.at[i];
#if KIND != NONE
        gradient = sloped(gradient, at.at[i], of[i]);
#endif
#if TRAINING
        const Scalar xhat = (at.at[i] - of[i].mean) * of[i].invstd;
        gradient -= multiply_add(xhat, dweights.at[i], dbiases.at[i]) / rows;
#endif
        results.at[i] = gradient * of[i].scale;
    }
    store_channels(dx + first, results);
}

#else

extern "C" __global__ void batch_norm_forward(
    const SCALAR* __restrict__ x,         // [count]
    const Scalar* __restrict__ mean,      // [C]
    const Scalar* __restrict__ invstd,    // [C]
    const Scalar* __restrict__ weight,    // [C] or null
    const Scalar* __restrict__ bias,      // [C] or null
    const SCALAR* __restrict__ residual,  // [count] or null
    SCALAR* __restrict__ y,               // [count]
    int C, int count) {
    const long long first = VECTOR * thread_number();
    if (first >= count) return;
    Channel of[VECTOR];
    load_of(of, mean, invstd, weight, bias, (int)first % C);
    const Channels<Scalar> at = load_channels(x + first);
    Channels<Scalar> more = {};
    if (residual) more = load_channels(residual + first);
    Channels<Scalar> results;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const Scalar sum = normalised(at.at[i], of[i]);
        results.at[i] = activated(residual ? sum + more.at[i] : sum, 0);
    }
    store_channels(y + first, results);
}

#endif

#endif
