// SPDX-License-Identifier: Apache-2.0
// Codes to bit planes.
#pragma once

#include "header.h"

namespace kernel {

// Bit planes of a tile of codes, as many as it has in all sections.
#if FABRIC_NATIVE
constexpr unsigned PLANE_SLOTS = (SECTION_PLANES + 7) / 8 * 8;
#else
constexpr unsigned PLANE_SLOTS = SECTION_PLANES;
#endif
struct CodePlanes {
    uint64_t word[PLANE_SLOTS][ROW_WORDS];
};

#if FABRIC_NATIVE

// Bit 8r + c of the result is bit 8c + r of the argument: an 8x8 bit matrix turned over its diagonal.
inline uint64_t transpose8x8(uint64_t x) {
    uint64_t t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAull;
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCull;
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ull;
    return x ^ t ^ (t << 28);
}

// Eight planes of 64 codes, from bit `first` on.
inline void planes_of_word(const Sections codes[64], unsigned first, CodePlanes& planes, unsigned word) {
    for (unsigned b = 0; b < 8; ++b) {
        planes.word[first + b][word] = 0;
    }
    for (unsigned byte = 0; byte < 8; ++byte) {
        uint64_t bits = 0;
        for (unsigned n = 0; n < 8; ++n) {
            bits |= uint64_t((codes[8 * byte + n] >> first) & 0xFF) << (8 * n);
        }
        bits = transpose8x8(bits);
        for (unsigned b = 0; b < 8; ++b) {
            planes.word[first + b][word] |= ((bits >> (8 * b)) & 0xFF) << (8 * byte);
        }
    }
}

// Bit planes of a tile of codes: bit n of plane b is bit b of code n.  The first `bits` planes are needed.
inline void planes_of_codes(const Sections codes[TILE], uint32_t bits, CodePlanes& planes) {
    for (unsigned word = 0; word < ROW_WORDS; ++word) {
        for (unsigned first = 0; first < bits; first += 8) {
            planes_of_word(codes + 64 * word, first, planes, word);
        }
    }
}

#else

// As above, by wiring: all planes.
inline void planes_of_codes(const Sections codes[TILE], uint32_t, CodePlanes& planes) {
    for (unsigned b = 0; b < PLANE_SLOTS; ++b) {
#pragma HLS UNROLL
        for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
            ap_uint<64> plane = 0;
            for (unsigned n = 0; n < 64; ++n) {
#pragma HLS UNROLL
                plane[n] = codes[64 * word + n][b];
            }
            planes.word[b][word] = uint64_t(plane);
        }
    }
}

#endif

}  // namespace kernel
