// SPDX-License-Identifier: Apache-2.0
// The array that synthesis sees: every cycle the whole array, operands wired from eight rows.
//
// begin_conv, begin_row, begin_wgrad bring a packet's operands into the array's order.
// conv_tile computes the tile of one row and output group, wgrad_tile the tile of one output group, group and tap.
#pragma once

#include "buffers.h"
#include "plane_pairs.h"
#include "shadow.h"
#include "walk.h"

namespace kernel {

using RowWord = ap_uint<ROW_BITS>;
using Dot = ap_uint<DOT_BITS>;  // a WGRAD cycle uses its low 8C bits

// Rows per half of the array in WGRAD: 4L = 8C bits of a dot product.
constexpr unsigned HALF_ROWS = ROW_BANKS / 2;

inline unsigned count_ones(const Dot& bits) {
#pragma HLS INLINE
    unsigned ones = 0;
    for (unsigned k = 0; k < DOT_BITS; ++k) {
#pragma HLS UNROLL
        ones += unsigned(bits[k]);
    }
    return ones;
}

inline RowWord join(const uint64_t words[ROW_WORDS]) {
#pragma HLS INLINE
    RowWord row = 0;
    for (unsigned n = 0; n < ROW_WORDS; ++n) {
#pragma HLS UNROLL
        row.range(64 * n + 63, 64 * n) = words[n];
    }
    return row;
}

// Eight rows from `first` on (which may be -1), one from each bank; rows outside the image read zero.
template <unsigned DEPTH>
void fetch_rows(const uint64_t (&memory)[ROW_BANKS][DEPTH][ROW_WORDS], uint32_t image_base, int32_t first,
                uint32_t rows, uint32_t groups, uint32_t bits, uint32_t group, uint32_t plane,
                RowWord window[ROW_BANKS]) {
#pragma HLS INLINE
    for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
        const uint32_t place = (bank - uint32_t(first)) % ROW_BANKS;
        const int32_t row = first + int32_t(place);
        RowWord word = 0;
        if (row >= 0 && row < int32_t(rows)) {
            const uint32_t address = image_base + ((uint32_t(row) / ROW_BANKS) * groups + group) * bits + plane;
            word = join(memory[bank][address]);
        }
        window[place] = word;
    }
}

// A sum after one step: doubled on a new diagonal, then counted up or down.
inline Accumulated add_step(const Accumulated& sum, bool first, bool negative, unsigned ones) {
#pragma HLS INLINE
    const Accumulated before = first ? Accumulated(sum + sum) : sum;
    return negative ? Accumulated(before - ones) : Accumulated(before + ones);
}

struct ConvOperands {};
inline void begin_conv(const OperandBuffers&, const Header&, ConvOperands&) {
#pragma HLS INLINE
}
inline void begin_row(const OperandBuffers&, const Header&, uint32_t, uint32_t, ConvOperands&) {
#pragma HLS INLINE
}

// One plane of the weights of a group, by output channel; none if nothing is counted.
inline void weights_of(const uint64_t* word, bool count, Dot weights[CHANNELS]) {
#pragma HLS INLINE
    for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
        for (unsigned k = 0; k < DOT_BITS; ++k) {
#pragma HLS UNROLL
            const unsigned bit = oc * DOT_BITS + k;
            weights[oc][k] = count && ((word[bit / 64] >> (bit % 64)) & 1) != 0;
        }
    }
}

// What the kernel sees at pixel p; im2col is wiring.
inline Dot window_of(const RowWord rows[ROW_BANKS], const Header& h, bool strided, unsigned p) {
#pragma HLS INLINE
    Dot window = 0;
    for (unsigned tap = 0; tap < TAPS; ++tap) {
#pragma HLS UNROLL
        const unsigned ky = tap / 3, kx = tap % 3;
        const bool from_left = kx == 0, from_right = kx == 2 && !strided;
        const bool valid =
            from_left ? ((has_left(h) >> p) & 1) != 0 : !from_right || ((has_right(h) >> p) & 1) != 0;
        // strided: even columns under the middle tap, odd ones to its left and right
        const unsigned strided_row = 2 * ky + (kx == 1 ? 0 : 1);
        for (unsigned ic = 0; ic < CHANNELS; ++ic) {
#pragma HLS UNROLL
            const unsigned source = ((p + kx + LANES - 1) % LANES) * CHANNELS + ic;
            const unsigned strided_source = kx == 0 ? source : p * CHANNELS + ic;
            const bool near = strided ? bool(rows[strided_row][strided_source]) : bool(rows[ky][source]);
            window[tap * CHANNELS + ic] = valid && near;
        }
    }
    return window;
}

inline void conv_tile(OperandBuffers& buffers, const ConvOperands&, const Header& h, uint32_t image, uint32_t y,
                      uint32_t out_group, WriteStream& writes, Intake& intake, Shadow& shadow, CommandStream& commands,
                      LineStream& lines, Fetch& fetch, SidePlanes& side, Tile& tile) {
#pragma HLS INLINE
    const Planes planes = conv_planes(h);
    const uint32_t operand = operand_rows(h);
    const bool strided = operand != h.rows;
    const int32_t first = strided ? 4 * int32_t(y) - 2 : int32_t(y) - 1;  // virtual row of the window's first tap
    const uint32_t image_base = h.base_a + image * blocks_of(operand) * h.groups * h.a_bits;
    clear(tile);
    for (Walk walk = begin_walk(planes); !walk.done; advance(walk, planes, h.groups, 1)) {
#pragma HLS PIPELINE II = 1
// what is absorbed is never in the ranges that this product reads (make_write)
#pragma HLS DEPENDENCE variable = buffers.a type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.a type = intra dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = intra dependent = false
#pragma HLS DEPENDENCE variable = buffers.w type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.w type = intra dependent = false
        const Step step = step_of(walk, planes);
        const uint32_t group = walk.inner;
        RowWord rows[ROW_BANKS];
#pragma HLS ARRAY_PARTITION variable = rows complete
        fetch_rows(buffers.a, image_base, first, operand, h.groups, h.a_bits, group, step.i, rows);
        const uint64_t* const weight = buffers.w[h.base_b + (out_group * h.groups + group) * h.b_bits + step.j];
        Dot weights[CHANNELS];
#pragma HLS ARRAY_PARTITION variable = weights complete
        weights_of(weight, step.count, weights);
        for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
            const Dot window = window_of(rows, h, strided, p);
            for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
                const unsigned ones = count_ones(window & weights[oc]);
                tile.sums[p][oc] = add_step(tile.sums[p][oc], walk.first, step.negative, ones);
            }
            const unsigned own_ones = step.count_own ? count_ones(window) : 0;
            tile.own[p] = add_step(tile.own[p], walk.first, step.own_negative, own_ones);
        }
        fetch_plane(buffers, fetch, side);
        hand_over(shadow, commands, lines);
        absorb(buffers, writes, intake);
    }
}

struct WgradOperands {};
inline void begin_wgrad(const OperandBuffers&, const Header&, WgradOperands&) {
#pragma HLS INLINE
}

// One plane of an output channel's gradients in the four rows that half of the lanes takes; none if nothing is counted.
inline Dot gradient_of(const RowWord rows[ROW_BANKS], bool count, unsigned half, unsigned oc) {
#pragma HLS INLINE
    Dot gradient = 0;
    for (unsigned r = 0; r < HALF_ROWS; ++r) {
#pragma HLS UNROLL
        for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
            gradient[r * LANES + p] = count && bool(rows[half * HALF_ROWS + r][p * CHANNELS + oc]);
        }
    }
    return gradient;
}

inline void wgrad_tile(OperandBuffers& buffers, const WgradOperands&, const Header& h, uint32_t out_group,
                       uint32_t group, uint32_t tap, uint32_t, WriteStream& writes, Intake& intake, Shadow& shadow,
                       CommandStream& commands, LineStream& lines, Tile& tile) {
#pragma HLS INLINE
    const bool is_ones = group == h.groups;
    const Planes planes = wgrad_planes(h, is_ones);
    const uint32_t left = has_left(h);
    const uint32_t right = has_right(h);
    const uint32_t blocks = blocks_of(h.rows);
    const uint32_t ky = tap / 3, kx = tap % 3;
    // the lower half of the lanes takes the first four rows of a block for each channel, the upper half the others
    clear(tile);
    for (Walk walk = begin_walk(planes); !walk.done; advance(walk, planes, blocks, h.images)) {
#pragma HLS PIPELINE II = 1
// what is absorbed is never in the ranges that this product reads (make_write)
#pragma HLS DEPENDENCE variable = buffers.a type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.a type = intra dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = intra dependent = false
        const Step step = step_of(walk, planes);
        const int32_t first = int32_t(walk.inner * ROW_BANKS);
        RowWord a_rows[ROW_BANKS], g_rows[ROW_BANKS];
#pragma HLS ARRAY_PARTITION variable = a_rows complete
#pragma HLS ARRAY_PARTITION variable = g_rows complete
        // the group of ones reads no tensor; any valid address will do
        fetch_rows(buffers.a, h.base_a + walk.image * blocks * h.groups * h.a_bits,
                   first + int32_t(ky) - 1, h.rows, h.groups, h.a_bits, is_ones ? 0 : group, step.i, a_rows);
        fetch_rows(buffers.g, h.base_b + walk.image * blocks * h.out_groups * h.b_bits, first, h.rows,
                   h.out_groups, h.b_bits, out_group, step.j, g_rows);
        for (unsigned lane = 0; lane < LANES; ++lane) {
#pragma HLS UNROLL
            const unsigned half = lane / CHANNELS, ic = lane % CHANNELS;
            Dot input = 0;
            for (unsigned r = 0; r < HALF_ROWS; ++r) {
#pragma HLS UNROLL
                const unsigned place = half * HALF_ROWS + r;
                const int32_t y = first + int32_t(place);
                const int32_t source_row = y + int32_t(ky) - 1;
                const bool row_valid = y < int32_t(h.rows) && source_row >= 0 && source_row < int32_t(h.rows);
                for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
                    const bool pixel_valid = kx == 1 || (((kx == 0 ? left : right) >> p) & 1) != 0;
                    const unsigned source = ((p + kx + LANES - 1) % LANES) * CHANNELS + ic;
                    input[r * LANES + p] = row_valid && pixel_valid && (is_ones || bool(a_rows[place][source]));
                }
            }
            for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
                const unsigned ones = count_ones(input & gradient_of(g_rows, step.count, half, oc));
                tile.sums[lane][oc] = add_step(tile.sums[lane][oc], walk.first, step.negative, ones);
            }
            const unsigned own_ones = step.count_own ? count_ones(input) : 0;
            tile.own[lane] = add_step(tile.own[lane], walk.first, step.own_negative, own_ones);
        }
        hand_over(shadow, commands, lines);
        absorb(buffers, writes, intake);
    }
}

}  // namespace kernel
