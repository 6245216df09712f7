// SPDX-License-Identifier: Apache-2.0
// Top of an accelerator that fetches its own memory: the stream core, and a memory port for each of its input streams.
// Even words of memory lie behind port 0, odd ones behind port 1; neither port knows of the other.
`default_nettype none

module accelerator
  import fabric_pkg::*;
  import memory_pkg::*;
#(
    parameter int unsigned AXI3         = 1,    /// 1: masters speak AXI3, 0: AXI4 (WID is then left open)
    parameter int unsigned ADDRESS_BITS = 32,   /// of a byte address, 32 to 64
    parameter int unsigned OPEN_READS   = 8,    /// bursts of a port that may be open at a time, powers of two
    parameter int unsigned OPEN_WRITES  = 8,
    parameter int unsigned READ_SLOTS   = 512,  /// words that a port's queues hold, powers of two
    parameter int unsigned WRITE_SLOTS  = 64,
    localparam int unsigned LENGTH_BITS = AXI3 != 0 ? 4 : 8,
    localparam int unsigned LOCK_BITS   = AXI3 != 0 ? 2 : 1
) (
    input  wire                      ap_clk,
    input  wire                      ap_rst_n,
    input  wire [8:0]                s_axi_control_AWADDR,
    input  wire                      s_axi_control_AWVALID,
    output logic                      s_axi_control_AWREADY,
    input  wire [31:0]               s_axi_control_WDATA,
    input  wire [3:0]                s_axi_control_WSTRB,
    input  wire                      s_axi_control_WVALID,
    output logic                      s_axi_control_WREADY,
    output logic [1:0]                s_axi_control_BRESP,
    output logic                      s_axi_control_BVALID,
    input  wire                      s_axi_control_BREADY,
    input  wire [8:0]                s_axi_control_ARADDR,
    input  wire                      s_axi_control_ARVALID,
    output logic                      s_axi_control_ARREADY,
    output logic [31:0]               s_axi_control_RDATA,
    output logic [1:0]                s_axi_control_RRESP,
    output logic                      s_axi_control_RVALID,
    input  wire                      s_axi_control_RREADY,
    output logic                      m_axi_0_ARID,
    output logic [ADDRESS_BITS-1:0]   m_axi_0_ARADDR,
    output logic [LENGTH_BITS-1:0]    m_axi_0_ARLEN,
    output logic [2:0]                m_axi_0_ARSIZE,
    output logic [1:0]                m_axi_0_ARBURST,
    output logic [LOCK_BITS-1:0]      m_axi_0_ARLOCK,
    output logic [3:0]                m_axi_0_ARCACHE,
    output logic [2:0]                m_axi_0_ARPROT,
    output logic                      m_axi_0_ARVALID,
    input  wire                      m_axi_0_ARREADY,
    input  wire                      m_axi_0_RID,
    input  wire [63:0]               m_axi_0_RDATA,
    input  wire [1:0]                m_axi_0_RRESP,
    input  wire                      m_axi_0_RLAST,
    input  wire                      m_axi_0_RVALID,
    output logic                      m_axi_0_RREADY,
    output logic                      m_axi_0_AWID,
    output logic [ADDRESS_BITS-1:0]   m_axi_0_AWADDR,
    output logic [LENGTH_BITS-1:0]    m_axi_0_AWLEN,
    output logic [2:0]                m_axi_0_AWSIZE,
    output logic [1:0]                m_axi_0_AWBURST,
    output logic [LOCK_BITS-1:0]      m_axi_0_AWLOCK,
    output logic [3:0]                m_axi_0_AWCACHE,
    output logic [2:0]                m_axi_0_AWPROT,
    output logic                      m_axi_0_AWVALID,
    input  wire                      m_axi_0_AWREADY,
    output logic                      m_axi_0_WID,
    output logic [63:0]               m_axi_0_WDATA,
    output logic [7:0]                m_axi_0_WSTRB,
    output logic                      m_axi_0_WLAST,
    output logic                      m_axi_0_WVALID,
    input  wire                      m_axi_0_WREADY,
    input  wire                      m_axi_0_BID,
    input  wire [1:0]                m_axi_0_BRESP,
    input  wire                      m_axi_0_BVALID,
    output logic                      m_axi_0_BREADY,
    output logic                      m_axi_1_ARID,
    output logic [ADDRESS_BITS-1:0]   m_axi_1_ARADDR,
    output logic [LENGTH_BITS-1:0]    m_axi_1_ARLEN,
    output logic [2:0]                m_axi_1_ARSIZE,
    output logic [1:0]                m_axi_1_ARBURST,
    output logic [LOCK_BITS-1:0]      m_axi_1_ARLOCK,
    output logic [3:0]                m_axi_1_ARCACHE,
    output logic [2:0]                m_axi_1_ARPROT,
    output logic                      m_axi_1_ARVALID,
    input  wire                      m_axi_1_ARREADY,
    input  wire                      m_axi_1_RID,
    input  wire [63:0]               m_axi_1_RDATA,
    input  wire [1:0]                m_axi_1_RRESP,
    input  wire                      m_axi_1_RLAST,
    input  wire                      m_axi_1_RVALID,
    output logic                      m_axi_1_RREADY,
    output logic                      m_axi_1_AWID,
    output logic [ADDRESS_BITS-1:0]   m_axi_1_AWADDR,
    output logic [LENGTH_BITS-1:0]    m_axi_1_AWLEN,
    output logic [2:0]                m_axi_1_AWSIZE,
    output logic [1:0]                m_axi_1_AWBURST,
    output logic [LOCK_BITS-1:0]      m_axi_1_AWLOCK,
    output logic [3:0]                m_axi_1_AWCACHE,
    output logic [2:0]                m_axi_1_AWPROT,
    output logic                      m_axi_1_AWVALID,
    input  wire                      m_axi_1_AWREADY,
    output logic                      m_axi_1_WID,
    output logic [63:0]               m_axi_1_WDATA,
    output logic [7:0]                m_axi_1_WSTRB,
    output logic                      m_axi_1_WLAST,
    output logic                      m_axi_1_WVALID,
    input  wire                      m_axi_1_WREADY,
    input  wire                      m_axi_1_BID,
    input  wire [1:0]                m_axi_1_BRESP,
    input  wire                      m_axi_1_BVALID,
    output logic                      m_axi_1_BREADY,
    output logic                     interrupt
);
  localparam int unsigned PORTS = 2;
  if (AXI3 > 1) begin : gen_check
    $error("accelerator: AXI3 = %0d, must be 0 or 1", AXI3);
  end
  logic clk, rst;
  assign clk = ap_clk;
  // in reset from power-up on; not always_ff, which would forbid the initial value
  logic reset_q;
  initial reset_q = 1'b1;
  always @(posedge clk) reset_q <= !ap_rst_n;
  assign rst = reset_q;

  // ---- core ------------------------------------------------------------------------------------------------------------
  logic [7:0]  core_awaddr, core_araddr;
  logic [31:0] core_wdata, core_rdata;
  logic [3:0]  core_wstrb;
  logic [1:0]  core_bresp, core_rresp;
  logic        core_awvalid, core_awready, core_wvalid, core_wready, core_bvalid, core_bready;
  logic        core_arvalid, core_arready, core_rvalid, core_rready, core_interrupt;
  logic [PORTS-1:0]       in_valid, in_ready, in_last, out_valid, out_ready, out_last;
  logic [PORTS-1:0][63:0] in_data, out_data;
  logic [PORTS-1:0][7:0]  out_keep;   // all ones

  fabric i_core (
      .ap_clk, .ap_rst_n,
      .s_axi_control_AWADDR(core_awaddr), .s_axi_control_AWVALID(core_awvalid), .s_axi_control_AWREADY(core_awready),
      .s_axi_control_WDATA(core_wdata), .s_axi_control_WSTRB(core_wstrb), .s_axi_control_WVALID(core_wvalid),
      .s_axi_control_WREADY(core_wready), .s_axi_control_BRESP(core_bresp), .s_axi_control_BVALID(core_bvalid),
      .s_axi_control_BREADY(core_bready), .s_axi_control_ARADDR(core_araddr), .s_axi_control_ARVALID(core_arvalid),
      .s_axi_control_ARREADY(core_arready), .s_axi_control_RDATA(core_rdata), .s_axi_control_RRESP(core_rresp),
      .s_axi_control_RVALID(core_rvalid), .s_axi_control_RREADY(core_rready),
      .in0_TDATA(in_data[0]), .in0_TVALID(in_valid[0]), .in0_TREADY(in_ready[0]), .in0_TLAST(in_last[0]),
      .in1_TDATA(in_data[1]), .in1_TVALID(in_valid[1]), .in1_TREADY(in_ready[1]), .in1_TLAST(in_last[1]),
      .out0_TDATA(out_data[0]), .out0_TVALID(out_valid[0]), .out0_TREADY(out_ready[0]), .out0_TLAST(out_last[0]),
      .out0_TKEEP(out_keep[0]),
      .out1_TDATA(out_data[1]), .out1_TVALID(out_valid[1]), .out1_TREADY(out_ready[1]), .out1_TLAST(out_last[1]),
      .out1_TKEEP(out_keep[1]), .interrupt(core_interrupt)
  );

  logic port_reset, port_start, halt, ended, error;

  // ---- results to the ports: a stream for each, or both words of a beat from one --------------------------------------------
  logic [PORTS-1:0]       take, port_ready, port_last, held;
  logic [PORTS-1:0][63:0] port_data;
  if (OUTPUT_STREAMS == 2) begin : gen_two
    assign out_ready = port_ready;
    assign take      = out_valid & port_ready;
    assign port_data = out_data;
    assign port_last = out_last;
    assign held      = out_valid & ~port_ready;
  end else begin : gen_one
    logic        even_valid_q;   // the even word waits for the odd one, with which the stream may end
    logic [63:0] even_q;
    assign out_ready = {1'b0, !even_valid_q || &port_ready};
    assign take      = {2{even_valid_q && out_valid[0] && &port_ready}};
    assign port_data = {out_data[0], even_q};
    assign port_last = {2{out_last[0]}};
    assign held      = {2{even_valid_q && out_valid[0]}} & ~port_ready;
    always_ff @(posedge clk) begin
      if (out_valid[0] && out_ready[0]) begin
        even_valid_q <= !even_valid_q;
        even_q       <= out_data[0];
      end
      if (port_reset) even_valid_q <= 1'b0;
    end
  end

  // ---- ports -----------------------------------------------------------------------------------------------------------
  logic [PORTS-1:0][63:12]            base;
  logic [31:4]                        limit;
  logic [31:0]                        program_offset, deadline, fault_offset;
  logic [PORTS-1:0]                   trailer, trailer_error, port_done, quiet, took, sent, starved;
  logic [PORTS-1:0][1:0][3:0]         port_fault;
  logic [PORTS-1:0][1:0][31:0]        port_fault_offset;
  logic [PORTS-1:0]                   arvalid, arready, rvalid, rlast, rready, awvalid, awready, wvalid, wlast, wready, bvalid, bready;
  logic [PORTS-1:0][ADDRESS_BITS-1:0] araddr, awaddr;
  logic [PORTS-1:0][3:0]              arlen, awlen;
  logic [PORTS-1:0][63:0]             rdata, wdata;
  logic [PORTS-1:0][1:0]              rresp, bresp;
  for (genvar p = 0; p < PORTS; p++) begin : gen_port
    memory_port #(
        .ADDRESS_BITS(ADDRESS_BITS), .OPEN_READS(OPEN_READS), .OPEN_WRITES(OPEN_WRITES), .READ_SLOTS(READ_SLOTS),
        .WRITE_SLOTS(WRITE_SLOTS)
    ) i_port (
        .clk_i(clk), .rst_i(port_reset || rst), .start_i(port_start), .base_i(base[p][ADDRESS_BITS-1:12]),
        .program_i(program_offset[31:4]), .limit_i(limit), .halt_i(halt), .finish_i(ended && error), .ended_i(ended),
        .error_i(error),
        .arvalid_o(arvalid[p]), .araddr_o(araddr[p]), .arlen_o(arlen[p]), .arready_i(arready[p]), .rvalid_i(rvalid[p]),
        .rdata_i(rdata[p]), .rresp_i(rresp[p]), .rlast_i(rlast[p]), .rready_o(rready[p]),
        .awvalid_o(awvalid[p]), .awaddr_o(awaddr[p]), .awlen_o(awlen[p]), .awready_i(awready[p]), .wvalid_o(wvalid[p]),
        .wdata_o(wdata[p]), .wlast_o(wlast[p]), .wready_i(wready[p]), .bvalid_i(bvalid[p]), .bresp_i(bresp[p]),
        .bready_o(bready[p]),
        .out_valid_o(in_valid[p]), .out_data_o(in_data[p]), .out_last_o(in_last[p]), .out_ready_i(in_ready[p]),
        .in_ready_o(port_ready[p]), .in_take_i(take[p]), .in_data_i(port_data[p]), .in_last_i(port_last[p]),
        .trailer_o(trailer[p]), .trailer_error_o(trailer_error[p]), .done_o(port_done[p]), .quiet_o(quiet[p]),
        .fault_o(port_fault[p]), .fault_offset_o(port_fault_offset[p]), .took_o(took[p]), .sent_o(sent[p]),
        .starved_o(starved[p])
    );
  end
  assign {m_axi_1_ARVALID, m_axi_0_ARVALID} = arvalid;
  assign {m_axi_1_ARADDR, m_axi_0_ARADDR}   = araddr;
  assign {m_axi_1_AWVALID, m_axi_0_AWVALID} = awvalid;
  assign {m_axi_1_AWADDR, m_axi_0_AWADDR}   = awaddr;
  assign {m_axi_1_WVALID, m_axi_0_WVALID}   = wvalid;
  assign {m_axi_1_WDATA, m_axi_0_WDATA}     = wdata;
  assign {m_axi_1_WLAST, m_axi_0_WLAST}     = wlast;
  assign {m_axi_1_RREADY, m_axi_0_RREADY}   = rready;
  assign {m_axi_1_BREADY, m_axi_0_BREADY}   = bready;
  assign {m_axi_1_ARLEN, m_axi_0_ARLEN}     = {LENGTH_BITS'(arlen[1]), LENGTH_BITS'(arlen[0])};
  assign {m_axi_1_AWLEN, m_axi_0_AWLEN}     = {LENGTH_BITS'(awlen[1]), LENGTH_BITS'(awlen[0])};
  assign arready = {m_axi_1_ARREADY, m_axi_0_ARREADY};
  assign rvalid  = {m_axi_1_RVALID, m_axi_0_RVALID};
  assign rdata   = {m_axi_1_RDATA, m_axi_0_RDATA};
  assign rresp   = {m_axi_1_RRESP, m_axi_0_RRESP};
  assign rlast   = {m_axi_1_RLAST, m_axi_0_RLAST};
  assign awready = {m_axi_1_AWREADY, m_axi_0_AWREADY};
  assign wready  = {m_axi_1_WREADY, m_axi_0_WREADY};
  assign bvalid  = {m_axi_1_BVALID, m_axi_0_BVALID};
  assign bresp   = {m_axi_1_BRESP, m_axi_0_BRESP};
  // one ID; words of 8 bytes; normal memory that may be buffered, not cached
  assign {m_axi_1_ARID, m_axi_0_ARID, m_axi_1_AWID, m_axi_0_AWID, m_axi_1_WID, m_axi_0_WID} = '0;
  assign {m_axi_1_ARSIZE, m_axi_0_ARSIZE, m_axi_1_AWSIZE, m_axi_0_AWSIZE}     = {4{3'd3}};
  assign {m_axi_1_ARBURST, m_axi_0_ARBURST, m_axi_1_AWBURST, m_axi_0_AWBURST} = {4{2'b01}};
  assign {m_axi_1_ARCACHE, m_axi_0_ARCACHE, m_axi_1_AWCACHE, m_axi_0_AWCACHE} = {4{4'b0011}};
  assign {m_axi_1_ARPROT, m_axi_0_ARPROT, m_axi_1_AWPROT, m_axi_0_AWPROT}     = '0;
  assign {m_axi_1_ARLOCK, m_axi_0_ARLOCK, m_axi_1_AWLOCK, m_axi_0_AWLOCK}     = '0;
  assign {m_axi_1_WSTRB, m_axi_0_WSTRB} = '1;

  // ---- control -----------------------------------------------------------------------------------------------------------
  logic             start, stop, idle, done, draining, ends, core_start, core_reset, core_done, memory_interrupt;
  logic [3:0]       fault;
  logic [3:0][31:0] counters;
  memory_control i_control (
      .clk_i(clk), .rst_i(rst), .start_i(start), .stop_i(stop), .program_i(program_offset), .deadline_i(deadline),
      .idle_o(idle), .done_o(done), .draining_o(draining), .ends_o(ends), .fault_o(fault), .fault_offset_o(fault_offset),
      .counters_o(counters), .core_start_o(core_start), .core_reset_o(core_reset), .core_done_i(core_done),
      .port_reset_o(port_reset), .port_start_o(port_start), .halt_o(halt), .ended_o(ended), .error_o(error),
      .trailer_i(trailer), .trailer_error_i(trailer_error[0]), .port_done_i(port_done), .quiet_i(quiet),
      .fault_i(port_fault), .fault_offset_i(port_fault_offset), .took_i(took), .sent_i(sent), .starved_i(starved),
      .held_i(held)
  );

  memory_registers i_registers (
      .clk_i(clk), .rst_i(rst),
      .awaddr_i(s_axi_control_AWADDR), .awvalid_i(s_axi_control_AWVALID), .awready_o(s_axi_control_AWREADY),
      .wdata_i(s_axi_control_WDATA), .wstrb_i(s_axi_control_WSTRB), .wvalid_i(s_axi_control_WVALID),
      .wready_o(s_axi_control_WREADY), .bresp_o(s_axi_control_BRESP), .bvalid_o(s_axi_control_BVALID),
      .bready_i(s_axi_control_BREADY), .araddr_i(s_axi_control_ARADDR), .arvalid_i(s_axi_control_ARVALID),
      .arready_o(s_axi_control_ARREADY), .rdata_o(s_axi_control_RDATA), .rresp_o(s_axi_control_RRESP),
      .rvalid_o(s_axi_control_RVALID), .rready_i(s_axi_control_RREADY),
      .core_awaddr_o(core_awaddr), .core_awvalid_o(core_awvalid), .core_awready_i(core_awready),
      .core_wdata_o(core_wdata), .core_wstrb_o(core_wstrb), .core_wvalid_o(core_wvalid), .core_wready_i(core_wready),
      .core_bresp_i(core_bresp), .core_bvalid_i(core_bvalid), .core_bready_o(core_bready), .core_araddr_o(core_araddr),
      .core_arvalid_o(core_arvalid), .core_arready_i(core_arready), .core_rdata_i(core_rdata),
      .core_rresp_i(core_rresp), .core_rvalid_i(core_rvalid), .core_rready_o(core_rready),
      .start_o(start), .stop_o(stop), .base_o(base), .limit_o(limit), .program_o(program_offset), .deadline_o(deadline),
      .interrupt_o(memory_interrupt), .idle_i(idle), .done_i(done), .draining_i(draining), .ends_i(ends),
      .fault_i(fault), .fault_offset_i(fault_offset), .counters_i(counters), .core_start_i(core_start),
      .core_reset_i(core_reset), .core_done_o(core_done)
  );
  // a register: nothing lies between it and the processor
  always_ff @(posedge clk) interrupt <= memory_interrupt || core_interrupt;
endmodule

`default_nettype wire
