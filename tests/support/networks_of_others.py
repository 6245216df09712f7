"""Networks that this project did not write, small enough for tests: torchvision's, timm's, and a few written here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.convert.references import import_library


def torchvision_models() -> Any:
    """``torchvision.models``."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed; make setup installs it")
    return import_library("torchvision").models


def timm_model(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights."""
    torchvision_models()
    model: nn.Module = import_library("timm").create_model(name, **options)
    return model


class UNet(nn.Module):
    """Two levels, transposed and dilated convolutions, group normalisation: (N, 3, H, W) to (N, 2, H, W)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())
        self.bottom = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding="same", dilation=2, groups=2), nn.ReLU(),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, 2, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        y: Tensor = self.out(torch.cat([fine, self.up(self.bottom(fine))], 1))
        return y


class TwoInputs(nn.Module):
    """An image and numbers beside it: functional calls, methods and operators with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.mixing = nn.Parameter(torch.randn(4, 5) / 2)
        self.head = nn.Linear(5, 3)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        seen = F.conv2d(image, self.kernel, stride=2).relu().mean((2, 3))
        y: Tensor = self.head((seen + numbers) @ self.mixing)
        return y


class Tied(nn.Module):
    """Words to words, the output layer with the weights of the embedding."""

    def __init__(self, words: int = 12, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.head(self.mix(self.embedding(words)).relu())
        return y


class LstmClassifier(nn.Module):
    """The last state of an LSTM over a sequence (N, T, 3) to 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, (state, _) = self.lstm(x)
        y: Tensor = self.head(state[-1])
        return y


class Encoder(nn.Module):
    """PyTorch's own layer of a Transformer, over a sequence (N, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x)[:, 0])
        return y


def _vgg(models: Any) -> nn.Module:
    """VGG-11 with a classifier for small images; the original's has a hundred million weights."""
    model: nn.Module = models.vgg11_bn(num_classes=10)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return model


def _images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


#: name -> what makes the network, and an example batch
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet18": (lambda: torchvision_models().resnet18(num_classes=10), _images),
    "mobilenet_v3_small": (lambda: torchvision_models().mobilenet_v3_small(num_classes=10), _images),
    "vgg11_bn": (lambda: _vgg(torchvision_models()), _images),
    "vit_tiny": (
        lambda: timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=2), _images
    ),
    "convnext_atto": (lambda: timm_model("convnext_atto", num_classes=10), _images),
    "U-Net": (UNet, _images),
    "two inputs": (TwoInputs, lambda: (_images(), torch.ones(2, 4))),
    "LSTM classifier": (LstmClassifier, lambda: _images()[:, 0, :5, :3]),
    "Transformer layer": (Encoder, lambda: _images()[:, 0, :5, :8]),
    "tied weights": (Tied, lambda: torch.arange(12).reshape(3, 4)),
}  # fmt: skip
