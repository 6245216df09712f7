"""The ``fractrain`` command and, for programs, the interface to networks of their own: ``import fractrain``.

Names of the interface load PyTorch when they are first used.  Every room brings its own sub-commands to the command,
imported only when they can be.

The exit status is decided here, for all commands: 0, success; 1, something failed (a tool, a device, the disk) or a check
found a difference; 2, the command line or an input is wrong, and nothing was changed; 130, interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from hw.commands.completion import complete
from hw.commands.options import Parser, UsageError

#: name of the interface -> module that has it
INTERFACE = {
    "Conversion": "sw_model.convert.conversion",
    "UnsupportedError": "sw_model.convert.conversion",
    "convert": "sw_model.convert.conversion",
    "conversion_of": "sw_model.convert.conversion",
    "PrecisionScheduler": "sw_model.convert.own_loop",
    "static": "sw_model.convert.own_loop",
    "pfq": "sw_model.convert.own_loop",
    "cyclic": "sw_model.convert.own_loop",
    "manual": "sw_model.convert.own_loop",
    "dfq": "sw_model.convert.own_gates",
    "import_library": "sw_model.convert.references",
    "open_engine": "sw_model.train.engines",
}
__all__ = ["main", *INTERFACE]

#: modules that offer ``register(subparsers)``, ``register_bench(kinds)`` or ``register_report(kinds)``; none of them imports anything heavy before its command runs
ROOMS = (
    "hw.commands.generate_commands",
    "hw.commands.synthesis_commands",
    "hw.commands.bitstream_commands",
    "hw.commands.cost_commands",
    "hw.commands.explore_commands",
    "host.commands.csim_commands",
    "host.commands.cosim_commands",
    "host.commands.bench_commands",
    "host.commands.step_commands",
    "host.commands.host_commands",
    "host.commands.saif_commands",
    "host.commands.simulation_commands",
    "host.commands.board_commands",
    "sw_model.commands.training_commands",
    "sw_model.commands.study_commands",
    "sw_model.commands.export_commands",
    "sw_model.commands.layers_commands",
    "sw_model.commands.demo_commands",
)

#: errors of the system that a wrong path on the command line brings
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def __getattr__(name: str) -> Any:
    if name not in INTERFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(INTERFACE)}")
    return getattr(importlib.import_module(INTERFACE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *INTERFACE})


def version() -> str:
    """Version of this package: the installed one's, or that of the project file beside this module."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("fractrain-fabric")
    except PackageNotFoundError:
        project = Path(__file__).with_name("pyproject.toml")
        lines = project.read_text(encoding="utf-8").splitlines() if project.is_file() else []
        named = (line.partition("=")[2].strip(' "') for line in lines if line.startswith("version ="))
        return next(named, "unknown")


def build_parser() -> Parser:
    """The whole command line; a room that is not installed (the board has no torch) leaves its commands out."""
    parser = Parser(
        prog="fractrain",
        description="Train neural networks at fractional precision on an FPGA, or its simulation.",
        epilog="Exit status: 0 success; 1 something failed, or a check found a difference; 2 the command line or an input "
        "is wrong; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench = subparsers.add_parser("bench", help="measure the engine, training speed or quantizers")
    benches = bench.add_subparsers(dest="bench", required=True, metavar="WHAT")
    report = subparsers.add_parser("report", help="pages about runs, rooflines, recomputed tables of the paper")
    reports = report.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for room in ROOMS:
        try:
            module = importlib.import_module(room)
        except ModuleNotFoundError as e:
            if e.name is not None and e.name.split(".")[0] in ("hw", "host", "sw_model", "torch"):
                continue
            raise
        for register, parsers in (("register", subparsers), ("register_bench", benches), ("register_report", reports)):
            if hasattr(module, register):
                getattr(module, register)(parsers)
    return parser


def explain(error: Exception) -> str:
    """An expected failure in one line; the system's errors name their file and what helps."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = "repair the cause, or free some space, and repeat"
    if isinstance(error, FileExistsError):
        remedy = "choose another name"
    elif isinstance(error, _WRONG_PATH):
        remedy = "check the path"
    return f"{where}{error.strerror}; {remedy}"


def status_of(error: Exception) -> int:
    """Exit status of an expected failure: 2 for wrong input, 1 for everything else."""
    return 2 if isinstance(error, (UsageError, ValueError, *_WRONG_PATH)) else 1


def main(argv: list[str] | None = None) -> int:
    """Run one command; expected failures end in one line on standard error, see the module for the exit status."""
    arguments = argparse.Namespace()
    plain, warnings.formatwarning = warnings.formatwarning, _one_line
    log, details = logging.getLogger(), logging.StreamHandler(sys.stderr)
    level = log.level
    details.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    try:
        parser = build_parser()
        complete(parser)
        arguments = parser.parse_args(argv)
        if "verbose" in arguments:
            log.addHandler(details)
            log.setLevel(logging.DEBUG)
            for loud in ("matplotlib", "PIL", "asyncio"):
                logging.getLogger(loud).setLevel(logging.WARNING)
        return int(arguments.run(arguments) or 0)
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        if "verbose" in arguments:
            traceback.print_exc()
        name = "" if isinstance(error, UsageError) else f"{command_name(arguments)}: "
        print(f"{name}{explain(error)}", file=sys.stderr)
        return status_of(error)
    except KeyboardInterrupt:
        hint = arguments.after_interrupt(arguments) if "after_interrupt" in arguments else None
        print(f"interrupted; {hint}" if hint else "interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = plain
        log.removeHandler(details)
        log.setLevel(level)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning as people read it, without the line of code that gave it."""
    return f"warning: {message}\n"


def command_name(arguments: argparse.Namespace) -> str:
    """The command as it was called, sub-command included."""
    words = (getattr(arguments, level, None) for level in ("command", "bench", "board_command", "kind"))
    return " ".join(["fractrain", *(word for word in words if word)])


if __name__ == "__main__":
    sys.exit(main())
