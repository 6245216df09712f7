"""A training run as a job file for the board: PyTorch's joint graph, lowered to a few operations, with data and state.

The training step is captured by AOTAutograd as one graph of forward and backward pass.  The quantized products enter it
as custom operators, so that they stay whole; what remains are normalisation, activation, pooling and loss, each of
which has a counterpart in :mod:`host.board.operations`.  The joint interface of AOTAutograd is not stable between
releases of PyTorch, therefore it is used in one place (:func:`_capture`) and tested against eager training.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.board.job import RECIPE, write_job
from host.products import ConvGeometry
from sw_model.data import ImageSet, load_data
from sw_model.layers import quantized_layers
from sw_model.models import build_model
from sw_model.recipe import ConfigError, TrainConfig


class ExportError(ValueError):
    """A recipe or network that a job file cannot express; the message names the part."""


# -- products as operators ----------------------------------------------------------------------------------------


@torch.library.custom_op("fractrain::product", mutates_args=())
def _product(x: Tensor, weight: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding)


@torch.library.custom_op("fractrain::input_gradient", mutates_args=())
def _input_gradient(grad: Tensor, weight: Tensor, x: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return nn.grad.conv2d_input(x.shape, weight, grad, stride, padding)


@torch.library.custom_op("fractrain::weight_gradient", mutates_args=())
def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return nn.grad.conv2d_weight(x, weight.shape, grad, stride, padding)


@_product.register_fake
def _(x: Tensor, weight: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding)


@_input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, x: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return torch.empty_like(x)


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.rest = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = _input_gradient(grad, weight, x, *ctx.rest) if ctx.needs_input_grad[0] else None
    dw = _weight_gradient(grad, x, weight, *ctx.rest) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None


_product.register_autograd(_backward, setup_context=_keep)


# -- capture ------------------------------------------------------------------------------------------------------


class _Step(nn.Module):
    """Loss and logits of a batch, or logits alone."""

    def __init__(self, model: nn.Module, training: bool) -> None:
        super().__init__()
        self.model = model
        self._with_loss = training
        self.train(training)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(x)
        return (F.cross_entropy(logits, y), logits.detach()) if self._with_loss else (logits,)


def _with_operators(model: nn.Module) -> nn.Module:
    """A copy of a network whose quantized layers call the custom operators."""
    clone = copy.deepcopy(model)
    for index, (name, layer) in enumerate(quantized_layers(clone)):

        def product(
            x: Tensor, weight: Tensor, g: ConvGeometry, groups: int, index: int = index, name: str = name
        ) -> Tensor:
            if groups != 1:
                raise ExportError(f"layer {name} is a grouped convolution, which jobs do not have yet; use a ResNet")
            out: Tensor = _product(x, weight, index, g.stride, g.padding)
            return out

        layer._product = product  # type: ignore[method-assign,assignment]
    return clone


def _capture(model: nn.Module, image: tuple[int, int, int], batch: int, training: bool) -> Any:
    """Graph module and signature of one batch size."""
    from torch._functorch.aot_autograd import aot_export_module

    step = _Step(model, training)
    x, y = torch.zeros(batch, *image), torch.zeros(batch, dtype=torch.int64)
    if training:
        return aot_export_module(step, (x, y), trace_joint=True, output_loss_index=0)
    return aot_export_module(step, (x, y), trace_joint=False)


# -- lowering -----------------------------------------------------------------------------------------------------


class _Lowering:
    """From ATen nodes to job nodes."""

    def __init__(self, module: Any, signature: Any, training: bool) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._names: dict[Any, str] = {}
        self._parts: dict[tuple[Any, int], str] = {}
        self._count = 0
        aten = torch.ops.aten
        same = self._alias
        self._rules: dict[Any, Callable[[Any], None]] = {
            aten.detach.default: same,
            aten.alias.default: same,
            aten.clone.default: same,
            torch.ops.fractrain.product.default: lambda n: self._products(n, "product", 2),
            torch.ops.fractrain.input_gradient.default: lambda n: self._products(n, "input_gradient", 3),
            torch.ops.fractrain.weight_gradient.default: lambda n: self._products(n, "weight_gradient", 3),
            aten.relu.default: lambda n: self._emit(n, "relu", n.args[:1]),
            aten.threshold_backward.default: self._threshold,
            aten.add.Tensor: self._add,
            aten.mul.Tensor: self._mul,
            aten.div.Scalar: lambda n: self._emit(n, "divide", n.args[:1], divisor=float(n.args[1])),
            aten.div.Tensor: self._div,
            aten.view.default: self._reshape,
            aten.reshape.default: self._reshape,
            aten._unsafe_view.default: self._reshape,
            aten.unsqueeze.default: self._reshape,
            aten.squeeze.dim: self._reshape,
            aten.squeeze.dims: self._reshape,
            aten.expand.default: lambda n: self._emit(n, "expand", n.args[:1], shape=_shape(n)),
            aten.sum.dim_IntList: lambda n: self._reduce(n, "sum"),
            aten.mean.dim: lambda n: self._reduce(n, "mean"),
            aten.ones_like.default: lambda n: self._emit(n, "fill", n.args[:1], value=1.0),
            aten._log_softmax.default: lambda n: self._emit(n, "log_softmax", n.args[:1], axis=_axis(n, n.args[1])),
            aten._log_softmax_backward_data.default: lambda n: self._emit(
                n, "log_softmax_gradient", n.args[:2], axis=_axis(n, n.args[2])
            ),
            aten.nll_loss_forward.default: self._nll,
            aten.nll_loss_backward.default: self._nll_gradient,
            aten._native_batch_norm_legit_functional.default: self._batch_norm,
            aten._native_batch_norm_legit_no_training.default: self._batch_norm_fixed,
            aten.native_batch_norm_backward.default: self._batch_norm_gradient,
            operator.getitem: self._getitem,
        }
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        users = iter(("x", "y"))
        for node in module.graph.nodes:
            if node.op == "placeholder":
                inner = names.get(node.name)
                self._names[node] = next(users) if inner is None else f"state:{_plain(inner)}"
            elif node.op == "call_function":
                if _counts_batches(node):
                    continue  # the number of batches, which nothing depends on
                if node.target not in self._rules:
                    raise ExportError(f"the network uses {node.target}, which jobs do not have; known are the "
                                      "operations of host/board/operations.py")  # fmt: skip
                self._rules[node.target](node)
            elif node.op == "output":
                self._outputs = {n.name: n for n in node.args[0] if n is not None}
        self.signature, self.training = signature, training

    def name(self, node: Any) -> str:
        """Job name of a value."""
        if node not in self._names:
            raise ExportError(f"value {node} of the captured graph is not expressible")
        return self._names[node]

    def _fresh(self) -> str:
        self._count += 1
        return f"%{self._count}"

    def _emit(self, node: Any, op: str, inputs: Any, **attributes: Any) -> None:
        self._names[node] = self._fresh()
        self._add_node(op, [self.name(i) for i in inputs], [self._names[node]], [_shape(node)], attributes)

    def _add_node(
        self, op: str, inputs: list[str], outputs: list[str], shapes: list[list[int]], attributes: dict[str, Any]
    ) -> None:
        self.nodes.append({"op": op, "in": inputs, "out": outputs, "shapes": shapes, "attributes": attributes})

    def _several(self, node: Any, op: str, inputs: Any, count: int, order: tuple[int, ...], **attributes: Any) -> None:
        """A node of several results; ``order`` gives the captured position of each of the job's."""
        values = node.meta["val"]
        names = [self._fresh() for _ in range(count)]
        for name, position in zip(names, order, strict=True):
            self._parts[node, position] = name
        shapes = [[int(n) for n in values[p].shape] for p in order]
        self._add_node(op, [self.name(i) for i in inputs], names, shapes, attributes)

    def _alias(self, node: Any) -> None:
        self._names[node] = self.name(node.args[0])

    def _getitem(self, node: Any) -> None:
        if tuple(node.args) not in self._parts:
            raise ExportError(f"result {node.args[1]} of {node.args[0]} is not expressible")
        self._names[node] = self._parts[node.args[0], node.args[1]]

    def _products(self, node: Any, op: str, inputs: int) -> None:
        layer, stride, padding = node.args[inputs:]
        self._emit(node, op, node.args[:inputs], layer=layer, stride=stride, padding=padding)

    def _threshold(self, node: Any) -> None:
        if node.args[2] != 0:
            raise ExportError(f"a threshold of {node.args[2]} is no ReLU")
        self._emit(node, "relu_gradient", node.args[:2])

    def _add(self, node: Any) -> None:
        if not all(isinstance(a, torch.fx.Node) for a in node.args) or node.kwargs:
            raise ExportError("sums with a number are not expressible")
        self._emit(node, "add", node.args)

    def _mul(self, node: Any) -> None:
        if isinstance(node.args[1], torch.fx.Node):
            raise ExportError("products of two values outside quantized layers are not expressible")
        self._emit(node, "scale", node.args[:1], factor=float(node.args[1]))

    def _div(self, node: Any) -> None:
        if isinstance(node.args[1], torch.fx.Node):
            raise ExportError("quotients of two values are not expressible")
        self._emit(node, "divide", node.args[:1], divisor=float(node.args[1]))

    def _reshape(self, node: Any) -> None:
        self._emit(node, "reshape", node.args[:1], shape=_shape(node))

    def _reduce(self, node: Any, op: str) -> None:
        rank = node.args[0].meta["val"].ndim
        axes = sorted(int(a) % rank for a in node.args[1])
        keep = int(bool(node.args[2])) if len(node.args) > 2 else 0
        self._emit(node, op, node.args[:1], axes=axes, keep=keep)

    def _nll(self, node: Any) -> None:
        if node.args[2] is not None or node.args[3] != 1:
            raise ExportError("only the unweighted mean of the likelihood is expressible")
        self._several(node, "nll", node.args[:2], 2, (0, 1))

    def _nll_gradient(self, node: Any) -> None:
        self._emit(node, "nll_gradient", (node.args[0], node.args[1], node.args[2], node.args[6]))

    def _batch_norm(self, node: Any) -> None:
        x, weight, bias, mean, variance, training, momentum, eps = node.args
        inputs = (x, weight, bias, mean, variance)
        if training:
            self._several(node, "batch_norm", inputs, 5, (0, 1, 2, 3, 4), momentum=momentum, eps=eps)
        else:
            self._several(node, "batch_norm_fixed", inputs, 1, (0,), eps=eps)
            self._parts[node, 3], self._parts[node, 4] = self.name(mean), self.name(variance)

    def _batch_norm_fixed(self, node: Any) -> None:
        self._several(node, "batch_norm_fixed", node.args[:5], 1, (0,), eps=node.args[6])

    def _batch_norm_gradient(self, node: Any) -> None:
        grad, x, weight, _, _, mean, inverse, training, _, mask = node.args
        if not training or not all(mask):
            raise ExportError("a normalisation without trained parameters is not expressible")
        self._several(node, "batch_norm_gradient", (grad, x, weight, mean, inverse), 3, (0, 1, 2))

    def graph(self) -> dict[str, Any]:
        """The job's graph; nodes that nothing needs are left out."""
        s = self.signature
        outputs = {name: self._names.get(node) for name, node in self._outputs.items()}
        buffers = {}
        for output, buffer in s.buffers_to_mutate.items():
            name = outputs.get(output)
            if name is not None and not _plain(buffer).endswith("num_batches_tracked") and self.training:
                buffers[_plain(buffer)] = name
        result: dict[str, Any] = {"buffers": buffers, "gradients": {}}
        users = [o for o in s.user_outputs]
        if self.training:
            result["loss"], result["logits"] = outputs[users[0]], outputs[users[1]]
            assert s.backward_signature is not None
            for output, parameter in s.backward_signature.gradients_to_parameters.items():
                result["gradients"][_plain(parameter)] = outputs[output]
        else:
            result["logits"] = outputs[users[0]]
        wanted = {result["logits"], result.get("loss"), *buffers.values(), *result["gradients"].values()}
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node["out"]):
                kept.append(node)
                wanted |= set(node["in"])
        result["nodes"] = kept[::-1]
        return result


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _shape(node: Any) -> list[int]:
    return [int(n) for n in node.meta["val"].shape]


def _axis(node: Any, axis: int) -> int:
    return int(axis % node.meta["val"].ndim)


def _counts_batches(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.int64 and node.target is torch.ops.aten.add.Tensor


# -- export -------------------------------------------------------------------------------------------------------


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that the board needs.

    Raises:
        ExportError: something that a job cannot express.
    """
    if config.schedule not in RECIPE["schedule"]:
        raise ExportError(
            f"schedule {config.schedule!r} decides inside the network; jobs have {', '.join(RECIPE['schedule'])}"
        )
    for name, possible in (("mode", "fixed"), ("quantizer", "affine"), ("gradient", "affine"), ("norm", "batch")):
        if getattr(config, name) != possible:
            raise ExportError(f"{name} = {getattr(config, name)!r} has no place in a job; use {possible!r}")
    for stage in config.stages:
        widths = [0 if bits == 32 else bits for bits in stage]
        if any(widths) and 0 in widths:
            raise ExportError(f"stage {list(stage)} mixes integers and float32; give all operands 1..16 bits, or none")
    values = {key: getattr(config, key) for key in RECIPE if key != "range_momentum"}
    values["stages"] = [[0 if bits == 32 else bits for bits in stage] for stage in config.stages]
    values["eval_batch"] = config.eval_batch or config.batch
    from sw_model.layers import Run

    values["range_momentum"] = Run().momentum
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def export_job(config: TrainConfig, path: Path, data: ImageSet | None = None) -> dict[str, int]:
    """Write a run as a job file.

    Args:
        config: the recipe.
        path: of the job, replaced in one step.
        data: data set, if not the one that ``config.data`` names.

    Returns:
        Sizes for people: ``nodes``, ``parameters``, ``images``, ``bytes``.

    Raises:
        ExportError: the recipe or the network cannot be expressed.
        ConfigError, DataError: as in training.
    """
    recipe = _recipe(config)
    if not path.parent.is_dir():
        raise ConfigError(f"folder {path.parent} does not exist; make it or choose another path with --out")
    if data is None:
        data = load_data(config.data)
    data = data.limited(config.train_limit, config.test_limit)
    if not config.augment:
        data = replace(data, shift=0, flip=False)
    model = build_model(
        config.model,
        len(data.classes),
        data.image_shape,
        width=config.width,
        quantize_stem=config.quantize_stem,
        quantize_head=config.quantize_head,
        seed=config.seed,
    )
    keep: set[str] = getattr(model, "keep_full", set())
    layers = [{"name": name, "keep_full": name in keep} for name, _ in quantized_layers(model)]
    graphs: dict[str, dict[str, Any]] = {"train": {}, "evaluate": {}}
    counts = {
        "train": (len(data.train_labels), config.batch),
        "evaluate": (len(data.test_labels), recipe["eval_batch"]),
    }
    for kind, (count, batch) in counts.items():
        training = kind == "train"
        for size in sorted({min(batch, count), count % batch} - {0}):
            if training and size == 1:
                raise ExportError(
                    f"{count} images leave a last batch of one, which batch norm cannot take; change batch"
                )
            module, signature = _capture(_with_operators(model), data.image_shape, size, training)
            graphs[kind][str(size)] = _Lowering(module, signature, training).graph()
    owned = {
        f"{name}.{leaf}" for name, _ in quantized_layers(model) for leaf in ("running_low", "running_span", "batches")
    }
    arrays: dict[str, Any] = {}
    state: dict[str, str] = {}
    parameters = [name for name, _ in model.named_parameters()]
    for name, tensor in model.state_dict().items():
        if name in owned or name.endswith("num_batches_tracked"):
            continue
        state[name] = f"state/{name}.npy"
        arrays[state[name]] = tensor.detach().numpy()
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        arrays[f"data/{key}.npy"] = np.ascontiguousarray(getattr(data, key))
    document = {
        "recipe": recipe,
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "model": config.model,
        "layers": layers,
        "parameters": parameters,
        "state": state,
        "graphs": graphs,
        "data": {
            **{key: f"data/{key}.npy" for key in ("train_images", "train_labels", "test_images", "test_labels")},
            "full_scale": data.full_scale,
            "mean": list(data.mean),
            "std": list(data.std),
            "shift": data.shift,
            "flip": data.flip,
        },
    }
    write_job(path, document, arrays)
    return {
        "nodes": sum(len(g["nodes"]) for kind in graphs.values() for g in kind.values()),
        "parameters": sum(int(np.prod(arrays[state[n]].shape)) for n in parameters),
        "images": len(data.train_labels) + len(data.test_labels),
        "bytes": path.stat().st_size,
    }
