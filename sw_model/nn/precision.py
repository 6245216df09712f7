"""The precision of a layer, and what all layers of a model share in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from host.operands import Engine
from sw_model.nn.parallel import Shard
from sw_model.quantize.affine import Mode, affine_values, fake_quantize, grid_from_range

#: ``on_product(layer name, product, macs per call, bits of operand a, bits of operand b)``; 32 bits mean unquantized.
ProductHook = Callable[[str, str, int, int, int], None]


@dataclass(frozen=True)
class Precision:
    """Bits of the three operands of a layer; 0 and 32 both mean float32, unquantized.

    Attributes:
        weight, activation, grad: widths, 0, 1..16 or 32.
        weight_grad: width of the gradient in the weight-gradient product, if it differs (SBM's bifurcated gradient);
            None quantizes the gradient once for both products.  Products of two activations have no weight gradient.
    """

    weight: int
    activation: int
    grad: int
    weight_grad: int | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "activation", "grad", "weight_grad"):
            bits = getattr(self, name)
            if bits is None and name == "weight_grad":
                continue
            if not isinstance(bits, int) or isinstance(bits, bool) or not (0 <= bits <= 16 or bits == 32):
                raise ValueError(f"{name} bits must be 0, 1..16 or 32 (0 and 32: unquantized), not {bits!r}")
            if bits == 32:
                object.__setattr__(self, name, 0)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """(weight, activation, gradient, gradient in the weight-gradient product), 32 standing for unquantized."""
        last = self.grad if self.weight_grad is None else self.weight_grad
        return self.weight or 32, self.activation or 32, self.grad or 32, last or 32

    @property
    def quantized(self) -> bool:
        """Whether any operand is quantized."""
        return min(self.widths) < 32

    def __str__(self) -> str:
        widths = [self.weight, self.activation, self.grad]
        if self.weight_grad not in (None, self.grad):
            widths.append(self.weight_grad or 0)
        return "/".join(map(str, widths)) if self.quantized else "fp32"


FULL = Precision(0, 0, 0)


#: Details of the published code that mode "paper" keeps and "fixed" repairs: scales never below 1e-8; running ranges that
#: start at zero, or keep 0.9 of their old value; an input gradient on the forward product's weights, whose scales cannot
#: leave its sum.
LAYER_DEFECTS = ("scale-floor", "zero-start", "range-momentum", "weight-grid")

#: Share of the old value in the running ranges, and that of the published scripts; FracTrain's on CIFAR has 0.1 too.
RANGE_MOMENTUM, PUBLISHED_RANGE_MOMENTUM = 0.1, 0.9


def has_defect(mode: str, detail: str) -> bool:
    """Whether a mode keeps a detail of the published code: "paper" keeps all, other modes those that they name."""
    return mode == "paper" or detail in mode.split("+")


@dataclass
class Run:
    """What all layers of a model share during training.

    Attributes:
        engine: exact engine of the quantized products, or None for the fast path.
        seed, step: counters behind the keys of stochastic rounding; the training loop advances ``step``.
        mode: "fixed", "paper" for all of :data:`LAYER_DEFECTS`, or the names of some, joined by "+".
        gradient: quantizer of output gradients: "affine" (FracTrain's), or StatQuant's "ptq", "psq" or "bhq", whose
            grids are no single affine one per tensor, so they have the fast path only.
        quantizer: "affine" (FracTrain's and SBM's), or a comparison method of :data:`sw_model.quantize.methods.METHODS`, which
            have the fast path only.
        range_momentum: share of the old value in the running activation ranges; 0 leaves it to ``mode``.
        on_product: called for every product, quantized or not, before it is computed.
        shard: this process's part of the batch (or of those samples that take part) in training, if several share it.
    """

    engine: Engine | None = None
    seed: int = 0
    step: int = 0
    mode: str = "fixed"
    gradient: str = "affine"
    quantizer: str = "affine"
    range_momentum: float = 0.0
    on_product: ProductHook | None = None
    shard: Shard | None = None

    def gradient_values(
        self, grad: Tensor, bits: int, key: int, shard: Shard | None, scratch: str | None = None
    ) -> Tensor:
        """An output gradient, stochastically rounded on the affine grid of the whole batch.

        Args:
            grad: float32, samples along the leading axis.
            bits: width.
            key: of the random numbers.
            shard: the layer's part of the batch when it ran forward, if several processes share one.
            scratch: see :func:`sw_model.quantize.affine.affine_values`.
        """
        if shard is None:
            return affine_values(grad, bits, key=key, mode=self.scale_mode, scratch=scratch)
        grid = grid_from_range(*shard.extremes(grad), bits, key=key, mode=self.scale_mode)
        return fake_quantize(grad, grid, first=shard.first(grad))

    def has_defect(self, defect: str) -> bool:
        """Whether a detail of the published code is kept."""
        return has_defect(self.mode, defect)

    @property
    def running_share(self) -> float:
        """Share of the old value in the running activation ranges."""
        return self.range_momentum or (
            PUBLISHED_RANGE_MOMENTUM if self.has_defect("range-momentum") else RANGE_MOMENTUM
        )

    @property
    def scale_mode(self) -> Mode:
        """Mode of the quantizers, which decides the smallest scale."""
        return "paper" if self.has_defect("scale-floor") else "fixed"

    @property
    def input_gradient_axis(self) -> int:
        """Axis of the weight along which the input gradient's grids lie: its own, or the forward product's."""
        return 0 if self.has_defect("weight-grid") else 1
