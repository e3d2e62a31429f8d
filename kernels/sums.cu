// Sums in two stages: parts, then the parts in order. Two runs give equal bits.
//
// Cost       4 bytes a term (float): bound by memory.
#include "common.cuh"

#ifdef COLUMNS
#include "column_sum.cuh"

// db[part, k] = the sum of dy[row, k] over the part's rows; sum_parts adds the parts.
// Layout: dy [rows, K], rows = N*P*Q or N. Grid, shared memory and order: column_sum.cuh. Constants: COLUMNS.
extern "C" __global__ void __launch_bounds__(256) bias_backward(
    const SCALAR* __restrict__ dy,  // [rows, K]
    Scalar* __restrict__ db,        // [parts, K]
    int rows, int K, int parts, int length) {
    __shared__ Scalar partial[256];
    const ColumnPart at = column_part(rows, K, length);
    const Scalar sum = column_sum(partial, at, [=](int row) -> Scalar { return dy[(long long)row * K + at.column]; });
    if (at.inside && at.lane == 0) db[(long long)at.part * K + at.column] = sum;
}

#else

// total[i] = terms[0, i] + terms[1, i] + ... in this order. Grid: x, one thread per element.
extern "C" __global__ void sum_parts(
    const Scalar* __restrict__ terms,  // [parts, count]
    SCALAR* __restrict__ total,        // [count]
    int parts, int count) {
    const long long i = thread_number();
    if (i >= count) return;
    Scalar sum = terms[i];
    for (int part = 1; part < parts; ++part) sum += terms[(long long)part * count + i];
    total[i] = sum;
}

#endif
