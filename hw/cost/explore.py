"""Search for the best design of a chip: every geometry, clock and number of fabrics, by the models.

A point is a design, times how many of it share the chip.  Latency and energy are those of ``hw.cost.fabric``, area that
of ``hw.model.resources``; a point that does not fit the limits is not costed.  What the models do not say is assumed:

- **timing**: a design reaches the clock that its longest path allows by the static estimate (:mod:`hw.model.frequency`), at
  most the processor's ports; no place-and-route run is behind it, and how full the chip is does not count.  Parts whose
  delays are not known (UltraScale+) take the target clock of their committed design;
- **streams**: each fabric has the streams of its design (two in, one or two out); fabrics on one chip share the DDR
  and divide a batch between them.

Results are one JSON object per line in the folder of a run.  A line counts again only if the request and the sources of
the models are the same, so a run goes on where it stopped and never mixes models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hw.boards import PARTS
from hw.cost.count import mean_work as layer_work
from hw.cost.fabric import BATCH, FabricMachine, bandwidth
from hw.cost.step_cost import STEPS, NetworkStep
from hw.cost.training_schedule import TrainingSchedule
from hw.design import DESIGNS, INPUT_STREAMS, ROOT, Design, DesignError, load_design
from hw.files import write_atomically
from hw.model.frequency import estimated_clock
from hw.model.resources import resources
from hw.networks import Bits, ConvShape

CHANNELS = (8, 16)
#: shallower memories save no block RAM: a block is 512 words deep at its widest
DEPTHS = {
    "depth_a": (512, 1024, 2048),
    "depth_g": (512, 1024, 2048),
    "depth_w": (512, 1024, 2048),
    "depth_accumulator": (2048, 4096, 8192, 16384),
}
EPILOGUE = 256
EPILOGUE_SHARES = (1, 2)  #: pixels that the epilogue takes per cycle, in multiples of C
#: designs that take a whole training step, and smaller ones whose host normalises
NORMALISING: tuple[dict[str, Any], ...] = (
    {"rounding": True, "output_streams": 2},
    {"rounding": False, "output_streams": 1},
)
FABRICS = (1, 2, 3, 4)
MINIMISED = ("products", "step")  #: whose time is minimised: the three products of all layers, or whole training steps
MAX_LUT, MAX_BRAM = 80.0, 80.0  #: percent of the part that leave room for routing
OBJECTIVES = ("seconds", "lut", "bram36", "energy_j")
#: what else points must have in common to share their cycle counts
_SHARED = ("depth_epilogue", "epilogue_lanes", "rounding", "output_streams")
POINTS_FILE = "points.jsonl"
#: modules, below ``hw``, on which a point depends
_MODELS = (
    "boards",
    "contract",
    "cost/explore",
    "cost/fabric",
    "cost/step_cost",
    "design",
    "model/cycles",
    "model/frequency",
    "model/resources",
    "networks",
    "nodes",
    "packet",
    "pipeline",
    "plan/arrangement",
    "plan/conv_packets",
    "plan/gradient_sets",
    "plan/lowering",
    "plan/plan",
    "plan/product",
    "plan/schedule",
    "plan/steps",
    "plan/tiling",
    "plan/training_products",
    "plan/training_step",
    "tiles",
    "tools/area",
    "tools/timing",
)

LayerWork = tuple[tuple[float, ConvShape, Bits], ...]


class ExploreError(ValueError):
    """Nothing to explore, or nothing fits; the message names the limit."""


@dataclass(frozen=True)
class DesignPoint:
    """A design on its chip and what it costs; times and energies are of one training sample.

    Attributes:
        design: one fabric.
        fabrics: how many of it the chip holds.
        streams: of all fabrics.
        lut, ff, bram36, dsp: of all fabrics.
        seconds: what is minimised, one of ``MINIMISED``.
        energy_j: estimate of the same.
        products: seconds of the three products (estimate where the host computes any).
        cycles: of the fabric for them, waiting for memory not included.
        steps: whole training step by who normalises, seconds (host work estimated).
    """

    design: Design
    fabrics: int
    streams: int
    lut: int
    ff: int
    bram36: float
    dsp: int
    seconds: float
    energy_j: float
    products: float
    cycles: float
    steps: dict[str, float]

    def values(self) -> tuple[float, ...]:
        """What is minimised, in the order of ``OBJECTIVES``."""
        return tuple(getattr(self, name) for name in OBJECTIVES)

    def percent(self, kind: str) -> float:
        """Share of the part's resources of a kind: lut, ff, bram36 or dsp."""
        return 100 * float(getattr(self, kind)) / float(getattr(PARTS[self.design.part], kind))


@dataclass(frozen=True)
class SearchRequest:
    """What is to be optimised.

    Attributes:
        part: a key of :data:`hw.boards.BOARDS`.
        model: name of the network, for reports.
        work: (mean occurrences per sample, layer, widths) over the whole schedule.
        batch: samples per step.
        max_lut, max_bram: limits in percent of the part.
        clocks: in MHz; none: what each design reaches.
        memory: which DDR the fabrics share, one of ``hw.cost.fabric.MEMORIES``.
        minimised: one of ``MINIMISED``.
    """

    part: str
    model: str
    work: LayerWork
    batch: int = BATCH
    max_lut: float = MAX_LUT
    max_bram: float = MAX_BRAM
    clocks: tuple[float, ...] = ()
    memory: str = "ps"
    minimised: str = "products"

    def key(self) -> str:
        """Digest of everything that a point's costs depend on, the sources of the models included."""
        text = repr((self.part, self.work, self.batch, self.memory, self.minimised))
        return hashlib.sha256(f"{_models()}{text}".encode()).hexdigest()[:16]


@cache
def _models() -> str:
    digest = hashlib.sha256()
    for name in _MODELS:
        digest.update((ROOT / "hw" / f"{name}.py").read_bytes())
    return digest.hexdigest()


def find_part(name: str) -> str:
    """Full name of a part from its beginning, for example ``xc7z045``.

    Raises:
        ExploreError: no part, or several, begin like that.
    """
    found = [part for part in PARTS if name and part.startswith(name.lower())]
    if len(found) != 1:
        raise ExploreError(f"part {name!r} names {len(found)} parts; write one of {', '.join(PARTS)}")
    return found[0]


def work_of_layers(shapes: Sequence[ConvShape], schedule: TrainingSchedule, count: str = "paper") -> LayerWork:
    """How often each layer runs at which widths for one sample, on the mean over a schedule.

    Raises:
        ExploreError: the schedule has no length.
    """
    if schedule.epochs <= 0:
        raise ExploreError(f"schedule {schedule.name} lasts {schedule.epochs} epochs; give it a positive length")
    return tuple((weight, shape, bits) for (shape, bits), weight in layer_work(shapes, schedule, count).items())


# -- points ---------------------------------------------------------------------------------------------------------


def _fits(design: Design, fabrics: int, request: SearchRequest) -> bool:
    part, area = PARTS[design.part], resources(design).times(fabrics)
    return (
        area.lut <= request.max_lut / 100 * part.lut
        and area.bram36 <= request.max_bram / 100 * part.bram36
        and area.ff <= part.ff
        and area.dsp <= part.dsp
    )


def committed(part: str) -> list[Design]:
    """Designs in ``configs/designs`` for a part."""
    designs = (load_design(path) for path in sorted(DESIGNS.glob("*.toml")))
    return [design for design in designs if design.part == part]


def reachable_clock(design: Design) -> float:
    """Clock in whole MHz that a design is taken to reach: by its longest path, or the target of its part's committed design.

    Raises:
        ExploreError: the part's delays are not known and it has no committed design.
    """
    if estimated := estimated_clock(design):
        return float(math.floor(estimated))
    clocks = [design.clock_mhz for design in committed(design.part)]
    if not clocks:
        raise ExploreError(
            f"no design of configs/designs is for {design.part}, so its clock is unknown; write one for its board"
        )
    return float(max(clocks))


def _geometries(part: str) -> Iterator[Design]:
    """All designs of a part at any clock, without those whose memories or DSP slices exceed it."""
    short = part[:7]
    kinds = itertools.product(
        CHANNELS, ("dsp", "lut"), NORMALISING, EPILOGUE_SHARES, itertools.product(*DEPTHS.values())
    )
    for channels, accumulators, normalising, share, depths in kinds:
        if share > 1 and not normalising["rounding"]:
            continue  # the host normalises: lanes of the epilogue are idle
        sizes: dict[str, Any] = dict(zip(DEPTHS, depths, strict=True))
        words = [short, f"c{channels}", accumulators, *map(str, depths), f"e{share * channels}"]
        name = "-".join([*words, *(["sums"] if not normalising["rounding"] else [])])
        with suppress(DesignError):
            yield Design(
                name,
                part,
                100,
                channels,
                depth_epilogue=EPILOGUE,
                accumulators=accumulators,
                epilogue_lanes=share * channels,
                **sizes,
                **normalising,
            )


def candidates(request: SearchRequest) -> list[tuple[Design, int]]:
    """All designs, and how many of each, that fit the limits, each at the clock that it reaches, or at those asked for of
    which it is capable; the part's committed designs are among them.

    Raises:
        ExploreError: a clock that no design may have.
    """
    for clock in request.clocks:
        if not 10 <= clock <= 500:
            raise ExploreError(f"clock {clock:g} MHz; use 10 to 500")
    chosen: dict[tuple[Any, ...], tuple[Design, int]] = {}
    for geometry in _geometries(request.part):
        most = reachable_clock(geometry)
        for clock in request.clocks or (most,):
            design = replace(geometry, clock_mhz=clock, name=f"{geometry.name}-{clock:g}")
            for fabrics in FABRICS if clock <= most else ():
                if _fits(design, fabrics, request):
                    chosen[_identity(design, fabrics)] = design, fabrics
    for design in committed(request.part):
        most = reachable_clock(design)
        clocks = [clock for clock in request.clocks or (most,) if clock <= most]
        if clocks and _fits(design, 1, request):
            design = replace(design, clock_mhz=max(clocks))
            chosen[_identity(design, 1)] = design, 1  # under its own name
    return list(chosen.values())


def _identity(design: Design, fabrics: int) -> tuple[Any, ...]:
    return (*(value for key, value in asdict(design).items() if key != "name"), fabrics)


def evaluate_point(
    design: Design, fabrics: int, work: LayerWork, batch: int, memory: str = "ps", minimised: str = "products"
) -> DesignPoint:
    """Costs of one point.

    Raises:
        ValueError: the part's board has no such memory.
    """
    machine = FabricMachine(design, fabrics, batch, bandwidth(design.part, memory))
    seconds = energy = cycles = 0.0
    steps, energies = dict.fromkeys(STEPS, 0.0), dict.fromkeys(STEPS, 0.0)
    network = NetworkStep(machine, tuple(dict.fromkeys(shape for _, shape, _ in work)))
    for weight, shape, bits in work:
        for cost in machine.products(shape, bits).values():
            seconds += weight * cost.seconds
            energy += weight * cost.energy_j
            cycles += weight * cost.cycles
        for step in STEPS:
            layer = network.layer(shape, bits, step)
            steps[step] += weight * layer.seconds
            energies[step] += weight * layer.energy_j
    products, fastest = seconds, min(STEPS, key=steps.__getitem__)
    if minimised == "step":
        seconds, energy = steps[fastest], energies[fastest]
    area = resources(design).times(fabrics)
    return DesignPoint(
        design,
        fabrics,
        (INPUT_STREAMS + design.output_streams) * fabrics,
        area.lut,
        area.ff,
        area.bram36,
        area.dsp,
        seconds,
        energy,
        products,
        cycles,
        steps,
    )


def _evaluate_all(
    points: Sequence[tuple[Design, int]], work: LayerWork, batch: int, options: Mapping[str, str]
) -> list[DesignPoint]:
    """Points of one geometry, which share their cycle counts."""
    return [evaluate_point(design, fabrics, work, batch, **options) for design, fabrics in points]


def load_points(file: Path, key: str) -> list[DesignPoint]:
    """Points of an earlier run for the same request and models.

    A last line that was cut off, by a kill or a full disk, does not count.

    Raises:
        ExploreError: a line before the last is no point.
    """
    if not file.exists():
        return []
    points = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if data.pop("key") == key:
                points.append(DesignPoint(**{**data, "design": Design(**data["design"])}))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            if number < len(lines):
                raise ExploreError(f"{file}, line {number} is no result ({error}); delete the line") from error
    return points


def _batches(
    groups: Sequence[list[tuple[Design, int]]], request: SearchRequest, jobs: int
) -> Iterator[list[DesignPoint]]:
    """Results group by group, as they come."""
    options = {} if request.memory == "ps" else {"memory": request.memory}
    if request.minimised != "products":
        options["minimised"] = request.minimised
    arguments = [(group, request.work, request.batch, options) for group in groups]
    if jobs != 1 and len(groups) > 1:
        try:
            from joblib import Parallel, delayed
        except ImportError:
            pass  # one process does the same, only later
        else:
            parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
            yield from parallel(delayed(_evaluate_all)(*a) for a in arguments)
            return
    for a in arguments:
        yield _evaluate_all(*a)


def explore(
    request: SearchRequest,
    folder: Path | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[DesignPoint]:
    """Costs of all candidates, fastest first.

    Args:
        request: what is optimised.
        folder: of the run; points found there are not costed again, new ones are added line by line.
        jobs: processes, -1 for all cores.  joblib runs them, so one of its cluster backends may.
        progress: called with the points done and their number.

    Raises:
        ExploreError: no candidate fits, or the folder holds something else.
        ValueError: the part's board has no such memory.
    """
    bandwidth(request.part, request.memory)
    wanted = {_identity(*c): c for c in candidates(request)}
    if not wanted:
        raise ExploreError(
            f"no design fits {request.max_lut:g} % of the LUT and {request.max_bram:g} % of the block RAM of "
            f"{request.part}{' at ' + ' or '.join(f'{c:g}' for c in request.clocks) + ' MHz' if request.clocks else ''}; "
            f"raise the limits{' or lower the clock' if request.clocks else ''}"
        )
    key = request.key()
    known = load_points(folder / POINTS_FILE, key) if folder else []
    done = {_identity(p.design, p.fabrics): p for p in known}
    done = {name: p for name, p in done.items() if name in wanted}
    groups: dict[tuple[Any, ...], list[tuple[Design, int]]] = {}
    for name, (design, fabrics) in wanted.items():
        if name not in done:
            depths = tuple(getattr(design, depth) for depth in (*DEPTHS, *_SHARED))
            groups.setdefault((design.channels, fabrics, *depths), []).append((design, fabrics))
    progress(len(done), len(wanted))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        _end_line(folder / POINTS_FILE)
    for points in _batches(list(groups.values()), request, jobs):
        done |= {_identity(p.design, p.fabrics): p for p in points}
        if folder:
            with (folder / POINTS_FILE).open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"key": key, **asdict(p)}) + "\n" for p in points)
        progress(len(done), len(wanted))
    return sorted(done.values(), key=lambda p: (p.values(), p.design.name))


def _end_line(file: Path) -> None:
    """Cut a last line that was not written to its end, so that the next one starts its own."""
    if file.exists() and (text := file.read_text(encoding="utf-8")) and not text.endswith("\n"):
        write_atomically(file, text[: text.rfind("\n") + 1])


def pareto(points: Iterable[DesignPoint]) -> list[DesignPoint]:
    """Points that no other one matches in every objective and beats in one, fastest first; of equals, one."""
    front: list[DesignPoint] = []
    for p in sorted(points, key=DesignPoint.values):
        if not any(all(a <= b for a, b in zip(q.values(), p.values(), strict=True)) for q in front):
            front.append(p)
    return front


def best(points: Sequence[DesignPoint]) -> DesignPoint:
    """The fastest point; area decides between equally fast ones, then energy.

    Raises:
        ExploreError: there is none.
    """
    if not points:
        raise ExploreError("there is no point to choose from; explore first")
    return min(points, key=lambda p: (p.seconds, p.lut, p.bram36, p.energy_j))
