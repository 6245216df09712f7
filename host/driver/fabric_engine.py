"""The training products on a device: *plan, then fill*.

:mod:`hw.plan.lowering` and :mod:`hw.plan.schedule` turn shapes and widths into steps without data, which the cost
models count as well.  Here operands are checked, :mod:`host.driver.session` fills the steps with them and sends them, and
:mod:`host.driver.assembly` makes sums of what comes back.  Partial results are added in 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from host.arrays import I64
from host.devices.device import DEFAULT_TIMEOUT, Device
from host.driver.assembly import forward_sums, input_gradient_sums, weight_gradient_sums
from host.driver.layout import tensor_of
from host.driver.session import Member, Recorder, Results, Session
from host.grids import coded, host_codes
from host.operands import ConvGeometry, Grid, Meter, Operand, Sums
from hw.design import Design
from hw.plan.lowering import lower
from hw.plan.plan import PROGRAM_WORDS
from hw.plan.product import Product, Source

_NAMES = {"x": "activation", "w": "weight", "g": "output gradient"}


def _one_or_all(bits: Iterable[int]) -> int | str:
    """A width that all members share, or all of them: "3+6"."""
    each = list(bits)
    return each[0] if len(set(each)) == 1 else "+".join(map(str, each))


def _source(operand: Operand | None) -> Source | None:
    if operand is None:
        return None
    return Source(operand.grid.bits, operand.grid.signed)


def _coded(operands: dict[str, Operand]) -> dict[str, Operand]:
    """Operands as codes but for weights, which several members may share: :class:`_Weights` has theirs."""
    return {name: operand if name == "w" else coded(operand) for name, operand in operands.items()}


class _Weights:
    """Weights of one call, as codes; those that are alike have the same number."""

    def __init__(self) -> None:
        self._codes: dict[int, I64] = {}
        self._numbers: dict[tuple[tuple[int, ...], bytes], int] = {}
        self._of: dict[int, int] = {}

    def add(self, w: Operand) -> tuple[I64, int]:
        """Codes (O, I, kh, kw), and their number."""
        if id(w) not in self._of:
            codes = host_codes(w)
            self._codes[id(w)] = codes
            self._of[id(w)] = self._numbers.setdefault((codes.shape, codes.tobytes()), len(self._numbers))
        return self._codes[id(w)], self._of[id(w)]


class FabricEngine:
    """Implements :class:`host.operands.Engine` on a device.

    Operands travel as bit planes of codes; those given as values are quantized first, on the host.  ``meter.totals`` adds up the device's counters, ``PROGRAMS`` and
    ``PRODUCTS``; ``meter.rows`` has one row per product call.

    Args:
        device: any :class:`host.devices.device.Device`.
        timeout: seconds that one program may take.
        recorder: called with the words and the result of every program, for replay on another device.
        keep_rows: whether ``meter.rows`` is filled.
        program_words: a program is closed when its words and results pass this number.
        skip_zero: let the fabric look for zero planes itself, at one cycle per address and packet.  Planes that the host
            sees to be zero in a whole operand are skipped in any case; this adds those that are zero in a packet's part.
    """

    def __init__(
        self,
        device: Device,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        recorder: Recorder | None = None,
        keep_rows: bool = True,
        program_words: int = PROGRAM_WORDS,
        skip_zero: bool = False,
    ) -> None:
        self.device = device
        self.design: Design = device.info.design
        self.timeout = timeout
        self.recorder = recorder
        self.meter = Meter()
        self.keep_rows = keep_rows
        self._program_words = program_words
        self._skip_zero = skip_zero

    # -- products ---------------------------------------------------------------------------------------------------

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Output of a convolution.  See :class:`host.operands.Sums` for shapes.

        Raises:
            ValueError: shapes that do not fit the geometry, codes outside their grid, values that are not finite.
            ProgramError: the device refused a program.
        """
        return self.several("forward", [(x, w, geometry)])[0]

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Gradient of the input: the output gradient under the mirrored, transposed kernel.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        return self.several("input_gradient", [(g, w, geometry)])[0]

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        """Gradient of the weights, accumulated on chip over the batch.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        return self.several("weight_gradient", [(x, g, geometry)])[0]

    def several(self, product: str, members: Sequence[tuple[Operand, Operand, ConvGeometry]]) -> list[Sums]:
        """Products of one kind in one program, which loads weights that neighbours share only once.

        Args:
            product: "forward", "input_gradient" or "weight_gradient".
            members: both operands as the method of that name takes them, and a geometry that fits them.

        Returns:
            For each member what that method returns.

        Raises:
            ValueError: an unknown product, and as in :meth:`forward`.
            ProgramError: as in :meth:`forward`.
        """
        names = {"forward": ("x", "w"), "input_gradient": ("g", "w"), "weight_gradient": ("x", "g")}
        if product not in names:
            raise ValueError(f"no product {product!r}; use one of {', '.join(names)}")
        first, second = names[product]
        operands = [_coded({first: a, second: b}) for a, b, _ in members]
        geometries = [m for _, _, m in members]
        made, found = self._run(product, operands, geometries, [(a.grid, b.grid) for a, b, _ in members])
        out = []
        for member, results, each in zip(made, found, operands, strict=True):
            lowered = lower(self.design, member.product)
            if product == "weight_gradient":
                out.append(weight_gradient_sums(lowered, results, each["x"], each["g"]))
                continue
            assert member.weight is not None
            sums = forward_sums if product == "forward" else input_gradient_sums
            out.append(sums(lowered, results, each[first], member.weight))
        return out

    def backward(self, x: Operand, g: Operand, w: Operand, geometry: ConvGeometry) -> tuple[Sums, Sums]:
        """Input gradient and weight gradient in one program.

        The two take turns where whole images of both operands fit the buffers together (:func:`hw.plan.schedule.fuses`),
        and the output gradient is then sent only once, unless the input gradient takes its channel groups in pairs.

        Args:
            x, g, w: activations, output gradient and weights; g is on the same grid in both products.

        Returns:
            What :meth:`input_gradient` and :meth:`weight_gradient` return.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        return self.backward_mixed([(x, g, geometry)], w)[0]

    def backward_mixed(
        self, members: Sequence[tuple[Operand, Operand, ConvGeometry]], w: Operand
    ) -> list[tuple[Sums, Sums]]:
        """Both gradients for operands on grids of their own, under the same weights and in one program.

        Args:
            members: activations, output gradient, and a geometry that fits them.

        Returns:
            For each member what :meth:`backward` returns.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        operands = [_coded({"x": x, "g": g, "w": w}) for x, g, _ in members]
        geometries = [m for _, _, m in members]
        made, found = self._run("backward", operands, geometries, [(g.grid, w.grid) for _, g, _ in members])
        out = []
        for member, results, each in zip(made, found, operands, strict=True):
            lowered = lower(self.design, member.product)
            assert member.weight is not None
            to_input = input_gradient_sums(lowered, results, each["g"], member.weight)
            out.append((to_input, weight_gradient_sums(lowered, results, each["x"], each["g"])))
        return out

    def session(self, context: str) -> Session:
        """A session with the engine's device and limits for one call, which ``context`` names in messages."""
        return Session(self.device, self._program_words, self.timeout, self.recorder, context)

    # -- members of a program ---------------------------------------------------------------------------------------

    def _run(
        self,
        kind: str,
        operands: Sequence[dict[str, Operand]],
        geometries: Sequence[ConvGeometry],
        grids: Sequence[tuple[Grid, Grid]],
    ) -> tuple[list[Member], list[Results]]:
        """Members of a program and their results; the meter takes note.

        Args:
            operands: "x", "w" and "g" of each member, as far as the product takes them.
            grids: of each member, for the meter.
        """
        weights = _Weights()
        members = [self._member(kind, each, m, weights) for each, m in zip(operands, geometries, strict=True)]
        session = self.session(kind)
        found = session.run(members)
        totals = self.meter.totals
        totals["PRODUCTS"] = totals.get("PRODUCTS", 0) + len(members)
        for name, value in session.counters.items():
            totals[name] = totals.get(name, 0) + value
        if self.keep_rows:
            widths = _one_or_all(a.bits for a, _ in grids), _one_or_all(b.bits for _, b in grids)
            batch = sum(m.batch for m in geometries)
            self.meter.add_row(kind, widths, batch, geometries[0], session.counters)
        return members, found

    def _member(self, kind: str, operands: dict[str, Operand], m: ConvGeometry, weights: _Weights) -> Member:
        """A product with its data.

        Raises:
            ValueError: a shape that does not fit the geometry, codes outside their grid.
        """
        shapes = {
            "x": (m.batch, m.in_channels, *m.in_hw),
            "w": (m.out_channels, m.in_channels, *m.kernel),
            "g": (m.batch, m.out_channels, *m.out_hw),
        }
        for name, operand in operands.items():
            shape, wanted = operand.shape, shapes[name]
            if shape != wanted:
                raise ValueError(f"{_NAMES[name]} has shape {shape}, the geometry asks for {wanted}")
            if 0 in shape:
                raise ValueError(f"{_NAMES[name]} of shape {shape} is empty; skip the product")
        x, g, w = (operands.get(name) for name in "xgw")
        tensors = {name: tensor_of(operand, _NAMES[name]) for name, operand in operands.items() if name != "w"}
        product = Product(kind, m, _source(x), None, _source(g), skip_zero=self._skip_zero)
        if w is None:
            return Member(product, None, tensors)
        weight, number = weights.add(w)
        product = replace(product, w=Source(w.grid.bits, w.grid.signed), weights=number)
        if lower(self.design, product).along_pixels:
            tensors["w"] = tensor_of(Operand(w.grid, codes=weight), _NAMES["w"])
        return Member(product, weight, tensors)
