"""What a placement must find room for beside sums of LUT, flip-flops, block RAM and DSP slices.

A slice of the 7 series has four LUTs, eight flip-flops and one CARRY4.  So a design that takes 70 % of the LUT may still
not fit its part:

- **carry chains**: every CARRY4 takes the chain of a slice, and a chain takes slices one above the other in a column;
- **control sets**: flip-flops of a slice share clock, clock enable and set or reset, so each set fills slices of its own
  but for its last, which holds fewer than eight;
- **LUTs as memory** exist only in some slices, and route-throughs lead nets into a carry chain through LUTs that no count
  of cells shows;
- **columns**: DSP slices and block RAM stand in columns, and a cascade runs upwards inside one of them.

Counted are lower bounds: what two pieces of a design share across their border (:mod:`hw.tools.yosys`) counts twice, but
slices that the placer leaves half empty do not count.  The margins say how much room it is given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hw.boards import PartColumns
from hw.tools.area import FLIP_FLOPS, LUT_MEMORY, Area
from hw.tools.timing import Cell

LUTS_OF_SLICE, FLIP_FLOPS_OF_SLICE = 4, 8

#: Percent of what the part has up to which a placer is taken to have enough room; beyond it the report warns.  Assumptions,
#: in the manner of the guidelines of the vendor's "report_failfast" (which for the largest devices, of several dies, are
#: tighter: 70 % LUT, 80 % DSP and block RAM, as many control sets as 7.5 % of the slices):
#: a slice that is half empty is common beyond four fifths; chains need neighbours that are free; every control set may leave a
#: slice all but empty; the last tenth of the columns lies farthest from what it serves.
MARGINS = {"slices": 80.0, "carry": 50.0, "control_sets": 15.0, "lut_memory": 50.0, "dsp": 90.0, "bram36": 90.0}

Histogram = Sequence[Sequence[int]]  #: pairs of a length and how often it occurs


@dataclass(frozen=True)
class Demand:
    """What one instance of a module asks of a placement.

    Attributes:
        carry_chains: CARRY4 of a chain, and chains of that length.
        routed_through: LUTs that only lead a net to a carry chain.
        control_sets: different clocks, enables and resets of flip-flops, but for the sets of a clock alone.
        set_flip_flops, set_slices: flip-flops in them, and the slices that these fill.
        plain_flip_flops: those of a clock alone, which share slices with those of any other module.
        lut_memory: LUTs that are memory or shift registers.
        dsp_cascades, bram_cascades: as the chains, for those of two and more.
    """

    carry_chains: Histogram = ()
    routed_through: int = 0
    control_sets: int = 0
    set_flip_flops: int = 0
    set_slices: int = 0
    plain_flip_flops: int = 0
    lut_memory: int = 0
    dsp_cascades: Histogram = ()
    bram_cascades: Histogram = ()

    def times(self, n: int) -> Demand:
        """Demand of ``n`` of these."""
        counts: dict[str, Any] = {name: getattr(self, name) * n for name in _COUNTS}
        rows: dict[str, Any] = {
            name: _histogram((size, many * n) for size, many in getattr(self, name)) for name in _HISTOGRAMS
        }
        return Demand(**counts, **rows)

    def __add__(self, other: Demand) -> Demand:
        counts: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        rows: dict[str, Any] = {name: _histogram((*getattr(self, name), *getattr(other, name))) for name in _HISTOGRAMS}
        return Demand(**counts, **rows)

    @property
    def carry4(self) -> int:
        """CARRY4 of all chains."""
        return sum(length * count for length, count in self.carry_chains)

    @property
    def flip_flop_slices(self) -> int:
        """Slices that flip-flops fill at least."""
        return self.set_slices + -(-self.plain_flip_flops // FLIP_FLOPS_OF_SLICE)


_HISTOGRAMS = ("carry_chains", "dsp_cascades", "bram_cascades")
_COUNTS = tuple(field.name for field in fields(Demand) if field.name not in _HISTOGRAMS)


def _histogram(pairs: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    counts: Counter[int] = Counter()
    for length, count in pairs:
        counts[length] += count
    return tuple(sorted(counts.items()))


# -- counting a netlist -----------------------------------------------------------------------------------------------


def _net(cell: Cell, pin: str, bit: int = 0) -> int | str:
    """Net of a pin's bit; the text of a constant, "" where nothing is connected."""
    bits = cell["connections"].get(pin, [])
    return bits[bit] if bit < len(bits) else ""


def _cascades(
    cells: Iterable[Cell], out: tuple[str, int], into: tuple[str, ...], single: bool
) -> tuple[tuple[int, int], ...]:
    """Lengths of the rows that cells form whose pin ``out`` (name, bit) leads to a pin ``into`` of the next."""
    cells = list(cells)
    driver = {_net(cell, *out): i for i, cell in enumerate(cells) if isinstance(_net(cell, *out), int)}
    before = {}
    for i, cell in enumerate(cells):
        sources = [driver[net] for pin in into if isinstance(net := _net(cell, pin), int) and net in driver]
        if sources:
            before[i] = sources[0]
    followed = set(before.values())
    lengths: list[int] = []
    for last in (i for i in range(len(cells)) if i not in followed):
        length, at = 1, last
        while at in before and length <= len(cells):
            at, length = before[at], length + 1
        lengths.append(length)
    return _histogram((length, 1) for length in lengths if single or length > 1)


def _control_set(cell: Cell) -> tuple[Any, ...]:
    """Clock, enable, set or reset of a register, and their kinds."""
    kind = cell["type"]
    reset = next((_net(cell, pin) for pin in ("R", "S", "CLR", "PRE") if pin in cell["connections"]), "0")
    clock = _net(cell, "C" if "C" in cell["connections"] else "G")
    inverted = str(cell.get("parameters", {}).get("IS_C_INVERTED", "0"))[-1] == "1" or kind.endswith("_1")
    at_once = kind.startswith(("FDC", "FDP", "LD")) and isinstance(reset, int)
    enable = _net(cell, "CE" if "CE" in cell["connections"] else "GE")
    return clock, inverted, enable, reset, at_once, kind.startswith("LD")


def _routed_through(cells: Sequence[Cell]) -> int:
    """Nets that enter chains at S, which only the slice's own LUT reaches, and do not come from a LUT for this bit alone."""
    loads: Counter[int] = Counter()
    of_lut: set[int] = set()
    selects: Counter[int] = Counter()
    for cell in cells:
        for pin, bits in cell["connections"].items():
            nets = [bit for bit in bits if isinstance(bit, int)]
            if cell["port_directions"].get(pin) == "input":
                loads.update(nets)
                if cell["type"] == "CARRY4" and pin == "S":
                    selects.update(nets)
            elif cell["type"].startswith(("LUT", "INV")):
                of_lut.update(nets)
    # a LUT feeds one bit of one chain, others need LUTs of their own
    return sum(count - 1 if net in of_lut else count for net, count in selects.items())


def demand_of(module: dict[str, Any]) -> Demand:
    """Counts of a flattened netlist of 7-series primitives in Yosys' JSON form; cells of other kinds do not count."""
    cells = list(module["cells"].values())
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(cell["type"], []).append(cell)
    sets = Counter(_control_set(cell) for cell in cells if cell["type"] in FLIP_FLOPS)
    plain = sum(n for key, n in sets.items() if not (isinstance(key[2], int) or isinstance(key[3], int)))
    own = [n for key, n in sets.items() if isinstance(key[2], int) or isinstance(key[3], int)]
    return Demand(
        carry_chains=_cascades(kinds.get("CARRY4", ()), ("CO", 3), ("CI",), single=True),
        routed_through=_routed_through(cells),
        control_sets=len(own),
        set_flip_flops=sum(own),
        set_slices=sum(-(-n // FLIP_FLOPS_OF_SLICE) for n in own),
        plain_flip_flops=plain,
        lut_memory=sum(LUT_MEMORY.get(cell["type"], 0) for cell in cells),
        dsp_cascades=_cascades(kinds.get("DSP48E1", ()), ("PCOUT", 0), ("PCIN",), single=False),
        bram_cascades=_cascades(
            kinds.get("RAMB36E1", ()), ("CASCADEOUTA", 0), ("CASCADEINA", "CASCADEINB"), single=False
        ),
    )


# -- against a part ---------------------------------------------------------------------------------------------------


def columns_hold(columns: Sequence[int], cascades: Histogram, total: int) -> bool:
    """Whether blocks fit columns when each cascade stays in one: the longest first, each where most is free."""
    free = list(columns)
    for length, count in sorted(map(tuple, cascades), reverse=True):
        for _ in range(count):
            at = max(range(len(free)), key=free.__getitem__)
            if free[at] < length:
                return False
            free[at] -= length
    return sum(columns) >= total


@dataclass(frozen=True)
class Item:
    """A line of the report: what is needed of what the part has, both in ``unit``, and what that means.

    Attributes:
        kind: a key of :data:`MARGINS`.
        problem: why no placement can exist; empty where none is known.
    """

    kind: str
    needed: int
    has: int
    words: str
    problem: str = ""

    @property
    def percent(self) -> float:
        """Of the part."""
        return round(100 * self.needed / self.has, 1)

    @property
    def verdict(self) -> str:
        """``fits``, ``tight`` beyond the margin, or ``does not fit``."""
        if self.problem or self.needed > self.has:
            return "does not fit"
        return "tight" if self.percent > MARGINS[self.kind] else "fits"


def _longest(chains: Histogram) -> int:
    return max((length for length, count in chains if count), default=0)


def against(layout: PartColumns, area: Area, demand: Demand) -> list[Item]:
    """What a design needs of its part.

    Args:
        layout: of the part.
        area, demand: of the whole design.
    """
    luts = area.lut + demand.routed_through
    by_lut, by_set = -(-luts // LUTS_OF_SLICE), demand.flip_flop_slices
    slices = max(by_lut, demand.carry4, by_set)
    chain, wasted = (
        _longest(demand.carry_chains),
        FLIP_FLOPS_OF_SLICE * demand.set_slices - demand.set_flip_flops,
    )
    items = [
        Item(
            "slices", slices, layout.slices,
            f"at least: LUTs fill {by_lut:,}, {demand.routed_through:,} of them as ways into carry chains, CARRY4 "
            f"{demand.carry4:,}, flip-flops {by_set:,}; {min(by_lut + by_set, layout.slices):,} if LUTs and flip-flops shared none",
        ),
        Item(
            "carry", demand.carry4, layout.slices, f"slices of carry chains, the longest of {chain} in columns of {layout.column}",
            f"a carry chain of {chain} is higher than a column of {layout.column}" if chain > layout.column else "",
        ),
        Item(
            "control_sets", demand.control_sets, layout.slices,
            f"sets of clock, enable and reset against the slices; {demand.set_flip_flops:,} flip-flops fill "
            f"{demand.set_slices:,} slices and leave {wasted:,} places empty",
        ),
        Item("lut_memory", demand.lut_memory, LUTS_OF_SLICE * layout.memory_slices, "LUTs as memory, which only some slices have"),
    ]  # fmt: skip
    for kind, name, columns, cascades, needed in (
        ("dsp", "DSP slices", layout.dsp_columns, demand.dsp_cascades, area.dsp),
        ("bram36", "BRAM36", layout.bram_columns, demand.bram_cascades, math.ceil(area.bram36)),
    ):
        longest = _longest(cascades)
        words = f"{name} in {len(columns)} columns of up to {max(columns)}"
        words += f", the longest cascade of {longest}" if longest else ", no cascades"
        held = columns_hold(columns, cascades, needed)
        problem = f"the columns do not hold {needed} {name} with cascades of up to {max(longest, 1)}"
        items.append(Item(kind, needed, sum(columns), words, "" if held else problem))
    return items
