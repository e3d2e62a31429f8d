// What a thread takes at once of an array whose last axis is channels: VECTOR neighbours, by one access of up to 16
// bytes. The host gives a VECTOR that divides the channels, and arrays that begin at a multiple of 16 bytes.
#pragma once
#include "common.cuh"

#ifndef VECTOR
#error "compile with -DVECTOR=1, 2 or 4 channels that a thread takes at once"
#endif

template <class Stored>
struct __align__(sizeof(Stored) * VECTOR < 16 ? sizeof(Stored) * VECTOR : 16) Channels {
    Stored at[VECTOR];
};

template <class Stored>
static __device__ __forceinline__ Channels<Scalar> load_channels(const Stored* from) {
    const Channels<Stored> stored = *(const Channels<Stored>*)from;
    Channels<Scalar> channels;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) channels.at[i] = stored.at[i];
    return channels;
}

template <class Stored>
static __device__ __forceinline__ void store_channels(Stored* to, const Channels<Scalar>& from) {
    Channels<Stored> stored;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) stored.at[i] = from.at[i];
    *(Channels<Stored>*)to = stored;
}
