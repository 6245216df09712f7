// SPDX-License-Identifier: Apache-2.0
// Reads a program from memory for one input stream: a record, then the chunks of its payload.  The next record is asked for
// before the payload, so that its header lies ready when the payload ends.
//
//   records  -> header queue  --+--> stream
//            -> places of results --> writer
//   payloads -> payload queue --+
//
// A word of an open burst always has room, so data are taken whenever they come.
`default_nettype none

module memory_reader
  import memory_pkg::*;
#(
    parameter int unsigned OPEN  = 8,   /// bursts that may be open at a time, a power of two
    parameter int unsigned SLOTS = 512  /// words of payload that the queue holds, a power of two
) (
    input  wire          clk_i,
    input  wire          rst_i,            // empties everything; no burst may be open
    input  wire          start_i,
    input  wire  [31:4]  program_i,        // line of the first record
    input  wire  [31:4]  limit_i,          // lines of the memory
    input  wire          halt_i,           // no further bursts from the next cycle on; held until the reset
    input  wire          finish_i,         // likewise, and the stream ends; held until the reset
    // bursts to read, in beats
    output logic         ar_valid_o,       // one cycle, only when ready
    output logic [31:0]  ar_offset_o,
    output logic [3:0]   ar_length_o,      // beats - 1
    input  wire          ar_ready_i,
    // their data, always taken
    input  wire          r_valid_i,
    input  wire  [63:0]  r_data_i,
    input  wire  [1:0]   r_response_i,
    input  wire          r_last_i,
    // places of results
    output logic         place_write_o,
    output logic [2:0]   place_word_o,
    output logic [63:0]  place_data_o,
    output logic         place_end_o,      // a record is complete
    input  wire          place_room_i,     // for a record
    input  wire          written_i,        // all results of the records before the newest one are in memory
    // stream
    output logic         out_valid_o,
    output logic [63:0]  out_data_o,
    output logic         out_last_o,
    input  wire          out_ready_i,
    // -> control
    output logic         done_o,           // the stream has ended, nothing is open
    output logic         quiet_o,          // nothing is open
    output logic [3:0]   fault_o,
    output logic [31:0]  fault_offset_o,
    output logic         took_o,           // a word came; counts
    output logic         starved_o         // words are on their way and none is here; counts
);
  localparam int unsigned PW = $clog2(SLOTS);
  localparam int unsigned OW = $clog2(OPEN);
  localparam int unsigned HEADERS = 5;     // records of which the header queue has the headers
  localparam int unsigned HEADER_SLOTS = 32;
  if (SLOTS != 1 << PW || SLOTS < 2 * LINE_BEATS) begin : gen_check_slots
    $error("memory_reader: SLOTS = %0d must be a power of two, %0d or more", SLOTS, 2 * LINE_BEATS);
  end
  if (OPEN != 1 << OW || OPEN < 2) begin : gen_check_open
    $error("memory_reader: OPEN = %0d must be a power of two, 2 or more", OPEN);
  end
  if (HEADERS * RECORD_HEADER_WORDS > HEADER_SLOTS || RECORD_WORDS != LINE_BEATS) begin : gen_check_record
    $error("memory_reader: records of %0d words with headers of %0d do not suit it", RECORD_WORDS, RECORD_HEADER_WORDS);
  end

  typedef struct packed {
    logic        is_record;
    logic        ends;    // the payload ends with this burst
    logic [31:0] offset;
  } burst_t;
  typedef enum logic [2:0] {STOP, FETCH, ASK, RECORD, TAKE, BURST, ISSUE, END} state_t;
  state_t state_q;

  // ---- bursts that are open, oldest first ----------------------------------------------------------------------------------
  (* ram_style = "distributed" *) burst_t opened[OPEN];
  logic [OW-1:0] newest_q, oldest_q;
  logic [OW:0]   open_q;
  burst_t        asked, burst;
  logic          ask, closes;
  assign burst = opened[oldest_q];
  always_ff @(posedge clk_i) begin
    if (ask) opened[newest_q] <= asked;
    newest_q <= newest_q + OW'(ask);
    oldest_q <= oldest_q + OW'(closes);
    open_q   <= open_q + (OW + 1)'(ask) - (OW + 1)'(closes);
    if (rst_i) {newest_q, oldest_q, open_q} <= '0;
  end

  // ---- data that come ------------------------------------------------------------------------------------------------------
  logic        valid_q, last_q;
  logic [63:0] data_q;
  logic [1:0]  response_q;
  logic [3:0]  index_q;   // of the word in its burst
  logic        of_record, of_payload;
  assign closes     = valid_q && last_q;
  assign of_record  = valid_q && burst.is_record;
  assign of_payload = valid_q && !burst.is_record;
  assign took_o     = valid_q;
  always_ff @(posedge clk_i) begin
    valid_q <= r_valid_i && !rst_i;
    if (r_valid_i) {data_q, response_q, last_q} <= {r_data_i, r_response_i, r_last_i};
    if (valid_q) index_q <= last_q ? '0 : index_q + 4'd1;
    if (rst_i) index_q <= '0;
  end

  // the record that came last, or is coming
  logic        complete_q, bad_q, next_last_q, next_wait_q;
  logic        next_empty_q;  // it has no payload
  logic [31:0] next_offset_q, next_beats_q, next_stride_q;
  logic [15:0] chunks_came_q, next_chunks_q;  // as they came; none if they have no beats
  logic        taken;     // it is the one at work from now on
  always_ff @(posedge clk_i) begin
    if (of_record && index_q == 4'(PAYLOAD_OFFSET_WORD)) begin
      next_offset_q <= data_q[PAYLOAD_OFFSET_LSB+:PAYLOAD_OFFSET_BITS];
      next_beats_q  <= data_q[PAYLOAD_BEATS_LSB+:PAYLOAD_BEATS_BITS];
    end
    if (of_record && index_q == 4'(PAYLOAD_STRIDE_WORD)) begin
      next_stride_q <= data_q[PAYLOAD_STRIDE_LSB+:PAYLOAD_STRIDE_BITS];
      chunks_came_q <= data_q[PAYLOAD_CHUNKS_LSB+:PAYLOAD_CHUNKS_BITS];
      next_last_q   <= data_q[RECORD_FLAGS_LSB+RECORD_LAST];
      next_wait_q   <= data_q[RECORD_FLAGS_LSB+RECORD_WAIT];
    end
    // right before the record's last word has come
    next_chunks_q <= next_beats_q == 0 ? '0 : chunks_came_q;
    next_empty_q  <= next_beats_q == 0 || chunks_came_q == 0;
    if (taken) {complete_q, bad_q} <= '0;
    if (of_record && index_q >= 4'(RECORD_HEADER_WORDS) && (data_q & ~RECORD_BITS[index_q]) != 0) bad_q <= 1'b1;
    if (of_record && last_q) complete_q <= 1'b1;
    if (rst_i) {complete_q, bad_q} <= '0;
  end
  assign place_write_o = of_record && index_q >= 4'(OFFSET_0_WORD);
  assign place_word_o  = index_q[2:0];
  assign place_data_o  = data_q;
  assign place_end_o   = of_record && last_q;

  // ---- what to ask for -----------------------------------------------------------------------------------------------------
  logic [31:4] record_q;                          // line of the newest record that was asked for, or is
  logic [31:0] at_q, chunk_q, stride_q, beats_q, left_q;
  logic [15:0] chunks_q;
  logic        more_q;                            // chunks behind this one
  logic        last_record_q, beyond_q, chunk_ends_q;
  logic [4:0]  length_q, line_left;
  logic        may_ask, may_fetch, stopped_q, issued;
  logic [PW:0] room_q;                            // of the payload queue, open bursts taken off
  logic [2:0]  headers_q;                         // records in the header queue, open ones included
  logic [3:0]  fault_q;
  logic [31:0] fault_offset_q;
  logic        header_leaves, payload_leaves;
  // a cycle late: what is asked for in it is open, and is waited for
  always_ff @(posedge clk_i) stopped_q <= (halt_i || finish_i || fault_q != FAULT_NONE) && !rst_i;
  assign may_ask     = !stopped_q && !beyond_q && ar_ready_i && open_q < (OW + 1)'(OPEN);
  assign may_fetch   = may_ask && headers_q < 3'(HEADERS) && place_room_i;
  assign line_left   = 5'(LINE_BEATS) - 5'(at_q[3:0]);
  assign taken       = state_q == TAKE && !stopped_q && !bad_q && (!next_wait_q || written_i);
  assign issued      = state_q == ISSUE && may_ask && room_q >= (PW + 1)'(LINE_BEATS);
  assign ask         = (state_q == ASK && may_fetch) || issued;
  assign asked       = state_q == ASK ? {1'b1, 1'b0, record_q, 4'd0} : {1'b0, chunk_ends_q && !more_q, at_q};
  assign ar_valid_o  = ask;
  assign ar_offset_o = asked.offset;
  assign ar_length_o = state_q == ASK ? 4'(RECORD_WORDS - 1) : 4'(length_q - 5'd1);

  always_ff @(posedge clk_i) begin
    case (state_q)
      STOP:
        if (start_i) begin
          state_q       <= FETCH;
          record_q      <= program_i;
          last_record_q <= 1'b0;
        end
      FETCH: begin
        beyond_q <= record_q >= limit_i;
        state_q  <= ASK;
      end
      ASK: if (ask) state_q <= chunks_q != 0 ? BURST : RECORD;
      RECORD: if (complete_q) state_q <= TAKE;
      TAKE:
        if (taken) begin
          last_record_q <= next_last_q;
          record_q      <= record_q + 28'd1;
          // what comes next is decided where the record is known to be the last, or not
          state_q       <= next_last_q ? (next_empty_q ? END : BURST) : FETCH;
        end
      BURST: begin
        chunk_ends_q <= left_q <= 32'(line_left);
        length_q     <= left_q <= 32'(line_left) ? left_q[4:0] : line_left;
        more_q       <= chunks_q != 16'd1;
        beyond_q     <= at_q[31:4] >= limit_i;
        state_q      <= ISSUE;
      end
      ISSUE:
        if (issued) state_q <= !chunk_ends_q || more_q ? BURST : last_record_q ? END : RECORD;
      default: ;
    endcase
    if (rst_i) state_q <= STOP;
  end

  // The payload at work: that of the record taken, then on from burst to burst.  Many registers choose by a copy of the state.
  (* keep = "true" *) logic takes_q;  // state TAKE
  always_ff @(posedge clk_i) begin
    takes_q <= !rst_i && (state_q == TAKE ? !taken : state_q == RECORD && complete_q);
    if (taken || issued) begin
      at_q   <= takes_q ? next_offset_q : (chunk_ends_q ? chunk_q : at_q) + (chunk_ends_q ? stride_q : 32'(length_q));
      left_q <= takes_q ? next_beats_q : chunk_ends_q ? beats_q : left_q - 32'(length_q);
    end
    if (taken || (issued && chunk_ends_q)) begin
      chunk_q  <= takes_q ? next_offset_q : chunk_q + stride_q;
      chunks_q <= takes_q ? next_chunks_q : chunks_q - 16'd1;
    end
    if (taken) begin
      beats_q  <= next_beats_q;
      stride_q <= next_stride_q;
    end
    if (state_q == STOP) chunks_q <= '0;
  end

  always_ff @(posedge clk_i) begin
    if (fault_q == FAULT_NONE) begin
      if (valid_q && response_q[1]) begin
        fault_q        <= response_q[0] ? FAULT_READ_DECERR : FAULT_READ_SLVERR;
        fault_offset_q <= {burst.offset[31:4], burst.offset[3:0] + index_q};
      end else if (beyond_q && !stopped_q && (state_q == ASK || state_q == ISSUE)) begin
        fault_q        <= FAULT_RANGE;
        fault_offset_q <= asked.offset;
      end else if (state_q == TAKE && bad_q) begin
        fault_q        <= FAULT_RANGE;
        fault_offset_q <= {record_q, 4'd0};
      end
    end
    if (rst_i) fault_q <= FAULT_NONE;
  end
  assign fault_o        = fault_q;
  assign fault_offset_o = fault_offset_q;

  // ---- queues --------------------------------------------------------------------------------------------------------------
  (* ram_style = "distributed" *) logic [63:0] header[HEADER_SLOTS];
  logic [64:0]   payload[SLOTS], payload_q;   // block RAM, and the word that it has read
  logic          payload_valid_q, payload_read;
  (* ram_style = "distributed" *) logic [1:0]  kinds[8];  // of the records in the header queue: payload, last
  logic [4:0]    header_in_q, header_out_q;
  logic [PW-1:0] payload_in_q, payload_out_q;
  logic [PW:0]   payload_words_q;
  logic [2:0]    kind_in_q, kind_out_q;
  logic          header_push;
  assign header_push = of_record && index_q < 4'(RECORD_HEADER_WORDS);
  always_ff @(posedge clk_i) begin
    if (header_push) header[header_in_q] <= data_q;
    if (of_payload) payload[payload_in_q] <= {burst.ends && last_q, data_q};
    if (payload_read) payload_q <= payload[payload_out_q];
    payload_valid_q <= payload_read || (payload_valid_q && !payload_leaves);
    if (taken) kinds[kind_in_q] <= {!next_empty_q, next_last_q};
    header_in_q     <= header_in_q + 5'(header_push);
    payload_in_q    <= payload_in_q + PW'(of_payload);
    payload_out_q   <= payload_out_q + PW'(payload_read);
    payload_words_q <= payload_words_q + (PW + 1)'(of_payload) - (PW + 1)'(payload_read);
    kind_in_q       <= kind_in_q + 3'(taken);
    headers_q       <= headers_q + 3'(ask && asked.is_record) - 3'(header_leaves);
    room_q          <= room_q + (PW + 1)'(payload_read) - (ask && !asked.is_record ? (PW + 1)'(length_q) : '0);
    if (rst_i) begin
      {header_in_q, payload_in_q, payload_out_q, payload_words_q, payload_valid_q, kind_in_q, headers_q} <= '0;
      room_q <= (PW + 1)'(SLOTS);
    end
  end

  // ---- onto the stream -----------------------------------------------------------------------------------------------------
  typedef enum logic [1:0] {HEADER, PAYLOAD, ENDED} out_state_t;
  out_state_t  out_state_q;
  logic        out_valid_q, out_last_q, ends_q, word_leaves, has_payload, is_last;
  logic [63:0] out_data_q;
  logic [2:0]  word_q;   // of the header
  assign {has_payload, is_last} = kinds[kind_out_q];
  assign word_leaves    = (!out_valid_q || out_ready_i) && out_state_q == HEADER && kind_in_q != kind_out_q;
  assign header_leaves  = word_leaves && word_q == 3'(RECORD_HEADER_WORDS - 1);
  assign payload_leaves = (!out_valid_q || out_ready_i) && out_state_q == PAYLOAD && payload_valid_q;
  assign payload_read   = payload_words_q != 0 && (!payload_valid_q || payload_leaves);
  always_ff @(posedge clk_i) begin
    if (out_ready_i) out_valid_q <= 1'b0;
    if (word_leaves) begin
      out_valid_q  <= 1'b1;
      out_data_q   <= header[header_out_q];
      out_last_q   <= header_leaves && !has_payload && is_last;
      header_out_q <= header_out_q + 5'd1;
      word_q       <= header_leaves ? '0 : word_q + 3'd1;
    end
    if (header_leaves) begin
      kind_out_q  <= kind_out_q + 3'd1;
      ends_q      <= is_last;
      out_state_q <= has_payload ? PAYLOAD : is_last ? ENDED : HEADER;
    end
    if (payload_leaves) begin
      out_valid_q <= 1'b1;
      out_data_q  <= payload_q[63:0];
      out_last_q  <= payload_q[64] && ends_q;
      if (payload_q[64]) out_state_q <= ends_q ? ENDED : HEADER;
    end
    // the core has stopped and swallows words up to the last one
    if (finish_i && stopped_q && open_q == 0 && out_state_q != ENDED && !(out_valid_q && !out_ready_i)) begin
      {out_valid_q, out_last_q} <= 2'b11;
      out_state_q <= ENDED;
    end
    if (rst_i) begin
      {out_valid_q, header_out_q, kind_out_q, word_q} <= '0;
      out_state_q <= HEADER;
    end
  end
  assign out_valid_o = out_valid_q;
  assign out_data_o  = out_data_q;
  assign out_last_o  = out_last_q;

  assign quiet_o   = open_q == 0;
  assign done_o    = open_q == 0 && out_state_q == ENDED && !out_valid_q;
  assign starved_o = open_q != 0 && !out_valid_q;

`ifndef SYNTHESIS
  // every word of an open burst has room
  a_payload: assert property (@(posedge clk_i) disable iff (rst_i) of_payload |-> payload_words_q < (PW + 1)'(SLOTS));
  a_headers: assert property (@(posedge clk_i) disable iff (rst_i) headers_q <= 3'(HEADERS));
  // data come for open bursts only, as many as were asked for
  a_open: assert property (@(posedge clk_i) disable iff (rst_i) valid_q |-> open_q != 0);
  a_record: assert property (@(posedge clk_i) disable iff (rst_i) of_record && last_q |-> index_q == 4'(RECORD_WORDS - 1));
  // a word stays until it is taken
  a_word_waits: assert property (@(posedge clk_i) disable iff (rst_i) out_valid_o && !out_ready_i |=> out_valid_o && $stable({out_data_o, out_last_o}));
`endif
`ifdef FORMAL
  // Proved by tests/hw/rtl/test_memory_formal.py, with two open bursts.  What the environment keeps to: data come in order,
  // for open bursts, as many as were asked for.
  logic        begun_q = 1'b0;
  logic [4:0]  sizes_q[OPEN];     // beats of the open bursts
  logic [OW-1:0] size_in_q, size_out_q;
  logic [OW:0] sized_q;           // open bursts of which data are still to come
  logic [4:0]  given_q;           // beats that the oldest of them has given
  logic        gives_last;
  assign gives_last = r_valid_i && given_q + 5'd1 == sizes_q[size_out_q];
  always_ff @(posedge clk_i) begin
    begun_q <= 1'b1;
    if (ask) sizes_q[size_in_q] <= 5'(ar_length_o) + 5'd1;
    size_in_q  <= size_in_q + OW'(ask);
    size_out_q <= size_out_q + OW'(gives_last);
    sized_q    <= sized_q + (OW + 1)'(ask) - (OW + 1)'(gives_last);
    if (r_valid_i) given_q <= gives_last ? '0 : given_q + 5'd1;
    if (rst_i) {size_in_q, size_out_q, sized_q, given_q} <= '0;
    assume (rst_i == !begun_q);
    assume (!r_valid_i || (sized_q != 0 && r_last_i == gives_last));
  end
  // payload that is on its way: beats of open payload bursts that have not reached the queue
  // open records, and words of their headers likewise
  logic [5:0]  header_number_q, header_came_q, header_gone_q;
  logic [PW:0] coming;
  logic [7:0]  records, headers_coming, headers_here;
  always_comb begin
    {coming, records, headers_coming} = '0;
    for (int unsigned k = 0; k < OPEN; k++)
      if ((OW + 1)'(k) < open_q) begin
        if (opened[OW'(oldest_q + OW'(k))].is_record) begin
          records        = records + 8'd1;
          headers_coming = headers_coming + 8'(RECORD_HEADER_WORDS);
        end else coming = coming + (PW + 1)'(sizes_q[OW'(oldest_q + OW'(k))]);
      end
    if (open_q != 0 && !burst.is_record) coming = coming - (PW + 1)'(index_q);
    if (open_q != 0 && burst.is_record)
      headers_coming = headers_coming - (index_q < 4'(RECORD_HEADER_WORDS) ? 8'(index_q) : 8'(RECORD_HEADER_WORDS));
    headers_here = 8'(6'(header_came_q - header_gone_q));
  end
  // any one word of payload, and any one of headers, by their numbers modulo twice the queues' sizes
  logic [PW:0] number_q, came_q, read_n_q;
  logic [64:0] value_q;
  logic [63:0] header_value_q, out_before_q;
  logic        here_q, staged_q, header_here_q, out_stalled_q, out_last_before_q;
  always_ff @(posedge clk_i) begin
    number_q        <= number_q;
    header_number_q <= header_number_q;
    came_q          <= came_q + (PW + 1)'(of_payload);
    read_n_q        <= read_n_q + (PW + 1)'(payload_read);
    header_came_q   <= header_came_q + 6'(header_push);
    header_gone_q   <= header_gone_q + 6'(word_leaves);
    if (of_payload && came_q == number_q) {here_q, value_q} <= {1'b1, last_q && burst.ends, data_q};
    if (payload_leaves) staged_q <= 1'b0;
    if (payload_read && read_n_q == number_q) {here_q, staged_q} <= 2'b01;
    if (header_push && header_came_q == header_number_q) {header_here_q, header_value_q} <= {1'b1, data_q};
    if (word_leaves && header_gone_q == header_number_q) header_here_q <= 1'b0;
    out_stalled_q <= out_valid_o && !out_ready_i;
    {out_last_before_q, out_before_q} <= {out_last_o, out_data_o};
    if (rst_i) {came_q, read_n_q, here_q, staged_q, header_came_q, header_gone_q, header_here_q, out_stalled_q} <= '0;
    if (begun_q) begin
      // payload leaves as it came, in its turn, once, and always had room
      if (payload_read && read_n_q == number_q) assert (here_q && payload[payload_out_q] == value_q);
      assert (!payload_read || !payload_valid_q || payload_leaves);
      if (payload_leaves) assert (payload_valid_q && staged_q == (number_q == (PW + 1)'(read_n_q - 1)));
      assert (staged_q == (payload_valid_q && number_q == (PW + 1)'(read_n_q - 1)));
      if (staged_q) assert (payload_q == value_q);
      assert (payload_words_q == (PW + 1)'(came_q - read_n_q));
      assert (payload_in_q == came_q[PW-1:0] && payload_out_q == read_n_q[PW-1:0]);
      assert (here_q == ((PW + 1)'(number_q - read_n_q) < payload_words_q));
      if (here_q) assert (payload[number_q[PW-1:0]] == value_q);
      assert (8'(room_q) + 8'(payload_words_q) + 8'(coming) == 8'(SLOTS));
      // headers likewise
      if (word_leaves && header_gone_q == header_number_q) assert (header_here_q && header[header_out_q] == header_value_q);
      assert (header_here_q == (8'(6'(header_number_q - header_gone_q)) < headers_here));
      if (header_here_q) assert (header[header_number_q[4:0]] == header_value_q);
      assert (headers_q <= 3'(HEADERS) && 8'(headers_q) == records + 8'(complete_q) + 8'(3'(kind_in_q - kind_out_q)));
      assert (records + 8'(complete_q) <= 8'd1);
      if (state_q == STOP || state_q == FETCH || state_q == ASK) assert (records == 0 && !complete_q);
      if (state_q == TAKE) begin
        assert (complete_q && next_chunks_q == (next_beats_q == 0 ? 16'd0 : chunks_came_q));
        assert (next_empty_q == (next_beats_q == 0 || chunks_came_q == 0));
      end
      assert (takes_q == (state_q == TAKE));
      assert (headers_here + 8'(word_q) + headers_coming == 8'(RECORD_HEADER_WORDS) * 8'(headers_q));
      assert (word_q < 3'(RECORD_HEADER_WORDS) && (word_q == 0 || kind_in_q != kind_out_q));
      assert (header_in_q == header_came_q[4:0] && header_out_q == header_gone_q[4:0]);
      // bursts have 1 to 16 beats in one line, within the memory, and do not exceed what may be open
      if (ar_valid_o) begin
        assert (5'(ar_offset_o[3:0]) + 5'(ar_length_o) < 5'(LINE_BEATS));
        assert (ar_ready_i && open_q < (OW + 1)'(OPEN));
      end
      if (state_q == BURST) assert (left_q != 0 && chunks_q != 0);
      if (state_q == ISSUE) assert (length_q != 0 && length_q <= line_left && left_q >= 32'(length_q) && chunk_ends_q == (left_q == 32'(length_q)));
      if (state_q == ISSUE) assert (chunks_q != 0 && more_q == (16'd1 != chunks_q));
      if (chunks_q != 0 && state_q != STOP) assert (beats_q != 0);
      if (state_q == FETCH || state_q == ASK) assert (chunks_q == 0 || left_q != 0);
      // open bursts are those whose data are to come, or stand in the register
      assert (open_q <= (OW + 1)'(OPEN) && 8'(open_q) == 8'(sized_q) + 8'(valid_q && last_q));
      assert (newest_q == size_in_q && (OW)'(oldest_q + OW'(open_q)) == newest_q);
      assert (size_out_q == OW'(oldest_q + OW'(valid_q && last_q)));
      for (int unsigned k = 0; k < OPEN; k++)
        if ((OW + 1)'(k) < open_q) begin
          assert (sizes_q[OW'(oldest_q + OW'(k))] != 0 && sizes_q[OW'(oldest_q + OW'(k))] <= 5'(LINE_BEATS));
          if (opened[OW'(oldest_q + OW'(k))].is_record) assert (sizes_q[OW'(oldest_q + OW'(k))] == 5'(RECORD_WORDS));
        end
      if (sized_q != 0) assert (given_q < sizes_q[size_out_q]);
      else assert (given_q == 0);
      assert (5'(index_q) + 5'(valid_q) == (valid_q && last_q ? sizes_q[oldest_q] : given_q));
      if (valid_q && last_q) assert (given_q == 0 || sized_q != 0);
      if (valid_q) assert (open_q != 0 && last_q == (5'(index_q) + 5'd1 == sizes_q[oldest_q]));
      // what is offered stays until it is taken
      if (out_stalled_q) assert (out_valid_o && out_data_o == out_before_q && out_last_o == out_last_before_q);
    end
  end
`endif
endmodule

`default_nettype wire
