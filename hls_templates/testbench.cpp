// SPDX-License-Identifier: Apache-2.0
// Test bench: stored programs against the words that they must give.
//
// Stimuli are text.  For each program a line "program NAME INPUTS0 INPUTS1 OUTPUTS" and the FUNCTIONAL_COUNTERS, in
// decimal; then the words of input stream 0, of input stream 1 and the expected output words, trailer included, in
// hexadecimal.
// Exit code 0 if all agree, 1 if not, 2 if the stimuli cannot be read.
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "fabric.h"

namespace {

#define NAME(name) #name,
const char* const COUNTERS[] = {FUNCTIONAL_COUNTERS(NAME)};
constexpr size_t NUMBER_OF_COUNTERS = sizeof(COUNTERS) / sizeof(*COUNTERS);

struct Case {
    std::string name;
    std::vector<uint64_t> input0;
    std::vector<uint64_t> input1;
    std::vector<uint64_t> expected;
    uint32_t counters[NUMBER_OF_COUNTERS];
};

bool read_words(std::istream& file, size_t count, std::vector<uint64_t>& words) {
    words.resize(count);
    for (uint64_t& word : words) file >> std::hex >> word;
    return bool(file);
}

// Next program; false at the end of the file or where it makes no sense.
bool read_case(std::istream& file, Case& c) {
    std::string keyword;
    size_t inputs0 = 0, inputs1 = 0, outputs = 0;
    file >> keyword >> c.name >> std::dec >> inputs0 >> inputs1 >> outputs;
    if (!file || keyword != "program" || inputs0 == 0 || inputs1 == 0) return false;
    for (uint32_t& counter : c.counters) file >> counter;
    return file && read_words(file, inputs0, c.input0) && read_words(file, inputs1, c.input1) &&
           read_words(file, outputs, c.expected);
}

// TLAST goes with the last word.
void fill(InStream& in, const std::vector<uint64_t>& words) {
    for (size_t n = 0; n < words.size(); ++n) in.write(make_word(words[n], n + 1 == words.size()));
}

#define DECLARATION(name, byte, value) uint32_t name = 0;
#define ARGUMENT(name, byte, value) , name
#define VALUE(name) name,

// Runs one program and counts what differs: words, missing or surplus words, TLAST, counters.
size_t run_case(const Case& c) {
    InStream in0, in1;
#define STREAM(name) OutStream name;
    RESULT_STREAMS(STREAM)
    fill(in0, c.input0);
    fill(in1, c.input1);
    KERNEL_REGISTERS(DECLARATION)
    fabric(in0, in1 RESULT_STREAMS(RESULT_NAME), 0 KERNEL_REGISTERS(ARGUMENT));

    size_t mismatches = 0;
    size_t n = 0;
#define ADDRESS(name) &name,
    OutStream* const streams[] = {RESULT_STREAMS(ADDRESS)};
    // the words of a program go to the streams in turn
    while (!streams[n % contract::OUTPUT_STREAMS]->empty()) {
        const Word word = streams[n % contract::OUTPUT_STREAMS]->read();
        const bool right = n < c.expected.size() && uint64_t(word.data) == c.expected[n] &&
                           bool(word.last) == (n + contract::OUTPUT_STREAMS >= c.expected.size());
        if (!right && mismatches++ == 0) {
            std::printf("%s: word %zu of %zu is %016" PRIx64 "%s, expected %016" PRIx64 "\n", c.name.c_str(), n,
                        c.expected.size(), uint64_t(word.data), bool(word.last) ? " with TLAST" : "",
                        n < c.expected.size() ? c.expected[n] : 0);
        }
        ++n;
    }
    if (n < c.expected.size()) {
        std::printf("%s: %zu of %zu words\n", c.name.c_str(), n, c.expected.size());
        mismatches += c.expected.size() - n;
    }
    if (!in0.empty() || !in1.empty()) {
        std::printf("%s: input left over\n", c.name.c_str());
        ++mismatches;
        while (!in0.empty()) in0.read();
        while (!in1.empty()) in1.read();
    }
    if (hash_lo != contract::HASH_LO_VALUE || hash_hi != contract::HASH_HI_VALUE ||
        contract != contract::CONTRACT_VALUE) {
        std::printf("%s: design hash or contract register is wrong\n", c.name.c_str());
        ++mismatches;
    }
    const uint32_t counters[] = {FUNCTIONAL_COUNTERS(VALUE)};
    // after an error only the packets done and the words sent are exact
    for (unsigned k = 0; k < NUMBER_OF_COUNTERS; ++k) {
        const std::string name = COUNTERS[k];
        if (error != contract::ERR_NONE && name != "packets" && name != "words_out") continue;
        if (counters[k] != c.counters[k]) {
            std::printf("%s: %s is %" PRIu32 ", expected %" PRIu32 "\n", c.name.c_str(), COUNTERS[k], counters[k],
                        c.counters[k]);
            ++mismatches;
        }
    }
    return mismatches;
}

}  // namespace

int main(int argc, char** argv) {
    const char* const path = argc > 1 ? argv[1] : "stimuli.txt";
    std::ifstream file(path);
    if (!file) {
        std::printf("cannot open %s: generate stimuli first (fractrain csim --design %s)\n", path, contract::DESIGN);
        return 2;
    }
    size_t programs = 0, words = 0, mismatches = 0;
    Case c;
    while (read_case(file, c)) {
        ++programs;
        words += c.expected.size();
        mismatches += run_case(c);
    }
    if (!file.eof() || programs == 0) {
        std::printf("%s is damaged after program %zu: generate it again\n", path, programs);
        return 2;
    }
    std::printf("programs %zu words %zu mismatches %zu\n", programs, words, mismatches);
    return mismatches == 0 ? 0 : 1;
}
