// SPDX-License-Identifier: Apache-2.0
// IEEE single-precision addition, round to nearest even, subnormals zero at input and output; finite inputs only.
// Three cycles.  An overflow gives infinity.
`default_nettype none

module fp32_add (
    input  wire         clk_i,
    input  wire         enable_i,
    input  wire  [31:0] a_i,
    input  wire  [31:0] b_i,
    output logic [31:0] y_o
);
  // 1: order by magnitude and align
  logic [31:0] a, b, greater, lesser;
  logic [7:0]  distance;
  logic [26:0] aligned;       // small operand's 24 bits, then guard, round, sticky
  logic [49:0] wide;
  always_comb begin
    a = a_i[30:23] == 0 ? {a_i[31], 31'd0} : a_i;
    b = b_i[30:23] == 0 ? {b_i[31], 31'd0} : b_i;
    {greater, lesser} = a[30:0] >= b[30:0] ? {a, b} : {b, a};
    distance = greater[30:23] - lesser[30:23];
    wide = {lesser[30:23] != 0, lesser[22:0], 26'd0} >> distance;
    aligned = {wide[49:24], |wide[23:0]};
    if (distance > 8'd26) aligned = {26'd0, lesser[30:23] != 0};
  end
  logic        sign1_q, subtract1_q;
  logic [7:0]  exponent1_q;
  logic [26:0] big1_q, small1_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      sign1_q     <= greater[31];
      subtract1_q <= greater[31] != lesser[31];
      exponent1_q <= greater[30:23];
      big1_q      <= {greater[30:23] != 0, greater[22:0], 3'd0};
      small1_q    <= aligned;
    end

  // 2: add
  logic        sign2_q;
  logic [7:0]  exponent2_q;
  logic [27:0] sum2_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      sign2_q     <= sign1_q;
      exponent2_q <= exponent1_q;
      sum2_q      <= subtract1_q ? {1'b0, big1_q} - {1'b0, small1_q} : {1'b0, big1_q} + {1'b0, small1_q};
    end

  // 3: normalise and round
  logic [4:0]         leading;
  logic [27:0]        normal;
  logic signed [9:0]  exponent;
  logic [24:0]        rounded;
  always_comb begin
    leading = 5'd28;
    for (int unsigned k = 0; k < 28; k++) if (sum2_q[k]) leading = 5'(27 - k);
    normal   = sum2_q << leading;  // bit 27 leads
    exponent = $signed({2'b0, exponent2_q}) + 10'sd1 - $signed({5'b0, leading});
    rounded  = {1'b0, normal[27:4]} + 25'(normal[3] && (|normal[2:0] || normal[4]));
    if (rounded[24]) exponent = exponent + 10'sd1;
  end
  logic [31:0] y_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      if (sum2_q == 0 || exponent <= 0) y_q <= '0;
      else if (exponent >= 10'sd255) y_q <= {sign2_q, 8'hFF, 23'd0};
      else y_q <= {sign2_q, exponent[7:0], rounded[24] ? rounded[23:1] : rounded[22:0]};
    end
  assign y_o = y_q;
endmodule

`default_nettype wire
