// SPDX-License-Identifier: Apache-2.0
// Accumulator memory of the weight gradients: an entry holds one sum for every channel.  When the pixels' sums are here,
// adds both halves of them in one cycle, their sum to the entry in the next, and writes in the third; reads entries for READ.
`default_nettype none

module accumulators
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                  clk_i,
    input  wire                  rst_i,
    // one output channel of a weight gradient, whose sums are here in the next cycle; never the same again within four
    input  wire                  add_i,
    input  wire                  stop_i,          // nothing more is added
    input  wire address_t        add_entry_i,
    input  wire                  clear_i,         // the entry starts anew
    input  wire [31:0]           position_i,      // of the packet
    input  wire lane_sums_t      lane_i,
    output logic                 busy_o,
    output logic                 out_of_range_o,  // a sum left its range
    output logic [31:0]          position_o,      // its packet
    // an entry, in the cycle after; not while adding or in the cycle before
    input  wire                  read_i,
    input  wire address_t        read_entry_i,
    output channel_sums_t        data_o
);
  localparam int unsigned MW = $clog2(DEPTH_ACCUMULATOR);

  logic          begin_q, add_q, write_q, begin_clear_q, clear_q, read;
  logic [MW-1:0] begin_address_q, add_address_q, write_address_q, read_address;
  logic [31:0]   begin_position_q, add_position_q, write_position_q;
  channel_sums_t half_sum_q, total_q;
  assign read         = read_i || begin_q;
  assign read_address = read_i ? MW'(read_entry_i) : begin_address_q;

  for (genvar c = 0; c < CHANNELS; c++) begin : gen_accumulator
    (* ram_style = "block" *) logic [ACC_BITS-1:0] memory[DEPTH_ACCUMULATOR];
    logic [ACC_BITS-1:0] data_q;
    always_ff @(posedge clk_i) begin
      if (write_q) memory[write_address_q] <= total_q[c];
      if (read) data_q <= memory[read_address];
    end
    assign data_o[c] = data_q;
  end

  // channel -> half sums with the read -> sum -> write
  logic [CHANNELS-1:0] out_of_range, out_of_range_q;
  channel_sums_t       total;
  always_comb
    for (int unsigned c = 0; c < CHANNELS; c++) begin
      automatic logic signed [ACC_BITS:0] sum =
          $signed({half_sum_q[c][ACC_BITS-1], half_sum_q[c]})
          + (clear_q ? '0 : $signed({data_o[c][ACC_BITS-1], data_o[c]}));
      total[c]        = sum[ACC_BITS-1:0];
      out_of_range[c] = sum[ACC_BITS] != sum[ACC_BITS-1];
    end
  always_ff @(posedge clk_i) begin
    begin_q          <= add_i && !rst_i && !stop_i;
    begin_address_q  <= MW'(add_entry_i);
    begin_clear_q    <= clear_i;
    begin_position_q <= position_i;
    add_q            <= begin_q && !rst_i && !stop_i;
    add_address_q    <= begin_address_q;
    clear_q          <= begin_clear_q;
    add_position_q   <= begin_position_q;
    write_q          <= add_q && !rst_i && !stop_i;
    write_address_q  <= add_address_q;
    write_position_q <= add_position_q;
    for (int unsigned c = 0; c < CHANNELS; c++) half_sum_q[c] <= lane_i[c] + lane_i[CHANNELS+c];
    total_q        <= total;
    out_of_range_q <= out_of_range;
  end
  assign busy_o         = begin_q || add_q || write_q;
  assign out_of_range_o = write_q && |out_of_range_q;
  assign position_o     = write_position_q;

`ifndef SYNTHESIS
  // reads and additions share the memory's read port
  a_one_port: assert property (@(posedge clk_i) disable iff (rst_i) !(read_i && begin_q));
  // an entry has been written before it is read again
  a_distance: assert property (@(posedge clk_i) disable iff (rst_i) read |-> !(add_q && add_address_q == read_address) && !(write_q && write_address_q == read_address));
`endif
endmodule

`default_nettype wire
