// SPDX-License-Identifier: Apache-2.0
// The streams between processes where one thread has them take turns, so that little piles up in any stream.
// Included by channels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace kernel {

// From loader to engine: writes of one LOAD.
class WriteStream {
public:
    void write(const Write& write) { writes_.push_back(write); }

    const Write& read() { return writes_[read_++]; }

    bool read_nb(Write&) { return false; }  // what has been read of a LOAD is stored before the next packet

    void clear() {
        writes_.clear();
        read_ = 0;
    }

private:
    std::vector<Write> writes_;
    size_t read_ = 0;
};

// From loader to engine: one packet, which the loader's turn brings when the engine asks for it.
class PacketStream {
public:
    explicit PacketStream(std::function<void()> loader_turn) : loader_turn_(std::move(loader_turn)) {}

    void write(const Packet& packet) { packet_ = packet; }

    const Packet& read() {
        loader_turn_();
        return packet_;
    }

private:
    std::function<void()> loader_turn_;
    Packet packet_ = {};
};

// From engine to output process: the header of one packet.
class HeaderStream {
public:
    void write(const OutputHeader& header) { header_ = header; }

    const OutputHeader& read() const { return header_; }

private:
    OutputHeader header_ = {};
};

// From engine to output process: lines of one command.
class LineStream {
public:
    void write(const Line& line) { lines_[written_++] = line; }

    bool write_nb(const Line& line) {
        write(line);
        return true;
    }

    const Line& read() {
        const Line& line = lines_[read_++];
        if (read_ == written_) read_ = written_ = 0;
        return line;
    }

private:
    Line lines_[COMMAND_LINES];
    uint32_t written_ = 0;
    uint32_t read_ = 0;
};

// From engine to output process, whose turn obeys each command at once.
class CommandStream {
public:
    explicit CommandStream(std::function<void(const Command&)> output_turn) : output_turn_(std::move(output_turn)) {}

    void write(const Command& command) { output_turn_(command); }

    bool write_nb(const Command& command) {
        write(command);
        return true;
    }

private:
    std::function<void(const Command&)> output_turn_;
};

}  // namespace kernel
