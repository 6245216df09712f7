// SPDX-License-Identifier: Apache-2.0
// Output streams: a queue in front of them, and the choice among the units that have a beat for it.  Results leave in order
// because only one unit at a time has any.  On two streams even words leave on the first and odd ones on the second; on one
// stream a beat takes two cycles.
`default_nettype none

module result_port
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    parameter int unsigned SOURCES = 2,   /// units; the last one alone may end the streams
    parameter int unsigned SLOTS   = 32,  /// beats that the queue holds, a power of two
    parameter int unsigned ROOM    = 8    /// beats that room_o promises to take, one in every cycle
) (
    input  wire                        clk_i,
    input  wire                        rst_i,
    input  wire  [SOURCES-1:0]         valid_i,      // a beat that is taken in this cycle
    input  wire beat_t [SOURCES-1:0]   word_i,       // zero where there is none
    input  wire                        last_i,       // the last unit's beat is the streams' last
    output logic                       ready_o,      // for a beat now, and for four under way
    output logic                       room_o,       // for ROOM beats, beside those under way
    output logic                       empty_o,
    // output streams
    output logic [1:0]                 out_valid_o,
    input  wire  [1:0]                 out_ready_i,
    output logic [1:0][63:0]           out_data_o,
    output logic [1:0]                 out_last_o
);
  localparam int unsigned AW = $clog2(SLOTS);
  localparam int unsigned FLIGHT = 8;   // more than the beats that are under way when the count is taken
  typedef logic [AW:0] count_t;
  if (SOURCES < 2) begin : gen_check
    $error("result_port: SOURCES = %0d, must be 2 or more", SOURCES);
  end
  if (SLOTS != 1 << AW || SLOTS < 2 * FLIGHT + ROOM) begin : gen_check_slots
    $error("result_port: SLOTS = %0d must be a power of two, %0d or more", SLOTS, 2 * FLIGHT + ROOM);
  end
  if (OUTPUT_STREAMS != 1 && OUTPUT_STREAMS != 2) begin : gen_check_streams
    $error("result_port: OUTPUT_STREAMS = %0d, must be 1 or 2", OUTPUT_STREAMS);
  end

  // ---- into the queue ------------------------------------------------------------------------------------------------------
  beat_t word, word_q;
  logic  push_q, last_q;
  always_comb begin
    word = '0;
    for (int unsigned s = 0; s < SOURCES; s++) word = word | word_i[s];
  end
  always_ff @(posedge clk_i) begin
    push_q <= |valid_i && !rst_i;
    word_q <= word;
    last_q <= valid_i[SOURCES-1] && last_i;
  end

  (* ram_style = "distributed" *) logic [BEAT_BITS:0] queue[SLOTS];
  logic [AW-1:0] head_q, tail_q;
  count_t        count_q;
  logic          ready_q, room_q, pop;
  always_ff @(posedge clk_i) begin
    if (push_q) queue[tail_q] <= {last_q, word_q};
    tail_q  <= tail_q + AW'(push_q);
    head_q  <= head_q + AW'(pop);
    count_q <= count_q + count_t'(push_q) - count_t'(pop);
    ready_q <= count_q <= count_t'(SLOTS - FLIGHT);
    room_q  <= count_q <= count_t'(SLOTS - 2 * FLIGHT - ROOM);
    if (rst_i) begin
      {head_q, tail_q, count_q} <= '0;
      {ready_q, room_q} <= '0;
    end
  end
  assign ready_o = ready_q;
  assign room_o  = room_q;

  // ---- onto the streams ----------------------------------------------------------------------------------------------------
  logic       head_last;
  beat_t      head;
  logic [1:0] valid_q, left;     // words in the registers; those that stay there
  logic       last_out_q;
  beat_t      data_q;
  assign {head_last, head} = queue[head_q];
  assign pop               = count_q != 0 && left == 0;
  if (OUTPUT_STREAMS == 2) begin : gen_two
    assign left        = valid_q & ~out_ready_i;
    assign out_valid_o = valid_q;
    assign out_data_o  = data_q;
    assign out_last_o  = {2{last_out_q}};
  end else begin : gen_one
    // the lower word first
    always_comb begin
      left = valid_q;
      if (out_ready_i[0]) left = valid_q[0] ? {valid_q[1], 1'b0} : 2'b00;
    end
    assign out_valid_o = {1'b0, |valid_q};
    assign out_data_o  = {64'd0, valid_q[0] ? data_q[63:0] : data_q[127:64]};
    assign out_last_o  = {1'b0, last_out_q && !valid_q[0]};
  end
  always_ff @(posedge clk_i) begin
    valid_q <= rst_i ? '0 : pop ? 2'b11 : left;
    if (pop) begin
      data_q     <= head;
      last_out_q <= head_last;
    end
  end
  assign empty_o = valid_q == 0 && count_q == 0 && !push_q;

`ifndef SYNTHESIS
  // a word stays until it is taken
  for (genvar s = 0; s < 2; s++) begin : gen_assert
    a_result_waits: assert property (@(posedge clk_i) disable iff (rst_i) out_valid_o[s] && !out_ready_i[s] |=> out_valid_o[s] && $stable({out_data_o[s], out_last_o[s]}));
  end
  // the queue has room for every beat
  a_room: assert property (@(posedge clk_i) disable iff (rst_i) push_q |-> count_q < count_t'(SLOTS));
  // results leave in order: no two units have a beat at the same time
  a_one_source: assert property (@(posedge clk_i) disable iff (rst_i) $onehot0(valid_i));
`endif
endmodule

`default_nettype wire
