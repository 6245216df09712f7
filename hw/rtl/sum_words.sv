// SPDX-License-Identifier: Apache-2.0
// Sums as beats: two of 64 bits each, or four of 32.  A beat leaves WORD_CYCLES after it is asked for.
`default_nettype none

module sum_words
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    parameter int unsigned COUNT = 16   /// sums, a multiple of 4
) (
    input  wire                             clk_i,
    input  wire                             rst_i,
    input  wire                             next_i,   // the next beat is asked for
    input  wire                             wide_i,   // with 64 bits; the same for all beats of these sums
    output logic                            last_o,   // it is the last of these sums
    input  wire  [COUNT-1:0][ACC_BITS-1:0]  sums_i,   // a cycle after their beat is asked for
    output logic                            busy_o,   // beats are under way
    output logic                            valid_o,
    output beat_t                           word_o    // zero if there is none
);
  localparam int unsigned QUADS = COUNT / 4, W = $clog2(COUNT / 2), Q = QUADS > 1 ? $clog2(QUADS) : 1;
  if (COUNT < 8 || COUNT != 1 << $clog2(COUNT)) begin : gen_check
    $error("sum_words: COUNT = %0d must be a power of two, 8 or more", COUNT);
  end
  if (WORD_CYCLES != 3) begin : gen_check_cycles
    $error("sum_words: WORD_CYCLES = %0d, must be 3", WORD_CYCLES);
  end

  // ---- which beat ------------------------------------------------------------------------------------------------------
  logic [W-1:0] word_q, word_d;
  logic         last_q;   // known a beat ahead
  assign last_o = last_q;
  assign word_d = !next_i ? word_q : last_q ? '0 : word_q + 1'b1;
  always_ff @(posedge clk_i) begin
    word_q <= rst_i ? '0 : word_d;
    last_q <= word_d == W'(wide_i ? COUNT / 2 - 1 : QUADS - 1) && !rst_i;
  end

  // ---- the four sums that it lies among, then their bits ---------------------------------------------------------------
  (* keep = "true" *) logic [3:0][Q-1:0] quad_q;   // one for each of the four
  logic [3:0][ACC_BITS-1:0] four_q;
  logic [1:0]               valid_q, wide_q, upper_q;
  logic                     valid3_q;
  beat_t                    word3_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned k = 0; k < 4; k++) begin
      quad_q[k] <= wide_i ? word_q[W-1:1] : word_q[Q-1:0];
      four_q[k] <= sums_i[4*32'(quad_q[k])+k];
    end
    upper_q <= {upper_q[0], word_q[0]};
    wide_q  <= {wide_q[0], wide_i};
    valid_q <= {valid_q[0], next_i};
    word3_q <= {four_q[3][31:0], four_q[2][31:0], four_q[1][31:0], four_q[0][31:0]};
    if (wide_q[1])
      word3_q <= {64'($signed(four_q[{upper_q[1], 1'b1}])), 64'($signed(four_q[{upper_q[1], 1'b0}]))};
    if (!valid_q[1]) word3_q <= '0;
    valid3_q <= valid_q[1];
    if (rst_i) begin
      valid_q  <= '0;
      valid3_q <= 1'b0;
    end
  end
  assign busy_o  = |valid_q || valid3_q;
  assign valid_o = valid3_q;
  assign word_o  = word3_q;
endmodule

`default_nettype wire
