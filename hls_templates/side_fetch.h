// SPDX-License-Identifier: Apache-2.0
// What the epilogue of a tile reads beside its sums: the operands SIDE and ADDED, in buffer G.
//
// The engine owns that buffer.  While the array computes a tile it brings one plane per cycle into registers, and each
// line of sums takes its pixels' elements along.
#pragma once

#include "buffers.h"
#include "header.h"

namespace kernel {

constexpr unsigned MOST_SIDE_PLANES = MAX_SIDE_BITS + 1;
constexpr unsigned MOST_PLANES = MOST_SIDE_PLANES + MAX_SIDE_BITS;

// Planes of a tile: those of SIDE first, from MOST_SIDE_PLANES on those of ADDED.
struct SidePlanes {
    uint64_t word[MOST_PLANES][ROW_WORDS];
};

// Where the fetch of a tile is.
struct Fetch {
    uint32_t bank;
    uint32_t side, added;                // addresses of their first planes
    uint32_t side_planes, added_planes;  // none in a product without an epilogue
    uint32_t next;                       // plane, of both together
};

inline void begin_fetch(const Header& h, uint32_t image, uint32_t y, uint32_t out_group, Fetch& fetch) {
#pragma HLS INLINE
    const bool epilogue = kind_of(h).epilogue;
    fetch.side_planes = epilogue ? side_planes(h) : 0;
    fetch.added_planes = epilogue ? h.added_bits : 0;
    // no more than the addresses of G
    const uint16_t place = uint16_t((image * blocks_of(h.rows) + y / ROW_BANKS) * h.out_groups + out_group);
    fetch.bank = y % ROW_BANKS;
    fetch.side = h.base_side + place * fetch.side_planes;
    fetch.added = h.base_added + place * fetch.added_planes;
    fetch.next = 0;
}

inline bool fetching(const Fetch& fetch) {
#pragma HLS INLINE
    return fetch.next != fetch.side_planes + fetch.added_planes;
}

// In each cycle of a tile: the next plane, if there is one.
inline void fetch_plane(const OperandBuffers& buffers, Fetch& fetch, SidePlanes& planes) {
#pragma HLS INLINE
    if (!fetching(fetch)) return;
    const bool of_side = fetch.next < fetch.side_planes;
    const uint32_t added = fetch.next - fetch.side_planes;
    const uint32_t address = of_side ? fetch.side + fetch.next : fetch.added + added;
    const uint32_t place = of_side ? fetch.next : MOST_SIDE_PLANES + added;
    for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
        uint64_t read = 0;
        for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
            if (bank == fetch.bank) read = buffers.g[bank][address][word];
        }
        for (unsigned n = 0; n < MOST_PLANES; ++n) {
#pragma HLS UNROLL
            if (n == place) planes.word[n][word] = read;
        }
    }
    ++fetch.next;
}

// Bits of one pixel and channel in planes from FIRST on; those that the tile does not have are left to who reads it.
template <unsigned FIRST, unsigned COUNT>
uint32_t element_of(const SidePlanes& planes, unsigned bit) {
#pragma HLS INLINE
    uint32_t element = 0;
    for (unsigned n = 0; n < COUNT; ++n) {
#pragma HLS UNROLL
        element |= uint32_t((planes.word[FIRST + n][bit / 64] >> (bit % 64)) & 1) << n;
    }
    return element;
}

}  // namespace kernel
