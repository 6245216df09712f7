// SPDX-License-Identifier: Apache-2.0
// Integer epilogue: v = acc * m + b, ReLU, rounding shift and clamp, L pixels of one output channel per cycle.
`default_nettype none

module epilogue
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned CW = $clog2(CHANNELS + 1)
) (
    input  wire                                          clk_i,
    input  wire                                          rst_i,
    // one channel of a tile
    input  wire                                          valid_i,
    input  wire  [LANES-1:0][31:0]                       acc_i,
    input  wire  [CW-1:0]                                channel_i,
    input  wire tile_t                                   tile_i,
    input  wire  [MULTIPLIER_BITS-1:0]                   multiplier_i,
    input  wire  [ACC_BITS-1:0]                          offset_i,
    input  wire  [LANES-1:0][MAX_SHIFT-1:0]              error_i,      // stochastic: two cycles after valid_i
    // its codes, three cycles later
    output logic                                         valid_o,
    output logic                                         busy_o,
    output logic [CW-1:0]                                channel_o,
    output tile_t                                        tile_o,
    output logic [LANES-1:0][15:0]                       code_o,
    output logic [6:0]                                   saturated_o
);
  localparam int unsigned VW = 54;  // 32 x 18 bit product, plus a 48-bit offset, plus rounding

  logic          valid1_q, valid2_q, valid3_q;
  logic [CW-1:0] channel1_q, channel2_q, channel3_q;
  tile_t         tile1_q, tile2_q, tile3_q;
  logic signed [ACC_BITS-1:0]      offset1_q;
  logic signed [LANES-1:0][49:0]   product_q;
  logic signed [LANES-1:0][VW-1:0] value_q, rounded_q;
  logic signed [VW-1:0]            half2;
  // bits of the shifted-out value that must equal the sign, for the code to be in range
  logic [VW-1:0]                   beyond3_q;
  logic [15:0]                     low3_q, high3_q;
  assign half2 = tile2_q.shift == 0 ? '0 : VW'(1) << (tile2_q.shift - 6'd1);

  always_ff @(posedge clk_i) begin
    valid1_q   <= valid_i;
    channel1_q <= channel_i;
    tile1_q    <= tile_i;
    offset1_q  <= offset_i;
    if (valid_i)
      for (int unsigned p = 0; p < LANES; p++)
        product_q[p] <= 50'($signed(acc_i[p])) * 50'($signed(multiplier_i));

    valid2_q   <= valid1_q;
    channel2_q <= channel1_q;
    tile2_q    <= tile1_q;
    if (valid1_q)
      for (int unsigned p = 0; p < LANES; p++) begin
        automatic logic signed [VW-1:0] v = VW'($signed(product_q[p])) + VW'(offset1_q);
        value_q[p] <= tile1_q.relu && v[VW-1] ? '0 : v;
      end

    valid3_q   <= valid2_q;
    channel3_q <= channel2_q;
    tile3_q    <= tile2_q;
    if (valid2_q) begin
      for (int unsigned p = 0; p < LANES; p++)
        rounded_q[p] <= $signed(value_q[p]) + (tile2_q.stochastic ? VW'({7'd0, error_i[p]}) : half2);
      beyond3_q <= {VW{1'b1}} << (7'(tile2_q.shift) + 7'(tile2_q.out_bits) - 7'(tile2_q.out_signed));
      low3_q    <= tile2_q.out_signed ? 16'hFFFF << (tile2_q.out_bits - 5'd1) : '0;
      high3_q   <= ~(16'hFFFF << (tile2_q.out_bits - 5'(tile2_q.out_signed)));
    end
    if (rst_i) {valid1_q, valid2_q, valid3_q} <= '0;
  end

  // The shift by up to 47 in two small choices: sixteens first, which leaves 31 bits that matter, then ones.
  always_comb begin
    saturated_o = '0;
    for (int unsigned p = 0; p < LANES; p++) begin
      automatic logic        negative = rounded_q[p][VW-1];
      automatic logic [62:0] extended = {{63 - VW{negative}}, rounded_q[p]};
      automatic logic [30:0] coarse = tile3_q.shift[5] ? extended[62:32] : tile3_q.shift[4] ? extended[46:16] : extended[30:0];
      automatic logic [15:0] fine = 16'(coarse >> tile3_q.shift[3:0]);
      automatic logic        outside = (negative && !tile3_q.out_signed) || |((rounded_q[p] ^ {VW{negative}}) & beyond3_q);
      code_o[p] = !outside ? fine : negative ? low3_q : high3_q;
      if (valid3_q) saturated_o = saturated_o + 7'(outside);
    end
  end
  assign valid_o   = valid3_q;
  assign channel_o = channel3_q;
  assign tile_o    = tile3_q;
  assign busy_o    = valid1_q || valid2_q || valid3_q;
endmodule

`default_nettype wire
