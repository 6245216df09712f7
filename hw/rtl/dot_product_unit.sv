// SPDX-License-Identifier: Apache-2.0
// One dot product of two bit planes per cycle, accumulated by Horner's rule: acc <- (first ? 0 : acc << shift) +- popcount(a & b).
// This is the form for simulation; hw/rtl/xc7 holds the same module in the target's primitives.
`default_nettype none

module dot_product_unit #(
    parameter int unsigned BITS = 144,  /// length of the dot product
    parameter int unsigned ACC  = 48,   /// accumulator width
    parameter bit          ONES = 1'b0, /// 1: all bits of b_i are equal (a choice of form, without effect here)
    parameter bit          DSP  = 1'b1  /// 1: accumulate in a DSP slice, 0: in LUTs (without effect here)
) (
    input  wire              clk_i,
    input  wire  [BITS-1:0]  a_i,
    input  wire  [BITS-1:0]  b_i,
    input  wire              count_i,     // with a_i and b_i
    input  wire              sign_i,      // one cycle later
    input  wire              negative_i,  // one cycle later: subtract
    input  wire              valid_i,     // two cycles later
    input  wire              first_i,     // two cycles later
    input  wire              shift_i,     // two cycles later
    output logic [ACC-1:0]   acc_o
);
  localparam int unsigned COUNT = $clog2(BITS + 1);
  logic        [COUNT-1:0] count_q;
  logic signed [COUNT:0]   term_q;
  logic signed [ACC-1:0]   acc_q;

  always_ff @(posedge clk_i) begin
    if (count_i) count_q <= COUNT'($countones(a_i & b_i));
    if (sign_i) term_q <= negative_i ? -$signed({1'b0, count_q}) : $signed({1'b0, count_q});
    if (valid_i) acc_q <= (first_i ? '0 : shift_i ? acc_q <<< 1 : acc_q) + ACC'(term_q);
  end
  assign acc_o = acc_q;
endmodule

`default_nettype wire
