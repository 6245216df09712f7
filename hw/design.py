"""A design as data: what a TOML file says, what follows from it, and what is impossible.

Standard library only, so that the driver can use it on the board.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from hw import contract
from hw.boards import PARTS
from hw.files import TomlError, parse_toml, read_text

ROOT = Path(__file__).resolve().parent.parent  #: folder of the packages: the checkout, or where pip has installed them
_INSTALLED = Path(__file__).resolve().parent / "data"
#: folder of ``configs`` and ``hls_templates``: beside the packages in a checkout, inside this one in a wheel
PACKAGE_DATA = _INSTALLED if _INSTALLED.is_dir() else ROOT
DESIGNS = PACKAGE_DATA / "configs" / "designs"  #: TOML files of named designs
STREAM_BITS = 64
INPUT_STREAMS = 2  #: read in lockstep: even words on the first, odd on the second
BEAT_BITS = INPUT_STREAMS * STREAM_BITS


def memory_blocks(width: int, depth: int) -> int:
    """BRAM36 of a memory with one write and one read port, in the cheapest of the blocks' shapes."""
    shapes = ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768))  # bits x words
    return min(-(-width // bits) * -(-depth // words) for bits, words in shapes)


class DesignError(ValueError):
    """An impossible design; the message names the value and the remedy."""


#: what a name may be: it becomes part of paths, Tcl scripts, SystemVerilog comments and a Python package
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Design:
    """Parameters of one accelerator.

    The array has ``2 * channels`` pixel lanes, ``channels`` output channels and dot products of ``9 * channels`` bits:
    one row of two channel groups' worth of pixels against a 3x3 kernel over one channel group.

    Attributes:
        name: of the design.
        part: chip, a key of :data:`hw.boards.BOARDS`.
        clock_mhz: target clock.
        channels: C, channels per group (8 or 16).
        depth_a: row words per bank of the first operand's buffer.
        depth_g: row words per bank of the output gradient's buffer.
        depth_w: words of the weight buffer.
        depth_accumulator: entries of the weight gradient's accumulator memory (one entry holds C sums).
        depth_epilogue: output channels whose epilogue parameters fit.
        accumulators: "dsp" or "lut", where the array accumulates.
        epilogue_lanes: pixels that the epilogue and the moments take per cycle; a channel of a tile takes
            ``lanes / epilogue_lanes`` cycles.
        rounding: whether there is a unit for stochastic rounding.
        output_streams: 1, or 2 for results on two streams in lockstep, as programs come.
    """

    name: str
    part: str
    clock_mhz: float
    channels: int
    depth_a: int
    depth_g: int
    depth_w: int
    depth_accumulator: int
    depth_epilogue: int
    accumulators: str = "dsp"
    epilogue_lanes: int = 4
    rounding: bool = False
    output_streams: int = 1

    def __post_init__(self) -> None:
        def refuse(what: str, remedy: str) -> None:
            raise DesignError(f"design {self.name!r}: {what}; {remedy}")

        if not _NAME.fullmatch(self.name) or ".." in self.name:
            refuse(
                "its name would have to be quoted in file names, scripts and sources",
                "use up to 64 of the characters A-Z a-z 0-9 _ . - with no dot or dash in front and no two dots in a row",
            )
        if self.part not in PARTS:
            refuse(f"unknown part {self.part!r}", f"known parts: {', '.join(PARTS)}")
        if self.channels not in (8, 16):
            refuse(f"channels = {self.channels}", "a row word must fill whole 128-bit beats: use 8 or 16")
        if self.accumulators not in ("dsp", "lut"):
            refuse(f"accumulators = {self.accumulators!r}", 'use "dsp" or "lut"')
        for key in ("depth_a", "depth_g", "depth_w", "depth_accumulator", "depth_epilogue"):
            depth = getattr(self, key)
            if depth < 16 or depth > 65536 or depth & (depth - 1):
                refuse(f"{key} = {depth}", "use a power of two from 16 to 65536")
        if self.accumulators == "dsp" and self.units > PARTS[self.part].dsp:
            refuse(
                f"{self.units} DSP accumulators do not fit the {PARTS[self.part].dsp} DSPs of {self.part}",
                'use fewer channels or a larger part; accumulators = "lut" takes about 46 LUTs more for each instead',
            )
        if self.epilogue_lanes not in (4, 8, 16, 32) or self.epilogue_lanes > self.lanes:
            refuse(f"epilogue_lanes = {self.epilogue_lanes}", f"use 4, 8, 16 or 32, and at most {self.lanes}")
        if self.output_streams not in (1, 2):
            refuse(f"output_streams = {self.output_streams}", "use 1 or 2")
        if not 10 <= self.clock_mhz <= 500:
            refuse(f"clock_mhz = {self.clock_mhz}", "use 10 to 500")
        if self.bram36 > PARTS[self.part].bram36:
            refuse(f"buffers need {self.bram36} BRAM36 and {self.part} has {PARTS[self.part].bram36}", "halve a depth")

    # -- derived values -------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """Pixels of a virtual row, L = 2C."""
        return 2 * self.channels

    @property
    def dot_bits(self) -> int:
        """Length of a dot product, K = 9C."""
        return contract.TAPS * self.channels

    @property
    def units(self) -> int:
        """Dot-product units, without the column of operand sums."""
        return self.lanes * self.channels

    @property
    def binary_macs(self) -> int:
        """AND-and-count operations per cycle."""
        return self.units * self.dot_bits

    @property
    def row_words(self) -> int:
        """64-bit words of a row word (one row, one group, one plane: L*C bits, bit = pixel * C + channel)."""
        return self.lanes * self.channels // STREAM_BITS

    @property
    def weight_words(self) -> int:
        """64-bit words of a weight word (C output channels x 9 taps x C channels bits), padded to whole beats."""
        return 2 * -(-self.channels * self.dot_bits // BEAT_BITS)

    @property
    def bram36(self) -> float:
        """BRAM36 of the buffers, as the sources slice them."""
        slices = self.lanes * self.channels // BEAT_BITS
        tensor = contract.ROW_BANKS * slices
        weight_bits = self.channels * self.dot_bits
        return (
            tensor * (memory_blocks(BEAT_BITS, self.depth_a) + memory_blocks(BEAT_BITS, self.depth_g))
            + weight_bits // BEAT_BITS * memory_blocks(BEAT_BITS, self.depth_w)
            + (memory_blocks(weight_bits % BEAT_BITS, self.depth_w) if weight_bits % BEAT_BITS else 0)
            + self.channels * memory_blocks(contract.ACCUMULATOR_BITS, self.depth_accumulator)
            + self.moments_bram36
            + self.epilogue_bram36
        )

    @property
    def moments_bram36(self) -> int:
        """BRAM36 of a packet's moments: sum, sum of products, minimum and maximum of every output channel."""
        bits = contract.SUM_BITS + contract.PRODUCT_BITS + 2 * contract.VALUE_BITS
        return memory_blocks(bits, contract.LIMITS["out_groups"] * self.channels)

    @property
    def epilogue_bram36(self) -> float:
        """BRAM36 of buffer E: m, o, n and b of an entry in one memory, l and c in another, in blocks of half the size."""
        lower = 3 * contract.MULTIPLIER_BITS + contract.OFFSET_BITS
        upper = contract.MULTIPLIER_BITS + contract.VALUE_OFFSET_BITS
        return (-(-lower // 36) + -(-upper // 36)) * -(-self.depth_epilogue // 512) / 2

    @property
    def contract_register(self) -> int:
        """What the register CONTRACT reads: version, channels, bits of a stream, output streams."""
        return contract.VERSION | self.channels << 8 | STREAM_BITS << 16 | self.output_streams << 24

    @property
    def hash64(self) -> int:
        """Hash of the parameters and the contract's version, readable from the hardware's registers."""
        text = json.dumps({"contract": contract.VERSION, **asdict(self)}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def load_design(name_or_path: str | Path) -> Design:
    """Design from ``configs/designs/NAME.toml`` or from a TOML file.

    Raises:
        DesignError: no such design, unknown or missing key, or an impossible value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = DESIGNS / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in DESIGNS.glob("*.toml")))
        raise DesignError(f"no design {str(name_or_path)!r}; name one of {known}, or a TOML file")
    try:
        data = parse_toml(read_text(path))
    except (TomlError, UnicodeDecodeError) as e:
        raise DesignError(f"{path.name} is not TOML in UTF-8: {e}; copy one of {DESIGNS} and change its values") from e
    except OSError as e:
        raise DesignError(f"{path} cannot be read: {e.strerror or e}; name another file") from e
    known_keys = {f.name: f for f in fields(Design)}
    data.setdefault("name", path.stem)
    if unknown := sorted(set(data) - set(known_keys)):
        raise DesignError(f"{path.name}: unknown key {unknown[0]!r}; keys: {', '.join(known_keys)}")
    if missing := [k for k in known_keys if k not in data and known_keys[k].default is MISSING]:
        raise DesignError(f"{path.name}: key {missing[0]!r} is missing")
    for key, value in data.items():
        wanted = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}[str(known_keys[key].type)]
        if type(value) not in wanted:  # True is an int to isinstance
            raise DesignError(f"{path.name}: {key} = {value!r} should be of type {known_keys[key].type}")
    return Design(**data)
