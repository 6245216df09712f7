// SPDX-License-Identifier: Apache-2.0
// im2col by wiring, in the form for synthesis: the same function as hw/rtl/operand_network.sv, bit by bit, in which
// every stage is one LUT6 per bit.  The other form, in whole words, simulates twice as fast.
//
// A select has thousands of loads.  All are decoded in the cycle before the rows come, into registers of every pixel and of
// every dot product's second operand; these are kept, though equal.
`default_nettype none

module operand_network
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned ROW = LANES * CHANNELS,
    localparam int unsigned HALF_ROWS = 4
) (
    input  wire                                         clk_i,
    input  wire step_t                                  step_i,     // a cycle before its rows and weights
    input  wire  [7:0][ROW-1:0]                         a_rows_i,
    input  wire  [7:0][ROW-1:0]                         g_rows_i,
    input  wire  [CHANNELS*DOT_BITS-1:0]                weights_i,
    output logic [LANES-1:0][DOT_BITS-1:0]              a_o,
    output logic [1:0][CHANNELS-1:0][DOT_BITS-1:0]      b_o
);
  localparam logic [1:0] LEFT = 2'd0, SAME = 2'd1, RIGHT = 2'd2, ONE = 2'd3;               // tap columns
  localparam logic [1:0] BELOW = 2'd0, FACING = 2'd1, ABOVE = 2'd2, WEIGHTS = 2'd3;        // second operands

  // ---- decoded once: what is the same for all pixels ----------------------------------------------------------------
  logic [LANES-1:0] left_ok, right_ok, column_ok;  // neighbours of a pixel that lie in its own image
  logic [2:0][2:0]  bank;                          // rows y-1, y, y+1; under stride 2 their odd columns
  logic [1:0]       column, source;
  always_comb begin
    left_ok   = ~step_i.segment_start;
    right_ok  = ~(step_i.segment_start >> 1);
    right_ok[LANES-1] = 1'b0;
    column    = step_i.ones ? ONE : step_i.dx;
    column_ok = step_i.dx == 2'd0 ? left_ok : step_i.dx == 2'd2 ? right_ok : '1;
    source    = step_i.wgrad ? step_i.dy : WEIGHTS;
    for (int unsigned ky = 0; ky < 3; ky++)
      bank[ky] = step_i.stride ? {step_i.row[0], 2'b11} + 3'(2 * ky + 4) : step_i.row + 3'(ky + 7);
  end

  // ---- registers of every pixel ---------------------------------------------------------------------------------------
  typedef struct packed {
    logic            take;
    logic            clear;
    logic            wgrad;
    logic            stride;
    logic            even;         // stride: the even columns lie in banks 2, 4, 6 rather than 6, 0, 2
    logic [2:0][2:0] bank;
    logic [TAPS-1:0] exists;       // pixel under the tap
    logic [1:0]      column;
    logic [7:0]      bank_exists;  // weight gradient: pixel of the bank under the tap
  } pixel_t;
  typedef struct packed {
    logic       take;
    logic       clear;
    logic       wgrad;
    logic [1:0] source;
  } second_t;

  logic [LANES-1:0][DOT_BITS-1:0]         a_q;
  logic [1:0][CHANNELS-1:0][DOT_BITS-1:0] b_q;
  assign a_o = a_q;
  assign b_o = b_q;

  // Every stage below is one LUT6 per bit; clearing is left to the registers.
  localparam int unsigned USED = HALF_ROWS * LANES;  // bits of a dot product in the weight gradient
  wire [2:0][ROW-1:0] near_row, middle_row;
  wire [7:0][ROW-1:0] tapped;
  for (genvar p = 0; p < LANES; p++) begin : gen_pixel
    (* keep = "true" *) pixel_t pixel_q;
    always_ff @(posedge clk_i) begin
      pixel_q.take   <= step_i.valid;
      pixel_q.clear  <= step_i.valid && step_i.bubble;
      pixel_q.wgrad  <= step_i.wgrad;
      pixel_q.stride <= step_i.stride;
      pixel_q.even   <= step_i.row[0];
      pixel_q.bank   <= bank;
      pixel_q.column <= column;
      for (int unsigned b = 0; b < 8; b++) pixel_q.bank_exists[b] <= column_ok[p] && step_i.bank_valid[b];
      for (int unsigned ky = 0; ky < 3; ky++)
        pixel_q.exists[3*ky+:3] <= {3{step_i.row_valid[ky]}} & {right_ok[p] || step_i.stride, 1'b1, left_ok[p]};
    end

    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      localparam int unsigned BIT = p * CHANNELS + c;
      // first operand: rows for the kernel's rows; under stride 2 their odd columns, and beside them the even ones, which lie
      // one bank before
      for (genvar ky = 0; ky < 3; ky++) begin : gen_row
        assign near_row[ky][BIT] = a_rows_i[pixel_q.bank[ky]][BIT];
        assign middle_row[ky][BIT] = !pixel_q.stride ? near_row[ky][BIT]
                                   : pixel_q.even ? a_rows_i[(2*ky+2)%8][BIT] : a_rows_i[(2*ky+6)%8][BIT];
      end
      // first operand of the weight gradient: one tap column of every bank
      for (genvar b = 0; b < 8; b++) begin : gen_bank
        wire from_left, from_right;
        if (p > 0) begin : gen_left
          assign from_left = a_rows_i[b][BIT-CHANNELS];
        end else begin : gen_first
          assign from_left = 1'b0;
        end
        if (p < LANES - 1) begin : gen_right
          assign from_right = a_rows_i[b][BIT+CHANNELS];
        end else begin : gen_last
          assign from_right = 1'b0;
        end
        logic bit_d;
        always_comb
          unique case (pixel_q.column)
            LEFT:    bit_d = from_left;
            SAME:    bit_d = a_rows_i[b][BIT];
            RIGHT:   bit_d = from_right;
            default: bit_d = 1'b1;
          endcase
        assign tapped[b][BIT] = bit_d && pixel_q.bank_exists[b];
      end
    end

    // ---- first operand: the kernel's rows and columns around pixel p, or channel p along four banks ------------------
    logic [DOT_BITS-1:0] a_d;
    for (genvar tap = 0; tap < TAPS; tap++) begin : gen_tap
      localparam int unsigned KY = tap / 3, KX = tap % 3;
      for (genvar c = 0; c < CHANNELS; c++) begin : gen_bit
        localparam int unsigned K = tap * CHANNELS + c;
        wire near, tap_bit;
        if (KX == 1) begin : gen_middle
          assign near = middle_row[KY][p*CHANNELS+c];
        end else if (KX == 0 && p == 0) begin : gen_first
          assign near = 1'b0;
        end else if (KX == 0) begin : gen_left
          assign near = near_row[KY][(p-1)*CHANNELS+c];
        end else if (p == LANES - 1) begin : gen_last
          assign near = near_row[KY][p*CHANNELS+c];
        end else begin : gen_right
          assign near = pixel_q.stride ? near_row[KY][p*CHANNELS+c] : near_row[KY][(p+1)*CHANNELS+c];
        end
        if (K < USED) begin : gen_used
          assign tap_bit = tapped[(p/CHANNELS)*HALF_ROWS+K/LANES][(K%LANES)*CHANNELS+p%CHANNELS];
        end else begin : gen_unused
          assign tap_bit = 1'b0;
        end
        assign a_d[K] = pixel_q.wgrad ? tap_bit : near && pixel_q.exists[tap];
      end
    end
    always_ff @(posedge clk_i)
      if (pixel_q.clear) a_q[p] <= '0;
      else if (pixel_q.take) a_q[p] <= a_d;
  end

  // ---- second operand: weights, or the bank that faces this one under the tap's row ----------------------------------
  for (genvar h = 0; h < 2; h++) begin : gen_half
    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      (* keep = "true" *) second_t second_q;
      always_ff @(posedge clk_i) begin
        second_q.take   <= step_i.valid;
        second_q.clear  <= step_i.valid && step_i.zero_b;
        second_q.wgrad  <= step_i.wgrad;
        second_q.source <= source;
      end
      logic [DOT_BITS-1:0] b_d;
      for (genvar k = 0; k < DOT_BITS; k++) begin : gen_bit
        wire weight = weights_i[c*DOT_BITS+k];
        if (k < USED) begin : gen_used
          localparam int unsigned BANK = h * HALF_ROWS + k / LANES, BIT = (k % LANES) * CHANNELS + c;
          logic bit_d;
          always_comb
            unique case (second_q.source)
              BELOW:   bit_d = g_rows_i[(BANK+1)%8][BIT];
              FACING:  bit_d = g_rows_i[BANK][BIT];
              ABOVE:   bit_d = g_rows_i[(BANK+7)%8][BIT];
              default: bit_d = weight;
            endcase
          assign b_d[k] = bit_d;
        end else begin : gen_unused
          assign b_d[k] = weight && !second_q.wgrad;
        end
      end
      always_ff @(posedge clk_i)
        if (second_q.clear) b_q[h][c] <= '0;
        else if (second_q.take) b_q[h][c] <= b_d;
    end
  end
endmodule

`default_nettype wire
