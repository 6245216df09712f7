// SPDX-License-Identifier: Apache-2.0
// Bits of integers and of single-precision numbers.
#pragma once

#include "platform.h"

namespace kernel {

// Low `bits` bits set.
inline uint32_t low_mask(uint32_t bits) {
#pragma HLS INLINE
    return bits >= 32 ? 0xFFFFFFFFu : (uint32_t(1) << bits) - 1;
}

// Two's complement value of the low `bits` bits.
inline int64_t sign_extend(uint64_t value, unsigned bits) {
#pragma HLS INLINE
    const uint64_t sign = uint64_t(1) << (bits - 1);
    return int64_t(((value & ((sign << 1) - 1)) ^ sign) - sign);
}

inline float as_float(uint32_t bits) {
#pragma HLS INLINE
    union {
        uint32_t u;
        float f;
    } value;
    value.u = bits;
    return value.f;
}

inline uint32_t as_bits(float number) {
#pragma HLS INLINE
    union {
        uint32_t u;
        float f;
    } value;
    value.f = number;
    return value.u;
}

inline bool is_float_finite(uint32_t bits) {
#pragma HLS INLINE
    return (bits & 0x7F800000u) != 0x7F800000u;
}

// Subnormals become zero of either sign, as floating-point cores on the fabric do.
inline float flush(float number) {
#pragma HLS INLINE
    const uint32_t bits = as_bits(number);
    return (bits & 0x7F800000u) == 0 ? as_float(bits & 0x80000000u) : number;
}

}  // namespace kernel
