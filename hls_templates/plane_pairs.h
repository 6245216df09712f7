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
template <typename Banks>
uint32_t planes_in_use(const Banks& any, uint32_t base, uint32_t addresses, uint32_t bits) {
    uint32_t used = 0, plane = 0;
    for (uint32_t n = 0; n < addresses; ++n) {
#pragma HLS PIPELINE II = 1
        bool some = false;
        for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
            const bool set = any[bank][base + n];
            some |= set;
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

// Bit p: pixel p has a left (right) neighbour in its own segment.
inline uint32_t has_left(const Header& h) {
#pragma HLS INLINE
    return ~h.segment_start & low_mask(LANES);
}

inline uint32_t has_right(const Header& h) {
#pragma HLS INLINE
    return (~h.segment_start & low_mask(LANES)) >> 1;
}

// A tile's place in its product.
struct Place {
    bool wgrad;
    uint32_t image, y;   // CONV
    uint32_t group;      // WGRAD: of the first operand
    bool ones;           // WGRAD: the group behind the others, whose elements are all one
    uint32_t tap, rank;  // WGRAD: kernel position, and which one of those that are computed
    uint32_t out_group;
};

inline Place conv_place(uint32_t image, uint32_t y) {
#pragma HLS INLINE
    Place place = {};
    place.image = image;
    place.y = y;
    return place;
}

inline Place wgrad_place(const Header& h, uint32_t out_group, uint32_t group) {
#pragma HLS INLINE
    Place place = {};
    place.wgrad = true;
    place.group = group;
    place.ones = group == h.groups;
    place.out_group = out_group;
    return place;
}

// Planes of the operands of a tile.  The group of ones has one unsigned plane.
inline Planes planes_of(const Header& h, const Place& place) {
#pragma HLS INLINE
    Planes planes;
    planes.a_bits = place.ones ? 1 : h.a_bits;
    planes.b_bits = h.b_bits;
    planes.a_mask = place.ones ? 1 : h.a_planes;
    planes.b_mask = h.b_planes;
    planes.a_signed = (h.flags & FLAG_A_SIGNED) != 0 && !place.ones;
    planes.b_signed = (h.flags & FLAG_B_SIGNED) != 0;
    planes.sums = (h.flags & FLAG_A_SUM) != 0 || place.wgrad;
    return planes;
}

}  // namespace kernel
