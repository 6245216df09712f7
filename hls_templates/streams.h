// SPDX-License-Identifier: Apache-2.0
// The kernel's streams: words of 64 bits, the last of a program with TLAST.  Inside, results go by beats of two words.
#pragma once

#include "packing.h"

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

// Results, an even word and an odd one, as they leave on two streams, or one after the other.
struct ResultBeat {
    uint64_t even, odd;
    bool last;

    static constexpr unsigned BITS = 64 + 64 + 1;
    template <typename Self, typename Visitor>
    static void fields(Self& beat, Visitor& v) {
#pragma HLS INLINE
        v.template unsigned_field<64>(beat.even);
        v.template unsigned_field<64>(beat.odd);
        v.template unsigned_field<1>(beat.last);
    }
};

#if defined(FABRIC_LIGHT_STREAM)

// Results into an array; words beyond its capacity are counted and dropped.
class ResultStream {
public:
    ResultStream(uint64_t* words, size_t capacity) : words_(words), next_(words), end_(words + capacity) {}

    void write(const Packed<ResultBeat>& word) {
        const ResultBeat& beat = unpack<ResultBeat>(word);
        write_word(beat.even);
        write_word(beat.odd);
    }

    size_t count() const { return size_t(next_ - words_) + dropped_; }

private:
    void write_word(uint64_t word) {
        if (next_ == end_) {
            ++dropped_;
        } else {
            *next_++ = word;
        }
    }

    uint64_t* words_;
    uint64_t* next_;
    uint64_t* end_;
    size_t dropped_ = 0;
};

#else

using ResultStream = hls::stream<Packed<ResultBeat>>;

#endif

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

// Cycles in which a beat of results leaves.
constexpr unsigned BEAT_INTERVAL = 2 / OUTPUT_STREAMS;

// Two result words, counted.
inline void send(ResultStream& out, uint32_t& sent, uint64_t even, uint64_t odd, bool last = false) {
#pragma HLS INLINE
    ResultBeat beat;
    beat.even = even;
    beat.odd = odd;
    beat.last = last;
    out.write(pack(beat));
    sent += 2;
}

}  // namespace kernel
