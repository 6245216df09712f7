"""Area of the generated RTL on 7-series parts, from Yosys.

Every module is synthesised once; the modules that it contains are black boxes.  Its cells are multiplied by the number
of its instances.  So hundreds of equal units cost one unit's time and memory, and the area is known by module.
Nothing is optimised across module borders; a flattened run, where it is feasible, says how much that costs. Yosys runs
in a process of its own: a crash, or a design that outgrows the memory or the time allowed, ends that process only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hw import contract
from hw.design import ROOT, Design
from hw.files import cache_folder, write_atomically
from hw.generate import compile_order
from hw.tools import placement, timing
from hw.tools.area import Area, SynthesisError
from hw.tools.placement import Demand, demand_of

_logger = logging.getLogger(__name__)
_FLOW = 6  #: raise it when the Yosys commands change, so that cached results are not used
PATHS = 3  #: of each piece and net model, in reports

#: primitives that the sources in rtl/xc7 instantiate
XC7_PRIMITIVES = ("LUT4", "LUT5", "LUT6", "LUT6_2", "CARRY4", "DSP48E1")
#: and that the top of a netlist for other tools than the vendor's does
PLATFORM_PRIMITIVES = ("BUFG", "MMCME2_ADV", "PS7")


@dataclass(frozen=True)
class SynthesisPiece:
    """One synthesis run: a module with some of the modules it contains, the others left out as boxes.

    Attributes:
        name: in reports.
        module: its SystemVerilog name.
        instances: how often it occurs in the whole design.
        generics: its parameters.
        boxes: modules left out, and how many instances of each the piece must have. All others are synthesised with it.
    """

    name: str
    module: str
    instances: int = 1
    generics: tuple[tuple[str, int], ...] = ()
    boxes: tuple[tuple[str, int], ...] = ()


def pieces(design: Design) -> list[SynthesisPiece]:
    """Pieces that together are all RTL of a bitstream, each once."""
    dsp = int(design.accumulators == "dsp")
    dot = (("BITS", design.dot_bits), ("ACC", contract.ACCUMULATOR_BITS))
    row_bits, weight_bits = design.lanes * design.channels, design.channels * design.dot_bits
    children = (
        "loader", "command_queue", "sequencer", "weight_buffer", "operand_network", "dot_product_array", "drain",
        "control_registers",
    )  # fmt: skip
    # units of the drain, each large enough to be known by itself
    drained = (
        ("shadow_lane", design.lanes), *((name, 1) for name in ("accumulators", "epilogue", "code_buffer", "moments")),
        *((("rounding", 1),) if design.rounding else ()),
    )  # fmt: skip
    return [
        SynthesisPiece("dot_product_unit", "dot_product_unit", design.units, (*dot, ("DSP", dsp))),
        SynthesisPiece("operand_sum_unit", "dot_product_unit", design.lanes, (*dot, ("ONES", 1), ("DSP", 0))),
        SynthesisPiece(
            "dot_product_array", "dot_product_array", boxes=(("dot_product_unit", design.units + design.lanes),)
        ),
        SynthesisPiece("operand_network", "operand_network"),
        SynthesisPiece("buffer_a", "tensor_buffer", generics=(("DEPTH", design.depth_a), ("WIDTH", row_bits))),
        SynthesisPiece("buffer_g", "tensor_buffer", generics=(("DEPTH", design.depth_g), ("WIDTH", row_bits))),
        SynthesisPiece("buffer_w", "weight_buffer", generics=(("DEPTH", design.depth_w), ("WIDTH", weight_bits))),
        SynthesisPiece("loader", "loader"),
        *(SynthesisPiece(name, name, instances) for name, instances in drained),
        SynthesisPiece("drain", "drain", boxes=drained),
        SynthesisPiece("sequencer", "sequencer"),
        SynthesisPiece("command_queue", "command_queue"),
        SynthesisPiece("control_registers", "control_registers"),
        SynthesisPiece("fabric", "fabric", boxes=(*((name, 1) for name in children), ("tensor_buffer", 2))),
        SynthesisPiece("control_bridge", "control_bridge"),
        SynthesisPiece("memory_front_end", "accelerator", boxes=(("fabric", 1),)),
    ]


def joined_pieces(design: Design) -> list[SynthesisPiece]:
    """Pieces of many modules, flattened, whose paths cross the borders at which :func:`pieces` ends them.

    ``front_half``: all that leads up to the array but the memories: queue, header check, loader, sequencer, operands of the
    epilogue, registers and counters.  ``all_but_units``: the accelerator with its memory front end but for the units of the
    array, the largest that fits 16 GiB.  Neither is part of a design's area, which would count their modules twice.
    """
    behind = ("weight_buffer", "operand_network", "dot_product_array", "drain")
    front = (*((name, 1) for name in behind), ("tensor_buffer", 2))
    return [
        SynthesisPiece("front_half", "fabric", boxes=front),
        SynthesisPiece("all_but_units", "accelerator", boxes=(("dot_product_unit", design.units + design.lanes),)),
    ]


@dataclass(frozen=True)
class Synthesis:
    """Result of one run.

    Attributes:
        name: of the piece.
        instances: of the piece in the whole design.
        seconds: time it took.
        peak_mib: memory that it took at most, in MiB.
        cells: primitive cells of one instance, boxes left out.
        timing: by net model ("real", "ideal"), its worst paths, longest first; see :mod:`hw.tools.timing`.
        placement: the fields of a :class:`hw.tools.placement.Demand`.
        sources: digest of the sources, see :func:`sources_digest`.
    """

    name: str
    instances: int
    seconds: float
    peak_mib: int
    cells: dict[str, int]
    timing: dict[str, list[dict[str, Any]]]
    placement: dict[str, Any] = field(default_factory=dict)
    sources: str = ""

    def area(self) -> Area:
        """Area of one instance."""
        return Area.of(self.cells)

    def demand(self) -> Demand:
        """What one instance asks of a placement."""
        return Demand(**self.placement)


# -- sources ----------------------------------------------------------------------------------------------------------


def _cells() -> str:
    """Yosys' models of the primitives, and its declarations of those that it has no models of.

    The package is found, not loaded: it has the extension modules that are loaded after it share all their symbols.
    """
    package = importlib.util.find_spec("pyosys")
    if package is None or package.origin is None:
        raise SynthesisError("pyosys is not installed: pip install 'fractrain-fabric[sim]'")
    folder = Path(package.origin).parent / "share" / "xilinx"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in ("cells_sim.v", "cells_xtra.v"))


def _primitives(names: tuple[str, ...]) -> dict[str, re.Match[str]]:
    text = _cells()
    found = {}
    for name in names:
        match = re.search(rf"^module {name}\s*\((.*?)\);(.*?)^endmodule", text, re.MULTILINE | re.DOTALL)
        if match is None:
            raise SynthesisError(f"this Yosys has no model of {name}")
        found[name] = match
    return found


def primitive_models(names: tuple[str, ...] = XC7_PRIMITIVES) -> str:
    """Verilog models of primitives, for simulation."""
    return "\n".join(m[0] for m in _primitives(names).values()) + "\n"


def primitive_headers(names: tuple[str, ...] = XC7_PRIMITIVES) -> str:
    """Verilog declarations of primitives: ports and parameters only."""
    text = []
    for name, match in _primitives(names).items():
        # directions stand in the header or, in the older style, behind it
        kinds = "parameter" if re.search(r"\b(in|out)put\b", match[1]) else "parameter|input|output|inout"
        declared = re.findall(rf"^\s*(?:{kinds})\b[^;]*;", match[2], re.MULTILINE)
        # a netlist has no real numbers: those that are whole become integers, the others keep their defaults unsaid
        whole = (re.sub(r"parameter real (\w+) = (-?\d+)\.0*;", r"parameter \1 = \2;", line) for line in declared)
        kept = [line for line in whole if "parameter real" not in line]
        text.append("\n".join([f"module {name} ({match[1]});", *kept, "endmodule"]))
    return "\n".join(text) + "\n"


def synthesis_sources(folder: Path) -> list[Path]:
    """SystemVerilog files of a generated design for synthesis: primitives replace the forms for simulation.  With the memory
    front end, which needs the core's files."""
    rtl = folder / "rtl"
    names = (p.relative_to(rtl).as_posix() for p in rtl.rglob("*.sv"))
    return [rtl / name for name in compile_order(names, primitives=True, memory=True)]


def _content(piece: SynthesisPiece, sources: list[Path]) -> list[tuple[str, str]]:
    """What a piece's area depends on, found from the sources: name and text of every package that it imports and every
    module that it contains, directly or not; of a box its header only. Comments are left out.

    Modules and packages lie in files of their names.
    """
    texts = {p.stem: re.sub(r"//.*", "", p.read_text(encoding="utf-8")) for p in sources}
    boxes = {name for name, _ in piece.boxes}
    found: set[str] = set()
    front = {piece.module}
    while front:
        found |= front
        # a name that means something else only adds a source too many
        words = {word for name in front - boxes for word in re.findall(r"\w+", texts[name])}
        front = (words & texts.keys()) - found
    return [(name, _box(texts[name])[0] if name in boxes else texts[name]) for name in sorted(found)]


def _box(text: str) -> tuple[str, list[str]]:
    """Header of a SystemVerilog module as a module of its own, and the names of its parameters."""
    match = re.search(r"^module\b.*?^\);", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SynthesisError("a module's header does not end with a line `);`; correct its form")
    header = re.sub(r"//.*", "", match[0])
    parameters = re.findall(r"\b(?:parameter|localparam)\b[^=]*?(\w+)\s*=", header)
    return f"`default_nettype none\n{match[0]}\nendmodule\n`default_nettype wire\n", parameters


def sources_digest(piece: SynthesisPiece, folder: Path) -> str:
    """Digest of a piece and of the sources that it is made of, by which a record tells whether it is of the RTL as it is."""
    known = (piece, _content(piece, synthesis_sources(folder)))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def cache_key(piece: SynthesisPiece, folder: Path, grade: str) -> str:
    """Name of a piece's result in the cache: a hash of the piece, of the sources that it is made of, of the tool, and of what
    reads its netlists."""
    readers = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (placement, timing)]
    known = (piece, _content(piece, synthesis_sources(folder)), version("pyosys"), _FLOW, grade, readers)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


# -- the run ----------------------------------------------------------------------------------------------------------


def _work(job: dict[str, Any]) -> None:
    """Body of the process that runs Yosys: writes its cell counts to ``job["result"]``."""
    from pyosys import libyosys

    limit = int(job["memory_mib"]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    design = libyosys.Design()

    def run(command: str) -> None:
        libyosys.run_pass(command, design)

    known = (*XC7_PRIMITIVES, *PLATFORM_PRIMITIVES) if "netlist" in job else XC7_PRIMITIVES
    boxes = " ".join(f"--blackboxed-module {name}" for name in (*known, *job["boxes"]))
    generics = " ".join(f"-G {name}={value}" for name, value in job["generics"])
    run(f"read_slang --unroll-limit=1000000 --top {job['top']} {boxes} {generics} {' '.join(job['sources'])}")
    for name, parameters in job["boxes"].items():  # a box has no parameters as far as Yosys knows
        if parameters:
            run(f"setparam {' '.join(f'-unset {p}' for p in parameters)} t:{name}")
    # registers that the sources keep stay apart, as in Vivado; Yosys itself keeps only the names of what they drive
    run("setattr -set keep 1 a:keep %ci1 t:$*ff* %i")
    # nor do registers become shift registers in LUTs where the sources forbid it
    run("setattr -set keep 1 a:shreg_extract=no %ci1 t:$*ff* %i")
    # no pads: the fabric is a block inside the programmable logic
    run(f"synth_xilinx -family xc7 -flatten -noiopad -noclkbuf -top {job['top']}")
    run(f"tee -q -o {job['result']} stat -json")
    if "netlist" in job:
        run("delete t:$scopeinfo")
    run(f"write_json {job.get('netlist', job['result'] + '.netlist')}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    Path(job["result"] + ".peak").write_text(str(peak), encoding="utf-8")


def synthesize(
    piece: SynthesisPiece,
    folder: Path,
    *,
    grade: str = "-2",
    seconds: float = 3600,
    memory_mib: int = 16384,
    keep: bool = True,
) -> Synthesis:
    """Area of one piece of a generated design, and the estimate of its timing.

    Args:
        piece: what to synthesise.
        folder: of the generated design.
        grade: speed grade of the part, a key of :data:`hw.tools.timing.GRADES`.
        seconds: most time that Yosys may take.
        memory_mib: most memory that Yosys may take, in MiB.
        keep: take an earlier result of the same sources from the cache, and leave this one there.

    Raises:
        SynthesisError: Yosys is missing, refused the sources, or needed more time or memory.
    """
    kept = cache_folder() / f"synth-{piece.name}-{cache_key(piece, folder, grade)}.json" if keep else None
    sources = sources_digest(piece, folder)
    if kept and kept.exists():
        return replace(Synthesis(**json.loads(kept.read_text(encoding="utf-8"))), sources=sources)

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        job = _job(piece, synthesis_sources(folder), Path(work), memory_mib)
        _run_yosys(piece, job, Path(work) / "log", seconds)
        result = job["result"]
        statistics = json.loads(Path(result).read_text(encoding="utf-8"))["modules"]
        peak = int(Path(f"{result}.peak").read_text(encoding="utf-8"))
        netlist = json.loads(Path(f"{result}.netlist").read_text(encoding="utf-8"))["modules"]
    modules = {name.removeprefix("\\"): module for name, module in statistics.items()}
    top = next(name for name in modules if name.split("$")[0] == piece.module)
    cells = _own_cells(piece, modules[top]["num_cells_by_type"])
    _join_pairs(cells, netlist[top])
    done = Synthesis(
        piece.name, piece.instances, round(time.monotonic() - started, 1), peak, cells, _timing(netlist[top], grade),
        asdict(demand_of(netlist[top])), sources,
    )  # fmt: skip
    done.area()
    if kept:
        write_atomically(kept, json.dumps(asdict(done)))
    return done


def write_netlist(
    top: str, sources: list[Path], folder: Path, boxes: tuple[str, ...] = (), seconds: float = 4 * 3600
) -> dict[str, int]:
    """Netlist of primitives, flattened, in ``folder/TOP.json``; returns its cells by type.

    Args:
        top: module.
        sources: in reading order.
        folder: where it goes.
        boxes: modules left out.
        seconds: most time that Yosys may take.

    Raises:
        SynthesisError: Yosys is missing, refused the sources, or took too long.
    """
    piece = SynthesisPiece(top, top, boxes=tuple((name, 1) for name in boxes))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        job = _job(piece, sources, Path(work), 65536, (*XC7_PRIMITIVES, *PLATFORM_PRIMITIVES))
        job["netlist"] = str(Path(work) / "netlist.json")
        _run_yosys(piece, job, Path(work) / "log", seconds)
        found = json.loads(Path(job["result"]).read_text(encoding="utf-8"))["modules"]
        os.replace(job["netlist"], folder / f"{top}.json")
    (counted,) = (module["num_cells_by_type"] for name, module in found.items() if name.removeprefix("\\") == top)
    return {name.removeprefix("\\"): int(n) for name, n in counted.items() if not name.startswith("$scopeinfo")}


def _job(
    piece: SynthesisPiece,
    sources: list[Path],
    work: Path,
    memory_mib: int,
    primitives: tuple[str, ...] = XC7_PRIMITIVES,
) -> dict[str, Any]:
    """What the process that runs Yosys is told; the sources are copied to ``work``, pieces of their own as boxes."""
    headers = work / "primitives.v"
    headers.write_text(primitive_headers(primitives), encoding="utf-8")
    boxes: dict[str, list[str]] = {}
    read = [headers]
    for source in sources:
        text = source.read_text(encoding="utf-8")
        if source.stem in dict(piece.boxes):
            text, boxes[source.stem] = _box(text)
        # copied, because a blank ends a name in Yosys' commands
        read.append(work / source.name)
        read[-1].write_text(text, encoding="utf-8")
    return {
        "top": piece.module,
        "generics": piece.generics,
        "boxes": boxes,
        "memory_mib": memory_mib,
        "sources": [str(path) for path in read],
        "result": str(work / "stat.json"),
    }


def _run_yosys(piece: SynthesisPiece, job: dict[str, Any], log: Path, seconds: float) -> None:
    """Runs a job in a process of its own.

    Raises:
        SynthesisError: it failed, or took too long.
    """
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "hw.tools.yosys", json.dumps(job)]
        _logger.debug("%s, with %s", piece.name, json.dumps(job))
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as e:
            raise SynthesisError(f"Yosys did not end within {seconds:.0f} s on {piece.name}") from e
        finally:
            process.kill()  # also when this process is told to stop: Yosys must not live on alone
            process.wait()
    if process.returncode or not Path(job["result"]).exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "ERROR" in line or "error:" in line][:5] or lines[-3:]
        raise SynthesisError(f"Yosys failed on {piece.name}: " + "; ".join(errors))


def _own_cells(piece: SynthesisPiece, counted: dict[str, Any]) -> dict[str, int]:
    """Cells of a piece by type, without the instances of other pieces.

    Raises:
        SynthesisError: those instances are others than the piece says.
    """
    cells: dict[str, int] = {}
    found: Counter[str] = Counter()
    wanted = dict(piece.boxes)
    for name, n in counted.items():
        name = name.removeprefix("\\")
        if (plain := name.split("$")[0]) in wanted:
            found[plain] += int(n)
        else:
            cells[name] = int(n)
    if dict(found) != wanted:
        raise SynthesisError(f"{piece.name} has instances {dict(found)} instead of {wanted}; correct pieces()")
    return cells


def _join_pairs(cells: dict[str, int], module: dict[str, Any]) -> None:
    """Counts two LUTs that the sources pair with HLUTNM as the one that they share."""
    paired = Counter(cell["type"] for cell in module["cells"].values() if "HLUTNM" in cell["attributes"])
    for name, n in paired.items():
        cells[name] -= n
    cells["LUT6_2"] = cells.get("LUT6_2", 0) + -(-sum(paired.values()) // 2)  # one may have lost the other


def _timing(module: dict[str, Any], grade: str) -> dict[str, list[dict[str, Any]]]:
    """Worst paths of a netlist, by net model."""
    models = {"real": timing.REAL, "ideal": timing.IDEAL}
    return {
        name: [asdict(path) for path in timing.worst_paths(module, cells=timing.GRADES[grade], nets=nets, count=PATHS)]
        for name, nets in models.items()
    }


def chosen_pieces(design: Design, module: str | None = None) -> list[SynthesisPiece]:
    """The pieces of a design, or the one of that name, which may be a joined one.

    Raises:
        ValueError: there is no such module.
    """
    if module is None:
        return pieces(design)
    every = [*pieces(design), *joined_pieces(design)]
    found = [piece for piece in every if piece.name == module]
    if not found:
        raise ValueError(f"no module {module!r}; name one of {', '.join(piece.name for piece in every)}")
    return found


def whole_design(design: Design) -> SynthesisPiece:
    """The whole fabric as one flattened piece."""
    return SynthesisPiece(f"{design.name} flattened", "fabric")


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
