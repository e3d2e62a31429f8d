// exp, expm1, log, log1p, tanh and erf for Scalar, with the same bits on every machine: the libraries of CUDA and of
// the host differ in the last bit, these are only multiply-adds in a fixed order.
//
// float   Own polynomials, near minimax on the reduced range (Chebyshev fits in 40 digits, rounded to float): within
//         2 ulp of the exact value over the whole range, infinities and NaN as in C.
// double  The compiler's own library: used for checks, not for training.
#pragma once
#include "common.cuh"

// 2^n for -126 <= n <= 127.
static __device__ __forceinline__ float power_of_two(int n) {
    return __int_as_float((int)((unsigned int)(n + 127) << 23));
}

// x = n ln 2 + r with |r| <= ln 2 / 2, for |x| < 2^21 ln 2; returns e^r - 1.
// Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits. ln 2 is taken off in two parts: 24 bits
// of it, then the rest.
static __device__ __forceinline__ float reduced_expm1(float x, int& n) {
    const float shifted = fmaf(x, 1.442695041f, 12582912.0f);
    const float whole = shifted - 12582912.0f;
    n = __float_as_int(shifted) - 0x4b400000;
    const float r = fmaf(whole, 1.904654323e-9f, fmaf(whole, -0.693147182f, x));
    float p = 1.3926392e-03f;
    p = fmaf(p, r, 8.363346e-03f);
    p = fmaf(p, r, 4.1666552e-02f);
    p = fmaf(p, r, 1.6666576e-01f);
    p = fmaf(p, r, 0.5f);
    return fmaf(r * r, p, r);
}

static __device__ __forceinline__ float scalar_exp(float x) {
    if (x > 89.0f) return POSITIVE_INFINITY;
    if (x < -104.0f) return 0;
    int n;
    const float t = reduced_expm1(x, n);
    const int half = n >> 1;  // in two factors, for 2^128 and for what lies below 2^-126
    return (1.0f + t) * power_of_two(half) * power_of_two(n - half);
}

// e^x - 1, not losing the small ones to the subtraction.
static __device__ __forceinline__ float scalar_expm1(float x) {
    if (x > 80.0f) return scalar_exp(x);
    if (x < -20.0f) return -1;
    int n;
    const float t = reduced_expm1(x, n);
    const float power = power_of_two(n);
    return fmaf(power, t, power - 1.0f);
}

// log(2^n (1 + f)) for -1/3 <= f <= 1/3.
static __device__ __forceinline__ float log_of_reduced(float f, float n) {
    float p = -1.2125581e-01f;
    p = fmaf(p, f, 1.342575e-01f);
    p = fmaf(p, f, -1.234619e-01f);
    p = fmaf(p, f, 1.411831e-01f);
    p = fmaf(p, f, -1.667014e-01f);
    p = fmaf(p, f, 2.000378e-01f);
    p = fmaf(p, f, -2.4999988e-01f);
    p = fmaf(p, f, 3.333332e-01f);
    const float square = f * f;
    const float rest = fmaf(square * f, p, -0.5f * square);
    return fmaf(n, 0.693147182f, f + rest);
}

// Splits a positive, normal u into 2^n (1 + f): subtracting the bits of 2/3 makes the exponent turn over at 2/3, not 1.
static __device__ __forceinline__ float reduced_log(float u, int& n) {
    n = (__float_as_int(u) - 0x3f2aaaab) >> 23;
    return __int_as_float(__float_as_int(u) - (int)((unsigned int)n << 23)) - 1.0f;
}

static __device__ __forceinline__ float scalar_log(float x) {
    if (!(x > 0) || x == POSITIVE_INFINITY) return x == 0 ? -POSITIVE_INFINITY : x > 0 ? x : NOT_A_NUMBER;
    int n;
    const float f = reduced_log(x, n);
    return log_of_reduced(f, (float)n);
}

// log(1 + x). What 1 + x rounds off is put back into f.
static __device__ __forceinline__ float scalar_log1p(float x) {
    if (!(x > -1) || x == POSITIVE_INFINITY) return x == -1 ? -POSITIVE_INFINITY : x > 0 ? x : NOT_A_NUMBER;
    const float u = 1.0f + x;
    const float lost = x < 1.0f ? x - (u - 1.0f) : 1.0f - (u - x);
    int n;
    float f = reduced_log(u, n);
    f = n == 0 ? f + lost : n < 127 ? fmaf(lost, power_of_two(-n), f) : f;
    return log_of_reduced(f, (float)n);
}

static __device__ __forceinline__ float scalar_tanh(float x) {
    const float magnitude = fabsf(x);
    if (magnitude < 0.6f) {
        const float z = x * x;
        float p = -6.2691197e-03f;
        p = fmaf(p, z, 2.111096e-02f);
        p = fmaf(p, z, -5.387395e-02f);
        p = fmaf(p, z, 1.3332915e-01f);
        p = fmaf(p, z, -3.333333e-01f);
        return fmaf(z * x, p, x);
    }
    return copysignf(1.0f - 2.0f / (scalar_exp(2.0f * magnitude) + 1.0f), x);
}

static __device__ __forceinline__ float scalar_erf(float x) {
    const float magnitude = fabsf(x);
    if (magnitude < 0.925f) {
        const float z = x * x;
        float p = -5.979258e-04f;
        p = fmaf(p, z, 4.991231e-03f);
        p = fmaf(p, z, -2.676556e-02f);
        p = fmaf(p, z, 1.12817965e-01f);
        p = fmaf(p, z, -3.7612492e-01f);
        p = fmaf(p, z, 1.2837915e-01f);
        return fmaf(p, x, x);
    }
    // 1 - erfc: a relative error of erfc <= 0.2 counts little. Beyond 4 erf is 1 to the last bit.
    const float t = magnitude > 4.0f ? 4.0f : magnitude;
    float p = 1.6435697e-06f;
    p = fmaf(p, t, -4.6177913e-05f);
    p = fmaf(p, t, 5.977435e-04f);
    p = fmaf(p, t, -4.7635753e-03f);
    p = fmaf(p, t, 2.6431018e-02f);
    p = fmaf(p, t, -1.1009448e-01f);
    p = fmaf(p, t, -6.3181454e-01f);
    p = fmaf(p, t, -1.1302376e+00f);
    p = fmaf(p, t, 3.2044153e-04f);
    return copysignf(1.0f - scalar_exp(p), x);
}

static __device__ __forceinline__ double scalar_exp(double x) { return exp(x); }
static __device__ __forceinline__ double scalar_expm1(double x) { return expm1(x); }
static __device__ __forceinline__ double scalar_log(double x) { return log(x); }
static __device__ __forceinline__ double scalar_log1p(double x) { return log1p(x); }
static __device__ __forceinline__ double scalar_tanh(double x) { return tanh(x); }
static __device__ __forceinline__ double scalar_erf(double x) { return erf(x); }
