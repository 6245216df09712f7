// SPDX-License-Identifier: Apache-2.0
// On-chip memories.  They keep their contents between programs.
#pragma once

#include "packing.h"

namespace kernel {

struct OperandBuffers {
    Memory<uint64_t, ROW_BANKS, DEPTH_A, ROW_WORDS> a;
    Memory<uint64_t, ROW_BANKS, DEPTH_G, ROW_WORDS> g;
    Memory<uint64_t, DEPTH_W, WEIGHT_WORDS> w;
    Memory<bool, ROW_BANKS, DEPTH_A> a_any;  // the row word has a bit set
    Memory<bool, ROW_BANKS, DEPTH_G> g_any;
};

// Parameters of an output channel in the epilogue, named as in docs/programs.md.
struct Entry {
    Multiplier m, o, n, l;
    Offset b;
    ValueOffset c;

    static constexpr unsigned BITS = 4 * MULTIPLIER_BITS + OFFSET_BITS + VALUE_OFFSET_BITS;
    template <typename Self, typename Visitor>
    static void fields(Self& entry, Visitor& v) {
#pragma HLS INLINE
        v.template signed_field<MULTIPLIER_BITS>(entry.m);
        v.template signed_field<MULTIPLIER_BITS>(entry.o);
        v.template signed_field<MULTIPLIER_BITS>(entry.n);
        v.template signed_field<MULTIPLIER_BITS>(entry.l);
        v.template signed_field<OFFSET_BITS>(entry.b);
        v.template signed_field<VALUE_OFFSET_BITS>(entry.c);
    }
};

// Sums of one accumulator entry.
struct SumEntry {
    Accumulated value[CHANNELS];

    static constexpr unsigned BITS = CHANNELS * ACC_BITS;
    template <typename Self, typename Visitor>
    static void fields(Self& entry, Visitor& v) {
#pragma HLS INLINE
        for (unsigned k = 0; k < CHANNELS; ++k) {
#pragma HLS UNROLL
            v.template signed_field<ACC_BITS>(entry.value[k]);
        }
    }
};

// Of one output channel, while a product runs.
struct Moments {
    MomentSum sum;
    MomentProducts products;
    Value least, greatest;

    static constexpr unsigned BITS = SUM_BITS + PRODUCT_BITS + 2 * VALUE_BITS;
    template <typename Self, typename Visitor>
    static void fields(Self& moments, Visitor& v) {
#pragma HLS INLINE
        v.template signed_field<SUM_BITS>(moments.sum);
        v.template signed_field<PRODUCT_BITS>(moments.products);
        v.template signed_field<VALUE_BITS>(moments.least);
        v.template signed_field<VALUE_BITS>(moments.greatest);
    }
};

struct ResultBuffers {
    Memory<Packed<SumEntry>, DEPTH_ACCUMULATOR> accumulator;
    Memory<Packed<Entry>, DEPTH_EPILOGUE> entries;
    Memory<Packed<Moments>, MAX_OUT_GROUPS * CHANNELS> moments;
};

struct Buffers {
    OperandBuffers operands;
    ResultBuffers results;
};

}  // namespace kernel
