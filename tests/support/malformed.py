"""Programs that the fabric must refuse: what is wrong, the two streams, and the error and position to report.

Every program starts with a few good packets, so that positions are not all zero and the results that come before the
refusal are known.  Shared by the tests of every device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.arrays import U64
from hw import contract
from hw.contract import Error, Flag, Opcode, OutputFormat, Target
from hw.design import Design

Fields = dict[str, int]
Packet = tuple[Fields, U64]

_NONE = np.zeros(0, dtype=np.uint64)
_HEADER = contract.HEADER_WORDS // 2  #: beats of a header


class Malformed(NamedTuple):
    """A program and its refusal; ``slow`` programs take tens of thousands of cycles."""

    name: str
    words0: U64
    words1: U64
    error: Error
    position: int
    slow: bool = False


def _random(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(0, 1 << 64, size=count, dtype=np.uint64)


def good_packets(design: Design) -> dict[str, Packet]:
    """One small valid packet of each kind; in this order they form a valid program together with END."""
    d = design
    tensor = {"rows": 2, "groups": 1, "out_groups": 1, "images": 1}
    small = {"groups": 1, "out_groups": 1, "images": 1}
    load = {"opcode": int(Opcode.LOAD)}
    product = {**tensor, "a_bits": 2, "b_bits": 2, "segment_start": 1, "a_planes": 3, "b_planes": 3}
    stochastic = {"key": 7, "index": 5, "channel_stride": 9, "image_stride": 3, "row_stride": 2, "factor": 4}
    packed: Fields = {**load, **tensor, "a_bits": 2}
    conv = {**product, "opcode": Opcode.CONV}
    rounding = {**stochastic, "flags": Flag.STOCHASTIC} if d.rounding else {}
    codes = {**conv, "format": OutputFormat.CODES, "out_bits": 4, "shift": 3, "value_shift": 2, "out_shift": 1}
    counted = {"valid": 6, "first_row": 1, "last_row": 2}
    sides = {"side_bits": 1, "added_bits": 2, "base_side": 4, "base_added": 1}  # of what load_g and load_ag bring
    return {
        "load_a": ({**packed, "target": Target.A}, _random(2 * 2 * d.row_words)),
        "load_g": ({**packed, "a_bits": 8, "target": Target.G}, _random(8 * 2 * d.row_words)),
        "load_ag": ({**packed, "target": Target.A | Target.G}, _random(2 * 2 * d.row_words)),
        "load_w": ({**load, **small, "target": Target.W, "rows": 2}, _random(2 * d.weight_words)),
        "load_e": ({**load, **small, "target": Target.E, "rows": d.channels}, _random(4 * d.channels)),
        "conv": ({**conv, "format": OutputFormat.INT32}, _NONE),
        "conv_wide": ({**conv, "format": OutputFormat.INT64, "flags": Flag.A_SUM}, _NONE),
        "conv_codes": (codes, _NONE),
        "conv_random": ({**codes, **rounding}, _NONE),
        "conv_sections": (
            {**codes, **counted, **sides, "keep_bits": 3, "wide_bits": 2, "keep_shift": 5, "wide_shift": 3}
            | {"flags": Flag.MASKED | Flag.KEEP_MASK | Flag.RECORDS},
            _NONE,
        ),
        "conv_moments": ({**conv, **counted, "format": OutputFormat.MOMENTS, "shift": 3}, _NONE),
        "conv_cross": (
            {**conv, **counted, **sides, "format": OutputFormat.MOMENTS, "shift": 3, "flags": Flag.CROSS},
            _NONE,
        ),
        "conv_skip": ({**conv, "format": OutputFormat.INT32, "flags": Flag.SKIP_ZERO}, _NONE),
        "load_tall": ({**packed, "rows": 8, "target": Target.A}, _random(8 * 2 * d.row_words)),
        "conv_stride_2": ({**conv, "flags": Flag.STRIDE_2 | Flag.A_SUM}, _NONE),
        "wgrad": ({**product, "opcode": Opcode.WGRAD, "flags": Flag.CLEAR | Flag.ONES, "taps": 0x1FF}, _NONE),
        "wgrad_tap": ({**product, "opcode": Opcode.WGRAD, "flags": Flag.CLEAR, "taps": 0x10}, _NONE),
        "read": ({"opcode": Opcode.READ, "rows": 3, "format": OutputFormat.INT64}, _NONE),
        "end": ({"opcode": Opcode.END}, _NONE),
    }


def packet_words(packet: Packet) -> U64:
    """Header and payload; payload_words is filled in unless the packet gives it."""
    fields, payload = packet
    fields = {"payload_words": payload.size, **fields}
    header = contract.pack_header(**{name: int(value) for name, value in fields.items()})
    return np.concatenate([np.array(header, dtype=np.uint64), payload])


def good_program(design: Design) -> U64:
    """A valid program with a packet of each kind; self-contained."""
    return np.concatenate([packet_words(p) for p in good_packets(design).values()])


def _field_cases(design: Design) -> list[tuple[str, str, Fields, Error]]:  # noqa: C901 - one case after another, none inside another
    """(name, packet to spoil, fields to set, error)."""
    d = design
    c = d.channels
    cases: list[tuple[str, str, Fields, Error]] = []

    def add(kind: str, error: Error, **fields: int) -> None:
        text = ",".join(f"{k}={v:#x}" for k, v in fields.items())
        cases.append((f"{error.name}:{kind}:{text}", kind, fields, error))

    for kind in ("load_a", "conv", "end"):
        add(kind, Error.BAD_MAGIC, magic=0xF7AD)
        add(kind, Error.BAD_MAGIC, version=contract.VERSION + 1)
        add(kind, Error.BAD_MAGIC, magic=0, check=0)
        add(kind, Error.BAD_CHECK, check=0x12345678)
        for opcode in (0, 5, 14, 16, 255):
            add(kind, Error.BAD_OPCODE, opcode=opcode)
    add("load_a", Error.BAD_CHECK, check=0, opcode=99)
    add("load_a", Error.BAD_OPCODE, opcode=0, a_bits=99, valid=1)

    epilogue = (
        "rows groups out_groups images a_bits b_bits flags base_a base_b format segment_start a_planes b_planes "
        "base_epilogue shift side_bits added_bits base_side base_added"
    )
    codes = epilogue + " out_bits out_shift keep_bits keep_shift wide_bits wide_shift value_shift"
    used = {
        "load_a": "rows groups out_groups images a_bits base_a target",
        "load_g": "rows groups out_groups images a_bits base_b target",
        "load_ag": "rows groups out_groups images a_bits base_a base_b target",
        "load_w": "rows groups out_groups images base_b target",
        "load_e": "rows groups out_groups images base_epilogue target",
        "conv": "rows groups out_groups images a_bits b_bits flags base_a base_b format segment_start a_planes "
        "b_planes",
        "conv_codes": codes,
        "conv_random": codes + (" key index channel_stride image_stride row_stride factor" if d.rounding else ""),
        "conv_sections": codes + " valid first_row last_row",
        "conv_moments": epilogue + " valid first_row last_row",
        "wgrad": "rows groups out_groups images a_bits b_bits flags base_a base_b segment_start a_planes b_planes "
        "base_accumulator taps",
        "read": "rows format base_accumulator",
        "end": "",
    }
    for kind, names in used.items():
        for field in contract.FIELDS:
            if field.name in ("magic", "version", "opcode", "payload_words", "check", *names.split()):
                continue
            add(kind, Error.BAD_FIELD, **{field.name: 1})
            if field.width > 8:
                add(kind, Error.BAD_FIELD, **{field.name: 1 << (field.width - 1)})

    conv_flags = Flag.A_SIGNED | Flag.B_SIGNED | Flag.STRIDE_2 | Flag.SKIP_ZERO
    side_flags = Flag.SIDE_SIGNED | Flag.MASKED
    code_flags = side_flags | Flag.RELU | Flag.OUT_SIGNED | Flag.KEEP_MASK
    allowed = {
        "load_a": 0,
        "conv": conv_flags | Flag.A_SUM,
        "conv_wide": conv_flags | Flag.A_SUM,
        # RECORDS without rows that count is BAD_SHAPE, STOCHASTIC without a factor BAD_FIELD
        "conv_codes": conv_flags | code_flags | Flag.RECORDS,
        "conv_moments": conv_flags | side_flags,
        "wgrad": Flag.A_SIGNED | Flag.B_SIGNED | Flag.ONES | Flag.CLEAR | Flag.SKIP_ZERO,
        "read": 0,
        "end": 0,
    }
    for kind, flags in allowed.items():
        for bit in range(16):
            if not int(flags) >> bit & 1:
                add(kind, Error.BAD_FIELD, flags=1 << bit)

    for target in (0, 5, 6, 7, 9, 12, 16, 32, 255):
        add("load_a", Error.BAD_FIELD, target=target)
    for kind, form in (
        ("load_a", 1),
        ("load_ag", 2),
        ("load_w", 1),
        ("load_e", 1),
        ("conv", 4),
        ("conv", 5),
        ("conv_codes", 3),
        ("read", 2),
        ("read", 3),
        ("wgrad", 1),
        ("end", 1),
    ):
        add(kind, Error.BAD_FIELD, format=form)
    for kind in ("conv", "wgrad"):
        add(kind, Error.BAD_FIELD, a_planes=4)
        add(kind, Error.BAD_FIELD, b_planes=0x8000)
        add(kind, Error.BAD_FIELD, a_planes=7, b_bits=0)  # the mask of the other operand is still judged
        add(kind, Error.BAD_BITS, a_bits=0)
        add(kind, Error.BAD_BITS, a_bits=17)
        add(kind, Error.BAD_BITS, b_bits=0, b_planes=0xFFFF)
        add(kind, Error.BAD_BITS, b_bits=255)
    for taps in (0, 0x200, 0x8001, 0xFFFF):
        add("wgrad", Error.BAD_FIELD, taps=taps)
    add("wgrad", Error.BAD_FIELD, taps=0, a_bits=0)
    for bits in (0, 17, 128):
        add("load_a", Error.BAD_BITS, a_bits=bits)
        add("load_ag", Error.BAD_BITS, a_bits=bits, rows=0)
        add("conv_codes", Error.BAD_BITS, out_bits=bits)
    add("conv_codes", Error.BAD_BITS, shift=48)
    add("conv_moments", Error.BAD_BITS, shift=48)
    add("conv_codes", Error.BAD_BITS, value_shift=48)
    for name, most in (*dict.fromkeys(("side_bits", "added_bits", "keep_bits", "wide_bits"), 8).items(),
                       *dict.fromkeys(("out_shift", "keep_shift", "wide_shift"), 16).items()):  # fmt: skip
        add("conv_codes", Error.BAD_BITS, **{name: most + 1})
        add("conv_codes", Error.BAD_BITS, **{name: 255, "rows": 0})
        if name in ("side_bits", "added_bits"):
            add("conv_moments", Error.BAD_BITS, **{name: most + 1})
    add("conv_codes", Error.BAD_BITS, out_bits=16, keep_bits=8, wide_bits=2)
    add("conv_sections", Error.BAD_BITS, out_bits=16, keep_bits=8, wide_bits=1)  # and the mask
    add("conv_sections", Error.BAD_BITS, out_bits=16, keep_bits=5, wide_bits=4)
    add("conv_cross", Error.BAD_FIELD, side_bits=0)
    add("conv_cross", Error.BAD_FIELD, side_bits=0, a_bits=0)
    add("conv_cross", Error.BAD_FIELD, flags=Flag.CROSS | Flag.MASKED, side_bits=0)  # a mask alone has no elements
    if d.rounding:
        add("conv_random", Error.BAD_FIELD, factor=0)
        add("conv_random", Error.BAD_FIELD, factor=0, out_bits=0)
    add("conv_codes", Error.BAD_BITS, shift=255, images=0)

    add("conv_stride_2", Error.BAD_SHAPE, rows=257)
    add("conv_stride_2", Error.BAD_SHAPE, rows=1024, base_a=0xFFFF)
    for kind in ("conv_moments", "conv_sections"):
        add(kind, Error.BAD_SHAPE, valid=0)
        if d.lanes < 32:
            add(kind, Error.BAD_SHAPE, valid=1 | 1 << d.lanes)
        add(kind, Error.BAD_SHAPE, first_row=2)
        add(kind, Error.BAD_SHAPE, first_row=0xFFFF)
        add(kind, Error.BAD_SHAPE, first_row=1, last_row=1)
        add(kind, Error.BAD_SHAPE, last_row=3)
        add(kind, Error.BAD_SHAPE, last_row=0x8002)
        add(kind, Error.BAD_SHAPE, first_row=0, last_row=0)
    add("conv_codes", Error.BAD_SHAPE, flags=Flag.RECORDS)
    for kind in ("load_a", "load_ag", "conv", "conv_codes", "conv_moments", "wgrad"):
        for name, limit in contract.LIMITS.items():
            add(kind, Error.BAD_SHAPE, **{name: 0})
            add(kind, Error.BAD_SHAPE, **{name: limit + 1})
    add("load_a", Error.BAD_SHAPE, out_groups=2)
    for kind in ("load_w", "load_e"):
        add(kind, Error.BAD_SHAPE, rows=0)
        for name in ("groups", "out_groups", "images"):
            add(kind, Error.BAD_SHAPE, **{name: 2})
            add(kind, Error.BAD_SHAPE, **{name: 0})
    add("read", Error.BAD_SHAPE, rows=0)
    for kind in ("conv", "conv_codes", "conv_moments", "conv_stride_2", "wgrad"):
        add(kind, Error.BAD_SHAPE, segment_start=0)
        add(kind, Error.BAD_SHAPE, segment_start=2)
        if d.lanes < 32:
            add(kind, Error.BAD_SHAPE, segment_start=1 | 1 << d.lanes)

    for kind, packet in good_packets(design).items():
        words = packet[1].size
        add(kind, Error.BAD_LENGTH, payload_words=words + 2)
        add(kind, Error.BAD_LENGTH, payload_words=words + 1)
        if words:
            add(kind, Error.BAD_LENGTH, payload_words=words - 2)
            add(kind, Error.BAD_LENGTH, payload_words=0)
    add("load_a", Error.BAD_LENGTH, base_a=0xFFFF, payload_words=2)

    add("load_a", Error.OUT_OF_BUFFER, base_a=d.depth_a - 1)
    add("load_a", Error.OUT_OF_BUFFER, base_a=0xFFFF)
    add("load_g", Error.OUT_OF_BUFFER, base_b=d.depth_g - 1)
    add("load_ag", Error.OUT_OF_BUFFER, base_b=d.depth_g - 1)
    add("load_ag", Error.OUT_OF_BUFFER, base_a=d.depth_a - 1)
    add("load_w", Error.OUT_OF_BUFFER, base_b=d.depth_w - 1)
    add("load_e", Error.OUT_OF_BUFFER, base_epilogue=d.depth_epilogue - c + 1)
    for kind in ("conv", "wgrad"):
        add(kind, Error.OUT_OF_BUFFER, base_a=d.depth_a - 1)
        add(kind, Error.OUT_OF_BUFFER, images=64, rows=1024)
    add("conv", Error.OUT_OF_BUFFER, base_b=d.depth_w - 1)
    # one block of output rows lies under four blocks of A
    add("conv_stride_2", Error.OUT_OF_BUFFER, rows=8, base_a=d.depth_a - 4 * 2 + 1)
    add("conv_codes", Error.OUT_OF_BUFFER, base_epilogue=d.depth_epilogue - c + 1)
    add("conv_codes", Error.OUT_OF_BUFFER, groups=64, a_bits=16, b_bits=16)  # it would overflow, too
    for kind in ("conv_sections", "conv_cross"):
        planes = 2 if kind == "conv_sections" else 1
        add(kind, Error.OUT_OF_BUFFER, base_epilogue=d.depth_epilogue - c + 1)
        add(kind, Error.OUT_OF_BUFFER, base_side=d.depth_g - planes + 1)
        add(kind, Error.OUT_OF_BUFFER, base_side=0xFFFF)
        add(kind, Error.OUT_OF_BUFFER, base_added=d.depth_g - 1)
        add(kind, Error.OUT_OF_BUFFER, base_added=0xFFFF, base_side=d.depth_g - planes)
        add(kind, Error.OUT_OF_BUFFER, base_side=d.depth_g - 8, out_groups=8 // planes + 1, base_b=0, base_epilogue=0)
    add("conv_codes", Error.OUT_OF_BUFFER, flags=Flag.MASKED, base_side=d.depth_g)  # the mask plane alone
    add("wgrad", Error.OUT_OF_BUFFER, base_b=d.depth_g - 1)
    add("wgrad", Error.OUT_OF_BUFFER, base_accumulator=d.depth_accumulator - 18 * (c + 1) + 1)
    add("wgrad", Error.OUT_OF_BUFFER, base_accumulator=d.depth_accumulator - 9 * (c + 1))
    add("wgrad", Error.OUT_OF_BUFFER, taps=0x103, base_accumulator=d.depth_accumulator - 6 * (c + 1) + 1)
    add("wgrad_tap", Error.OUT_OF_BUFFER, base_accumulator=d.depth_accumulator - c)
    add("read", Error.OUT_OF_BUFFER, base_accumulator=d.depth_accumulator - 2)
    add("read", Error.OUT_OF_BUFFER, rows=0xFFFF)

    add("conv", Error.OVERFLOW, a_bits=16, b_bits=16)
    for kind in ("conv_codes", "conv_moments"):
        add(kind, Error.OVERFLOW, a_bits=13, b_bits=13)
    tight = 31 - (d.dot_bits - 1).bit_length()  # the greatest sum of widths that INT32 takes
    add("conv", Error.OVERFLOW, a_bits=tight - 11, b_bits=12)
    rows = 8 * (d.depth_a // 16)  # all of the buffer at 16 bits
    if rows <= 1024 and rows * d.lanes << 32 > 1 << 47:
        add("wgrad", Error.OVERFLOW, a_bits=16, b_bits=16, rows=rows)
    images = d.depth_a // 16 // 4
    if images <= 64 and images * 32 * d.lanes << 32 > 1 << 47:
        add("wgrad", Error.OVERFLOW, a_bits=16, b_bits=16, rows=32, images=images)
    return cases


def _spare_cases(design: Design) -> list[Malformed]:
    """Bits that belong to no field, under a good checksum."""
    packets = good_packets(design)
    end = packet_words(packets["end"])
    out: list[Malformed] = []
    for kind, more, error in (
        ("load_a", {}, Error.BAD_FIELD),
        ("conv_codes", {}, Error.BAD_FIELD),
        ("end", {}, Error.BAD_FIELD),
        ("wgrad", {"a_bits": 0}, Error.BAD_FIELD),
        ("conv", {"opcode": 7}, Error.BAD_OPCODE),
    ):
        fields, payload = packets[kind]
        for half, used in enumerate(contract.FIELD_BITS):
            for bit in (0, 31):
                if used >> bit & 1:
                    continue
                words = packet_words(({**fields, **more}, payload))
                words[half // 2] ^= np.uint64(1 << 32 * (half % 2) + bit)
                words[contract.HEADER_WORDS - 1] ^= np.uint64(1 << 32 + bit)  # the checksum is the last half-word
                program = np.concatenate([packet_words(packets["load_a"]), words, end])
                out.append(Malformed(f"{error.name}:{kind}:half {half} bit {bit}", *_split(program), error, 1))
    return out


def _split(words: U64) -> tuple[U64, U64]:
    return words[0::2].copy(), words[1::2].copy()


def _stream_cases(design: Design) -> list[Malformed]:
    """Streams that end too early or too late."""
    packets = good_packets(design)
    out: list[Malformed] = []
    prefix = [packets["load_a"], packets["load_w"], packets["conv"]]
    end = packet_words(packets["end"])
    head = np.concatenate([packet_words(p) for p in prefix])

    def cut(name: str, words: U64, beats: int, error: Error, position: int) -> None:
        """Both streams end after ``beats`` beats, or one of them does while the other goes on."""
        w0, w1 = _split(words)
        out.append(Malformed(f"{error.name}:{name}:both", w0[:beats], w1[:beats], error, position))
        out.append(Malformed(f"{error.name}:{name}:first", w0[:beats], w1, error, position))
        out.append(Malformed(f"{error.name}:{name}:second", w0, w1[:beats], error, position))

    whole = np.concatenate([head, end])
    base = head.size // 2
    for beat in (1, _HEADER - 1):
        cut(f"first header, {beat} beats", whole, beat, Error.TRUNCATED, 0)
        cut(f"END header, {beat} beats", whole, base + beat, Error.TRUNCATED, 3)
    cut("LOAD header without payload", whole, _HEADER, Error.TRUNCATED, 0)
    cut("first payload beat", whole, _HEADER + 1, Error.TRUNCATED, 0)
    cut("payload but for its last beat", whole, packet_words(prefix[0]).size // 2 - 1, Error.TRUNCATED, 0)
    cut("payload's last beat", whole, packet_words(prefix[0]).size // 2, Error.TRUNCATED, 0)
    cut("CONV is last", whole, base, Error.TRUNCATED, 2)
    for kind in ("wgrad", "read", "conv_codes"):
        words = np.concatenate([head, packet_words(packets[kind]), end])
        cut(f"{kind} is last", words, base + _HEADER, Error.TRUNCATED, 3)
    bad = np.concatenate([head, packet_words(({**packets["conv"][0], "a_bits": 0}, _NONE)), end])
    cut("bad header, then cut", bad, base + _HEADER, Error.BAD_BITS, 3)
    bad = np.concatenate([head, packet_words(({"opcode": Opcode.END, "valid": 1}, _NONE))])
    cut("bad END", bad, base + _HEADER, Error.BAD_FIELD, 3)
    cut("bad header, itself cut", bad, base + _HEADER - 1, Error.TRUNCATED, 3)
    bad = np.concatenate([head, packet_words(({"opcode": Opcode.END, "payload_words": 2}, _NONE)), _random(2)])
    cut("END with payload", bad, base + _HEADER + 1, Error.BAD_LENGTH, 3)

    w0, w1 = _split(whole)
    more = _random(1, seed=3)
    for name, t0, t1 in (
        ("both go on", np.append(w0, more), np.append(w1, more)),
        ("first goes on", np.append(w0, more), w1),
        ("second goes on", w0, np.append(w1, more)),
        ("second goes on for long", w0, np.append(w1, _random(300))),
        ("another program follows", np.append(w0, w0), np.append(w1, w1)),
    ):
        out.append(Malformed(f"TRAILING:{name}", t0, t1, Error.TRAILING, 3))

    return out


def _top_planes(design: Design, images: int, rows: int) -> U64:
    """LOAD payload of 16-bit codes that are all 2**15 in pixel-channels where channel is odd, else 0."""
    odd = int("10" * 32, 2)  # bit = pixel * C + channel, and C is even
    words = np.zeros((images, rows, 1, 16, design.row_words), dtype=np.uint64)
    words[:, :, :, 15] = odd
    return words.reshape(-1)


def _range_cases(design: Design) -> list[Malformed]:
    """Sums that leave the range of a 32-bit READ, or of the accumulators."""
    packets = good_packets(design)
    out: list[Malformed] = []
    end = packet_words(packets["end"])

    def parts(images: int, rows: int) -> tuple[U64, Fields]:
        payload = _top_planes(design, images, rows)
        shape = {"rows": rows, "groups": 1, "out_groups": 1, "images": images}
        load = {**shape, "opcode": Opcode.LOAD, "target": Target.A | Target.G, "a_bits": 16}
        masks = {"a_planes": 0x8000, "b_planes": 0x8000}
        wgrad = {**shape, **masks, "opcode": Opcode.WGRAD, "a_bits": 16, "b_bits": 16, "segment_start": 1}
        wgrad["taps"] = 0x1FF
        return packet_words((load, payload)), wgrad

    load, wgrad = parts(1, 8)
    clear = packet_words(({**wgrad, "flags": Flag.CLEAR}, _NONE))
    for name, first, rows in (
        ("first entry", 1, 1),
        ("second entry", 0, 2),
        ("of many entries", 0, 9 * (design.channels + 1)),
    ):
        read: Fields = {"opcode": Opcode.READ, "rows": rows, "base_accumulator": first, "format": OutputFormat.INT32}
        words = np.concatenate(
            [
                load,
                clear,
                packet_words((read, _NONE)),
                packet_words(packets["load_g"]),
                packet_words(packets["conv"]),
                end,
            ]
        )
        out.append(Malformed(f"ACCUMULATOR_RANGE:READ:{name}", *_split(words), Error.ACCUMULATOR_RANGE, 2))

    images, rows = 4, 8 * min(design.depth_a // 64, 16)
    load, wgrad = parts(images, rows)
    clear = packet_words(({**wgrad, "flags": Flag.CLEAR}, _NONE))
    again = packet_words((wgrad, _NONE))
    # entries grow by rows * images * L * 2**30 (centre tap), and 2**47 is already too much
    steps = -(-(1 << 17) // (rows * images * design.lanes))
    tail = [packet_words(packets["read"]), packet_words(packets["load_a"]), end]
    words = np.concatenate([load, clear, *[again] * (steps + 1), *tail])
    out.append(Malformed("ACCUMULATOR_RANGE:WGRAD", *_split(words), Error.ACCUMULATOR_RANGE, steps, slow=True))
    return out


def malformed_programs(design: Design) -> list[Malformed]:
    """All programs to refuse, with unique names."""
    packets = good_packets(design)
    end = packet_words(packets["end"])
    before = [packet_words(packets[kind]) for kind in ("load_a", "load_w", "conv")]
    out: list[Malformed] = []
    for name, kind, fields, error in _field_cases(design):
        good, payload = packets[kind]
        spoilt = packet_words(({**good, **fields}, payload))
        out.append(Malformed(name, *_split(np.concatenate([*before, spoilt, end])), error, 3))
    first = packet_words(({**packets["load_a"][0], "rows": 0}, packets["load_a"][1]))
    out.append(Malformed("BAD_SHAPE:first packet", *_split(np.concatenate([first, end])), Error.BAD_SHAPE, 0))
    out += _spare_cases(design) + _stream_cases(design) + _range_cases(design)
    return list({case.name: case for case in out}.values())
