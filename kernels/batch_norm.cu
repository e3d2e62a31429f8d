// Batch normalisation: y = (x - mean) * invstd * weight + bias per channel, its statistics and its gradient.
//
// Layout     x, y, dx, dy [rows, C] with rows = N*H*W: channels fastest.
//            What a channel has one of is Scalar, whatever x is.
// Grid       Sums over rows: column_sum.cuh, then a launch with one thread per channel that puts the parts together.
//            The rest: four neighbouring elements a thread.
// Shared     256 scalars, for the sums.
// Constants  COLUMNS for the sums; TRAINING 1 or 0 for the gradient: whether mean and invstd depend on x.
// Cost       Forward: x read once for the statistics (a part's second reading finds it in the cache) and once more, y
//            written: 12 bytes an element. Backward: dy and x twice, dx: 20 bytes. Bound by memory.
// Order      column_sum.cuh within a part, then the parts in order.
#include "common.cuh"

#ifdef COLUMNS
#include "column_sum.cuh"

// Of each part of the rows: the mean, and the sum of squared distances from it. Two passes, so that a mean far larger
// than the deviation costs no digits.
extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(
    const SCALAR* __restrict__ x,  // [rows, C]
    Scalar* __restrict__ means,    // [parts, C]
    Scalar* __restrict__ squares,  // [parts, C]
    int rows, int C, int parts, int length) {
    __shared__ Scalar partial[256];
    const ColumnPart at = column_part(rows, C, length);
    const Scalar sum = column_sum(partial, at, [=](int row) { return x[(long long)row * C + at.column]; });
    const Scalar mean = sum / (Scalar)(at.last - at.first);
    const Scalar square = column_sum(partial, at, [=](int row) {
        const Scalar deviation = x[(long long)row * C + at.column] - mean;
        return deviation * deviation;
    });
    if (at.inside && at.lane == 0) {
        means[(long long)at.part * C + at.column] = mean;
        squares[(long long)at.part * C + at.column] = square;
    }
}

// Of each part of the rows: the sums of dy and of dy * (x - mean).
extern "C" __global__ void __launch_bounds__(256) batch_norm_backward_sums(
    const SCALAR* __restrict__ dy,    // [rows, C]
    const SCALAR* __restrict__ x,     // [rows, C]
    const Scalar* __restrict__ mean,  // [C]
    Scalar* __restrict__ sums,        // [parts, C]
    Scalar* __restrict__ products,    // [parts, C]
    int rows, int C, int parts, int length) {
    __shared__ Scalar partial[256];
    const ColumnPart at = column_part(rows, C, length);
    const Scalar center = at.inside ? mean[at.column] : Scalar(0);
    const Scalar sum = column_sum(partial, at, [=](int row) { return dy[(long long)row * C + at.column]; });
    const Scalar product = column_sum(partial, at, [=](int row) {
        const long long i = (long long)row * C + at.column;
        return dy[i] * (x[i] - center);
    });
    if (at.inside && at.lane == 0) {
        sums[(long long)at.part * C + at.column] = sum;
        products[(long long)at.part * C + at.column] = product;
    }
}

#else

// Mean and variance of all rows from those of the parts, by the formula of Chan, Golub and LeVeque (1979).
extern "C" __global__ void batch_norm_statistics_combine(
    const Scalar* __restrict__ means,    // [parts, C]
    const Scalar* __restrict__ squares,  // [parts, C]
    Scalar* __restrict__ mean,           // [C]
    Scalar* __restrict__ variance,       // [C]
    int rows, int parts, int length, int C) {
    const long long c = thread_number();
    if (c >= C) return;
    Scalar average = means[c], square = squares[c];
    for (int part = 1; part < parts; ++part) {
        const int before = part * length, here = min(length, rows - before);
        const Scalar share = (Scalar)here / (Scalar)(before + here);
        const Scalar step = means[(long long)part * C + c] - average;
        average = multiply_add(step, share, average);
        square += multiply_add(step * step, share * (Scalar)before, squares[(long long)part * C + c]);
    }
    mean[c] = average;
    variance[c] = square / (Scalar)rows;
}

// dbias = sum of dy, dweight = invstd * sum of dy * (x - mean), from the parts.
extern "C" __global__ void batch_norm_backward_combine(
    const Scalar* __restrict__ sums,      // [parts, C]
    const Scalar* __restrict__ products,  // [parts, C]
    const Scalar* __restrict__ invstd,    // [C]
    Scalar* __restrict__ dweight,         // [C]
    Scalar* __restrict__ dbias,           // [C]
    int parts, int C) {
    const long long c = thread_number();
    if (c >= C) return;
    Scalar sum = sums[c], product = products[c];
    for (int part = 1; part < parts; ++part) {
        sum += sums[(long long)part * C + c];
        product += products[(long long)part * C + c];
    }
    dbias[c] = sum;
    dweight[c] = product * invstd[c];
}

extern "C" __global__ void batch_norm_forward(
    const SCALAR* __restrict__ x,       // [count]
    const Scalar* __restrict__ mean,    // [C]
    const Scalar* __restrict__ invstd,  // [C]
    const Scalar* __restrict__ weight,  // [C] or null
    const Scalar* __restrict__ bias,    // [C] or null
    SCALAR* __restrict__ y,             // [count]
    int C, int count) {
    const long long first = 4 * thread_number();
    if (first >= count) return;
    const int left = count - (int)first;
    Four four = load_four(x + first, left);
    int c = (int)first % C;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Scalar scale = weight ? invstd[c] * weight[c] : invstd[c];
        four.at[i] = multiply_add(four.at[i] - mean[c], scale, bias ? bias[c] : Scalar(0));
        c = c + 1 < C ? c + 1 : 0;
    }
    store_four(y + first, four, left);
}

#ifdef TRAINING

// dx = weight * invstd * (dy - (dbias + xhat * dweight) / rows) with xhat = (x - mean) * invstd; the second term only
// if mean and invstd came from x.
extern "C" __global__ void batch_norm_backward(
    const SCALAR* __restrict__ dy,       // [count]
    const SCALAR* __restrict__ x,        // [count]
    const Scalar* __restrict__ mean,     // [C]
    const Scalar* __restrict__ invstd,   // [C]
    const Scalar* __restrict__ weight,   // [C] or null
    const Scalar* __restrict__ dweight,  // [C]
    const Scalar* __restrict__ dbias,    // [C]
    SCALAR* __restrict__ dx,             // [count]
    int C, int count) {
    const long long first = 4 * thread_number();
    if (first >= count) return;
    const int left = count - (int)first;
    Four four = load_four(dy + first, left);
#if TRAINING
    const Four at = load_four(x + first, left);
    const Scalar rows = (Scalar)(count / C);
#endif
    int c = (int)first % C;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if TRAINING
        const Scalar xhat = (at.at[i] - mean[c]) * invstd[c];
        four.at[i] -= multiply_add(xhat, dweight[c], dbias[c]) / rows;
#endif
        four.at[i] *= weight ? invstd[c] * weight[c] : invstd[c];
        c = c + 1 < C ? c + 1 : 0;
    }
    store_four(dx + first, four, left);
}

#endif
#endif
