// SPDX-License-Identifier: Apache-2.0
// Commands between loader and sequencer, and the answer to the loader's question: may this buffer range be overwritten?
// The command at the head is read into registers: it shows two cycles after the one before has been removed.
`default_nettype none

module command_queue
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned SLOTS = QUEUE_SLOTS
) (
    input  wire            clk_i,
    input  wire            rst_i,
    input  wire            push_i,
    input  wire command_t  command_i,
    output logic           full_o,
    output logic           valid_o,
    output command_t       command_o,
    input  wire            pop_i,
    // buffer ranges that the loader wants to write, end exclusive; an empty range never conflicts
    input  wire [16:0]     a_begin_i,
    input  wire [16:0]     a_end_i,
    input  wire [16:0]     g_begin_i,
    input  wire [16:0]     g_end_i,
    input  wire [16:0]     w_begin_i,
    input  wire [16:0]     w_end_i,
    output logic           conflict_o,  // a cycle later; no command may come in between
    output logic           empty_o
);
  localparam int unsigned PW = $clog2(SLOTS);
  if (SLOTS != 1 << PW) begin : gen_check
    $error("command_queue: QUEUE_SLOTS = %0d is no power of two", SLOTS);
  end

  // Whole commands lie in distributed memory; what every slot is asked at once lies in registers.
  typedef struct packed {
    logic        conv;
    logic        wgrad;
    logic [16:0] a_begin;
    logic [16:0] a_end;
    logic [16:0] b_begin;
    logic [16:0] b_end;
    logic [16:0] side_begin;   // of a CONV in G; an end of 0 is an empty range
    logic [16:0] side_end;
    logic [16:0] added_begin;
    logic [16:0] added_end;
  } ranges_t;
  (* ram_style = "distributed" *) logic [$bits(command_t)-1:0] memory[SLOTS];
  ranges_t [SLOTS-1:0] ranges_q;
  logic    [SLOTS-1:0] used_q;
  logic    [PW-1:0]    head_q, tail_q;

  command_t command_q;
  logic     valid_q, conflict, conflict_q;
  assign full_o     = &used_q;
  assign valid_o    = valid_q;
  assign empty_o    = !(|used_q);
  assign command_o  = command_q;
  assign conflict_o = conflict_q;

  function automatic logic overlap(input logic [16:0] b0, e0, b1, e1);
    return b0 < e1 && b1 < e0;
  endfunction

  always_comb begin
    conflict = 1'b0;
    for (int unsigned s = 0; s < SLOTS; s++)
      if (used_q[s] && (ranges_q[s].conv || ranges_q[s].wgrad)) begin
        if (overlap(a_begin_i, a_end_i, ranges_q[s].a_begin, ranges_q[s].a_end)) conflict = 1'b1;
        if (ranges_q[s].conv && overlap(w_begin_i, w_end_i, ranges_q[s].b_begin, ranges_q[s].b_end)) conflict = 1'b1;
        if (ranges_q[s].conv && (overlap(g_begin_i, g_end_i, ranges_q[s].side_begin, ranges_q[s].side_end)
                                 || overlap(g_begin_i, g_end_i, ranges_q[s].added_begin, ranges_q[s].added_end)))
          conflict = 1'b1;
        if (ranges_q[s].wgrad && overlap(g_begin_i, g_end_i, ranges_q[s].b_begin, ranges_q[s].b_end)) conflict = 1'b1;
      end
  end

  always_ff @(posedge clk_i) begin
    command_q  <= memory[head_q];
    valid_q    <= used_q[head_q] && !pop_i && !rst_i;
    conflict_q <= conflict;
    if (pop_i) begin
      used_q[head_q] <= 1'b0;
      head_q         <= head_q + PW'(1);
    end
    if (push_i) begin
      memory[tail_q]           <= command_i;
      ranges_q[tail_q].conv    <= command_i.header.opcode == OP_CONV;
      ranges_q[tail_q].wgrad   <= command_i.header.opcode == OP_WGRAD;
      ranges_q[tail_q].a_begin <= 17'(command_i.header.base_a);
      ranges_q[tail_q].a_end   <= command_i.a_end;
      ranges_q[tail_q].b_begin <= 17'(command_i.header.base_b);
      ranges_q[tail_q].b_end   <= command_i.b_end;
      ranges_q[tail_q].side_begin  <= 17'(command_i.header.base_side);
      ranges_q[tail_q].side_end    <= command_i.side_end;
      ranges_q[tail_q].added_begin <= 17'(command_i.header.base_added);
      ranges_q[tail_q].added_end   <= command_i.added_end;
      used_q[tail_q]           <= 1'b1;
      tail_q                   <= tail_q + PW'(1);
    end
    if (rst_i) {used_q, head_q, tail_q} <= '0;
  end

`ifndef SYNTHESIS
  // no push into a full queue, no pop from an empty one
  a_push: assert property (@(posedge clk_i) disable iff (rst_i) push_i |-> !full_o);
  a_pop: assert property (@(posedge clk_i) disable iff (rst_i) pop_i |-> valid_o);
  // the command at the head stays until it is removed
  a_head_waits: assert property (@(posedge clk_i) disable iff (rst_i) valid_o && !pop_i |=> valid_o && $stable(command_o));
`endif
endmodule

`default_nettype wire
