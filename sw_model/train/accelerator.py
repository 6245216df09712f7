"""Where PyTorch computes: the CPU, or a GPU by the name that PyTorch gives its kind.

The same codes come out everywhere: quantizers are single IEEE operations and counter-based random numbers.  Products
are float32 sums in an order of the accelerator's own, so runs on different accelerators part in their last bits.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from sw_model.quantize.limits import ACCELERATORS
from sw_model.train.recipe import ConfigError


def choose_accelerator(name: str) -> torch.device:
    """The device of a name of :data:`ACCELERATORS`; "auto" takes a GPU if PyTorch sees one.

    Raises:
        ConfigError: a kind that this machine, or this build of PyTorch, does not have.
    """
    if name not in ACCELERATORS:
        raise ConfigError(f"accelerator {name!r} is unknown; use one of {', '.join(ACCELERATORS)}")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here[name]:
        raise ConfigError(
            f"accelerator {name!r}: PyTorch {torch.__version__} sees no such device here; use 'cpu', or install the "
            "build of PyTorch for it"
        )
    return torch.device(name)


def move(model: nn.Module, accelerator: torch.device) -> None:
    """Moves a network, and makes its float32 products full float32: codes of 8 bits times codes need its 24 bits,
    where a GPU would round operands to 11."""
    model.to(accelerator)
    if accelerator.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def on(accelerator: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors there."""
    return tuple(x.to(accelerator, non_blocking=True) for x in tensors)


def is_finite(model: nn.Module) -> bool:
    """Whether no weight of a network is NaN or infinite: one look for a whole step."""
    return bool(torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]).isfinite())


def name_of_device(accelerator: torch.device) -> str:
    """What a device is called, for figures: the graphics card's or the processor's name."""
    if accelerator.type == "cuda":
        return torch.cuda.get_device_name(accelerator)
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if accelerator.type == "cpu" and about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchronize(accelerator: torch.device) -> None:
    """Waits for what has been started there; a CPU is never behind."""
    if accelerator.type == "cuda":
        torch.cuda.synchronize(accelerator)
    elif accelerator.type == "mps":
        torch.mps.synchronize()
