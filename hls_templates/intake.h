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
    Write held;  // taken from the FIFO, not stored yet
};

// Obey the write that is held, which is none of E.
inline void store(OperandBuffers& buffers, Intake& intake) {
#pragma HLS INLINE
    const Write& write = intake.held;
    intake.holding = false;
    if (write.target == 0) {
        ++intake.ended;
        intake.error = write.error;
    }
    if ((write.target & TARGET_W) != 0) {
        buffers.w[write.other][write.word] = write.data[0];
        buffers.w[write.other][write.word + 1] = write.data[1];
    }
    if ((write.target & TARGET_A) != 0) buffers.a_any[write.bank][write.address] = write.any;
    if ((write.target & TARGET_G) != 0) buffers.g_any[write.bank][write.other] = write.any;
    for (unsigned word = 0; word < ROW_WORDS; ++word) {
#pragma HLS UNROLL
        if ((write.target & TARGET_A) != 0) buffers.a[write.bank][write.address][word] = write.data[word];
        if ((write.target & TARGET_G) != 0) buffers.g[write.bank][write.other][word] = write.data[word];
    }
}

// In each cycle of a product: one write, if it has come and may happen before this product is done.  The product does
// not wait for one, hence the read that does not block.
inline void absorb(OperandBuffers& buffers, WriteStream& writes, Intake& intake) {
#pragma HLS INLINE
    if (!intake.holding) intake.holding = writes.read_nb(intake.held);
    if (intake.holding && intake.held.after <= intake.products) store(buffers, intake);
}

// The rest of a LOAD; entries of E go on to the process that applies them.
inline uint32_t finish_load(OperandBuffers& buffers, const Header& h, WriteStream& writes, CommandStream& commands,
                            LineStream& lines, Intake& intake) {
    while (intake.ended == 0) {
#pragma HLS PIPELINE II = 1
        if (!intake.holding) intake.held = writes.read();
        const Write& write = intake.held;
        if (write.target == TARGET_E) {
            intake.holding = false;
            Line line = {};
            line.value[0] = sign_extend(write.data[0], MULTIPLIER_BITS);
            line.value[1] = sign_extend(write.data[1], ACC_BITS);
            lines.write(line);
            commands.write(make_command(COMMAND_ENTRY, h, 0, 0, write.other));
        } else {
            store(buffers, intake);
        }
    }
    --intake.ended;
    return intake.ended == 0 ? intake.error : ERR_NONE;
}

}  // namespace kernel
