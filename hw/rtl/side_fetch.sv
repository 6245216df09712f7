// SPDX-License-Identifier: Apache-2.0
// Operands of the epilogue: reads the planes of SIDE and ADDED of every tile of a CONV from buffer G, one per cycle, while
// the array computes the tile, and keeps them until the drain takes the tile.
//
// Planes travel as long as steps of the array do: those of a tile arrive after the drain has taken the tile before, and
// before it takes their own.
`default_nettype none

module side_fetch
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned GW = $clog2(DEPTH_G)
) (
    input  wire                            clk_i,
    input  wire                            rst_i,
    // sequencer
    input  wire header_t                   header_i,    // of the command; stays while it runs
    input  wire                            start_i,     // the command is set up
    input  wire                            active_i,    // it computes tiles with an epilogue
    input  wire                            next_i,      // the last step of a tile is decided in this cycle
    output logic                           begin_o,     // the first cycle of a tile
    output logic                           done_o,      // nothing is left to be read of this tile PERMIT_CYCLES after this cycle
    // buffer G: in step with the sequencer's addresses; data in step with the array's operands
    output logic                           read_o,
    output logic [GW-1:0]                  address_o,
    input  wire  [ROW_BANKS-1:0][ROW_BITS-1:0] rows_i,
    output operands_t                      operands_o
);
  localparam int unsigned AT = STEP_CYCLES + ARRAY_CYCLES - 1;   // stage in which a plane is stored
  typedef logic [4:0] count_t;                                   // of a tile's planes
  typedef logic [3:0] plane_t;
  if (ARRAY_CYCLES < 3) begin : gen_check
    $error("side_fetch: ARRAY_CYCLES = %0d, must be 3 or more", ARRAY_CYCLES);
  end
  if (MAX_SIDE_BITS != 8) begin : gen_check_bits
    $error("side_fetch: MAX_SIDE_BITS = %0d, must be 8", MAX_SIDE_BITS);
  end

  // ---- walk: out_groups of a row, rows of a block, blocks ------------------------------------------------------------------
  header_t  h;
  count_t   side_planes_q, planes_q, count_q;
  logic     begun_q;
  row_t     row_q;
  group_t   group_q;
  address_t side_q, side_row_q, added_q, added_row_q, side_after, added_after;
  logic     reading, of_side;
  // What ends with this tile, told in the cycle after it has begun: next_i is late.
  logic     row_end, last_row, block_end, row_end_q, last_row_q, block_end_q, row_again_q;
  assign h           = header_i;
  assign reading     = active_i && count_q != planes_q;
  assign of_side     = count_q < side_planes_q;
  assign done_o      = !active_i || count_q + count_t'(1 + PERMIT_CYCLES) >= planes_q;
  assign begin_o     = active_i && !begun_q;
  assign row_end     = group_q == group_t'(h.out_groups) - group_t'(1);
  assign last_row    = row_q == row_t'(h.rows) - row_t'(1);
  assign block_end   = last_row || &bank_t'(row_q);
  assign side_after  = side_q + address_t'(reading && of_side);
  assign added_after = added_q + address_t'(reading && !of_side);
  always_ff @(posedge clk_i) begin
    count_q <= count_q + count_t'(reading);
    begun_q <= active_i;
    side_q  <= side_after;
    added_q <= added_after;
    row_end_q   <= row_end;
    last_row_q  <= last_row;
    // the rows of a block lie side by side in the banks, at the same addresses
    block_end_q <= row_end && block_end;
    row_again_q <= row_end && !block_end;
    if (next_i) begin
      count_q <= '0;
      begun_q <= 1'b0;
      group_q <= row_end_q ? '0 : group_q + group_t'(1);
      if (row_end_q) row_q <= last_row_q ? '0 : row_q + row_t'(1);
      if (block_end_q) begin
        side_row_q  <= side_after;
        added_row_q <= added_after;
      end
      if (row_again_q) begin
        side_q  <= side_row_q;
        added_q <= added_row_q;
      end
    end
    if (start_i) begin
      side_planes_q <= count_t'(h.side_bits) + count_t'(h.flags[FLAG_MASKED]);
      planes_q      <= count_t'(h.side_bits) + count_t'(h.flags[FLAG_MASKED]) + count_t'(h.added_bits);
      {side_q, side_row_q}   <= {2{address_t'(h.base_side)}};
      {added_q, added_row_q} <= {2{address_t'(h.base_added)}};
      {count_q, begun_q, row_q, group_q} <= '0;
    end
    if (rst_i) begun_q <= 1'b0;
  end

  // ---- what a plane is, on its way -------------------------------------------------------------------------------------------
  typedef struct packed {
    logic   begins;   // a tile: everything that is not written is cleared
    logic   side;     // a plane of SIDE's elements
    logic   mask;
    logic   added;
    plane_t plane;    // of the element
    logic   to_top;  // planes above are like it
    bank_t  bank;
  } tag_t;
  tag_t        tag_d;
  tag_t [AT:1] tag_q;
  logic [GW-1:0] address_q;
  logic          read_q;
  always_comb begin
    tag_d.begins  = begin_o;
    tag_d.mask    = reading && of_side && count_q == count_t'(h.side_bits);
    tag_d.side    = reading && of_side && !tag_d.mask;
    tag_d.added   = reading && !of_side;
    tag_d.plane   = plane_t'(of_side ? count_q : count_q - side_planes_q);
    tag_d.to_top = tag_d.added || h.flags[FLAG_SIDE_SIGNED];
    tag_d.bank    = bank_t'(row_q);
  end
  always_ff @(posedge clk_i) begin
    tag_q     <= {tag_q[AT-1:1], tag_d};
    read_q    <= reading;
    address_q <= GW'(of_side ? side_q : added_q);
    if (rst_i) read_q <= 1'b0;
  end
  assign read_o    = read_q;
  assign address_o = address_q;

  // ---- planes ------------------------------------------------------------------------------------------------------------------
  (* shreg_extract = "no" *) logic [AT:STEP_CYCLES+1][ROW_BITS-1:0] data_q;
  always_ff @(posedge clk_i) begin
    data_q[STEP_CYCLES+1] <= rows_i[tag_q[STEP_CYCLES].bank];
    for (int unsigned s = STEP_CYCLES + 2; s <= AT; s++) data_q[s] <= data_q[s-1];
  end
  // which registers take the plane, and which are cleared, a stage ahead
  tag_t                     tag;
  logic [MAX_SIDE_BITS-1:0] side_write_q, side_clear_q, added_write_q, added_clear_q;
  logic                     mask_write_q, mask_clear_q;
  assign tag = tag_q[AT-1];
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < MAX_SIDE_BITS; b++) begin
      automatic logic here = tag.plane == plane_t'(b) || (tag.to_top && tag.plane < plane_t'(b));
      side_write_q[b]  <= tag.side && here;
      side_clear_q[b]  <= tag.begins && !(tag.side && here);
      added_write_q[b] <= tag.added && here;
      added_clear_q[b] <= tag.begins && !(tag.added && here);
    end
    mask_write_q <= tag.mask;
    mask_clear_q <= tag.begins && !tag.mask;
  end
  operands_t operands_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < MAX_SIDE_BITS; b++) begin
      if (side_write_q[b]) operands_q.side[b] <= data_q[AT];
      if (added_write_q[b]) operands_q.added[b] <= data_q[AT];
      if (side_clear_q[b]) operands_q.side[b] <= '0;
      if (added_clear_q[b]) operands_q.added[b] <= '0;
    end
    if (mask_write_q) operands_q.mask <= data_q[AT];
    if (mask_clear_q) operands_q.mask <= '1;
  end
  assign operands_o = operands_q;

`ifndef SYNTHESIS
  // what ends with a tile has been told when it ends
  a_told: assert property (@(posedge clk_i) disable iff (rst_i) next_i |-> row_end_q == row_end && last_row_q == last_row
                                                          && block_end_q == (row_end && block_end) && row_again_q == (row_end && !block_end));
  // a tile ends only when all its planes have been asked for
  a_done: assert property (@(posedge clk_i) disable iff (rst_i) next_i |-> count_q + count_t'(1) >= planes_q);
  // planes stay within the ranges that the packet was checked for
  a_range: assert property (@(posedge clk_i) disable iff (rst_i) reading |-> 32'(of_side ? side_q : added_q) < DEPTH_G);
`endif
endmodule

`default_nettype wire
