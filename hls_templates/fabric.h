// SPDX-License-Identifier: Apache-2.0
// The accelerator as an HLS kernel: a run of a program, and the top function.
#pragma once

#include "buffers.h"
#include "contract.h"
#include "result_port.h"
#include "streams.h"

// What a program leaves in the registers.
struct Status {
    uint32_t error;
    uint32_t position;
    uint32_t packets;
    uint32_t skipped;
    uint32_t saturated;
    uint32_t words_in;
    uint32_t words_out;
};

// An argument of the top function.
#define KERNEL_ARGUMENT(name, byte, value) , uint32_t& name

#if FABRIC_NATIVE || defined(FABRIC_LIGHT_STREAM)
// Run one program from its first header to its trailer.
Status run_program(kernel::Buffers& buffers, InStream& in0, InStream& in1, kernel::ResultStream& out);
#endif

#if !defined(FABRIC_LIGHT_STREAM)
// Top function of the HLS block.
void fabric(InStream& in0, InStream& in1 RESULT_STREAMS(RESULT_ARGUMENT), uint32_t soft_reset
            KERNEL_REGISTERS(KERNEL_ARGUMENT));
#endif
