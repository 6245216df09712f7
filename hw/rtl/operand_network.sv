// SPDX-License-Identifier: Apache-2.0
// im2col by wiring: turns row words into the operands of the dot-product array.
//
// Output and input gradient: lane p sees the 9 taps x C channels around pixel p of one row; both lane halves get the
// same weights.  With stride 2 the row's even columns (under the middle tap) and odd columns (left and right) come from
// rows of their own, so that all nine taps are there at once.  Weight gradient: lane (half h, channel ic) sees that channel along 4 rows of pixels, shifted by the
// tap's column; the tap's row is applied by rotating the output gradient's banks against it.
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
  step_t step_q;
  always_ff @(posedge clk_i) step_q <= step_i;

  // neighbours of a pixel that lie in its own image
  logic [LANES-1:0] left_ok, right_ok, column_ok;
  logic [ROW-1:0]   left_mask, right_mask, column_mask;
  always_comb begin
    left_ok  = ~step_q.segment_start;
    right_ok = ~(step_q.segment_start >> 1);
    right_ok[LANES-1] = 1'b0;
    column_ok = step_q.dx == 2'd0 ? left_ok : step_q.dx == 2'd2 ? right_ok : '1;
    for (int unsigned p = 0; p < LANES; p++) begin
      left_mask[p*CHANNELS+:CHANNELS]   = {CHANNELS{left_ok[p]}};
      right_mask[p*CHANNELS+:CHANNELS]  = {CHANNELS{right_ok[p]}};
      column_mask[p*CHANNELS+:CHANNELS] = {CHANNELS{column_ok[p]}};
    end
  end

  // Selects have two bits and constant rows to choose from, and clearing is left to the registers, which keeps the
  // multiplexers small; whole words in two branches keep the simulation fast (bit by bit it takes twice as long).
  localparam logic [1:0] LEFT = 2'd0, SAME = 2'd1, RIGHT = 2'd2, ONE = 2'd3;
  localparam logic [1:0] BELOW = 2'd0, FACING = 2'd1, WEIGHTS = 2'd3;
  logic [1:0] column;
  assign column = step_q.ones ? ONE : step_q.dx;

  logic [LANES-1:0][DOT_BITS-1:0]         a_d, a_q;
  logic [1:0][CHANNELS-1:0][DOT_BITS-1:0] b_d, b_q;
  logic [ROW-1:0]                         row, middle_row, left_row, right_row;
  logic [2:0]                             first_bank;  // of the row above, under stride 2 its odd columns
  assign first_bank = step_q.stride ? {step_q.row[0], 2'b11} + 3'd4 : step_q.row + 3'd7;

  always_comb begin
    a_d = '0;
    row = '0;
    middle_row = '0;
    left_row = '0;
    right_row = '0;
    if (step_q.wgrad) begin
      for (int unsigned bank = 0; bank < 8; bank++) begin
        unique case (column)
          LEFT:    row = a_rows_i[bank] << CHANNELS;
          SAME:    row = a_rows_i[bank];
          RIGHT:   row = a_rows_i[bank] >> CHANNELS;
          default: row = '1;
        endcase
        row = row & column_mask & {ROW{step_q.bank_valid[bank]}};
        for (int unsigned p = 0; p < LANES; p++)
          for (int unsigned c = 0; c < CHANNELS; c++)
            a_d[(bank / HALF_ROWS) * CHANNELS + c][(bank % HALF_ROWS) * LANES + p] = row[p*CHANNELS+c];
      end
    end else begin
      for (int unsigned ky = 0; ky < 3; ky++) begin
        row = a_rows_i[first_bank+3'(step_q.stride ? 2*ky : ky)] & {ROW{step_q.row_valid[ky]}};
        // under stride 2 the even columns lie one bank before the odd ones, in one of two even banks
        middle_row = row;
        if (step_q.stride)
          middle_row = a_rows_i[step_q.row[0] ? 3'(2*ky+2) : 3'(2*ky+6)] & {ROW{step_q.row_valid[ky]}};
        left_row  = (row << CHANNELS) & left_mask;
        right_row = step_q.stride ? row : (row >> CHANNELS) & right_mask;
        for (int unsigned p = 0; p < LANES; p++)
          a_d[p][3*ky*CHANNELS+:3*CHANNELS] = {
            right_row[p*CHANNELS+:CHANNELS], middle_row[p*CHANNELS+:CHANNELS], left_row[p*CHANNELS+:CHANNELS]
          };
      end
    end
  end

  // weights, or for each bank the one that faces it under the tap's row
  logic [1:0]     source;
  logic [ROW-1:0] facing_row;
  assign source = step_q.wgrad ? step_q.dy : WEIGHTS;
  always_comb begin
    b_d = '0;
    facing_row = '0;
    if (source == WEIGHTS) begin
      b_d[0] = weights_i;
      b_d[1] = weights_i;
    end else
      for (int unsigned bank = 0; bank < 8; bank++) begin
        unique case (source)
          BELOW:   facing_row = g_rows_i[(bank+1)%8];
          FACING:  facing_row = g_rows_i[bank];
          default: facing_row = g_rows_i[(bank+7)%8];
        endcase
        for (int unsigned p = 0; p < LANES; p++)
          for (int unsigned c = 0; c < CHANNELS; c++)
            b_d[bank / HALF_ROWS][c][(bank % HALF_ROWS) * LANES + p] = facing_row[p*CHANNELS+c];
      end
  end

  always_ff @(posedge clk_i)
    if (step_q.valid) begin
      a_q <= step_q.bubble ? '0 : a_d;
      b_q <= step_q.zero_b ? '0 : b_d;
    end

  assign a_o = a_q;
  assign b_o = b_q;
endmodule

`default_nettype wire
