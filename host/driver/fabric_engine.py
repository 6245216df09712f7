"""The three training products on a device: any convolution becomes stream programs of 3x3 pieces.

Lowering, in short:

- a *correlation* is the common form of output and input gradient: ``y[n,o,i,j] = sum a[n,c,i+dy,j+dx] k[o,c,dy,dx]``
  over any range of offsets.  The common 3x3 kernel with stride 2 runs as it is; other strides of a forward product
  turn the phases of the input into extra input channels, in an input gradient the phases of the result into extra
  output channels, which the common kernel contracts over two groups of channels at once;
- offsets are cut into *pieces* of up to three by three, each with a *centre*: the fabric computes the piece at pixel
  ``i + centre``, so one tensor in the buffer serves all pieces;
- images are cut into *tiles* with a halo of one pixel where they are wider than the lanes or taller than the buffer,
  and put side by side where they are narrower; channels are cut into blocks that fit buffers and accumulators;
- a weight gradient computes the taps in use and no others; strided layers accumulate phase by phase;
- a matrix product may contract along pixels, as a weight gradient does, where that is quicker;
- partial results of pieces and input blocks are added on the host, in 64-bit integers.

Buffer halves are used in turn, so that the fabric can load the next tensor while it computes on the last one.
:mod:`host.driver.tiling` cuts, :mod:`host.driver.layout` arranges; here packets are chosen, sent and their results put together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from host.devices.device import DEFAULT_TIMEOUT, Device, Result, check
from host.driver.layout import (
    Tensor,
    contracted,
    host_codes,
    interleaved,
    mask_tensor,
    merge_phases,
    paired_groups,
    paired_kernel,
    row_of_pixels,
    side_by_side,
    tensor_of,
)
from host.driver.tiling import (
    Cut,
    Piece,
    Stack,
    axis_phases,
    axis_phases_back,
    extent,
    kernel_pieces,
    split_range,
    stacks_of,
    tap_slices,
    tiles_of,
    valid_taps,
    valid_taps_back,
)
from host.operands import ConvGeometry, Grid, Meter, Operand, Sums
from host.program import packing
from host.program.builder import ProgramBuilder, float_bits
from hw import contract
from hw.contract import ACCUMULATOR_LIMIT, TAPS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.cycles import contracts
from hw.model.workload import in_pairs
from hw.packet import Packet, all_planes, flags_of, read_entries, sums_format, tensor_addresses

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Array = npt.NDArray[np.generic]
Recorder = Callable[[U64, Result], None]
_View = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # centre; span of rows and columns

DEFAULT_PROGRAM_WORDS = 1 << 21  #: a program is closed when its words and results pass this
_PACKET_CYCLES = 64  #: cycles per tile that hide the fixed work of a WGRAD packet


# -- running --------------------------------------------------------------------------------------------------------


def _one_or_all(bits: Iterable[int]) -> int | str:
    """A width that all members share, or all of them: "3+6"."""
    each = list(bits)
    return each[0] if len(set(each)) == 1 else "+".join(map(str, each))


class _Run:
    """Programs of one product call: closes a program when it is long, and hands result words to whoever awaits them."""

    def __init__(
        self,
        device: Device,
        limit: int,
        timeout: float,
        recorder: Recorder | None,
        skip_zero: bool,
        context: str,
    ) -> None:
        self.device, self.limit, self.timeout, self.recorder, self.context = device, limit, timeout, recorder, context
        self.skip_zero = skip_zero
        self.design = device.info.design
        self.builder = ProgramBuilder(self.design)
        self.counters: dict[str, int] = {"PROGRAMS": 0}
        self._awaiting: list[tuple[slice, Callable[[U64], None]]] = []
        depths = {Target.A: self.design.depth_a, Target.G: self.design.depth_g, Target.W: self.design.depth_w}
        self._buffers = {target: _Buffer(target, depth) for target, depth in depths.items()}

    def buffer(self, target: Target) -> _Buffer:
        """Buffer A or G for a new product, whose tensors are new too; W, whose contents are known by value."""
        buffer = self._buffers[target]
        if target != Target.W:
            buffer.forget()
        return buffer

    def expect(self, span: slice, receive: Callable[[U64], None]) -> None:
        """Call ``receive`` with the result words of ``span`` once the program has run."""
        self._awaiting.append((span, receive))

    def breathe(self) -> None:
        """A place where the program may be cut."""
        if self.builder.size + self.builder.result_words > self.limit:
            self.flush()

    def flush(self) -> None:
        """Run what has been built and deliver the results.

        Raises:
            ProgramError: the fabric refused the program.
        """
        if not self.builder.packets:
            return
        program = self.builder.end()
        result = self.device.run(program, self.timeout)
        if self.recorder is not None:
            self.recorder(program.words(), result)
        check(result, self.context)
        if result.words.size != program.result_words:
            raise RuntimeError(
                f"{self.context}: {result.words.size} result words instead of {program.result_words}; reset the device"
            )
        self.counters["PROGRAMS"] += 1
        for name, value in result.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        for span, receive in self._awaiting:
            receive(result.words[span])
        self._awaiting = []
        self.builder = ProgramBuilder(self.design)


class _Buffer:
    """Halves of a buffer, used in turn, and what lies in each."""

    def __init__(self, target: Target, depth: int) -> None:
        self.target, self.half = target, depth // 2
        self._turn = 1
        self._holds: dict[int, object] = {}
        self._whole = False  #: one thing fills both halves

    def place(self, key: object, size: int = 0) -> tuple[int, bool]:
        """Base address for ``key``, and whether it lies there already; ``size`` beyond a half takes the whole buffer."""
        for base, held in self._holds.items():
            if held == key:
                return base, True
        if self._whole or size > self.half:
            self._holds = {}
        self._whole = size > self.half
        self._turn = 1 if self._whole else self._turn ^ 1
        base = 0 if self._whole else self._turn * self.half
        self._holds[base] = key
        return base, False

    def forget(self) -> None:
        """What lies there is not known any more; turns go on."""
        self._holds = {}


def _load(
    run: _Run,
    buffer: _Buffer,
    tensor: Tensor,
    stack: Stack,
    channels: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    own_only: bool = False,
) -> int:
    """Load a stack's part of a tensor, unless it lies in the buffer already.

    Args:
        channels: first channel and number of groups.
        shift: tensor pixel [0, 0] goes to virtual pixel ``shift``.
        own_only: pixels of the halo become code 0, so that no product counts twice.

    Returns:
        Base address.
    """
    base, there = buffer.place((id(tensor.array), stack, channels, shift, own_only))
    if not there:
        _load_at(run, buffer.target, base, base, tensor, stack, channels, shift, own_only)
    return base


def _load_at(
    run: _Run,
    target: Target,
    base: int,
    base_g: int,
    tensor: Tensor,
    stack: Stack,
    channels: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    own_only: bool = False,
) -> None:
    """Load a stack's part of a tensor at a base (at ``base_g`` in G, if both buffers are written)."""
    design = run.design
    first, groups = channels

    def moved(cut: Cut, by: int) -> Cut:
        if own_only:
            return Cut(cut.own_start - by, cut.own_stop - by, 0, 0)
        return Cut(cut.start - by, cut.stop - by, 0, 0)

    rows, columns = stack.tile.rows, stack.tile.columns
    if tensor.rows_per > 1:
        rows = Cut(rows.start * tensor.rows_per, rows.stop * tensor.rows_per, 0, 0)
    images = slice(stack.first, stack.first + stack.count)
    part = slice(first, min(first + groups * design.channels, tensor.channels))
    window = tensor.window(images, part, moved(rows, shift[0]), moved(columns, shift[1]))
    if own_only and window.shape[2:] != (rows.size, columns.size):
        whole = np.full((*window.shape[:2], rows.size, columns.size), tensor.fill, dtype=window.dtype)
        y, x = rows.own_start - rows.start, columns.own_start - columns.start
        whole[:, :, y : y + window.shape[2], x : x + window.shape[3]] = window
        window = whole
    virtual = side_by_side(tensor, window, stack.tile.side, groups, design)
    grid = tensor.grid
    if not tensor.is_values:
        run.builder.load_packed(target, virtual.astype(np.uint16, copy=False), grid.bits, base, base_g)
        return
    n, c, h, w = tensor.strides
    step = tensor_addresses(1, rows.size, groups, grid.bits)
    origin = tensor.index + first * c + (rows.start - shift[0]) * h + (columns.start - shift[1]) * w
    quantizer = Packet(
        Opcode.LOAD,
        target=target,
        a_bits=grid.bits,
        flags=flags_of({Flag.A_SIGNED: grid.signed, Flag.STOCHASTIC: grid.key is not None}),
        zero=float_bits(grid.zero),
        reciprocal=float_bits(np.float32(1) / np.float32(grid.scale)),
        segment_start=stack.tile.segment_start,
    )
    for i in range(stack.images):
        random = {}
        if grid.key is not None:
            index = origin + (stack.first + i * stack.tile.side) * n
            strides = {"channel_stride": c, "image_stride": n, "row_stride": h, "pixel_stride": w, "index": index}
            random = {"key": grid.key, **{name: value % (1 << 32) for name, value in strides.items()}}
        bases = {
            "base_a": base + i * step if target & Target.A else 0,
            "base_b": base_g + i * step if target & Target.G else 0,
        }
        run.builder.load_float(replace(quantizer, **bases, **random), virtual[i])


def _fitting_images(design: Design, rows: int, images: int, a_bits: int, b_bits: int) -> int:
    """As many of ``images`` as one WGRAD may take without a possible overflow."""
    wgrad = Packet(Opcode.WGRAD, rows=rows, images=images, a_bits=a_bits, b_bits=b_bits)
    while wgrad.images > 1 and wgrad.overflows(design):
        wgrad = replace(wgrad, images=wgrad.images // 2)
    return wgrad.images


@dataclass(frozen=True)
class _Job:
    """A piece of a weight gradient's kernel, and where its sums go.

    Attributes:
        a: (N, Ca, H, W).
        dot: int64 (O, Ca, ny, nx), added to.
        a_sum: int64 (Ca, ny, nx), added to, or None if the fabric's sums are not wanted.
        b_sum: int64 (O, ny, nx), likewise; takes the ONES group.
    """

    a: Tensor
    piece: Piece
    dot: I64
    a_sum: I64 | None
    b_sum: I64 | None

    @property
    def taps(self) -> int:
        """Mask of the taps in use."""
        return sum(1 << tap for tap, _, _ in self.piece.taps)


class _GradientPass:
    """WGRAD packets of a job that add to the same accumulators, and the READs that fetch them in time.

    Args:
        into, out: first group and number of groups of a, and of g.
        base: first accumulator entry.
    """

    def __init__(
        self, run: _Run, job: _Job, g: Tensor, into: tuple[int, int], out: tuple[int, int], base: int = 0
    ) -> None:
        self._run, self._job, self._g = run, job, g
        self.into, self._out = into, out
        self._ones = job.b_sum is not None and into[0] == 0
        a = job.a
        options = {
            Flag.A_SIGNED: a.grid.signed,
            Flag.B_SIGNED: g.grid.signed,
            Flag.ONES: self._ones,
            Flag.SKIP_ZERO: run.skip_zero,
        }
        #: of every stack; its images, rows, segments, bases and CLEAR are filled in
        self._packet = Packet(
            Opcode.WGRAD,
            groups=into[1],
            out_groups=out[1],
            a_bits=a.grid.bits,
            b_bits=g.grid.bits,
            flags=flags_of(options),
            taps=job.taps,
            a_planes=all_planes(a.grid.bits) if a.planes is None else a.planes,
            b_planes=all_planes(g.grid.bits) if g.planes is None else g.planes,
            base_accumulator=base,
        )
        self.entries = self._packet.entries(run.design)
        self._held = 0  #: bound on what the accumulators hold

    @property
    def job(self) -> _Job:
        return self._job

    def add(self, stack: Stack, base_a: int, base_g: int) -> None:
        """Accumulate what lies in A and G; reads and clears first if the accumulators could overflow."""
        packet = replace(
            self._packet,
            images=stack.images,
            rows=stack.tile.rows.size,
            segment_start=stack.tile.segment_start,
            base_a=base_a,
            base_b=base_g,
        )
        grows = packet.sum_bound(self._run.design)
        if self._held and self._held + grows > ACCUMULATOR_LIMIT - 1:
            self.read()
        if not self._held:
            packet = replace(packet, flags=packet.flags | Flag.CLEAR)
        self._run.builder.add(packet)
        self._held += grows

    def read(self) -> None:
        """Fetch the accumulators; the next packet clears them."""
        d, job = self._run.design, self._job
        c = d.channels
        (first, groups), (first_out, out_groups) = self.into, self._out
        form = sums_format(self._held)

        def receive(words: U64) -> None:
            values = packing.unpack_entries(words, d, self.entries, form == OutputFormat.INT64)
            tile_dot, tile_sum = packing.gradient_tiles(values, d, out_groups, groups + self._ones)
            o, i = first_out * c, first * c
            oc, ic = min(out_groups * c, self._g.channels - o), min(groups * c, job.a.channels - i)
            for rank, (_, ky, kx) in enumerate(sorted(job.piece.taps)):
                job.dot[o : o + oc, i : i + ic, ky, kx] += tile_dot[:oc, :ic, rank]
                if job.a_sum is not None and o == 0:
                    job.a_sum[i : i + ic, ky, kx] += tile_sum[:ic, rank]
                if job.b_sum is not None and self._ones:
                    job.b_sum[o : o + oc, ky, kx] += tile_dot[:oc, groups * c, rank]

        packet = read_entries(self.entries, self._packet.base_accumulator, form)
        self._run.expect(self._run.builder.add(packet), receive)
        self._held = 0


# -- engine ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """Weights of one piece, a block of input groups and a run of output groups, resident together.

    Attributes:
        outputs: output channels (start, stop), whole groups.
        sums: the "weights" are ones that add up the operand, one output channel per phase.
        with_a_sum: let the fabric send operand sums along.
    """

    piece: Piece
    outputs: tuple[int, int]
    bits: int
    signed: bool
    sums: bool
    with_a_sum: bool


@dataclass(frozen=True)
class _Held:
    """Where a unit's weights lie, and the mask of their planes that hold ones."""

    base: int
    planes: int


@dataclass(frozen=True)
class _Sought:
    """A weight gradient to compute with a given output gradient.

    Attributes:
        a: (N, Ca, H, W).
        origin: offset of kernel element [0, 0].
        dot: int64 (O, Ca, ny, nx), added to when the run's programs have run.
        a_sum, b_sum: (Ca, ny, nx) and (O, ny, nx), likewise; b_sum may be None.
    """

    a: Tensor
    origin: tuple[int, int]
    dot: I64
    a_sum: I64
    b_sum: I64 | None


_Member = Callable[[_Run], Callable[[], Any]]


class FabricEngine:
    """Implements :class:`host.operands.Engine` on a device.

    Operands given as codes travel packed; operands given as values travel as float32 and are quantized on the fabric,
    except weights, which are quantized on the host.  ``meter.totals`` adds up the device's counters, ``PROGRAMS`` and
    ``PRODUCTS``; ``meter.rows`` has one row per product call.

    Args:
        device: any :class:`host.devices.device.Device`.
        timeout: seconds that one program may take.
        recorder: called with the words and the result of every program, for replay on another device.
        keep_rows: whether ``meter.rows`` is filled.
        program_words: a program is closed when its words and results pass this number.
        skip_zero: let the fabric look for zero planes itself.  Planes of codes that the host sees to be zero are
            skipped in any case; this adds those of values, at one cycle per address and packet.
    """

    def __init__(
        self,
        device: Device,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        recorder: Recorder | None = None,
        keep_rows: bool = True,
        program_words: int = DEFAULT_PROGRAM_WORDS,
        skip_zero: bool = False,
    ) -> None:
        self.device = device
        self.design: Design = device.info.design
        self.timeout = timeout
        self.recorder = recorder
        self.meter = Meter()
        self._keep_rows = keep_rows
        self._program_words = program_words
        self._skip_zero = skip_zero

    # -- bookkeeping ------------------------------------------------------------------------------------------------

    def _run(
        self, product: str, members: Sequence[_Member], grids: Sequence[tuple[Grid, Grid, ConvGeometry]]
    ) -> list[Any]:
        """Run members as one program (or several, if it grows long); what each of them makes of its results.

        Args:
            members: each adds its packets to the run that it is given, and returns what to call once it has run.
            grids: of both operands, and the geometry, of each member.
        """
        run = _Run(self.device, self._program_words, self.timeout, self.recorder, self._skip_zero, product)
        finish = [member(run) for member in members]
        run.flush()
        totals = self.meter.totals
        totals["PRODUCTS"] = totals.get("PRODUCTS", 0) + len(members)
        for name, value in run.counters.items():
            totals[name] = totals.get(name, 0) + value
        if self._keep_rows:
            m = grids[0][2]
            row: dict[str, int | str] = {
                "product": product,
                "bits_a": _one_or_all(a.bits for a, _, _ in grids),
                "bits_b": _one_or_all(b.bits for _, b, _ in grids),
                "batch": sum(m.batch for _, _, m in grids),
                "in_channels": m.in_channels,
                "out_channels": m.out_channels,
                "height": m.in_hw[0],
                "width": m.in_hw[1],
                "kernel_height": m.kernel[0],
                "kernel_width": m.kernel[1],
                "stride": m.stride,
                "padding": m.padding,
            }
            self.meter.rows.append({**row, **run.counters})
        return [each() for each in finish]

    @staticmethod
    def _check(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise ValueError(f"{name} has shape {shape}, the geometry asks for {wanted}")
        if 0 in shape:
            raise ValueError(f"{name} of shape {shape} is empty; skip the product")

    @staticmethod
    def _is_linear(m: ConvGeometry) -> bool:
        return m.kernel == (1, 1) and m.stride == 1 and m.padding == 0 and m.in_hw == (1, 1)

    # -- products ---------------------------------------------------------------------------------------------------

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Output of a convolution.  See :class:`host.operands.Sums` for shapes.

        Raises:
            ValueError: shapes that do not fit the geometry, codes outside their grid.
            ProgramError: the device refused a program, for example because values are not finite.
        """
        return self.several("forward", [(x, w, geometry)])[0]

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
        lowerings = {
            "forward": self._forward,
            "input_gradient": self._input_gradient,
            "weight_gradient": self._weight_gradient,
        }
        if product not in lowerings:
            raise ValueError(f"no product {product!r}; use one of {', '.join(lowerings)}")
        return self._run(
            product,
            [partial(lowerings[product], *each) for each in members],
            [(a.grid, b.grid, m) for a, b, m in members],
        )

    def _forward(self, x: Operand, w: Operand, m: ConvGeometry, run: _Run) -> Callable[[], Sums]:
        weight = host_codes(w)
        self._check("activation", x.shape, (m.batch, m.in_channels, *m.in_hw))
        self._check("weight", weight.shape, (m.out_channels, m.in_channels, *m.kernel))
        tensor = tensor_of(x, "activation")
        out_hw = m.out_hw
        linear = self._is_linear(m)
        valid_y, valid_x = valid_taps(m)
        b_sum = np.einsum("okl,ky,lx->oyx", weight.sum(axis=1), valid_y, valid_x)[None]
        count = m.in_channels * np.outer(valid_y.sum(axis=0), valid_x.sum(axis=0))[None, None]
        if linear and self._contracts(m.batch, m.in_channels, m.out_channels, x, w.grid):
            dot, a_sum = self._contract(run, tensor, Operand(w.grid, codes=weight[:, :, 0, 0]))
            return lambda: Sums(dot, a_sum, b_sum, count)
        if linear:
            tensor = row_of_pixels(tensor, self.design.lanes)
            out_hw = (tensor.array.shape[2], tensor.array.shape[3])
        batch = tensor.array.shape[0]
        dot = np.zeros((batch, m.out_channels, *out_hw), dtype=np.int64)
        a_sum = np.zeros((batch, 1, *out_hw), dtype=np.int64)
        on_fabric = tensor.is_values
        ys, xs = (axis_phases(k, m.stride, m.padding) for k in m.kernel)
        # the two columns of a pair have random indices one apart, which no LOAD of interleaved rows can say
        at_stride_2 = self._halves(m) and not tensor.stochastic
        if at_stride_2:
            used = np.ones((1, m.in_channels, 3, 3), dtype=bool)
            self._correlate(run, interleaved(tensor), weight, used, used, (-1, -1), w.grid, dot, a_sum, on_fabric)
        elif m.stride > 1 and not tensor.stochastic:
            y0, x0 = min(d for _, d, _ in ys), min(d for _, d, _ in xs)
            ny, nx = (max(d + len(i) for _, d, i in axis) - first for axis, first in ((ys, y0), (xs, x0)))
            kernel = np.zeros((m.out_channels, len(ys) * len(xs), m.in_channels, ny, nx), dtype=np.int64)
            used = np.zeros(kernel.shape[1:], dtype=bool)
            for p, ((_, dy, iy), (_, dx, ix)) in enumerate(itertools.product(ys, xs)):
                at = (slice(dy - y0, dy - y0 + len(iy)), slice(dx - x0, dx - x0 + len(ix)))
                kernel[:, p, :, at[0], at[1]] = weight[:, :, iy][:, :, :, ix]
                used[p, :, at[0], at[1]] = True
            merged = merge_phases(tensor, [(py, px) for (py, _, _), (px, _, _) in itertools.product(ys, xs)], m.stride)
            shape = (m.out_channels, merged.channels, ny, nx)
            used = used.reshape(1, *shape[1:])
            self._correlate(run, merged, kernel.reshape(shape), used, used, (y0, x0), w.grid, dot, a_sum, on_fabric)
        else:
            for (py, dy, iy), (px, dx, ix) in itertools.product(ys, xs):
                part = tensor.phase(py, px, m.stride) if m.stride > 1 else tensor
                kernel = weight[:, :, iy][:, :, :, ix]
                used = np.ones((1, m.in_channels, len(iy), len(ix)), dtype=bool)
                self._correlate(run, part, kernel, used, used, (dy, dx), w.grid, dot, a_sum, on_fabric)

        def finish() -> Sums:
            found, sums = dot, a_sum
            if not on_fabric and not self._nine_taps(m) and not at_stride_2:
                sums = self._host_window_sums(host_codes(x).sum(axis=1), m)
            elif linear:
                sums = self._from_row(sums, m.batch)
            if linear:
                found = self._from_row(found, m.batch)
            return Sums(found, sums, b_sum, count)

        return finish

    @staticmethod
    def _halves(m: ConvGeometry) -> bool:
        """Whether the fabric's own stride of two is that of the product."""
        return m.kernel == (3, 3) and m.stride == 2 and m.padding == 1 and m.in_hw[0] % 2 == m.in_hw[1] % 2 == 0

    def _contracts(self, rows: int, inner: int, columns: int, a: Operand, b: Grid) -> bool:
        """Whether a matrix product of ``a`` is quicker along pixels than along channels."""
        return contracts(self.design, rows, inner, columns, a.grid.bits, b.bits, a.values is not None)

    def _contract(self, run: _Run, a: Tensor, b: Operand) -> tuple[I64, I64]:
        """Matrix product of a (N, K, 1, 1) and codes (O, K), contracted along pixels as weight gradients are.

        Returns:
            dot, int64 (N, O, 1, 1), and the sums of a, (N, 1, 1, 1); filled when the run's programs have run.
        """
        count, lanes = a.array.shape[0], self.design.lanes
        assert b.codes is not None
        weights = contracted(tensor_of(replace(b, codes=b.codes[:, :, None, None]), "weight"), lanes)
        dot = np.zeros((b.shape[0], count, 1, 1), dtype=np.int64)
        a_sum = np.zeros((count, 1, 1), dtype=np.int64)
        missing = self._accumulate(run, [_Sought(contracted(a, lanes), (0, 0), dot, a_sum, None)], weights)
        assert not missing
        return dot.swapaxes(0, 1), a_sum[:, None]

    @staticmethod
    def _nine_taps(m: ConvGeometry) -> bool:
        """Whether the fabric's own operand sums are those of the product."""
        return m.kernel == (3, 3) and m.stride == 1

    @staticmethod
    def _from_row(values: I64, batch: int) -> I64:
        """Undo :func:`row_of_pixels` on a result: (1, C, rows, lanes) -> (batch, C, 1, 1)."""
        return values[0].reshape(values.shape[1], -1)[:, :batch].T[:, :, None, None]

    @staticmethod
    def _host_window_sums(image_sums: I64, m: ConvGeometry) -> I64:
        """Sums of codes under the kernel: int64 (N, H, W) -> (N, 1, OH, OW)."""
        out = np.zeros((m.batch, 1, *m.out_hw), dtype=np.int64)
        for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
            oy, iy = tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)
            ox, ix = tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)
            out[:, 0, oy, ox] += image_sums[:, iy, ix]
        return out

    @staticmethod
    def _host_scatter_sums(gradient_sums: I64, m: ConvGeometry) -> I64:
        """Sums of output-gradient codes that reach a pixel: int64 (N, OH, OW) -> (N, 1, H, W)."""
        out = np.zeros((m.batch, 1, *m.in_hw), dtype=np.int64)
        for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
            oy, iy = tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)
            ox, ix = tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)
            out[:, 0, iy, ix] += gradient_sums[:, oy, ox]
        return out

    @staticmethod
    def _back_sums(weight: I64, m: ConvGeometry) -> tuple[I64, I64]:
        """Sums of weights that reach a pixel of the input, and how many do: b_sum and count of an input gradient."""
        valid_y, valid_x = valid_taps_back(m)
        b_sum = np.einsum("ckl,ky,lx->cyx", weight.sum(axis=0), valid_y, valid_x)[None]
        count = m.out_channels * np.outer(valid_y.sum(axis=0), valid_x.sum(axis=0))[None, None]
        return b_sum, count

    @staticmethod
    def _host_element_sums(batch_sums: I64, m: ConvGeometry, side: int) -> I64:
        """Sums of codes over the positions under each kernel element: int64 (C, H, W) -> (C, kh, kw).

        Args:
            side: 0 for output gradients, 1 for activations.
        """
        out = np.zeros((batch_sums.shape[0], *m.kernel), dtype=np.int64)
        for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
            y = tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)[side]
            x = tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)[side]
            out[:, ky, kx] = batch_sums[:, y, x].sum(axis=(1, 2))
        return out

    @staticmethod
    def _gradient_count(m: ConvGeometry) -> I64:
        """Valid positions under each kernel element, over the batch: count of a weight gradient."""
        valid_y, valid_x = valid_taps(m)
        return m.batch * np.outer(valid_y.sum(axis=1), valid_x.sum(axis=1))[None, None]

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Gradient of the input: the output gradient under the mirrored, transposed kernel.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        return self.several("input_gradient", [(g, w, geometry)])[0]

    def _input_gradient(self, g: Operand, w: Operand, m: ConvGeometry, run: _Run) -> Callable[[], Sums]:
        weight = host_codes(w)
        self._check("output gradient", g.shape, (m.batch, m.out_channels, *m.out_hw))
        self._check("weight", weight.shape, (m.out_channels, m.in_channels, *m.kernel))
        tensor = tensor_of(g, "output gradient")
        linear = self._is_linear(m)
        if linear and self._contracts(m.batch, m.out_channels, m.in_channels, g, w.grid):
            dot, a_sum = self._contract(run, tensor, Operand(w.grid, codes=weight[:, :, 0, 0].T))
            return lambda: Sums(dot, a_sum, *self._back_sums(weight, m))
        if linear:
            tensor = row_of_pixels(tensor, self.design.lanes)
        s = m.stride
        c = self.design.channels
        results, groups = -(-s * s * m.in_channels // c), -(-m.out_channels // c)
        loaded_bits = 32 if tensor.is_values else g.grid.bits
        # random indices run along rows, which no LOAD can say where rows of two groups take turns
        paired = (
            self._halves(m)
            and not tensor.stochastic
            and in_pairs(self.design, results, groups, w.grid.bits, g.grid.bits, loaded_bits)
        )
        padding, back = m.padding, weight
        if paired:  # seen from the far corner, windows end with their pixel, as those of the fabric's stride do
            tensor = replace(tensor, array=tensor.array[:, :, ::-1, ::-1])
            padding, back = 0, weight[:, :, ::-1, ::-1]
        ys, xs = (axis_phases_back(k, s, padding) for k in m.kernel)
        y0, x0 = min(d for _, d, _ in ys), min(d for _, d, _ in xs)
        ny, nx = (max(d + len(i) for _, d, i in axis) - first for axis, first in ((ys, y0), (xs, x0)))
        phases = list(itertools.product(ys, xs))
        by_phase = np.zeros((len(phases), m.in_channels, m.out_channels, ny, nx), dtype=np.int64)
        used = np.zeros((len(phases), 1, ny, nx), dtype=bool)
        for p, ((_, dy, iy), (_, dx, ix)) in enumerate(phases):
            at = (slice(dy - y0, dy - y0 + len(iy)), slice(dx - x0, dx - x0 + len(ix)))
            by_phase[p, :, :, at[0], at[1]] = back[:, :, iy][:, :, :, ix].transpose(1, 0, 2, 3)
            used[p, 0, at[0], at[1]] = True
        size = tensor.array.shape[2:] if linear else (-(-m.in_hw[0] // s), -(-m.in_hw[1] // s))
        batch = tensor.array.shape[0]
        channels = len(phases) * m.in_channels
        kernel = by_phase.reshape(channels, m.out_channels, ny, nx)
        parts = np.zeros((batch, channels, *size), dtype=np.int64)
        sums = np.zeros((batch, len(phases), *size), dtype=np.int64)
        if paired:
            tensor, kernel = paired_groups(tensor), paired_kernel(kernel)
            used = paired_kernel(used.repeat(2, axis=1))
        self._correlate(
            run,
            tensor,
            kernel,
            np.repeat(used, m.in_channels, axis=0),
            used,
            (-1, -1) if paired else (y0, x0),
            w.grid,
            parts,
            sums,
            tensor.is_values,
        )

        def finish() -> Sums:
            if linear:
                dot, a_sum = self._from_row(parts, m.batch), self._from_row(sums, m.batch)
            elif s == 1:
                dot, a_sum = parts, sums
            else:
                dot = np.zeros((batch, m.in_channels, *m.in_hw), dtype=np.int64)
                a_sum = np.zeros((batch, 1, *m.in_hw), dtype=np.int64)
                whole = [np.flip(each, (2, 3)) if paired else each for each in (dot, a_sum)]
                for p, ((py, _, _), (px, _, _)) in enumerate(phases):
                    view, one = (each[:, :, py::s, px::s] for each in whole)
                    h, v = view.shape[2:]
                    view[...] = parts[:, p * m.in_channels : (p + 1) * m.in_channels, :h, :v]
                    one[...] = sums[:, p : p + 1, :h, :v]
            if not tensor.is_values and not self._nine_taps(m):
                a_sum = self._host_scatter_sums(host_codes(g).sum(axis=1), m)
            return Sums(dot, a_sum, *self._back_sums(weight, m))

        return finish

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        """Gradient of the weights, accumulated on chip over the batch.

        Raises:
            ValueError, ProgramError: as in :meth:`forward`.
        """
        return self.several("weight_gradient", [(x, g, geometry)])[0]

    def _weight_gradient(self, x: Operand, g: Operand, m: ConvGeometry, run: _Run) -> Callable[[], Sums]:
        self._check("activation", x.shape, (m.batch, m.in_channels, *m.in_hw))
        self._check("output gradient", g.shape, (m.batch, m.out_channels, *m.out_hw))
        a, b = tensor_of(x, "activation"), tensor_of(g, "output gradient")
        if self._is_linear(m):
            a, b = (row_of_pixels(t, self.design.lanes) for t in (a, b))
        s = m.stride
        ys, xs = (axis_phases(k, s, m.padding) for k in m.kernel)
        phases = list(itertools.product(ys, xs))
        c = self.design.channels
        # phases side by side in a group of channels save tiles if there are few channels, though all take all taps then
        y0, x0 = min(y[1] for y in ys), min(x[1] for x in xs)
        ny, nx = (max(d + len(i) for _, d, i in axis) - first for axis, first in ((ys, y0), (xs, x0)))
        together = -(-len(phases) * m.in_channels // c) * ny * nx
        apart = -(-m.in_channels // c) * m.kernel[0] * m.kernel[1]
        even = all(n % s == 0 for n in a.array.shape[2:])
        jobs = [(a.phase(y[0], x[0], s) if s > 1 else a, [(y, x)]) for y, x in phases]
        if s > 1 and even and not a.stochastic and together < apart:
            jobs = [(merge_phases(a, [(y[0], x[0]) for y, x in phases], s), phases)]
        wanted: list[_Sought] = []
        for tensor, mine in jobs:
            origin = (min(y[1] for y, _ in mine), min(x[1] for _, x in mine))
            size = tuple(max(p[i][1] + len(p[i][2]) for p in mine) - origin[i] for i in (0, 1))
            arrays = [
                np.zeros((*lead, *size), dtype=np.int64)
                for lead in ((m.out_channels, tensor.channels), (tensor.channels,), (m.out_channels,))
            ]
            wanted.append(_Sought(tensor, origin, *arrays))
        missing = self._accumulate(run, wanted, b)

        def finish() -> Sums:
            dot = np.zeros((m.out_channels, m.in_channels, *m.kernel), dtype=np.int64)
            a_sum = np.zeros((1, m.in_channels, *m.kernel), dtype=np.int64)
            b_sum = np.zeros((m.out_channels, 1, *m.kernel), dtype=np.int64)
            for (_, here), found in zip(jobs, wanted, strict=True):
                for p, ((_, dy, iy), (_, dx, ix)) in enumerate(here):
                    channels = slice(p * m.in_channels, (p + 1) * m.in_channels)
                    for (j, ky), (i, kx) in itertools.product(enumerate(iy), enumerate(ix)):
                        at = (dy - found.origin[0] + j, dx - found.origin[1] + i)
                        assert found.b_sum is not None
                        dot[:, :, ky, kx] = found.dot[:, channels, at[0], at[1]]
                        a_sum[0, :, ky, kx] = found.a_sum[channels, at[0], at[1]]
                        b_sum[:, 0, ky, kx] = found.b_sum[:, at[0], at[1]]
            if "a_sum" in missing:
                a_sum = self._host_element_sums(host_codes(x).sum(axis=0), m, 1)[None]
            if "b_sum" in missing:
                b_sum = self._host_element_sums(host_codes(g).sum(axis=0), m, 0)[:, None]
            return Sums(dot, a_sum, b_sum, self._gradient_count(m))

        return finish

    def backward(self, x: Operand, g: Operand, w: Operand, geometry: ConvGeometry) -> tuple[Sums, Sums]:
        """Input gradient and weight gradient in one program.

        The output gradient is sent only once where it can be: with stride 1, a 1x1 or 3x3 kernel with "same" padding,
        and operands that fit the buffers together.

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
        return self._run(
            "backward",
            [partial(self._backward, x, g, w, m) for x, g, m in members],
            [(g.grid, w.grid, m) for _, g, m in members],
        )

    def _backward(
        self, x: Operand, g: Operand, w: Operand, m: ConvGeometry, run: _Run
    ) -> Callable[[], tuple[Sums, Sums]]:
        d, weight = self.design, host_codes(w)
        self._check("activation", x.shape, (m.batch, m.in_channels, *m.in_hw))
        self._check("output gradient", g.shape, (m.batch, m.out_channels, *m.out_hw))
        self._check("weight", weight.shape, (m.out_channels, m.in_channels, *m.kernel))
        c = d.channels
        into, out = -(-m.in_channels // c), -(-m.out_channels // c)
        x_bits, g_bits, w_bits = x.grid.bits, g.grid.bits, w.grid.bits
        same = m.stride == 1 and m.kernel in ((1, 1), (3, 3)) and m.padding == m.kernel[0] // 2
        rows, width = m.in_hw
        if same and self._is_linear(m):
            rows, width = -(-m.batch // d.lanes), min(d.lanes, m.batch)
        quarter = d.depth_a // 4  # A holds two of g and two of x: the fabric may load one pair while it uses the other

        def fit(size: int) -> int:
            g_size, x_size = tensor_addresses(1, size, out, g_bits), tensor_addresses(1, size, into, x_bits)
            return min(quarter // g_size, quarter // x_size, d.depth_g // 2 // g_size)

        origin = (-m.padding, -m.padding)
        (piece,) = kernel_pieces(origin, m.kernel) if same else (None,)
        taps = sum(1 << tap for tap, _, _ in piece.taps) if piece else 0
        sum_words = out if g.values is not None and not self._nine_taps(m) else 0
        limit = contract.LIMITS
        if not (
            same
            and width <= d.lanes
            and rows <= limit["rows"]
            and max(into, out) <= min(limit["groups"], limit["out_groups"])
            and fit(rows)
            and into * out * w_bits + sum_words <= d.depth_w
            and Packet(Opcode.WGRAD, out_groups=out, groups=into, flags=Flag.ONES, taps=taps).entries(d)
            <= min(d.depth_accumulator, contract.MAX_ENTRIES)
            and not (self._is_linear(m) and self._contracts(m.batch, m.out_channels, m.in_channels, g, w.grid))
        ):
            to_input = self._input_gradient(g, w, m, run)
            to_weight = self._weight_gradient(x, g, m, run)
            return lambda: (to_input(), to_weight())

        a, b = tensor_of(x, "activation"), tensor_of(g, "output gradient")
        if self._is_linear(m):
            a, b = (row_of_pixels(t, d.lanes) for t in (a, b))
        batch, hw = a.array.shape[0], a.array.shape[2:]
        dx = np.zeros((batch, m.in_channels, *hw), dtype=np.int64)
        g_sum = np.zeros((batch, 1, *hw), dtype=np.int64)
        dw = np.zeros((m.out_channels, m.in_channels, *m.kernel), dtype=np.int64)
        x_sum = np.zeros((m.in_channels, *m.kernel), dtype=np.int64)
        gb_sum = np.zeros((m.out_channels, *m.kernel), dtype=np.int64)
        assert piece is not None
        mirrored = np.zeros((into * c, out * c, *m.kernel), dtype=np.int64)
        mirrored[: m.in_channels, : m.out_channels] = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        blocks = [(_Unit(piece, (0, into * c), w_bits, w.grid.signed, False, self._nine_taps(m)), mirrored)]
        if sum_words:
            ones = np.zeros((c, out * c, *m.kernel), dtype=np.int64)
            ones[0, : m.out_channels] = 1
            blocks.append((_Unit(piece, (0, c), 1, False, True, False), ones))
        held = self._load_units(run, blocks, 0, out)
        run.buffer(Target.A)  # its quarters are used here, and what else lay there is gone
        run.buffer(Target.G)
        sums = _GradientPass(run, _Job(a, piece, dw, x_sum, gb_sum), b, (0, into), (0, out))

        def fit_both(size: int) -> int:
            return _fitting_images(d, size, fit(size), x_bits, g_bits)

        least = -(-_PACKET_CYCLES // (x_bits * g_bits))
        stacks = stacks_of(batch, tiles_of((0, hw[0]), (0, hw[1]), hw[0], d.lanes), fit_both, least)
        for turn, stack in enumerate(stacks):
            run.breathe()
            half = turn % 2
            base_g, base_x = 2 * half * quarter, (2 * half + 1) * quarter
            base_own = half * (d.depth_g // 2)
            _load_at(run, Target.A | Target.G, base_g, base_own, b, stack, (0, out))
            for (unit, _), there in zip(blocks, held, strict=True):
                self._conv(run, unit, stack, out, b, base_g, there, dx, g_sum)
            _load_at(run, Target.A, base_x, base_x, a, stack, (0, into))
            sums.add(stack, base_x, base_own)
        sums.read()

        def finish() -> tuple[Sums, Sums]:
            found, over = dx, g_sum
            if not b.is_values and not self._nine_taps(m):
                over = self._host_scatter_sums(host_codes(g).sum(axis=1), m)
            elif self._is_linear(m):
                over = self._from_row(over, m.batch)
            if self._is_linear(m):
                found = self._from_row(found, m.batch)
            return (
                Sums(found, over, *self._back_sums(weight, m)),
                Sums(dw, x_sum[None], gb_sum[:, None], self._gradient_count(m)),
            )

        return finish

    # -- CONV -------------------------------------------------------------------------------------------------------

    def _correlate(
        self,
        run: _Run,
        a: Tensor,
        kernel: I64,
        used: npt.NDArray[np.bool_],
        sum_used: npt.NDArray[np.bool_],
        origin: tuple[int, int],
        b: Grid,
        dot: I64,
        a_sum: I64,
        sums_on_fabric: bool,
    ) -> None:
        """Add a correlation to ``dot`` and operand sums to ``a_sum``, when the run's programs have run.

        Args:
            a: (N, Ca, H, W).
            kernel: int64 (O, Ca, ny, nx).
            used: which elements are weights at all, broadcastable to the kernel's shape; the others are zero.
            sum_used: (phases, 1 or Ca, ny, nx): the elements under which each plane of ``a_sum`` adds ``a``.
            origin: offset of kernel element [0, 0].
            b: grid of the kernel's codes.
            dot: int64 (N, O, OH, OW).
            a_sum: int64 (N, phases, OH, OW).
            sums_on_fabric: the host does not know a's codes, so operand sums must come from the fabric.
        """
        d = self.design
        c = d.channels
        bits = a.grid.bits
        out_channels, in_channels, ny, nx = kernel.shape
        out_hw = dot.shape[2:]
        pieces = kernel_pieces(origin, (ny, nx))
        native_sums = sum_used.shape[0] == 1 and (ny, nx) == (3, 3) and bool(sum_used.all())
        spans = [
            extent(a.hw[axis], out_hw[axis], [p.centre[axis] for p in pieces], origin[axis], (ny, nx)[axis])
            for axis in (0, 1)
        ]
        groups_total, out_groups_total = -(-in_channels // c), -(-out_channels // c)
        half_a, half_w = d.depth_a // 2, d.depth_w // 2
        least_blocks = 1 if a.rows_per == 1 else 2  # four rows of the output, so that cuts leave room between halos
        max_groups = max(1, min(contract.LIMITS["groups"], half_a // (least_blocks * bits), half_w // b.bits))
        padded_kernel = np.zeros((out_groups_total * c, groups_total * c, ny, nx), dtype=np.int64)
        padded_kernel[:out_channels, :in_channels] = kernel
        sum_groups = -(-sum_used.shape[0] // c)
        padded_sums = np.zeros((sum_groups * c, groups_total * c, ny, nx), dtype=np.int64)
        padded_sums[: sum_used.shape[0], :in_channels] = sum_used
        some = np.zeros((out_groups_total * c, ny, nx), dtype=bool)
        some[:out_channels] = np.broadcast_to(used, kernel.shape).any(axis=1)

        a_buffer = run.buffer(Target.A)
        for first, groups in split_range(groups_total, max_groups):
            units: list[_Unit] = []
            per_unit = max(1, min(contract.LIMITS["out_groups"], half_w // (groups * b.bits)))
            for piece in pieces:
                needed: npt.NDArray[np.bool_] = np.zeros(out_groups_total * c, dtype=bool)
                for _, iy, ix in piece.taps:
                    needed |= some[:, iy, ix]
                kept = [bool(group.any()) for group in needed.reshape(out_groups_total, c)]
                group = 0
                while group < out_groups_total:
                    if not kept[group]:
                        group += 1
                        continue
                    stop = group
                    while stop < out_groups_total and kept[stop] and stop - group < per_unit:
                        stop += 1
                    wants = native_sums and group == 0
                    units.append(_Unit(piece, (group * c, stop * c), b.bits, b.signed, False, wants))
                    group = stop
                if sums_on_fabric and not native_sums:
                    units.append(_Unit(piece, (0, sum_groups * c), 1, False, True, False))
            max_rows = min(contract.LIMITS["rows"], 8 * max(1, half_a // (groups * bits))) // a.rows_per
            tiles = tiles_of(spans[0], spans[1], max_rows, d.lanes)

            def fit(rows: int, groups: int = groups) -> int:
                return half_a // tensor_addresses(1, rows * a.rows_per, groups, bits)

            stacks = stacks_of(a.array.shape[0], tiles, fit)
            for residents in self._resident_sets(units, groups):
                blocks = [(unit, padded_sums if unit.sums else padded_kernel) for unit in residents]
                held = self._load_units(run, blocks, first, groups)
                for stack in stacks:
                    run.breathe()
                    base_a = _load(run, a_buffer, a, stack, (first * c, groups))
                    for unit, there in zip(residents, held, strict=True):
                        self._conv(run, unit, stack, groups, a, base_a, there, dot, a_sum)

    def _unit_words(self, unit: _Unit, groups: int) -> int:
        return (unit.outputs[1] - unit.outputs[0]) // self.design.channels * groups * unit.bits

    def _resident_sets(self, units: list[_Unit], groups: int) -> list[list[_Unit]]:
        """Units that lie in the weight buffer together: all of them if they fit, else sets that fit half of it."""
        if sum(self._unit_words(u, groups) for u in units) <= self.design.depth_w:
            return [units]
        out: list[list[_Unit]] = []
        room = 0
        for unit in units:
            words = self._unit_words(unit, groups)
            if not out or words > room:
                out.append([])
                room = self.design.depth_w // 2
            out[-1].append(unit)
            room -= words
        return out

    def _load_units(self, run: _Run, units: list[tuple[_Unit, I64]], first: int, groups: int) -> list[_Held]:
        """Load units one after the other, unless the same ones lie in the weight buffer already.

        Args:
            units: each with the kernel (O, Ca, ny, nx), channels padded to whole groups, of which it takes a 3x3 piece.
            first, groups: range of input groups.
        """
        c = self.design.channels
        parts: list[tuple[_Unit, I64]] = []
        for unit, kernel in units:
            start, stop = unit.outputs
            block = np.zeros((stop - start, groups * c, TAPS), dtype=np.int64)
            for tap, iy, ix in unit.piece.taps:
                block[:, :, tap] = kernel[start:stop, first * c : (first + groups) * c, iy, ix]
            parts.append((unit, block.reshape((stop - start) // c, c, groups, c, TAPS).transpose(0, 2, 1, 4, 3)))
        size = sum(self._unit_words(unit, groups) for unit, _ in units)
        key = tuple((unit.bits, block.shape, block.tobytes()) for unit, block in parts)
        base, there = run.buffer(Target.W).place(key, size)
        held = []
        for unit, block in parts:
            if not there:
                run.builder.load_weights(block, unit.bits, base)
            planes = int(np.bitwise_or.reduce(block, axis=None)) & ((1 << unit.bits) - 1)
            held.append(_Held(base, planes))
            base += self._unit_words(unit, groups)
        return held

    def _conv(
        self,
        run: _Run,
        unit: _Unit,
        stack: Stack,
        groups: int,
        a: Tensor,
        base_a: int,
        weights: _Held,
        dot: I64,
        a_sum: I64,
    ) -> None:
        """One CONV packet, and what becomes of its results."""
        d = self.design
        start, stop = unit.outputs
        out_groups = (stop - start) // d.channels
        rows = stack.tile.rows.size
        options = {
            Flag.A_SIGNED: a.grid.signed,
            Flag.B_SIGNED: unit.signed,
            Flag.STRIDE_2: a.rows_per > 1,
            Flag.A_SUM: unit.with_a_sum,
            Flag.SKIP_ZERO: run.skip_zero,
        }
        packet = Packet(
            Opcode.CONV,
            images=stack.images,
            rows=rows,
            groups=groups,
            out_groups=out_groups,
            a_bits=a.grid.bits,
            b_bits=unit.bits,
            flags=flags_of(options),
            segment_start=stack.tile.segment_start,
            base_a=base_a,
            base_b=weights.base,
            a_planes=all_planes(a.grid.bits) if a.planes is None else a.planes,
            b_planes=weights.planes,
        )
        if wide := packet.overflows(d):
            packet = replace(packet, format=OutputFormat.INT64)

        def receive(words: U64) -> None:
            acc, sums = packing.unpack_conv(words, d, stack.images, rows, out_groups, wide, unit.with_a_sum)
            target = a_sum if unit.sums else dot
            self._add(target, acc[:, :, : target.shape[1] - start], start, unit.piece.centre, stack)
            if sums is not None:
                self._add(a_sum, sums[:, :, None], 0, unit.piece.centre, stack)

        run.expect(run.builder.add(packet), receive)

    @staticmethod
    def _add(target: I64, tile: npt.NDArray[np.integer], channel: int, centre: tuple[int, int], stack: Stack) -> None:
        """Add a tile (images, rows, channels, L) to ``target`` (N, C, OH, OW) from ``channel`` on."""
        t = stack.tile
        images, rows, channels, _ = tile.shape
        width = t.columns.size
        pixels = tile[..., : t.side * width].reshape(images, rows, channels, t.side, width)
        pixels = pixels.transpose(0, 3, 2, 1, 4).reshape(images * t.side, channels, rows, width)[: stack.count]
        y0 = max(t.rows.own_start, centre[0])
        y1 = min(t.rows.own_stop, centre[0] + target.shape[2])
        x0 = max(t.columns.own_start, centre[1])
        x1 = min(t.columns.own_stop, centre[1] + target.shape[3])
        if y0 >= y1 or x0 >= x1:
            return
        target[
            stack.first : stack.first + stack.count,
            channel : channel + channels,
            y0 - centre[0] : y1 - centre[0],
            x0 - centre[1] : x1 - centre[1],
        ] += pixels[:, :, y0 - t.rows.start : y1 - t.rows.start, x0 - t.columns.start : x1 - t.columns.start]

    # -- WGRAD ------------------------------------------------------------------------------------------------------

    def _gradient_passes(
        self, jobs: list[_Job], out_groups: int, b_bits: int
    ) -> tuple[int, list[list[tuple[_Job, int, int]]]]:
        """What the accumulators hold at a time, with the least traffic.

        Returns:
            Output groups per pass; for each pass its jobs, with first group and number of groups of each.
        """
        d = self.design
        room = min(d.depth_accumulator, contract.MAX_ENTRIES) // (d.channels + 1)

        def pack(out: int) -> list[list[tuple[_Job, int, int]]] | None:
            passes: list[list[tuple[_Job, int, int]]] = [[]]
            left = room
            for job in jobs:
                first, total = 0, -(-job.a.channels // d.channels)
                most = min(contract.LIMITS["groups"], d.depth_a // 2 // job.a.grid.bits)
                tile = len(job.piece.taps) * out
                while first < total:
                    ones = job.b_sum is not None and first == 0
                    groups = min(total - first, most, left // tile - ones)
                    if groups < 1:
                        if left == room:
                            return None
                        passes.append([])
                        left = room
                        continue
                    passes[-1].append((job, first, groups))
                    left -= (groups + ones) * tile
                    first += groups
            return passes

        best: tuple[int, int, list[list[tuple[_Job, int, int]]]] | None = None
        for out in range(min(out_groups, contract.LIMITS["out_groups"], d.depth_g // 2 // b_bits), 0, -1):
            if passes := pack(out):
                loads = sum(groups * job.a.grid.bits for each in passes for job, _, groups in each)
                traffic = -(-out_groups // out) * (loads + len(passes) * out * b_bits)
                if best is None or traffic < best[0]:
                    best = (traffic, out, passes)
        if best is None:
            least = max((1 + (job.b_sum is not None)) * len(job.piece.taps) for job in jobs) * (d.channels + 1)
            raise ValueError(
                f"design {d.name}: {d.depth_accumulator} accumulator entries hold no weight gradient with its sums "
                f"({least} entries); raise depth_accumulator"
            )
        return best[1], best[2]

    def _accumulate(self, run: _Run, wanted: list[_Sought], g: Tensor) -> set[str]:
        """Weight gradients that share an output gradient; their arrays are filled when the run's programs have run.

        Args:
            g: (N, O, OH, OW).

        Returns:
            "a_sum" or "b_sum" if those sums are left to the host.
        """
        out_hw = g.hw
        marks = mask_tensor((g.array.shape[0], 1, *out_hw))
        missing: set[str] = set()
        # jobs that look at the output gradient alike share its loads; where the fabric's own sums would count positions
        # that are not real, products with ones replace them, unless the host has the codes and can add them up itself
        by_g: list[tuple[Tensor, dict[_View, list[_Job]]]] = [(g, {}), (marks, {})]
        for each in wanted:
            a, size = each.a, each.dot.shape[2:]
            for piece in kernel_pieces(each.origin, (size[0], size[1])):
                rows, columns = (extent(a.hw[i], out_hw[i], [piece.centre[i]], each.origin[i], size[i]) for i in (0, 1))
                real = all(span == (0, k) for span, k in zip((rows, columns), a.hw, strict=True))
                full = all(span == (k, k + o) for span, k, o in zip((rows, columns), piece.centre, out_hw, strict=True))
                view = (piece.centre, rows, columns)
                jobs = by_g[0][1].setdefault(view, [])
                jobs.append(_Job(a, piece, each.dot, each.a_sum if full else None, each.b_sum if real else None))
                if not full and a.is_values:
                    by_g[1][1].setdefault(view, []).append(_Job(a, piece, each.a_sum[None], None, None))
                elif not full:
                    missing.add("a_sum")
                if not real and each.b_sum is not None and g.is_values:
                    ones = mask_tensor((a.array.shape[0], 1, *a.hw))
                    jobs.append(_Job(ones, piece, each.b_sum[:, None], None, None))
                elif not real and each.b_sum is not None:
                    missing.add("b_sum")
        for operand, views in by_g:
            for view, jobs in views.items():
                missing |= self._gradients(run, jobs, operand, view)
        return missing

    def _gradients(self, run: _Run, jobs: list[_Job], g: Tensor, view: _View) -> set[str]:
        """Jobs that see the output gradient (N, O, OH, OW) in the same place; returns what :meth:`_accumulate` does."""
        d = self.design
        c = d.channels
        centre, rows, columns = view
        b_bits = g.grid.bits
        a_bits = [job.a.grid.bits for job in jobs]
        out_groups_total = -(-g.channels // c)
        step_out, passes = self._gradient_passes(jobs, out_groups_total, b_bits)
        half_a, half_g = d.depth_a // 2, d.depth_g // 2
        widest = max(groups * job.a.grid.bits for each in passes for job, _, groups in each)
        max_rows = min(contract.LIMITS["rows"], 8 * min(half_a // widest, half_g // (step_out * b_bits)))
        tiles = tiles_of(rows, columns, max_rows, d.lanes)
        missing: set[str] = set()
        if len(tiles) > 1:  # the fabric's sums of a would count halos twice
            doubled = [job for job in jobs if job.a_sum is not None]
            counted = [_Job(job.a, job.piece, job.a_sum[None], None, None) for job in doubled if job.a.is_values]  # type: ignore[index]
            if counted:
                self._gradients(run, counted, mask_tensor((g.array.shape[0], 1, *g.hw)), view)
            if len(counted) < len(doubled):
                missing.add("a_sum")
            without = {id(job): replace(job, a_sum=None) for job in jobs}
            passes = [[(without[id(job)], first, groups) for job, first, groups in each] for each in passes]
        a_buffer, g_buffer = run.buffer(Target.A), run.buffer(Target.G)
        for out, each in itertools.product(split_range(out_groups_total, step_out), passes):
            sums: list[_GradientPass] = []
            for job, first, groups in each:
                base = sum(s.entries for s in sums)
                sums.append(_GradientPass(run, job, g, (first, groups), out, base))
            most = max(groups * job.a.grid.bits for job, _, groups in each)

            def fit(size: int, most: int = most, out_groups: int = out[1]) -> int:
                images = min(
                    half_a // tensor_addresses(1, size, most, 1),
                    half_g // tensor_addresses(1, size, out_groups, b_bits),
                )
                return _fitting_images(d, size, images, max(a_bits), b_bits)

            least = -(-_PACKET_CYCLES // (min(a_bits) * b_bits))
            for stack in stacks_of(g.array.shape[0], tiles, fit, least):
                run.breathe()
                base_g = _load(run, g_buffer, g, stack, (out[0] * c, out[1]), centre, own_only=True)
                for one in sums:
                    base_a = _load(run, a_buffer, one.job.a, stack, (one.into[0] * c, one.into[1]))
                    one.add(stack, base_a, base_g)
            for one in sums:
                one.read()
        return missing
