// SPDX-License-Identifier: Apache-2.0
// A 32-bit two's complement integer as IEEE single precision, round to nearest even.  Two cycles.
`default_nettype none

module fp32_from_int (
    input  wire                clk_i,
    input  wire                enable_i,
    input  wire signed [31:0]  x_i,
    output logic [31:0]        y_o
);
  // 1: magnitude with its leading one at bit 31
  logic [31:0] magnitude;
  logic [4:0]  leading;
  logic        sign_q, zero_q;
  logic [4:0]  leading_q;
  logic [31:0] normal_q;
  always_comb begin
    magnitude = x_i < 0 ? 32'(-x_i) : 32'(x_i);
    leading = '0;
    for (int unsigned k = 0; k < 32; k++) if (magnitude[k]) leading = 5'(31 - k);
  end
  always_ff @(posedge clk_i)
    if (enable_i) begin
      sign_q    <= x_i < 0;
      zero_q    <= x_i == 0;
      leading_q <= leading;
      normal_q  <= magnitude << leading;
    end

  // 2: round to 24 bits
  logic [24:0] rounded;
  logic [7:0]  exponent;
  assign rounded  = {1'b0, normal_q[31:8]} + 25'(normal_q[7] && (|normal_q[6:0] || normal_q[8]));
  assign exponent = 8'd158 - 8'(leading_q) + 8'(rounded[24]);
  logic [31:0] y_q;
  always_ff @(posedge clk_i)
    if (enable_i) y_q <= zero_q ? '0 : {sign_q, exponent, rounded[24] ? rounded[23:1] : rounded[22:0]};
  assign y_o = y_q;
endmodule

`default_nettype wire
