// float16 and bfloat16 as they lie in memory. They are computed with as float: reading one converts it exactly, assigning
// a float rounds to the nearest, of two to the even one; what is too large becomes infinite, every NaN 0x7fff. Denormal
// numbers are kept. (CUDA's own types need its headers, which NVRTC may not find.)
//
// On a GPU a conversion is an instruction, but to bfloat16 before sm_80: there, and on the emulator, these are sums of
// integers that give the same bits.
#pragma once

static __device__ __forceinline__ unsigned short float16_of(float x) {
#ifdef __CUDA_ARCH__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    const unsigned int bits = (unsigned int)__float_as_int(x), size = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // from 65520
    if (size < 0x38800000u) {  // below 2^-14 its numbers are 2^-24 apart, as those of float are above 0.5
        const unsigned int above = (unsigned int)__float_as_int(__int_as_float((int)size) + 0.5f) - 0x3f000000u;
        return (unsigned short)(sign | above);
    }
    return (unsigned short)(sign | ((size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13));
#endif
}

static __device__ __forceinline__ float from_float16(unsigned short bits) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    const unsigned int sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, rest = bits & 0x3ffu;
    if (exponent == 0) {
        const unsigned int size = (unsigned int)__float_as_int((float)rest * 5.9604644775390625e-8f);  // 2^-24
        return __int_as_float((int)(sign | size));
    }
    return __int_as_float((int)(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | rest << 13));
#endif
}

static __device__ __forceinline__ unsigned short bfloat16_of(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    const unsigned int bits = (unsigned int)__float_as_int(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

static __device__ __forceinline__ float from_bfloat16(unsigned short bits) {
    return __int_as_float((int)((unsigned int)bits << 16));
}

struct float16 {
    unsigned short bits;
    __device__ __forceinline__ operator float() const { return from_float16(bits); }
    __device__ __forceinline__ void operator=(float x) { bits = float16_of(x); }
};

struct bfloat16 {
    unsigned short bits;
    __device__ __forceinline__ operator float() const { return from_bfloat16(bits); }
    __device__ __forceinline__ void operator=(float x) { bits = bfloat16_of(x); }
};

// What a stored type is computed in.
template <class Stored>
struct Arithmetic {
    typedef Stored Type;
};
template <>
struct Arithmetic<float16> {
    typedef float Type;
};
template <>
struct Arithmetic<bfloat16> {
    typedef float Type;
};
