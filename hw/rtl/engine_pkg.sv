// SPDX-License-Identifier: Apache-2.0
// Types that the fabric's modules share: widths of what they count, and the records that travel between them.
`default_nettype none

package engine_pkg;
  import fabric_pkg::*;

  // What the control paths count.  Each type holds its largest value; where a type is wider, its line says why.
  typedef logic [$clog2(MAX_ENTRIES + 1):0]             address_t;  // of any memory; one bit more: ends are exclusive
  typedef logic [$clog2(MAX_ROWS + 1)-1:0]              row_t;      // rows of a virtual image
  typedef logic [$clog2(MAX_GROUPS + 1)-1:0]            group_t;    // channel groups, of the output too
  typedef logic [$clog2(MAX_IMAGES + 1)-1:0]            image_t;    // virtual images
  typedef logic [$clog2(MAX_BITS + 1)-1:0]              bits_t;     // bits of a code
  typedef logic [$bits(group_t) + $bits(bits_t) - 1:0]  line_t;     // planes of all groups: one block of rows
  typedef logic [$clog2(ROW_BANKS)-1:0]                 bank_t;     // of a tensor buffer
  typedef logic [7:0]                                   slice_t;    // beat within a row word or a weight word
  typedef logic [BEAT_BITS-1:0]                         beat_t;
  typedef logic [31:0]                                  index_t;    // random index of an element
  typedef logic [$clog2(CHANNELS + 1)-1:0]              channel_t;  // of a tile; CHANNELS: the operand sums
  typedef logic [7:0]                                   error_t;    // one of ERR_*
  typedef logic [LANES-1:0][ACC_BITS-1:0]               lane_sums_t;     // an output channel's value at every pixel
  typedef logic [CHANNELS-1:0][ACC_BITS-1:0]            channel_sums_t;  // an entry of the accumulator memory

  // What a packet asks for, decoded from its header.
  typedef struct packed {
    logic load;
    logic conv;
    logic wgrad;
    logic read;
    logic ends;    // END
    logic to_a;    // LOAD, by target
    logic to_g;
    logic to_w;
    logic to_e;
    logic tensor;  // LOAD to A or G
  } kind_t;

  function automatic kind_t kind_of(input logic [7:0] opcode, target);
    kind_of.load   = opcode == OP_LOAD;
    kind_of.conv   = opcode == OP_CONV;
    kind_of.wgrad  = opcode == OP_WGRAD;
    kind_of.read   = opcode == OP_READ;
    kind_of.ends   = opcode == OP_END;
    kind_of.to_a   = kind_of.load && target[TARGET_A];
    kind_of.to_g   = kind_of.load && target[TARGET_G];
    kind_of.to_w   = kind_of.load && target[TARGET_W];
    kind_of.to_e   = kind_of.load && target[TARGET_E];
    kind_of.tensor = kind_of.to_a || kind_of.to_g;
  endfunction

  // The array computes one of two products: a checked command that is neither READ nor END.
  typedef enum logic {PRODUCT_CONV, PRODUCT_WGRAD} product_t;

  // Where a slice of a tensor is written, in A, in G or in both.
  typedef struct packed {
    address_t a_address;
    address_t g_address;
    bank_t    bank;
    slice_t   slice;
  } place_t;

  // A checked packet on its way to the sequencer, with the buffer ranges it reads (end exclusive).
  typedef struct packed {
    header_t     header;
    logic [31:0] position;
    error_t      error;  // END only: what stopped the loader
    address_t    a_end;
    address_t    b_end;
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
    bank_t            row;        // row of the tile, modulo the banks
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
    bits_t       out_bits;
    logic [5:0]  shift;
    logic        relu;
    logic        out_signed;
    logic        clear;
    address_t    entry;     // first accumulator entry, first epilogue entry, or first output channel (statistics)
    logic [31:0] position;
    logic        first;     // statistics: first tile of its output group
    logic        last;      // last tile of the packet
    logic [5:0]  pixels;    // statistics: pixels that count
    logic        stochastic;
    logic [31:0] key;
    index_t      index;     // random index of the tile's first channel at pixel 0
    logic [31:0] channel_stride;
    logic [31:0] image_stride;
    logic [31:0] pixel_stride;
    logic [LANES-1:0] segment_start;
  } tile_t;
endpackage

`default_nettype wire
