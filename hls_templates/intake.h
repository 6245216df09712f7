// SPDX-License-Identifier: Apache-2.0
// The engine takes the loader's writes: as many as may happen while a product runs, the rest between products.
#pragma once

#include "buffers.h"
#include "channels.h"
#include "numbers.h"

namespace kernel {

// Where the engine is with the writes that come to it.
struct Intake {
    uint32_t products;  // done
    uint32_t ended;     // LOADs that are stored but whose packets have not been taken
    uint32_t error;     // of the last LOAD that is stored; the loader sends nothing behind one that fails
    bool holding;
    Packed<Write> held;  // taken from the FIFO, not stored yet
};

// A row word into one bank of A or G, if the write is for it.
template <typename Rows, typename Bits>
void store_row(Rows&& rows, Bits&& any, const Write& write, uint32_t target, unsigned bank, uint32_t address) {
#pragma HLS INLINE
    if ((write.target & target) == 0 || write.bank != bank) return;
    any[address] = write.any;
    for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
        rows[address][word] = write.data[word];
    }
}

// Obey the write that is held, which is none of E.
inline void store(OperandBuffers& buffers, Intake& intake) {
#pragma HLS INLINE
    const Write& write = unpack<Write>(intake.held);
    intake.holding = false;
    if (write.target == 0) {
        ++intake.ended;
        intake.error = write.error;
    }
    // every memory has one store, with a number that is constant
    for (unsigned word = 0; word < WEIGHT_WORDS; ++word) {
#pragma HLS UNROLL
        const bool hit = (write.target & TARGET_W) != 0 && write.word == word / 2 * 2;
        if (hit) buffers.w[write.other][word] = write.data[word % 2];
    }
    for (unsigned bank = 0; bank < ROW_BANKS; ++bank) {
#pragma HLS UNROLL
        store_row(buffers.a[bank], buffers.a_any[bank], write, TARGET_A, bank, write.address);
        store_row(buffers.g[bank], buffers.g_any[bank], write, TARGET_G, bank, write.other);
    }
}

// In each cycle of a product: one write, if it has come and may happen before this product is done.  The product does
// not wait for one, hence the read that does not block.
inline void absorb(OperandBuffers& buffers, WriteStream& writes, Intake& intake) {
#pragma HLS INLINE
    if (!intake.holding) intake.holding = try_read(writes, intake.held);
    if (intake.holding && unpack<Write>(intake.held).after <= intake.products) store(buffers, intake);
}

// Half an entry of E, in the order of the words: m, o, n and b, then c and l.
inline void take_entry(const Write& write, Line& line) {
#pragma HLS INLINE
    if (write.word == 0) {
        for (unsigned n = 0; n < 3; ++n) {
#pragma HLS UNROLL
            line.value[n] = sign_extend(write.data[0] >> (n * MULTIPLIER_BITS), MULTIPLIER_BITS);
        }
        line.value[3] = sign_extend(write.data[1], OFFSET_BITS);
    } else {
        line.value[4] = sign_extend(write.data[0], VALUE_OFFSET_BITS);
        line.value[5] = sign_extend(write.data[0] >> VALUE_OFFSET_BITS, MULTIPLIER_BITS);
    }
}

// The rest of a LOAD; entries of E go on to the process that applies them.
inline uint32_t finish_load(OperandBuffers& buffers, WriteStream& writes, CommandStream& commands, LineStream& lines,
                            Intake& intake) {
    Line line;
    for (unsigned k = 0; k < LINE_VALUES; ++k) {
#pragma HLS UNROLL
        line.value[k] = 0;
        line.side[k] = 0;
        line.added[k] = 0;
    }
    while (intake.ended == 0) {
#pragma HLS PIPELINE II = 1
        if (!intake.holding) intake.held = writes.read();
        const Write& write = unpack<Write>(intake.held);
        if (write.target == TARGET_E) {
            intake.holding = false;
            take_entry(write, line);
            if (write.word == 0) continue;
            lines.write(pack(line));
            commands.write(pack(make_command(COMMAND_ENTRY, write.other)));
        } else {
            store(buffers, intake);
        }
    }
    --intake.ended;
    return intake.ended == 0 ? intake.error : ERR_NONE;
}

}  // namespace kernel
