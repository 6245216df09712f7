// SPDX-License-Identifier: Apache-2.0
// Simulation library: the kernel behind a C interface.
#include <new>

#include "fabric.h"

using contract::REGISTERS;
using kernel::Buffers;

// A register at the start of a program.
#define REGISTER_START(name, byte, value) registers[byte / 8] = value;

extern "C" {

// A device with zeroed memories, as at power-up; null if there is no memory left.
void* fabric_create(void) {
    return new (std::nothrow) Buffers();
}

void fabric_destroy(void* handle) {
    delete static_cast<Buffers*>(handle);
}

// A call runs a program to its end, so there is never one to abandon, and reset leaves the memories alone.
void fabric_reset(void* handle) {
    (void)handle;
}

// Run one program.  The last word of either input carries TLAST; `out` receives the trailer too.
// Returns 0 when done, 1 when the fabric would wait for input for ever, 2 when `capacity` words were too few.
// The kernel has no clock, so max_cycles cannot expire while it computes: every program ends.
int fabric_run(void* handle, const uint64_t* in0, size_t n0, const uint64_t* in1, size_t n1, uint64_t* out,
               size_t capacity, size_t* n_out, uint32_t* registers, uint64_t max_cycles) {
    (void)max_cycles;
    for (unsigned r = 0; r < REGISTERS; ++r) registers[r] = 0;
    KERNEL_REGISTERS(REGISTER_START)
    *n_out = 0;
    if (n0 == 0 || n1 == 0) return 1;  // a stream without words never brings its TLAST

    InStream s0(in0, n0);
    InStream s1(in1, n1);
    kernel::ResultStream results(out, capacity);
    const Status status = run_program(*static_cast<Buffers*>(handle), s0, s1, results);

    registers[contract::REG_CTRL] = 0x0E;  // done, idle, ready
    registers[contract::REG_ERROR] = status.error;
    registers[contract::REG_POSITION] = status.position;
    registers[contract::REG_PACKETS] = status.packets;
    registers[contract::REG_SKIPPED] = status.skipped;
    registers[contract::REG_SATURATED] = status.saturated;
    registers[contract::REG_WORDS_IN] = status.words_in;
    registers[contract::REG_WORDS_OUT] = status.words_out;
    *n_out = results.count() < capacity ? results.count() : capacity;
    return results.count() > capacity ? 2 : 0;
}

}  // extern "C"
