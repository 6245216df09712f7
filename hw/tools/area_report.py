"""The report of a design's synthesis: area by module, in total, per binary MAC, against the part and its columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hw.boards import PARTS
from hw.design import Design
from hw.tools.area import SYSTEM_RESET, Area
from hw.tools.placement import MARGINS, Demand, Item, against
from hw.tools.yosys import Synthesis

ARRAY = ("dot_product_unit", "operand_sum_unit", "dot_product_array")
ARRAY_AND_NETWORK = (*ARRAY, "operand_network")


def report(
    design: Design, results: list[Synthesis], flat: Synthesis | None = None, joined: Iterable[Synthesis] = ()
) -> dict[str, Any]:
    """Area by module, in total with all that a bitstream holds, per binary MAC and against the part, ready for JSON.

    Args:
        design: what was synthesised.
        results: of its pieces.
        flat: of the whole as one module.
        joined: of pieces that join several modules to one; only their timing is reported.
    """
    part = PARTS[design.part]

    def total(names: Iterable[str] | None = None) -> Area:
        return sum((r.area().times(r.instances) for r in results if names is None or r.name in names), Area())

    def fit(area: Area) -> dict[str, float]:
        return {
            key: round(100 * value / getattr(part, key), 2) for key, value in area.as_dict().items()
        }  # percent of the part

    everything = total() + SYSTEM_RESET
    demand = sum((r.demand().times(r.instances) for r in results), Demand())
    items = against(part.columns, everything, demand) if part.columns else []
    array, fed = total(ARRAY), total(ARRAY_AND_NETWORK)
    data: dict[str, Any] = {
        "design": design.name,
        "part": design.part,
        "tool": f"Yosys {version('pyosys')}, synth_xilinx -family xc7",
        "command": f"fractrain synth --design {design.name} --tool yosys --json",
        "binary_macs": design.binary_macs,
        "accumulators": design.accumulators,
        "modules": [
            {
                **_timed(r),
                "instances": r.instances,
                "one": r.area().as_dict(),
                "all": r.area().times(r.instances).as_dict(),
                "placement": r.placement,
            }
            for r in results
        ],
        "system_reset": SYSTEM_RESET.as_dict(),
        "total": everything.as_dict(),
        "part_has": {"lut": part.lut, "ff": part.ff, "bram36": part.bram36, "dsp": part.dsp},
        "percent_of_part": fit(everything),
        "routable_percent_of_lut": part.routable,
        "placement": [_as_data(item) for item in items],
        "fits": all(value <= part.limit(kind) for kind, value in everything.as_dict().items())
        and all(item.verdict != "does not fit" for item in items),
        "lut_per_binary_mac": {
            "array": round(array.lut / design.binary_macs, 3),
            "array_and_operand_network": round(fed.lut / design.binary_macs, 3),
        },
    }
    if rows := [_timed(r) for r in joined]:
        data["joined"] = rows
    if flat is not None:
        data["flattened"] = {
            **flat.area().as_dict(),
            "percent_of_part": fit(flat.area()),
            "seconds": flat.seconds,
            "peak_mib": flat.peak_mib,
            "timing": flat.timing,
        }
    return data


def _timed(result: Synthesis) -> dict[str, Any]:
    """What a run took and its worst paths, for JSON."""
    return {
        "module": result.name,
        "seconds": result.seconds,
        "peak_mib": result.peak_mib,
        "timing": result.timing,
        "sources": result.sources,
    }


def _as_data(item: Item) -> dict[str, Any]:
    """A line of the placement's report, for JSON."""
    return {
        "kind": item.kind,
        "needed": item.needed,
        "has": item.has,
        "percent": item.percent,
        "margin_percent": MARGINS[item.kind],
        "verdict": item.verdict,
        "words": item.problem or item.words,
    }


def read_report(path: Path) -> dict[str, Any]:
    """A report that ``fractrain synth --save`` wrote of a whole design.

    Raises:
        ValueError: the file is something else, or the report of a single module.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        missing = {"design", "part", "binary_macs", "part_has", "modules"} - data.keys()
        for row in data.get("modules", ()):
            missing |= {"module", "all"} - row.keys()
            missing |= {kind for kind in Area().as_dict() if not isinstance(row.get("all", {}).get(kind), int | float)}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no result of fractrain synth --save ({error}); make it again") from error
    if missing:
        raise ValueError(
            f"{path} is no result of fractrain synth --save for a whole design: it lacks {', '.join(sorted(missing))}; "
            "make it again, without --module"
        )
    return data
