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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.board.job import RECIPE, write_job
from host.board.operations import OPERATIONS
from host.operands import ConvGeometry
from sw_model.data.images import ImageSet
from sw_model.nn.convolution import convolve
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import DEPTHWISE, QConv2d, Run, quantized_layers
from sw_model.nn.models import Convolve, plain
from sw_model.train.pretrained import build_network
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import Classification, open_task


class ExportError(ValueError):
    """A recipe or network that a job file cannot express; the message names the part."""


# -- products as operators ----------------------------------------------------------------------------------------
#
# They are traced, never run: what they compute is decided by the job's runtime.  Shapes are those of the results.


def _operator(name: str, result: Callable[..., Tensor]) -> Any:
    """An operator whose result has the shape and type of ``result(*operands)``."""
    made = torch.library.custom_op(f"fractrain::{name}", result, mutates_args=())
    made.register_fake(result)
    return made


def _convolved(x: Tensor, weight: Tensor, layer: int, stride: int, padding: int, groups: int) -> Tensor:
    return convolve(x, weight, stride, padding, groups)


def _like_x(
    grad: Tensor, weight: Tensor, x: Tensor, layer: int, stride: int, padding: int, groups: int
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


def _like_weight(
    grad: Tensor, x: Tensor, weight: Tensor, layer: int, stride: int, padding: int, groups: int
) -> Tensor:  # fmt: skip
    return weight.new_empty(weight.shape)


def _gated(x: Tensor, weight: Tensor, mask: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return convolve(x, weight, stride, padding)


def _gated_like_x(
    grad: Tensor, weight: Tensor, x: Tensor, mask: Tensor, layer: int, stride: int, padding: int
) -> Tensor:
    return x.new_empty(x.shape)


def _gated_like_weight(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, layer: int, stride: int, padding: int
) -> Tensor:
    return weight.new_empty(weight.shape)


def _like_mask(dx: Tensor, x: Tensor, mask: Tensor, layer: int) -> Tensor:
    return mask.new_empty(mask.shape)


def _like_soft(soft: Tensor) -> Tensor:
    return soft.new_empty(soft.shape)


def _like_cost(cost: Tensor, task: Tensor) -> Tensor:
    return cost.new_empty(cost.shape)


def _like_grad(grad: Tensor, cost: Tensor, task: Tensor) -> Tensor:
    return grad.new_empty(grad.shape)


_product = _operator("product", _convolved)
_input_gradient = _operator("input_gradient", _like_x)
_weight_gradient = _operator("weight_gradient", _like_weight)
_gated_product = _operator("gated_product", _gated)
_gated_input_gradient = _operator("gated_input_gradient", _gated_like_x)
_gated_weight_gradient = _operator("gated_weight_gradient", _gated_like_weight)
_gated_mask_gradient = _operator("gated_mask_gradient", _like_mask)
_choice = _operator("choice", _like_soft)
_cost_term = _operator("cost_term", _like_cost)
_cost_term_gradient = _operator("cost_term_gradient", _like_grad)


def _keep(tensors: int) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    return keep


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = _input_gradient(grad, weight, x, *ctx.rest) if ctx.needs_input_grad[0] else None
    dw = _weight_gradient(grad, x, weight, *ctx.rest) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None, None


def _gated_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    dx = _gated_input_gradient(grad, weight, x, mask, *ctx.rest)
    dw = _gated_weight_gradient(grad, x, weight, mask, *ctx.rest)
    return dx, dw, _gated_mask_gradient(dx, x, mask, ctx.rest[0]), None, None, None


def _cost_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _cost_term_gradient(grad, *ctx.saved_tensors), None


#: operators that the runtime has under the same name, attributes in the same order
_OWN = (
    "product", "input_gradient", "weight_gradient", "gated_product", "gated_input_gradient", "gated_weight_gradient",
    "gated_mask_gradient", "choice", "cost_term", "cost_term_gradient",
)  # fmt: skip

_product.register_autograd(_product_backward, setup_context=_keep(2))
_gated_product.register_autograd(_gated_backward, setup_context=_keep(3))
_cost_term.register_autograd(_cost_backward, setup_context=_keep(2))


# -- capture ------------------------------------------------------------------------------------------------------


class _Step(nn.Module):
    """What is differentiated, the loss of the labels, and logits (and a gated network's cost); or logits alone."""

    def __init__(self, model: nn.Module, training: bool) -> None:
        super().__init__()
        self.model = model
        self._with_loss = training
        self.train(training)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(x)
        if not self._with_loss:
            return (logits,)
        loss = F.cross_entropy(logits, y)
        if not isinstance(self.model, GatedNetwork):
            return loss, loss.detach(), logits.detach()
        cost = self.model.cp()
        return loss + _cost_term(cost, loss.detach()), loss.detach(), logits.detach(), cost.detach()


def _with_operators(model: nn.Module) -> nn.Module:
    """A copy of a network whose quantized layers and gates call the custom operators."""
    clone = copy.deepcopy(model)
    for index, (_, layer) in enumerate(quantized_layers(clone)):
        layer.index = index

        def product(x: Tensor, weight: Tensor, g: ConvGeometry, groups: int, index: int = index) -> Tensor:
            out: Tensor = _product(x, weight, index, g.stride, g.padding, groups)
            return out

        layer._product = product  # type: ignore[method-assign,assignment]
    if isinstance(clone, GatedNetwork):
        gates = clone._gates

        def convolution(mask: Tensor) -> Convolve:
            def convolve(layer: QConv2d, x: Tensor) -> Tensor:
                if not gates(layer):
                    return plain(layer, x)
                out: Tensor = _gated_product(x, layer.weight, mask, layer.index, layer.stride, layer.padding)
                return out

            return convolve

        def one_hot(soft: Tensor, block: int) -> Tensor:
            out: Tensor = _choice(soft)
            return out

        clone._convolution, clone._one_hot = convolution, one_hot  # type: ignore[method-assign]
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
            **{getattr(torch.ops.fractrain, op).default: partial(self._own, op) for op in _OWN},
            aten.relu.default: lambda n: self._emit(n, "relu", n.args[:1]),
            aten.threshold_backward.default: self._threshold,
            aten.add.Tensor: self._add,
            aten.mul.Tensor: self._mul,
            aten.div.Scalar: lambda n: self._emit(n, "divide", n.args[:1], divisor=float(n.args[1])),
            aten.div.Tensor: self._div,
            aten.mv.default: lambda n: self._emit(n, "matmul", n.args),
            aten.mm.default: lambda n: self._emit(n, "matmul", n.args),
            aten.addmm.default: self._addmm,
            aten.t.default: lambda n: self._emit(n, "transpose", n.args, axes=[1, 0]),
            aten.sigmoid.default: lambda n: self._emit(n, "sigmoid", n.args),
            aten.sigmoid_backward.default: lambda n: self._emit(n, "sigmoid_gradient", n.args),
            aten.tanh.default: lambda n: self._emit(n, "tanh", n.args),
            aten.tanh_backward.default: lambda n: self._emit(n, "tanh_gradient", n.args),
            aten._softmax.default: lambda n: self._emit(n, "softmax", n.args[:1], axis=_axis(n, n.args[1])),
            aten._softmax_backward_data.default: lambda n: self._emit(
                n, "softmax_gradient", n.args[:2], axis=_axis(n, n.args[2])
            ),
            aten.zeros.default: lambda n: self._emit(n, "zeros", (), shape=_shape(n)),
            aten.cat.default: lambda n: self._emit(n, "concatenate", n.args[0], axis=_axis(n, (*n.args, 0)[1])),
            aten.stack.default: self._stack,
            aten.unsafe_split.Tensor: self._split,
            aten.select.int: self._select,
            aten.view.default: self._reshape,
            aten.reshape.default: self._reshape,
            aten._unsafe_view.default: self._reshape,
            aten.unsqueeze.default: self._reshape,
            aten.squeeze.dim: self._reshape,
            aten.squeeze.dims: self._reshape,
            aten.expand.default: lambda n: self._emit(n, "expand", n.args[:1], shape=_shape(n)),
            aten.sum.dim_IntList: lambda n: self._reduce(n, "sum"),
            aten.mean.dim: lambda n: self._reduce(n, "mean"),
            aten.mean.default: lambda n: self._emit(
                n, "mean", n.args, axes=list(range(n.args[0].meta["val"].ndim)), keep=0
            ),
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

    def _own(self, op: str, node: Any) -> None:
        count = OPERATIONS[op].inputs
        assert count is not None
        self._emit(node, op, node.args[:count], **dict(zip(OPERATIONS[op].attributes, node.args[count:], strict=True)))

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
            self._emit(node, "multiply", node.args)
            return
        self._emit(node, "scale", node.args[:1], factor=float(node.args[1]))

    def _div(self, node: Any) -> None:
        if isinstance(node.args[1], torch.fx.Node):
            raise ExportError("quotients of two values are not expressible")
        self._emit(node, "divide", node.args[:1], divisor=float(node.args[1]))

    def _reshape(self, node: Any) -> None:
        self._emit(node, "reshape", node.args[:1], shape=_shape(node))

    def _addmm(self, node: Any) -> None:
        if node.kwargs:
            raise ExportError("a matrix product with factors is not expressible")
        self._emit(node, "affine", node.args)

    def _stack(self, node: Any) -> None:
        axis = _axis(node, (*node.args, 0)[1])
        shape = _shape(node)
        shape[axis] = 1
        parts = []
        for part in node.args[0]:
            parts.append(self._fresh())
            self._add_node("reshape", [self.name(part)], [parts[-1]], [shape], {"shape": shape})
        self._names[node] = self._fresh()
        self._add_node("concatenate", parts, [self._names[node]], [_shape(node)], {"axis": axis})

    def _split(self, node: Any) -> None:
        """Equal parts along an axis: a slice for each."""
        source, step, axis = (*node.args, 0)[:3]
        for i, part in enumerate(node.meta["val"]):
            self._parts[node, i] = self._fresh()
            attributes = {"axis": axis % part.ndim, "start": i * step, "stop": i * step + part.shape[axis]}
            self._add_node("slice", [self.name(source)], [self._parts[node, i]], [list(part.shape)], attributes)

    def _select(self, node: Any) -> None:
        source, axis, index = node.args
        shape = [int(n) for n in source.meta["val"].shape]
        axis, index = axis % len(shape), index % shape[axis]
        shape[axis] = 1
        name = self._fresh()
        self._add_node("slice", [self.name(source)], [name], [shape], {"axis": axis, "start": index, "stop": index + 1})
        self._names[node] = self._fresh()
        self._add_node("reshape", [name], [self._names[node]], [_shape(node)], {"shape": _shape(node)})

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
            result["loss"], result["logits"] = outputs[users[1]], outputs[users[2]]
            if len(users) > 3:
                result["cost"] = outputs[users[3]]
            assert s.backward_signature is not None
            for output, parameter in s.backward_signature.gradients_to_parameters.items():
                result["gradients"][_plain(parameter)] = outputs[output]
        else:
            result["logits"] = outputs[users[0]]
        wanted = {
            result["logits"],
            result.get("loss"),
            result.get("cost"),
            *buffers.values(),
            *result["gradients"].values(),
        }
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
            f"schedule {config.schedule!r} has no counterpart in jobs; use {', '.join(RECIPE['schedule'])}"
        )
    supported = {
        "mode": "fixed", "quantizer": "affine", "gradient": "affine", "norm": "batch", "optimizer": "sgd", "gate": "argmax",
        "init": "",
    }  # fmt: skip
    for key, value in supported.items():
        if getattr(config, key) != value:
            raise ExportError(f"{key} = {getattr(config, key)!r} has no counterpart in jobs, which have {value!r} only")
    for option in config.options:
        if not all(1 <= bits <= 16 for bits in option):
            raise ExportError(
                f"option {list(option)}: gates of jobs choose among 1..16 bits; skipping is not among them"
            )
    for stage in config.stages:
        widths = [0 if bits == 32 else bits for bits in stage]
        if any(widths) and 0 in widths:
            raise ExportError(f"stage {list(stage)} mixes integers and float32; give all operands 1..16 bits, or none")
    values = {key: getattr(config, key) for key in RECIPE if key != "range_momentum"}
    values["stages"] = [[0 if bits == 32 else bits for bits in stage] for stage in config.stages]
    values["eval_batch"] = config.eval_batch or config.batch
    values["range_momentum"] = Run(mode=config.mode, range_momentum=config.range_momentum).running_share
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _fixed(model: nn.Module, name: str, layer: nn.Module) -> list[int] | None:
    """Widths of a layer that does not follow the schedule, as :func:`sw_model.nn.layers.set_precision` has them."""
    if name in getattr(model, "keep_full", set()):
        return [0, 0, 0]
    depthwise = isinstance(layer, QConv2d) and layer.groups > 1
    return [DEPTHWISE.weight, DEPTHWISE.activation, DEPTHWISE.grad] if depthwise else None


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
    task = open_task(config, data)
    if not isinstance(task, Classification):
        raise ExportError(f"model {config.model} reads text, for which jobs have no form; use a network for images")
    if not isinstance(task.data, ImageSet):
        raise ExportError(
            f"a job holds its images, and those of {task.data.root} are decoded as training goes; give images of equal size "
            "in class folders train/ and test/"
        )
    data = task.data
    base, gated = build_network(config, task)
    model = base if gated is None else gated
    layers = [{"name": name, "fixed": _fixed(model, name, layer)} for name, layer in quantized_layers(model)]
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
        "gates": None
        if gated is None
        else {"options": [list(o) for o in config.options], "weight_bits": config.weight_bits},
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
