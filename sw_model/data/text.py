"""Text for language models: WikiText and any other folder of plain token files, one vocabulary entry per word.

Words are what white space separates (WikiText comes tokenized so), every line ends with ``<eos>``.  The vocabulary is
that of the training text; words outside it count as ``<unk>``, in the test text too, so perplexities compare only
between runs with the same vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sw_model.data.identity import Identity
from sw_model.data.images import WHOLE, BatchPart, DataError

UNKNOWN, END = "<unk>", "<eos>"
#: Names of the parts' files, in the packings of WikiText-2 and WikiText-103.
NAMES = {part: (f"wiki.{part}.tokens", f"wiki.{part}.raw", f"{part}.txt") for part in ("train", "valid", "test")}


@dataclass(frozen=True)
class TokenSet:
    """A training and a test text as word numbers.

    Attributes:
        train_tokens, test_tokens: int64 (count,).
        vocabulary: words by number.
        context: words per sequence.
        vary: whether every epoch cuts the training text at other places.
    """

    train_tokens: np.ndarray
    test_tokens: np.ndarray
    vocabulary: tuple[str, ...]
    context: int
    vary: bool = True

    def __post_init__(self) -> None:
        for name, tokens, least in (
            ("training", self.train_tokens, 2 * self.context),
            ("test", self.test_tokens, 2),
        ):
            if len(tokens) < least:
                raise DataError(
                    f"the {name} text has {len(tokens)} words, a context of {self.context} needs at least {least}"
                )

    @property
    def train_count(self) -> int:
        """Training sequences per epoch: every cut leaves as many."""
        return len(self.train_tokens) // self.context - 1

    def limited(self, train: int = 0, test: int = 0) -> TokenSet:
        """The first ``train`` and ``test`` sequences (0: all)."""

        def cut(tokens: np.ndarray, sequences: int, more: int) -> np.ndarray:
            return tokens[: sequences * self.context + more] if sequences else tokens

        # One sequence more than asked for in training, which the varying cut uses up.
        return replace(
            self,
            train_tokens=cut(self.train_tokens, train, self.context),
            test_tokens=cut(self.test_tokens, test, 1),
        )

    def unaugmented(self) -> TokenSet:
        """The same text, cut at the same places in every epoch."""
        return replace(self, vary=False)

    def identity(self) -> Identity:
        """What this text is."""
        contents: list[np.ndarray | str] = [self.train_tokens, self.test_tokens, *self.vocabulary]
        return Identity.of(len(self.train_tokens), len(self.test_tokens), (), contents)

    def inputs(self) -> None:
        """A network for text takes no images."""

    def train_steps(self, batch: int) -> int:
        """Batches per epoch; the last one may be smaller."""
        return -(-self.train_count // batch)

    def train_batches(
        self, batch: int, seed: int, epoch: int, start: int = 0, part: BatchPart = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of shuffled batches of an epoch from batch ``start``: words and the words that follow, int64 (n, T).

        A function of (seed, epoch): the order of the sequences, and where the first one begins.
        """
        rng = np.random.default_rng((seed, epoch))
        first = int(rng.integers(self.context)) if self.vary else 0
        order = rng.permutation(self.train_count)
        for index in range(start, self.train_steps(batch)):
            chosen = order[index * batch : (index + 1) * batch]
            starts = first + chosen[part.rows(len(chosen))] * self.context
            words = torch.from_numpy(self.train_tokens[starts[:, None] + np.arange(self.context + 1)])
            yield words[:, :-1], words[:, 1:]

    def test_batches(self, batch: int, part: BatchPart = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of the test text in order.

        Every word is predicted once; what the sequences leave makes a last, shorter one, of the last part.
        """
        words = torch.from_numpy(self.test_tokens)
        whole = (len(words) - 1) // self.context
        x = words[: whole * self.context].reshape(whole, self.context)
        y = words[1 : whole * self.context + 1].reshape(whole, self.context)
        own = part.rows(whole)
        for first in range(own.start, own.stop, batch):
            rows = slice(first, min(first + batch, own.stop))
            yield x[rows], y[rows]
        if part.rank + 1 == part.size and whole * self.context < len(words) - 1:
            yield words[None, whole * self.context : -1], words[None, whole * self.context + 1 :]


def load_text(source: str, context: int, vocabulary: int = 0) -> TokenSet:
    """The text that ``source``, a folder, holds.

    Takes ``wiki.train.tokens``, ``wiki.train.raw`` or ``train.txt``, and likewise ``valid`` and ``test``.  Training uses
    the training text and, if there is none, the validation text (a warning says so); the test text is ``test`` or, if
    there is none, ``valid``.

    Args:
        source: the folder.
        context: words per sequence.
        vocabulary: number of entries, the most frequent words of the training text after ``<unk>`` and ``<eos>``;
            0 takes all words.

    Raises:
        DataError: if files are missing, empty or not UTF-8.
    """
    folder = Path(source).expanduser()
    if not source.strip() or not folder.is_dir():
        raise DataError(f"text {source!r} is not a folder; a language model needs one with train.txt and test.txt")
    files = {
        part: next((folder / name for name in names if (folder / name).is_file()), None)
        for part, names in NAMES.items()
    }
    train, test = files["train"] or files["valid"], files["test"] or files["valid"]
    if train is None or test is None or train == test:
        wanted = "; ".join(" or ".join(NAMES[part]) for part in ("train", "test"))
        raise DataError(f"{folder} lacks a training or a test text; it needs {wanted} (valid may stand in for one)")
    if files["train"] is None:
        warnings.warn(f"{folder} has no training text: training on the validation text, {train.name}", stacklevel=2)
    texts = {path: _read(path) for path in (train, test)}
    tokens, words = texts[train]
    counts = dict(zip(words, np.bincount(tokens).tolist(), strict=True))
    # Frequency, then spelling: the numbers do not depend on the order of the text.
    ranked = sorted((w for w in words if w not in (UNKNOWN, END)), key=lambda w: (-counts[w], w))
    entries = (UNKNOWN, END, *(ranked[: vocabulary - 2] if vocabulary else ranked))
    numbers = {word: number for number, word in enumerate(entries)}
    coded = {
        path: np.array([numbers.get(w, 0) for w in words], dtype=np.int64)[tokens]
        for path, (tokens, words) in texts.items()
    }
    return TokenSet(coded[train], coded[test], entries, context)


def _read(path: Path) -> tuple[np.ndarray, list[str]]:
    """A text as numbers, int64, and the words that they stand for, in the order of their first occurrence.

    As strings the words of WikiText-103 would take 6 GB, so they are never all there.
    """
    numbers: dict[str, int] = {}

    def occurrences() -> Iterator[int]:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                for word in (*line.split(), END):
                    yield numbers.setdefault(word, len(numbers))

    try:
        tokens = np.fromiter(occurrences(), np.int64)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); unpack it again") from error
    if not len(tokens):
        raise DataError(f"{path} is empty; download it again")
    return tokens, list(numbers)
