// SPDX-License-Identifier: Apache-2.0
// Top of the accelerator, with the ports of the HLS kernel: two input streams, two output streams (of which a design with
// one leaves the second idle), AXI4-Lite control.
`default_nettype none

module fabric
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire         ap_clk,
    input  wire         ap_rst_n,
    input  wire  [7:0]  s_axi_control_AWADDR,
    input  wire         s_axi_control_AWVALID,
    output logic        s_axi_control_AWREADY,
    input  wire  [31:0] s_axi_control_WDATA,
    input  wire  [3:0]  s_axi_control_WSTRB,
    input  wire         s_axi_control_WVALID,
    output logic        s_axi_control_WREADY,
    output logic [1:0]  s_axi_control_BRESP,
    output logic        s_axi_control_BVALID,
    input  wire         s_axi_control_BREADY,
    input  wire  [7:0]  s_axi_control_ARADDR,
    input  wire         s_axi_control_ARVALID,
    output logic        s_axi_control_ARREADY,
    output logic [31:0] s_axi_control_RDATA,
    output logic [1:0]  s_axi_control_RRESP,
    output logic        s_axi_control_RVALID,
    input  wire         s_axi_control_RREADY,
    input  wire  [63:0] in0_TDATA,
    input  wire         in0_TVALID,
    output logic        in0_TREADY,
    input  wire         in0_TLAST,
    input  wire  [63:0] in1_TDATA,
    input  wire         in1_TVALID,
    output logic        in1_TREADY,
    input  wire         in1_TLAST,
    output logic [63:0] out0_TDATA,
    output logic        out0_TVALID,
    input  wire         out0_TREADY,
    output logic        out0_TLAST,
    output logic [7:0]  out0_TKEEP,
    output logic [63:0] out1_TDATA,
    output logic        out1_TVALID,
    input  wire         out1_TREADY,
    output logic        out1_TLAST,
    output logic [7:0]  out1_TKEEP,
    output logic        interrupt
);
  localparam int unsigned AW = $clog2(DEPTH_A);
  localparam int unsigned GW = $clog2(DEPTH_G);
  localparam int unsigned WW = $clog2(DEPTH_W);
  localparam int unsigned EW = $clog2(DEPTH_EPILOGUE);
  localparam int unsigned ROW = LANES * CHANNELS;

  if (CHANNELS != 8 && CHANNELS != 16) begin : gen_check
    $error("fabric: CHANNELS = %0d, must be 8 or 16", CHANNELS);
  end

  logic wait_pipeline, compute_idle_q, results_idle_q;
  logic clk, rst, start, soft_reset, running_q, finished;
  assign clk = ap_clk;
  // in reset from power-up on; not always_ff, which would forbid the initial value
  logic reset_q;
  initial reset_q = 1'b1;
  always @(posedge clk) reset_q <= !ap_rst_n || soft_reset;
  assign rst = reset_q;

  // ---- loader -> buffers, queue --------------------------------------------------------------------------------------
  logic a_write, g_write, w_write, e_write;
  logic [2:0] bank;
  logic [AW-1:0] a_write_address;
  logic [GW-1:0] g_write_address;
  logic [WW-1:0] w_write_address;
  logic [EW-1:0] e_write_address;
  logic [7:0]    slice;
  logic [127:0]  write_data;
  logic push, full, conflict, queue_empty, command_valid, retire;
  command_t pushed, command;
  address_t a_begin, a_end, g_begin, g_end, w_begin, w_end;
  logic took, starved, hazard, loader_done, fault, drain_idle, sequencer_busy, wait_drain;

  logic [1:0] in_valid, in_ready, in_last;
  beat_t      in_data;
  stream_register #(.WIDTH(STREAM_BITS + 1)) i_in0 (
      .clk_i(clk), .rst_i(rst), .valid_i(in0_TVALID), .ready_o(in0_TREADY), .word_i({in0_TLAST, in0_TDATA}),
      .valid_o(in_valid[0]), .ready_i(in_ready[0]), .word_o({in_last[0], in_data[0+:STREAM_BITS]})
  );
  stream_register #(.WIDTH(STREAM_BITS + 1)) i_in1 (
      .clk_i(clk), .rst_i(rst), .valid_i(in1_TVALID), .ready_o(in1_TREADY), .word_i({in1_TLAST, in1_TDATA}),
      .valid_o(in_valid[1]), .ready_i(in_ready[1]), .word_o({in_last[1], in_data[STREAM_BITS+:STREAM_BITS]})
  );
  loader i_loader (
      .clk_i(clk), .rst_i(rst), .start_i(start), .done_o(loader_done),
      .in_valid_i(in_valid), .in_ready_o(in_ready), .in_data_i(in_data), .in_last_i(in_last),
      .a_write_o(a_write), .g_write_o(g_write), .bank_o(bank), .a_address_o(a_write_address),
      .g_address_o(g_write_address), .w_write_o(w_write), .w_address_o(w_write_address), .e_write_o(e_write),
      .e_address_o(e_write_address), .slice_o(slice), .data_o(write_data),
      .push_o(push), .command_o(pushed), .full_i(full),
      .a_begin_o(a_begin), .a_end_o(a_end), .g_begin_o(g_begin), .g_end_o(g_end), .w_begin_o(w_begin), .w_end_o(w_end),
      .conflict_i(conflict), .compute_idle_i(compute_idle_q), .fault_i(fault),
      .took_o(took), .starved_o(starved), .hazard_o(hazard)
  );

  command_queue i_queue (
      .clk_i(clk), .rst_i(rst), .push_i(push), .command_i(pushed), .full_o(full), .valid_o(command_valid),
      .command_o(command), .pop_i(retire), .a_begin_i(a_begin), .a_end_i(a_end), .g_begin_i(g_begin), .g_end_i(g_end),
      .w_begin_i(w_begin), .w_end_i(w_end), .conflict_o(conflict), .empty_o(queue_empty)
  );

  // ---- sequencer, buffers, array ---------------------------------------------------------------------------------------
  logic read, job_valid, job_done, skipped_valid, drain_busy;
  logic [7:0][AW-1:0] a_read_address;
  logic [7:0][GW-1:0] g_read_address;
  logic [WW-1:0] w_read_address;
  logic [16:0] flag_address;
  logic flag_a, flag_g;
  logic [31:0] skipped;
  step_t step, next_step;
  tile_t tile;
  command_t job;
  logic side_start, side_active, side_next, side_begin, side_done, side_read;
  logic [GW-1:0] side_address;
  index_t tile_index;
  operands_t operands;
  // the tile travels beside its last step: operands, count, sign, accumulate
  tile_t [ARRAY_CYCLES-2:0] tile_q;
  logic  [ARRAY_CYCLES-1:0] last_q;

  sequencer i_sequencer (
      .clk_i(clk), .rst_i(rst), .command_valid_i(command_valid), .command_i(command), .retire_o(retire),
      .read_o(read), .a_address_o(a_read_address), .g_address_o(g_read_address), .w_address_o(w_read_address),
      .flag_address_o(flag_address), .flag_a_i(flag_a), .flag_g_i(flag_g),
      .next_step_o(next_step), .step_o(step), .tile_o(tile), .drain_busy_i(drain_busy), .drain_capture_i(last_q[ARRAY_CYCLES-1]),
      .job_valid_o(job_valid), .job_o(job),
      .side_start_o(side_start), .side_active_o(side_active), .side_next_o(side_next), .side_done_i(side_done),
      .tile_index_o(tile_index), .job_done_i(job_done), .drain_idle_i(results_idle_q), .fault_i(fault), .busy_o(sequencer_busy),
      .wait_drain_o(wait_drain), .skipped_valid_o(skipped_valid), .skipped_o(skipped)
  );

  logic [7:0][ROW-1:0] a_rows, g_rows;
  logic [CHANNELS*DOT_BITS-1:0] weights;
  tensor_buffer #(.DEPTH(DEPTH_A), .WIDTH(ROW)) i_buffer_a (
      .clk_i(clk), .write_i(a_write), .write_bank_i(bank), .write_address_i(a_write_address), .write_slice_i(slice),
      .write_data_i(write_data), .read_i(read), .read_address_i(a_read_address), .read_data_o(a_rows),
      .flag_address_i(AW'(flag_address)), .flag_o(flag_a)
  );
  tensor_buffer #(.DEPTH(DEPTH_G), .WIDTH(ROW)) i_buffer_g (
      .clk_i(clk), .write_i(g_write), .write_bank_i(bank), .write_address_i(g_write_address), .write_slice_i(slice),
      .write_data_i(write_data), .read_i(read || side_read),
      .read_address_i(side_read ? {8{side_address}} : g_read_address), .read_data_o(g_rows),
      .flag_address_i(GW'(flag_address)), .flag_o(flag_g)
  );
  weight_buffer #(.DEPTH(DEPTH_W), .WIDTH(CHANNELS * DOT_BITS)) i_buffer_w (
      .clk_i(clk), .write_i(w_write), .write_address_i(w_write_address), .write_slice_i(slice),
      .write_data_i(write_data), .read_i(read), .read_address_i(w_read_address), .read_data_o(weights)
  );

  // operands of the epilogue, and what its random numbers are made from
  side_fetch i_side (
      .clk_i(clk), .rst_i(rst), .header_i(command.header), .start_i(side_start), .active_i(side_active),
      .next_i(side_next), .begin_o(side_begin), .done_o(side_done), .read_o(side_read), .address_o(side_address),
      .rows_i(g_rows), .operands_o(operands)
  );
  random_t random_q;
  logic    random_begin_q;
  always_ff @(posedge clk) begin
    random_begin_q          <= side_begin && command.header.flags[FLAG_STOCHASTIC] && !rst && !fault;
    random_q.key            <= command.header.key;
    random_q.index          <= tile_index;
    random_q.channel_stride <= command.header.channel_stride;
    random_q.image_stride   <= command.header.image_stride;
    random_q.segment_start  <= command.header.segment_start[LANES-1:0];
    random_q.factor         <= command.header.factor;
  end

  logic [LANES-1:0][DOT_BITS-1:0]          operand_a;
  logic [1:0][CHANNELS-1:0][DOT_BITS-1:0]  operand_b;
  operand_network i_operands (
      .clk_i(clk), .step_i(next_step), .a_rows_i(a_rows), .g_rows_i(g_rows), .weights_i(weights), .a_o(operand_a), .b_o(operand_b)
  );
  logic [LANES-1:0][CHANNELS-1:0][ACC_BITS-1:0] acc;
  logic [LANES-1:0][ACC_BITS-1:0] sum;
  dot_product_array i_array (
      .clk_i(clk), .step_i(step), .a_i(operand_a), .b_i(operand_b), .acc_o(acc), .sum_o(sum)
  );

  assign wait_pipeline = |last_q || (step.valid && step.last) || read;
  always_ff @(posedge clk) begin
    // a cycle late: who asks has asked for nothing that would end it
    results_idle_q <= drain_idle && !wait_pipeline;
    compute_idle_q <= drain_idle && !wait_pipeline && queue_empty;
    tile_q <= {tile_q[ARRAY_CYCLES-3:0], tile};
    last_q <= {last_q[ARRAY_CYCLES-2:0], step.valid && step.last};
    if (rst || fault) last_q <= '0;
  end

  // ---- results ---------------------------------------------------------------------------------------------------------
  logic ended;
  logic [7:0]  error;
  logic [31:0] position, packets;
  logic [6:0]  epilogue_saturated;
  logic [1:0]  out_valid, out_ready;
  logic        out_empty;
  assign out_ready = {out1_TREADY, out0_TREADY};
  drain i_drain (
      .clk_i(clk), .rst_i(rst), .capture_i(last_q[ARRAY_CYCLES-2]), .tile_i(tile_q[ARRAY_CYCLES-2]), .acc_i(acc),
      .sum_i(sum), .operands_i(operands), .busy_o(drain_busy), .idle_o(drain_idle), .random_begin_i(random_begin_q),
      .random_i(random_q), .job_valid_i(job_valid), .job_i(job), .job_done_o(job_done), .ended_o(ended),
      .epilogue_write_i(e_write), .epilogue_upper_i(slice[0]), .epilogue_address_i(e_write_address),
      .epilogue_data_i(write_data), .fault_o(fault), .fault_clear_i(start), .error_o(error), .position_o(position),
      .packets_o(packets), .saturated_o(epilogue_saturated), .out_empty_o(out_empty), .out_valid_o(out_valid),
      .out_ready_i(out_ready), .out_data_o({out1_TDATA, out0_TDATA}), .out_last_o({out1_TLAST, out0_TLAST})
  );
  assign {out1_TVALID, out0_TVALID} = out_valid;
  assign {out1_TKEEP, out0_TKEEP}   = '1;

  // ---- status and counters -----------------------------------------------------------------------------------------------
  typedef enum logic [3:0] {
    ERROR, POSITION, PACKETS, CYCLES, BUSY, STALL_IN, STALL_HAZARD, STALL_OUT, STALL_DRAIN, SKIPPED, SATURATED, WORDS_IN, WORDS_OUT
  } value_t;
  localparam int unsigned VALUES = 13;
  logic [VALUES-1:0][31:0] value_q;
  // what is counted, a cycle late, and a copy for each value of what counts and clears it
  (* keep = "true" *) logic [VALUES-1:0] counts_q, clears_q;
  logic        busy_q, starved_q, hazard_q, stalled_q, waits_q, skipped_valid_q, took_q;
  logic [6:0]  saturated_q;
  logic [1:0]  sent_q;
  logic [31:0] skipped_q;
  always_ff @(posedge clk) begin
    counts_q        <= {VALUES{running_q}};
    clears_q        <= {VALUES{start}};
    busy_q          <= sequencer_busy;
    starved_q       <= starved;
    hazard_q        <= hazard;
    stalled_q       <= |(out_valid & ~out_ready);
    waits_q         <= wait_drain;
    saturated_q     <= epilogue_saturated;
    skipped_valid_q <= skipped_valid;
    skipped_q       <= skipped;
    took_q          <= took;
    sent_q          <= 2'($countones(out_valid & out_ready));
  end
  logic ended_q;
  assign finished = running_q && ended_q && loader_done && out_empty;
  always_ff @(posedge clk) begin
    if (counts_q[CYCLES]) value_q[CYCLES] <= value_q[CYCLES] + 1;
    if (counts_q[BUSY]) value_q[BUSY] <= value_q[BUSY] + 32'(busy_q);
    if (counts_q[STALL_IN]) value_q[STALL_IN] <= value_q[STALL_IN] + 32'(starved_q);
    if (counts_q[STALL_HAZARD]) value_q[STALL_HAZARD] <= value_q[STALL_HAZARD] + 32'(hazard_q);
    if (counts_q[STALL_OUT]) value_q[STALL_OUT] <= value_q[STALL_OUT] + 32'(stalled_q);
    if (counts_q[STALL_DRAIN]) value_q[STALL_DRAIN] <= value_q[STALL_DRAIN] + 32'(waits_q);
    if (counts_q[SKIPPED] && skipped_valid_q) value_q[SKIPPED] <= value_q[SKIPPED] + skipped_q;
    if (counts_q[SATURATED]) value_q[SATURATED] <= value_q[SATURATED] + 32'(saturated_q);
    if (counts_q[WORDS_IN] && took_q) value_q[WORDS_IN] <= value_q[WORDS_IN] + 2;
    if (counts_q[WORDS_OUT]) value_q[WORDS_OUT] <= value_q[WORDS_OUT] + 32'(sent_q);
    if (ended) begin
      ended_q <= 1'b1;
      value_q[ERROR]    <= 32'(error);
      value_q[POSITION] <= position;
      value_q[PACKETS]  <= packets;
    end
    if (finished) running_q <= 1'b0;
    if (start) begin
      running_q <= 1'b1;
      ended_q   <= 1'b0;
    end
    for (int unsigned v = 0; v < VALUES; v++) if (clears_q[v]) value_q[v] <= '0;
    if (rst) running_q <= 1'b0;
  end

  control_registers i_control (
      .clk_i(clk), .rst_i(!ap_rst_n),
      .awaddr_i(s_axi_control_AWADDR), .awvalid_i(s_axi_control_AWVALID), .awready_o(s_axi_control_AWREADY),
      .wdata_i(s_axi_control_WDATA), .wstrb_i(s_axi_control_WSTRB), .wvalid_i(s_axi_control_WVALID),
      .wready_o(s_axi_control_WREADY), .bresp_o(s_axi_control_BRESP), .bvalid_o(s_axi_control_BVALID),
      .bready_i(s_axi_control_BREADY), .araddr_i(s_axi_control_ARADDR), .arvalid_i(s_axi_control_ARVALID),
      .arready_o(s_axi_control_ARREADY), .rdata_o(s_axi_control_RDATA), .rresp_o(s_axi_control_RRESP),
      .rvalid_o(s_axi_control_RVALID), .rready_i(s_axi_control_RREADY),
      .interrupt_o(interrupt), .start_o(start), .soft_reset_o(soft_reset), .done_i(finished),
      .idle_i(!running_q && !start && !reset_q), .values_i(value_q)
  );
endmodule

`default_nettype wire
