// SPDX-License-Identifier: Apache-2.0
// Random numbers of stochastic rounding: one hash for each segment of a row and output channel, and from it, in
// GF(2^16), a number for each pixel of the segment.  They depend on an element's index alone, and on no order.
#pragma once

#include "channels.h"
#include "numbers.h"

namespace kernel {

constexpr unsigned RANDOM_BITS = 16;

// Of a tile, by output channel and pixel.
struct RandomTile {
    Memory<Random, CHANNELS, LANES> number;
};

// 32-bit finalizer of MurmurHash3.
inline uint32_t fmix32(uint32_t h) {
#pragma HLS INLINE
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    h ^= h >> 16;
    return h;
}

// alpha * value in GF(2^16).
inline uint32_t times_alpha(uint32_t value) {
#pragma HLS INLINE
    return (value << 1) ^ ((value >> (RANDOM_BITS - 1)) != 0 ? GF_POLYNOMIAL : 0);
}

// a * b in GF(2^16).
inline uint32_t field_product(uint32_t a, uint32_t b) {
#pragma HLS INLINE
    uint32_t result = 0;
    for (unsigned n = 0; n < RANDOM_BITS; ++n) {
#pragma HLS UNROLL
        if (((b >> n) & 1) != 0) result ^= a;
        a = times_alpha(a);
    }
    return result;
}

// The numbers of the pixels of one segment, `inside`, in output channel `oc`.
inline void spread(uint32_t hash, uint32_t factor, uint32_t inside, unsigned oc, RandomTile& random) {
#pragma HLS INLINE
    const uint32_t low = hash & low_mask(RANDOM_BITS);
    const uint32_t start = field_product(hash >> RANDOM_BITS, factor);
    uint32_t multiple = start;
    for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
        const bool here = ((inside >> p) & 1) != 0;
        if (here) random.number[oc][p] = Random(low ^ multiple);
        multiple = here ? times_alpha(multiple) : start;
    }
}

// Lowest bit that is set.
inline uint32_t lowest(uint32_t bits) {
#pragma HLS INLINE
    return bits & (~bits + 1);
}

// Random numbers of a tile's codes.  In a loop of their own, so that codes that are not stochastic do not wait.
inline void draw(const Header& h, const Command& command, RandomTile& random) {
    const uint32_t row = h.index + command.row * h.row_stride;
    uint32_t channel = row + command.out_group * CHANNELS * h.channel_stride;  // index of its segment 0
    uint32_t index = channel;
    uint32_t starts = h.segment_start;  // of the segment under way and those behind it
    for (unsigned oc = 0; oc < CHANNELS;) {
// one hash per cycle; a segment and channel is written once
#pragma HLS PIPELINE II = 1
        const uint32_t rest = starts & (starts - 1);
        spread(fmix32(index ^ h.key), h.factor, lowest(rest) - lowest(starts), oc, random);
        index += h.image_stride;
        starts = rest;
        if (rest == 0) {
            ++oc;
            channel += h.channel_stride;
            index = channel;
            starts = h.segment_start;
        }
    }
}

// Sixteen bits in the opposite order.
inline uint32_t reverse_bits(uint32_t x) {
#pragma HLS INLINE
    x = ((x & 0x5555u) << 1) | ((x >> 1) & 0x5555u);
    x = ((x & 0x3333u) << 2) | ((x >> 2) & 0x3333u);
    x = ((x & 0x0F0Fu) << 4) | ((x >> 4) & 0x0F0Fu);
    return ((x & 0x00FFu) << 8) | ((x >> 8) & 0x00FFu);
}

}  // namespace kernel
