// SPDX-License-Identifier: Apache-2.0
// The quantizer of FLOAT32 payloads: subtract, multiply, round, clamp.
#pragma once

#include "numbers.h"
#include "random_index.h"

namespace kernel {

// Integer next to a number that is not NaN: the nearest, ties to even, or floor(number + random * 2^-24) of the exact
// sum.  From 2^17 on the result saturates, which is out of every code's range.
inline int32_t to_integer(float number, bool stochastic, uint32_t random) {
#pragma HLS INLINE
    const uint32_t bits = as_bits(number);
    const bool negative = (bits >> 31) != 0;
    const int32_t exponent = int32_t((bits >> 23) & 0xFF) - 127;
    if (exponent >= 17) return negative ? -(1 << 17) : 1 << 17;
    // magnitude in steps of 2^-24, and whether a smaller part is left; a number below 2^-24 is just such a part
    const uint64_t wide = uint64_t((bits & 0x7FFFFFu) | 0x800000u) << 40 >> (exponent < -25 ? 41 : 16 - exponent);
    const int64_t steps = int64_t(wide >> 23);
    const bool rest = exponent != -127 && (wide & 0x7FFFFFu) != 0;
    if (stochastic) return int32_t(((negative ? -(steps + (rest ? 1 : 0)) : steps) + int64_t(random)) >> 24);
    const uint32_t fraction = uint32_t(steps) & 0xFFFFFFu;  // all of it where it may be a half or more
    const uint32_t half = 1u << 23;
    int32_t whole = int32_t(steps >> 24);
    whole += fraction > half || (fraction == half && (whole & 1) != 0) ? 1 : 0;
    return negative ? -whole : whole;
}

// Constants of one FLOAT32 packet.
struct Quantizer {
    float zero;
    float reciprocal;
    bool stochastic;
    uint32_t key;
    int32_t low;
    int32_t high;
};

inline Quantizer quantizer_of(const Header& h) {
    Quantizer q;
    const bool is_signed = (h.flags & FLAG_A_SIGNED) != 0;
    q.zero = flush(as_float(h.zero));
    q.reciprocal = flush(as_float(h.reciprocal));
    q.stochastic = (h.flags & FLAG_STOCHASTIC) != 0;
    q.key = h.key;
    q.low = is_signed ? -(1 << (h.a_bits - 1)) : 0;
    q.high = is_signed ? (1 << (h.a_bits - 1)) - 1 : (1 << h.a_bits) - 1;
    return q;
}

// Code of one value; `saturated` tells whether the clamp changed it.
inline int32_t quantize(const Quantizer& q, uint32_t value, uint32_t random_index, bool& saturated) {
#pragma HLS INLINE
    const float difference = flush(flush(as_float(value)) - q.zero);
    // a zero factor gives zero even where the difference has overflowed to infinity
    const float t = q.reciprocal == 0.0f ? 0.0f : flush(difference * q.reciprocal);
    const int32_t code = to_integer(t, q.stochastic, fmix32(random_index ^ q.key) >> 8);
    saturated = code < q.low || code > q.high;
    return code < q.low ? q.low : code > q.high ? q.high : code;
}

}  // namespace kernel
