// CUDA's vocabulary for a host C++ compiler, so that a .cu file of ours compiles as it stands.
//
// Every CUDA thread is a fiber that emulator.cpp runs; one block at a time, so __shared__ is plain static memory, kept in
// a section of its own that the emulator can find, poison and watch. No standard header: <math.h> alone takes a C++
// compiler longer than a whole kernel of ours.
#pragma once

#define EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))
#define __constant__ static __attribute__((section("constant_memory")))

struct uint3 {
    unsigned int x, y, z;
};

extern "C" {
extern struct {
    uint3 thread, block, block_size, grid_size;
} emulator_indices;
void emulator_barrier(int line);
unsigned long long emulator_warp_exchange(unsigned long long value, int source_lane, int line);
int emulator_lane();
void emulator_load_matrices(float* to, const void* row, int line);
void emulator_load_turned(unsigned int* to, const void* row, int line);
void emulator_multiply_tiles(float* sum, const float* a, const float* b, int line);
void emulator_multiply_halves(float* sum, const unsigned int* a, const unsigned int* b, int bfloat, int line);
void emulator_async_copy(void* shared, const void* global, int bytes, int line);
void emulator_async_commit();
void emulator_async_wait(int newest);
}

#define threadIdx emulator_indices.thread
#define blockIdx emulator_indices.block
#define blockDim emulator_indices.block_size
#define gridDim emulator_indices.grid_size
#define warpSize 32
#define __syncthreads() emulator_barrier(__LINE__)

template <class T>
static inline T emulator_shuffle(T value, int source_lane, int line) {
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = emulator_warp_exchange(bits, source_lane, line);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
// Whole warps only: the mask is ignored, and a lane that does not come is a divergence error.
#define __shfl_sync(mask, value, lane) emulator_shuffle(value, (lane) & 31, __LINE__)
#define __shfl_xor_sync(mask, value, bits) emulator_shuffle(value, emulator_lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    emulator_shuffle(value, emulator_lane() + (delta) > 31 ? emulator_lane() : emulator_lane() + (delta), __LINE__)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline int __float_as_int(float value) {
    int bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __int_as_float(int bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return (unsigned int)(((unsigned long long)a * b) >> 32);
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

// The host's mathematical functions as CUDA declares them: for double, and for float under two names.
#define ONE_REAL(name) \
    extern "C" double name(double) noexcept; \
    extern "C" float name##f(float) noexcept; \
    static __forceinline__ float name(float x) { return name##f(x); }
#define TWO_REALS(name) \
    extern "C" double name(double, double) noexcept; \
    extern "C" float name##f(float, float) noexcept; \
    static __forceinline__ float name(float x, float y) { return name##f(x, y); }
ONE_REAL(sqrt) ONE_REAL(cbrt) ONE_REAL(exp) ONE_REAL(exp2) ONE_REAL(expm1) ONE_REAL(log) ONE_REAL(log2) ONE_REAL(log10)
ONE_REAL(log1p) ONE_REAL(sin) ONE_REAL(cos) ONE_REAL(tan) ONE_REAL(asin) ONE_REAL(acos) ONE_REAL(atan) ONE_REAL(sinh)
ONE_REAL(cosh) ONE_REAL(tanh) ONE_REAL(asinh) ONE_REAL(acosh) ONE_REAL(atanh) ONE_REAL(erf) ONE_REAL(erfc)
ONE_REAL(fabs) ONE_REAL(floor) ONE_REAL(ceil) ONE_REAL(trunc) ONE_REAL(round) ONE_REAL(rint)
TWO_REALS(pow) TWO_REALS(fmod) TWO_REALS(fmin) TWO_REALS(fmax) TWO_REALS(atan2) TWO_REALS(hypot) TWO_REALS(copysign)
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
static __forceinline__ float fma(float x, float y, float z) { return fmaf(x, y, z); }
