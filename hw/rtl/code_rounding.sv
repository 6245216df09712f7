// SPDX-License-Identifier: Apache-2.0
// A value of 18 bits to a code: adds the rounding's error, shifts right by 0 to 16, clamps; four cycles.
// Adding the upper bits of a random number rounds at random, those of one half to nearest.
`default_nettype none

module code_rounding
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    parameter int unsigned BITS = 16   /// bits of the widest code
) (
    input  wire                     clk_i,
    input  wire  [VALUE_BITS-1:0]   value_i,      // signed
    input  wire  [15:0]             random_i,     // of 2^16
    input  wire  [4:0]              shift_i,      // right shift: with the value
    input  wire  [4:0]              shift2_i,     // and two cycles later
    input  wire  [1:0]              shift3_i,     // its lowest bits, three cycles later
    input  wire limits_t            limits2_i,    // two cycles later
    input  wire limits_t            limits3_i,    // three cycles later
    // four cycles later
    output logic [BITS-1:0]         code_o,
    output logic                    clamped_o
);
  if (BITS > 16) begin : gen_check
    $error("code_rounding: BITS = %0d, must be 16 or less", BITS);
  end

  logic [VALUE_BITS-1:0] value_q;
  logic [15:0]           error_q;
  logic [VALUE_BITS:0]   sum_q;
  always_ff @(posedge clk_i) begin
    value_q <= value_i;
    error_q <= 16'(random_i >> (5'd16 - shift_i));
    sum_q   <= {value_q[VALUE_BITS-1], value_q} + (VALUE_BITS + 1)'(error_q);
  end

  // fours of the shift, sixteens among them; whether the code is within its limits
  logic [35:0]     extended;
  logic            negative, negative_q, outside_q, clamped_q;
  logic [BITS+2:0] coarse_q;
  logic [BITS-1:0] code_q;
  assign negative = sum_q[VALUE_BITS];
  assign extended = {{35 - VALUE_BITS{negative}}, sum_q};
  always_ff @(posedge clk_i) begin
    negative_q <= negative;
    outside_q  <= (negative && !limits2_i.is_signed) || |((sum_q ^ {VALUE_BITS + 1{negative}}) & limits2_i.beyond);
    coarse_q   <= (BITS + 3)'(extended >> {shift2_i[4:2], 2'b00});
    code_q     <= !outside_q ? BITS'(coarse_q >> shift3_i)
                : negative_q ? BITS'(limits3_i.least) : BITS'(limits3_i.most);
    clamped_q  <= outside_q;
  end
  assign code_o    = code_q;
  assign clamped_o = clamped_q;
endmodule

`default_nettype wire
