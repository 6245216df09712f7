// SPDX-License-Identifier: Apache-2.0
// The dot product of hw/rtl/dot_product_unit.sv in 7-series primitives, cycle for cycle the same at its ports.
//
// Three products are counted in two LUT6 (sum and carry of a full adder whose inputs are ANDs).  The resulting bit heap
// shrinks by 7:3 counters, then by full adders until no column is higher than three; a ternary adder on the carry
// chain ends it.  The register between count and sign lies after the first counters, which halves the longest path.
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

  // 7:3 counters of a stage that only shrinks: whole ones, and one more if five or six bits are left
  function automatic heights_t shrinking(input heights_t h);
    for (int unsigned c = 0; c < COUNT; c++) shrinking[c] = 8'((32'(h[c]) + 2) / 7);
  endfunction

  // Counters (bits 3..0) and full adders (bits 7..4) of a stage after which no column is higher than three; the last
  // column is all ones if one stage is not enough.
  function automatic heights_t finishing(input heights_t h);
    automatic int unsigned from_1 = 0, from_2 = 0, next_2, rest;
    automatic bit enough = 1'b1;
    finishing = '0;
    for (int unsigned c = 0; c < COUNT; c++) begin
      rest   = 32'(h[c]) + from_1 + from_2;
      next_2 = 0;
      from_2 = 0;
      if (rest > 3) begin
        if (h[c] >= 3 && rest <= 5) finishing[c] = 8'h10;
        else begin
          finishing[c] = 8'h01;
          next_2       = 1;
          if (rest > 9 || rest - 32'(h[c]) > 2 || h[c] < 5) enough = 1'b0;
        end
      end
      from_2 = pending_2;
      pending_2 = next_2;
      from_1 = finishing[c] == 0 ? 0 : 1;
    end
    if (!enough) finishing[COUNT-1] = '1;
  endfunction
endmodule
