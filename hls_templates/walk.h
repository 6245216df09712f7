// SPDX-License-Identifier: Apache-2.0
// The order of a tile's steps on the array that synthesis sees.
#pragma once

#include "plane_pairs.h"

namespace kernel {

// The steps of a tile, one per cycle: diagonals downwards, their pairs, and the steps of each pair.  A diagonal without
// pairs has one step, which only doubles.  As one loop, since a loop of its own for each pair would fill and empty the
// pipeline as often.
struct Walk {
    uint32_t diagonal;
    uint32_t partners;  // bit i: plane diagonal - i of the second operand is needed; the next diagonal's are a bit lower
    uint32_t pairs;     // of the diagonal, from the one under way on, by plane of the first operand
    uint32_t inner;     // step of the pair: the group, or the block of an image
    uint32_t image;     // WGRAD: of the pair
    bool first;         // on its diagonal
    bool done;
};

inline Walk begin_walk(const Planes& planes) {
#pragma HLS INLINE
    const uint32_t needed = planes.b_mask | (planes.sums ? 1 : 0);
    Walk walk;
    walk.diagonal = planes.a_bits + planes.b_bits - 2;
    walk.partners = 0;
    for (uint32_t j = 0; j < MAX_BITS; ++j) {
#pragma HLS UNROLL
        if (((needed >> j) & 1) != 0) walk.partners |= uint32_t(1) << (walk.diagonal - j);
    }
    walk.pairs = walk.partners & planes.a_mask;
    walk.inner = 0;
    walk.image = 0;
    walk.first = true;
    walk.done = false;
    return walk;
}

// On to the next step; a pair has `steps` for each of so many images.
inline void advance(Walk& walk, const Planes& planes, uint32_t steps, uint32_t images) {
#pragma HLS INLINE
    walk.first = false;
    if (walk.pairs != 0) {
        if (++walk.inner != steps) return;
        walk.inner = 0;
        if (++walk.image != images) return;
        walk.image = 0;
    }
    walk.pairs &= walk.pairs - 1;
    if (walk.pairs != 0) return;
    walk.first = true;
    walk.done = walk.diagonal == 0;
    --walk.diagonal;
    walk.partners >>= 1;
    walk.pairs = walk.partners & planes.a_mask;
}

// What the array does in one step.
struct Step {
    uint32_t i, j;  // planes; any that exist if nothing is counted
    bool count;     // the products of the planes
    bool count_own;
    bool negative, own_negative;
};

inline Step step_of(const Walk& walk, const Planes& planes) {
#pragma HLS INLINE
    const bool any = walk.pairs != 0;
    uint32_t i = 0;
    for (uint32_t n = MAX_BITS; n-- > 0;) {
#pragma HLS UNROLL
        if (((walk.pairs >> n) & 1) != 0) i = n;
    }
    Step step;
    step.i = i;
    step.j = any ? walk.diagonal - i : 0;
    step.count = any && ((planes.b_mask >> step.j) & 1) != 0;
    step.count_own = any && step.j == 0 && planes.sums;
    step.negative = subtracts(planes, step.i, step.j);
    step.own_negative = planes.a_signed && i == planes.a_bits - 1;
    return step;
}

}  // namespace kernel
