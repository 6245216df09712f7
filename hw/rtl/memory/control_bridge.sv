// SPDX-License-Identifier: Apache-2.0
// The processor's AXI3 or AXI4 port to the accelerator's AXI4-Lite registers: one access at a time in each direction.  A
// burst becomes as many accesses as it has beats, at rising addresses (FIXED: at one); its answer is the worst of theirs.
// Every output is a register or a decoded state, so no path leads from an input to an output.
`default_nettype none

module control_bridge #(
    parameter int unsigned ID_BITS = 12,     // of the processor's transactions, given back with the answers
    parameter int unsigned LEN_BITS = 4,     // 4: AXI3, 8: AXI4
    parameter int unsigned ADDRESS_BITS = 9  // of the registers
) (
    input  wire                      clk_i,
    input  wire                      rst_ni,
    // ---- processor ----
    input  wire  [ID_BITS-1:0]       s_axi_AWID,
    input  wire  [ADDRESS_BITS-1:0]  s_axi_AWADDR,
    input  wire  [LEN_BITS-1:0]      s_axi_AWLEN,
    input  wire  [2:0]               s_axi_AWSIZE,
    input  wire  [1:0]               s_axi_AWBURST,
    input  wire                      s_axi_AWVALID,
    output logic                     s_axi_AWREADY,
    input  wire  [31:0]              s_axi_WDATA,
    input  wire  [3:0]               s_axi_WSTRB,
    input  wire                      s_axi_WLAST,
    input  wire                      s_axi_WVALID,
    output logic                     s_axi_WREADY,
    output logic [ID_BITS-1:0]       s_axi_BID,
    output logic [1:0]               s_axi_BRESP,
    output logic                     s_axi_BVALID,
    input  wire                      s_axi_BREADY,
    input  wire  [ID_BITS-1:0]       s_axi_ARID,
    input  wire  [ADDRESS_BITS-1:0]  s_axi_ARADDR,
    input  wire  [LEN_BITS-1:0]      s_axi_ARLEN,
    input  wire  [2:0]               s_axi_ARSIZE,
    input  wire  [1:0]               s_axi_ARBURST,
    input  wire                      s_axi_ARVALID,
    output logic                     s_axi_ARREADY,
    output logic [ID_BITS-1:0]       s_axi_RID,
    output logic [31:0]              s_axi_RDATA,
    output logic [1:0]               s_axi_RRESP,
    output logic                     s_axi_RLAST,
    output logic                     s_axi_RVALID,
    input  wire                      s_axi_RREADY,
    // ---- registers ----
    output logic [ADDRESS_BITS-1:0]  m_axi_AWADDR,
    output logic                     m_axi_AWVALID,
    input  wire                      m_axi_AWREADY,
    output logic [31:0]              m_axi_WDATA,
    output logic [3:0]               m_axi_WSTRB,
    output logic                     m_axi_WVALID,
    input  wire                      m_axi_WREADY,
    input  wire  [1:0]               m_axi_BRESP,
    input  wire                      m_axi_BVALID,
    output logic                     m_axi_BREADY,
    output logic [ADDRESS_BITS-1:0]  m_axi_ARADDR,
    output logic                     m_axi_ARVALID,
    input  wire                      m_axi_ARREADY,
    input  wire  [31:0]              m_axi_RDATA,
    input  wire  [1:0]               m_axi_RRESP,
    input  wire                      m_axi_RVALID,
    output logic                     m_axi_RREADY
);
  if (LEN_BITS != 4 && LEN_BITS != 8) begin : gen_check
    $error("control_bridge: LEN_BITS = %0d, must be 4 (AXI3) or 8 (AXI4)", LEN_BITS);
  end

  // ---- writes --------------------------------------------------------------------------------------------------------
  typedef enum logic [2:0] {WAIT_ADDRESS, WAIT_DATA, WRITE, WAIT_ANSWER, ANSWER} write_state_t;
  write_state_t write_q;
  logic [ID_BITS-1:0]      write_id_q;
  logic [ADDRESS_BITS-1:0] write_address_q, write_step_q;
  logic [LEN_BITS-1:0]     write_left_q;
  logic [31:0]             write_data_q;
  logic [3:0]              write_strobes_q;
  logic [1:0]              write_answer_q;
  logic                    address_sent_q, data_sent_q;

  assign s_axi_AWREADY = write_q == WAIT_ADDRESS;
  assign s_axi_WREADY  = write_q == WAIT_DATA;
  assign s_axi_BVALID  = write_q == ANSWER;
  assign s_axi_BID     = write_id_q;
  assign s_axi_BRESP   = write_answer_q;
  assign m_axi_AWADDR  = write_address_q;
  assign m_axi_AWVALID = write_q == WRITE && !address_sent_q;
  assign m_axi_WDATA   = write_data_q;
  assign m_axi_WSTRB   = write_strobes_q;
  assign m_axi_WVALID  = write_q == WRITE && !data_sent_q;
  assign m_axi_BREADY  = write_q == WAIT_ANSWER;

  always_ff @(posedge clk_i) begin
    case (write_q)
      WAIT_ADDRESS: begin
        write_id_q      <= s_axi_AWID;
        write_address_q <= s_axi_AWADDR;
        write_step_q    <= s_axi_AWBURST == 2'b00 ? '0 : ADDRESS_BITS'(1) << s_axi_AWSIZE;
        write_left_q    <= s_axi_AWLEN;
        write_answer_q  <= 2'b00;
        if (s_axi_AWVALID) write_q <= WAIT_DATA;
      end
      WAIT_DATA: begin
        write_data_q    <= s_axi_WDATA;
        write_strobes_q <= s_axi_WSTRB;
        address_sent_q  <= 1'b0;
        data_sent_q     <= 1'b0;
        if (s_axi_WVALID) write_q <= WRITE;
      end
      WRITE: begin
        address_sent_q <= address_sent_q || m_axi_AWREADY;
        data_sent_q    <= data_sent_q || m_axi_WREADY;
        if ((address_sent_q || m_axi_AWREADY) && (data_sent_q || m_axi_WREADY)) write_q <= WAIT_ANSWER;
      end
      WAIT_ANSWER:
      if (m_axi_BVALID) begin
        if (m_axi_BRESP > write_answer_q) write_answer_q <= m_axi_BRESP;
        write_address_q <= write_address_q + write_step_q;
        write_left_q    <= write_left_q - 1'b1;
        write_q         <= write_left_q == '0 ? ANSWER : WAIT_DATA;
      end
      default: if (s_axi_BREADY) write_q <= WAIT_ADDRESS;
    endcase
    if (!rst_ni) write_q <= WAIT_ADDRESS;
  end

`ifndef SYNTHESIS
  // the length tells the last beat too
  a_last: assert property (@(posedge clk_i) disable iff (!rst_ni) s_axi_WVALID && s_axi_WREADY |-> s_axi_WLAST == (write_left_q == '0));
`endif

  // ---- reads ---------------------------------------------------------------------------------------------------------
  typedef enum logic [1:0] {READ_ADDRESS, READ, READ_DATA, GIVE} read_state_t;
  read_state_t read_q;
  logic [ID_BITS-1:0]      read_id_q;
  logic [ADDRESS_BITS-1:0] read_address_q, read_step_q;
  logic [LEN_BITS-1:0]     read_left_q;
  logic [31:0]             read_data_q;
  logic [1:0]              read_answer_q;

  assign s_axi_ARREADY = read_q == READ_ADDRESS;
  assign s_axi_RVALID  = read_q == GIVE;
  assign s_axi_RID     = read_id_q;
  assign s_axi_RDATA   = read_data_q;
  assign s_axi_RRESP   = read_answer_q;
  assign s_axi_RLAST   = read_left_q == '0;
  assign m_axi_ARADDR  = read_address_q;
  assign m_axi_ARVALID = read_q == READ;
  assign m_axi_RREADY  = read_q == READ_DATA;

  always_ff @(posedge clk_i) begin
    case (read_q)
      READ_ADDRESS: begin
        read_id_q      <= s_axi_ARID;
        read_address_q <= s_axi_ARADDR;
        read_step_q    <= s_axi_ARBURST == 2'b00 ? '0 : ADDRESS_BITS'(1) << s_axi_ARSIZE;
        read_left_q    <= s_axi_ARLEN;
        if (s_axi_ARVALID) read_q <= READ;
      end
      READ: if (m_axi_ARREADY) read_q <= READ_DATA;
      READ_DATA: begin
        read_data_q   <= m_axi_RDATA;
        read_answer_q <= m_axi_RRESP;
        if (m_axi_RVALID) read_q <= GIVE;
      end
      default:
      if (s_axi_RREADY) begin
        read_address_q <= read_address_q + read_step_q;
        read_left_q    <= read_left_q - 1'b1;
        read_q         <= read_left_q == '0 ? READ_ADDRESS : READ;
      end
    endcase
    if (!rst_ni) read_q <= READ_ADDRESS;
  end
endmodule

`default_nettype wire
