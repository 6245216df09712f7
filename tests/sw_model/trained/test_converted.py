"""Trained networks of others in use: predictions, and files with their grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fractrain
from sw_model.convert.references import import_library
from sw_model.nn.layers import quantized_layers
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.affine import affine_values
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.trained import onnx_file
from sw_model.trained.layer_grids import layer_grids
from sw_model.trained.tensor_file import write_tensors
from sw_model.trained.trained_network import TrainedNetwork, open_trained
from tests.support.networks_of_others import UNet, torchvision_models

OWN = """
import numpy as np
import torch
from torch import nn


def network(classes, image):
    return nn.Sequential(nn.Conv2d(image[0], 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def bright(image):
    return torch.from_numpy(np.asarray(image.resize((9, 9)))[None] / np.float32(255))


class Grey:
    classes = ["dark", "bright"]
    transform = staticmethod(bright)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.rand(1, 9, 9) / 2 + index % 2 / 2, index % 2


def data():
    return torch.utils.data.Subset(Grey(32), range(32)), torch.utils.data.Subset(Grey(8), range(8))


def no_transform():
    found = Grey(32), Grey(8)
    found[1].transform = None
    return found
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(OWN)
    return file


def trained(own: Path, data: str = "data") -> Path:
    run = own.parent / data
    if not run.exists():
        recipe = TrainConfig(
            model=f"{own}:network", data=f"{own}:{data}", schedule="static", stages=((6, 7, 8),), epochs=12, batch=8,
            lr=0.2, quantize_head=True,
        )  # fmt: skip
        train(recipe, out=run)
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for level in (20, 235):
        Image.new("RGB", (30, 20), (level,) * 3).save(tmp_path / f"{level:03}.png")
    return tmp_path


def test_the_test_set_s_transform_makes_inputs_of_image_files(
    own: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fractrain.main(["predict", str(trained(own)), str(pictures), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["classes"][0]["name"] for row in rows] == ["dark", "bright"]
    for device in ("software", "reference"):
        assert fractrain.main(["predict", str(trained(own)), str(pictures), "--device", device, "--json"]) == 0
        exact = json.loads(capsys.readouterr().out)
        for a, b in zip(exact, rows, strict=True):
            assert a["classes"][0]["probability"] == pytest.approx(b["classes"][0]["probability"], abs=1e-5)


def test_a_network_of_others_on_images_of_ours_predicts_too(
    own: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = own.parent / "digits.py"
    model.write_text(OWN.replace("nn.Linear(64,", "nn.Linear(36,"))
    run = own.parent / "digits"
    train(TrainConfig(model=f"{model}:network", data="digits", epochs=1, schedule="static", stages=((8, 8, 8),),
                      train_limit=64, test_limit=32), out=run)  # fmt: skip
    model.rename(model.with_name("moved.py"))
    assert fractrain.main(["predict", str(run), str(pictures)]) == 2 and "no file" in capsys.readouterr().err
    model.with_name("moved.py").rename(model)
    assert fractrain.main(["predict", str(run), str(pictures), "--top", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 4


def test_without_a_transform_files_are_refused_with_a_remedy(
    own: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fractrain.main(["predict", str(trained(own, "no_transform")), str(pictures)]) == 2
    error = capsys.readouterr().err
    assert "transform" in error and error.count("\n") == 1


def test_tensor_files_hold_codes_beside_the_parameters(own: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    network = open_trained(trained(own))
    write_tensors(network, tmp_path / "n.safetensors")
    tensors = safetensors.load((tmp_path / "n.safetensors").read_bytes())
    state = network.model.state_dict()
    assert all(np.array_equal(tensors[name], value.numpy()) for name, value in state.items())
    for name in ("0", "3"):
        weight = state[f"{name}.weight"]
        values = affine_values(weight.reshape(*weight.shape, *[1] * (4 - weight.ndim)), 6, axis=0)
        scale, zero = (tensors[f"{name}.weight.{part}"].reshape(-1, 1, 1, 1) for part in ("scale", "zero"))
        codes = tensors[f"{name}.weight.codes"]
        assert codes.dtype == np.uint8 and np.array_equal(scale * codes + zero, values.numpy())
        assert tensors[f"{name}.input.scale"].shape == (1,)


class Mixed(nn.Module):
    """Convolutions of several kinds, attention, a recurrent layer and a linear one: (N, 3, 12, 12) to (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, (3, 2), stride=(3, 2), padding=(0, 1), groups=1)
        self.across = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.steps = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.across(self.patches(x).relu()).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        y: Tensor = self.head(self.steps(x[:, :4])[0][:, -1])
        return y


def as_trained(model: nn.Module, example: Tensor, bits: str = "6/7/8") -> TrainedNetwork:
    """A converted network that has seen two batches."""
    run = Run()
    fractrain.convert(model, example, bits=bits, run=run)
    with torch.no_grad():
        model.train()(torch.randn_like(example))
    recipe = TrainConfig(model="torchvision:resnet18", data="digits")
    return TrainedNetwork(recipe, None, model.eval(), Precision(6, 7, 8), run, torch.zeros(1, *example.shape[1:]))


def onnx_outputs(network: TrainedNetwork, path: Path, x: Tensor) -> tuple[Any, list[str]]:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    onnx_file.write_onnx(network, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x.numpy()})[0], [node.op_type for node in model.graph.node]


def test_onnx_gives_the_same_as_our_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = as_trained(Mixed(), torch.randn(4, 3, 12, 12))
    x = torch.randn(3, 3, 12, 12)  # another number than in any example
    theirs, kinds = onnx_outputs(network, tmp_path / "n.onnx", x)
    assert theirs == pytest.approx(network.logits(x).numpy(), abs=1e-5)
    grids = layer_grids(network)
    coded = sum(grid.weight is not None for grid in grids.values())
    # patches, across, q, k, v, output, GRU's input and state, head; both factors of two products of attention
    assert coded == 9 and len(grids) == 13 and all(grid.inputs for grid in grids.values())
    assert kinds.count("DequantizeLinear") - kinds.count("QuantizeLinear") >= coded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["U-Net", "resnet18"])
def test_whole_networks_give_the_same_as_onnx(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torchvision_models()
    make = UNet if name == "U-Net" else lambda: import_library("torchvision").models.resnet18(num_classes=10)
    network = as_trained(make(), torch.randn(4, 3, 32, 32))
    x = torch.randn(3, 3, 32, 32)
    theirs, _ = onnx_outputs(network, tmp_path / "n.onnx", x)
    assert theirs == pytest.approx(network.logits(x).numpy(), abs=1e-5)


def test_weights_that_depend_on_the_input_have_no_codes(tmp_path: Path) -> None:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.inner(x))

    network = as_trained(Hyper(), torch.randn(3, 3))
    network = TrainedNetwork(network.config, None, network.model, network.precision, network.run, torch.zeros(3, 3))
    with pytest.raises(ConfigError, match=r"weights of .* depend on"):
        layer_grids(network)
    assert not any("_multiply" in vars(layer) for _, layer in quantized_layers(network.model))
