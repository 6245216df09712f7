// SPDX-License-Identifier: Apache-2.0
// Moments of every output channel: sum, sum of products, least and greatest value.
#pragma once

#include "buffers.h"
#include "channels.h"
#include "streams.h"

namespace kernel {

inline void clear(Moments& moments) {
#pragma HLS INLINE
    moments.sum = 0;
    moments.products = 0;
    moments.least = Value((int32_t(1) << (VALUE_BITS - 1)) - 1);
    moments.greatest = Value(-(int32_t(1) << (VALUE_BITS - 1)));
}

// Take in the values of a line and what they are multiplied with, where a bit of `valid` is set.
inline void add_moments(Moments& moments, uint32_t valid, const int32_t values[LINE_VALUES],
                        const int32_t factors[LINE_VALUES]) {
#pragma HLS INLINE
    int64_t sum = 0, products = 0;
    int32_t least = int32_t(moments.least), greatest = int32_t(moments.greatest);
KEEP_LOOP
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        const bool counts = ((valid >> k) & 1) != 0;
        const int32_t value = values[k];
        sum += counts ? value : 0;
        products += counts ? int64_t(value) * factors[k] : 0;
        least = counts && value < least ? value : least;
        greatest = counts && value > greatest ? value : greatest;
    }
    moments.sum += sum;
    moments.products += products;
    moments.least = Value(least);
    moments.greatest = Value(greatest);
}

inline uint64_t extremes_of(const Moments& moments) {
#pragma HLS INLINE
    return uint64_t(uint32_t(int32_t(moments.greatest))) << 32 | uint32_t(int32_t(moments.least));
}

// Cycles in which the moments of two channels leave.
constexpr unsigned MOMENTS_INTERVAL = MOMENT_WORDS * BEAT_INTERVAL;

inline void send_moments(const ResultBuffers& buffers, const Header& h, ResultStream& out, uint32_t& sent) {
    for (uint32_t channel = 0; channel < h.out_groups * CHANNELS; channel += 2) {
#pragma HLS PIPELINE II = MOMENTS_INTERVAL
        const Packed<Moments> first = buffers.moments[channel], second = buffers.moments[channel + 1];
        const Moments &even = unpack<Moments>(first), &odd = unpack<Moments>(second);
        send(out, sent, uint64_t(int64_t(even.sum)), uint64_t(int64_t(even.products)));
        send(out, sent, extremes_of(even), uint64_t(int64_t(odd.sum)));
        send(out, sent, uint64_t(int64_t(odd.products)), extremes_of(odd));
    }
}

}  // namespace kernel
