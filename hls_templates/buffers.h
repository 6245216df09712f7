// SPDX-License-Identifier: Apache-2.0
// On-chip memories.  They keep their contents between programs.
#pragma once

#include "platform.h"

namespace kernel {

struct OperandBuffers {
    uint64_t a[ROW_BANKS][DEPTH_A][ROW_WORDS];
    uint64_t g[ROW_BANKS][DEPTH_G][ROW_WORDS];
    uint64_t w[DEPTH_W][WEIGHT_WORDS];
    bool a_any[ROW_BANKS][DEPTH_A];  // the row word has a bit set
    bool g_any[ROW_BANKS][DEPTH_G];
};

// Parameters of an output channel in the epilogue, named as in docs/programs.md.
struct Entry {
    Multiplier m, o, n, l;
    Offset b;
    ValueOffset c;
};

// Of one output channel, while a product runs.
struct Moments {
    MomentSum sum;
    MomentProducts products;
    Value least, greatest;
};

struct ResultBuffers {
    Accumulated accumulator[DEPTH_ACCUMULATOR][CHANNELS];
    Entry entries[DEPTH_EPILOGUE];
    Moments moments[MAX_OUT_GROUPS * CHANNELS];
};

struct Buffers {
    OperandBuffers operands;
    ResultBuffers results;
};

}  // namespace kernel
