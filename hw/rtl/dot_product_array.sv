// SPDX-License-Identifier: Apache-2.0
// The recursive compute unit: L x C dot products of K bits with Horner accumulators, and one column of operand sums.
// A step is given in the cycle before its operands, whose sum is in acc_o three cycles after them.
//
// Every step drives some 25,000 pins.  Each lane of units has registers of its own for its controls, and each unit one for
// the sign, which enters its sum at fifty places; all are kept, though equal.
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
  typedef struct packed {
    logic valid;
    logic first;
    logic shift;
  } control_t;

  for (genvar p = 0; p < LANES; p++) begin : gen_lane
    (* keep = "true" *) control_t count_q, sign_q, add_q;  // with the operands, one cycle later, two
    (* keep = "true" *) logic     sum_valid_q, negative_q, sum_negative_q;
    logic sum_sign_q;
    always_ff @(posedge clk_i) begin
      count_q        <= '{valid: step_i.valid, first: step_i.first, shift: step_i.shift};
      sign_q         <= count_q;
      add_q          <= sign_q;
      sum_valid_q    <= step_i.sum_valid;
      negative_q     <= step_i.negative;
      sum_negative_q <= step_i.sum_negative;
      sum_sign_q     <= sum_negative_q;
    end

    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      (* keep = "true" *) logic unit_sign_q;
      always_ff @(posedge clk_i) unit_sign_q <= negative_q;
      dot_product_unit #(
          .BITS(DOT_BITS),
          .ACC (ACC_BITS),
          .DSP (DSP_ACCUMULATORS != 0)
      ) i_unit (
          .clk_i,
          .a_i       (a_i[p]),
          .b_i       (b_i[p/CHANNELS][c]),
          .count_i   (count_q.valid),
          .sign_i    (sign_q.valid),
          .negative_i(unit_sign_q),
          .valid_i   (add_q.valid),
          .first_i   (add_q.first),
          .shift_i   (add_q.shift),
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
        .b_i       ({DOT_BITS{sum_valid_q}}),
        .count_i   (count_q.valid),
        .sign_i    (sign_q.valid),
        .negative_i(sum_sign_q),
        .valid_i   (add_q.valid),
        .first_i   (add_q.first),
        .shift_i   (add_q.shift),
        .acc_o     (sum_o[p])
    );
  end
endmodule

`default_nettype wire
