// SPDX-License-Identifier: Apache-2.0
// The kernel's three streams: words of 64 bits, the last of a program with TLAST.
#pragma once

#include "platform.h"

#if defined(FABRIC_LIGHT_STREAM)

struct Word {
    uint64_t data;
    bool last;
};

inline Word make_word(uint64_t data, bool last) {
    return Word{data, last};
}

// Input stream over an array whose last word carries TLAST.
class InStream {
public:
    InStream(const uint64_t* words, size_t count) : next_(words), end_(words + count) {}

    // The kernel never reads beyond TLAST; if it did it would read zeros that end the stream again.
    Word read() {
        if (next_ == end_) return Word{0, true};
        const uint64_t data = *next_++;
        return Word{data, next_ == end_};
    }

private:
    const uint64_t* next_;
    const uint64_t* end_;
};

// Output stream into an array; words beyond its capacity are counted and dropped.
class OutStream {
public:
    OutStream(uint64_t* words, size_t capacity) : words_(words), next_(words), end_(words + capacity) {}

    void write(const Word& word) {
        if (next_ == end_) {
            ++dropped_;
        } else {
            *next_++ = word.data;
        }
    }

    size_t count() const { return size_t(next_ - words_) + dropped_; }

private:
    uint64_t* words_;
    uint64_t* next_;
    uint64_t* end_;
    size_t dropped_ = 0;
};

#else

#include <hls_stream.h>

#if __has_include(<ap_axi_sdata.h>)
#include <ap_axi_sdata.h>
using Word = ap_axiu<64, 0, 0, 0>;
#else
// stand-in where the side-channel header is missing; the kernel uses no more than this
struct Word {
    uint64_t data;
    uint8_t keep;
    uint8_t strb;
    bool last;
};
#endif

inline Word make_word(uint64_t data, bool last) {
#pragma HLS INLINE
    Word word;
    word.data = data;
    word.keep = 0xFF;  // every byte counts
    word.strb = 0xFF;
    word.last = last;
    return word;
}

using InStream = hls::stream<Word>;
using OutStream = hls::stream<Word>;

#endif

namespace kernel {

// Both inputs: whether each has brought its TLAST, and the words used so far.
struct Input {
    bool ended0 = false;
    bool ended1 = false;
    uint32_t words = 0;

    bool ended() const { return ended0 || ended1; }
};

struct Beat {
    uint64_t word[2];
};

// One word from either stream; false when a stream has ended and there is no beat.
inline bool read_beat(InStream& in0, InStream& in1, Input& input, Beat& beat) {
#pragma HLS INLINE
    if (input.ended()) return false;
    const Word first = in0.read();
    const Word second = in1.read();
    beat.word[0] = uint64_t(first.data);
    beat.word[1] = uint64_t(second.data);
    input.ended0 = bool(first.last);
    input.ended1 = bool(second.last);
    input.words += 2;
    return true;
}

// Discard a stream up to its TLAST.
inline void swallow(InStream& in, bool ended) {
    while (!ended) {
#pragma HLS PIPELINE II = 1
        ended = bool(in.read().last);
    }
}

// One result word, counted.
inline void send(OutStream& out, uint32_t& sent, uint64_t data) {
#pragma HLS INLINE
    out.write(make_word(data, false));
    ++sent;
}

}  // namespace kernel
