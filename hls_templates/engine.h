// SPDX-License-Identifier: Apache-2.0
// The engine process: loads and products in order, tiles from the array to the output process.
#pragma once

#include "buffers.h"
#include "channels.h"
#include "intake.h"
#include "plane_pairs.h"
#include "shadow.h"
#if FABRIC_NATIVE
#include "array_native.h"
#else
#include "array_bits.h"
#endif

namespace kernel {

// Counted by the engine.
struct EngineStatus {
    uint32_t skipped;
};

inline void run_conv(OperandBuffers& buffers, const Header& header, WriteStream& writes, Intake& intake, Shadow& shadow,
                     CommandStream& commands, LineStream& lines, EngineStatus& status) {
#pragma HLS INLINE
    Header h = header;
    if ((h.flags & FLAG_SKIP_ZERO) != 0) {
        const uint32_t addresses = h.images * blocks_of(operand_rows(h)) * h.groups * h.a_bits;
        h.a_planes &= planes_in_use(buffers.a_any, h.base_a, addresses, h.a_bits);
    }
    const uint32_t saved = cycles_saved(conv_planes(h), h.groups);
    ConvOperands operands;
    begin_conv(buffers, h, operands);
    Fetch fetch;
    SidePlanes side = {};
#pragma HLS ARRAY_PARTITION variable = side.word complete dim = 0
    Tile tile;
#pragma HLS ARRAY_PARTITION variable = tile.sums complete dim = 0
#pragma HLS ARRAY_PARTITION variable = tile.own complete
    for (uint32_t image = 0; image < h.images; ++image) {
        for (uint32_t y = 0; y < h.rows; ++y) {
            begin_row(buffers, h, image, y, operands);
            for (uint32_t out_group = 0; out_group < h.out_groups; ++out_group) {
                begin_fetch(h, image, y, out_group, fetch);
                conv_tile(buffers, operands, h, image, y, out_group, writes, intake, shadow, commands, lines, fetch,
                          side, tile);
                finish_fetch(buffers, writes, intake, shadow, commands, lines, fetch, side);
                status.skipped += saved;
                Command command = make_command(COMMAND_TILE, h, image * h.rows + y, out_group, 0);
                command.counts = y >= h.first_row && y < h.last_row;
                finish_tile(buffers, writes, intake, shadow, commands, lines);
                keep_tile(shadow, tile, command);
                keep_planes(shadow, fetch, side);
            }
        }
    }
}

inline void run_wgrad(OperandBuffers& buffers, const Header& header, WriteStream& writes, Intake& intake,
                      Shadow& shadow, CommandStream& commands, LineStream& lines, EngineStatus& status) {
#pragma HLS INLINE
    Header h = header;
    const uint32_t pair_cycles = h.images * blocks_of(h.rows);
    if ((h.flags & FLAG_SKIP_ZERO) != 0) {
        h.a_planes &= planes_in_use(buffers.a_any, h.base_a, pair_cycles * h.groups * h.a_bits, h.a_bits);
        h.b_planes &= planes_in_use(buffers.g_any, h.base_b, pair_cycles * h.out_groups * h.b_bits, h.b_bits);
    }
    const uint32_t groups = h.groups + ((h.flags & FLAG_ONES) != 0 ? 1 : 0);
    const uint32_t saved = cycles_saved(wgrad_planes(h, false), pair_cycles);
    const uint32_t saved_ones = cycles_saved(wgrad_planes(h, true), pair_cycles);
    WgradOperands operands;
    begin_wgrad(buffers, h, operands);
    Tile tile;
#pragma HLS ARRAY_PARTITION variable = tile.sums complete dim = 0
#pragma HLS ARRAY_PARTITION variable = tile.own complete
    clear(tile);
    uint32_t entry = h.base_accumulator;
    for (uint32_t out_group = 0; out_group < h.out_groups; ++out_group) {
        for (uint32_t group = 0; group < groups; ++group) {
            for (uint32_t tap = 0, rank = 0; tap < TAPS; ++tap) {
                if (((h.taps >> tap) & 1) == 0) continue;
                wgrad_tile(buffers, operands, h, out_group, group, tap, rank++, writes, intake, shadow, commands, lines,
                           tile);
                status.skipped += group == h.groups ? saved_ones : saved;
                finish_tile(buffers, writes, intake, shadow, commands, lines);
                keep_tile(shadow, tile, make_command(COMMAND_ADD, h, 0, 0, entry));
                entry += CHANNELS + 1;
            }
        }
    }
}

// Loads and products in order, up to the program's end or the first bad header or payload.  An accumulator out of range
// is found by the output process; what the engine has run ahead by then has no effect there.
inline void engine(OperandBuffers& buffers, PacketStream& packets, WriteStream& writes, CommandStream& commands,
                   LineStream& lines, EngineStatus& status) {
    EngineStatus counted = {};
    Intake intake = {};
    Shadow shadow;
#pragma HLS ARRAY_PARTITION variable = shadow.tile.sums complete dim = 0
#pragma HLS ARRAY_PARTITION variable = shadow.tile.own complete
#pragma HLS ARRAY_PARTITION variable = shadow.side.word complete dim = 0
    shadow.occupied = false;
    bool running = true;
    while (running) {
        const Packet packet = packets.read();
        const Header& h = packet.header;
        uint32_t error = packet.error;
        // READ is the output process's own
        if (error == ERR_NONE) {
            if (h.opcode == OP_LOAD) error = finish_load(buffers, h, writes, commands, lines, intake);
            if (h.opcode == OP_CONV) run_conv(buffers, h, writes, intake, shadow, commands, lines, counted);
            if (h.opcode == OP_WGRAD) run_wgrad(buffers, h, writes, intake, shadow, commands, lines, counted);
            if (h.opcode == OP_CONV || h.opcode == OP_WGRAD) {
                // before any other command, and before entries of E, whose lines go the same way
                finish_tile(buffers, writes, intake, shadow, commands, lines);
                ++intake.products;
            }
        }
        running = error == ERR_NONE && h.opcode != OP_END;
        Command command = make_command(running ? COMMAND_DONE : COMMAND_STOP, h, 0, 0, 0);
        command.error = error;
        commands.write(command);
    }
    status = counted;
}

}  // namespace kernel
