// SPDX-License-Identifier: Apache-2.0
// One array serves every precision: it ANDs a bit plane of the first operand with a bit plane of the second and counts.
// Plane pairs (i, j) are walked by falling i + j, and the accumulators double between diagonals (Horner), so a product
// of a-bit and b-bit codes costs a*b passes.  A two's complement sign plane subtracts.
#pragma once

#include "header.h"

namespace kernel {

// Operand planes of one tile.
struct Planes {
    uint32_t a_bits, b_bits;
    uint32_t a_mask, b_mask;
    bool a_signed, b_signed;
    bool sums;  // pairs (i, 0) are needed for the operand's own sums too
};

inline bool computed(const Planes& planes, uint32_t i, uint32_t j) {
#pragma HLS INLINE
    return ((planes.a_mask >> i) & 1) != 0 && (((planes.b_mask >> j) & 1) != 0 || (planes.sums && j == 0));
}

inline bool subtracts(const Planes& planes, uint32_t i, uint32_t j) {
#pragma HLS INLINE
    return (planes.a_signed && i == planes.a_bits - 1) != (planes.b_signed && j == planes.b_bits - 1);
}

// Bit i: plane i of a tensor has a bit set in any bank, at any of its addresses.
template <unsigned DEPTH>
uint32_t planes_in_use(const bool (&any)[ROW_BANKS][DEPTH], uint32_t base, uint32_t addresses, uint32_t bits) {
    uint32_t used = 0, plane = 0;
    for (uint32_t n = 0; n < addresses; ++n) {
#pragma HLS PIPELINE II = 1
        bool some = false;
        for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
            some |= any[bank][base + n];
        }
        used |= uint32_t(some) << plane;
        plane = plane + 1 == bits ? 0 : plane + 1;
    }
    return used;
}

// First and last plane of the first operand on diagonal i + j = d.
inline uint32_t first_on(const Planes& planes, uint32_t d) {
#pragma HLS INLINE
    return d < planes.b_bits ? 0 : d - planes.b_bits + 1;
}

inline uint32_t last_on(const Planes& planes, uint32_t d) {
#pragma HLS INLINE
    return d < planes.a_bits ? d : planes.a_bits - 1;
}

// Array cycles that one tile saves, a pair taking `cycles`: pairs left out, less one cycle for each empty diagonal.
inline uint32_t cycles_saved(const Planes& planes, uint32_t cycles) {
    uint32_t saved = 0;
    for (uint32_t d = 0; d < planes.a_bits + planes.b_bits - 1; ++d) {
        bool empty = true;
        for (uint32_t i = first_on(planes, d); i <= last_on(planes, d); ++i) {
#pragma HLS PIPELINE II = 1
            if (computed(planes, i, d - i)) {
                empty = false;
            } else {
                saved += cycles;
            }
        }
        if (empty) --saved;
    }
    return saved;
}

// Bit p: pixel p has a left (right) neighbour in its own segment.
inline uint32_t has_left(const Header& h) {
#pragma HLS INLINE
    return ~h.segment_start & low_mask(LANES);
}

inline uint32_t has_right(const Header& h) {
#pragma HLS INLINE
    return (~h.segment_start & low_mask(LANES)) >> 1;
}

inline Planes conv_planes(const Header& h) {
#pragma HLS INLINE
    Planes planes;
    planes.a_bits = h.a_bits;
    planes.b_bits = h.b_bits;
    planes.a_mask = h.a_planes;
    planes.b_mask = h.b_planes;
    planes.a_signed = (h.flags & FLAG_A_SIGNED) != 0;
    planes.b_signed = (h.flags & FLAG_B_SIGNED) != 0;
    planes.sums = (h.flags & FLAG_A_SUM) != 0;
    return planes;
}

// As for CONV; the group of ones has one unsigned plane.
inline Planes wgrad_planes(const Header& h, bool ones) {
#pragma HLS INLINE
    Planes planes = conv_planes(h);
    planes.sums = true;
    if (ones) {
        planes.a_bits = 1;
        planes.a_mask = 1;
        planes.a_signed = false;
    }
    return planes;
}

}  // namespace kernel
