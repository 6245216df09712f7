// SPDX-License-Identifier: Apache-2.0
// The array in machine words instead of wires.
//
// Operands of a packet are brought into the order of the inner loop once: im2col per row and plane, weights and
// gradients with the output channels side by side, so that a word of one pixel (or input channel) meets a vector of
// output channels.
//
// begin_product and begin_row bring a packet's operands into that order, compute_tile computes a tile.
#pragma once

#include <cstring>
#include <vector>

#include "buffers.h"
#include "corner_turn.h"
#include "plane_pairs.h"
#include "shadow.h"

namespace kernel {

constexpr unsigned PIXEL_BYTES = CHANNELS / 8;
constexpr unsigned DOT_BYTES = DOT_BITS / 8;
constexpr unsigned SLOTS = 64 / LANES;  // rows of one channel that fit a word

// sums[oc] += count of ones of a & b[.][oc], negated if asked.  WORDS is the number of words, or 0 if it is `words`.
template <size_t WORDS>
inline void count_ones(const uint64_t* a, const uint64_t* b, size_t words, bool negative, int64_t* __restrict__ sums) {
    uint64_t ones[CHANNELS] = {};
    for (size_t n = 0; n < (WORDS != 0 ? WORDS : words); ++n) {
        for (unsigned oc = 0; oc < CHANNELS; ++oc) {
            ones[oc] += uint64_t(__builtin_popcountll(a[n] & b[n * CHANNELS + oc]));
        }
    }
    const uint64_t sign = negative ? ~uint64_t(0) : 0;  // two's complement without a branch
    for (unsigned oc = 0; oc < CHANNELS; ++oc) sums[oc] += int64_t((ones[oc] ^ sign) - sign);
}

inline int64_t count_ones(const uint64_t* a, size_t words) {
    int64_t ones = 0;
    for (size_t n = 0; n < words; ++n) ones += __builtin_popcountll(a[n]);
    return ones;
}

// One plane pair for ROWS pixels or input channels, whose words follow each other.
template <unsigned ROWS, size_t WORDS>
void add_pair(const uint64_t* a, const uint64_t* b, size_t words, bool negative,
              int64_t (*__restrict__ sums)[CHANNELS]) {
    for (unsigned r = 0; r < ROWS; ++r) count_ones<WORDS>(a + r * words, b, words, negative, sums[r]);
}

// The usual numbers of words unrolled.
template <unsigned ROWS>
void add_pair(const uint64_t* a, const uint64_t* b, size_t words, bool negative,
              int64_t (*__restrict__ sums)[CHANNELS]) {
    switch (words) {
        case 2: return add_pair<ROWS, 2>(a, b, words, negative, sums);
        case 3: return add_pair<ROWS, 3>(a, b, words, negative, sums);
        case 4: return add_pair<ROWS, 4>(a, b, words, negative, sums);
        case 5: return add_pair<ROWS, 5>(a, b, words, negative, sums);
        default: return add_pair<ROWS, 0>(a, b, words, negative, sums);
    }
}

// Horner over the diagonals: plane i of the first operand starts at a + i * a_step, plane j of the second at
// b + j * b_step.  Static, since g++ then puts it into its callers, which is a tenth faster.
template <unsigned ROWS>
static void multiply(const Planes& planes, const uint64_t* a, size_t a_step, const uint64_t* b, size_t b_step,
                     size_t words, int64_t (*__restrict__ sums)[CHANNELS], int64_t* __restrict__ own) {
    for (unsigned r = 0; r < ROWS; ++r) {
        own[r] = 0;
        for (unsigned oc = 0; oc < CHANNELS; ++oc) sums[r][oc] = 0;
    }
    for (uint32_t d = planes.a_bits + planes.b_bits - 1; d-- > 0;) {
        for (unsigned r = 0; r < ROWS; ++r) {
            own[r] *= 2;
            for (unsigned oc = 0; oc < CHANNELS; ++oc) sums[r][oc] *= 2;
        }
        for (uint32_t i = first_on(planes, d); i <= last_on(planes, d); ++i) {
            const uint32_t j = d - i;
            if (!computed(planes, i, j)) continue;
            const uint64_t* const plane = a + i * a_step;
            if (((planes.b_mask >> j) & 1) != 0) {
                add_pair<ROWS>(plane, b + j * b_step, words, subtracts(planes, i, j), sums);
            }
            if (j == 0 && planes.sums) {
                for (unsigned r = 0; r < ROWS; ++r) {
                    const int64_t ones = count_ones(plane + r * words, words);
                    own[r] += planes.a_signed && i == planes.a_bits - 1 ? -ones : ones;
                }
            }
        }
    }
}

// Steps that the array makes for a tile, a pair taking `steps`: an empty diagonal has one.
inline uint32_t steps_of(const Planes& planes, uint32_t steps) {
    uint32_t made = 0;
    for (uint32_t d = 0; d < planes.a_bits + planes.b_bits - 1; ++d) {
        bool empty = true;
        for (uint32_t i = first_on(planes, d); i <= last_on(planes, d); ++i) {
            if (!computed(planes, i, d - i)) continue;
            empty = false;
            made += steps;
        }
        if (empty) ++made;
    }
    return made;
}

struct ConvOperands {
    size_t words;                   // of one pixel's window over all groups
    std::vector<uint64_t> weights;  // [out_group][plane][word][oc]
    std::vector<uint64_t> windows;  // [plane][pixel][word]
};

inline void begin_conv(const OperandBuffers& buffers, const Header& h, ConvOperands& operands) {
    operands.words = (size_t(h.groups) * DOT_BITS + 63) / 64;
    operands.windows.resize(h.a_bits * LANES * operands.words);
    operands.weights.resize(h.out_groups * h.b_bits * operands.words * CHANNELS);
    std::vector<uint64_t> row(operands.words);
    uint64_t* target = operands.weights.data();
    for (uint32_t out_group = 0; out_group < h.out_groups; ++out_group) {
        for (uint32_t j = 0; j < h.b_bits; ++j) {
            for (unsigned oc = 0; oc < CHANNELS; ++oc) {
                for (uint32_t group = 0; group < h.groups; ++group) {
                    const uint64_t* word = buffers.w[h.base_b + (out_group * h.groups + group) * h.b_bits + j];
                    std::memcpy(reinterpret_cast<char*>(row.data()) + group * DOT_BYTES,
                                reinterpret_cast<const char*>(word) + oc * DOT_BYTES, DOT_BYTES);
                }
                for (size_t n = 0; n < operands.words; ++n) target[n * CHANNELS + oc] = row[n];
            }
            target += operands.words * CHANNELS;
        }
    }
}

inline void gather_windows(const OperandBuffers& buffers, const Header& h, uint32_t image, uint32_t y,
                           ConvOperands& operands) {
    const uint32_t rows = operand_rows(h);
    const bool strided = rows != h.rows;
    const uint32_t image_base = h.base_a + image * blocks_of(rows) * h.groups * h.a_bits;
    // three neighbouring pixels in the low bits of a word, and which of them count for each pixel
    const uint64_t pixel = low_mask(CHANNELS);
    uint64_t left[LANES], valid[LANES];
    for (unsigned p = 0; p < LANES; ++p) {
        left[p] = ((has_left(h) >> p) & 1) != 0 ? pixel : 0;
        valid[p] = left[p] | pixel << CHANNELS;
        if (((has_right(h) >> p) & 1) != 0) valid[p] |= pixel << (2 * CHANNELS);
    }
    unsigned char padded[(LANES + 1) * PIXEL_BYTES + sizeof(uint64_t)] = {};
    std::memset(operands.windows.data(), 0, operands.windows.size() * sizeof(uint64_t));
    const size_t window_bytes = operands.words * 8;
    for (uint32_t i = 0; i < h.a_bits; ++i) {
        if (((h.a_planes >> i) & 1) == 0) continue;
        char* const plane = reinterpret_cast<char*>(operands.windows.data()) + i * LANES * window_bytes;
        const auto row_word = [&](uint32_t row, uint32_t group) {
            const uint32_t address = image_base + ((row / ROW_BANKS) * h.groups + group) * h.a_bits + i;
            return reinterpret_cast<const unsigned char*>(buffers.a[row % ROW_BANKS][address]);
        };
        for (uint32_t group = 0; group < h.groups; ++group) {
            for (uint32_t ky = 0; ky < 3; ++ky) {
                char* target = plane + group * DOT_BYTES + ky * 3 * PIXEL_BYTES;
                if (strided) {
                    if (2 * y + ky < 1) continue;
                    const uint32_t row = 2 * (2 * y + ky - 1);
                    const unsigned char* const even = row_word(row, group);
                    std::memcpy(padded + PIXEL_BYTES, row_word(row + 1, group), LANES * PIXEL_BYTES);
                    for (unsigned p = 0; p < LANES; ++p, target += window_bytes) {
                        uint64_t before = 0, at = 0, odd = 0;
                        std::memcpy(&before, padded + p * PIXEL_BYTES, PIXEL_BYTES);
                        std::memcpy(&at, even + p * PIXEL_BYTES, PIXEL_BYTES);
                        std::memcpy(&odd, padded + (p + 1) * PIXEL_BYTES, PIXEL_BYTES);
                        const uint64_t pixels = (before & left[p]) | at << CHANNELS | odd << (2 * CHANNELS);
                        std::memcpy(target, &pixels, 3 * PIXEL_BYTES);
                    }
                    continue;
                }
                if (y + ky < 1 || y + ky > h.rows) continue;
                std::memcpy(padded + PIXEL_BYTES, row_word(y + ky - 1, group), LANES * PIXEL_BYTES);
                for (unsigned p = 0; p < LANES; ++p, target += window_bytes) {
                    uint64_t pixels;
                    std::memcpy(&pixels, padded + p * PIXEL_BYTES, sizeof(pixels));
                    pixels &= valid[p];
                    std::memcpy(target, &pixels, 3 * PIXEL_BYTES);
                }
            }
        }
    }
}

struct WgradOperands {
    size_t words;                     // of one channel's pixels over all rows and images
    std::vector<uint64_t> inputs;     // [group, then ones][rank of the tap][plane][ic][word]
    std::vector<uint64_t> gradients;  // [out_group][plane][word][oc]
};

// One row word as a row of L bits for each channel.
inline void channels_of_row(const uint64_t row[ROW_WORDS], uint32_t channels[CHANNELS]) {
    const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(row);
    for (unsigned c = 0; c < CHANNELS; ++c) channels[c] = 0;
    for (unsigned block = 0; block < LANES / 8; ++block) {
        for (unsigned part = 0; part < PIXEL_BYTES; ++part) {
            uint64_t pixels = 0;
            for (unsigned n = 0; n < 8; ++n) pixels |= uint64_t(bytes[(8 * block + n) * PIXEL_BYTES + part]) << (8 * n);
            pixels = transpose8x8(pixels);
            for (unsigned c = 0; c < 8; ++c) {
                channels[8 * part + c] |= uint32_t((pixels >> (8 * c)) & 0xFF) << (8 * block);
            }
        }
    }
}

inline void gather_gradients(const OperandBuffers& buffers, const Header& h, WgradOperands& operands) {
    const uint32_t blocks = blocks_of(h.rows);
    const uint32_t rows = h.images * h.rows;
    const size_t words = operands.words;
    operands.gradients.assign(h.out_groups * h.b_bits * words * CHANNELS, 0);
    for (uint32_t out_group = 0; out_group < h.out_groups; ++out_group) {
        for (uint32_t j = 0; j < h.b_bits; ++j) {
            uint64_t* const target = operands.gradients.data() + (out_group * h.b_bits + j) * words * CHANNELS;
            for (uint32_t r = 0; r < rows; ++r) {
                const uint32_t image = r / h.rows, y = r % h.rows;
                const uint32_t address =
                    h.base_b + ((image * blocks + y / ROW_BANKS) * h.out_groups + out_group) * h.b_bits + j;
                uint32_t channels[CHANNELS];
                channels_of_row(buffers.g[y % ROW_BANKS][address], channels);
                for (unsigned oc = 0; oc < CHANNELS; ++oc) {
                    target[r / SLOTS * CHANNELS + oc] |= uint64_t(channels[oc]) << (LANES * (r % SLOTS));
                }
            }
        }
    }
}

// Input channels shifted by each tap, then the group of ones.
inline void gather_inputs(const OperandBuffers& buffers, const Header& h, WgradOperands& operands) {
    const uint32_t blocks = blocks_of(h.rows);
    const uint32_t rows = h.images * h.rows;
    const uint32_t left = has_left(h);
    const uint32_t right = has_right(h);
    const bool ones = (h.flags & FLAG_ONES) != 0;
    const size_t words = operands.words;
    const size_t tap_words = h.a_bits * CHANNELS * words;
    operands.inputs.assign((h.groups + (ones ? 1 : 0)) * taps_of(h) * tap_words, 0);
    std::vector<uint32_t> channels(rows * CHANNELS);
    for (uint32_t group = 0; group < h.groups + (ones ? 1 : 0); ++group) {
        const bool is_ones = group == h.groups;
        for (uint32_t i = 0; i < (is_ones ? 1 : h.a_bits); ++i) {
            for (uint32_t r = 0; r < rows; ++r) {
                const uint32_t image = r / h.rows, y = r % h.rows;
                const uint32_t address =
                    h.base_a + ((image * blocks + y / ROW_BANKS) * h.groups + group) * h.a_bits + i;
                if (is_ones) {
                    for (unsigned c = 0; c < CHANNELS; ++c) channels[r * CHANNELS + c] = low_mask(LANES);
                } else {
                    channels_of_row(buffers.a[y % ROW_BANKS][address], &channels[r * CHANNELS]);
                }
            }
            for (uint32_t tap = 0, rank = 0; tap < TAPS; ++tap) {
                if (((h.taps >> tap) & 1) == 0) continue;
                const uint32_t ky = tap / 3, kx = tap % 3;
                uint64_t* const target =
                    operands.inputs.data() + (group * taps_of(h) + rank++) * tap_words + i * CHANNELS * words;
                for (uint32_t r = 0; r < rows; ++r) {
                    const uint32_t y = r % h.rows;
                    if (y + ky < 1 || y + ky > h.rows) continue;
                    const uint32_t* const source = &channels[(r + ky - 1) * CHANNELS];
                    for (unsigned ic = 0; ic < CHANNELS; ++ic) {
                        const uint32_t bits = kx == 0   ? (source[ic] << 1) & left
                                              : kx == 2 ? (source[ic] >> 1) & right
                                                        : source[ic];
                        target[ic * words + r / SLOTS] |= uint64_t(bits) << (LANES * (r % SLOTS));
                    }
                }
            }
        }
    }
}

inline void begin_wgrad(const OperandBuffers& buffers, const Header& h, WgradOperands& operands) {
    operands.words = (h.images * h.rows + SLOTS - 1) / SLOTS;
    gather_gradients(buffers, h, operands);
    gather_inputs(buffers, h, operands);
}

struct Operands {
    ConvOperands conv;
    WgradOperands wgrad;
};

inline void begin_product(const OperandBuffers& buffers, const Header& h, Operands& operands) {
    if (h.opcode == OP_WGRAD) {
        begin_wgrad(buffers, h, operands.wgrad);
    } else {
        begin_conv(buffers, h, operands.conv);
    }
}

inline void begin_row(const OperandBuffers& buffers, const Header& h, const Place& place, Operands& operands) {
    if (!place.wgrad) gather_windows(buffers, h, place.image, place.y, operands.conv);
}

// The tile at `place`; returns the steps that the array takes for it.
inline uint32_t compute_tile(const OperandBuffers&, const Operands& operands, const Header& h, const Place& place,
                             const WriteStream&, const Intake&, const Shadow&, const CommandStream&, const LineStream&,
                             const Fetch&, const SidePlanes&, Tile& tile) {
    const Planes planes = planes_of(h, place);
    if (place.wgrad) {
        const size_t words = operands.wgrad.words;
        const size_t input = (place.group * taps_of(h) + place.rank) * h.a_bits * CHANNELS * words;
        const size_t gradient = place.out_group * h.b_bits * words * CHANNELS;
        // all rows in the lower half of the lanes; the upper half stays zero
        multiply<CHANNELS>(planes, &operands.wgrad.inputs[input], CHANNELS * words, &operands.wgrad.gradients[gradient],
                           CHANNELS * words, words, tile.sums, tile.own);
        return steps_of(planes, h.images * blocks_of(h.rows));
    }
    const size_t words = operands.conv.words, plane_words = words * CHANNELS;
    const uint64_t* const weights = operands.conv.weights.data() + place.out_group * h.b_bits * plane_words;
    multiply<LANES>(planes, operands.conv.windows.data(), LANES * words, weights, plane_words, words, tile.sums,
                    tile.own);
    return steps_of(planes, h.groups);
}

}  // namespace kernel
