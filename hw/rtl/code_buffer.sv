// SPDX-License-Identifier: Apache-2.0
// Codes of two tiles: one arrives slice by slice, the other leaves plane by plane.  A tile that is complete is copied
// from the registers that are filled to those that are sent, once these are free.
//
// Codes cannot be held up once their sums have entered the epilogue.  So a tile may begin only if the registers will be
// free when its first codes arrive: if at most one tile is ahead of it, and what is still to be sent of the one before
// that is less than the port has room for, and gone in time.
`default_nettype none

module code_buffer
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned WIDTH = EPILOGUE_LANES
) (
    input  wire                          clk_i,
    input  wire                          rst_i,
    // a tile: announced with its first sums, its codes follow
    output logic                         free_o,      // a tile may begin, in the next cycle
    input  wire                          begin_i,
    input  wire                          valid_i,
    input  wire portion_t                portion_i,
    input  wire element_t [WIDTH-1:0]    element_i,
    output logic                         gone_o,      // no tile is here or announced
    // beats
    input  wire                          ready_i,     // the port takes a beat four cycles from now
    input  wire                          room_i,      // and LEAD of them
    output logic                         valid_o,
    output beat_t                        word_o
);
  localparam int unsigned PLANES = $bits(element_t), BEATS = ROW_WORDS / 2;
  localparam int unsigned LEAD = EPILOGUE_CYCLES - 3;          // from a tile's first sums to its first codes, less the copy
  localparam int unsigned LW = $clog2(SECTION_PLANES * BEATS + 1);
  localparam int unsigned GROUPS = (PLANES + 3) / 4;
  if (BEATS != 1 && BEATS != 4) begin : gen_check
    $error("code_buffer: a plane of %0d beats, must be 1 or 4", BEATS);
  end
  typedef logic [$clog2(PLANES)-1:0]                   plane_t;
  typedef logic [(BEATS > 1 ? $clog2(BEATS) : 1)-1:0]  place_t;
  typedef logic [LW-1:0]                               left_t;

  // ---- codes as they come ------------------------------------------------------------------------------------------------
  // [plane][pixel][channel]: bits of a plane lie as they leave
  logic [PLANES-1:0][LANES-1:0][CHANNELS-1:0] fill_q, send_q;
  logic [PLANES-1:0]                          todo;      // planes of the tile that leave, in their order
  left_t                                      length;    // its beats
  coding_t                                    coding;
  assign coding = portion_i.coding;
  always_comb begin
    todo   = '0;
    length = left_t'(coding.out_bits) + left_t'(coding.keep_bits) + left_t'(coding.keep_mask) + left_t'(coding.wide_bits);
    length = left_t'(length << $clog2(BEATS));
    for (int unsigned b = 0; b < MAX_BITS; b++) todo[b] = b < 32'(coding.out_bits);
    for (int unsigned b = 0; b < MAX_SIDE_BITS; b++) begin
      todo[MAX_BITS+b]                   = b < 32'(coding.keep_bits);
      todo[MAX_BITS+MAX_SIDE_BITS+1+b]   = b < 32'(coding.wide_bits);
    end
    todo[MAX_BITS+MAX_SIDE_BITS] = coding.keep_mask;
  end
  logic              full_q;       // a complete tile is in the registers that are filled
  logic [PLANES-1:0] fill_todo_q;
  left_t             fill_length_q;
  logic              copy;
  for (genvar x = 0; x < LANES; x++) begin : gen_pixel
    for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
      always_ff @(posedge clk_i)
        if (valid_i && portion_i.channel == channel_t'(c) && portion_i.slice == 4'(x / WIDTH))
          for (int unsigned b = 0; b < PLANES; b++) fill_q[b][x][c] <= element_i[x%WIDTH][b];
    end
  end
  logic tile_complete;
  assign tile_complete = valid_i && portion_i.channel == channel_t'(CHANNELS - 1) && portion_i.slice == 4'(SLICES - 1);
  always_ff @(posedge clk_i) begin
    full_q <= (tile_complete || (full_q && !copy)) && !rst_i;
    if (tile_complete) begin
      fill_todo_q   <= todo;
      fill_length_q <= length;
    end
    if (copy) send_q <= fill_q;
  end

  // ---- which tiles are here ------------------------------------------------------------------------------------------------
  logic [1:0] ahead_q;   // tiles that have begun and are not yet copied
  left_t      left_q;    // beats still to be sent
  logic       timely_q;  // few enough
  logic       empty_q;   // none
  logic       step, sending;
  assign copy   = full_q && empty_q;
  assign free_o = ahead_q == 2'd0 || (ahead_q == 2'd1 && timely_q && room_i);
  left_t left_d;
  assign left_d = copy ? fill_length_q : left_q - left_t'(step);
  always_ff @(posedge clk_i) begin
    ahead_q  <= ahead_q + 2'(begin_i) - 2'(copy);
    left_q   <= left_d;
    empty_q  <= left_d == 0 || rst_i;
    timely_q <= !copy && left_q <= left_t'(LEAD);
    if (rst_i) begin
      ahead_q <= '0;
      left_q  <= '0;
    end
  end

  // ---- walk: beats of a plane, planes in order ------------------------------------------------------------------------------
  logic [PLANES-1:0] todo_q, todo_left;
  place_t            place_q, place1_q;
  plane_t            plane, plane1_q;
  logic              valid1_q, plane_last;
  assign todo_left  = todo_q & (todo_q - PLANES'(1));
  assign plane_last = place_q == place_t'(BEATS - 1);
  assign step       = !empty_q && ready_i;
  always_comb begin
    plane = '0;
    for (int unsigned b = PLANES; b > 0; b--) if (todo_q[b-1]) plane = plane_t'(b - 1);
  end
  always_ff @(posedge clk_i) begin
    if (step) begin
      place_q <= plane_last ? '0 : place_q + place_t'(1);
      if (plane_last) todo_q <= todo_left;
    end
    if (copy) begin
      place_q <= '0;
      todo_q  <= fill_todo_q;
    end
    plane1_q <= plane;
    place1_q <= place_q;
    valid1_q <= step && !rst_i;
  end

  // ---- the beat: its place in every plane, one of four planes, one of these; a small choice in every cycle -------------------
  logic [4*GROUPS-1:0][BEAT_BITS-1:0] beats2_q;
  logic [GROUPS-1:0][BEAT_BITS-1:0]   beats3_q;
  plane_t                             plane2_q, plane3_q;
  logic                               valid2_q, valid3_q, valid4_q;
  beat_t                              word_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < 4 * GROUPS; b++)
      if (b < PLANES) begin
        automatic logic [BEATS-1:0][BEAT_BITS-1:0] places = send_q[b%PLANES];
        beats2_q[b] <= places[place1_q];
      end else beats2_q[b] <= '0;
    for (int unsigned g = 0; g < GROUPS; g++) beats3_q[g] <= beats2_q[4*g+32'(plane2_q[1:0])];
    word_q   <= beats3_q[plane3_q[$bits(plane_t)-1:2]];
    plane2_q <= plane1_q;
    plane3_q <= plane2_q;
    valid2_q <= valid1_q && !rst_i;
    valid3_q <= valid2_q && !rst_i;
    valid4_q <= valid3_q && !rst_i;
  end
  assign valid_o = valid4_q;
  assign word_o  = word_q;
  assign sending = valid1_q || valid2_q || valid3_q || valid4_q;
  assign gone_o  = ahead_q == 0 && empty_q && !sending;

`ifndef SYNTHESIS
  // no tile is announced without a free buffer, no codes come unannounced
  a_begin: assert property (@(posedge clk_i) disable iff (rst_i) begin_i |-> $past(free_o));
  a_codes: assert property (@(posedge clk_i) disable iff (rst_i) valid_i |-> ahead_q != 0);
  // codes never meet those of the tile before
  a_fill: assert property (@(posedge clk_i) disable iff (rst_i) valid_i && full_q |-> copy);
  // what is sent is as long as was counted
  a_length: assert property (@(posedge clk_i) disable iff (rst_i) left_q != 0 |-> todo_q != 0);
`endif
endmodule

`default_nettype wire
