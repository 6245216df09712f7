// SPDX-License-Identifier: Apache-2.0
// Verilated accelerator with a memory behind its two masters, behind a C interface: words in memory, a program runs, words
// in memory again.  The memory answers after random times and with pauses, may refuse an access or fall silent, and checks
// what is asked of it.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>

#include "Vaccelerator.h"
#include "verilated.h"

namespace {

constexpr unsigned kCorePage = 0x000, kMemoryPage = 0x100, kSlots = 32;
constexpr unsigned kStart = 0x100, kStop = 0x108, kInterrupt = 0x128, kBase = 0x130, kLimit = 0x150, kProgram = 0x158, kDeadline = 0x160;
constexpr uint64_t kBases[2] = {0x1000'0000, 0x3210'1000};  // unlike each other, so that a mixed-up one is found
constexpr unsigned kLine = 16, kMostOpen = 12, kOkay = 0;
constexpr unsigned kClearAndEnable = 3;  // written to INTERRUPT

struct Settings {  // as host/devices/rtl_memory.py lays them out
  uint32_t least_latency, most_latency;  // cycles from an access to its answer
  uint32_t pauses;                       // chance in 1000 that a channel pauses in a cycle
  uint32_t seed;
  uint32_t refuse;       // response to an access that touches a beat: 0 none, 2 SLVERR, 3 DECERR
  uint32_t refuse_port, refuse_write, refuse_offset;
  uint32_t silent_after;  // accesses after which nothing is answered, 0: never
  uint32_t silent_cycles;
  uint32_t stop_after;    // cycles after which the host writes STOP, 0: never
  uint32_t clear_after;   // cycles after which the host clears the interrupt, 0: never
};

// The signals of a master.
struct Pins {
  CData &arvalid, &arready, &arlen, &arsize, &arburst, &rvalid, &rready, &rlast, &rresp;
  CData &awvalid, &awready, &awlen, &awsize, &awburst, &wvalid, &wready, &wlast, &wstrb, &bvalid, &bready, &bresp;
  IData &araddr, &awaddr;
  QData &rdata, &wdata;
};

#define PINS(n)                                                                                                          \
  Pins {                                                                                                                 \
    top.m_axi_##n##_ARVALID, top.m_axi_##n##_ARREADY, top.m_axi_##n##_ARLEN, top.m_axi_##n##_ARSIZE,                     \
        top.m_axi_##n##_ARBURST, top.m_axi_##n##_RVALID, top.m_axi_##n##_RREADY, top.m_axi_##n##_RLAST,                  \
        top.m_axi_##n##_RRESP, top.m_axi_##n##_AWVALID, top.m_axi_##n##_AWREADY, top.m_axi_##n##_AWLEN,                  \
        top.m_axi_##n##_AWSIZE, top.m_axi_##n##_AWBURST, top.m_axi_##n##_WVALID, top.m_axi_##n##_WREADY,                 \
        top.m_axi_##n##_WLAST, top.m_axi_##n##_WSTRB, top.m_axi_##n##_BVALID, top.m_axi_##n##_BREADY,                    \
        top.m_axi_##n##_BRESP, top.m_axi_##n##_ARADDR, top.m_axi_##n##_AWADDR, top.m_axi_##n##_RDATA,                    \
        top.m_axi_##n##_WDATA                                                                                            \
  }

struct Instance {
  VerilatedContext context;
  Vaccelerator top{&context};
  Pins pins[2] = {PINS(0), PINS(1)};
  Settings settings{};
  uint64_t* words = nullptr;  // beat i: word 2i behind port 0, word 2i + 1 behind port 1
  size_t beats = 0;
  uint64_t now = 0, accesses = 0, silent_until = 0, interrupts = 0;
  uint32_t random = 1;
  bool broken = false;  // a rule of AXI, or of ours
  bool line = false;    // the interrupt's, as it was

  struct Burst {
    uint64_t first;  // beat
    unsigned length;
    uint64_t ready;  // cycle from which it may be answered
    bool early;      // data are read, or written, when the access comes and not when it is answered
    unsigned moved;
    uint64_t data[kLine];
  };
  struct Channel {
    std::deque<Burst> reads, writes;
    std::deque<std::pair<uint64_t, bool>> data;  // written words that no burst has taken yet, and whether they are the last
    bool r_held, b_held;
  } channels[2]{};

  Instance() {
    context.fatalOnError(false);  // an assertion that fails must not end the process
    hard_reset();
  }
  uint32_t draw(uint32_t below) {
    random ^= random << 13, random ^= random >> 17, random ^= random << 5;
    return below ? random % below : 0;
  }
  bool pause() { return settings.pauses && draw(1000) < settings.pauses; }
  uint64_t answer_time() { return now + settings.least_latency + draw(settings.most_latency - settings.least_latency + 1); }
  bool silent() const { return now < silent_until; }

  void complain(const char* what) {
    std::printf("memory model: %s\n", what);
    std::fflush(stdout);
    broken = true;
  }
  uint64_t& word(unsigned port, uint64_t beat) { return words[2 * beat + port]; }

  Burst opened(unsigned port, uint64_t address, unsigned length, unsigned size, unsigned burst) {
    const uint64_t first = (address - kBases[port]) / 8;
    if (size != 3 || burst != 1 || address % 8) complain("a burst of other words than 8 bytes, or not incrementing");
    if (length > kLine || address / 128 != (address + 8 * length - 1) / 128) complain("a burst beyond a line of 128 bytes");
    if (address < kBases[port] || first + length > beats) complain("an access outside the memory");
    accesses++;
    if (settings.silent_after && accesses == settings.silent_after) silent_until = now + settings.silent_cycles;
    Burst b{first, length, answer_time(), draw(2) != 0, 0, {}};
    return b;
  }
  unsigned response(unsigned port, bool write, uint64_t first, unsigned length) const {
    const bool hit = settings.refuse && settings.refuse_port == port && settings.refuse_write == write &&
                     settings.refuse_offset >= first && settings.refuse_offset < first + length;
    return hit ? settings.refuse : kOkay;
  }
  void store(unsigned port, const Burst& b) {
    if (broken || response(port, true, b.first, b.length) != kOkay) return;
    for (unsigned k = 0; k < b.length; k++) word(port, b.first + k) = b.data[k];
  }

  // What the memory offers in this cycle; an offer stays until it is taken.
  void offer(unsigned port) {
    Pins& p = pins[port];
    Channel& c = channels[port];
    p.arready = c.reads.size() < kMostOpen && !pause();
    p.awready = c.writes.size() < kMostOpen && !pause();
    p.wready = !pause();
    if (!c.r_held && !c.reads.empty() && c.reads.front().ready <= now && !silent() && !pause()) {
      const Burst& b = c.reads.front();
      c.r_held = true;
      p.rdata = b.early || broken ? b.data[b.moved] : word(port, b.first + b.moved);
      p.rlast = b.moved + 1 == b.length;
      p.rresp = response(port, false, b.first + b.moved, 1);
    }
    if (!c.b_held && !c.writes.empty() && c.writes.front().moved == c.writes.front().length && c.writes.front().ready <= now &&
        !silent() && !pause()) {
      const Burst& b = c.writes.front();
      if (!b.early) store(port, b);
      c.b_held = true;
      p.bresp = response(port, true, b.first, b.length);
    }
    p.rvalid = c.r_held;
    p.bvalid = c.b_held;
  }
  // What the handshakes of this cycle have moved.
  void move(unsigned port, bool ar, bool r, bool aw, bool w, bool b) {
    const Pins& p = pins[port];
    Channel& c = channels[port];
    if (ar) {
      Burst burst = opened(port, p.araddr, p.arlen + 1u, p.arsize, p.arburst);
      for (unsigned k = 0; k < burst.length && !broken; k++) burst.data[k] = word(port, burst.first + k);
      c.reads.push_back(burst);
    }
    if (r) {
      c.r_held = false;
      if (++c.reads.front().moved == c.reads.front().length) c.reads.pop_front();
    }
    if (aw) c.writes.push_back(opened(port, p.awaddr, p.awlen + 1u, p.awsize, p.awburst));
    if (w) {
      if (p.wstrb != 0xFF) complain("a write of a part of a word");
      c.data.emplace_back(p.wdata, p.wlast);
    }
    if (b) {
      c.b_held = false;
      c.writes.pop_front();
    }
    for (Burst& burst : c.writes) {
      for (; burst.moved < burst.length && !c.data.empty(); c.data.pop_front()) {
        burst.data[burst.moved++] = c.data.front().first;
        if (c.data.front().second != (burst.moved == burst.length)) complain("WLAST is not with a burst's last word");
        if (burst.moved == burst.length) {
          burst.ready = answer_time();
          if (burst.early) store(port, burst);
        }
      }
      if (burst.moved < burst.length) break;
    }
  }
  void cycle() {
    bool moved[2][5];
    for (unsigned port = 0; port < 2; port++) offer(port);
    top.eval();
    for (unsigned port = 0; port < 2; port++) {
      const Pins& p = pins[port];
      moved[port][0] = p.arvalid && p.arready;
      moved[port][1] = p.rvalid && p.rready;
      moved[port][2] = p.awvalid && p.awready;
      moved[port][3] = p.wvalid && p.wready;
      moved[port][4] = p.bvalid && p.bready;
      move(port, moved[port][0], moved[port][1], moved[port][2], moved[port][3], moved[port][4]);
    }
    top.ap_clk = 1;
    top.eval();
    top.ap_clk = 0;
    top.eval();
    now++;
    const bool high = top.__SYM__interrupt;  // the name that Verilator gives it: interrupt is a word of some C++
    interrupts += high && !line;
    line = high;
  }
  void hard_reset() {
    for (auto& c : channels) c.reads.clear(), c.writes.clear(), c.data.clear(), c.r_held = c.b_held = false;
    settings = Settings{};
    silent_until = 0;
    top.s_axi_control_AWVALID = top.s_axi_control_WVALID = top.s_axi_control_ARVALID = 0;
    top.ap_rst_n = 0;
    for (int i = 0; i < 4; i++) cycle();
    top.ap_rst_n = 1;
    for (int i = 0; i < 4; i++) cycle();
    context.gotError(false);
    context.gotFinish(false);
    broken = false;
  }
  void write(unsigned address, uint32_t value) {
    top.s_axi_control_AWADDR = address;
    top.s_axi_control_WDATA = value;
    top.s_axi_control_WSTRB = 0xF;
    top.s_axi_control_AWVALID = top.s_axi_control_WVALID = top.s_axi_control_BREADY = 1;
    while (!top.s_axi_control_AWREADY) cycle();
    cycle();
    top.s_axi_control_AWVALID = top.s_axi_control_WVALID = 0;
    while (!top.s_axi_control_BVALID) cycle();
    cycle();
  }
  uint32_t read(unsigned address) {
    top.s_axi_control_ARADDR = address;
    top.s_axi_control_ARVALID = top.s_axi_control_RREADY = 1;
    while (!top.s_axi_control_ARREADY) cycle();
    cycle();
    top.s_axi_control_ARVALID = 0;
    while (!top.s_axi_control_RVALID) cycle();
    const uint32_t value = top.s_axi_control_RDATA;
    cycle();
    return value;
  }
};

}  // namespace

extern "C" {

void* memory_create() { return new Instance; }
void memory_destroy(void* handle) { delete static_cast<Instance*>(handle); }

// As a reset of the programmable logic: nothing is drained.
void memory_reset(void* handle) { static_cast<Instance*>(handle)->hard_reset(); }

// How often the interrupt has come.
uint64_t memory_interrupts(const void* handle) { return static_cast<const Instance*>(handle)->interrupts; }

// Runs the program whose first record is at beat `program` of a memory of `beats` beats.  `core` and `front` take the
// registers of either page, one for every eight bytes.  Returns 0 done, 1 not done within `max_cycles`, 3 an assertion of
// the RTL failed, 4 a rule of the memory was broken (both are told on the standard output).
int memory_execute(void* handle, uint64_t* words, size_t beats, uint32_t program, uint32_t deadline, const Settings* settings,
                   uint64_t max_cycles, uint32_t* core, uint32_t* front) {
  auto& a = *static_cast<Instance*>(handle);
  a.words = words;
  a.beats = beats;
  a.settings = *settings;
  a.random = settings->seed ? settings->seed : 1;
  a.accesses = 0;
  for (unsigned port = 0; port < 2; port++) {
    a.write(kBase + 16 * port, static_cast<uint32_t>(kBases[port]));
    a.write(kBase + 16 * port + 8, static_cast<uint32_t>(kBases[port] >> 32));
  }
  a.write(kLimit, static_cast<uint32_t>(beats));
  a.write(kProgram, program);
  a.write(kDeadline, deadline);
  a.write(kInterrupt, kClearAndEnable);
  const uint64_t interrupts = a.interrupts;
  a.write(kStart, 1);
  const uint64_t begin = a.now;
  bool stopped = false, cleared = false;
  int status = 0;
  while (a.interrupts == interrupts && status == 0) {
    a.cycle();
    if (settings->stop_after && !stopped && a.now - begin >= settings->stop_after) a.write(kStop, 1), stopped = true;
    if (settings->clear_after && !cleared && a.now - begin >= settings->clear_after)
      a.write(kInterrupt, kClearAndEnable), cleared = true;
    if (a.context.gotError()) status = 3;
    else if (a.broken) status = 4;
    else if (a.now - begin > max_cycles) status = 1;
  }
  std::fflush(stdout);
  for (unsigned k = 0; k < kSlots; k++) {
    if (8 * k <= 0x90) core[k] = a.read(kCorePage + 8 * k);
    front[k] = a.read(kMemoryPage + 8 * k);
  }
  a.write(kInterrupt, kClearAndEnable);
  a.cycle();
  if (a.line) a.complain("the interrupt stays although it was cleared");
  std::fflush(stdout);
  return status == 0 && a.broken ? 4 : status;
}

}  // extern "C"
