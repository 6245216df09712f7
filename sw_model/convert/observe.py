"""What a network multiplies, seen by running it on an example batch, whatever its ``forward`` does.

Two watchers look on: one at the calls of PyTorch's functions, which can be sent elsewhere (:mod:`sw_model.convert.calls`),
and one at the operations below them, which misses nothing: products that no call of ours explains are reported, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sw_model.convert.calls import RULES, Plan, Unsupported, name_of, site_plan

#: operations that multiply matrices, whatever called them
_PRODUCTS = (
    "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "convolution", "_convolution", "mkldnn_rnn_layer",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_native_multi_head_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
    "_transformer_encoder_layer_fwd", "_trilinear",
)  # fmt: skip

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass
class Seen:
    """Products of one module.

    Attributes:
        plans: of its ``forward``, in the order of the calls; equal in every run of it.
        refused: what has no quantized form, and why.
    """

    plans: list[Plan] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class _Call:
    """A ``forward`` that runs."""

    path: str
    plans: list[Plan] = field(default_factory=list)


class _Operations(TorchDispatchMode):
    """Notes operations that multiply while no call of ours does."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note, self.explained = note, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[-1]
        if not self.explained and name in _PRODUCTS:
            self.note(name)
        return func(*args, **(kwargs or {}))


class _Watch(TorchFunctionMode):
    """Notes calls that multiply, and what has no quantized form."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self.calls: list[_Call] = []
        self.operations = _Operations(self.unexplained)
        self.outer: list[str] = []

    def here(self) -> Seen:
        return self.seen.setdefault(self.calls[-1].path if self.calls else "", Seen())

    def unexplained(self, operation: str) -> None:
        """Takes an operation that multiplies inside a call that is none of ours."""
        name = self.outer[-1] if self.outer else operation
        what = f"{name} has no quantized form"
        if what not in self.here().refused:
            self.here().refused.append(what)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in RULES:
            self.outer.append(name_of(func))
            try:
                return func(*args, **kwargs)
            finally:
                self.outer.pop()
        try:
            plan = site_plan(func, args, kwargs)
            if self.calls:
                self.calls[-1].plans.append(plan)
        except Unsupported as error:
            what = f"{name_of(func)}: {error}"
            if what not in self.here().refused:
                self.here().refused.append(what)
        before, self.operations.explained = self.operations.explained, True
        try:
            return func(*args, **kwargs)
        finally:
            self.operations.explained = before

    def enter(self, path: str, *_: Any) -> None:
        """Hook: a ``forward`` begins."""
        self.calls.append(_Call(path))

    def leave(self, path: str, *_: Any) -> None:
        """Hook: a ``forward`` ends."""
        call = self.calls.pop()
        if not call.plans:
            return
        found = self.seen.setdefault(path, Seen())
        kinds = [[plan.type for plan in plans] for plans in (found.plans, call.plans)]
        if len(kinds[0]) > len(kinds[1]):
            kinds.reverse()
        if kinds[0] != kinds[1][: len(kinds[0])]:
            found.refused.append("makes other products in one call than in the next")
        elif len(call.plans) > len(found.plans):
            found.plans = call.plans


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers, random state and mode of a network are afterwards what they were."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])
        for module, training in modes.items():
            module.training = training


def run_example(model: nn.Module, example: Example) -> Any:
    """What a network makes of an example: a tensor, a tuple of arguments, or a dictionary of named ones."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def observe(model: nn.Module, example: Example) -> dict[str, Seen]:
    """Products of a network's modules by their paths, in the order in which they are first made.

    Args:
        model: left as it was.
        example: see :func:`run_example`; the way of its batch through the network has to be that of all batches.
    """
    watch = _Watch()
    with ExitStack() as stack, torch.no_grad(), unchanged(model):
        for path, module in model.named_modules():
            before = module.register_forward_pre_hook(partial(watch.enter, path))
            after = module.register_forward_hook(partial(watch.leave, path), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        with watch.operations, watch:
            run_example(model, example)
    return {path: seen for path, seen in watch.seen.items() if seen.plans or seen.refused}
