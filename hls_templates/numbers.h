// SPDX-License-Identifier: Apache-2.0
// Bits of integers.
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

}  // namespace kernel
