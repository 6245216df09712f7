// SPDX-License-Identifier: Apache-2.0
// Sum, sum of squares, minimum and maximum of every output channel over a packet, C/2 pixels at a time.
// A square takes two cycles, for a multiplier has 18 bits on one side: y * y = y * low + (y * high << 17).
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
  localparam int unsigned WIDTH = CHANNELS / 2;      // pixels at a time
  localparam int unsigned STEPS = LANES / WIDTH;
  localparam int unsigned KW = $clog2(2 * STEPS);
  localparam logic signed [31:0] LEAST = 32'sh8000_0000, MOST = 32'sh7FFF_FFFF;

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
  localparam int unsigned TAGS = 4;
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
  logic signed [WIDTH-1:0][31:0] y1_q, least1_q, most1_q;
  logic signed [WIDTH-1:0][17:0] half1_q;
  always_ff @(posedge clk_i) begin
    if (take) count_q <= done_o ? '0 : count_q + KW'(1);
    tag_q <= {tag_q[TAGS-2:0], tag_d};
    for (int unsigned s = 0; s < WIDTH; s++) begin
      automatic logic [31:0] y = lane_i[32'(count_q >> 1)*WIDTH+s];
      automatic logic counts = 32'(count_q >> 1) * WIDTH + s < 32'(pixels_i);
      y1_q[s]     <= counts ? y : '0;
      least1_q[s] <= counts ? y : MOST;
      most1_q[s]  <= counts ? y : LEAST;
      half1_q[s]  <= !counts ? '0 : count_q[0] ? {{3{y[31]}}, y[31:17]} : {1'b0, y[16:0]};
    end
    if (rst_i) begin
      count_q <= '0;
      tag_q   <= '0;
    end
  end

  // ---- 2: products, pairs ---------------------------------------------------------------------------------------------
  logic signed [WIDTH-1:0][49:0]   product2_q;
  logic signed [WIDTH/2-1:0][31:0] least2_q, most2_q;
  logic signed [34:0]              sum2_q;
  always_ff @(posedge clk_i) begin
    automatic logic signed [34:0] sum = '0;
    for (int unsigned s = 0; s < WIDTH; s++) begin
      product2_q[s] <= 50'($signed(y1_q[s])) * 50'($signed(half1_q[s]));
      sum = sum + 35'($signed(y1_q[s]));
    end
    sum2_q <= sum;
    for (int unsigned s = 0; s < WIDTH / 2; s++) begin
      least2_q[s] <= $signed(least1_q[2*s]) < $signed(least1_q[2*s+1]) ? least1_q[2*s] : least1_q[2*s+1];
      most2_q[s]  <= $signed(most1_q[2*s]) > $signed(most1_q[2*s+1]) ? most1_q[2*s] : most1_q[2*s+1];
    end
  end

  // ---- 3: sums of this cycle's pixels -----------------------------------------------------------------------------------
  logic signed [52:0] products3_q;
  logic signed [31:0] least3_q, most3_q;
  logic signed [34:0] sum3_q;
  always_ff @(posedge clk_i) begin
    automatic logic signed [52:0] products = '0;
    automatic logic signed [31:0] least = MOST, most = LEAST;
    for (int unsigned s = 0; s < WIDTH; s++) products = products + 53'($signed(product2_q[s]));
    for (int unsigned s = 0; s < WIDTH / 2; s++) begin
      if ($signed(least2_q[s]) < least) least = least2_q[s];
      if ($signed(most2_q[s]) > most) most = most2_q[s];
    end
    products3_q <= products;
    least3_q    <= least;
    most3_q     <= most;
    sum3_q      <= sum2_q;
  end

  // ---- 4: over the channel's tile -----------------------------------------------------------------------------------------
  logic signed [72:0] squares4_q;
  logic signed [37:0] sum4_q;
  logic signed [31:0] least4_q, most4_q;
  always_ff @(posedge clk_i)
    if (tag_q[2].valid) begin
      squares4_q <= (tag_q[2].begins ? '0 : squares4_q)
                  + (tag_q[2].high ? {{3{products3_q[52]}}, products3_q, 17'd0} : 73'(products3_q));
      if (!tag_q[2].high) begin
        sum4_q   <= (tag_q[2].begins ? '0 : sum4_q) + 38'(sum3_q);
        least4_q <= !tag_q[2].begins && least4_q < least3_q ? least4_q : least3_q;
        most4_q  <= !tag_q[2].begins && most4_q > most3_q ? most4_q : most3_q;
      end
    end

  // ---- 5: over the packet ---------------------------------------------------------------------------------------------
  (* ram_style = "block" *) logic [$bits(record_t)-1:0] memory[MAX_OUT_GROUPS*CHANNELS];
  record_t       read_q, total;
  logic [EW-1:0] send_q, last_q, read_address;
  logic          add;
  assign read_address = state_q == GATHER ? tag_q[2].channel : send_q;
  assign add = tag_q[3].valid && tag_q[3].ends;
  always_comb begin
    total.sum     = SUM_BITS'(sum4_q);
    total.squares = SQUARE_BITS'($unsigned(squares4_q));
    total.least   = least4_q;
    total.most    = most4_q;
    if (!tag_q[3].first) begin
      total.sum     = total.sum + read_q.sum;
      total.squares = total.squares + read_q.squares;
      if (read_q.least < total.least) total.least = read_q.least;
      if (read_q.most > total.most) total.most = read_q.most;
    end
  end
  always_ff @(posedge clk_i) begin
    read_q <= memory[read_address];
    if (add) memory[tag_q[3].channel] <= total;
  end

  // ---- results ----------------------------------------------------------------------------------------------------------
  logic [1:0] word_q;
  assign busy_o = closing_q || state_q != GATHER || tag_q[0].valid || tag_q[1].valid || tag_q[2].valid || tag_q[3].valid;
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
        if (add && tag_q[3].last) begin
          state_q <= FETCH;
          send_q  <= '0;
          last_q  <= tag_q[3].channel;
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
