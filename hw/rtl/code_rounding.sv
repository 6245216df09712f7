// SPDX-License-Identifier: Apache-2.0
// A value of 18 bits to a code: adds the rounding's error, shifts right by 0 to 16, clamps; four cycles.
//
// A random number of 16 bits adds its upper `shift` bits to the bits that are shifted out; 2^15 rounds to nearest.  A DSP
// slice does both: it multiplies by 2^(16 - shift), which lays the bits that will be lost beside the random number, and adds.
`default_nettype none

module code_rounding
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    parameter int unsigned BITS = 16   /// bits of the widest code
) (
    input  wire                     clk_i,
    input  wire  [VALUE_BITS-1:0]   value_i,      // signed
    input  wire  [MAX_CODE_SHIFT:0] scale_i,      // 2^(16 - shift), one cycle after the value
    input  wire  [15:0]             random_i,     // of 2^16, with the value
    input  wire limits_t            limits_i,     // three cycles later
    // four cycles later
    output logic [BITS-1:0]         code_o,
    output logic                    clamped_o
);
  localparam int unsigned SUM = VALUE_BITS + 17;
  if (BITS > 16 || MAX_CODE_SHIFT != 16) begin : gen_check
    $error("code_rounding: BITS = %0d and MAX_CODE_SHIFT = %0d, must be 16 or less and 16", BITS, MAX_CODE_SHIFT);
  end

  logic signed [VALUE_BITS-1:0] value_q;
  logic        [15:0]           random_q, random2_q;
  logic signed [SUM-1:0]        product_q, sum_q;
  always_ff @(posedge clk_i) begin
    value_q   <= value_i;
    random_q  <= random_i;
    random2_q <= random_q;
    product_q <= SUM'(value_q) * SUM'($signed({1'b0, scale_i}));
    sum_q     <= product_q + SUM'($signed({1'b0, random2_q}));
  end

  logic [VALUE_BITS:0] shifted;
  logic                negative, outside, clamped_q;
  logic [BITS-1:0]     code_q;
  assign shifted  = sum_q[SUM-1:16];
  assign negative = sum_q[SUM-1];
  assign outside  = (negative && !limits_i.is_signed) || |((shifted ^ {VALUE_BITS + 1{negative}}) & limits_i.beyond);
  always_ff @(posedge clk_i) begin
    code_q    <= !outside ? shifted[BITS-1:0] : negative ? BITS'(limits_i.least) : BITS'(limits_i.most);
    clamped_q <= outside;
  end
  assign code_o    = code_q;
  assign clamped_o = clamped_q;
endmodule

`default_nettype wire
