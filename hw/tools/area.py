"""Resources that 7-series primitives take, in the units that a part is described in."""

from __future__ import annotations

from dataclasses import dataclass

#: LUTs of cells that are memory or shift registers
LUT_MEMORY = {
    "SRL16E": 1,
    "SRLC16E": 1,
    "SRLC32E": 1,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM32M": 4,
    "RAM64M": 4,
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM128X1S": 2,
    "RAM256X1S": 4,
}
#: LUTs of a cell
LUTS = {**{f"LUT{n}": 1 for n in range(1, 7)}, "LUT6_2": 1, "INV": 1, **LUT_MEMORY}
FLIP_FLOPS = frozenset(("FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1", "LDCE", "LDPE"))
BRAM36 = {"RAMB36E1": 1.0, "RAMB18E1": 0.5}
#: cells that take none of the resources counted
FREE = frozenset(("CARRY4", "MUXF7", "MUXF8", "BUFG", "IBUF", "OBUF", "VCC", "GND"))


class SynthesisError(RuntimeError):
    """Yosys is missing, refused the sources or did not end; the message says which."""


@dataclass(frozen=True)
class Area:
    """Resources, BRAM in blocks of 36 Kib."""

    lut: int = 0
    ff: int = 0
    bram36: float = 0.0
    dsp: int = 0

    @staticmethod
    def of(cells: dict[str, int]) -> Area:
        """Area of primitive cells.

        Raises:
            SynthesisError: a cell that is no known primitive.
        """
        for name in cells:
            if not (name in LUTS or name in FLIP_FLOPS or name in BRAM36 or name in FREE or name == "DSP48E1"):
                raise SynthesisError(f"Yosys left a cell {name} that is no primitive of the part; correct the RTL")
        return Area(
            lut=sum(n * LUTS.get(name, 0) for name, n in cells.items()),
            ff=sum(n for name, n in cells.items() if name in FLIP_FLOPS),
            bram36=sum(n * BRAM36.get(name, 0.0) for name, n in cells.items()),
            dsp=cells.get("DSP48E1", 0),
        )

    def times(self, n: int) -> Area:
        """Area of ``n`` of these."""
        return Area(self.lut * n, self.ff * n, self.bram36 * n, self.dsp * n)

    def __add__(self, other: Area) -> Area:
        return Area(self.lut + other.lut, self.ff + other.ff, self.bram36 + other.bram36, self.dsp + other.dsp)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"lut": self.lut, "ff": self.ff, "bram36": self.bram36, "dsp": self.dsp}


#: the vendor's reset controller, the only logic of a bitstream that is not ours: two shift registers, a counter of six
#: bits and the registers of its outputs, from its published source; an estimate
SYSTEM_RESET = Area(lut=20, ff=40)
