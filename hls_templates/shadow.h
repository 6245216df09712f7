// SPDX-License-Identifier: Apache-2.0
// Finished tiles in the engine.
//
// A finished tile is copied at once and leaves from its copy, the shadow, while the array computes the next one.
// Writes to the output process do not block: one that finds no room is tried again, and the array goes on.  It rests
// only if a tile is finished before the one before it has left, and at a product's end.
#pragma once

#include "channels.h"
#include "intake.h"

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
};

// The next line: a column of the tile, in CONV one half of the lanes, in WGRAD both halves added up.
inline Line line_of(const Shadow& shadow) {
#pragma HLS INLINE
    const bool add = shadow.command.kind == COMMAND_ADD;
    const unsigned column = add ? shadow.line : shadow.line / HALVES;
    const bool upper = shadow.line % HALVES != 0;
    Line line;
    for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
        const Tile& tile = shadow.tile;
        const Accumulated low = column < CHANNELS ? tile.sums[k][column] : tile.own[k];
        const Accumulated high = column < CHANNELS ? tile.sums[CHANNELS + k][column] : tile.own[CHANNELS + k];
        line.value[k] = add ? Accumulated(low + high) : upper ? high : low;
    }
    return line;
}

// In each cycle of a product: the next line of the finished tile, and behind the last one its command.
inline void hand_over(Shadow& shadow, CommandStream& commands, LineStream& lines) {
#pragma HLS INLINE
    const unsigned count = lines_of(shadow.command);
    if (shadow.occupied && shadow.line != count && lines.write_nb(line_of(shadow))) ++shadow.line;
    if (shadow.occupied && shadow.line == count && commands.write_nb(shadow.command)) shadow.occupied = false;
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

// Copy a tile that the array has finished; the one before it has left.
inline void keep_tile(Shadow& shadow, const Tile& tile, const Command& command) {
#pragma HLS INLINE
    shadow.occupied = true;
    shadow.command = command;
    shadow.line = 0;
    for (unsigned lane = 0; lane < LANES; ++lane) {
#pragma HLS UNROLL
        shadow.tile.own[lane] = tile.own[lane];
        for (unsigned oc = 0; oc < CHANNELS; ++oc) shadow.tile.sums[lane][oc] = tile.sums[lane][oc];
    }
}

}  // namespace kernel
