// SPDX-License-Identifier: Apache-2.0
// The recursive compute unit: L x C dot products of K bits with Horner accumulators, and one column of operand sums.
// A step given with its operands in one cycle is in acc_o three cycles later.
`default_nettype none

module dot_product_array
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                                                clk_i,
    input  wire step_t                                         step_i,
    input  wire  [LANES-1:0][DOT_BITS-1:0]                     a_i,
    input  wire  [1:0][CHANNELS-1:0][DOT_BITS-1:0]             b_i,
    output logic [LANES-1:0][CHANNELS-1:0][ACC_BITS-1:0]       acc_o,
    output logic [LANES-1:0][ACC_BITS-1:0]                     sum_o
);
  step_t step1_q, step2_q;
  always_ff @(posedge clk_i) begin
    step1_q <= step_i;
    step2_q <= step1_q;
  end

  for (genvar p = 0; p < LANES; p++) begin : gen_lane
    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      dot_product_unit #(
          .BITS(DOT_BITS),
          .ACC (ACC_BITS),
          .DSP (DSP_ACCUMULATORS != 0)
      ) i_unit (
          .clk_i,
          .a_i       (a_i[p]),
          .b_i       (b_i[p/CHANNELS][c]),
          .count_i   (step_i.valid),
          .sign_i    (step1_q.valid),
          .negative_i(step1_q.negative),
          .valid_i   (step2_q.valid),
          .first_i   (step2_q.first),
          .shift_i   (step2_q.shift),
          .acc_o     (acc_o[p][c])
      );
    end
    // the operand sum is a dot product with ones; few as they are, their accumulators leave the DSP slices to the rest
    dot_product_unit #(
        .BITS(DOT_BITS),
        .ACC (ACC_BITS),
        .ONES(1'b1),
        .DSP (1'b0)
    ) i_sum (
        .clk_i,
        .a_i       (a_i[p]),
        .b_i       ({DOT_BITS{step_i.sum_valid}}),
        .count_i   (step_i.valid),
        .sign_i    (step1_q.valid),
        .negative_i(step1_q.sum_negative),
        .valid_i   (step2_q.valid),
        .first_i   (step2_q.first),
        .shift_i   (step2_q.shift),
        .acc_o     (sum_o[p])
    );
  end
endmodule

`default_nettype wire
