// SPDX-License-Identifier: Apache-2.0
// Place of every beat of a payload that is stored as it comes: slices of a line, lines of a row, rows, images for a
// tensor; beats of an entry, entries for weights and epilogue parameters.
`default_nettype none

module packed_place
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire            clk_i,
    input  wire            start_i,          // the payload begins after this cycle
    input  wire header_t   header_i,
    input  wire kind_t     kind_i,
    input  wire line_t     group_planes_i,   // planes of one block of rows
    input  wire            beat_i,
    output place_t         place_o,          // of this beat in a tensor buffer; its slice counts for entries too
    output address_t       entry_o           // weight or epilogue entry of this beat
);
  localparam int unsigned ROW_BEATS = ROW_WORDS / 2;
  localparam int unsigned WEIGHT_BEATS = WEIGHT_WORDS / 2, ENTRY_BEATS = ENTRY_WORDS / 2;

  address_t a_block_q, a_block_d, g_block_q, g_block_d;  // first address of the block of eight rows
  line_t    line_q, line_d;                              // group * bits + plane within a row
  row_t     row_q, row_d;
  slice_t   slice_q, slice_d;
  address_t entry_q, entry_d;
  logic     slice_last, line_last, row_last;
  // the last ones, known long before the payload begins
  slice_t   last_slice_q;
  line_t    last_line_q;
  row_t     last_row_q;
  logic     entries_q;
  always_ff @(posedge clk_i) begin
    last_slice_q <= slice_t'((kind_i.to_w ? WEIGHT_BEATS : kind_i.to_e ? ENTRY_BEATS : ROW_BEATS) - 1);
    last_line_q  <= group_planes_i - line_t'(1);
    last_row_q   <= row_t'(header_i.rows) - row_t'(1);
    entries_q    <= kind_i.to_e || kind_i.to_w;
  end
  assign slice_last = slice_q == last_slice_q;
  assign line_last  = line_q == last_line_q;
  assign row_last   = row_q == last_row_q;
  always_comb begin
    a_block_d = a_block_q;
    g_block_d = g_block_q;
    line_d    = line_q;
    row_d     = row_q;
    slice_d   = slice_last ? '0 : slice_q + slice_t'(1);
    entry_d   = entry_q + address_t'(entries_q && slice_last);
    if (kind_i.tensor && slice_last) begin
      line_d = line_last ? '0 : line_q + line_t'(1);
      if (line_last) begin
        row_d = row_last ? '0 : row_q + row_t'(1);
        if (&bank_t'(row_q) || row_last) begin
          a_block_d = a_block_q + address_t'(group_planes_i);
          g_block_d = g_block_q + address_t'(group_planes_i);
        end
      end
    end
  end
  always_ff @(posedge clk_i)
    if (start_i) begin
      {line_q, row_q, slice_q} <= '0;
      a_block_q <= address_t'(header_i.base_a);
      g_block_q <= address_t'(header_i.base_b);
      entry_q   <= kind_i.to_e ? address_t'(header_i.base_epilogue) : address_t'(header_i.base_b);
    end else if (beat_i) begin
      {line_q, row_q, slice_q} <= {line_d, row_d, slice_d};
      a_block_q <= a_block_d;
      g_block_q <= g_block_d;
      entry_q   <= entry_d;
    end
  assign place_o.a_address = a_block_q + address_t'(line_q);
  assign place_o.g_address = g_block_q + address_t'(line_q);
  assign place_o.bank      = bank_t'(row_q);
  assign place_o.slice     = slice_q;
  assign entry_o           = entry_q;
endmodule

`default_nettype wire
