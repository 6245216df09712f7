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
    address_t    side_end;   // of a CONV's operands in G, 0 if there is none
    address_t    added_end;
  } command_t;

  typedef logic [$clog2(2 * MAX_BITS + 1)-1:0]          diagonal_t;  // i + j of two planes

  // A pair of planes that the array multiplies next.
  typedef struct packed {
    logic [3:0] i;         // plane of the first operand; that of the second is diagonal - i
    diagonal_t  diagonal;
    logic       bubble;    // the diagonal has no pair: shift only
    logic       first;     // of the tile
    logic       shift;     // first of its diagonal, but not of the tile
    logic       last;      // of the tile
  } plane_pair_t;

  // A product of two small numbers, b being 16 at most, added up from shifted terms: a DSP slice would be wasted on it.  The
  // two parts are to be registered and then added.  Of 16 only the highest bit is set, so it shares the place of another.
  typedef logic [1:0][18:0] parts_t;
  function automatic parts_t times(input logic [13:0] a, input logic [4:0] b);
    automatic logic [4:0][18:0] term;
    for (int unsigned k = 0; k < 5; k++) term[k] = b[k] ? 19'(a) << k : '0;
    return {(term[3] | term[4]) + term[2], term[0] + term[1]};
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

  // Where the walk over a command's tiles is: which tile, and where its operands and results lie.
  typedef struct packed {
    image_t      image;
    row_t        row;
    group_t      group;       // of the first operand (weight gradient)
    group_t      out_group;
    logic [3:0]  tap;
    logic [1:0]  dy;          // of the tap
    logic [1:0]  dx;
    logic        ones;        // the first operand is one at every valid position
    address_t    a_outer;     // first addresses
    address_t    b_outer;
    address_t    entry;
    index_t      row_index;   // random index of the row, of the tile
    index_t      tile_index;
  } tile_place_t;

  // An entry of buffer E, word by word, what a channel's epilogue multiplies by and adds.
  typedef struct packed {
    logic [MULTIPLIER_BITS-1:0]   l;  // of the element of SIDE
    logic [VALUE_OFFSET_BITS-1:0] c;  // to the value
    logic [OFFSET_BITS-1:0]       b;  // to the sum
    logic [MULTIPLIER_BITS-1:0]   n;  // of x
    logic [MULTIPLIER_BITS-1:0]   o;  // of the element of ADDED
    logic [MULTIPLIER_BITS-1:0]   m;  // of the sum
  } entry_t;

  // How sums become codes, from the header.
  typedef logic [$clog2(MAX_SIDE_BITS + 1)-1:0]  side_bits_t;
  typedef logic [$clog2(MAX_CODE_SHIFT + 1)-1:0] code_shift_t;
  typedef struct packed {
    logic [5:0]  shift;
    logic [5:0]  value_shift;
    logic        relu;
    logic        is_signed;    // codes of OUT and WIDE
    logic        stochastic;
    logic        side_signed;  // elements of SIDE
    bits_t       out_bits;
    code_shift_t out_shift;
    side_bits_t  keep_bits;
    code_shift_t keep_shift;
    logic        keep_mask;
    side_bits_t  wide_bits;
    code_shift_t wide_shift;
  } coding_t;

  function automatic coding_t coding_of(input header_t h);
    coding_of.shift       = h.shift[5:0];
    coding_of.value_shift = h.value_shift[5:0];
    coding_of.relu        = h.flags[FLAG_RELU];
    coding_of.is_signed   = h.flags[FLAG_OUT_SIGNED];
    coding_of.stochastic  = h.flags[FLAG_STOCHASTIC];
    coding_of.side_signed = h.flags[FLAG_SIDE_SIGNED];
    coding_of.out_bits    = bits_t'(h.out_bits);
    coding_of.out_shift   = code_shift_t'(h.out_shift);
    coding_of.keep_bits   = side_bits_t'(h.keep_bits);
    coding_of.keep_shift  = code_shift_t'(h.keep_shift);
    coding_of.keep_mask   = h.flags[FLAG_KEEP_MASK];
    coding_of.wide_bits   = side_bits_t'(h.wide_bits);
    coding_of.wide_shift  = code_shift_t'(h.wide_shift);
  endfunction

  // Limits of a code: which bits of a value, shifted, must equal its sign, and the codes beyond which it is clamped.
  typedef struct packed {
    logic                  is_signed;
    logic [VALUE_BITS:0]   beyond;
    logic [15:0]           least;
    logic [15:0]           most;
  } limits_t;

  function automatic limits_t limits_of(input bits_t bits, input logic is_signed);
    limits_of.is_signed = is_signed;
    limits_of.beyond    = {VALUE_BITS + 1{1'b1}} << (bits - bits_t'(is_signed));
    limits_of.least     = is_signed ? 16'hFFFF << (bits - bits_t'(1)) : '0;
    limits_of.most      = ~(16'hFFFF << (bits - bits_t'(is_signed)));
  endfunction

  // What an element leaves in CODES.
  typedef struct packed {
    logic [MAX_SIDE_BITS-1:0] wide;
    logic                     mask;
    logic [MAX_SIDE_BITS-1:0] keep;
    logic [MAX_BITS-1:0]      out;
  } element_t;

  // Some pixels of an output channel on their way through the epilogue: all pixels in SLICES of them, in turn.
  localparam int unsigned SLICES = LANES / EPILOGUE_LANES;
  localparam int unsigned MOMENT_ENTRIES = MAX_OUT_GROUPS * CHANNELS;
  typedef logic [$clog2(MOMENT_ENTRIES)-1:0] moment_entry_t;
  typedef struct packed {
    logic                      codes;    // leaves codes
    logic                      moments;  // takes part in the moments
    logic                      records;  // with its values, else with x
    logic                      crossed;    // products with SIDE, else squares
    coding_t                   coding;
    channel_t                  channel;  // of the tile
    logic [3:0]                slice;
    moment_entry_t             entry;    // channel of the packet
    logic                      first;    // of the packet's tiles with this channel
    logic                      last;     // last slice of the packet
    logic [EPILOGUE_LANES-1:0] counts;   // pixels that count in the moments
  } portion_t;

  // Random numbers that a tile will need, known when it begins.
  typedef struct packed {
    logic [31:0]      key;
    index_t           index;           // of the tile's first channel and segment
    logic [31:0]      channel_stride;
    logic [31:0]      image_stride;
    logic [LANES-1:0] segment_start;
    logic [15:0]      factor;
  } random_t;

  // Elements of SIDE and ADDED at every place of a tile, plane by plane, sign or zero above their highest; the mask.
  typedef struct packed {
    logic [ROW_BITS-1:0]                    mask;
    logic [MAX_SIDE_BITS-1:0][ROW_BITS-1:0] added;
    logic [MAX_SIDE_BITS-1:0][ROW_BITS-1:0] side;
  } operands_t;

  // The same for one pixel and channel.
  typedef struct packed {
    logic                     mask;
    logic [MAX_SIDE_BITS-1:0] added;
    logic [MAX_SIDE_BITS-1:0] side;
  } operand_t;

  // Where a finished tile goes.
  typedef struct packed {
    logic             wgrad;
    logic             codes;
    logic             moments;
    logic             records;
    logic             crossed;
    logic             wide;      // INT64
    logic             with_sum;
    logic             clear;
    coding_t          coding;
    logic             paced;     // random numbers come as fast as slices go
    address_t         entry;     // first accumulator entry, or first epilogue entry
    moment_entry_t    channel;   // first output channel
    logic             first;     // first tile of its output group
    logic             last;      // last tile of the packet
    logic [LANES-1:0] counts;    // pixels that count in the moments
    logic [31:0]      position;
  } tile_t;
endpackage

`default_nettype wire
