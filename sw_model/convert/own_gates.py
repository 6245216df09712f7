"""DFQ on networks of others: gates choose the bits of blocks that the user names, for every sample.

The gates are those of :mod:`sw_model.nn.gates`: the input of a block is pooled and projected, one LSTM runs over the blocks
in the order in which they run, and its state is scored.  What is not here is skipping: it needs to know how a block's
residual branch and its skip connection meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.training.precision_schedule import Indicator, Pfq
from hw.networks import PRODUCTS
from sw_model.convert.sites import ConvolutionSite
from sw_model.nn.cost_meter import GATES, step_factor
from sw_model.nn.gated_convolution import Assignment
from sw_model.nn.gates import gated_loss
from sw_model.nn.models import GateShape
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.affine import straight_through


@dataclass(frozen=True)
class GateSchedule:
    """Gates over named blocks, and what they aim at.

    Attributes:
        blocks: paths of modules.
        options: precisions to choose from, which share their weight bits.
        pfq: advances the target; its widths are those of all layers that no gate governs.
        targets: of the cost, in percent of float32, one per stage.
        beta, band, cap: see :func:`host.training.gate_cost.cost_factors`.
        shape: of the gates.
        seed: of their initial weights.
    """

    blocks: tuple[str, ...]
    options: tuple[Precision, ...]
    pfq: Pfq
    targets: tuple[float, ...]
    beta: float
    band: float
    cap: float
    shape: GateShape
    seed: int


def dfq(  # noqa: PLR0913 - settings of a recipe
    blocks: Iterable[str],
    options: Sequence[tuple[int, int]],
    targets: Sequence[float],
    *,
    weight_bits: int = 4,
    bits: Sequence[int] = (8, 8, 8),
    beta: float = 0.1,
    band: float = 0.0,
    cap: float = 0.0,
    projection: tuple[int, ...] = (32, 16),
    hidden: int = 16,
    seed: int = 0,
    **indicator: Any,
) -> GateSchedule:
    """Dynamic fractional quantization: gates choose the bits of blocks; with several targets, FracTrain.

    Args:
        blocks: paths of modules, such as "layer1.0"; their dense convolutions are governed.
        options: (activation, gradient) widths to choose from.
        targets: cost to aim at, percent of float32, rising.
        weight_bits: of the governed convolutions.
        bits: of all other layers.
        beta, band, cap: weight of the cost, dead band around the target, limit as a share of the loss.
        projection, hidden: widths of a gate's linear layers, and of the LSTM.
        seed: of the gates' initial weights.
        indicator: what decides when the next target's turn has come, see :func:`sw_model.convert.own_loop.pfq`.

    Raises:
        ValueError: options or targets that there are not.
    """
    if len(options) < 2 or any(len(o) != 2 or not all(1 <= width <= 16 for width in o) for o in options):
        raise ValueError(
            f"options {list(options)}: give two or more (activation, gradient) widths of 1..16 bits; blocks of other networks "
            "cannot be skipped, as only those of ours are known to have a skip connection"
        )
    names = tuple([blocks] if isinstance(blocks, str) else blocks)
    if not names or not targets or list(targets) != sorted(targets):
        raise ValueError(f"blocks {list(names)}, targets {list(targets)}: name at least one of each, targets rising")
    stages = [tuple(bits)] * len(targets)
    decides = Pfq(stages, Indicator(len(targets) - 1, **indicator))
    choices = tuple(Precision(weight_bits, *option) for option in options)
    return GateSchedule(names, choices, decides, tuple(targets), beta, band, cap, GateShape(projection, hidden), seed)


class OwnGates(nn.Module):
    """Gates of a converted network, which run where its blocks begin.

    Args:
        model: converted; the gates become its child ``gates``.
        schedule: of :func:`dfq`.
        inputs: shape of the input of every module that has been met, by path.
        macs: multiply-accumulates per sample and product, by layer.
        run: what the layers share.

    Raises:
        ValueError: a block that is no module, or has no convolution to govern; a model that cannot hold the gates.
    """

    factors: Tensor

    def __init__(
        self,
        model: nn.Module,
        schedule: GateSchedule,
        inputs: dict[str, tuple[int, ...]],
        macs: dict[str, int],
        run: Run,
    ) -> None:
        super().__init__()
        self.schedule, self.options, self.run = schedule, schedule.options, run
        self.register_buffer("factors", torch.tensor([100 * step_factor(p) / 3 for p in self.options]))
        self._sites = [_governed(model, path, inputs) for path in schedule.blocks]
        self.layers = [[site.called for site in sites] for sites in self._sites]
        several = [name for row in self.layers for name in row]
        if len(several) != len(set(several)):
            raise ValueError(f"blocks {list(schedule.blocks)} lie in one another; a layer has one gate")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed)
            self._make([_channels(inputs[path]) for path in schedule.blocks])
        self.to(next(model.parameters()).device)
        self.macs = macs
        self.masks: list[Tensor] = []
        self.choices: list[Tensor] = []
        self._state: tuple[Tensor, Tensor] | None = None
        if isinstance(model, nn.Sequential) or hasattr(model, "gates"):
            raise ValueError(
                f"{type(model).__name__} cannot hold gates as its child named gates; put it into an nn.Module"
            )
        model.gates = self
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end, always_call=True)
        for number, path in enumerate(schedule.blocks):
            block = model.get_submodule(path)
            block.register_forward_pre_hook(lambda _, args, number=number: self._choose(number, args))
            block.register_forward_hook(lambda *_, number=number: self._release(number), always_call=True)

    def _make(self, channels: list[int]) -> None:
        """The trainable layers."""
        shape = self.schedule.shape
        self.projections = nn.ModuleList()
        for width in channels:
            layers: list[nn.Module] = []
            for out in shape.projection:
                layers += [nn.Linear(width, out), nn.ReLU()]
                width = out
            self.projections.append(nn.Sequential(*layers[:-1]))
        self.lstm = nn.LSTMCell(shape.projection[-1], shape.hidden)
        self.scores = nn.Linear(shape.hidden, len(self.options))

    def _begin(self, *_: Any) -> None:
        """Hook: the network's forward pass begins."""
        self._state, self.masks = None, []

    def _end(self, model: nn.Module, *_: Any) -> None:
        """Hook: it ends; choices of training passes are kept until the step does."""
        if model.training and torch.is_grad_enabled() and len(self.masks) == len(self._sites):
            self.choices.append(torch.stack([mask.detach().argmax(1) for mask in self.masks]))

    def _choose(self, block: int, args: tuple[Any, ...]) -> None:
        """Hook: a block begins; its convolutions get the choice for every sample."""
        x = next(value for value in args if isinstance(value, Tensor))
        with torch._C.DisableTorchFunction():  # gates run in float32 whatever module their block is in
            self._state = self.lstm(self.projections[block](_pooled(x)), self._state)
            assert self._state is not None
            soft = self.scores(self._state[0]).softmax(1)
            hard = F.one_hot(soft.detach().argmax(1), len(self.options)).to(soft.dtype)
            mask = straight_through(hard, soft)
            assigned = Assignment.of(mask, self.run.shard)
        self.masks.append(mask)
        self._report(block, len(x))
        for site in self._sites[block]:
            site.choice = mask, self.options, assigned

    def _release(self, block: int) -> None:
        """Hook: a block ends."""
        for site in self._sites[block]:
            site.choice = None

    def gate_macs(self) -> list[int]:
        """Multiply-accumulates per sample and product of every block's gate."""
        lstm, scores = self.lstm, self.scores
        shared = 4 * lstm.hidden_size * (lstm.input_size + lstm.hidden_size) + scores.in_features * scores.out_features
        linear = [[m for m in each.modules() if isinstance(m, nn.Linear)] for each in self.projections]
        return [shared + sum(m.in_features * m.out_features for m in row) for row in linear]

    def _report(self, block: int, rows: int) -> None:
        if self.run.on_product is not None:
            for product in PRODUCTS if self.training and torch.is_grad_enabled() else PRODUCTS[:1]:
                self.run.on_product(f"{GATES}{block}", product, rows * self.gate_macs()[block], 32, 32)

    def with_cost(self, loss: Tensor) -> Tensor:
        """The loss of the last forward pass and the cost of its choices; see :func:`sw_model.nn.gates.gated_loss`.

        Raises:
            RuntimeError: no forward pass yet.
        """
        if not self.masks:
            raise RuntimeError("no forward pass yet, so there are no choices whose cost could be told")
        cp = torch.stack([mask @ self.factors for mask in self.masks]).mean()
        s = self.schedule
        return gated_loss(loss, cp, s.targets[s.pfq.stage], s.beta, band=s.band, cap=s.cap or None)

    def take_choices(self) -> Tensor:
        """Options of every sample at every block since the last step, int64 (blocks, N)."""
        found = torch.cat(self.choices, 1)
        self.choices, self.masks, self._state = [], [], None
        return found

    def shares(self, choices: Tensor) -> dict[str, Tensor]:
        """Cost of samples relative to float32 (1.0) of every governed layer."""
        return {
            name: self.factors[row] / 100 for names, row in zip(self.layers, choices, strict=True) for name in names
        }


def _pooled(x: Tensor) -> Tensor:
    """A block's input as a vector per sample: images (N, C, H, W), sequences (N, T, C) and vectors alike."""
    return x.mean((2, 3)) if x.ndim == 4 else x.flatten(1, -2).mean(1) if x.ndim > 2 else x


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def _governed(model: nn.Module, path: str, inputs: dict[str, tuple[int, ...]]) -> list[ConvolutionSite]:
    """The dense convolutions of a block that engines take as they are."""
    try:
        block = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"block {path!r} is no module of {type(model).__name__} ({error})") from error
    if path not in inputs:
        raise ValueError(f"block {path!r} did not run with the example, or takes no tensor; name a module that does")
    kept: set[str] = getattr(model, "keep_full", set())
    found = [
        site
        for site in block.modules()
        if isinstance(site, ConvolutionSite) and site.gateable and site.called not in kept
    ]
    if not found:
        raise ValueError(
            f"block {path!r} has no dense convolution with one stride and padding, whose bits a gate could choose"
        )
    return found
