"""Render a design into an accelerator: HLS C++, SystemVerilog, documentation and a manifest.

All numbers come from ``hw/design.py`` and ``hw/contract.py``; templates hold parameters and loops only, and files
without parameters are copied.  The same design and sources give the same bytes, and files that would not change are
left alone, so that build tools see no news where there are none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from hw import contract, pipeline
from hw.design import BEAT_BITS, PACKAGE_DATA, ROOT, STREAM_BITS, Design
from hw.files import cache_folder, write_atomically
from hw.packet import used_bits

HLS_TEMPLATES = PACKAGE_DATA / "hls_templates"
RTL_SOURCES = ROOT / "hw" / "rtl"
DOC_TEMPLATES = ROOT / "hw" / "reports"
MANIFEST = "manifest.json"


class GenerateError(RuntimeError):
    """Rendering is impossible; the message names the file and the remedy."""


def parameters(design: Design) -> list[dict[str, Any]]:
    """Integer constants of a design, as every language names them: ``name``, ``value`` and ``doc``."""
    rows = [
        ("CHANNELS", design.channels, "C, channels per group"),
        ("LANES", design.lanes, "L = 2C, pixels of a virtual row"),
        ("DOT_BITS", design.dot_bits, "K = 9C, bits of a dot product"),
        ("UNITS", design.units, "dot-product units of the array"),
        ("DEPTH_A", design.depth_a, "row words per bank of buffer A"),
        ("DEPTH_G", design.depth_g, "row words per bank of buffer G"),
        ("DEPTH_W", design.depth_w, "words of the weight buffer"),
        ("DEPTH_ACCUMULATOR", design.depth_accumulator, "entries of the accumulator memory, C sums each"),
        ("DEPTH_EPILOGUE", design.depth_epilogue, "entries of the epilogue memory"),
        ("DSP_ACCUMULATORS", int(design.accumulators == "dsp"), "1: the array accumulates in DSP slices"),
        ("EPILOGUE_LANES", design.epilogue_lanes, "pixels that epilogue and moments take per cycle"),
        ("ROUNDING", int(design.rounding), "1: there is a unit for stochastic rounding"),
        ("OUTPUT_STREAMS", design.output_streams, "streams on which results leave"),
        ("ROW_BITS", design.lanes * design.channels, "bits of a row word"),
        ("WEIGHT_BITS", design.channels * design.dot_bits, "bits of a weight word, padding left out"),
        ("ROW_WORDS", design.row_words, "R, 64-bit words of a row word"),
        ("WEIGHT_WORDS", design.weight_words, "64-bit words of a weight word, padded to whole beats"),
        ("STREAM_BITS", STREAM_BITS, "bits of one stream"),
        ("BEAT_BITS", BEAT_BITS, "bits of one beat, both input streams together"),
        ("ROW_BANKS", contract.ROW_BANKS, "banks of a tensor buffer, row y lies in bank y mod 8"),
        ("TAPS", contract.TAPS, "kernel positions, tap = 3*ky + kx"),
        ("MAX_BITS", contract.MAX_BITS, "widest code"),
        ("ACC_BITS", contract.ACCUMULATOR_BITS, "signed bits of an accumulator"),
        ("ENTRY_WORDS", contract.ENTRY_WORDS, "64-bit words of an epilogue entry"),
        ("MULTIPLIER_BITS", contract.MULTIPLIER_BITS, "signed bits of an epilogue entry's multipliers m, o, n, l"),
        ("OFFSET_BITS", contract.OFFSET_BITS, "signed bits of an epilogue entry's offset b"),
        ("VALUE_OFFSET_BITS", contract.VALUE_OFFSET_BITS, "signed bits of an epilogue entry's offset c"),
        ("OPERAND_SHIFT", contract.OPERAND_SHIFT, "left shift of products with SIDE and ADDED"),
        ("VALUE_BITS", contract.VALUE_BITS, "signed bits of the epilogue's values x and w"),
        ("MAX_SHIFT", contract.MAX_SHIFT, "greatest shift and value_shift"),
        ("MAX_SIDE_BITS", contract.MAX_SIDE_BITS, "most bits of SIDE, ADDED, KEEP and WIDE"),
        ("MAX_CODE_SHIFT", contract.MAX_CODE_SHIFT, "greatest out_shift, keep_shift and wide_shift"),
        ("SECTION_PLANES", contract.SECTION_PLANES, "most planes that a tile of CODES sends"),
        ("MOMENT_WORDS", contract.MOMENT_WORDS, "64-bit words of a channel's moments"),
        ("SUM_BITS", contract.SUM_BITS, "signed bits of a channel's sum in the moments"),
        ("PRODUCT_BITS", contract.PRODUCT_BITS, "signed bits of a channel's sum of products in the moments"),
        ("GF_POLYNOMIAL", contract.GF_POLYNOMIAL, "of GF(2^16), in which random numbers are made"),
        ("MAX_ROWS", contract.LIMITS["rows"], "most rows of a virtual image"),
        ("MAX_GROUPS", contract.LIMITS["groups"], "most channel groups of the first operand"),
        ("MAX_OUT_GROUPS", contract.LIMITS["out_groups"], "most channel groups of the output"),
        ("MAX_IMAGES", contract.LIMITS["images"], "most virtual images"),
        ("MAX_ENTRIES", contract.MAX_ENTRIES, "most entries of a LOAD W, LOAD E or READ"),
        ("HEADER_WORDS", contract.HEADER_WORDS, "64-bit words of a packet header"),
        ("HEADER_BEATS", contract.HEADER_WORDS // 2, "beats of a packet header"),
        ("HEADER_BITS", contract.HEADER_WORDS * STREAM_BITS, "bits of a packet header"),
        ("CONTRACT_VERSION", contract.VERSION, "version of packets and registers"),
    ]
    return [{"name": name, "value": value, "doc": doc} for name, value, doc in rows]


def _enum(kind: Any) -> list[dict[str, Any]]:
    return [{"name": e.name, "value": int(e), "bit": int(e).bit_length() - 1} for e in kind]


def _packets(design: Design) -> list[dict[str, Any]]:
    """The contract's table of packets: names, and the bits that each may set where it is not stochastic."""
    return [
        {
            "name": kind.name,
            "opcode": kind.opcode.name,
            "target": int(kind.target),
            "format": int(kind.format),
            "fields": kind.fields,
            "flags": [flag.name for flag in contract.Flag if flag & used["flags"]],
            "most": kind.most,
            "halves": _halves(used),
        }
        for kind in contract.PACKETS.values()
        for used in [used_bits(design, kind, contract.Flag(0))]
    ]


def _halves(bits: Mapping[str, int]) -> list[int]:
    """Bits of header fields as 32-bit half-words."""
    halves = [0] * contract.HEADER_HALVES
    for name, mask in bits.items():
        field = contract.FIELD[name]
        halves[field.half] |= mask << field.lsb
    return halves


def _flag_fields() -> list[dict[str, Any]]:
    """Fields that a packet uses beside its kind's own where it has a flag: the flag's name, fields and their bits."""
    return [
        {"flag": flag.name, "fields": names, "halves": _halves({n: (1 << contract.FIELD[n].width) - 1 for n in names})}
        for flag, names in contract.FLAG_FIELDS.items()
    ]


def _record_fields() -> list[dict[str, Any]]:
    """Fields of a record in memory, with the 64-bit word of a port and the lowest bit in it."""
    return [{**asdict(f), "word": f.half // 2, "bit": 32 * (f.half % 2) + f.lsb} for f in contract.RECORD_FIELDS]


def _struct_members(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Header members from the most significant down, gaps filled with pads, so that a packed struct fits exactly."""
    members: list[dict[str, Any]] = []
    top = contract.HEADER_WORDS * STREAM_BITS
    for f in sorted(fields, key=lambda f: -f["bit"]):
        end = f["bit"] + f["width"]
        if end > top:
            raise GenerateError(f"header field {f['name']} overlaps another; correct FIELDS in hw/contract.py")
        if end < top:
            members.append({"name": f"pad_{end}", "width": top - end, "bit": end, "doc": "unused"})
        members.append(f)
        top = f["bit"]
    if top:
        members.append({"name": "pad_0", "width": top, "bit": 0, "doc": "unused"})
    return members


def context(design: Design) -> dict[str, Any]:
    """Names that every template sees."""
    fields = [{**asdict(f), "bit": 32 * f.half + f.lsb} for f in contract.FIELDS]
    constants = {
        "HASH_LO": design.hash64 & 0xFFFFFFFF,
        "HASH_HI": design.hash64 >> 32,
        "CONTRACT": design.contract_register,
    }
    registers = [{**asdict(r), "index": r.offset // 8, "constant": constants.get(r.name)} for r in contract.REGISTERS]
    return {
        "design": design,
        "contract": contract,
        "parameters": parameters(design),
        "fields": fields,
        "header_members": _struct_members(fields),
        "opcodes": _enum(contract.Opcode),
        "errors": _enum(contract.Error),
        "flags": _enum(contract.Flag),
        "pipeline": [{"name": n, "value": getattr(pipeline, n), "doc": doc} for n, doc in pipeline.LENGTHS.items()],
        "packets": _packets(design),
        "flag_fields": _flag_fields(),
        "code_ranges": contract.CODE_RANGES,
        "targets": _enum(contract.Target),
        "output_formats": _enum(contract.OutputFormat),
        "registers": registers,
        # registers that a kernel writes when it returns; 0x00 to 0x10 belong to the control interface
        "kernel_registers": [r for r in registers if r["access"] == "r"],
        "record_fields": _record_fields(),
        "record_bits": contract.RECORD_BITS,
        "record_flags": _enum(contract.RecordFlag),
        "faults": _enum(contract.Fault),
        "memory_status": _enum(contract.MemoryStatus),
        "memory_interrupt": _enum(contract.MemoryInterrupt),
        "memory_registers": contract.MEMORY_REGISTERS,
        "functional_counters": contract.FUNCTIONAL_COUNTERS,
        "timing_counters": contract.TIMING_COUNTERS,
        "last_register": max(r.offset for r in contract.REGISTERS),
    }


def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(design: Design) -> dict[str, str]:
    """All files of a design but the manifest: path relative to the output folder -> text.

    Raises:
        GenerateError: a template is broken or uses an unknown name.
    """
    values = context(design)
    files: dict[str, str] = {}
    for source, target in ((HLS_TEMPLATES, "hls"), (RTL_SOURCES, "rtl"), (DOC_TEMPLATES, "docs")):
        environment = _environment(source)
        for path in sorted([*source.glob("*.j2"), *source.glob("memory/*.j2")]):
            template = path.relative_to(source)
            rendered = f"{target}/{template.with_suffix('').as_posix()}"
            try:
                files[rendered] = environment.get_template(template.as_posix()).render(values)
            except jinja2.TemplateError as e:
                line = f", line {e.lineno}" if isinstance(e, jinja2.TemplateSyntaxError) else ""
                raise GenerateError(f"cannot render {path}{line}: {e}; correct the template") from e
    # rtl/xc7 holds forms in the target's primitives, for synthesis; rtl/memory the front end that fetches programs
    for source, target, patterns in (
        (HLS_TEMPLATES, "hls", ("*.h", "*.cpp")),
        (RTL_SOURCES, "rtl", ("*.sv", "xc7/*.sv", "memory/*.sv")),
    ):
        for path in sorted(p for pattern in patterns for p in source.glob(pattern)):
            if (name := f"{target}/{path.relative_to(source).as_posix()}") in files:
                raise GenerateError(f"{path.name} exists both as a source and as a template in {source}; remove one")
            files[name] = path.read_text(encoding="utf-8")
    for source, target in ((HLS_TEMPLATES, "hls"), (RTL_SOURCES, "rtl"), (DOC_TEMPLATES, "docs")):
        if not any(name.startswith(f"{target}/") for name in files):
            raise GenerateError(
                f"there are no templates in {source}, so nothing of {target}/ can be made; install the package with its "
                "data, or run from a checkout"
            )
    return dict(sorted(files.items()))


def compile_order(names: Iterable[str], primitives: bool, memory: bool = False) -> list[str]:
    """SystemVerilog files in the order in which tools read them, packages first.

    Args:
        names: files of a generated design, relative to its folder ``rtl``; others are passed over.
        primitives: files in the target's primitives replace their namesakes, for synthesis; otherwise the forms for
            simulation.
        memory: with the memory front end, whose top is ``accelerator``; otherwise the stream core ``fabric`` alone.
    """
    paths = [Path(n) for n in names if n.endswith(".sv")]
    chosen = {p.name: p.as_posix() for p in paths if p.parent == Path()}
    if primitives:
        chosen |= {p.name: p.as_posix() for p in paths if p.parent == Path("xc7")}
    if memory:
        chosen |= {p.name: p.as_posix() for p in paths if p.parent == Path("memory")}
    first = ("fabric_pkg.sv", "engine_pkg.sv", "memory_pkg.sv")
    return [chosen[n] for n in (*(n for n in first if n in chosen), *(n for n in sorted(chosen) if n not in first))]


def rtl_digest(design: Design) -> str:
    """SHA-256, 64 hexadecimal digits, of what a measurement on the simulated RTL rests on.

    That is the rendered SystemVerilog of the stream core, as simulation reads it, so the sources and the design's parameters, comments and
    white space left out.

    Raises:
        GenerateError: a template is broken.
    """
    digest = hashlib.sha256()
    for name, text in render(design).items():
        if name.startswith("rtl/") and not name.startswith(("rtl/xc7/", "rtl/memory/")):
            code = " ".join(re.sub(r"//[^\n]*", "", text).split())
            digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()


def manifest(design: Design, files: dict[str, str]) -> dict[str, Any]:
    """What was generated, from which parameters."""
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    summary = json.dumps(hashes, sort_keys=True).encode()
    return {
        "design": asdict(design),
        "derived": {
            "lanes": design.lanes,
            "dot_bits": design.dot_bits,
            "units": design.units,
            "binary_macs": design.binary_macs,
            "row_words": design.row_words,
            "weight_words": design.weight_words,
            "bram36": design.bram36,
        },
        "contract_version": contract.VERSION,
        "design_hash": f"{design.hash64:016x}",
        "streams": {"in": [STREAM_BITS, STREAM_BITS], "out": [STREAM_BITS] * design.output_streams},
        "ports": {
            "s_axi_control": {"data": 32, "address": 8},
            "in0": {"tdata": STREAM_BITS, "tlast": 1},
            "in1": {"tdata": STREAM_BITS, "tlast": 1},
            **{f"out{i}": {"tdata": STREAM_BITS, "tlast": 1} for i in range(design.output_streams)},
        },
        "registers": {r.name: r.offset for r in contract.REGISTERS},
        "memory_registers": {r.name: r.offset for r in contract.MEMORY_REGISTERS},
        "files": hashes,
        "content_hash": hashlib.sha256(summary).hexdigest(),
    }


def _write(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step; a file that already holds it keeps its date."""
    data = text.encode()
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, data)


def _forget(out: Path, files: dict[str, str]) -> None:
    """Remove what an earlier generation wrote and this one does not; leave everything else in the folder alone."""
    try:
        earlier = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in earlier:
        # only names as render() makes them: folder/file, or one folder more
        parts = Path(name).parts
        if name not in files and len(parts) in (2, 3) and ".." not in parts and parts[0] in ("hls", "rtl", "docs"):
            (out / name).unlink(missing_ok=True)


def generate(design: Design, out: Path) -> Path:
    """Render ``design`` into the folder ``out`` and return it.

    Raises:
        GenerateError: a template is broken, or ``out`` is not a folder that can be written.
    """
    return _put(design, render(design), Path(out))


def generated(design: Design) -> Path:
    """``design`` in a folder of the cache that its contents name, so that no process changes what another one reads.

    Raises:
        GenerateError: see :func:`generate`.
        OSError: see :func:`hw.files.cache_folder`.
    """
    files = render(design)
    digest = hashlib.sha256(json.dumps(manifest(design, files), sort_keys=True).encode()).hexdigest()
    return _put(design, files, cache_folder() / f"design-{design.name}-{digest[:16]}")


def _put(design: Design, files: dict[str, str], out: Path) -> Path:
    text = json.dumps(manifest(design, files), indent=2, sort_keys=True) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        _forget(out, files)
        for name, content in files.items():
            _write(out / name, content)
        _write(out / MANIFEST, text)
    except OSError as e:
        raise GenerateError(f"cannot write to {out}: {e.strerror or e}; choose another folder with --out") from e
    return out
