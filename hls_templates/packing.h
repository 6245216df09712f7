// SPDX-License-Identifier: Apache-2.0
// Records as words: memories and streams hold words of so many bits, the code that works on them has named fields.
//
// A record has one function, `fields`, that shows its fields and their widths to a visitor, lowest first, and BITS, their
// sum.  From it come both directions.  Fields that a word does not carry are zero.  In the fast form words are the records
// themselves.
#pragma once

#include "platform.h"

namespace kernel {

#if FABRIC_NATIVE

template <typename Record>
using Packed = Record;

template <typename Record>
const Record& pack(const Record& record) {
    return record;
}

template <typename Record>
const Record& unpack(const Record& word) {
    return word;
}

#else

template <typename Record>
using Packed = ap_uint<Record::BITS>;

// Bits of a wide word at a place that is constant once loops are unrolled.
template <unsigned WIDTH, typename Word>
ap_uint<WIDTH> bits_of(const Word& word, unsigned low) {
#pragma HLS INLINE
    return word.range(low + WIDTH - 1, low);
}

template <unsigned WIDTH, typename Word>
void set_bits(Word& word, unsigned low, const ap_uint<WIDTH>& bits) {
#pragma HLS INLINE
    word.range(low + WIDTH - 1, low) = bits;
}

// Lays fields side by side.
template <typename Word>
class Packer {
public:
    Packer() : word(0), at_(0) {}

    template <unsigned WIDTH, typename Field>
    void unsigned_field(const Field& field) {
#pragma HLS INLINE
        set_bits<WIDTH>(word, at_, ap_uint<WIDTH>(field));
        at_ += WIDTH;
    }

    template <unsigned WIDTH, typename Field>
    void signed_field(const Field& field) {
#pragma HLS INLINE
        unsigned_field<WIDTH>(field);
    }

    Word word;

private:
    unsigned at_;
};

// Takes them apart again.
template <typename Word>
class Unpacker {
public:
    explicit Unpacker(const Word& word) : word_(word), at_(0) {}

    template <unsigned WIDTH, typename Field>
    void unsigned_field(Field& field) {
#pragma HLS INLINE
        field = Field(bits_of<WIDTH>(word_, at_));
        at_ += WIDTH;
    }

    template <unsigned WIDTH, typename Field>
    void signed_field(Field& field) {
#pragma HLS INLINE
        const ap_int<WIDTH> value = bits_of<WIDTH>(word_, at_);
        field = Field(value);
        at_ += WIDTH;
    }

private:
    const Word& word_;
    unsigned at_;
};

template <typename Record>
Packed<Record> pack(const Record& record) {
#pragma HLS INLINE
    Packer<Packed<Record>> packer;
    Record::fields(record, packer);
    return packer.word;
}

template <typename Record>
Record unpack(const Packed<Record>& word) {
#pragma HLS INLINE
    Record record = Record();
    Unpacker<Packed<Record>> unpacker(word);
    Record::fields(record, unpacker);
    return record;
}

#endif

}  // namespace kernel
