"""Calls of PyTorch that multiply: seen as they happen, whether a layer, a method or an operator makes them.

Every rule states for one function of PyTorch whether its product can be quantized, as which site, and with which
arguments.  :class:`Products` is the mode in which calls are seen: it sends each to the site of the module whose
``forward`` runs, or, while a network is observed, to a recorder.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from sw_model.convert.composite import CELLS, CellSite, Heads, MultiheadSite, RecurrentSite
from sw_model.convert.einsum import Contraction
from sw_model.convert.sites import AttentionSite, Convolution2d, ConvolutionSite, LinearSite, MatmulSite, TransposedSite

HOST = "float32 on the host"  #: what runs instead of a quantized product


class Unsupported(Exception):
    """A product that has no quantized form; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What a call becomes.

    Attributes:
        kind: makes the site from its name.
        word: names the site in a module of several.
        run: computes the call on its site.
        depthwise: whether every channel has a kernel of its own.
    """

    kind: Callable[[str], nn.Module]
    word: str
    run: Callable[[Any], Any]
    depthwise: bool = False

    @property
    def type(self) -> Any:
        """Class of the site."""
        return getattr(self.kind, "func", self.kind)

    def site(self, called: str) -> nn.Module:
        """A new site of that name."""
        made = self.kind(called)
        if self.depthwise:
            made.depthwise = True  # type: ignore[assignment]
        return made


def _pair(value: Any, line: bool, along: int) -> tuple[int, int]:
    """An argument of a convolution as (rows, columns); ``along`` stands for the rows of a line."""
    values = (value,) if isinstance(value, int) else tuple(value)
    if line:
        return along, int(values[-1])
    return (int(values[0]), int(values[-1]))


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Plan:  # fmt: skip
    line = weight.ndim == 3
    dilated = _pair(dilation, line, 1)
    x = input
    if isinstance(padding, str):
        if padding == "valid":
            padding = 0
        else:
            kernel = (1, weight.shape[2]) if line else (weight.shape[2], weight.shape[3])
            whole = [d * (k - 1) for d, k in zip(dilated, kernel, strict=True)]
            before, odd = [n // 2 for n in whole], [n % 2 for n in whole]
            if any(odd):  # as PyTorch does: the pixel more lies behind
                x = F.pad(x, (0, odd[1]) if line else (0, odd[1], 0, odd[0]))
            padding = before
    how = Convolution2d(_pair(stride, line, 1), _pair(padding, line, 0), dilated, groups)
    depthwise = groups > 1 and weight.shape[1] == 1
    return Plan(ConvolutionSite, "conv", lambda site: site(x, weight, bias, how), depthwise)


def _transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Plan:  # fmt: skip
    shape = (
        _pair(stride, False, 1),
        _pair(padding, False, 0),
        _pair(output_padding, False, 0),
        _pair(dilation, False, 1),
    )
    if shape != (tuple(weight.shape[2:]), (0, 0), (0, 0), (1, 1)) or groups != 1 or input.ndim != 4:
        raise Unsupported(
            f"a transposed convolution of kernel {tuple(weight.shape[2:])}, stride {shape[0]}, padding {shape[1]} and "
            f"{groups} groups: those whose kernel is as large as the stride, without padding and groups, are quantized"
        )
    return Plan(TransposedSite, "conv", lambda site: site(input, weight, bias))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Plan:
    if weight.ndim != 2:
        raise Unsupported("a linear layer of one output without an axis for it")
    return Plan(LinearSite, "linear", lambda site: site(input, weight, bias))


def _matmul(input: Tensor, other: Tensor) -> Plan:
    a, b = input, other
    if a.ndim < 2 or b.ndim < 2:
        raise Unsupported("a product with a vector")
    if isinstance(b, nn.Parameter) and b.ndim == 2:
        return Plan(LinearSite, "linear", lambda site: site(a, b.T, None))
    if isinstance(a, nn.Parameter) and a.ndim == 2:
        return Plan(LinearSite, "linear", lambda site: site(b.transpose(-2, -1), a, None).transpose(-2, -1))
    return Plan(MatmulSite, "matmul", lambda site: site(a, b))


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Plan:
    plan = _matmul(mat1, mat2)
    return replace(plan, run=lambda site: beta * input + alpha * plan.run(site))


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Plan:
    return _addmm(input, batch1, batch2, beta=beta, alpha=alpha)


def _einsum(equation: str, *operands: Any) -> Plan:
    taken: tuple[Any, ...] = tuple(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    form = Contraction.of(equation) if isinstance(equation, str) and len(taken) == 2 else None
    if form is None or form.sizes(*taken) is None:
        raise Unsupported(
            f"einsum {equation!r}: those of two operands that are one matrix product, without an ellipsis, are quantized"
        )
    a, b = taken
    if isinstance(a, nn.Parameter) and not isinstance(b, nn.Parameter):
        a, b, form = b, a, form.swapped
    left, right = form.factors(a, b)
    if isinstance(b, nn.Parameter) and not form.batch:
        return Plan(LinearSite, "linear", lambda site: form.result(site(left, right, None), a, b))
    return Plan(MatmulSite, "matmul", lambda site: form.result(site(left, right.transpose(-2, -1)), a, b))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Plan:  # fmt: skip
    if enable_gqa:
        raise Unsupported("attention whose heads share keys (enable_gqa)")
    return Plan(
        AttentionSite, "attention", lambda site: site(query, key, value, attn_mask, dropout_p, is_causal, scale)
    )


def _multihead(  # noqa: PLR0913 - those of PyTorch's function
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None, static_v: Tensor | None = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Plan:  # fmt: skip
    if any(x is not None for x in (bias_k, bias_v, static_k, static_v)) or add_zero_attn:
        raise Unsupported("attention with keys of its own (add_bias_kv, add_zero_attn, static keys)")
    separate = q_proj_weight, k_proj_weight, v_proj_weight
    weights: Any = separate if use_separate_proj_weight or in_proj_weight is None else in_proj_weight.chunk(3)
    biases: Any = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    heads = Heads(
        num_heads, (query, key, value), tuple(weights), tuple(biases), (out_proj_weight, out_proj_bias),
        key_padding_mask, attn_mask, is_causal, dropout_p if training else 0.0,
    )  # fmt: skip
    return Plan(
        MultiheadSite, "attention", lambda site: site(heads, wanted=need_weights, averaged=average_attn_weights)
    )


def _recurrent(cell: str, input: Tensor, *rest: Any) -> Plan:
    """A layer: input, state(s), weights, whether there are biases, levels, dropout, training, both ways, batch first."""
    if isinstance(rest[0], Tensor) and rest[0].dtype == torch.int64:
        raise Unsupported("a recurrent layer over a packed sequence; give sequences of one length")
    hx, flat, bias, levels, dropout, training, both, first = rest
    state = hx if isinstance(hx, tuple | list) else (hx,)
    each, directions = (4 if bias else 2), 2 if both else 1
    if len(flat) != each * levels * directions:
        raise Unsupported("a recurrent layer that projects its state (proj_size)")
    weights = [(*flat[at : at + each], None, None)[:4] for at in range(0, len(flat), each)]

    def run(site: Any) -> Any:
        x = input.transpose(0, 1) if first else input
        y, *last = site(cell, x, tuple(state), weights, dropout if training else 0.0)
        return (y.transpose(0, 1) if first else y), *last

    return Plan(partial(RecurrentSite, levels=levels, directions=directions), cell, run)


def _cell(
    cell: str, input: Tensor, hx: Any, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> Plan:
    state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)

    def run(site: Any) -> Any:
        found = site(cell, input, state, (w, u, b, c))
        return found if len(found) > 1 else found[0]

    return Plan(CellSite, cell, run)


#: function -> its plan, by the arguments of the call
RULES: dict[Any, Callable[..., Plan]] = {
    **dict.fromkeys((F.conv2d, torch.conv2d, F.conv1d, torch.conv1d), _convolution),
    **dict.fromkeys((F.conv_transpose2d, torch.conv_transpose2d), _transposed),
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.bmm, torch.mm), _matmul),
    **dict.fromkeys((Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__), _matmul),
    Tensor.__rmatmul__: lambda input, other: _matmul(other, input),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _baddbmm),
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multihead,
    **{getattr(torch, cell): partial(_recurrent, cell) for cell in CELLS},
    **{getattr(torch, f"{cell}_cell"): partial(_cell, cell) for cell in CELLS},
}
#: names that methods and functions have for the same argument
_ALIASES = {"tensor2": "other", "mat2": "other", "self": "input"}


def site_plan(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """What a call of a function of :data:`RULES` becomes.

    Raises:
        Unsupported: it has no quantized form.
    """
    rule = RULES[func]
    known = inspect.signature(rule).parameters
    named = {name if name in known else _ALIASES.get(name, name): value for name, value in kwargs.items()}
    if unknown := sorted(set(named) - set(known)):
        raise Unsupported(f"argument {', '.join(unknown)}")
    return rule(*args, **named)


@dataclass
class Frame:
    """A ``forward`` that runs: of which module, and how many products it has made so far."""

    module: Any
    count: int = 0


class _Running(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


RUNNING = _Running()


class Products(TorchFunctionMode):
    """Sends every call that multiplies, of a module that has sites, to its site."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        frame = RUNNING.frames[-1] if RUNNING.frames else None
        if func not in RULES or frame is None or frame.module.kept:
            return func(*args, **kwargs)
        plan = site_plan(func, args, kwargs)
        site = frame.module.site_for(frame, plan)
        with torch._C.DisableTorchFunction():
            return plan.run(site)


class Quantized:
    """What :func:`quantized_class` adds to the class of a module: its products run on sites.

    Attributes:
        products: the sites, in the order of the calls in ``forward``.
        kept: whether calls run as they are.
    """

    products: nn.ModuleList
    kept = False

    def site_for(self, frame: Frame, plan: Plan) -> Any:
        """The site of the next product of a running ``forward``.

        Raises:
            RuntimeError: one that the example batch has not shown.
        """
        index = frame.count
        frame.count += 1
        if index >= len(self.products) or type(self.products[index]) is not plan.type:
            raise RuntimeError(
                f"product {index + 1} of {type(self).__name__} was not seen with the example batch; convert the network "
                "with an example, and in a mode, that takes the same way through it"
            )
        return self.products[index]


def run_with_sites(module: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``forward`` of a module with its products on sites."""
    outermost = not RUNNING.frames
    RUNNING.frames.append(Frame(module))
    try:
        if not outermost:
            return forward(*args, **kwargs)
        with Products():
            return forward(*args, **kwargs)
    finally:
        RUNNING.frames.pop()


_CLASSES: dict[type, type] = {}


def quantized_class(base: type) -> type:
    """A class of modules whose products run on sites, and which are ``base`` otherwise."""
    if base not in _CLASSES:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return run_with_sites(self, partial(base.forward, self), *args, **kwargs)  # type: ignore[attr-defined]

        _CLASSES[base] = type(f"Quantized{base.__name__}", (Quantized, base), {"forward": forward})
    return _CLASSES[base]


def name_of(func: Any) -> str:
    """A function of PyTorch as people call it."""
    return str(resolve_name(func) or getattr(func, "__name__", func)).removeprefix("torch.nn.functional.")
