"""A second reading of docs/programs.md, bit by bit and without arrays: what the reference device is compared with.

It walks plane pairs as the hardware does, so it is slow; valid programs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from hw import contract
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import Design

M32 = (1 << 32) - 1


def _hash(h: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> shift) * factor & M32
    return h ^ h >> 16


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _halves_up(value: int, shift: int) -> int:
    return math.floor(Fraction(value, 1 << shift) + Fraction(1, 2)) if shift else value


def _saturated(value: int) -> int:
    return min(max(value, -(1 << 17)), (1 << 17) - 1)


def _code(value: int, bits: int, shift: int, signed: bool, noise: int | None) -> tuple[int, bool]:
    """Code of a value, rounded by the noise or to nearest, and whether it was clamped."""
    exact = _halves_up(value, shift) if noise is None else (value + noise) // (1 << shift)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return min(max(exact, low), high), not low <= exact <= high


def _field_times(a: int, b: int) -> int:
    """Product in GF(2^16): of polynomials over GF(2), reduced by X^16 + X^12 + X^3 + X + 1."""
    product = 0
    for i in range(16):
        product ^= (a << i) * (b >> i & 1)
    for i in range(30, 15, -1):
        product ^= (0x1100B << i - 16) * (product >> i & 1)
    return product


def _field_power(exponent: int) -> int:
    """2 to the power of ``exponent`` in GF(2^16)."""
    out = 1
    for _ in range(exponent):
        out = _field_times(out, 2)
    return out


class Direct:
    """State and results of one program on one design."""

    def __init__(self, design: Design) -> None:
        self.d = design
        self.rows: dict[Target, dict[tuple[int, int], int]] = {Target.A: {}, Target.G: {}}
        self.w: dict[int, int] = {}
        self.e: dict[int, dict[str, int]] = {}
        self.acc: dict[int, list[int]] = {}
        self.out: list[int] = []
        self.skipped = self.saturated = self.packets = 0

    def run(self, words: list[int]) -> None:
        at = 0
        while True:
            f = contract.unpack_header(words[at : at + 12])
            payload = words[at + 12 : at + 12 + f["payload_words"]]
            at += 12 + f["payload_words"]
            self.packets += 1
            if f["opcode"] == Opcode.END:
                return
            step: dict[int, Callable[[dict[str, int], list[int]], None]] = {
                Opcode.LOAD: self.load,
                Opcode.CONV: self.conv,
                Opcode.WGRAD: self.wgrad,
                Opcode.READ: self.read,
            }
            step[f["opcode"]](f, payload)

    @staticmethod
    def address(
        base: int, f: dict[str, int], groups: int, bits: int, i: int, y: int, g: int, plane: int
    ) -> tuple[int, int]:
        per_image = -(-f["rows"] // 8) * groups * bits
        return y % 8, base + i * per_image + (y // 8 * groups + g) * bits + plane

    def segment(self, f: dict[str, int]) -> list[tuple[int, int]]:
        """(segment, position in it) of each pixel."""
        out, segment, x = [], -1, 0
        for p in range(self.d.lanes):
            if f["segment_start"] >> p & 1:
                segment, x = segment + 1, 0
            out.append((segment, x))
            x += 1
        return out

    # -- packets ----------------------------------------------------------------------------------------------------

    def load(self, f: dict[str, int], payload: list[int]) -> None:
        if f["target"] == Target.W:
            n = self.d.weight_words
            for k in range(f["rows"]):
                self.w[f["base_b"] + k] = sum(w << 64 * i for i, w in enumerate(payload[k * n : (k + 1) * n]))
            return
        if f["target"] == Target.E:
            for k in range(f["rows"]):
                first, second, third, _ = payload[4 * k : 4 * k + 4]
                self.e[f["base_epilogue"] + k] = {
                    **{name: _signed(first >> 18 * i, 18) for i, name in enumerate("mon")},
                    "b": _signed(second, 48), "c": _signed(third, 40), "l": _signed(third >> 40, 18),
                }  # fmt: skip
            return
        n, at = self.d.row_words, 0
        for i in range(f["images"]):
            for y in range(f["rows"]):
                for g in range(f["groups"]):
                    for plane in range(f["a_bits"]):
                        row = sum(w << 64 * k for k, w in enumerate(payload[at : at + n]))
                        at += n
                        for target, base in ((Target.A, f["base_a"]), (Target.G, f["base_b"])):
                            if f["target"] & target:
                                where = self.address(base, f, f["groups"], f["a_bits"], i, y, g, plane)
                                self.rows[target][where] = row

    def random(self, f: dict[str, int], row: int, channel: int, place: tuple[int, int]) -> int:
        """Random number of an element whose pixel is (segment, position in it)."""
        index = f["index"] + row * f["row_stride"] + channel * f["channel_stride"] + place[0] * f["image_stride"]
        h = _hash(index & M32 ^ f["key"])
        return h & 0xFFFF ^ _field_times(_field_times(h >> 16, f["factor"]), _field_power(place[1]))

    def element(self, f: dict[str, int], base: int, planes: int, at: tuple[int, int, int], bit: int) -> int:
        """Planes of one element of an operand in G, plane 0 the least significant."""
        i, y, og = at
        where = (self.address(base, f, f["out_groups"], planes, i, y, og, plane) for plane in range(planes))
        return sum((self.rows[Target.G][place] >> bit & 1) << plane for plane, place in enumerate(where))

    def nonzero_planes(self, buffer: Target, base: int, addresses: int, bits: int) -> int:
        """Mask of the planes that SKIP_ZERO leaves."""
        out = 0
        for (_, at), row in self.rows[buffer].items():
            if base <= at < base + addresses and row:
                out |= 1 << (at - base) % bits
        return out

    def neighbours(self, f: dict[str, int], y: int, p: int) -> list[tuple[int, int, int]]:
        """(tap, row, pixel) of the valid taps at a pixel."""
        where = self.segment(f)
        out = []
        if f["flags"] & Flag.STRIDE_2:
            for ky in range(3):
                row = 2 * y + ky - 1  # of the input, whose even and odd columns lie in two virtual rows
                if row < 0:
                    continue
                if p and where[p - 1][0] == where[p][0]:
                    out.append((3 * ky, 2 * row + 1, p - 1))
                out += [(3 * ky + 1, 2 * row, p), (3 * ky + 2, 2 * row + 1, p)]
            return out
        for tap in range(9):
            yy, pp = y + tap // 3 - 1, p + tap % 3 - 1
            if 0 <= yy < f["rows"] and 0 <= pp < self.d.lanes and where[pp][0] == where[p][0]:
                out.append((tap, yy, pp))
        return out

    @staticmethod
    def horner(a_bits: int, b_bits: int, a_signed: bool, b_signed: bool, pairs: dict[tuple[int, int], int]) -> int:
        """Sum over plane pairs, from the highest diagonal down; sign planes subtract."""
        acc = 0
        for diagonal in range(a_bits + b_bits - 2, -1, -1):
            acc *= 2
            for i in range(a_bits):
                j = diagonal - i
                if (i, j) in pairs:
                    minus = (a_signed and i == a_bits - 1) != (b_signed and j == b_bits - 1)
                    acc += -pairs[i, j] if minus else pairs[i, j]
        return acc

    def account(self, a_mask: int, b_mask: int, a_bits: int, b_bits: int, sums: bool, cycles: int) -> None:
        """Skipped cycles of one tile."""
        for diagonal in range(a_bits + b_bits - 1):
            found = 0
            for i in range(a_bits):
                j = diagonal - i
                if not 0 <= j < b_bits:
                    continue
                if a_mask >> i & 1 and (b_mask >> j & 1 or (j == 0 and sums)):
                    found += 1
                else:
                    self.skipped += cycles
            self.skipped -= found == 0

    def words(self, values: list[int], wide: bool) -> None:
        if wide:
            self.out += [v & (1 << 64) - 1 for v in values]
        else:
            for even, odd in zip(values[0::2], values[1::2], strict=True):
                self.out.append((even & M32) | (odd & M32) << 32)

    def conv(self, f: dict[str, int], _: list[int]) -> None:
        c, lanes = self.d.channels, self.d.lanes
        flags, form = f["flags"], f["format"]
        a_signed, b_signed = bool(flags & Flag.A_SIGNED), bool(flags & Flag.B_SIGNED)
        a_bits, b_bits, groups = f["a_bits"], f["b_bits"], f["groups"]
        a_on = [i for i in range(a_bits) if f["a_planes"] >> i & 1]
        b_on = [j for j in range(b_bits) if f["b_planes"] >> j & 1]
        ones = (1 << c) - 1
        f_a = {**f, "rows": 4 * f["rows"]} if flags & Flag.STRIDE_2 else f
        walked = f["a_planes"]
        if flags & Flag.SKIP_ZERO:
            addresses = f["images"] * -(-f_a["rows"] // 8) * groups * a_bits
            walked &= self.nonzero_planes(Target.A, f["base_a"], addresses, a_bits)
        seen: list[list[tuple[int, int]]] = [[] for _ in range(f["out_groups"] * c)]
        for i, y, og in (
            (i, y, og) for i in range(f["images"]) for y in range(f["rows"]) for og in range(f["out_groups"])
        ):
            self.account(walked, f["b_planes"], a_bits, b_bits, bool(flags & Flag.A_SUM), groups)
            acc = [[0] * lanes for _ in range(c)]
            sums = [0] * lanes
            for p in range(lanes):
                taps = self.neighbours(f, y, p)
                pairs: list[dict[tuple[int, int], int]] = [{} for _ in range(c)]
                for plane in a_on:
                    weight = -(1 << plane) if a_signed and plane == a_bits - 1 else 1 << plane
                    for g in range(groups):
                        for tap, yy, pp in taps:
                            row = self.rows[Target.A][self.address(f["base_a"], f_a, groups, a_bits, i, yy, g, plane)]
                            pixel = row >> pp * c & ones
                            if not pixel:
                                continue
                            sums[p] += weight * bin(pixel).count("1")
                            for j in b_on:
                                word = self.w[f["base_b"] + (og * groups + g) * b_bits + j]
                                for oc in range(c):
                                    match = pixel & word >> (oc * 9 + tap) * c
                                    pairs[oc][plane, j] = pairs[oc].get((plane, j), 0) + bin(match).count("1")
                for oc in range(c):
                    acc[oc][p] = self.horner(a_bits, b_bits, a_signed, b_signed, pairs[oc])
            if form in (OutputFormat.CODES, OutputFormat.MOMENTS):
                self.epilogue(f, (i, y, og), acc, seen)
                continue
            self.words([v for line in acc for v in line], form == OutputFormat.INT64)
            if flags & Flag.A_SUM and og == 0:
                self.words(sums, form == OutputFormat.INT64)
        if form == OutputFormat.MOMENTS or (form == OutputFormat.CODES and flags & Flag.RECORDS):
            for pairs_seen in seen:
                values = [v for v, _ in pairs_seen]
                self.words([sum(values), sum(v * factor for v, factor in pairs_seen)], True)
                self.words([min(values), max(values)], False)

    def epilogue(
        self, f: dict[str, int], at: tuple[int, int, int], acc: list[list[int]], seen: list[list[tuple[int, int]]]
    ) -> None:
        """One tile of CODES or MOMENTS; ``seen`` takes each channel's values that count, with their factors."""
        c, flags, (i, y, og) = self.d.channels, f["flags"], at
        codes = f["format"] == OutputFormat.CODES
        where = self.segment(f)
        masked = 1 if flags & Flag.MASKED else 0
        planes: dict[int, int] = {}
        for oc in range(c):
            e = self.e[f["base_epilogue"] + og * c + oc]
            for p, value in enumerate(acc[oc]):
                side = self.element(f, f["base_side"], f["side_bits"] + masked, at, p * c + oc)
                on, k = side >> f["side_bits"], side & (1 << f["side_bits"]) - 1
                if flags & Flag.SIDE_SIGNED and f["side_bits"]:
                    k = _signed(k, f["side_bits"])
                q = self.element(f, f["base_added"], f["added_bits"], at, p * c + oc)
                q = _signed(q, f["added_bits"]) if f["added_bits"] else 0
                t = value * e["m"] + e["b"] + 512 * q * e["o"]
                if masked and not on:
                    t = 0
                exact = _halves_up(t, f["shift"])
                x = _saturated(exact)
                self.saturated += x != exact
                counts = f["valid"] >> p & 1 and f["first_row"] <= y < f["last_row"]
                if not codes:
                    if counts:
                        seen[og * c + oc].append((x, k if flags & Flag.CROSS else x))
                    continue
                w = _saturated(_halves_up(x * e["n"] + e["c"] + 512 * k * e["l"], f["value_shift"]))
                if flags & Flag.RELU and w < 0:
                    w = 0
                if counts and flags & Flag.RECORDS:
                    seen[og * c + oc].append((w, w))
                r = self.random(f, i * f["rows"] + y, og * c + oc, where[p]) if flags & Flag.STOCHASTIC else None
                for plane, bit in enumerate(self.sections(f, x, w, r)):
                    planes[plane] = planes.get(plane, 0) | bit << (p * c + oc)
        for plane in sorted(planes):
            self.out += [planes[plane] >> 64 * k & (1 << 64) - 1 for k in range(self.d.row_words)]

    def sections(self, f: dict[str, int], x: int, w: int, r: int | None) -> list[int]:
        """Bits of an element in a tile's planes."""
        flags, signed = f["flags"], bool(f["flags"] & Flag.OUT_SIGNED)

        def noise(number: int | None, shift: int) -> int | None:
            return None if number is None else number >> (16 - shift)

        reverse = None if r is None else int(f"{r:016b}"[::-1], 2)
        out, clamped = _code(w, f["out_bits"], f["out_shift"], signed, noise(r, f["out_shift"]))
        self.saturated += clamped
        bits = [out >> plane & 1 for plane in range(f["out_bits"])]
        if f["keep_bits"]:
            keep, _ = _code(x, f["keep_bits"], f["keep_shift"], True, noise(reverse, f["keep_shift"]))
            bits += [keep >> plane & 1 for plane in range(f["keep_bits"])]
        if flags & Flag.KEEP_MASK:
            bits.append(int(w > 0))
        if f["wide_bits"]:
            wide, _ = _code(w, f["wide_bits"], f["wide_shift"], signed, None)
            bits += [wide >> plane & 1 for plane in range(f["wide_bits"])]
        return bits

    def wgrad(self, f: dict[str, int], _: list[int]) -> None:
        c, lanes = self.d.channels, self.d.lanes
        flags, groups, a_bits, b_bits = f["flags"], f["groups"], f["a_bits"], f["b_bits"]
        ones = 1 if flags & Flag.ONES else 0

        def code(
            buffer: Target, base: int, n: int, bits: int, mask: int, sign: int, at: tuple[int, int, int, int]
        ) -> list[int]:
            i, y, g, p = at
            out = [0] * c
            for plane in range(bits):
                if mask >> plane & 1:
                    row = self.rows[buffer][self.address(base, f, n, bits, i, y, g, plane)]
                    for ch in range(c):
                        out[ch] |= (row >> p * c + ch & 1) << plane
            return [_signed(v, bits) if sign else v for v in out]

        positions = [(i, y, p) for i in range(f["images"]) for y in range(f["rows"]) for p in range(lanes)]
        near = {(y, p): self.neighbours(f, y, p) for y in range(f["rows"]) for p in range(lanes)}
        n = f["out_groups"]
        gradient = {
            (i, y, p, og): code(Target.G, f["base_b"], n, b_bits, f["b_planes"], flags & Flag.B_SIGNED, (i, y, og, p))
            for i, y, p in positions
            for og in range(n)
        }
        operand = {
            (i, y, p, g): code(
                Target.A, f["base_a"], groups, a_bits, f["a_planes"], flags & Flag.A_SIGNED, (i, y, g, p)
            )
            for i, y, p in positions
            for g in range(groups)
        }
        cycles = f["images"] * -(-f["rows"] // 8)
        a_walked, b_walked = f["a_planes"], f["b_planes"]
        if flags & Flag.SKIP_ZERO:
            a_walked &= self.nonzero_planes(Target.A, f["base_a"], cycles * groups * a_bits, a_bits)
            b_walked &= self.nonzero_planes(Target.G, f["base_b"], cycles * n * b_bits, b_bits)
        q = 0
        for og in range(n):
            for g in range(groups + ones):
                for tap in range(9):
                    if not f["taps"] >> tap & 1:
                        continue
                    extra = g == groups
                    self.account(1 if extra else a_walked, b_walked, 1 if extra else a_bits, b_bits, True, cycles)
                    tile = [[0] * c for _ in range(c + 1)]
                    for i, y, p in positions:
                        for t, yy, pp in near[y, p]:
                            if t != tap:
                                continue
                            a = [1] * c if extra else operand[i, yy, pp, g]
                            for ic in range(c):
                                tile[c][ic] += a[ic]
                                if a[ic]:
                                    for oc in range(c):
                                        tile[oc][ic] += a[ic] * gradient[i, y, p, og][oc]
                    for e in range(c + 1):
                        at = f["base_accumulator"] + q * (c + 1) + e
                        if flags & Flag.CLEAR:
                            self.acc[at] = tile[e]
                        else:
                            self.acc[at] = [old + new for old, new in zip(self.acc[at], tile[e], strict=True)]
                    q += 1

    def read(self, f: dict[str, int], _: list[int]) -> None:
        for k in range(f["rows"]):
            self.words(self.acc[f["base_accumulator"] + k], f["format"] == OutputFormat.INT64)
