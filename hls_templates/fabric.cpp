// SPDX-License-Identifier: Apache-2.0
// Stream programs on the fabric; docs/programs.md says what programs mean.
#include "fabric.h"

#include "engine.h"
#include "loader.h"
#include "output.h"

using namespace kernel;

namespace {

Status status_of(const LoaderStatus& loader, const EngineStatus& engine, const OutputStatus& output) {
#pragma HLS INLINE
    Status status;
    status.error = output.error;
    status.position = output.position;
    status.packets = output.packets;
    status.skipped = engine.skipped;
    status.saturated = output.saturated;
    status.words_in = loader.words_in;
    status.words_out = output.words_out;
    return status;
}

}  // namespace

#if FABRIC_NATIVE

// One thread has the processes take turns: the loader when the engine asks for a packet, the output process at each
// command, so that nothing piles up.
Status run_program(Buffers& buffers, InStream& in0, InStream& in1, ResultStream& out) {
    LoaderState loader_state;
    OutputState output_state = {};
    EngineStatus engine_status;
    WriteStream writes;
    HeaderStream headers;
    LineStream lines;
    PacketStream packets([&] {
        writes.clear();
        loader_step(loader_state, in0, in1, packets, writes);
    });
    CommandStream commands([&](const Command& c) { output_step(buffers.results, output_state, c, headers, lines, out); });
    engine(buffers.operands, packets, writes, headers, commands, lines, engine_status);
    return status_of(status_of(loader_state), engine_status, output_state.status);
}

#elif defined(FABRIC_LIGHT_STREAM)

// One process after the other: each load is as early as the next process may take it.
Status run_program(Buffers& buffers, InStream& in0, InStream& in1, ResultStream& out) {
    PacketStream packets;
    WriteStream writes;
    HeaderStream headers;
    CommandStream commands;
    LineStream lines;
    LoaderStatus loader_status;
    EngineStatus engine_status;
    OutputStatus output_status;
    loader(in0, in1, packets, writes, loader_status);
    engine(buffers.operands, packets, writes, headers, commands, lines, engine_status);
    output(buffers.results, headers, commands, lines, out, output_status);
    return status_of(loader_status, engine_status, output_status);
}

#else

namespace {

// Memories of the processes, each used by one of them: zero at power-up, kept from program to program.
OperandBuffers operand_buffers;
ResultBuffers result_buffers;

void engine_process(PacketStream& packets, WriteStream& writes, HeaderStream& headers, CommandStream& commands,
                    LineStream& lines, EngineStatus& status) {
#pragma HLS DISAGGREGATE variable = operand_buffers
// eight banks, each of 64-bit memories side by side; one port for what the array reads, one for what loads write
#pragma HLS ARRAY_PARTITION variable = operand_buffers.a complete dim = 1
#pragma HLS ARRAY_PARTITION variable = operand_buffers.a complete dim = 3
#pragma HLS BIND_STORAGE variable = operand_buffers.a type = ram_2p impl = bram
#pragma HLS ARRAY_PARTITION variable = operand_buffers.g complete dim = 1
#pragma HLS ARRAY_PARTITION variable = operand_buffers.g complete dim = 3
#pragma HLS BIND_STORAGE variable = operand_buffers.g type = ram_2p impl = bram
#pragma HLS ARRAY_PARTITION variable = operand_buffers.w complete dim = 2
#pragma HLS BIND_STORAGE variable = operand_buffers.w type = ram_2p impl = bram
#pragma HLS ARRAY_PARTITION variable = operand_buffers.a_any complete dim = 1
#pragma HLS BIND_STORAGE variable = operand_buffers.a_any type = ram_2p impl = lutram
#pragma HLS ARRAY_PARTITION variable = operand_buffers.g_any complete dim = 1
#pragma HLS BIND_STORAGE variable = operand_buffers.g_any type = ram_2p impl = lutram
    engine(operand_buffers, packets, writes, headers, commands, lines, status);
}

void output_process(HeaderStream& headers, CommandStream& commands, LineStream& lines, ResultStream& out,
                    OutputStatus& status) {
#pragma HLS DISAGGREGATE variable = result_buffers
#pragma HLS BIND_STORAGE variable = result_buffers.accumulator type = ram_2p impl = bram
#pragma HLS BIND_STORAGE variable = result_buffers.entries type = ram_2p impl = bram
#pragma HLS BIND_STORAGE variable = result_buffers.moments type = ram_2p impl = bram
    output(result_buffers, headers, commands, lines, out, status);
}

// The array computes while finished tiles leave and the next operands come: each process runs once per program.
void processes(InStream& in0, InStream& in1 RESULT_STREAMS(RESULT_ARGUMENT), LoaderStatus& loader_status,
               EngineStatus& engine_status, OutputStatus& output_status) {
#pragma HLS DATAFLOW
    PacketStream packets;
// what lies between two products, and the second of them
#pragma HLS STREAM variable = packets depth = 4
    WriteStream writes;
// what comes while the engine takes no writes
#pragma HLS STREAM variable = writes depth = 16
    HeaderStream headers;
// of the packet under way, and of the next
#pragma HLS STREAM variable = headers depth = 2
    CommandStream commands;
// two tiles; a command follows its lines, so no fewer than one command's may fit
#pragma HLS STREAM variable = commands depth = 4
    LineStream lines;
#pragma HLS STREAM variable = lines depth = LINE_SLOTS
    ResultStream results;
#pragma HLS STREAM variable = results depth = 2
    loader(in0, in1, packets, writes, loader_status);
    engine_process(packets, writes, headers, commands, lines, engine_status);
    output_process(headers, commands, lines, results, output_status);
    result_port(results RESULT_STREAMS(RESULT_NAME));
}

}  // namespace

#endif

#if !defined(FABRIC_LIGHT_STREAM)

namespace {

#if FABRIC_NATIVE

Buffers all_buffers;

Status run(InStream& in0, InStream& in1 RESULT_STREAMS(RESULT_ARGUMENT)) {
    ResultStream results;
    const Status status = run_program(all_buffers, in0, in1, results);
    result_port(results RESULT_STREAMS(RESULT_NAME));
    return status;
}

#else

Status run(InStream& in0, InStream& in1 RESULT_STREAMS(RESULT_ARGUMENT)) {
#pragma HLS INLINE
    LoaderStatus loader_status;
    EngineStatus engine_status;
    OutputStatus output_status;
    processes(in0, in1 RESULT_STREAMS(RESULT_NAME), loader_status, engine_status, output_status);
    return status_of(loader_status, engine_status, output_status);
}

#endif

}  // namespace

// Each argument that is a register: where it lies, and its value where no program changes it.
#define KERNEL_PORT(name, byte, value) \
    HLS_PRAGMA(HLS INTERFACE mode = s_axilite bundle = control port = name offset = byte)
#define KERNEL_START(name, byte, value) name = value;

#define RESULT_INTERFACE(name) HLS_PRAGMA(HLS INTERFACE mode = axis port = name)

void fabric(InStream& in0, InStream& in1 RESULT_STREAMS(RESULT_ARGUMENT), uint32_t soft_reset
            KERNEL_REGISTERS(KERNEL_ARGUMENT)) {
#pragma HLS INTERFACE mode = axis port = in0
#pragma HLS INTERFACE mode = axis port = in1
    RESULT_STREAMS(RESULT_INTERFACE)
#pragma HLS INTERFACE mode = s_axilite bundle = control port = return
#pragma HLS INTERFACE mode = s_axilite bundle = control port = soft_reset offset = 0x10
    KERNEL_REGISTERS(KERNEL_PORT)
#pragma HLS INTERFACE mode = ap_ctrl_hs port = return

    KERNEL_REGISTERS(KERNEL_START)
    // The argument is sampled at start: a start with it set does nothing.  A program that is under way is abandoned by
    // the block's own reset.
    if (soft_reset != 0) return;

    const Status status = run(in0, in1 RESULT_STREAMS(RESULT_NAME));
    error = status.error;
    position = status.position;
    packets = status.packets;
    skipped = status.skipped;
    saturated = status.saturated;
    words_in = status.words_in;
    words_out = status.words_out;
}

#endif
