// SPDX-License-Identifier: Apache-2.0
// One output channel's sums as 64-bit words: one pixel each, or two with 32 bits.
`default_nettype none

module lane_words
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire               clk_i,
    input  wire               rst_i,
    input  wire lane_sums_t   lane_i,   // stays until its last word is taken
    input  wire               wide_i,   // a word for every pixel
    input  wire               next_i,   // the word is taken in this cycle
    output logic [63:0]       word_o,
    output logic              last_o    // it is the channel's last
);
  localparam int unsigned LW = $clog2(LANES);

  logic [LW-1:0] word_q, word_d, even, odd;
  assign last_o = word_q == LW'(wide_i ? LANES - 1 : LANES / 2 - 1);
  assign even   = {word_q[LW-2:0], 1'b0};
  assign odd    = {word_q[LW-2:0], 1'b1};
  assign word_o = wide_i ? 64'($signed(lane_i[word_q])) : {lane_i[odd][31:0], lane_i[even][31:0]};
  always_comb begin
    word_d = word_q;
    if (next_i) word_d = last_o ? '0 : word_q + 1'b1;
    if (rst_i) word_d = '0;
  end
  always_ff @(posedge clk_i) word_q <= word_d;
endmodule

`default_nettype wire
