// SPDX-License-Identifier: Apache-2.0
// One AXI master, 64 bits wide: reads the words of an input stream, writes those of an output stream.  Every burst is
// incrementing, has 1 to 16 beats of 8 bytes and lies within a line of 128 bytes.  Accesses of one kind answer in order.
// Outputs are registers or constants.
`default_nettype none

module memory_port
  import memory_pkg::*;
#(
    parameter int unsigned ADDRESS_BITS = 32,   /// of a byte address, 32 to 64
    parameter int unsigned OPEN_READS   = 8,    /// bursts that may be open at a time, powers of two
    parameter int unsigned OPEN_WRITES  = 8,
    parameter int unsigned READ_SLOTS   = 512,  /// words that the queues hold, powers of two
    parameter int unsigned WRITE_SLOTS  = 64
) (
    input  wire                      clk_i,
    input  wire                      rst_i,            // empties everything; nothing may be open
    input  wire                      start_i,
    input  wire  [ADDRESS_BITS-1:12] base_i,           // page of beat 0
    input  wire  [31:4]              program_i,        // line of the first record
    input  wire  [31:4]              limit_i,          // lines of the memory
    input  wire                      halt_i,           // no further bursts; held until the reset
    input  wire                      finish_i,         // the core has stopped: no further reads, the stream ends; held
    input  wire                      ended_i,          // the core's streams have ended
    input  wire                      error_i,          // with an error
    // AXI
    output logic                     arvalid_o,
    output logic [ADDRESS_BITS-1:0]  araddr_o,
    output logic [3:0]               arlen_o,
    input  wire                      arready_i,
    input  wire                      rvalid_i,
    input  wire  [63:0]              rdata_i,
    input  wire  [1:0]               rresp_i,
    input  wire                      rlast_i,
    output logic                     rready_o,
    output logic                     awvalid_o,
    output logic [ADDRESS_BITS-1:0]  awaddr_o,
    output logic [3:0]               awlen_o,
    input  wire                      awready_i,
    output logic                     wvalid_o,
    output logic [63:0]              wdata_o,
    output logic                     wlast_o,
    input  wire                      wready_i,
    input  wire                      bvalid_i,
    input  wire  [1:0]               bresp_i,
    output logic                     bready_o,
    // words for the core
    output logic                     out_valid_o,
    output logic [63:0]              out_data_o,
    output logic                     out_last_o,
    input  wire                      out_ready_i,
    // words of the core
    output logic                     in_ready_o,
    input  wire                      in_take_i,        // only when ready
    input  wire  [63:0]              in_data_i,
    input  wire                      in_last_i,
    // -> control
    output logic                     trailer_o,        // the core's stream has ended; held
    output logic                     trailer_error_o,  // the low half of its last word is not 0
    output logic                     done_o,           // both streams have ended, everything is in memory
    output logic                     quiet_o,          // nothing is open
    output logic [1:0][3:0]          fault_o,          // of reads, of writes
    output logic [1:0][31:0]         fault_offset_o,
    output logic                     took_o,           // a word was read; counts
    output logic                     sent_o,           // a word was written; counts
    output logic                     starved_o         // words are on their way and none is here; counts
);
  localparam int unsigned LINE_BITS = $clog2(8 * LINE_BEATS);
  if (ADDRESS_BITS < 32 || ADDRESS_BITS > 64) begin : gen_check
    $error("memory_port: ADDRESS_BITS = %0d, must be 32 to 64", ADDRESS_BITS);
  end

  logic        ar_valid, aw_valid, read_done, read_quiet, write_done, write_quiet;
  logic [31:0] ar_offset, aw_offset;
  logic [3:0]  ar_length, aw_length;
  logic        place_write, place_end, place_room, written;
  logic [2:0]  place_word;
  logic [63:0] place_data;

  memory_reader #(.OPEN(OPEN_READS), .SLOTS(READ_SLOTS)) i_reader (
      .clk_i, .rst_i, .start_i, .program_i, .limit_i, .halt_i, .finish_i,
      .ar_valid_o(ar_valid), .ar_offset_o(ar_offset), .ar_length_o(ar_length), .ar_ready_i(!arvalid_o),
      .r_valid_i(rvalid_i), .r_data_i(rdata_i), .r_response_i(rresp_i), .r_last_i(rlast_i),
      .place_write_o(place_write), .place_word_o(place_word), .place_data_o(place_data), .place_end_o(place_end),
      .place_room_i(place_room), .written_i(written),
      .out_valid_o, .out_data_o, .out_last_o, .out_ready_i,
      .done_o(read_done), .quiet_o(read_quiet), .fault_o(fault_o[0]), .fault_offset_o(fault_offset_o[0]),
      .took_o, .starved_o
  );

  memory_writer #(.OPEN(OPEN_WRITES), .SLOTS(WRITE_SLOTS)) i_writer (
      .clk_i, .rst_i, .limit_i, .halt_i, .in_ready_o, .in_take_i, .in_data_i, .in_last_i,
      .place_write_i(place_write), .place_word_i(place_word), .place_data_i(place_data), .place_end_i(place_end),
      .place_room_o(place_room), .written_o(written),
      .aw_valid_o(aw_valid), .aw_offset_o(aw_offset), .aw_length_o(aw_length), .aw_ready_i(!awvalid_o),
      .w_valid_o(wvalid_o), .w_data_o(wdata_o), .w_last_o(wlast_o), .w_ready_i(wready_i),
      .b_valid_i(bvalid_i), .b_response_i(bresp_i),
      .trailer_o, .trailer_error_o, .ended_i, .error_i,
      .done_o(write_done), .quiet_o(write_quiet), .fault_o(fault_o[1]), .fault_offset_o(fault_offset_o[1]), .sent_o
  );
  assign done_o  = read_done && write_done;
  assign quiet_o = read_quiet && write_quiet;

  // ---- offsets to addresses: a beat is 8 bytes here, the base a whole page ---------------------------------------------------
  function automatic logic [ADDRESS_BITS-1:0] address(input logic [31:0] offset);
    return {base_i + (ADDRESS_BITS - 12)'(offset[31:9]), offset[8:0], 3'd0};
  endfunction
  always_ff @(posedge clk_i) begin
    if (arready_i) arvalid_o <= 1'b0;
    if (ar_valid) begin
      arvalid_o <= 1'b1;
      araddr_o  <= address(ar_offset);
      arlen_o   <= ar_length;
    end
    if (awready_i) awvalid_o <= 1'b0;
    if (aw_valid) begin
      awvalid_o <= 1'b1;
      awaddr_o  <= address(aw_offset);
      awlen_o   <= aw_length;
    end
    if (rst_i) {arvalid_o, awvalid_o} <= '0;
  end
  assign rready_o = 1'b1;
  assign bready_o = 1'b1;

`ifndef SYNTHESIS
  // requests and data stay until they are taken
  a_read_waits: assert property (@(posedge clk_i) disable iff (rst_i) arvalid_o && !arready_i |=> arvalid_o && $stable({araddr_o, arlen_o}));
  a_write_waits: assert property (@(posedge clk_i) disable iff (rst_i) awvalid_o && !awready_i |=> awvalid_o && $stable({awaddr_o, awlen_o}));
  a_data_waits: assert property (@(posedge clk_i) disable iff (rst_i) wvalid_o && !wready_i |=> wvalid_o && $stable({wdata_o, wlast_o}));
  // no burst leaves its line, and so none crosses 4 KiB
  a_read_line: assert property (@(posedge clk_i) disable iff (rst_i) arvalid_o |-> 5'(araddr_o[LINE_BITS-1:3]) + 5'(arlen_o) < 5'(LINE_BEATS));
  a_write_line: assert property (@(posedge clk_i) disable iff (rst_i) awvalid_o |-> 5'(awaddr_o[LINE_BITS-1:3]) + 5'(awlen_o) < 5'(LINE_BEATS));
`endif
`ifdef FORMAL
  // Proved by tests/hw/rtl/test_memory_formal.py on what is proved there of reader and writer.
  logic begun_q = 1'b0;
  logic ar_stalled_q, aw_stalled_q;
  logic [ADDRESS_BITS+3:0] ar_before_q, aw_before_q;
  always_ff @(posedge clk_i) begin
    begun_q      <= 1'b1;
    ar_stalled_q <= arvalid_o && !arready_i && !rst_i;
    aw_stalled_q <= awvalid_o && !awready_i && !rst_i;
    ar_before_q  <= {araddr_o, arlen_o};
    aw_before_q  <= {awaddr_o, awlen_o};
    assume (rst_i == !begun_q);
    assume (!ar_valid || (!arvalid_o && 5'(ar_offset[3:0]) + 5'(ar_length) < 5'(LINE_BEATS)));
    assume (!aw_valid || (!awvalid_o && 5'(aw_offset[3:0]) + 5'(aw_length) < 5'(LINE_BEATS)));
    if (begun_q) begin
      // requests stay until they are taken, and name beats of one line: none crosses 4 KiB
      if (ar_stalled_q) assert (arvalid_o && {araddr_o, arlen_o} == ar_before_q);
      if (aw_stalled_q) assert (awvalid_o && {awaddr_o, awlen_o} == aw_before_q);
      if (arvalid_o) assert (araddr_o[2:0] == 0 && 5'(araddr_o[LINE_BITS-1:3]) + 5'(arlen_o) < 5'(LINE_BEATS));
      if (awvalid_o) assert (awaddr_o[2:0] == 0 && 5'(awaddr_o[LINE_BITS-1:3]) + 5'(awlen_o) < 5'(LINE_BEATS));
      // answers are always taken
      assert (rready_o && bready_o);
    end
  end
`endif
endmodule

`default_nettype wire
