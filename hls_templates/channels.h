// SPDX-License-Identifier: Apache-2.0
// What the processes send each other.
//
// The loader alone reads the input streams: it sends headers that it has judged to the engine as packets, and payloads
// as writes.  The engine computes tiles and sends their values to the output process as lines, each command behind the
// lines that it says what to do with; the first command of a packet behind what the output process needs of its header.
#pragma once

#include "packing.h"

namespace kernel {

// Fields of a judged header, as wide as its check lets them be: those that engine and output process both need, and those
// that one of them needs.
template <typename Fields, typename Visitor>
void common_fields(Fields& h, Visitor& v) {
#pragma HLS INLINE
    v.template unsigned_field<4>(h.opcode);
    v.template unsigned_field<16>(h.flags);
    v.template unsigned_field<2>(h.format);
    v.template unsigned_field<16>(h.rows);
    v.template unsigned_field<7>(h.out_groups);
    v.template unsigned_field<4>(h.side_bits);
    v.template unsigned_field<4>(h.added_bits);
    v.template unsigned_field<LANES>(h.segment_start);
    v.template unsigned_field<16>(h.base_accumulator);
}
constexpr unsigned COMMON_BITS = 4 + 16 + 2 + 16 + 7 + 4 + 4 + LANES + 16;

template <typename Fields, typename Visitor>
void engine_fields(Fields& h, Visitor& v) {
#pragma HLS INLINE
    v.template unsigned_field<7>(h.groups);
    v.template unsigned_field<7>(h.images);
    v.template unsigned_field<5>(h.a_bits);
    v.template unsigned_field<5>(h.b_bits);
    v.template unsigned_field<MAX_BITS>(h.a_planes);
    v.template unsigned_field<MAX_BITS>(h.b_planes);
    v.template unsigned_field<16>(h.base_a);
    v.template unsigned_field<16>(h.base_b);
    v.template unsigned_field<16>(h.base_side);
    v.template unsigned_field<16>(h.base_added);
    v.template unsigned_field<TAPS>(h.taps);
    v.template unsigned_field<11>(h.first_row);
    v.template unsigned_field<11>(h.last_row);
}
constexpr unsigned ENGINE_BITS = 7 + 7 + 5 + 5 + 2 * MAX_BITS + 4 * 16 + TAPS + 11 + 11;

template <typename Fields, typename Visitor>
void output_fields(Fields& h, Visitor& v) {
#pragma HLS INLINE
    v.template unsigned_field<5>(h.out_bits);
    v.template unsigned_field<4>(h.keep_bits);
    v.template unsigned_field<4>(h.wide_bits);
    v.template unsigned_field<6>(h.shift);
    v.template unsigned_field<6>(h.value_shift);
    v.template unsigned_field<5>(h.out_shift);
    v.template unsigned_field<5>(h.keep_shift);
    v.template unsigned_field<5>(h.wide_shift);
    v.template unsigned_field<32>(h.key);
    v.template unsigned_field<32>(h.index);
    v.template unsigned_field<32>(h.channel_stride);
    v.template unsigned_field<32>(h.image_stride);
    v.template unsigned_field<32>(h.row_stride);
    v.template unsigned_field<LANES>(h.valid);
    v.template unsigned_field<16>(h.factor);
    v.template unsigned_field<16>(h.base_epilogue);
}
constexpr unsigned OUTPUT_BITS = 5 + 4 + 4 + 6 + 6 + 5 + 5 + 5 + 5 * 32 + LANES + 16 + 16;

// A packet whose header has been judged.
struct Packet {
    Header header;
    uint32_t error;  // of the header, or of the stream's end behind it

    static constexpr unsigned BITS = COMMON_BITS + ENGINE_BITS + OUTPUT_BITS + 4;
    template <typename Self, typename Visitor>
    static void fields(Self& packet, Visitor& v) {
#pragma HLS INLINE
        common_fields(packet.header, v);
        engine_fields(packet.header, v);
        output_fields(packet.header, v);
        v.template unsigned_field<4>(packet.error);
    }
};

// What the output process needs of a header.
struct OutputHeader {
    Header header;

    static constexpr unsigned BITS = COMMON_BITS + OUTPUT_BITS;
    template <typename Self, typename Visitor>
    static void fields(Self& output, Visitor& v) {
#pragma HLS INLINE
        common_fields(output.header, v);
        output_fields(output.header, v);
    }
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

    static constexpr unsigned BITS = 32 + 4 + 4 + 3 + 16 + 16 + 8 + 1 + 64 * ROW_WORDS;
    template <typename Self, typename Visitor>
    static void fields(Self& write, Visitor& v) {
#pragma HLS INLINE
        v.template unsigned_field<32>(write.after);
        v.template unsigned_field<4>(write.target);
        v.template unsigned_field<4>(write.error);
        v.template unsigned_field<3>(write.bank);
        v.template unsigned_field<16>(write.address);
        v.template unsigned_field<16>(write.other);
        v.template unsigned_field<8>(write.word);
        v.template unsigned_field<1>(write.any);
        for (unsigned n = 0; n < ROW_WORDS; ++n) {
#pragma HLS UNROLL
            v.template unsigned_field<64>(write.data[n]);
        }
    }
};

constexpr unsigned LINE_VALUES = EPILOGUE_LANES > CHANNELS ? EPILOGUE_LANES : CHANNELS;
constexpr unsigned PARTS = LANES / LINE_VALUES;         // lines of an output channel
constexpr unsigned TILE_LINES = PARTS * CHANNELS;       // for each output channel, for each part
constexpr unsigned COMMAND_LINES = TILE_LINES + PARTS;  // with the sums of the first operand
constexpr unsigned LINE_SLOTS = 2 * COMMAND_LINES;      // of the FIFO: two tiles

// Values of one output channel for some of the pixels, with what the epilogue reads beside them; or, in the first C of
// them, one accumulator entry.
struct Line {
    Accumulated value[LINE_VALUES];
    SideElement side[LINE_VALUES];
    AddedElement added[LINE_VALUES];

    static constexpr unsigned BITS = LINE_VALUES * (ACC_BITS + 2 * MAX_SIDE_BITS + 1);
    template <typename Self, typename Visitor>
    static void fields(Self& line, Visitor& v) {
#pragma HLS INLINE
        for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
            v.template signed_field<ACC_BITS>(line.value[k]);
            v.template unsigned_field<MAX_SIDE_BITS + 1>(line.side[k]);
            v.template unsigned_field<MAX_SIDE_BITS>(line.added[k]);
        }
    }
};

constexpr uint32_t COMMAND_TILE = 0;   // CONV: a tile, with its operand sums if asked for
constexpr uint32_t COMMAND_ADD = 1;    // WGRAD: C + 1 entries
constexpr uint32_t COMMAND_ENTRY = 2;  // LOAD E: m, o, n, b, c, l
constexpr uint32_t COMMAND_DONE = 3;   // nothing is left of this packet but what its end brings
constexpr uint32_t COMMAND_STOP = 4;   // END, or the header's or the payload's error

struct Command {
    uint32_t kind;
    uint32_t row;        // of the tile, counted over all images
    uint32_t out_group;  // of the tile
    bool with_own;       // the tile has lines with its operand sums
    bool counts;         // the row of the tile counts in the moments
    uint32_t entry;      // first one to add to, or the one to load
    uint32_t error;

    static constexpr unsigned BITS = 3 + 16 + 6 + 1 + 1 + 16 + 4;
    template <typename Self, typename Visitor>
    static void fields(Self& command, Visitor& v) {
#pragma HLS INLINE
        v.template unsigned_field<3>(command.kind);
        v.template unsigned_field<16>(command.row);
        v.template unsigned_field<6>(command.out_group);
        v.template unsigned_field<1>(command.with_own);
        v.template unsigned_field<1>(command.counts);
        v.template unsigned_field<16>(command.entry);
        v.template unsigned_field<4>(command.error);
    }
};

inline Command make_command(uint32_t kind, uint32_t entry = 0, uint32_t error = ERR_NONE) {
#pragma HLS INLINE
    Command command;
    command.kind = kind;
    command.row = 0;
    command.out_group = 0;
    command.with_own = false;
    command.counts = false;
    command.entry = entry;
    command.error = error;
    return command;
}

// Lines that go before a command.
inline unsigned lines_of(const Command& command) {
#pragma HLS INLINE
    if (command.kind == COMMAND_TILE) return command.with_own ? COMMAND_LINES : TILE_LINES;
    return command.kind == COMMAND_ADD ? CHANNELS + 1 : command.kind == COMMAND_ENTRY ? 1 : 0;
}

}  // namespace kernel

#if FABRIC_NATIVE
#include "channels_native.h"
#else

namespace kernel {

using PacketStream = hls::stream<Packed<Packet>>;
using WriteStream = hls::stream<Packed<Write>>;
using HeaderStream = hls::stream<Packed<OutputHeader>>;
using LineStream = hls::stream<Packed<Line>>;
using CommandStream = hls::stream<Packed<Command>>;

}  // namespace kernel
#endif

namespace kernel {

// Calls that do not wait: false if there is nothing to read, or no room.
template <typename Stream, typename Word>
bool try_read(Stream& stream, Word& word) {
#pragma HLS INLINE
    return stream.read_nb(word);
}

template <typename Stream, typename Word>
bool try_write(Stream& stream, const Word& word) {
#pragma HLS INLINE
    return stream.write_nb(word);
}

}  // namespace kernel
