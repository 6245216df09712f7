"""Switching activity of the RTL as SAIF: every bit's toggles while a layer's training products run, for power reports.

Verilator counts at clock edges, so glitches within a cycle do not show; payloads are random codes, whose bits toggle more
than those of trained networks.  Signals that Verilator optimises away are not in the file, nor are constants.  A bit that
is 1 from the start counts one toggle for it.  Tests check the syntax; no Vivado has read such a file yet.
``read_saif -out_file`` lists the nets that it matches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.devices.device import check
from host.devices.library import LibraryDevice
from host.devices.rtl import build_rtl
from host.measure.engine_bench import layer_programs, passes, random_program
from hw.design import ROOT, Design
from hw.networks import Bits, ConvShape
from hw.plan.product import LoweringError

SAIF_HARNESS = ROOT / "hw" / "sim" / "saif.cpp"
#: buses are wider than Verilator traces unless told; contents of memories are left to block RAM's own model
TRACE_OPTIONS = ("--trace-saif", "--no-trace-params", "--trace-max-width", "16384", "--trace-max-array", "64")
TIMEOUT = 600.0  #: seconds of the fabric's time that a product may take


class SaifError(ValueError):
    """A file that is not SAIF as Verilator writes it, or a layer that cannot run; the message says what is wrong."""


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        layer: its name.
        bits: its widths.
        cycles: clock cycles in the file, register accesses and gaps between programs included.
        busy: those of the programs, by the fabric's counter ``CYCLES``.
        period_ps: of the clock.
    """

    layer: str
    bits: Bits
    cycles: int
    busy: int
    period_ps: int


class RecordingDevice(LibraryDevice):
    """Simulated hardware that records; see :class:`host.devices.rtl.RtlDevice`.

    Raises:
        DeviceError: a tool is missing, or Verilator refuses the sources.
    """

    def __init__(self, design: Design) -> None:
        super().__init__("rtl", design, build_rtl(design, harness=SAIF_HARNESS, options=TRACE_OPTIONS))
        self.library.fabric_record.restype = None
        self.library.fabric_record.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]
        self.library.fabric_record_end.restype = ctypes.c_uint64
        self.library.fabric_record_end.argtypes = [ctypes.c_void_p]

    def start(self, path: Path, half_period_ps: int) -> None:
        """Record from now on.

        Args:
            path: file to write, over an existing one.
            half_period_ps: half the clock's period.

        Raises:
            OSError: the file cannot be written.
        """
        path.write_bytes(b"")  # Verilator would not say why it cannot
        self.library.fabric_record(self.handle, str(path).encode(), half_period_ps)

    def stop(self) -> int:
        """Finish the file; returns the clock cycles recorded."""
        return int(self.library.fabric_record_end(self.handle))


def fitting_layer(design: Design, shapes: Sequence[ConvShape], bits: Bits, name: str | None = None) -> ConvShape:
    """The layer of that name, or the first convolution of stride 1 after the stem whose rows the array takes whole.

    Raises:
        SaifError: no such layer, or none fits; the message says why.
    """
    reason = "the network has no convolution"
    for shape in shapes:
        if shape.name != name if name else shape.kind != "conv" or shape.stride > 1:
            continue
        if not name and shape.out_hw[1] > design.lanes:
            reason = f"no convolution of stride 1 has rows of at most {design.lanes} pixels; name a layer"
            continue
        try:
            for kind in passes():
                layer_programs(design, shape, bits, 1, kind)
        except LoweringError as error:
            reason = str(error)
        else:
            return shape
    if name and name not in [shape.name for shape in shapes]:
        raise SaifError(f"no layer {name!r}; name one of {', '.join(s.name for s in shapes if s.kind != 'fc')}")
    raise SaifError(f"no layer to record on design {design.name!r}: {reason}")


def record(design: Design, shape: ConvShape, bits: Bits, path: Path, images: int = 2, seed: int = 0) -> Recording:
    """Run the three products of a layer, the two gradients as one program, and write their switching activity.

    Args:
        design: what is simulated; its clock sets the file's time.
        shape: the layer.
        bits: its widths.
        path: file to write.
        images: of the batch.
        seed: of the codes.

    Raises:
        SaifError: the count is not positive, or the file's folder does not exist.
        DeviceError: the simulation cannot be built or gives no answer.
        OSError: the file cannot be written.
    """
    if images < 1:
        raise SaifError(f"{images} images switch nothing; give at least 1")
    if not path.parent.is_dir():
        raise SaifError(f"{path} cannot be written: there is no folder {path.parent}; make it or name another file")
    half = round(1e6 / design.clock_mhz / 2)
    device = RecordingDevice(design)
    device.start(path, half)
    busy = 0
    for packets in (p for kind in passes() for p in layer_programs(design, shape, bits, images, kind)):
        result = check(device.run(random_program(design, packets, seed), TIMEOUT), f"{shape.name} at {bits}")
        busy += result.counters["CYCLES"]
    cycles = device.stop()
    device.close()
    # SAIF has number and unit as two words, and escapes every bracket of a name; Verilator does so for a vector's only
    text = path.read_bytes().replace(b"(TIMESCALE 1ps)", b"(TIMESCALE 1 ps)", 1)
    path.write_bytes(re.sub(rb"(?<!\\)([\[\]])", rb"\\\1", text))
    return Recording(shape.name, bits, cycles, busy, 2 * half)


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """Activity of one bit: times at 0 and at 1 in the file's unit, and its toggles."""

    path: str
    t0: int
    t1: int
    toggles: int


_TOKEN = re.compile(r'//[^\n]*|"[^"]*"|[()]|[^\s()"]+')


def _trees(text: str) -> Iterator[list[object]]:
    """Top-level lists of a file of nested parentheses."""
    stack: list[list[object]] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.startswith("//"):
            continue
        if token == "(":
            stack.append([])
        elif not stack:
            raise SaifError(f"{token!r} stands outside of any list; record the file again")
        elif token == ")":
            done = stack.pop()
            if stack:
                stack[-1].append(done)
            else:
                yield done
        else:
            stack[-1].append(token)
    if stack:
        raise SaifError(f"{len(stack)} lists are not closed; the file was cut off, record it again")


def _nets(instance: list[object], prefix: str) -> Iterator[Net]:
    own = str(instance[1]).replace("\\", "")
    path = f"{prefix}/{own}" if prefix else own
    for entry in instance[2:]:
        if not isinstance(entry, list):
            raise SaifError(f"{entry!r} stands alone in instance {path}; record the file again")
        if entry[0] == "INSTANCE":
            yield from _nets(entry, path)
        elif entry[0] == "NET":
            for net in entry[1:]:
                if not isinstance(net, list):
                    raise SaifError(f"{net!r} stands alone among the nets of {path}; record the file again")
                values = {key: int(value) for key, value in net[1:]}
                name = str(net[0]).replace("\\", "")
                yield Net(f"{path}/{name}", values["T0"], values["T1"], values["TC"])


def read_saif(path: Path) -> tuple[int, str, list[Net]]:
    """Duration, its unit, and all nets of a file.

    Raises:
        SaifError: not one well-formed SAIF list with a duration; the message says what is wrong.
    """
    trees = list(_trees(path.read_text(encoding="utf-8")))
    if len(trees) != 1 or not trees[0] or trees[0][0] != "SAIFILE":
        raise SaifError(f"{path.name} is not one SAIFILE list; record it again")
    header = {str(e[0]): e[1:] for e in trees[0][1:] if isinstance(e, list) and e[0] != "INSTANCE"}
    missing = {"SAIFVERSION", "DIRECTION", "TIMESCALE", "DURATION"} - set(header)
    if missing:
        raise SaifError(f"{path.name} lacks {', '.join(sorted(missing))}; record it again")
    unit = " ".join(map(str, header["TIMESCALE"]))
    nets = [net for e in trees[0][1:] if isinstance(e, list) and e[0] == "INSTANCE" for net in _nets(e, "")]
    return int(str(header["DURATION"][0])), unit, nets
