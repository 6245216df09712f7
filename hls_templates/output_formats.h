// SPDX-License-Identifier: Apache-2.0
// Tiles of CONV in their output format: INT32, INT64, CODES, or STATISTICS of each channel.
#pragma once

#include "buffers.h"
#include "channels.h"
#include "corner_turn.h"
#include "epilogue.h"
#include "random_index.h"
#include "streams.h"

namespace kernel {

// Cycles in which a line leaves, or is taken: as 64-bit words, or two values per cycle.
constexpr unsigned WORDS_INTERVAL = CHANNELS;
constexpr unsigned PAIRS_INTERVAL = CHANNELS / 2;
// Cycles in which a line gets its random words.
constexpr unsigned DRAW_INTERVAL = ROUNDING_LANES == 0 || ROUNDING_LANES > CHANNELS ? 1 : CHANNELS / ROUNDING_LANES;

// Counted by the output process.
struct OutputStatus {
    uint32_t error;
    uint32_t position;
    uint32_t packets;
    uint32_t saturated;
    uint32_t words_out;
};

struct OutputState {
    OutputStatus status;
    uint32_t pixel_index[LANES];  // of the packet's random indices
};

// The values of a line, as 32-bit pairs or 64-bit words.
template <bool WIDE>
void send_line(OutStream& out, uint32_t& sent, const Line& line) {
#pragma HLS INLINE
    constexpr unsigned COUNT = WIDE ? CHANNELS : CHANNELS / 2;
    for (unsigned n = 0; n < COUNT; ++n) {
#pragma HLS UNROLL
        const uint64_t low = uint64_t(int64_t(line.value[WIDE ? n : 2 * n]));
        const uint64_t high = uint64_t(int64_t(line.value[WIDE ? n : 2 * n + 1]));
        out.write(make_word(WIDE ? low : (low & 0xFFFFFFFFull) | high << 32, false));
    }
    sent += COUNT;
}

// Random words of a tile's codes.  In a loop of their own, so that codes that are not stochastic do not wait for them.
inline void draw_words(const Command& command, const uint32_t pixel_index[LANES],
                       uint32_t random[TILE_LINES][CHANNELS]) {
    const Header& h = command.header;
    for (unsigned n = 0; n < TILE_LINES; ++n) {
// as many per cycle as the design has rounding lanes
#pragma HLS PIPELINE II = DRAW_INTERVAL
        const uint32_t channel = command.out_group * CHANNELS + n / HALVES, first = n % HALVES * CHANNELS;
        const uint32_t start = h.index + command.row * h.row_stride + channel * h.channel_stride;
KEEP_LOOP
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            random[n][k] = fmix32((start + pixel_index[first + k]) ^ h.key);
        }
    }
}

inline void send_codes(const ResultBuffers& buffers, OutputState& state, const Command& command, LineStream& lines,
                       OutStream& out) {
    const Header& h = command.header;
    const bool stochastic = ROUNDING_LANES != 0 && (h.flags & FLAG_STOCHASTIC) != 0;
    uint32_t random[TILE_LINES][CHANNELS];
#pragma HLS ARRAY_PARTITION variable = random complete dim = 2
    if (stochastic && command.row == 0 && command.out_group == 0) index_pixels(h, state.pixel_index);
    if (stochastic) draw_words(command, state.pixel_index, random);
    const Limits limits = limits_of(h);
    const int64_t half = h.shift == 0 ? 0 : int64_t(1) << (h.shift - 1);
    uint16_t codes[TILE];
#pragma HLS ARRAY_PARTITION variable = codes complete
    uint64_t planes[MAX_BITS][ROW_WORDS];
#pragma HLS ARRAY_PARTITION variable = planes complete dim = 0
    uint32_t saturated = 0;
    for (unsigned n = 0; n < TILE_LINES; ++n) {
#pragma HLS PIPELINE II = 1
        const uint32_t oc = n / HALVES, first = n % HALVES * CHANNELS;
        const uint32_t channel = command.out_group * CHANNELS + oc;
        const int64_t multiplier = int64_t(buffers.multiplier[h.base_epilogue + channel]);
        const int64_t offset = int64_t(buffers.offset[h.base_epilogue + channel]);
        const Line& line = lines.read();
        int64_t rounding[CHANNELS], line_codes[CHANNELS];
KEEP_LOOP
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            rounding[k] = stochastic ? random_part(random[n][k], h.shift) : half;
        }
KEEP_LOOP
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            const int64_t sum = int64_t(line.value[k]);
            line_codes[k] = requantize(limits, multiplier, offset, sum, rounding[k], saturated);
        }
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            codes[(first + k) * CHANNELS + oc] = uint16_t(line_codes[k]);
        }
    }
    state.status.saturated += saturated;
    planes_of_codes(codes, h.out_bits, planes);
    for (uint32_t b = 0; b < h.out_bits; ++b) {
        for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS PIPELINE II = 1
            send(out, state.status.words_out, planes[b][word]);
        }
    }
}

inline void add_statistics(ResultBuffers& buffers, const Command& command, LineStream& lines) {
    Statistics channel = {};
    for (unsigned n = 0; n < TILE_LINES; ++n) {
// two values per cycle, as many as INT32 sends
#pragma HLS PIPELINE II = PAIRS_INTERVAL
        const uint32_t number = command.out_group * CHANNELS + n / HALVES, first = n % HALVES * CHANNELS;
        if (first == 0) {
            channel = buffers.statistics[number];
            if (command.row == 0) {
                channel.sum = 0;
                channel.squares = 0;
                channel.low = INT32_MAX;
                channel.high = INT32_MIN;
            }
        }
        const Line& line = lines.read();
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            const int32_t value = int32_t(int64_t(line.value[k]));
            if (first + k >= command.header.pixels) continue;
            channel.sum += value;
            channel.squares += uint64_t(int64_t(value) * value);
            channel.low = value < channel.low ? value : channel.low;
            channel.high = value > channel.high ? value : channel.high;
        }
        if (first + CHANNELS == LANES) buffers.statistics[number] = channel;
    }
}

inline void send_statistics(const ResultBuffers& buffers, const Header& h, OutStream& out, uint32_t& sent) {
    for (uint32_t n = 0; n < h.out_groups * CHANNELS; ++n) {
        const Statistics channel = buffers.statistics[n];
        for (unsigned word = 0; word < 4; ++word) {
#pragma HLS PIPELINE II = 1
            send(out, sent,
                 word == 0   ? uint64_t(channel.sum)
                 : word == 1 ? uint64_t(channel.squares)
                 : word == 2 ? uint64_t(channel.squares >> 64)
                             : uint64_t(uint32_t(channel.high)) << 32 | uint32_t(channel.low));
        }
    }
}

inline void take_tile(ResultBuffers& buffers, OutputState& state, const Command& command, LineStream& lines,
                      OutStream& out) {
    const Header& h = command.header;
    if (h.format == FORMAT_CODES) return send_codes(buffers, state, command, lines, out);
    if (h.format == FORMAT_STATISTICS) return add_statistics(buffers, command, lines);
    const unsigned count = lines_of(command);
    if (h.format == FORMAT_INT64) {
        for (unsigned n = 0; n < count; ++n) {
#pragma HLS PIPELINE II = WORDS_INTERVAL
            send_line<true>(out, state.status.words_out, lines.read());
        }
    } else {
        for (unsigned n = 0; n < count; ++n) {
#pragma HLS PIPELINE II = PAIRS_INTERVAL
            send_line<false>(out, state.status.words_out, lines.read());
        }
    }
}

}  // namespace kernel
