// SPDX-License-Identifier: Apache-2.0
// The rules that a header must keep; docs/packets.md lists them.
#pragma once

#include "header.h"

namespace kernel {

inline bool within(uint32_t value, uint32_t limit) {
#pragma HLS INLINE
    return value >= 1 && value <= limit;
}

// Bits are set that no packet of this operation, target and format has; where there is no such packet, all of them.
inline bool extra_bits(const Header& h, const uint32_t halves[HEADER_HALVES], const Kind& k) {
    uint32_t used[HEADER_HALVES] = {};
    for (unsigned n = 0; n < PACKET_KINDS; ++n) {
#pragma HLS UNROLL
        const PacketKind& kind = PACKETS[n];
        if (kind.opcode != h.opcode || kind.target != h.target || kind.format != h.format) continue;
        for (unsigned i = 0; i < HEADER_HALVES; ++i) {
#pragma HLS UNROLL
            const bool records = k.codes && k.moments;
            used[i] = kind.used[i] | (k.random ? STOCHASTIC_BITS[i] : 0) | (records ? RECORDS_BITS[i] : 0);
        }
    }
    uint32_t extra = 0;
    for (unsigned i = 0; i < HEADER_HALVES; ++i) {
#pragma HLS UNROLL
        extra |= halves[i] & ~used[i];
    }
    return extra != 0;
}

// A field is set that the operation does not use, or has a value that it does not know.
inline bool bad_field(const Header& h, const uint32_t halves[HEADER_HALVES], const Kind& k) {
    bool bad = extra_bits(h, halves, k);
    bad |= k.wgrad && h.taps == 0;
    bad |= k.random && h.factor == 0;
    bad |= k.epilogue && (h.flags & FLAG_CROSS) != 0 && h.side_bits == 0;

    // a mask has no bit beyond its precision; a precision of zero is reported as such instead
    bad |= k.product && h.a_bits >= 1 && (h.a_planes & ~low_mask(h.a_bits)) != 0;
    bad |= k.product && h.b_bits >= 1 && (h.b_planes & ~low_mask(h.b_bits)) != 0;
    return bad;
}

inline bool bad_bits(const Header& h, const Kind& k) {
    bool bad = (k.tensor || k.product) && !within(h.a_bits, MAX_BITS);
    bad |= k.product && !within(h.b_bits, MAX_BITS);
    bad |= k.epilogue && (h.shift > MAX_SHIFT || h.side_bits > MAX_SIDE_BITS || h.added_bits > MAX_SIDE_BITS);
    bad |= k.codes && (!within(h.out_bits, MAX_BITS) || h.value_shift > MAX_SHIFT);
    bad |= k.codes && (h.keep_bits > MAX_SIDE_BITS || h.wide_bits > MAX_SIDE_BITS);
    bad |= k.codes && (h.out_shift > MAX_CODE_SHIFT || h.keep_shift > MAX_CODE_SHIFT || h.wide_shift > MAX_CODE_SHIFT);
    bad |= k.codes && section_planes(h) > SECTION_PLANES;
    return bad;
}

inline bool bad_shape(const Header& h, const Kind& k) {
    bool bad = (k.tensor || k.product) && !within(h.rows, k.strided ? MAX_ROWS / 4 : MAX_ROWS);
    bad |= (k.entries || k.read) && !within(h.rows, MAX_ENTRIES);
    bad |= (k.tensor || k.product) && (!within(h.groups, MAX_GROUPS) || !within(h.images, MAX_IMAGES));
    bad |= k.product && !within(h.out_groups, MAX_OUT_GROUPS);
    bad |= k.load && h.out_groups != 1;
    bad |= k.entries && (h.groups != 1 || h.images != 1);
    bad |= k.moments && (h.valid == 0 || (h.valid & ~low_mask(LANES)) != 0);
    bad |= k.moments && !(h.first_row < h.last_row && h.last_row <= h.rows);
    bad |= k.product && ((h.segment_start & 1) == 0 || (h.segment_start & ~low_mask(LANES)) != 0);
    return bad;
}

inline bool out_of_buffer(const Header& h, const Kind& k) {
    const Ranges ranges = ranges_of(h, k);
    const uint32_t e_size = k.conv ? h.out_groups * CHANNELS : h.rows;
    const uint32_t ones = (h.flags & FLAG_ONES) != 0 ? 1 : 0;
    const uint32_t c_size = k.wgrad ? h.out_groups * (h.groups + ones) * taps_of(h) * (CHANNELS + 1) : h.rows;
    bool bad = ranges.a.end > DEPTH_A || ranges.g.end > DEPTH_G || ranges.w.end > DEPTH_W;
    bad |= ranges.added.end > DEPTH_G;
    bad |= (k.to_e || k.epilogue) && h.base_epilogue + e_size > DEPTH_EPILOGUE;
    bad |= (k.wgrad || k.read) && h.base_accumulator + c_size > DEPTH_ACCUMULATOR;
    return bad;
}

// The sums could leave the accumulators, or the output format.
inline bool overflow(const Header& h, const Kind& k) {
    if (!k.product) return false;
    const uint64_t length = k.conv ? uint64_t(DOT_BITS) * h.groups : uint64_t(h.rows) * h.images * LANES;
    const bool wide = k.wgrad || h.format == FORMAT_INT64;
    return (length << (h.a_bits + h.b_bits)) > (uint64_t(1) << (wide ? ACC_BITS - 1 : 31));
}

// First rule that a header breaks.
inline uint32_t check_header(const Header& h, const uint32_t halves[HEADER_HALVES], uint32_t check) {
    if (h.magic != MAGIC || h.version != CONTRACT_VERSION) return ERR_BAD_MAGIC;
    if (h.check != check) return ERR_BAD_CHECK;
    const Kind k = kind_of(h);
    if (!(k.load || k.product || k.read || h.opcode == OP_END)) return ERR_BAD_OPCODE;
    if (bad_field(h, halves, k)) return ERR_BAD_FIELD;
    if (bad_bits(h, k)) return ERR_BAD_BITS;
    if (bad_shape(h, k)) return ERR_BAD_SHAPE;
    if (h.payload_words != payload_of(h, k)) return ERR_BAD_LENGTH;
    if (out_of_buffer(h, k)) return ERR_OUT_OF_BUFFER;
    if (overflow(h, k)) return ERR_OVERFLOW;
    return ERR_NONE;
}

}  // namespace kernel
