// SPDX-License-Identifier: Apache-2.0
// Two tiles of codes: one is filled channel by channel while the other leaves, plane after plane, as 64-bit words.
`default_nettype none

module code_buffer
  import fabric_pkg::*;
  import engine_pkg::*;
(
    input  wire                        clk_i,
    input  wire                        rst_i,
    // a tile: announced with its first channel's sums, its codes follow
    output logic                       free_o,     // a tile may begin
    input  wire                        begin_i,
    input  wire                        valid_i,
    input  wire channel_t              channel_i,
    input  wire bits_t                 bits_i,     // of a code
    input  wire [LANES-1:0][15:0]      code_i,
    output logic                       holds_o,    // a whole tile waits to be sent
    output logic                       gone_o,     // no tile is here or announced
    // words
    input  wire                        ready_i,
    output logic [63:0]                word_o      // while holds_o
);
  localparam int unsigned PIXELS = 64 / CHANNELS;  // pixels in one word

  logic [1:0][CHANNELS-1:0][LANES-1:0][15:0] code_q;
  bits_t [1:0] bits_q;
  logic [1:0]  used_q, used_d;        // tiles held
  logic        fill_q, fill_d;        // which buffer the next tile goes to
  logic        send_q, send_d;        // which one leaves
  logic        announced_q, announced_d;
  logic [4:0]  plane_q, plane_d;
  logic [3:0]  word_q, word_d;
  logic        push, pop, send, word_last;
  assign holds_o   = used_q != 0;
  assign free_o    = used_q != 2'd2 && !announced_q;
  assign gone_o    = !holds_o && !announced_q;
  assign send      = holds_o && ready_i;
  assign word_last = word_q == 4'(ROW_WORDS - 1);
  assign push      = valid_i && channel_i == channel_t'(CHANNELS - 1);
  assign pop       = send && word_last && plane_q == bits_q[send_q] - 5'd1;

  always_comb begin
    fill_d      = fill_q ^ push;
    send_d      = send_q ^ pop;
    used_d      = used_q + 2'(push) - 2'(pop);
    announced_d = begin_i || (announced_q && !push);
    word_d      = word_q;
    plane_d     = plane_q;
    if (send) begin
      word_d = word_last ? '0 : word_q + 4'd1;
      if (word_last) plane_d = pop ? '0 : plane_q + 5'd1;
    end
  end
  always_ff @(posedge clk_i) begin
    if (rst_i) {fill_q, send_q, used_q, announced_q, word_q, plane_q} <= '0;
    else {fill_q, send_q, used_q, announced_q, word_q, plane_q} <= {fill_d, send_d, used_d, announced_d, word_d, plane_d};
    if (valid_i) bits_q[fill_q] <= bits_i;
    for (int unsigned b = 0; b < 2; b++)
      for (int unsigned c = 0; c < CHANNELS; c++)
        if (valid_i && fill_q == 1'(b) && channel_i == channel_t'(c)) code_q[b][c] <= code_i;
  end

  // two small choices, one after the other: which pixels, then which plane
  logic [63:0][15:0] pixels;
  always_comb begin
    pixels = '0;
    for (int unsigned b = 0; b < 2; b++)
      for (int unsigned w = 0; w < ROW_WORDS; w++)
        if (send_q == 1'(b) && word_q == 4'(w))
          for (int unsigned x = 0; x < PIXELS; x++)
            for (int unsigned c = 0; c < CHANNELS; c++) pixels[x*CHANNELS+c] = code_q[b][c][w*PIXELS+x];
    for (int unsigned e = 0; e < 64; e++) word_o[e] = pixels[e][plane_q[3:0]];
  end

`ifndef SYNTHESIS
  // no tile is announced without a free buffer, no codes come unannounced
  a_begin: assert property (@(posedge clk_i) disable iff (rst_i) begin_i |-> free_o);
  a_codes: assert property (@(posedge clk_i) disable iff (rst_i) valid_i |-> announced_q);
  // a word stays until it is taken
  a_word_waits: assert property (@(posedge clk_i) disable iff (rst_i) holds_o && !ready_i |=> holds_o && $stable({send_q, word_q, plane_q}));
`endif
endmodule

`default_nettype wire
