// SPDX-License-Identifier: Apache-2.0
// One quantizer lane: t = (x - z) * r, then q = clamp(rne(t)) or q = clamp(floor(t + u)), the sum exact; ten cycles, one
// value per cycle.  Either way |t| is rounded up where its fraction exceeds a threshold: one half, or what u leaves to one.
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

  // threshold in steps of 2^-24: counter-based random bits, in step with the two operations above, or one half
  logic [31:0] mix0, mix1_q, mix2_q;
  logic [23:0] threshold3_q, threshold4_q, threshold5_q;
  assign mix0 = index_i ^ key_i;
  logic [31:0] mix0_folded, mix1_folded, mix2_folded;
  assign mix0_folded = mix0 ^ (mix0 >> 16);
  assign mix1_folded = mix1_q ^ (mix1_q >> 13);
  assign mix2_folded = mix2_q ^ (mix2_q >> 16);
  always_ff @(posedge clk_i)
    if (enable_i) begin
      mix1_q       <= mix0_folded * MIX1;
      mix2_q       <= mix1_folded * MIX2;
      threshold3_q <= stochastic_i ? mix2_folded[31:8] : 24'h80_0000;
      threshold4_q <= threshold3_q;
      threshold5_q <= threshold4_q;
    end

  // 6: |t| in fixed point: 18 whole bits, enough to tell that a code is out of range, and 24 of fraction; lost: more follows,
  // which is so only below one half and matters only to the floor of a negative t
  logic [41:0] fixed;
  logic        lost;
  always_comb begin
    automatic logic [64:0] w = {1'b1, t[22:0], 41'd0};  // 2^17 <= |t| < 2^18
    automatic logic [5:0]  right = 6'd16 - t[28:23];    // 2^(127 + 17) has the exponent 144, which is 16 modulo 64
    w = w >> right;
    {fixed, lost} = {w[64:23], |w[22:0]};
    if (t[30:23] < 8'd102) {fixed, lost} = {42'd0, t[30:23] != 0};
  end
  logic        negative6_q, huge6_q, lost6_q;
  logic [41:0] fixed6_q;
  logic [23:0] threshold6_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      negative6_q  <= t[31];
      huge6_q      <= t[30:23] >= 8'd127 + 8'd18;
      fixed6_q     <= fixed;
      lost6_q      <= lost && t[31];
      // a fraction f goes up if f + u >= 1, so if f > 1 - u - 2^-24; that of a negative t, which is -f, if f > u
      threshold6_q <= stochastic_i && !t[31] ? ~threshold5_q : threshold5_q;
    end

  // 7: up or not; at one half exactly only to the even side
  logic        negative7_q, huge7_q, up7_q;
  logic [17:0] whole7_q;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      negative7_q <= negative6_q;
      huge7_q     <= huge6_q;
      whole7_q    <= fixed6_q[41:24];
      up7_q       <= {fixed6_q[23:0], lost6_q, !stochastic_i && fixed6_q[24]} > {threshold6_q, 2'b00};
    end

  // 8: the integer
  logic signed [19:0] magnitude, rounded8_q;
  assign magnitude = huge7_q ? 20'sh7FFFF : $signed({2'b0, whole7_q}) + 20'(up7_q);
  always_ff @(posedge clk_i) if (enable_i) rounded8_q <= negative7_q ? -magnitude : magnitude;

  // 9, 10: the code
  logic signed [19:0] low, high, rounded9_q;
  logic               below9_q, above9_q, clamped_q;
  logic        [15:0] code_q;
  assign low  = signed_i ? -(20'sd1 <<< (bits_i - 5'd1)) : 20'sd0;
  assign high = (20'sd1 <<< (signed_i ? bits_i - 5'd1 : bits_i)) - 20'sd1;
  always_ff @(posedge clk_i)
    if (enable_i) begin
      rounded9_q <= rounded8_q;
      below9_q   <= rounded8_q < low;
      above9_q   <= rounded8_q > high;
      code_q     <= below9_q ? low[15:0] : above9_q ? high[15:0] : rounded9_q[15:0];
      clamped_q  <= below9_q || above9_q;
    end
  assign code_o    = code_q;
  assign clamped_o = clamped_q;
endmodule

`default_nettype wire
