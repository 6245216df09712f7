// SPDX-License-Identifier: Apache-2.0
// Arithmetic right shift by 0 to 47, saturated to fewer bits, in two cycles.  Sixteens and fours are chosen first, which
// leaves three bits more than the result has, then ones.
`default_nettype none

module saturating_shift #(
    parameter int unsigned IN  = 50,   /// bits of the value, 33 to 64
    parameter int unsigned OUT = 18    /// bits of the result, up to 18
) (
    input  wire             clk_i,
    input  wire  [IN-1:0]   value_i,       // signed
    input  wire             clear_i,       // the result is zero instead, and counts as not saturated
    input  wire  [5:0]      shift_i,
    // two cycles later
    output logic [OUT-1:0]  result_o,      // signed
    output logic            saturated_o
);
  localparam int unsigned COARSE = OUT + 15, FINE = OUT + 3;
  if (IN < 33 || IN > 64 || OUT > 18) begin : gen_check
    $error("saturating_shift: IN = %0d must lie in 33 to 64 and OUT = %0d be 18 or less", IN, OUT);
  end

  // A window holds the value if every bit above it equals its sign.
  logic              negative;
  logic [79:0]       extended;
  logic [COARSE-1:0] coarse;
  logic [FINE-1:0]   fine;
  logic              beyond_coarse, beyond_fine;
  assign negative = value_i[IN-1];
  assign extended = {{80 - IN{negative}}, value_i};
  always_comb begin
    unique case (shift_i[5:4])
      2'd0: begin
        coarse        = extended[0+:COARSE];
        beyond_coarse = extended[63:COARSE-1] != {65 - COARSE{negative}};
      end
      2'd1: begin
        coarse        = extended[16+:COARSE];
        beyond_coarse = extended[63:COARSE+15] != {49 - COARSE{negative}};
      end
      default: begin
        coarse        = extended[32+:COARSE];
        beyond_coarse = 1'b0;
      end
    endcase
    unique case (shift_i[3:2])
      2'd0: begin
        fine        = coarse[0+:FINE];
        beyond_fine = coarse[COARSE-1:FINE-1] != {COARSE - FINE + 1{negative}};
      end
      2'd1: begin
        fine        = coarse[4+:FINE];
        beyond_fine = coarse[COARSE-1:FINE+3] != {COARSE - FINE - 3{negative}};
      end
      2'd2: begin
        fine        = coarse[8+:FINE];
        beyond_fine = coarse[COARSE-1:FINE+7] != {COARSE - FINE - 7{negative}};
      end
      default: begin
        fine        = coarse[12+:FINE];
        beyond_fine = 1'b0;
      end
    endcase
  end

  logic            negative_q, beyond_coarse_q, beyond_fine_q, clear_q, saturated_q;
  logic [FINE-1:0] fine_q;
  logic [1:0]      ones_q;
  always_ff @(posedge clk_i) begin
    negative_q      <= negative;
    beyond_coarse_q <= beyond_coarse;
    beyond_fine_q   <= beyond_fine;
    clear_q         <= clear_i;
    fine_q          <= fine;
    ones_q          <= shift_i[1:0];
  end

  logic           beyond;
  logic [OUT-1:0] window, result_q;
  always_comb begin
    window = OUT'(fine_q >> ones_q);
    unique case (ones_q)
      2'd0:    beyond = fine_q[FINE-1:OUT-1] != {4{negative_q}};
      2'd1:    beyond = fine_q[FINE-1:OUT] != {3{negative_q}};
      2'd2:    beyond = fine_q[FINE-1:OUT+1] != {2{negative_q}};
      default: beyond = fine_q[FINE-1] != negative_q;
    endcase
    beyond |= beyond_coarse_q || beyond_fine_q;
  end
  always_ff @(posedge clk_i) begin
    result_q    <= beyond ? {negative_q, {OUT - 1{!negative_q}}} : window;
    saturated_q <= beyond;
    if (clear_q) begin
      result_q    <= '0;
      saturated_q <= 1'b0;
    end
  end
  assign result_o    = result_q;
  assign saturated_o = saturated_q;
endmodule

`default_nettype wire
