"""The one place of float convolutions: right for every shape and instruction set, and passed by none."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sw_model.nn import layers as L
from sw_model.nn.convolution import gradients
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.models import build_model
from sw_model.train.folder import CHECKPOINT, load_checkpoint

ROOT = Path(__file__).parents[3]

#: oneDNN's greatest instruction set -> what its own report must not name.
ISAS = {"DEFAULT": "$none", "AVX2": "AVX-512|AMX", "SSE41": "AVX"}


def watched(isa: str, *arguments: str, checked: bool = False) -> str:
    """What a Python process prints whose heap the C library fills with rubbish, and checks if asked (which takes ten times
    as long); it must end well."""
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": isa,
        "MALLOC_PERTURB_": "165",
        "OMP_WAIT_POLICY": "passive",
    }
    if checked:  # glibc's library, ignored where there is none
        environment |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def compare_all_shapes(isa: str, which: str) -> None:
    printed = watched(isa, "-m", "tests.support.convolution_worker", which, checked=which == "all")
    found = re.search("onednn_verbose.*cpu,isa:(.*)", printed)
    if torch.backends.mkldnn.is_available():
        assert found and not re.search(ISAS[isa], found[1]), "ONEDNN_MAX_CPU_ISA has no effect"
    lines = [line for line in printed.splitlines() if not line.startswith("onednn_verbose")]
    assert lines == ["done 0"]


@pytest.mark.parametrize("isa", ISAS)
def test_fast_convolutions_equal_exact_ones(isa: str) -> None:
    compare_all_shapes(isa, "some")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_fast_convolutions_equal_exact_ones_at_all_shapes(isa: str) -> None:
    compare_all_shapes(isa, "all")


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_codes_may_stand_for_an_input_whose_values_do_not_count(padding: int) -> None:
    x, w = torch.zeros(2, 3, 7, 6, dtype=torch.uint8), torch.randn(4, 3, 1, 1)
    double = x.double().requires_grad_()
    y = F.conv2d(double, w.double(), None, 2, padding)
    g = torch.randn(y.shape)
    dx, dw = gradients(x, w, g, 2, padding, of=(True, False))
    assert dx is not None and dw is None
    (wanted,) = torch.autograd.grad(y, double, g.double())
    assert torch.allclose(dx.double(), wanted, atol=1e-6)
    assert gradients(x, w, g, 2, padding, of=(False, False)) == (None, None)


# -- nothing goes round it ---------------------------------------------------------------------------------------------

_FUNCTION = re.compile(r"conv(_transpose|_tbc)?[123]?d?(_input|_weight)?|_?(mkldnn_|thnn_|slow_)?conv(olution)?\w*")
_MODULE = re.compile(r"(Lazy)?Conv(Transpose)?[123]d|_ConvNd")


def convolutions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of everything in a module that PyTorch convolves with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (
            _MODULE.fullmatch(node.attr)
            or (
                _FUNCTION.fullmatch(node.attr)
                and re.search(r"(^F|torch|aten|functional|grad)$", ast.unparse(node.value))
            )
        ):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for name in (alias.name for alias in node.names):
                if _MODULE.fullmatch(name) or _FUNCTION.fullmatch(name):
                    yield node.lineno, name


@pytest.mark.parametrize(
    "line",
    [
        "y = F.conv2d(x, w)",
        "from torch.nn.grad import conv2d_weight",
        "from torch.nn.functional import conv2d as c",
        "torch.ops.aten.convolution_backward(g, x, w)",
        "torch.conv1d(x, w)",
        "nn.Conv2d(1, 2, 3)",
        "class A(torch.nn.ConvTranspose2d): pass",
        "torch.nn.grad.conv2d_input(s, w, g)",
        "torch.mkldnn_convolution(x, w)",
    ],
)
def test_search_finds_convolutions(line: str) -> None:
    assert list(convolutions(ast.parse(line)))


def test_nothing_else_calls_pytorch_s_convolutions() -> None:
    # reproducible.py names the operations that it catches, and computes them in double precision; calls.py names those
    # of other networks, whose products it sends elsewhere; onnx_file.py writes a graph for another library to run.
    allowed = {
        "nn/convolution.py": {"conv2d", "convolution_backward"},
        "nn/reproducible.py": {"convolution", "convolution_backward"},
        "convert/calls.py": {"conv1d", "conv2d", "conv_transpose2d"},
        "trained/onnx_file.py": {"conv2d"},
    }
    found = []
    for path in sorted((ROOT / "sw_model").rglob("*.py")):
        file = path.relative_to(ROOT / "sw_model").as_posix()
        for line, name in convolutions(ast.parse(path.read_text())):
            if name not in allowed.get(file, ()):
                found.append(f"{file}:{line} calls {name}; use sw_model.nn.convolution")
    assert not found


class NoStridedPoints(TorchDispatchMode):
    """Refuses convolutions that pick pixels, which oneDNN may get wrong, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            backward = "backward" in str(func)
            weight, stride = args[2 if backward else 1], args[4 if backward else 3]
            assert weight.shape[2:] != (1, 1) or max(stride) == 1, func
            self.seen += 1
        return func(*args, **(kwargs or {}))


PRECISIONS: dict[str, tuple[L.Run, L.Precision]] = {
    "float32": (L.Run(), L.FULL),
    "affine": (L.Run(), L.Precision(8, 8, 8)),
    "bifurcated": (L.Run(), L.Precision(8, 8, 8, 16)),
    "psq": (L.Run(gradient="psq"), L.Precision(8, 8, 8)),
    **{name: (L.Run(quantizer=name), L.Precision(8, 8, 8)) for name in ("dorefa", "wageubn", "mxint")},
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_networks_convolve_no_strided_points(name: str) -> None:
    model = build_model("resnet-8", 10, (3, 8, 8), width=4, seed=0)
    run, precision = PRECISIONS[name]
    L.attach(model, run)
    L.set_precision(model, precision)
    with NoStridedPoints() as mode:
        F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    assert mode.seen > 10


def test_gated_networks_convolve_no_strided_points() -> None:
    base = build_model("resnet-8", 10, (3, 8, 8), width=4, seed=0)
    model = GatedNetwork(base, [(4, 4), (8, 8)], 8)
    L.attach(model, L.Run())
    with NoStridedPoints() as mode:
        F.cross_entropy(model(torch.randn(6, 3, 8, 8)), torch.arange(6)).backward()
    assert mode.seen > 10


# -- training of few channels ------------------------------------------------------------------------------------------


def train_twice(isa: str, width: int, threads: int, bits: str, folder: Path) -> None:
    """Two runs of twenty steps end with the same weights; the first step's gradients are the exact engine's."""
    states = []
    for run in "ab":
        printed = watched(
            isa, "-m", "tests.support.first_steps_worker", f"{width}", f"{threads}", bits, str(folder / run)
        )
        assert float(printed.splitlines()[0]) < 1e-5
        states.append(load_checkpoint(folder / run / CHECKPOINT)["model"])
    one, other = states
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("width", "threads", "bits"), [(4, 1, "8/8/8"), (6, 2, "3/3/6")])
def test_training_of_few_channels_is_right_and_repeatable(width: int, threads: int, bits: str, tmp_path: Path) -> None:
    train_twice("AVX2", width, threads, bits, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("width", "threads"), [(4, 1), (6, 2)])
@pytest.mark.parametrize("bits", ["8/8/8", "3/3/6"])
def test_training_of_few_channels_at_each_instruction_set(
    isa: str, width: int, threads: int, bits: str, tmp_path: Path
) -> None:
    train_twice(isa, width, threads, bits, tmp_path)
