// SPDX-License-Identifier: Apache-2.0
// Verilated fabric behind the same C interface as the HLS simulation library: one program in, its results and registers out.
// The streams can be slowed down with seeded gaps, so that overlap and back-pressure are exercised without Python.
#include <cstdio>
#include <cstddef>
#include <cstdint>

#include "Vfabric.h"
#include "verilated.h"

namespace {

constexpr unsigned kControl = 0x00, kSoftReset = 0x10, kContract = 0x28, kLastRegister = 0x90;

struct Instance {
  VerilatedContext context;
  Vfabric top{&context};
  uint32_t idle_permille = 0;  // chance in 1000 that a stream pauses in a cycle
  uint32_t random = 1;
  size_t output_streams = 1;

  Instance() {
    context.fatalOnError(false);  // an assertion that fails must not end the process: fabric_run tells
    top.ap_clk = 0;
    top.ap_rst_n = 0;
    for (int i = 0; i < 4; i++) cycle();
    top.ap_rst_n = 1;
    for (int i = 0; i < 4; i++) cycle();
    output_streams = read(kContract) >> 24;
  }
  // Lets what is set take effect.
  void settle() { top.eval(); }
  // The end of a cycle.  Nothing happens at the falling edge, so the model learns of it with what is set next.
  void edge() {
    top.ap_clk = 1;
    top.eval();
    top.ap_clk = 0;
  }
  void cycle() {
    settle();
    edge();
  }
  bool pause() {
    if (idle_permille == 0) return false;
    random ^= random << 13, random ^= random >> 17, random ^= random << 5;
    return random % 1000 < idle_permille;
  }
  void write(uint8_t address, uint32_t value) {
    top.s_axi_control_AWADDR = address;
    top.s_axi_control_WDATA = value;
    top.s_axi_control_WSTRB = 0xF;
    top.s_axi_control_AWVALID = top.s_axi_control_WVALID = top.s_axi_control_BREADY = 1;
    for (settle(); !top.s_axi_control_AWREADY; settle()) edge();
    edge();
    top.s_axi_control_AWVALID = top.s_axi_control_WVALID = 0;
  }
  uint32_t read(uint8_t address) {
    top.s_axi_control_ARADDR = address;
    top.s_axi_control_ARVALID = top.s_axi_control_RREADY = 1;
    for (settle(); !top.s_axi_control_ARREADY; settle()) edge();
    edge();
    top.s_axi_control_ARVALID = 0;
    return top.s_axi_control_RDATA;
  }
};

}  // namespace

extern "C" {

void* fabric_create() { return new Instance; }
void fabric_destroy(void* handle) { delete static_cast<Instance*>(handle); }

void fabric_reset(void* handle) {
  auto& f = *static_cast<Instance*>(handle);
  f.context.gotError(false);
  f.context.gotFinish(false);
  f.top.in0_TVALID = f.top.in1_TVALID = f.top.out0_TREADY = f.top.out1_TREADY = 0;
  f.write(kSoftReset, 1);
  for (int i = 0; i < 4; i++) f.cycle();
}

// Makes every stream pause in about `permille` of 1000 cycles, from `seed` on.
void fabric_pauses(void* handle, uint32_t permille, uint32_t seed) {
  auto& f = *static_cast<Instance*>(handle);
  f.idle_permille = permille;
  f.random = seed ? seed : 1;
}

// Returns 0 done, 1 deadline expired (in cycles without progress or in all), 2 output capacity exceeded,
// 3 an assertion of the RTL failed (it is on the standard output).
int fabric_run(void* handle, const uint64_t* in0, size_t n0, const uint64_t* in1, size_t n1, uint64_t* out, size_t capacity,
               size_t* n_out, uint32_t* registers, uint64_t max_cycles) {
  auto& f = *static_cast<Instance*>(handle);
  auto& top = f.top;
  size_t i0 = 0, i1 = 0, k0 = 0, k1 = 0;
  bool hold0 = false, hold1 = false;
  size_t ended = 0;  // output streams that have ended
  int status = 1;
  f.write(kControl, 1);
  top.s_axi_control_ARADDR = kControl;
  for (uint64_t cycle = 0; cycle < max_cycles; cycle++) {
    // a word once offered stays offered until it is taken
    hold0 = i0 < n0 && (hold0 || !f.pause());
    hold1 = i1 < n1 && (hold1 || !f.pause());
    top.in0_TVALID = hold0;
    top.in1_TVALID = hold1;
    if (hold0) top.in0_TDATA = in0[i0], top.in0_TLAST = i0 + 1 == n0;
    if (hold1) top.in1_TDATA = in1[i1], top.in1_TLAST = i1 + 1 == n1;
    top.out0_TREADY = !f.pause();
    top.out1_TREADY = !f.pause();
    f.settle();
    const bool take0 = hold0 && top.in0_TREADY, take1 = hold1 && top.in1_TREADY;
    // even words leave on the first stream, odd ones on the second; all on the first where it is the only one
    bool full = false;
    const auto store = [&](bool taken, size_t at, size_t& count, uint64_t word, bool last) {
      if (!taken || full) return;
      full = at >= capacity;
      if (full) return;
      out[at] = word;
      count++;
      ended += last;
    };
    store(top.out0_TVALID && top.out0_TREADY, f.output_streams * k0, k0, top.out0_TDATA, top.out0_TLAST);
    store(top.out1_TVALID && top.out1_TREADY, 2 * k1 + 1, k1, top.out1_TDATA, top.out1_TLAST);
    if (full) {
      status = 2;
      break;
    }
    f.edge();
    if (f.context.gotError()) {
      status = 3;
      std::fflush(stdout);  // what failed, now and not when the process ends
      break;
    }
    if (take0) i0++, hold0 = false;
    if (take1) i1++, hold1 = false;
    if (ended == f.output_streams && i0 == n0 && i1 == n1) {
      status = 0;
      break;
    }
  }
  top.in0_TVALID = top.in1_TVALID = top.out0_TREADY = top.out1_TREADY = 0;
  *n_out = k0 + k1;
  for (int i = 0; i < 8 && status == 0; i++) f.cycle();
  for (unsigned a = 0; a <= kLastRegister; a += 8) registers[a / 8] = f.read(static_cast<uint8_t>(a));
  if (status == 0 && !(registers[0] & 2)) status = 1;
  return status;
}

}  // extern "C"
