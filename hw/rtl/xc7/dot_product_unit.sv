// SPDX-License-Identifier: Apache-2.0
// The dot product of hw/rtl/dot_product_unit.sv in 7-series primitives, cycle for cycle the same at its ports.
//
// Three products are counted in two LUT6 (sum and carry of a full adder whose inputs are ANDs).  The resulting bit heap
// shrinks by 7:3 counters, then by full adders until no column is higher than three; a ternary adder on the carry
// chain ends it.  The register between count and sign lies after the first counters, or after the second where counters
// take the operand as it comes (ONES), which halves the longest path.
// Subtraction costs nothing: the last adder inverts its inputs (-s = ~s + 1, the one arrives as carry input), and the
// accumulator of a DSP48E1 forms P + C, P + P + C or C from one operand C.
`default_nettype none

module dot_product_unit #(
    parameter int unsigned BITS = 144,  /// length of the dot product
    parameter int unsigned ACC  = 48,   /// accumulator width
    parameter bit          ONES = 1'b0, /// 1: all bits of b_i are equal
    parameter bit          DSP  = 1'b1  /// 1: accumulate in a DSP48E1, 0: in LUTs
) (
    input  wire              clk_i,
    input  wire  [BITS-1:0]  a_i,
    input  wire  [BITS-1:0]  b_i,
    input  wire              count_i,     // with a_i and b_i
    input  wire              sign_i,      // one cycle later
    input  wire              negative_i,  // one cycle later: subtract
    input  wire              valid_i,     // two cycles later
    input  wire              first_i,     // two cycles later
    input  wire              shift_i,     // two cycles later
    output logic [ACC-1:0]   acc_o
);
  localparam int unsigned COUNT = $clog2(BITS + 1);  // columns of the heap, bits of a count
  localparam int unsigned TRIPLES = (BITS + 2) / 3;
  localparam int unsigned HIGH = ONES ? BITS : TRIPLES;  // highest column of any stage
  localparam int unsigned MAX_STAGES = 8;

  if (BITS < 9 || BITS > 255) begin : gen_check_bits
    $error("dot_product_unit: BITS = %0d, must be 9 to 255", BITS);
  end
  if (ACC <= COUNT || ACC > 48) begin : gen_check_acc
    $error("dot_product_unit: ACC = %0d, must be more than %0d and at most 48", ACC, COUNT);
  end

  // ---- plan of the heap: heights of its columns before each stage, counters in each column ---------------------------
  typedef logic [COUNT-1:0][7:0] heights_t;

  function automatic heights_t initial_heights();
    initial_heights = '0;
    initial_heights[0] = 8'(HIGH);
    if (!ONES) initial_heights[1] = 8'(TRIPLES);
  endfunction

  // A stage after which no column is higher than three: 1 for a full adder in a column, 2 for a counter, 0 for neither.
  // The last column is 3 if one stage is not enough.
  function automatic heights_t finishing(input heights_t h);
    automatic logic [COUNT+1:0][7:0] carries = '0;
    automatic bit enough = 1'b1;
    finishing = '0;
    for (int unsigned c = 0; c < COUNT; c++)
      if (h[c] + carries[c] > 3) begin
        carries[c+1] = carries[c+1] + 8'd1;
        if (h[c] >= 3 && h[c] + carries[c] <= 5) finishing[c] = 8'd1;
        else begin
          finishing[c] = 8'd2;
          carries[c+2] = carries[c+2] + 8'd1;
          if (h[c] < 5 || 32'(h[c]) + 32'(carries[c]) - (h[c] < 7 ? 32'(h[c]) : 7) > 2) enough = 1'b0;
        end
      end
    if (!enough) finishing[COUNT-1] = 8'd3;
  endfunction

  function automatic bit finishes(input heights_t h);
    automatic heights_t f = finishing(h);
    return f[COUNT-1] != 8'd3;
  endfunction

  // counters and full adders of one stage, the first of which never finishes
  function automatic heights_t counters(input heights_t h, input bit finish);
    automatic heights_t f = finishing(h);
    for (int unsigned c = 0; c < COUNT; c++) counters[c] = finish ? 8'(f[c] == 8'd2) : 8'((32'(h[c]) + 2) / 7);
  endfunction
  function automatic heights_t adders(input heights_t h, input bit finish);
    automatic heights_t f = finishing(h);
    for (int unsigned c = 0; c < COUNT; c++) adders[c] = 8'(finish && f[c] == 8'd1);
  endfunction
  // bits of a column that a stage consumes
  function automatic heights_t consumed(input heights_t h, input bit finish);
    automatic heights_t k = counters(h, finish), f = adders(h, finish);
    for (int unsigned c = 0; c < COUNT; c++)
      consumed[c] = f[c] != 0 ? 8'd3 : 8'(7 * 32'(k[c])) < h[c] ? 8'(7 * 32'(k[c])) : h[c];
  endfunction
  // a column after a stage: its own sums, what was left over, carries from one column below, from two columns below
  function automatic heights_t next_heights(input heights_t h, input bit finish);
    automatic heights_t k = counters(h, finish), f = adders(h, finish), u = consumed(h, finish);
    for (int unsigned c = 0; c < COUNT; c++) begin
      next_heights[c] = k[c] + f[c] + h[c] - u[c];
      if (c >= 1) next_heights[c] = next_heights[c] + k[c-1] + f[c-1];
      if (c >= 2) next_heights[c] = next_heights[c] + k[c-2];
    end
  endfunction

  // heights before stage s; the first stage only shrinks, the one that can finish is the last
  function automatic heights_t heights(input int unsigned s);
    heights = initial_heights();
    for (int unsigned i = 0; i < s; i++) heights = next_heights(heights, i != 0 && finishes(heights));
  endfunction
  function automatic int unsigned count_stages();
    count_stages = 1;
    while (!finishes(heights(count_stages)) && count_stages < MAX_STAGES) count_stages++;
    count_stages++;
  endfunction
  localparam int unsigned STAGES = count_stages();
  localparam int unsigned REGISTERED = ONES && STAGES > 2 ? 2 : 1;  // stage that begins with the register

  // ---- products, counted in threes -----------------------------------------------------------------------------------
  // inputs in pairs: bit 2k of the index is one factor, bit 2k+1 the other
  function automatic logic [63:0] triple_init(input bit carry);
    for (int unsigned k = 0; k < 64; k++) begin
      automatic logic [2:0] product = {&k[5:4], &k[3:2], &k[1:0]};
      triple_init[k] = carry ? $countones(product) >= 2 : ^product;
    end
  endfunction

  logic [COUNT-1:0][HIGH-1:0] heap;
  if (ONES) begin : gen_ones
    always_comb begin
      heap    = '0;
      heap[0] = HIGH'(a_i);
    end
  end else begin : gen_products
    wire [3*TRIPLES-1:0] a = (3 * TRIPLES)'(a_i), b = (3 * TRIPLES)'(b_i);
    wire [TRIPLES-1:0] low, high;
    for (genvar t = 0; t < TRIPLES; t++) begin : gen_triple
      LUT6 #(.INIT(triple_init(1'b0))) i_low (
          .O(low[t]), .I0(a[3*t]), .I1(b[3*t]), .I2(a[3*t+1]), .I3(b[3*t+1]), .I4(a[3*t+2]), .I5(b[3*t+2])
      );
      LUT6 #(.INIT(triple_init(1'b1))) i_high (
          .O(high[t]), .I0(a[3*t]), .I1(b[3*t]), .I2(a[3*t+1]), .I3(b[3*t+1]), .I4(a[3*t+2]), .I5(b[3*t+2])
      );
    end
    always_comb begin
      heap    = '0;
      heap[0] = low;
      heap[1] = high;
    end
  end

  // ---- stages ----------------------------------------------------------------------------------------------------------
  // I0..I2: bits to add; O6 sum, O5 carry
  localparam logic [63:0] FULL_ADDER = 64'h96969696_E8E8E8E8;

  for (genvar s = 0; s < STAGES; s++) begin : gen_stage
    localparam bit FINISH = s == STAGES - 1;
    localparam heights_t H = heights(s);
    localparam heights_t N = heights(s + 1);
    localparam heights_t K = counters(H, FINISH);
    localparam heights_t F = adders(H, FINISH);
    localparam heights_t U = consumed(H, FINISH);
    wire [COUNT-1:0][HIGH-1:0] in, out, carry1, carry2;
    if (s == 0) begin : gen_in
      assign in = heap;
    end else if (s == REGISTERED) begin : gen_register
      // only bits below a column's height exist
      logic [COUNT-1:0][HIGH-1:0] heap_q;
      always_ff @(posedge clk_i)
        if (count_i) heap_q <= ONES && !b_i[0] ? '0 : gen_stage[s-1].out;
      assign in = heap_q;
    end else begin : gen_in
      assign in = gen_stage[s-1].out;
    end

    for (genvar c = 0; c < COUNT; c++) begin : gen_column
      localparam int unsigned OWN = 32'(K[c]) + 32'(F[c]);
      localparam int unsigned LEFT = 32'(H[c]) - 32'(U[c]);
      localparam int unsigned BELOW1 = c >= 1 ? 32'(K[(c+COUNT-1)%COUNT]) + 32'(F[(c+COUNT-1)%COUNT]) : 0;
      localparam int unsigned BELOW2 = c >= 2 ? 32'(K[(c+COUNT-2)%COUNT]) : 0;
      wire [7*HIGH-1:0] bits = (7 * HIGH)'(in[c]);
      for (genvar k = 0; k < K[c]; k++) begin : gen_counter
        // a counter of five or six bits: the rest of its inputs are zero, not bits that are left over
        wire [6:0] taken = bits[7*k+:7] & 7'((1 << (32'(U[c]) - 7 * k < 7 ? 32'(U[c]) - 7 * k : 7)) - 1);
        counter_7_3 #(
            .CAPPED(s + 1 != REGISTERED)
        ) i_counter (
            .x_i    (taken),
            .count_o({carry2[c][k], carry1[c][k], out[c][k]})
        );
      end
      if (F[c] != 0) begin : gen_adder
        LUT6_2 #(.INIT(FULL_ADDER)) i_adder (
            .O6(out[c][0]), .O5(carry1[c][0]),
            .I0(bits[0]), .I1(bits[1]), .I2(bits[2]), .I3(1'b1), .I4(1'b1), .I5(1'b1)
        );
      end
      if (LEFT != 0) begin : gen_left
        assign out[c][OWN+:LEFT] = bits[32'(U[c])+:LEFT];
      end
      if (BELOW1 != 0) begin : gen_below1
        assign out[c][OWN+LEFT+:BELOW1] = carry1[c-1][BELOW1-1:0];
      end
      if (BELOW2 != 0) begin : gen_below2
        assign out[c][OWN+LEFT+BELOW1+:BELOW2] = carry2[c-2][BELOW2-1:0];
      end
      if (32'(N[c]) < HIGH) begin : gen_rest
        assign out[c][HIGH-1:32'(N[c])] = '0;
      end
    end
  end

  // ---- last addition, inverted to subtract -----------------------------------------------------------------------------
  // Three inverted numbers add up to the inverse of the sum when two is added: once at either carry input.
  localparam int unsigned CHAINS = (COUNT + 3) / 4;
  wire [4*CHAINS-1:0] term, propagate, carry_out;
  wire [4*CHAINS:0]   save;
  assign save[0] = negative_i;
  for (genvar c = 0; c < 4 * CHAINS; c++) begin : gen_last
    if (c < COUNT) begin : gen_bit
      save_adder i_last (
          .x_i(gen_stage[STAGES-1].out[c][2:0]), .negative_i, .saved_i(save[c]), .sum_o(propagate[c]), .saved_o(save[c+1])
      );
    end else begin : gen_none
      assign propagate[c] = 1'b0;
      assign save[c+1]    = 1'b0;
    end
  end
  for (genvar k = 0; k < CHAINS; k++) begin : gen_chain
    if (k == 0) begin : gen_first
      CARRY4 i_carry (
          .CO(carry_out[3:0]), .O(term[3:0]), .CI(1'b0), .CYINIT(negative_i), .DI(save[3:0]), .S(propagate[3:0])
      );
    end else begin : gen_next
      CARRY4 i_carry (
          .CO(carry_out[4*k+:4]), .O(term[4*k+:4]), .CI(carry_out[4*k-1]), .CYINIT(1'b0), .DI(save[4*k+:4]),
          .S(propagate[4*k+:4])
      );
    end
  end

  // ---- accumulator -----------------------------------------------------------------------------------------------------
  // The term is ~s or s; above its bits comes the sign, and the missing one of -s = ~s + 1 is the carry input.
  // Without a DSP, one LUT per bit selects zero, P or 2P and adds the term.
  // I0: P, I1: bit below, I2: term, I3: first, I4: shift
  function automatic logic [63:0] add_init();
    for (int unsigned k = 0; k < 64; k++)
      add_init[k] = k < 32 ? k[2] : k[2] ^ (!k[3] && (k[4] ? k[1] : k[0]));
  endfunction
  if (DSP) begin : gen_dsp
    wire [47:0] p;
    DSP48E1 #(
        .AREG(1), .BREG(1), .CREG(1), .DREG(1), .ADREG(1), .MREG(0), .PREG(1), .ACASCREG(1), .BCASCREG(1),
        .ALUMODEREG(0), .CARRYINREG(1), .CARRYINSELREG(0), .INMODEREG(0), .OPMODEREG(0),
        .USE_MULT("NONE"), .USE_DPORT("FALSE"), .USE_SIMD("ONE48"), .USE_PATTERN_DETECT("NO_PATDET")
    ) i_accumulator (
        .CLK(clk_i), .P(p),
        // X: zero or P; Y: C; Z: zero or P
        .OPMODE({1'b0, !first_i, 1'b0, 2'b11, shift_i && !first_i, 1'b0}), .ALUMODE(4'b0000),
        .C({{48 - COUNT{negative_i}}, term[COUNT-1:0]}), .CARRYIN(negative_i), .CARRYINSEL(3'b000),
        .CEC(sign_i), .CECARRYIN(sign_i), .CEP(valid_i),
        // the multiplier's side is not used
        .A('1), .B('1), .D('1), .INMODE('0), .ACIN('0), .BCIN('0), .PCIN('0), .CARRYCASCIN(1'b0), .MULTSIGNIN(1'b0),
        .CEA1(1'b0), .CEA2(1'b0), .CEAD(1'b0), .CEB1(1'b0), .CEB2(1'b0), .CED(1'b0), .CEM(1'b0), .CEINMODE(1'b0),
        .CECTRL(1'b0), .CEALUMODE(1'b0), .RSTA(1'b0), .RSTALLCARRYIN(1'b0), .RSTALUMODE(1'b0), .RSTB(1'b0),
        .RSTC(1'b0), .RSTCTRL(1'b0), .RSTD(1'b0), .RSTINMODE(1'b0), .RSTM(1'b0), .RSTP(1'b0),
        .ACOUT(), .BCOUT(), .CARRYCASCOUT(), .CARRYOUT(), .MULTSIGNOUT(), .OVERFLOW(), .PATTERNBDETECT(),
        .PATTERNDETECT(), .PCOUT(), .UNDERFLOW()
    );
    assign acc_o = p[ACC-1:0];
  end else begin : gen_lut
    localparam int unsigned WIDTH = 4 * ((ACC + 3) / 4);
    logic [COUNT-1:0] term_q;
    logic             negative_q;
    logic [ACC-1:0]   acc_q;
    wire  [WIDTH:0]   below = (WIDTH + 1)'({acc_q, 1'b0});
    wire  [WIDTH-1:0] addend = {{WIDTH - COUNT{negative_q}}, term_q};
    wire  [WIDTH-1:0] add, select, sum, carry;
    for (genvar b = 0; b < WIDTH; b++) begin : gen_bit
      LUT6_2 #(.INIT(add_init())) i_bit (
          .O6(select[b]), .O5(add[b]),
          .I0(below[b+1]), .I1(below[b]), .I2(addend[b]), .I3(first_i), .I4(shift_i), .I5(1'b1)
      );
    end
    for (genvar k = 0; k < WIDTH / 4; k++) begin : gen_carry
      if (k == 0) begin : gen_first
        CARRY4 i_carry (
            .CO(carry[3:0]), .O(sum[3:0]), .CI(1'b0), .CYINIT(negative_q), .DI(add[3:0]), .S(select[3:0])
        );
      end else begin : gen_next
        CARRY4 i_carry (
            .CO(carry[4*k+:4]), .O(sum[4*k+:4]), .CI(carry[4*k-1]), .CYINIT(1'b0), .DI(add[4*k+:4]), .S(select[4*k+:4])
        );
      end
    end
    always_ff @(posedge clk_i) begin
      if (sign_i) begin
        term_q     <= term[COUNT-1:0];
        negative_q <= negative_i;
      end
      if (valid_i) acc_q <= sum[ACC-1:0];
    end
    assign acc_o = acc_q;
  end
endmodule

`default_nettype wire
