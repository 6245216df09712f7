// SPDX-License-Identifier: Apache-2.0
// Random numbers of stochastic rounding, 16 bits for every pixel.  A segment of a channel's row has one hash h; its pixel x
// has low(h) ^ factor * alpha^x * high(h) in GF(2^16), with alpha = 2: any two of them are independent.
//
//   tile begins -> hashes of its segments, channel after channel -> queue -> seed -> pixels of a channel's row
//
// Hashes are made while the array computes the tile, and wait for it in the queue.  A segment that begins at pixel f has the
// seed factor * alpha^-f * high(h): pixel p multiplies it by alpha^p, which is wiring and gates.
`default_nettype none

module rounding
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned WIDTH = EPILOGUE_LANES
) (
    input  wire                       clk_i,
    input  wire                       rst_i,      // drops all hashes
    // a tile begins that will need random numbers; tiles end in this order
    input  wire                       begin_i,
    input  wire random_t              random_i,
    output logic                      full_o,     // a tile waits for its hashes to be made: no other one may begin
    // the row of the next channel is here; the slice that leaves in this cycle, and whether it is the channel's last
    output logic                      ready_o,
    input  wire                       take_i,
    input  wire  [3:0]                slice_i,
    input  wire                       last_i,
    output logic [WIDTH-1:0][15:0]    random_o    // of the slice taken VALUE_CYCLES before
);
  localparam int unsigned PW = $clog2(LANES), SLOTS = 32, QW = $clog2(SLOTS);
  typedef logic [PW-1:0] pixel_t;

  // ---- the tiles whose hashes are to be made: segments of a channel, channels -----------------------------------------------
  random_t          tile_q, next_q, from;
  logic             open_q, next_open_q;   // a tile is under way, another one waits
  logic             room_q, issue, accept;
  pixel_t           start_q, start;        // first pixel of the segment; of the one behind it
  logic [LANES-1:0] rest_q, rest;          // segments of the channel behind it, by their first pixels
  logic             last_q, single_q;      // it is the channel's last; the only one
  channel_t         channel_q;
  logic             channel_last_q;
  index_t           channel_index_q, index_q;
  assign full_o    = next_open_q;
  assign issue     = open_q && room_q;
  assign accept    = !open_q || (room_q && last_q && channel_last_q);   // none is under way, or its last hash is issued
  assign from      = next_open_q ? next_q : random_i;
  assign rest      = rest_q & (rest_q - LANES'(1));
  always_comb begin
    start = '0;
    for (int unsigned p = LANES; p > 0; p--) if (rest_q[p-1]) start = pixel_t'(p - 1);
  end
  always_ff @(posedge clk_i) begin
    if (issue) begin
      start_q <= start;
      rest_q  <= rest;
      last_q  <= rest == 0;
      index_q <= index_q + tile_q.image_stride;
      if (last_q) begin
        start_q         <= '0;
        rest_q          <= tile_q.segment_start & ~LANES'(1);
        last_q          <= single_q;
        index_q         <= channel_index_q + tile_q.channel_stride;
        channel_index_q <= channel_index_q + tile_q.channel_stride;
        channel_q       <= channel_q + channel_t'(1);
        channel_last_q  <= channel_q == channel_t'(CHANNELS - 2);
      end
    end
    if (begin_i && !accept) begin
      next_q      <= random_i;
      next_open_q <= 1'b1;
    end
    if (accept) begin
      open_q          <= begin_i || next_open_q;
      next_open_q     <= 1'b0;
      tile_q          <= from;
      start_q         <= '0;
      rest_q          <= from.segment_start & ~LANES'(1);
      last_q          <= from.segment_start == LANES'(1);
      single_q        <= from.segment_start == LANES'(1);
      channel_q       <= '0;
      channel_last_q  <= 1'b0;
      channel_index_q <= from.index;
      index_q         <= from.index;
    end
    if (rst_i) {open_q, next_open_q} <= '0;
  end

  // ---- hashes: as many are under way as the queue has room for -----------------------------------------------------------
  typedef struct packed {
    logic   last;     // segment of the channel
    pixel_t start;    // its first pixel
  } segment_t;
  logic     [HASH_CYCLES:0] made_q;
  segment_t [HASH_CYCLES:0] segment_q;
  logic        [15:0]       factor_q[HASH_CYCLES-1];   // of the tile, less a power for each bit of the first pixel
  logic        [31:0]       counter_q;
  logic        [15:0]       low, product;
  logic        [QW:0]       claimed_q;   // slots of hashes in the queue or on their way
  logic                     pop, popped_q;
  if (LANES > 32 || HASH_CYCLES < PW + 3) begin : gen_check
    $error("rounding: LANES = %0d must be 32 or less, HASH_CYCLES = %0d more than %0d", LANES, HASH_CYCLES, PW + 2);
  end
  function automatic logic [15:0] over_alpha(input logic [15:0] value);
    return {1'b0, value[15:1]} ^ (value[0] ? 16'(GF_POLYNOMIAL >> 1) : 16'd0);
  endfunction
  always_ff @(posedge clk_i) begin
    made_q    <= {made_q[HASH_CYCLES-1:0], issue};
    segment_q <= {segment_q[HASH_CYCLES-1:0], segment_t'{last: last_q, start: start_q}};
    counter_q <= index_q ^ tile_q.key;
    factor_q[0] <= tile_q.factor;
    // a bit in a stage, the highest in two: its power is a wide sum
    for (int unsigned s = 1; s < HASH_CYCLES - 1; s++) begin
      automatic logic [15:0] power = factor_q[s-1];
      automatic pixel_t      first = segment_q[s-1].start;
      if (s < PW && first[(s-1)%PW]) for (int unsigned n = 0; n < 1 << (s - 1); n++) power = over_alpha(power);
      if ((s == PW || s == PW + 1) && first[PW-1]) for (int unsigned n = 0; n < 1 << (PW - 2); n++) power = over_alpha(power);
      factor_q[s] <= power;
    end
    room_q    <= claimed_q <= (QW + 1)'(SLOTS - 2);
    popped_q  <= pop;
    claimed_q <= claimed_q + (QW + 1)'(issue) - (QW + 1)'(popped_q);
    if (rst_i) begin
      made_q    <= '0;
      popped_q  <= 1'b0;
      claimed_q <= '0;
    end
  end
  row_hash i_hash (
      .clk_i, .counter_i(counter_q), .factor_i(factor_q[HASH_CYCLES-2]), .low_o(low), .product_o(product)
  );

  // ---- queue -------------------------------------------------------------------------------------------------------------
  typedef struct packed {
    segment_t    segment;
    logic [15:0] low;
    logic [15:0] product;
  } seed_t;
  (* ram_style = "distributed" *) logic [$bits(seed_t)-1:0] queue[SLOTS];
  logic [QW-1:0] head_q, tail_q;
  logic [QW:0]   count_q;
  logic          some_q, push;   // count_q is not zero
  seed_t         seed;
  assign push = made_q[HASH_CYCLES];
  assign seed = queue[head_q];
  always_ff @(posedge clk_i) begin
    if (push) begin
      queue[tail_q] <= seed_t'{segment: segment_q[HASH_CYCLES], low: low, product: product};
      tail_q        <= tail_q + QW'(1);
    end
    if (pop) head_q <= head_q + QW'(1);
    if (push != pop) count_q <= push ? count_q + (QW + 1)'(1) : count_q - (QW + 1)'(1);
    some_q <= push || (pop ? count_q > (QW + 1)'(1) : count_q != 0);
    if (rst_i) begin
      {head_q, tail_q, count_q} <= '0;
      some_q <= 1'b0;
    end
  end

  // ---- a seed goes to all pixels from its first on; those of later segments replace it -----------------------------------
  function automatic logic [15:0] times_alpha(input logic [15:0] value);
    return {value[14:0], 1'b0} ^ (value[15] ? 16'(GF_POLYNOMIAL) : 16'd0);
  endfunction
  seed_t                  seed_q;
  logic                   seed_here_q, row_q, load;   // a seed is here, a whole row
  logic [LANES-1:0][15:0] pixel_q;
  logic [LANES-1:0]       reached_q;                  // pixels of the seed's segment and behind it
  logic [3:0][15:0]       eighths_q;                  // its product times alpha to the 0, 8, 16, 24
  assign load    = seed_here_q && (!row_q || (take_i && last_i));
  assign pop     = some_q && (!seed_here_q || load);
  assign ready_o = row_q;
  always_ff @(posedge clk_i) begin
    seed_here_q <= (pop || (seed_here_q && !load)) && !rst_i;
    if (pop) begin
      automatic logic [15:0] power = seed.product;
      seed_q <= seed;
      for (int unsigned k = 0; k < 4; k++) begin
        eighths_q[k] <= power;
        for (int unsigned n = 0; n < 8; n++) power = times_alpha(power);
      end
      for (int unsigned p = 0; p < LANES; p++) reached_q[p] <= pixel_t'(p) >= seed.segment.start;
    end
    row_q <= ((load && seed_q.segment.last) || (row_q && !(take_i && last_i))) && !rst_i;
  end
  logic [LANES-1:0][15:0] powers;
  for (genvar p = 0; p < LANES; p++) begin : gen_power
    if (p % 8 == 0) begin : gen_eighth
      assign powers[p] = eighths_q[p/8];
    end else begin : gen_next
      assign powers[p] = times_alpha(powers[p-1]);
    end
  end
  always_ff @(posedge clk_i)
    for (int unsigned p = 0; p < LANES; p++) if (load && reached_q[p]) pixel_q[p] <= seed_q.low ^ powers[p];

  // ---- pixels of a slice, when the codes are made ----------------------------------------------------------------------------
  for (genvar p = 0; p < WIDTH; p++) begin : gen_random
    logic [15:0] random_q[1:VALUE_CYCLES];
    always_ff @(posedge clk_i) begin
      random_q[1] <= pixel_q[32'(slice_i)*WIDTH+p];
      for (int unsigned s = 2; s <= VALUE_CYCLES; s++) random_q[s] <= random_q[s-1];
    end
    assign random_o[p] = random_q[VALUE_CYCLES];
  end

`ifndef SYNTHESIS
  // a tile begins only when one place for it is free
  a_begin: assert property (@(posedge clk_i) disable iff (rst_i) begin_i |-> !next_open_q);
  // only a row that is here is taken, and it stays until then
  a_take: assert property (@(posedge clk_i) disable iff (rst_i) take_i |-> ready_o);
  a_row_waits: assert property (@(posedge clk_i) disable iff (rst_i) ready_o && !(take_i && last_i) |=> ready_o);
  // the queue has room for every hash that is made
  a_room: assert property (@(posedge clk_i) disable iff (rst_i) count_q <= (QW + 1)'(SLOTS));
`endif
endmodule

`default_nettype wire
