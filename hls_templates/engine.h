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

// A finished tile's command.
inline Command command_of(const Header& h, const Place& place, uint32_t entry) {
#pragma HLS INLINE
    if (place.wgrad) return make_command(COMMAND_ADD, entry);
    Command command = make_command(COMMAND_TILE);
    command.row = place.image * h.rows + place.y;
    command.out_group = place.out_group;
    command.with_own = (h.flags & FLAG_A_SUM) != 0 && place.out_group == 0;
    command.counts = place.y >= h.first_row && place.y < h.last_row;
    return command;
}

// Tiles of a product in order: CONV by image, row and output group, WGRAD by output group, group and tap.
inline void run_product(OperandBuffers& buffers, const Header& header, WriteStream& writes, Intake& intake,
                        Shadow& shadow, CommandStream& commands, LineStream& lines, EngineStatus& status) {
#pragma HLS INLINE
    Header h = header;
    const bool wgrad = h.opcode == OP_WGRAD;
    const uint32_t blocks = h.images * blocks_of(operand_rows(h));
    if ((h.flags & FLAG_SKIP_ZERO) != 0) {
        h.a_planes &= planes_in_use(buffers.a_any, h.base_a, blocks * h.groups * h.a_bits, h.a_bits);
        if (wgrad) {
            h.b_planes &= planes_in_use(buffers.g_any, h.base_b, blocks * h.out_groups * h.b_bits, h.b_bits);
        }
    }
    // steps of a tile, all planes computed; the group of ones has one plane
    const uint32_t planned_ones = h.b_bits * (wgrad ? blocks : h.groups), planned = h.a_bits * planned_ones;
    Operands operands;
    begin_product(buffers, h, operands);
    Fetch fetch;
    SidePlanes side = {};
#pragma HLS ARRAY_PARTITION variable = side.word complete dim = 0
    Tile tile;
#pragma HLS ARRAY_PARTITION variable = tile.sums complete dim = 0
#pragma HLS ARRAY_PARTITION variable = tile.own complete
    clear(tile);
    const uint32_t groups = h.groups + ((h.flags & FLAG_ONES) != 0 ? 1 : 0);
    const uint32_t outer = wgrad ? h.out_groups : h.images, middle = wgrad ? groups : h.rows;
    const uint32_t inner = wgrad ? TAPS : h.out_groups;
    uint32_t entry = h.base_accumulator;
    for (uint32_t x = 0; x < outer; ++x) {
        for (uint32_t y = 0; y < middle; ++y) {
            Place place = wgrad ? wgrad_place(h, x, y) : conv_place(x, y);
            begin_row(buffers, h, place, operands);
            for (uint32_t z = 0; z < inner; ++z) {
                if (wgrad && ((h.taps >> z) & 1) == 0) continue;
                if (wgrad) {
                    place.tap = z;
                } else {
                    place.out_group = z;
                }
                begin_fetch(h, place, fetch);
                const uint32_t steps = compute_tile(buffers, operands, h, place, writes, intake, shadow, commands,
                                                    lines, fetch, side, tile);
                finish_fetch(buffers, writes, intake, shadow, commands, lines, fetch, side);
                status.skipped += (place.ones ? planned_ones : planned) - steps;
                const Command command = command_of(h, place, entry);
                finish_tile(buffers, writes, intake, shadow, commands, lines);
                keep_tile(shadow, tile, command);
                keep_planes(shadow, fetch, side);
                entry += CHANNELS + 1;
                ++place.rank;
            }
        }
    }
}

// Loads and products in order, up to the program's end or the first bad header or payload.  An accumulator out of range
// is found by the output process; what the engine has run ahead by then has no effect there.
inline void engine(OperandBuffers& buffers, PacketStream& packets, WriteStream& writes, HeaderStream& headers,
                   CommandStream& commands, LineStream& lines, EngineStatus& status) {
    EngineStatus counted = {};
    Intake intake = {};
    Shadow shadow;
#pragma HLS ARRAY_PARTITION variable = shadow.tile.sums complete dim = 0
#pragma HLS ARRAY_PARTITION variable = shadow.tile.own complete
#pragma HLS ARRAY_PARTITION variable = shadow.side.word complete dim = 0
    shadow.occupied = false;
    bool running = true;
    while (running) {
        const Packet packet = unpack<Packet>(packets.read());
        const Header& h = packet.header;
        OutputHeader output;
        output.header = h;
        headers.write(pack(output));
        uint32_t error = packet.error;
        // READ is the output process's own
        if (error == ERR_NONE) {
            if (h.opcode == OP_LOAD) error = finish_load(buffers, writes, commands, lines, intake);
            if (h.opcode == OP_CONV || h.opcode == OP_WGRAD) {
                run_product(buffers, h, writes, intake, shadow, commands, lines, counted);
                // before any other command, and before entries of E, whose lines go the same way
                finish_tile(buffers, writes, intake, shadow, commands, lines);
                ++intake.products;
            }
        }
        running = error == ERR_NONE && h.opcode != OP_END;
        commands.write(pack(make_command(running ? COMMAND_DONE : COMMAND_STOP, 0, error)));
    }
    status = counted;
}

}  // namespace kernel
