"""Language models by recipe: text to batches, perplexity, schedules, resuming, the exact engine."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from host.exact_engine import ExactEngine
from host.training.precision_schedule import learning_rate
from sw_model.data.images import DataError
from sw_model.data.text import load_text
from sw_model.train.loop import train
from sw_model.train.metrics import ACCURACY, PERPLEXITY
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import evaluate_network, open_task
from tests.sw_model.train.test_loop import same, state_of

SENTENCES = ["the cat sat on the mat", "a dog ran to the <unk>", "", "the dog sat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.mkdir()
    (path / "wiki.train.tokens").write_text("\n".join(SENTENCES * 12) + "\n", encoding="utf-8")
    (path / "test.txt").write_text("the bird sat on a mat\n" * 5, encoding="utf-8")
    return path


def settings(folder: Path) -> TrainConfig:
    return TrainConfig(
        data=str(folder),
        model="transformer-small",
        context=8,
        batch=8,
        epochs=3,
        optimizer="adam",
        lr=3e-3,
        lr_schedule="inverse-sqrt",
        warmup=0.1,
        window=2,
        norm_epochs=2,
        stages=((4, 4, 6), (6, 6, 8), (8, 8, 8)),
        deadlines=(0, 1),
    )


def test_words_are_numbered_by_frequency_and_lines_end(folder: Path) -> None:
    data = load_text(str(folder), 8)
    assert data.vocabulary[:4] == ("<unk>", "<eos>", "the", "dog")
    first = [data.vocabulary[i] for i in data.train_tokens[:15]]
    assert first == [*SENTENCES[0].split(), "<eos>", *SENTENCES[1].split(), "<eos>", "<eos>"]
    assert data.vocabulary[int(data.test_tokens[1])] == "<unk>", "'bird' is not in the training text"
    small = load_text(str(folder), 8, vocabulary=4)
    assert small.vocabulary == data.vocabulary[:4] and small.train_tokens.max() == 3


def test_only_a_line_feed_ends_a_line(folder: Path) -> None:
    (folder / "test.txt").write_text("the cat\x0bsat\u2028on\x85the mat", encoding="utf-8")
    data = load_text(str(folder), 4)
    assert [data.vocabulary[i] for i in data.test_tokens] == ["the", "cat", "sat", "on", "the", "mat", "<eos>"]


def test_a_long_text_is_read_in_little_more_memory_than_its_numbers(tmp_path: Path) -> None:
    """WikiText-103 has 10**8 words: as many strings would take 6 GB."""
    words = 300_000
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(f"{'some words on a line ' * 20}\n" * (words // 101), encoding="utf-8")
    tracemalloc.start()
    data = load_text(str(tmp_path), 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (data.train_tokens.nbytes + data.test_tokens.nbytes)


def test_batches_hold_contiguous_text_and_every_test_word_is_predicted_once(folder: Path) -> None:
    data = load_text(str(folder), 8)
    text = data.train_tokens.tolist()
    seen: list[tuple[int, ...]] = []
    for x, y in data.train_batches(5, seed=1, epoch=0):
        assert x.shape == y.shape and x.shape[1] == 8 and (x[:, 1:] == y[:, :-1]).all()
        for row in torch.cat([x, y[:, -1:]], 1).tolist():
            assert any(text[i : i + 9] == row for i in range(len(text)))
            seen.append(tuple(row))
    assert len(seen) == data.train_count == len(text) // 8 - 1
    resumed = list(data.train_batches(5, seed=1, epoch=0, start=2))
    assert torch.equal(resumed[0][0], list(data.train_batches(5, seed=1, epoch=0))[2][0])
    predicted = torch.cat([y.flatten() for _, y in data.test_batches(2)])
    assert np.array_equal(predicted.numpy(), data.test_tokens[1:])
    cuts = [
        sorted(tuple(r.tolist()) for x, _ in d.train_batches(64, 1, e) for r in x)
        for d in (data, data.unaugmented())
        for e in (0, 1, 2)
    ]
    assert cuts[0] != cuts[1] or cuts[1] != cuts[2]
    assert cuts[3] == cuts[4] == cuts[5]
    assert data.limited(train=3, test=2).train_count == 3 and len(data.limited(test=2).test_tokens) == 17


def test_validation_text_stands_in_for_training_text_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("one two three\n" * 20)
    with pytest.raises(DataError, match="lacks a training or a test text"):
        load_text(str(tmp_path), 4)
    (tmp_path / "test.txt").write_text("one two\n" * 20)
    with pytest.warns(UserWarning, match="training on the validation text"):
        data = load_text(str(tmp_path), 4)
    assert len(data.train_tokens) == 80 and len(data.test_tokens) == 60


@pytest.mark.parametrize(("content", "text"), [(b"", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"few", "context of 8")])
def test_unusable_text_is_refused(folder: Path, content: bytes, text: str) -> None:
    (folder / "wiki.train.tokens").write_bytes(content)
    with pytest.raises(DataError, match=text):
        load_text(str(folder), 8)


def test_models_and_data_must_suit(folder: Path) -> None:
    for config in (replace(settings(folder), data="digits"), replace(settings(folder), data=str(folder / "none"))):
        with pytest.raises(DataError, match="not a folder"):
            open_task(config)
    with pytest.raises(ConfigError, match="takes images"):
        open_task(TrainConfig(), load_text(str(folder), 8))
    with pytest.raises(ValueError, match="unknown language model"):
        train(replace(settings(folder), model="transformer-huge"))


@pytest.mark.parametrize("changes", [{"quantizer": "mxint"}, {"quantizer": "wageubn"}, {"norm": "range"}])
def test_what_language_models_have_no_rule_for_is_refused_before_training(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        train(replace(settings(folder), **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_language_model_trains_with_every_quantizer_of_gradients(folder: Path) -> None:
    for gradient in ("ptq", "psq", "bhq"):
        config = replace(settings(folder), gradient=gradient, epochs=1, schedule="static", stages=((8, 8, 6, 8),))
        result = train(replace(config, train_limit=8, test_limit=2))
        assert math.isfinite(result.history[-1]["loss"])


def test_language_model_learns_and_perplexity_is_that_of_the_test_text(folder: Path, tmp_path: Path) -> None:
    result = train(settings(folder), out=tmp_path / "run")
    column = [row["test_perplexity"] for row in result.history]
    assert result.metric == "perplexity" and result.best_score == min(column) and result.test_score == column[-1]
    assert result.history[-1]["train_perplexity"] < 6 < result.history[0]["train_perplexity"]
    assert [row["bits"] for row in result.history] == ["4/4/6", "6/6/8", "8/8/8"]
    assert 0 < result.cc < result.cc_static
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no accuracy"):
        _ = result.test_accuracy


def test_perplexity_of_a_network_that_knows_nothing_is_the_size_of_the_vocabulary(folder: Path) -> None:
    task = open_task(settings(folder))
    model = task.build(settings(folder))
    model.head.weight.data.zero_()
    model.head.bias.data.zero_()
    assert evaluate_network(model, task, 3) == pytest.approx(len(task.data.vocabulary), rel=1e-5)  # type: ignore[attr-defined]
    assert PERPLEXITY.value(1e6, 10) == math.inf
    assert (PERPLEXITY.best([3.0, 2.0]), ACCURACY.best([0.3, 0.2])) == (2.0, 0.3)
    assert (PERPLEXITY.text(2.0), ACCURACY.text(0.2)) == ("2.00", "20.00 %")


@pytest.mark.parametrize("exact", [False, True])
def test_resumed_language_model_is_the_same_to_the_bit(folder: Path, tmp_path: Path, exact: bool) -> None:
    config = replace(settings(folder), train_limit=10, test_limit=2, batch=4, dropout=0.2)
    engine = ExactEngine() if exact else None
    train(config, engine, out=tmp_path / "whole")
    for stop in (2, 5):
        train(config, engine, out=tmp_path / "parts", resume=stop > 2, stop_after=stop)
    train(config, engine, out=tmp_path / "parts", resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    assert engine is None or engine.meter.totals["PRODUCTS"] > 0


def test_inverse_square_root_rate_peaks_at_the_end_of_the_warmup() -> None:
    config = TrainConfig(lr=0.1, lr_schedule="inverse-sqrt", warmup=0.1)
    rates = [learning_rate(vars(config), step, 100) for step in range(100)]
    assert max(rates) == rates[9] == pytest.approx(0.1) and rates[39] == pytest.approx(0.05)
    for wrong in ({"warmup": 0.0}, {"betas": [0.9]}, {"vocabulary": 2}, {"optimizer": "lion"}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            TrainConfig.from_mapping({"lr_schedule": "inverse-sqrt", "warmup": 0.1, **wrong})


@pytest.mark.parametrize("name", ["", " "])
def test_empty_name_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="not a folder"):
        load_text(name, 4)


def test_byte_order_mark_is_no_word(folder: Path) -> None:
    whole = load_text(str(folder), 8)
    for file in folder.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = load_text(str(folder), 8)
    assert marked.vocabulary == whole.vocabulary
    assert np.array_equal(marked.train_tokens, whole.train_tokens)
    assert np.array_equal(marked.test_tokens, whole.test_tokens)
