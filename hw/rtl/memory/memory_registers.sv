// SPDX-License-Identifier: Apache-2.0
// AXI4-Lite port of the accelerator: the registers of the memory front end from 0x100 on; below, the core's own, to which
// accesses are passed on.  The front end's writes to the core go the same way.  One access of a kind at a time.
`default_nettype none

module memory_registers
  import memory_pkg::*;
#(
    localparam int unsigned COUNTERS = 4  // READ_BEATS .. WRITE_WAIT, eight bytes apart
) (
    input  wire                        clk_i,
    input  wire                        rst_i,
    input  wire  [8:0]                 awaddr_i,
    input  wire                        awvalid_i,
    output logic                       awready_o,
    input  wire  [31:0]                wdata_i,
    input  wire  [3:0]                 wstrb_i,
    input  wire                        wvalid_i,
    output logic                       wready_o,
    output logic [1:0]                 bresp_o,
    output logic                       bvalid_o,
    input  wire                        bready_i,
    input  wire  [8:0]                 araddr_i,
    input  wire                        arvalid_i,
    output logic                       arready_o,
    output logic [31:0]                rdata_o,
    output logic [1:0]                 rresp_o,
    output logic                       rvalid_o,
    input  wire                        rready_i,
    // the core's port
    output logic [7:0]                 core_awaddr_o,
    output logic                       core_awvalid_o,
    input  wire                        core_awready_i,
    output logic [31:0]                core_wdata_o,
    output logic [3:0]                 core_wstrb_o,
    output logic                       core_wvalid_o,
    input  wire                        core_wready_i,
    input  wire  [1:0]                 core_bresp_i,
    input  wire                        core_bvalid_i,
    output logic                       core_bready_o,
    output logic [7:0]                 core_araddr_o,
    output logic                       core_arvalid_o,
    input  wire                        core_arready_i,
    input  wire  [31:0]                core_rdata_i,
    input  wire  [1:0]                 core_rresp_i,
    input  wire                        core_rvalid_i,
    output logic                       core_rready_o,
    // control
    output logic                       start_o,          // one cycle
    output logic                       stop_o,           // one cycle
    output logic [1:0][63:12]          base_o,           // pages
    output logic [31:4]                limit_o,          // lines
    output logic [31:0]                program_o,        // beats
    output logic [31:0]                deadline_o,       // cycles
    output logic                       interrupt_o,
    input  wire                        idle_i,
    input  wire                        done_i,
    input  wire                        draining_i,
    input  wire                        ends_i,           // one cycle
    input  wire  [3:0]                 fault_i,
    input  wire  [31:0]                fault_offset_i,
    input  wire  [COUNTERS-1:0][31:0]  counters_i,
    input  wire                        core_start_i,     // requests, held until they are done
    input  wire                        core_reset_i,
    output logic                       core_done_o       // one cycle
);
  // offsets and values in the core's page; the contract gives them to both
  localparam logic [7:0] CORE_CTRL = fabric_pkg::REG_CTRL;
  localparam logic [7:0] CORE_SOFT_RESET = fabric_pkg::REG_SOFT_RESET;

  typedef enum logic [1:0] {FREE, HOST, CONTROL} owner_t;   // of the write that the core has been given
  owner_t      owner_q;
  logic        write_q, read_q, reading_q;
  logic        bvalid_q, rvalid_q, enable_q, pending_q;
  logic [31:0] rdata_q, program_q, deadline_q;
  logic [31:4] limit_q;
  logic [1:0][63:12] base_q;

  // address and data are taken together, a cycle after both have come, as in control_registers; the next cycle looks at them
  assign {awready_o, wready_o}          = {2{write_q}};
  assign arready_o                      = read_q;
  assign {bvalid_o, rvalid_o, rdata_o}  = {bvalid_q, rvalid_q, rdata_q};
  assign {bresp_o, rresp_o}             = '0;
  assign {core_bready_o, core_rready_o} = '1;

  // a write, the cycle after it was taken: address and data lie in the registers that lead to the core
  logic acts_q, here_q, own, asks;
  logic [7:0] address;
  assign address = core_awaddr_o;
  assign own     = acts_q && here_q;
  assign asks    = own && address == MEMORY_INTERRUPT[7:0] && core_wstrb_o[0];
  assign core_done_o = owner_q == CONTROL && core_bvalid_i;

  always_ff @(posedge clk_i) begin
    write_q <= awvalid_i && wvalid_i && !write_q && !acts_q && !bvalid_q && owner_q == FREE && !core_start_i && !core_reset_i;
    acts_q  <= write_q;
    start_o <= own && address == MEMORY_START[7:0] && core_wstrb_o[0] && core_wdata_o[0] && idle_i;
    stop_o  <= own && address == MEMORY_STOP[7:0] && core_wstrb_o[0] && core_wdata_o[0];
    if (write_q) {here_q, core_awaddr_o, core_wdata_o, core_wstrb_o} <= {awaddr_i, wdata_i, wstrb_i};
    if (bready_i) bvalid_q <= 1'b0;
    if (core_awready_i) core_awvalid_o <= 1'b0;
    if (core_wready_i) core_wvalid_o <= 1'b0;
    if (own) bvalid_q <= 1'b1;
    if (acts_q && !here_q) begin
      owner_q <= HOST;
      {core_awvalid_o, core_wvalid_o} <= '1;
    end else if (owner_q == FREE && !write_q && !acts_q && (core_start_i || core_reset_i)) begin
      owner_q <= CONTROL;
      {core_awvalid_o, core_wvalid_o} <= '1;
      {core_awaddr_o, core_wdata_o, core_wstrb_o} <= {core_start_i ? CORE_CTRL : CORE_SOFT_RESET, 32'd1, 4'hF};
    end
    if (core_bvalid_i) begin
      owner_q <= FREE;
      if (owner_q == HOST) bvalid_q <= 1'b1;
    end
    if (own && core_wstrb_o == '1)
      case (address)
        MEMORY_BASE0_LO[7:0]: base_q[0][31:12] <= core_wdata_o[31:12];
        MEMORY_BASE0_HI[7:0]: base_q[0][63:32] <= core_wdata_o;
        MEMORY_BASE1_LO[7:0]: base_q[1][31:12] <= core_wdata_o[31:12];
        MEMORY_BASE1_HI[7:0]: base_q[1][63:32] <= core_wdata_o;
        MEMORY_LIMIT[7:0]:    limit_q    <= core_wdata_o[31:4];
        MEMORY_PROGRAM[7:0]:  program_q  <= core_wdata_o;
        MEMORY_DEADLINE[7:0]: deadline_q <= core_wdata_o;
        default: ;
      endcase
    if (asks) enable_q <= core_wdata_o[INTERRUPT_ENABLE];
    // an end is not lost to the host that clears the one before
    pending_q <= ends_i || pending_q && !(asks && core_wdata_o[INTERRUPT_PENDING]);
    if (rst_i) begin
      owner_q <= FREE;
      {write_q, acts_q, bvalid_q, core_awvalid_o, core_wvalid_o, enable_q, pending_q, start_o, stop_o} <= '0;
      {base_q, limit_q, program_q, deadline_q} <= '0;
    end
  end

  // a read likewise
  logic       looks_q, inside_q;
  logic [1:0] index;
  assign index = 2'((core_araddr_o - MEMORY_READ_BEATS[7:0]) >> 3);
  always_ff @(posedge clk_i) begin
    read_q  <= arvalid_i && !read_q && !looks_q && !rvalid_q && !reading_q;
    looks_q <= read_q;
    if (read_q) {inside_q, core_araddr_o} <= araddr_i;
    if (rready_i) rvalid_q <= 1'b0;
    if (core_arready_i) core_arvalid_o <= 1'b0;
    if (looks_q && inside_q) begin
      rvalid_q <= 1'b1;
      rdata_q  <= '0;
      case (core_araddr_o)
        MEMORY_STATUS[7:0]: begin
          rdata_q[STATUS_IDLE]     <= idle_i;
          rdata_q[STATUS_DONE]     <= done_i;
          rdata_q[STATUS_DRAINING] <= draining_i;
        end
        MEMORY_FAULT[7:0]:        rdata_q <= {28'd0, fault_i};
        MEMORY_FAULT_OFFSET[7:0]: rdata_q <= fault_offset_i;
        MEMORY_INTERRUPT[7:0]: begin
          rdata_q[INTERRUPT_ENABLE]  <= enable_q;
          rdata_q[INTERRUPT_PENDING] <= pending_q;
        end
        MEMORY_BASE0_LO[7:0]:     rdata_q <= {base_q[0][31:12], 12'd0};
        MEMORY_BASE0_HI[7:0]:     rdata_q <= base_q[0][63:32];
        MEMORY_BASE1_LO[7:0]:     rdata_q <= {base_q[1][31:12], 12'd0};
        MEMORY_BASE1_HI[7:0]:     rdata_q <= base_q[1][63:32];
        MEMORY_LIMIT[7:0]:        rdata_q <= {limit_q, 4'd0};
        MEMORY_PROGRAM[7:0]:      rdata_q <= program_q;
        MEMORY_DEADLINE[7:0]:     rdata_q <= deadline_q;
        MEMORY_READ_BEATS[7:0], MEMORY_WRITE_BEATS[7:0], MEMORY_READ_WAIT[7:0], MEMORY_WRITE_WAIT[7:0]: rdata_q <= counters_i[index];
        default: ;
      endcase
    end
    if (looks_q && !inside_q) {reading_q, core_arvalid_o} <= '1;
    if (core_rvalid_i) begin
      reading_q <= 1'b0;
      rvalid_q  <= 1'b1;
      rdata_q   <= core_rdata_i;
    end
    if (rst_i) {read_q, looks_q, rvalid_q, reading_q, core_arvalid_o} <= '0;
  end

  assign base_o      = base_q;
  assign limit_o     = limit_q;
  assign program_o   = program_q;
  assign deadline_o  = deadline_q;
  assign interrupt_o = enable_q && pending_q;
endmodule

`default_nettype wire
