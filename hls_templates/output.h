// SPDX-License-Identifier: Apache-2.0
// The output process owns what happens to tiles after the engine has computed them: accumulators, epilogue, statistics,
// packing, the output stream and the order of errors.  Lines carry the values, and a command says what to do with the
// lines that have been written before it.
#pragma once

#include "output_formats.h"

namespace kernel {

constexpr int64_t ACCUMULATOR_LIMIT = int64_t(1) << (ACC_BITS - 1);

// Add the entries of a weight gradient's tile, or put them in place of what was there.
inline uint32_t add_entries(ResultBuffers& buffers, const Command& command, LineStream& lines) {
    const bool clear = (command.header.flags & FLAG_CLEAR) != 0;
    bool in_range = true;
    for (unsigned e = 0; e <= CHANNELS; ++e) {
#pragma HLS PIPELINE II = 2
        const Line& line = lines.read();
        for (unsigned ic = 0; ic < CHANNELS; ++ic) {
#pragma HLS UNROLL
            const int64_t value = int64_t(line.value[ic]);
            const int64_t total = clear ? value : int64_t(buffers.accumulator[command.entry + e][ic]) + value;
            const bool fits = total >= -ACCUMULATOR_LIMIT && total < ACCUMULATOR_LIMIT;
            in_range &= fits;
            // the program ends on a sum that does not fit; what it leaves must fit the memory
            buffers.accumulator[command.entry + e][ic] = fits ? total : 0;
        }
    }
    return in_range ? ERR_NONE : ERR_ACCUMULATOR_RANGE;
}

// One entry, unless a value does not fit.
template <bool WIDE>
bool send_entry(const ResultBuffers& buffers, uint32_t entry, OutStream& out, uint32_t& sent) {
#pragma HLS INLINE
    Line line;
    bool fits = true;
    for (unsigned ic = 0; ic < CHANNELS; ++ic) {
#pragma HLS UNROLL
        line.value[ic] = buffers.accumulator[entry][ic];
        const int64_t value = int64_t(line.value[ic]);
        fits &= WIDE || (value >= -(int64_t(1) << 31) && value < (int64_t(1) << 31));
    }
    if (fits) send_line<WIDE>(out, sent, line);
    return fits;
}

inline uint32_t send_entries(const ResultBuffers& buffers, const Header& h, OutStream& out, uint32_t& sent) {
    bool fits = true;
    if (h.format == FORMAT_INT64) {
        for (uint32_t n = 0; n < h.rows; ++n) {
#pragma HLS PIPELINE II = WORDS_INTERVAL
            fits &= send_entry<true>(buffers, h.base_accumulator + n, out, sent);
        }
    } else {
        for (uint32_t n = 0; n < h.rows && fits; ++n) {
#pragma HLS PIPELINE II = PAIRS_INTERVAL
            fits = send_entry<false>(buffers, h.base_accumulator + n, out, sent);
        }
    }
    return fits ? ERR_NONE : ERR_ACCUMULATOR_RANGE;
}

// Nothing after the packet that stopped the program has an effect here; only its lines are taken.
inline void skip_lines(const Command& command, LineStream& lines) {
    const unsigned count = lines_of(command);
    for (unsigned n = 0; n < count; ++n) {
#pragma HLS PIPELINE II = 1
        (void)lines.read();
    }
}

// Obey one command.
inline void output_step(ResultBuffers& buffers, OutputState& state, const Command& command, LineStream& lines,
                        OutStream& out) {
    const Header& h = command.header;
    OutputStatus& status = state.status;
    uint32_t error = ERR_NONE;
    if (status.error != ERR_NONE) {
        skip_lines(command, lines);
    } else if (command.kind == COMMAND_TILE) {
        take_tile(buffers, state, command, lines, out);
    } else if (command.kind == COMMAND_ADD) {
        error = add_entries(buffers, command, lines);
    } else if (command.kind == COMMAND_ENTRY) {
        const Line& line = lines.read();
        buffers.multiplier[command.entry] = Multiplier(line.value[0]);
        buffers.offset[command.entry] = line.value[1];
    } else if (command.kind == COMMAND_DONE) {
        if (h.opcode == OP_READ) error = send_entries(buffers, h, out, status.words_out);
        if (h.opcode == OP_CONV && h.format == FORMAT_STATISTICS) send_statistics(buffers, h, out, status.words_out);
        if (error == ERR_NONE) ++status.packets;
    } else {
        error = command.error;
        if (error == ERR_NONE) ++status.packets;
    }
    if (error != ERR_NONE) {
        status.error = error;
        status.position = status.packets;
    }
    if (command.kind == COMMAND_STOP) {
        send(out, status.words_out, uint64_t(TRAILER_MAGIC) << 32 | status.error);
        out.write(make_word(uint64_t(status.packets) << 32 | status.position, true));
        ++status.words_out;
    }
}

#if !FABRIC_NATIVE
inline void output(ResultBuffers& buffers, CommandStream& commands, LineStream& lines, OutStream& out,
                   OutputStatus& status) {
    OutputState state = {};
#pragma HLS ARRAY_PARTITION variable = state.pixel_index complete
    bool running = true;
    while (running) {
        const Command command = commands.read();
        output_step(buffers, state, command, lines, out);
        running = command.kind != COMMAND_STOP;
    }
    status = state.status;
}
#endif

}  // namespace kernel
