// Activations: y = f(x) and dx = dy * f'(x), elementwise; and dx with the sums that are a bias's gradient.
//
// Layout     Any: elements in storage order. With a bias [rows, K], rows = N*P*Q.
// Grid       x: four neighbouring elements a thread, read and written by 16-byte accesses. With a bias column_sum.cuh.
// Constants  KIND: one of activation.cuh's names; COLUMNS where there is a bias.
// Cost       8 bytes an element forward, 12 backward (float), with a bias too: bound by memory, for gelu too.
// Order      No sums but the bias's: as in bias_backward, to the bit.
#include "activation.cuh"

#if KIND == NONE
#error "there is no kernel for no activation"
#endif

#ifdef COLUMNS
#include "column_sum.cuh"

// dx = dy * f', and of each part of the rows their sum db; sum_parts adds the parts. `y` is what the activation gave.
extern "C" __global__ void __launch_bounds__(256) activation_bias_backward(
    const SCALAR* __restrict__ dy,  // [rows, K]
    const SCALAR* __restrict__ y,   // [rows, K]
    SCALAR* __restrict__ dx,        // [rows, K]
    Scalar* __restrict__ db,        // [parts, K]
    int rows, int K, int parts, int length) {
    __shared__ Scalar partial[256];
    const ColumnPart at = column_part(rows, K, length);
    const Scalar sum = column_sum(partial, at, [=](int row) -> Scalar {
        const long long i = (long long)row * K + at.column;
        SCALAR stored;  // what bias_backward would read
        stored = share(dy[i], y[i], 0);
        dx[i] = stored;
        return stored;
    });
    if (at.inside && at.lane == 0) db[(long long)at.part * K + at.column] = sum;
}

#else

extern "C" __global__ void activation_forward(
    const SCALAR* __restrict__ x,  // [count]
    SCALAR* __restrict__ y,        // [count]
    Scalar parameter, int count) {
    const long long first = 4 * thread_number();
    if (first >= count) return;
    const int left = count - (int)first;
    Four four = load_four(x + first, left);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.at[i] = activated(four.at[i], parameter);
    store_four(y + first, four, left);
}

extern "C" __global__ void activation_backward(
    const SCALAR* __restrict__ dy,     // [count]
    const SCALAR* __restrict__ saved,  // [count]
    SCALAR* __restrict__ dx,           // [count]
    Scalar parameter, int count) {
    const long long first = 4 * thread_number();
    if (first >= count) return;
    const int left = count - (int)first;
    Four four = load_four(dy + first, left);
    const Four at = load_four(saved + first, left);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.at[i] = share(four.at[i], at.at[i], parameter);
    store_four(dx + first, four, left);
}

#endif
