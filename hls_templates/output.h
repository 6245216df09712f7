// SPDX-License-Identifier: Apache-2.0
// The output process owns what happens to tiles after the engine has computed them: accumulators, epilogue, moments,
// packing and the order of errors.  Lines carry the values, and a command says what to do with the
// lines that have been written before it.
#pragma once

#include "output_formats.h"

namespace kernel {

constexpr int64_t ACCUMULATOR_LIMIT = int64_t(1) << (ACC_BITS - 1);
// Cycles in which an accumulator entry leaves.
constexpr unsigned WIDE_ENTRY_INTERVAL = CHANNELS / 2 * BEAT_INTERVAL;
constexpr unsigned ENTRY_INTERVAL = CHANNELS / 4 * BEAT_INTERVAL;

// Add the entries of a weight gradient's tile, or put them in place of what was there.
inline uint32_t add_entries(ResultBuffers& buffers, const Command& command, bool clear, LineStream& lines) {
    bool in_range = true;
    for (unsigned e = 0; e <= CHANNELS; ++e) {
#pragma HLS PIPELINE II = 2
// every iteration has an entry of its own
#pragma HLS DEPENDENCE variable = buffers.accumulator type = inter dependent = false
        const Line& line = unpack<Line>(lines.read());
        const Packed<SumEntry> word = buffers.accumulator[command.entry + e];
        const SumEntry& before = unpack<SumEntry>(word);
        SumEntry after;
        for (unsigned ic = 0; ic < CHANNELS; ++ic) {
#pragma HLS UNROLL
            const int64_t value = int64_t(line.value[ic]);
            const int64_t total = clear ? value : int64_t(before.value[ic]) + value;
            const bool fits = total >= -ACCUMULATOR_LIMIT && total < ACCUMULATOR_LIMIT;
            in_range &= fits;
            // the program ends on a sum that does not fit; what it leaves must fit the memory
            after.value[ic] = Accumulated(fits ? total : 0);
        }
        buffers.accumulator[command.entry + e] = pack(after);
    }
    return in_range ? ERR_NONE : ERR_ACCUMULATOR_RANGE;
}

// One entry, unless a value does not fit.
template <bool WIDE>
bool send_entry(const ResultBuffers& buffers, uint32_t entry, ResultStream& out, uint32_t& sent) {
#pragma HLS INLINE
    const Packed<SumEntry> word = buffers.accumulator[entry];
    const SumEntry& sums = unpack<SumEntry>(word);
    bool fits = true;
    for (unsigned ic = 0; ic < CHANNELS; ++ic) {
#pragma HLS UNROLL
        const int64_t value = int64_t(sums.value[ic]);
        fits &= WIDE || (value >= -(int64_t(1) << 31) && value < (int64_t(1) << 31));
    }
    if (fits) send_values<WIDE, CHANNELS>(out, sent, sums.value);
    return fits;
}

inline uint32_t send_entries(const ResultBuffers& buffers, const Header& h, ResultStream& out, uint32_t& sent) {
    bool fits = true;
    if (h.format == FORMAT_INT64) {
        for (uint32_t n = 0; n < h.rows; ++n) {
#pragma HLS PIPELINE II = WIDE_ENTRY_INTERVAL
            fits &= send_entry<true>(buffers, h.base_accumulator + n, out, sent);
        }
    } else {
        for (uint32_t n = 0; n < h.rows && fits; ++n) {
#pragma HLS PIPELINE II = ENTRY_INTERVAL
            fits = send_entry<false>(buffers, h.base_accumulator + n, out, sent);
        }
    }
    return fits ? ERR_NONE : ERR_ACCUMULATOR_RANGE;
}

// An entry of E, its values as the intake sends them.
inline Entry entry_from(const Line& line) {
#pragma HLS INLINE
    Entry entry;
    entry.m = Multiplier(line.value[0]);
    entry.o = Multiplier(line.value[1]);
    entry.n = Multiplier(line.value[2]);
    entry.b = Offset(line.value[3]);
    entry.c = ValueOffset(line.value[4]);
    entry.l = Multiplier(line.value[5]);
    return entry;
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
inline void output_step(ResultBuffers& buffers, OutputState& state, const Command& command, HeaderStream& headers,
                        LineStream& lines, ResultStream& out) {
    OutputStatus& status = state.status;
    if (!state.within) state.header = unpack<OutputHeader>(headers.read()).header;
    state.within = command.kind != COMMAND_DONE;
    const Header& h = state.header;
    uint32_t error = ERR_NONE;
    if (status.error != ERR_NONE) {
        skip_lines(command, lines);
    } else if (command.kind == COMMAND_TILE) {
        take_tile(buffers, status, h, command, lines, out);
    } else if (command.kind == COMMAND_ADD) {
        error = add_entries(buffers, command, (h.flags & FLAG_CLEAR) != 0, lines);
    } else if (command.kind == COMMAND_ENTRY) {
        buffers.entries[command.entry] = pack(entry_from(unpack<Line>(lines.read())));
    } else if (command.kind == COMMAND_DONE) {
        if (h.opcode == OP_READ) error = send_entries(buffers, h, out, status.words_out);
        if (kind_of(h).moments) send_moments(buffers, h, out, status.words_out);
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
        send(out, status.words_out, uint64_t(TRAILER_MAGIC) << 32 | status.error,
             uint64_t(status.packets) << 32 | status.position, true);
    }
}

#if !FABRIC_NATIVE
inline void output(ResultBuffers& buffers, HeaderStream& headers, CommandStream& commands, LineStream& lines,
                   ResultStream& out, OutputStatus& status) {
    OutputState state = {};
    bool running = true;
    while (running) {
        const Command command = unpack<Command>(commands.read());
        output_step(buffers, state, command, headers, lines, out);
        running = command.kind != COMMAND_STOP;
    }
    status = state.status;
}
#endif

}  // namespace kernel
