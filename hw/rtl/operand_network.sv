// SPDX-License-Identifier: Apache-2.0
// im2col by wiring: turns row words into the operands of the dot-product array.
//
// Output and input gradient: lane p sees the 9 taps x C channels around pixel p of one row; both lane halves get the
// same weights.  Weight gradient: lane (half h, channel ic) sees that channel along 4 rows of pixels, shifted by the
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
    input  wire step_t                                  step_i,
    input  wire  [7:0][ROW-1:0]                         a_rows_i,
    input  wire  [7:0][ROW-1:0]                         g_rows_i,
    input  wire  [CHANNELS*DOT_BITS-1:0]                weights_i,
    output logic [LANES-1:0][DOT_BITS-1:0]              a_o,
    output logic [1:0][CHANNELS-1:0][DOT_BITS-1:0]      b_o
);
  logic [LANES-1:0] left_ok, right_ok;
  logic [ROW-1:0]   left_mask, right_mask;
  always_comb begin
    left_ok  = ~step_i.segment_start;
    right_ok = ~(step_i.segment_start >> 1);
    right_ok[LANES-1] = 1'b0;
    for (int unsigned p = 0; p < LANES; p++) begin
      left_mask[p*CHANNELS+:CHANNELS]  = {CHANNELS{left_ok[p]}};
      right_mask[p*CHANNELS+:CHANNELS] = {CHANNELS{right_ok[p]}};
    end
  end

  function automatic logic [ROW-1:0] shifted(input logic [ROW-1:0] row, input logic [1:0] dx);
    unique case (dx)
      2'd0: shifted = (row << CHANNELS) & left_mask;
      2'd2: shifted = (row >> CHANNELS) & right_mask;
      default: shifted = row;
    endcase
  endfunction

  logic [LANES-1:0][DOT_BITS-1:0]         a_d, a_q;
  logic [1:0][CHANNELS-1:0][DOT_BITS-1:0] b_d, b_q;
  logic [ROW-1:0]                         row;

  always_comb begin
    a_d = '0;
    b_d = '0;
    row = '0;
    if (step_i.wgrad) begin
      for (int unsigned bank = 0; bank < 8; bank++) begin
        row = shifted(step_i.ones ? '1 : a_rows_i[bank], step_i.dx);
        if (!step_i.bank_valid[bank]) row = '0;
        for (int unsigned p = 0; p < LANES; p++)
          for (int unsigned c = 0; c < CHANNELS; c++)
            a_d[(bank / HALF_ROWS) * CHANNELS + c][(bank % HALF_ROWS) * LANES + p] = row[p*CHANNELS+c];
        row = g_rows_i[3'(bank + 1 - 32'(step_i.dy))];
        for (int unsigned p = 0; p < LANES; p++)
          for (int unsigned c = 0; c < CHANNELS; c++)
            b_d[bank / HALF_ROWS][c][(bank % HALF_ROWS) * LANES + p] = row[p*CHANNELS+c];
      end
    end else begin
      for (int unsigned ky = 0; ky < 3; ky++)
        if (step_i.row_valid[ky])
          for (int unsigned kx = 0; kx < 3; kx++) begin
            row = shifted(a_rows_i[3'(32'(step_i.row) + ky - 1)], 2'(kx));
            for (int unsigned p = 0; p < LANES; p++)
              a_d[p][(3*ky+kx)*CHANNELS+:CHANNELS] = row[p*CHANNELS+:CHANNELS];
          end
      b_d[0] = weights_i;
      b_d[1] = weights_i;
    end
    if (step_i.bubble) a_d = '0;
    if (step_i.zero_b) b_d = '0;
  end

  always_ff @(posedge clk_i)
    if (step_i.valid) begin
      a_q <= a_d;
      b_q <= b_d;
    end

  assign a_o = a_q;
  assign b_o = b_q;
endmodule

`default_nettype wire
