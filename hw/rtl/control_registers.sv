// SPDX-License-Identifier: Apache-2.0
// AXI4-Lite control port laid out as a Vitis HLS block's: control and interrupts below 0x10, arguments from there.
`default_nettype none

module control_registers
  import fabric_pkg::*;
#(
    localparam int unsigned COUNTERS = 13  // ERROR .. WORDS_OUT, eight bytes apart
) (
    input  wire                        clk_i,
    input  wire                        rst_i,
    input  wire  [7:0]                 awaddr_i,
    input  wire                        awvalid_i,
    output logic                       awready_o,
    input  wire  [31:0]                wdata_i,
    input  wire  [3:0]                 wstrb_i,
    input  wire                        wvalid_i,
    output logic                       wready_o,
    output logic [1:0]                 bresp_o,
    output logic                       bvalid_o,
    input  wire                        bready_i,
    input  wire  [7:0]                 araddr_i,
    input  wire                        arvalid_i,
    output logic                       arready_o,
    output logic [31:0]                rdata_o,
    output logic [1:0]                 rresp_o,
    output logic                       rvalid_o,
    input  wire                        rready_i,
    output logic                       interrupt_o,
    output logic                       start_o,       // one cycle
    output logic                       soft_reset_o,  // one cycle
    input  wire                        done_i,        // one cycle
    input  wire                        idle_i,
    input  wire  [COUNTERS-1:0][31:0]  values_i
);
  logic       gie_q, done_q;
  logic [1:0] ier_q, isr_q;
  logic       bvalid_q, rvalid_q;
  logic [31:0] rdata_q;

  // Address and data of a write are taken together, a cycle after both have come: AXI forbids paths from inputs to outputs
  // within a cycle.  A master keeps what it offers until it is taken.  In reset nothing is taken, or its answer would be lost.
  logic write_q, read_q;
  assign {awready_o, wready_o} = {2{write_q}};
  assign arready_o = read_q;
  assign {bvalid_o, rvalid_o, rdata_o} = {bvalid_q, rvalid_q, rdata_q};
  assign {bresp_o, rresp_o} = '0;
  logic       starts, start_q;
  assign starts       = write_q && awaddr_i == REG_CTRL && wstrb_i[0] && wdata_i[0] && idle_i;
  assign start_o      = start_q;
  assign soft_reset_o = write_q && awaddr_i == REG_SOFT_RESET && wstrb_i[0] && wdata_i[0];
  assign interrupt_o  = gie_q && |isr_q;

  // a read's address and what it means, registered in the cycle in which the read is seen: it stays until it is taken
  logic [7:0] read_address_q;
  logic [4:0] index, index_q;
  logic       of_values_q;
  assign index = 5'((araddr_i - REG_ERROR) >> 3);
  always_ff @(posedge clk_i) begin
    read_address_q <= araddr_i;
    index_q        <= index;
    of_values_q    <= araddr_i >= REG_ERROR && araddr_i[2:0] == 0 && 32'(index) < COUNTERS;
    write_q <= awvalid_i && wvalid_i && !write_q && !bvalid_q;
    read_q  <= arvalid_i && !read_q && !rvalid_q;
    if (bready_i) bvalid_q <= 1'b0;
    if (rready_i) rvalid_q <= 1'b0;
    start_q <= starts;
    if (starts) done_q <= 1'b0;
    if (write_q) begin
      bvalid_q <= 1'b1;
      if (wstrb_i[0])
        case (awaddr_i)
          REG_GIE: gie_q <= wdata_i[0];
          REG_IER: ier_q <= wdata_i[1:0];
          REG_ISR: isr_q <= isr_q ^ wdata_i[1:0];
          default: ;
        endcase
    end
    if (read_q) begin
      rvalid_q <= 1'b1;
      rdata_q  <= '0;
      case (read_address_q)
        REG_CTRL: begin
          rdata_q <= {28'd0, done_q, idle_i, done_q, !idle_i};
          done_q  <= 1'b0;
        end
        REG_GIE:      rdata_q <= {31'd0, gie_q};
        REG_IER:      rdata_q <= {30'd0, ier_q};
        REG_ISR:      rdata_q <= {30'd0, isr_q};
        REG_HASH_LO:  rdata_q <= DESIGN_HASH[31:0];
        REG_HASH_HI:  rdata_q <= DESIGN_HASH[63:32];
        REG_CONTRACT: rdata_q <= CONTRACT_VALUE;
        default: if (of_values_q) rdata_q <= values_i[index_q[3:0]];
      endcase
    end
    if (done_i) begin
      done_q <= 1'b1;
      isr_q  <= isr_q | ier_q;
    end
    if (rst_i) begin
      {start_q, gie_q, done_q, ier_q, isr_q, bvalid_q, rvalid_q, write_q, read_q} <= '0;
    end
  end
endmodule

`default_nettype wire
