// SPDX-License-Identifier: Apache-2.0
// Tiles of CONV in their output format: INT32, INT64, CODES, or MOMENTS of each channel.
#pragma once

#include "corner_turn.h"
#include "epilogue.h"
#include "moments.h"

namespace kernel {

// Cycles in which a line leaves as 64-bit words, or as two values per word; and in which the epilogue takes it.
constexpr unsigned WORDS_INTERVAL = LINE_VALUES / 2 * BEAT_INTERVAL;
constexpr unsigned PAIRS_INTERVAL = LINE_VALUES / 4 * BEAT_INTERVAL;
constexpr unsigned EPILOGUE_INTERVAL = LINE_VALUES / EPILOGUE_LANES;

// Counted by the output process.
struct OutputStatus {
    uint32_t error;
    uint32_t position;
    uint32_t packets;
    uint32_t saturated;
    uint32_t words_out;
};

// Where the output process is.
struct OutputState {
    OutputStatus status;
    bool within;    // a packet; its header is below
    Header header;
};

// COUNT values, as 32-bit pairs or 64-bit words.
template <bool WIDE, unsigned COUNT>
void send_values(ResultStream& out, uint32_t& sent, const Accumulated* value) {
#pragma HLS INLINE
    constexpr unsigned STEP = WIDE ? 2 : 4;  // values of a beat
    for (unsigned n = 0; n < COUNT; n += STEP) {
#pragma HLS UNROLL
        uint64_t word[2];
        for (unsigned k = 0; k < 2; ++k) {
#pragma HLS UNROLL
            const unsigned at = n + k * (STEP / 2);
            const uint64_t low = uint64_t(int64_t(value[at]));
            const uint64_t high = uint64_t(int64_t(value[WIDE ? at : at + 1]));
            word[k] = WIDE ? low : (low & 0xFFFFFFFFull) | high << 32;
        }
        send(out, sent, word[0], word[1]);
    }
}

// Planes of a tile's codes, in the order of the sections.
inline void send_planes(const CodePlanes& planes, uint32_t count, ResultStream& out, uint32_t& sent) {
#pragma HLS INLINE
    for (uint32_t b = 0; b < count; ++b) {
        for (unsigned word = 0; word < ROW_WORDS; word += 2) {
#pragma HLS PIPELINE II = BEAT_INTERVAL
            send(out, sent, planes.word[b][word], planes.word[b][word + 1]);
        }
    }
}

// What the epilogue makes of a line; the last two in CODES alone.
struct Finished {
    int32_t x[LINE_VALUES];
    int32_t k[LINE_VALUES];  // elements of SIDE
    int32_t w[LINE_VALUES];
    uint32_t sections[LINE_VALUES];
};

// x of a line's sums, and the elements that come with them.
inline void finish_sums(const Settings& settings, const Entry& entry, const Line& line, Finished& done,
                        uint32_t& saturated) {
#pragma HLS INLINE
KEEP_LOOP
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        const uint32_t side = uint32_t(line.side[k]);
        // CONV's sums are in the range of 32 bits
        const int32_t sum = int32_t(int64_t(line.value[k]));
        const int64_t inner = inner_of(settings, entry, sum, side, uint32_t(line.added[k]));
        done.x[k] = saturate(inner);
        done.k[k] = operand_of(side, settings.side_bits, settings.side_signed);
        saturated += done.x[k] != inner ? 1 : 0;
    }
}

// w and the codes of all sections of a part of output channel `oc`.
inline void finish_codes(const Settings& settings, const Entry& entry, const RandomTile& random, unsigned oc,
                         unsigned part, Finished& done, uint32_t& saturated) {
#pragma HLS INLINE
KEEP_LOOP
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        Random number = 0;
        for (unsigned n = 0; n < PARTS; ++n) {
#pragma HLS UNROLL
            if (settings.stochastic && n == part) number = random.number[oc][n * LINE_VALUES + k];
        }
        done.w[k] = value_of(settings, entry, done.x[k], done.k[k]);
        done.sections[k] = sections_of(settings, done.x[k], done.w[k], uint32_t(number), saturated);
    }
}

// Codes of line `line`, each into its register, which no other value enters.
inline void keep_codes(const Finished& done, unsigned line, Sections codes[TILE]) {
#pragma HLS INLINE
    for (unsigned n = 0; n < TILE_LINES; ++n) {
#pragma HLS UNROLL
        const unsigned oc = n / PARTS, part = n % PARTS;
        for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
            if (n == line) codes[(part * LINE_VALUES + k) * CHANNELS + oc] = Sections(done.sections[k]);
        }
    }
}

// The moments of one channel, which stay in a register while its lines come.
inline void count_line(ResultBuffers& buffers, const Header& h, const Command& command, uint32_t channel,
                       unsigned part, const Finished& done, Moments& moments) {
#pragma HLS INLINE
    if (part == 0) {
        const Packed<Moments> word = buffers.moments[channel];
        moments = unpack<Moments>(word);
        if (command.row == 0) clear(moments);
    }
    const bool codes = h.format == FORMAT_CODES, cross = (h.flags & FLAG_CROSS) != 0;
    const uint32_t valid = command.counts ? h.valid >> (part * LINE_VALUES) : 0;
    add_moments(moments, valid, codes ? done.w : done.x, codes ? done.w : cross ? done.k : done.x);
    if (part == PARTS - 1) buffers.moments[channel] = pack(moments);
}

// CODES and MOMENTS: a tile through the epilogue.
inline void finish_sums_of_tile(ResultBuffers& buffers, OutputStatus& status, const Header& h, const Command& command,
                                LineStream& lines, ResultStream& out) {
    const Kind kind = kind_of(h);
    const Settings settings = settings_of(h);
    RandomTile random;
#pragma HLS ARRAY_PARTITION variable = random.number complete dim = 2
#pragma HLS BIND_STORAGE variable = random.number type = ram_2p impl = lutram
    if (settings.stochastic) draw(h, command, random);
    Sections codes[TILE];
#pragma HLS ARRAY_PARTITION variable = codes complete
    Moments moments;
    uint32_t saturated = 0;
    for (unsigned n = 0; n < TILE_LINES; ++n) {
#pragma HLS PIPELINE II = EPILOGUE_INTERVAL
// each channel's moments are read once, and then written once
#pragma HLS DEPENDENCE variable = buffers.moments type = inter direction = RAW dependent = false
        const uint32_t oc = n / PARTS, part = n % PARTS;
        const uint32_t channel = command.out_group * CHANNELS + oc;
        const Packed<Entry> word = buffers.entries[h.base_epilogue + channel];
        const Entry& entry = unpack<Entry>(word);
        const Line& line = unpack<Line>(lines.read());
        Finished done;
        finish_sums(settings, entry, line, done, saturated);
        if (kind.codes) {
            finish_codes(settings, entry, random, oc, part, done, saturated);
            keep_codes(done, n, codes);
        }
        if (kind.moments) count_line(buffers, h, command, channel, part, done, moments);
    }
    status.saturated += saturated;
    if (!kind.codes) return;
    CodePlanes planes;
#pragma HLS ARRAY_PARTITION variable = planes.word complete dim = 0
    planes_of_codes(codes, section_planes(h), planes);
    send_planes(planes, section_planes(h), out, status.words_out);
}

inline void take_tile(ResultBuffers& buffers, OutputStatus& status, const Header& h, const Command& command,
                      LineStream& lines, ResultStream& out) {
    if (kind_of(h).epilogue) return finish_sums_of_tile(buffers, status, h, command, lines, out);
    const unsigned count = lines_of(command);
    if (h.format == FORMAT_INT64) {
        for (unsigned n = 0; n < count; ++n) {
#pragma HLS PIPELINE II = WORDS_INTERVAL
            const Line& line = unpack<Line>(lines.read());
            send_values<true, LINE_VALUES>(out, status.words_out, line.value);
        }
    } else {
        for (unsigned n = 0; n < count; ++n) {
#pragma HLS PIPELINE II = PAIRS_INTERVAL
            const Line& line = unpack<Line>(lines.read());
            send_values<false, LINE_VALUES>(out, status.words_out, line.value);
        }
    }
}

}  // namespace kernel
