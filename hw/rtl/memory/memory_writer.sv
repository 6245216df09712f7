// SPDX-License-Identifier: Apache-2.0
// Writes the results of one output stream to the places that records name: tiles row by row, each tile's beats to the
// destinations in turn, then the tail.  A burst is asked for when all its data lie in the queue, so that it always can be
// finished.  The word with which the stream ends belongs to the trailer and is not written.
`default_nettype none

module memory_writer
  import memory_pkg::*;
#(
    parameter int unsigned OPEN  = 8,  /// bursts that may be open at a time, a power of two
    parameter int unsigned SLOTS = 64  /// words of results that the queue holds, a power of two
) (
    input  wire          clk_i,
    input  wire          rst_i,            // empties everything; no burst may be open
    input  wire  [31:4]  limit_i,          // lines of the memory
    input  wire          halt_i,           // no further bursts; held until the reset
    // stream
    output logic         in_ready_o,
    input  wire          in_take_i,        // only when ready
    input  wire  [63:0]  in_data_i,
    input  wire          in_last_i,
    // places of results, from the reader
    input  wire          place_write_i,
    input  wire  [2:0]   place_word_i,
    input  wire  [63:0]  place_data_i,
    input  wire          place_end_i,      // a record is complete
    output logic         place_room_o,     // for a record
    output logic         written_o,        // all results of the records before the newest one are in memory
    // bursts to write, in beats
    output logic         aw_valid_o,       // one cycle, only when ready
    output logic [31:0]  aw_offset_o,
    output logic [3:0]   aw_length_o,      // beats - 1
    input  wire          aw_ready_i,
    // their data
    output logic         w_valid_o,
    output logic [63:0]  w_data_o,
    output logic         w_last_o,
    input  wire          w_ready_i,
    // their answers, always taken
    input  wire          b_valid_i,
    input  wire  [1:0]   b_response_i,
    // -> control
    output logic         trailer_o,        // the stream has ended; held
    output logic         trailer_error_o,  // the low half of its last word is not 0
    input  wire          ended_i,          // all streams have ended
    input  wire          error_i,          // the core ended with an error: further results do not come
    output logic         done_o,           // the stream has ended, everything is in memory
    output logic         quiet_o,          // nothing is open
    output logic [3:0]   fault_o,
    output logic [31:0]  fault_offset_o,
    output logic         sent_o            // a word was written; counts
);
  localparam int unsigned PW = $clog2(SLOTS);
  localparam int unsigned OW = $clog2(OPEN);
  localparam int unsigned RECORDS = 4;     // of which the places are kept
  localparam int unsigned WORDS = RECORD_WORDS / 2;  // of a record that hold them
  if (SLOTS != 1 << PW || SLOTS < 2 * LINE_BEATS) begin : gen_check_slots
    $error("memory_writer: SLOTS = %0d must be a power of two, %0d or more", SLOTS, 2 * LINE_BEATS);
  end
  if (OPEN != 1 << OW || OPEN < 2) begin : gen_check_open
    $error("memory_writer: OPEN = %0d must be a power of two, 2 or more", OPEN);
  end
  if (WORDS != 8 || OFFSET_0_WORD != WORDS || DESTINATIONS != 3) begin : gen_check_record
    $error("memory_writer: places of results do not lie in the last %0d words of a record", WORDS);
  end

  // ---- results that came ---------------------------------------------------------------------------------------------------
  (* ram_style = "distributed" *) logic [63:0] queue[SLOTS];
  logic [PW-1:0] in_q, out_q;
  logic [PW:0]   words_q, free_q;    // in the queue; of these not asked for yet
  logic          ready_q, trailer_q, trailer_error_q, push, pop, ask;
  logic [4:0]    length_q;           // of the burst that is next
  assign push = in_take_i && !in_last_i;
  always_ff @(posedge clk_i) begin
    if (push) queue[in_q] <= in_data_i;
    in_q    <= in_q + PW'(push);
    out_q   <= out_q + PW'(pop);
    words_q <= words_q + (PW + 1)'(push) - (PW + 1)'(pop);
    free_q  <= free_q + (PW + 1)'(push) - (ask ? (PW + 1)'(length_q) : '0);
    ready_q <= words_q < (PW + 1)'(SLOTS - 2);  // a word may be on its way into the count
    if (in_take_i && in_last_i) begin
      trailer_q       <= 1'b1;
      trailer_error_q <= in_data_i[31:0] != 0;
    end
    if (rst_i) {in_q, out_q, words_q, free_q, ready_q, trailer_q} <= '0;
  end
  assign in_ready_o      = ready_q;
  assign trailer_o       = trailer_q;
  assign trailer_error_o = trailer_error_q;

  // ---- places --------------------------------------------------------------------------------------------------------------
  (* ram_style = "distributed" *) logic [63:0] places[RECORDS*WORDS];
  logic [1:0]  place_in_q, place_out_q;
  logic [2:0]  records_q, word_q;
  logic        beats_q, tiles_q, tail_q;   // what of a record is not 0, as it comes
  logic        counts, newest_q, record_done;
  logic [63:0] place;
  assign counts       = place_end_i && ((beats_q && tiles_q) || tail_q);
  assign place        = places[{place_out_q, word_q}];
  assign place_room_o = records_q < 3'(RECORDS);
  always_ff @(posedge clk_i) begin
    if (place_write_i) begin
      places[{place_in_q, place_word_i}] <= place_data_i;
      case (place_word_i)
        3'(OFFSET_0_WORD):                                 beats_q <= place_data_i[BEATS_0_LSB+:BEATS_0_BITS] != 0;
        3'(OFFSET_1_WORD), 3'(OFFSET_2_WORD): if (place_data_i[BEATS_1_LSB+:BEATS_1_BITS] != 0) beats_q <= 1'b1;
        3'(RESULT_ROWS_WORD):
          tiles_q <= place_data_i[RESULT_ROWS_LSB+:RESULT_ROWS_BITS] != 0 && place_data_i[ROW_TILES_LSB+:ROW_TILES_BITS] != 0;
        3'(TAIL_OFFSET_WORD): tail_q <= place_data_i[TAIL_BEATS_LSB+:TAIL_BEATS_BITS] != 0;
        default: ;
      endcase
    end
    place_in_q  <= place_in_q + 2'(counts);
    place_out_q <= place_out_q + 2'(record_done);
    records_q   <= records_q + 3'(counts) - 3'(record_done);
    if (place_end_i) newest_q <= counts;
    if (rst_i) {place_in_q, place_out_q, records_q, newest_q} <= '0;
  end

  // ---- bursts that are open, oldest first; those of which data are still here ------------------------------------------------
  (* ram_style = "distributed" *) logic [31:0] opened[OPEN];
  (* ram_style = "distributed" *) logic [3:0]  lengths[OPEN];
  logic [OW-1:0] newest_burst_q, oldest_q, sending_q;
  logic [OW:0]   open_q;
  logic          b_valid_q, waits, burst_begins;
  logic [1:0]    b_response_q;
  logic [31:0]   at_q, fault_offset_q;
  logic [3:0]    fault_q;
  logic          unsent_q;   // tells none from all where the pointers are equal
  assign waits = newest_burst_q != sending_q || unsent_q;
  always_ff @(posedge clk_i) begin
    b_valid_q    <= b_valid_i && !rst_i;
    b_response_q <= b_response_i;
    if (ask) begin
      opened[newest_burst_q]  <= at_q;
      lengths[newest_burst_q] <= aw_length_o;
    end
    newest_burst_q <= newest_burst_q + OW'(ask);
    sending_q      <= sending_q + OW'(burst_begins);
    oldest_q       <= oldest_q + OW'(b_valid_q);
    open_q         <= open_q + (OW + 1)'(ask) - (OW + 1)'(b_valid_q);
    if (ask != burst_begins) unsent_q <= ask;
    if (rst_i) {newest_burst_q, sending_q, oldest_q, open_q, unsent_q} <= '0;
  end

  // ---- where the next words go ---------------------------------------------------------------------------------------------
  typedef struct packed {
    logic [31:0] at, row, stride;
    logic [15:0] beats;
  } destination_t;
  typedef enum logic [2:0] {NEXT, PLACE, RUN, BURST, ISSUE, TURN, DROP} state_t;
  state_t state_q;
  destination_t [DESTINATIONS-1:0] to_q;   // the one at work first
  destination_t to, turned;
  logic [1:0]  turn_q;                     // which of the tile's destinations that is
  logic [15:0] tiles_left_q, row_tiles_q;
  logic [31:0] rows_q, tail_offset_q, tail_beats_q, left_q, run_at, run_beats;
  logic        any_q, in_tail_q, run_ends_q, beyond_q, row_ends, stopped, settled_q, enough_q, missing;
  logic [4:0]  line_left;
  assign stopped     = halt_i || fault_q != FAULT_NONE;
  assign line_left   = 5'(LINE_BEATS) - 5'(at_q[3:0]);
  assign row_ends    = tiles_left_q == 16'd1;
  assign missing     = state_q == ISSUE && settled_q && !enough_q;
  assign ask         = state_q == ISSUE && enough_q && !stopped && !beyond_q && aw_ready_i && open_q < (OW + 1)'(OPEN);
  assign record_done = state_q == TURN && in_tail_q;
  assign aw_valid_o  = ask;
  assign aw_offset_o = at_q;
  assign aw_length_o = 4'(length_q - 5'd1);
  assign run_at      = in_tail_q ? tail_offset_q : to_q[0].at;
  assign run_beats   = in_tail_q ? tail_beats_q : 32'(to_q[0].beats);
  always_comb begin
    to        = '0;   // as its word says
    to.at     = place[OFFSET_0_LSB+:OFFSET_0_BITS];
    to.row    = to.at;
    to.beats  = place[BEATS_0_LSB+:BEATS_0_BITS];
    turned    = to_q[0];
    turned.at = at_q;
    if (row_ends) begin
      turned.row = to_q[0].row + to_q[0].stride;
      turned.at  = turned.row;
    end
  end

  always_ff @(posedge clk_i) begin
    // words only come while a burst waits for them, so those that are enough stay so
    settled_q <= state_q == ISSUE && !ask;
    enough_q  <= state_q == ISSUE && !ask && free_q >= (PW + 1)'(length_q);
    case (state_q)
      NEXT: begin
        {word_q, any_q, turn_q} <= '0;
        if (records_q != 0) state_q <= PLACE;
      end
      PLACE: begin
        word_q <= word_q + 3'd1;
        case (word_q)
          3'(OFFSET_0_WORD), 3'(OFFSET_1_WORD), 3'(OFFSET_2_WORD): begin
            to_q  <= {to, to_q[DESTINATIONS-1:1]};
            any_q <= any_q || to.beats != 0;
          end
          3'(STRIDE_0_WORD): begin
            to_q[0].stride <= place[STRIDE_0_LSB+:STRIDE_0_BITS];
            to_q[1].stride <= place[STRIDE_1_LSB+:STRIDE_1_BITS];
          end
          3'(STRIDE_2_WORD): to_q[2].stride <= place[STRIDE_2_LSB+:STRIDE_2_BITS];
          3'(RESULT_ROWS_WORD): begin
            rows_q      <= place[RESULT_ROWS_LSB+:RESULT_ROWS_BITS];
            row_tiles_q <= place[ROW_TILES_LSB+:ROW_TILES_BITS];
          end
          default: begin
            tail_offset_q <= place[TAIL_OFFSET_LSB+:TAIL_OFFSET_BITS];
            tail_beats_q  <= place[TAIL_BEATS_LSB+:TAIL_BEATS_BITS];
            tiles_left_q  <= row_tiles_q;
            in_tail_q     <= !any_q || rows_q == 0 || row_tiles_q == 0;
            state_q       <= RUN;
          end
        endcase
      end
      RUN: begin
        at_q    <= run_at;
        left_q  <= run_beats;
        state_q <= run_beats == 0 ? TURN : BURST;
      end
      BURST: begin
        run_ends_q <= left_q <= 32'(line_left);
        length_q   <= left_q <= 32'(line_left) ? left_q[4:0] : line_left;
        beyond_q   <= at_q[31:4] >= limit_i;
        state_q    <= ISSUE;
      end
      ISSUE:
        if (ask) begin
          at_q    <= at_q + 32'(length_q);
          left_q  <= left_q - 32'(length_q);
          state_q <= run_ends_q ? TURN : BURST;
        end else if (missing && ended_i && error_i) begin
          // the packet with the error may have sent a part of its results
          length_q   <= 5'(free_q);
          run_ends_q <= 1'b0;
          settled_q  <= 1'b0;
          if (free_q == 0) state_q <= DROP;
        end
      TURN: begin
        to_q    <= {turned, to_q[DESTINATIONS-1:1]};
        turn_q  <= turn_q + 2'd1;
        state_q <= in_tail_q ? NEXT : RUN;
        if (turn_q == 2'(DESTINATIONS - 1)) begin
          turn_q       <= '0;
          tiles_left_q <= row_ends ? row_tiles_q : tiles_left_q - 16'd1;
          rows_q       <= rows_q - 32'(row_ends);
          in_tail_q    <= row_ends && rows_q == 32'd1;
        end
      end
      default: ;
    endcase
    if (rst_i) state_q <= NEXT;
  end

  always_ff @(posedge clk_i) begin
    if (fault_q == FAULT_NONE) begin
      if (b_valid_q && b_response_q[1]) begin
        fault_q        <= b_response_q[0] ? FAULT_WRITE_DECERR : FAULT_WRITE_SLVERR;
        fault_offset_q <= opened[oldest_q];
      end else if (state_q == ISSUE && beyond_q && enough_q) begin
        fault_q        <= FAULT_RANGE;
        fault_offset_q <= at_q;
      end else if (missing && ended_i && !error_i) begin
        fault_q        <= FAULT_RESULTS;   // too few: the first that is missing
        fault_offset_q <= at_q + 32'(free_q);
      end else if (state_q == NEXT && records_q == 0 && free_q != 0) begin
        fault_q        <= FAULT_RESULTS;   // too many
        fault_offset_q <= '0;
      end
    end
    if (rst_i) fault_q <= FAULT_NONE;
  end
  assign fault_o        = fault_q;
  assign fault_offset_o = fault_offset_q;
  assign quiet_o   = open_q == 0;
  assign written_o = open_q == 0 && records_q <= 3'(newest_q);
  assign done_o    = ended_i && open_q == 0 && free_q == 0 && (state_q == DROP || (state_q == NEXT && records_q == 0));

  // ---- data of bursts ------------------------------------------------------------------------------------------------------
  logic        active_q, finishes, w_valid_q, w_last_q;
  logic [3:0]  w_left_q;   // words of the burst behind the next one
  logic [63:0] w_data_q;
  assign pop          = active_q && (!w_valid_q || w_ready_i);
  assign finishes     = pop && w_left_q == 0;
  assign burst_begins = (!active_q || finishes) && waits;
  assign sent_o       = pop;
  always_ff @(posedge clk_i) begin
    if (w_ready_i) w_valid_q <= 1'b0;
    if (pop) begin
      w_valid_q <= 1'b1;
      w_data_q  <= queue[out_q];
      w_last_q  <= finishes;
      w_left_q  <= w_left_q - 4'd1;
    end
    if (finishes) active_q <= 1'b0;
    if (burst_begins) begin
      active_q <= 1'b1;
      w_left_q <= lengths[sending_q];
    end
    if (rst_i) {active_q, w_valid_q} <= '0;
  end
  assign w_valid_o = w_valid_q;
  assign w_data_o  = w_data_q;
  assign w_last_o  = w_last_q;

`ifndef SYNTHESIS
  a_ready: assert property (@(posedge clk_i) disable iff (rst_i) in_take_i |-> in_ready_o);
  // every word has room
  a_room: assert property (@(posedge clk_i) disable iff (rst_i) push |-> words_q < (PW + 1)'(SLOTS));
  // data of a burst lie here before they are asked for
  a_data: assert property (@(posedge clk_i) disable iff (rst_i) pop |-> words_q != 0);
  a_places: assert property (@(posedge clk_i) disable iff (rst_i) counts |-> place_room_o);
  // answers come for open bursts only
  a_open: assert property (@(posedge clk_i) disable iff (rst_i) b_valid_q |-> open_q != 0);
`endif
`ifdef FORMAL
  // Proved by tests/hw/rtl/test_memory_formal.py, with two open bursts.  What the environment keeps to:
  logic        begun_q = 1'b0;
  logic        trailer_before_q;
  logic [OW:0] whole_q;    // bursts whose data have all been sent, not answered yet
  always_ff @(posedge clk_i) begin
    begun_q <= 1'b1;
    whole_q <= whole_q + (OW + 1)'(w_valid_o && w_ready_i && w_last_o) - (OW + 1)'(b_valid_i);
    trailer_before_q <= trailer_q;
    if (rst_i) {whole_q, trailer_before_q} <= '0;
    assume (rst_i == !begun_q);
    assume (!in_take_i || in_ready_o);
    assume (!place_end_i || place_room_o);
    assume (!b_valid_i || whole_q != 0);
    assume (!in_take_i || !trailer_q);
    assume (!ended_i || trailer_before_q);   // all streams' ends are told a cycle later than one's own
  end
  // any one word, by its number modulo twice the queue's size
  logic [PW:0] number_q, came_q, gone_q;
  logic [63:0] value_q;
  logic        here_q;
  // bursts that wait for their data to be sent, and the words of them
  logic [OW:0] waiting;
  logic [PW:0] owed;
  logic [OW-1:0] behind;
  assign behind  = sending_q + OW'(1);
  assign waiting = newest_burst_q != sending_q ? (OW + 1)'(OW'(newest_burst_q - sending_q)) : unsent_q ? (OW + 1)'(OPEN) : '0;
  assign owed    = (waiting > 0 ? (PW + 1)'(lengths[sending_q]) + 1 : '0) + (waiting > 1 ? (PW + 1)'(lengths[behind]) + 1 : '0) +
                   (active_q ? (PW + 1)'(w_left_q) + 1 : '0);
  logic        w_stalled_q;
  logic [64:0] w_before_q;
  always_ff @(posedge clk_i) begin
    number_q <= number_q;
    came_q   <= came_q + (PW + 1)'(push);
    gone_q <= gone_q + (PW + 1)'(pop);
    if (push && came_q == number_q) {here_q, value_q} <= {1'b1, in_data_i};
    if (pop && gone_q == number_q) here_q <= 1'b0;
    w_stalled_q <= w_valid_o && !w_ready_i;
    w_before_q  <= {w_last_o, w_data_o};
    if (rst_i) {came_q, gone_q, here_q, w_stalled_q} <= '0;
    if (begun_q) begin
      // a word leaves as it came, in its turn, once
      if (pop && gone_q == number_q) assert (here_q && queue[out_q] == value_q);
      assert (!pop || !w_valid_o || w_ready_i);
      assert (words_q == (PW + 1)'(came_q - gone_q) && words_q <= (PW + 1)'(SLOTS));
      assert (in_q == came_q[PW-1:0] && out_q == gone_q[PW-1:0]);
      assert (here_q == ((PW + 1)'(number_q - gone_q) < words_q));
      if (here_q) assert (queue[number_q[PW-1:0]] == value_q);
      assert (!ready_q || words_q < (PW + 1)'(SLOTS));
      // bursts have 1 to 16 beats in one line, below the limit, and their data are here
      if (aw_valid_o) begin
        assert (5'(aw_offset_o[3:0]) + 5'(aw_length_o) < 5'(LINE_BEATS));
        assert (free_q >= (PW + 1)'(aw_length_o) + 1);
        assert (aw_ready_i && open_q < (OW + 1)'(OPEN));
      end
      if (state_q == BURST) assert (left_q != 0);
      if (state_q == ISSUE) begin
        assert (length_q != 0 && length_q <= line_left && left_q >= 32'(length_q) && (run_ends_q || left_q > 32'(length_q)));
        assert (!enough_q || free_q >= (PW + 1)'(length_q));
        if (settled_q && trailer_before_q) assert (enough_q == (free_q >= (PW + 1)'(length_q)));
      end
      assert (!trailer_before_q || trailer_q);
      assert (words_q == free_q + owed && owed <= words_q);
      // the last word of a burst carries WLAST, and no other
      assert (!pop || finishes == (w_left_q == 0));
      // every burst is answered: open ones wait, are sent, or have been sent
      assert (open_q <= (OW + 1)'(OPEN));
      assert (8'(open_q) == 8'(waiting) + 8'(active_q) + 8'(w_valid_q && w_last_q) + 8'(whole_q) + 8'(b_valid_q));
      // what is offered stays until it is taken
      if (w_stalled_q) assert (w_valid_o && {w_last_o, w_data_o} == w_before_q);
    end
  end
`endif
endmodule

`default_nettype wire
