// SPDX-License-Identifier: Apache-2.0
// Finished tiles in the engine.
//
// A finished tile is copied at once and leaves from its copy, the shadow, while the array computes the next one.
// Writes to the output process do not block: one that finds no room is tried again, and the array goes on.  It rests
// only if a tile is finished before the one before it has left, and at a product's end.
#pragma once

#include "channels.h"
#include "intake.h"
#include "side_fetch.h"

namespace kernel {

// The array's sums.  A lane is a pixel in CONV; in WGRAD it is a half of the rows and an input channel.
struct Tile {
    Accumulated sums[LANES][CHANNELS];  // by output channel
    Accumulated own[LANES];             // of the first operand alone
};

struct Shadow {
    bool occupied;
    Command command;  // goes behind the tile's lines
    unsigned line;    // the next one
    Tile tile;
    bool with_side;  // the epilogue reads more than the sums
    SidePlanes side;
};

inline void clear(Tile& tile) {
#pragma HLS INLINE
    for (unsigned lane = 0; lane < LANES; ++lane) {
#pragma HLS UNROLL
        tile.own[lane] = 0;
        for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
            tile.sums[lane][oc] = 0;
        }
    }
}

// Of one pixel, or one accumulator entry's.
inline Accumulated value_of(const Tile& tile, unsigned column, unsigned lane) {
#pragma HLS INLINE
    return column < CHANNELS ? tile.sums[lane][column] : tile.own[lane];
}

// The next line of a weight gradient: both halves added up.
inline void entry_of(const Shadow& shadow, Line& line) {
#pragma HLS INLINE
    for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
        const Accumulated low = value_of(shadow.tile, shadow.line, k);
        line.value[k] = low + value_of(shadow.tile, shadow.line, CHANNELS + k);
    }
}

// The next line of a convolution: an output channel in one part of the lanes.
inline void pixels_of(const Shadow& shadow, Line& line) {
#pragma HLS INLINE
    const unsigned column = shadow.line / PARTS, part = shadow.line % PARTS;
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        for (unsigned n = 0; n < PARTS; ++n) {
#pragma HLS UNROLL
            if (n != part) continue;
            const unsigned lane = n * LINE_VALUES + k;
            line.value[k] = value_of(shadow.tile, column, lane);
            if (!shadow.with_side || column == CHANNELS) continue;
            line.side[k] = SideElement(element_of<0, MOST_SIDE_PLANES>(shadow.side, lane, column));
            line.added[k] = AddedElement(element_of<MOST_SIDE_PLANES, MAX_SIDE_BITS>(shadow.side, lane, column));
        }
    }
}

inline Line line_of(const Shadow& shadow) {
#pragma HLS INLINE
    Line line;
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        line.value[k] = 0;
        line.side[k] = 0;
        line.added[k] = 0;
    }
    if (shadow.command.kind == COMMAND_ADD) {
        entry_of(shadow, line);
    } else {
        pixels_of(shadow, line);
    }
    return line;
}

// In each cycle of a product: the next line of the finished tile, and behind the last one its command.
inline void hand_over(Shadow& shadow, CommandStream& commands, LineStream& lines) {
#pragma HLS INLINE
    if (!shadow.occupied) return;
    const unsigned count = lines_of(shadow.command);
    if (shadow.line != count && try_write(lines, pack(line_of(shadow)))) ++shadow.line;
    if (shadow.line == count && try_write(commands, pack(shadow.command))) shadow.occupied = false;
}

// The rest of the finished tile; loads go on meanwhile.
inline void finish_tile(OperandBuffers& buffers, WriteStream& writes, Intake& intake, Shadow& shadow,
                        CommandStream& commands, LineStream& lines) {
// one for all its callers
#pragma HLS INLINE off
    while (shadow.occupied) {
#pragma HLS PIPELINE II = 1
        hand_over(shadow, commands, lines);
        absorb(buffers, writes, intake);
    }
}

// The rest of a tile's planes, where the array has been faster; all else goes on meanwhile.
inline void finish_fetch(OperandBuffers& buffers, WriteStream& writes, Intake& intake, Shadow& shadow,
                         CommandStream& commands, LineStream& lines, Fetch& fetch, SidePlanes& side) {
#pragma HLS INLINE
    while (fetching(fetch)) {
#pragma HLS PIPELINE II = 1
// what is absorbed is never in the ranges that this product reads (make_write)
#pragma HLS DEPENDENCE variable = buffers.g type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = intra dependent = false
        fetch_plane(buffers, fetch, side);
        hand_over(shadow, commands, lines);
        absorb(buffers, writes, intake);
    }
}

// Copy a tile that the array has finished; the one before it has left.
inline void keep_tile(Shadow& shadow, const Tile& tile, const Command& command) {
#pragma HLS INLINE
    shadow.occupied = true;
    shadow.command = command;
    shadow.line = 0;
    shadow.with_side = false;
    for (unsigned lane = 0; lane < LANES; ++lane) {
#pragma HLS UNROLL
        shadow.tile.own[lane] = tile.own[lane];
        for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
            shadow.tile.sums[lane][oc] = tile.sums[lane][oc];
        }
    }
}

// Likewise the planes that have come for it.
inline void keep_planes(Shadow& shadow, const Fetch& fetch, const SidePlanes& side) {
#pragma HLS INLINE
    shadow.with_side = fetch.side_planes + fetch.added_planes != 0;
    if (!shadow.with_side) return;
    for (unsigned n = 0; n < MOST_PLANES; ++n) {
#pragma HLS UNROLL
        for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
            shadow.side.word[n][word] = side.word[n][word];
        }
    }
}

}  // namespace kernel
