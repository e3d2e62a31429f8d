// cp.async: 16 bytes from global to shared memory, past the registers, while the thread goes on (sm_80 and later).
//
//     async_copy(&tile[i], &x[j]);  async_commit();  ...  async_wait<0>();  __syncthreads();
//
// async_wait<n> waits until at most the n newest committed groups are in flight. The copies of other threads are visible
// after the barrier that follows. The emulator lands a copy only there, so a wait that is missing shows.
#pragma once

// Of what is not inside, zeros come instead, and nothing is read.
#ifdef EMULATOR
static inline void async_copy_or_zero(void* shared, const void* global, bool inside) {
    emulator_async_copy(shared, global, inside ? 16 : 0, __LINE__);
}
static inline void async_commit() { emulator_async_commit(); }
template <int NEWEST>
static inline void async_wait() { emulator_async_wait(NEWEST); }
#else
static __device__ __forceinline__ void async_copy_or_zero(void* shared, const void* global, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned int)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(inside ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int NEWEST>
static __device__ __forceinline__ void async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory"); }
#endif

static __device__ __forceinline__ void async_copy(void* shared, const void* global) {
    async_copy_or_zero(shared, global, true);
}
