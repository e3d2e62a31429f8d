// Hopper's own instructions (sm_90a): mbarriers, the copy engine, and tensor cores that a warpgroup, four warps, keeps
// busy from shared memory. The twins in emulator.cpp do what PTX ISA says of them.
//
//     thread 0:     mbarrier_init(ready, 1);  mbarrier_fence();                                  then __syncthreads()
//     one thread:   mbarrier_expect(ready, bytes);  copy_box(tile, map, ready, {{k, row, 0}});   bytes: of all copies
//     a warpgroup:  mbarrier_wait(ready, 0);
//                   wgmma_fence(sums);  wgmma<N, A, B>(sums[0], a, b, type);  wgmma_commit();
//                   wgmma_finish(sums);                                                          now they may be read
//
// Mbarrier   It counts arrivals, and the bytes that copies bring; a phase is over when all have come. Waiting for
//            parity 0 is for the first phase, the third, ...; for parity 1 for the second, ..., and it ends at
//            once before the first is over. What a thread did before it arrived has been done for those who waited.
// Swizzle    A copy writes rows of 128 bytes. Their 16-byte chunks are swapped: chunk i of row r lies at i ^ (r & 7),
//            so the i-th chunks of eight rows lie in different banks. A tile begins at a multiple of 1024 bytes.
// Proxies    Copies and tensor cores see each other's shared memory by way of mbarriers. A kernel that wrote an operand
//            by ordinary stores would need fence.proxy.async besides, which is not here.
#pragma once
#include "common.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma is of sm_90a"
#endif

struct Mbarrier {
    unsigned long long state;
};

#ifdef EMULATOR
#define __grid_constant__
#define MAP_ALIGNMENT 8
#else
#define MAP_ALIGNMENT 128
#endif

// A map of an array of T (tensor_map.py), as a device encodes it; a __grid_constant__.
template <class T>
struct __align__(MAP_ALIGNMENT) TensorMap {
    unsigned long long encoded[16];
};

#ifdef EMULATOR
extern "C" {
void emulator_mbarrier_init(const void* at, int count, int line);
void emulator_mbarrier_fence();
void emulator_mbarrier_arrive(const void* at, int bytes, int line);
void emulator_mbarrier_wait(const void* at, int parity, int line);
void emulator_tensor_copy(void* to, const void* map, const void* barrier, const int* at, const int* offsets, int line);
unsigned int emulator_shared_offset(const void* at);
void emulator_wgmma_fence();
void emulator_wgmma(float* sums, unsigned long long a, unsigned long long b, int columns, int across_a, int across_b,
                    int type, int line);
void emulator_wgmma_commit();
void emulator_wgmma_wait(int newest, int line);
}
#define shared_address(at) emulator_shared_offset(at)
#else
static __device__ __forceinline__ unsigned int shared_address(const void* at) {
    return (unsigned int)__cvta_generic_to_shared(at);
}
#endif

// -- mbarriers ----------------------------------------------------------------------------------------

#ifdef EMULATOR
static inline void mbarrier_init(Mbarrier& barrier, int arrivals, int line = __builtin_LINE()) {
    emulator_mbarrier_init(&barrier, arrivals, line);
}
static inline void mbarrier_fence() { emulator_mbarrier_fence(); }
static inline void mbarrier_arrive(Mbarrier& barrier, int line = __builtin_LINE()) {
    emulator_mbarrier_arrive(&barrier, 0, line);
}
static inline void mbarrier_expect(Mbarrier& barrier, int bytes, int line = __builtin_LINE()) {
    emulator_mbarrier_arrive(&barrier, bytes, line);
}
static inline void mbarrier_wait(Mbarrier& barrier, int parity, int line = __builtin_LINE()) {
    emulator_mbarrier_wait(&barrier, parity, line);
}
#else
// By one thread, before the barrier of the block that comes before its use.
static __device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// By the same thread: the copy engine knows of them.
static __device__ __forceinline__ void mbarrier_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
static __device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrive, and let the phase wait for copies of so many bytes.
static __device__ __forceinline__ void mbarrier_expect(Mbarrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, int parity) {
    int over;
    do {  // the hardware waits for a while in it
        asm volatile("{\n\t.reg .pred over;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n\t"
                     "selp.b32 %0, 1, 0, over;\n\t}"
                     : "=r"(over)
                     : "r"(shared_address(&barrier)), "r"(parity)
                     : "memory");
    } while (!over);
}
#endif

// -- the copy engine ----------------------------------------------------------------------------------

// Where a box begins in an array of three axes, the innermost axis first.
struct Corner {
    int at[3];
};

// The first pixel of a walk over [N, H, W, C] and its first channel, and the tap that all pixels are shifted by.
struct Walk {
    int at[4];  // channel, column, row, image
    int right, down;
};

// By one thread. The copy arrives at the mbarrier by its bytes, those outside of the array too. The engine rounds floats
// to the nearest TF32 (tensor_map.py asks for it).
#ifdef EMULATOR
template <class T>
static inline void copy_box(
    T* to, const TensorMap<T>& map, Mbarrier& barrier, const Corner& from, int line = __builtin_LINE()) {
    emulator_tensor_copy(to, &map, &barrier, from.at, nullptr, line);
}
template <class T>
static inline void copy_pixels(
    T* to, const TensorMap<T>& map, Mbarrier& barrier, const Walk& from, int line = __builtin_LINE()) {
    const int offsets[2] = {from.right, from.down};
    emulator_tensor_copy(to, &map, &barrier, from.at, offsets, line);
}
#else
template <class T>
static __device__ __forceinline__ void copy_box(T* to, const TensorMap<T>& map, Mbarrier& barrier, const Corner& from) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(&barrier)), "r"(from.at[0]), "r"(from.at[1]), "r"(from.at[2])
                 : "memory");
}
template <class T>
static __device__ __forceinline__ void copy_pixels(
    T* to, const TensorMap<T>& map, Mbarrier& barrier, const Walk& from) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(&barrier)), "r"(from.at[0]), "r"(from.at[1]), "r"(from.at[2]),
                 "r"(from.at[3]), "h"((unsigned short)from.right), "h"((unsigned short)from.down)
                 : "memory");
}
#endif

// -- products of a warpgroup --------------------------------------------------------------------------

// A matrix in shared memory, swizzled by 128 bytes.
//
// Along    A row (of a, or a column of b) has 64 k of 16 bits, or 32 floats, in 128 bytes; eight rows are 1024 bytes, the
//          next eight follow. What an instruction multiplies is 32 bytes of each, 16 k or 8: NEXT_ALONG is so much
//          further, NEXT_ROWS 64 rows.
// Across   64 neighbouring rows at one k are 128 bytes; eight k are 1024 bytes, the next eight follow; the next 64 rows
//          are `leading` bytes further; where that is 8192, NEXT_ROWS. 16 k further is NEXT_ACROSS. Not of floats.
//
// Its bits: 0-13 where it begins, 16-29 `leading`, 32-45 from eight rows (or k) to the next eight, all in 16 bytes;
// 62-63 the swizzle, 1 for 128 bytes.
typedef unsigned long long Operand;
#define NEXT_ALONG (32 >> 4)
#define NEXT_ACROSS (2048 >> 4)
#define NEXT_ROWS (8192 >> 4)

static __device__ __forceinline__ Operand wgmma_operand(const void* tile, int leading) {
    const Operand start = shared_address(tile) >> 4, next_64 = leading >> 4, next_8 = 1024 >> 4, by_128 = 1;
    return start | next_64 << 16 | next_8 << 32 | by_128 << 62;
}

// wgmma: sums[64 x COLUMNS] += a[64 x 16] b[16 x COLUMNS]; of floats, by TF32, a[64 x 8] b[8 x COLUMNS]. Warp w of the
// four, lane 4 g + q has of row 16 w + g in its sums 4 j and 4 j + 1 the columns 8 j + 2 q and 8 j + 2 q + 1, in 4 j + 2
// and 4 j + 3 the same of row 16 w + g + 8.
//
// It runs on while the threads go on: its operands must stay and its sums must not be looked at until its group, closed
// by wgmma_commit, has been waited for. wgmma_wait<n> leaves the n newest groups running, wgmma_finish none. Before it,
// and after its sums were touched, comes wgmma_fence.
#ifdef EMULATOR
template <int TILES, int COUNT>
static inline void wgmma_fence(float (&)[TILES][COUNT]) { emulator_wgmma_fence(); }
static inline void wgmma_commit() { emulator_wgmma_commit(); }
template <int NEWEST>
static inline void wgmma_wait(int line = __builtin_LINE()) { emulator_wgmma_wait(NEWEST, line); }
template <int TILES, int COUNT>
static inline void wgmma_finish(float (&)[TILES][COUNT], int line = __builtin_LINE()) { emulator_wgmma_wait(0, line); }
template <int COLUMNS, bool A_ALONG, bool B_ALONG>
static inline void wgmma(float (&sums)[COLUMNS / 2], Operand a, Operand b, float16, int line = __builtin_LINE()) {
    emulator_wgmma(sums, a, b, COLUMNS, !A_ALONG, !B_ALONG, 0, line);
}
template <int COLUMNS, bool A_ALONG, bool B_ALONG>
static inline void wgmma(float (&sums)[COLUMNS / 2], Operand a, Operand b, bfloat16, int line = __builtin_LINE()) {
    emulator_wgmma(sums, a, b, COLUMNS, !A_ALONG, !B_ALONG, 1, line);
}
template <int COLUMNS, bool A_ALONG, bool B_ALONG>
static inline void wgmma(float (&sums)[COLUMNS / 2], Operand a, Operand b, float, int line = __builtin_LINE()) {
    static_assert(A_ALONG && B_ALONG, "wgmma reads floats along k alone");
    emulator_wgmma(sums, a, b, COLUMNS, false, false, 2, line);
}
#else
// What is done with the sums stays before it, or behind it: the compiler does not see that wgmma runs on.
template <int TILES, int COUNT>
static __device__ __forceinline__ void hold(float (&sums)[TILES][COUNT]) {
#pragma unroll
    for (int i = 0; i < TILES * COUNT; ++i) asm volatile("" : "+f"(sums[i / COUNT][i % COUNT])::"memory");
}
template <int TILES, int COUNT>
static __device__ __forceinline__ void wgmma_fence(float (&sums)[TILES][COUNT]) {
    hold(sums);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int NEWEST>
static __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NEWEST) : "memory");
}
template <int TILES, int COUNT>
static __device__ __forceinline__ void wgmma_finish(float (&sums)[TILES][COUNT]) {
    wgmma_wait<0>();
    hold(sums);
}

// Registers 0 to 31, 32 to 63, ...; NAMES_64 and NAMES_128, below, are so many.
#define NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64_ "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)

// The last numbers: to add to the sums, neither operand negated; whether a and b lie across.
#define WGMMA(columns, type, name, names, list, a, b, across_a, across_b)                                     \
    template <bool A_ALONG, bool B_ALONG>                                                                     \
    struct Wgmma<columns, A_ALONG, B_ALONG, type> {                                                           \
        static __device__ __forceinline__ void add(float (&sums)[columns / 2], Operand of_a, Operand of_b) {  \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {" names "}, " a\
                         ", " b ", 1, 1, 1, " across_a ", " across_b ";"                                      \
                         : list                                                                               \
                         : "l"(of_a), "l"(of_b), "n"(!A_ALONG), "n"(!B_ALONG));                               \
        }                                                                                                     \
    };
#define WGMMA_TF32(columns, names, list, a, b)                                                                \
    template <>                                                                                               \
    struct Wgmma<columns, true, true, float> {                                                                \
        static __device__ __forceinline__ void add(float (&sums)[columns / 2], Operand of_a, Operand of_b) {  \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k8.f32.tf32.tf32 {" names "}, " a      \
                         ", " b ", 1, 1, 1;"                                                                  \
                         : list                                                                               \
                         : "l"(of_a), "l"(of_b));                                                             \
        }                                                                                                     \
    };
#define SUMS_64 SUMS_32(0), SUMS_32(32)
#define SUMS_128 SUMS_64, SUMS_32(64), SUMS_32(96)
#define NAMES_64 NAMES_0 ", " NAMES_32
#define NAMES_128 NAMES_64 ", " NAMES_64_ ", " NAMES_96
template <int COLUMNS, bool A_ALONG, bool B_ALONG, class T>
struct Wgmma;
WGMMA(64, float16, "f16", NAMES_0, SUMS_32(0), "%32", "%33", "%34", "%35")
WGMMA(64, bfloat16, "bf16", NAMES_0, SUMS_32(0), "%32", "%33", "%34", "%35")
WGMMA(128, float16, "f16", NAMES_64, SUMS_64, "%64", "%65", "%66", "%67")
WGMMA(128, bfloat16, "bf16", NAMES_64, SUMS_64, "%64", "%65", "%66", "%67")
WGMMA(256, float16, "f16", NAMES_128, SUMS_128, "%128", "%129", "%130", "%131")
WGMMA(256, bfloat16, "bf16", NAMES_128, SUMS_128, "%128", "%129", "%130", "%131")
WGMMA_TF32(64, NAMES_0, SUMS_32(0), "%32", "%33")
WGMMA_TF32(128, NAMES_64, SUMS_64, "%64", "%65")
WGMMA_TF32(256, NAMES_128, SUMS_128, "%128", "%129")

template <int COLUMNS, bool A_ALONG, bool B_ALONG, class T>
static __device__ __forceinline__ void wgmma(float (&sums)[COLUMNS / 2], Operand a, Operand b, T) {
    Wgmma<COLUMNS, A_ALONG, B_ALONG, T>::add(sums, a, b);
}
#endif
