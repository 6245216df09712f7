// SPDX-License-Identifier: Apache-2.0
// IEEE single-precision multiplication, round to nearest even, subnormals zero at input and output; no NaN inputs,
// an infinite a_i stays infinite.  Two cycles.  An overflow gives infinity.
`default_nettype none

module fp32_multiply (
    input  wire         clk_i,
    input  wire         enable_i,
    input  wire  [31:0] a_i,
    input  wire  [31:0] b_i,
    output logic [31:0] y_o
);
  logic              sign_q, zero_q, infinite_q;
  logic signed [9:0] exponent_q;
  logic [47:0]       product_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      sign_q     <= a_i[31] ^ b_i[31];
      zero_q     <= a_i[30:23] == 0 || b_i[30:23] == 0;
      infinite_q <= a_i[30:23] == 8'hFF;
      exponent_q <= $signed({2'b0, a_i[30:23]}) + $signed({2'b0, b_i[30:23]}) - 10'sd127;
      product_q  <= {1'b1, a_i[22:0]} * {1'b1, b_i[22:0]};
    end

  logic signed [9:0] exponent;
  logic [47:0]       normal;
  logic [24:0]       rounded;
  always_comb begin
    normal   = product_q[47] ? product_q : product_q << 1;
    exponent = exponent_q + (product_q[47] ? 10'sd1 : 10'sd0);
    // below 2^-126 IEEE rounds to the subnormals' coarser spacing, where a significand of all ones rounds up to 2^-126
    rounded  = {1'b0, normal[47:24]}
             + 25'((normal[23] && (|normal[22:0] || normal[24])) || (exponent == 0 && &normal[47:24]));
    if (rounded[24]) exponent = exponent + 10'sd1;
  end
  logic [31:0] y_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      if (zero_q) y_q <= '0;
      else if (infinite_q || exponent >= 10'sd255) y_q <= {sign_q, 8'hFF, 23'd0};
      else if (exponent <= 0) y_q <= '0;
      else y_q <= {sign_q, exponent[7:0], rounded[24] ? rounded[23:1] : rounded[22:0]};
    end
  assign y_o = y_q;
endmodule

`default_nettype wire
