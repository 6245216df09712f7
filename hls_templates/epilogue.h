// SPDX-License-Identifier: Apache-2.0
// The epilogue's arithmetic, element by element: sums to values, values to codes; docs/programs.md names x and w.
#pragma once

#include "buffers.h"
#include "header.h"
#include "rounding.h"

namespace kernel {

constexpr int64_t VALUE_LIMIT = int64_t(1) << (VALUE_BITS - 1);

// t / 2^s, to nearest, halves up.
inline int64_t rshift(int64_t t, uint32_t s) {
#pragma HLS INLINE
    return (t + ((int64_t(1) << s) >> 1)) >> s;
}

inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
#pragma HLS INLINE
    const int64_t at_least = value < low ? low : value;
    return at_least > high ? high : at_least;
}

inline int32_t saturate(int64_t value) {
#pragma HLS INLINE
    return int32_t(clamp(value, -VALUE_LIMIT, VALUE_LIMIT - 1));
}

// One section of codes.
struct Section {
    uint32_t bits, shift;
    uint32_t half;  // rounds to nearest
    int32_t low, high;
};

inline Section section_of(uint32_t bits, uint32_t shift, bool is_signed) {
#pragma HLS INLINE
    const int32_t sign = (int32_t(1) << bits) >> 1;
    Section section;
    section.bits = bits;
    section.shift = shift;
    section.half = (uint32_t(1) << shift) >> 1;
    section.low = is_signed ? -sign : 0;
    section.high = is_signed ? sign - 1 : (int32_t(1) << bits) - 1;
    return section;
}

// Settings of one packet.
struct Settings {
    uint32_t side_bits, added_bits;
    bool side_signed, masked;
    uint32_t shift, value_shift;
    bool relu, stochastic;
    Section out, keep, wide;
    bool keep_mask;
};

inline Settings settings_of(const Header& h) {
#pragma HLS INLINE
    const bool out_signed = (h.flags & FLAG_OUT_SIGNED) != 0;
    Settings settings;
    settings.side_bits = h.side_bits;
    settings.added_bits = h.added_bits;
    settings.side_signed = (h.flags & FLAG_SIDE_SIGNED) != 0;
    settings.masked = (h.flags & FLAG_MASKED) != 0;
    settings.shift = h.shift;
    settings.value_shift = h.value_shift;
    settings.relu = (h.flags & FLAG_RELU) != 0;
    settings.stochastic = ROUNDING != 0 && (h.flags & FLAG_STOCHASTIC) != 0;
    settings.out = section_of(h.out_bits, h.out_shift, out_signed);
    settings.keep = section_of(h.keep_bits, h.keep_shift, true);
    settings.wide = section_of(h.wide_bits, h.wide_shift, out_signed);
    settings.keep_mask = (h.flags & FLAG_KEEP_MASK) != 0;
    return settings;
}

// Element of an operand of `bits` bits, 0 if there is none.
inline int32_t operand_of(uint32_t element, uint32_t bits, bool is_signed) {
#pragma HLS INLINE
    const uint32_t code = element & low_mask(bits);
    const uint32_t sign = (uint32_t(1) << bits) >> 1;
    return is_signed ? int32_t(code ^ sign) - int32_t(sign) : int32_t(code);
}

// x of a sum, not saturated yet.
inline int64_t inner_of(const Settings& settings, const Entry& entry, int32_t sum, uint32_t side, uint32_t added) {
#pragma HLS INLINE
    // |sum| <= 2^31, m 18 bits, b 48 bits: exact in 64 bits
    const int64_t operand = operand_of(added, settings.added_bits, true);
    const int64_t scaled = sum * int64_t(entry.m) + int64_t(entry.b);
    const int64_t p = scaled + operand * int64_t(entry.o) * (int64_t(1) << OPERAND_SHIFT);
    const bool passes = !settings.masked || ((side >> settings.side_bits) & 1) != 0;
    return rshift(passes ? p : 0, settings.shift);
}

// w of an x.
inline int32_t value_of(const Settings& settings, const Entry& entry, int32_t x, int32_t k) {
#pragma HLS INLINE
    const int64_t own = x * int64_t(entry.n) + int64_t(entry.c);
    const int64_t v = own + k * int64_t(entry.l) * (int64_t(1) << OPERAND_SHIFT);
    const int32_t w = saturate(rshift(v, settings.value_shift));
    return settings.relu && w < 0 ? 0 : w;
}

// A value before it is clamped to its code.
inline int32_t rounded(const Section& section, int32_t value, uint32_t rounding) {
#pragma HLS INLINE
    return (value + int32_t(rounding)) >> section.shift;
}

inline uint32_t code_bits(const Section& section, int32_t code) {
#pragma HLS INLINE
    return uint32_t(clamp(code, section.low, section.high)) & low_mask(section.bits);
}

// The planes of one element in all sections, A lowest; counts an A that is clamped.
inline uint32_t sections_of(const Settings& settings, int32_t x, int32_t w, uint32_t random, uint32_t& clamped) {
#pragma HLS INLINE
    const Section &out = settings.out, &keep = settings.keep, &wide = settings.wide;
    const bool stochastic = settings.stochastic;
    const int32_t a = rounded(out, w, stochastic ? random >> (RANDOM_BITS - out.shift) : out.half);
    const int32_t k = rounded(keep, x, stochastic ? reverse_bits(random) >> (RANDOM_BITS - keep.shift) : keep.half);
    clamped += a < out.low || a > out.high ? 1 : 0;
    const uint32_t above_keep = out.bits + keep.bits;
    uint32_t planes = code_bits(out, a) | code_bits(keep, k) << out.bits;
    if (settings.keep_mask) planes |= uint32_t(w > 0) << above_keep;
    return planes | code_bits(wide, rounded(wide, w, wide.half)) << (above_keep + (settings.keep_mask ? 1 : 0));
}

}  // namespace kernel
