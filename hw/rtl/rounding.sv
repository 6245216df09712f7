// SPDX-License-Identifier: Apache-2.0
// Random numbers of stochastic rounding, 16 bits for every pixel.  A segment of a channel's row has one hash h; its pixel x
// has low(h) ^ factor * alpha^x * high(h) in GF(2^16), with alpha = 2: any two of them are independent.
//
//   tile begins -> hashes of its segments, channel after channel -> queue -> seeds of a channel's row -> pixels
//
// Hashes are made while the array computes the tile, and wait for it in the queue.
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
  logic             room_q, issue, tile_last, accept;
  pixel_t           start_q, start;        // first pixel of the segment; of the one behind it
  logic [LANES-1:0] rest_q, rest;          // segments of the channel behind it, by their first pixels
  logic             last_q, single_q;      // it is the channel's last; the only one
  channel_t         channel_q;
  logic             channel_last_q;
  index_t           channel_index_q, index_q;
  assign full_o    = next_open_q;
  assign issue     = open_q && room_q;
  assign tile_last = issue && last_q && channel_last_q;
  assign accept    = !open_q || tile_last;
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
  logic        [15:0]       factor_q[HASH_CYCLES+1];
  logic        [31:0]       counter_q;
  logic        [15:0]       low, product;
  logic        [QW:0]       claimed_q;   // slots of hashes in the queue or on their way
  logic                     pop;
  always_ff @(posedge clk_i) begin
    made_q    <= {made_q[HASH_CYCLES-1:0], issue};
    segment_q <= {segment_q[HASH_CYCLES-1:0], segment_t'{last: last_q, start: start_q}};
    counter_q <= index_q ^ tile_q.key;
    factor_q[0] <= tile_q.factor;
    for (int unsigned s = 1; s <= HASH_CYCLES; s++) factor_q[s] <= factor_q[s-1];
    room_q    <= claimed_q <= (QW + 1)'(SLOTS - 2);
    claimed_q <= claimed_q + (QW + 1)'(issue) - (QW + 1)'(pop);
    if (rst_i) begin
      made_q    <= '0;
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
  logic [QW:0] head_q, tail_q;
  seed_t       seed;
  assign seed = queue[head_q[QW-1:0]];
  always_ff @(posedge clk_i) begin
    if (made_q[HASH_CYCLES]) queue[tail_q[QW-1:0]] <= seed_t'{segment: segment_q[HASH_CYCLES], low: low, product: product};
    tail_q <= tail_q + (QW + 1)'(made_q[HASH_CYCLES]);
    head_q <= head_q + (QW + 1)'(pop);
    if (rst_i) {head_q, tail_q} <= '0;
  end

  // ---- a seed: its product times 1, alpha^8, alpha^16, alpha^24 ------------------------------------------------------------
  function automatic logic [15:0] times_alpha(input logic [15:0] value);
    return {value[14:0], 1'b0} ^ (value[15] ? 16'(GF_POLYNOMIAL) : 16'd0);
  endfunction
  segment_t         seed_segment_q;
  logic [15:0]      seed_low_q;
  logic [3:0][15:0] seed_products_q;
  logic             seed_q, row_q, load;   // a seed is here, a whole row
  assign load = seed_q && (!row_q || (take_i && last_i));
  assign pop  = head_q != tail_q && (!seed_q || load);
  always_ff @(posedge clk_i) begin
    seed_q <= (pop || (seed_q && !load)) && !rst_i;
    if (pop) begin
      automatic logic [15:0] power = seed.product;
      seed_segment_q <= seed.segment;
      seed_low_q     <= seed.low;
      for (int unsigned k = 0; k < 4; k++) begin
        seed_products_q[k] <= power;
        for (int unsigned n = 0; n < 8; n++) power = times_alpha(power);
      end
    end
  end

  // ---- a row: a segment's seed goes to all pixels from its first on; those of later segments replace it --------------------
  logic [LANES-1:0][15:0] low_q, product_q;   // times alpha to the eights of the pixel's place in its segment
  logic [LANES-1:0][2:0]  place_q;            // ones of the place
  assign ready_o = row_q;
  always_ff @(posedge clk_i) begin
    if (load)
      for (int unsigned p = 0; p < LANES; p++)
        if (pixel_t'(p) >= seed_segment_q.start) begin
          automatic logic [4:0] place = 5'(pixel_t'(p) - seed_segment_q.start);
          low_q[p]     <= seed_low_q;
          product_q[p] <= seed_products_q[place[4:3]];
          place_q[p]   <= place[2:0];
        end
    row_q <= ((load && seed_segment_q.last) || (row_q && !(take_i && last_i))) && !rst_i;
  end

  // ---- pixels: a factor alpha^(2^k) in stage 2 + k where bit k of the place is set ------------------------------------------
  localparam int unsigned CHAIN = 4;   // stage of the last product
  if (LANES > 32 || CHAIN >= VALUE_CYCLES) begin : gen_check
    $error("rounding: LANES = %0d must be 32 or less, VALUE_CYCLES = %0d more than %0d", LANES, VALUE_CYCLES, CHAIN);
  end
  for (genvar p = 0; p < WIDTH; p++) begin : gen_pixel
    logic [15:0] low_p_q[1:CHAIN-1], value_q[1:CHAIN-1];
    logic [2:0]  place_p_q[1:CHAIN-1];
    (* shreg_extract = "no" *) logic [15:0] random_q[CHAIN:VALUE_CYCLES];
    always_ff @(posedge clk_i) begin
      low_p_q[1]   <= low_q[32'(slice_i)*WIDTH+p];
      value_q[1]   <= product_q[32'(slice_i)*WIDTH+p];
      place_p_q[1] <= place_q[32'(slice_i)*WIDTH+p];
      for (int unsigned s = 2; s < CHAIN; s++) begin
        automatic logic [15:0] power = value_q[s-1];
        for (int unsigned n = 0; n < 1 << (s - 2); n++) power = times_alpha(power);
        value_q[s]   <= place_p_q[s-1][s-2] ? power : value_q[s-1];
        low_p_q[s]   <= low_p_q[s-1];
        place_p_q[s] <= place_p_q[s-1];
      end
      random_q[CHAIN] <= low_p_q[CHAIN-1]
                       ^ (place_p_q[CHAIN-1][2] ? times_alpha(times_alpha(times_alpha(times_alpha(value_q[CHAIN-1]))))
                                                : value_q[CHAIN-1]);
      for (int unsigned s = CHAIN + 1; s <= VALUE_CYCLES; s++) random_q[s] <= random_q[s-1];
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
  a_room: assert property (@(posedge clk_i) disable iff (rst_i) tail_q - head_q <= (QW + 1)'(SLOTS));
`endif
endmodule

`default_nettype wire
