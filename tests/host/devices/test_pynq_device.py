"""The board's driver, unmodified, against simulated fabrics through a substitute for PYNQ, with injected faults."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.devices.device import DeviceError, open_device
from host.devices.dma import split_program
from host.devices.power import PowerSensor
from host.devices.pynq_device import PynqDevice, self_test_program
from host.devices.reference import ReferenceDevice
from host.program.builder import ProgramBuilder
from hw.contract import HEADER_WORDS, VERSION, Error
from hw.design import load_design
from hw.packet import read_entries
from tests.support.malformed import good_program, malformed_programs
from tests.support.random_programs import random_program
from tests.support.substitute_pynq import Board, install, overlay_files

DESIGN = load_design("sim-small")


def opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: Any = None, **options: Any
) -> tuple[PynqDevice, Board]:
    board = Board(device or ReferenceDevice(DESIGN), DESIGN, **options)
    install(board, monkeypatch)
    return PynqDevice(DESIGN, overlay_files(tmp_path)), board


def test_programs_on_the_simulated_rtl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        rtl = open_device("rtl", DESIGN)
    except DeviceError as e:
        pytest.skip(str(e))
    device, board = opened(monkeypatch, tmp_path, rtl)
    reference = ReferenceDevice(DESIGN)
    for seed in range(4):
        words = random_program(DESIGN, seed, packets=5, max_rows=6, max_bits=4)
        for _ in range(2):  # a second run must answer like the first
            got, expected = device.run(words), reference.run(words)
            assert np.array_equal(got.words, expected.words)
            assert got.error is Error.NONE
            assert got.counters["CYCLES"] > 0
    for fault in ("stall_result", "bus_error", "truncated_result"):
        board.faults = {fault}
        with pytest.raises(DeviceError, match="takes the next program"):
            device.run(words, timeout=0.2)
        assert np.array_equal(device.run(words).words, expected.words)
    board.faults = {"truncated_input"}
    assert device.run(words).error is Error.TRUNCATED
    assert np.array_equal(device.run(words).words, expected.words)


def test_refusals_arrive_as_from_any_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    for case in malformed_programs(DESIGN):
        if not case.slow:
            result = device.run_streams(case.words0, case.words1)
            assert (result.error, result.position) == (case.error, case.position), case.name


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stall_in1", r"no end within 0\.1 s.*dma_out0, dma_out1, dma_in1.*CTRL 0x0.*dma_in1 control 0x1 status 0x0"),
        ("stall_result", r"no end within 0\.1 s.*waiting for dma_out0, dma_out1"),
        ("bus_error", r"dma_in0: bus error: a slave answered.*status 0x00000021"),
        ("decode_error", r"dma_in1: bus error: no slave answers"),
        ("truncated_result", r"result stream is truncated"),
    ],
)
@pytest.mark.parametrize("gpio", [True, False])
def test_every_fault_has_its_own_error_and_the_next_program_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, message: str, gpio: bool
) -> None:
    device, board = opened(monkeypatch, tmp_path, gpio=gpio)
    good = good_program(DESIGN)
    expected = device.run(good)
    board.faults = {fault}
    resets = board.resets
    begun = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        device.run(good, timeout=0.1)
    assert time.monotonic() - begun < 1.0
    assert re.search(message, str(caught.value)), str(caught.value)
    assert board.resets == resets + 1
    assert np.array_equal(device.run(good).words, expected.words)


def test_a_dma_without_clock_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    monkeypatch.setattr("host.devices.dma.RESET_TIMEOUT", 0.05)
    device.reset()
    board.faults = {"dead"}
    with pytest.raises(DeviceError, match="dma_out0 stays halted when told to run"):
        device.run(good_program(DESIGN))
    board.faults = set()
    assert device.run(good_program(DESIGN)).error is Error.NONE


def test_overlays_of_other_designs_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bit = overlay_files(tmp_path)

    def refused(message: str, **attributes: Any) -> None:
        board = Board(ReferenceDevice(DESIGN), DESIGN)
        for name, value in attributes.items():
            setattr(board, name, value)
        install(board, monkeypatch)
        with pytest.raises(DeviceError, match=message):
            PynqDevice(DESIGN, bit)
        assert board.programs <= 1

    refused("overlay holds design 0*123", hash64=0x123)
    refused("hash register reads 0x0", hash64=0)
    refused("contract version 9", contract=9 | 64 << 16)
    refused("streams have 32 bits", contract=VERSION | 8 << 8 | 32 << 16)
    refused("dma_in0 has a stream of 32 bits", stream_width=32)
    refused("HP0 is read with 32 bits", narrow_port=True)
    refused("1 of .* result words are wrong", faults={"wrong_word"})
    refused("no .* bytes of contiguous memory", memory_limit=1000)
    bit.with_suffix(".json").write_text(json.dumps({"design_hash": "00", "contract_version": 1}))
    refused("was built from design 00")
    bit.with_suffix(".json").write_text("[]")
    refused("is not a manifest")
    with pytest.raises(DeviceError, match=r"nowhere\.bit does not exist"):
        PynqDevice(DESIGN, tmp_path / "nowhere.bit")


def test_without_pynq_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"pynq>=3\.0\.1,<4"):
        PynqDevice(DESIGN, overlay_files(tmp_path))


def test_long_programs_run_in_parts_with_the_same_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path, length_width=13)  # 1,023 words per transfer
    reference = ReferenceDevice(DESIGN)
    parts = [random_program(DESIGN, seed, packets=12, max_rows=8) for seed in range(6)]
    words = np.concatenate([*(p[:-HEADER_WORDS] for p in parts), parts[0][-HEADER_WORDS:]])
    expected = reference.run(words)
    before = board.programs
    got = device.run(words)
    assert board.programs - before > 2
    assert np.array_equal(got.words, expected.words)
    for name in ("PACKETS", "SKIPPED", "SATURATED", "WORDS_IN", "WORDS_OUT"):
        assert got.counters[name] == expected.counters[name], name
    broken = words.copy()
    broken[-HEADER_WORDS] ^= np.uint64(1)  # the last header
    assert device.run(broken).position == reference.run(broken).position
    with pytest.raises(DeviceError, match="tile the product"):
        split_program(words, DESIGN, 100, 16383)


def test_memory_is_reused_and_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    device.run(good)
    held = set(board.memory)
    for _ in range(5):
        device.run(good)
    assert set(board.memory) == held
    device.close()
    assert not board.memory
    with pytest.raises(DeviceError, match="closed"):
        device.run(good)
    with pytest.raises(ValueError, match="at least one word"):
        device.run_streams(np.zeros(0, dtype=np.uint64), np.zeros(1, dtype=np.uint64))


def test_an_hls_kernel_tells_who_it_is_only_after_its_first_return(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for gpio in (True, False):
        device, board = opened(monkeypatch, tmp_path, hls=True, gpio=gpio)
        assert not board.asleep
        assert device.run(good_program(DESIGN)).error is Error.NONE


def test_power_is_read_from_the_kernels_monitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    direct, pairs = tmp_path / "hwmon0", tmp_path / "hwmon1"
    direct.mkdir()
    pairs.mkdir()
    (direct / "power1_input").write_text("1500000\n")
    for name, text in {
        "in1_label": "vout1",
        "in1_input": "1000",
        "curr1_label": "iout1",
        "curr1_input": "2500",
    }.items():
        (pairs / name).write_text(text)
    sensor = PowerSensor(tmp_path)
    assert sensor.watts() == pytest.approx(4.0)
    (direct / "power1_input").unlink()
    assert sensor.watts() is None
    assert PowerSensor(tmp_path / "none").watts() is None


class Rail(PowerSensor):
    """Draws 9 W while a program runs and 1 W otherwise."""

    def __init__(self, folder: Path, board: Board) -> None:
        super().__init__(folder)
        self.board, self.readings = board, 0

    def watts(self) -> float | None:
        self.readings += 1
        return 9.0 if self.board.busy else 1.0


def test_energy_is_of_the_time_in_which_the_fabric_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    install(board, monkeypatch)
    rail = Rail(tmp_path, board)
    device = PynqDevice(DESIGN, overlay_files(tmp_path), sensor=rail)
    good = good_program(DESIGN)
    board.on_start = lambda: time.sleep(0.2)
    result = device.run(good)
    assert device.energy == pytest.approx(result.counters["ENERGY_UJ"] * 1e-6, abs=1e-6)
    watts = device.energy / 0.2
    assert 7.0 < watts < 20.0, "idle power was measured, or much more time than the program took"
    read = rail.readings
    time.sleep(0.2)
    assert rail.readings <= read + 1, "the sensor is read although nothing runs"
    device.close()


def test_energy_is_measured_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    assert "ENERGY_UJ" not in device.run(good_program(DESIGN)).counters
    assert device.energy == 0.0
    with pytest.raises(DeviceError, match="no power monitor"):
        PynqDevice(DESIGN, overlay_files(tmp_path), sensor=PowerSensor(tmp_path / "none"))


def test_whatever_interrupts_a_program_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cause in (KeyboardInterrupt, SystemExit, OSError, MemoryError):
        for gpio in (True, False):
            device, board = opened(monkeypatch, tmp_path, gpio=gpio)
            good = good_program(DESIGN)
            expected = device.run(good)

            def interrupt(cause: type[BaseException] = cause, board: Board = board) -> None:
                board.on_start = None
                raise cause

            board.on_start = interrupt
            with pytest.raises(cause):
                device.run(good)
            assert np.array_equal(device.run(good).words, expected.words)


def test_an_interrupted_reset_is_made_up_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    expected = device.run(good)

    def interrupt() -> None:
        board.on_start = None
        raise KeyboardInterrupt

    board.on_start = interrupt
    with monkeypatch.context() as patch:
        patch.setattr(device, "reset", interrupt)  # the second Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            device.run(good)
    assert np.array_equal(device.run(good).words, expected.words)


def test_a_device_that_cannot_be_opened_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    install(board, monkeypatch)
    board.faults = {"wrong_word"}
    with pytest.raises(DeviceError, match="self-test"):
        PynqDevice(DESIGN, overlay_files(tmp_path))
    assert not board.memory


@pytest.mark.parametrize("cause", [AttributeError("x"), KeyError("PS7"), TypeError("x"), ValueError("x"), OSError("x")])
@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("Overlay", r"overlay .*fabric\.bit cannot be loaded \(%s.*; "),
        ("MMIO", r"registers of block 'fabric' cannot be reached \(%s.*; "),
        ("allocate", r"dma_in0: no 32768 bytes of contiguous memory \(%s.*; "),
    ],
)
def test_what_pynq_raises_is_named_with_cause_and_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: str, message: str, cause: Exception
) -> None:
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    install(board, monkeypatch)
    board.raises = {use: cause}
    with pytest.raises(DeviceError, match=message % type(cause).__name__) as caught:
        PynqDevice(DESIGN, overlay_files(tmp_path))
    assert caught.value.__cause__ is cause
    if isinstance(cause, AttributeError) and int(np.__version__.split(".")[0]) >= 2:
        assert "'numpy<2'" in str(caught.value)


def test_a_pynq_that_cannot_be_imported_is_not_a_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pynq.py").write_text("raise RuntimeError('no device found')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynq", raising=False)
    with pytest.raises(DeviceError, match=r"cannot be imported \(RuntimeError: no device found"):
        PynqDevice(DESIGN, overlay_files(tmp_path))
    (tmp_path / "pynq.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    with pytest.raises(DeviceError, match="nothing_of_that_name"):
        PynqDevice(DESIGN, overlay_files(tmp_path))


def test_a_short_program_after_a_long_one_maintains_little_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, board = opened(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    device.run(np.concatenate([good[:-HEADER_WORDS]] * 400 + [good[-HEADER_WORDS:]]))
    board.flushed = 0
    device.run(good)
    words = good.size + device.run(good).words.size
    assert board.flushed <= 2 * 8 * words + 2 * 4 * (1 << 15)


def test_memory_of_other_sizes_is_given_up_before_a_program_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, board = opened(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    long = np.concatenate([good[:-HEADER_WORDS]] * 400 + [good[-HEADER_WORDS:]])
    expected = device.run(long)
    device.run(good)
    held = sum(b.nbytes for b in board.memory.values())
    device.close()
    device, board = opened(monkeypatch, tmp_path)
    board.memory_limit = held - 1
    device.run(good)
    assert np.array_equal(device.run(long).words, expected.words)


def test_a_program_that_knows_its_results_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    builder = ProgramBuilder(DESIGN)
    builder.add(read_entries(4))
    program = builder.end()
    expected = device.run(program.words())

    def walked(*_: Any) -> int:
        raise AssertionError("the headers were walked")

    monkeypatch.setattr("host.devices.pynq_device.result_bound", walked)
    monkeypatch.setattr("host.devices.pynq_device.split_program", walked)
    assert np.array_equal(device.run(program).words, expected.words)


def test_the_self_test_uses_every_operation_on_every_design() -> None:
    for name in ("sim-small", "pynq-z2", "zc706", "zcu104"):
        design = load_design(name)
        result = ReferenceDevice(design).run(self_test_program(design))
        assert result.error is Error.NONE
        assert np.count_nonzero(result.words) > result.words.size // 4
    other = replace(DESIGN, name="other")
    assert other.hash64 != DESIGN.hash64
