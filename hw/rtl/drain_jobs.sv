// SPDX-License-Identifier: Apache-2.0
// READ, which sends entries of the accumulator memory, and END, which sends the trailer: both once all else has left.
// Keeps the fault that ends a program early, a weight gradient or a READ out of range.
`default_nettype none

module drain_jobs
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                  clk_i,
    input  wire                  rst_i,
    input  wire                  job_valid_i,
    input  wire command_t        job_i,
    output logic                 job_done_o,
    output logic                 ended_o,         // trailer sent
    // -> accumulators
    output logic                 read_o,
    output address_t             read_entry_o,
    input  wire channel_sums_t   entry_i,
    // -> output port
    output logic                 valid_o,         // a beat that is taken in this cycle
    output beat_t                word_o,          // zero if there is none
    output logic                 last_o,
    input  wire                  ready_i,         // a beat would be taken
    // fault, and the program's status
    input  wire                  out_of_range_i,  // of a weight gradient
    input  wire [31:0]           position_i,      // its packet
    input  wire                  fault_clear_i,
    output logic                 fault_o,
    output error_t               error_o,
    output logic [31:0]          position_o,
    output logic [31:0]          packets_o
);
  typedef enum logic [2:0] {NONE, FETCH, CHECK, JUDGE, SEND, TRAILER, FINISH} state_t;

  state_t      state_q, state_d;
  command_t    job_q, job_d;
  address_t    entry_q, entry_d;
  logic [15:0] left_q, left_d;
  logic        fault_q, fault_d;
  logic [31:0] fault_position_q, fault_position_d;

  // ---- words of an entry ----------------------------------------------------------------------------------------------
  logic  wide, word_last, words_busy, word_valid;
  beat_t word;
  assign wide = job_q.header.format == FORMAT_INT64;
  sum_words #(.COUNT(CHANNELS)) i_words (
      .clk_i, .rst_i, .next_i(state_q == SEND && ready_i), .wide_i(wide), .last_o(word_last), .sums_i(entry_i),
      .busy_o(words_busy), .valid_o(word_valid), .word_o(word)
  );
  logic [CHANNELS-1:0] too_wide_q;   // sums of the entry that do not fit their format
  always_ff @(posedge clk_i)
    for (int unsigned c = 0; c < CHANNELS; c++)
      too_wide_q[c] <= !wide && entry_i[c][ACC_BITS-1:31] != {ACC_BITS - 31{entry_i[c][31]}};

  // ---- status -----------------------------------------------------------------------------------------------------------
  assign error_o    = fault_q ? ERR_ACCUMULATOR_RANGE : job_q.error;
  assign position_o = fault_q ? fault_position_q : job_q.error == ERR_NONE ? '0 : job_q.position;
  assign packets_o  = fault_q ? fault_position_q : job_q.error == ERR_NONE ? job_q.position + 1 : job_q.position;
  assign fault_o    = fault_q;

  // ---- state ------------------------------------------------------------------------------------------------------------
  assign read_o       = state_q == FETCH;
  assign read_entry_o = entry_q;
  assign job_done_o   = state_q == FINISH;
  assign ended_o      = job_done_o && job_q.header.opcode == OP_END;
  // the trailer behind all words
  logic trailer;
  assign trailer = state_q == TRAILER && ready_i && !words_busy;
  assign valid_o = trailer || word_valid;
  assign last_o  = trailer;
  assign word_o  = word | (trailer ? {packets_o, position_o, TRAILER_MAGIC, 24'd0, error_o} : '0);
  always_comb begin
    state_d          = state_q;
    job_d            = job_q;
    entry_d          = entry_q;
    left_d           = left_q;
    fault_d          = fault_q;
    fault_position_d = fault_position_q;

    unique case (state_q)
      NONE:
        if (job_valid_i) begin
          job_d   = job_i;
          entry_d = address_t'(job_i.header.base_accumulator);
          left_d  = job_i.header.rows;
          state_d = job_i.header.opcode == OP_END ? TRAILER : FETCH;
        end
      FETCH: begin
        entry_d = entry_q + address_t'(1);
        state_d = CHECK;
      end
      CHECK: state_d = JUDGE;
      JUDGE: begin
        state_d = SEND;
        if (|too_wide_q) begin
          fault_d          = 1'b1;
          fault_position_d = job_q.position;
          state_d          = FINISH;
        end
      end
      SEND:
        if (ready_i && word_last) begin
          left_d  = left_q - 16'd1;
          state_d = left_q == 16'd1 ? FINISH : FETCH;
        end
      TRAILER: if (trailer) state_d = FINISH;
      FINISH:  state_d = NONE;
      default: state_d = NONE;
    endcase

    if (out_of_range_i && !fault_q) begin
      fault_d          = 1'b1;
      fault_position_d = position_i;
    end
    if (rst_i || fault_clear_i) fault_d = 1'b0;
    if (rst_i) state_d = NONE;
  end
  always_ff @(posedge clk_i) begin
    state_q          <= state_d;
    job_q            <= job_d;
    entry_q          <= entry_d;
    left_q           <= left_d;
    fault_q          <= fault_d;
    fault_position_q <= fault_position_d;
  end

`ifndef SYNTHESIS
  // one job at a time
  a_job: assert property (@(posedge clk_i) disable iff (rst_i) job_valid_i |-> state_q == NONE);
`endif
endmodule

`default_nettype wire
