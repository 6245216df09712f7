// SPDX-License-Identifier: Apache-2.0
// The result port: beats to the streams that the design has.
#pragma once

#include "streams.h"

#if !defined(FABRIC_LIGHT_STREAM)

namespace kernel {

#define RESULT_ARGUMENT(name) , OutStream& name
#define RESULT_NAME(name) , name

// A beat on one stream, or on two in lockstep.
inline void put(const ResultBeat& beat, OutStream& out) {
#pragma HLS INLINE
    out.write(make_word(beat.even, false));
    out.write(make_word(beat.odd, beat.last));
}

inline void put(const ResultBeat& beat, OutStream& even, OutStream& odd) {
#pragma HLS INLINE
    even.write(make_word(beat.even, beat.last));
    odd.write(make_word(beat.odd, beat.last));
}

// All results of one program.
inline void result_port(ResultStream& results RESULT_STREAMS(RESULT_ARGUMENT)) {
    bool last = false;
    while (!last) {
#pragma HLS PIPELINE II = BEAT_INTERVAL
        const ResultBeat beat = unpack<ResultBeat>(results.read());
        put(beat RESULT_STREAMS(RESULT_NAME));
        last = beat.last;
    }
}

}  // namespace kernel

#endif
