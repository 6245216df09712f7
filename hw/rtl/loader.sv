// SPDX-License-Identifier: Apache-2.0
// Reads the two input streams in lockstep: takes packets in order, has them checked, fills the buffers, queues commands.
// A LOAD waits only for earlier commands that still read the range it overwrites, so loads run ahead of the array.
//
//   header -> header_check -> command
//   payload -> packed_place -> buffers
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
    input  wire                       clk_i,
    input  wire                       rst_i,
    input  wire                       start_i,
    output logic                      done_o,       // streams read to their end; held until the next start
    // input streams
    input  wire  [1:0]                in_valid_i,
    output logic [1:0]                in_ready_o,
    input  wire  [BEAT_BITS-1:0]      in_data_i,
    input  wire  [1:0]                in_last_i,
    // -> buffers
    output logic                      a_write_o,
    output logic                      g_write_o,
    output bank_t                     bank_o,
    output logic [AW-1:0]             a_address_o,
    output logic [GW-1:0]             g_address_o,
    output logic                      w_write_o,
    output logic [WW-1:0]             w_address_o,
    output logic                      e_write_o,
    output logic [EW-1:0]             e_address_o,
    output slice_t                    slice_o,
    output beat_t                     data_o,
    // -> queue
    output logic                      push_o,
    output command_t                  command_o,
    input  wire                       full_i,
    output address_t                  a_begin_o,    // ranges that the packet writes, end exclusive
    output address_t                  a_end_o,
    output address_t                  g_begin_o,
    output address_t                  g_end_o,
    output address_t                  w_begin_o,
    output address_t                  w_end_o,
    input  wire                       conflict_i,
    input  wire                       compute_idle_i,
    input  wire                       fault_i,
    // -> counters
    output logic                      took_o,
    output logic                      starved_o,
    output logic                      hazard_o
);
  typedef enum logic [3:0] {
    STOP, HEADER, CHECK, HAZARD, PAYLOAD, PUSH, NEXT, PUSH_END, SWALLOW
  } state_t;
  state_t state_q, state_d;

  // ---- streams: one beat takes a word of either -----------------------------------------------------------------------
  logic       beat_ready, both, beat;
  logic [1:0] seen_last_q, seen_last_d;
  beat_t      word;
  // what is asked in every cycle, beside the state: registers of their own, told in few LUTs from the words that arrive
  logic in_header_q, in_header_d, in_payload_q, in_payload_d, swallows_q;
  always_ff @(posedge clk_i) begin
    in_header_q  <= in_header_d;
    in_payload_q <= in_payload_d;
    swallows_q   <= state_d == SWALLOW;
  end
  assign beat_ready = in_header_q || in_payload_q;
  assign both       = &in_valid_i;
  assign beat       = beat_ready && both;
  assign in_ready_o = swallows_q ? ~seen_last_q : {2{beat}};
  assign took_o     = beat;
  assign starved_o  = beat_ready && !beat;
  assign hazard_o   = state_q == HAZARD || state_q == PUSH;
  assign word       = in_data_i;

  // ---- header ---------------------------------------------------------------------------------------------------------
  header_t  h_q, h;
  kind_t    kind;
  (* keep = "true" *) logic header_beat_taken_q;
  logic     cut_q, cut_d;  // a stream ended with the header
  error_t   check_error;
  line_t    group_planes;
  address_t a_end, b_end, side_end, added_end;
  always_ff @(posedge clk_i) begin
    // a cycle later, as the payload: a register of its own is all that enables so many
    header_beat_taken_q <= in_header_q && both;
    if (header_beat_taken_q) h_q <= {data_o, h_q[HEADER_BITS-1:BEAT_BITS]};
    kind <= kind_of(h.opcode, h.target);  // known long before the checks are done
  end
  assign h = h_q;
  header_check i_check (
      .clk_i, .header_i(h), .kind_i(kind), .cut_i(cut_q), .ended_i(&seen_last_q), .error_o(check_error),
      .group_planes_o(group_planes), .a_end_o(a_end), .b_end_o(b_end), .side_end_o(side_end), .added_end_o(added_end)
  );

  // ---- payload --------------------------------------------------------------------------------------------------------
  logic     payload_begins, payload_beat;
  assign payload_begins = state_q == HAZARD;
  assign payload_beat   = in_payload_q && both;

  place_t   to;
  address_t entry;
  packed_place i_place (
      .clk_i, .start_i(payload_begins), .header_i(h), .kind_i(kind), .group_planes_i(group_planes),
      .beat_i(payload_beat), .place_o(to), .entry_o(entry)
  );

  // written a cycle later: the way to all memories is long, and later is never too early (command_queue)
  address_t to_a_q, to_g_q, to_entry_q;
  always_ff @(posedge clk_i) begin
    data_o     <= word;
    bank_o     <= to.bank;
    slice_o    <= to.slice;
    to_a_q     <= to.a_address;
    to_g_q     <= to.g_address;
    to_entry_q <= entry;
    {a_write_o, g_write_o, w_write_o, e_write_o} <=
        {4{payload_beat && !rst_i}} & {kind.to_a, kind.to_g, kind.to_w, kind.to_e};
  end
  assign a_address_o = AW'(to_a_q);
  assign g_address_o = GW'(to_g_q);
  assign w_address_o = WW'(to_entry_q);
  assign e_address_o = EW'(to_entry_q);

  // ---- command, and the ranges that the packet writes -------------------------------------------------------------------
  error_t      error_q, error_d;
  logic [31:0] position_q, position_d;
  assign push_o = (state_q == PUSH || state_q == PUSH_END) && !full_i;
  always_comb begin
    command_o.header   = h;
    command_o.position = position_q;
    command_o.error    = error_q;
    command_o.a_end    = a_end;
    command_o.side_end  = side_end;
    command_o.added_end = added_end;
    command_o.b_end    = b_end;
    if (state_q == PUSH_END) command_o.header.opcode = OP_END;
  end
  assign a_begin_o = address_t'(h.base_a);
  assign a_end_o   = kind.to_a ? a_end : '0;
  assign g_begin_o = address_t'(h.base_b);
  assign g_end_o   = kind.to_g ? b_end : '0;
  assign w_begin_o = address_t'(h.base_b);
  assign w_end_o   = kind.to_w ? b_end : '0;
  assign done_o    = state_q == STOP;

  // ---- state of the packet --------------------------------------------------------------------------------------------
  logic [$clog2(HEADER_BEATS)-1:0] header_beat_q, header_beat_d;
  logic [31:0]                     beats_left_q, beats_left_d;
  logic                            end_pushed_q, end_pushed_d;
  logic                            header_last_q, beats_last_q, beats_last_d;  // this beat is the last of header or payload
  logic [CHECK_CYCLES-1:0]         check_q;       // cycle of the check
  logic                            header_ends, payload_ends, permitted, stops;
  assign header_ends  = both && (header_last_q || |in_last_i);
  assign payload_ends = both && (beats_last_q || |in_last_i);
  assign permitted    = kind.to_e ? compute_idle_i : !conflict_i;
  assign stops        = fault_i && !end_pushed_q;   // nothing behind the fault counts: END comes next
  assign in_header_d  = !rst_i && ((state_q == STOP && start_i) || (!stops && (state_q == NEXT || (in_header_q && !header_ends))));
  assign in_payload_d = !rst_i && !stops && ((state_q == HAZARD && permitted) || (in_payload_q && !payload_ends));
  always_comb begin
    state_d       = state_q;
    error_d       = error_q;
    position_d    = position_q;
    header_beat_d = header_beat_q;
    beats_left_d  = beats_left_q;
    beats_last_d  = beats_last_q;
    cut_d         = cut_q;
    end_pushed_d  = end_pushed_q;
    seen_last_d   = seen_last_q | (in_valid_i & in_ready_o & in_last_i);

    unique case (state_q)
      STOP:
        if (start_i) begin
          state_d       = HEADER;
          position_d    = '0;
          header_beat_d = '0;
          error_d       = ERR_NONE;
          seen_last_d   = '0;
          end_pushed_d  = 1'b0;
          cut_d         = 1'b0;
        end
      HEADER: begin
        if (both) begin
          cut_d         = |in_last_i;
          header_beat_d = header_last_q ? '0 : header_beat_q + 1'b1;
        end
        if (header_ends) begin
          state_d = header_last_q ? CHECK : PUSH_END;
          if (!header_last_q) error_d = ERR_TRUNCATED;
        end
      end
      CHECK:
        if (check_q[CHECK_CYCLES-1]) begin
          error_d = check_error;
          state_d = check_error != ERR_NONE || kind.ends ? PUSH_END : kind.load ? HAZARD : PUSH;
        end
      HAZARD: begin
        beats_left_d = h.payload_words >> 1;
        beats_last_d = h.payload_words >> 1 == 32'd1;
        if (permitted) state_d = PAYLOAD;
      end
      PAYLOAD: begin
        if (both) begin
          beats_left_d = beats_left_q - 32'd1;
          beats_last_d = beats_left_q == 32'd2;
        end
        if (payload_ends) begin
          state_d = |in_last_i ? PUSH_END : NEXT;
          if (|in_last_i) error_d = ERR_TRUNCATED;
        end
      end
      PUSH:  if (!full_i) state_d = NEXT;
      NEXT: begin
        position_d = position_q + 32'd1;
        state_d    = HEADER;
      end
      PUSH_END:
        if (!full_i) begin
          end_pushed_d = 1'b1;
          state_d      = &seen_last_q ? STOP : SWALLOW;
        end
      SWALLOW: if (&seen_last_q) state_d = STOP;
      default: state_d = STOP;
    endcase

    if (stops && state_q != STOP && state_q != PUSH_END) state_d = PUSH_END;
    if (rst_i) state_d = STOP;
  end

  always_ff @(posedge clk_i) begin
    check_q       <= {check_q[CHECK_CYCLES-2:0], in_header_q && both && header_last_q};
    state_q       <= state_d;
    error_q       <= error_d;
    position_q    <= position_d;
    header_beat_q <= header_beat_d;
    header_last_q <= header_beat_d == ($bits(header_beat_q))'(HEADER_BEATS - 1);
    beats_left_q  <= beats_left_d;
    beats_last_q  <= beats_last_d;
    cut_q         <= cut_d;
    end_pushed_q  <= end_pushed_d;
    seen_last_q   <= seen_last_d;
    if (rst_i) check_q <= '0;
  end

`ifndef SYNTHESIS
  a_state: assert property (@(posedge clk_i) disable iff (rst_i) in_header_q == (state_q == HEADER) && in_payload_q == (state_q == PAYLOAD));
  a_beats: assert property (@(posedge clk_i) disable iff (rst_i) state_q == PAYLOAD |-> beats_last_q == (beats_left_q == 32'd1));
  // both streams are read in lockstep
  a_beat: assert property (@(posedge clk_i) disable iff (rst_i) took_o |-> &in_valid_i && &in_ready_o);
  // no push into a full queue
  a_push: assert property (@(posedge clk_i) disable iff (rst_i) push_o |-> !full_i);
  // writes stay within the ranges that the queue was asked about
  a_range_a: assert property (@(posedge clk_i) disable iff (rst_i) a_write_o |-> to_a_q >= a_begin_o && to_a_q < a_end_o);
  a_range_g: assert property (@(posedge clk_i) disable iff (rst_i) g_write_o |-> to_g_q >= g_begin_o && to_g_q < g_end_o);
  a_range_w: assert property (@(posedge clk_i) disable iff (rst_i) w_write_o |-> to_entry_q >= w_begin_o && to_entry_q < w_end_o);
`endif
endmodule

`default_nettype wire
