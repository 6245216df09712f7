// SPDX-License-Identifier: Apache-2.0
// What the three processes send each other.
//
// The loader alone reads the input streams: it sends headers that it has judged to the engine as packets, and payloads
// as writes.  The engine computes tiles and sends their values to the output process as lines, each command behind the
// lines that it says what to do with.
#pragma once

#include "platform.h"

namespace kernel {

// A packet whose header has been judged.
struct Packet {
    Header header;
    uint32_t error;  // of the header, or of the stream's end behind it
};

// One row word of A, G or both; two words of W; half an entry of E; or the end of a LOAD, behind its other writes.
struct Write {
    uint32_t after;    // so many products of the program must be done
    uint32_t target;   // of the LOAD, or none at its end
    uint32_t error;    // at its end: of the payload
    uint32_t bank;     // A and G
    uint32_t address;  // A
    uint32_t other;    // address in G, W or E
    uint32_t word;     // W and E: the first of the two
    bool any;          // A and G: the row word has a bit set
    uint64_t data[ROW_WORDS];
};

constexpr unsigned LINE_VALUES = EPILOGUE_LANES > CHANNELS ? EPILOGUE_LANES : CHANNELS;
constexpr unsigned PARTS = LANES / LINE_VALUES;         // lines of an output channel
constexpr unsigned TILE_LINES = PARTS * CHANNELS;       // for each output channel, for each part
constexpr unsigned COMMAND_LINES = TILE_LINES + PARTS;  // with the sums of the first operand

// Values of one output channel for some of the pixels, with what the epilogue reads beside them; or, in the first C of
// them, one accumulator entry.
struct Line {
    Accumulated value[LINE_VALUES];
    SideElement side[LINE_VALUES];
    AddedElement added[LINE_VALUES];
};

constexpr uint32_t COMMAND_TILE = 0;   // CONV: a tile, with its operand sums if asked for
constexpr uint32_t COMMAND_ADD = 1;    // WGRAD: C + 1 entries
constexpr uint32_t COMMAND_ENTRY = 2;  // LOAD E: m, o, n, b, c, l
constexpr uint32_t COMMAND_DONE = 3;   // nothing is left of this packet but what its end brings
constexpr uint32_t COMMAND_STOP = 4;   // END, or the header's or the payload's error

struct Command {
    uint32_t kind;
    Header header;
    uint32_t row;        // of the tile, counted over all images
    uint32_t out_group;  // of the tile
    bool counts;         // the row of the tile counts in the moments
    uint32_t entry;      // first one to add to, or the one to load
    uint32_t error;
};

inline Command make_command(uint32_t kind, const Header& h, uint32_t row, uint32_t out_group, uint32_t entry) {
#pragma HLS INLINE
    Command command;
    command.kind = kind;
    command.header = h;
    command.row = row;
    command.out_group = out_group;
    command.counts = false;
    command.entry = entry;
    command.error = ERR_NONE;
    return command;
}

// Lines that go before a command.
inline unsigned lines_of(const Command& command) {
#pragma HLS INLINE
    const bool with_own = (command.header.flags & FLAG_A_SUM) != 0 && command.out_group == 0;
    if (command.kind == COMMAND_TILE) return with_own ? COMMAND_LINES : TILE_LINES;
    return command.kind == COMMAND_ADD ? CHANNELS + 1 : command.kind == COMMAND_ENTRY ? 1 : 0;
}

}  // namespace kernel

#if FABRIC_NATIVE
#include "channels_native.h"
#else
#include <hls_stream.h>

namespace kernel {

using PacketStream = hls::stream<Packet>;
using WriteStream = hls::stream<Write>;
using LineStream = hls::stream<Line>;
using CommandStream = hls::stream<Command>;

}  // namespace kernel
#endif
