// SPDX-License-Identifier: Apache-2.0
// A value of 18 bits to a narrow code: rounds to nearest, shifts right by 0 to 16, clamps; four cycles, in LUTs alone.
`default_nettype none

module nearest_code
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    parameter int unsigned BITS = 8   /// bits of the widest code
) (
    input  wire                     clk_i,
    input  wire  [VALUE_BITS-1:0]   value_i,      // signed
    input  wire  [15:0]             half_i,       // 2^shift / 2, one cycle after the value
    input  wire  [4:0]              shift2_i,     // right shift, two cycles after the value
    input  wire  [1:0]              shift3_i,     // its lowest bits, three cycles later
    input  wire  [VALUE_BITS:0]     beyond_i,     // bits that must equal the sign, before the shift: two cycles later
    input  wire limits_t            limits_i,     // three cycles later
    // four cycles later
    output logic [BITS-1:0]         code_o
);
  if (BITS > 16) begin : gen_check
    $error("nearest_code: BITS = %0d, must be 16 or less", BITS);
  end

  logic [VALUE_BITS-1:0] value_q;
  logic [VALUE_BITS:0]   sum_q;
  logic [35:0]           extended;
  logic                  negative, negative_q, outside_q;
  logic [BITS+2:0]       coarse_q;
  logic [BITS-1:0]       code_q;
  assign negative = sum_q[VALUE_BITS];
  assign extended = {{35 - VALUE_BITS{negative}}, sum_q};
  always_ff @(posedge clk_i) begin
    value_q <= value_i;
    sum_q   <= {value_q[VALUE_BITS-1], value_q} + (VALUE_BITS + 1)'(half_i);
    // fours of the shift, sixteens among them; whether the code is within its limits
    negative_q <= negative;
    outside_q  <= |((sum_q ^ {VALUE_BITS + 1{negative}}) & beyond_i);
    coarse_q   <= (BITS + 3)'(extended >> {shift2_i[4:2], 2'b00});
    code_q     <= negative_q && !limits_i.is_signed ? '0
                : !outside_q ? BITS'(coarse_q >> shift3_i)
                : negative_q ? BITS'(limits_i.least) : BITS'(limits_i.most);
  end
  assign code_o = code_q;
endmodule

`default_nettype wire
