"""One program at a time: steps are filled with arrays and sent, result words are added to where they belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from host.arrays import I64, U64, Array
from host.devices.device import Device, Result, check
from host.driver.layout import Tensor, block_codes, correlation_kernel
from host.program import packing
from host.program.builder import ProgramBuilder
from hw.contract import OutputFormat
from hw.design import Design
from hw.packet import Packet
from hw.plan.arrangement import Arrangement, Kernel
from hw.plan.lowering import lower
from hw.plan.plan import programs, steps
from hw.plan.product import Lowered, Product
from hw.plan.steps import Conv, KernelBlock, Load, LoadEpilogue, Read, Step, Weights, Wgrad

Recorder = Callable[[U64, Result], None]


@dataclass
class Member:
    """A product of a program, with its data.

    Attributes:
        product: what is computed.
        weight: codes (O, I, kh, kw), or None if the product takes none.
        tensors: of x and g, and of w where it lies in a tensor buffer.
    """

    product: Product
    weight: I64 | None
    tensors: dict[str, Tensor]
    _arranged: dict[Arrangement, Tensor] = field(default_factory=dict)

    def tensor(self, arrangement: Arrangement) -> Tensor:
        """An operand as it is cut."""
        found = self._arranged.get(arrangement)
        if found is None:
            found = self.tensors[arrangement.operand].arranged(arrangement)
            self._arranged[arrangement] = found
        return found

    def results(self, lowered: Lowered) -> Results:
        """Where the results go."""
        return Results(lowered)

    def filled(self, packet: Packet) -> Packet:
        """A CONV whose fields that depend on data, beside its masks, have values."""
        return packet

    def entries(self, step: LoadEpilogue, design: Design) -> U64:
        """Words of the epilogue's parameters."""
        raise TypeError(f"{self.product.kind}: a product of integers has no parameters of an epilogue")


class Results:
    """Integer results of a lowered product, added up step by step.

    Attributes:
        dot: of the correlations, int64 (N, outputs, OH, OW), None if there are none.
        a_sum: their operand sums, int64 (N, 1, OH, OW); zero where the host adds them up.
        gradients: for each weight gradient "dot" (O, Ca, ny, nx), "a_sum" (Ca, ny, nx) and "b_sum" (O, ny, nx).
    """

    def __init__(self, lowered: Lowered) -> None:
        self.dot: I64 | None = None
        self.a_sum: I64 | None = None
        for task in lowered.correlations[:1]:  # all add to the same result
            self.dot = np.zeros((task.tensor.images, task.kernel.outputs, *task.out_hw), dtype=np.int64)
            self.a_sum = np.zeros((task.tensor.images, 1, *task.out_hw), dtype=np.int64)
        self.gradients: list[dict[str, I64]] = []
        for gradient in lowered.gradients:
            shapes = {
                "dot": (gradient.b.channels, gradient.a.channels),
                "a_sum": (gradient.a.channels,),
                "b_sum": (gradient.b.channels,),
            }
            self.gradients.append(
                {name: np.zeros((*shape, *gradient.size), dtype=np.int64) for name, shape in shapes.items()}
            )

    def add(self, design: Design, step: Conv | Read, words: U64) -> None:
        """Add the result words of a step."""
        if isinstance(step, Conv):
            self._add_conv(design, step, words)
        else:
            self._add_gradient(design, step, words)

    def _add_conv(self, design: Design, step: Conv, words: U64) -> None:
        (packet,), block = step.packets, step.block
        wide = packet.format == OutputFormat.INT64
        acc, sums = packing.unpack_conv(
            words, design, packet.images, packet.rows, packet.out_groups, wide, block.with_a_sum
        )
        target = self.dot
        assert target is not None and self.a_sum is not None
        start = block.outputs[0]
        self._add_results(target, acc[:, :, : target.shape[1] - start], start, step)
        if sums is not None:
            self._add_results(self.a_sum, sums[:, :, None], 0, step)

    @staticmethod
    def _add_results(target: Array, results: Array, channel: int, step: Conv) -> None:
        """Add results (images, rows, channels, L) to ``target`` (N, C, OH, OW) from ``channel`` on."""
        stack, (cy, cx) = step.stack, step.block.piece.centre
        t = stack.region
        images, rows, channels, _ = results.shape
        width = t.columns.size
        pixels = results[..., : t.side * width].reshape(images, rows, channels, t.side, width)
        pixels = pixels.transpose(0, 3, 2, 1, 4).reshape(images * t.side, channels, rows, width)[: stack.count]
        y0, y1 = max(t.rows.own_start, cy), min(t.rows.own_stop, cy + target.shape[2])
        x0, x1 = max(t.columns.own_start, cx), min(t.columns.own_stop, cx + target.shape[3])
        if y0 >= y1 or x0 >= x1:
            return
        images_of = slice(stack.first, stack.first + stack.count)
        target[images_of, channel : channel + channels, y0 - cy : y1 - cy, x0 - cx : x1 - cx] += pixels[
            :, :, y0 - t.rows.start : y1 - t.rows.start, x0 - t.columns.start : x1 - t.columns.start
        ]

    def _add_gradient(self, design: Design, step: Read, words: U64) -> None:
        (packet,), piece, c = step.packets, step.piece, design.channels
        (first, groups), (first_out, out_groups) = step.into, step.out
        values = packing.unpack_entries(words, design, packet.rows, packet.format == OutputFormat.INT64)
        tiles, sums = packing.gradient_tiles(values, design, out_groups, groups + step.ones)
        arrays = self.gradients[piece.number]
        target = arrays["dot"]
        o, i = first_out * c, first * c
        oc, ic = min(out_groups * c, target.shape[0] - o), min(groups * c, target.shape[1] - i)
        for rank, (_, ky, kx) in enumerate(sorted(piece.piece.taps)):
            target[o : o + oc, i : i + ic, ky, kx] += tiles[:oc, :ic, rank]
            if piece.a_sum and o == 0:
                arrays["a_sum"][i : i + ic, ky, kx] += sums[:ic, rank]
            if step.ones:
                arrays["b_sum"][o : o + oc, ky, kx] += tiles[:oc, groups * c, rank]


@lru_cache(maxsize=128)
def _programs(design: Design, products: tuple[Product, ...], limit: int) -> tuple[tuple[Step, ...], ...]:
    """Steps, program by program; training asks for the same ones in every step."""
    return tuple(programs(design, steps(design, products), limit))


class Session:
    """Sends the steps of one call of an engine: as one program, or as several if it grows long.

    Args:
        limit: a program is closed when its words and results pass this number.
        timeout: seconds that one program may take.
        recorder: called with the words and the result of every program.
        context: the call, for messages.
    """

    def __init__(self, device: Device, limit: int, timeout: float, recorder: Recorder | None, context: str) -> None:
        self._device, self._limit, self._timeout = device, limit, timeout
        self._recorder, self._context = recorder, context
        self.design = device.info.design
        self.counters: dict[str, int] = {"PROGRAMS": 0}
        self._builder = ProgramBuilder(self.design)
        self._awaiting: list[tuple[slice, Conv | Read]] = []
        self._kernels: dict[tuple[int, Kernel], I64] = {}
        self._planes: dict[object, int] = {}  #: of blocks of weights, by what is in them
        self._members: Sequence[Member] = ()
        self._results: list[Results] = []

    def run(self, members: Sequence[Member]) -> list[Results]:
        """Results of all products.

        Raises:
            ProgramError: the fabric refused a program.
        """
        self._members = members
        self._results = [member.results(lower(self.design, member.product)) for member in members]
        for program in _programs(self.design, tuple(member.product for member in members), self._limit):
            for step in program:
                self._send(step, members[step.member])
            self._flush()
        return self._results

    def _send(self, step: Step, member: Member) -> None:
        """Fill a step and add its packets to the program."""
        if isinstance(step, Load):
            self._load(step, member.tensor(step.window.tensor))
        elif isinstance(step, Weights):
            self._weights(step.block, step, member)
        elif isinstance(step, Wgrad):
            (packet,) = step.packets
            masks = {"a_planes": member.tensor(step.a).planes, "b_planes": member.tensor(step.b).planes}
            self._builder.add(replace(packet, **masks))
        elif isinstance(step, Conv):
            (packet,) = step.packets
            b_planes = self._planes[step.block.content(member.product.weights)]
            packet = replace(packet, a_planes=member.tensor(step.task.tensor).planes, b_planes=b_planes)
            packet = member.filled(packet)
            self._awaiting.append((self._builder.add(packet), step))
        elif isinstance(step, LoadEpilogue):
            self._builder.add(step.packets[0], member.entries(step, self.design))
        elif isinstance(step, Read):
            self._awaiting.append((self._builder.add(step.packets[0]), step))
        else:
            raise TypeError(f"the driver has no data for {type(step).__name__}")

    def _load(self, step: Load, tensor: Tensor) -> None:
        (packet,) = step.packets
        virtual = tensor.window(step.window, self.design)
        self._builder.add(packet, packing.pack_rows(virtual.astype(np.uint16, copy=False), tensor.grid.bits))

    def _weights(self, block: KernelBlock, step: Weights, member: Member) -> None:
        key = member.product.weights, block.kernel
        kernel = self._kernels.get(key)
        if kernel is None:
            assert member.weight is not None
            kernel = correlation_kernel(block.kernel, member.weight, self.design.channels)
            self._kernels[key] = kernel
        codes = block_codes(block, kernel, self.design)
        (packet,) = step.packets
        self._builder.add(packet, packing.pack_weights(codes, block.bits, self.design).reshape(-1))
        planes = int(np.bitwise_or.reduce(codes, axis=None)) & ((1 << block.bits) - 1)
        self._planes[block.content(member.product.weights)] = planes

    def _flush(self) -> None:
        """Run what has been built and add its results."""
        program = self._builder.end()
        result = self._device.run(program, self._timeout)
        if self._recorder is not None:
            self._recorder(program.words(), result)
        check(result, self._context)
        if result.words.size != program.result_words:
            raise RuntimeError(
                f"{self._context}: {result.words.size} result words instead of {program.result_words}; reset the device"
            )
        self.counters["PROGRAMS"] += 1
        for name, value in result.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        for span, step in self._awaiting:
            self._results[step.member].add(self.design, step, result.words[span])
        self._awaiting = []
        self._builder = ProgramBuilder(self.design)
