// SPDX-License-Identifier: Apache-2.0
// One column of a ternary adder or subtracter on the carry chain: three bits and what the column below saved, in one LUT6.
// Two LUTs that share their inputs are paired instead of one LUT6_2: in that, saved_i would lead to saved_o as far as a
// timer knows that reads no INIT, and eight columns would seem to ripple through their LUTs.
`default_nettype none

module save_adder (
    input  wire  [2:0] x_i,
    input  wire        negative_i,  // adds the bits' inverses
    input  wire        saved_i,     // by the column below
    output logic       sum_o,
    output logic       saved_o      // carry of x_i alone, for the column above
);
  // I0..I2: the column, I3: negative, I4: saved below
  function automatic logic [31:0] sum_init();
    for (int unsigned k = 0; k < 32; k++) sum_init[k] = ^5'(k);
  endfunction
  function automatic logic [15:0] save_init();
    for (int unsigned k = 0; k < 16; k++) save_init[k] = ($countones(3'(k)) >= 2) ^ k[3];
  endfunction

  (* HLUTNM = "pair" *) LUT5 #(.INIT(sum_init())) i_sum (
      .O(sum_o), .I0(x_i[0]), .I1(x_i[1]), .I2(x_i[2]), .I3(negative_i), .I4(saved_i)
  );
  (* HLUTNM = "pair" *) LUT4 #(.INIT(save_init())) i_save (
      .O(saved_o), .I0(x_i[0]), .I1(x_i[1]), .I2(x_i[2]), .I3(negative_i)
  );
endmodule

`default_nettype wire
