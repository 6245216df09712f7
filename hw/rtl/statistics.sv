// SPDX-License-Identifier: Apache-2.0
// Sum, sum of squares, minimum and maximum of every output channel over a packet, STATISTICS_LANES pixels at a time.
// A square takes two cycles, for a multiplier has 18 bits on one side: y * y = y * low + (y * high << 17).  Sum and
// extremes have one cycle for either half of the pixels.
`default_nettype none

module statistics
  import fabric_pkg::*;
#(
    localparam int unsigned EW = $clog2(MAX_OUT_GROUPS * CHANNELS)
) (
    input  wire                       clk_i,
    input  wire                       rst_i,
    // one channel of a tile, held until done
    input  wire                       valid_i,
    input  wire  [LANES-1:0][31:0]    lane_i,
    input  wire  [EW-1:0]             channel_i,  // output channel
    input  wire  [5:0]                pixels_i,   // pixels that count
    input  wire                       first_i,    // starts the channel's statistics
    input  wire                       last_i,     // last channel of the packet
    output logic                      done_o,
    output logic                      busy_o,
    // results, four words to a channel
    output logic                      ready_o,
    input  wire                       send_i,
    output logic [63:0]               word_o
);
  localparam int unsigned WIDTH = STATISTICS_LANES;
  localparam int unsigned HALF = WIDTH / 2;
  localparam int unsigned STEPS = LANES / WIDTH;
  if (WIDTH < 4 || WIDTH > LANES || LANES % WIDTH != 0) begin : gen_check
    $error("statistics: STATISTICS_LANES = %0d must be 4 or more and divide LANES = %0d", WIDTH, LANES);
  end
  localparam int unsigned KW = $clog2(2 * STEPS);

  typedef struct packed {
    logic signed [SUM_BITS-1:0] sum;
    logic [SQUARE_BITS-1:0]     squares;
    logic signed [31:0]         least;
    logic signed [31:0]         most;
  } record_t;

  typedef enum logic [1:0] {GATHER, FETCH, SEND} state_t;
  state_t state_q;

  // ---- 1: pixels of this cycle, first with the low, then with the high half of themselves ------------------------------
  logic [KW-1:0] count_q;
  logic          take, closing_q;  // the packet's last channel is in the pipeline
  assign take   = valid_i && state_q == GATHER && !closing_q;
  assign done_o = take && count_q == KW'(2 * STEPS - 1);
  typedef struct packed {
    logic          valid;
    logic          high;
    logic          begins;  // first values of the channel's tile
    logic          ends;    // last ones
    logic          first;
    logic          last;
    logic [EW-1:0] channel;
  } tag_t;
  localparam int unsigned TAGS = 5;
  tag_t              tag_d;
  tag_t [TAGS-1:0]   tag_q;
  always_comb begin
    tag_d.valid   = take;
    tag_d.high    = count_q[0];
    tag_d.begins  = count_q == 0;
    tag_d.ends    = done_o;
    tag_d.first   = first_i;
    tag_d.last    = last_i;
    tag_d.channel = channel_i;
  end
  // Minimum and maximum of some pixels, if any of them counts; pixels that count come before those that do not.
  typedef struct packed {
    logic               counts;
    logic signed [31:0] least;
    logic signed [31:0] most;
  } extremes_t;
  function automatic extremes_t either(input extremes_t x, input extremes_t y);
    either.counts = x.counts;
    either.least  = y.counts && y.least < x.least ? y.least : x.least;
    either.most   = y.counts && y.most > x.most ? y.most : x.most;
  endfunction

  logic [WIDTH-1:0][31:0]  y1_q;
  logic [WIDTH-1:0][17:0]  half1_q;
  extremes_t [HALF-1:0]    extremes1_q;
  always_ff @(posedge clk_i) begin
    if (take) count_q <= done_o ? '0 : count_q + KW'(1);
    tag_q <= {tag_q[TAGS-2:0], tag_d};
    for (int unsigned s = 0; s < WIDTH; s++) begin
      automatic logic [31:0] y = lane_i[32'(count_q >> 1)*WIDTH+s];
      automatic logic counts = 32'(count_q >> 1) * WIDTH + s < 32'(pixels_i);
      y1_q[s]    <= counts ? y : '0;
      half1_q[s] <= !counts ? '0 : count_q[0] ? {{3{y[31]}}, y[31:17]} : {1'b0, y[16:0]};
    end
    for (int unsigned s = 0; s < HALF; s++) begin
      automatic logic [31:0] place = 32'(count_q >> 1) * WIDTH + 32'(count_q[0]) * HALF + s;
      extremes1_q[s] <= {place < 32'(pixels_i), {2{lane_i[($clog2(LANES))'(place)]}}};
    end
    if (rst_i) begin
      count_q <= '0;
      tag_q   <= '0;
    end
  end

  // ---- 2: products; pairs ---------------------------------------------------------------------------------------------
  localparam int unsigned PAIRS = HALF / 2;
  logic [WIDTH-1:0][49:0]  product2_q;
  extremes_t [PAIRS-1:0]   extremes2_q;
  logic [PAIRS-1:0][32:0]  sum2_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned s = 0; s < WIDTH; s++) product2_q[s] <= 50'($signed(y1_q[s])) * 50'($signed(half1_q[s]));
    for (int unsigned s = 0; s < PAIRS; s++) begin
      extremes2_q[s] <= either(extremes1_q[2*s], extremes1_q[2*s+1]);
      sum2_q[s] <= (extremes1_q[2*s].counts ? 33'(extremes1_q[2*s].least) : '0)
                 + (extremes1_q[2*s+1].counts ? 33'(extremes1_q[2*s+1].least) : '0);
    end
  end

  // ---- 3: fours, at most, of what is left ----------------------------------------------------------------------------
  localparam int unsigned QUADS = WIDTH / 4, FEW = PAIRS < 4 ? PAIRS : 4;
  logic [QUADS-1:0][51:0]       products3_q;
  extremes_t [PAIRS/FEW-1:0]    extremes3_q;
  logic [PAIRS/FEW-1:0][34:0]   sum3_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned s = 0; s < QUADS; s++)
      products3_q[s] <= (52'($signed(product2_q[4*s])) + 52'($signed(product2_q[4*s+1])))
                      + (52'($signed(product2_q[4*s+2])) + 52'($signed(product2_q[4*s+3])));
    for (int unsigned s = 0; s < PAIRS / FEW; s++) begin
      automatic extremes_t     pair = extremes2_q[s*FEW], other = extremes2_q[s*FEW+FEW/2];
      automatic logic signed [34:0] sum = 35'($signed(sum2_q[s*FEW]));
      if (FEW == 4) begin
        pair  = either(pair, extremes2_q[s*FEW+1]);
        other = either(other, extremes2_q[s*FEW+FEW-1]);
      end
      extremes3_q[s] <= FEW == 1 ? pair : either(pair, other);
      for (int unsigned k = 1; k < FEW; k++) sum = sum + 35'($signed(sum2_q[s*FEW+k]));
      sum3_q[s] <= sum;
    end
  end

  // ---- 4: one of everything --------------------------------------------------------------------------------------------
  logic signed [54:0] products4_q;
  extremes_t          extremes4_q;
  logic signed [36:0] sum4_q;
  always_ff @(posedge clk_i) begin
    automatic logic signed [54:0] products = '0;
    automatic logic signed [36:0] sum = '0;
    automatic extremes_t          extremes = extremes3_q[0];
    for (int unsigned s = 0; s < QUADS; s++) products = products + 55'($signed(products3_q[s]));
    for (int unsigned s = 0; s < PAIRS / FEW; s++) sum = sum + 37'($signed(sum3_q[s]));
    for (int unsigned s = 1; s < PAIRS / FEW; s++) extremes = either(extremes, extremes3_q[s]);
    products4_q <= products;
    sum4_q      <= sum;
    extremes4_q <= extremes;
  end

  // ---- 5: over the channel's tile ---------------------------------------------------------------------------------------
  logic signed [72:0] squares5_q;
  logic signed [37:0] sum5_q;
  extremes_t          extremes5_q;
  always_ff @(posedge clk_i)
    if (tag_q[3].valid) begin
      squares5_q  <= (tag_q[3].begins ? '0 : squares5_q)
                   + (tag_q[3].high ? {products4_q[54], products4_q, 17'd0} : 73'(products4_q));
      sum5_q      <= (tag_q[3].begins ? '0 : sum5_q) + 38'(sum4_q);
      extremes5_q <= tag_q[3].begins ? extremes4_q : either(extremes5_q, extremes4_q);
    end

  // ---- 6: over the packet ---------------------------------------------------------------------------------------------
  (* ram_style = "block" *) logic [$bits(record_t)-1:0] memory[MAX_OUT_GROUPS*CHANNELS];
  record_t       read_q, total;
  logic [EW-1:0] send_q, last_q, read_address;
  logic          add;
  assign read_address = state_q == GATHER ? tag_q[3].channel : send_q;
  assign add = tag_q[4].valid && tag_q[4].ends;
  always_comb begin
    total.sum     = SUM_BITS'(sum5_q);
    total.squares = SQUARE_BITS'($unsigned(squares5_q));
    total.least   = extremes5_q.least;
    total.most    = extremes5_q.most;
    if (!tag_q[4].first) begin
      total.sum     = total.sum + read_q.sum;
      total.squares = total.squares + read_q.squares;
      if (read_q.least < total.least) total.least = read_q.least;
      if (read_q.most > total.most) total.most = read_q.most;
    end
  end
  always_ff @(posedge clk_i) begin
    read_q <= memory[read_address];
    if (add) memory[tag_q[4].channel] <= total;
  end

  // ---- results ----------------------------------------------------------------------------------------------------------
  logic [1:0] word_q;
  assign busy_o = closing_q || state_q != GATHER || tag_q[0].valid || tag_q[1].valid || tag_q[2].valid || tag_q[3].valid
               || tag_q[4].valid;
  assign ready_o = state_q == SEND;
  always_comb
    unique case (word_q)
      2'd0: word_o = 64'(read_q.sum);
      2'd1: word_o = read_q.squares[63:0];
      2'd2: word_o = 64'(read_q.squares[SQUARE_BITS-1:64]);
      default: word_o = {read_q.most, read_q.least};
    endcase
  always_ff @(posedge clk_i) begin
    if (done_o && last_i) closing_q <= 1'b1;
    unique case (state_q)
      GATHER:
        if (add && tag_q[4].last) begin
          state_q <= FETCH;
          send_q  <= '0;
          last_q  <= tag_q[4].channel;
          word_q  <= '0;
        end
      FETCH: state_q <= SEND;
      SEND:
        if (send_i) begin
          word_q <= word_q + 2'd1;
          if (word_q == 2'd3) begin
            send_q  <= send_q + EW'(1);
            state_q <= FETCH;
            if (send_q == last_q) begin
              state_q   <= GATHER;
              closing_q <= 1'b0;
            end
          end
        end
      default: state_q <= GATHER;
    endcase
    if (rst_i) begin
      state_q   <= GATHER;
      closing_q <= 1'b0;
    end
  end
endmodule

`default_nettype wire
