// SPDX-License-Identifier: Apache-2.0
// What the epilogue of a tile reads beside its sums: the operands SIDE and ADDED, in buffer G.
//
// The engine owns that buffer.  While the array computes a tile it brings one plane per cycle into registers, and each
// line of sums takes its pixels' elements along.
#pragma once

#include "buffers.h"
#include "plane_pairs.h"

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
    Address side, added;                 // addresses of their first planes
    uint32_t side_planes, added_planes;  // none in a product without an epilogue
    uint32_t next;                       // plane, of both together
};

inline void begin_fetch(const Header& h, const Place& place, Fetch& fetch) {
#pragma HLS INLINE
    const bool epilogue = kind_of(h).epilogue;
    fetch.side_planes = epilogue ? side_planes(h) : 0;
    fetch.added_planes = epilogue ? h.added_bits : 0;
    const Address block = Address(Address(place.image) * Address(blocks_of(h.rows)) + Address(place.y / ROW_BANKS));
    const Address tile = Address(block * Address(h.out_groups) + Address(place.out_group));
    fetch.bank = place.y % ROW_BANKS;
    fetch.side = Address(Address(h.base_side) + Address(tile * Address(fetch.side_planes)));
    fetch.added = Address(Address(h.base_added) + Address(tile * Address(fetch.added_planes)));
    fetch.next = 0;
}

inline bool fetching(const Fetch& fetch) {
#pragma HLS INLINE
    return fetch.next != fetch.side_planes + fetch.added_planes;
}

// Address of the next plane.
inline Address address_of(const Fetch& fetch) {
#pragma HLS INLINE
    const bool of_side = fetch.next < fetch.side_planes;
    return Address(of_side ? fetch.side + Address(fetch.next) : fetch.added + Address(fetch.next - fetch.side_planes));
}

// The next plane has been read, if there is one.
inline void take_plane(const uint64_t words[ROW_WORDS], Fetch& fetch, SidePlanes& planes) {
#pragma HLS INLINE
    if (!fetching(fetch)) return;
    const bool of_side = fetch.next < fetch.side_planes;
    const uint32_t place = of_side ? fetch.next : MOST_SIDE_PLANES + fetch.next - fetch.side_planes;
    for (unsigned n = 0; n < MOST_PLANES; ++n) {
#pragma HLS UNROLL
        for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
            if (n == place) planes.word[n][word] = words[word];
        }
    }
    ++fetch.next;
}

// Read the next plane.
inline void fetch_plane(const OperandBuffers& buffers, Fetch& fetch, SidePlanes& planes) {
#pragma HLS INLINE
    uint64_t words[ROW_WORDS];
#pragma HLS ARRAY_PARTITION variable = words complete
    for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
        words[word] = 0;
        for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
            if (bank == fetch.bank) words[word] = buffers.g[bank][uint32_t(address_of(fetch))][word];
        }
    }
    take_plane(words, fetch, planes);
}

// Bits of one pixel and channel in planes from FIRST on; those that the tile does not have are left to who reads it.
template <unsigned FIRST, unsigned COUNT>
uint32_t element_of(const SidePlanes& planes, unsigned lane, unsigned channel) {
#pragma HLS INLINE
    // a lane is constant and a channel is not: bits of other lanes need no selection
    const unsigned word = lane * CHANNELS / 64, low = lane * CHANNELS % 64;
    uint32_t element = 0;
    for (unsigned n = 0; n < COUNT; ++n) {
#pragma HLS UNROLL
        const uint32_t channels = uint32_t(planes.word[FIRST + n][word] >> low) & low_mask(CHANNELS);
        element |= ((channels >> channel) & 1) << n;
    }
    return element;
}

}  // namespace kernel
