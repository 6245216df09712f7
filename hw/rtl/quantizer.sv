// SPDX-License-Identifier: Apache-2.0
// One quantizer lane: t = (x - z) * r, then q = clamp(rne(t)) or q = clamp(floor(t + u)); ten cycles, one value per cycle.
`default_nettype none

module quantizer (
    input  wire         clk_i,
    input  wire         enable_i,
    input  wire  [31:0] x_i,
    input  wire  [31:0] zero_i,        // constant during a packet, like the fields below
    input  wire  [31:0] reciprocal_i,
    input  wire         stochastic_i,
    input  wire         signed_i,
    input  wire  [4:0]  bits_i,
    input  wire  [31:0] key_i,
    input  wire  [31:0] index_i,
    output logic [15:0] code_o,
    output logic        clamped_o
);
  localparam logic [31:0] MIX1 = 32'h85EB_CA6B, MIX2 = 32'hC2B2_AE35;

  logic [31:0] difference, t;
  fp32_add i_subtract (
      .clk_i, .enable_i, .a_i(x_i), .b_i({!zero_i[31], zero_i[30:0]}), .y_o(difference)
  );
  fp32_multiply i_scale (
      .clk_i, .enable_i, .a_i(difference), .b_i(reciprocal_i), .y_o(t)
  );

  // counter-based random bits, in step with the two operations above
  logic [31:0] mix0, mix1_q, mix2_q;
  logic [23:0] bits3_q;
  logic [31:0] u4_q, u5_q;
  logic [4:0]  leading;
  assign mix0 = index_i ^ key_i;
  always_comb begin
    leading = 5'd24;
    for (int unsigned k = 0; k < 24; k++) if (bits3_q[k]) leading = 5'(23 - k);
  end
  logic [31:0] mix0_folded, mix1_folded, mix2_folded;
  assign mix0_folded = mix0 ^ (mix0 >> 16);
  assign mix1_folded = mix1_q ^ (mix1_q >> 13);
  assign mix2_folded = mix2_q ^ (mix2_q >> 16);
  logic [23:0] bits3_normal;
  assign bits3_normal = bits3_q << leading;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      mix1_q  <= mix0_folded * MIX1;
      mix2_q  <= mix1_folded * MIX2;
      bits3_q <= stochastic_i ? mix2_folded[31:8] : '0;
      u4_q    <= bits3_q == 0 ? '0 : {1'b0, 8'd126 - 8'(leading), bits3_normal[22:0]};
      u5_q    <= u4_q;
    end

  logic [31:0] s;  // t, or t + u
  fp32_add i_dither (
      .clk_i, .enable_i, .a_i(t), .b_i(u5_q), .y_o(s)
  );

  // to an integer: 18 bits of magnitude are enough to tell that a code is out of range
  logic               negative_q, huge_q, half_q, sticky_q;
  logic [17:0]        whole_q;
  // value * 2^24 of |s| < 2^18, bits shifted out below collected in sticky
  logic [41:0] fixed;
  logic        lost;
  always_comb begin
    automatic logic [65:0] w = {1'b1, s[22:0], 42'd0};  // 2^17 <= value < 2^18
    automatic logic [7:0]  right = 8'd144 - s[30:23];
    w = w >> right;
    fixed = w[65:24];
    lost  = |w[23:0];
    if (s[30:23] == 0) {fixed, lost} = '0;
    else if (s[30:23] < 8'd102) {fixed, lost} = {42'd0, 1'b1};
  end
  always_ff @(posedge clk_i)
    if (enable_i) begin
      negative_q <= s[31];
      huge_q     <= s[30:23] >= 8'd127 + 8'd18;
      whole_q    <= fixed[41:24];
      half_q     <= fixed[23];
      sticky_q   <= |fixed[22:0] || lost;
    end

  logic signed [19:0] magnitude, rounded, low, high;
  always_comb begin
    if (huge_q) magnitude = 20'sh7FFFF;
    else if (stochastic_i)  // floor: away from zero for a negative value with a fraction
      magnitude = $signed({2'b0, whole_q}) + 20'(negative_q && (half_q || sticky_q));
    else magnitude = $signed({2'b0, whole_q}) + 20'(half_q && (sticky_q || whole_q[0]));
    rounded = negative_q ? -magnitude : magnitude;
    low  = signed_i ? -(20'sd1 <<< (bits_i - 5'd1)) : 20'sd0;
    high = (20'sd1 <<< (signed_i ? bits_i - 5'd1 : bits_i)) - 20'sd1;
  end
  logic [15:0] code_q;
  logic        clamped_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      code_q    <= rounded < low ? low[15:0] : rounded > high ? high[15:0] : rounded[15:0];
      clamped_q <= rounded < low || rounded > high;
    end
  assign code_o    = code_q;
  assign clamped_o = clamped_q;
endmodule

`default_nettype wire
