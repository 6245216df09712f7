"""Dynamic fractional quantization (DFQ): a gate chooses every block's bits for every input (Fu et al. 2020).

At every block's input the image is pooled to a vector, projected, and fed to one LSTM that runs over depth; a linear
layer turns its state into scores of the options.  An option is a pair of widths, (activation, gradient), or (0, 0) for
leaving the block's residual branch out.  Softmax, arg max and a straight-through estimate make the choice trainable:
forward the one-hot choice, backward the softmax.

The published CIFAR code runs every block at *every* option and sums the results under the one-hot mask: five options,
five times the work.  Here each sample is computed once.  A convolution is linear in its input, so a layer's mixture
over options is ``sum_k m_k conv(Q_k(x)) = conv(sum_k m_k Q_k(x))``: one convolution of an input whose samples are each
quantized with their own option's bits.  The gate's gradient is that of the mixture, ``dL/dm_k = <dL/d(mixed input),
Q_k(x)>``, over all options and without computing any of their convolutions.  ``way="every"`` keeps the published way
to check against.

Differences from the published code:

- Ranges: samples share a layer's range, and masked samples have gradients of zero.  Zeros neither widen the range nor
  become noise.
- Batch normalisation sees every sample once per step.  The published code shows it every sample once per option.
- Options are mixed at the input of every convolution.  The published code mixes them at the block's output.  The
  gate's gradient is therefore of first order: it takes the layers behind a convolution as linear, with the slope at
  the option that was chosen.  ``test_gates_learn_in_nearly_the_direction_of_the_published_way`` compares both
  gradients on a small network: their cosine is 0.81, and ours is 1.19 times as long.
- The gate after the last block does not exist, for nothing uses its choice.
- A sample that skips a block has no residual to weigh against.  The skip option learns from samples that did not skip,
  and from the cost.
- In passes of the fabric (norm "fabric") the gates see pooled codes, and the backbone gets no gradient through them.
- A block that all samples have skipped in training has no activation ranges (nor trained weights).  Evaluation skips
  it too.

Selective layer update (E2-Train's SLU, the coarse ancestor) has two options: skipping, and one precision.  A draw by
the option's probability makes the choice: ``x <- m F(x) + (1 - m) x``.  While it trains, E2-Train computes F for
samples that skip, too, as ``way="every"`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.arrays import F32
from host.step.forward import Groups
from host.step.node_precision import chosen_groups
from host.training.gate_cost import cost_factors
from hw.networks import PRODUCTS, Bits
from sw_model.nn.cost_meter import GATES, step_factor
from sw_model.nn.gated_convolution import Assignment, Relative, dispatch
from sw_model.nn.layers import QConv2d
from sw_model.nn.models import Backbone, Block, Convolve, GateShape, plain
from sw_model.nn.parallel import ALONE, Shard
from sw_model.nn.precision import Precision, Run, has_defect
from sw_model.quantize.affine import derive_key, random_units, straight_through
from sw_model.quantize.methods import RangeBatchNorm2d
from sw_model.step.fabric_step import FabricStep, StepGates, bits_of

Way = Literal["once", "every", "every, statistics once"]
Choice = Literal["argmax", "sample"]


class GatedNetwork(nn.Module):
    """A network whose blocks' bits are chosen per sample by an LSTM gate.

    Args:
        base: the network; its blocks are gated, except their depthwise convolutions, and its stem and head follow the
            precision schedule or stay float32, as do the layers that ``base.ungated()`` names.
        options: P (activation, gradient) widths in bits; (0, 0) skips the block; (32, 32) is float32, which goes with
            skipping only.
        weight_bits: width of the weights in all blocks; 32 with float32.
        way: "once" computes each sample once; "every" runs each block at every option and sums under the mask, as the
            published code does (with its repeated updates of batch normalisation and ranges, unless "statistics once",
            which takes those of the first option that is not a skip).
        choice: in training, the option of greatest probability ("argmax", DFQ) or one drawn by probability ("sample",
            selective layer update); evaluation takes the greatest.

    Maps float32 (N, C, H, W) to logits (N, classes).  After a forward pass ``masks`` holds the choices, one (N, P)
    tensor per block, for :meth:`cp`.

    Raises:
        ValueError: options that cannot stand side by side, or skipping in a network with blocks that have no skip connection.
    """

    factors: Tensor

    def __init__(
        self,
        base: Backbone,
        options: Sequence[tuple[int, int]],
        weight_bits: int,
        *,
        way: Way = "once",
        choice: Choice = "argmax",
    ) -> None:
        super().__init__()
        live = [option for option in options if option != (0, 0)]
        if len(options) < 2 or not live:
            raise ValueError(f"gates need at least two options, one of them not a skip; got {list(options)}")
        if len(options) - len(live) > 1 or any(0 in option for option in live):
            raise ValueError(f"options {list(options)}: use (0, 0) once for skipping, positive widths otherwise")
        if any(32 in (*option, weight_bits) for option in live) and (live != [(32, 32)] or weight_bits != 32):
            raise ValueError(
                f"options {list(options)} with {weight_bits}-bit weights: float32 stands beside skipping only, as "
                "(32, 32) with weights of 32 bits"
            )
        self.skip = options.index((0, 0)) if (0, 0) in options else None
        lacking = [i for i, block in enumerate(base.block_list()) if not block.skippable]
        if self.skip is not None and lacking:
            raise ValueError(
                f"blocks {lacking} of {type(base).__name__} have no skip connection, so none can be skipped"
            )
        self.base, self.way, self.choice = base, way, choice
        self.options = tuple(None if o == (0, 0) else Precision(weight_bits, *o) for o in options)
        self._dispatched = tuple(Precision(weight_bits, *o) for o in options)
        factors = [0.0 if p is None else 100 * step_factor(p) / 3 for p in self.options]
        self.register_buffer("factors", torch.tensor(factors))
        self.projections = nn.ModuleList(_projection(block.in_channels, base.gate) for block in base.block_list())
        self.lstm = nn.LSTMCell(base.gate.projection[-1], base.gate.hidden)
        self.scores = nn.Linear(base.gate.hidden, len(self.options))
        ungated = base.ungated()
        self.keep_full = {f"base.{name}" for name in base.keep_full | ungated}
        self._ungated = {module for name, module in base.named_modules() if name in ungated}
        self.masks: list[Tensor] = []
        self._state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.masks, self._state = [], None
        if self.base.step is not None and self.base.quantized:
            return self._in_passes(self.base.step, x)
        x = self.base.entry(x)
        for index, block in enumerate(self.base.block_list()):
            mask = self._gate(index, x.mean((2, 3)))
            x = self._once(block, x, mask) if self.way == "once" else self._every(block, x, mask)
        return self.base.exit(x)

    def _gate(self, index: int, pooled: Tensor) -> Tensor:
        """Choices of a block for its pooled input (N, C), as one-hot rows with a straight-through gradient."""
        self._state = self.lstm(self.projections[index](pooled), self._state)
        assert self._state is not None
        soft = self.scores(self._state[0]).softmax(1)
        mask = straight_through(self._one_hot(soft.detach(), index), soft)
        self.masks.append(mask)
        self._report(index, len(pooled))
        return mask

    def _in_passes(self, step: FabricStep, x: Tensor) -> Tensor:
        """The network with its blocks in passes of the fabric, a group of samples for each option."""
        options = self.option_bits

        def choose(index: int, pooled: F32) -> Groups:
            choice = self._gate(index, torch.from_numpy(pooled)).detach().argmax(1).numpy()
            return chosen_groups(choice, options)

        gates = StepGates(choose, options, self.gated_names(), self.masks)
        logits: Tensor = self.base.head(step.gated(self.base, x, gates))
        return logits

    @property
    def option_bits(self) -> list[Bits]:
        """Bits of every option in passes of the fabric."""
        return [bits_of(precision) for precision in self._dispatched]

    def gated_names(self) -> set[str]:
        """Names in the base network of the layers whose bits gates choose."""
        layers = self.gated_layers()
        return {name for name, module in self.base.named_modules() if module in layers}

    def gate_macs(self) -> list[int]:
        """Multiply-accumulates per image and product of every block's gate: projection, LSTM and scores.

        The first gate's LSTM starts from zeros, which are multiplied like any other state.
        """
        lstm, scores = self.lstm, self.scores
        shared = 4 * lstm.hidden_size * (lstm.input_size + lstm.hidden_size) + scores.in_features * scores.out_features
        linear = [[m for m in each.modules() if isinstance(m, nn.Linear)] for each in self.projections]
        return [shared + sum(m.in_features * m.out_features for m in row) for row in linear]

    def _report(self, block: int, rows: int) -> None:
        """Tells the run's hook of a gate's products, all in float32; layers tell of their own."""
        stem = self.base.stem
        if stem.run.on_product is not None:
            macs = stem.whole(rows) * self.gate_macs()[block]
            for product in PRODUCTS if self.training and torch.is_grad_enabled() else PRODUCTS[:1]:
                stem.run.on_product(f"{GATES}{block}", product, macs, 32, 32)

    def _one_hot(self, soft: Tensor, block: int) -> Tensor:
        """Option of every sample as a row with one 1: float32 (N, P)."""
        return F.one_hot(self._choose(soft, block), len(self.options)).to(soft.dtype)

    def _choose(self, soft: Tensor, block: int) -> Tensor:
        """Option of every sample, int64 (N,)."""
        if not self.training and self._untrained(block):
            assert self.skip is not None
            return torch.full((len(soft),), self.skip, device=soft.device)
        if self.choice == "argmax" or not self.training:
            return soft.argmax(1)
        run = self.base.stem.run
        first = 0 if run.shard is None else run.shard.before
        units = random_units(len(soft), derive_key(run.seed, run.step, block, _GATE_SALT), first, soft.device)
        return (soft.cumsum(1)[:, :-1] <= units[:, None]).sum(1)

    def _untrained(self, block: int) -> bool:
        """Whether all samples have skipped a block in training, so that its layers have no activation ranges."""
        if self.skip is None or not any(p is not None and p.quantized for p in self.options):
            return False
        layers = [m for name, m in self.base.block_list()[block].named_children() if isinstance(m, QConv2d)]
        return all(int(layer.batches) == 0 for layer in layers)

    def cp(self) -> Tensor:
        """Cost of the last forward pass: percent of float32 training, mean over samples (of this process) and blocks;
        differentiable."""
        if not self.masks:
            raise RuntimeError("no forward pass yet, so there are no choices whose cost could be told")
        return torch.stack([mask @ self.factors for mask in self.masks]).mean()

    def choices(self) -> Tensor:
        """Option of every sample at every block in the last forward pass, of the whole batch: int64 (blocks, N)."""
        here = torch.stack([mask.detach().argmax(1) for mask in self.masks])
        shard = self.base.stem.run.shard
        return here if shard is None else shard.gather(here.T).T

    def shares(self, choices: Tensor) -> dict[str, Tensor]:
        """Cost of samples in every block relative to float32 (1.0), by the prefix of the block's layer names.

        Args:
            choices: option of every sample at every block, int64 (blocks, N).
        """
        return {f"base.blocks.{block}": self.factors[row] / 100 for block, row in enumerate(choices)}

    def gated_layers(self) -> set[QConv2d]:
        """The layers whose bits gates choose."""
        blocks = self.base.block_list()
        return {layer for block in blocks for layer in _modules(block, QConv2d) if self._gates(layer)}

    def _gates(self, layer: QConv2d) -> bool:
        return layer.groups == 1 and layer not in self._ungated

    def _convolution(self, mask: Tensor) -> Convolve:
        """How blocks convolve samples with these choices, none of which skips."""
        live = [p for p in self.options if p is not None]
        if len(live) == 1:

            def same(layer: QConv2d, x: Tensor) -> Tensor:
                if self._gates(layer):
                    layer.precision = live[0]
                return plain(layer, x)

            return same
        if self.skip is not None:
            mask = Relative.apply(mask, self.skip)

        assigned: Assignment | None = None

        def mixed(layer: QConv2d, x: Tensor) -> Tensor:
            nonlocal assigned
            if not self._gates(layer):
                return plain(layer, x)
            assigned = assigned or Assignment.of(mask, layer.run.shard)
            return dispatch(layer, x, mask, self._dispatched, assigned)

        return mixed

    def _least(self) -> int:
        """The option of least bits, at which the skip connection of a sample that skips is computed."""
        return min((k for k, p in enumerate(self.options) if p is not None), key=lambda k: float(self.factors[k]))

    def _once(self, block: Block, x: Tensor, mask: Tensor) -> Tensor:
        if self.skip is None:
            convolve = self._convolution(mask)
            return block.join(block.residual(x, convolve), block.skip_connection(x, convolve))
        moved = mask.detach().clone()
        moved[:, self._least()] += moved[:, self.skip]
        moved[:, self.skip] = 0
        skip = block.skip_connection(x, self._convolution(moved))
        assert skip is not None
        skipped = block.join(None, skip)
        stays = mask.detach()[:, self.skip] == 0
        active, run = torch.nonzero(stays)[:, 0], self.base.stem.run
        part = (run.shard or Shard.of_batch(ALONE, len(x))).groups(stays.long(), 2)[1]
        if not part.total or (part.total == 1 and block.training and skipped[0, 0].numel() == 1):
            # One sample is too few for batch statistics where its image has shrunk to one pixel.
            return skipped
        chosen = mask[active]
        with _shared(run, part):
            through = block.join(block.residual(x[active], self._convolution(chosen)), skip[active])
        # Worth ``through`` and, backward, what skipping would have changed.
        through = through + chosen[:, self.skip, None, None, None] * (skipped[active] - through)
        return skipped.index_copy(0, active, through)

    def _every(self, block: Block, x: Tensor, mask: Tensor) -> Tensor:
        total: Tensor | None = None
        # Skipping comes last: what is computed first gives the statistics, and skipping leaves the residual branch out.
        for place, k in enumerate(sorted(range(len(self.options)), key=lambda k: self.options[k] is None)):
            precision = self.options[k]
            at = precision or self.options[self._least()]
            assert at is not None
            for layer in _modules(block, QConv2d):
                layer.call_index = k
                if self._gates(layer):
                    layer.precision = at
            with _statistics_kept(block) if place and self.way != "every" else nullcontext():
                y = block.join(None, block.skip_connection(x)) if precision is None else block(x)
            y = y * mask[:, k, None, None, None]
            total = y if total is None else total + y
        assert total is not None
        return total


@contextmanager
def _shared(run: Run, part: Shard) -> Iterator[None]:
    """Layers see ``part`` as the batch, where several processes share one."""
    whole = run.shard
    run.shard = None if whole is None else part
    try:
        yield
    finally:
        run.shard = whole


def _modules(block: Block, *kinds: type) -> list[Any]:
    return [module for module in block.modules() if isinstance(module, kinds)]


@contextmanager
def _statistics_kept(block: Block) -> Iterator[None]:
    """Running statistics and activation ranges of a block stay as they are."""
    norms, layers = _modules(block, nn.BatchNorm2d, RangeBatchNorm2d), _modules(block, QConv2d)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    for layer in layers:
        layer.updates_range = False
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for layer in layers:
            layer.updates_range = True


#: Details of the published gates, which mode "paper" keeps and a recipe's mode may name: every option is computed for every sample, so that the
#: zero gradients of those that chose another become noise; and each of these passes updates batch statistics.
GATE_DEFECTS = ("masked-noise", "norm-per-option")


def way_of(mode: str) -> Way:
    """How gated blocks are computed in a mode, see :attr:`sw_model.nn.precision.Run.mode`."""
    if has_defect(mode, "norm-per-option"):
        return "every"
    return "every, statistics once" if has_defect(mode, "masked-noise") else "once"


#: Tells the keys of gates from those of layers.
_GATE_SALT = 1 << 16


def _projection(channels: int, shape: GateShape) -> nn.Sequential:
    """From a block's pooled input to the LSTM's."""
    layers: list[nn.Module] = []
    for width in shape.projection:
        if layers:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(channels, width))
        channels = width
    return nn.Sequential(*layers)


def gated_loss(
    task: Tensor, cp: Tensor, target: float, beta: float, *, band: float = 0.0, cap: float | None = None
) -> Tensor:
    """Task loss plus the cost term with its sign flipped below the target: ``CE +- beta * cp``.

    The published code's term is a sum where ours is a mean: over the images of a batch, the blocks and the three products,
    of shares of float32.  Its weight 1e-3 is thus ``beta = 1e-3 * batch * blocks * 3 / 100`` here, 0.069 for ResNet-38
    with batches of 128; the term of a mean in percent depends neither on the batch nor on the network's depth.

    Args:
        task: cross entropy, scalar.
        cp: cost in percent of float32, scalar, differentiable.
        target, beta, band, cap: see :func:`host.training.gate_cost.cost_factors`.
    """
    factors = cost_factors(float(cp.detach()), float(task.detach()), target, beta, band=band, cap=cap or 0.0)
    if not factors:
        return task
    for factor in factors:
        cp = cp * factor
    return task + cp
