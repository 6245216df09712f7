"""Seeded random programs that every device must answer alike, word for word, with the same functional counters.

A program reads only what it has itself written, so it gives the same answer whatever ran before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from host.arrays import U64
from host.program.builder import ProgramBuilder
from host.verify.stimuli import draw_entries, draw_epilogue
from hw.contract import ALL_TAPS, ROW_BANKS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.packet import Packet, blocks, load_entries, read_entries, tensor_addresses


class _Writer:
    """Makes one program and remembers which addresses it has written."""

    def __init__(self, design: Design, rng: np.random.Generator, max_rows: int, max_bits: int) -> None:
        self.design, self.rng, self.max_rows, self.max_bits = design, rng, max_rows, max_bits
        self.builder = ProgramBuilder(design)
        self.written = {
            Target.A: np.zeros((ROW_BANKS, design.depth_a), dtype=bool),
            Target.G: np.zeros((ROW_BANKS, design.depth_g), dtype=bool),
        }
        self.weights = np.zeros(design.depth_w, dtype=bool)
        self.epilogue = np.zeros(design.depth_epilogue, dtype=bool)
        # largest magnitude that an accumulator may hold; -1: not written
        self.sums = np.full(design.depth_accumulator, -1, dtype=object)
        self.loads: dict[Target, list[tuple[int, int, int, int, int]]] = {Target.A: [], Target.G: []}

    # -- draws ------------------------------------------------------------------------------------------------------

    def draw(self, low: int, high: int) -> int:
        """Uniform integer of low..high."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def bits(self) -> int:
        """Mostly few, now and then many."""
        return self.draw(1, min(self.max_bits, 16 if self.chance(0.15) else 5))

    def rows(self) -> int:
        return self.draw(1, self.max_rows)

    def segments(self) -> int:
        lanes = self.design.lanes
        kind = self.draw(0, 3)
        if kind == 0:
            return 1
        if kind == 1:
            width = self.draw(1, lanes)
            return sum(1 << p for p in range(0, lanes, width))
        return (1 | int(self.rng.integers(0, 1 << lanes))) & ((1 << lanes) - 1)

    def words(self, count: int) -> U64:
        kind = self.draw(0, 4)
        if kind == 0:
            return np.full(count, (1 << 64) - 1, dtype=np.uint64)
        words = self.rng.integers(0, 1 << 64, size=count, dtype=np.uint64)
        if kind == 1:  # sparse
            words &= self.rng.integers(0, 1 << 64, size=count, dtype=np.uint64)
            words &= self.rng.integers(0, 1 << 64, size=count, dtype=np.uint64)
        return words

    def planes(self, bits: int) -> int:
        full = (1 << bits) - 1
        return full if self.chance(0.6) else self.draw(0, full)

    def tensor_words(self, images: int, rows: int, groups: int, bits: int) -> U64:
        """Payload of codes, now and then with planes that are zero."""
        words = self.words(images * rows * groups * bits * self.design.row_words)
        if self.chance(0.3):
            keep = np.array([self.chance(0.5) for _ in range(bits)])
            words.reshape(images * rows * groups, bits, -1)[:, ~keep] = 0
        return words

    def target(self) -> Target:
        return (Target.A, Target.G, Target.A | Target.G)[self.draw(0, 2)]

    # -- packets ----------------------------------------------------------------------------------------------------

    def load(self, target: Target, images: int, rows: int, groups: int, bits: int) -> None:
        """LOAD into A, G or both, of the given shape, at random bases; now and then with rows in all banks."""
        d = self.design
        wanted = rows
        if self.chance(0.6):  # a zero plane is zero in all eight banks, so that they must have been written
            rows = ROW_BANKS * blocks(rows)
        length = tensor_addresses(images, rows, groups, bits)
        bases = {}
        for buffer, name, depth in ((Target.A, "base_a", d.depth_a), (Target.G, "base_b", d.depth_g)):
            if target & buffer:
                base = bases[name] = self.draw(0, depth - length)
                self.loads[buffer].append((base, images, wanted, groups, bits))
                span = self.written[buffer][:, base : base + length].reshape(ROW_BANKS, images, blocks(rows), -1)
                for bank in range(ROW_BANKS):
                    span[bank, :, : -(-(rows - bank) // ROW_BANKS)] = True
        fields = {
            "target": int(target),
            "rows": rows,
            "groups": groups,
            "images": images,
            "out_groups": 1,
            "a_bits": bits,
        }
        self.builder.add(Packet(Opcode.LOAD, **fields, **bases), self.tensor_words(images, rows, groups, bits))

    def load_weights(self, rows: int) -> int:
        """LOAD W of ``rows`` words at a random base, which is returned."""
        base = self.draw(0, self.design.depth_w - rows)
        payload = self.words(rows * self.design.weight_words)
        self.builder.add(load_entries(self.design, Target.W, rows, base), payload)
        self.weights[base : base + rows] = True
        return base

    def load_epilogue(self, packet: Packet, rows: int) -> int:
        """LOAD E of ``rows`` entries for a packet at a random base, which is returned."""
        base = self.draw(0, self.design.depth_epilogue - rows)
        self.builder.add(load_entries(self.design, Target.E, rows, base), draw_entries(self.rng, packet, rows))
        self.epilogue[base : base + rows] = True
        return base

    def readable(self, buffer: Target, base: int, images: int, rows: int, groups: int, bits: int) -> bool:
        """Whether this program has written every row word of a tensor."""
        length = tensor_addresses(images, rows, groups, bits)
        memory = self.written[buffer]
        if base + length > memory.shape[1]:
            return False
        span = memory[:, base : base + length].reshape(ROW_BANKS, images, blocks(rows), -1)
        return all(bool(span[y % ROW_BANKS, :, y // ROW_BANKS].all()) for y in range(rows))

    def skippable(self, buffer: Target, base: int, images: int, rows: int, groups: int, bits: int) -> bool:
        """Whether a tensor may be read with SKIP_ZERO, and mostly is: this program has written all of its banks."""
        length = tensor_addresses(images, rows, groups, bits)
        return bool(self.written[buffer][:, base : base + length].all()) and self.chance(0.7)

    def tensor(self, buffer: Target) -> tuple[int, int, int, int, int] | None:
        """A tensor that can be read: one that was loaded, perhaps read as another layout."""
        if not self.loads[buffer]:
            return None
        loads = self.loads[buffer]
        choice = loads[-1] if self.chance(0.7) else loads[self.draw(0, len(loads) - 1)]
        base, images, rows, groups, bits = choice
        if self.chance(0.2):
            other = (
                base,
                images,
                self.draw(1, rows),
                *((bits, groups) if bits <= 3 and groups <= 16 else (groups, bits)),
            )
            if self.readable(buffer, *other):
                choice = other
        return choice if self.readable(buffer, *choice) else None

    def conv(self) -> None:
        found = self.tensor(Target.A)
        if found is None:
            return
        base_a, images, rows, groups, a_bits = found
        d = self.design
        out_groups, b_bits = self.draw(1, 2), self.bits()
        form = OutputFormat.CODES if self.chance(0.25) else OutputFormat(self.draw(0, len(OutputFormat) - 1))
        packet = Packet(Opcode.CONV, groups=groups, a_bits=a_bits, b_bits=b_bits, format=form)
        if packet.overflows(d):
            form = OutputFormat.INT64
        needed = out_groups * groups * b_bits
        if replace(packet, format=OutputFormat.INT64).overflows(d) or needed > d.depth_w:
            return
        flags = Flag(0)
        if rows % 4 == 0 and self.chance(0.7):
            flags |= Flag.STRIDE_2
        base_w = self.draw(0, d.depth_w - needed)
        if not self.weights[base_w : base_w + needed].all():
            base_w = self.load_weights(needed)
        optional = () if replace(packet, format=form).has_epilogue else (Flag.A_SUM,)
        for flag in (Flag.A_SIGNED, Flag.B_SIGNED, *optional):
            flags |= flag if self.chance(0.5) else Flag(0)
        if self.skippable(Target.A, base_a, images, rows, groups, a_bits):
            flags |= Flag.SKIP_ZERO
        packet = replace(
            packet,
            rows=rows // 4 if flags & Flag.STRIDE_2 else rows,
            out_groups=out_groups,
            images=images,
            flags=flags,
            base_a=base_a,
            base_b=base_w,
            format=form,
            segment_start=self.segments(),
            a_planes=self.planes(a_bits),
            b_planes=self.planes(b_bits),
        )
        self.builder.add(self.with_epilogue(packet) if packet.has_epilogue else packet)

    def with_epilogue(self, packet: Packet) -> Packet:
        """A CONV of CODES or MOMENTS with an epilogue whose entries and operands this program has written."""
        packet = draw_epilogue(self.rng, self.design, packet)
        channels = packet.out_groups * self.design.channels
        base = self.draw(0, self.design.depth_epilogue - channels)
        if not self.epilogue[base : base + channels].all() or self.chance(0.5):
            base = self.load_epilogue(packet, channels)
        packet = replace(packet, base_epilogue=base)
        # loading one operand may overwrite the other, which is then another tensor that this program has written
        if packet.side_planes:
            packet = replace(packet, base_side=self.operand(packet, packet.side_planes))
        if packet.added_bits:
            packet = replace(packet, base_added=self.operand(packet, packet.added_bits))
        return packet

    def operand(self, packet: Packet, planes: int) -> int:
        """First address in G of an epilogue's operand: something written before, or a tensor that is loaded now."""
        shape = packet.images, packet.rows, packet.out_groups, planes
        for base, *_ in self.loads[Target.G]:
            if self.chance(0.3) and self.readable(Target.G, base, *shape):
                return base
        self.load(Target.G, *shape)
        return self.loads[Target.G][-1][0]

    def wgrad(self) -> None:
        a = self.tensor(Target.A)
        if a is None:
            return
        base_a, images, rows, groups, a_bits = a
        g = self.tensor(Target.G)
        if g is None or g[1:3] != (images, rows):
            self.load(Target.G, images, rows, self.draw(1, 2), self.bits())
            g = self.loads[Target.G][-1]
        base_g, _, _, out_groups, b_bits = g
        if not self.readable(Target.G, base_g, images, rows, out_groups, b_bits):
            return
        ones = self.chance(0.5)
        taps = (ALL_TAPS, 1 << self.draw(0, 8), self.draw(1, ALL_TAPS))[self.draw(0, 2)]
        packet = Packet(
            Opcode.WGRAD,
            rows=rows,
            groups=groups,
            out_groups=out_groups,
            images=images,
            a_bits=a_bits,
            b_bits=b_bits,
            flags=Flag.ONES if ones else 0,
            taps=taps,
        )
        entries, grows = packet.entries(self.design), packet.sum_bound(self.design)
        depth = self.design.depth_accumulator
        if entries > depth or packet.overflows(self.design):
            return
        base = self.draw(0, depth - entries) if self.chance(0.4) else 0
        span = self.sums[base : base + entries]
        clear = self.chance(0.3) or min(span) < 0 or max(span) + grows > (1 << 47) - 1
        self.sums[base : base + entries] = grows if clear else max(span) + grows
        flags = (Flag.ONES if ones else Flag(0)) | (Flag.CLEAR if clear else Flag(0))
        for flag in (Flag.A_SIGNED, Flag.B_SIGNED):
            flags |= flag if self.chance(0.5) else Flag(0)
        if self.skippable(Target.A, base_a, images, rows, groups, a_bits) and self.skippable(
            Target.G, base_g, images, rows, out_groups, b_bits
        ):
            flags |= Flag.SKIP_ZERO
        packet = replace(
            packet,
            flags=flags,
            base_a=base_a,
            base_b=base_g,
            segment_start=self.segments(),
            a_planes=self.planes(a_bits),
            b_planes=self.planes(b_bits),
            base_accumulator=base,
        )
        self.builder.add(packet)
        if self.chance(0.7):
            self.read()

    def read(self) -> None:
        """READ a run of entries that this program has written."""
        known = np.flatnonzero(self.sums >= 0)
        if not known.size:
            return
        start = int(known[0 if self.chance(0.5) else self.draw(0, known.size - 1)])
        stop = start
        while stop < self.sums.size and self.sums[stop] >= 0:
            stop += 1
        rows = stop - start if self.chance(0.5) else self.draw(1, stop - start)
        wide = self.chance(0.5) or max(self.sums[start : start + rows]) >= 1 << 31
        self.builder.add(read_entries(rows, start, OutputFormat.INT64 if wide else OutputFormat.INT32))

    def any_load(self) -> None:
        d = self.design
        images, rows, groups, bits = self.draw(1, 3), self.rows(), self.draw(1, 3), self.bits()
        if self.chance(0.3):
            rows = 4 * self.draw(1, max(1, self.max_rows // 4))  # what a stride of two can look at
        target = self.target()
        depth = min(d.depth_a, d.depth_g)
        while tensor_addresses(images, rows, groups, bits) > depth:
            images, groups, bits = max(1, images - 1), max(1, groups - 1), max(1, bits - 1)
        self.load(target, images, rows, groups, bits)


def random_program(design: Design, seed: int, packets: int = 10, max_rows: int = 12, max_bits: int = 16) -> U64:
    """Words of a valid random program.

    Args:
        design: whose buffers it fits.
        seed: same seed, same program.
        packets: about so many before END.
        max_rows: largest virtual image.
        max_bits: greatest precision; lower it for quicker simulation.

    Returns:
        uint64, an even number of words.
    """
    writer = _Writer(design, np.random.default_rng(seed), max_rows, max_bits)
    steps = (writer.any_load, writer.conv, writer.conv, writer.wgrad, writer.wgrad, writer.read)
    writer.any_load()
    while writer.builder.packets < packets:
        steps[writer.draw(0, len(steps) - 1)]()
        if writer.chance(0.2):
            writer.any_load()
    return writer.builder.words()


def random_programs(design: Design, count: int, seed: int = 0, **options: int) -> Iterator[U64]:
    """``count`` programs of consecutive seeds, of varying length unless ``packets`` is given."""
    for i in range(count):
        chosen = {"packets": 3 + (seed + i) % 14, **options}
        yield random_program(design, seed + i, **chosen)
