// SPDX-License-Identifier: Apache-2.0
// The harness with a record of every signal's switching activity, in SAIF as Vivado's read_saif takes it.
// The model's eval() is the one place where a clock edge shows, so the record hangs there and the harness stays as it is.
#include "Vfabric.h"
#include "verilated.h"
#include "verilated_saif_c.h"

namespace {

class Recorded : public Vfabric {
  VerilatedSaifC record;
  uint64_t half_period = 0, edges = 0;  // in ps; 0 edges at the start
  bool last_clock = false;

 public:
  explicit Recorded(VerilatedContext* context) : Vfabric{context} { context->traceEverOn(true); }

  void start(const char* path, uint64_t half_period_ps) {
    half_period = half_period_ps;
    edges = 0;
    last_clock = ap_clk;
    trace(&record, 99);
    record.open(path);
    record.dump(uint64_t{0});
  }
  // Between two edges inputs settle; those evaluations take no time, and what they switch shows at the next edge.
  void eval() {
    Vfabric::eval();
    if (!record.isOpen() || last_clock == static_cast<bool>(ap_clk)) return;
    last_clock = ap_clk;
    record.dump(++edges * half_period);
  }
  uint64_t stop() {
    eval();  // the falling edge that the model has not yet been told of
    record.close();
    return edges / 2;
  }
};

}  // namespace

#define Vfabric Recorded
#include "harness.cpp"
#undef Vfabric

extern "C" {

// Starts the record; once in the life of an instance.
void fabric_record(void* handle, const char* path, uint64_t half_period_ps) {
  static_cast<Instance*>(handle)->top.start(path, half_period_ps);
}

// Writes the file; returns the clock cycles recorded.
uint64_t fabric_record_end(void* handle) { return static_cast<Instance*>(handle)->top.stop(); }

}  // extern "C"
