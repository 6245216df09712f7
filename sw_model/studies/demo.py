"""The main job from end to end: FracTrain training whose steps all run on the simulated hardware.

Trains a recipe on the RTL, replays a sample of its programs on every other device and compares every word, counts what
the static 8/8/8 baseline would have cost, and reports all of it with figures.  The simulation takes nearly all the time
and one core, so a second process trains the baseline meanwhile.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from host.devices.device import DEFAULT_TIMEOUT, U64, Device, DeviceInfo, HasWords, Result, open_device
from host.driver.fabric_engine import FabricEngine
from hw.contract import array_idle
from hw.design import Design, load_design
from hw.files import save_picture, write_atomically
from hw.generate import generate
from sw_model.data.images import load_data
from sw_model.train import metrics
from sw_model.train.loop import TrainingStep, train
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

    def before(self, step: TrainingStep) -> None:
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


@dataclass(frozen=True)
class _Trained:
    """Training on the fabric: its result, the meter's counters and rows, and cycles per second of the simulator."""

    result: metrics.TrainingResult
    counters: dict[str, int]
    rows: list[dict[str, int | str]]
    rate: float

    @property
    def cycles(self) -> int:
        return self.counters["CYCLES"]


@dataclass(frozen=True)
class _Baseline:
    """Static 8/8/8: its result on the fast path, the meter's rows of one epoch on the RTL, cycles of all epochs."""

    result: metrics.TrainingResult
    rows: list[dict[str, int | str]]
    cycles: int


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
    config, design = TrainConfig.from_recipe(recipe), load_design(design_name)
    _make_folder(out, {"recipe": recipe.name, "design": design.name})

    console.print(f"[bold]1/4[/] generating and building {design.name}: {design.binary_macs:,} binary MAC per cycle")
    generate(design, out / "generated")
    rtl = Stopwatch(open_device("rtl", design))
    others = {kind: open_device(kind, design) for kind in ("hls", "reference")}

    console.print(
        f"[bold]2/4[/] training {config.model} on {config.data}: the passes of every step on the RTL simulation; beside it "
        "the static 8/8/8 baseline: cycles of one epoch on the RTL, accuracy on the fast path"
    )
    sample = Sample()
    # a process and not a thread: torch draws initial weights from one generator
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as beside:
        static = beside.submit(_train_static, config, design, out / "static")
        trained = _train(config, rtl, sample, out / "train", progress)
        baseline = static.result()

    console.print(
        f"[bold]3/4[/] replaying {len(sample.programs)} programs of {sample.steps} steps on {' and '.join(others)}"
    )
    replayed = [sample.replay(device) for device in others.values()]

    console.print("[bold]4/4[/] figures and report")
    summary = {
        **_summary(trained, baseline, design),
        "programs_replayed": len(sample.programs),
        "words_compared": sum(compared for compared, _ in replayed),
        "mismatches": sum(wrong for _, wrong in replayed),
        "compared_with": list(others),
        "counters": trained.counters,
        "simulator_cycles_per_second": trained.rate,
        "wall_seconds": time.monotonic() - started,
    }
    _draw_cycles(out / "cycles.png", trained.rows, baseline.rows, config.epochs)
    _draw_accuracy(out / "accuracy-cost.png", trained, baseline)
    write_atomically(out / "summary.json", _json(summary))
    write_atomically(out / "report.md", _report(summary, config, design))
    return summary


def _make_folder(out: Path, what: dict[str, Any]) -> None:
    """An empty folder with the marker of a demo, in place of an earlier demo.

    Raises:
        ValueError: it holds something else.
    """
    if out.exists():
        if not (out / MARKER).exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds something else than a demo; choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_atomically(out / MARKER, _json(what))


def _train(config: TrainConfig, rtl: Stopwatch, sample: Sample, out: Path, progress: bool) -> _Trained:
    """Trains on the RTL, tests included, and keeps the programs that the sample asks for."""
    engine = FabricEngine(rtl, recorder=sample)
    tester = FabricEngine(rtl, keep_rows=False)

    def engine_for(step: TrainingStep) -> FabricEngine:
        sample.before(step)
        return engine

    result = train(
        config,
        engine,
        out=out,
        engine_for_step=engine_for,
        evaluation_engine=tester,
        progress=progress,
    )
    simulated = engine.meter.totals["CYCLES"] + tester.meter.totals["CYCLES"]
    return _Trained(result, engine.meter.totals, engine.meter.rows, simulated / rtl.seconds)


def _train_static(config: TrainConfig, design: Design, out: Path) -> _Baseline:
    """The baseline; cycles depend on shapes and precisions alone, so one epoch on the RTL stands for all."""
    static = replace(config, schedule="static", stages=((8, 8, 8),), deadlines=())
    data = load_data(config.data)
    engine = FabricEngine(open_device("rtl", design))
    train(static, engine, stop_after=data.train_steps(config.batch), evaluation_engine=None, data=data)
    result = train(static, None, out=out, data=data)
    return _Baseline(result, engine.meter.rows, engine.meter.totals["CYCLES"] * config.epochs)


def _summary(trained: _Trained, baseline: _Baseline, design: Design) -> dict[str, Any]:
    """What training came to and what it saved."""
    result = trained.result
    return {
        "test_accuracy": result.test_accuracy,
        "test_accuracy_static": baseline.result.test_accuracy,
        "device": "rtl",
        "design": design.name,
        "design_hash": f"{design.hash64:016x}",
        "steps": result.steps,
        "images": result.images,
        "cycles": trained.cycles,
        "cycles_static": baseline.cycles,
        "latency_saved": 1 - trained.cycles / baseline.cycles,
        "cc": result.cc,
        "cc_static": result.cc_static,
        "cc_saved": 1 - result.cc / result.cc_static,
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _per_epoch(rows: list[dict[str, int | str]], history: list[dict[str, Any]]) -> list[int]:
    """Cumulative training cycles at the end of each epoch: every epoch has equally many product calls."""
    per_epoch = len(rows) // len(history)
    totals = np.cumsum([int(row["CYCLES"]) for row in rows])
    return [int(totals[(e + 1) * per_epoch - 1]) for e in range(len(history))]


def _draw_cycles(
    path: Path, rows: list[dict[str, int | str]], static_rows: list[dict[str, int | str]], epochs: int
) -> None:
    """Cycles by layer and product, beside those of so many epochs of the static baseline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # of the classifier: products, "backward" both gradients in one program; of all other layers: passes
    products = tuple(dict.fromkeys(str(row["product"]) for row in rows))
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
        [spent_static[name] / 1e6 for name in names], names, "k|", markersize=14, label="static 8/8/8, whole step"
    )
    axes.invert_yaxis()
    axes.set_xlabel("million cycles over the whole training (RTL counters)")
    axes.legend()
    save_picture(figure, path, dpi=120)


def _draw_accuracy(path: Path, trained: _Trained, baseline: _Baseline) -> None:
    """Test accuracy over cycles, epoch by epoch, of both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    history, static_history = trained.result.history, baseline.result.history
    axes.plot(
        np.array(_per_epoch(trained.rows, history)) / 1e6,
        [100 * row["test_accuracy"] for row in history],
        marker="o",
        label="progressive precision (PFQ)",
    )
    every = baseline.cycles / len(static_history) / 1e6
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
    save_picture(figure, path, dpi=120)


def _report(s: dict[str, Any], config: TrainConfig, design: Design) -> str:
    c = s["counters"]
    return f"""# FracTrain on the simulated fabric

{config.model} on {config.data}, {s["images"]:,} images in {s["steps"]} steps, seed {config.seed}. Every quantized product of every
training step, and all that stands behind it (normalisation, ReLU, shortcuts, quantizers), was computed by the RTL of design `{design.name}` ({design.binary_macs:,} binary MAC per cycle, hash `{s["design_hash"]}`).

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

A bar is a kind of layer: kernel height x width, input-output channels, @ height of its image, / stride.

Of {c["CYCLES"]:,} cycles the array computed in {c["BUSY"]:,} and waited in {c["STALL_DRAIN"]:,} for results to drain. In the
other {array_idle(c):,} it had no step to do, as at the beginning and the end of every program. Meanwhile the loader waited {c["STALL_HAZARD"]:,} cycles
for a buffer that the array still read, and {c["STALL_IN"]:,} for its streams.
"""
