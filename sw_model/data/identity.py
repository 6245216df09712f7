"""What a run was trained on, as its checkpoints keep it, so that a resumed run does not go on with other data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sw_model.data.sources import DataError


@dataclass(frozen=True)
class Identity:
    """Data that is trained and tested on.

    Attributes:
        train, test: how many inputs (images) or words there are.
        classes: names; none of a text.
        digest: SHA-256 of it all, in hexadecimal.
    """

    train: int
    test: int
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, train: int, test: int, classes: tuple[str, ...], contents: Iterable[np.ndarray | str]) -> Identity:
        """Of data with these contents, in order."""
        digest = hashlib.sha256(repr((train, test, classes)).encode())
        for part in contents:
            if isinstance(part, str):
                digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
            else:
                digest.update(f"{part.dtype.str}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        return cls(train, test, classes, digest.hexdigest())

    def record(self) -> dict[str, Any]:
        """Plain values, for :meth:`check_same`."""
        return {**asdict(self), "classes": list(self.classes)}

    def check_same(self, record: dict[str, Any]) -> None:
        """Refuses to go on with a run that was trained on other data.

        Args:
            record: of the run, see :meth:`record`.

        Raises:
            DataError: it was; the message says what is different.
        """
        now = self.record()
        if now == record:
            return
        differences = [
            f"{record.get(name)} {what}, now {now[name]}"
            for name, what in (("train", "for training"), ("test", "for testing"))
            if now[name] != record.get(name)
        ]
        if now["classes"] != (before := list(record.get("classes", ()))):
            gone, new = sorted(set(before) - set(now["classes"])), sorted(set(now["classes"]) - set(before))
            differences.append(f"classes {', '.join(gone[:5]) or 'none'} gone, {', '.join(new[:5]) or 'none'} new")
        found = "; ".join(differences) or "as many, but others or in other classes"
        raise DataError(
            f"the run was trained on other data ({found}); restore the data, or train in another folder with init "
            "naming this one to start from its weights"
        )
