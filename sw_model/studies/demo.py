"""The main job from end to end: FracTrain training whose quantized products all run on the simulated hardware.

Trains a recipe on the RTL, replays a sample of its programs on every other device and compares every word, counts what
the static 8/8/8 baseline would have cost, and reports all of it with figures.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.device import DEFAULT_TIMEOUT, U64, Device, DeviceInfo, HasWords, Result, open_device
from host.driver.fabric_engine import FabricEngine
from hw.design import Design, load_design
from hw.files import write_atomically
from hw.generate import generate
from sw_model.data.images import load_data
from sw_model.train.loop import Step, train
from sw_model.train.recipe import TrainConfig

MARKER = "demo.json"  #: a folder with this file is a demo's and may be replaced
SAMPLE_STEPS = 3  #: the first steps of every stage are replayed
SAMPLE_EVERY = 40  #: and every so many steps after them


class Stopwatch:
    """A device that also measures how long its programs take."""

    def __init__(self, device: Device) -> None:
        self.device, self.seconds = device, 0.0

    @property
    def info(self) -> DeviceInfo:
        return self.device.info

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        started = time.perf_counter()
        try:
            return self.device.run(program, timeout)
        finally:
            self.seconds += time.perf_counter() - started

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        return self.device.run_streams(words0, words1, timeout)

    def reset(self) -> None:
        self.device.reset()


class Sample:
    """Programs of chosen steps with the results that they gave; a recorder of :class:`FabricEngine`."""

    def __init__(self) -> None:
        self.taking = False
        self.programs: list[tuple[U64, Result]] = []
        self.steps = 0

    def before(self, step: Step) -> None:
        """Decide whether this step's programs are kept."""
        self.taking = step.stage_step < SAMPLE_STEPS or step.global_step % SAMPLE_EVERY == 0
        self.steps += self.taking

    def __call__(self, words: U64, result: Result) -> None:
        if self.taking:
            self.programs.append((words.copy(), result))

    def replay(self, device: Device) -> tuple[int, int]:
        """Words compared and words that differ, a missing or surplus word counting as one."""
        compared = mismatches = 0
        for words, expected in self.programs:
            answer = device.run(words)
            n = min(answer.words.size, expected.words.size)
            compared += max(answer.words.size, expected.words.size)
            mismatches += int(np.count_nonzero(answer.words[:n] != expected.words[:n]))
            mismatches += abs(answer.words.size - expected.words.size)
            mismatches += answer.error is not expected.error
        return compared, mismatches


def _layer(row: dict[str, int | str]) -> str:
    if row["kernel_height"] == 1 and row["height"] == 1:
        return f"linear {row['in_channels']}-{row['out_channels']}"
    stride = f"/{row['stride']}" if row["stride"] != 1 else ""
    return f"{row['kernel_height']}x{row['kernel_width']} {row['in_channels']}-{row['out_channels']} @{row['height']}{stride}"


def run_demo(recipe: Path, design_name: str, out: Path, progress: bool = True) -> dict[str, Any]:
    """Run the demo.

    Args:
        recipe: TOML recipe of the training.
        design_name: design whose RTL computes every quantized product.
        out: folder for everything; an earlier demo there is replaced.
        progress: print what is going on.

    Returns:
        The summary, also in ``out/summary.json``.

    Raises:
        ValueError: ``out`` holds something else than a demo.
    """
    from rich.console import Console

    console = Console(quiet=not progress)
    started = time.monotonic()
    config = TrainConfig.from_recipe(recipe)
    design = load_design(design_name)
    if out.exists():
        if not (out / MARKER).exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds something else than a demo; choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_atomically(out / MARKER, _json({"recipe": recipe.name, "design": design.name}))

    console.print(f"[bold]1/5[/] generating and building {design.name}: {design.binary_macs:,} binary MAC per cycle")
    generate(design, out / "generated")
    rtl = Stopwatch(open_device("rtl", design))
    hls = open_device("hls", design)
    reference = open_device("reference", design)

    data = load_data(config.data)
    console.print(
        f"[bold]2/5[/] training {config.model} on {config.data}: every quantized product of every step on the RTL simulation"
    )
    sample = Sample()
    engine = FabricEngine(rtl, recorder=sample)
    tester = FabricEngine(rtl, keep_rows=False)

    def engine_for(step: Step) -> FabricEngine:
        sample.before(step)
        return engine

    result = train(
        config,
        engine,
        out=out / "train",
        engine_for_step=engine_for,
        evaluation_engine=tester,
        data=data,
        progress=progress,
    )
    cycles = engine.meter.totals["CYCLES"]
    simulated = cycles + tester.meter.totals["CYCLES"]
    rate = simulated / rtl.seconds

    console.print(
        f"[bold]3/5[/] replaying {len(sample.programs)} programs of {sample.steps} steps on hls and reference"
    )
    compared = mismatches = 0
    for device in (hls, reference):
        n, bad = sample.replay(device)
        compared, mismatches = compared + n, mismatches + bad

    console.print("[bold]4/5[/] the static 8/8/8 baseline: cycles of one epoch on the RTL, accuracy on the fast path")
    static = replace(config, schedule="static", stages=((8, 8, 8),), deadlines=())
    static_engine = FabricEngine(rtl)
    steps = -(-result.images // config.epochs // config.batch)
    # cycles depend on shapes and precisions alone, so one epoch stands for all
    train(static, static_engine, stop_after=steps, evaluation_engine=None, data=data)
    cycles_static = static_engine.meter.totals["CYCLES"] * config.epochs
    baseline = train(static, None, out=out / "static", data=data)

    console.print("[bold]5/5[/] figures and report")
    summary: dict[str, Any] = {
        "test_accuracy": result.test_accuracy,
        "test_accuracy_static": baseline.test_accuracy,
        "device": "rtl",
        "design": design.name,
        "design_hash": f"{design.hash64:016x}",
        "steps": result.steps,
        "images": result.images,
        "cycles": cycles,
        "cycles_static": cycles_static,
        "latency_saved": 1 - cycles / cycles_static,
        "cc": result.cc,
        "cc_static": result.cc_static,
        "cc_saved": 1 - result.cc / result.cc_static,
        "programs_replayed": len(sample.programs),
        "words_compared": compared,
        "mismatches": mismatches,
        "compared_with": ["hls", "reference"],
        "counters": engine.meter.totals,
        "simulator_cycles_per_second": rate,
        "wall_seconds": time.monotonic() - started,
    }
    rows = _per_epoch(engine.meter.rows, result.history)
    _figures(
        out,
        engine.meter.rows,
        static_engine.meter.rows,
        config.epochs,
        result.history,
        rows,
        baseline.history,
        cycles_static,
    )
    write_atomically(out / "summary.json", _json(summary))
    write_atomically(out / "report.md", _report(summary, config, design))
    return summary


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _per_epoch(rows: list[dict[str, int | str]], history: list[dict[str, Any]]) -> list[int]:
    """Cumulative training cycles at the end of each epoch: every epoch has equally many product calls."""
    per_epoch = len(rows) // len(history)
    totals = np.cumsum([int(row["CYCLES"]) for row in rows])
    return [int(totals[(e + 1) * per_epoch - 1]) for e in range(len(history))]


def _figures(
    out: Path,
    rows: list[dict[str, int | str]],
    static_rows: list[dict[str, int | str]],
    epochs: int,
    history: list[dict[str, Any]],
    cycles: list[int],
    static_history: list[dict[str, Any]],
    cycles_static: int,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # "backward": both gradients in one program; a network's first layer has none by its input.
    products = ("forward", "backward", "input_gradient", "weight_gradient")
    spent: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        spent[_layer(row)][str(row["product"])] += int(row["CYCLES"])
    spent_static: dict[str, int] = defaultdict(int)
    for row in static_rows:
        spent_static[_layer(row)] += int(row["CYCLES"]) * epochs

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(spent)
    left = np.zeros(len(names))
    for product in products:
        values = np.array([spent[name][product] for name in names]) / 1e6
        if not values.any():
            continue
        axes.barh(names, values, left=left, label=product.replace("_", " "))
        left += values
    axes.plot(
        [spent_static[name] / 1e6 for name in names], names, "k|", markersize=14, label="static 8/8/8, all products"
    )
    axes.invert_yaxis()
    axes.set_xlabel("million cycles over the whole training (RTL counters)")
    axes.legend()
    figure.savefig(out / "cycles.png", dpi=120)

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        np.array(cycles) / 1e6,
        [100 * row["test_accuracy"] for row in history],
        marker="o",
        label="progressive precision (PFQ)",
    )
    every = cycles_static / len(static_history) / 1e6
    axes.plot(
        [every * (e + 1) for e in range(len(static_history))],
        [100 * row["test_accuracy"] for row in static_history],
        marker="s",
        label="static 8/8/8",
    )
    axes.set_xlabel("million cycles (RTL counters)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "accuracy-cost.png", dpi=120)


def _report(s: dict[str, Any], config: TrainConfig, design: Design) -> str:
    c = s["counters"]
    return f"""# FracTrain on the simulated fabric

{config.model} on {config.data}, {s["images"]:,} images in {s["steps"]} steps, seed {config.seed}. Every quantized product of every
training step was computed by the RTL of design `{design.name}` ({design.binary_macs:,} binary MAC per cycle, hash `{s["design_hash"]}`).

| | progressive (PFQ) | static 8/8/8 | saved |
|---|---|---|---|
| test accuracy | {100 * s["test_accuracy"]:.2f} % | {100 * s["test_accuracy_static"]:.2f} % | |
| cycles | {s["cycles"]:,} | {s["cycles_static"]:,} | {100 * s["latency_saved"]:.1f} % |
| computational cost CC (paper's count) | {s["cc"]:.4g} | {s["cc_static"]:.4g} | {100 * s["cc_saved"]:.1f} % |

{s["words_compared"]:,} result words of {s["programs_replayed"]} replayed programs were compared with the compiled HLS kernel and the NumPy
reference: {s["mismatches"]} differ. The simulation ran at {s["simulator_cycles_per_second"]:,.0f} cycles per second.

Static cycles are those of one epoch on the RTL times the epochs (cycles depend on shapes and precisions only); static
accuracy is from the fast software path, which has the same codes.

## Loss, accuracy and precision over time

![curves](train/curves.png)

## Accuracy against cost

![accuracy against cycles](accuracy-cost.png)

## Cycles by layer and product

![cycles](cycles.png)

The array computed in {c["BUSY"]:,} of {c["CYCLES"]:,} cycles; the loader waited {c["STALL_HAZARD"]:,} cycles for the array and
{c["STALL_IN"]:,} for its streams; the array waited {c["STALL_DRAIN"]:,} cycles for results to drain.
"""
