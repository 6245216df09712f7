// SPDX-License-Identifier: Apache-2.0
// Records that travel between the fabric's modules.
`default_nettype none

package engine_pkg;
  import fabric_pkg::*;

  // A checked packet on its way to the sequencer, with the buffer ranges it reads (end exclusive).
  typedef struct packed {
    header_t     header;
    logic [31:0] position;
    logic [7:0]  error;  // END only: what stopped the loader
    logic [16:0] a_end;
    logic [16:0] b_end;
  } command_t;

  // A product of two small numbers, added up from shifted terms: a DSP slice would be wasted on it.
  function automatic logic [18:0] times(input logic [13:0] a, input logic [4:0] b);
    times = '0;
    for (int unsigned k = 0; k < 5; k++) if (b[k]) times = times + (19'(a) << k);
  endfunction

  // What the array does in one cycle.
  typedef struct packed {
    logic             valid;
    logic             first;      // start a new sum
    logic             shift;      // Horner step: double the sum before adding
    logic             negative;   // sign plane on one side: subtract
    logic             sum_valid;  // plane 0 of the second operand: the operand-sum column adds too
    logic             sum_negative;
    logic             last;       // the tile is complete after this step
    logic             bubble;     // empty diagonal: shift only
    logic             zero_b;     // pair computed for the operand sums alone
    logic             wgrad;
    logic             ones;       // first operand is one at every valid position
    logic [2:0]       row;        // row of the tile, modulo the banks
    logic [2:0]       row_valid;  // rows under the kernel's rows exist
    logic             stride;     // rows hold even and odd columns in turn, four of them to a row of the tile
    logic [1:0]       dx;         // tap column 0..2
    logic [1:0]       dy;         // tap row 0..2
    logic [7:0]       bank_valid; // weight gradient: row of this bank and its partner exist
    logic [LANES-1:0] segment_start;
  } step_t;

  // Where a finished tile goes.
  typedef struct packed {
    logic        wgrad;
    logic [7:0]  format;
    logic        with_sum;
    logic [4:0]  out_bits;
    logic [5:0]  shift;
    logic        relu;
    logic        out_signed;
    logic        clear;
    logic [16:0] entry;     // first accumulator entry, first epilogue entry, or first output channel (statistics)
    logic [31:0] position;
    logic        first;     // statistics: first tile of its output group
    logic        last;      // last tile of the packet
    logic [5:0]  pixels;    // statistics: pixels that count
    logic        stochastic;
    logic [31:0] key;
    logic [31:0] index;     // random index of the tile's first channel at pixel 0
    logic [31:0] channel_stride;
    logic [31:0] image_stride;
    logic [31:0] pixel_stride;
    logic [LANES-1:0] segment_start;
  } tile_t;
endpackage

`default_nettype wire
