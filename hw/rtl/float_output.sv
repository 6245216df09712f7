// SPDX-License-Identifier: Apache-2.0
// Dequantized results: y = float(acc) * scale + offset, two pixels of a channel to a word.
`default_nettype none

module float_output (
    input  wire                clk_i,
    input  wire                rst_i,
    input  wire                enable_i,   // the pipeline moves
    input  wire                valid_i,
    input  wire  [1:0][31:0]   acc_i,
    input  wire  [31:0]        scale_i,
    input  wire  [31:0]        offset_i,
    output logic               valid_o,
    output logic               busy_o,     // something is under way
    output logic [63:0]        word_o,
    output logic [1:0]         infinite_o  // results that overflowed
);
  localparam int unsigned CONVERT = 2, MULTIPLY = 2, ADD = 3;
  localparam int unsigned CYCLES = CONVERT + MULTIPLY + ADD;

  function automatic logic [31:0] usable(input logic [31:0] parameter_bits);
    return parameter_bits[30:23] == 8'd0 || parameter_bits[30:23] == 8'hFF ? '0 : parameter_bits;
  endfunction

  // parameters travel with the values that they belong to
  logic [CYCLES-1:0]                     valid_q;
  logic [CONVERT-1:0][31:0]              scale_q;
  logic [CONVERT+MULTIPLY-1:0][31:0]     offset_q;
  always_ff @(posedge clk_i) begin
    if (enable_i) begin
      valid_q  <= {valid_q[CYCLES-2:0], valid_i};
      scale_q  <= {scale_q[CONVERT-2:0], usable(scale_i)};
      offset_q <= {offset_q[CONVERT+MULTIPLY-2:0], usable(offset_i)};
    end
    if (rst_i) valid_q <= '0;
  end
  assign valid_o = valid_q[CYCLES-1];
  assign busy_o  = |valid_q;

  for (genvar k = 0; k < 2; k++) begin : gen_lane
    logic [31:0] value, product, sum;
    // an infinite product does not pass the adder
    logic [ADD-1:0] infinite_q, sign_q;
    fp32_from_int i_convert (.clk_i, .enable_i, .x_i(acc_i[k]), .y_o(value));
    fp32_multiply i_scale (.clk_i, .enable_i, .a_i(value), .b_i(scale_q[CONVERT-1]), .y_o(product));
    fp32_add i_offset (.clk_i, .enable_i, .a_i(product), .b_i(offset_q[CONVERT+MULTIPLY-1]), .y_o(sum));
    always_ff @(posedge clk_i)
      if (enable_i) begin
        infinite_q <= {infinite_q[ADD-2:0], product[30:23] == 8'hFF};
        sign_q     <= {sign_q[ADD-2:0], product[31]};
      end
    assign word_o[32*k+:32] = infinite_q[ADD-1] ? {sign_q[ADD-1], 8'hFF, 23'd0} : sum;
    assign infinite_o[k]    = word_o[32*k+23+:8] == 8'hFF;
  end
endmodule

`default_nettype wire
