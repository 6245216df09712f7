"""Adaptation and fine-tuning: halves of a data set, and training that starts from trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sw_model.data.images import SUBSETS, DataError, load_data
from sw_model.data.text import TokenSet
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.pretrained import build_network, load_pretrained
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import open_task
from tests.sw_model.train.test_loop import SMALL, same, state_of

PAPER = Path(__file__).parents[3] / "configs" / "recipes" / "paper"
STATIC = replace(SMALL, schedule="static", stages=((8, 8, 8),), deadlines=(), epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train(replace(STATIC, subset="first-classes"), out=folder)
    return folder


def test_halves_are_disjoint_and_together_whole() -> None:
    data = load_data("digits")
    first, second = data.subset("first-classes"), data.subset("second-classes")
    assert first.classes == tuple("01234") and second.classes == tuple("56789")
    assert set(second.train_labels) == set(second.test_labels) == set(range(5))
    assert np.array_equal(second.train_images, data.train_images[data.train_labels >= 5])
    assert np.array_equal(second.test_labels, data.test_labels[data.test_labels >= 5] - 5)
    halves = [data.subset(name) for name in ("first-samples", "second-samples")]
    assert all(half.classes == data.classes and len(half.test_labels) == len(data.test_labels) for half in halves)
    images = np.concatenate([half.train_images for half in halves]).reshape(len(data.train_labels), -1)
    assert sorted(map(bytes, images)) == sorted(map(bytes, data.train_images.reshape(len(images), -1)))
    for label in range(10):
        sizes = [int((half.train_labels == label).sum()) for half in halves]
        assert abs(sizes[0] - sizes[1]) <= 1 and min(sizes) > 50
    assert data.subset("all") is data
    with pytest.raises(DataError, match="unknown"):
        data.subset("third-classes")
    with pytest.raises(DataError, match="two training images"):
        data.limited(3).subset("first-samples")


def test_training_starts_from_all_weights_and_statistics_but_a_head_of_other_size(trained: Path) -> None:
    saved = load_checkpoint(trained / "checkpoint.pt")["model"]
    same_classes = replace(STATIC, subset="second-classes", init=str(trained))
    model, _ = build_network(same_classes, open_task(same_classes))
    assert same(dict(model.state_dict()), dict(saved))
    all_classes = replace(STATIC, init=str(trained), seed=5)
    fresh, _ = build_network(replace(all_classes, init=""), open_task(all_classes))
    started, _ = build_network(all_classes, open_task(all_classes))
    for name, value in started.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name] if name.startswith("head.") else saved[name]), name


def test_fine_tuning_goes_on_from_where_pretraining_ended(tmp_path: Path) -> None:
    config = replace(STATIC, train_limit=400, epochs=3, test_limit=100)
    begun = train(replace(config, subset="first-samples"), out=tmp_path / "run").history
    tuned = train(replace(config, subset="second-samples", init=str(tmp_path / "run"), epochs=1, lr=0.02)).history
    # Other images of the same classes: from its first epoch about as good as pretraining was at its end.
    assert max(begun[-1]["loss"], tuned[0]["loss"]) < begun[0]["loss"] - 0.1


def test_gates_are_put_around_a_trained_network_and_taken_off_one(trained: Path, tmp_path: Path) -> None:
    gated = replace(
        STATIC,
        subset="second-classes",
        init=str(trained),
        schedule="dfq",
        targets=(3.0,),
        options=((3, 6), (4, 8)),
        quantize_stem=False,
    )
    train(gated, out=tmp_path / "gated")
    state = load_checkpoint(tmp_path / "gated" / "checkpoint.pt")["model"]
    assert any(name.startswith("base.") for name in state)
    config = replace(STATIC, subset="second-classes", init=str(tmp_path / "gated"))
    model, _ = build_network(config, open_task(config))
    assert torch.equal(model.state_dict()["stem.weight"], state["base.stem.weight"])


def test_resumed_run_needs_the_pretrained_weights_no_more(trained: Path, tmp_path: Path) -> None:
    start = tmp_path / "weights.pt"
    torch.save(load_checkpoint(trained / "checkpoint.pt")["model"], start)
    config = replace(STATIC, subset="first-classes", init=str(start), epochs=2)
    train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "parts", stop_after=3)
    start.unlink()
    train(config, out=tmp_path / "parts", resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_weights_that_do_not_fit_are_refused_by_name(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"x": _Evil()}, tmp_path / "evil.pt")
    cases = [
        (replace(STATIC, init=str(trained), width=8), "network has"),
        (replace(STATIC, init=str(trained), model="resnet-14"), "lacks blocks"),
        (replace(STATIC, init=str(tmp_path / "none")), "no checkpoint at"),
        *(
            (replace(STATIC, init=str(tmp_path / f"{n}.pt")), "cannot be read|no named")
            for n in ("text", "list", "evil")
        ),
    ]
    for config, text in cases:
        with pytest.raises(ConfigError, match=text):
            train(config, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    model, _ = build_network(STATIC, open_task(STATIC))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({**before, "blocks.0.conv1.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    with pytest.raises(ConfigError, match=r"blocks\.0\.conv1\.weight"):
        load_pretrained(model, tmp_path / "shape.pt")
    assert same(dict(model.state_dict()), before)


def test_text_has_no_classes_to_divide() -> None:
    words = np.zeros(100, dtype=np.int64)
    config = replace(STATIC, model="transformer-small", subset="first-classes")
    with pytest.raises(ConfigError, match="text has none"):
        open_task(config, TokenSet(words, words, ("<unk>",), 8))
    with pytest.raises(ConfigError, match="use one of all"):
        TrainConfig(subset="half")


@pytest.mark.parametrize(("regime", "kind"), [("adaptation", "classes"), ("finetuning", "samples")])
def test_recipes_of_table_5_train_on_the_half_that_pretraining_left(regime: str, kind: str) -> None:
    recipes = {
        path.stem.rsplit("-", 1)[1]: TrainConfig.from_recipe(path)
        for path in PAPER.glob(f"table5-resnet38-cifar100-{regime}-*.toml")
    }
    first = recipes.pop("pretrain")
    assert set(recipes) == {"sbm", "pfq", "dfq", "fractrain"}
    assert (first.subset, first.init, first.stages) == (f"first-{kind}", "", ((0, 0, 0),))
    for config in recipes.values():
        assert config.subset == f"second-{kind}" and config.init == f"runs/{regime}-pretrained"
        assert (config.model, config.width, config.data) == (first.model, first.width, first.data)
        assert config.epochs * -(-25_000 // config.batch) == pytest.approx(64_000, rel=0.003)
    assert recipes["pfq"].stages[-1] == recipes["sbm"].stages[0] == (8, 8, 8)
    assert recipes["dfq"].targets == (3.0,) and recipes["fractrain"].targets == (1.5, 2.0, 2.5, 3.0)
    assert set(SUBSETS) == {"all", *(f"{n}-{k}" for n in ("first", "second") for k in ("classes", "samples"))}
