"""Command line of the board: ``fractrain board run|serve|check|token``; no PyTorch anywhere."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from hw.commands import options

TOKEN_VARIABLE = "FRACTRAIN_TOKEN_FILE"


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``board`` to the command line."""
    board = subparsers.add_parser("board", help="train from an exported job, or offer a board to a workstation")
    commands = board.add_subparsers(dest="board_command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train, evaluate and checkpoint a job without PyTorch")
    run.add_argument("job", type=options.input_file, help="job file from fractrain export")
    _device_options(run)
    run.add_argument("--out", type=options.output_folder, help="run folder (default: runs/JOB)")
    run.add_argument("--resume", action="store_true", help="continue the run in the run folder")
    run.add_argument(
        "--stop-after", type=options.positive, metavar="STEPS", help="stop, with a checkpoint, after this many steps"
    )
    run.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    run.set_defaults(run=run_job_command, after_interrupt=_after_interrupt)

    serve = commands.add_parser("serve", help="offer a device over TCP to one client at a time")
    _device_options(serve)
    serve.add_argument("--bind", default="127.0.0.1", help="interface to listen on")
    serve.add_argument("--port", type=options.port, default=4711, help="port; 0 takes a free one")
    serve.set_defaults(run=serve_command)

    check = commands.add_parser("check", help="check a job file and say what it holds")
    check.add_argument("job", type=options.input_file, help="job file from fractrain export")
    check.set_defaults(run=check_command)

    token = commands.add_parser("token", help="make a token file that server and clients share")
    token.add_argument("file", type=options.output_file, help="file to make")
    token.set_defaults(run=token_command)


def _device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=device_name,
        default="reference",
        help="pynq, rtl, hls, reference, numpy (exact products without a fabric), or tcp://HOST:PORT; rtl-memory, hls-memory "
        "and reference-memory keep a job's tensors in a memory of their own, as a board does",
    )
    parser.add_argument(
        "--design",
        help="design of the fabric (default: sim-small; for tcp, whatever is served; for numpy, none: the order of random "
        "numbers is that of any design)",
    )
    parser.add_argument("--overlay", type=Path, help="bitstream for --device pynq (default: the installed overlay)")
    parser.add_argument(
        "--energy",
        action="store_true",
        help="for --device pynq: read the board's power monitors while programs run (default: off)",
    )
    parser.add_argument(
        "--token", type=Path, help=f"token file for tcp and serve (default: ${TOKEN_VARIABLE}, or ~/.fractrain-token)"
    )


def device_name(text: str) -> str:
    """A device that ``--device`` can name: an argparse type."""
    from host.devices.device import DEVICE_KINDS
    from host.devices.remote import parse_address

    if text.startswith("tcp://"):
        try:
            parse_address(text)
        except (ValueError, RuntimeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    elif text not in (*DEVICE_KINDS, "numpy"):
        raise argparse.ArgumentTypeError(
            f"no device kind {text!r}; use one of {', '.join(DEVICE_KINDS)}, numpy, or tcp://HOST:PORT"
        )
    return text


def _run_folder(arguments: argparse.Namespace) -> Path:
    out: Path | None = arguments.out
    return out or Path("runs") / Path(arguments.job).stem


def _after_interrupt(arguments: argparse.Namespace) -> str:
    out = _run_folder(arguments)
    if not (out / "checkpoint.npz").exists():
        return "nothing has been saved yet"
    return f"go on with the same command and --resume, from the last checkpoint in {out}"


def token_path(given: Path | None) -> Path:
    """Token file: given, from the environment, or in the home folder."""
    return given or Path(os.environ.get(TOKEN_VARIABLE) or Path.home() / ".fractrain-token")


def open_any(arguments: argparse.Namespace) -> Any:
    """The device that the options name.

    Raises:
        ValueError, RuntimeError: unknown, missing, or of another design.
    """
    from host.devices.device import open_device
    from hw.design import load_design

    name: str = arguments.device
    if name.startswith("tcp://") and not arguments.energy:
        from host.devices.remote import RemoteDevice, read_token

        design = load_design(arguments.design) if arguments.design else None
        return RemoteDevice(name, read_token(token_path(arguments.token)), design)
    design = load_design(arguments.design or "sim-small")
    if arguments.overlay is not None and name != "pynq":
        raise ValueError("--overlay is for --device pynq only")
    options: dict[str, Any] = {"overlay": arguments.overlay} if arguments.overlay is not None else {}
    if arguments.energy:
        if name != "pynq":
            raise ValueError("--energy is for --device pynq only; of a board behind tcp://, start its server with it")
        from host.devices.zynq.power import PowerSensor

        options["sensor"] = PowerSensor()
    return open_device(name, design, **options)


def run_job_command(arguments: argparse.Namespace) -> int:
    """``fractrain board run``."""
    from host.board.job import load_job
    from host.board.runtime import run_job
    from host.devices.memory import MemoryDevice
    from host.driver.fabric_engine import FabricEngine
    from host.driver.pass_engine import engine_in_memory
    from host.exact_engine import ExactEngine
    from host.operands import Engine
    from hw.design import load_design

    def shown(line: dict[str, Any]) -> None:
        if not arguments.json and "stage" in line:
            tested = line["test_accuracy"]
            accuracy = "" if tested is None else f"  test {100 * tested:.2f} %"
            print(
                f"epoch {line['epoch']:3d}  bits {line['bits']:>8}  loss {line['loss']:.4f}  train "
                f"{100 * line['train_accuracy']:.2f} %{accuracy}  {line['seconds']:.1f} s",
                flush=True,
            )

    out = options.usable_folder(_run_folder(arguments))
    job = load_job(arguments.job)
    engine: Engine
    if arguments.device == "numpy":
        engine = ExactEngine(load_design(arguments.design) if arguments.design else None)
    else:
        device = open_any(arguments)
        with_memory = isinstance(device, MemoryDevice)
        engine = engine_in_memory(device) if with_memory else FabricEngine(device, keep_rows=False)
    result = run_job(job, engine, out, resume=arguments.resume, stop_after=arguments.stop_after, on_line=shown)
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps(asdict(result)))
    else:
        state = "finished" if result.finished else "stopped; continue with --resume"
        tested = f"test accuracy {100 * result.test_accuracy:.2f} % (best {100 * result.best_accuracy:.2f} %), "
        print(
            f"{state}: {tested if result.best_accuracy else ''}{result.steps} steps, {result.seconds:.1f} s, in {out}"
        )
    return 0


def serve_command(arguments: argparse.Namespace) -> int:
    """``fractrain board serve``: runs until interrupted."""
    from host.devices.remote import Server, read_token

    if arguments.device == "numpy" or arguments.device.startswith("tcp://"):
        raise ValueError(f"--device {arguments.device} cannot be served; use pynq, rtl, hls or reference")
    token = read_token(token_path(arguments.token))
    device = open_any(arguments)
    server = Server(device, token, arguments.bind, arguments.port, log=lambda line: print(line, flush=True))
    host, port = server.address
    print(f"serving {device.info.kind} of design {device.info.design.name} on tcp://{host}:{port}", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        server.stop()
        print("stopped")
    return 0


def check_command(arguments: argparse.Namespace) -> int:
    """``fractrain board check``: ends well for a sound job."""
    from host.board.job import load_job

    job = load_job(arguments.job)
    nodes = sum(len(g.nodes) for g in (*job.train.values(), *job.evaluate.values()))
    step = "" if job.step is None else f", {len(job.step.graph)} nodes in passes of the fabric"
    print(
        f"{arguments.job}: {len(job.train_labels)} training and {len(job.test_labels)} test images, {len(job.layers)} "
        f"layers{step}, {nodes} operations, schedule {job.recipe['schedule']}, {job.recipe['epochs']} epochs; sound"
    )
    return 0


def token_command(arguments: argparse.Namespace) -> int:
    """``fractrain board token``: refused if the file is there already."""
    from host.devices.remote import write_token

    write_token(arguments.file)
    print(f"token in {arguments.file}; copy it to the other side and keep it secret (mode 600)")
    return 0
