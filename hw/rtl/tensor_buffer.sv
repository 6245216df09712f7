// SPDX-License-Identifier: Apache-2.0
// One tensor buffer: eight row banks, each a row word wide, written one 128-bit beat at a time, all read at once.
// Beside it a bit for every row word tells whether any of its bits is set, so that zero planes are found by address.
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
    output logic [7:0][WIDTH-1:0]      read_data_o,
    // whether any bank's row word at this address has a bit set, a cycle later
    input  wire  [AW-1:0]              flag_address_i,
    output logic                       flag_o
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

  // A row word is written slice by slice from the first, which starts its bit anew.  All a cycle after the data: whether a
  // slice has a bit set takes its time.
  logic [7:0]    flags, flag_write_q;
  logic [AW-1:0] flag_address_q;
  logic          begins_q, any_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < 8; b++) flag_write_q[b] <= write_i && write_bank_i == 3'(b);
    flag_address_q <= write_address_i;
    begins_q       <= write_slice_i == 0;
    any_q          <= write_data_i != 0;
  end
  for (genvar b = 0; b < 8; b++) begin : gen_flag
    (* ram_style = "distributed" *) logic flag[DEPTH];
    logic was_set;
    assign was_set = flag[flag_address_q] && !begins_q;
    // not always_ff, which would forbid the initial values below
    always @(posedge clk_i)
      if (flag_write_q[b]) flag[flag_address_q] <= was_set || any_q;
    assign flags[b] = flag[flag_address_i];
    initial for (int unsigned k = 0; k < DEPTH; k++) flag[k] = 1'b0;  // as the memory after configuration
  end
  logic flag_q;
  always_ff @(posedge clk_i) flag_q <= |flags;
  assign flag_o = flag_q;
endmodule

`default_nettype wire
