// SPDX-License-Identifier: Apache-2.0
// Stochastic rounding of the epilogue: for every pixel of a channel a random number below 2^shift, made from counters,
// ROUNDING_LANES pixels per cycle.
`default_nettype none

module rounding
  import fabric_pkg::*;
#(
    localparam int unsigned ERROR_BITS = MAX_SHIFT
) (
    input  wire                                    clk_i,
    input  wire                                    rst_i,
    input  wire                                    start_i,          // the fields below hold until taken
    input  wire  [31:0]                            key_i,
    input  wire  [31:0]                            index_i,          // random index of pixel 0
    input  wire  [31:0]                            image_stride_i,
    input  wire  [31:0]                            pixel_stride_i,
    input  wire  [LANES-1:0]                       segment_start_i,
    input  wire  [5:0]                             shift_i,
    output logic                                   ready_o,
    input  wire                                    take_i,
    output logic [LANES-1:0][ERROR_BITS-1:0]       error_o           // stays for three cycles after being taken
);
  localparam logic [31:0] MIX1 = 32'h85EB_CA6B, MIX2 = 32'hC2B2_AE35;
  localparam int unsigned STEP = ROUNDING_LANES == 0 ? 1 : ROUNDING_LANES;
  localparam int unsigned STEPS = LANES / STEP;
  localparam int unsigned SW = $clog2(STEPS) + 1;
  if (LANES % STEP != 0) begin : gen_check
    $error("rounding: ROUNDING_LANES = %0d does not divide LANES = %0d", ROUNDING_LANES, LANES);
  end

  logic          busy_q, ready_q;
  logic [SW-1:0] step_q;
  assign ready_o = ready_q;

  // random indices: the pixel's place in its segment, as in a LOAD
  logic [31:0]           segment_q, pixel_q, segment_d, pixel_d;
  logic [STEP-1:0][31:0] index;
  logic [LANES:0]        starts;
  assign starts = {1'b0, segment_start_i};
  always_comb begin
    segment_d = segment_q;
    pixel_d   = pixel_q;
    for (int unsigned k = 0; k < STEP; k++) begin
      index[k] = pixel_d;
      if (starts[32'(step_q)*STEP+k+1]) begin
        segment_d = segment_d + image_stride_i;
        pixel_d   = segment_d;
      end else pixel_d = pixel_d + pixel_stride_i;
    end
  end

  logic [MIX_CYCLES-1:0]         valid_q;
  logic [MIX_CYCLES-1:0][SW-1:0] place_q;
  logic                          issue;
  assign issue = busy_q && step_q != SW'(STEPS);
  always_ff @(posedge clk_i) begin
    valid_q <= {valid_q[MIX_CYCLES-2:0], issue};
    place_q <= {place_q[MIX_CYCLES-2:0], step_q};
    if (issue) begin
      step_q    <= step_q + SW'(1);
      segment_q <= segment_d;
      pixel_q   <= pixel_d;
    end
    if (start_i && !busy_q && !ready_q) begin
      busy_q    <= 1'b1;
      step_q    <= '0;
      segment_q <= index_i;
      pixel_q   <= index_i;
    end
    if (valid_q[MIX_CYCLES-1] && place_q[MIX_CYCLES-1] == SW'(STEPS - 1)) begin
      busy_q  <= 1'b0;
      ready_q <= 1'b1;
    end
    if (take_i) ready_q <= 1'b0;
    if (rst_i) begin
      {busy_q, ready_q} <= '0;
      valid_q <= '0;
    end
  end

  for (genvar k = 0; k < STEP; k++) begin : gen_lane
    logic [31:0] mix0_q, mix1_q, mix2_q, mix0_folded, mix1_folded, random;
    logic [78:0] shifted;
    logic [ERROR_BITS-1:0] error_q[STEPS];
    assign mix0_folded = mix0_q ^ (mix0_q >> 16);
    assign mix1_folded = mix1_q ^ (mix1_q >> 13);
    assign random      = mix2_q ^ (mix2_q >> 16);
    assign shifted     = 79'(random) << shift_i;
    always_ff @(posedge clk_i) begin
      mix0_q <= index[k] ^ key_i;
      mix1_q <= mix0_folded * MIX1;
      mix2_q <= mix1_folded * MIX2;
      for (int unsigned s = 0; s < STEPS; s++)
        if (valid_q[MIX_CYCLES-2] && place_q[MIX_CYCLES-2] == SW'(s)) error_q[s] <= shifted[78:32];
    end
    for (genvar s = 0; s < STEPS; s++) begin : gen_error
      assign error_o[s*STEP+k] = error_q[s];
    end
  end
endmodule

`default_nettype wire
