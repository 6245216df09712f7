"""Trained networks in use: predictions, files with their grids, and runs that go on for longer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fractrain import main
from host.exact_engine import ExactEngine
from sw_model.data.images import load_digits_set
from sw_model.data.inputs import ImageInputs
from sw_model.nn.layers import quantized_layers, set_precision
from sw_model.nn.models import build_model
from sw_model.nn.precision import Precision
from sw_model.quantize.affine import affine_values
from sw_model.train.folder import CHECKPOINT
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.trained import onnx_file
from sw_model.trained.layer_grids import layer_grids
from sw_model.trained.prediction import image_files, predict_images
from sw_model.trained.tensor_file import write_tensors
from sw_model.trained.trained_network import TrainedNetwork, open_trained
from tests.sw_model.train.test_loop import same, state_of

STATIC = TrainConfig(
    width=4, epochs=1, batch=64, train_limit=320, test_limit=64, schedule="static", stages=((5, 6, 8),),
    quantize_head=True,
)  # fmt: skip
GATED = replace(
    STATIC, schedule="dfq", stages=((8, 8, 8),), options=((4, 6), (6, 8)), targets=(5.0,), weight_bits=4, batch=32,
    train_limit=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(STATIC, out=folder)
    return folder


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gated"
    train(GATED, out=folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's test images as a person would save them."""
    folder = tmp_path_factory.mktemp("pictures")
    data = load_digits_set().limited(0, STATIC.test_limit)
    for index, image in enumerate(data.test_images):
        grey = np.rint(image[0] * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{index:03}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predictions_are_what_the_run_was_tested_with(run: Path, pictures: Path) -> None:
    network = open_trained(run)
    predictions = list(predict_images(network, image_files([pictures]), batch=10))
    assert [p.file.name for p in predictions] == [f"{i:03}.png" for i in range(STATIC.test_limit)]
    labels = load_digits_set().limited(0, STATIC.test_limit).test_labels
    right = np.mean([p.classes[0][0] == str(label) for p, label in zip(predictions, labels, strict=True)])
    tested = json.loads((run / "result.json").read_text())["test_score"]
    assert abs(right - tested) <= 2 / STATIC.test_limit, "the pictures' grey levels are rounded to 8 bits"


@pytest.mark.parametrize("which", ["run", "gated"])
def test_the_test_images_get_the_score_of_the_result(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    network = open_trained(folder)
    data = load_digits_set().limited(0, STATIC.test_limit)
    right = sum(int((network.logits(x).argmax(1) == y).sum()) for x, y in data.test_batches(STATIC.batch))
    assert right / STATIC.test_limit == json.loads((folder / "result.json").read_text())["test_score"]


def test_predictions_run_on_exact_products_too(run: Path, pictures: Path) -> None:
    network, files = open_trained(run), image_files([pictures])[:4]
    engine = ExactEngine()
    exact, fast = list(predict_images(network, files, top=99, engine=engine)), list(predict_images(network, files, top=99))
    assert engine.meter.totals["PRODUCTS"]
    for a, b in zip(exact, fast, strict=True):
        assert len(a.classes) == 10 and dict(a.classes) == pytest.approx(dict(b.classes), abs=1e-4)


def test_neither_data_nor_recipe_are_needed_again(
    run: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes())
    monkeypatch.setattr("sw_model.trained.trained_network.open_task", lambda *_: pytest.fail("opens the data"))
    assert len(list(predict_images(open_trained(tmp_path), image_files([pictures / "000.png"])))) == 1


def test_images_of_other_sizes_and_kinds_are_brought_to_the_networks(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 20), "red").save(tmp_path / "a.png")
    for inputs in (
        ImageInputs((1, 8, 8), ("a",), (0.5,), (0.5,)),
        ImageInputs((3, 16, 16), ("a",), (0.5,) * 3, (0.5,) * 3, True),
    ):
        image = inputs.pixels(tmp_path / "a.png")
        assert image.dtype == np.uint8 and image.shape == inputs.shape
        assert inputs.tensor([image]).shape == (1, *inputs.shape)
        assert ImageInputs.from_record(json.loads(json.dumps(inputs.record()))) == inputs


def test_wrong_calls_are_refused_in_one_line(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no picture")
    for words, named in (
        (("predict", str(tmp_path), str(pictures)), "checkpoint"),
        (("predict", str(run), str(tmp_path / "none.png")), "none.png"),
        (("predict", str(run), str(tmp_path / "empty")), "no images"),
        (("predict", str(run), str(tmp_path / "broken.png")), "broken.png"),
        (("export", "--run", str(run), "--out", str(tmp_path / "job.zip")), ".safetensors"),
        (("export", "--run", str(run), "--out", str(tmp_path / "n.onnx"), "--epochs", "3"), "epochs"),
        (("export", "--out", str(tmp_path / "job.zip")), "--recipe"),
    ):
        assert main(list(words)) == 2, words
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, error


def test_command_line_predicts(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(pictures), "--top", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == STATIC.test_limit
    for row in rows:
        shares = [c["probability"] for c in row["classes"]]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
    assert main(["predict", str(run), str(pictures / "000.png")]) == 0
    assert capsys.readouterr().out.startswith(f"{pictures / '000.png'}: {rows[0]['classes'][0]['name']} ")


@pytest.mark.parametrize("which", ["run", "gated"])
def test_tensor_files_hold_codes_and_grids(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    network = open_trained(request.getfixturevalue(which))
    size = write_tensors(network, tmp_path / "network.safetensors")
    content = (tmp_path / "network.safetensors").read_bytes()
    tensors, state = safetensors.load(content), network.model.state_dict()
    assert size == len(content) and set(state) - set(tensors) <= {
        f"{name}.weight" for name, _ in quantized_layers(network.model)
    }
    found = layer_grids(network)
    for name, layer in quantized_layers(network.model):
        bits = GATED.weight_bits if which == "gated" and ".blocks." in name else network.precision.weight
        if layer.precision == Precision(0, 0, 0):
            assert np.array_equal(tensors[f"{name}.weight"], layer.weight.detach().numpy())
            continue
        codes = tensors[f"{name}.weight.codes"]
        shape = (-1, *[1] * (codes.ndim - 1))
        values = tensors[f"{name}.weight.scale"].reshape(shape) * codes + tensors[f"{name}.weight.zero"].reshape(shape)
        weight = layer.weight.detach()[..., None, None] if codes.ndim == 2 else layer.weight.detach()
        assert codes.max() < 1 << bits
        assert np.array_equal(values, affine_values(weight, bits, axis=0).reshape(layer.weight.shape).numpy())
        low, span = float(layer.running_low), float(layer.running_span)
        assert np.allclose(tensors[f"{name}.input.zero"], low)
        steps = [(1 << grid.bits) - 1 for grid in found[name].inputs]
        assert np.allclose(tensors[f"{name}.input.scale"], [span / n for n in steps])
    if which == "gated":
        assert [grid.bits for grid in found["base.blocks.0.conv1"].inputs] == [4, 6]


def onnx_outputs(network: TrainedNetwork, path: Path, x: torch.Tensor) -> Any:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    onnx_file.write_onnx(network, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    grids = layer_grids(network).values()
    # layers that read the same tensor share its quantizer
    incoming = {(g.inputs[0].bits, float(g.inputs[0].scale), float(g.inputs[0].zero)) for g in grids if g.inputs}
    assert kinds.count("QuantizeLinear") == len(incoming)
    assert kinds.count("DequantizeLinear") == len(incoming) + sum(g.weight is not None for g in grids)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x.numpy()})[0]


@pytest.mark.parametrize("bits", [(5, 8), (9, 12)])
def test_onnx_gives_the_same_as_our_evaluation(run: Path, bits: tuple[int, int], tmp_path: Path) -> None:
    network = open_trained(run)
    set_precision(network.model, Precision(*bits, 8))
    x, _ = next(load_digits_set().test_batches(50))
    ours, theirs = network.logits(x).numpy(), onnx_outputs(network, tmp_path / "n.onnx", x)
    # where sums are added in another order a value may come to lie on the other side of the middle between two codes
    assert theirs.shape == ours.shape and np.mean(np.abs(ours - theirs).max(1) < 1e-5) >= 0.9


def test_what_onnx_cannot_say_is_refused(gated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gates choose.*safetensors"):
        onnx_file.write_onnx(open_trained(gated), tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())


def test_layers_of_every_kind_keep_their_names(run: Path) -> None:
    network = open_trained(run)
    model = build_model("mobilenetv2", 10, (3, 32, 32), quantize_head=True, seed=1)
    names = {name for name, _ in quantized_layers(model)}
    assert set(layer_grids(replace(network, model=model))) == names


@pytest.mark.parametrize("parts", [(1, 3), (2, 3)])
def test_a_run_can_be_made_longer(parts: tuple[int, int], tmp_path: Path) -> None:
    # a learning rate that does not depend on the length: so the longer run is the one that was never ended
    first, whole = (replace(STATIC, epochs=n, train_limit=64, lr_schedule="steps", milestones=()) for n in parts)
    train(whole, out=tmp_path / "whole")
    train(first, out=tmp_path / "longer")
    assert main(["train", "--resume", str(tmp_path / "longer"), "--epochs", str(whole.epochs), "--json"]) == 0
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "longer"))
    assert (tmp_path / "longer" / "config.toml").read_text() == whole.to_toml()
    assert len(json.loads((tmp_path / "longer" / "result.json").read_text())["history"]) == whole.epochs


def test_a_run_cannot_be_made_shorter_or_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(STATIC, epochs=2, train_limit=64), out=tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for words in (("--epochs", "1"), ("--epochs", "3", "--lr", "0.2")):
        assert main(["train", "--resume", str(tmp_path / "run"), *words]) == 2
        assert words[0] in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
