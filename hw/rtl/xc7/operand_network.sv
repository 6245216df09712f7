// SPDX-License-Identifier: Apache-2.0
// im2col by wiring, in the form for synthesis: the same function as hw/rtl/operand_network.sv, bit by bit, in which
// every stage is one LUT6 per bit.  The other form, in whole words, simulates twice as fast.
`default_nettype none

module operand_network
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned ROW = LANES * CHANNELS,
    localparam int unsigned HALF_ROWS = 4
) (
    input  wire                                         clk_i,
    input  wire step_t                                  step_i,
    input  wire  [7:0][ROW-1:0]                         a_rows_i,
    input  wire  [7:0][ROW-1:0]                         g_rows_i,
    input  wire  [CHANNELS*DOT_BITS-1:0]                weights_i,
    output logic [LANES-1:0][DOT_BITS-1:0]              a_o,
    output logic [1:0][CHANNELS-1:0][DOT_BITS-1:0]      b_o
);
  // neighbours of a pixel that lie in its own image
  logic [LANES-1:0] left_ok, right_ok;
  always_comb begin
    left_ok  = ~step_i.segment_start;
    right_ok = ~(step_i.segment_start >> 1);
    right_ok[LANES-1] = 1'b0;
  end

  logic [LANES-1:0][DOT_BITS-1:0]         a_d, a_q;
  logic [1:0][CHANNELS-1:0][DOT_BITS-1:0] b_d, b_q;

  // Every stage below is one LUT6 per bit: selects are encoded once, masks are formed once per pixel, and clearing is
  // left to the registers.

  // ---- first operand: rows y-1, y, y+1 for the kernel's rows; under stride 2 their odd columns, and beside them the even
  // ones, which lie one bank before
  logic [2:0][ROW-1:0] near_row, middle_row;
  for (genvar ky = 0; ky < 3; ky++) begin : gen_row
    logic [2:0] bank;
    assign bank = step_i.stride ? {step_i.row[0], 2'b11} + 3'(2 * ky + 4) : step_i.row + 3'(ky + 7);
    assign near_row[ky] = a_rows_i[bank];
    assign middle_row[ky] = !step_i.stride ? near_row[ky]
                          : step_i.row[0] ? a_rows_i[(2*ky+2)%8] : a_rows_i[(2*ky+6)%8];
  end

  // ---- first operand of the weight gradient: one tap column of every bank ----------------------------------------------
  localparam logic [1:0] LEFT = 2'd0, SAME = 2'd1, RIGHT = 2'd2, ONE = 2'd3;
  logic [1:0] column;
  assign column = step_i.ones ? ONE : step_i.dx;
  logic [LANES-1:0] column_ok;
  assign column_ok = step_i.dx == 2'd0 ? left_ok : step_i.dx == 2'd2 ? right_ok : '1;
  logic [7:0][ROW-1:0] tapped;
  for (genvar bank = 0; bank < 8; bank++) begin : gen_bank
    wire [ROW-1:0] from_left = a_rows_i[bank] << CHANNELS, from_right = a_rows_i[bank] >> CHANNELS;
    for (genvar p = 0; p < LANES; p++) begin : gen_pixel
      logic exists;
      assign exists = column_ok[p] && step_i.bank_valid[bank];
      for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
        logic bit_d;
        always_comb
          unique case (column)
            LEFT:    bit_d = from_left[p*CHANNELS+c];
            SAME:    bit_d = a_rows_i[bank][p*CHANNELS+c];
            RIGHT:   bit_d = from_right[p*CHANNELS+c];
            default: bit_d = 1'b1;
          endcase
        assign tapped[bank][p*CHANNELS+c] = bit_d && exists;
      end
    end
  end

  // ---- second operand: weights, or the bank that faces this one under the tap's row ------------------------------------
  localparam int unsigned USED = HALF_ROWS * LANES;  // bits of a dot product in the weight gradient
  localparam logic [1:0] BELOW = 2'd0, FACING = 2'd1, ABOVE = 2'd2, WEIGHTS = 2'd3;
  logic [1:0] source;
  assign source = step_i.wgrad ? step_i.dy : WEIGHTS;
  for (genvar h = 0; h < 2; h++) begin : gen_half
    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      for (genvar k = 0; k < DOT_BITS; k++) begin : gen_bit
        logic weight;
        assign weight = weights_i[c*DOT_BITS+k];
        if (k < USED) begin : gen_used
          localparam int unsigned BANK = h * HALF_ROWS + k / LANES, BIT = (k % LANES) * CHANNELS + c;
          logic bit_d;
          always_comb
            unique case (source)
              BELOW:   bit_d = g_rows_i[(BANK+1)%8][BIT];
              FACING:  bit_d = g_rows_i[BANK][BIT];
              ABOVE:   bit_d = g_rows_i[(BANK+7)%8][BIT];
              default: bit_d = weight;
            endcase
          assign b_d[h][c][k] = bit_d;
        end else begin : gen_unused
          assign b_d[h][c][k] = weight && !step_i.wgrad;
        end
      end
    end
  end

  // ---- first operand: the kernel's rows and columns around pixel p, or channel p along four banks ----------------------
  for (genvar p = 0; p < LANES; p++) begin : gen_lane
    for (genvar tap = 0; tap < TAPS; tap++) begin : gen_tap
      localparam int unsigned KY = tap / 3, KX = tap % 3;
      logic exists;
      assign exists = step_i.row_valid[KY]
                   && (KX == 0 ? left_ok[p] : KX == 2 ? right_ok[p] || step_i.stride : 1'b1);
      for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
        localparam int unsigned K = tap * CHANNELS + c;
        logic near, tap_bit;
        if (KX == 1) begin : gen_middle
          assign near = middle_row[KY][p*CHANNELS+c];
        end else if (KX == 0 && p == 0) begin : gen_first
          assign near = 1'b0;
        end else if (KX == 0) begin : gen_left
          assign near = near_row[KY][(p-1)*CHANNELS+c];
        end else if (p == LANES - 1) begin : gen_last
          assign near = near_row[KY][p*CHANNELS+c];
        end else begin : gen_right
          assign near = step_i.stride ? near_row[KY][p*CHANNELS+c] : near_row[KY][(p+1)*CHANNELS+c];
        end
        if (K < USED) begin : gen_used
          assign tap_bit = tapped[(p/CHANNELS)*HALF_ROWS+K/LANES][(K%LANES)*CHANNELS+p%CHANNELS];
        end else begin : gen_unused
          assign tap_bit = 1'b0;
        end
        assign a_d[p][K] = step_i.wgrad ? tap_bit : near && exists;
      end
    end
  end

  always_ff @(posedge clk_i)
    if (step_i.valid) begin
      a_q <= step_i.bubble ? '0 : a_d;
      b_q <= step_i.zero_b ? '0 : b_d;
    end

  assign a_o = a_q;
  assign b_o = b_q;
endmodule

`default_nettype wire
