// SPDX-License-Identifier: Apache-2.0
// Random numbers of stochastic rounding: a hash of the element's index, so that they depend on no order.
#pragma once

#include "platform.h"

namespace kernel {

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

// Random index of each pixel of a virtual row, relative to pixel 0.
inline void index_pixels(const Header& h, uint32_t pixel_index[LANES]) {
#pragma HLS INLINE
    uint32_t segment_index = 0;
    uint32_t index = 0;
    for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS PIPELINE II = 1
        if (p != 0 && ((h.segment_start >> p) & 1) != 0) {
            segment_index += h.image_stride;
            index = segment_index;
        }
        pixel_index[p] = index;
        index += h.pixel_stride;
    }
}

}  // namespace kernel
