// SPDX-License-Identifier: Apache-2.0
// Judges a packet's header: its fields, the sizes that they ask for, the ranges of the memories.  A pipeline without an
// enable: the header stays as it is until the packet's end, and CHECK_CYCLES after its last words the results do so too.
`default_nettype none

module header_check
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire            clk_i,
    input  wire header_t   header_i,
    input  wire kind_t     kind_i,           // one cycle after the header
    input  wire            cut_i,            // a stream ended with the header
    input  wire            ended_i,          // both streams have ended
    output error_t         error_o,          // what is wrong, ERR_NONE if nothing
    output line_t          group_planes_o,   // planes of one block of rows of the first operand
    output address_t       a_end_o,          // end of the range in A
    output address_t       b_end_o,          // end of the range in W or G
    output address_t       side_end_o,       // ends of SIDE and ADDED in G, 0 if there is none
    output address_t       added_end_o
);
  localparam int unsigned PLANES = $bits(line_t);

  header_t h;
  assign h = header_i;
  logic ones, codes, coded, records, moments, stride, product, entries, stochastic;
  assign ones       = h.flags[FLAG_ONES];
  assign codes      = kind_i.conv && h.format == FORMAT_CODES;
  assign coded      = codes || (kind_i.conv && h.format == FORMAT_MOMENTS);
  assign records    = codes && h.flags[FLAG_RECORDS];
  assign moments    = coded && (!codes || h.flags[FLAG_RECORDS]);
  assign stride     = kind_i.conv && h.flags[FLAG_STRIDE_2];
  assign product    = kind_i.conv || kind_i.wgrad;
  assign entries    = kind_i.to_w || kind_i.to_e;
  assign stochastic = h.flags[FLAG_STOCHASTIC] && codes;

  // The number of a stage is the cycle in which it is computed, the first being that in which the header is there.

  // ---- fields -----------------------------------------------------------------------------------------------------------
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
    return !bits_ok(header.out_bits) || header.keep_bits > 8'(MAX_SIDE_BITS) || header.wide_bits > 8'(MAX_SIDE_BITS)
        || header.value_shift > 8'(MAX_SHIFT) || header.out_shift > 8'(MAX_CODE_SHIFT)
        || header.keep_shift > 8'(MAX_CODE_SHIFT) || header.wide_shift > 8'(MAX_CODE_SHIFT);
  endfunction

  localparam int unsigned HALVES = HEADER_BITS / 32;
  logic [31:0] checksum, beyond_lanes;
  assign beyond_lanes = LANES == 32 ? '0 : 32'hFFFF_FFFF << LANES;
  always_comb begin
    checksum = CHECK_SEED;
    for (int unsigned i = 0; i < HALVES; i++) checksum = checksum ^ header_i[32*i+:32];
  end

  logic [PACKET_KINDS-1:0]     packet1_q;
  logic [HEADER_BITS-1:0] used2_q, surplus;           // all bits that are not used must be zero
  logic [31:0]            checksum1_q;
  logic [9:0]             sections1_q;                // planes of all sections
  logic                   bad_magic1_q, bad_check2_q, known2_q;
  logic                   bad_rows2_q, bad_groups2_q, bad_lanes2_q, bad_moments2_q, bad_coding2_q, bad_sections2_q;
  logic [HALVES-1:0]      surplus3_q;
  logic                   bad_mask3_q, bad_bits3_q, bad_shape3_q, bad_field4_q;
  error_t                 field_error5_q;
  assign surplus = h & ~used2_q;
  always_ff @(posedge clk_i) begin
    // 1
    bad_magic1_q <= h.magic != MAGIC || h.version != 8'(CONTRACT_VERSION);
    checksum1_q  <= checksum;
    packet1_q    <= packet_of(h.opcode, h.target, h.format);
    sections1_q  <= 10'(h.out_bits) + 10'(h.keep_bits) + 10'(h.wide_bits) + 10'(h.flags[FLAG_KEEP_MASK]);
    // 2
    bad_check2_q  <= checksum1_q != 0;
    used2_q       <= used_bits(packet1_q) | (stochastic ? STOCHASTIC_BITS : '0) | (records ? RECORDS_BITS : '0);
    known2_q      <= kind_i.load || product || kind_i.read || kind_i.ends;
    bad_rows2_q   <= entries || kind_i.read ? h.rows == 0 : !kind_i.ends && bad_range(h.rows, MAX_ROWS);
    bad_groups2_q <= (kind_i.load || product)
                  && (bad_range(h.groups, entries ? 1 : MAX_GROUPS)
                      || bad_range(h.out_groups, kind_i.load ? 1 : MAX_OUT_GROUPS)
                      || bad_range(h.images, entries ? 1 : MAX_IMAGES));
    bad_lanes2_q  <= (product && (!h.segment_start[0] || |(h.segment_start & beyond_lanes)))
                  || (stride && h.rows > 16'(MAX_ROWS / 4));
    bad_moments2_q  <= h.valid == 0 || |(h.valid & beyond_lanes) || h.first_row >= h.last_row || h.last_row > h.rows;
    bad_coding2_q   <= bad_coding(h);
    bad_sections2_q <= bad_sections(h) || sections1_q > 10'(SECTION_PLANES);
    // 3
    for (int unsigned i = 0; i < HALVES; i++) surplus3_q[i] <= |surplus[32*i+:32];
    bad_mask3_q  <= (kind_i.wgrad && h.taps == 0) || (stochastic && h.factor == 0)
                 || (coded && h.flags[FLAG_CROSS] && h.side_bits == 0)
                 || (product && (mask_bad(h.a_bits, h.a_planes) || mask_bad(h.b_bits, h.b_planes)));
    bad_bits3_q  <= ((kind_i.tensor || product) && !bits_ok(h.a_bits)) || (product && !bits_ok(h.b_bits))
                 || (coded && bad_coding2_q) || (codes && bad_sections2_q);
    bad_shape3_q <= bad_rows2_q || bad_groups2_q || bad_lanes2_q || (moments && bad_moments2_q);
    // 4
    bad_field4_q <= |surplus3_q || bad_mask3_q;
    // 5, in the order of the errors
    if (bad_magic1_q) field_error5_q <= ERR_BAD_MAGIC;
    else if (bad_check2_q) field_error5_q <= ERR_BAD_CHECK;
    else if (!known2_q) field_error5_q <= ERR_BAD_OPCODE;
    else if (bad_field4_q) field_error5_q <= ERR_BAD_FIELD;
    else if (bad_bits3_q) field_error5_q <= ERR_BAD_BITS;
    else if (bad_shape3_q) field_error5_q <= ERR_BAD_SHAPE;
    else field_error5_q <= ERR_NONE;
  end

  // ---- sizes: what the packet needs of every memory, and of payload -----------------------------------------------------
  // factors; of a field out of range they need not be right
  row_t   rows;
  group_t groups, out_groups;
  image_t images;
  assign rows       = row_t'(h.rows);
  assign groups     = group_t'(h.groups);
  assign out_groups = group_t'(h.out_groups);
  assign images     = image_t'(h.images);

  logic [7:0]  blocks2_q, out_blocks2_q;  // of eight rows; with a stride two rows of the first operand lie in four
  logic [13:0] all_groups2_q;     // of the first operand, ones included
  logic [15:0] out_entries2_q;    // of the accumulator memory, for a group and tap
  logic [16:0] row_images2_q;     // rows * images
  logic [3:0]  taps2_q;
  logic [5:0]  width2_q;          // of both operands together
  bits_t       side_planes1_q;
  parts_t      group_parts2_q, b_parts2_q, side_parts2_q, added_parts2_q, tile_parts3_q;
  logic [14:0] image_blocks3_q;   // images * blocks
  logic [13:0] out_blocks3_q;     // images * blocks of the output
  line_t       group_planes3_q, b_planes3_q, side_planes3_q, added_planes3_q;
  logic [31:0] terms3_q;          // of a sum
  logic [14:0] group_taps4_q;     // groups * taps
  logic [28:0] row_planes4_q;
  logic [14:0] b_count4_q;        // range of the second operand: so many times so many planes
  line_t       b_planes4_q;
  logic [63:0] bound4_q;          // of the sums' magnitude
  logic [31:0] a_need4_q, side_need4_q, added_need4_q, b_product5_q, length5_q, entries5_q;
  logic        no_side5_q, no_added5_q;
  always_ff @(posedge clk_i) begin
    // 1
    side_planes1_q <= bits_t'(h.side_bits) + bits_t'(h.flags[FLAG_MASKED]);
    // 2
    blocks2_q      <= stride ? 8'((rows + 11'd1) >> 1) : 8'((rows + 11'd7) >> 3);
    out_blocks2_q  <= 8'((rows + 11'd7) >> 3);
    all_groups2_q  <= 14'(groups) + 14'(ones);
    out_entries2_q <= 16'(out_groups) * 16'(CHANNELS) + 16'(out_groups);
    row_images2_q  <= 17'(rows) * 17'(images);
    taps2_q        <= 4'($countones(h.taps[TAPS-1:0]));
    width2_q       <= 6'(bits_t'(h.a_bits)) + 6'(bits_t'(h.b_bits));
    group_parts2_q <= times(14'(groups), bits_t'(h.a_bits));
    b_parts2_q     <= times(14'(kind_i.wgrad ? out_groups : groups), bits_t'(h.b_bits));
    side_parts2_q  <= times(14'(out_groups), side_planes1_q);
    added_parts2_q <= times(14'(out_groups), bits_t'(h.added_bits));
    // 3
    image_blocks3_q <= 15'(blocks2_q) * 15'(images);
    out_blocks3_q   <= 14'(out_blocks2_q) * 14'(images);
    group_planes3_q <= PLANES'(group_parts2_q[0] + group_parts2_q[1]);
    b_planes3_q     <= PLANES'(b_parts2_q[0] + b_parts2_q[1]);
    side_planes3_q  <= PLANES'(side_parts2_q[0] + side_parts2_q[1]);
    added_planes3_q <= PLANES'(added_parts2_q[0] + added_parts2_q[1]);
    tile_parts3_q   <= times(all_groups2_q, 5'(taps2_q));
    terms3_q        <= kind_i.conv ? 32'(15'(groups) * 15'(DOT_BITS)) : 32'(row_images2_q) << $clog2(LANES);
    // 4
    a_need4_q     <= 32'(27'(image_blocks3_q) * 27'(group_planes3_q));
    side_need4_q  <= 32'(26'(out_blocks3_q) * 26'(side_planes3_q));
    added_need4_q <= 32'(26'(out_blocks3_q) * 26'(added_planes3_q));
    row_planes4_q <= 29'(row_images2_q) * 29'(group_planes3_q);
    b_count4_q    <= kind_i.conv ? 15'(out_groups) : image_blocks3_q;
    b_planes4_q   <= kind_i.to_g ? group_planes3_q : b_planes3_q;
    group_taps4_q <= 15'(tile_parts3_q[0] + tile_parts3_q[1]);
    bound4_q      <= 64'(terms3_q) << width2_q;
    // 5
    b_product5_q        <= 32'(27'(b_count4_q) * 27'(b_planes4_q));
    no_side5_q          <= !coded || side_planes1_q == 0;
    no_added5_q         <= !coded || h.added_bits == 0;
    entries5_q          <= 32'(group_taps4_q) * 32'(out_entries2_q);
    length5_q           <= kind_i.to_w ? 32'(h.rows) * 32'(WEIGHT_WORDS)
                         : kind_i.to_e ? 32'(h.rows) * 32'(ENTRY_WORDS)
                         : !kind_i.tensor ? 32'd0
                         : 32'(row_planes4_q) << $clog2(ROW_WORDS);
  end

  // ---- ranges -------------------------------------------------------------------------------------------------------------
  logic [31:0] a_end6_q, b_end6_q, side_end6_q, added_end6_q, epilogue_end6_q, accumulator_end6_q;
  logic        bad_length6_q, overflow6_q, out_of_operands7_q, out_of_results7_q;
  error_t      error8_q;
  always_ff @(posedge clk_i) begin
    // 6
    a_end6_q           <= 32'(h.base_a) + a_need4_q;
    b_end6_q           <= 32'(h.base_b) + (kind_i.to_w ? 32'(h.rows) : b_product5_q);
    side_end6_q        <= no_side5_q ? '0 : 32'(h.base_side) + side_need4_q;
    added_end6_q       <= no_added5_q ? '0 : 32'(h.base_added) + added_need4_q;
    epilogue_end6_q    <= 32'(h.base_epilogue) + (kind_i.to_e ? 32'(h.rows) : 32'(h.out_groups) * CHANNELS);
    accumulator_end6_q <= 32'(h.base_accumulator) + (kind_i.read ? 32'(h.rows) : entries5_q);
    bad_length6_q      <= h.payload_words != length5_q;
    overflow6_q        <= product && bound4_q
                          > ((kind_i.wgrad || h.format == FORMAT_INT64) ? 64'd1 << (ACC_BITS - 1) : 64'd1 << 31);
    // 7
    out_of_operands7_q <= ((kind_i.to_a || product) && a_end6_q > DEPTH_A)
                       || ((kind_i.to_g || kind_i.wgrad) && b_end6_q > DEPTH_G)
                       || ((kind_i.to_w || kind_i.conv) && b_end6_q > DEPTH_W)
                       || side_end6_q > DEPTH_G || added_end6_q > DEPTH_G;
    out_of_results7_q  <= ((kind_i.to_e || coded) && epilogue_end6_q > DEPTH_EPILOGUE)
                       || ((kind_i.wgrad || kind_i.read) && accumulator_end6_q > DEPTH_ACCUMULATOR);
    // 8
    if (field_error5_q != ERR_NONE) error8_q <= field_error5_q;
    else if (bad_length6_q) error8_q <= ERR_BAD_LENGTH;
    else if (out_of_operands7_q || out_of_results7_q) error8_q <= ERR_OUT_OF_BUFFER;
    else if (overflow6_q) error8_q <= ERR_OVERFLOW;
    else if (kind_i.ends) error8_q <= ended_i ? ERR_NONE : ERR_TRAILING;
    else error8_q <= cut_i ? ERR_TRUNCATED : ERR_NONE;
  end
  if (CHECK_CYCLES != 10) begin : gen_check
    $error("header_check: CHECK_CYCLES = %0d, must be 10: its last words are stored, eight stages, and the last is seen", CHECK_CYCLES);
  end
  assign error_o        = error8_q;
  assign group_planes_o = group_planes3_q;
  assign a_end_o        = address_t'(a_end6_q);
  assign b_end_o        = address_t'(b_end6_q);
  assign side_end_o     = address_t'(side_end6_q);
  assign added_end_o    = address_t'(added_end6_q);
endmodule

`default_nettype wire
