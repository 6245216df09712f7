"""Records of packets: their words, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.devices.memory import record_words
from hw.contract import RECORD_FIELDS, RECORD_WORDS, Opcode, OutputFormat, RecordFlag, Target
from hw.design import load_design
from hw.packet import END, load_tensor, product
from hw.plan.records import NOWHERE, Chunks, Destination, Record, RecordError, section_planes, tail_beats

DESIGN = load_design("sim-small")
LOAD = load_tensor(DESIGN, Target.A, 2, 3, 2, 4)
CODES = product(
    Opcode.CONV, images=2, rows=3, groups=1, out_groups=2, a_bits=3, b_bits=2, format=OutputFormat.CODES, out_bits=4,
    keep_bits=3, wide_bits=5, flags=1 << 12,
)  # fmt: skip
HALF, WORD = st.integers(0, (1 << 16) - 1), st.integers(0, (1 << 32) - 1)
DESTINATION = st.builds(Destination, WORD, HALF, WORD)
RECORD = st.builds(
    Record, st.sampled_from([LOAD, CODES, END]), st.builds(Chunks, WORD, WORD, WORD, HALF),
    st.tuples(DESTINATION, DESTINATION, DESTINATION), WORD, HALF, st.tuples(WORD, WORD), st.sampled_from(list(RecordFlag)),
)  # fmt: skip


def good(packet_planes: tuple[int, ...] = (4, 4, 5)) -> Record:
    beats = DESIGN.row_words // 2
    first, second, third = (Destination(i * 1000, n * beats, 2 * n * beats) for i, n in enumerate(packet_planes))
    return Record(CODES, destinations=(first, second, third), rows=6, row_tiles=2)


@given(RECORD)
def test_a_record_is_what_its_words_say(record: Record) -> None:
    words = record.pack()
    assert [len(port) for port in words] == [RECORD_WORDS] * 2
    assert words[0][6:] == words[1][6:]
    assert Record.unpack(words) == record


@given(RECORD, st.integers(0, 1), st.integers(6, RECORD_WORDS - 1), st.integers(0, 63))
def test_bits_of_no_field_and_copies_that_differ_are_refused(record: Record, port: int, word: int, bit: int) -> None:
    words = record.pack()
    words[port][word] ^= 1 << bit
    with pytest.raises(RecordError, match="differ between the ports"):
        Record.unpack(words)
    words[1 - port][word] ^= 1 << bit
    used = any(f.half == 2 * word + bit // 32 and f.lsb <= bit % 32 < f.lsb + f.width for f in RECORD_FIELDS)
    flags = word == 7 and bit >= 50
    if used and not flags:
        assert Record.unpack(words).pack() == words
    else:
        with pytest.raises(RecordError, match=r"no field|no flag"):
            Record.unpack(words)


def test_what_a_tile_sends_has_a_place_each() -> None:
    assert section_planes(CODES) == (4, 4, 5)
    assert tail_beats(DESIGN, CODES) == 0
    assert good().check(DESIGN, 3000) == ""
    assert sum(beats for _, beats in good().writes()) == good().result_beats == CODES.result_words(DESIGN) // 2


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record(LOAD), "words of payload, 0 are named"),
        (Record(LOAD, Chunks(0, LOAD.payload_words // 2, 0, 1), flags=RecordFlag.LAST), "LAST belongs to"),
        (Record(END), "LAST belongs to"),
        (Record(LOAD, Chunks(100, LOAD.payload_words // 2, 0, 1)), "the memory has 128"),
        (Record(LOAD, Chunks(-1, LOAD.payload_words // 2, 0, 1)), "payload_offset = -1 does not fit"),
        (replace(good(), rows=5), "have a place"),
        (replace(good(), destinations=(NOWHERE, *good().destinations[1:])), "have a place"),
        (good(), "the memory has 128"),
    ],
)
def test_records_that_do_not_fit_their_packet_are_named(record: Record, words: str) -> None:
    assert words in record.check(DESIGN, 128)


def test_values_beyond_their_field_are_not_packed() -> None:
    with pytest.raises(RecordError, match="row_tiles = 65536 does not fit its 16 bits"):
        record_words([replace(good(), row_tiles=1 << 16)])
