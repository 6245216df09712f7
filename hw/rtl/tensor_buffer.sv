// SPDX-License-Identifier: Apache-2.0
// One tensor buffer: eight row banks, each a row word wide, written one 128-bit beat at a time, all read at once.
`default_nettype none

module tensor_buffer #(
    parameter int unsigned DEPTH = 512,   /// row words per bank
    parameter int unsigned WIDTH = 512,   /// bits of a row word
    localparam int unsigned BEAT = 128,
    localparam int unsigned SLICES = WIDTH / BEAT,
    localparam int unsigned AW = $clog2(DEPTH)
) (
    input  wire                        clk_i,
    input  wire                        write_i,
    input  wire  [2:0]                 write_bank_i,
    input  wire  [AW-1:0]              write_address_i,
    input  wire  [7:0]                 write_slice_i,
    input  wire  [BEAT-1:0]            write_data_i,
    input  wire                        read_i,
    input  wire  [7:0][AW-1:0]         read_address_i,
    output logic [7:0][WIDTH-1:0]      read_data_o
);
  if (WIDTH % BEAT != 0) begin : gen_check
    $error("tensor_buffer: WIDTH = %0d is no multiple of %0d", WIDTH, BEAT);
  end

  for (genvar b = 0; b < 8; b++) begin : gen_bank
    for (genvar s = 0; s < SLICES; s++) begin : gen_slice
      (* ram_style = "block" *) logic [BEAT-1:0] memory[DEPTH];
      logic [BEAT-1:0] data_q;
      always_ff @(posedge clk_i) begin
        if (write_i && write_bank_i == 3'(b) && write_slice_i == 8'(s)) memory[write_address_i] <= write_data_i;
        if (read_i) data_q <= memory[read_address_i[b]];
      end
      assign read_data_o[b][s*BEAT+:BEAT] = data_q;
    end
  end
endmodule

`default_nettype wire
