// SPDX-License-Identifier: Apache-2.0
// The loader alone reads the input streams: it checks headers, hands them to the engine, and turns payloads into
// writes.  Writes have a FIFO of their own, so that they reach the engine's buffers while an earlier product runs.
// `after` keeps a write from a product that still reads what the write replaces.  The loader finds it once per packet,
// and looks one product back: loads between two products overlap with the first of them.
//
// These two FIFOs cannot deadlock, whatever their depths.  Invariant: the header of a LOAD goes before its writes, and
// all its writes go before the next header.
// - The loader waits for room for a write: the engine has this LOAD's header, or gets to it without another header.
//   With the header it takes writes until the LOAD ends.
// - The loader waits for room for a header: all writes of earlier LOADs have been sent, so the engine waits for none
//   and gets to its next header.
// - The engine waits for the output process: that takes all that the engine brings, and never waits for the loader.
#pragma once

#include "channels.h"
#include "header_check.h"
#include "streams.h"

namespace kernel {

constexpr unsigned ROW_BEATS = ROW_WORDS / 2;
constexpr unsigned WEIGHT_BEATS = WEIGHT_WORDS / 2;
constexpr unsigned ENTRY_BEATS = ENTRY_WORDS / 2;

// Counted by the loader.
struct LoaderStatus {
    uint32_t words_in;
};

struct LoaderState {
    Input input;
    uint32_t products = 0;  // sent so far
    Ranges last = {};       // what the last of them reads
};

// A write of this LOAD, yet without its place.
inline Write make_write(const LoaderState& state, const Header& h) {
#pragma HLS INLINE
    const Ranges own = ranges_of(h, kind_of(h));
    const bool waits = meet(own.a, state.last.a) || meet(own.g, state.last.g) || meet(own.g, state.last.added) ||
                       meet(own.w, state.last.w);
    Write write = {};
    write.target = h.target;
    // the last product need not be done if it reads nothing of what this LOAD replaces, but the one before it must
    write.after = state.products == 0 || waits || h.target == TARGET_E ? state.products : state.products - 1;
    return write;
}

inline uint32_t load_tensor(const Header& h, Write write, InStream& in0, InStream& in1, Input& input,
                            WriteStream& writes) {
    const uint32_t beats = h.payload_words / 2;
    const uint32_t block = h.groups * h.a_bits;  // addresses of eight rows
    uint32_t slice = 0, plane = 0, group = 0, row = 0, base = 0;
    bool any = false;
    Beat beat;
    // a beat with TLAST is judged and then ends the loop: END would have to follow
    for (uint32_t n = 0; n < beats && read_beat(in0, in1, input, beat); ++n) {
#pragma HLS PIPELINE II = 1
        for (unsigned n = 0; n < ROW_BEATS; ++n) {
#pragma HLS UNROLL
            if (n == slice) write.data[2 * n] = beat.word[0];
            if (n == slice) write.data[2 * n + 1] = beat.word[1];
        }
        any = (slice != 0 && any) || (beat.word[0] | beat.word[1]) != 0;
        // next slice, plane, group, row, image
        if (++slice == ROW_BEATS) {
            const uint32_t address = base + group * h.a_bits + plane;
            write.bank = row % ROW_BANKS;
            write.address = h.base_a + address;
            write.other = h.base_b + address;
            write.any = any;
            writes.write(pack(write));
            slice = 0;
            if (++plane == h.a_bits) {
                plane = 0;
                if (++group == h.groups) {
                    group = 0;
                    const bool last_row = row + 1 == h.rows;
                    if (last_row || row % ROW_BANKS == ROW_BANKS - 1) base += block;
                    row = last_row ? 0 : row + 1;
                }
            }
        }
    }
    return input.ended() ? ERR_TRUNCATED : ERR_NONE;
}

// Weight words or entries of E, `slices` beats to an address from `address` on.
inline uint32_t load_beats(uint32_t beats, uint32_t slices, uint32_t address, Write write, InStream& in0, InStream& in1,
                           Input& input, WriteStream& writes) {
    uint32_t slice = 0;
    Beat beat;
    write.other = address;
    for (uint32_t n = 0; n < beats && read_beat(in0, in1, input, beat); ++n) {
#pragma HLS PIPELINE II = 1
        write.word = 2 * slice;
        write.data[0] = beat.word[0];
        write.data[1] = beat.word[1];
        writes.write(pack(write));
        if (++slice == slices) {
            slice = 0;
            ++write.other;
        }
    }
    return input.ended() ? ERR_TRUNCATED : ERR_NONE;
}

inline uint32_t load(LoaderState& state, const Header& h, const Write& write, InStream& in0, InStream& in1,
                     WriteStream& writes) {
    Input& input = state.input;
    const uint32_t beats = h.payload_words / 2;
    if (h.target == TARGET_W) return load_beats(beats, WEIGHT_BEATS, h.base_b, write, in0, in1, input, writes);
    if (h.target == TARGET_E) return load_beats(beats, ENTRY_BEATS, h.base_epilogue, write, in0, in1, input, writes);
    return load_tensor(h, write, in0, in1, input, writes);
}

inline uint32_t read_header(InStream& in0, InStream& in1, Input& input, Header& header) {
    uint32_t halves[HEADER_HALVES];
#pragma HLS ARRAY_PARTITION variable = halves complete
    uint32_t check = CHECK_SEED;
    Beat beat;
    unsigned beats = 0;
    for (unsigned n = 0; n < HEADER_BEATS && read_beat(in0, in1, input, beat); ++n) {
#pragma HLS PIPELINE II = 1
        ++beats;
        for (unsigned half = 0; half < 4; ++half) {
#pragma HLS UNROLL
            const uint32_t value = uint32_t(beat.word[half / 2] >> (32 * (half % 2)));
            halves[4 * n + half] = value;
            if (4 * n + half < HEADER_HALVES - 1) check ^= value;
        }
    }
    if (beats < HEADER_BEATS) return ERR_TRUNCATED;
    header = unpack_header(halves);
    const uint32_t error = check_header(header, halves, check);
    if (error != ERR_NONE) return error;
    if (header.opcode == OP_END) return input.ended0 && input.ended1 ? ERR_NONE : ERR_TRAILING;
    return input.ended() ? ERR_TRUNCATED : ERR_NONE;
}

// Read one packet; false behind END or the first error, both streams then have come to their end.
inline bool loader_step(LoaderState& state, InStream& in0, InStream& in1, PacketStream& packets, WriteStream& writes) {
    Packet packet = {};
    const Header& h = packet.header;
    packet.error = read_header(in0, in1, state.input, packet.header);
    const bool is_load = packet.error == ERR_NONE && h.opcode == OP_LOAD;
    uint32_t error = packet.error;
    Write write = {};
    if (is_load) {
        packets.write(pack(packet));
        write = make_write(state, h);
        error = load(state, h, write, in0, in1, writes);
    } else if (error == ERR_NONE && (h.opcode == OP_CONV || h.opcode == OP_WGRAD)) {
        ++state.products;
        state.last = ranges_of(h, kind_of(h));
    }
    const bool running = error == ERR_NONE && h.opcode != OP_END;
    if (!running) {
        swallow(in0, state.input.ended0);
        swallow(in1, state.input.ended1);
    }
    if (is_load) {
        write.target = 0;
        write.error = error;
        writes.write(pack(write));
    } else {
        packets.write(pack(packet));
    }
    return running;
}

inline LoaderStatus status_of(const LoaderState& state) {
#pragma HLS INLINE
    LoaderStatus status;
    status.words_in = state.input.words;
    return status;
}

#if !FABRIC_NATIVE
inline void loader(InStream& in0, InStream& in1, PacketStream& packets, WriteStream& writes, LoaderStatus& status) {
    LoaderState state;
    while (loader_step(state, in0, in1, packets, writes)) {
    }
    status = status_of(state);
}
#endif

}  // namespace kernel
