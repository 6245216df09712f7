// SPDX-License-Identifier: Apache-2.0
// Judges a packet's header in three steps: its fields, the sizes that they ask for, the ranges of the memories.
// The header stays as it is from the first step to the packet's end; so do the results.
`default_nettype none

module header_check
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire            clk_i,
    input  wire header_t   header_i,
    input  wire kind_t     kind_i,
    input  wire [2:0]      step_i,           // which step is done in this cycle, one bit each
    input  wire            cut_i,            // a stream ended with the header
    input  wire            ended_i,          // both streams have ended
    output error_t         error_o,          // in the third step: what is wrong, ERR_NONE if nothing
    // from the third step on
    output line_t          group_planes_o,   // planes of one block of rows of the first operand
    output address_t       a_end_o,          // end of the range in A
    output address_t       b_end_o,          // end of the range in W or G
    output address_t       side_end_o,       // ends of SIDE and ADDED in G, 0 if there is none
    output address_t       added_end_o
);
  localparam int unsigned PLANES = $bits(line_t);

  header_t h;
  assign h = header_i;
  logic ones, codes, coded, moments, stride, product, entries, stochastic;
  assign ones       = h.flags[FLAG_ONES];
  assign codes      = kind_i.conv && h.format == FORMAT_CODES;
  assign coded      = codes || (kind_i.conv && h.format == FORMAT_MOMENTS);
  assign moments    = coded && (!codes || h.flags[FLAG_RECORDS]);
  assign stride     = kind_i.conv && h.flags[FLAG_STRIDE_2];
  assign product    = kind_i.conv || kind_i.wgrad;
  assign entries    = kind_i.to_w || kind_i.to_e;
  assign stochastic = h.flags[FLAG_STOCHASTIC] && codes;

  // ---- 1: fields, in the order of their errors ------------------------------------------------------------------------
  logic [HEADER_BITS-1:0] used;  // all other bits must be zero
  assign used = used_bits(h.opcode, h.target, h.format) | (stochastic ? STOCHASTIC_BITS : '0)
              | (codes && h.flags[FLAG_RECORDS] ? RECORDS_BITS : '0);

  logic [31:0] checksum;
  always_comb begin
    checksum = CHECK_SEED;
    for (int unsigned i = 0; i < HEADER_BITS / 32; i++) checksum = checksum ^ header_i[32*i+:32];
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

  function automatic logic bad_coding(input header_t header);
    return header.shift > 8'(MAX_SHIFT) || header.side_bits > 8'(MAX_SIDE_BITS) || header.added_bits > 8'(MAX_SIDE_BITS);
  endfunction
  function automatic logic bad_sections(input header_t header);
    automatic logic [9:0] planes = 10'(header.out_bits) + 10'(header.keep_bits) + 10'(header.wide_bits)
                                 + 10'(header.flags[FLAG_KEEP_MASK]);
    return !bits_ok(header.out_bits) || header.keep_bits > 8'(MAX_SIDE_BITS) || header.wide_bits > 8'(MAX_SIDE_BITS)
        || planes > 10'(SECTION_PLANES) || header.value_shift > 8'(MAX_SHIFT)
        || header.out_shift > 8'(MAX_CODE_SHIFT) || header.keep_shift > 8'(MAX_CODE_SHIFT)
        || header.wide_shift > 8'(MAX_CODE_SHIFT);
  endfunction

  logic bad_field, bad_bits, bad_shape, bad_segments;
  logic [31:0] beyond_lanes;
  assign beyond_lanes = LANES == 32 ? '0 : 32'hFFFF_FFFF << LANES;
  always_comb begin
    bad_field = |(h & ~used);
    if (kind_i.wgrad) bad_field |= h.taps == 0;
    if (stochastic) bad_field |= h.factor == 0;
    if (coded) bad_field |= h.flags[FLAG_CROSS] && h.side_bits == 0;
    if (product) bad_field |= mask_bad(h.a_bits, h.a_planes) || mask_bad(h.b_bits, h.b_planes);

    bad_bits = ((kind_i.tensor || product) && !bits_ok(h.a_bits)) || (product && !bits_ok(h.b_bits))
            || (coded && bad_coding(h)) || (codes && bad_sections(h));

    bad_segments = !h.segment_start[0] || |(h.segment_start & beyond_lanes);
    bad_shape = 1'b0;
    if (entries || kind_i.read) bad_shape |= h.rows == 0;
    else if (!kind_i.ends) bad_shape |= bad_range(h.rows, MAX_ROWS);
    if (kind_i.load || product)
      bad_shape |= bad_range(h.groups, entries ? 1 : MAX_GROUPS)
                || bad_range(h.out_groups, kind_i.load ? 1 : MAX_OUT_GROUPS)
                || bad_range(h.images, entries ? 1 : MAX_IMAGES);
    if (product) bad_shape |= bad_segments;
    if (stride) bad_shape |= h.rows > 16'(MAX_ROWS / 4);
    if (moments)
      bad_shape |= h.valid == 0 || |(h.valid & beyond_lanes) || h.first_row >= h.last_row || h.last_row > h.rows;
  end

  error_t field_error;
  always_comb begin
    if (h.magic != MAGIC || h.version != 8'(CONTRACT_VERSION)) field_error = ERR_BAD_MAGIC;
    else if (checksum != 0) field_error = ERR_BAD_CHECK;
    else if (!(kind_i.load || product || kind_i.read || kind_i.ends)) field_error = ERR_BAD_OPCODE;
    else if (bad_field) field_error = ERR_BAD_FIELD;
    else if (bad_bits) field_error = ERR_BAD_BITS;
    else if (bad_shape) field_error = ERR_BAD_SHAPE;
    else field_error = ERR_NONE;
  end

  // factors of the sizes; of a field out of range they need not be right
  row_t   rows;
  group_t groups, out_groups;
  image_t images;
  assign rows       = row_t'(h.rows);
  assign groups     = group_t'(h.groups);
  assign out_groups = group_t'(h.out_groups);
  assign images     = image_t'(h.images);
  logic [7:0]  blocks;       // of eight rows; with a stride two rows lie in four
  logic [12:0] group_pairs;
  logic [16:0] row_images;
  assign blocks      = stride ? 8'((rows + 11'd1) >> 1) : 8'((rows + 11'd7) >> 3);
  assign group_pairs = 13'(out_groups) * (13'(groups) + 13'(ones));
  assign row_images  = 17'(rows) * 17'(images);

  bits_t side_planes;
  assign side_planes = bits_t'(h.side_bits) + bits_t'(h.flags[FLAG_MASKED]);

  error_t      field_error_q;
  logic [13:0] out_blocks_q;     // images * blocks of the output
  line_t       side_planes_q, added_planes_q;
  logic [14:0] image_blocks_q;   // images * blocks
  line_t       group_planes_q, b_planes_q;
  logic [16:0] group_tiles_q;    // pairs of groups * taps
  logic [16:0] row_images_q;     // rows * images
  logic [63:0] bound_q;          // of the sums' magnitude
  always_ff @(posedge clk_i)
    if (step_i[0]) begin
      field_error_q  <= field_error;
      image_blocks_q <= 15'(blocks) * 15'(images);
      group_planes_q <= PLANES'(times(14'(groups), bits_t'(h.a_bits)));
      b_planes_q     <= PLANES'(times(14'(kind_i.wgrad ? out_groups : groups), bits_t'(h.b_bits)));
      out_blocks_q   <= 14'(8'((rows + 11'd7) >> 3)) * 14'(images);
      side_planes_q  <= PLANES'(times(14'(out_groups), side_planes));
      added_planes_q <= PLANES'(times(14'(out_groups), bits_t'(h.added_bits)));
      group_tiles_q  <= 17'(times(14'(group_pairs), 5'($countones(h.taps[TAPS-1:0]))));
      row_images_q   <= row_images;
      bound_q        <= kind_i.conv ? 64'(15'(groups) * 15'(DOT_BITS)) : 64'(row_images) << $clog2(LANES);
    end else if (step_i[1]) bound_q <= bound_q << (6'(bits_t'(h.a_bits)) + 6'(bits_t'(h.b_bits)));

  // ---- 2: what the packet needs of every memory, and of payload ---------------------------------------------------------
  logic [31:0] a_need_q, b_need_q, length_q, accumulator_need_q, side_need_q, added_need_q;
  always_ff @(posedge clk_i)
    if (step_i[1]) begin
      a_need_q <= 32'(27'(image_blocks_q) * 27'(group_planes_q));
      b_need_q <= kind_i.to_w ? 32'(h.rows)
                : kind_i.to_g ? 32'(27'(image_blocks_q) * 27'(group_planes_q))
                : kind_i.conv ? 32'(19'(b_planes_q) * 19'(out_groups))
                : 32'(27'(image_blocks_q) * 27'(b_planes_q));
      accumulator_need_q <= kind_i.read ? 32'(h.rows) : 32'(group_tiles_q) * 32'(CHANNELS + 1);
      side_need_q  <= 32'(26'(out_blocks_q) * 26'(side_planes_q));
      added_need_q <= 32'(26'(out_blocks_q) * 26'(added_planes_q));
      length_q <= kind_i.to_w ? 32'(h.rows) * 32'(WEIGHT_WORDS)
                : kind_i.to_e ? 32'(h.rows) * 32'(ENTRY_WORDS)
                : !kind_i.tensor ? 32'd0
                : 32'(29'(row_images_q) * 29'(group_planes_q)) << $clog2(ROW_WORDS);
    end

  // ---- 3: ranges ----------------------------------------------------------------------------------------------------------
  logic overflow, out_of_buffer;
  always_comb begin
    out_of_buffer = 1'b0;
    if (kind_i.to_a || product) out_of_buffer |= 32'(h.base_a) + a_need_q > DEPTH_A;
    if (kind_i.to_g || kind_i.wgrad) out_of_buffer |= 32'(h.base_b) + b_need_q > DEPTH_G;
    if (kind_i.to_w || kind_i.conv) out_of_buffer |= 32'(h.base_b) + b_need_q > DEPTH_W;
    if (kind_i.to_e) out_of_buffer |= 32'(h.base_epilogue) + 32'(h.rows) > DEPTH_EPILOGUE;
    if (coded) begin
      out_of_buffer |= 32'(h.base_epilogue) + 32'(h.out_groups) * CHANNELS > DEPTH_EPILOGUE;
      out_of_buffer |= side_need_q != 0 && 32'(h.base_side) + side_need_q > DEPTH_G;
      out_of_buffer |= added_need_q != 0 && 32'(h.base_added) + added_need_q > DEPTH_G;
    end
    if (kind_i.wgrad || kind_i.read)
      out_of_buffer |= 32'(h.base_accumulator) + accumulator_need_q > DEPTH_ACCUMULATOR;
    overflow = product
            && bound_q > ((kind_i.wgrad || h.format == FORMAT_INT64) ? 64'd1 << (ACC_BITS - 1) : 64'd1 << 31);
  end

  always_comb begin
    if (field_error_q != ERR_NONE) error_o = field_error_q;
    else if (h.payload_words != length_q) error_o = ERR_BAD_LENGTH;
    else if (out_of_buffer) error_o = ERR_OUT_OF_BUFFER;
    else if (overflow) error_o = ERR_OVERFLOW;
    else if (kind_i.ends) error_o = ended_i ? ERR_NONE : ERR_TRAILING;
    else error_o = cut_i ? ERR_TRUNCATED : ERR_NONE;
  end

  address_t a_end_q, b_end_q, side_end_q, added_end_q;
  always_ff @(posedge clk_i)
    if (step_i[2]) begin
      a_end_q <= address_t'(h.base_a) + address_t'(a_need_q);
      b_end_q <= address_t'(h.base_b) + address_t'(b_need_q);
      side_end_q  <= coded && side_need_q != 0 ? address_t'(h.base_side) + address_t'(side_need_q) : '0;
      added_end_q <= coded && added_need_q != 0 ? address_t'(h.base_added) + address_t'(added_need_q) : '0;
    end
  assign group_planes_o = group_planes_q;
  assign a_end_o        = a_end_q;
  assign b_end_o        = b_end_q;
  assign side_end_o     = side_end_q;
  assign added_end_o    = added_end_q;
endmodule

`default_nettype wire
