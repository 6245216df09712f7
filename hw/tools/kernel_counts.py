"""The HLS kernel held to its pragmas, without the vendor's tool: a build whose memories and streams count their use.

The kernel's text is prepared so that every loop tells when it is entered and when an iteration begins, and every pragma
about a loop, a memory or a stream is a statement on what it names.  ``hls_templates/counting.h`` has the types that count.
The kernel then runs programs, and what synthesis would have to schedule is known: the iterations of every loop, the
reads and writes of every memory and stream in an iteration, and which iterations depend on each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from hw.design import Design
from hw.tools.compile import BIT_SERIAL, CompileError, build_bench, hls_files, run_bench

COUNTING_FLAGS = ("-O1", BIT_SERIAL, "-DFABRIC_COUNTING", "-I.")

#: files without code that is synthesized
_NOT_SYNTHESIZED = frozenset(
    {"counting.h", "contract.h", "platform.h", "array_native.h", "channels_native.h", "library.cpp", "testbench.cpp"}
)

Kind = Literal["sequential", "pipelined", "unrolled"]


@dataclass(frozen=True)
class Loop:
    """A loop in the kernel's text, and what it has done over all programs.

    Attributes:
        file, function, line: where it is.
        has_pipelined: a pipelined loop has run inside.
        interval: cycles of an iteration; 0 unless pipelined.
        entries: how often it has been entered.
        iterations: of all entries together.
    """

    file: str
    function: str
    line: int
    kind: Kind
    has_pipelined: bool
    interval: int
    entries: int
    iterations: int

    @property
    def cycles(self) -> int:
        """Cycles in which its iterations begin; 0 unless pipelined."""
        return self.interval * self.iterations


@dataclass(frozen=True)
class Use:
    """Most reads and writes of one memory of ``name``, or of the stream, in an iteration of a pipelined loop."""

    file: str
    function: str
    line: int
    name: str
    reads: int
    writes: int


@dataclass(frozen=True)
class KernelCounts:
    """What has been counted over all programs of a run.

    Attributes:
        faults: promises of pragmas that the code does not keep, each with its place; :func:`loops_without_promise` has others.
        mismatches: results that differ from the expected ones.
    """

    loops: tuple[Loop, ...]
    uses: tuple[Use, ...]
    faults: tuple[str, ...]
    programs: int
    mismatches: int

    def cycles(self) -> dict[str, int]:
        """Cycles of the pipelined loops, by function."""
        result: dict[str, int] = {}
        for loop in self.loops:
            if loop.kind == "pipelined":
                result[loop.function] = result.get(loop.function, 0) + loop.cycles
        return result


def loops_without_promise(loops: Iterable[Loop]) -> list[str]:
    """Loops of any number of runs that are neither pipelined nor unrolled, and in which no pipelined loop runs."""
    seen = [(f"{x.file} {x.function} {x.line}", x) for x in loops if x.kind == "sequential" and x.iterations]
    outer = {place for place, loop in seen if loop.has_pipelined}
    places = dict.fromkeys(place for place, _ in seen if place not in outer)
    return [f"{place}: a loop that is neither pipelined nor unrolled" for place in places]


# -- the kernel's text --------------------------------------------------------------------------------------------------


def _closing(text: str, at: int) -> int:
    """Index of the parenthesis that closes the one at ``at``."""
    depth = 0
    for n in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[n], 0)
        if depth == 0:
            return n
    raise ValueError("a parenthesis is open at the end of the text")


_LOOP = re.compile(r"^( *)(for|while) \(", re.MULTILINE)
_FIRST_PRAGMAS = re.compile(r"(?:\n(?://[^\n]*|#pragma HLS [^\n]*|\s*))*")
_KIND = re.compile(r"#pragma HLS (PIPELINE|UNROLL)(?: II = (\w+))?$", re.MULTILINE)


def _loops(name: str, text: str, number: int) -> str:
    """``text`` whose loops tell entry and iterations; ``number`` is the first loop's."""
    parts: list[str] = []
    done = 0
    for found in _LOOP.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        close = _closing(text, found.end() - 1)
        if text[close + 1 : close + 3] != " {":
            raise ValueError(f"{name}:{line}: the body of a loop begins with a brace on the line that ends its head")
        body = close + 3
        pragmas = _FIRST_PRAGMAS.match(text, body)
        kind = _KIND.search(pragmas[0]) if pragmas else None
        word, interval = (kind[1], kind[2] or "1") if kind else ("", "0")
        counted = {"PIPELINE": "PIPELINED", "UNROLL": "UNROLLED", "": "SEQUENTIAL"}[word]
        entry = f'counting::Entry entry_{number}({number}, "{name}", __func__, __PRETTY_FUNCTION__, {line}, counting::{counted}, {interval})'
        parts += [
            text[done : found.start()],
            found[1],
            f"if ({entry}; true) ",
            text[found.start() + len(found[1]) : body],
        ]
        parts.append(
            f" const counting::Iteration iteration_{number}(entry_{number}); auto& loop_entry = entry_{number}; (void)loop_entry;"
        )
        done = body
        number += 1
    return "".join([*parts, text[done:]])


def _partition(values: dict[str, str]) -> str:
    return f'counting::partition({values["variable"]}, "{values["variable"]}", {values.get("dim", "1")});'


def _bind(values: dict[str, str]) -> str:
    if values["type"] != "ram_2p":
        raise ValueError(f"the ports of a memory of type {values['type']} are not known here")
    return f'counting::bind_storage({values["variable"]}, "{values["variable"]}");'


def _depend(values: dict[str, str]) -> str:
    if values["dependent"] != "false":
        raise ValueError("only pragmas that deny a dependence are known here")
    between = {"inter": "true", "intra": "false"}[values["type"]]
    direction = f"counting::{values.get('direction', 'DIRECTIONS')}"
    return f"counting::independent(loop_entry, {values['variable']}, {between}, {direction});"


def _stream(values: dict[str, str]) -> str:
    return f'counting::stream({values["variable"]}, "{values["variable"]}");'


_STATEMENTS: dict[str, Callable[[dict[str, str]], str]] = {
    "ARRAY_PARTITION": _partition,
    "BIND_STORAGE": _bind,
    "DEPENDENCE": _depend,
    "STREAM": _stream,
}
#: without effect on what is counted, or told by the loops themselves
_SILENT = frozenset({"PIPELINE", "UNROLL", "INLINE", "DATAFLOW", "INTERFACE", "DISAGGREGATE", "BIND_OP"})
_PRAGMA = re.compile(r"^#pragma HLS (\w+)([^\n]*)$", re.MULTILINE)


def _statement(found: re.Match[str]) -> str:
    word, rest = found[1], found[2]
    values = dict(re.findall(r"(\w+) = (\S+)", rest))
    if word == "INTERFACE" and values.get("mode") == "axis":
        return _stream({"variable": values["port"]})
    if word in _SILENT:
        return ""
    if word not in _STATEMENTS or (word == "ARRAY_PARTITION" and " complete" not in rest):
        raise ValueError(f"a pragma whose effect is not known here: {found[0]}")
    return _STATEMENTS[word](values)


def counting_files(files: dict[str, str]) -> dict[str, str]:
    """The kernel's files prepared for the build that counts.

    Raises:
        ValueError: the text is not of the form that is understood here, such as a pragma of an unknown kind.
    """
    prepared = {**files, "hls_stream.h": '#include "counting.h"\n'}
    number = 0
    for name, text in files.items():
        if name.endswith((".h", ".cpp")) and name not in _NOT_SYNTHESIZED:
            counted = _PRAGMA.sub(_statement, _loops(name, text, number))
            port = "HLS_PRAGMA(HLS INTERFACE mode = axis port = name)"
            prepared[name] = counted.replace(port, "counting::stream(name, #name);")
            number += len(_LOOP.findall(text))
    return prepared


# -- runs ---------------------------------------------------------------------------------------------------------------


def count_kernel(design: Design, stimuli: Path, files: dict[str, str] | None = None) -> KernelCounts:
    """Run programs on the kernel that counts.

    Args:
        design: what to render.
        stimuli: file of programs, see :func:`hw.tools.compile.stimuli_text`.
        files: C++ texts to prepare instead of the freshly rendered ones.

    Raises:
        CompileError: the kernel cannot be prepared, built or run.
    """
    try:
        prepared = counting_files(hls_files(design) if files is None else files)
    except (ValueError, KeyError) as e:
        raise CompileError(f"the kernel's text cannot be prepared for counting: {e}") from e
    result = run_bench(build_bench(design, COUNTING_FLAGS, prepared), stimuli)
    loops, uses, faults = [], [], []
    for line in result.log.splitlines():
        word, _, rest = line.partition(" ")
        if word == "loop":
            file, function, number, kind, outer, *numbers = rest.split()
            loops.append(Loop(file, function, int(number), cast(Kind, kind), outer == "1", *map(int, numbers)))
        elif word == "use":
            file, function, number, name, reads, writes = rest.split()
            uses.append(Use(file, function, int(number), name, int(reads), int(writes)))
        elif word == "fault":
            faults.append(rest)
    return KernelCounts(tuple(loops), tuple(uses), tuple(faults), result.programs, result.mismatches)
