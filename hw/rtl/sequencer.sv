// SPDX-License-Identifier: Apache-2.0
// Precision scheduling: walks images, rows, channel groups and taps of one command, and for every tile the pairs of
// bit planes by falling anti-diagonals, one array step per cycle.  Planes that the packet masks out, or that are zero
// throughout the buffer, take no time.
`default_nettype none

module sequencer
  import fabric_pkg::*;
  import engine_pkg::*;
#(
    localparam int unsigned AW = $clog2(DEPTH_A),
    localparam int unsigned GW = $clog2(DEPTH_G),
    localparam int unsigned WW = $clog2(DEPTH_W)
) (
    input  wire                   clk_i,
    input  wire                   rst_i,
    // command at the head of the queue; retire_o removes it
    input  wire                   command_valid_i,
    input  wire command_t         command_i,
    output logic                  retire_o,
    // buffers, addresses one cycle ahead of the step
    output logic                  read_o,
    output logic [7:0][AW-1:0]    a_address_o,
    output logic [7:0][GW-1:0]    g_address_o,
    output logic [WW-1:0]         w_address_o,
    // search for zero planes: whether anything is set at an address of A or G
    output logic [16:0]           flag_address_o,
    input  wire                   flag_a_i,
    input  wire                   flag_g_i,
    // array step, with the buffers' addresses and with their data; the tile that the step belongs to
    output step_t                 next_step_o,
    output step_t                 step_o,
    output tile_t                 tile_o,
    // operands of the epilogue: set up; tiles with an epilogue are or will be computed, one ends; all of its operands are asked for
    output logic                  side_start_o,
    output logic                  side_active_o,
    output logic                  side_next_o,
    input  wire                   side_done_i,
    output index_t                tile_index_o,   // random index of the tile
    // the drain holds a tile: the next one must not end PERMIT_CYCLES later; it has just taken one
    input  wire                   drain_busy_i,
    input  wire                   drain_capture_i,
    // READ and END run in the drain once it is idle
    output logic                  job_valid_o,
    output command_t              job_o,
    input  wire                   job_done_i,
    input  wire                   drain_idle_i,
    // a weight gradient left its range: drop everything up to END
    input  wire                   fault_i,
    output logic                  busy_o,
    output logic                  wait_drain_o,
    output logic                  skipped_valid_o,
    output logic [31:0]           skipped_o
);
  typedef enum logic [3:0] {IDLE, SETUP1, SEARCH, SEARCHED, SETUP2, TOP, BEGIN, FIRST, RUN, JOB} state_t;
  state_t state_q;
  logic   begin_q, first_q;  // states BEGIN and FIRST, asked in every cycle
  logic   run_q;             // steps are issued

  header_t h;
  assign h = command_i.header;
  product_t product_q;  // of a command that is neither READ nor END
  logic is_conv, stride_q;
  assign is_conv = product_q == PRODUCT_CONV;
  always_ff @(posedge clk_i) begin  // in the cycle in which the command is seen
    product_q <= h.opcode == OP_CONV ? PRODUCT_CONV : PRODUCT_WGRAD;
    stride_q  <= h.opcode == OP_CONV && h.flags[FLAG_STRIDE_2];
  end

  // ---- constants of the command --------------------------------------------------------------------------------
  logic [7:0]  blocks_q;       // blocks of eight rows per image
  parts_t      a_parts_q, b_parts_q, width_parts_q, ones_parts_q;
  logic [11:0] a_stride_q;     // groups * a_bits: one block of rows
  logic [11:0] b_stride_q;     // groups * b_bits (weights), or out_groups * b_bits (gradient)
  logic [16:0] a_step_q, b_step_q;   // addresses from one step of a pair to the next
  logic [16:0] b_tile_q;             // addresses of the second operand from one tile to the next
  bits_t       a_top_q, b_top_q;     // highest planes
  logic [8:0]  widths_q;             // a_bits * b_bits
  logic [13:0] image_blocks_q; // images * blocks
  logic [13:0] inner_q;        // steps of a plane pair
  logic        inner_one_q;    // there is one
  logic [22:0] full_q, full_ones_q;  // steps of a tile without skipping
  logic [15:0] a_found_q, b_found_q; // planes that may be other than zero
  logic [15:0] a_planes, b_planes;
  logic        sums;
  assign a_planes = h.a_planes & a_found_q;
  assign b_planes = h.b_planes & b_found_q;
  assign sums     = !is_conv || h.flags[FLAG_A_SUM];

  // ---- tiles: where each lies, told some cycles ahead ----------------------------------------------------------
  tile_place_t at, next_at;
  logic        tile_end, command_last;
  tile_walk i_walk (
      .clk_i, .start_i(state_q == SETUP1), .header_i(h), .a_stride_i(17'(a_stride_q)),
      .b_tile_i(b_tile_q), .next_i(tile_end), .at_o(at), .last_o(command_last), .next_o(next_at)
  );

  // ---- pairs of planes of a tile -------------------------------------------------------------------------------
  plane_pair_t pair;
  logic        pair_end, next_bubble, next_ones_q, to_next_tile;
  logic [3:0]  ended_q;   // a tile has ended so long ago; next_ones_q then is of the tile after the present one
  always_ff @(posedge clk_i) begin
    next_ones_q <= (run_q || first_q || begin_q) && next_at.ones;  // never a command's first tile
    ended_q     <= {ended_q[2:0], tile_end};
  end
  plane_pairs i_pairs (
      .clk_i, .a_planes_i(a_planes), .b_planes_i({b_planes[15:1], b_planes[0] || sums}), .a_bits_i(bits_t'(h.a_bits)),
      .b_bits_i(bits_t'(h.b_bits)), .restart_i(begin_q), .next_i(pair_end || first_q),
      .ones_i(next_ones_q), .settled_i(ended_q[3] && run_q), .pair_o(pair), .last_o(to_next_tile), .next_bubble_o(next_bubble)
  );
  logic [3:0] j;
  assign j = 4'(pair.diagonal - diagonal_t'(pair.i));

  // ---- steps of a pair -----------------------------------------------------------------------------------------
  logic [16:0] a_line_q, b_line_q;  // address of plane 0
  logic [13:0] left_q;         // steps after this one
  logic        left_none_q;    // none, or the pair is a bubble
  logic        begins_q;       // this step is the pair's first
  logic [7:0]  block_q;        // block of the inner step (weight gradient)
  logic        pending_q;      // a finished tile is on its way to the drain, or has arrived while busy_q does not tell so yet
  logic        captured_q, busy_q, pending_d;
  logic        waits_q;        // a tile is pending, or operands of the epilogue are left to be read
  logic        tile_last, hold, issue;
  always_ff @(posedge clk_i) begin
    captured_q  <= drain_capture_i;
    busy_q      <= drain_busy_i;
    pending_q   <= pending_d;
    waits_q     <= pending_d || !side_done_i;
  end
  if (PERMIT_CYCLES != 1) begin : gen_check_permit
    $error("sequencer: PERMIT_CYCLES = %0d, must be 1: the register busy_q", PERMIT_CYCLES);
  end
  assign tile_last = pair.last && left_none_q;
  assign hold      = waits_q || busy_q;
  // written out, so that each is one LUT
  assign issue     = run_q && !(pair.last && left_none_q && hold);
  assign pair_end  = run_q && left_none_q && !(pair.last && hold);
  assign tile_end  = run_q && left_none_q && pair.last && !hold;

  // ---- what exists around this step ------------------------------------------------------------------------------
  logic [2:0] conv_row_valid;
  assign conv_row_valid = {stride_q || at.row != 11'(h.rows) - 11'd1, 1'b1, at.row != 0};
  logic signed [11:0] rows_left;  // rows from the block's first to the image's last
  assign rows_left = $signed({1'b0, h.rows[10:0]}) - $signed({1'b0, block_q, 3'b000});
  logic [7:0] bank_valid;
  always_comb
    for (int unsigned b = 0; b < 8; b++) begin
      automatic logic [2:0] t = 3'(b + 1 - 32'(at.dy));      // row within the block of the gradient
      automatic logic signed [11:0] a_row = $signed({9'd0, t}) + $signed({10'd0, at.dy}) - 12'sd1;
      bank_valid[b] = $signed({9'd0, t}) < rows_left && a_row < rows_left && !(block_q == 0 && a_row < 0);
    end

  logic [16:0] a_address, b_address, block_before;
  assign a_address = a_line_q + 17'(pair.i);
  assign block_before = a_address - 17'(a_stride_q);
  assign b_address = b_line_q + 17'(j);
  logic row_before, row_after;  // bank 7 (and 6) holds the row before the block, bank 0 the row after it
  assign row_before = !is_conv ? at.dy == 2'd0 : stride_q ? !at.row[0] : at.row[2:0] == 3'd0;
  assign row_after = !is_conv ? at.dy == 2'd2 : !stride_q && at.row[2:0] == 3'd7;

  // ---- outputs, registered: addresses first, the step one cycle later ---------------------------------------------
  step_t step_d;
  tile_t tile_d;
  logic [LANES-1:0] counts_q;  // known when a tile ends
  step_t [STEP_CYCLES-1:0] step_q;
  tile_t [STEP_CYCLES-1:0] tile_q;
  logic a_sign;
  assign a_sign = h.flags[FLAG_A_SIGNED] && !at.ones && bits_t'(pair.i) == a_top_q;
  always_comb begin
    step_d = '0;
    step_d.valid         = issue;
    step_d.first         = pair.first && begins_q;
    step_d.shift         = pair.shift && begins_q;
    step_d.negative      = a_sign ^ (h.flags[FLAG_B_SIGNED] && bits_t'(j) == b_top_q);
    step_d.sum_valid     = j == 0;
    step_d.sum_negative  = a_sign;
    step_d.last          = tile_last;
    step_d.bubble        = pair.bubble;
    step_d.zero_b        = j == 0 && !b_planes[0];  // no other plane is taken for the sums alone
    step_d.wgrad         = product_q == PRODUCT_WGRAD;
    step_d.ones          = at.ones;
    step_d.row           = at.row[2:0];
    step_d.stride        = stride_q;
    step_d.row_valid     = conv_row_valid;
    step_d.dx            = at.dx;
    step_d.dy            = at.dy;
    step_d.bank_valid    = bank_valid;
    step_d.segment_start = h.segment_start[LANES-1:0];
    tile_d = '0;
    tile_d.wgrad    = product_q == PRODUCT_WGRAD;
    tile_d.codes    = is_conv && h.format == FORMAT_CODES;
    tile_d.moments  = is_conv && h.format == FORMAT_MOMENTS;
    tile_d.records  = tile_d.codes && h.flags[FLAG_RECORDS];
    tile_d.crossed    = tile_d.moments && h.flags[FLAG_CROSS];
    tile_d.wide     = h.format == FORMAT_INT64;
    tile_d.with_sum = !is_conv || (h.flags[FLAG_A_SUM] && at.out_group == 0);
    tile_d.clear    = h.flags[FLAG_CLEAR];
    tile_d.coding   = coding_of(h);
    tile_d.paced    = h.segment_start[LANES-1:0] == LANES'(1);
    tile_d.entry    = at.entry;
    tile_d.channel  = moment_entry_t'(32'(at.out_group) * CHANNELS);
    tile_d.first    = at.row == 0 && at.image == 0;
    tile_d.last     = command_last;
    tile_d.counts   = counts_q;
    tile_d.position = command_i.position;
  end

  logic [7:0][AW-1:0] a_address_q;
  logic [7:0][GW-1:0] g_address_q;
  logic [WW-1:0]      w_address_q;
  always_ff @(posedge clk_i) begin
    for (int unsigned b = 0; b < 8; b++) begin
      a_address_q[b] <= AW'(a_address);
      g_address_q[b] <= GW'(b_address);
    end
    if (row_before) a_address_q[7] <= AW'(block_before);
    if (row_before && stride_q) a_address_q[6] <= AW'(block_before);
    if (row_after) a_address_q[0] <= AW'(a_address + 17'(a_stride_q));
    w_address_q <= WW'(b_address);
    counts_q <= 16'(at.row) >= h.first_row && 16'(at.row) < h.last_row ? h.valid[LANES-1:0] : '0;
    step_q <= {step_q[STEP_CYCLES-2:0], step_d};
    tile_q <= {tile_q[STEP_CYCLES-2:0], tile_d};
    if (rst_i || fault_i) for (int unsigned k = 0; k < STEP_CYCLES; k++) step_q[k].valid <= 1'b0;
  end
  assign read_o      = step_q[0].valid;
  assign a_address_o = a_address_q;
  assign g_address_o = g_address_q;
  assign w_address_o = w_address_q;
  assign next_step_o = step_q[STEP_CYCLES-2];
  assign step_o      = step_q[STEP_CYCLES-1];
  assign tile_o      = tile_q[STEP_CYCLES-1];

  // ---- control ----------------------------------------------------------------------------------------------------
  logic job_open_q, job_valid_q;
  assign job_valid_o = job_valid_q;
  assign job_o = command_i;
  always_ff @(posedge clk_i) begin
    job_valid_q <= state_q == JOB && drain_idle_i && !job_open_q && !rst_i;
    if (state_q == JOB && drain_idle_i) job_open_q <= 1'b1;
    if (job_done_i || rst_i) job_open_q <= 1'b0;
  end
  assign retire_o = (tile_end && command_last) || (state_q == JOB && job_done_i)
                 || (fault_i && command_valid_i && h.opcode != OP_END && state_q == IDLE);

  // Operands of the epilogue: the first tile's are asked for while it is set up, the next one's when a tile ends.  So the
  // drain's answer to a tile's begin is here before the tile can end.
  logic side_active_q;
  (* keep = "true" *) logic side_runs_q;  // run_q too
  assign side_start_o  = state_q == SETUP1;
  assign side_active_o = side_active_q;
  assign side_next_o   = side_runs_q && left_none_q && pair.last && !hold;
  assign tile_index_o  = at.tile_index;
  always_ff @(posedge clk_i) begin
    if (state_q == SETUP2) side_active_q <= is_conv && (h.format == FORMAT_CODES || h.format == FORMAT_MOMENTS);
    if (state_q == FIRST) side_runs_q <= side_active_q;
    if ((tile_end && command_last) || fault_i || rst_i) {side_active_q, side_runs_q} <= '0;
  end

  // counted a cycle later
  always_ff @(posedge clk_i) begin
    busy_o          <= issue;
    wait_drain_o    <= run_q && !issue;
    skipped_valid_o <= issue;
    skipped_o       <= tile_last ? 32'(at.ones ? full_ones_q : full_q) - 32'd1 : 32'hFFFF_FFFF;
  end

  // search for planes that are zero throughout; what was found at an address is known a cycle later
  logic        search_g_q, search_plane_last, search_last;  // A is done, G is searched
  logic [16:0] search_q, a_last_q, b_last_q;
  bits_t       search_plane_q;
  logic [1:0]  found_q;        // of A, of G
  logic [3:0]  found_plane_q;
  assign flag_address_o    = search_q;
  assign search_plane_last = search_plane_q == (search_g_q ? b_top_q : a_top_q);
  assign search_last       = search_q == (search_g_q ? b_last_q : a_last_q);
  always_ff @(posedge clk_i) begin
    a_last_q      <= command_i.a_end - 17'd1;
    b_last_q      <= command_i.b_end - 17'd1;
    found_q       <= {2{state_q == SEARCH}} & {search_g_q, !search_g_q};
    found_plane_q <= search_plane_q[3:0];
    if (found_q[0]) a_found_q[found_plane_q] <= a_found_q[found_plane_q] || flag_a_i;
    if (found_q[1]) b_found_q[found_plane_q] <= b_found_q[found_plane_q] || flag_g_i;
    if (state_q == SEARCH) begin
      search_q       <= search_last ? 17'(h.base_b) : search_q + 17'd1;
      search_plane_q <= search_last || search_plane_last ? '0 : search_plane_q + bits_t'(1);
      search_g_q     <= search_g_q || search_last;
    end
    if (state_q == SETUP1) begin
      a_found_q      <= {16{!h.flags[FLAG_SKIP_ZERO]}};
      b_found_q      <= {16{is_conv || !h.flags[FLAG_SKIP_ZERO]}};
      search_g_q     <= 1'b0;
      search_q       <= 17'(h.base_a);
      search_plane_q <= '0;
    end
  end

  always_ff @(posedge clk_i) begin
    begin_q <= state_q == TOP;
    first_q <= state_q == BEGIN;
    if (state_q == FIRST) run_q <= 1'b1;
    if (tile_end && command_last) run_q <= 1'b0;
    // settled when the first pair is taken
    blocks_q    <= 8'((h.rows[10:0] + 11'd7) >> 3);
    a_parts_q   <= times(14'(h.groups[6:0]), h.a_bits[4:0]);
    b_parts_q   <= times(14'(is_conv ? h.groups[6:0] : h.out_groups[6:0]), h.b_bits[4:0]);
    width_parts_q <= times(14'(h.a_bits[4:0]), h.b_bits[4:0]);
    ones_parts_q  <= times(inner_q, h.b_bits[4:0]);
    a_stride_q  <= 12'(a_parts_q[0] + a_parts_q[1]);
    b_stride_q  <= 12'(b_parts_q[0] + b_parts_q[1]);
    a_top_q     <= bits_t'(h.a_bits) - bits_t'(1);
    b_top_q     <= bits_t'(h.b_bits) - bits_t'(1);
    widths_q    <= 9'(width_parts_q[0] + width_parts_q[1]);
    a_step_q    <= is_conv ? 17'(h.a_bits) : 17'(a_stride_q);
    b_step_q    <= is_conv ? 17'(h.b_bits) : 17'(b_stride_q);
    b_tile_q    <= is_conv ? 17'(b_stride_q) : 17'(h.b_bits);
    image_blocks_q <= 14'(h.images[6:0]) * 14'(blocks_q);
    inner_q     <= is_conv ? 14'(h.groups) : image_blocks_q;
    inner_one_q <= is_conv ? h.groups == 16'd1 : h.images == 16'd1 && blocks_q == 8'd1;
    full_q      <= 23'(inner_q) * 23'(widths_q);
    full_ones_q <= 23'(ones_parts_q[0] + ones_parts_q[1]);

    unique case (state_q)
      IDLE:
        if (command_valid_i) begin
          if (h.opcode == OP_READ || h.opcode == OP_END) begin
            if (!fault_i || h.opcode == OP_END) state_q <= JOB;
          end else if (!fault_i) state_q <= SETUP1;
        end
      SETUP1:   state_q <= h.flags[FLAG_SKIP_ZERO] ? SEARCH : SETUP2;
      SEARCH:   if (search_last && (is_conv || search_g_q)) state_q <= SEARCHED;
      SEARCHED: state_q <= SETUP2;
      SETUP2:   state_q <= TOP;
      TOP:      state_q <= BEGIN;
      BEGIN:    state_q <= FIRST;
      FIRST:    state_q <= RUN;
      RUN:      if (!run_q) state_q <= IDLE;  // the next command shows no sooner
      JOB:      if (job_done_i) state_q <= IDLE;
      default:  state_q <= IDLE;
    endcase

    // a step that is issued is its pair's last if none is left
    if (issue || first_q) begin
      if (left_none_q || first_q) begin
        left_q      <= inner_q - 14'd1;
        left_none_q <= inner_one_q || next_bubble;
        begins_q    <= 1'b1;
        block_q     <= '0;
        a_line_q    <= to_next_tile && !first_q ? next_at.a_outer : at.a_outer;
        b_line_q    <= to_next_tile && !first_q ? next_at.b_outer : at.b_outer;
      end else begin
        left_q      <= left_q - 14'd1;
        left_none_q <= left_q == 14'd1;
        begins_q    <= 1'b0;
        block_q     <= block_q == blocks_q - 8'd1 ? '0 : block_q + 8'd1;
        a_line_q    <= a_line_q + a_step_q;
        b_line_q    <= b_line_q + b_step_q;
      end
    end

    if (fault_i && state_q != JOB && state_q != IDLE) begin
      state_q <= IDLE;
      run_q   <= 1'b0;
    end
    if (rst_i) begin
      state_q    <= IDLE;
      run_q      <= 1'b0;
      begin_q    <= 1'b0;
      first_q    <= 1'b0;
    end
  end
  always_comb begin
    pending_d = tile_end || (pending_q && !captured_q);
    if (rst_i || (fault_i && state_q != JOB && state_q != IDLE)) pending_d = 1'b0;
  end

`ifndef SYNTHESIS
  a_run: assert property (@(posedge clk_i) disable iff (rst_i) run_q |-> state_q == RUN);
  a_side_runs: assert property (@(posedge clk_i) disable iff (rst_i) side_runs_q == (side_active_q && run_q));
  // what is neither READ nor END is a product
  a_product: assert property (@(posedge clk_i) disable iff (rst_i) state_q != IDLE && state_q != JOB |-> h.opcode == OP_CONV || h.opcode == OP_WGRAD);
  // only a command that is there is removed
  a_retire: assert property (@(posedge clk_i) disable iff (rst_i) retire_o |-> command_valid_i);
  // a command stays until it is removed
  a_command_waits: assert property (@(posedge clk_i) disable iff (rst_i) command_valid_i && !retire_o |=> command_valid_i);
`endif
endmodule

`default_nettype wire
