"""Measurements: time and memory of quantized training against float32."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sw_model.nn.gates import GatedNetwork, gated_loss
from sw_model.nn.layers import attach, set_precision
from sw_model.nn.models import Backbone, build_model
from sw_model.nn.precision import FULL, Precision, Run

GATE_OPTIONS = [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)]
#: float32 as PyTorch comes, with the channels last (which a user may ask for), static 8/8/8, gated with five options.
VARIANTS = ("fp32", "fp32-last", "static", "gated")


class _PlainNorm(nn.BatchNorm2d):
    """PyTorch's own, which :func:`sw_model.nn.normalisation.normalise` puts no kernel in place of."""


def _network(variant: str, depth: int) -> nn.Module:
    model = build_model(f"resnet-{depth}", 10, (3, 32, 32), quantize_stem=variant == "static")
    if variant == "gated":
        assert isinstance(model, Backbone)
        model = GatedNetwork(model, GATE_OPTIONS, 4)
    attach(model, Run())
    set_precision(model, FULL if variant.startswith("fp32") else Precision(8, 8, 8))
    if variant == "fp32-last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _PlainNorm
    return model


class _Stepper:
    """Training steps of one variant on made-up images: time does not depend on what they show."""

    def __init__(self, variant: str, depth: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = _network(variant, depth)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.x = torch.randn(batch, 3, 32, 32, generator=generator)
        if variant == "fp32-last":
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(0, 10, (batch,), generator=generator)

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.x), self.y)
        if isinstance(self.model, GatedNetwork):
            loss = gated_loss(loss, self.model.cp(), 3.0, 0.1)
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def _high_water() -> float:
    """Peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its maximum survives exec, so a child would report its parent's.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def peak_memory(variant: str, depth: int, batch: int, threads: int, steps: int = 3) -> float:
    """Peak resident memory of training one variant in a process of its own, in MB."""
    code = (
        "import torch; from sw_model.studies.speed import _Stepper, _high_water;"
        f"torch.set_num_threads({threads}); s = _Stepper({variant!r}, {depth}, {batch});"
        f"[s.step() for _ in range({steps})]; print(_high_water())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def bench_training(
    depth: int = 38, batch: int = 32, threads: int = 2, rounds: int = 8, variants: tuple[str, ...] = VARIANTS
) -> dict[str, Any]:
    """Times a step of float32 and of quantized training in alternation, so that a busy machine hits all alike.

    Args:
        variants: which of :data:`VARIANTS` to time; "fp32" must be among them.

    Returns:
        per variant: median seconds per step, images per second, ratio of the time to float32's (median of the ratios
        of neighbouring steps), peak memory in MB and its ratio.
    """
    torch.set_num_threads(threads)
    steppers = {variant: _Stepper(variant, depth, batch) for variant in variants}
    for stepper in steppers.values():
        stepper.step()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, stepper in steppers.items():
            times[variant].append(stepper.step())
    memory = {variant: peak_memory(variant, depth, batch, threads) for variant in variants}
    report: dict[str, Any] = {"model": f"resnet-{depth}", "batch": batch, "threads": threads, "rounds": rounds}
    for variant in variants:
        seconds = statistics.median(times[variant])
        ratios = [a / b for a, b in zip(times[variant], times["fp32"], strict=True)]
        report[variant] = {
            "seconds_per_step": seconds,
            "images_per_second": batch / seconds,
            "time_ratio": statistics.median(ratios),
            "peak_memory_mb": memory[variant],
            "memory_ratio": memory[variant] / memory["fp32"],
        }
    return report


def print_training(report: dict[str, Any], as_json: bool) -> None:
    """The report of :func:`bench_training` as JSON or as a table."""
    if as_json:
        print(json.dumps(report))
        return
    from rich.table import Table

    from hw.console import console

    title = f"{report['model']}, batch {report['batch']}, {report['threads']} threads"
    table = Table("variant", "images/s", "time / fp32", "peak memory MB", "memory / fp32", title=title)
    for variant in (v for v in VARIANTS if v in report):
        row = report[variant]
        table.add_row(
            variant,
            f"{row['images_per_second']:.1f}",
            f"{row['time_ratio']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['memory_ratio']:.2f}",
        )
    console().print(table)
