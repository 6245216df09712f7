// SPDX-License-Identifier: Apache-2.0
// Results: takes a finished tile out of the array into a shadow copy, one output channel (L values) at a time, and
// sends it as integers, sends it as codes through the epilogue, or adds it to the accumulator memory.
// Also runs READ and END, which come after everything before them has left.
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
    input  wire  [LANES-1:0][ACC_BITS-1:0]                   sum_i,
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
    output logic [7:0]                                       error_o,
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
  localparam int unsigned MW = $clog2(DEPTH_ACCUMULATOR);
  localparam int unsigned CW = $clog2(CHANNELS + 1);
  localparam int unsigned PIXELS = 64 / CHANNELS;  // pixels in one word of codes

  // ---- shadow copy of the array ------------------------------------------------------------------------------------
  logic [CHANNELS:0][LANES-1:0][ACC_BITS-1:0] shadow_q;  // [channel], the operand sums last
  tile_t          tile_q;
  logic           full_q;      // shadow holds values not yet taken
  logic [CW-1:0]  channel_q;   // next channel to take
  always_ff @(posedge clk_i)
    if (capture_i) begin
      for (int unsigned p = 0; p < LANES; p++) begin
        for (int unsigned c = 0; c < CHANNELS; c++) shadow_q[c][p] <= acc_i[p][c];
        shadow_q[CHANNELS][p] <= sum_i[p];
      end
      tile_q <= tile_i;
    end

  logic [CW-1:0]  last_channel;
  assign last_channel = tile_q.with_sum ? CW'(CHANNELS) : CW'(CHANNELS - 1);

  // ---- one channel at a time ------------------------------------------------------------------------------------------
  logic [LANES-1:0][ACC_BITS-1:0] lane_q;
  tile_t          lane_tile_q;
  logic [CW-1:0]  lane_channel_q;
  logic           lane_valid_q;
  logic           lane_done;   // this channel is consumed in this cycle
  logic           take;
  assign take = full_q && (!lane_valid_q || lane_done);

  always_ff @(posedge clk_i) begin
    if (take) begin
      lane_q         <= shadow_q[channel_q];
      lane_tile_q    <= tile_q;
      lane_channel_q <= channel_q;
    end
    if (take) lane_valid_q <= 1'b1;
    else if (lane_done) lane_valid_q <= 1'b0;
    if (take) begin
      channel_q <= channel_q + CW'(1);
      if (channel_q == last_channel) full_q <= 1'b0;
    end
    if (capture_i) begin
      full_q    <= 1'b1;
      channel_q <= '0;
    end
    if (rst_i || fault_o) begin
      full_q       <= 1'b0;
      lane_valid_q <= 1'b0;
    end
  end
  // Once a tile of codes or of a weight gradient has started, one channel leaves per cycle: the next tile may end as soon
  // as the rest is gone by the time it arrives, which is AHEAD cycles after the sequencer's decision.
  localparam int unsigned AHEAD = STEP_CYCLES + ARRAY_CYCLES;
  logic streaming;
  assign streaming = full_q && channel_q != 0
                  && (tile_q.wgrad || (tile_q.format == FORMAT_CODES && !tile_q.stochastic && channel_q > CW'(1)));
  assign busy_o = full_q && !(streaming && last_channel - channel_q <= CW'(AHEAD));

  logic lane_conv, lane_codes, lane_float, lane_statistics, lane_raw;
  assign lane_conv       = lane_valid_q && !lane_tile_q.wgrad && !fault_o;
  assign lane_codes      = lane_conv && lane_tile_q.format == FORMAT_CODES;
  assign lane_float      = lane_conv && lane_tile_q.format == FORMAT_FLOAT32;
  assign lane_statistics = lane_conv && lane_tile_q.format == FORMAT_STATISTICS;
  assign lane_raw        = lane_conv && !lane_codes && !lane_float && !lane_statistics;

  // ---- accumulator memory ---------------------------------------------------------------------------------------------
  logic                             mem_write_q;
  logic [MW-1:0]                    mem_write_address_q, mem_read_address;
  logic                             mem_read;
  logic [CHANNELS-1:0][ACC_BITS-1:0] mem_data, mem_write_data;
  for (genvar c = 0; c < CHANNELS; c++) begin : gen_accumulator
    (* ram_style = "block" *) logic [ACC_BITS-1:0] memory[DEPTH_ACCUMULATOR];
    logic [ACC_BITS-1:0] data_q;
    always_ff @(posedge clk_i) begin
      if (mem_write_q) memory[mem_write_address_q] <= mem_write_data[c];
      if (mem_read) data_q <= memory[mem_read_address];
    end
    assign mem_data[c] = data_q;
  end

  // channel -> half sums with the read -> sum with the write
  logic [CHANNELS-1:0][ACC_BITS-1:0] half_sum_q;
  logic [CHANNELS-1:0]               out_of_range;
  logic                              clear_q;
  logic [31:0]                       add_position_q;
  logic                              wgrad_take;
  assign wgrad_take = lane_valid_q && lane_tile_q.wgrad;
  always_ff @(posedge clk_i) begin
    mem_write_q <= wgrad_take && !rst_i && !fault_o;
    if (wgrad_take) begin
      mem_write_address_q <= MW'(lane_tile_q.entry + 17'(lane_channel_q));
      clear_q             <= lane_tile_q.clear;
      add_position_q      <= lane_tile_q.position;
      for (int unsigned c = 0; c < CHANNELS; c++) half_sum_q[c] <= lane_q[c] + lane_q[CHANNELS+c];
    end
  end
  always_comb
    for (int unsigned c = 0; c < CHANNELS; c++) begin
      automatic logic signed [ACC_BITS:0] total =
          $signed({half_sum_q[c][ACC_BITS-1], half_sum_q[c]})
          + (clear_q ? '0 : $signed({mem_data[c][ACC_BITS-1], mem_data[c]}));
      mem_write_data[c] = total[ACC_BITS-1:0];
      out_of_range[c]   = total[ACC_BITS] != total[ACC_BITS-1];
    end

  // ---- parameters of the channel ---------------------------------------------------------------------------------------
  (* ram_style = "distributed" *) logic [MULTIPLIER_BITS+ACC_BITS-1:0] parameters[DEPTH_EPILOGUE];
  logic [MULTIPLIER_BITS-1:0] multiplier_q;
  logic [ACC_BITS-1:0]        offset_q;
  logic [31:0]                index_q;      // random index of the channel's pixel 0
  logic [LANES-1:0][31:0]     lane_low;
  always_comb for (int unsigned p = 0; p < LANES; p++) lane_low[p] = lane_q[p][31:0];
  always_ff @(posedge clk_i) begin
    if (epilogue_write_i) parameters[epilogue_address_i] <= epilogue_data_i;
    if (take) begin
      {multiplier_q, offset_q} <= parameters[EW'(tile_q.entry + 17'(channel_q))];
      index_q <= channel_q == 0 ? tile_q.index : index_q + tile_q.channel_stride;
    end
  end

  // ---- codes ----------------------------------------------------------------------------------------------------------
  logic [1:0]               buffer_used_q;    // tiles in the code buffers
  logic                     buffer_write_q;   // which buffer the next tile goes to
  logic                     buffer_read_q;
  logic [1:0][CHANNELS-1:0][LANES-1:0][15:0] code_q;
  tile_t [1:0]              buffer_tile_q;
  logic                     codes_take, tile_in_flight_q;
  logic                     rounding_ready, float_busy, statistics_busy;
  // a tile starts only into a free buffer; its channels then follow without a stop, but for random numbers
  assign codes_take = lane_codes && !float_busy && !statistics_busy && (!lane_tile_q.stochastic || rounding_ready)
                   && (lane_channel_q != 0 || (buffer_used_q != 2'd2 && !tile_in_flight_q));

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

  logic                   code_valid, epilogue_busy;
  logic [CW-1:0]          code_channel;
  tile_t                  code_tile;
  logic [LANES-1:0][15:0] code;
  logic [6:0]             clamped;
  epilogue i_epilogue (
      .clk_i, .rst_i, .valid_i(codes_take), .acc_i(lane_low), .channel_i(lane_channel_q), .tile_i(lane_tile_q),
      .multiplier_i(multiplier_q), .offset_i(offset_q), .error_i(rounding_error), .valid_o(code_valid),
      .busy_o(epilogue_busy), .channel_o(code_channel), .tile_o(code_tile), .code_o(code), .saturated_o(clamped)
  );

  logic buffer_push, buffer_pop;
  assign buffer_push = code_valid && code_channel == CW'(CHANNELS - 1);
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < 2; b++)
      for (int unsigned c = 0; c < CHANNELS; c++)
        if (code_valid && buffer_write_q == 1'(b) && code_channel == CW'(c)) code_q[b][c] <= code;
    if (code_valid) buffer_tile_q[buffer_write_q] <= code_tile;
    if (buffer_push) buffer_write_q <= !buffer_write_q;
    if (buffer_pop) buffer_read_q <= !buffer_read_q;
    buffer_used_q <= buffer_used_q + 2'(buffer_push) - 2'(buffer_pop);
    if (codes_take && lane_channel_q == 0) tile_in_flight_q <= 1'b1;
    else if (buffer_push) tile_in_flight_q <= 1'b0;
    if (rst_i) begin
      {buffer_write_q, buffer_read_q, tile_in_flight_q} <= '0;
      buffer_used_q <= '0;
    end
  end

  // ---- output register ------------------------------------------------------------------------------------------------
  logic        out_valid_q, out_last_q, out_free;
  logic [63:0] out_data_q;
  assign out_free    = !out_valid_q || out_ready_i;
  assign out_valid_o = out_valid_q;
  assign out_data_o  = out_data_q;
  assign out_last_o  = out_last_q;

  // words of a tile of codes: plane after plane
  logic [4:0] plane_q;
  logic [3:0] code_word_q;
  logic [63:0] code_word;
  logic        code_send;
  assign code_send  = buffer_used_q != 0 && out_free;
  assign buffer_pop = code_send && code_word_q == 4'(ROW_WORDS - 1)
                    && plane_q == buffer_tile_q[buffer_read_q].out_bits - 5'd1;
  // two small choices, one after the other: which pixels, then which plane
  logic [63:0][15:0] code_pixels;
  always_comb begin
    code_pixels = '0;
    for (int unsigned b = 0; b < 2; b++)
      for (int unsigned w = 0; w < ROW_WORDS; w++)
        if (buffer_read_q == 1'(b) && code_word_q == 4'(w))
          for (int unsigned x = 0; x < PIXELS; x++)
            for (int unsigned c = 0; c < CHANNELS; c++) code_pixels[x*CHANNELS+c] = code_q[b][c][w*PIXELS+x];
    for (int unsigned e = 0; e < 64; e++) code_word[e] = code_pixels[e][plane_q[3:0]];
  end

  // words of a channel of integers or floats
  logic [5:0]  raw_word_q;
  logic [63:0] raw_word;
  logic        raw_send, raw_wide;
  assign raw_wide = lane_tile_q.format == FORMAT_INT64;
  // results leave in order: whatever is under way on another path goes first
  logic codes_gone;
  assign codes_gone = buffer_used_q == 0 && !tile_in_flight_q;
  assign raw_send   = lane_raw && out_free && codes_gone && !float_busy && !statistics_busy;
  always_comb begin
    if (raw_wide) raw_word = 64'($signed(lane_q[($clog2(LANES))'(raw_word_q)]));
    else
      raw_word = {lane_q[{raw_word_q[$clog2(LANES)-2:0], 1'b1}][31:0], lane_q[{raw_word_q[$clog2(LANES)-2:0], 1'b0}][31:0]};
  end
  logic raw_last;
  assign raw_last = raw_word_q == (raw_wide ? 6'(LANES - 1) : 6'(LANES / 2 - 1));
  logic        float_take, float_enable, float_valid, float_send;
  logic [63:0] float_word;
  logic [1:0]  float_infinite;
  assign float_enable = !float_valid || out_free;
  assign float_take   = lane_float && float_enable && codes_gone && !statistics_busy;
  assign float_send   = float_valid && out_free;
  float_output i_float (
      .clk_i, .rst_i, .enable_i(float_enable), .valid_i(float_take), .acc_i(raw_word),
      .scale_i(offset_q[31:0]), .offset_i({multiplier_q[15:0], offset_q[47:32]}),
      .valid_o(float_valid), .busy_o(float_busy), .word_o(float_word), .infinite_o(float_infinite)
  );
  assign saturated_o = clamped + (float_send ? 7'($countones(float_infinite)) : '0);

  logic        statistics_done, statistics_ready, statistics_send;
  assign statistics_send = statistics_ready && out_free && codes_gone && !float_busy;
  assign lane_done = wgrad_take || codes_take || ((raw_send || float_take) && raw_last) || statistics_done;
  logic [63:0] statistics_word;
  statistics i_statistics (
      .clk_i, .rst_i, .valid_i(lane_statistics), .lane_i(lane_low),
      .channel_i(($clog2(MAX_OUT_GROUPS * CHANNELS))'(lane_tile_q.entry + 17'(lane_channel_q))),
      .pixels_i(lane_tile_q.pixels), .first_i(lane_tile_q.first),
      .last_i(lane_tile_q.last && lane_channel_q == CW'(CHANNELS - 1)), .done_o(statistics_done),
      .busy_o(statistics_busy), .ready_o(statistics_ready), .send_i(statistics_send), .word_o(statistics_word)
  );

  // ---- READ and END -----------------------------------------------------------------------------------------------------
  typedef enum logic [2:0] {NONE, FETCH, CHECK, SEND, TRAILER0, TRAILER1, FINISH} job_state_t;
  job_state_t  job_state_q;
  command_t    job_q;
  logic [16:0] read_entry_q;
  logic [15:0] read_left_q;
  logic [4:0]  read_word_q;
  logic        fault_q;
  logic [31:0] fault_position_q;
  logic        read_wide, read_last, read_overflow;
  logic [63:0] read_word;
  assign read_wide = job_q.header.format == FORMAT_INT64;
  assign read_last = read_word_q == (read_wide ? 5'(CHANNELS - 1) : 5'(CHANNELS / 2 - 1));
  always_comb begin
    if (read_wide) read_word = 64'($signed(mem_data[($clog2(CHANNELS))'(read_word_q)]));
    else
      read_word = {mem_data[{read_word_q[$clog2(CHANNELS)-2:0], 1'b1}][31:0], mem_data[{read_word_q[$clog2(CHANNELS)-2:0], 1'b0}][31:0]};
    read_overflow = 1'b0;
    for (int unsigned c = 0; c < CHANNELS; c++)
      if (!read_wide && mem_data[c][ACC_BITS-1:31] != {ACC_BITS - 31{mem_data[c][31]}}) read_overflow = 1'b1;
  end
  assign mem_read = job_state_q == FETCH || wgrad_take;
  assign mem_read_address = job_state_q == FETCH ? MW'(read_entry_q) : MW'(lane_tile_q.entry + 17'(lane_channel_q));
  logic read_send;
  assign read_send = job_state_q == SEND && out_free;

  assign error_o    = fault_q ? ERR_ACCUMULATOR_RANGE : job_q.error;
  assign position_o = fault_q ? fault_position_q : job_q.error == ERR_NONE ? '0 : job_q.position;
  assign packets_o  = fault_q ? fault_position_q : job_q.error == ERR_NONE ? job_q.position + 1 : job_q.position;
  assign idle_o = !full_q && !capture_i && !lane_valid_q && !mem_write_q && !epilogue_busy && buffer_used_q == 0
               && !float_busy && !statistics_busy;
  assign job_done_o = job_state_q == FINISH;
  assign ended_o    = job_done_o && job_q.header.opcode == OP_END;
  assign fault_o = fault_q;

  always_ff @(posedge clk_i) begin
    if (out_ready_i) out_valid_q <= 1'b0;
    if (code_send) begin
      out_valid_q <= 1'b1;
      out_data_q  <= code_word;
      out_last_q  <= 1'b0;
      code_word_q <= code_word_q + 4'd1;
      if (code_word_q == 4'(ROW_WORDS - 1)) begin
        code_word_q <= '0;
        plane_q     <= plane_q + 5'd1;
      end
      if (buffer_pop) plane_q <= '0;
    end else if (raw_send || float_send || statistics_send) begin
      out_valid_q <= 1'b1;
      out_data_q  <= raw_send ? raw_word : float_send ? float_word : statistics_word;
      out_last_q  <= 1'b0;
    end else if (read_send) begin
      out_valid_q <= 1'b1;
      out_data_q  <= read_word;
      out_last_q  <= 1'b0;
    end else if ((job_state_q == TRAILER0 || job_state_q == TRAILER1) && out_free) begin
      out_valid_q <= 1'b1;
      out_data_q  <= job_state_q == TRAILER0 ? {TRAILER_MAGIC, 24'd0, error_o} : {packets_o, position_o};
      out_last_q  <= job_state_q == TRAILER1;
    end

    if (raw_send || float_take) raw_word_q <= raw_last ? '0 : raw_word_q + 6'd1;

    unique case (job_state_q)
      NONE:
        if (job_valid_i) begin
          job_q        <= job_i;
          read_entry_q <= 17'(job_i.header.base_accumulator);
          read_left_q  <= job_i.header.rows;
          job_state_q  <= job_i.header.opcode == OP_END ? TRAILER0 : FETCH;
        end
      FETCH: begin
        read_entry_q <= read_entry_q + 17'd1;
        read_word_q  <= '0;
        job_state_q  <= CHECK;
      end
      CHECK: begin
        job_state_q <= SEND;
        if (read_overflow) begin
          fault_q          <= 1'b1;
          fault_position_q <= job_q.position;
          job_state_q      <= FINISH;
        end
      end
      SEND:
        if (out_free) begin
          read_word_q <= read_word_q + 5'd1;
          if (read_last) begin
            read_left_q <= read_left_q - 16'd1;
            job_state_q <= read_left_q == 16'd1 ? FINISH : FETCH;
          end
        end
      TRAILER0: if (out_free) job_state_q <= TRAILER1;
      TRAILER1: if (out_free) job_state_q <= FINISH;
      FINISH: job_state_q <= NONE;
      default: job_state_q <= NONE;
    endcase

    if (mem_write_q && |out_of_range && !fault_q) begin
      fault_q          <= 1'b1;
      fault_position_q <= add_position_q;
    end
    if (rst_i || fault_clear_i) fault_q <= 1'b0;
    if (rst_i) begin
      out_valid_q <= 1'b0;
      job_state_q <= NONE;
      plane_q     <= '0;
      code_word_q <= '0;
      raw_word_q  <= '0;
    end
  end
endmodule

`default_nettype wire
