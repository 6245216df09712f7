// SPDX-License-Identifier: Apache-2.0
// What the compiler has: types, pragmas and the form of the array.
//
// Four ways to compile the same program logic:
//   __SYNTHESIS__       by Vitis HLS;
//   FABRIC_BIT_SERIAL   by g++ with the arbitrary-precision headers, the array code that synthesis sees;
//   FABRIC_COUNTING     that again, prepared by hw/tools/kernel_counts.py: what memories and streams do is counted;
//   otherwise           by g++ or Vitis C simulation, the array's bit planes in machine words (500 times faster).
// FABRIC_LIGHT_STREAM replaces hls::stream by plain memory, so that the simulation library needs no vendor headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "contract.h"

// Bits of the addresses of the deepest of three memories.
constexpr unsigned bits_of_depth(unsigned x, unsigned y, unsigned z) {
    const unsigned deepest = x > y ? (x > z ? x : z) : (y > z ? y : z);
    unsigned bits = 0;
    while ((1u << bits) < deepest) {
        ++bits;
    }
    return bits;
}

#if defined(__SYNTHESIS__) || defined(FABRIC_BIT_SERIAL)
#define FABRIC_NATIVE 0
#define AP_INT_MAX_W 4096  // bits of the widest word; the headers take 1024 unless told
#include <ap_int.h>
#include <hls_stream.h>
// widths of the memories; every value that is stored has been checked or cut to fit
using Accumulated = ap_int<contract::ACC_BITS>;
using Multiplier = ap_int<contract::MULTIPLIER_BITS>;
using Offset = ap_int<contract::OFFSET_BITS>;
using ValueOffset = ap_int<contract::VALUE_OFFSET_BITS>;
using SideElement = ap_uint<contract::MAX_SIDE_BITS + 1>;  // the mask on top
using AddedElement = ap_uint<contract::MAX_SIDE_BITS>;
using Sections = ap_uint<contract::SECTION_PLANES>;
using Random = ap_uint<16>;
using MomentSum = ap_int<contract::SUM_BITS>;
using MomentProducts = ap_int<contract::PRODUCT_BITS>;
using Value = ap_int<contract::VALUE_BITS>;
using Address = ap_uint<bits_of_depth(contract::DEPTH_A, contract::DEPTH_G, contract::DEPTH_W)>;  // sums wrap
#else
#define FABRIC_NATIVE 1
using Accumulated = int64_t;
using Multiplier = int32_t;
using Offset = int64_t;
using ValueOffset = int64_t;
using SideElement = uint16_t;
using AddedElement = uint8_t;
using Sections = uint32_t;
using Random = uint16_t;
using MomentSum = int64_t;
using MomentProducts = int64_t;
using Value = int32_t;
using Address = uint32_t;
#endif

#if defined(FABRIC_COUNTING)
#include "counting.h"
using counting::Memory;
#else
// An array of any number of dimensions, which synthesis makes memories or registers of.
template <typename T, size_t... SIZES>
struct ArrayOf {
    using type = T;
};
template <typename T, size_t FIRST, size_t... REST>
struct ArrayOf<T, FIRST, REST...> {
    using type = typename ArrayOf<T, REST...>::type[FIRST];
};
template <typename T, size_t... SIZES>
using Memory = typename ArrayOf<T, SIZES...>::type;
#endif

// g++ unrolls short loops before it looks for vectors, and then finds none
#if FABRIC_NATIVE
#define KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define KEEP_LOOP
#endif

// A pragma whose words are macros: they are replaced first.
#define HLS_PRAGMA(text) HLS_PRAGMA_OF(text)
#define HLS_PRAGMA_OF(text) _Pragma(#text)

namespace kernel {

using namespace contract;

}  // namespace kernel
