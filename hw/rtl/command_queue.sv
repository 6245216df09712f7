// SPDX-License-Identifier: Apache-2.0
// Commands between loader and sequencer, and the answer to the loader's question: may this buffer range be overwritten?
`default_nettype none

module command_queue
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned SLOTS = 4
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
    output logic           conflict_o,
    output logic           empty_o
);
  command_t slot_q[SLOTS];
  logic [2:0] used_q;

  assign full_o    = used_q == 3'(SLOTS);
  assign valid_o   = used_q != 0;
  assign empty_o   = used_q == 0;
  assign command_o = slot_q[0];

  function automatic logic overlap(input logic [16:0] b0, e0, b1, e1);
    return b0 < e1 && b1 < e0;
  endfunction

  always_comb begin
    conflict_o = 1'b0;
    for (int unsigned s = 0; s < SLOTS; s++)
      if (3'(s) < used_q && (slot_q[s].header.opcode == OP_CONV || slot_q[s].header.opcode == OP_WGRAD)) begin
        if (overlap(a_begin_i, a_end_i, 17'(slot_q[s].header.base_a), slot_q[s].a_end)) conflict_o = 1'b1;
        if (slot_q[s].header.opcode == OP_CONV) begin
          if (overlap(w_begin_i, w_end_i, 17'(slot_q[s].header.base_b), slot_q[s].b_end)) conflict_o = 1'b1;
        end else if (overlap(g_begin_i, g_end_i, 17'(slot_q[s].header.base_b), slot_q[s].b_end)) conflict_o = 1'b1;
      end
  end

  always_ff @(posedge clk_i) begin
    if (pop_i) for (int unsigned s = 0; s + 1 < SLOTS; s++) slot_q[s] <= slot_q[s+1];
    if (push_i) slot_q[2'(used_q - 3'(pop_i))] <= command_i;
    used_q <= used_q + 3'(push_i) - 3'(pop_i);
    if (rst_i) used_q <= '0;
  end
endmodule

`default_nettype wire
