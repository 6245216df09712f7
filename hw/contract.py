"""The wire contract, defined once: packets, error codes, counters, registers.

Everything that speaks to the fabric - the NumPy reference, the rendered C++ and SystemVerilog, the driver, the
documentation - takes its numbers from here.  Standard library only, so that it runs on the board.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

VERSION = 4  #: of packets, registers and what the fabric makes of them: devices of one version give the same bits
MAGIC = 0xF7AC
TRAILER_MAGIC = 0xF7AC0E0D
CHECK_SEED = 0x5EEDF7AC
HEADER_WORDS = 12  #: 64-bit words in a packet header; 32-bit half-word h[2i] is the low half of word i
HEADER_HALVES = 2 * HEADER_WORDS
ROW_BANKS = 8  #: image rows held side by side in a tensor buffer; row y lives in bank y mod 8
TAPS = 9  #: kernel positions of the array, tap = 3 * ky + kx
ALL_TAPS = (1 << TAPS) - 1
MAX_BITS = 16
MAX_ENTRIES = 65535  #: greatest ``rows`` of LOAD W, LOAD E and READ: whatever 16 bits hold
ACCUMULATOR_BITS = 48
ACCUMULATOR_LIMIT = 1 << (ACCUMULATOR_BITS - 1)  #: sums of this magnitude and beyond do not fit an accumulator
INT32_LIMIT = 1 << 31  #: likewise a 32-bit result

# the epilogue: an entry's numbers, what its values may be, and how codes leave
ENTRY_WORDS = 4  #: 64-bit words of an epilogue entry
MULTIPLIER_BITS = 18  #: signed width of an entry's four multipliers: m, o, n, l
OFFSET_BITS = 48  #: signed width of its offset b
VALUE_OFFSET_BITS = 40  #: signed width of its offset c
OPERAND_SHIFT = 9  #: elements of SIDE and ADDED count 2**9 times their multiplier
VALUE_BITS = 18  #: signed width of the values x and w
MAX_SHIFT = 47  #: of ``shift`` and ``value_shift``
MAX_SIDE_BITS = 8  #: widest element of SIDE and ADDED, widest code of the sections KEEP and WIDE
MAX_CODE_SHIFT = 16  #: of ``out_shift``, ``keep_shift`` and ``wide_shift``
SECTION_PLANES = 25  #: most planes that a tile of CODES sends
MOMENT_WORDS = 3  #: 64-bit words of a channel's moments
SUM_BITS = 39  #: signed sum of a channel's values over a packet: 64 * 1024 * 32 values of 18 bits
PRODUCT_BITS = 57  #: signed sum of as many products of two values
GF_POLYNOMIAL = 0x1100B  #: x^16 + x^12 + x^3 + x + 1 of GF(2^16), in which the random numbers of a segment are made


class Opcode(IntEnum):
    """What a packet asks for."""

    LOAD = 1  #: fill an on-chip buffer from the payload
    CONV = 2  #: 3x3 convolution: output or input gradient, results leave on the output stream
    WGRAD = 3  #: weight gradient, accumulated on chip
    READ = 4  #: send accumulated weight gradients
    END = 15  #: last packet of a program


class Target(IntFlag):
    """Buffers that a LOAD writes."""

    A = 1  #: first operand (activations, or output gradient of an input-gradient product), at ``base_a``
    G = 2  #: output gradient of a weight-gradient product, or a CONV's operands SIDE and ADDED, at ``base_b``
    W = 4  #: weights, at ``base_b``
    E = 8  #: epilogue entries, at ``base_epilogue``


class OutputFormat(IntEnum):
    """How results leave."""

    INT32 = 0
    INT64 = 1
    CODES = 2  #: sections of packed bit planes after the integer epilogue, in the layout that LOAD takes
    MOMENTS = 3  #: sum, sum of products, minimum and maximum of every output channel instead of the output


class Flag(IntFlag):
    """Bits of the ``flags`` field."""

    A_SIGNED = 1
    B_SIGNED = 2
    STOCHASTIC = 4  #: CONV CODES: stochastic rounding
    ONES = 8  #: WGRAD: one extra channel group of ones, whose products are the sums of the output gradient
    RELU = 16  #: CONV CODES: negative values become zero before rounding
    A_SUM = 32  #: CONV INT32/INT64: send the sums of the first operand too
    CLEAR = 64  #: WGRAD: overwrite the accumulators instead of adding to them
    OUT_SIGNED = 128  #: CONV CODES: two's complement codes
    STRIDE_2 = 256  #: CONV: output pixels step by two; rows of A hold the even and the odd columns in turn
    SKIP_ZERO = 512  #: CONV, WGRAD: planes of A (and G) that are zero in the buffer are skipped as well
    SIDE_SIGNED = 1024  #: CONV CODES/MOMENTS: elements of SIDE are two's complement
    MASKED = 2048  #: CONV CODES/MOMENTS: SIDE has a mask plane on top; where it is 0 the element's sum becomes zero
    KEEP_MASK = 4096  #: CONV CODES: send the mask of the positive values too
    CROSS = 8192  #: CONV MOMENTS: products with the elements of SIDE instead of squares
    RECORDS = 16384  #: CONV CODES: the moments of the values follow the codes


class Error(IntEnum):
    """Why a program stopped, in the order in which a header is checked."""

    NONE = 0
    BAD_MAGIC = 1  #: magic number or version
    BAD_CHECK = 2  #: header checksum
    BAD_OPCODE = 3
    BAD_FIELD = 4  #: flag, format, target or reserved bit that the operation does not have
    BAD_BITS = 5  #: precision or shift outside its range, or more than 25 planes of codes
    BAD_SHAPE = 6  #: dimension zero or beyond its limit
    BAD_LENGTH = 7  #: payload length differs from what the shape needs
    OUT_OF_BUFFER = 8  #: address range beyond the end of a buffer
    OVERFLOW = 9  #: bit widths and contraction length could overflow the accumulator or the output format
    # 10 is not used
    TRUNCATED = 11  #: a stream ended before the END packet
    TRAILING = 12  #: a stream goes on after the END packet
    ACCUMULATOR_RANGE = 13  #: a weight gradient left the accumulator's or the output format's range


@dataclass(frozen=True)
class Field:
    """One header field: ``width`` bits at bit ``lsb`` of 32-bit half-word ``half``."""

    name: str
    half: int
    lsb: int
    width: int
    doc: str


FIELDS: tuple[Field, ...] = (
    Field("magic", 0, 0, 16, "0xF7AC"),
    Field("version", 0, 16, 8, "contract version"),
    Field("opcode", 0, 24, 8, "operation"),
    Field("payload_words", 1, 0, 32, "64-bit words that follow the header"),
    Field("rows", 2, 0, 16, "rows of a virtual image; LOAD W/E and READ: number of entries"),
    Field("groups", 2, 16, 16, "channel groups of the first operand"),
    Field("out_groups", 3, 0, 16, "channel groups of the output (CONV) or of the output gradient (WGRAD)"),
    Field("images", 3, 16, 16, "virtual images, one after the other in the buffer"),
    Field("a_bits", 4, 0, 8, "bits of the first operand (LOAD: of the codes written)"),
    Field("b_bits", 4, 8, 8, "bits of the second operand"),
    Field("flags", 4, 16, 16, "see flags"),
    Field("base_a", 5, 0, 16, "first address in buffer A"),
    Field("base_b", 5, 16, 16, "first address in buffer W (CONV, LOAD W) or G (WGRAD, LOAD G)"),
    Field("target", 6, 0, 8, "buffers that a LOAD writes"),
    Field("format", 6, 8, 8, "output format"),
    Field("out_bits", 6, 16, 8, "bits of an output code"),
    Field("shift", 6, 24, 8, "right shift of the epilogue"),
    Field("segment_start", 7, 0, 32, "bit p set: an image's row starts at pixel p of the virtual row"),
    Field("a_planes", 8, 0, 16, "bit i set: plane i of the first operand is computed, else skipped as zero"),
    Field("b_planes", 8, 16, 16, "bit j set: plane j of the second operand is computed, else skipped as zero"),
    Field("side_bits", 9, 0, 8, "bits of an element of SIDE, 0: none; its mask plane comes on top"),
    Field("added_bits", 9, 8, 8, "bits of an element of ADDED, 0: none"),
    Field("keep_bits", 9, 16, 8, "bits of a code of the section KEEP, 0: none"),
    Field("wide_bits", 9, 24, 8, "bits of a code of the section WIDE, 0: none"),
    Field("value_shift", 10, 0, 8, "right shift from products of x to the value w"),
    Field("out_shift", 10, 8, 8, "right shift from the value w to the code"),
    Field("keep_shift", 10, 16, 8, "right shift from x to a code of KEEP"),
    Field("wide_shift", 10, 24, 8, "right shift from the value w to a code of WIDE"),
    Field("key", 11, 0, 32, "key of the stochastic rounding"),
    Field("index", 12, 0, 32, "random index of the segment at row 0, channel 0, segment 0"),
    Field("base_accumulator", 13, 0, 16, "first entry in the accumulator memory"),
    Field("base_epilogue", 13, 16, 16, "first entry in the epilogue memory"),
    Field("channel_stride", 14, 0, 32, "random index step to the next channel"),
    Field("image_stride", 15, 0, 32, "random index step to the next segment of the virtual row"),
    Field("row_stride", 16, 0, 32, "random index step to the next row"),
    Field("valid", 17, 0, 32, "bit p set: pixel p of a virtual row counts in the moments"),
    Field("taps", 18, 0, 16, "bit 3*ky + kx set: WGRAD computes this kernel position"),
    Field("factor", 18, 16, 16, "2 to the power of a segment's first pixel in GF(2^16)"),
    Field("base_side", 19, 0, 16, "first address of SIDE in buffer G"),
    Field("base_added", 19, 16, 16, "first address of ADDED in buffer G"),
    Field("first_row", 20, 0, 16, "first row that counts in the moments"),
    Field("last_row", 20, 16, 16, "row behind the last that counts in the moments"),
    Field("check", 23, 0, 32, "exclusive or of 0x5EEDF7AC and all other half-words"),
)
FIELD = {f.name: f for f in FIELDS}

#: of each half-word, the bits that belong to a field; all others must be zero
FIELD_BITS = tuple(sum((1 << f.width) - 1 << f.lsb for f in FIELDS if f.half == half) for half in range(HEADER_HALVES))

#: greatest value of each dimension; the least is 1
LIMITS = {"rows": 1024, "groups": 64, "out_groups": 64, "images": 64}

#: least and greatest value of a precision or shift, wherever the field is in use; outside it is BAD_BITS
CODE_RANGES = {
    "a_bits": (1, MAX_BITS),
    "b_bits": (1, MAX_BITS),
    "out_bits": (1, MAX_BITS),
    "shift": (0, MAX_SHIFT),
    "value_shift": (0, MAX_SHIFT),
    **dict.fromkeys(("side_bits", "added_bits", "keep_bits", "wide_bits"), (0, MAX_SIDE_BITS)),
    **dict.fromkeys(("out_shift", "keep_shift", "wide_shift"), (0, MAX_CODE_SHIFT)),
}

#: fields that say which rows and pixels count in the moments
MOMENT_FIELDS = ("valid", "first_row", "last_row")

#: fields in use beside a kind's own wherever a flag is set
FLAG_FIELDS: dict[Flag, tuple[str, ...]] = {
    Flag.STOCHASTIC: ("key", "index", "channel_stride", "image_stride", "row_stride", "factor"),
    Flag.RECORDS: MOMENT_FIELDS,
}

#: fields in use in every packet
COMMON_FIELDS = ("magic", "version", "opcode", "payload_words", "check")


_NO_TARGET = Target(0)
_NO_FLAGS = Flag(0)


@dataclass(frozen=True)
class PacketKind:
    """Packets of one operation, target and format: what their headers hold.  All other bits must be zero (BAD_FIELD).

    Attributes:
        opcode, target, format: values of these fields, which name the kind.
        fields: in use, beside ``COMMON_FIELDS``, ``flags`` if there are any, and the ``FLAG_FIELDS`` of those set.
        flags: that a packet may carry; STOCHASTIC only in a design with ``rounding``.
        most: greatest value of each dimension, the least is 1; outside it is BAD_SHAPE.
    """

    opcode: Opcode
    target: Target = _NO_TARGET
    format: int = 0
    fields: tuple[str, ...] = ()
    flags: Flag = _NO_FLAGS
    most: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Such as LOAD_AG, LOAD_W, CONV_CODES, WGRAD, READ_INT64, END."""
        parts = [self.opcode.name, "".join(t.name or "" for t in Target if t & self.target)]
        if self.opcode in (Opcode.CONV, Opcode.READ):
            parts.append(OutputFormat(self.format).name)
        return "_".join(part for part in parts if part)


_DIMENSIONS = ("rows", "groups", "out_groups", "images")
_PRODUCT = (*_DIMENSIONS, "a_bits", "b_bits", "base_a", "base_b", "segment_start", "a_planes", "b_planes")
_EPILOGUE = ("base_epilogue", "shift", "side_bits", "added_bits", "base_side", "base_added")
_SECTIONS = ("out_bits", "out_shift", "keep_bits", "keep_shift", "wide_bits", "wide_shift")
_SIGNS = Flag.A_SIGNED | Flag.B_SIGNED
_SIDE = Flag.SIDE_SIGNED | Flag.MASKED
_TENSOR_BASES = {Target.A: ("base_a",), Target.G: ("base_b",), Target.A | Target.G: ("base_a", "base_b")}
_ENTRIES = {"rows": MAX_ENTRIES, "groups": 1, "out_groups": 1, "images": 1}


def _conv(form: OutputFormat, fields: tuple[str, ...] = (), flags: Flag = _NO_FLAGS) -> PacketKind:
    flags |= _SIGNS | Flag.STRIDE_2 | Flag.SKIP_ZERO
    return PacketKind(Opcode.CONV, _NO_TARGET, form, (*_PRODUCT, *fields), flags, LIMITS)


_KINDS = (
    *(
        PacketKind(Opcode.LOAD, target, fields=(*_DIMENSIONS, "a_bits", *bases), most={**LIMITS, "out_groups": 1})
        for target, bases in _TENSOR_BASES.items()
    ),
    PacketKind(Opcode.LOAD, Target.W, fields=(*_DIMENSIONS, "base_b"), most=_ENTRIES),
    PacketKind(Opcode.LOAD, Target.E, fields=(*_DIMENSIONS, "base_epilogue"), most=_ENTRIES),
    _conv(OutputFormat.INT32, flags=Flag.A_SUM),
    _conv(OutputFormat.INT64, flags=Flag.A_SUM),
    _conv(
        OutputFormat.CODES,
        (*_EPILOGUE, "value_shift", *_SECTIONS),
        _SIDE | Flag.RELU | Flag.OUT_SIGNED | Flag.STOCHASTIC | Flag.KEEP_MASK | Flag.RECORDS,
    ),
    _conv(OutputFormat.MOMENTS, (*_EPILOGUE, *MOMENT_FIELDS), _SIDE | Flag.CROSS),
    PacketKind(
        Opcode.WGRAD,
        fields=(*_PRODUCT, "base_accumulator", "taps"),
        flags=_SIGNS | Flag.ONES | Flag.CLEAR | Flag.SKIP_ZERO,
        most=LIMITS,
    ),
    *(
        PacketKind(Opcode.READ, _NO_TARGET, form, ("rows", "base_accumulator"), most={"rows": MAX_ENTRIES})
        for form in (OutputFormat.INT32, OutputFormat.INT64)
    ),
    PacketKind(Opcode.END),
)
#: every packet that there is, by opcode, target and format
PACKETS: dict[tuple[int, int, int], PacketKind] = {(k.opcode, k.target, k.format): k for k in _KINDS}


def pack_header(**values: int) -> list[int]:
    """Header of one packet as ``HEADER_WORDS`` 64-bit words.

    Magic, version and check are filled in unless given; every other absent field is zero.

    Raises:
        ValueError: a value does not fit its field, or a name is unknown.
    """
    values = {"magic": MAGIC, "version": VERSION, **values}
    halves = [0] * HEADER_HALVES
    for name, value in values.items():
        if name not in FIELD:
            raise ValueError(f"packet header has no field {name!r}; fields: {', '.join(FIELD)}")
        f = FIELD[name]
        if not 0 <= value < 1 << f.width:
            raise ValueError(f"{name} = {value} does not fit its {f.width} bits")
        halves[f.half] |= int(value) << f.lsb
    if "check" not in values:
        halves[-1] = header_check(halves)
    return [halves[2 * i] | halves[2 * i + 1] << 32 for i in range(HEADER_WORDS)]


def header_check(halves: list[int]) -> int:
    """Checksum over all half-words but the last."""
    check = CHECK_SEED
    for half in halves[:-1]:
        check ^= half
    return check


def unpack_header(words: Sequence[int]) -> dict[str, int]:
    """Fields of a header given as 64-bit words."""
    halves = [(int(w) >> s) & 0xFFFFFFFF for w in words for s in (0, 32)]
    return {f.name: halves[f.half] >> f.lsb & ((1 << f.width) - 1) for f in FIELDS}


@dataclass(frozen=True)
class Register:
    """One AXI4-Lite register, laid out as a Vitis HLS block does (arguments from 0x10)."""

    name: str
    offset: int
    access: str
    doc: str


REGISTERS: tuple[Register, ...] = (
    Register(
        "CTRL", 0x00, "rw", "bit 0 start, 1 done (cleared by reading), 2 idle, 3 ready, 7 auto-restart (not used)"
    ),
    Register("GIE", 0x04, "rw", "bit 0: global interrupt enable"),
    Register("IER", 0x08, "rw", "bit 0: interrupt on done, bit 1: on ready"),
    Register("ISR", 0x0C, "rw", "pending interrupts, write one to toggle"),
    Register("SOFT_RESET", 0x10, "rw", "write 1: abandon the program, empty queues and pipelines, back to idle"),
    Register("HASH_LO", 0x18, "r", "design hash, low half"),
    Register("HASH_HI", 0x20, "r", "design hash, high half"),
    Register(
        "CONTRACT",
        0x28,
        "r",
        "contract version, bits 7..0; channels per group, 15..8; bits of a stream, 23..16; output streams, 31..24",
    ),
    Register("ERROR", 0x30, "r", "error code of the last program"),
    Register("POSITION", 0x38, "r", "index of the packet that stopped the last program"),
    Register("PACKETS", 0x40, "r", "counter: packets done"),
    Register("CYCLES", 0x48, "r", "counter: clock cycles from start to done"),
    Register(
        "BUSY",
        0x50,
        "r",
        "counter: cycles in which the array computed",
    ),
    Register("STALL_IN", 0x58, "r", "counter: cycles in which the loader waited for a stream"),
    Register("STALL_HAZARD", 0x60, "r", "counter: cycles in which the loader waited for the array"),
    Register("STALL_OUT", 0x68, "r", "counter: cycles in which a result waited for the output stream"),
    Register("STALL_DRAIN", 0x70, "r", "counter: cycles in which the array waited for results to drain"),
    Register("SKIPPED", 0x78, "r", "counter: array cycles saved by skipped planes"),
    Register("SATURATED", 0x80, "r", "counter: values x and output codes that the epilogue clamped"),
    Register("WORDS_IN", 0x88, "r", "counter: 64-bit words taken from the input streams"),
    Register("WORDS_OUT", 0x90, "r", "counter: 64-bit words sent, trailer included"),
)
REGISTER = {r.name: r for r in REGISTERS}

# programs in memory: records that say where packets, payloads and results lie; docs/programs.md says what they mean
MEMORY_PORTS = (
    2  #: memory ports, one for each input stream; even 64-bit words lie behind port 0, odd ones behind port 1
)
LINE_BEATS = 16  #: no burst crosses a line of as many beats
RECORD_WORDS = 16  #: words of a record at each port, at a multiple of as many beats: one burst
RECORD_HEADER_WORDS = HEADER_WORDS // MEMORY_PORTS  #: of which the first are the port's half of the packet's header
DESTINATIONS = 3  #: places to which a packet's results go in turn

#: fields behind the header; both ports have the same, so word w holds the half-words 2w and 2w + 1 at either
RECORD_FIELDS: tuple[Field, ...] = (
    Field("payload_offset", 12, 0, 32, "first beat of the payload"),
    Field("payload_beats", 13, 0, 32, "beats of a chunk of the payload, 0: no payload"),
    Field("payload_stride", 14, 0, 32, "beats from one chunk's start to the next one's"),
    Field("payload_chunks", 15, 0, 16, "chunks of the payload, 0: no payload"),
    Field("record_flags", 15, 16, 16, "see flags of a record"),
    Field("offset_0", 16, 0, 32, "destination 0: first beat"),
    Field("beats_0", 17, 0, 16, "destination 0: beats of a tile, 0: none"),
    Field("offset_1", 18, 0, 32, "destination 1: first beat"),
    Field("beats_1", 19, 0, 16, "destination 1: beats of a tile, 0: none"),
    Field("offset_2", 20, 0, 32, "destination 2: first beat"),
    Field("beats_2", 21, 0, 16, "destination 2: beats of a tile, 0: none"),
    Field("stride_0", 22, 0, 32, "destination 0: beats from one row's start to the next one's"),
    Field("stride_1", 23, 0, 32, "destination 1: beats from one row's start to the next one's"),
    Field("stride_2", 24, 0, 32, "destination 2: beats from one row's start to the next one's"),
    Field("result_rows", 26, 0, 32, "rows of tiles, 0: no tiles"),
    Field("row_tiles", 27, 0, 16, "tiles of a row, 0: no tiles"),
    Field("tail_offset", 28, 0, 32, "first beat of the results that follow the tiles"),
    Field("tail_beats", 29, 0, 32, "beats of the results that follow the tiles, 0: none"),
)
RECORD_FIELD = {f.name: f for f in RECORD_FIELDS}


class RecordFlag(IntFlag):
    """Bits of a record's ``record_flags``."""

    LAST = 1  #: the program ends with this record: its last word carries TLAST
    WAIT = 2  #: its payload is read after all results of the records before it have been written


#: bits of each word of a record behind the header that mean something; all others must be zero (fault RANGE)
RECORD_BITS = tuple(
    sum(
        (sum(RecordFlag) if f.name == "record_flags" else (1 << f.width) - 1) << f.lsb + 32 * (f.half % 2)
        for f in RECORD_FIELDS
        if f.half // 2 == word
    )
    for word in range(RECORD_WORDS)
)


class Fault(IntEnum):
    """Why the memory front end stopped a program."""

    NONE = 0
    READ_SLVERR = 1
    READ_DECERR = 2
    WRITE_SLVERR = 3
    WRITE_DECERR = 4
    RANGE = 5  #: an access at or beyond LIMIT, which was not made; a record that is not aligned or sets reserved bits
    RESULTS = 6  #: more or fewer results than the records say, without an error of the core
    DEADLINE = 7
    STOPPED = 8  #: by STOP


class MemoryStatus(IntFlag):
    """Bits of the register STATUS."""

    IDLE = 1
    DONE = 2  #: a program has ended, well or not; cleared by start
    DRAINING = 4  #: a fault has stopped the program, and accesses that were begun are still open


class MemoryInterrupt(IntFlag):
    """Bits of the register INTERRUPT: the line to the processor is high while both are set."""

    ENABLE = 1
    PENDING = 2  #: a program has ended, well or not, since it was cleared; write 1 to clear


MEMORY_REGISTERS: tuple[Register, ...] = (
    Register("START", 0x100, "w", "write 1: start the core and run the program, if idle"),
    Register("STOP", 0x108, "w", "write 1: end the program with fault STOPPED"),
    Register(
        "STATUS", 0x110, "r", "bit 0 idle; 1 done, cleared by start; 2 draining: a fault waits for open accesses to end"
    ),
    Register("FAULT", 0x118, "r", "fault of the last program"),
    Register(
        "FAULT_OFFSET",
        0x120,
        "r",
        "in beats: the word of a failed read, the burst of a failed write, the access beyond LIMIT, the bad record, the "
        "result that is missing; otherwise 0",
    ),
    Register("INTERRUPT", 0x128, "rw", "bit 0 enable; 1 pending since a program ended, write 1 to clear"),
    Register("BASE0_LO", 0x130, "rw", "byte address of beat 0 at port 0, a multiple of 4096: low half"),
    Register("BASE0_HI", 0x138, "rw", "its high half"),
    Register("BASE1_LO", 0x140, "rw", "byte address of beat 0 at port 1, a multiple of 4096: low half"),
    Register("BASE1_HI", 0x148, "rw", "its high half"),
    Register("LIMIT", 0x150, "rw", "beats of the memory, a multiple of 16"),
    Register("PROGRAM", 0x158, "rw", "first record, in beats, a multiple of 16"),
    Register("DEADLINE", 0x160, "rw", "cycles after which a program ends with fault DEADLINE, 0: none"),
    Register("READ_BEATS", 0x168, "r", "counter: 64-bit words read, both ports together"),
    Register("WRITE_BEATS", 0x170, "r", "counter: 64-bit words written, both ports together"),
    Register(
        "READ_WAIT",
        0x178,
        "r",
        "counter: cycles in which a port had reads open and no word for the core, both together",
    ),
    Register("WRITE_WAIT", 0x180, "r", "counter: cycles in which a result waited for room in a port, both together"),
)
MEMORY_REGISTER = {r.name: r for r in MEMORY_REGISTERS}
MEMORY_COUNTERS = tuple(r.name for r in MEMORY_REGISTERS if r.doc.startswith("counter"))

#: counters that every device answers alike, and those that only hardware can know
FUNCTIONAL_COUNTERS = ("PACKETS", "SKIPPED", "SATURATED", "WORDS_IN", "WORDS_OUT")
TIMING_COUNTERS = ("CYCLES", "BUSY", "STALL_IN", "STALL_HAZARD", "STALL_OUT", "STALL_DRAIN")


def array_idle(counters: Mapping[str, float]) -> float:
    """Cycles in which the array had no step to do: ``CYCLES - BUSY - STALL_DRAIN``.

    The array computes (BUSY), holds a tile's last step back until the drain is free (STALL_DRAIN), or has none: it waits
    for a load, a packet is set up or searched for zero planes, or READ and END run (states of hw/rtl/sequencer.sv other
    than RUN).  The three add up to CYCLES.  STALL_IN and STALL_HAZARD are the loader's, STALL_OUT the output stream's:
    these count beside the array's and may overlap with any of them.
    """
    return counters["CYCLES"] - counters["BUSY"] - counters["STALL_DRAIN"]
