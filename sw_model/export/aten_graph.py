"""The training step as a graph of the job's operations.

The step is captured by AOTAutograd as one graph of forward and backward pass, with the quantized products whole
(:mod:`sw_model.export.operators`); what remains are normalisation, activation, pooling and loss, each of which has a
counterpart in :mod:`host.board.operations`.  The joint interface of AOTAutograd is not stable between releases of
PyTorch, therefore it is used in one place (:func:`_capture`) and tested against eager training.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.board.operations import OPERATIONS
from sw_model.export.operators import OPERATORS, cost_term, with_operators
from sw_model.nn.gates import GatedNetwork


class ExportError(ValueError):
    """A recipe or network that a job file cannot express; the message names the part."""


#: what lowers a node, by its target
Rules = dict[Any, Callable[[Any], None]]


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
        return loss + cost_term(cost, loss.detach()), loss.detach(), logits.detach(), cost.detach()


def _capture(model: nn.Module, image: tuple[int, int, int], batch: int, training: bool) -> Any:
    """Graph module and signature of one batch size."""
    from torch._functorch.aot_autograd import aot_export_module

    step = _Step(model, training)
    x, y = torch.zeros(batch, *image), torch.zeros(batch, dtype=torch.int64)
    if training:
        return aot_export_module(step, (x, y), trace_joint=True, output_loss_index=0)
    return aot_export_module(step, (x, y), trace_joint=False)


class _Lowering:
    """From ATen nodes to job nodes."""

    def __init__(self, module: Any, signature: Any, training: bool) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._names: dict[Any, str] = {}
        self._parts: dict[tuple[Any, int], str] = {}
        self._count = 0
        self._rules = {**self._arithmetic(), **self._views(), **self._losses()}
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

    def _arithmetic(self) -> Rules:
        """Rules of element-wise operations and matrix products."""
        aten = torch.ops.aten
        return {
            aten.relu.default: lambda n: self._emit(n, "relu", n.args[:1]),
            aten.threshold_backward.default: self._threshold,
            aten.add.Tensor: self._add,
            aten.mul.Tensor: self._mul,
            aten.div.Scalar: lambda n: self._emit(n, "divide", n.args[:1], divisor=float(n.args[1])),
            aten.div.Tensor: self._div,
            aten.mv.default: lambda n: self._emit(n, "matmul", n.args),
            aten.mm.default: lambda n: self._emit(n, "matmul", n.args),
            aten.addmm.default: self._addmm,
            aten.sigmoid.default: lambda n: self._emit(n, "sigmoid", n.args),
            aten.sigmoid_backward.default: lambda n: self._emit(n, "sigmoid_gradient", n.args),
            aten.tanh.default: lambda n: self._emit(n, "tanh", n.args),
            aten.tanh_backward.default: lambda n: self._emit(n, "tanh_gradient", n.args),
            aten._softmax.default: lambda n: self._emit(n, "softmax", n.args[:1], axis=_axis(n, n.args[1])),
            aten._softmax_backward_data.default: lambda n: self._emit(
                n, "softmax_gradient", n.args[:2], axis=_axis(n, n.args[2])
            ),
        }

    def _views(self) -> Rules:
        """Rules of what moves, repeats or sums elements."""
        aten = torch.ops.aten
        return {
            aten.detach.default: self._alias,
            aten.alias.default: self._alias,
            aten.clone.default: self._alias,
            aten.t.default: lambda n: self._emit(n, "transpose", n.args, axes=[1, 0]),
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
            operator.getitem: self._getitem,
        }

    def _losses(self) -> Rules:
        """Rules of the project's own operators, of normalisation and of the loss."""
        aten = torch.ops.aten
        return {
            **{getattr(torch.ops.fractrain, op).default: partial(self._own, op) for op in OPERATORS},
            **self._passes(),
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
        }

    def _passes(self) -> Rules:
        """Rules of a backbone in passes of the fabric, see :mod:`host.board.job_step`."""
        own = torch.ops.fractrain
        return {
            own.passes.default: lambda n: self._emit(n, "passes", (n.args[0], *n.args[1])),
            own.passes_chosen.default: lambda n: self._emit(n, "passes_chosen", n.args[:1], block=n.args[1]),
            own.passes_features.default: self._alias,
            own.passes_statistics.default: lambda n: self._all(n, "passes_statistics"),
            own.passes_gradient.default: lambda n: self._all(n, "passes_gradient"),
            torch.ops.aten.copy.default: lambda n: self._rename(n, n.args[1]),
        }

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

    def _all(self, node: Any, op: str) -> None:
        """A node whose results are a list, of its first operand."""
        count = len(node.meta["val"])
        self._several(node, op, node.args[:1], count, tuple(range(count)))

    def _alias(self, node: Any) -> None:
        self._rename(node, node.args[0])

    def _rename(self, node: Any, source: Any) -> None:
        self._names[node] = self.name(source)

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


def lower_step(model: nn.Module, image: tuple[int, int, int], batch: int, training: bool) -> dict[str, Any]:
    """The graph of a job for one batch size: of a training step, or of an evaluation.

    Raises:
        ExportError: the network has an operation that jobs do not have.
    """
    module, signature = _capture(with_operators(model), image, batch, training)
    return _Lowering(module, signature, training).graph()
