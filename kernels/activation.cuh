// The activations as functions of a number: for activation.cu, and for a convolution's results on their way to memory.
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

// What becomes of a convolution's sum for filter k: times the filter's scale, plus its bias, activated.
static __device__ __forceinline__ Scalar conv2d_result(Scalar sum, const SCALAR* b, const SCALAR* scale, int k) {
    if (scale) sum *= scale[k];
    return activated(b ? sum + b[k] : sum, 0);
}
