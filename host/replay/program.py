"""Programs of passes in a device's memory: copies of their records, with the words that change from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from host.arrays import U64
from host.devices.memory import record_words
from host.driver.memory_views import Arena, MemoryArea
from host.driver.pass_template import Template
from host.step.passes import HEADER_VALUES
from hw.contract import FIELD, MEMORY_PORTS, RECORD_FIELD, RECORD_WORDS, RecordFlag
from hw.packet import END
from hw.plan.records import Record

#: of records, word and bit at which the flag WAIT stands, at either port
_FLAGS = RECORD_FIELD["record_flags"]
_WAIT_WORD = _FLAGS.half // 2
_WAIT = np.uint64(int(RecordFlag.WAIT) << 32 * (_FLAGS.half % 2) + _FLAGS.lsb)


class PassProgram:
    """Templates that run one after the other, and END: a copy of their records, with the words that changed.

    Args:
        owner: who keeps it.
    """

    def __init__(self, arena: Arena, templates: tuple[Template, ...], owner: object) -> None:
        self.templates = templates
        end = record_words([Record(END, flags=RecordFlag.LAST)]).reshape(1, RECORD_WORDS, MEMORY_PORTS)
        self._starts = np.cumsum([0, *(len(t.words) for t in templates)]).tolist()
        self.words = np.concatenate([*(t.words for t in templates), end])
        self.area = arena.area(("program", id(owner), *map(id, templates)), len(self.words) * RECORD_WORDS)
        self._patches: list[tuple[int, ...] | None] = [None] * len(templates)
        self._wait()

    def _wait(self) -> None:
        """A record that reads what the program has written waits for it; those behind it need not."""
        pending: set[MemoryArea] = set()
        for start, template in zip(self._starts, self.templates, strict=False):
            for record, area in template.reads:
                if area in pending:
                    self.words[start + record, _WAIT_WORD] |= _WAIT
                    pending.clear()
            pending |= set(template.writes)

    def rows(self, number: int) -> slice:
        """Records of a template."""
        return slice(*self._starts[number : number + 2])

    def send(self, arena: Arena) -> int:
        """Writes the records that changed; returns how many words did."""
        changed = 0
        for number, template in enumerate(self.templates):
            patch, before = template.patch, self._patches[number]
            if before == patch:
                continue
            rows = self.rows(number)
            changed += patch_records(self.words[rows], template, patch)
            stop = rows.stop + (before is None and number == len(self.templates) - 1)  # END, once
            arena.write(self.area, self.words[rows.start : stop].reshape(-1), "records", rows.start * RECORD_WORDS)
            self._patches[number] = patch
        return changed


def patched_words(values: Sequence[int]) -> list[tuple[int, np.uint64]]:
    """What the values of the patched fields change in a header that has zeros there: (word, bits), its checksum too."""
    words: dict[int, int] = {}
    check_at = FIELD["check"]
    for name, value in zip(HEADER_VALUES, values, strict=True):
        place = FIELD[name]
        bits = value << place.lsb
        words[place.half // 2] = words.get(place.half // 2, 0) ^ bits << 32 * (place.half % 2)
        words[check_at.half // 2] = words.get(check_at.half // 2, 0) ^ bits << 32 * (check_at.half % 2)
    return [(word, np.uint64(bits)) for word, bits in words.items()]


def patch_records(rows: U64, template: Template, values: Sequence[int]) -> int:
    """Puts values of the patched fields into a template's records; returns how many words that are."""
    words = patched_words(values)
    for word, mask in words:
        port = word % MEMORY_PORTS
        rows[template.convs, word // MEMORY_PORTS, port] = (
            template.words[template.convs, word // MEMORY_PORTS, port] ^ mask
        )
    return len(words) * len(template.convs)
