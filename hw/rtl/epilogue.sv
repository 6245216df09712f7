// SPDX-License-Identifier: Apache-2.0
// Integer epilogue: some pixels of an output channel per cycle, from their sums to x, to the value w, to codes.
//
//   p = acc*m + b + 512*q*o   ->  x = saturated(p >> shift)        one DSP slice each for q*o and both halves of acc*m,
//   v = x*n + c + 512*k*l     ->  w = saturated(v >> value_shift)  one each for k*l and x*n: each adds to the one before
//   codes of w (OUT, WIDE) and x (KEEP); x or w to the moments
//
// Stages are numbered by the cycles after valid_i; a register of stage s holds its value in cycle s.
`default_nettype none

module epilogue
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned WIDTH = EPILOGUE_LANES
) (
    input  wire                                              clk_i,
    input  wire                                              rst_i,
    input  wire                                              valid_i,
    input  wire portion_t                                    portion_i,
    input  wire  [WIDTH-1:0][31:0]                           acc_i,
    input  wire  [WIDTH-1:0][MAX_SIDE_BITS-1:0]              added_i,
    input  wire  [WIDTH-1:0][MAX_SIDE_BITS-1:0]              side_i,
    input  wire  [WIDTH-1:0]                                 mask_i,
    input  wire entry_t                                      entry_i,
    input  wire  [WIDTH-1:0][15:0]                           random_i,           // VALUE_CYCLES - 1 after valid_i
    // VALUE_CYCLES later: to the moments
    output logic                                             moments_valid_o,
    output portion_t                                         moments_portion_o,
    output logic [WIDTH-1:0][VALUE_BITS-1:0]                 moments_value_o,
    output logic [WIDTH-1:0][VALUE_BITS-1:0]                 moments_factor_o,
    // EPILOGUE_CYCLES later: codes; what they are, a cycle before
    output logic                                             codes_valid_o,
    output portion_t                                         codes_portion_o,
    output element_t [WIDTH-1:0]                             element_o,
    output logic [$clog2(2*WIDTH+1)-1:0]                     saturated_o,        // two cycles after the codes
    output logic                                             busy_o
);
  localparam int unsigned X = 9;                 // stage of x; of w: V, of the codes: E
  localparam int unsigned V = VALUE_CYCLES, E = EPILOGUE_CYCLES, LAST = E + 2;
  localparam int unsigned SUM = 50, VALUE = 48;  // bits of p and v, with what is added before the shift
  localparam int unsigned LOW = 17;              // of acc, and of p: what the second DSP slice of a product leaves
  localparam int unsigned SIDE = MAX_SIDE_BITS + 1;
  if (V != X + 5 || E != V + 4) begin : gen_check
    $error("epilogue: VALUE_CYCLES = %0d and EPILOGUE_CYCLES = %0d must be %0d and %0d", V, E, X + 5, X + 9);
  end

  // ---- what goes along with the values -----------------------------------------------------------------------------
  logic     [LAST:1] valid_q;
  portion_t [E:1]    portion_q;
  always_ff @(posedge clk_i) begin
    valid_q   <= {valid_q[LAST-1:1], valid_i};
    portion_q <= {portion_q[E-1:1], portion_i};
    if (rst_i) valid_q <= '0;
  end
  assign busy_o            = |valid_q;
  assign moments_valid_o   = valid_q[V] && portion_q[V].moments;
  assign moments_portion_o = portion_q[V];
  assign codes_valid_o     = valid_q[E-1] && portion_q[E-1].codes;
  assign codes_portion_o   = portion_q[E-1];

  function automatic logic [46:0] half_of(input logic [5:0] shift);
    return 47'((48'd1 << shift) >> 1);
  endfunction

  // ---- a channel's numbers, each as late as it is needed ---------------------------------------------------------------
  typedef logic signed [MULTIPLIER_BITS-1:0] multiplier_t;
  logic signed [SUM-2:0]   b_q[1:5];   // with one half for the shift
  logic signed [VALUE-1:0] c_q[1:X];   // likewise
  multiplier_t m_q[1:3], o_q[1:1], n_q[1:X], l_q[1:X-1];
  always_ff @(posedge clk_i) begin
    b_q[1] <= (SUM - 1)'($signed(entry_i.b)) + (SUM - 1)'({2'b00, half_of(portion_i.coding.shift)});
    c_q[1] <= VALUE'($signed(entry_i.c)) + VALUE'({1'b0, half_of(portion_i.coding.value_shift)});
    m_q[1] <= entry_i.m;
    o_q[1] <= entry_i.o;
    n_q[1] <= entry_i.n;
    l_q[1] <= entry_i.l;
    for (int unsigned s = 2; s <= 3; s++) m_q[s] <= m_q[s-1];
    for (int unsigned s = 2; s <= 5; s++) b_q[s] <= b_q[s-1];
    for (int unsigned s = 2; s < X; s++) l_q[s] <= l_q[s-1];
    for (int unsigned s = 2; s <= X; s++) n_q[s] <= n_q[s-1];
    for (int unsigned s = 2; s <= X; s++) c_q[s] <= c_q[s-1];
  end

  // what the codes need: factors that shift, and limits where a code is chosen
  limits_t                 out_limits_q[V+1:V+3], keep_limits_q[V+1:V+3], wide_limits_q[V+1:V+3];
  logic [MAX_CODE_SHIFT:0] out_scale_q, keep_scale_q;
  logic [15:0]             wide_half_q;
  logic [VALUE_BITS:0]     wide_beyond_q;
  coding_t                 coding_v;
  assign coding_v = portion_q[V].coding;
  always_ff @(posedge clk_i) begin
    out_scale_q  <= (MAX_CODE_SHIFT + 1)'(1 << MAX_CODE_SHIFT) >> coding_v.out_shift;
    keep_scale_q <= (MAX_CODE_SHIFT + 1)'(1 << MAX_CODE_SHIFT) >> coding_v.keep_shift;
    wide_half_q  <= 16'((17'd1 << coding_v.wide_shift) >> 1);
    wide_beyond_q <= wide_limits_q[V+1].beyond << portion_q[V+1].coding.wide_shift;
    out_limits_q[V+1]  <= limits_of(coding_v.out_bits, coding_v.is_signed);
    keep_limits_q[V+1] <= limits_of(bits_t'(coding_v.keep_bits), 1'b1);
    wide_limits_q[V+1] <= limits_of(bits_t'(coding_v.wide_bits), coding_v.is_signed);
    for (int unsigned s = V + 2; s <= V + 3; s++) begin
      out_limits_q[s]  <= out_limits_q[s-1];
      keep_limits_q[s] <= keep_limits_q[s-1];
      wide_limits_q[s] <= wide_limits_q[s-1];
    end
  end

  // ---- pixels --------------------------------------------------------------------------------------------------------------
  logic [WIDTH-1:0] x_saturated, out_clamped;
  for (genvar p = 0; p < WIDTH; p++) begin : gen_pixel
    // p: stages 1 to 6
    (* shreg_extract = "no" *) logic [3:1][31:0] acc_q;   // short delays in registers, which are less scarce than LUTs
    logic signed [MAX_SIDE_BITS-1:0]   added_q;
    logic signed [26:0]                added2_q;             // times o; its lowest bits are those of b
    logic signed [26:0] added3_q;
    logic        [OPERAND_SHIFT-1:0]   b3_q;
    logic signed [35:0]                low3_q;               // acc, lower half, times m
    logic signed [37:0]                low4_q;
    logic signed [32:0]                high4_q;              // upper half
    logic signed [34:0]                high5_q;
    logic        [LOW-1:0]             low5_q;
    logic signed [SUM-1:0]             p_q;
    always_ff @(posedge clk_i) begin
      acc_q[1] <= acc_i[p];
      acc_q[2] <= acc_q[1];
      acc_q[3] <= acc_q[2];
      added_q  <= added_i[p];
      added2_q <= 27'(added_q) * 27'(o_q[1]);
      added3_q <= 27'(added2_q) + 27'($signed({1'b0, b_q[2][LOW-1:OPERAND_SHIFT]}));
      b3_q     <= b_q[2][OPERAND_SHIFT-1:0];
      low3_q   <= 36'($signed({1'b0, acc_q[2][LOW-1:0]})) * 36'(m_q[2]);
      low4_q   <= 38'(low3_q) + 38'($signed({added3_q, b3_q}));
      high4_q  <= 33'($signed(acc_q[3][31:LOW])) * 33'(m_q[3]);
      high5_q  <= 35'(high4_q) + 35'(low4_q >>> LOW);
      low5_q   <= low4_q[LOW-1:0];
      p_q      <= {(SUM - LOW)'(high5_q) + (SUM - LOW)'($signed(b_q[5][SUM-2:LOW])), low5_q};
    end

    // x: stages 7 to 9
    logic                         mask_q[1:6];
    logic signed [VALUE_BITS-1:0] x;
    logic                         x_over;
    always_ff @(posedge clk_i) begin
      mask_q[1] <= mask_i[p];
      for (int unsigned s = 2; s <= 6; s++) mask_q[s] <= mask_q[s-1];
    end
    saturating_shift #(.IN(SUM), .OUT(VALUE_BITS)) i_x (
        .clk_i, .value_i(p_q), .clear_i(!mask_q[6]), .shift_i(portion_q[5].coding.shift), .result_o(x), .saturated_o(x_over)
    );

    // v: stages 9 to 11
    logic signed [SIDE-1:0]                side_q[1:V];
    logic signed [26:0]                    side_product_q;   // times l; its lowest bits are those of c
    logic signed [VALUE-OPERAND_SHIFT-1:0] side_sum_q;
    logic        [OPERAND_SHIFT-1:0]       c_low_q;
    logic signed [35:0]                    x_product_q;
    logic signed [VALUE-1:0]               v_q;
    always_ff @(posedge clk_i) begin
      side_q[1] <= {portion_i.coding.side_signed && side_i[p][MAX_SIDE_BITS-1], side_i[p]};
      for (int unsigned s = 2; s <= V; s++) side_q[s] <= side_q[s-1];
      side_product_q <= 27'(side_q[X-1]) * 27'(l_q[X-1]);
      side_sum_q <= (VALUE - OPERAND_SHIFT)'(side_product_q) + (VALUE - OPERAND_SHIFT)'(c_q[X] >>> OPERAND_SHIFT);
      c_low_q    <= c_q[X][OPERAND_SHIFT-1:0];
      x_product_q    <= 36'(x) * 36'(n_q[X]);
      v_q     <= VALUE'(x_product_q) + $signed({side_sum_q, c_low_q});
    end

    // w: stages 12 to 14
    logic signed [VALUE_BITS-1:0] w;
    logic                         w_over, keep_clamped, unused;
    assign unused = w_over || keep_clamped;   // only what OUT loses is counted
    saturating_shift #(.IN(VALUE), .OUT(VALUE_BITS)) i_w (
        .clk_i, .value_i(v_q), .clear_i(portion_q[X+2].coding.relu && v_q[VALUE-1]),
        .shift_i(portion_q[X+1].coding.value_shift), .result_o(w), .saturated_o(w_over)
    );
    (* shreg_extract = "no" *) logic [V:X+1][VALUE_BITS-1:0] x_q;
    always_ff @(posedge clk_i) begin
      x_q[X+1] <= x;
      for (int unsigned s = X + 2; s <= V; s++) x_q[s] <= x_q[s-1];
    end
    assign moments_value_o[p]  = portion_q[V].records ? w : x_q[V];
    assign moments_factor_o[p] = portion_q[V].crossed ? VALUE_BITS'($signed(side_q[V])) : moments_value_o[p];

    // codes: four stages more
    logic [15:0] random_q, random, turned;   // nearest: one half
    always_ff @(posedge clk_i) random_q <= portion_q[V-1].coding.stochastic ? random_i[p] : '0;
    always_comb begin
      random = random_q;
      for (int unsigned b = 0; b < 16; b++) turned[b] = random_q[15-b];
      if (!coding_v.stochastic) {random[15], turned[15]} = 2'b11;
    end
    code_rounding #(.BITS(MAX_BITS)) i_out (
        .clk_i, .value_i(w), .scale_i(out_scale_q), .random_i(random), .limits_i(out_limits_q[V+3]),
        .code_o(element_o[p].out), .clamped_o(out_clamped[p])
    );
    code_rounding #(.BITS(MAX_SIDE_BITS)) i_keep (
        .clk_i, .value_i(x_q[V]), .scale_i(keep_scale_q), .random_i(turned), .limits_i(keep_limits_q[V+3]),
        .code_o(element_o[p].keep), .clamped_o(keep_clamped)
    );
    nearest_code #(.BITS(MAX_SIDE_BITS)) i_wide (
        .clk_i, .value_i(w), .half_i(wide_half_q), .shift2_i(portion_q[V+2].coding.wide_shift),
        .shift3_i(portion_q[V+3].coding.wide_shift[1:0]), .beyond_i(wide_beyond_q), .limits_i(wide_limits_q[V+3]),
        .code_o(element_o[p].wide)
    );
    (* shreg_extract = "no" *) logic [E:V+1] positive_q;
    logic over_q[X+1:E];
    always_ff @(posedge clk_i) begin
      positive_q[V+1] <= !w[VALUE_BITS-1] && w != 0;
      for (int unsigned s = V + 2; s <= E; s++) positive_q[s] <= positive_q[s-1];
      over_q[X+1] <= x_over;
      for (int unsigned s = X + 2; s <= E; s++) over_q[s] <= over_q[s-1];
    end
    assign element_o[p].mask = positive_q[E];
    assign x_saturated[p]    = over_q[E];
  end

  // ---- elements whose x saturated, and codes that were clamped: counted by sixes, then in all ----------------------------
  localparam int unsigned FLAGS = 2 * WIDTH, SIXES = (FLAGS + 5) / 6;
  logic [SIXES*6-1:0]         flags;
  logic [SIXES-1:0][2:0]      six_q;
  logic [$clog2(FLAGS+1)-1:0] count, count_q;
  assign flags = (SIXES * 6)'({out_clamped & {WIDTH{portion_q[E].codes}}, x_saturated} & {FLAGS{valid_q[E]}});
  always_comb begin
    count = '0;
    for (int unsigned s = 0; s < SIXES; s++) count = count + ($bits(count))'(six_q[s]);
  end
  always_ff @(posedge clk_i) begin
    for (int unsigned s = 0; s < SIXES; s++) six_q[s] <= 3'($countones(flags[6*s+:6]));
    count_q <= rst_i ? '0 : count;
  end
  assign saturated_o = count_q;
endmodule

`default_nettype wire
