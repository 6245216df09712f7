// SPDX-License-Identifier: Apache-2.0
// Random index of every beat of a LOAD that quantizes: four channels of a pixel, then the pixel's other channels, the
// pixels of a row, the groups, the rows.
`default_nettype none

module load_index
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire            clk_i,
    input  wire            start_i,   // the payload begins after this cycle
    input  wire header_t   header_i,
    input  wire            beat_i,    // four channels are taken in this cycle
    output index_t         index_o    // random index of their first
);
  localparam int unsigned QUADS = CHANNELS / 4;  // beats to a pixel

  // position, and the index at which the current pixel, segment, group and row began
  logic [1:0]               quad_q, quad_d;
  logic [$clog2(LANES):0]   pixel_q, pixel_d;
  group_t                   group_q, group_d;
  index_t index_q, index_d, pixel_index_q, pixel_index_d, segment_index_q, segment_index_d;
  index_t group_index_q, group_index_d, row_index_q, row_index_d;

  logic quad_last, pixel_last, group_last;
  assign quad_last  = quad_q == 2'(QUADS - 1);
  assign pixel_last = pixel_q == ($bits(pixel_q))'(LANES - 1);
  assign group_last = group_q == group_t'(header_i.groups) - group_t'(1);

  // the index after this beat; the innermost count that goes on decides
  index_t next_pixel, next_segment, next_group, next_row;
  assign next_pixel   = pixel_index_q + header_i.pixel_stride;
  assign next_segment = segment_index_q + header_i.image_stride;
  assign next_group   = group_index_q + header_i.channel_stride * CHANNELS;
  assign next_row     = row_index_q + header_i.row_stride;
  always_comb begin
    quad_d          = quad_q + 2'd1;
    pixel_d         = pixel_q;
    group_d         = group_q;
    index_d         = index_q + (header_i.channel_stride << 2);
    pixel_index_d   = pixel_index_q;
    segment_index_d = segment_index_q;
    group_index_d   = group_index_q;
    row_index_d     = row_index_q;
    if (quad_last) begin
      quad_d        = '0;
      pixel_d       = pixel_q + 1'b1;
      pixel_index_d = next_pixel;
      index_d       = next_pixel;
      if (pixel_last) begin
        pixel_d = '0;
        group_d = group_last ? '0 : group_q + group_t'(1);
        if (group_last) row_index_d = next_row;
        group_index_d   = group_last ? next_row : next_group;
        segment_index_d = group_index_d;
        pixel_index_d   = group_index_d;
        index_d         = group_index_d;
      end else if (header_i.segment_start[5'(pixel_d)]) begin
        segment_index_d = next_segment;
        pixel_index_d   = next_segment;
        index_d         = next_segment;
      end
    end
  end

  always_ff @(posedge clk_i)
    if (start_i) begin
      {quad_q, pixel_q, group_q} <= '0;
      {index_q, pixel_index_q, segment_index_q, group_index_q, row_index_q} <= {5{header_i.index}};
    end else if (beat_i) begin
      {quad_q, pixel_q, group_q} <= {quad_d, pixel_d, group_d};
      index_q         <= index_d;
      pixel_index_q   <= pixel_index_d;
      segment_index_q <= segment_index_d;
      group_index_q   <= group_index_d;
      row_index_q     <= row_index_d;
    end
  assign index_o = index_q;
endmodule

`default_nettype wire
