// SPDX-License-Identifier: Apache-2.0
// One output channel's sums as beats: two pixels each, or four with 32 bits.
`default_nettype none

module lane_words
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire               clk_i,
    input  wire               rst_i,
    input  wire lane_sums_t   lane_i,   // stays until its last beat is taken
    input  wire               wide_i,   // 64 bits for every pixel: stays while there are channels
    input  wire               next_i,   // the beat is taken in this cycle
    output beat_t             word_o,
    output logic              last_o    // it is the channel's last
);
  localparam int unsigned PAIRS = LANES / 2, QUADS = LANES / 4, W = $clog2(PAIRS);

  logic [PAIRS-1:0][1:0][63:0] pairs;
  logic [QUADS-1:0][3:0][31:0] quads;
  logic [W-1:0]                word_q, word_d;
  logic                        last_q, last_d;   // known a beat ahead
  always_comb
    for (int unsigned p = 0; p < LANES; p++) begin
      pairs[p/2][p%2] = 64'($signed(lane_i[p]));
      quads[p/4][p%4] = lane_i[p][31:0];
    end
  assign last_o = last_q;
  assign word_o = wide_i ? pairs[word_q] : quads[word_q[W-2:0]];
  assign word_d = !next_i ? word_q : last_q ? '0 : word_q + 1'b1;
  assign last_d = word_d == W'(wide_i ? PAIRS - 1 : QUADS - 1);
  always_ff @(posedge clk_i) begin
    word_q <= rst_i ? '0 : word_d;
    last_q <= last_d && !rst_i;
  end
endmodule

`default_nettype wire
