// SPDX-License-Identifier: Apache-2.0
// What a packet's header asks for: kind, shape, payload, addresses.
#pragma once

#include "numbers.h"

namespace kernel {

constexpr unsigned TILE = LANES * CHANNELS;  // codes of one row of one group

inline uint32_t blocks_of(uint32_t rows) {
#pragma HLS INLINE
    return (rows + ROW_BANKS - 1) / ROW_BANKS;
}

// Virtual rows of the first operand per image.
inline uint32_t operand_rows(const Header& h) {
#pragma HLS INLINE
    return h.opcode == OP_CONV && (h.flags & FLAG_STRIDE_2) != 0 ? 4 * h.rows : h.rows;
}

// Kernel positions that a WGRAD computes.
inline uint32_t taps_of(const Header& h) {
#pragma HLS INLINE
    uint32_t count = 0;
    for (unsigned tap = 0; tap < TAPS; ++tap) {
#pragma HLS UNROLL
        count += (h.taps >> tap) & 1;
    }
    return count;
}

// Which operation a header asks for, in the words of the rules below.
struct Kind {
    bool load, conv, wgrad, read, product;
    bool to_a, to_g, to_w, to_e, tensor, entries;
    bool codes, epilogue;  // CONV CODES; CODES or MOMENTS
    bool moments;          // they follow the last tile
    bool random;           // the operation draws random numbers
    bool strided;
};

inline Kind kind_of(const Header& h) {
#pragma HLS INLINE
    Kind k;
    k.load = h.opcode == OP_LOAD;
    k.conv = h.opcode == OP_CONV;
    k.wgrad = h.opcode == OP_WGRAD;
    k.read = h.opcode == OP_READ;
    k.product = k.conv || k.wgrad;
    k.to_a = k.load && (h.target & TARGET_A) != 0;
    k.to_g = k.load && (h.target & TARGET_G) != 0;
    k.to_w = k.load && (h.target & TARGET_W) != 0;
    k.to_e = k.load && (h.target & TARGET_E) != 0;
    k.tensor = k.to_a || k.to_g;
    k.entries = k.to_w || k.to_e;
    k.codes = k.conv && h.format == FORMAT_CODES;
    const bool only_moments = k.conv && h.format == FORMAT_MOMENTS;
    k.epilogue = k.codes || only_moments;
    k.moments = only_moments || (k.codes && (h.flags & FLAG_RECORDS) != 0);
    k.random = k.codes && (h.flags & FLAG_STOCHASTIC) != 0;
    k.strided = k.conv && (h.flags & FLAG_STRIDE_2) != 0;
    return k;
}

// Planes of the operand SIDE of an epilogue, its mask on top.
inline uint32_t side_planes(const Header& h) {
#pragma HLS INLINE
    return h.side_bits + ((h.flags & FLAG_MASKED) != 0 ? 1 : 0);
}

// Planes that a tile of CODES sends.
inline uint32_t section_planes(const Header& h) {
#pragma HLS INLINE
    return h.out_bits + h.keep_bits + ((h.flags & FLAG_KEEP_MASK) != 0 ? 1 : 0) + h.wide_bits;
}

// Payload that the shape needs.
inline uint32_t payload_of(const Header& h, const Kind& k) {
    if (k.tensor) return h.images * h.rows * h.groups * h.a_bits * ROW_WORDS;
    if (k.to_w) return h.rows * WEIGHT_WORDS;
    if (k.to_e) return h.rows * ENTRY_WORDS;
    return 0;
}

// Addresses first .. end - 1 of a buffer; none if both are zero.
struct Range {
    uint32_t first, end;
};

inline bool meet(const Range& x, const Range& y) {
#pragma HLS INLINE
    return x.first < y.end && y.first < x.end;
}

// What a LOAD writes to, or a product reads, in the operands' buffers (in all banks).  What a CONV reads in G is SIDE,
// and ADDED.
struct Ranges {
    Range a, g, added, w;
};

inline Ranges ranges_of(const Header& h, const Kind& k) {
    // at most 64 * 128, times 64 groups times 16 bits: 23 bits
    const uint32_t stack = h.images * blocks_of(operand_rows(h));
    const uint32_t a_size = stack * h.groups * h.a_bits;
    const uint32_t g_size = k.wgrad ? stack * h.out_groups * h.b_bits : a_size;
    const uint32_t w_size = k.conv ? h.out_groups * h.groups * h.b_bits : h.rows;
    Ranges ranges = {};
    if (k.to_a || k.product) ranges.a = Range{h.base_a, h.base_a + a_size};
    if (k.to_g || k.wgrad) ranges.g = Range{h.base_b, h.base_b + g_size};
    const uint32_t elements = h.images * blocks_of(h.rows) * h.out_groups;
    if (k.epilogue && side_planes(h) != 0) {
        ranges.g = Range{h.base_side, h.base_side + elements * side_planes(h)};
    }
    if (k.epilogue && h.added_bits != 0) ranges.added = Range{h.base_added, h.base_added + elements * h.added_bits};
    if (k.to_w || k.conv) ranges.w = Range{h.base_b, h.base_b + w_size};
    return ranges;
}

}  // namespace kernel
