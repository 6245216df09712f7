// SPDX-License-Identifier: Apache-2.0
// The names of arbitrary-precision integers that the kernel uses, on the types of ac_types: a second library under it.
#pragma once

#include <ac_int.h>

#include <cstdint>
#include <type_traits>

template <int W, bool S>
class ap_wrapped : public ac_int<W, S> {
    using Base = ac_int<W, S>;

    // Bits of a word, by their greatest and least number.
    class Range {
    public:
        Range(Base& word, int low, int width) : word_(word), low_(low), width_(width) {}

        template <int N, bool T>
        void operator=(const ac_int<N, T>& bits) {
            for (int n = 0; n < width_; ++n) word_[low_ + n] = bool(bits[n]);
        }

    private:
        Base& word_;
        int low_, width_;
    };

public:
    ap_wrapped() {}
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>>
    ap_wrapped(T value) : Base(value) {}
    template <int N, bool T>
    ap_wrapped(const ac_int<N, T>& value) : Base(value) {}

    Range range(int high, int low) { return Range(*this, low, high - low + 1); }

    ap_wrapped<W, false> range(int high, int low) const {
        ap_wrapped<W, false> bits = 0;
        for (int n = 0; n <= high - low; ++n) bits[n] = bool((*this)[low + n]);
        return bits;
    }
};

template <int W>
using ap_int = ap_wrapped<W, true>;
template <int W>
using ap_uint = ap_wrapped<W, false>;
