// SPDX-License-Identifier: Apache-2.0
// The pairs (i, j) of bit planes of a tile, by falling anti-diagonals i + j, one at a time and tile after tile.
//
// A diagonal's pairs are the planes i that face a plane j = diagonal - i.  The other operand's planes, in falling order, are
// a window that moves by one plane with every diagonal: no plane is looked up by its number.
`default_nettype none

module plane_pairs
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                 clk_i,
    // of the command; a tile can begin two cycles after its planes are known
    input  wire  [MAX_BITS-1:0] a_planes_i,
    input  wire  [MAX_BITS-1:0] b_planes_i,
    input  wire bits_t          a_bits_i,
    input  wire bits_t          b_bits_i,
    input  wire                 restart_i,     // a tile begins
    input  wire                 next_i,        // to the next pair
    input  wire                 ones_i,        // the next tile's first operand is a single plane of ones
    input  wire                 settled_i,     // ones_i has become right since the last tile; the present one does not end now
    output plane_pair_t         pair_o,
    output logic                last_o,        // a copy of pair_o.last, for many loads
    output logic                next_bubble_o  // the next pair is none
);
  typedef logic [2*MAX_BITS-2:0] window_t;  // bit i: plane diagonal - i of the second operand
  typedef struct packed {
    logic [MAX_BITS-1:0] pairs;     // still to take
    logic [MAX_BITS-1:0] left;      // the same but for the highest
    logic                single;    // one at most
    logic                none;
    diagonal_t           number;
    logic                lowest;    // diagonal 0
    logic                first;     // no pair of the tile has been taken
    logic                shift;     // no pair of this diagonal has been taken, but of the tile
  } diagonal_pairs_t;

  // by groups of four, so that it is no chain of LUTs
  localparam int unsigned QUADS = MAX_BITS / 4;
  if (MAX_BITS != 16) begin : gen_check
    $error("plane_pairs: MAX_BITS = %0d, must be 16: four groups of four", MAX_BITS);
  end
  function automatic logic several(input logic [3:0] bits);
    return (bits[0] && bits[1]) || (bits[2] && bits[3]) || (|bits[1:0] && |bits[3:2]);
  endfunction
  function automatic logic [QUADS-1:0] any(input logic [MAX_BITS-1:0] pairs);
    for (int unsigned g = 0; g < QUADS; g++) any[g] = |pairs[4*g+:4];
  endfunction
  // in reverse order the highest is the lowest, which a carry chain finds: it is faster than LUTs
  function automatic logic [MAX_BITS-1:0] reversed(input logic [MAX_BITS-1:0] bits);
    for (int unsigned i = 0; i < MAX_BITS; i++) reversed[i] = bits[MAX_BITS-1-i];
  endfunction
  function automatic logic [MAX_BITS-1:0] but_highest(input logic [MAX_BITS-1:0] pairs);
    automatic logic [MAX_BITS-1:0] backward = reversed(pairs);
    but_highest = reversed(backward & (backward - MAX_BITS'(1)));
  endfunction
  function automatic logic at_most_one(input logic [MAX_BITS-1:0] pairs);
    at_most_one = !several(any(pairs));
    for (int unsigned g = 0; g < QUADS; g++) if (several(pairs[4*g+:4])) at_most_one = 1'b0;
  endfunction
  function automatic logic [MAX_BITS-1:0] planes(input logic [MAX_BITS-1:0] data, input logic ones);
    return ones ? MAX_BITS'(1) : data;
  endfunction
  function automatic diagonal_pairs_t diagonal(input logic [MAX_BITS-1:0] pairs, input diagonal_t number, input logic first);
    diagonal.pairs  = pairs;
    diagonal.left   = but_highest(pairs);
    diagonal.single = at_most_one(pairs);
    diagonal.none   = pairs == '0;
    diagonal.number = number;
    diagonal.lowest = number == '0;
    diagonal.first  = first;
    diagonal.shift  = !first;
  endfunction

  // ---- a tile's first three diagonals and the window of the fourth: of data, of ones ------------------------------------
  logic [MAX_BITS-1:0] falling;
  assign falling = reversed(b_planes_i);
  diagonal_t       [1:0] beyond_q, top_q;  // diagonals above the first one; the first one
  window_t         [1:0] window_q, fourth_q;
  logic [1:0][MAX_BITS-1:0] third_q;
  diagonal_pairs_t [1:0] first_q, second_q;
  logic [MAX_BITS-1:0]   data_q;
  always_ff @(posedge clk_i) begin
    data_q      <= a_planes_i;
    top_q[0]    <= diagonal_t'(a_bits_i) + diagonal_t'(b_bits_i) - diagonal_t'(2);
    top_q[1]    <= diagonal_t'(b_bits_i) - diagonal_t'(1);
    beyond_q[0] <= diagonal_t'(2 * MAX_BITS) - diagonal_t'(a_bits_i) - diagonal_t'(b_bits_i);
    beyond_q[1] <= diagonal_t'(2 * MAX_BITS - 1) - diagonal_t'(b_bits_i);
    for (int unsigned k = 0; k < 2; k++) begin
      window_q[k] <= {falling, {MAX_BITS - 1{1'b0}}} >> beyond_q[k];
      first_q[k]  <= diagonal(planes(data_q, k != 0) & window_q[k][MAX_BITS-1:0], top_q[k], 1'b1);
      second_q[k] <= diagonal(planes(data_q, k != 0) & window_q[k][MAX_BITS:1], top_q[k] - diagonal_t'(1), 1'b0);
      third_q[k]  <= planes(data_q, k != 0) & window_q[k][MAX_BITS+1:2];
      fourth_q[k] <= window_q[k] >> 3;
    end
  end

  // ---- diagonal after diagonal: the present one, the next one, pairs of the one after it --------------------------
  diagonal_pairs_t present_q, next_q, next;
  window_t         below_q;   // window of the diagonal below that
  logic [MAX_BITS-1:0] facing_q;  // pairs of the diagonal after the next one
  logic            ones_q;
  logic            tile_next_q;  // the next diagonal is a tile's first, which is known late
  logic            refresh, to_tile;
  assign refresh = restart_i || (settled_i && present_q.first);
  assign to_tile = refresh || tile_next_q;
  assign next    = to_tile ? first_q[ones_i] : next_q;
  always_ff @(posedge clk_i)
    if (refresh || next_i) begin
      if (refresh || present_q.single) begin
        present_q   <= next;
        tile_next_q <= next.lowest;
        if (to_tile) begin
          next_q   <= second_q[ones_i];
          facing_q <= third_q[ones_i];
          below_q  <= fourth_q[ones_i];
          ones_q   <= ones_i;
        end else begin
          next_q   <= diagonal(facing_q, next_q.number - diagonal_t'(1), 1'b0);
          facing_q <= planes(data_q, ones_q) & below_q[MAX_BITS-1:0];
          below_q  <= below_q >> 1;
        end
      end else begin
        present_q.pairs  <= present_q.left;
        present_q.left   <= but_highest(present_q.left);
        present_q.single <= at_most_one(present_q.left);
        present_q.first  <= 1'b0;
        present_q.shift  <= 1'b0;
      end
    end

  // ---- the pair ---------------------------------------------------------------------------------------------------------
  logic [3:0]  highest;
  plane_pair_t pair_q;
  (* keep = "true" *) logic last_q;
  always_comb begin
    highest = '0;
    for (int unsigned i = 0; i < MAX_BITS; i++) if (present_q.pairs[i]) highest = 4'(i);
  end
  always_ff @(posedge clk_i)
    if (next_i) begin
      pair_q.i        <= highest;
      pair_q.diagonal <= present_q.number;
      pair_q.bubble   <= present_q.none;
      pair_q.first    <= present_q.first;
      pair_q.shift    <= present_q.shift;
      pair_q.last     <= present_q.single && present_q.lowest;
      last_q          <= present_q.single && present_q.lowest;
    end
  assign pair_o        = pair_q;
  assign last_o        = last_q;
  assign next_bubble_o = present_q.none;

`ifndef SYNTHESIS
  // a tile that has not begun is not taken while it may change
  a_settled: assert property (@(posedge clk_i) settled_i && present_q.first |-> !next_i);
`endif
endmodule

`default_nettype wire
