"""Measurements: time and memory of quantized training against float32, on the CPU or an accelerator."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hw.networks import IMAGENET_STAGES
from sw_model.nn.gates import GatedNetwork, gated_loss
from sw_model.nn.layers import QLayer, attach, quantized_layers, set_precision
from sw_model.nn.models import Backbone, build_model
from sw_model.nn.precision import FULL, Precision, Run
from sw_model.quantize import kernels
from sw_model.quantize.affine import affine_values
from sw_model.train.accelerator import move, name_of_device, synchronize

GATE_OPTIONS = [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)]
#: float32 as PyTorch comes, with the channels last (which a user may ask for), static 8/8/8, gated with five options.
VARIANTS = ("fp32", "fp32-last", "static", "gated")


STATIC = Precision(8, 8, 8)


class _PlainNorm(nn.BatchNorm2d):
    """PyTorch's own, which :func:`sw_model.nn.normalisation.normalise` puts no kernel in place of."""


def image_of(depth: int) -> tuple[int, int, int]:
    """Channels, height and width that a ResNet is made for."""
    return (3, 224, 224) if depth in IMAGENET_STAGES else (3, 32, 32)


def _network(variant: str, depth: int) -> nn.Module:
    classes = 1000 if depth in IMAGENET_STAGES else 10
    model = build_model(f"resnet-{depth}", classes, image_of(depth), quantize_stem=variant == "static")
    if variant == "gated":
        assert isinstance(model, Backbone)
        model = GatedNetwork(model, GATE_OPTIONS, 4)
    attach(model, Run())
    set_precision(model, FULL if variant.startswith("fp32") else STATIC)
    if variant == "fp32-last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = _PlainNorm
    return model


class _Stepper:
    """Training steps of one variant on made-up images: time does not depend on what they show."""

    def __init__(self, variant: str, depth: int, batch: int, accelerator: str = "cpu", pixels: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.accelerator = torch.device(accelerator)
        self.model = _network(variant, depth)
        move(self.model, self.accelerator)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        channels, height, width = image_of(depth)
        shape = (batch, channels, pixels or height, pixels or width)
        self.x = torch.randn(shape, generator=generator).to(self.accelerator)
        if variant == "fp32-last":
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(0, 10, (batch,), generator=generator).to(self.accelerator)

    def step(self) -> float:
        """Seconds of one step."""
        synchronize(self.accelerator)
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.x), self.y)
        if isinstance(self.model, GatedNetwork):
            loss = gated_loss(loss, self.model.cp(), 3.0, 0.1)
        loss.backward()
        self.optimizer.step()
        synchronize(self.accelerator)
        return time.perf_counter() - start


def _high_water(accelerator: str) -> float | None:
    """Peak memory so far in MB: resident of this process, or that of PyTorch on a GPU; None where nobody counts."""
    if accelerator == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if accelerator != "cpu":
        return None
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its maximum survives exec, so a child would report its parent's.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def peak_memory(
    variant: str, depth: int, batch: int, threads: int, accelerator: str = "cpu", pixels: int = 0, steps: int = 3
) -> float | None:
    """Peak memory of training one variant in a process of its own, in MB; see :func:`_high_water`."""
    code = (
        "import json, torch; from sw_model.studies.speed import _Stepper, _high_water;"
        f"torch.set_num_threads({threads}); s = _Stepper({variant!r}, {depth}, {batch}, {accelerator!r}, {pixels});"
        f"[s.step() for _ in range({steps})]; print(json.dumps(_high_water({accelerator!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: float | None = json.loads(done.stdout.splitlines()[-1])
    return found


def _time(
    depth: int, batch: int, threads: int, rounds: int, variants: Sequence[str], accelerator: torch.device, pixels: int
) -> dict[str, Any]:
    """Times the variants of one network in alternation, so that a busy machine hits all alike."""
    steppers = {variant: _Stepper(variant, depth, batch, accelerator.type, pixels) for variant in variants}
    codes = _first_codes(steppers["static"]) if "static" in steppers else None
    for stepper in steppers.values():
        stepper.step()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, stepper in steppers.items():
            times[variant].append(stepper.step())
    steppers.clear()  # their memory is free where the others are measured
    memory = {v: peak_memory(v, depth, batch, threads, accelerator.type, pixels) for v in variants}
    report: dict[str, Any] = {"model": f"resnet-{depth}", "batch": batch, "pixels": pixels or image_of(depth)[1]}
    if codes is not None:
        report["first_codes"] = codes
    plain = memory["fp32"]
    for variant in variants:
        seconds, used = statistics.median(times[variant]), memory[variant]
        ratios = [a / b for a, b in zip(times[variant], times["fp32"], strict=True)]
        report[variant] = {
            "seconds_per_step": seconds,
            "images_per_second": batch / seconds,
            "time_ratio": statistics.median(ratios),
            "peak_memory_mb": used,
            "memory_ratio": used / plain if used and plain else None,
        }
    return report


def _first_codes(stepper: _Stepper) -> dict[str, int]:
    """Compares what the first step quantizes before it adds up anything: the images, and all weights for the output
    and for the input gradient, by the CPU's compiled kernels and by PyTorch's operations where the network is."""
    images: list[tuple[Tensor, int, int | None]] = [(stepper.x, STATIC.activation, None)]
    layers: list[QLayer] = [layer for _, layer in quantized_layers(stepper.model) if layer.precision.quantized]
    weights = [layer.weight.detach() for layer in layers]
    operands = images + [(w, STATIC.weight, axis) for w in weights if w.ndim == 4 for axis in (0, 1)]
    values = different = 0
    for x, bits, axis in operands:
        compiled = affine_values(x.cpu(), bits, axis=axis)
        with kernels.portable():
            portable = affine_values(x, bits, axis=axis).cpu()
        values += x.numel()
        different += int((compiled != portable).sum())
    return {"values": values, "different": different}


def bench_training(
    depths: Sequence[int] = (38,),
    batches: Sequence[int] = (32,),
    threads: int = 2,
    rounds: int = 8,
    variants: Sequence[str] = VARIANTS,
    *,
    accelerator: torch.device | None = None,
    pixels: int = 0,
    doing: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Times a step of float32 and of quantized training, of ResNets and batches of several sizes.

    Args:
        variants: which of :data:`VARIANTS` to time; "fp32" must be among them.
        accelerator: where to train; None: on the CPU.
        pixels: side of the images; 0: what each network is made for.
        doing: told which network is being timed.

    Returns:
        accelerator, device (its name), threads, rounds, and ``networks``: for each its model, batch and pixels, and per
        variant median seconds per step, images per second, ratio of the time to float32's (median of the ratios of
        neighbouring steps), peak memory in MB (None where nobody counts) and its ratio; with "static" also
        ``first_codes``, see :func:`_first_codes`.
    """
    torch.set_num_threads(threads)
    there = accelerator or torch.device("cpu")
    networks = []
    for depth, batch in product(depths, batches):
        doing(f"resnet-{depth}, batch {batch}")
        networks.append(_time(depth, batch, threads, rounds, variants, there, pixels))
    about = {"accelerator": there.type, "device": name_of_device(there), "threads": threads, "rounds": rounds}
    return {**about, "networks": networks}


def print_training(report: dict[str, Any], as_json: bool) -> None:
    """The report of :func:`bench_training` as JSON or as tables."""
    if as_json:
        print(json.dumps(report))
        return
    from rich.table import Table

    from hw.console import console

    for network in report["networks"]:
        title = f"{network['model']}, batch {network['batch']}, {report['device']}, {report['threads']} threads"
        table = Table("variant", "images/s", "time / fp32", "peak memory MB", "memory / fp32", title=title)
        for variant in (v for v in VARIANTS if v in network):
            row = network[variant]
            memory = ("", "") if row["peak_memory_mb"] is None else (
                f"{row['peak_memory_mb']:.0f}", f"{row['memory_ratio']:.2f}")  # fmt: skip
            table.add_row(variant, f"{row['images_per_second']:.1f}", f"{row['time_ratio']:.2f}", *memory)
        console().print(table)
        if codes := network.get("first_codes"):
            print(f"first codes: {codes['different']} of {codes['values']} differ from the compiled kernels'")
