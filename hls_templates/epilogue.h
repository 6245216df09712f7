// SPDX-License-Identifier: Apache-2.0
// The epilogue's arithmetic: integer sums to codes.
#pragma once

#include "numbers.h"

namespace kernel {

// floor(random * 2^shift / 2^32)
inline int64_t random_part(uint32_t random, uint32_t shift) {
#pragma HLS INLINE
    return int64_t(shift > 32 ? uint64_t(random) << (shift - 32) : uint64_t(random) >> (32 - shift));
}

// Limits of the integer epilogue of one packet.
struct Limits {
    int64_t least;  // before rounding: 0 with ReLU
    int64_t low, high;
    uint32_t shift;
};

inline Limits limits_of(const Header& h) {
#pragma HLS INLINE
    const bool is_signed = (h.flags & FLAG_OUT_SIGNED) != 0;
    Limits limits;
    limits.least = (h.flags & FLAG_RELU) != 0 ? 0 : INT64_MIN;
    limits.low = is_signed ? -(int64_t(1) << (h.out_bits - 1)) : 0;
    limits.high = is_signed ? (int64_t(1) << (h.out_bits - 1)) - 1 : (int64_t(1) << h.out_bits) - 1;
    limits.shift = h.shift;
    return limits;
}

// Integer epilogue of one sum: scale, ReLU, add what rounds, shift, clamp.
inline int64_t requantize(const Limits& limits, int64_t multiplier, int64_t offset, int64_t sum, int64_t rounding,
                          uint32_t& saturated) {
#pragma HLS INLINE
    // |sum| <= 2^31, multiplier 18 bits, offset 48 bits: exact in 64 bits
    const int64_t scaled = sum * multiplier + offset;
    const int64_t v = ((scaled < limits.least ? limits.least : scaled) + rounding) >> limits.shift;
    const int64_t at_least = v < limits.low ? limits.low : v;
    const int64_t code = at_least > limits.high ? limits.high : at_least;
    saturated += code != v ? 1 : 0;
    return code;
}

}  // namespace kernel
