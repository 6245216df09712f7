// SPDX-License-Identifier: Apache-2.0
// The array that synthesis sees: every cycle the whole array, operands wired from eight rows.
//
// One array serves both products.  Every lane has one first operand: what a convolution's kernel sees at a pixel, or the
// pixels of an input channel in four rows.  The second operand goes to all lanes of a half: weights, or gradients in the
// same four rows, by output channel.  Each memory is read in one place for both.
#pragma once

#include "buffers.h"
#include "plane_pairs.h"
#include "shadow.h"
#include "walk.h"

namespace kernel {

using RowWord = ap_uint<ROW_BITS>;
using WeightWord = ap_uint<64 * WEIGHT_WORDS>;
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

// Words side by side, the first one lowest.
template <unsigned COUNT, typename Words>
ap_uint<64 * COUNT> join(const Words& words) {
#pragma HLS INLINE
    ap_uint<64 * COUNT> row = 0;
    for (unsigned n = 0; n < COUNT; ++n) {
#pragma HLS UNROLL
        const uint64_t word = words[n];
        set_bits<64>(row, 64 * n, ap_uint<64>(word));
    }
    return row;
}

// Where the packed rows of one group and plane lie, and how the next ones follow.
struct Tensor {
    Address base;
    Address image, block;  // addresses of an image, and of the same rows of all its groups and planes
    uint32_t bits;
    int32_t rows;
};

inline Tensor tensor_of(uint32_t base, uint32_t rows, uint32_t groups, uint32_t bits) {
#pragma HLS INLINE
    Tensor tensor;
    tensor.base = Address(base);
    tensor.block = Address(Address(groups) * Address(bits));
    tensor.image = Address(Address(blocks_of(rows)) * tensor.block);
    tensor.bits = bits;
    tensor.rows = int32_t(rows);
    return tensor;
}

// Of the row that is a multiple of eight; block -1 has no rows, and nothing is read there.
inline Address address_of(const Tensor& tensor, uint32_t image, int32_t block, uint32_t group, uint32_t plane) {
#pragma HLS INLINE
    const Address within = Address(Address(block) * tensor.block + Address(group) * Address(tensor.bits));
    return Address(tensor.base + Address(Address(image) * tensor.image) + within + Address(plane));
}

// Eight rows from `first` on, which is -2 or more; rows outside the image read zero.
inline void fetch_rows(const Memory<uint64_t, ROW_BANKS, DEPTH_A, ROW_WORDS>& memory, const Tensor& tensor,
                       uint32_t image, int32_t first, uint32_t group, uint32_t plane, RowWord window[ROW_BANKS]) {
#pragma HLS INLINE
    const uint32_t turned = uint32_t(first + int32_t(ROW_BANKS));
    const uint32_t offset = turned % ROW_BANKS;  // bank of the first row
    const Address low = address_of(tensor, image, int32_t(turned / ROW_BANKS) - 1, group, plane);
    const Address high = Address(low + tensor.block);
    for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
        const int32_t row = first + int32_t((bank - offset) % ROW_BANKS);
        RowWord word = 0;
        if (row >= 0 && row < tensor.rows) word = join<ROW_WORDS>(memory[bank][uint32_t(bank < offset ? high : low)]);
        window[bank] = word;
    }
    // from banks to rows, in three steps
    for (unsigned step = 1; step < ROW_BANKS; step *= 2) {
#pragma HLS UNROLL
        RowWord before[ROW_BANKS];
#pragma HLS ARRAY_PARTITION variable = before complete
        for (unsigned n = 0; n < ROW_BANKS; ++n) {
#pragma HLS UNROLL
            before[n] = window[n];
        }
        for (unsigned n = 0; n < ROW_BANKS; ++n) {
#pragma HLS UNROLL
            window[n] = (offset & step) != 0 ? before[(n + step) % ROW_BANKS] : before[n];
        }
    }
}

// Sums in DSP slices or in LUTs, as the design says.
inline Accumulated add_in_dsp(const Accumulated& x, const Accumulated& y) {
#pragma HLS INLINE
    const Accumulated sum = x + y;
#pragma HLS BIND_OP variable = sum op = add impl = dsp
    return sum;
}

inline Accumulated add_in_luts(const Accumulated& x, const Accumulated& y) {
#pragma HLS INLINE
    const Accumulated sum = x + y;
#pragma HLS BIND_OP variable = sum op = add impl = fabric
    return sum;
}

// A sum after one step: doubled on a new diagonal, then counted up or down.
inline Accumulated add_step(const Accumulated& sum, bool first, bool negative, unsigned ones) {
#pragma HLS INLINE
    const Accumulated before = first ? Accumulated(sum + sum) : sum;
    const Accumulated change = negative ? -int32_t(ones) : int32_t(ones);
    return DSP_ACCUMULATORS != 0 ? add_in_dsp(before, change) : add_in_luts(before, change);
}

struct Operands {};
inline void begin_product(const OperandBuffers&, const Header&, Operands&) {
#pragma HLS INLINE
}
inline void begin_row(const OperandBuffers&, const Header&, const Place&, Operands&) {
#pragma HLS INLINE
}

// One plane of the weights of a group, for an output channel.
inline Dot weights_of(const WeightWord& word, unsigned oc) {
#pragma HLS INLINE
    return bits_of<DOT_BITS>(word, oc * DOT_BITS);
}

// One plane of an output channel's gradients in the four rows that a half of the lanes takes.
inline Dot gradients_of(const RowWord rows[ROW_BANKS], unsigned half, unsigned oc) {
#pragma HLS INLINE
    Dot gradients = 0;
    for (unsigned r = 0; r < HALF_ROWS; ++r) {
#pragma HLS UNROLL
        for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
            gradients[r * LANES + p] = bool(rows[half * HALF_ROWS + r][p * CHANNELS + oc]);
        }
    }
    return gradients;
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

// What a weight gradient's tap reads of eight rows: the pixels that it shifts to, each row as a whole.
inline void shift_rows(const Header& h, const Place& place, int32_t first, RowWord rows[ROW_BANKS],
                       ap_uint<LANES>& pixels) {
#pragma HLS INLINE
    const uint32_t kx = place.tap % 3;
    pixels = ap_uint<LANES>(kx == 0 ? has_left(h) : kx == 2 ? has_right(h) : low_mask(LANES));
    for (unsigned n = 0; n < ROW_BANKS; ++n) {
#pragma HLS UNROLL
        const RowWord row = rows[n];
        const int32_t y = first + int32_t(n), source = y + int32_t(place.tap / 3) - 1;
        const bool valid = y < int32_t(h.rows) && source >= 0 && source < int32_t(h.rows);
        const RowWord shifted =
            kx == 0 ? RowWord(row << CHANNELS) : kx == 2 ? RowWord(row >> CHANNELS) : row;
        // the group of ones has no tensor
        rows[n] = !valid ? RowWord(0) : place.ones ? RowWord(~RowWord(0)) : shifted;
    }
}

// Pixels of an input channel in the four rows of a lane's half.
inline Dot inputs_of(const RowWord rows[ROW_BANKS], const ap_uint<LANES>& pixels, unsigned lane) {
#pragma HLS INLINE
    const unsigned half = lane / CHANNELS, ic = lane % CHANNELS;
    Dot inputs = 0;
    for (unsigned r = 0; r < HALF_ROWS; ++r) {
#pragma HLS UNROLL
        for (unsigned p = 0; p < LANES; ++p) {
#pragma HLS UNROLL
            inputs[r * LANES + p] = bool(pixels[p]) && bool(rows[half * HALF_ROWS + r][p * CHANNELS + ic]);
        }
    }
    return inputs;
}

// What buffer G gives in one cycle, in every bank: rows of gradients, or in CONV the next plane of the epilogue's
// operands, in one bank.
inline void fetch_g(const OperandBuffers& buffers, bool wgrad, Address address, int32_t first, int32_t rows,
                    const Fetch& fetch, RowWord words[ROW_BANKS]) {
#pragma HLS INLINE
    for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
        const bool reads = wgrad ? first + int32_t(bank) < rows : fetching(fetch) && bank == fetch.bank;
        RowWord word = 0;
        if (reads) word = join<ROW_WORDS>(buffers.g[bank][uint32_t(wgrad ? address : address_of(fetch))]);
        words[bank] = word;
    }
}

// Of eight rows, of which only one is not zero: that one.
inline void one_of(const RowWord rows[ROW_BANKS], uint64_t words[ROW_WORDS]) {
#pragma HLS INLINE
    RowWord row = 0;
    for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
        row |= rows[bank];
    }
    for (unsigned n = 0; n < ROW_WORDS; ++n) {
#pragma HLS UNROLL
        words[n] = uint64_t(bits_of<64>(row, 64 * n));
    }
}

// The tile at `place`; returns the steps that it has taken.
inline uint32_t compute_tile(OperandBuffers& buffers, const Operands&, const Header& h, const Place& place,
                             WriteStream& writes, Intake& intake, Shadow& shadow, CommandStream& commands,
                             LineStream& lines, Fetch& fetch, SidePlanes& side, Tile& tile) {
#pragma HLS INLINE
    const bool wgrad = place.wgrad;
    const Planes planes = planes_of(h, place);
    const uint32_t operand = operand_rows(h);
    const bool strided = operand != h.rows;
    const Tensor a = tensor_of(h.base_a, operand, h.groups, h.a_bits);
    const Tensor g = tensor_of(h.base_b, h.rows, h.out_groups, h.b_bits);
    const Address out_group = Address(Address(h.groups) * Address(h.b_bits));  // weights of one
    const Address weights = Address(Address(h.base_b) + Address(Address(place.out_group) * out_group));
    // virtual row of the window's first tap
    const int32_t conv_first = strided ? 4 * int32_t(place.y) - 2 : int32_t(place.y) - 1;
    const int32_t ky = int32_t(place.tap / 3);
    clear(tile);
    uint32_t steps = 0;
    const uint32_t pair_steps = wgrad ? blocks_of(h.rows) : h.groups, pair_images = wgrad ? h.images : 1;
    for (Walk walk = begin_walk(planes); !walk.done; advance(walk, planes, pair_steps, pair_images)) {
#pragma HLS PIPELINE II = 1
// what is absorbed is never in the ranges that this product reads (make_write)
#pragma HLS DEPENDENCE variable = buffers.a type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.a type = intra dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.g type = intra dependent = false
#pragma HLS DEPENDENCE variable = buffers.w type = inter dependent = false
#pragma HLS DEPENDENCE variable = buffers.w type = intra dependent = false
        ++steps;
        const Step step = step_of(walk, planes);
        const int32_t first = int32_t(walk.inner * ROW_BANKS);  // WGRAD
        RowWord a_rows[ROW_BANKS], g_rows[ROW_BANKS];
#pragma HLS ARRAY_PARTITION variable = a_rows complete
#pragma HLS ARRAY_PARTITION variable = g_rows complete
        // the group of ones reads no tensor; any valid address will do
        fetch_rows(buffers.a, a, wgrad ? walk.image : place.image, wgrad ? first + ky - 1 : conv_first,
                   wgrad ? (place.ones ? 0 : place.group) : walk.inner, step.i, a_rows);
        fetch_g(buffers, wgrad, address_of(g, walk.image, int32_t(walk.inner), place.out_group, step.j), first, g.rows,
                fetch, g_rows);
        WeightWord weight = 0;
        if (!wgrad) {
            const Address group = Address(Address(walk.inner) * Address(h.b_bits));
            weight = join<WEIGHT_WORDS>(buffers.w[uint32_t(Address(weights + group + Address(step.j)))]);
        }
        Dot second[2][CHANNELS];  // by half
#pragma HLS ARRAY_PARTITION variable = second complete dim = 0
        for (unsigned half = 0; half < 2; ++half) {
#pragma HLS UNROLL
            for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
                const Dot operand_bits = wgrad ? gradients_of(g_rows, half, oc) : weights_of(weight, oc);
                second[half][oc] = step.count ? operand_bits : Dot(0);
            }
        }
        ap_uint<LANES> pixels = 0;
        RowWord shifted[ROW_BANKS];
#pragma HLS ARRAY_PARTITION variable = shifted complete
        for (unsigned n = 0; n < ROW_BANKS; ++n) {
#pragma HLS UNROLL
            shifted[n] = a_rows[n];
        }
        shift_rows(h, place, first, shifted, pixels);
        for (unsigned lane = 0; lane < LANES; ++lane) {
#pragma HLS UNROLL
            const Dot operand_bits = wgrad ? inputs_of(shifted, pixels, lane) : window_of(a_rows, h, strided, lane);
            for (unsigned oc = 0; oc < CHANNELS; ++oc) {
#pragma HLS UNROLL
                const unsigned ones = count_ones(operand_bits & second[lane / CHANNELS][oc]);
                tile.sums[lane][oc] = add_step(tile.sums[lane][oc], walk.first, step.negative, ones);
            }
            const unsigned own_ones = step.count_own ? count_ones(operand_bits) : 0;
            tile.own[lane] = add_step(tile.own[lane], walk.first, step.own_negative, own_ones);
        }
        if (!wgrad) {
            uint64_t plane[ROW_WORDS];
#pragma HLS ARRAY_PARTITION variable = plane complete
            one_of(g_rows, plane);
            take_plane(plane, fetch, side);
        }
        hand_over(shadow, commands, lines);
        absorb(buffers, writes, intake);
    }
    return steps;
}

}  // namespace kernel
