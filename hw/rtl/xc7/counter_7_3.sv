// SPDX-License-Identifier: Apache-2.0
// Counts seven bits in two LUTs and half a carry chain of a 7-series slice.
// Position 0 adds five bits' parity, the sixth bit and the carry input; position 1 adds the pairs among the five.
`default_nettype none

module counter_7_3 #(
    parameter bit CAPPED = 1'b1  /// 1: all outputs leave the slice unregistered, which takes a third LUT
) (
    input  wire  [6:0] x_i,
    output logic [2:0] count_o
);
  // lower half: parity of five bits; upper half (sixth bit set): its inverse
  function automatic logic [63:0] parity_init();
    for (int unsigned k = 0; k < 64; k++) parity_init[k] = ^6'(k);
  endfunction
  // lower half: two pairs among five bits; upper half: exactly one pair
  function automatic logic [63:0] pairs_init();
    for (int unsigned k = 0; k < 64; k++)
      pairs_init[k] = $countones(5'(k)) / 2 == (k < 32 ? 2 : 1);
  endfunction

  wire [2:0] propagate;
  wire [1:0] generated;
  wire [3:0] sum, carry;
  LUT6_2 #(.INIT(parity_init())) i_parity (
      .O6(propagate[0]), .O5(generated[0]),
      .I0(x_i[0]), .I1(x_i[1]), .I2(x_i[2]), .I3(x_i[3]), .I4(x_i[4]), .I5(x_i[5])
  );
  LUT6_2 #(.INIT(pairs_init())) i_pairs (
      .O6(propagate[1]), .O5(generated[1]),
      .I0(x_i[0]), .I1(x_i[1]), .I2(x_i[2]), .I3(x_i[3]), .I4(x_i[4]), .I5(1'b1)
  );
  CARRY4 i_carry (
      .CO(carry), .O(sum), .CI(1'b0), .CYINIT(x_i[6]), .DI({2'b00, generated}), .S({1'b0, propagate})
  );
  assign count_o[1:0] = sum[1:0];
  if (CAPPED) begin : gen_cap
    // Sum and carry of one position share an output of the slice.  The carry leaves through the next position, whose
    // LUT is then spent on a zero: written out, so that an area count sees it.
    LUT6_2 #(.INIT(64'd0)) i_zero (
        .O6(propagate[2]), .O5(), .I0(1'b1), .I1(1'b1), .I2(1'b1), .I3(1'b1), .I4(1'b1), .I5(1'b1)
    );
    assign count_o[2] = sum[2];
  end else begin : gen_registered
    // the sum goes into the slice's own register, so the carry has the output to itself
    assign propagate[2] = 1'b0;
    assign count_o[2]   = carry[1];
  end
endmodule

`default_nettype wire
