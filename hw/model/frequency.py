"""Clock of a design from its parameters: the longest path of every module by the static estimate, and what the board allows.

Paths are those of :mod:`hw.tools.timing` with real nets.  A module's longest path is a constant and a share for every
doubling of a parameter that it depends on, fitted to the records of ``fractrain synth`` of whole designs
(docs/measurements/synth-*.json) and to those of single modules of their variants (``fractrain synth --variants``,
docs/measurements/timing-variants.json).  The estimate ranks paths and promises nothing, so a clock from it compares
designs: the same nets are taken for a chip that is hardly used and for one that is full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hw.boards import BOARDS, PARTS
from hw.design import Design, load_design
from hw.tools.timing import GRADES

#: what a period must hold beside the longest path: the clock's uncertainty and skew, ns (150 MHz are 6.67 ns, of which the
#: project's paths may take 6.4)
UNCERTAINTY = 0.27


@dataclass(frozen=True)
class ModulePath:
    """The longest path of a module.

    Attributes:
        ns: at the parameters of the design ``zc706``, speed grade -2, real nets.
        cells: share of it inside cells, which another grade slows down; the rest is nets.
        doubling: parameter or property of a design -> ns more for twice as much of it.
    """

    ns: float
    cells: float
    doubling: dict[str, float]


#: by module, the pieces of :func:`hw.tools.yosys.pieces`
MODULE_PATHS: dict[str, ModulePath] = {
    "dot_product_unit": ModulePath(5.9, 0.28, {"channels": 0.0, "accumulators": -0.82}),
    "operand_sum_unit": ModulePath(5.08, 0.27, {"channels": 0.93}),
    "dot_product_array": ModulePath(1.93, 0.47, {"channels": 0.22}),
    "operand_network": ModulePath(3.82, 0.27, {"channels": 0.16}),
    "buffer_a": ModulePath(5.13, 0.12, {"depth_a": 1.03, "channels": 0.0}),
    "buffer_g": ModulePath(5.13, 0.12, {"depth_g": 1.03, "channels": 0.0}),
    "buffer_w": ModulePath(3.86, 0.37, {"depth_w": 0.04, "channels": 0.33}),
    "loader": ModulePath(6.03, 0.2, {"channels": 0.0}),
    "shadow_lane": ModulePath(2.94, 0.16, {"channels": 0.32}),
    "accumulators": ModulePath(4.22, 0.46, {"channels": 0.22, "depth_accumulator": 0.0}),
    "epilogue": ModulePath(5.04, 0.13, {"epilogue_lanes": 0.2}),
    "code_buffer": ModulePath(4.44, 0.26, {"channels": 0.72, "epilogue_lanes": -0.08}),
    "moments": ModulePath(5.01, 0.17, {"epilogue_lanes": 0.05}),
    "rounding": ModulePath(6.08, 0.09, {"channels": 0.17}),
    "drain": ModulePath(5.23, 0.1, {"channels": 0.0, "epilogue_lanes": 0.0}),
    "sequencer": ModulePath(5.8, 0.13, {"channels": 0.0}),
    "command_queue": ModulePath(4.58, 0.31, {}),
    "control_registers": ModulePath(3.65, 0.3, {}),
    "fabric": ModulePath(4.6, 0.2, {"channels": 0.0}),
    "control_bridge": ModulePath(3.2, 0.34, {}),
    "memory_front_end": ModulePath(5.98, 0.11, {}),
}
REFERENCE = "zc706"

#: modules whose parameters the records of whole designs do not vary: a design, changes to it, modules
VARIED: tuple[tuple[str, dict[str, object], tuple[str, ...]], ...] = (
    ("zc706", {"accumulators": "lut"}, ("dot_product_unit",)),
    ("zc706", {"depth_a": 1024, "depth_w": 1024, "depth_accumulator": 4096}, ("buffer_a", "buffer_w", "accumulators")),
    ("zc706", {"depth_a": 2048, "depth_w": 2048, "depth_accumulator": 2048}, ("buffer_a", "buffer_w", "accumulators")),
    ("zc706", {"epilogue_lanes": 16}, ("epilogue", "moments", "code_buffer", "drain")),
)


def varied_designs() -> Iterator[tuple[Design, tuple[str, ...]]]:
    """Designs of which single modules are synthesised for the model, and which."""
    for name, changes, modules in VARIED:
        yield replace(load_design(name), **changes), modules  # type: ignore[arg-type]


def paths(design: Design) -> dict[str, float]:
    """Longest path of every module of a design, ns, by the model.

    Raises:
        ValueError: the part's delays are not those of the 7 series.
    """
    part, reference = PARTS[design.part], load_design(REFERENCE)
    if part.columns is None:
        raise ValueError(f"delays of {design.part} are not known; the estimate is for parts of the 7 series")
    slower = GRADES[part.grade].slower
    found = {}
    for name, path in MODULE_PATHS.items():
        if name == "rounding" and not design.rounding:
            continue
        more = sum(
            share * math.log2(size(design, what) / size(reference, what)) for what, share in path.doubling.items()
        )
        found[name] = (path.ns + more) * (1 + path.cells * (slower - 1))
    return found


def size(design: Design, what: str) -> float:
    """A parameter as a positive number; accumulators in LUTs count as twice those in DSP slices."""
    value = getattr(design, what)
    return 1.0 + (value == "lut") if what == "accumulators" else float(value)


@lru_cache(maxsize=1 << 14)
def estimated_clock(design: Design) -> float | None:
    """Clock in MHz that the longest path allows, at most that of the processor's ports; None for parts without delays."""
    if PARTS[design.part].columns is None:
        return None
    return min(1000 / (max(paths(design).values()) + UNCERTAINTY), BOARDS[design.part].port_mhz)
