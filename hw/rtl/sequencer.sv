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
    // operands of the epilogue: set up; tiles with an epilogue are computed, the last step of one is decided; all asked for
    output logic                  side_start_o,
    output logic                  side_active_o,
    output logic                  side_next_o,
    input  wire                   side_done_i,
    output index_t                tile_index_o,   // random index of the tile
    // the drain holds a tile: the next one must not end yet; it has just taken one
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
  typedef enum logic [2:0] {IDLE, SETUP1, SETUP2, SEARCH, TILE, RUN, JOB} state_t;
  state_t state_q;

  header_t h;
  assign h = command_i.header;
  product_t product;  // of a command that is neither READ nor END
  logic is_conv, stride;
  assign product = h.opcode == OP_CONV ? PRODUCT_CONV : PRODUCT_WGRAD;
  assign is_conv = product == PRODUCT_CONV;
  assign stride  = is_conv && h.flags[FLAG_STRIDE_2];

  // ---- constants of the command --------------------------------------------------------------------------------
  logic [7:0]  blocks_q;       // blocks of eight rows per image
  logic [11:0] a_stride_q;     // groups * a_bits: one block of rows
  logic [11:0] b_stride_q;     // groups * b_bits (weights), or out_groups * b_bits (gradient)
  logic [13:0] inner_q;        // steps of a plane pair
  logic [22:0] full_q, full_ones_q;  // steps of a tile without skipping
  logic [15:0] a_found_q, b_found_q; // planes that may be other than zero
  logic        search_g_q;           // A is done, G is searched
  logic [16:0] search_q;
  logic [4:0]  search_plane_q;

  // ---- position ------------------------------------------------------------------------------------------------
  logic [6:0]  image_q, group_q, out_group_q;
  logic [10:0] row_q;
  logic [3:0]  tap_q;
  logic [16:0] a_outer_q, b_outer_q, a_offset_q, b_offset_q, entry_q;
  logic [31:0] row_index_q, tile_index_q;  // random index of the row, of the tile
  logic [13:0] n_q;            // inner step
  logic [7:0]  block_q;        // block of the inner step (weight gradient)
  logic [4:0]  diagonal_q;
  logic [15:0] pairs_q;        // pairs (i, diagonal - i) still to do
  logic        first_q, shift_q;
  logic        pending_q;      // a finished tile is on its way to the drain

  logic ones;
  assign ones = !is_conv && group_q == h.groups[6:0];
  logic [4:0] a_bits;
  assign a_bits = ones ? 5'd1 : h.a_bits[4:0];
  logic [15:0] a_planes;
  assign a_planes = ones ? 16'd1 : h.a_planes & a_found_q;
  logic [15:0] b_planes;
  assign b_planes = h.b_planes & b_found_q;
  logic sums;
  assign sums = !is_conv || h.flags[FLAG_A_SUM];

  // pairs to compute on a diagonal, as a mask over i
  function automatic logic [15:0] pairs_of(input logic [4:0] diagonal);
    for (int unsigned i = 0; i < 16; i++) begin
      automatic logic [5:0] j = {1'b0, diagonal} - 6'(i);
      pairs_of[i] = !j[5] && !j[4] && a_planes[i] && (b_planes[j[3:0]] || (j == 0 && sums));
    end
  endfunction

  logic [3:0] i_sel, j_sel;
  logic [15:0] pairs_left;
  always_comb begin
    i_sel = '0;
    for (int unsigned i = 0; i < 16; i++) if (pairs_q[i]) i_sel = 4'(i);
    j_sel = 4'(diagonal_q - 5'(i_sel));
    pairs_left = pairs_q;
    pairs_left[i_sel] = 1'b0;
  end

  logic bubble, inner_last, pair_last, tile_last;
  assign bubble     = pairs_q == 0;
  assign inner_last = bubble || n_q == inner_q - 14'd1;
  assign pair_last  = inner_last && pairs_left == 0;
  assign tile_last  = pair_last && diagonal_q == 0;

  logic issue;
  assign issue = state_q == RUN && !(tile_last && (pending_q || drain_busy_i || !side_done_i));
  assign wait_drain_o = state_q == RUN && !issue;
  assign busy_o = issue;
  assign side_start_o  = state_q == SETUP1;
  assign side_active_o = state_q == RUN && is_conv && (h.format == FORMAT_CODES || h.format == FORMAT_MOMENTS);
  assign side_next_o   = side_active_o && issue && tile_last;
  assign tile_index_o  = tile_index_q;

  // ---- what exists around this step ------------------------------------------------------------------------------
  logic [2:0] conv_row_valid;
  assign conv_row_valid = {stride || row_q != 11'(h.rows) - 11'd1, 1'b1, row_q != 0};
  logic signed [11:0] rows_left;  // rows from the block's first to the image's last
  assign rows_left = $signed({1'b0, h.rows[10:0]}) - $signed({1'b0, block_q, 3'b000});
  logic [1:0] dy, dx;
  assign dy = 2'(tap_q / 3);
  assign dx = 2'(tap_q % 3);
  logic [7:0] bank_valid;
  always_comb
    for (int unsigned b = 0; b < 8; b++) begin
      automatic logic [2:0] t = 3'(b + 1 - 32'(dy));         // row within the block of the gradient
      automatic logic signed [11:0] a_row = $signed({9'd0, t}) + $signed({10'd0, dy}) - 12'sd1;
      bank_valid[b] = $signed({9'd0, t}) < rows_left && a_row < rows_left && !(block_q == 0 && a_row < 0);
    end

  logic [16:0] a_address, b_address, block_before;
  assign a_address = a_outer_q + a_offset_q + 17'(i_sel);
  assign block_before = a_address - 17'(a_stride_q);
  assign b_address = b_outer_q + b_offset_q + 17'(j_sel);
  logic row_before, row_after;  // bank 7 (and 6) holds the row before the block, bank 0 the row after it
  assign row_before = !is_conv ? dy == 2'd0 : stride ? !row_q[0] : row_q[2:0] == 3'd0;
  assign row_after = !is_conv ? dy == 2'd2 : !stride && row_q[2:0] == 3'd7;

  logic row_end, command_last;
  // taps of the weight gradient, by rising number
  logic [8:0] taps_left;
  logic [3:0] first_tap, next_tap;
  always_comb begin
    taps_left = h.taps[8:0] & (9'h1FE << tap_q);
    first_tap = '0;
    next_tap  = '0;
    for (int t = 8; t >= 0; t--) begin
      if (h.taps[t]) first_tap = 4'(t);
      if (taps_left[t]) next_tap = 4'(t);
    end
    row_end = out_group_q == h.out_groups[6:0] - 7'd1;
    if (is_conv) command_last = row_end && row_q == h.rows[10:0] - 11'd1 && image_q == h.images[6:0] - 7'd1;
    else
      command_last = row_end && taps_left == 0 && group_q == h.groups[6:0] - 7'(!h.flags[FLAG_ONES]);
  end

  // ---- outputs, registered: addresses first, the step one cycle later ---------------------------------------------
  step_t step_d;
  tile_t tile_d;
  step_t [STEP_CYCLES-1:0] step_q;
  tile_t [STEP_CYCLES-1:0] tile_q;
  always_comb begin
    step_d = '0;
    step_d.valid         = issue;
    step_d.first         = first_q;
    step_d.shift         = shift_q;
    step_d.negative      = (h.flags[FLAG_A_SIGNED] && !ones && 5'(i_sel) == a_bits - 5'd1)
                         ^ (h.flags[FLAG_B_SIGNED] && 8'(j_sel) == h.b_bits - 8'd1);
    step_d.sum_valid     = j_sel == 0;
    step_d.sum_negative  = h.flags[FLAG_A_SIGNED] && !ones && 5'(i_sel) == a_bits - 5'd1;
    step_d.last          = tile_last;
    step_d.bubble        = bubble;
    step_d.zero_b        = !b_planes[j_sel];
    step_d.wgrad         = product == PRODUCT_WGRAD;
    step_d.ones          = ones;
    step_d.row           = row_q[2:0];
    step_d.stride        = stride;
    step_d.row_valid     = conv_row_valid;
    step_d.dx            = dx;
    step_d.dy            = dy;
    step_d.bank_valid    = bank_valid;
    step_d.segment_start = h.segment_start[LANES-1:0];
    tile_d = '0;
    tile_d.wgrad    = product == PRODUCT_WGRAD;
    tile_d.codes    = is_conv && h.format == FORMAT_CODES;
    tile_d.moments  = is_conv && h.format == FORMAT_MOMENTS;
    tile_d.records  = tile_d.codes && h.flags[FLAG_RECORDS];
    tile_d.crossed    = tile_d.moments && h.flags[FLAG_CROSS];
    tile_d.wide     = h.format == FORMAT_INT64;
    tile_d.with_sum = !is_conv || (h.flags[FLAG_A_SUM] && out_group_q == 0);
    tile_d.clear    = h.flags[FLAG_CLEAR];
    tile_d.coding   = coding_of(h);
    tile_d.paced    = h.segment_start[LANES-1:0] == LANES'(1);
    tile_d.entry    = entry_q;
    tile_d.channel  = moment_entry_t'(32'(out_group_q) * CHANNELS);
    tile_d.first    = row_q == 0 && image_q == 0;
    tile_d.last     = command_last;
    tile_d.counts   = 16'(row_q) >= h.first_row && 16'(row_q) < h.last_row ? h.valid[LANES-1:0] : '0;
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
    if (row_before && stride) a_address_q[6] <= AW'(block_before);
    if (row_after) a_address_q[0] <= AW'(a_address + 17'(a_stride_q));
    w_address_q <= WW'(b_address);
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
  logic [4:0] top_diagonal;
  assign top_diagonal = 5'(6'(a_bits) + h.b_bits[5:0] - 6'd2);
  logic job_open_q;
  assign job_valid_o = state_q == JOB && drain_idle_i && !job_open_q;
  assign job_o = command_i;
  assign retire_o = (issue && tile_last && command_last) || (state_q == JOB && job_done_i)
                 || (fault_i && command_valid_i && h.opcode != OP_END && state_q == IDLE);
  assign skipped_valid_o = issue;
  assign skipped_o = tile_last ? 32'(ones ? full_ones_q : full_q) - 32'd1 : 32'hFFFF_FFFF;

  logic [16:0] b_tile_step;
  assign b_tile_step = is_conv ? 17'(b_stride_q) : 17'(h.b_bits);

  logic last_row;
  assign last_row = row_q == h.rows[10:0] - 11'd1;
  assign flag_address_o = search_q;

  always_ff @(posedge clk_i) begin
    unique case (state_q)
      IDLE:
        if (command_valid_i) begin
          if (h.opcode == OP_READ || h.opcode == OP_END) begin
            if (!fault_i || h.opcode == OP_END) state_q <= JOB;
          end else if (!fault_i) state_q <= SETUP1;
        end
      SETUP1: begin
        blocks_q    <= 8'((h.rows[10:0] + 11'd7) >> 3);
        a_stride_q  <= 12'(times(14'(h.groups[6:0]), h.a_bits[4:0]));
        b_stride_q  <= 12'(times(14'(is_conv ? h.groups[6:0] : h.out_groups[6:0]), h.b_bits[4:0]));
        a_found_q   <= {16{!h.flags[FLAG_SKIP_ZERO]}};
        b_found_q   <= {16{is_conv || !h.flags[FLAG_SKIP_ZERO]}};
        search_g_q  <= 1'b0;
        search_q    <= 17'(h.base_a);
        search_plane_q <= '0;
        row_index_q <= h.index;
        tile_index_q <= h.index;
        image_q     <= '0;
        group_q     <= '0;
        out_group_q <= '0;
        row_q       <= '0;
        tap_q       <= is_conv ? 4'd4 : first_tap;
        a_outer_q   <= 17'(h.base_a);
        b_outer_q   <= 17'(h.base_b);
        entry_q     <= is_conv ? 17'(h.base_epilogue) : 17'(h.base_accumulator);
        state_q     <= SETUP2;
      end
      SETUP2: begin
        inner_q <= is_conv ? 14'(h.groups) : 14'(h.images[6:0]) * 14'(blocks_q);
        state_q <= h.flags[FLAG_SKIP_ZERO] ? SEARCH : TILE;
      end
      SEARCH: begin
        search_q <= search_q + 17'd1;
        search_plane_q <= search_plane_q + 5'd1;
        if (search_g_q) begin
          b_found_q[search_plane_q[3:0]] <= b_found_q[search_plane_q[3:0]] || flag_g_i;
          if (8'(search_plane_q) == h.b_bits - 8'd1) search_plane_q <= '0;
          if (search_q == command_i.b_end - 17'd1) state_q <= TILE;
        end else begin
          a_found_q[search_plane_q[3:0]] <= a_found_q[search_plane_q[3:0]] || flag_a_i;
          if (8'(search_plane_q) == h.a_bits - 8'd1) search_plane_q <= '0;
          if (search_q == command_i.a_end - 17'd1) begin
            search_plane_q <= '0;
            search_g_q     <= 1'b1;
            search_q       <= 17'(h.base_b);
            if (is_conv) state_q <= TILE;
          end
        end
      end
      TILE: begin  // first tile of a command
        full_q      <= 23'(inner_q) * 23'(times(14'(h.a_bits[4:0]), h.b_bits[4:0]));
        full_ones_q <= 23'(times(inner_q, h.b_bits[4:0]));
        diagonal_q  <= top_diagonal;
        pairs_q     <= pairs_of(top_diagonal);
        first_q     <= 1'b1;
        shift_q     <= 1'b0;
        n_q         <= '0;
        block_q     <= '0;
        a_offset_q  <= '0;
        b_offset_q  <= '0;
        state_q     <= RUN;
      end
      RUN:
        if (issue) begin
          first_q <= 1'b0;
          shift_q <= 1'b0;
          n_q     <= n_q + 14'd1;
          block_q <= block_q == blocks_q - 8'd1 ? '0 : block_q + 8'd1;
          a_offset_q <= a_offset_q + (is_conv ? 17'(h.a_bits) : 17'(a_stride_q));
          b_offset_q <= b_offset_q + (is_conv ? 17'(h.b_bits) : 17'(b_stride_q));
          if (inner_last) begin
            n_q        <= '0;
            block_q    <= '0;
            a_offset_q <= '0;
            b_offset_q <= '0;
            pairs_q    <= pairs_left;
          end
          if (pair_last) begin
            diagonal_q <= diagonal_q - 5'd1;
            pairs_q    <= pairs_of(diagonal_q - 5'd1);
            shift_q    <= 1'b1;
          end
          if (tile_last) begin
            first_q    <= 1'b1;
            shift_q    <= 1'b0;
            diagonal_q <= top_diagonal;
            pairs_q    <= pairs_of(top_diagonal);
            if (is_conv) begin
              out_group_q <= row_end ? '0 : out_group_q + 7'd1;
              b_outer_q   <= row_end ? 17'(h.base_b) : b_outer_q + b_tile_step;
              entry_q     <= row_end ? 17'(h.base_epilogue) : entry_q + 17'(CHANNELS);
              tile_index_q <= tile_index_q + h.channel_stride * CHANNELS;
              if (row_end) begin
                row_index_q  <= row_index_q + h.row_stride;
                tile_index_q <= row_index_q + h.row_stride;
                row_q <= row_q + 11'd1;
                if (last_row) begin
                  row_q   <= '0;
                  image_q <= image_q + 7'd1;
                end
                if (last_row || (stride ? row_q[0] : row_q[2:0] == 3'd7)) a_outer_q <= a_outer_q + 17'(a_stride_q);
              end
            end else begin
              entry_q <= entry_q + 17'(CHANNELS + 1);
              tap_q   <= next_tap;
              if (taps_left == 0) begin
                tap_q <= first_tap;
                if (group_q == h.groups[6:0] - 7'(!h.flags[FLAG_ONES])) begin
                  group_q     <= '0;
                  out_group_q <= out_group_q + 7'd1;
                  a_outer_q   <= 17'(h.base_a);
                  b_outer_q   <= b_outer_q + b_tile_step;
                end else begin
                  group_q   <= group_q + 7'd1;
                  a_outer_q <= a_outer_q + 17'(h.a_bits);
                end
                // the precision changes at the border between a group of data and the group of ones
                if (h.flags[FLAG_ONES]) state_q <= TILE;
              end
            end
            if (command_last) state_q <= IDLE;
          end
        end
      JOB: if (job_done_i) state_q <= IDLE;
      default: state_q <= IDLE;
    endcase

    if (job_valid_o) job_open_q <= 1'b1;
    if (job_done_i) job_open_q <= 1'b0;
    if (issue && tile_last) pending_q <= 1'b1;
    else if (drain_capture_i) pending_q <= 1'b0;
    if (fault_i && state_q != JOB && state_q != IDLE) begin
      state_q   <= IDLE;
      pending_q <= 1'b0;
    end
    if (rst_i) begin
      state_q    <= IDLE;
      pending_q  <= 1'b0;
      job_open_q <= 1'b0;
    end
  end

`ifndef SYNTHESIS
  // what is neither READ nor END is a product
  a_product: assert property (@(posedge clk_i) disable iff (rst_i) state_q != IDLE && state_q != JOB |-> h.opcode == OP_CONV || h.opcode == OP_WGRAD);
  // only a command that is there is removed
  a_retire: assert property (@(posedge clk_i) disable iff (rst_i) retire_o |-> command_valid_i);
  // a command stays until it is removed
  a_command_waits: assert property (@(posedge clk_i) disable iff (rst_i) command_valid_i && !retire_o |=> command_valid_i);
`endif
endmodule

`default_nettype wire
