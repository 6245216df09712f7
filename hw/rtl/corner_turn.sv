// SPDX-License-Identifier: Apache-2.0
// Turns codes into planes: 128 codes in, four a cycle, then as many slices of 128 bits out as a code has bits.
// Two buffers: one is filled while the other is sent.
`default_nettype none

module corner_turn
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                clk_i,
    input  wire                start_i,          // the first slice comes next; forget the last packet's
    input  wire header_t       header_i,
    input  wire line_t         group_planes_i,   // planes of one block of rows
    input  wire                valid_i,
    output logic               ready_o,          // there is room for codes; the quantizers do not wait
    input  wire [3:0][15:0]    codes_i,
    output logic               write_o,
    output place_t             place_o,
    output beat_t              data_o,
    output logic               busy_o
);
  localparam int unsigned SLICES = ROW_WORDS / 2;
  localparam int unsigned QUADS = BEAT_BITS / 4;  // beats of codes to a slice
  localparam int unsigned QW = $clog2(QUADS);

  // ---- two buffers ----------------------------------------------------------------------------------------------------
  logic [1:0][QUADS-1:0][3:0][15:0] codes_q;
  logic          fill_q, fill_d, send_q, send_d;  // buffer being filled, being sent
  logic [1:0]    full_q, full_d;
  logic [QW-1:0] count_q, count_d;
  logic [3:0]    plane_q, plane_d;
  logic          fill_last, send_last;
  assign fill_last = valid_i && count_q == QW'(QUADS - 1);
  assign write_o   = full_q[send_q];
  assign send_last = write_o && 8'(plane_q) == header_i.a_bits - 8'd1;
  assign busy_o    = full_q != 0;
  assign ready_o   = !full_q[fill_q];
  always_comb begin
    count_d = count_q + QW'(valid_i);
    fill_d  = fill_q ^ fill_last;
    send_d  = send_q ^ send_last;
    full_d  = full_q;
    plane_d = send_last ? '0 : plane_q + 4'(write_o);
    if (fill_last) full_d[fill_q] = 1'b1;
    if (send_last) full_d[send_q] = 1'b0;
  end
  always_ff @(posedge clk_i) begin
    if (valid_i) codes_q[fill_q][count_q] <= codes_i;
    if (start_i) {fill_q, send_q, full_q, count_q, plane_q} <= '0;
    else {fill_q, send_q, full_q, count_q, plane_q} <= {fill_d, send_d, full_d, count_d, plane_d};
  end
  always_comb for (int unsigned e = 0; e < BEAT_BITS; e++) data_o[e] = codes_q[send_q][e/4][e%4][plane_q];

  // ---- place of the slice being sent: slices of a group, groups of a row, rows, blocks of eight rows -------------------
  address_t a_block_q, a_block_d, g_block_q, g_block_d;  // first address of the block
  line_t    line_q, line_d;                              // first plane of the group
  row_t     row_q, row_d;
  slice_t   slice_q, slice_d;
  group_t   group_q, group_d;
  logic     slice_last, group_last;
  assign slice_last = slice_q == slice_t'(SLICES - 1);
  assign group_last = group_q == group_t'(header_i.groups) - group_t'(1);
  always_comb begin
    a_block_d = a_block_q;
    g_block_d = g_block_q;
    line_d    = line_q;
    row_d     = row_q;
    group_d   = group_q;
    slice_d   = slice_last ? '0 : slice_q + slice_t'(1);
    if (slice_last) begin
      group_d = group_last ? '0 : group_q + group_t'(1);
      line_d  = group_last ? '0 : line_q + line_t'(header_i.a_bits);
      if (group_last) begin
        row_d = row_q + row_t'(1);
        if (&bank_t'(row_q)) begin
          a_block_d = a_block_q + address_t'(group_planes_i);
          g_block_d = g_block_q + address_t'(group_planes_i);
        end
      end
    end
  end
  always_ff @(posedge clk_i)
    if (start_i) begin
      {line_q, row_q, slice_q, group_q} <= '0;
      a_block_q <= address_t'(header_i.base_a);
      g_block_q <= address_t'(header_i.base_b);
    end else if (send_last) begin
      {line_q, row_q, slice_q, group_q} <= {line_d, row_d, slice_d, group_d};
      a_block_q <= a_block_d;
      g_block_q <= g_block_d;
    end
  assign place_o.a_address = a_block_q + address_t'(line_q) + address_t'(plane_q);
  assign place_o.g_address = g_block_q + address_t'(line_q) + address_t'(plane_q);
  assign place_o.bank      = bank_t'(row_q);
  assign place_o.slice     = slice_q;
endmodule

`default_nettype wire
