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
    input  wire                          valid_i,     // a cycle ahead of the codes: what they are
    input  wire portion_t                portion_i,
    input  wire element_t [WIDTH-1:0]    element_i,
    output logic                         gone_o,      // no tile is here or announced
    // beats
    input  wire                          ready_i,     // the port takes a beat three cycles from now
    input  wire                          room_i,      // and LEAD of them
    output logic                         valid_o,
    output beat_t                        word_o       // zero if there is none
);
  localparam int unsigned PLANES = $bits(element_t), BEATS = ROW_WORDS / 2;
  localparam int unsigned LEAD = EPILOGUE_CYCLES - 3;          // from a tile's first sums to its first codes, less the copy
  localparam int unsigned LW = $clog2(SECTION_PLANES * BEATS + 1);
  if (BEATS != 1 && BEATS != 4) begin : gen_check
    $error("code_buffer: a plane of %0d beats, must be 1 or 4", BEATS);
  end
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
  logic              full_q;       // a tile is complete in this cycle, or waits in the registers that are filled
  logic [PLANES-1:0] fill_todo_q;
  left_t             fill_length_q;
  logic              copy, tile_complete;
  assign tile_complete = valid_i && portion_i.channel == channel_t'(CHANNELS - 1) && portion_i.slice == 4'(SLICES - 1);
  always_ff @(posedge clk_i) begin
    full_q <= (tile_complete || (full_q && !copy)) && !rst_i;
    if (tile_complete) begin
      fill_todo_q   <= todo;
      fill_length_q <= length;
    end
  end
  // one enable for a slice of a channel when it is filled, one for a channel when it is copied
  for (genvar c = 0; c < CHANNELS; c++) begin : gen_channel
    (* keep = "true" *) logic copy_q;
    always_ff @(posedge clk_i) copy_q <= copy;
    for (genvar s = 0; s < SLICES; s++) begin : gen_slice
      logic write_q;
      always_ff @(posedge clk_i) begin
        write_q <= valid_i && portion_i.channel == channel_t'(c) && portion_i.slice == 4'(s);
        for (int unsigned p = 0; p < WIDTH; p++)
          for (int unsigned b = 0; b < PLANES; b++) begin
            if (write_q) fill_q[b][s*WIDTH+p][c] <= element_i[p][b];
            if (copy_q) send_q[b][s*WIDTH+p][c] <= fill_q[b][s*WIDTH+p][c];
          end
      end
    end
  end

  // ---- which tiles are here ------------------------------------------------------------------------------------------------
  logic [1:0] ahead_q;   // tiles that have begun and are not yet copied
  left_t      left_q;    // beats still to be sent
  logic       timely_q;  // few enough
  logic       empty_q;   // none
  logic       step, sending;
  left_t      left_d;
  assign copy = full_q && empty_q;
  // as it will be after the copy; what begins meanwhile counts in time for the next tile
  always_comb
    if (copy) free_o = ahead_q == 2'd1 || (fill_length_q <= left_t'(LEAD) && room_i);
    else free_o = ahead_q == 2'd0 || (ahead_q == 2'd1 && timely_q && room_i);
  assign left_d = copy ? fill_length_q : left_q - left_t'(step);
  always_ff @(posedge clk_i) begin
    ahead_q  <= ahead_q + 2'(begin_i) - 2'(copy);
    left_q   <= left_d;
    empty_q  <= left_d == 0 || rst_i;
    timely_q <= left_d <= left_t'(LEAD);
    if (rst_i) begin
      ahead_q <= '0;
      left_q  <= '0;
    end
  end

  // ---- walk: beats of a plane, planes in order ------------------------------------------------------------------------------
  logic [PLANES-1:0] todo_q, todo_left;
  place_t            place_q;
  logic              plane_last;
  assign todo_left  = todo_q & (todo_q - PLANES'(1));
  assign plane_last = place_q == place_t'(BEATS - 1);
  assign step       = !empty_q && ready_i;
  always_ff @(posedge clk_i) begin
    if (step) begin
      place_q <= plane_last ? '0 : place_q + place_t'(1);
      if (plane_last) todo_q <= todo_left;
    end
    if (copy) begin
      place_q <= '0;
      todo_q  <= fill_todo_q;
    end
  end

  // ---- the beat: its place in every plane, all planes but one cleared; any of them.  A copy of the place for eight bits ------
  localparam int unsigned COPIES = BEAT_BITS / 8;
  (* keep = "true" *) place_t [COPIES-1:0]   place1_q;
  logic [PLANES-1:0]                         others1_q;
  logic [PLANES-1:0][BEAT_BITS-1:0]          beats2_q;
  beat_t                                     word, word3_q;
  logic                                      valid1_q, valid2_q, valid3_q;
  always_comb begin
    word = '0;
    for (int unsigned b = 0; b < PLANES; b++) word = word | beats2_q[b];
  end
  always_ff @(posedge clk_i) begin
    place1_q  <= {COPIES{place_q}};
    others1_q <= ~(step ? todo_q & ~todo_left : '0);
    for (int unsigned b = 0; b < PLANES; b++) begin
      automatic logic [BEATS-1:0][BEAT_BITS-1:0] places = send_q[b];
      if (others1_q[b]) beats2_q[b] <= '0;
      else for (int unsigned k = 0; k < COPIES; k++) beats2_q[b][8*k+:8] <= places[place1_q[k]][8*k+:8];
    end
    word3_q  <= word;
    valid1_q <= step && !rst_i;
    valid2_q <= valid1_q && !rst_i;
    valid3_q <= valid2_q && !rst_i;
    if (rst_i) others1_q <= '1;
  end
  assign valid_o = valid3_q;
  assign word_o  = word3_q;
  assign sending = valid1_q || valid2_q || valid3_q;
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
