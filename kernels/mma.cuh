// A warp's instructions for tensor cores, TF32, float16 and bfloat16 with sums in float (compute capability 8.0 and
// later), and how a float becomes TF32 numbers, whose significand has 11 bits.
//
// An instruction is the whole warp's: all 32 lanes must come to it, and the emulator's twins stop where one does not. A
// twin adds the products of an instruction in double, k = 0, 1, ..., and rounds once; a GPU's own order and rounding are
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
    // The old sum and the new are different operands: a sum that starts from 0 then needs no register set to 0.
    float to[4];
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
        : "r"(__float_as_int(a[0])), "r"(__float_as_int(a[1])), "r"(__float_as_int(a[2])), "r"(__float_as_int(a[3])),
          "r"(__float_as_int(b[0])), "r"(__float_as_int(b[1])), "f"(sum[0]), "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = to[i];
}
#endif

// Types of 16 bits: a word holds two of them, neighbours along k, the first in its low half.
//
// load_matrices as above, of tiles of 8 rows x 8 scalars. load_turned: of tiles of 8 k x 8 rows, which are turned on the
// way: lane 4 g + q gets of each tile the scalars k = 2 q and 2 q + 1 of row g.
//
// multiply_tiles: sum[16 x 8] += a[16 x 16] b[16 x 8], of which lane 4 g + q has, two k from the one named on,
//     a[g][2 q], a[g + 8][2 q], a[g][2 q + 8], a[g + 8][2 q + 8];  b[2 q][g], b[2 q + 8][g];  and sum as above.
// The last argument is of the type that is multiplied, and only tells which.
#ifdef EMULATOR
static inline void load_matrices(unsigned int (&to)[4], const void* row, int line = __builtin_LINE()) {
    emulator_load_matrices((float*)to, row, line);
}
static inline void load_turned(unsigned int (&to)[4], const void* row, int line = __builtin_LINE()) {
    emulator_load_turned(to, row, line);
}
static inline void multiply_tiles(float (&sum)[4], const unsigned int (&a)[4], const unsigned int (&b)[2], float16,
                                  int line = __builtin_LINE()) {
    emulator_multiply_halves(sum, a, b, 0, line);
}
static inline void multiply_tiles(float (&sum)[4], const unsigned int (&a)[4], const unsigned int (&b)[2], bfloat16,
                                  int line = __builtin_LINE()) {
    emulator_multiply_halves(sum, a, b, 1, line);
}
#else
static __device__ __forceinline__ void load_matrices(unsigned int (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
}
static __device__ __forceinline__ void load_turned(unsigned int (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned int)__cvta_generic_to_shared(row))
                 : "memory");
}
#define MULTIPLY_HALVES(type, name)                                                                                      \
    static __device__ __forceinline__ void multiply_tiles(                                                               \
        float (&sum)[4], const unsigned int (&a)[4], const unsigned int (&b)[2], type) {                                 \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
            "{%0, %1, %2, %3};"                                                                                          \
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                     \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                         \
    }
MULTIPLY_HALVES(float16, "f16")
MULTIPLY_HALVES(bfloat16, "bf16")
#endif

#define ABOVE_TF32 0x1fff  // the bits of a float that TF32 lacks

// The nearest TF32 number; of two the one away from zero. A NaN may become a zero.
static __device__ __forceinline__ float rounded(float x) {
    return __int_as_float((__float_as_int(x) + (ABOVE_TF32 + 1) / 2) & ~ABOVE_TF32);
}

// What, cut to TF32 by multiply_tiles, is one of the two neighbours of x: off by at most 1.25 * 2^-11, by 1.4e-5 on the
// average, and x itself where x is TF32. One instruction; `rounded` takes two and, to keep NaN, four.
static __device__ __forceinline__ float about(float x) { return multiply_add(x, 3.0f / 8192, x); }
