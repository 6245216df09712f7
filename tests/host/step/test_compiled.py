"""Passes on a device with memory: the bits of passes on streams, for single passes and for whole steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.memory import MemoryFaultError, MemoryResult, StreamMemory, open_memory
from host.devices.reference import ReferenceDevice
from host.driver.fabric_engine import FabricEngine
from host.driver.fabric_passes import FabricPasses
from host.driver.memory_tensors import ResultTensor
from host.driver.memory_views import MemoryPlanError
from host.program.builder import PacketError
from host.step.backward import Backward
from host.step.coded import ALL, Ranges
from host.step.compiled import MemoryPasses
from host.step.forward import Choose, Forward, Groups, Parameters
from host.step.passes import PassEngine, PassError, PassResult
from hw.contract import Fault
from hw.design import load_design
from hw.networks import Bits, BlockLayout, Layout, cifar_resnet_layout
from hw.nodes import KeptWidths, StepNode, nodes
from tests.support.random_passes import random_pass

DESIGN = load_design("sim-small")


def memory_passes(beats: int = 1 << 16) -> MemoryPasses:
    return MemoryPasses(StreamMemory(ReferenceDevice(DESIGN), beats))


def stream_passes() -> FabricPasses:
    return FabricPasses(FabricEngine(ReferenceDevice(DESIGN)))


def assert_same(found: PassResult, wanted: PassResult) -> None:
    for name in ("a", "k", "s", "mask", "weight_gradient"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        assert one is None or np.array_equal(np.asarray(one), other), name
    assert (found.moments is None) == (wanted.moments is None)
    if found.moments is not None and wanted.moments is not None:
        assert all(np.array_equal(a, b) for a, b in zip(found.moments, wanted.moments, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_random_passes_have_the_bits_of_streamed_ones(seed: int) -> None:
    wanted = random_pass(np.random.default_rng(seed))
    try:
        expected = stream_passes().run(wanted)
    except (PassError, PacketError):
        with pytest.raises(PassError, match="node"):
            memory_passes().run(wanted)
        return
    engine = memory_passes()
    for _ in range(2):
        assert_same(engine.run(wanted), expected)


# -- whole steps ----------------------------------------------------------------------------------------------------

RESNET = cifar_resnet_layout(8, 16)
NARROW = cifar_resnet_layout(8, 4)
MOBILE = Layout((8, 3, 1), (BlockLayout(8, 16, 1, 2), BlockLayout(16, 16, 1, 2), BlockLayout(16, 24, 2, 2)), last=12)
BITS, KEPT = Bits(4, 3, 6), KeptWidths(6, 6, 6)


def parameters(graph: list[StepNode], seed: int) -> dict[str, Parameters]:
    rng = np.random.default_rng(seed)
    made = {}
    for node in graph:
        s = node.shape
        weight = rng.normal(0, 0.4, (s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel))
        arrays = weight, rng.uniform(0.5, 1.5, s.out_channels), rng.normal(0, 0.3, s.out_channels)
        still = np.zeros(s.out_channels), np.ones(s.out_channels)
        made[node.name] = Parameters(*(a.astype(np.float32) for a in (*arrays, *still)), eps=1e-5)
    return made


class Steps:
    """Training steps of a small network on an engine; a step's results, and ranges that go on."""

    def __init__(self, layout: Layout, engine: PassEngine, size: int = 8, choose: Choose | None = None) -> None:
        self.graph, self.engine, self.layout, self.size = nodes(layout, (3, size, size)), engine, layout, size
        self.choose, self.ranges = choose, Ranges()

    def run(self, seed: int, bits: Bits = BITS, batch: int = 8) -> list[Any]:
        rng = np.random.default_rng(seed)
        images = rng.normal(size=(batch, 3, self.size, self.size)).astype(np.float32)
        wide = {node.name: bits for node in self.graph}
        forward = Forward(
            self.graph, parameters(self.graph, seed), self.engine, self.ranges, wide, KEPT,
            chosen=None if self.choose is None else lambda node: True,
        )  # fmt: skip
        tape = forward.run(images, self.choose)
        back = Backward(forward, seed, (3, 6, 8) if self.choose is not None else ())
        gradients = back.run(rng.normal(size=(batch, self.layout.features)).astype(np.float32))
        found: list[Any] = [tape.features, *(array for node in gradients.values() for array in node)]
        found += [np.array(sorted(self.ranges.tops.items()), dtype=object), *back.option_gradients.values()]
        return [*found, *(each.mean for each in tape.statistics.values())]


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("layout", "size"),
    [(RESNET, 16), (NARROW, 8), (MOBILE, 8), (RESNET, 12)],
    ids=["resnet", "narrow", "mobile", "ragged"],
)
def test_steps_have_the_bits_of_streamed_ones(layout: Layout, size: int) -> None:
    """Step after step, at several precisions and back, with a batch that changes."""
    compiled, streamed = Steps(layout, memory_passes(1 << 19), size), Steps(layout, stream_passes(), size)
    for seed, (bits, batch) in enumerate([(BITS, 4), (Bits(6, 4, 8, 6), 4), (BITS, 4), (BITS, 3)]):
        assert_equal(compiled.run(seed, bits, batch), streamed.run(seed, bits, batch))


def test_a_precision_that_comes_back_finds_its_own_entries() -> None:
    """Passes of several precisions share areas; what one of them has written is not taken for what another wrote before."""
    compiled, streamed = Steps(NARROW, memory_passes(1 << 18)), Steps(NARROW, stream_passes())
    for seed, bits in enumerate([BITS, Bits(8, 8, 8), BITS]):
        assert_equal(compiled.run(seed, bits, 4), streamed.run(seed, bits, 4))


def test_steps_have_the_same_bits_through_the_memory_front_end_of_the_rtl() -> None:
    fabric = Steps(RESNET, MemoryPasses(open_memory("rtl", DESIGN, 1 << 19)), 8)
    numpy = Steps(RESNET, memory_passes(1 << 19), 8)
    for seed in range(3):  # the third step is the second one run again
        assert_equal(fabric.run(seed, batch=2), numpy.run(seed, batch=2))


def test_gated_samples_have_the_bits_of_streamed_ones() -> None:
    """Blocks whose samples have bits of their own, all of them, and one width for all."""

    def choose(block: int, pooled: Any) -> Groups:
        order = np.argsort(pooled.sum(1), kind="stable")
        if block == 1:
            return [(ALL, Bits(4, 4, 6))]
        return [(np.sort(order[:3]), Bits(4, 3, 6)), (np.sort(order[3:]), Bits(4, 6, 8))]

    compiled, streamed = Steps(RESNET, memory_passes(1 << 19), 8, choose), Steps(RESNET, stream_passes(), 8, choose)
    for seed in range(2):
        assert_equal(compiled.run(seed), streamed.run(seed))


def test_codes_stay_in_memory_and_passes_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host moves codes where the stride is two alone; a pass that leaves codes only runs with the next one."""
    moved: list[Any] = []
    arranged = ResultTensor.arranged

    def seen(tensor: ResultTensor, *to: Any) -> Any:
        moved.append(tensor.name)
        return arranged(tensor, *to)

    monkeypatch.setattr(ResultTensor, "arranged", seen)
    engine = memory_passes(1 << 19)
    steps = Steps(RESNET, engine, 16)
    steps.run(0)
    totals = dict(engine.meter.totals)
    moved.clear()
    steps.run(1)
    spent = {name: value - totals[name] for name, value in engine.meter.totals.items()}
    assert spent["PROGRAMS"] < 0.75 * spent["PASSES"]
    ends, begins = ("blocks.0.conv2", "blocks.1.conv2"), ("blocks.1.conv1", "blocks.2.conv1")
    expected = {(node, purpose) for node in ends for purpose in ("codes", "gradients", "shortcut")}
    assert {name[:2] for name in moved} == expected | {(node, "gradients") for node in begins}


def test_codes_that_a_later_pass_has_overwritten_are_not_read() -> None:
    engine = memory_passes()
    rng = np.random.default_rng(0)
    wanted = random_pass(rng)
    while wanted.behind is None or wanted.behind.moments or wanted.behind.settings.keep_bits > 8:
        wanted = random_pass(rng)
    first = engine.run(wanted)
    engine.run(wanted)
    with pytest.raises(RuntimeError, match="a later pass has overwritten"):
        np.asarray(first.a)


def test_codes_of_a_program_that_failed_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = memory_passes()
    rng = np.random.default_rng(0)
    wanted = random_pass(rng)
    while wanted.behind is None or wanted.behind.moments or wanted.behind.records or wanted.kind == "backward":
        wanted = random_pass(rng)
    waiting = engine.run(wanted)
    fault = MemoryResult(fault=Fault.READ_SLVERR, fault_offset=7)
    with monkeypatch.context() as broken:
        broken.setattr(engine.memory, "execute", lambda *_: fault)
        with pytest.raises(MemoryFaultError, match="READ_SLVERR at beat 7 of node, codes"):
            np.asarray(waiting.a)
    with pytest.raises(RuntimeError, match="their program failed"):
        np.asarray(waiting.a)
    again = engine.run(wanted)
    assert np.array_equal(np.asarray(again.a), stream_passes().run(wanted).a)


def test_partial_sums_are_finished_by_the_host() -> None:
    """The same bits where buffers are too small for whole sums, and their operands lie in memory."""
    small = replace(DESIGN, name="shallow", depth_a=64, depth_g=128, depth_w=64, depth_epilogue=16)
    engine = MemoryPasses(StreamMemory(ReferenceDevice(small), 1 << 18))
    layout = Layout((16, 3, 1), (BlockLayout(16, 8, 1, 16),), last=12)
    compiled, streamed = Steps(layout, engine), Steps(layout, FabricPasses(FabricEngine(ReferenceDevice(small))))
    for seed in range(2):
        assert_equal(compiled.run(seed, batch=2), streamed.run(seed, batch=2))
    assert engine.meter.totals["STREAMED_PASSES"] > 0


def test_a_memory_that_is_too_small_is_refused_in_words() -> None:
    with pytest.raises(MemoryPlanError, match=r"stem.*more than the 0 MB of the device's memory.*smaller batch"):
        Steps(RESNET, memory_passes(1 << 10), 16).run(0)
