// A warp's instructions for tensor cores, TF32 with sums in float (compute capability 8.0 and later), and how a float
// becomes TF32 numbers, whose significand has 11 bits.
//
// An instruction is the whole warp's: all 32 lanes must come to it, and the emulator's twins stop where one does not. A
// twin adds the products of an instruction in double, k = 0 ... 7, and rounds once; a GPU's own order and rounding are
// not documented, so bits are not promised to be equal.
#pragma once
#include "common.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "tensor cores multiply TF32 from compute capability 8.0 on"
#endif

// load_matrices: four tiles of 8 rows x 4 scalars, whose rows are 16 bytes in shared memory. Lane l gives the address of
// row l % 8 of tile l / 8 and gets of each tile the scalar l % 4 of row l / 4. (To ldmatrix a scalar is two halves.)
//
// multiply_tiles: sum[16 x 8] += a[16 x 8] b[8 x 8], of which lane l = 4 g + q has
//     a[g][q], a[g + 8][q], a[g][q + 4], a[g + 8][q + 4];  b[q][g], b[q + 4][g];
//     sum[g][2 q], sum[g][2 q + 1], sum[g + 8][2 q], sum[g + 8][2 q + 1].
// The 13 lowest bits of a and b, which TF32 lacks, are not looked at.
#ifdef EMULATOR
static inline void load_matrices(float (&to)[4], const float* row, int line = __builtin_LINE()) {
    emulator_load_matrices(to, row, line);
}
static inline void multiply_tiles(
    float (&sum)[4], const float (&a)[4], const float (&b)[2], int line = __builtin_LINE()) {
    emulator_multiply_tiles(sum, a, b, line);
}
#else
static __device__ __forceinline__ void load_matrices(float (&to)[4], const float* row) {
    int bits[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = __int_as_float(bits[i]);
}
static __device__ __forceinline__ void multiply_tiles(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_int(a[0])), "r"(__float_as_int(a[1])), "r"(__float_as_int(a[2])), "r"(__float_as_int(a[3])),
          "r"(__float_as_int(b[0])), "r"(__float_as_int(b[1])));
}
#endif

#define ABOVE_TF32 0x1fff  // the bits of a float that TF32 lacks

// The TF32 number below x, toward zero.
static __device__ __forceinline__ float truncated(float x) { return __int_as_float(__float_as_int(x) & ~ABOVE_TF32); }

// The nearest TF32 number; of two the one away from zero. A NaN may become a zero.
static __device__ __forceinline__ float rounded(float x) {
    return __int_as_float((__float_as_int(x) + (ABOVE_TF32 + 1) / 2) & ~ABOVE_TF32);
}

// What, cut to TF32 by multiply_tiles, is one of the two neighbours of x: off by at most 1.25 * 2^-11, by 1.4e-5 on the
// average, and x itself where x is TF32. One instruction; `rounded` takes two and, to keep NaN, four.
static __device__ __forceinline__ float about(float x) { return multiply_add(x, 3.0f / 8192, x); }
