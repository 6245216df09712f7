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

// Of one output channel, while a product runs.
struct Statistics {
    int64_t sum;
    Squares squares;  // at most 2^21 values of at most 2^62: 84 bits
    int32_t low;
    int32_t high;
};

struct ResultBuffers {
    Accumulated accumulator[DEPTH_ACCUMULATOR][CHANNELS];
    Multiplier multiplier[DEPTH_EPILOGUE];
    Accumulated offset[DEPTH_EPILOGUE];
    Statistics statistics[MAX_OUT_GROUPS * CHANNELS];
};

struct Buffers {
    OperandBuffers operands;
    ResultBuffers results;
};

}  // namespace kernel
