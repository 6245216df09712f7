"""Convolution and linear layers whose three training products run on quantized operands.

Semantics (FracTrain): the output is ``conv(Qa(x), Qw(w))``; the output gradient is quantized once, stochastically, and
serves both the input gradient, with the quantized weight, and the weight gradient, with the quantized activation.  The
quantizers are straight-through: gradients pass them unchanged.

Each layer has two paths with the same codes.  The *fast* one multiplies fake-quantized floats with PyTorch.  The
*exact* one hands operands to a :class:`host.operands.Engine` (software, simulated fabric, board), which returns integer
sums, and forms the real value in float64, rounded once.

One deviation from the published code, in ``fixed`` mode: a weight has one grid per channel that the product *outputs*.
The input gradient contracts over output channels, where a per-output-channel scale could not leave the sum, so there
the weight is quantized again, on one grid per input channel.  ``paper`` mode uses the forward pass's weights in the
input gradient; integer engines cannot, so it has the fast path only.  What the detail changes in training:
``fractrain bench accuracy defects``, variant ``weight-grid``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from host.numerics import running_mean
from host.operands import ConvGeometry, Engine
from host.windows import Window
from sw_model.nn.convolution import convolve
from sw_model.nn.parallel import Shard
from sw_model.nn.precision import FULL, Precision, Run
from sw_model.nn.quantized_product import Call, dilation_of, quantized_product
from sw_model.quantize import kernels
from sw_model.quantize.affine import derive_key, extremes, random_units
from sw_model.quantize.limits import refusal
from sw_model.quantize.methods import METHODS, Convolution, check_bits


def batch_extremes(x: Tensor, shard: Shard | None) -> tuple[Tensor, Tensor]:
    """Minimum and range of the whole batch, of which this process may have a part; see :func:`sw_model.quantize.affine.extremes`."""
    return extremes(x) if shard is None else shard.extremes(x)


class QLayer(nn.Module):
    """Common part of the quantized layers: precision, keys, running activation range.

    ``call_index`` tells calls of one layer within one step apart (a gated layer may run once per option).
    ``updates_range`` says whether training batches update the running range.
    """

    #: name in reports and records, if that is not the module's path
    called = ""
    #: whether every channel has a kernel of its own, which has bits of its own in quantized networks
    depthwise = False
    running_low: Tensor
    running_span: Tensor
    batches: Tensor
    weight: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.precision = FULL
        self.run = Run()
        self.name = type(self).__name__
        self.index = 0
        self.call_index = 0
        self.updates_range = True
        self.register_buffer("running_low", torch.zeros(()))
        self.register_buffer("running_span", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @property
    def engine(self) -> Engine | None:
        """The exact engine, shared by all layers of the run; None selects the fast path."""
        return self.run.engine

    @engine.setter
    def engine(self, engine: Engine | None) -> None:
        self.run.engine = engine

    def gradient_key(self) -> int:
        """32-bit key of this call's stochastic rounding, a function of (seed, step, layer, call)."""
        return derive_key(self.run.seed, self.run.step, self.index, self.call_index)

    def activation_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and range for an input: in training of the batch, which the running ones take in; else the running ones.

        Raises:
            RuntimeError: in evaluation before any training batch.
            ValueError: if the input holds NaN or infinity; see :func:`sw_model.quantize.affine.extremes` on accelerators.
        """
        if self.training:
            low, span = batch_extremes(x, self.run.shard)
            if self.updates_range:
                self._note_range(low, span)
            return low, span
        if int(self.batches) == 0:
            raise RuntimeError(
                f"layer {self.name} has not seen a training batch, so its activation range is unknown; train first, "
                "load a checkpoint, or call .train()"
            )
        _, span = extremes(x)  # refuses NaN and infinity, which clamping would hide
        if kernels.behind(x.device):
            unknown = torch.full_like(span, torch.nan)
            return tuple(torch.where(span.isfinite(), r, unknown) for r in (self.running_low, self.running_span))  # type: ignore[return-value]
        return self.running_low, self.running_span

    @torch.no_grad()
    def _note_range(self, low: Tensor, span: Tensor) -> None:
        """Folds a batch's range into the running one: ``r <- m * r + (1 - m) * new``.

        The published code starts from zero, which biases the first averages towards zero; ``fixed`` mode starts from
        the first batch.
        """
        from_zero = self.run.has_defect("zero-start")
        for running, new in ((self.running_low, low), (self.running_span, span)):
            mean = running_mean(running, new, self.run.running_share)
            running.copy_(mean if from_zero else torch.where(self.batches > 0, mean, new))
        self.batches += 1

    def whole(self, rows: int) -> int:
        """Rows of the whole batch, of which this process has ``rows``."""
        return rows if self.run.shard is None else self.run.shard.whole(rows)

    def report(self, product: str, macs: int, a: int, b: int) -> None:
        """Tells the run's hook of a product.

        Args:
            product: "forward", "input_gradient" or "weight_gradient".
            macs: multiply-accumulates over the whole batch.
            a, b: bits of the operands, 32 for unquantized.
        """
        if self.run.on_product is not None:
            self.run.on_product(self.name, product, macs, a, b)

    def _product(self, x: Tensor, weight: Tensor, geometry: ConvGeometry | Window, groups: int) -> Tensor:
        macs = self.whole(geometry.batch) * weight.numel() * math.prod(geometry.out_hw)
        w, a, g, last = self.precision.widths
        self.report("forward", macs, a, w)
        if self.training and torch.is_grad_enabled():
            if x.requires_grad:
                self.report("input_gradient", macs, g, w)
            if weight.requires_grad:
                self.report("weight_gradient", macs, a, last)
        if not self.precision.quantized:
            return convolve(x, weight, geometry.stride, geometry.padding, groups, dilation_of(geometry))
        engine = self.run.engine
        if engine is not None:
            self.check_integers(self.precision.widths)
        if self.run.quantizer != "affine":
            return self._comparison(x, weight, geometry, groups)
        call = Call(self, geometry, groups, self.precision, engine, self.gradient_key(), self.run.shard)
        return quantized_product(x, weight, call)

    def check_integers(self, widths: tuple[int, ...]) -> None:
        """Refuses products that no integer engine computes.

        Args:
            widths: of all operands, 32 for unquantized.

        Raises:
            ValueError: an operand in float32, or quantizers that have the fast path only.
        """
        if why := refusal("engine", self.run):
            raise ValueError(f"layer {self.name}: {why}")
        if max(widths) > 16:
            raise ValueError(
                f"layer {self.name} leaves an operand unquantized ({self.precision}), which an integer engine "
                "cannot multiply; give all three operands 1..16 bits, or none"
            )

    def _comparison(self, x: Tensor, weight: Tensor, geometry: ConvGeometry | Window, groups: int) -> Tensor:
        """The product by one of the methods that FracTrain is compared with."""
        if not isinstance(geometry, ConvGeometry):
            raise ValueError(
                f"layer {self.name}: quantizer {self.run.quantizer!r} takes one stride and one padding only"
            )
        p = self.precision
        check_bits(self.run.quantizer, p.widths)
        key = self.gradient_key()
        call = Convolution(p.weight, p.activation, p.grad, geometry.stride, geometry.padding, groups, key)
        return METHODS[self.run.quantizer](x, weight, call)


def _check_counts(layer: str, *, least: int = 1, **counts: object) -> None:
    """Refuses arguments of a layer that are no counts, such as the strings and pairs that PyTorch's own layers take."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"{layer}: {name} = {value!r} is not possible; give a whole number of at least {least}, the same for both axes"
                if name in ("kernel_size", "stride", "padding")
                else f"{layer}: {name} = {value!r} is not possible; give a whole number of at least {least}"
            )


class QConv2d(QLayer):
    """Two-dimensional convolution without bias, square stride and zero padding; dense or depthwise.

    Args:
        in_channels, out_channels: counts.
        kernel_size: height and width of the kernel.
        stride, padding: pixels, the same for both axes.
        groups: 1, or ``in_channels == out_channels`` for a depthwise convolution.

    Maps float32 (N, in_channels, H, W) to (N, out_channels, OH, OW).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        _check_counts(
            "QConv2d", in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride,
            groups=groups,
        )  # fmt: skip
        _check_counts("QConv2d", least=0, padding=padding)
        if groups != 1 and not groups == in_channels == out_channels:
            raise ValueError(
                f"groups={groups} with {in_channels} -> {out_channels} channels: use 1 (dense) or one group per channel"
            )
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding, self.groups = kernel_size, stride, padding, groups
        self.depthwise = groups > 1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"layer {self.name} takes (N, {self.in_channels}, H, W), not {tuple(x.shape)}")
        return self._product(x, self.weight, self.geometry(x), self.groups)

    def geometry(self, x: Tensor) -> ConvGeometry:
        """Shape of the convolution of an input (N, C, H, W)."""
        size, kernel = (x.shape[2], x.shape[3]), (self.kernel_size, self.kernel_size)
        return ConvGeometry(len(x), self.in_channels, self.out_channels, size, kernel, self.stride, self.padding)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, precision={self.precision}"
        )


class QLinear(QLayer):
    """Linear layer over the last axis; the product is quantized, the bias is added in float32.

    Maps float32 (..., in_features) to (..., out_features); its weight is (out_features, in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        _check_counts("QLinear", in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"layer {self.name} takes (..., {self.in_features}), not {tuple(x.shape)}")
        rows = x.reshape(-1, self.in_features, 1, 1)
        geometry = ConvGeometry(rows.shape[0], self.in_features, self.out_features, (1, 1))
        y = self._product(rows, self.weight[:, :, None, None], geometry, 1)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, precision={self.precision}"


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QLayer]]:
    """(name, layer) of every quantized layer, in the order of registration; those of converted networks have names of
    their own."""
    for name, module in model.named_modules():
        if isinstance(module, QLayer):
            yield module.called or name, module


class Dropout(nn.Module):
    """Sets elements to zero at random in training, and divides the others by the share that is left.

    Which ones is a function of (seed, step, number of this module, place in the global batch): a resumed run drops the
    same ones, and so do several processes.  Samples lie along the leading axis.

    Args:
        share: probability of an element's being dropped, from 0 up to, but less than, 1.
    """

    KEY = 1 << 32  #: in the place of a layer's call index, larger than any

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.index, self.run = share, 0, Run()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        key = derive_key(self.run.seed, self.run.step, self.index, self.KEY)
        first = 0 if self.run.shard is None else self.run.shard.first(x)
        kept = random_units(x.numel(), key, first, x.device).reshape(x.shape) >= self.share
        return x * kept.to(x).div_(1 - self.share)

    def extra_repr(self) -> str:
        return f"{self.share}"


def attach(model: nn.Module, run: Run) -> Run:
    """Makes all quantized layers and dropouts of a model share ``run``, names and numbers them; returns ``run``."""
    for index, (name, layer) in enumerate(quantized_layers(model)):
        layer.run, layer.name, layer.index = run, name, index
    for index, dropout in enumerate(module for module in model.modules() if isinstance(module, Dropout)):
        dropout.run, dropout.index = run, index
    return run


#: Fixed precision of depthwise convolutions in quantized networks, which are too sensitive for less (paper, 4.2).
DEPTHWISE = Precision(8, 8, 16)


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Sets the precision of every quantized layer except those that the model lists in ``keep_full``.

    Depthwise convolutions get :data:`DEPTHWISE` whenever ``precision`` quantizes at all, as in the paper.

    A model's ``keep_full`` attribute, a set of layer names, says which layers stay in float32 (stem, classifier).
    """
    keep: set[str] = getattr(model, "keep_full", set())
    for name, layer in quantized_layers(model):
        layer.precision = FULL if name in keep else DEPTHWISE if layer.depthwise and precision.quantized else precision
