// SPDX-License-Identifier: Apache-2.0
// Walks the tiles of a command: output groups, rows and images of a convolution; taps, groups and output groups of a weight
// gradient.  Where the next tile lies takes three cycles to tell: two tiles never end within less (sequencer, pending_q).
`default_nettype none

module tile_walk
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire               clk_i,
    input  wire               start_i,      // to the first tile of the command
    input  wire header_t      header_i,
    input  wire address_t     a_stride_i,   // addresses of a block of rows of A
    input  wire address_t     b_tile_i,     // addresses of the second operand from one tile to the next
    input  wire               next_i,       // to the next tile
    output tile_place_t       at_o,
    output tile_place_t       next_o,       // where the next tile lies
    output logic              last_o        // this tile is the command's last
);
  header_t h;
  assign h = header_i;
  (* keep = "true" *) logic conv_q;  // else a weight gradient
  logic stride_q;
  always_ff @(posedge clk_i) begin
    conv_q   <= h.opcode == OP_CONV;
    stride_q <= h.opcode == OP_CONV && h.flags[FLAG_STRIDE_2];
  end

  // ---- constants of the command -----------------------------------------------------------------------------------------
  group_t     out_groups_end_q, groups_end_q;
  image_t     images_end_q;
  row_t       rows_end_q;
  logic [3:0] first_tap, first_tap_q;
  index_t     tile_stride_q;
  address_t   a_tile_q, entry_tile_q;
  always_comb begin
    first_tap = '0;
    for (int t = 8; t >= 0; t--) if (h.taps[t]) first_tap = 4'(t);
  end
  always_ff @(posedge clk_i) begin
    out_groups_end_q <= group_t'(h.out_groups) - group_t'(1);
    groups_end_q     <= group_t'(h.groups) - group_t'(!h.flags[FLAG_ONES]);
    images_end_q     <= image_t'(h.images) - image_t'(1);
    rows_end_q       <= row_t'(h.rows) - row_t'(1);
    first_tap_q      <= first_tap;
    tile_stride_q    <= h.channel_stride * CHANNELS;
    a_tile_q         <= conv_q ? a_stride_i : address_t'(h.a_bits);
    entry_tile_q     <= conv_q ? address_t'(CHANNELS) : address_t'(CHANNELS + 1);
  end

  // ---- what ends with this tile -----------------------------------------------------------------------------------------
  tile_place_t at_q, further_q, next_q, next_d;  // further: every part of the place one step on
  logic        row_end_q, last_row_q, last_image_q, last_group_q, block_end_q, last_tap_q, last_q;
  logic [3:0]  next_tap;
  logic [8:0]  taps_left;  // of the weight gradient, by rising number
  always_comb begin
    taps_left = h.taps[8:0] & (9'h1FE << at_q.tap);
    next_tap  = '0;
    for (int t = 8; t >= 0; t--) if (taps_left[t]) next_tap = 4'(t);
  end
  always_ff @(posedge clk_i) begin
    further_q            <= at_q;
    further_q.image      <= at_q.image + image_t'(1);
    further_q.row        <= at_q.row + row_t'(1);
    further_q.group      <= at_q.group + group_t'(1);
    further_q.out_group  <= at_q.out_group + group_t'(1);
    further_q.tap        <= next_tap;
    further_q.ones       <= at_q.group + group_t'(1) == group_t'(h.groups);
    further_q.a_outer    <= at_q.a_outer + a_tile_q;
    further_q.b_outer    <= at_q.b_outer + b_tile_i;
    further_q.entry      <= at_q.entry + entry_tile_q;
    further_q.row_index  <= at_q.row_index + h.row_stride;
    further_q.tile_index <= at_q.tile_index + tile_stride_q;
    row_end_q    <= at_q.out_group == out_groups_end_q;
    last_row_q   <= at_q.row == rows_end_q;
    last_image_q <= at_q.image == images_end_q;
    last_group_q <= at_q.group == groups_end_q;
    block_end_q  <= stride_q ? at_q.row[0] : at_q.row[2:0] == 3'd7;
    last_tap_q   <= taps_left == '0;
    last_q       <= row_end_q && (conv_q ? last_row_q && last_image_q : last_tap_q && last_group_q);
  end

  // row and column of a tap, looked up: dividing by three takes a chain
  function automatic logic [3:0] place_of(input logic [3:0] tap);
    case (tap)
      4'd0: return {2'd0, 2'd0};
      4'd1: return {2'd0, 2'd1};
      4'd2: return {2'd0, 2'd2};
      4'd3: return {2'd1, 2'd0};
      4'd4: return {2'd1, 2'd1};
      4'd5: return {2'd1, 2'd2};
      4'd6: return {2'd2, 2'd0};
      4'd7: return {2'd2, 2'd1};
      default: return {2'd2, 2'd2};
    endcase
  endfunction

  // ---- the next tile ------------------------------------------------------------------------------------------------------
  address_t first_entry;
  assign first_entry = conv_q ? address_t'(h.base_epilogue) : address_t'(h.base_accumulator);
  always_comb begin
    next_d = at_q;
    if (conv_q) begin
      next_d.out_group  = further_q.out_group;
      next_d.b_outer    = further_q.b_outer;
      next_d.entry      = further_q.entry;
      next_d.tile_index = further_q.tile_index;
      if (row_end_q) begin
        next_d.out_group  = '0;
        next_d.b_outer    = address_t'(h.base_b);
        next_d.entry      = first_entry;
        next_d.row_index  = further_q.row_index;
        next_d.tile_index = further_q.row_index;
        next_d.row        = last_row_q ? '0 : further_q.row;
        if (last_row_q) next_d.image = further_q.image;
        if (last_row_q || block_end_q) next_d.a_outer = further_q.a_outer;
      end
    end else begin
      next_d.entry = further_q.entry;
      next_d.tap   = last_tap_q ? first_tap_q : further_q.tap;
      if (last_tap_q) begin
        next_d.group   = last_group_q ? '0 : further_q.group;
        next_d.ones    = !last_group_q && further_q.ones;
        next_d.a_outer = last_group_q ? address_t'(h.base_a) : further_q.a_outer;
        if (last_group_q) begin
          next_d.out_group = further_q.out_group;
          next_d.b_outer   = further_q.b_outer;
        end
      end
    end
  end
  always_ff @(posedge clk_i) begin
    next_q <= next_d;
    {next_q.dy, next_q.dx} <= place_of(next_d.tap);
    if (next_i) at_q <= next_q;
    if (start_i) begin
      at_q.image      <= '0;
      at_q.row        <= '0;
      at_q.group      <= '0;
      at_q.out_group  <= '0;
      at_q.tap        <= conv_q ? 4'd4 : first_tap_q;
      {at_q.dy, at_q.dx} <= conv_q ? {2'd1, 2'd1} : place_of(first_tap_q);
      at_q.ones       <= 1'b0;
      at_q.a_outer    <= address_t'(h.base_a);
      at_q.b_outer    <= address_t'(h.base_b);
      at_q.entry      <= first_entry;
      at_q.row_index  <= h.index;
      at_q.tile_index <= h.index;
    end
  end
  assign at_o   = at_q;
  assign next_o = next_q;
  assign last_o = last_q;

`ifndef SYNTHESIS
  // three cycles have passed since the last tile ended
  a_settled: assert property (@(posedge clk_i) next_i |-> !$past(next_i, 1) && !$past(next_i, 2) && !$past(next_i, 3));
`endif
endmodule

`default_nettype wire
