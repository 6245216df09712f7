// SPDX-License-Identifier: Apache-2.0
// Hash of a counter (the finalizer of MurmurHash3), and the product of its upper half with a factor in GF(2^16): one per
// cycle, HASH_CYCLES later.
`default_nettype none

module row_hash
  import fabric_pkg::*;
(
    input  wire          clk_i,
    input  wire  [31:0]  counter_i,
    input  wire  [15:0]  factor_i,    // HASH_CYCLES - 2 later
    output logic [15:0]  low_o,       // lower half
    output logic [15:0]  product_o    // upper half times the factor
);
  localparam logic [1:0][31:0] MIX = {32'hC2B2_AE35, 32'h85EB_CA6B};
  localparam int unsigned LOW = 17;   // of 32 bits: what one side of a DSP slice takes without its sign
  if (HASH_CYCLES != 12) begin : gen_check
    $error("row_hash: HASH_CYCLES = %0d, must be 12", HASH_CYCLES);
  end

  // counter -> two rounds of fold and multiplication, four cycles each -> last fold
  logic [31:0] mix_q, mixed[3];
  assign mixed[0] = mix_q ^ (mix_q >> 16);
  always_ff @(posedge clk_i) mix_q <= counter_i;
  for (genvar r = 0; r < 2; r++) begin : gen_round
    localparam logic [LOW-1:0]  MIX_LOW  = MIX[r][LOW-1:0];
    localparam logic [31-LOW:0] MIX_HIGH = MIX[r][31:LOW];
    localparam int unsigned     FOLD     = r == 0 ? 13 : 16;
    logic [31:0]     a_q, low_q, low2_q, product_q;
    logic [31-LOW:0] cross_low_q, cross_high_q, cross_q;
    always_ff @(posedge clk_i) begin
      a_q          <= mixed[r];
      low_q        <= 32'(34'(a_q[LOW-1:0]) * 34'(MIX_LOW));
      cross_low_q  <= (32 - LOW)'(32'(a_q[LOW-1:0]) * 32'(MIX_HIGH));
      cross_high_q <= (32 - LOW)'(32'(a_q[31:LOW]) * 32'(MIX_LOW));
      low2_q       <= low_q;
      cross_q      <= cross_low_q + cross_high_q;
      product_q    <= {low2_q[31:LOW] + cross_q, low2_q[LOW-1:0]};
    end
    assign mixed[r+1] = product_q ^ (product_q >> FOLD);
  end

  // product without carries, then its remainder
  logic [15:0] low_q[3], high_q;
  logic [30:0] carryless, carryless_q;
  logic [15:0] remainder, product_q;
  always_comb begin
    carryless = '0;
    for (int unsigned b = 0; b < 16; b++) if (factor_i[b]) carryless = carryless ^ (31'(high_q) << b);
    begin : reduce
      automatic logic [30:0] rest = carryless_q;
      for (int unsigned b = 30; b >= 16; b--) if (rest[b]) rest = rest ^ (31'(GF_POLYNOMIAL) << (b - 16));
      remainder = rest[15:0];
    end
  end
  always_ff @(posedge clk_i) begin
    {high_q, low_q[0]} <= mixed[2];
    low_q[1]    <= low_q[0];
    low_q[2]    <= low_q[1];
    carryless_q <= carryless;
    product_q   <= remainder;
  end
  assign low_o     = low_q[2];
  assign product_o = product_q;
endmodule

`default_nettype wire
