// SPDX-License-Identifier: Apache-2.0
// Two words of a stream between its port and its reader: every output is a register, and a word passes in every cycle.
// A reset drops them.
`default_nettype none

module stream_register #(
    parameter int unsigned WIDTH = 65  /// bits of a word
) (
    input  wire               clk_i,
    input  wire               rst_i,
    input  wire               valid_i,
    output logic              ready_o,
    input  wire  [WIDTH-1:0]  word_i,
    output logic              valid_o,
    input  wire               ready_i,
    output logic [WIDTH-1:0]  word_o
);
  logic [WIDTH-1:0] word_q, spare_q;
  logic valid_q, ready_q, spare_full_q, spare_full_d, move, take;
  assign move         = !valid_q || ready_i;
  assign take         = valid_i && ready_q;
  assign spare_full_d = !move && (spare_full_q || take);
  always_ff @(posedge clk_i) begin
    if (ready_q) spare_q <= word_i;
    if (move) word_q <= spare_full_q ? spare_q : word_i;
    valid_q      <= (!move || spare_full_q || take) && !rst_i;
    spare_full_q <= spare_full_d && !rst_i;
    ready_q      <= !spare_full_d && !rst_i;
  end
  assign ready_o = ready_q;
  assign valid_o = valid_q;
  assign word_o  = word_q;

`ifndef SYNTHESIS
  // a word stays until it is taken
  a_word_waits: assert property (@(posedge clk_i) disable iff (rst_i) valid_o && !ready_i |=> valid_o && $stable(word_o));
  // a word is taken only where there is room for it
  a_room: assert property (@(posedge clk_i) disable iff (rst_i) ready_o |-> !spare_full_q);
`endif
endmodule

`default_nettype wire
