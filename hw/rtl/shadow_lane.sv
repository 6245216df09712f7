// SPDX-License-Identifier: Apache-2.0
// One pixel of a finished tile: a shadow copy of its values in all output channels, and the registers of the channel that
// is taken.  Groups of four channels choose each for itself; those that are not meant are cleared, so that one gate of
// few inputs joins them.  What loads the registers is kept once per pixel: one register cannot reach all of the device.
`default_nettype none

module shadow_lane
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned QUADS = CHANNELS / 4,  // groups of channels; one more is the operand sum
    localparam int unsigned OPERAND_BITS = $bits(operand_t)
) (
    input  wire                                clk_i,
    input  wire                                capture_i,   // a cycle ahead: the tile's values are here
    input  wire  [CHANNELS-1:0][ACC_BITS-1:0]  acc_i,
    input  wire  [ACC_BITS-1:0]                sum_i,
    input  wire  [OPERAND_BITS-1:0][CHANNELS-1:0] operand_i,  // plane by plane of operand_t
    input  wire                                take_i,      // a cycle ahead: a channel is taken
    input  wire  [QUADS:0]                     others_i,    // with take_i: groups in which it is not
    input  wire  [1:0]                         place_i,     // with take_i: its place in its group
    // from two cycles after take_i to the next
    output logic [ACC_BITS-1:0]                acc_o,
    output operand_t                           operand_o
);
  typedef struct packed {
    operand_t            operand;
    logic [ACC_BITS-1:0] acc;
  } value_t;
  if (CHANNELS % 4 != 0) begin : gen_check
    $error("shadow_lane: CHANNELS = %0d must be a multiple of 4", CHANNELS);
  end

  (* keep = "true" *) logic           capture_q, take_q;
  (* keep = "true" *) logic [QUADS:0] others_q;
  (* keep = "true" *) logic [1:0]     place_q;
  always_ff @(posedge clk_i) begin
    capture_q <= capture_i;
    take_q    <= take_i;
    others_q  <= others_i;
    place_q   <= place_i;
  end

  value_t [QUADS-1:0][3:0]  shadow_q;
  logic   [ACC_BITS-1:0]    shadow_sum_q;
  value_t [QUADS-1:0]       taken_q;
  logic   [ACC_BITS-1:0]    taken_sum_q;
  always_ff @(posedge clk_i) begin
    if (capture_q) begin
      for (int unsigned c = 0; c < CHANNELS; c++) begin
        automatic operand_t operand;
        // here, and not where the planes come from: simulation then turns them only when they are captured
        for (int unsigned b = 0; b < OPERAND_BITS; b++) operand[b] = operand_i[b][c];
        shadow_q[c/4][c%4] <= value_t'{operand: operand, acc: acc_i[c]};
      end
      shadow_sum_q <= sum_i;
    end
    for (int unsigned g = 0; g < QUADS; g++) begin
      if (others_q[g]) taken_q[g] <= '0;
      else if (take_q) taken_q[g] <= shadow_q[g][place_q];
    end
    if (others_q[QUADS]) taken_sum_q <= '0;
    else if (take_q) taken_sum_q <= shadow_sum_q;
  end
  always_comb begin
    acc_o     = taken_sum_q;
    operand_o = '0;
    for (int unsigned g = 0; g < QUADS; g++) begin
      acc_o     = acc_o | taken_q[g].acc;
      operand_o = operand_o | taken_q[g].operand;
    end
  end
endmodule

`default_nettype wire
