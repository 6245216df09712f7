"""Where PyTorch computes: the CPU, or a GPU by the name that PyTorch gives its kind.

The same codes come out everywhere: quantizers are single IEEE operations and counter-based random numbers.  Products
are float32 sums in an order of the accelerator's own, so runs on different accelerators part in their last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sw_model.train.recipe import ConfigError

ACCELERATORS = ("auto", "cpu", "cuda", "mps")


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
