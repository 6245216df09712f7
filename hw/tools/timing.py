"""Static timing estimate of a netlist of 7-series primitives, as Yosys' ``synth_xilinx -flatten`` writes it.

The estimate ranks paths, so that one knows what to pipeline; it promises nothing, for placement and routing decide.
A path starts at a register, memory, DSP or port, passes cells whose delays :class:`Cells` lists, and ends where
something is stored.  Nets have no place yet: :class:`Nets` gives them a delay by their fan-out.

Delays follow the switching characteristics that the vendor's data sheets for Kintex-7 and Zynq-7000 of speed grade -2
tell (LUT, register, block RAM and DSP48E1 paths), rounded; the net model is fitted to nothing and states what a device
about three quarters full often needs.  Vivado usually finds fewer levels of logic than Yosys.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Nets:
    """Delay of a net by its fan-out, ns.

    Attributes:
        near: to a single load.
        doubling: more for each doubling of the loads, up to ``crowd``.
        crowd: loads from which on a net crosses the device.
        crowded: more for each doubling beyond.
    """

    near: float = 0.55
    doubling: float = 0.09
    crowd: int = 64
    crowded: float = 0.35

    def delay(self, loads: int) -> float:
        if loads <= 1:
            return self.near
        beyond = self.crowded * math.log2(loads / self.crowd) if loads > self.crowd else 0.0
        return self.near + self.doubling * math.log2(min(loads, self.crowd)) + beyond


#: What nets of a device about three quarters full need, and nets better than any full device has.
REAL, IDEAL = Nets(), Nets(0.4, 0.0, 64, 0.0)


@dataclass(frozen=True)
class Cells:
    """Delays inside cells, ns, speed grade -2; ``slower`` multiplies all of them for another grade.

    Names: from a clock edge to an output (``*_out``), needed before an edge (``*_setup``), else through the cell.
    """

    slower: float = 1.0
    port_in: float = 0.9
    register_out: float = 0.223
    register_setup: float = 0.03
    enable_setup: float = 0.20
    reset_setup: float = 0.30
    lut: float = 0.043
    lut_lower: float = 0.093  #: to O5 of a LUT6_2
    mux: float = 0.11
    mux_select: float = 0.15
    carry_from_select: float = 0.26
    carry_sum: float = 0.17
    carry_sum_above: float = 0.30
    carry_chain: float = 0.05  #: CI to CO[3]
    carry_inner: float = 0.10
    carry_in_sum: float = 0.14
    carry_start: float = 0.30  #: more from CYINIT
    distributed_out: float = 0.75
    distributed_read: float = 0.06
    distributed_setup: float = 0.25
    block_out: float = 1.80  #: without the output register
    block_setup: float = 0.45
    dsp_out: float = 0.33  #: from the P register
    dsp_product_out: float = 1.67  #: from the M register
    dsp_all_out: float = 2.95  #: from the A and B registers through multiplier and adder
    dsp_cascade_more: float = 0.12
    dsp_input_setup: float = 0.3
    dsp_product_setup: float = 1.4  #: through the multiplier to M
    dsp_all_setup: float = 2.7  #: through multiplier and adder to P
    dsp_sum_setup: float = 1.3  #: through the adder to P
    dsp_all: float = 2.9  #: through multiplier and adder, no register
    dsp_sum: float = 1.4
    dsp_cascade_setup: float = 1.15
    dsp_cascade: float = 1.25


#: Delays by the speed grade at the end of a part's name.  Grade -1 is about a sixth slower than -2.
GRADES = {"-2": Cells(), "-1": Cells(slower=1.17)}


@dataclass(frozen=True)
class Arc:
    """A way through a cell, from a net to another one; ``routed``: its input comes by general routing."""

    to: int
    delay: float
    kind: str
    routed: bool = True


@dataclass(frozen=True)
class End:
    """Where a path ends: the time that the cell needs, whether a net leads there, and what the cell drives."""

    setup: float
    pin: str
    routed: bool = True
    drives: int | None = None


@dataclass(frozen=True)
class Path:
    """A path of the estimate.

    Attributes:
        ns: from edge to edge.
        start, end: names of the nets at its ends; a path that ends in a register has its end's name from what that
            drives, for the net before it seldom has one.  ``pin``: of the cell that stores its result.
        luts, carries, dsps: cells passed.
        net_ns: share of the nets.
        fan_out: greatest of its nets.
    """

    ns: float
    start: str
    end: str
    pin: str
    luts: int
    carries: int
    dsps: int
    net_ns: float
    fan_out: int


@dataclass
class _Graph:
    """Nets and the ways between them."""

    cells: Cells
    loads: Counter[int] = field(default_factory=Counter)
    arcs: defaultdict[int, list[Arc]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[int, float] = field(default_factory=dict)
    ends: defaultdict[int, list[End]] = field(default_factory=lambda: defaultdict(list))

    def through(self, inputs: list[int], outputs: list[int], delay: float, kind: str, routed: bool = True) -> None:
        for net in inputs:
            self.arcs[net] += [Arc(out, delay * self.cells.slower, kind, routed) for out in outputs]

    def start(self, nets: list[int], delay: float) -> None:
        self.starts |= dict.fromkeys(nets, delay * self.cells.slower)

    def end(self, nets: list[int], setup: float, pin: str, routed: bool = True, drives: int | None = None) -> None:
        for net in nets:
            self.ends[net].append(End(setup * self.cells.slower, pin, routed, drives))


Cell = dict[str, Any]


def _nets(cell: Cell, pin: str) -> list[int]:
    """Nets of a pin; constants, which Yosys writes as text, are none."""
    return [bit for bit in cell["connections"].get(pin, []) if isinstance(bit, int)]


def _pins(cell: Cell, direction: str) -> Iterator[tuple[str, list[int]]]:
    for pin in cell["connections"]:
        if cell["port_directions"].get(pin) == direction:
            yield pin, _nets(cell, pin)


def _number(cell: Cell, name: str) -> int:
    """A parameter that Yosys writes in binary; 0 if it is not set."""
    value = cell["parameters"].get(name, 0)
    return int(value, 2) if isinstance(value, str) else int(value)


_RESETS = ("R", "S", "CLR", "PRE")


def _register(graph: _Graph, cell: Cell) -> None:
    c = graph.cells
    out = _nets(cell, "Q")
    graph.start(out, c.register_out)
    for pin, setup in (("D", c.register_setup), ("CE", c.enable_setup), *((p, c.reset_setup) for p in _RESETS)):
        graph.end(_nets(cell, pin), setup, pin, drives=out[0] if out else None)


def _lut(graph: _Graph, cell: Cell) -> None:
    for _, inputs in _pins(cell, "input"):
        for _, outputs in _pins(cell, "output"):
            graph.through(inputs, outputs, graph.cells.lut, "LUT")


def _double_lut(graph: _Graph, cell: Cell) -> None:
    """A LUT6_2: I5 picks O6 and does not lead to O5.  All other ways count, for timers do not read the INIT."""
    for i in range(6):
        graph.through(_nets(cell, f"I{i}"), _nets(cell, "O6"), graph.cells.lut, "LUT")
        if i < 5:
            graph.through(_nets(cell, f"I{i}"), _nets(cell, "O5"), graph.cells.lut_lower, "LUT")


def _mux(graph: _Graph, cell: Cell) -> None:
    out = _nets(cell, "O")
    for pin in ("I0", "I1"):
        graph.through(_nets(cell, pin), out, graph.cells.mux, "MUX", routed=False)
    graph.through(_nets(cell, "S"), out, graph.cells.mux_select, "MUX")


def _carry(graph: _Graph, cell: Cell) -> None:
    c = graph.cells
    carry = [[bit] if isinstance(bit, int) else [] for bit in cell["connections"].get("CO", [])]
    total = [[bit] if isinstance(bit, int) else [] for bit in cell["connections"].get("O", [])]
    for pin, more in (("CI", 0.0), ("CYINIT", c.carry_start)):
        for i, out in enumerate(carry):
            delay = c.carry_chain if i == 3 else c.carry_inner
            graph.through(_nets(cell, pin), out, more + delay, "CARRY4", routed=pin == "CYINIT")
        for out in total:
            graph.through(_nets(cell, pin), out, more + c.carry_in_sum, "CARRY4", routed=pin == "CYINIT")
    for pin in ("S", "DI"):
        for j, bit in enumerate(cell["connections"].get(pin, [])):
            source = [bit] if isinstance(bit, int) else []
            for out in carry[j:]:
                graph.through(source, out, c.carry_from_select, "CARRY4", routed=pin == "DI")
            for i, out in enumerate(total[j:]):
                graph.through(source, out, c.carry_sum_above if i else c.carry_sum, "CARRY4", routed=pin == "DI")


def _distributed(graph: _Graph, cell: Cell) -> None:
    c = graph.cells
    outputs = [net for _, nets in _pins(cell, "output") for net in nets]
    graph.start(outputs, c.distributed_out)
    for pin, nets in _pins(cell, "input"):
        if "CLK" in pin:
            continue
        if pin.startswith(("ADDR", "DPRA")) or (pin[0] == "A" and pin[1:].isdigit()) or pin == "A":
            graph.through(nets, outputs, c.distributed_read, "RAM")
        graph.end(nets, c.distributed_setup, pin)


def _block(graph: _Graph, cell: Cell) -> None:
    for _, nets in _pins(cell, "output"):
        graph.start(nets, graph.cells.block_out)
    for pin, nets in _pins(cell, "input"):
        if "CLK" not in pin:
            graph.end(nets, graph.cells.block_setup, pin)


def _dsp(graph: _Graph, cell: Cell) -> None:
    c = graph.cells
    multiplies = cell["parameters"].get("USE_MULT", "MULTIPLY") != "NONE"
    product, result = _number(cell, "MREG"), _number(cell, "PREG")
    out, cascade = _nets(cell, "P"), _nets(cell, "PCOUT")
    if result or product or _number(cell, "AREG") or _number(cell, "BREG"):
        begin = c.dsp_out if result else c.dsp_product_out if product else c.dsp_all_out
        graph.start(out, begin)
        graph.start(cascade, begin + c.dsp_cascade_more)
    for pin, registered in ((p, _number(cell, f"{p}REG")) for p in "ABCD"):
        nets, multiplied = _nets(cell, pin), multiplies and pin in "AB"
        if registered:
            graph.end(nets, c.dsp_input_setup, pin)
        elif multiplied and product:
            graph.end(nets, c.dsp_product_setup, pin)
        elif result:
            graph.end(nets, c.dsp_all_setup if multiplied else c.dsp_sum_setup, pin)
        else:
            graph.through(nets, [*out, *cascade], c.dsp_all if multiplied else c.dsp_sum, "DSP48E1")
    if result:
        graph.end(_nets(cell, "PCIN"), c.dsp_cascade_setup, "PCIN", routed=False)
    else:
        graph.through(_nets(cell, "PCIN"), [*out, *cascade], c.dsp_cascade, "DSP48E1", routed=False)
    for pin in ("OPMODE", "CARRYIN", "ALUMODE", "INMODE"):
        graph.end(_nets(cell, pin), c.dsp_sum_setup, pin)
    for pin in (p for p in cell["connections"] if p.startswith("CE")):
        graph.end(_nets(cell, pin), c.dsp_input_setup, pin)


def _box(graph: _Graph, cell: Cell) -> None:
    """A module that was left out: it registers what enters and leaves."""
    for _, nets in _pins(cell, "output"):
        graph.start(nets, graph.cells.register_out)
    for pin, nets in _pins(cell, "input"):
        if "clk" not in pin:
            graph.end(nets, graph.cells.register_setup, pin)


#: by the beginning of a primitive's name, the first that fits
_PRIMITIVES: tuple[tuple[str, Callable[[_Graph, Cell], None]], ...] = (
    ("FD", _register), ("LUT6_2", _double_lut), ("LUT", _lut), ("INV", _lut), ("MUXF", _mux), ("CARRY4", _carry),
    ("RAMB", _block), ("RAM", _distributed), ("DSP48E1", _dsp), ("", _box),
)  # fmt: skip


def _graph(module: dict[str, Any], cells: Cells) -> _Graph:
    graph = _Graph(cells)
    for cell in module["cells"].values():
        for _, nets in _pins(cell, "input"):
            graph.loads.update(nets)
        next(add for name, add in _PRIMITIVES if cell["type"].startswith(name))(graph, cell)
    for name, port in module["ports"].items():
        nets = [bit for bit in port["bits"] if isinstance(bit, int)]
        if port["direction"] == "input":
            for net in nets:
                graph.starts.setdefault(net, cells.port_in)
        else:
            graph.end(nets, 0.0, f"port {name}", routed=False)
    return graph


class TimingError(ValueError):
    """The netlist cannot be timed; the message says why."""


def _arrivals(graph: _Graph, nets: Nets) -> tuple[dict[int, float], dict[int, tuple[int, Arc, float]]]:
    """Latest time of every net, and where it comes from: net before, way, delay of the net before.

    Raises:
        TimingError: nets drive each other in a circle.
    """
    before: Counter[int] = Counter(arc.to for ways in graph.arcs.values() for arc in ways)
    every = {*graph.arcs, *graph.starts, *graph.ends, *before}
    arrival = {net: graph.starts.get(net, -math.inf if before[net] else 0.0) for net in every}
    came: dict[int, tuple[int, Arc, float]] = {}
    ready, timed = [net for net in every if not before[net]], 0
    while ready:
        net = ready.pop()
        timed += 1
        for arc in graph.arcs.get(net, ()):
            on_net = nets.delay(graph.loads[net]) if arc.routed else 0.0
            if arrival[net] + on_net + arc.delay > arrival[arc.to]:
                arrival[arc.to] = arrival[net] + on_net + arc.delay
                came[arc.to] = net, arc, on_net
            before[arc.to] -= 1
            if not before[arc.to]:
                ready.append(arc.to)
    if timed < len(every):
        raise TimingError(f"{len(every) - timed} nets drive each other in a circle; break it with a register")
    return arrival, came


def _net_names(module: dict[str, Any]) -> dict[int, str]:
    """A name for every net: that of the source, the shortest of several."""
    names: dict[int, str] = {}
    for name, net in sorted(module["netnames"].items(), key=lambda n: (n[1].get("hide_name", 0), len(n[0]))):
        for i, bit in enumerate(net["bits"]):
            if isinstance(bit, int):
                names.setdefault(bit, f"{name}[{i}]" if len(net["bits"]) > 1 else name)
    return names


def _last_hop(end: End, came: tuple[int, Arc, float] | None, delay: float) -> float:
    """Delay of the net to where a path ends: none to the register of the same slice, to a port, or in a cascade."""
    beside = end.pin == "D" and came is not None and came[1].kind != "DSP48E1"
    return 0.0 if beside or not end.routed else delay


def worst_paths(module: dict[str, Any], *, cells: Cells, nets: Nets, count: int) -> list[Path]:
    """The longest paths, longest first, one for each pair of vectors that they run between.

    Args:
        module: of a netlist in Yosys' JSON form, flattened.
        cells, nets: delays.
        count: paths at most.

    Raises:
        TimingError: nets drive each other in a circle.
    """
    graph, names = _graph(module, cells), _net_names(module)
    arrival, came = _arrivals(graph, nets)
    found = []
    for net, ends in graph.ends.items():
        for end in ends:
            hop = _last_hop(end, came.get(net), nets.delay(graph.loads[net]))
            found.append((arrival[net] + hop + end.setup, net, end, hop))
    found.sort(key=lambda f: (-f[0], f[1]))
    paths: dict[tuple[str, str], Path] = {}
    for ns, net, end, hop in found:
        steps, first = [], net
        while first in came:
            steps.append(came[first])
            first = came[first][0]
        kinds = Counter(arc.kind for _, arc, _ in steps)
        stored = end.drives if end.drives in names else net
        start, last = names.get(first, f"net {first}"), names.get(stored, f"net {stored}")
        path = Path(
            round(ns, 2), start, last, end.pin, kinds["LUT"] + kinds["RAM"], kinds["CARRY4"], kinds["DSP48E1"],
            round(hop + sum(step[2] for step in steps), 2), max(graph.loads[n] for n in (net, *(s[0] for s in steps))),
        )  # fmt: skip
        paths.setdefault((start.split("[")[0], last.split("[")[0]), path)
        if len(paths) == count:
            break
    return list(paths.values())
