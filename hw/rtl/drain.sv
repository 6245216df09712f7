// SPDX-License-Identifier: Apache-2.0
// Results: takes a finished tile out of the array into a shadow copy, one output channel (L values) at a time, and
// hands every channel to the unit of its format.  Results leave in order, READ and END after everything before them.
//
//   WGRAD                      -> accumulators -> drain_jobs (READ, END) -> result_port
//   CONV -> integers           -> lane_words ----------------------------> result_port
//        -> codes, (rounding)  -> epilogue -> code_buffer ---------------> result_port
//        -> statistics ----------------------------------------------------> result_port
`default_nettype none

module drain
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                                              clk_i,
    input  wire                                              rst_i,
    // a tile is complete in the array in this cycle
    input  wire                                              capture_i,
    input  wire tile_t                                       tile_i,
    input  wire  [LANES-1:0][CHANNELS-1:0][ACC_BITS-1:0]     acc_i,
    input  wire lane_sums_t                                  sum_i,
    output logic                                             busy_o,      // the next tile must not end yet
    output logic                                             idle_o,
    // READ and END
    input  wire                                              job_valid_i,
    input  wire command_t                                    job_i,
    output logic                                             job_done_o,
    output logic                                             ended_o,     // trailer sent
    // epilogue parameters
    input  wire                                              epilogue_write_i,
    input  wire  [$clog2(DEPTH_EPILOGUE)-1:0]                epilogue_address_i,
    input  wire  [MULTIPLIER_BITS+ACC_BITS-1:0]              epilogue_data_i,
    // a weight gradient left its range
    output logic                                             fault_o,
    input  wire                                              fault_clear_i,
    // final word of the program's status
    output error_t                                           error_o,
    output logic [31:0]                                      position_o,
    output logic [31:0]                                      packets_o,
    output logic [6:0]                                       saturated_o,
    // output stream
    output logic                                             out_valid_o,
    input  wire                                              out_ready_i,
    output logic [63:0]                                      out_data_o,
    output logic                                             out_last_o
);
  localparam int unsigned EW = $clog2(DEPTH_EPILOGUE);

  // ---- shadow copy of the array ---------------------------------------------------------------------------------------
  logic [CHANNELS:0][LANES-1:0][ACC_BITS-1:0] shadow_q;  // [channel], the operand sums last
  tile_t    tile_q;
  logic     full_q, full_d;         // shadow holds values not yet taken
  channel_t channel_q, channel_d;   // next channel to take
  channel_t last_channel;
  always_ff @(posedge clk_i)
    if (capture_i) begin
      for (int unsigned p = 0; p < LANES; p++) begin
        for (int unsigned c = 0; c < CHANNELS; c++) shadow_q[c][p] <= acc_i[p][c];
        shadow_q[CHANNELS][p] <= sum_i[p];
      end
      tile_q <= tile_i;
    end
  assign last_channel = tile_q.with_sum ? channel_t'(CHANNELS) : channel_t'(CHANNELS - 1);

  // ---- one channel at a time ------------------------------------------------------------------------------------------
  lane_sums_t lane_q;
  tile_t      lane_tile_q;
  channel_t   lane_channel_q;
  logic       lane_valid_q, lane_valid_d;
  logic       lane_done;   // this channel is consumed in this cycle
  logic       take;
  assign take = full_q && (!lane_valid_q || lane_done);
  always_comb begin
    lane_valid_d = take || (lane_valid_q && !lane_done);
    channel_d    = channel_q + channel_t'(take);
    full_d       = full_q && !(take && channel_q == last_channel);
    if (capture_i) begin
      full_d    = 1'b1;
      channel_d = '0;
    end
    if (rst_i || fault_o) begin
      full_d       = 1'b0;
      lane_valid_d = 1'b0;
    end
  end
  always_ff @(posedge clk_i) begin
    full_q       <= full_d;
    channel_q    <= channel_d;
    lane_valid_q <= lane_valid_d;
    if (take) begin
      lane_q         <= shadow_q[channel_q];
      lane_tile_q    <= tile_q;
      lane_channel_q <= channel_q;
    end
  end
  // Once a tile of codes or of a weight gradient has started, one channel leaves per cycle: the next tile may end as soon
  // as the rest is gone by the time it arrives, which is AHEAD cycles after the sequencer's decision.
  localparam int unsigned AHEAD = STEP_CYCLES + ARRAY_CYCLES;
  logic streaming;
  assign streaming = full_q && channel_q != 0
                  && (tile_q.wgrad || (tile_q.format == FORMAT_CODES && !tile_q.stochastic && channel_q > channel_t'(1)));
  assign busy_o = full_q && !(streaming && last_channel - channel_q <= channel_t'(AHEAD));

  logic lane_wgrad, lane_conv, lane_codes, lane_statistics, lane_raw;
  assign lane_wgrad      = lane_valid_q && lane_tile_q.wgrad;
  assign lane_conv       = lane_valid_q && !lane_tile_q.wgrad && !fault_o;
  assign lane_codes      = lane_conv && lane_tile_q.format == FORMAT_CODES;
  assign lane_statistics = lane_conv && lane_tile_q.format == FORMAT_STATISTICS;
  assign lane_raw        = lane_conv && !lane_codes && !lane_statistics;

  // entry of the channel in the accumulator or epilogue memory, or its number among a packet's (statistics)
  address_t lane_entry;
  logic [LANES-1:0][31:0] lane_low;
  assign lane_entry = lane_tile_q.entry + address_t'(lane_channel_q);
  always_comb for (int unsigned p = 0; p < LANES; p++) lane_low[p] = lane_q[p][31:0];

  // ---- order: a unit begins only when no result is under way in another ------------------------------------------------
  logic codes_gone, statistics_busy;
  logic codes_take, raw_send, statistics_done, lane_last_word;
  assign lane_done = lane_wgrad || codes_take || (raw_send && lane_last_word) || statistics_done;

  // ---- weight gradients, READ and END -----------------------------------------------------------------------------------
  logic          adding, add_out_of_range, read;
  logic [31:0]   add_position;
  address_t      read_entry;
  channel_sums_t read_sums;
  accumulators i_accumulators (
      .clk_i, .rst_i, .add_i(lane_wgrad), .stop_i(fault_o), .add_entry_i(lane_entry), .clear_i(lane_tile_q.clear),
      .position_i(lane_tile_q.position), .lane_i(lane_q), .busy_o(adding), .out_of_range_o(add_out_of_range),
      .position_o(add_position), .read_i(read), .read_entry_i(read_entry), .data_o(read_sums)
  );
  logic        port_ready, job_word_valid, job_word_last;
  logic [63:0] job_word;
  drain_jobs i_jobs (
      .clk_i, .rst_i, .job_valid_i, .job_i, .job_done_o, .ended_o, .read_o(read), .read_entry_o(read_entry),
      .entry_i(read_sums), .valid_o(job_word_valid), .word_o(job_word), .last_o(job_word_last), .ready_i(port_ready),
      .out_of_range_i(add_out_of_range), .position_i(add_position), .fault_clear_i, .fault_o, .error_o, .position_o,
      .packets_o
  );

  // ---- parameters of the channel ----------------------------------------------------------------------------------------
  (* ram_style = "distributed" *) logic [MULTIPLIER_BITS+ACC_BITS-1:0] parameters[DEPTH_EPILOGUE];
  logic [MULTIPLIER_BITS-1:0] multiplier_q;
  logic [ACC_BITS-1:0]        offset_q;
  index_t                     index_q;      // random index of the channel's pixel 0
  always_ff @(posedge clk_i) begin
    if (epilogue_write_i) parameters[epilogue_address_i] <= epilogue_data_i;
    if (take) begin
      {multiplier_q, offset_q} <= parameters[EW'(tile_q.entry + address_t'(channel_q))];
      index_q <= channel_q == 0 ? tile_q.index : index_q + tile_q.channel_stride;
    end
  end

  // ---- codes: a tile starts only into a free buffer; its channels then follow without a stop, but for random numbers ----
  logic rounding_ready, buffer_free;
  assign codes_take = lane_codes && !statistics_busy && (!lane_tile_q.stochastic || rounding_ready)
                   && (lane_channel_q != 0 || buffer_free);

  logic [LANES-1:0][MAX_SHIFT-1:0] rounding_error;
  if (ROUNDING_LANES != 0) begin : gen_rounding
    rounding i_rounding (
        .clk_i, .rst_i, .start_i(lane_codes && lane_tile_q.stochastic), .key_i(lane_tile_q.key), .index_i(index_q),
        .image_stride_i(lane_tile_q.image_stride), .pixel_stride_i(lane_tile_q.pixel_stride),
        .segment_start_i(lane_tile_q.segment_start), .shift_i(lane_tile_q.shift), .ready_o(rounding_ready),
        .take_i(codes_take), .error_o(rounding_error)
    );
  end else begin : gen_no_rounding
    assign rounding_ready = 1'b1;
    assign rounding_error = '0;
  end

  logic                   code_valid, epilogue_busy, code_word_valid;
  channel_t               code_channel;
  tile_t                  code_tile;
  logic [LANES-1:0][15:0] code;
  logic [63:0]            code_word;
  epilogue i_epilogue (
      .clk_i, .rst_i, .valid_i(codes_take), .acc_i(lane_low), .channel_i(lane_channel_q), .tile_i(lane_tile_q),
      .multiplier_i(multiplier_q), .offset_i(offset_q), .error_i(rounding_error), .valid_o(code_valid),
      .busy_o(epilogue_busy), .channel_o(code_channel), .tile_o(code_tile), .code_o(code), .saturated_o
  );
  code_buffer i_codes (
      .clk_i, .rst_i, .free_o(buffer_free), .begin_i(codes_take && lane_channel_q == 0), .valid_i(code_valid),
      .channel_i(code_channel), .bits_i(code_tile.out_bits), .code_i(code), .holds_o(code_word_valid),
      .gone_o(codes_gone), .ready_i(port_ready), .word_o(code_word)
  );

  // ---- integers -----------------------------------------------------------------------------------------------------------
  logic [63:0] lane_word;
  logic        raw_valid;
  assign raw_valid = lane_raw && codes_gone && !statistics_busy;
  assign raw_send  = raw_valid && port_ready;
  lane_words i_words (
      .clk_i, .rst_i, .lane_i(lane_q), .wide_i(lane_tile_q.format == FORMAT_INT64), .next_i(raw_send),
      .word_o(lane_word), .last_o(lane_last_word)
  );

  // ---- statistics -----------------------------------------------------------------------------------------------------------
  logic        statistics_ready, statistics_valid;
  logic [63:0] statistics_word;
  assign statistics_valid = statistics_ready && codes_gone;
  statistics i_statistics (
      .clk_i, .rst_i, .valid_i(lane_statistics), .lane_i(lane_low),
      .channel_i(($clog2(MAX_OUT_GROUPS * CHANNELS))'(lane_entry)),
      .pixels_i(lane_tile_q.pixels), .first_i(lane_tile_q.first),
      .last_i(lane_tile_q.last && lane_channel_q == channel_t'(CHANNELS - 1)), .done_o(statistics_done),
      .busy_o(statistics_busy), .ready_o(statistics_ready), .send_i(statistics_valid && port_ready),
      .word_o(statistics_word)
  );

  // ---- output ---------------------------------------------------------------------------------------------------------------
  result_port #(.SOURCES(4)) i_port (
      .clk_i, .rst_i, .valid_i({job_word_valid, statistics_valid, raw_valid, code_word_valid}),
      .word_i({job_word, statistics_word, lane_word, code_word}), .last_i(job_word_last),
      .ready_o(port_ready), .out_valid_o, .out_ready_i, .out_data_o, .out_last_o
  );
  assign idle_o = !full_q && !capture_i && !lane_valid_q && !adding && !epilogue_busy && !code_word_valid
               && !statistics_busy;

`ifndef SYNTHESIS
  // a tile is over only when the one before has left the shadow copy
  a_capture: assert property (@(posedge clk_i) disable iff (rst_i) capture_i |-> !full_q || (take && channel_q == last_channel));
  // a channel stays until its unit has taken it
  a_lane_waits: assert property (@(posedge clk_i) disable iff (rst_i) lane_valid_q && !lane_done && !fault_o |=> fault_o || (lane_valid_q && $stable(lane_channel_q)));
  // READ and END come after everything before them
  a_job_after_all: assert property (@(posedge clk_i) disable iff (rst_i) job_valid_i |-> idle_o);
`endif
endmodule

`default_nettype wire
