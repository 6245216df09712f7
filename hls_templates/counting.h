// SPDX-License-Identifier: Apache-2.0
// Memories and streams that count how they are used, for the build that holds the kernel to its pragmas.
//
// hw/tools/kernel_counts.py prepares that build: every loop says when it is entered and when an iteration begins, and
// every pragma about a loop, a memory or a stream becomes a statement on what it names.  When the program ends, lines on
// standard output tell what has been counted:
//   loop FILE FUNCTION LINE KIND HAS_PIPELINED INTERVAL ENTRIES ITERATIONS
//   use FILE FUNCTION LINE NAME READS WRITES             of one memory or stream, in one iteration of a pipelined loop
//   fault FILE FUNCTION LINE: WHAT
//
// Synthesis schedules code, not the values of one run, so accesses are counted by place: a place in the code, in each
// iteration of the unrolled loops around it.  A place that is reached counts in every iteration.  One that goes to
// several of the memories that an array is split into counts in all of them, since its index is no constant.  Reads of
// one address by several places are one read.
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace counting {

enum Kind { SEQUENTIAL, PIPELINED, UNROLLED };

// Order in which two accesses to an address depend on each other.
enum Direction { RAW, WAR, WAW, DIRECTIONS };
constexpr const char* DIRECTION_NAMES[DIRECTIONS] = {"RAW", "WAR", "WAW"};

// A memory or a stream, and what the pragmas promise about it.
struct Storage {
    std::string name;
    bool is_stream = false;
    bool bound = false;              // to a kind of memory
    std::set<unsigned> split;        // dimensions whose indices are memories of their own, from 1 on
    unsigned writes = 1;             // in a cycle
    unsigned accesses = 2;           // reads and writes in a cycle
};

// Places that read or write a storage in a loop: which of its memories each goes to.
using Places = std::map<uint64_t, std::set<uint64_t>>;

// What one pipelined loop does with one storage.
struct Use {
    Places reads, writes;
    bool between[DIRECTIONS] = {};   // iterations, a dependence has been seen
    bool within[DIRECTIONS] = {};    // an iteration
    bool free_between[DIRECTIONS] = {};  // a pragma says that there is none
    bool free_within[DIRECTIONS] = {};
};

// A loop in the kernel's text.
struct Loop {
    const char* file = nullptr;
    const char* function = nullptr;
    unsigned line = 0;
    Kind kind = SEQUENTIAL;
    unsigned interval = 0;
    uint64_t entries = 0, iterations = 0;
    uint64_t least = UINT64_MAX, most = 0;  // iterations of an entry
    bool has_pipelined = false;             // a loop inside
    bool in_pipelined = false;
    std::map<Storage*, Use> uses;
};

struct Access {
    Storage* storage;
    uint64_t memory;  // of those that it is split into
    uint64_t address;
    uint64_t place;
    bool write;
};

inline uint64_t mix(uint64_t x, uint64_t y) {
    x = (x ^ y) * 0x9E3779B97F4A7C15u;
    return x ^ (x >> 29);
}

class Entry;

// All that is counted, and where execution is.
struct Counts {
    std::map<std::tuple<unsigned, const char*, const void*>, Loop> loops;
    std::map<std::string, Storage> storages;
    Entry* inner = nullptr;      // loop under way
    Entry* pipelined = nullptr;  // the pipelined one around it
    uint64_t path = 0;           // iterations of unrolled loops since

    ~Counts();
};

inline Counts& counts() {
    static Counts all;
    return all;
}

inline Storage& named(const char* name) {
    Storage& storage = counts().storages[name];
    storage.name = name;
    return storage;
}

// What no pragma speaks of; any use of it in a pipelined loop is a fault.
inline Storage& unnamed() { return named("?"); }

// One run of a loop, from its entry to its end.
class Entry {
public:
    // `instance` tells the instances of a template apart, the return address the places where a function is inlined.
    __attribute__((noinline)) Entry(unsigned id, const char* file, const char* function, const char* instance,
                                    unsigned line, Kind kind, unsigned interval)
        : id_(id),
          loop_(counts().loops[std::make_tuple(id, instance, static_cast<const void*>(__builtin_return_address(0)))]),
          outer_(counts().inner),
          pipelined_(counts().pipelined),
          path_(counts().path) {
        loop_.file = file;
        loop_.function = function;
        loop_.line = line;
        loop_.kind = kind;
        loop_.interval = interval;
        ++loop_.entries;
        counts().inner = this;
        if (pipelined_ != nullptr && kind != UNROLLED) loop_.in_pipelined = true;
        if (kind == PIPELINED) {
            for (Entry* e = outer_; e != nullptr; e = e->outer_) e->loop_.has_pipelined = true;
            counts().pipelined = this;
        }
    }

    ~Entry() {
        counts().inner = outer_;
        counts().pipelined = pipelined_;
        counts().path = path_;
        loop_.iterations += iterations_;
        loop_.least = iterations_ < loop_.least ? iterations_ : loop_.least;
        loop_.most = iterations_ > loop_.most ? iterations_ : loop_.most;
    }

    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    void begin() {
        if (loop_.kind == UNROLLED) counts().path = mix(mix(path_, id_), iterations_);
        if (loop_.kind == PIPELINED) counts().path = 0;
        ++iterations_;
    }

    void end() {
        if (loop_.kind != PIPELINED) return;
        std::map<uint64_t, uint64_t> times;                                        // of each place
        std::map<std::tuple<Storage*, uint64_t, uint64_t>, uint64_t> first_reads;  // by storage, memory and address
        for (const Access& access : accesses_) {
            uint64_t place = mix(access.place, reinterpret_cast<uintptr_t>(access.storage) + access.write);
            place = mix(place, times[place]++);
            Use& use = loop_.uses[access.storage];
            if (access.write) {
                use.writes[place].insert(access.memory);
            } else {
                const auto key = std::make_tuple(access.storage, access.memory, access.address);
                if (first_reads.emplace(key, place).second) use.reads[place].insert(access.memory);
            }
            if (!access.storage->is_stream) depend(use, access);
        }
        accesses_.clear();
    }

    void take(const Access& access) { accesses_.push_back(access); }

    // A pragma: accesses to a storage do not depend on each other.
    void independent(Storage& storage, bool between, int direction) {
        Use& use = loop_.uses[&storage];
        for (int d = 0; d < DIRECTIONS; ++d) {
            if (direction == d || direction == DIRECTIONS) (between ? use.free_between : use.free_within)[d] = true;
        }
    }

private:
    struct Last {
        uint64_t read = 0, written = 0;  // in which iteration, from 1 on
    };

    void note(Use& use, Direction direction, uint64_t earlier) {
        if (earlier != 0) (earlier == iterations_ ? use.within : use.between)[direction] = true;
    }

    void depend(Use& use, const Access& access) {
        Last& last = last_[std::make_tuple(access.storage, access.memory, access.address)];
        note(use, access.write ? WAW : RAW, last.written);
        if (access.write) note(use, WAR, last.read);
        (access.write ? last.written : last.read) = iterations_;
    }

    unsigned id_;
    Loop& loop_;
    Entry* outer_;
    Entry* pipelined_;
    uint64_t path_;
    uint64_t iterations_ = 0;
    std::vector<Access> accesses_;
    std::map<std::tuple<Storage*, uint64_t, uint64_t>, Last> last_;
};

struct Iteration {
    explicit Iteration(Entry& entry) : entry_(entry) { entry_.begin(); }
    ~Iteration() { entry_.end(); }
    Iteration(const Iteration&) = delete;
    Iteration& operator=(const Iteration&) = delete;

private:
    Entry& entry_;
};

inline void fault(const Loop& loop, const std::string& what) {
    std::printf("fault %s %s %u: %s\n", loop.file, loop.function, loop.line, what.c_str());
}

// Places that use one memory of a storage, at most.
inline size_t most(const Places& places, const Places& others = {}) {
    std::map<uint64_t, size_t> by_memory;
    size_t everywhere = 0;
    for (const Places* each : {&places, &others}) {
        for (const auto& [place, memories] : *each) {
            (memories.size() > 1 ? everywhere : by_memory[*memories.begin()]) += 1;
        }
    }
    size_t result = 0;
    for (const auto& [memory, count] : by_memory) result = count > result ? count : result;
    return result + everywhere;
}

inline void check_use(const Loop& loop, const Storage& storage, const Use& use) {
    const size_t reads = most(use.reads), writes = most(use.writes), both = most(use.reads, use.writes);
    std::printf("use %s %s %u %s %zu %zu\n", loop.file, loop.function, loop.line, storage.name.c_str(), reads, writes);
    const std::string count = std::to_string(reads) + " reads and " + std::to_string(writes) + " writes of a ";
    const std::string in = " in " + std::to_string(loop.interval) + (loop.interval == 1 ? " cycle" : " cycles");
    if (storage.is_stream) {
        if (reads > loop.interval || writes > loop.interval) fault(loop, count + "stream, " + storage.name + in);
        return;
    }
    if (writes > storage.writes * loop.interval || both > storage.accesses * loop.interval) {
        fault(loop, count + "memory of " + storage.name + in);
    }
    if (!storage.bound) fault(loop, "no pragma says what kind of memory " + storage.name + " is");
    for (int d = 0; d < DIRECTIONS; ++d) {
        const std::string kind = std::string(DIRECTION_NAMES[d]) + " dependence on " + storage.name;
        if (use.free_between[d] && use.between[d]) fault(loop, "a pragma denies the " + kind + " between iterations");
        if (use.free_within[d] && use.within[d]) fault(loop, "a pragma denies the " + kind + " within an iteration");
    }
    if (!use.reads.empty() && !use.writes.empty() && !use.free_between[RAW]) {
        fault(loop, "reads may depend on writes of earlier iterations: " + storage.name);
    }
}

inline Counts::~Counts() {
    constexpr const char* KINDS[] = {"sequential", "pipelined", "unrolled"};
    for (auto& [id, loop] : loops) {
        std::printf("loop %s %s %u %s %d %u %" PRIu64 " %" PRIu64 "\n", loop.file, loop.function, loop.line,
                    KINDS[loop.kind], int(loop.has_pipelined), loop.interval, loop.entries, loop.iterations);
        if (loop.in_pipelined) fault(loop, "a loop in a pipelined one that is not unrolled by name");
        if (loop.kind == UNROLLED && loop.least != loop.most) fault(loop, "an unrolled loop of no constant length");
        for (const auto& [storage, use] : loop.uses) check_use(loop, *storage, use);
    }
}

// An access at `place`, a return address.
inline void count(Storage& storage, uint64_t memory, uint64_t address, bool write, const void* place) {
    Entry* const entry = counts().pipelined;
    if (entry == nullptr) return;
    entry->take({&storage, memory, address, mix(counts().path, reinterpret_cast<uintptr_t>(place)), write});
}

#define COUNTING_PLACE __builtin_return_address(0)
#define COUNTING_CALL __attribute__((noinline))

// One element of a memory.
template <typename T>
class Element {
public:
    Element(T& value, Storage& storage, uint64_t memory, uint64_t address)
        : value_(value), storage_(storage), memory_(memory), address_(address) {}

    COUNTING_CALL operator T() const {
        count(storage_, memory_, address_, false, COUNTING_PLACE);
        return value_;
    }

    COUNTING_CALL void operator=(const T& value) const {
        count(storage_, memory_, address_, true, COUNTING_PLACE);
        value_ = value;
    }

private:
    T& value_;
    Storage& storage_;
    uint64_t memory_, address_;
};

// A memory whose first indices have been given.
template <typename T, size_t FIRST, size_t... REST>
class Slice {
public:
    Slice(T* values, Storage& storage, unsigned dimension, uint64_t memory, uint64_t address)
        : values_(values), storage_(storage), dimension_(dimension), memory_(memory), address_(address) {}

    auto operator[](size_t index) const {
        const bool split = storage_.split.count(dimension_) != 0;
        const uint64_t memory = split ? memory_ * FIRST + index : memory_;
        const uint64_t address = split ? address_ : address_ * FIRST + index;
        if constexpr (sizeof...(REST) == 0) {
            return Element<T>(values_[index], storage_, memory, address);
        } else {
            return Slice<T, REST...>(values_ + index * (REST * ...), storage_, dimension_ + 1, memory, address);
        }
    }

private:
    T* values_;
    Storage& storage_;
    unsigned dimension_;
    uint64_t memory_, address_;
};

// An array of any number of dimensions.
template <typename T, size_t... SIZES>
class Memory {
public:
    auto operator[](size_t index) const { return Slice<T, SIZES...>(values_, *storage_, 1, 0, 0)[index]; }

    Storage& storage(const char* name) {
        if (name != nullptr) storage_ = &named(name);
        return *storage_;
    }

private:
    mutable T values_[(SIZES * ...)] = {};
    Storage* storage_ = &unnamed();
};

template <typename T>
class Stream {
public:
    COUNTING_CALL void write(const T& value) {
        count(*storage_, 0, 0, true, COUNTING_PLACE);
        values_.push_back(value);
    }

    COUNTING_CALL bool write_nb(const T& value) {
        count(*storage_, 0, 0, true, COUNTING_PLACE);
        values_.push_back(value);
        return true;
    }

    COUNTING_CALL T read() {
        count(*storage_, 0, ++read_, false, COUNTING_PLACE);
        const T value = values_.front();
        values_.pop_front();
        return value;
    }

    COUNTING_CALL bool read_nb(T& value) {
        count(*storage_, 0, ++read_, false, COUNTING_PLACE);
        if (values_.empty()) return false;
        value = values_.front();
        values_.pop_front();
        return true;
    }

    bool empty() const { return values_.empty(); }

    Storage& storage(const char* name) {
        storage_ = &named(name);
        storage_->is_stream = true;
        return *storage_;
    }

private:
    std::deque<T> values_;
    uint64_t read_ = 0;
    Storage* storage_ = &unnamed();
};

// -- pragmas as statements -------------------------------------------------------------------------------------------

template <typename T, size_t... SIZES>
void partition(Memory<T, SIZES...>& memory, const char* name, unsigned dimension) {
    memory.storage(name).split.insert(dimension);
}

// Registers: nothing of them is counted.
template <typename T>
void partition(T&, const char*, unsigned) {}

template <typename T, size_t... SIZES>
void bind_storage(Memory<T, SIZES...>& memory, const char* name) {
    memory.storage(name).bound = true;
}

template <typename T, size_t... SIZES>
void independent(Entry& entry, Memory<T, SIZES...>& memory, bool between, int direction) {
    entry.independent(memory.storage(nullptr), between, direction);
}

template <typename T>
void stream(Stream<T>& stream, const char* name) {
    stream.storage(name);
}

}  // namespace counting

namespace hls {

template <typename T>
using stream = counting::Stream<T>;

}  // namespace hls
