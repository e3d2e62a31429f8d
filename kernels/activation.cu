// Activations: y = f(x) and dx = dy * f'(x), elementwise.
//
// Layout     Any: elements in storage order.
// Grid       x: four neighbouring elements a thread, read and written by 16-byte accesses.
// Constants  KIND: one of activation.cuh's names.
// Cost       8 bytes an element forward, 12 backward (float): bound by memory, for gelu too.
// Order      No sums.
#include "activation.cuh"

#if KIND == NONE
#error "there is no kernel for no activation"
#endif

// dy * f'. `saved` is y for the first four kinds, else x.
static __device__ __forceinline__ Scalar share(Scalar dy, Scalar saved, Scalar parameter) {
#if KIND == RELU
    return saved > 0 ? dy : Scalar(0);
#elif KIND == RELU6
    return saved > 0 && saved < 6 ? dy : Scalar(0);
#elif KIND == SIGMOID
    return dy * (saved * (1 - saved));
#elif KIND == TANH
    return dy * (1 - saved * saved);
#else
    const Scalar x = saved;
#if KIND == LEAKY_RELU
    return x > 0 ? dy : dy * parameter;
#elif KIND == ELU
    return x > 0 ? dy : dy * (parameter * scalar_exp(x));
#elif KIND == GELU
    const Scalar density = scalar_exp(Scalar(-0.5) * x * x) * (Scalar(0.5) * SQRT_2_OVER_PI);
    return dy * multiply_add(x, density, Scalar(0.5) * (1 + scalar_erf(x * SQRT_HALF)));
#elif KIND == GELU_TANH
    const Scalar t = scalar_tanh(gelu_argument(x));
    const Scalar slope = SQRT_2_OVER_PI * multiply_add(3 * CUBIC * x, x, Scalar(1));
    return dy * (Scalar(0.5) * (1 + t) + Scalar(0.5) * x * (1 - t * t) * slope);
#elif KIND == SILU
    const Scalar s = sigmoid(x);
    return dy * (s * multiply_add(x, 1 - s, Scalar(1)));
#elif KIND == HARDSWISH
    return dy * (x <= -3 ? Scalar(0) : x >= 3 ? Scalar(1) : x / 3 + Scalar(0.5));
#elif KIND == HARDSIGMOID
    return x > -3 && x < 3 ? dy / 6 : dy * 0;
#else
    return dy * sigmoid(parameter * x);
#endif
#endif
}

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
