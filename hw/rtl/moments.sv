// SPDX-License-Identifier: Apache-2.0
// Moments of every output channel over a packet: sum of its values, sum of their products with a factor, least and
// greatest value.  Takes some pixels of a channel per cycle; adds and compares them in trees, one level per cycle.  DSP slices
// add four products each to the one before, so that a tree of a quarter is left of theirs.
`default_nettype none

module moments
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned WIDTH = EPILOGUE_LANES
) (
    input  wire                               clk_i,
    input  wire                               rst_i,
    input  wire                               valid_i,
    input  wire portion_t                     portion_i,
    input  wire  [WIDTH-1:0][VALUE_BITS-1:0]  value_i,
    input  wire  [WIDTH-1:0][VALUE_BITS-1:0]  factor_i,
    output logic                              busy_o,
    // after a packet's last slice: results of two channels in three beats
    output logic                              ready_o,
    input  wire                               send_i,   // the beat is taken in this cycle
    output beat_t                             word_o    // zero unless it is taken
);
  localparam int unsigned LEVELS = $clog2(WIDTH);
  localparam int unsigned CHAIN = 4;                 // products of a chain
  localparam int unsigned TREE = LEVELS + 4;         // stage in which the products' root is
  localparam int unsigned WAIT = TREE - LEVELS - 1;  // of the other roots
  localparam int unsigned TILE_SUM = VALUE_BITS + $clog2(LANES), TILE_PRODUCT = 2 * VALUE_BITS + $clog2(LANES);
  localparam logic [VALUE_BITS-1:0] LEAST = {1'b1, {VALUE_BITS - 1{1'b0}}}, MOST = ~LEAST;
  if (WIDTH < 4 || WIDTH != 1 << LEVELS || LANES % WIDTH != 0) begin : gen_check
    $error("moments: EPILOGUE_LANES = %0d must be a power of two from 4 to LANES = %0d", WIDTH, LANES);
  end
  if (MOMENT_WORDS != 3 || CHANNELS % 2 != 0) begin : gen_check_words
    $error("moments: three words for each of an even number of channels, not %0d of %0d", MOMENT_WORDS, CHANNELS);
  end

  typedef logic signed [VALUE_BITS-1:0]   value_t;
  typedef logic signed [TILE_SUM-1:0]     tile_sum_t;
  typedef logic signed [TILE_PRODUCT-1:0] tile_product_t;
  typedef struct packed {
    logic signed [PRODUCT_BITS-1:0] products;
    logic signed [SUM_BITS-1:0]     sum;
    value_t                         most;
    value_t                         least;
  } record_t;

  // ---- what goes along: a record's place, and where it begins and ends ------------------------------------------------
  typedef struct packed {
    moment_entry_t entry;
    logic          first;   // of the packet's tiles with this channel
    logic          begins;  // first slice of the channel in this tile
    logic          ends;    // its last one
    logic          last;    // of the packet
  } tag_t;
  localparam int unsigned LAST = TREE + 2;
  tag_t [LAST:1] tag_q;
  logic [LAST:1] valid_q;
  tag_t          tag;
  always_comb begin
    tag.entry  = portion_i.entry;
    tag.first  = portion_i.first;
    tag.begins = portion_i.slice == 0;
    tag.ends   = portion_i.slice == 4'(SLICES - 1);
    tag.last   = portion_i.last;
  end
  always_ff @(posedge clk_i) begin
    tag_q   <= {tag_q[LAST-1:1], tag};
    valid_q <= {valid_q[LAST-1:1], valid_i};
    if (rst_i) valid_q <= '0;
  end

  // ---- products, in stage 2 and as many later as come before in their chain; sums of chains in stage 6 --------------------
  // A pixel that does not count is zero.
  typedef logic signed [2*VALUE_BITS-1:0] product_t;
  (* shreg_extract = "no" *) logic signed [CHAIN-1:0][WIDTH-1:0][VALUE_BITS-1:0] value_q, factor_q;   // [age][pixel]
  logic [WIDTH-1:0] counts_q;
  always_ff @(posedge clk_i) begin
    value_q  <= {value_q[CHAIN-2:0], value_i};
    factor_q <= {factor_q[CHAIN-2:0], factor_i};
    counts_q <= portion_i.counts;
    for (int unsigned p = 0; p < WIDTH; p++) if (!portion_i.counts[p]) value_q[0][p] <= '0;
  end
  tile_product_t [WIDTH-1:0]       chain;            // sum of the products of a chain up to this one
  tile_product_t [WIDTH/CHAIN-1:0] chains;
  for (genvar p = 0; p < WIDTH; p++) begin : gen_product
    product_t      product_q;
    tile_product_t chain_q;
    always_ff @(posedge clk_i)
      product_q <= product_t'($signed(value_q[p%CHAIN][p])) * product_t'($signed(factor_q[p%CHAIN][p]));
    if (p % CHAIN == 0) begin : gen_first
      always_ff @(posedge clk_i) chain_q <= TILE_PRODUCT'(product_q);
    end else begin : gen_next
      always_ff @(posedge clk_i) chain_q <= TILE_PRODUCT'(product_q) + $signed(chain[p-1]);
    end
    assign chain[p] = chain_q;
    if (p % CHAIN == CHAIN - 1) begin : gen_last
      assign chains[p/CHAIN] = chain_q;
    end
  end
  // their tree
  tile_product_t products_q[LEVELS-1][WIDTH/CHAIN], root_product;
  always_ff @(posedge clk_i)
    for (int unsigned k = 1; k < LEVELS - 1; k++)
      for (int unsigned p = 0; p < WIDTH / CHAIN >> k; p++)
        products_q[k][p] <= k == 1 ? chains[2*p] + chains[2*p+1] : products_q[k-1][2*p] + products_q[k-1][2*p+1];
  assign root_product = WIDTH == CHAIN ? chains[0] : products_q[LEVELS-2][0];

  // ---- trees of sums, least and greatest values: level k in stage k + 1 -------------------------------------------------
  tile_sum_t sum_q[LEVELS+1][WIDTH];
  value_t    least_q[LEVELS+1][WIDTH], most_q[LEVELS+1][WIDTH];
  always_ff @(posedge clk_i) begin
    for (int unsigned p = 0; p < WIDTH / 2; p++) begin
      automatic value_t a = value_q[0][2*p], b = value_q[0][2*p+1];
      automatic logic   below = b < a;
      sum_q[1][p]   <= TILE_SUM'(a) + TILE_SUM'(b);
      least_q[1][p] <= counts_q[2*p+1] && (!counts_q[2*p] || below) ? b : a;
      most_q[1][p]  <= counts_q[2*p+1] && (!counts_q[2*p] || !below) ? b : a;
      if (counts_q[2*p+:2] == 0) begin   // the neutral element of each
        least_q[1][p] <= MOST;
        most_q[1][p]  <= LEAST;
      end
    end
    for (int unsigned k = 1; k < LEVELS; k++)
      for (int unsigned p = 0; p < WIDTH >> (k + 1); p++) begin
        sum_q[k+1][p]   <= sum_q[k][2*p] + sum_q[k][2*p+1];
        least_q[k+1][p] <= least_q[k][2*p+1] < least_q[k][2*p] ? least_q[k][2*p+1] : least_q[k][2*p];
        most_q[k+1][p]  <= most_q[k][2*p+1] > most_q[k][2*p] ? most_q[k][2*p+1] : most_q[k][2*p];
      end
  end
  // their roots wait for the products'
  tile_sum_t root_sum_q[WAIT];
  value_t    root_least_q[WAIT], root_most_q[WAIT], root_least, root_most;
  assign root_least = root_least_q[WAIT-1];
  assign root_most  = root_most_q[WAIT-1];
  always_ff @(posedge clk_i) begin
    root_sum_q[0]   <= sum_q[LEVELS][0];
    root_least_q[0] <= least_q[LEVELS][0];
    root_most_q[0]  <= most_q[LEVELS][0];
    for (int unsigned k = 1; k < WAIT; k++) begin
      root_sum_q[k]   <= root_sum_q[k-1];
      root_least_q[k] <= root_least_q[k-1];
      root_most_q[k]  <= root_most_q[k-1];
    end
  end

  // ---- over the slices of a tile -------------------------------------------------------------------------------------------
  tile_sum_t     tile_sum_q;
  tile_product_t tile_product_q;
  value_t        tile_least_q, tile_most_q;
  always_ff @(posedge clk_i)
    if (valid_q[TREE]) begin
      automatic logic begins = tag_q[TREE].begins;
      tile_sum_q     <= root_sum_q[WAIT-1] + (begins ? '0 : tile_sum_q);
      tile_product_q <= root_product + (begins ? '0 : tile_product_q);
      tile_least_q   <= begins || root_least < tile_least_q ? root_least : tile_least_q;
      tile_most_q    <= begins || root_most > tile_most_q ? root_most : tile_most_q;
    end

  // ---- over the packet -------------------------------------------------------------------------------------------------------
  typedef enum logic [2:0] {GATHER, EVEN, ODD, SEND0, SEND1, SEND2} state_t;
  state_t        state_q, state_d;
  moment_entry_t send_q, send_d;
  (* ram_style = "block" *) logic [$bits(record_t)-1:0] memory[MOMENT_ENTRIES];
  record_t       read_q, total_q, even_q;
  logic          write;
  moment_entry_t read_address;
  assign read_address = state_q == GATHER ? tag_q[TREE].entry : send_q;
  assign write        = valid_q[LAST-1] && tag_q[LAST-1].ends;
  always_ff @(posedge clk_i) begin
    if (state_q == GATHER || state_q == EVEN || state_q == ODD) read_q <= memory[read_address];
    if (valid_q[LAST] && tag_q[LAST].ends) memory[tag_q[LAST].entry] <= total_q;
    if (write) begin
      automatic logic first = tag_q[LAST-1].first;
      total_q.sum      <= SUM_BITS'(tile_sum_q) + (first ? '0 : read_q.sum);
      total_q.products <= PRODUCT_BITS'(tile_product_q) + (first ? '0 : read_q.products);
      total_q.least    <= first || tile_least_q < read_q.least ? tile_least_q : read_q.least;
      total_q.most     <= first || tile_most_q > read_q.most ? tile_most_q : read_q.most;
    end
  end

  // ---- results ----------------------------------------------------------------------------------------------------------------
  moment_entry_t last_q;
  logic          done_q;   // the packet's last record has been written
  assign ready_o = state_q == SEND0 || state_q == SEND1 || state_q == SEND2;
  assign busy_o  = |valid_q || done_q || state_q != GATHER;
  function automatic logic [63:0] extremes(input record_t record);
    return {32'(record.most), 32'(record.least)};
  endfunction
  always_comb begin
    unique case (state_q)
      SEND0:   word_o = {64'(even_q.products), 64'(even_q.sum)};
      SEND1:   word_o = {64'(read_q.sum), extremes(even_q)};
      default: word_o = {extremes(read_q), 64'(read_q.products)};
    endcase
    if (!send_i) word_o = '0;
  end
  always_comb begin
    state_d = state_q;
    send_d  = send_q;
    unique case (state_q)
      GATHER: begin
        send_d = '0;
        if (done_q) state_d = EVEN;
      end
      EVEN: begin
        send_d  = send_q + moment_entry_t'(1);
        state_d = ODD;
      end
      ODD:   state_d = SEND0;
      SEND0: if (send_i) state_d = SEND1;
      SEND1: if (send_i) state_d = SEND2;
      SEND2:
        if (send_i) begin
          send_d  = send_q + moment_entry_t'(1);
          state_d = send_q == last_q ? GATHER : EVEN;
        end
      default: state_d = GATHER;
    endcase
    if (rst_i) state_d = GATHER;
  end
  always_ff @(posedge clk_i) begin
    state_q <= state_d;
    send_q  <= send_d;
    done_q  <= valid_q[LAST] && tag_q[LAST].last && !rst_i;
    if (valid_q[LAST] && tag_q[LAST].last) last_q <= tag_q[LAST].entry;
    if (state_q == ODD) even_q <= read_q;
  end

`ifndef SYNTHESIS
  // nothing comes while results leave: their memory has one read port
  a_gather: assert property (@(posedge clk_i) disable iff (rst_i) |valid_q || valid_i |-> state_q == GATHER && !done_q);
  // only a beat that is there is taken
  a_send: assert property (@(posedge clk_i) disable iff (rst_i) send_i |-> ready_o);
  a_word_waits: assert property (@(posedge clk_i) disable iff (rst_i) ready_o && !send_i |=> ready_o);
`endif
endmodule

`default_nettype wire
