"""The board's driver, unmodified, against simulated fabrics through a substitute for PYNQ, with injected faults."""

from __future__ import annotations

import json
import re
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.devices.device import DeviceError
from host.devices.memory import MemoryFaultError, StreamMemory
from host.devices.pynq_device import PynqDevice, self_test_program
from host.devices.reference import ReferenceDevice
from host.devices.rtl_memory import MemoryModel, RtlMemoryDevice
from host.devices.zynq.banks import Bank
from host.devices.zynq.power import PowerSensor
from hw.boards import BOARDS
from hw.contract import HEADER_WORDS, VERSION, Error, Fault
from hw.design import load_design
from tests.support.malformed import good_program
from tests.support.random_programs import random_program
from tests.support.scattered import scattered
from tests.support.substitute_pynq import Board, Line, install, overlay_files

DESIGN = load_design("sim-small")
BEATS = 1 << 15


def opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: Any = None, **options: Any
) -> tuple[PynqDevice, Board]:
    board = Board(device or ReferenceDevice(DESIGN), DESIGN, **options)
    install(board, monkeypatch)
    return PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS, timeout=0.2), board


def test_programs_on_the_simulated_accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver and the RTL together, memory front end included."""
    try:
        front = RtlMemoryDevice(DESIGN, BEATS)
    except DeviceError as e:
        pytest.skip(str(e))
    device, _ = opened(monkeypatch, tmp_path, front=front)
    reference = ReferenceDevice(DESIGN)
    for seed in range(4):
        words = random_program(DESIGN, seed, packets=5, max_rows=6, max_bits=4)
        for _ in range(2):  # a second run must answer like the first
            got, expected = device.run(words), reference.run(words)
            assert np.array_equal(got.words, expected.words)
            assert got.error is Error.NONE
            assert got.counters["CYCLES"] > 0 and got.counters["READ_BEATS"] > words.size
    words = good_program(DESIGN)
    expected = reference.run(words)
    payload = HEADER_WORDS // 2
    front.model = MemoryModel(refuse=3, refuse_offset=payload)
    with pytest.raises(MemoryFaultError, match=f"READ_DECERR at beat {payload}"):
        device.run(words)
    front.model = MemoryModel()
    assert np.array_equal(device.run(words).words, expected.words)
    with pytest.raises(MemoryFaultError, match="DEADLINE"):
        device.run(words, timeout=1e-6)
    assert np.array_equal(device.run(words).words, expected.words)


def test_a_program_in_memory_answers_as_the_front_end_in_numpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    for seed in range(6):
        program = scattered(DESIGN, random_program(DESIGN, seed, packets=6), seed)
        assert program.beats <= BEATS
        model = StreamMemory(ReferenceDevice(DESIGN), BEATS)
        model.write(0, device.read(0, BEATS))
        got, wanted = (each.execute(program.place(each)) for each in (device, model))
        assert (got.error, got.fault, got.position) == (wanted.error, wanted.fault, wanted.position)
        assert got.counters["READ_BEATS"] == wanted.counters["READ_BEATS"]
        assert np.array_equal(device.read(0, BEATS), model.read(0, BEATS))


def test_refusals_arrive_as_from_any_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    words = good_program(DESIGN).copy()
    words[11] ^= np.uint64(1 << 40)
    assert device.run(words).error is Error.BAD_CHECK
    with pytest.raises(ValueError, match="for devices with streams"):
        device.run_streams(words[::2], words[1::2])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hang", r"no end within .* s of the program at beat \d+.*STATUS 0x0.*the device was reset"),
        *((f.name, f"{f.name} at beat 77") for f in Fault if f is not Fault.NONE),
    ],
)
def test_every_fault_has_its_own_error_and_the_next_program_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, message: str
) -> None:
    device, board = opened(monkeypatch, tmp_path)
    monkeypatch.setattr("host.devices.pynq_device.RESET_TIMEOUT", 0.1)
    good = good_program(DESIGN)
    expected = device.run(good)
    board.faults = {fault}
    begun = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        device.run(good, timeout=0.1)
    assert time.monotonic() - begun < 1.0
    assert re.search(message, str(caught.value)), str(caught.value)
    assert board.stops == (fault == "hang")
    assert np.array_equal(device.run(good).words, expected.words)


def with_interrupt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float = 0.05) -> tuple[PynqDevice, Board]:
    """A device whose programs end so many seconds after their start, and then with an interrupt."""
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    board.line, board.ends_after = Line(), seconds
    install(board, monkeypatch)
    return PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS, timeout=0.5), board


def test_the_end_of_a_program_comes_by_interrupt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = with_interrupt(monkeypatch, tmp_path)
    assert board.line is not None and board.line.path in device.end.way
    good = good_program(DESIGN)
    expected = ReferenceDevice(DESIGN).run(good)
    for fault in (Fault.NONE, Fault.READ_SLVERR, Fault.NONE):
        board.faults = {fault.name} - {"NONE"}
        came, looked = board.line.came, board.looked
        if fault:
            with pytest.raises(MemoryFaultError, match=fault.name):
                device.run(good)
        else:
            assert np.array_equal(device.run(good).words, expected.words)
        assert board.line.came == came + 1
        assert board.looked <= looked + 6, "STATUS was polled"
    board.faults = {"hang"}
    with pytest.raises(DeviceError, match="no end within"):
        device.run(good, timeout=0.05)
    assert np.array_equal(device.run(good).words, expected.words)
    board.ends_after = 0.0  # ends before anyone waits: the interrupt is left over, and not taken for the next end
    device.run(good)
    board.ends_after = 0.05
    assert np.array_equal(device.run(good).words, expected.words)
    assert board.line.path in device.end.way


def test_an_interrupt_that_means_nothing_is_not_taken_for_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, board = with_interrupt(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    board.on_start = lambda: board.line.raise_() if board.line else None
    assert np.array_equal(device.run(good).words, ReferenceDevice(DESIGN).run(good).words)


def test_without_an_interrupt_the_driver_polls_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, _ = opened(monkeypatch, tmp_path)
    assert re.search("polling: .*no interrupt 61.*device tree", device.end.way)
    device, board = with_interrupt(monkeypatch, tmp_path)
    assert board.line is not None
    monkeypatch.setattr(board.line, "raise_", lambda: None)  # another line is wired than the one that is waited for
    good = good_program(DESIGN)
    for _ in range(2):
        assert np.array_equal(device.run(good).words, ReferenceDevice(DESIGN).run(good).words)
    assert re.search("polling: a program ended without interrupt 61", device.end.way)
    unusable = Board(ReferenceDevice(DESIGN), DESIGN)
    unusable.line = types.SimpleNamespace(path=str(tmp_path / "none"))  # type: ignore[assignment]
    install(unusable, monkeypatch)
    device = PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)
    assert re.search("polling: interrupt 61 cannot be used .*FileNotFoundError.*root", device.end.way)


def test_a_fault_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    board.memory.clear()  # the buffers are not where the registers say
    with pytest.raises(MemoryFaultError) as caught:
        device.run(good_program(DESIGN))
    assert caught.value.fault is Fault.READ_DECERR


def test_a_port_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    monkeypatch.setattr("host.devices.pynq_device.RESET_TIMEOUT", 0.05)
    board.faults = {"stuck"}
    with pytest.raises(DeviceError, match=r"STATUS 0x4.*and the reset failed: .*load the overlay again"):
        device.run(good_program(DESIGN), timeout=0.01)
    with pytest.raises(DeviceError, match="load the overlay again"):
        device.run(good_program(DESIGN))


def test_overlays_of_other_designs_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bit = overlay_files(tmp_path)

    def refused(message: str, **attributes: Any) -> None:
        board = Board(ReferenceDevice(DESIGN), DESIGN)
        for name, value in attributes.items():
            setattr(board, name, value)
        install(board, monkeypatch)
        with pytest.raises(DeviceError, match=message):
            PynqDevice(DESIGN, bit, beats=BEATS)
        assert board.programs <= 1

    refused("overlay holds design 0*123", hash64=0x123)
    refused("hash register reads 0x0", hash64=0)
    refused("contract version 9", contract=9 | 64 << 16)
    refused("streams have 32 bits", contract=VERSION | 8 << 8 | 32 << 16)
    refused("HP0 is read with 32 bits", narrow_port=True)
    refused("1 of .* result words are wrong", faults={"wrong_word"})
    refused("no 0 MiB of contiguous memory", memory_limit=1000)
    bit.with_suffix(".json").write_text(json.dumps({"design_hash": "00", "contract_version": 1}))
    refused("was built from design 00")
    bit.with_suffix(".json").write_text("[]")
    refused("is not a manifest")
    with pytest.raises(DeviceError, match=r"nowhere\.bit does not exist"):
        PynqDevice(DESIGN, tmp_path / "nowhere.bit", beats=BEATS)


def test_without_pynq_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"pynq>=3\.0\.1,<4"):
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)


def test_a_program_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, board = opened(monkeypatch, tmp_path)
    good = good_program(DESIGN)
    long = np.concatenate([good[:-HEADER_WORDS]] * (BEATS // good.size * 2 + 2) + [good[-HEADER_WORDS:]])
    before = board.programs
    with pytest.raises(DeviceError, match=r"needs \d+ beats with its results, and the memory has 32768"):
        device.run(long)
    assert board.programs == before
    for wrong in (0, 24, -16):
        with pytest.raises(ValueError, match="multiple of 16"):
            PynqDevice(DESIGN, overlay_files(tmp_path), beats=wrong)


@pytest.mark.parametrize("name", ["zc706", "pynq-z2", "zcu104"])
def test_the_memory_is_what_the_board_has_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    design = load_design(name)
    board = Board(ReferenceDevice(design), design)
    asked: list[int] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        asked.append(shape[0])
        raise RuntimeError("no")

    board.allocate = allocate  # type: ignore[method-assign,assignment]
    install(board, monkeypatch)
    with pytest.raises(DeviceError, match=f"no {BOARDS[design.part].device_memory_mb // 2} MiB of contiguous memory"):
        PynqDevice(design, overlay_files(tmp_path))
    assert asked == [BOARDS[design.part].device_memory_mb << 20 >> 4]


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
    with pytest.raises(DeviceError, match="closed"):
        device.read(0, 1)


def test_an_hls_kernel_tells_who_it_is_only_after_its_first_return(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, board = opened(monkeypatch, tmp_path, hls=True)
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
    device = PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS, sensor=rail)
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
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS, sensor=PowerSensor(tmp_path / "none"))


def test_whatever_interrupts_a_program_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cause in (KeyboardInterrupt, SystemExit, OSError, MemoryError):
        device, board = opened(monkeypatch, tmp_path)
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
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)
    assert not board.memory


@pytest.mark.parametrize("cause", [AttributeError("x"), KeyError("PS7"), TypeError("x"), ValueError("x"), OSError("x")])
@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("Overlay", r"overlay .*fabric\.bit cannot be loaded \(%s.*; "),
        ("MMIO", r"registers of block 'fabric' cannot be reached \(%s.*; "),
        ("flush", r"bank 0: flush of words 0 to 32768 failed \(%s.*; "),
        ("invalidate", r"bank 0: invalidate of words \d+ to \d+ failed \(%s.*; "),
        ("allocate", r"bank 0: no 0 MiB of contiguous memory \(%s.*; "),
    ],
)
def test_what_pynq_raises_is_named_with_cause_and_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: str, message: str, cause: Exception
) -> None:
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    install(board, monkeypatch)
    board.raises = {use: cause}
    with pytest.raises(DeviceError, match=message % type(cause).__name__) as caught:
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)
    assert caught.value.__cause__ is cause
    if isinstance(cause, AttributeError) and int(np.__version__.split(".")[0]) >= 2:
        assert "'numpy<2'" in str(caught.value)


def test_a_pynq_that_cannot_be_imported_is_not_a_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pynq.py").write_text("raise RuntimeError('no device found')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynq", raising=False)
    with pytest.raises(DeviceError, match=r"cannot be imported \(RuntimeError: no device found"):
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)
    (tmp_path / "pynq.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    with pytest.raises(DeviceError, match="nothing_of_that_name"):
        PynqDevice(DESIGN, overlay_files(tmp_path), beats=BEATS)


def test_no_more_is_flushed_than_was_written_and_no_more_refreshed_than_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, board = opened(monkeypatch, tmp_path)
    rng = np.random.default_rng(4)
    line = 64
    for beats in (1, 3, 8, 100):
        offset = int(rng.integers(0, BEATS - beats))
        words = rng.integers(0, 1 << 63, 2 * beats, dtype=np.uint64)
        board.flushed = board.invalidated = 0
        device.write(offset, words)
        assert 16 * beats <= board.flushed <= 16 * beats + 4 * line and board.invalidated <= 4 * line
        board.invalidated = 0
        assert np.array_equal(device.read(offset, beats), words)
        assert 16 * beats <= board.invalidated <= 16 * beats + 4 * line
    board.flushed = board.invalidated = 0
    device.execute(0)  # no record: a fault, and nothing to maintain
    assert board.flushed == board.invalidated == 0


def test_results_beside_words_of_the_host_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache line may hold words of the host and words of the accelerator."""
    device, board = opened(monkeypatch, tmp_path)
    device.write(0, np.arange(32, dtype=np.uint64))
    for port, buffer in enumerate(board.memory.values()):
        buffer.physical[5] = 1000 + port  # the accelerator writes beat 5
    device.write(4, np.array([7, 8], dtype=np.uint64))
    assert device.read(4, 2).tolist() == [7, 8, 1000, 1001]


def test_xrt_is_told_the_range_where_pynq_would_maintain_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    pyxrt = types.ModuleType("pyxrt")
    names = ("XCL_BO_SYNC_BO_TO_DEVICE", "XCL_BO_SYNC_BO_FROM_DEVICE")
    pyxrt.xclBOSyncDirection = types.SimpleNamespace(**{n: n for n in names})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyxrt", pyxrt)

    class Object:
        def sync(self, direction: str, size: int, offset: int) -> None:
            calls.append((direction, size, offset))

    class Array(np.ndarray):
        bo, physical_address = Object(), 0x1000

        def freebuffer(self) -> None:
            """Nothing."""

    pynq = types.SimpleNamespace(allocate=lambda shape, dtype: np.zeros(shape, dtype).view(Array))
    bank = Bank(pynq, "bank 0", 256)
    bank.write(9, np.ones(3, dtype=np.uint64))
    bank.read(30, np.empty(5, dtype=np.uint64))
    assert calls[0] == (names[0], 2048, 0)
    assert calls[1:] == [*[(names[1], 64, 64)] * 2, (names[0], 64, 64), (names[1], 128, 192)]


def test_the_self_test_uses_every_operation_on_every_design() -> None:
    for name in ("sim-small", "pynq-z2", "zc706", "zcu104"):
        design = load_design(name)
        result = ReferenceDevice(design).run(self_test_program(design))
        assert result.error is Error.NONE
        assert np.count_nonzero(result.words) > result.words.size // 4
    other = replace(DESIGN, name="other")
    assert other.hash64 != DESIGN.hash64
