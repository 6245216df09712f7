"""The HLS kernel's processes: loads ahead of products, tiles that leave meanwhile, all at once, and sanitizers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hw.tools.compile
from host.devices.device import split_streams
from host.devices.hls import HlsDevice
from host.devices.reference import ReferenceDevice
from host.epilogue import Entries
from host.program.builder import ProgramBuilder
from host.verify.csim import cases_of
from host.verify.stimuli import precision_sweep
from hw.contract import (
    HEADER_WORDS,
    Flag,
    Opcode,
    OutputFormat,
    Target,
)
from hw.design import Design, load_design
from hw.packet import load_entries, load_tensor, product, read_entries
from hw.tools.compile import (
    BIT_SERIAL,
    SANITIZE_FLAGS,
    ap_types,
    build_bench,
    hls_files,
    run_bench,
    stimuli_text,
)
from tests.support.kernel import assert_alike, bit_serial_device, replaced, second_library
from tests.support.malformed import malformed_programs
from tests.support.random_programs import random_program

SMALL = load_design("sim-small")


@pytest.mark.parametrize("array", ["native", "bit-serial", "second library"])
def test_clean_under_the_address_and_undefined_behaviour_sanitizers(array: str, tmp_path: Path) -> None:
    native = array == "native"
    sweep = [s.words for s in precision_sweep(SMALL, max_pairs=256 if native else 4)]
    drawn = [random_program(SMALL, seed, max_bits=16 if native else 2) for seed in range(30 if native else 4)]
    ahead = [words for _, words in [*overtaking_programs(), *hand_over_programs()]]
    programs = [(f"valid-{n}", *split_streams(words)) for n, words in enumerate([*sweep, *drawn, *ahead])]
    programs += [(m.name, m.words0, m.words1) for m in malformed_programs(SMALL) if native or not m.slow]
    stimuli = tmp_path / "stimuli.txt"
    stimuli.write_text(stimuli_text(cases_of(SMALL, programs)))
    # the vendor's headers shift negative numbers to the left, which C++20 defines and C++17 does not
    flags = SANITIZE_FLAGS if native else (*SANITIZE_FLAGS, BIT_SERIAL, "-std=c++20")
    flags += second_library() if array == "second library" else ()
    result = run_bench(build_bench(SMALL, flags), stimuli)
    assert result.programs == len(programs)
    assert result.mismatches == 0, result.log


BOUNDED_STREAM = """
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
namespace hls {
template <typename T>
class stream {
public:
    explicit stream(size_t depth = SIZE_MAX) : depth_(depth) {}
    void write(const T& value) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return values_.size() < depth_; });
        values_.push_back(value);
        changed_.notify_all();
    }
    bool write_nb(const T& value) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (values_.size() >= depth_) return false;
        values_.push_back(value);
        changed_.notify_all();
        return true;
    }
    T read() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !values_.empty(); });
        const T value = values_.front();
        values_.pop_front();
        changed_.notify_all();
        return value;
    }
    bool read_nb(T& value) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (values_.empty()) return false;
        value = values_.front();
        values_.pop_front();
        changed_.notify_all();
        return true;
    }
    bool empty() {
        std::unique_lock<std::mutex> lock(mutex_);
        return values_.empty();
    }

private:
    size_t depth_;
    std::deque<T> values_;
    std::mutex mutex_;
    std::condition_variable changed_;
};
}
"""


def concurrent_files(design: Design, depth: str) -> dict[str, str]:
    """The kernel as synthesis builds it: all processes at the same time, streams of the depths that it states.

    Args:
        depth: of the loader's two streams instead of theirs, or "stated".
    """
    files = hls_files(design)
    if depth != "stated":
        pattern = r"(STREAM variable = (packets|writes) depth =) \d+"
        files["fabric.cpp"], number = re.subn(pattern, rf"\1 {depth}", files["fabric.cpp"])
        assert number == 2
    kernel, number = re.subn(
        r"(PacketStream|WriteStream|HeaderStream|CommandStream|LineStream|ResultStream) (\w+);\n(.*\n)?#pragma HLS STREAM variable = \2 depth = (\w+)",
        r"\1 \2(\4);",
        files["fabric.cpp"],
    )
    assert number == 6
    kernel, number = re.subn(
        r"\n( *loader\(.*\);)\n( *engine_process\(.*\);)\n( *output_process\(.*\);)\n( *result_port\(.*\);)\n}",
        r"\n std::thread l([&] { \1 });\n std::thread e([&] { \2 });\n std::thread o([&] { \3 });\n\4\n"
        r" l.join();\n e.join();\n o.join();\n}",
        kernel,
    )
    assert number == 1
    return {**files, "fabric.cpp": kernel, "hls_stream.h": BOUNDED_STREAM}


@pytest.mark.parametrize(
    "depth, flags",
    [("stated", ()), ("1", ()), ("stated", ("-fsanitize=thread", "-g")), ("stated", second_library())],
    ids=["stated", "1", "sanitizer", "second library"],
)
def test_processes_that_run_at_the_same_time_agree_and_never_wait_for_each_other(
    depth: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [random_program(SMALL, seed, max_bits=2, max_rows=9) for seed in range(12)]
    programs = [(f"valid-{n}", *split_streams(w)) for n, w in enumerate(words)]
    programs += [(name, *split_streams(w)) for name, w in [*overtaking_programs(), *hand_over_programs()]]
    programs += [(m.name, m.words0, m.words1) for m in malformed_programs(SMALL) if not m.slow]
    stimuli = tmp_path / "stimuli.txt"
    stimuli.write_text(stimuli_text(cases_of(SMALL, programs)))
    monkeypatch.setattr(hw.tools.compile, "_TIMEOUT", 120.0)
    bench = build_bench(SMALL, ["-O1", BIT_SERIAL, "-I.", "-pthread", *flags], concurrent_files(SMALL, depth))
    result = run_bench(bench, stimuli)
    assert (result.programs, result.mismatches) == (len(programs), 0), result.log


# -- loads that run ahead of products ----------------------------------------------------------------------------------
#
# In the bit-serial library the processes run one after the other: all writes have come when the engine starts, and each
# is stored as early as the protocol lets it.  The fast form stores a load when its packet is due.

BASE, BITS, ROWS = 4, 4, 8  #: of the operands; eight rows are in all banks
OPERANDS = {"conv": (Target.A, Target.W), "strided conv": (Target.A, Target.W), "wgrad": (Target.A, Target.G)}


class Overtaking:
    """Writes products, and small loads behind them into what they read.

    Args:
        seed: of the payloads.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = ProgramBuilder(SMALL)
        self.load(Target.A | Target.G, 0, 16)
        self.load(Target.W, 0, 16)
        self.load(Target.E, 0, SMALL.channels)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        return self.rng.integers(0, 1 << 64, count, dtype=np.uint64)

    def load(self, target: Target, base: int, count: int = 1) -> None:
        """Random contents for ``count`` addresses, 1 to 16; entries keep codes clear of their limits."""
        if target == Target.E:
            small = {name: self.rng.integers(-100, 100, count) for name in "monlbc"}
            self.builder.add(load_entries(SMALL, target, count, base), Entries.of(count, **small).words().reshape(-1))
            return
        if target == Target.W:
            packet = load_entries(SMALL, target, count, base)
        else:
            packet = load_tensor(SMALL, target, 1, ROWS, 1, count, base, base)
        self.builder.add(packet, self.words(packet.payload_words))

    def product(
        self,
        what: str,
        base: int = BASE,
        base_b: int = BASE,
        flags: int = 0,
        epilogue: dict[str, int] | None = None,
        bits: int = BITS,
        out_groups: int = 1,
        images: int = 1,
    ) -> None:
        """A product of ``bits`` planes by as many, and for a weight gradient its READ.

        Args:
            epilogue: of a convolution whose results are codes: fields of its operands.
        """
        fields = {"groups": 1, "out_groups": out_groups, "images": images, "a_bits": bits, "b_bits": bits}
        fields |= {"base_a": base, "base_b": base_b}
        if what == "wgrad":
            packet = product(Opcode.WGRAD, **fields, rows=ROWS, flags=flags | Flag.CLEAR)
            self.builder.add(packet)
            self.builder.add(read_entries(packet.entries(SMALL)))
            return
        strided = what == "strided conv"  # four virtual rows for each of its own: eight addresses
        flags |= Flag.STRIDE_2 if strided else 0
        more: dict[str, int] = {}
        if epilogue is not None:
            more = {"format": OutputFormat.CODES, "out_bits": 16, "shift": 4, "value_shift": 8, **epilogue}
            flags |= Flag.OUT_SIGNED
        self.builder.add(product(Opcode.CONV, **fields, **more, rows=4 if strided else ROWS, flags=flags))


def overtaking_programs() -> Iterator[tuple[str, npt.NDArray[np.uint64]]]:
    """Programs whose results tell whether a load has waited, each with its name."""
    for what, targets in OPERANDS.items():
        for target in targets:
            last = BASE + (2 * BITS if what == "strided conv" and target == Target.A else BITS) - 1
            for place, base in (("before", BASE - 1), ("first", BASE), ("last", last), ("behind", last + 1)):
                writer = Overtaking()
                writer.product(what)
                writer.load(target, base)
                writer.product(what)
                writer.product(what, **{"base" if target == Target.A else "base_b": base})
                yield f"{what}-{target.name}-{place}", writer.builder.words()
    writer = Overtaking()
    for _ in range(3):
        writer.product("conv", epilogue={})
        writer.load(Target.E, 0, SMALL.channels)
    yield "entries", writer.builder.words()
    for operand in ("side", "added"):
        for place, base in (("before", BASE - 1), ("first", BASE), ("last", BASE + BITS - 1), ("behind", BASE + BITS)):
            sides = {f"{operand}_bits": BITS, f"base_{operand}": BASE}
            writer = Overtaking()
            writer.product("conv", epilogue=sides)
            writer.load(Target.G, base)
            writer.product("conv", epilogue=sides)
            writer.product("conv", epilogue={**sides, f"base_{operand}": base})
            yield f"{operand}-{place}", writer.builder.words()
    # the load that is cut has been read ahead together with one that is not
    writer = Overtaking()
    writer.product("conv")
    writer.load(Target.A, BASE + BITS)
    writer.load(Target.A, BASE + BITS, 2)
    yield "cut payload", writer.builder.words()[: -HEADER_WORDS - 2]


def test_a_load_never_changes_what_a_product_before_it_reads() -> None:
    early, late, reference = bit_serial_device(SMALL), HlsDevice(SMALL), ReferenceDevice(SMALL)
    for name, words in overtaking_programs():
        expected = reference.run(words)
        assert_alike(early.run(words), expected, name)
        assert_alike(late.run(words), expected, name)


@given(data=st.data(), seed=st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None)
def test_loads_and_products_of_overlapping_ranges_in_any_order(data: st.DataObject, seed: int) -> None:
    writer = Overtaking(seed)
    for _ in range(data.draw(st.integers(2, 8))):
        kind = data.draw(st.sampled_from(("load", "load", *OPERANDS, "sides")))
        base, base_b = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 8))
        if kind == "load":
            target = data.draw(st.sampled_from((Target.A, Target.G, Target.A | Target.G, Target.W)))
            writer.load(target, base, data.draw(st.integers(1, 4)))
        elif kind == "sides":
            bits = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 8))
            sides = {"side_bits": bits[0], "added_bits": bits[1], "base_side": base, "base_added": base_b}
            writer.product("conv", base, epilogue=sides, flags=data.draw(st.sampled_from((0, Flag.MASKED))))
        else:
            writer.product(kind, base, base_b, data.draw(st.sampled_from((0, Flag.SKIP_ZERO))))
    words = writer.builder.words()
    assert_alike(bit_serial_device(SMALL).run(words), ReferenceDevice(SMALL).run(words), kind)


def differs(device: HlsDevice, programs: Iterator[tuple[str, npt.NDArray[np.uint64]]]) -> bool:
    """Whether a program ends elsewhere than on the reference, or with other results; all of them are run."""
    reference = ReferenceDevice(SMALL)
    found = False
    for _, words in programs:
        ours, expected = device.run(words), reference.run(words)
        found |= ours.position != expected.position or not np.array_equal(ours.words, expected.words)
    return found


WAITS = {
    "loads that never wait": ("state.products == 0 || waits ||", "state.products == 0 ||"),
    "loads into A that do not wait": ("meet(own.a, state.last.a) || ", ""),
    "loads into G that do not wait": ("meet(own.g, state.last.g) || ", ""),
    "loads into ADDED that do not wait": ("meet(own.g, state.last.added) ||", ""),
    "loads into W that do not wait": ("meet(own.w, state.last.w)", "false"),
    "a last address that does not count": ("x.first < y.end", "x.first + 1 < y.end"),
    "a first address that does not count": ("y.first < x.end", "y.first + 1 < x.end"),
    "a stride of two that reads the rows of one": (
        "stack = h.images * blocks_of(operand_rows(h))", "stack = h.images * blocks_of(h.rows)"),
    "writes one product early": ("held).after <= intake.products", "held).after <= intake.products + 1"),
    "entries that leave the order": ("waits || h.target == TARGET_E", "waits"),
    "an error before its turn": ("return intake.ended == 0 ? intake.error : ERR_NONE", "return intake.error"),
}  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_a_load_that_overtakes_a_product_is_found(what: str) -> None:
    files = replaced(hls_files(SMALL), *WAITS[what])
    assert differs(bit_serial_device(SMALL, files), overtaking_programs())


# -- tiles that leave while the next one is computed ---------------------------------------------------------------------


class HandOver(Overtaking):
    """Writes products whose tiles take fewer steps than lines, as many, and more."""

    def products(self, what: str) -> None:
        for bits in (1, BITS, 2):
            self.product(what, bits=bits, out_groups=2)
            # two more lines for every other tile
            self.product(what, bits=bits, out_groups=2, flags=0 if what == "wgrad" else Flag.A_SUM)
            self.product(what, base=0, base_b=0, bits=bits, images=2)
            if what != "wgrad":  # more planes than steps, and fewer
                sides = {"side_bits": 3, "added_bits": 2, "base_side": 1, "base_added": 6}
                self.product(what, bits=bits, out_groups=2, epilogue=sides)


def hand_over_programs() -> Iterator[tuple[str, npt.NDArray[np.uint64]]]:
    """Programs in which tiles wait for each other, each with its name."""
    for what in OPERANDS:
        writer = HandOver()
        writer.products(what)
        yield f"tiles-{what}", writer.builder.words()
    writer = HandOver()
    for what in OPERANDS:
        writer.product(what, bits=1)
        writer.load(Target.E, 0, 2 * SMALL.channels)
        writer.product("conv", bits=1, epilogue={}, out_groups=2)
        writer.load(Target.E, 0, 2 * SMALL.channels)
    yield "tiles-and-entries", writer.builder.words()


REFUSING_STREAM = """
#pragma once
#include <cstdint>
#include <deque>
namespace hls {
// Says at random that there is no room, or nothing to read, to who does not wait for it.
template <typename T>
class stream {
public:
    void write(const T& value) { values_.push_back(value); }
    bool write_nb(const T& value) {
        if (refuses()) return false;
        write(value);
        return true;
    }
    T read() {
        T value = T();
        take(value);
        return value;
    }
    bool read_nb(T& value) { return !refuses() && take(value); }
    bool empty() const { return values_.empty(); }

private:
    bool take(T& value) {
        if (values_.empty()) return false;
        value = values_.front();
        values_.pop_front();
        return true;
    }
    bool refuses() { return ((state_ = state_ * 1664525u + 1013904223u) >> 31) != 0; }

    std::deque<T> values_;
    uint32_t state_ = 1;
};
}
"""


def refusing_device(files: dict[str, str] | None = None) -> HlsDevice:
    """The kernel as synthesis sees it, one process after the other, between streams that refuse at random."""
    files = {**(hls_files(SMALL) if files is None else files), "hls_stream.h": REFUSING_STREAM}
    return HlsDevice(SMALL, files, ["-O1", BIT_SERIAL, "-I.", "-isystem", str(ap_types())])


def test_results_do_not_depend_on_when_there_is_room_for_a_tile() -> None:
    device, unhindered, reference = refusing_device(), bit_serial_device(SMALL), ReferenceDevice(SMALL)
    drawn = [(str(seed), random_program(SMALL, seed, max_bits=3, max_rows=9)) for seed in range(20)]
    for name, words in [*hand_over_programs(), *overtaking_programs(), *drawn]:
        expected = reference.run(words)
        assert_alike(device.run(words), expected, name)
        assert_alike(unhindered.run(words), expected, name)


FINISH = "finish_tile(buffers, writes, intake, shadow, commands, lines);\n                "
HAND_OVERS = {
    "a shadow overwritten too early": (f"{FINISH}keep_tile(shadow, tile, command)", "keep_tile(shadow, tile, command)"),
    "lines lost at the program's end": (f"{FINISH}++intake.products;", "++intake.products;"),
    "entries before the last tile": (f"{FINISH}++intake.products;", f"++intake.products; {FINISH}"),
    "a line that found no room": (
        "&& try_write(lines, pack(line_of(shadow)))) ++shadow.line",
        ") try_write(lines, pack(line_of(shadow))), ++shadow.line"),
    "a command that found no room": (
        "&& try_write(commands, pack(shadow.command))) shadow", ") try_write(commands, pack(shadow.command)), shadow"),
    "a tile without its last line": ("shadow.line == count && try", "shadow.line + 1 >= count && try"),
    "one half of a weight gradient": ("low + value_of(shadow.tile, shadow.line, CHANNELS + k)", "low"),
    "planes of the next tile": (
        f"{FINISH}keep_tile(shadow, tile, command);\n                keep_planes(shadow, fetch, side);",
        f"keep_planes(shadow, fetch, side);\n                {FINISH}keep_tile(shadow, tile, command);\n"),
    "planes that have not come": ("while (fetching(fetch)) {", "while (false) {"),
    "the first image alone": ("if (++walk.image != images) return;", "++walk.image;"),
}  # fmt: skip


@pytest.mark.parametrize("what", HAND_OVERS)
def test_a_tile_that_does_not_leave_whole_is_found(what: str) -> None:
    files = replaced(hls_files(SMALL), *HAND_OVERS[what])
    assert differs(refusing_device(files), hand_over_programs())
