// SPDX-License-Identifier: Apache-2.0
// Four quantizers side by side: a beat of four channels in, their codes QUANTIZER_CYCLES later.
`default_nettype none

module quantizer_lanes
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                    clk_i,
    input  wire                    start_i,      // forget what is under way
    input  wire header_t           header_i,
    input  wire                    beat_i,
    input  wire beat_t             word_i,
    input  wire index_t            index_i,      // random index of the first channel
    output logic                   bad_o,        // the beat holds a value that is not finite
    output logic                   valid_o,
    output logic [3:0][15:0]       codes_o,
    output logic [2:0]             saturated_o,  // codes that were clamped
    output logic                   busy_o
);
  logic [3:0] clamped, infinite;
  for (genvar k = 0; k < 4; k++) begin : gen_quantizer
    assign infinite[k] = word_i[32*k+23+:8] == 8'hFF;
    quantizer i_quantizer (
        .clk_i,
        .enable_i    (1'b1),
        .x_i         (word_i[32*k+:32]),
        .zero_i      (header_i.zero),
        .reciprocal_i(header_i.reciprocal),
        .stochastic_i(header_i.flags[FLAG_STOCHASTIC]),
        .signed_i    (header_i.flags[FLAG_A_SIGNED]),
        .bits_i      (bits_t'(header_i.a_bits)),
        .key_i       (header_i.key),
        .index_i     (index_i + header_i.channel_stride * 32'(k)),
        .code_o      (codes_o[k]),
        .clamped_o   (clamped[k])
    );
  end
  assign bad_o = beat_i && |infinite;

  logic [QUANTIZER_CYCLES-1:0] in_flight_q;
  always_ff @(posedge clk_i) in_flight_q <= start_i ? '0 : {in_flight_q[QUANTIZER_CYCLES-2:0], beat_i};
  assign valid_o     = in_flight_q[QUANTIZER_CYCLES-1];
  assign busy_o      = in_flight_q != 0;
  assign saturated_o = valid_o ? 3'($countones(clamped)) : '0;
endmodule

`default_nettype wire
