// SPDX-License-Identifier: Apache-2.0
// Results: takes a finished tile out of the array into a shadow copy, one output channel (L values) at a time, and
// hands every channel to the unit of its format.  Results leave in order, READ and END after everything before them.
//
//   WGRAD                       -> accumulators -> drain_jobs (READ, END) -> result_port
//   CONV -> integers            -> sum_words -----------------------------> result_port
//        -> codes, (rounding)   -> epilogue -> code_buffer ---------------> result_port
//        -> moments             -> epilogue -> moments -------------------> result_port
//
// Decisions run a cycle ahead of values: what loads the many registers of values are copies of a decision, kept one per pixel.
`default_nettype none

module drain
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                                              clk_i,
    input  wire                                              rst_i,
    // a tile is complete in the array in the next cycle, and its operands are in operands_i then
    input  wire                                              capture_i,
    input  wire tile_t                                       tile_i,
    input  wire  [LANES-1:0][CHANNELS-1:0][ACC_BITS-1:0]     acc_i,
    input  wire lane_sums_t                                  sum_i,
    input  wire operands_t                                   operands_i,
    output logic                                             busy_o,      // the next tile must not end yet
    output logic                                             idle_o,
    // a tile of stochastic codes begins in the array
    input  wire                                              random_begin_i,
    input  wire random_t                                     random_i,
    // READ and END
    input  wire                                              job_valid_i,
    input  wire command_t                                    job_i,
    output logic                                             job_done_o,
    output logic                                             ended_o,     // trailer sent
    // epilogue entries, half of one at a time
    input  wire                                              epilogue_write_i,
    input  wire                                              epilogue_upper_i,
    input  wire  [$clog2(DEPTH_EPILOGUE)-1:0]                epilogue_address_i,
    input  wire beat_t                                       epilogue_data_i,
    // a weight gradient left its range
    output logic                                             fault_o,
    input  wire                                              fault_clear_i,
    // final word of the program's status
    output error_t                                           error_o,
    output logic [31:0]                                      position_o,
    output logic [31:0]                                      packets_o,
    output logic [6:0]                                       saturated_o,
    // output streams
    output logic                                             out_empty_o,   // everything has been taken
    output logic [1:0]                                       out_valid_o,
    input  wire  [1:0]                                       out_ready_i,
    output logic [1:0][63:0]                                 out_data_o,
    output logic [1:0]                                       out_last_o
);
  localparam int unsigned EW = $clog2(DEPTH_EPILOGUE);
  localparam int unsigned WIDTH = EPILOGUE_LANES;
  if (WIDTH < 4 || SLICES > 8 || WIDTH * SLICES != LANES) begin : gen_check
    $error("drain: EPILOGUE_LANES = %0d must be 4 or more and divide LANES = %0d by 8 or less", WIDTH, LANES);
  end

  // ---- tile in the shadow copy ---------------------------------------------------------------------------------------------
  tile_t    tile_q;
  logic     full_q, full_d;         // shadow holds values not yet taken
  channel_t channel_q, channel_d;   // next channel to take
  channel_t last_channel;
  always_ff @(posedge clk_i) if (capture_i) tile_q <= tile_i;
  assign last_channel = tile_q.with_sum ? channel_t'(CHANNELS) : channel_t'(CHANNELS - 1);

  // ---- one channel at a time ------------------------------------------------------------------------------------------------
  tile_t      lane_tile_q;
  channel_t   lane_channel_q;
  logic       lane_valid_q, lane_valid_d;
  logic       lane_wgrad_q, lane_coded_q, lane_raw_q;   // what the lane holds, if it is valid
  logic       lane_done;   // this channel is consumed in this cycle
  logic       take;
  // what the lane holds and whether it is valid, in one, for decisions that many registers wait for
  (* keep = "true" *) logic adds_q, coded_valid_q, random_valid_q;
  logic       coded_valid_d;
  assign take = full_q && (!lane_valid_q || lane_done);
  always_comb begin
    lane_valid_d = take || (lane_valid_q && !lane_done);
    channel_d    = channel_q + channel_t'(take);
    coded_valid_d = take ? tile_q.codes || tile_q.moments : lane_valid_q && lane_coded_q && !lane_done;
    full_d       = full_q && !(take && channel_q == last_channel);
    if (capture_i) begin
      full_d    = 1'b1;
      channel_d = '0;
    end
    if (rst_i || fault_o) begin
      full_d       = 1'b0;
      lane_valid_d = 1'b0;
      coded_valid_d = 1'b0;
    end
  end
  always_ff @(posedge clk_i) begin
    full_q       <= full_d;
    channel_q    <= channel_d;
    lane_valid_q <= lane_valid_d;
    adds_q         <= lane_valid_d && take && tile_q.wgrad;  // a channel of a weight gradient stays for one cycle
    coded_valid_q  <= coded_valid_d;
    random_valid_q <= coded_valid_d && (take ? tile_q.coding.stochastic : lane_tile_q.coding.stochastic);
    if (take) begin
      lane_wgrad_q   <= tile_q.wgrad;
      lane_coded_q   <= tile_q.codes || tile_q.moments;
      lane_raw_q     <= !tile_q.wgrad && !tile_q.codes && !tile_q.moments;
      lane_tile_q    <= tile_q;
      lane_channel_q <= channel_q;
    end
  end

  // ---- its values, from the cycle after on -----------------------------------------------------------------------------------
  localparam int unsigned QUADS = CHANNELS / 4;
  logic [QUADS:0]         others;   // groups of channels in which the next one is not
  lane_sums_t             lane;
  operand_t [LANES-1:0]   lane_operand;
  for (genvar g = 0; g <= QUADS; g++) begin : gen_others
    assign others[g] = take && (channel_q >> 2) != channel_t'(g);
  end
  for (genvar p = 0; p < LANES; p++) begin : gen_lane
    logic [$bits(operand_t)-1:0][CHANNELS-1:0] operand;
    for (genvar b = 0; b < $bits(operand_t); b++) begin : gen_plane
      assign operand[b] = operands_i[b*ROW_BITS+p*CHANNELS+:CHANNELS];
    end
    shadow_lane i_lane (
        .clk_i, .capture_i, .acc_i(acc_i[p]), .sum_i(sum_i[p]), .operand_i(operand), .take_i(take), .others_i(others),
        .place_i(channel_q[1:0]), .acc_o(lane[p]), .operand_o(lane_operand[p])
    );
  end

  // What may go is decided a cycle ahead; nothing can happen in between that would forbid it.
  logic lane_wgrad, adding, codes_gone, codes_free, moments_open_q, coded_go, raw_send;
  logic begin_ok_q, raw_ok_q, tile_end;
  assign lane_wgrad = adds_q;
  always_ff @(posedge clk_i) begin
    // a tile with an epilogue: behind weight gradients whose range is not yet known, and behind a packet's moments
    begin_ok_q <= !adding && !lane_wgrad && !fault_o && !moments_open_q && codes_free
               && !(tile_end && lane_tile_q.last && (lane_tile_q.moments || lane_tile_q.records));
    // integers: also behind all codes
    raw_ok_q   <= lane_valid_q && lane_raw_q && !adding && !fault_o && !moments_open_q && codes_gone;
    if (rst_i) {begin_ok_q, raw_ok_q} <= '0;
  end

  // ---- epilogue: slices of a channel; a tile's slices follow its first without a stop, but for random numbers --------------
  logic [3:0] slice_q;
  logic       slice_last, started_q;   // the tile's first slice has gone
  logic       random_ready;
  assign slice_last = slice_q == 4'(SLICES - 1);
  assign coded_go   = coded_valid_q && (started_q || begin_ok_q) && (!random_valid_q || random_ready);
  assign tile_end   = coded_go && slice_last && lane_channel_q == channel_t'(CHANNELS - 1);
  always_ff @(posedge clk_i) begin
    if (coded_go) begin
      slice_q   <= slice_last ? '0 : slice_q + 4'd1;
      started_q <= !tile_end;
    end
    if (rst_i || fault_o) begin
      slice_q   <= '0;
      started_q <= 1'b0;
    end
  end
  // Once a tile streams, the next one may end as soon as the rest is gone by the time it arrives, which is AHEAD cycles
  // after this word, values a cycle later.  The next channel goes at the latest when the slices of the one before have gone.
  localparam int AHEAD = PERMIT_CYCLES + STEP_CYCLES + ARRAY_CYCLES - 1;
  localparam int CODED_LEFT = (AHEAD + 1) / SLICES - 1;
  logic     streaming, coded;
  channel_t left;
  assign left      = last_channel - channel_q;   // channels behind the next
  assign coded     = tile_q.codes || tile_q.moments;
  assign streaming = channel_q > channel_t'(1)
                  && (tile_q.wgrad || (coded && started_q && (!tile_q.coding.stochastic || tile_q.paced)));
  // The next tile begins where this one ends, and finds its place among the hashes taken while a third one has none.
  logic random_full;
  assign busy_o    = random_full || (full_d && !(streaming && 32'(left) <= (tile_q.wgrad ? AHEAD : CODED_LEFT)));

  // ---- weight gradients, READ and END -----------------------------------------------------------------------------------------
  logic          add_out_of_range, read, lane_last_word;
  logic [31:0]   add_position;
  address_t      lane_entry, read_entry;
  channel_sums_t read_sums;
  assign lane_entry = lane_tile_q.entry + address_t'(lane_channel_q);
  assign lane_done  = lane_wgrad || (coded_go && slice_last) || (raw_send && lane_last_word);
  accumulators i_accumulators (
      .clk_i, .rst_i, .add_i(lane_wgrad), .stop_i(fault_o), .add_entry_i(lane_entry), .clear_i(lane_tile_q.clear),
      .position_i(lane_tile_q.position), .lane_i(lane), .busy_o(adding), .out_of_range_o(add_out_of_range),
      .position_o(add_position), .read_i(read), .read_entry_i(read_entry), .data_o(read_sums)
  );
  logic  port_ready, port_room, job_word_valid, job_word_last;
  beat_t job_word;
  drain_jobs i_jobs (
      .clk_i, .rst_i, .job_valid_i, .job_i, .job_done_o, .ended_o, .read_o(read), .read_entry_o(read_entry),
      .entry_i(read_sums), .valid_o(job_word_valid), .word_o(job_word), .last_o(job_word_last), .ready_i(port_ready),
      .out_of_range_i(add_out_of_range), .position_i(add_position), .fault_clear_i, .fault_o, .error_o, .position_o,
      .packets_o
  );

  // ---- entries of buffer E: both halves of one are read with the channel --------------------------------------------------------
  localparam int unsigned LOWER = 3 * MULTIPLIER_BITS + OFFSET_BITS, UPPER = MULTIPLIER_BITS + VALUE_OFFSET_BITS;
  (* ram_style = "block" *) logic [LOWER-1:0] lower[DEPTH_EPILOGUE];
  (* ram_style = "block" *) logic [UPPER-1:0] upper[DEPTH_EPILOGUE];
  logic [LOWER-1:0] lower_q;
  logic [UPPER-1:0] upper_q;
  logic [EW-1:0]    entry_address_q;
  logic             entry_read_q;
  entry_t           entry;
  assign entry = {upper_q[VALUE_OFFSET_BITS+:MULTIPLIER_BITS], upper_q[VALUE_OFFSET_BITS-1:0], lower_q};
  always_ff @(posedge clk_i) begin
    if (epilogue_write_i && !epilogue_upper_i)
      lower[epilogue_address_i] <= {epilogue_data_i[64+:OFFSET_BITS], epilogue_data_i[0+:3*MULTIPLIER_BITS]};
    if (epilogue_write_i && epilogue_upper_i) upper[epilogue_address_i] <= epilogue_data_i[UPPER-1:0];
    entry_read_q    <= take;
    entry_address_q <= EW'(tile_q.entry + address_t'(channel_q));
    if (entry_read_q) begin
      lower_q <= lower[entry_address_q];
      upper_q <= upper[entry_address_q];
    end
  end

  logic [WIDTH-1:0][15:0] random;
  if (ROUNDING != 0) begin : gen_rounding
    rounding i_rounding (
        .clk_i, .rst_i(rst_i || fault_o), .begin_i(random_begin_i), .random_i, .full_o(random_full),
        .ready_o(random_ready),
        .take_i(random_valid_q && (started_q || begin_ok_q) && random_ready), .slice_i(slice_q), .last_i(slice_last), .random_o(random)
    );
  end else begin : gen_no_rounding
    logic unused;
    assign unused       = random_begin_i || |random_i;
    assign random_full  = 1'b0;
    assign random_ready = 1'b1;
    assign random       = '0;
  end

  // ---- the slice that enters the epilogue, when its values are here --------------------------------------------------------------
  portion_t                            portion, portion_q;
  logic                                coded_q;
  logic [WIDTH-1:0][31:0]              slice_acc;
  logic [WIDTH-1:0][MAX_SIDE_BITS-1:0] slice_added, slice_side;
  logic [WIDTH-1:0]                    slice_mask;
  always_comb begin
    portion         = '0;
    portion.codes   = lane_tile_q.codes;
    portion.moments = lane_tile_q.moments || lane_tile_q.records;
    portion.records = lane_tile_q.records;
    portion.crossed = lane_tile_q.crossed;
    portion.coding  = lane_tile_q.coding;
    portion.channel = lane_channel_q;
    portion.slice   = slice_q;
    portion.entry   = lane_tile_q.channel + moment_entry_t'(lane_channel_q);
    portion.first   = lane_tile_q.first;
    portion.last    = lane_tile_q.last && tile_end;
    for (int unsigned p = 0; p < WIDTH; p++)
      portion.counts[p] = lane_tile_q.counts[($clog2(LANES))'(32'(slice_q) * WIDTH + p)];
  end
  always_ff @(posedge clk_i) begin
    portion_q <= portion;
    coded_q   <= coded_go && !rst_i;
  end
  always_comb
    for (int unsigned p = 0; p < WIDTH; p++) begin
      automatic logic [$clog2(LANES)-1:0] from = ($clog2(LANES))'(32'(portion_q.slice) * WIDTH + p);
      slice_acc[p]   = lane[from][31:0];
      slice_added[p] = lane_operand[from].added;
      slice_side[p]  = lane_operand[from].side;
      slice_mask[p]  = lane_operand[from].mask;
    end
  logic                              code_valid, epilogue_busy, moments_take;
  portion_t                          code_portion, moments_portion;
  element_t [WIDTH-1:0]              element;
  logic [WIDTH-1:0][VALUE_BITS-1:0]  moments_value, moments_factor;
  logic [$clog2(2*WIDTH+1)-1:0]      saturated;
  epilogue i_epilogue (
      .clk_i, .rst_i, .valid_i(coded_q), .portion_i(portion_q), .acc_i(slice_acc), .added_i(slice_added),
      .side_i(slice_side), .mask_i(slice_mask), .entry_i(entry), .random_i(random), .moments_valid_o(moments_take),
      .moments_portion_o(moments_portion), .moments_value_o(moments_value), .moments_factor_o(moments_factor),
      .codes_valid_o(code_valid), .codes_portion_o(code_portion), .element_o(element), .saturated_o(saturated),
      .busy_o(epilogue_busy)
  );
  assign saturated_o = 7'(saturated);

  // ---- codes and moments ----------------------------------------------------------------------------------------------------------
  logic  code_word_valid, moments_ready, moments_send, moments_busy;
  beat_t code_word, moments_word;
  code_buffer i_codes (
      .clk_i, .rst_i, .free_o(codes_free), .begin_i(coded_go && !started_q && lane_tile_q.codes), .valid_i(code_valid),
      .portion_i(code_portion), .element_i(element), .gone_o(codes_gone), .ready_i(port_ready), .room_i(port_room),
      .valid_o(code_word_valid), .word_o(code_word)
  );
  moments i_moments (
      .clk_i, .rst_i, .valid_i(moments_take), .portion_i(moments_portion), .value_i(moments_value),
      .factor_i(moments_factor), .busy_o(moments_busy), .ready_o(moments_ready), .send_i(moments_send),
      .word_o(moments_word)
  );
  assign moments_send = moments_ready && codes_gone && port_ready;
  // from a packet's last slice until its moments have left: nothing else may come in between
  logic moments_seen_q;
  always_ff @(posedge clk_i) begin
    if (coded_go && portion.last && portion.moments) moments_open_q <= 1'b1;
    else if (moments_seen_q && !moments_ready && !moments_busy) moments_open_q <= 1'b0;
    moments_seen_q <= moments_open_q && (moments_seen_q || moments_ready);
    if (rst_i) {moments_open_q, moments_seen_q} <= '0;
  end

  // ---- integers --------------------------------------------------------------------------------------------------------------------
  beat_t lane_word;
  logic  lane_word_valid, lane_words_busy;
  assign raw_send = lane_valid_q && lane_raw_q && raw_ok_q && port_ready;
  sum_words #(.COUNT(LANES)) i_words (
      .clk_i, .rst_i(rst_i || fault_o), .next_i(raw_send), .wide_i(lane_tile_q.wide), .last_o(lane_last_word), .sums_i(lane),
      .busy_o(lane_words_busy), .valid_o(lane_word_valid), .word_o(lane_word)
  );

  // ---- output ----------------------------------------------------------------------------------------------------------------------
  result_port #(.SOURCES(4), .ROOM(EPILOGUE_CYCLES - 3)) i_port (
      .clk_i, .rst_i, .valid_i({job_word_valid, moments_send, lane_word_valid, code_word_valid}),
      .word_i({job_word, moments_word, lane_word, code_word}), .last_i(job_word_last), .ready_o(port_ready),
      .room_o(port_room), .empty_o(out_empty_o), .out_valid_o, .out_ready_i, .out_data_o, .out_last_o
  );
  assign idle_o = !full_q && !capture_i && !lane_valid_q && !adding && !coded_q && !epilogue_busy && codes_gone
               && !moments_open_q && !moments_busy && !lane_words_busy;

`ifndef SYNTHESIS
  a_lane: assert property (@(posedge clk_i) disable iff (rst_i) adds_q == (lane_valid_q && lane_wgrad_q) && coded_valid_q == (lane_valid_q && lane_coded_q)
                           && random_valid_q == (lane_valid_q && lane_coded_q && lane_tile_q.coding.stochastic));
  // a tile is over only when the one before has left the shadow copy
  a_capture: assert property (@(posedge clk_i) disable iff (rst_i) capture_i |-> !full_q || (take && channel_q == last_channel));
  // a channel stays until its unit has taken it
  a_lane_waits: assert property (@(posedge clk_i) disable iff (rst_i) lane_valid_q && !lane_done && !fault_o |=> fault_o || (lane_valid_q && $stable(lane_channel_q)));
  // a tile's slices follow each other: the code buffer counts on it
  a_slices: assert property (@(posedge clk_i) disable iff (rst_i || fault_o) started_q && (!lane_tile_q.coding.stochastic || lane_tile_q.paced) && lane_valid_q |-> coded_go);
  // READ and END come after everything before them
  a_job_after_all: assert property (@(posedge clk_i) disable iff (rst_i) job_valid_i |-> idle_o);
`endif
endmodule

`default_nettype wire
