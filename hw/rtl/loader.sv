// SPDX-License-Identifier: Apache-2.0
// Reads the two input streams in lockstep: parses and checks packets in order, fills the buffers, and queues commands.
// A LOAD waits only for earlier commands that still read the range it overwrites, so loads run ahead of the array.
`default_nettype none

module loader
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned AW = $clog2(DEPTH_A),
    localparam int unsigned GW = $clog2(DEPTH_G),
    localparam int unsigned WW = $clog2(DEPTH_W),
    localparam int unsigned EW = $clog2(DEPTH_EPILOGUE)
) (
    input  wire                  clk_i,
    input  wire                  rst_i,
    input  wire                  start_i,
    output logic                 done_o,       // streams read to their end; held until the next start
    // input streams
    input  wire  [1:0]           in_valid_i,
    output logic [1:0]           in_ready_o,
    input  wire  [1:0][63:0]     in_data_i,
    input  wire  [1:0]           in_last_i,
    // buffers
    output logic                 a_write_o,
    output logic                 g_write_o,
    output logic [2:0]           bank_o,
    output logic [AW-1:0]        a_address_o,
    output logic [GW-1:0]        g_address_o,
    output logic                 w_write_o,
    output logic [WW-1:0]        w_address_o,
    output logic                 e_write_o,
    output logic [EW-1:0]        e_address_o,
    output logic [7:0]           slice_o,
    output logic [127:0]         data_o,
    // commands
    output logic                 push_o,
    output command_t             command_o,
    input  wire                  full_i,
    output logic [16:0]          a_begin_o,
    output logic [16:0]          a_end_o,
    output logic [16:0]          g_begin_o,
    output logic [16:0]          g_end_o,
    output logic [16:0]          w_begin_o,
    output logic [16:0]          w_end_o,
    input  wire                  conflict_i,
    input  wire                  compute_idle_i,
    input  wire                  fault_i,
    // counters
    output logic                 took_o,
    output logic                 starved_o,
    output logic                 hazard_o,
    output logic [2:0]           saturated_o
);
  localparam int unsigned SLICES = ROW_WORDS / 2;
  localparam int unsigned WEIGHT_BEATS = WEIGHT_WORDS / 2;
  localparam int unsigned CHANNEL_BEATS = CHANNELS / 4;

  typedef enum logic [3:0] {
    STOP, HEADER, CHECK1, CHECK2, CHECK3, CHECK4, HAZARD, PAYLOAD, FLUSH, PUSH, NEXT, PUSH_END, SWALLOW
  } state_t;
  state_t state_q;

  logic [HEADER_BITS-1:0] raw_q;
  header_t h;
  assign h = raw_q;
  logic [2:0]  header_beat_q;
  logic [31:0] position_q;
  logic [7:0]  error_q;
  logic [1:0]  seen_last_q;
  logic        cut_q;            // a stream ended with the header

  // ---- streams: one beat takes a word of either ---------------------------------------------------------------------
  logic beat_ready, beat;
  assign beat_ready = state_q == HEADER || state_q == PAYLOAD;
  assign beat = beat_ready && &in_valid_i;
  assign in_ready_o = state_q == SWALLOW ? ~seen_last_q : {2{beat}};
  assign took_o     = beat;
  assign starved_o  = beat_ready && !beat;
  assign hazard_o   = state_q == HAZARD || state_q == PUSH;
  logic [127:0] word;
  assign word = in_data_i;

  // ---- header checks, over four cycles --------------------------------------------------------------------------------
  logic is_load, is_conv, is_wgrad, is_read, is_end, to_a, to_g, to_w, to_e, floats, ones;
  logic codes, statistics, float_out, stochastic, stride;
  assign is_load  = h.opcode == OP_LOAD;
  assign is_conv  = h.opcode == OP_CONV;
  assign is_wgrad = h.opcode == OP_WGRAD;
  assign is_read  = h.opcode == OP_READ;
  assign is_end   = h.opcode == OP_END;
  assign to_a     = is_load && h.target[TARGET_A];
  assign to_g     = is_load && h.target[TARGET_G];
  assign to_w     = is_load && h.target[TARGET_W];
  assign to_e     = is_load && h.target[TARGET_E];
  assign floats   = h.format == LOAD_FLOAT32;
  assign ones     = h.flags[FLAG_ONES];
  assign codes      = is_conv && h.format == FORMAT_CODES;
  assign statistics = is_conv && h.format == FORMAT_STATISTICS;
  assign float_out  = is_conv && h.format == FORMAT_FLOAT32;
  assign stride     = is_conv && h.flags[FLAG_STRIDE_2];

  logic tensor, entries;
  assign tensor  = to_a || to_g;
  assign entries = to_w || to_e;
  assign stochastic = h.flags[FLAG_STOCHASTIC] && (codes || (tensor && floats));

  logic [HEADER_BITS-1:0] used;  // all other bits must be zero
  assign used = used_bits(h.opcode, h.target, h.format) | (stochastic ? RANDOM_BITS : '0);

  logic [31:0] checksum;
  always_comb begin
    checksum = CHECK_SEED;
    for (int unsigned i = 0; i < HEADER_BITS / 32; i++) checksum = checksum ^ raw_q[32*i+:32];
  end

  function automatic logic bits_ok(input logic [7:0] bits);
    return bits != 0 && bits <= 8'(MAX_BITS);
  endfunction
  function automatic logic mask_bad(input logic [7:0] bits, input logic [15:0] planes);
    return bits_ok(bits) && |(planes >> bits[4:0]);
  endfunction
  function automatic logic bad_range(input logic [15:0] value, input int unsigned most);
    return value == 0 || 32'(value) > most;
  endfunction

  logic bad_field, bad_bits, bad_shape, bad_segments;
  logic [31:0] beyond_lanes;
  assign beyond_lanes = LANES == 32 ? '0 : 32'hFFFF_FFFF << LANES;
  always_comb begin
    bad_field = |(raw_q & ~used);
    if (tensor && floats) bad_field |= h.zero[30:23] == 8'hFF || h.reciprocal[30:23] == 8'hFF;
    if (is_wgrad) bad_field |= h.taps == 0;
    if (is_conv || is_wgrad) bad_field |= mask_bad(h.a_bits, h.a_planes) || mask_bad(h.b_bits, h.b_planes);

    bad_bits = ((tensor || is_conv || is_wgrad) && !bits_ok(h.a_bits)) || ((is_conv || is_wgrad) && !bits_ok(h.b_bits))
            || (codes && (!bits_ok(h.out_bits) || h.shift > 8'(MAX_SHIFT)));

    bad_segments = !h.segment_start[0] || |(h.segment_start & beyond_lanes);
    bad_shape = 1'b0;
    if (entries || is_read) bad_shape |= h.rows == 0;
    else if (!is_end) bad_shape |= bad_range(h.rows, MAX_ROWS);
    if (is_load || is_conv || is_wgrad)
      bad_shape |= bad_range(h.groups, entries ? 1 : MAX_GROUPS)
                || bad_range(h.out_groups, is_load ? 1 : MAX_OUT_GROUPS)
                || bad_range(h.images, entries || (tensor && floats) ? 1 : MAX_IMAGES);
    if (is_conv || is_wgrad || (tensor && floats)) bad_shape |= bad_segments;
    if (stride) bad_shape |= h.rows > 16'(MAX_ROWS / 4);
    if (statistics) bad_shape |= bad_range(h.pixels, LANES);
  end

  logic [14:0] image_blocks_q;     // images * blocks of eight rows
  logic [11:0] group_planes_q, b_planes_q;
  logic [16:0] group_tiles_q;      // pairs of groups * taps
  logic [16:0] row_images_q;       // rows * images
  logic [12:0] group_pairs;
  assign group_pairs = 13'(h.out_groups[6:0]) * (13'(h.groups[6:0]) + 13'(ones));
  logic [16:0] row_images;
  assign row_images = 17'(h.rows[10:0]) * 17'(h.images[6:0]);
  logic [7:0]  blocks;
  assign blocks = stride ? 8'((h.rows[10:0] + 11'd1) >> 1) : 8'((h.rows[10:0] + 11'd7) >> 3);
  logic [31:0] a_need_q, b_need_q, length_q, accumulator_need_q;
  logic [7:0]  early_error_q;
  logic [63:0] bound_q;
  logic [16:0] a_end_q, b_end_q;

  logic overflow, out_of_buffer;
  always_comb begin
    out_of_buffer = 1'b0;
    if (to_a || is_conv || is_wgrad) out_of_buffer |= 32'(h.base_a) + a_need_q > DEPTH_A;
    if (to_g || is_wgrad) out_of_buffer |= 32'(h.base_b) + b_need_q > DEPTH_G;
    if (to_w || is_conv) out_of_buffer |= 32'(h.base_b) + b_need_q > DEPTH_W;
    if (to_e) out_of_buffer |= 32'(h.base_epilogue) + 32'(h.rows) > DEPTH_EPILOGUE;
    if (codes || float_out) out_of_buffer |= 32'(h.base_epilogue) + 32'(h.out_groups) * CHANNELS > DEPTH_EPILOGUE;
    if (is_wgrad || is_read) out_of_buffer |= 32'(h.base_accumulator) + accumulator_need_q > DEPTH_ACCUMULATOR;
    overflow = (is_conv || is_wgrad)
            && bound_q > ((is_wgrad || h.format == FORMAT_INT64) ? 64'd1 << (ACC_BITS - 1) : 64'd1 << 31);
  end

  // ---- where payload goes ---------------------------------------------------------------------------------------------
  logic [16:0] a_block_q, g_block_q;   // first address of this block of rows
  logic [11:0] line_q;                 // group * bits + plane within a row
  logic [10:0] row_q;
  logic [7:0]  slice_q;
  logic [16:0] entry_q;
  logic [31:0] beats_left_q;

  // packed writes come straight from the beat; quantized slices come from the corner turn below
  logic         turn_write;
  logic [11:0]  turn_line;
  logic [7:0]   turn_slice;
  logic [16:0]  turn_a_block, turn_g_block;
  logic [2:0]   turn_bank;
  logic [127:0] turn_data;
  logic         packed_write;
  assign packed_write = state_q == PAYLOAD && beat && !(tensor && floats);
  assign a_write_o   = to_a && (packed_write || turn_write);
  assign g_write_o   = to_g && (packed_write || turn_write);
  assign w_write_o   = to_w && packed_write;
  assign e_write_o   = to_e && packed_write;
  assign bank_o      = floats ? turn_bank : row_q[2:0];
  assign a_address_o = floats ? AW'(turn_a_block + 17'(turn_line)) : AW'(a_block_q + 17'(line_q));
  assign g_address_o = floats ? GW'(turn_g_block + 17'(turn_line)) : GW'(g_block_q + 17'(line_q));
  assign w_address_o = WW'(entry_q);
  assign e_address_o = EW'(entry_q);
  assign slice_o     = floats ? turn_slice : slice_q;
  assign data_o      = floats ? turn_data : word;

  assign a_begin_o = 17'(h.base_a);
  assign a_end_o   = to_a ? a_end_q : 17'd0;
  assign g_begin_o = 17'(h.base_b);
  assign g_end_o   = to_g ? b_end_q : 17'd0;
  assign w_begin_o = 17'(h.base_b);
  assign w_end_o   = to_w ? b_end_q : 17'd0;

  // ---- float payload: position of a beat's four channels, their random indices -----------------------------------------
  logic [6:0]  f_group_q;
  logic [5:0]  f_pixel_q;
  logic [1:0]  f_quad_q;
  logic [31:0] index_q, pixel_index_q, segment_index_q, group_index_q, row_index_q;
  logic        float_beat;
  assign float_beat = state_q == PAYLOAD && beat && tensor && floats;
  logic bad_data;
  always_comb begin
    bad_data = 1'b0;
    for (int unsigned k = 0; k < 4; k++) if (word[32*k+23+:8] == 8'hFF) bad_data = float_beat;
  end

  logic quad_last, pixel_last, group_last;
  assign quad_last  = f_quad_q == 2'(CHANNEL_BEATS - 1);
  assign pixel_last = f_pixel_q == 6'(LANES - 1);
  assign group_last = f_group_q == h.groups[6:0] - 7'd1;

  // quantizer lanes
  logic [3:0][15:0] codes_out;
  logic [3:0]       clamped;
  for (genvar k = 0; k < 4; k++) begin : gen_quantizer
    quantizer i_quantizer (
        .clk_i,
        .enable_i    (1'b1),
        .x_i         (word[32*k+:32]),
        .zero_i      (h.zero),
        .reciprocal_i(h.reciprocal),
        .stochastic_i(h.flags[FLAG_STOCHASTIC]),
        .signed_i    (h.flags[FLAG_A_SIGNED]),
        .bits_i      (h.a_bits[4:0]),
        .key_i       (h.key),
        .index_i     (index_q + h.channel_stride * 32'(k)),
        .code_o      (codes_out[k]),
        .clamped_o   (clamped[k])
    );
  end
  logic [QUANTIZER_CYCLES-1:0] in_flight_q;
  logic                        code_valid;
  assign code_valid = in_flight_q[QUANTIZER_CYCLES-1];
  assign saturated_o = code_valid ? 3'(clamped[0]) + 3'(clamped[1]) + 3'(clamped[2]) + 3'(clamped[3]) : '0;

  // corner turn: 128 codes in, bits planes of 128 bits out, two buffers
  logic [1:0][31:0][3:0][15:0] turn_q;
  logic        fill_q, send_q;       // buffer being filled, being sent
  logic [1:0]  full_q;
  logic [4:0]  fill_count_q;
  logic [3:0]  plane_q;
  // position of the slice being sent
  logic [16:0] s_a_block_q, s_g_block_q;
  logic [11:0] s_line_q;             // group * bits
  logic [10:0] s_row_q;
  logic [7:0]  s_slice_q;
  logic [6:0]  s_group_q;
  assign turn_write   = full_q[send_q];
  assign turn_line    = s_line_q + 12'(plane_q);
  assign turn_slice   = s_slice_q;
  assign turn_a_block = s_a_block_q;
  assign turn_g_block = s_g_block_q;
  assign turn_bank    = s_row_q[2:0];
  always_comb
    for (int unsigned e = 0; e < 128; e++) turn_data[e] = turn_q[send_q][e/4][e%4][plane_q];
  logic turn_last;
  assign turn_last = turn_write && 8'(plane_q) == h.a_bits - 8'd1;

  always_ff @(posedge clk_i) begin
    in_flight_q <= {in_flight_q[QUANTIZER_CYCLES-2:0], float_beat};
    if (code_valid) begin
      turn_q[fill_q][fill_count_q] <= codes_out;
      fill_count_q <= fill_count_q + 5'd1;
      if (fill_count_q == 5'd31) begin
        fill_q         <= !fill_q;
        full_q[fill_q] <= 1'b1;
      end
    end
    if (turn_write) begin
      plane_q <= plane_q + 4'd1;
      if (turn_last) begin
        plane_q        <= '0;
        send_q         <= !send_q;
        full_q[send_q] <= 1'b0;
        s_slice_q      <= s_slice_q + 8'd1;
        if (s_slice_q == 8'(SLICES - 1)) begin
          s_slice_q <= '0;
          s_line_q  <= s_line_q + 12'(h.a_bits);
          s_group_q <= s_group_q + 7'd1;
          if (s_group_q == h.groups[6:0] - 7'd1) begin
            s_group_q <= '0;
            s_line_q  <= '0;
            s_row_q   <= s_row_q + 11'd1;
            if (s_row_q[2:0] == 3'd7) begin
              s_a_block_q <= s_a_block_q + 17'(group_planes_q);
              s_g_block_q <= s_g_block_q + 17'(group_planes_q);
            end
          end
        end
      end
    end
    if (state_q == HAZARD) begin
      in_flight_q <= '0;
      {fill_q, send_q, full_q, fill_count_q, plane_q} <= '0;
      {s_line_q, s_row_q, s_slice_q, s_group_q} <= '0;
      s_a_block_q <= 17'(h.base_a);
      s_g_block_q <= 17'(h.base_b);
    end
  end

  // ---- commands -------------------------------------------------------------------------------------------------------
  logic end_pushed_q;
  assign push_o = (state_q == PUSH || state_q == PUSH_END) && !full_i;
  always_comb begin
    command_o.header   = h;
    command_o.position = position_q;
    command_o.error    = error_q;
    command_o.a_end    = a_end_q;
    command_o.b_end    = b_end_q;
    if (state_q == PUSH_END) command_o.header.opcode = OP_END;
  end
  assign done_o = state_q == STOP;

  always_ff @(posedge clk_i) begin
    for (int unsigned k = 0; k < 2; k++)
      if (in_valid_i[k] && in_ready_o[k] && in_last_i[k]) seen_last_q[k] <= 1'b1;

    unique case (state_q)
      STOP:
        if (start_i) begin
          state_q       <= HEADER;
          position_q    <= '0;
          header_beat_q <= '0;
          error_q       <= ERR_NONE;
          seen_last_q   <= '0;
          end_pushed_q  <= 1'b0;
          cut_q         <= 1'b0;
        end
      HEADER:
        if (beat) begin
          raw_q <= {word, raw_q[HEADER_BITS-1:128]};
          header_beat_q <= header_beat_q + 3'd1;
          cut_q <= |in_last_i;
          if (header_beat_q == 3'(HEADER_BEATS - 1)) begin
            header_beat_q <= '0;
            state_q       <= CHECK1;
          end else if (|in_last_i) begin
            error_q <= ERR_TRUNCATED;
            state_q <= PUSH_END;
          end
        end
      CHECK1: begin
        image_blocks_q <= 15'(blocks) * 15'(h.images[6:0]);
        group_planes_q <= 12'(times(14'(h.groups[6:0]), h.a_bits[4:0]));
        b_planes_q     <= 12'(times(14'(is_wgrad ? h.out_groups[6:0] : h.groups[6:0]), h.b_bits[4:0]));
        group_tiles_q  <= 17'(times(14'(group_pairs), 5'($countones(h.taps[8:0]))));
        row_images_q   <= row_images;
        bound_q <= is_conv ? 64'(15'(h.groups[6:0]) * 15'(DOT_BITS)) : 64'(row_images) << $clog2(LANES);
        early_error_q <= h.magic != MAGIC || h.version != 8'(CONTRACT_VERSION) ? ERR_BAD_MAGIC
                       : checksum != 0 ? ERR_BAD_CHECK
                       : !(is_load || is_conv || is_wgrad || is_read || is_end) ? ERR_BAD_OPCODE
                       : bad_field ? ERR_BAD_FIELD : bad_bits ? ERR_BAD_BITS : bad_shape ? ERR_BAD_SHAPE : ERR_NONE;
        state_q <= CHECK2;
      end
      CHECK2: begin
        a_need_q <= 32'(27'(image_blocks_q) * 27'(group_planes_q));
        b_need_q <= to_w ? 32'(h.rows)
                  : to_g ? 32'(27'(image_blocks_q) * 27'(group_planes_q))
                  : is_conv ? 32'(19'(b_planes_q) * 19'(h.out_groups[6:0]))
                  : 32'(27'(image_blocks_q) * 27'(b_planes_q));
        accumulator_need_q <= is_read ? 32'(h.rows) : 32'(group_tiles_q) * 32'(CHANNELS + 1);
        length_q <= to_w ? 32'(h.rows) * 32'(WEIGHT_WORDS)
                  : to_e ? 32'(h.rows) * 32'd2
                  : !tensor ? 32'd0
                  : floats ? 32'(18'(h.rows[10:0]) * 18'(h.groups[6:0])) << $clog2(LANES * CHANNELS / 2)
                  : 32'(29'(row_images_q) * 29'(group_planes_q)) << $clog2(ROW_WORDS);
        bound_q <= bound_q << (6'(h.a_bits[4:0]) + 6'(h.b_bits[4:0]));
        state_q <= CHECK3;
      end
      CHECK3: begin
        a_end_q <= 17'(h.base_a) + a_need_q[16:0];
        b_end_q <= 17'(h.base_b) + b_need_q[16:0];
        error_q <= early_error_q != ERR_NONE ? early_error_q
                 : h.payload_words != length_q ? ERR_BAD_LENGTH
                 : out_of_buffer ? ERR_OUT_OF_BUFFER
                 : overflow ? ERR_OVERFLOW
                 : is_end ? (&seen_last_q ? ERR_NONE : ERR_TRAILING)
                 : cut_q ? ERR_TRUNCATED : ERR_NONE;
        state_q <= CHECK4;
      end
      CHECK4:
        if (error_q != ERR_NONE || is_end) state_q <= PUSH_END;
        else if (is_load) state_q <= HAZARD;
        else state_q <= PUSH;
      HAZARD: begin
        a_block_q       <= 17'(h.base_a);
        g_block_q       <= 17'(h.base_b);
        line_q          <= '0;
        row_q           <= '0;
        slice_q         <= '0;
        entry_q         <= to_e ? 17'(h.base_epilogue) : 17'(h.base_b);
        beats_left_q    <= h.payload_words >> 1;
        f_group_q       <= '0;
        f_pixel_q       <= '0;
        f_quad_q        <= '0;
        index_q         <= h.index;
        pixel_index_q   <= h.index;
        segment_index_q <= h.index;
        group_index_q   <= h.index;
        row_index_q     <= h.index;
        if (to_e ? compute_idle_i : !conflict_i) state_q <= PAYLOAD;
      end
      PAYLOAD:
        if (beat) begin
          beats_left_q <= beats_left_q - 32'd1;
          slice_q <= slice_q + 8'd1;
          if (to_e) entry_q <= entry_q + 17'd1;
          if (to_w && slice_q == 8'(WEIGHT_BEATS - 1)) begin
            slice_q <= '0;
            entry_q <= entry_q + 17'd1;
          end
          if (tensor && slice_q == 8'(SLICES - 1)) begin
            slice_q <= '0;
            line_q  <= line_q + 12'd1;
            if (line_q == group_planes_q - 12'd1) begin
              line_q <= '0;
              row_q  <= row_q + 11'd1;
              if (row_q == h.rows[10:0] - 11'd1) row_q <= '0;
              if (row_q[2:0] == 3'd7 || row_q == h.rows[10:0] - 11'd1) begin
                a_block_q <= a_block_q + 17'(group_planes_q);
                g_block_q <= g_block_q + 17'(group_planes_q);
              end
            end
          end
          if (beats_left_q == 32'd1) state_q <= tensor && floats ? FLUSH : NEXT;
          if (bad_data || |in_last_i) begin
            error_q <= bad_data ? ERR_BAD_DATA : ERR_TRUNCATED;
            state_q <= PUSH_END;
          end
          // next four channels
          f_quad_q <= f_quad_q + 2'd1;
          index_q  <= index_q + (h.channel_stride << 2);
          if (quad_last) begin
            f_quad_q      <= '0;
            f_pixel_q     <= f_pixel_q + 6'd1;
            pixel_index_q <= pixel_index_q + h.pixel_stride;
            index_q       <= pixel_index_q + h.pixel_stride;
            if (!pixel_last && h.segment_start[5'(f_pixel_q + 6'd1)]) begin
              segment_index_q <= segment_index_q + h.image_stride;
              pixel_index_q   <= segment_index_q + h.image_stride;
              index_q         <= segment_index_q + h.image_stride;
            end
            if (pixel_last) begin
              f_pixel_q <= '0;
              f_group_q <= f_group_q + 7'd1;
              group_index_q   <= group_index_q + h.channel_stride * CHANNELS;
              segment_index_q <= group_index_q + h.channel_stride * CHANNELS;
              pixel_index_q   <= group_index_q + h.channel_stride * CHANNELS;
              index_q         <= group_index_q + h.channel_stride * CHANNELS;
              if (group_last) begin
                f_group_q       <= '0;
                row_index_q     <= row_index_q + h.row_stride;
                group_index_q   <= row_index_q + h.row_stride;
                segment_index_q <= row_index_q + h.row_stride;
                pixel_index_q   <= row_index_q + h.row_stride;
                index_q         <= row_index_q + h.row_stride;
              end
            end
          end
        end
      FLUSH: if (in_flight_q == 0 && full_q == 0) state_q <= NEXT;
      PUSH:  if (!full_i) state_q <= NEXT;
      NEXT: begin
        position_q <= position_q + 32'd1;
        state_q    <= HEADER;
      end
      PUSH_END:
        if (!full_i) begin
          end_pushed_q <= 1'b1;
          state_q      <= &seen_last_q ? STOP : SWALLOW;
        end
      SWALLOW: if (&seen_last_q) state_q <= STOP;
      default: state_q <= STOP;
    endcase

    if (fault_i && !end_pushed_q && state_q != STOP && state_q != PUSH_END) state_q <= PUSH_END;
    if (rst_i) state_q <= STOP;
  end
endmodule

`default_nettype wire
