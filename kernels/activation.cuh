// The activations as functions of a number: for activation.cu, and for the results of a convolution and of batch
// normalisation on their way to memory.
//
// Constants  KIND: one of the names below; a kernel is compiled for one activation, without branches on the kind.
#pragma once
#include "math.cuh"

#define NONE 0
#define RELU 1
#define RELU6 2
#define SIGMOID 3
#define TANH 4
#define LEAKY_RELU 5
#define ELU 6
#define GELU 7
#define GELU_TANH 8
#define SILU 9
#define HARDSWISH 10
#define HARDSIGMOID 11
#define SOFTPLUS 12

#if !defined(KIND) || KIND < NONE || KIND > SOFTPLUS
#error "compile with -DKIND=NONE, RELU ... SOFTPLUS"
#endif

#define SQRT_HALF Scalar(0.70710678118654752440)
#define SQRT_2_OVER_PI Scalar(0.79788456080286535588)
#define CUBIC Scalar(0.044715)

// Comparisons are written so that a NaN falls through to the arithmetic, which keeps it.
static __device__ __forceinline__ Scalar clamp_to_six(Scalar x) { return x < 0 ? Scalar(0) : x > 6 ? Scalar(6) : x; }

// 1 / (1 + exp(-x)), by exp(-|x|) alone so that nothing overflows.
static __device__ __forceinline__ Scalar sigmoid(Scalar x) {
    const Scalar decay = scalar_exp(x < 0 ? x : -x);
    return (x < 0 ? decay : Scalar(1)) / (1 + decay);
}

static __device__ __forceinline__ Scalar gelu_argument(Scalar x) {
    return SQRT_2_OVER_PI * multiply_add(CUBIC * x * x, x, x);
}

static __device__ __forceinline__ Scalar activated(Scalar x, Scalar parameter) {
#if KIND == NONE
    return x;
#elif KIND == RELU
    return x > 0 || x != x ? x : Scalar(0);
#elif KIND == RELU6
    return x <= 0 ? Scalar(0) : clamp_to_six(x);
#elif KIND == SIGMOID
    return sigmoid(x);
#elif KIND == TANH
    return scalar_tanh(x);
#elif KIND == LEAKY_RELU
    return x > 0 ? x : parameter * x;
#elif KIND == ELU
    return x > 0 ? x : parameter * scalar_expm1(x);
#elif KIND == GELU
    return Scalar(0.5) * x * (1 + scalar_erf(x * SQRT_HALF));
#elif KIND == GELU_TANH
    return Scalar(0.5) * x * (1 + scalar_tanh(gelu_argument(x)));
#elif KIND == SILU
    return x * sigmoid(x);
#elif KIND == HARDSWISH
    return x * clamp_to_six(x + 3) / 6;
#elif KIND == HARDSIGMOID
    return clamp_to_six(x + 3) / 6;
#else
    const Scalar scaled = parameter * x;
    return (x > 0 ? x : Scalar(0)) + scalar_log1p(scalar_exp(scaled > 0 ? -scaled : scaled)) / parameter;
#endif
}

// dy * f'. `saved` is y for the first four kinds, else x.
static __device__ __forceinline__ Scalar share(Scalar dy, Scalar saved, Scalar parameter) {
#if KIND == NONE
    return dy;
#elif KIND == RELU
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
    return dy * (x <= -3 ? Scalar(0) : x < 3 ? x / 3 + Scalar(0.5) : Scalar(1));  // of NaN too, as PyTorch
#elif KIND == HARDSIGMOID
    return x > -3 && x < 3 ? dy / 6 : dy * 0;
#else
    return dy * sigmoid(parameter * x);
#endif
#endif
}

// What becomes of a convolution's sum for filter k, element i of y: times the filter's scale, plus its bias, plus the
// residual's element, activated.
static __device__ __forceinline__ Scalar conv2d_result(
    Scalar sum, const RESULT* b, const RESULT* scale, const RESULT* residual, long long i, int k) {
    if (scale) sum *= scale[k];
    if (b) sum += b[k];
    return activated(residual ? sum + residual[i] : sum, 0);
}

// The same of four neighbouring filters, from k and i on.
static __device__ __forceinline__ Four conv2d_results(
    Four sums, const RESULT* b, const RESULT* scale, const RESULT* residual, long long i, int k) {
    Four more = {};
    if (residual) more = load_four(residual + i, 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (scale) sums.at[j] *= scale[k + j];
        if (b) sums.at[j] += b[k + j];
        sums.at[j] = activated(residual ? sums.at[j] + more.at[j] : sums.at[j], 0);
    }
    return sums;
}
