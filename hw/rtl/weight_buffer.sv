// SPDX-License-Identifier: Apache-2.0
// Weight buffer: one plane of a whole kernel tile per address, written one 128-bit beat at a time.
`default_nettype none

module weight_buffer #(
    parameter int unsigned DEPTH = 512,   /// weight words
    parameter int unsigned WIDTH = 2304,  /// bits of a weight word
    localparam int unsigned BEAT = 128,
    localparam int unsigned SLICES = (WIDTH + BEAT - 1) / BEAT,
    localparam int unsigned AW = $clog2(DEPTH)
) (
    input  wire               clk_i,
    input  wire               write_i,
    input  wire  [AW-1:0]     write_address_i,
    input  wire  [7:0]        write_slice_i,
    input  wire  [BEAT-1:0]   write_data_i,
    input  wire               read_i,
    input  wire  [AW-1:0]     read_address_i,
    output logic [WIDTH-1:0]  read_data_o
);
  for (genvar s = 0; s < SLICES; s++) begin : gen_slice
    localparam int unsigned BITS = (s == SLICES - 1) ? WIDTH - s * BEAT : BEAT;
    (* ram_style = "block" *) logic [BITS-1:0] memory[DEPTH];
    logic [BITS-1:0] data_q;
    always_ff @(posedge clk_i) begin
      if (write_i && write_slice_i == 8'(s)) memory[write_address_i] <= write_data_i[BITS-1:0];
      if (read_i) data_q <= memory[read_address_i];
    end
    assign read_data_o[s*BEAT+:BITS] = data_q;
  end
endmodule

`default_nettype wire
