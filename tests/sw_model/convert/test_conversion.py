"""Networks of others, converted in place: the same products on both paths, what is refused, and what stays as it was."""

from __future__ import annotations

import copy
import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fractrain
from host.exact_engine import ExactEngine
from sw_model.convert.conversion import as_precision
from sw_model.convert.sites import LinearSite, MatmulSite
from sw_model.nn.layers import quantized_layers, set_precision
from sw_model.nn.precision import Run
from sw_model.train.engines import open_engine
from tests.support.both_paths import BothPaths, train_a_step
from tests.support.networks_of_others import NETWORKS, Encoder, Tied, TwoInputs, UNet

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def documented_products(name: str) -> int:
    """Products of a network in the table of docs/own-networks.md."""
    page = (Path(__file__).parents[3] / "docs/own-networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]*) \| (\d+) \| equal \|$", page, re.MULTILINE)
    return next(int(count) for cell, count in rows if name in cell)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_others_train_a_step_with_the_same_products_on_both_paths(name: str) -> None:
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    model, batch = make(), example()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    found = fractrain.convert(model, batch, bits="6/5/7")
    assert not found.unsupported and found.quantized and not found.kept
    both = BothPaths(model)
    assert len(found.quantized) == documented_products(name)
    assert math.isfinite(train_a_step(model, batch))
    compared = {layer for layer, _, _ in both.distances}
    assert compared == set(found.quantized)
    assert {"output", "gradient 0", "gradient 1"} <= {tensor for _, tensor, _ in both.distances}
    assert max(distance for *_, distance in both.distances) < 3e-5
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert len(moved) > len(before) / 2


@pytest.mark.parametrize("make", [UNet, TwoInputs, Tied])
def test_float32_is_what_it_was(make: Any) -> None:
    example = {UNet: IMAGES, TwoInputs: (IMAGES, torch.ones(2, 4)), Tied: torch.arange(12).reshape(3, 4)}[make]
    arguments = example if isinstance(example, tuple) else (example,)
    model = make().eval()
    wanted, names = model(*arguments), [name for name, _ in model.named_parameters()]
    parameters, state = list(model.parameters()), set(model.state_dict())
    fractrain.convert(model, example)
    assert torch.allclose(model(*arguments), wanted, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert state < set(model.state_dict()), "what was trained before still loads, but for the ranges"


def test_layers_are_quantized_wherever_they_are_called_from() -> None:
    model = UNet()
    fractrain.convert(model, IMAGES, bits="2/2/2")
    part = model.down[0](IMAGES)
    assert not torch.allclose(part, F.conv2d(IMAGES, model.down[0].weight, model.down[0].bias, padding=1), atol=1e-2)
    clone = copy.deepcopy(model)
    assert torch.equal(clone(IMAGES), model(IMAGES))
    assert isinstance(model.down[0], nn.Conv2d)


def test_names_of_layers_tell_where_they_are() -> None:
    model = TwoInputs()
    found = fractrain.convert(model, (IMAGES, torch.ones(2, 4)), keep=["head"])
    assert found.quantized == ("conv0", "linear1") and found.kept == ("head",)
    assert "head: float32 on the host, as asked" in str(found)
    assert [name for name, _ in quantized_layers(model)] == ["head", "conv0", "linear1"]


def test_what_stays_in_float32_is_exact() -> None:
    model = Tied()
    words = torch.arange(12).reshape(3, 4)
    fractrain.convert(model, words, bits="2/2/2", keep="head")
    x = torch.randn(3, 8)
    assert torch.allclose(model.head(x), F.linear(x, model.embedding.weight), atol=1e-5)
    assert not torch.allclose(model.mix(x), F.linear(x, model.mix.weight, model.mix.bias), atol=1e-2)


RECURRENT = [
    nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.LSTM(3, 4, bias=False, batch_first=True), nn.GRU(3, 4, num_layers=2),
    nn.RNN(3, 4, bidirectional=True), nn.RNN(3, 4, nonlinearity="relu"),
]  # fmt: skip


@pytest.mark.parametrize("layer", RECURRENT, ids=str)
def test_recurrent_layers_compute_what_pytorch_s_do(layer: nn.Module) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(layer)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    x, model = torch.randn(5, 2, 3), Whole()
    wanted = layer(x)
    fractrain.convert(model, x)
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(model(x)), torch.utils._pytree.tree_leaves(wanted), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(model.layer(x[:, 0])[0], layer(x[:, 0])[0], atol=1e-6)


@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)], ids=str)
def test_cells_compute_what_pytorch_s_do(cell: nn.Module) -> None:
    model, x = nn.Sequential(copy.deepcopy(cell)), torch.randn(2, 3)
    fractrain.convert(model, x)
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(model(x)), torch.utils._pytree.tree_leaves(cell(x)), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("masked", ["", "bool", "float", "heads", "padding", "causal"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 5}, {"bias": False}])
def test_multi_head_attention_computes_what_pytorch_s_does(options: dict[str, Any], masked: str) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options)
    q = torch.randn(3, 3, 8)
    k, v = torch.randn(3, 3, options.get("kdim", 8)), torch.randn(3, 3, options.get("vdim", 8))
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    named = {
        "": {}, "bool": {"attn_mask": causal}, "float": {"attn_mask": torch.randn(3, 3)},
        "heads": {"attn_mask": torch.randn(6, 3, 3), "average_attn_weights": False},
        "padding": {"key_padding_mask": torch.tensor([[False, False, True]] * 3)},
        "causal": {"attn_mask": causal, "is_causal": True, "need_weights": False},
    }[masked]  # fmt: skip
    wanted = layer(q, k, v, **named)
    fractrain.convert(layer, {"query": q, "key": k, "value": v, **named})
    for ours, theirs in zip(layer(q, k, v, **named), wanted, strict=True):
        assert (ours is None and theirs is None) or torch.allclose(ours, theirs, atol=1e-6)


def test_evaluation_of_pytorch_s_transformer_is_quantized_too() -> None:
    model, x = Encoder(), torch.randn(2, 5, 8)
    with torch.no_grad():
        exact = model.eval()(x)
        fractrain.convert(model, x, bits="2/2/2")
        model.train()(x)
        assert not torch.allclose(model.eval()(x), exact, atol=1e-2)


# -- every argument of a convolution -------------------------------------------------------------------------------------

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), pairs, pairs,
    st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    pairs, st.sampled_from(["zeros", "reflect", "circular", "replicate"]), st.integers(0, 99),
)  # fmt: skip
def test_a_convolution_may_have_any_arguments(  # noqa: PLR0913 - those of a convolution
    groups: int, into: int, out: int, kernel: tuple[int, int], stride: tuple[int, int], padding: Any,
    dilation: tuple[int, int], mode: str, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    stride = (1, 1) if padding == "same" else stride
    layer = nn.Conv2d(groups * into, groups * out, kernel, stride, padding, dilation, groups, padding_mode=mode)
    x = torch.randn(2, groups * into, 9, 8)
    wanted = layer(x)
    model = nn.Sequential(layer, nn.ReLU())
    fractrain.convert(model, x)
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    for _, each in quantized_layers(model):
        each.precision = as_precision("5/5/5")
    both = BothPaths(model)
    model(x.requires_grad_()).square().sum().backward()
    assert len(both.distances) >= 3 and max(d for *_, d in both.distances) < 3e-5


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv1d(2, 4, 3, 2, padding=1, dilation=2), (2, 2, 9)), (nn.Conv2d(2, 4, 3), (2, 8, 8))]
)
def test_rows_and_single_images_are_convolved(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    wanted = layer(x)
    model = nn.Sequential(layer)
    fractrain.convert(model, x)
    assert torch.allclose(model(x), wanted, atol=1e-6)


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["reference", "hls", "rtl"])
def test_fabrics_compute_what_software_does(device: str) -> None:
    def gradients(engine: Any) -> list[Tensor]:
        torch.manual_seed(3)
        model = UNet(4)
        x = torch.randn(1, 3, 6, 6)
        fractrain.convert(model, x, bits="3/3/4", run=Run(engine=engine))
        train_a_step(model, x)
        return [p.grad for p in model.parameters() if p.grad is not None]

    wanted = gradients(ExactEngine())
    assert wanted and all(
        torch.equal(a, b) for a, b in zip(gradients(open_engine(device, "sim-small")), wanted, strict=True)
    )


EINSUMS = [
    ("ij,kj->ik", (3, 4), (5, 4), False),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5), False),
    ("bhqk,bkhd->bqhd", (2, 3, 4, 6), (2, 6, 3, 5), False),
    ("nctv,vw->nctw", (2, 3, 4, 5), (5, 5), True),
    ("oc,nchw->nohw", (6, 3), (2, 3, 4, 4), True),
    ("bi,ijk->bjk", (4, 3), (3, 2, 5), True),
    ("bmn,bnm->b", (2, 3, 4), (2, 4, 3), False),
    ("ba, cb", (3, 4), (5, 3), False),
]


@pytest.mark.parametrize(("equation", "left", "right", "parameter"), EINSUMS)
def test_einsum_is_a_matrix_product(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], parameter: bool
) -> None:
    class Contracts(nn.Module):
        """With a parameter in the place of the operand that has fewer axes."""

        def __init__(self) -> None:
            super().__init__()
            self.first = parameter and len(left) < len(right)
            self.own = nn.Parameter(torch.randn(left if self.first else right)) if parameter else None

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            if self.own is not None:
                a, b = (self.own, b) if self.first else (a, self.own)
            return torch.einsum(equation, a, b)

    torch.manual_seed(0)
    model, operands = Contracts(), (torch.randn(left, requires_grad=True), torch.randn(right, requires_grad=True))
    wanted = model(*operands)
    found = fractrain.convert(model, operands)
    assert model(*operands).shape == wanted.shape and torch.allclose(model(*operands), wanted, atol=1e-5)
    kind = LinearSite if parameter else MatmulSite
    assert [type(site) for site in model.products] == [kind]
    set_precision(model, as_precision("12/12/12"))
    both = BothPaths(model)
    y = model(*operands)
    assert torch.allclose(y, wanted, atol=0.02) and not torch.equal(y, wanted)
    y.square().sum().backward()
    assert {layer for layer, _, _ in both.distances} == set(found.quantized)
    assert max(distance for *_, distance in both.distances) < 3e-5


# -- refused -----------------------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A function of its input, with a layer beside it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self.inner(x))
        return y


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: torch.einsum("ij,jk,kl->il", x, x, x), "einsum 'ij,jk,kl->il'"),
        (lambda x: torch.einsum("...j,kj->...k", x, x), "einsum"),
        (lambda x: torch.einsum("ii,ij->ij", x, x), "einsum"),
        (lambda x: torch.einsum("ij,kj->k", x, x), "einsum"),
        (lambda x: x @ x[0], "vector"),
        (lambda x: F.conv_transpose2d(x[None, None], torch.ones(1, 1, 3, 3), stride=2), "transposed convolution"),
        (lambda x: F.conv3d(x[None, None, None], torch.ones(1, 1, 1, 2, 2)), "conv3d"),
        (lambda x: F.bilinear(x, x, torch.ones(2, 4, 4)), "bilinear"),
    ],
)
def test_products_without_a_quantized_form_are_refused_by_name_and_nothing_changes(function: Any, named: str) -> None:
    model, x = nn.Sequential(Calls(function)), torch.randn(4, 4)
    with pytest.raises(fractrain.UnsupportedError, match=named) as refused:
        fractrain.convert(model, x)
    assert "float32 on the host" in str(refused.value) and "keep=['0']" in str(refused.value)
    assert type(model[0]) is Calls and type(model[0].inner) is nn.Linear
    found = fractrain.convert(model, x, bits="2/2/2", keep=["0"])
    assert set(found.unsupported) == {"0"} and found.kept == ("0.inner",)
    assert torch.allclose(model(x), function(F.linear(x, model[0].inner.weight, model[0].inner.bias)), atol=1e-5)


def test_recurrent_layers_over_packed_sequences_are_refused() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_sequence([x[0], x[1, :3]])
            _, (state, _) = self.lstm(packed)
            return state[-1]

    x = torch.randn(2, 5, 3)
    with pytest.raises(fractrain.UnsupportedError, match=r"lstm \(LSTM\): torch\.lstm: .* packed"):
        fractrain.convert(Packed(), x)


def test_wrong_uses_are_refused() -> None:
    model = UNet()
    with pytest.raises(ValueError, match="'nowhere'"):
        fractrain.convert(model, IMAGES, keep=["nowhere"])
    with pytest.raises(ValueError, match="float16"):
        fractrain.convert(UNet().half(), IMAGES)
    with pytest.raises(ValueError, match="nothing to quantize"):
        fractrain.convert(nn.Sequential(nn.ReLU()), IMAGES)
    with pytest.raises(ValueError, match="write for example"):
        fractrain.convert(model, IMAGES, bits="8/8")
    fractrain.convert(model, IMAGES, bits="8/8/8")
    with pytest.raises(ValueError, match="quantized already"):
        fractrain.convert(model, IMAGES)
    with pytest.raises(TypeError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
        model.out(model.down(IMAGES).repeat(1, 2, 1, 1).bfloat16())


def test_a_way_that_the_example_did_not_take_is_an_error() -> None:
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.T if len(x) < 4 else x @ x.T @ x @ x.T

    model = Grows()
    fractrain.convert(model, torch.randn(2, 3), bits="8/8/8")
    with pytest.raises(RuntimeError, match="was not seen with the example"):
        model(torch.randn(5, 3))


def test_distributed_data_parallel_takes_a_converted_network() -> None:
    importlib.import_module("torch.distributed.nn.functional")  # before there is a group, see sw_model.nn.parallel
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        steps = []
        for wrap in (lambda model: model, DistributedDataParallel):
            torch.manual_seed(0)
            model = UNet()
            fractrain.convert(model, IMAGES, bits="4/3/6")
            steps.append((train_a_step(wrap(model), IMAGES), [p.detach().clone() for p in model.parameters()]))
    finally:
        distributed.destroy_process_group()
    assert steps[0][0] == steps[1][0] and all(torch.equal(a, b) for a, b in zip(steps[0][1], steps[1][1], strict=True))


@pytest.mark.slow
def test_two_processes_keep_the_same_weights_and_turn_together() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.support.own_network_worker"],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    told = dict(re.findall(r"rank (\d): (.*)", done.stdout))
    assert told.keys() == {"0", "1"} and told["0"] == told["1"], (done.stdout, done.stderr[-2000:])
    assert told["0"].endswith(" 24")
