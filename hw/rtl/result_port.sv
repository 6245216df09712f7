// SPDX-License-Identifier: Apache-2.0
// Output stream: a register in front of it, and the choice among the units that have a word for it.
// Results leave in order because only one unit at a time has any.
`default_nettype none

module result_port #(
    parameter int unsigned SOURCES = 2   /// units; the last one alone may end the stream
) (
    input  wire                        clk_i,
    input  wire                        rst_i,
    input  wire  [SOURCES-1:0]         valid_i,
    input  wire  [SOURCES-1:0][63:0]   word_i,
    input  wire                        last_i,       // the last unit's word is the stream's last
    output logic                       ready_o,      // for the unit that has a word
    // output stream
    output logic                       out_valid_o,
    input  wire                        out_ready_i,
    output logic [63:0]                out_data_o,
    output logic                       out_last_o
);
  if (SOURCES < 2) begin : gen_check
    $error("result_port: SOURCES = %0d, must be 2 or more", SOURCES);
  end

  logic [63:0] word;
  always_comb begin
    word = '0;
    for (int unsigned s = 0; s < SOURCES; s++) word = word | (valid_i[s] ? word_i[s] : '0);
  end

  logic        valid_q, last_q;
  logic [63:0] data_q;
  assign ready_o = !valid_q || out_ready_i;
  always_ff @(posedge clk_i) begin
    if (rst_i) valid_q <= 1'b0;
    else if (ready_o) valid_q <= |valid_i;
    if (ready_o && |valid_i) begin
      data_q <= word;
      last_q <= valid_i[SOURCES-1] && last_i;
    end
  end
  assign out_valid_o = valid_q;
  assign out_data_o  = data_q;
  assign out_last_o  = last_q;

`ifndef SYNTHESIS
  // a word stays until it is taken
  a_result_waits: assert property (@(posedge clk_i) disable iff (rst_i) out_valid_o && !out_ready_i |=> out_valid_o && $stable({out_data_o, out_last_o}));
  // results leave in order: no two units have a word at the same time
  a_one_source: assert property (@(posedge clk_i) disable iff (rst_i) $onehot0(valid_i));
`endif
endmodule

`default_nettype wire
