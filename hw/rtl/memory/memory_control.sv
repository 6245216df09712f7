// SPDX-License-Identifier: Apache-2.0
// Runs a program: starts the core and the ports, sees it end, or stops it at a fault.  After a fault no further accesses
// begin; when those that are open have been answered the core is reset, and the next program may start.
`default_nettype none

module memory_control
  import memory_pkg::*;
#(
    localparam int unsigned PORTS = 2,
    localparam int unsigned COUNTERS = 4  // READ_BEATS .. WRITE_WAIT
) (
    input  wire                        clk_i,
    input  wire                        rst_i,
    // registers
    input  wire                        start_i,           // one cycle
    input  wire                        stop_i,            // one cycle
    input  wire  [31:0]                program_i,         // beats
    input  wire  [31:0]                deadline_i,        // cycles, 0: none
    output logic                       idle_o,
    output logic                       done_o,            // held until the next start
    output logic                       draining_o,
    output logic                       ends_o,            // one cycle
    output logic [3:0]                 fault_o,
    output logic [31:0]                fault_offset_o,
    output logic [COUNTERS-1:0][31:0]  counters_o,
    // core: requests, held until they are done
    output logic                       core_start_o,
    output logic                       core_reset_o,
    input  wire                        core_done_i,       // one cycle
    // ports
    output logic                       port_reset_o,
    output logic                       port_start_o,
    output logic                       halt_o,
    output logic                       ended_o,
    output logic                       error_o,
    input  wire  [PORTS-1:0]           trailer_i,
    input  wire                        trailer_error_i,
    input  wire  [PORTS-1:0]           port_done_i,
    input  wire  [PORTS-1:0]           quiet_i,
    input  wire  [2*PORTS-1:0][3:0]    fault_i,
    input  wire  [2*PORTS-1:0][31:0]   fault_offset_i,
    // what is counted
    input  wire  [PORTS-1:0]           took_i,
    input  wire  [PORTS-1:0]           sent_i,
    input  wire  [PORTS-1:0]           starved_i,
    input  wire  [PORTS-1:0]           held_i             // a result waits for room
);
  typedef enum logic [2:0] {IDLE, CLEAR, START, RUN, STOP, DRAIN, RESET} state_t;
  state_t      state_q;
  logic        done_q, finished_q, ended_q, error_q, late_q;
  logic [3:0]  fault_q, found_q, fault;
  logic [31:0] fault_offset_q, found_offset_q, fault_offset, cycles_q;
  logic [COUNTERS-1:0][31:0] counters_q;

  // the first of faults that are found at the same time
  always_comb begin
    fault        = late_q ? FAULT_DEADLINE : FAULT_NONE;
    fault_offset = '0;
    for (int unsigned i = 2 * PORTS; i > 0; i--)
      if (fault_i[i-1] != FAULT_NONE) begin
        fault        = fault_i[i-1];
        fault_offset = fault_offset_i[i-1];
      end
    if (stop_i) begin
      fault        = FAULT_STOPPED;
      fault_offset = '0;
    end
  end

  always_ff @(posedge clk_i) begin
    if (core_done_i) {core_start_o, core_reset_o} <= '0;
    port_start_o   <= 1'b0;
    ends_o         <= 1'b0;
    // before the core is: it would take words that a port still offers
    port_reset_o   <= rst_i || state_q == RESET || state_q == IDLE || state_q == CLEAR;
    // both a cycle late: a port may find a fault in the answer that was its last
    finished_q     <= state_q == RUN && &port_done_i;
    found_q        <= state_q == RUN ? fault : FAULT_NONE;
    found_offset_q <= fault_offset;
    ended_q        <= &trailer_i;
    error_q        <= trailer_error_i;
    case (state_q)
      IDLE:
        if (start_i) begin
          state_q <= CLEAR;
          done_q  <= 1'b0;
          fault_q <= FAULT_NONE;
          fault_offset_q <= '0;
        end
      CLEAR: begin
        core_start_o <= 1'b1;
        state_q      <= START;
      end
      START:
        if (core_done_i) begin
          port_start_o <= 1'b1;
          state_q      <= RUN;
        end
      RUN:
        if (program_i[3:0] != 0) begin
          fault_q        <= FAULT_RANGE;
          fault_offset_q <= program_i;
          state_q        <= STOP;
        end else if (found_q != FAULT_NONE) begin
          fault_q        <= found_q;
          fault_offset_q <= found_offset_q;
          state_q        <= STOP;
        end else if (finished_q) begin
          state_q <= IDLE;
          done_q  <= 1'b1;
          ends_o  <= 1'b1;
        end
      STOP: state_q <= DRAIN;  // the ports see that they must halt
      DRAIN:
        if (&quiet_i) begin
          core_reset_o <= 1'b1;
          state_q      <= RESET;
        end
      RESET:
        if (core_done_i) begin
          state_q <= IDLE;
          done_q  <= 1'b1;
          ends_o  <= 1'b1;
        end
      default: state_q <= IDLE;
    endcase
    if (rst_i) begin
      state_q <= IDLE;
      {done_q, fault_q, fault_offset_q, core_start_o, core_reset_o, port_start_o, ends_o} <= '0;
    end
  end

  always_ff @(posedge clk_i) begin
    cycles_q <= cycles_q + 1;
    late_q   <= deadline_i != 0 && cycles_q >= deadline_i;
    if (state_q != IDLE) begin
      counters_q[0] <= counters_q[0] + 32'($countones(took_i));
      counters_q[1] <= counters_q[1] + 32'($countones(sent_i));
      counters_q[2] <= counters_q[2] + 32'($countones(starved_i));
      counters_q[3] <= counters_q[3] + 32'($countones(held_i));
    end
    if (state_q == CLEAR || rst_i) begin
      {cycles_q, late_q} <= '0;
      counters_q <= '0;
    end
  end

  assign idle_o         = state_q == IDLE;
  assign done_o         = done_q;
  assign draining_o     = state_q == STOP || state_q == DRAIN || state_q == RESET;
  assign fault_o        = fault_q;
  assign fault_offset_o = fault_offset_q;
  assign counters_o     = counters_q;
  assign halt_o         = draining_o || state_q == IDLE;  // until the reset, which comes a cycle later
  assign ended_o        = ended_q;
  assign error_o        = error_q;
endmodule

`default_nettype wire
