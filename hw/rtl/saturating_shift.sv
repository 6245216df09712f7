// SPDX-License-Identifier: Apache-2.0
// Arithmetic right shift by 0 to 47, saturated to fewer bits, in three cycles: by sixteens, by fours, by ones.
`default_nettype none

module saturating_shift #(
    parameter int unsigned IN  = 50,   /// bits of the value, 33 to 64
    parameter int unsigned OUT = 18    /// bits of the result, up to 18
) (
    input  wire             clk_i,
    input  wire  [IN-1:0]   value_i,       // signed
    input  wire             clear_i,       // the result is zero instead, and counts as not saturated
    input  wire  [5:0]      shift_i,       // a cycle before the value
    // three cycles later
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
  logic [COARSE-1:0] coarse, coarse_q;
  logic              beyond_coarse, beyond_coarse_q, negative_q, clear_q;
  (* keep = "true" *) logic [5:0] shift_q;    // a copy for every pixel, whose selects it drives
  (* keep = "true" *) logic [3:0] shift2_q;
  assign negative = value_i[IN-1];
  assign extended = {{80 - IN{negative}}, value_i};
  always_comb
    unique case (shift_q[5:4])
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
  always_ff @(posedge clk_i) begin
    coarse_q        <= coarse;
    beyond_coarse_q <= beyond_coarse;
    negative_q      <= negative;
    clear_q         <= clear_i;
    shift_q         <= shift_i;
    shift2_q        <= shift_q[3:0];
  end

  logic [FINE-1:0] fine, fine_q;
  logic            beyond_fine, beyond_fine_q, negative2_q, clear2_q;
  (* keep = "true" *) logic [1:0] ones_q;
  always_comb
    unique case (shift2_q[3:2])
      2'd0: begin
        fine        = coarse_q[0+:FINE];
        beyond_fine = coarse_q[COARSE-1:FINE-1] != {COARSE - FINE + 1{negative_q}};
      end
      2'd1: begin
        fine        = coarse_q[4+:FINE];
        beyond_fine = coarse_q[COARSE-1:FINE+3] != {COARSE - FINE - 3{negative_q}};
      end
      2'd2: begin
        fine        = coarse_q[8+:FINE];
        beyond_fine = coarse_q[COARSE-1:FINE+7] != {COARSE - FINE - 7{negative_q}};
      end
      default: begin
        fine        = coarse_q[12+:FINE];
        beyond_fine = 1'b0;
      end
    endcase
  always_ff @(posedge clk_i) begin
    fine_q        <= fine;
    beyond_fine_q <= beyond_fine || beyond_coarse_q;
    negative2_q   <= negative_q;
    clear2_q      <= clear_q;
    ones_q        <= shift2_q[1:0];
  end

  logic           beyond, saturated_q;
  logic [OUT-1:0] window, result_q;
  always_comb begin
    window = OUT'(fine_q >> ones_q);
    unique case (ones_q)
      2'd0:    beyond = fine_q[FINE-1:OUT-1] != {4{negative2_q}};
      2'd1:    beyond = fine_q[FINE-1:OUT] != {3{negative2_q}};
      2'd2:    beyond = fine_q[FINE-1:OUT+1] != {2{negative2_q}};
      default: beyond = fine_q[FINE-1] != negative2_q;
    endcase
    beyond |= beyond_fine_q;
  end
  always_ff @(posedge clk_i) begin
    result_q    <= beyond ? {negative2_q, {OUT - 1{!negative2_q}}} : window;
    saturated_q <= beyond;
    if (clear2_q) begin
      result_q    <= '0;
      saturated_q <= 1'b0;
    end
  end
  assign result_o    = result_q;
  assign saturated_o = saturated_q;
endmodule

`default_nettype wire
