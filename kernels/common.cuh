// What every kernel file includes. Compiled by NVRTC (which has no standard headers) and, for the emulator, by the
// host's C++ compiler with gpucnn/devices/cuda_on_cpu.h.
//
// SCALAR is the type of numbers in memory: float, float16 or bfloat16, or double so that the kernels' own gradients can
// be checked by finite differences. Scalar is the type that they are computed in: float for those of 16 bits.
//
// RESULT is, of a convolution, the type of what is added to its sums and of what comes out, where that is not SCALAR: float
// where its operands are float too, but were rounded to one of 16 bits.
//
// Multiply-adds are written multiply_add and the compilers are told not to contract anything else: what is fused is what
// one reads, so a kernel gives the same bits on a GPU as on the emulator.
#pragma once
#include "half.cuh"

#ifndef SCALAR
#error "compile with -DSCALAR=float, double, float16 or bfloat16"
#endif
#ifndef RESULT
#define RESULT SCALAR
#endif

typedef Arithmetic<SCALAR>::Type Scalar;

#define NOT_A_NUMBER __int_as_float(0x7fffffff)
#define POSITIVE_INFINITY __int_as_float(0x7f800000)

static __device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Whether b wins over a as a maximum: NaN wins over numbers, the first of equals stays. (fmaxf would drop the NaN.)
static __device__ __forceinline__ bool beats(Scalar b, Scalar a) { return b > a || (b != b && a == a); }

static __device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// This thread's number in a launch of one-dimensional blocks. 64 bits: the last block may reach past 2^31.
static __device__ __forceinline__ long long thread_number() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// Four neighbouring scalars: what a thread of an elementwise kernel takes, by 16-byte accesses where it can (8-byte ones
// of a type of 16 bits).
struct __align__(16) Four {
    Scalar at[4];
};
template <class Stored>
struct __align__(sizeof(Stored) == 2 ? 8 : 16) StoredFour {
    Stored at[4];
};

// Whether four scalars at this address can be moved at once: not past the end, and not in a view with an odd offset.
template <class Stored>
static __device__ __forceinline__ bool whole_four(const Stored* address, int left) {
    return left >= 4 && (unsigned long long)address % alignof(StoredFour<Stored>) == 0;
}

// The scalars at from[0 ... 3], of which `left` exist; the rest are 0.
template <class Stored>
static __device__ __forceinline__ Four load_four(const Stored* from, int left) {
    Four four;
    if (whole_four(from, left)) {
        const StoredFour<Stored> stored = *(const StoredFour<Stored>*)from;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.at[i] = stored.at[i];
        return four;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) four.at[i] = i < left ? from[i] : Scalar(0);
    return four;
}

// Four scalars to an address that is a multiple of their size in memory.
template <class Stored>
static __device__ __forceinline__ void put_four(Stored* to, const Four& four) {
    StoredFour<Stored> stored;
#pragma unroll
    for (int i = 0; i < 4; ++i) stored.at[i] = four.at[i];
    *(StoredFour<Stored>*)to = stored;
}

template <class Stored>
static __device__ __forceinline__ void store_four(Stored* to, const Four& four, int left) {
    if (whole_four(to, left)) {
        put_four(to, four);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < left) to[i] = four.at[i];
}
