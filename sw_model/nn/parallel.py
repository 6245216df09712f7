"""Data-parallel training: every process computes a part of every batch, on the CPU or each on a GPU of its own.

The result is that of one process, up to the order of float32 sums:

- A layer takes its quantities of a batch from the global batch: ranges of activations and gradients, statistics of
  batch normalisation, the number of an element in stochastic rounding.  So every code has the same grid and the same
  random number as in one process.
- The loss of a rank is its share of the global mean.  Gradients are added up.
- Gates choose for every sample.  Their cost, their meters and all statistics over chosen samples are global, too.
  Samples that chose the same option, or did not skip a block, form a :class:`Shard`.  A process may have no sample of
  a shard; it then computes on empty tensors, so that all processes meet in the same reductions in the same order.

Refused is what needs the whole batch in one process: exact engines, quantizers other than affine ones, Range BN.

Quantized gradients amplify the last bits of a sum: a value at the border between two codes falls to the other side,
and the layers below follow.  ResNet-8 on digits at 8/8/8 differs from one process by 3e-5 in its weights after one
step, and by 0.03 after three.  One process differs as much from itself (3e-5 to 6e-5, and 0.04 to 0.06) if its initial
weights move by one part in 10**7.  Without quantization the distance after three steps is 2e-7.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from sw_model.data.images import BatchPart
from sw_model.quantize import kernels
from sw_model.quantize.affine import flush, refuse_non_finite


@dataclass(frozen=True)
class Ranks:
    """The processes of a training.

    Attributes:
        part: which of them this is.
    """

    part: BatchPart

    @property
    def several(self) -> bool:
        return self.part.size > 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.part.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Sum over all processes, in place; the same bits everywhere."""
        if self.several:
            distributed.all_reduce(x)
        return x

    def least(self, x: Tensor) -> Tensor:
        """Least values over all processes, in place."""
        if self.several:
            distributed.all_reduce(x, distributed.ReduceOp.MIN)
        return x

    def sum_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients of all processes, in one message."""
        if not self.several:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


ALONE = Ranks(BatchPart())


@contextmanager
def processes() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started; one, if it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    # The first optimizer imports this module, whose functions have the group of that moment as a default: one that exists
    # would outlive its end, and its threads that of Python, which aborts if one of them then lets go of a tensor.
    importlib.import_module("torch.distributed.nn.functional")
    gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")  # counts are summed on the CPU
    try:
        yield Ranks(BatchPart(distributed.get_rank(), distributed.get_world_size()))
    finally:
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Shard:
    """This process's part of one global batch, or of some of its samples, which may all be elsewhere.

    Attributes:
        ranks: the processes.
        counts: samples of each process, in the order of the batch.
    """

    ranks: Ranks
    counts: tuple[int, ...]

    @classmethod
    def of_batch(cls, ranks: Ranks, total: int) -> Shard:
        """The part of a batch of ``total`` samples, as data sets divide it."""
        parts = (BatchPart(rank, ranks.part.size).rows(total) for rank in range(ranks.part.size))
        return cls(ranks, tuple(rows.stop - rows.start for rows in parts))

    @property
    def total(self) -> int:
        """Samples everywhere."""
        return sum(self.counts)

    @property
    def count(self) -> int:
        """Samples here."""
        return self.counts[self.ranks.part.rank]

    @property
    def before(self) -> int:
        """Samples in the parts before this one."""
        return sum(self.counts[: self.ranks.part.rank])

    @property
    def share(self) -> float:
        """Of the global batch."""
        return self.count / self.total

    def whole(self, amount: int) -> int:
        """What is ``amount`` here, in proportion to the samples, in the global batch; one per sample if none is here."""
        return amount // self.count * self.total if self.count else self.total

    def first(self, x: Tensor) -> int:
        """Number of this process's first element of a tensor whose leading axis runs over samples."""
        return self.before * (x.numel() // self.count) if self.count else 0

    def groups(self, group: Tensor, number: int) -> list[Shard]:
        """The samples of every group as a batch of its own; all processes call this together.

        Args:
            group: of every sample here, int64 (count,), from 0.
            number: how many there are.
        """
        counts = torch.zeros(self.ranks.part.size, number, dtype=torch.int64)
        counts[self.ranks.part.rank] = group.bincount(minlength=number)
        return [Shard(self.ranks, tuple(column)) for column in self.ranks.sum(counts).T.tolist()]

    def gather(self, x: Tensor) -> Tensor:
        """The global tensor (total, ...) of which ``x``, numbers by sample, is a part."""
        whole = x.new_zeros(self.total, *x.shape[1:])
        whole[self.before : self.before + self.count] = x
        return self.ranks.sum(whole)

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and range of the global tensor of which ``x`` is a part; see ``sw_model.quantize.affine.extremes``."""
        found = x.new_full((2,), torch.inf)
        if x.numel():
            low, high = torch.aminmax(x.detach())
            # A reduction may lose NaN, infinity survives; so all processes refuse what one of them meets.
            found = torch.stack([low, -high]).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        low, high = self.ranks.least(found).unbind()
        high = -high
        low, high = flush(low), flush(high)
        span = high - low
        if not kernels.behind(x.device):
            refuse_non_finite(x, low, span)
        return low, flush(span)


class _GlobalNormalisation(torch.autograd.Function):
    """Batch normalisation whose statistics are the global batch's, formed in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ranks: Ranks, eps: float) -> tuple[Tensor, ...]:
        axes = (0, 2, 3)
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        sums = ranks.sum(torch.cat([x.sum(axes, dtype=torch.float64), count]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x.double() - mean[:, None, None]
        variance = ranks.sum(centred.square().sum(axes)) / count
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean.float(), variance.float(), weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, inverse, count = ctx.saved_tensors
        normal = (x.double() - mean[:, None, None]) * inverse[:, None, None]
        wide = grad.double()
        own = torch.stack([wide.sum((0, 2, 3)), (wide * normal).sum((0, 2, 3))])
        both = ctx.ranks.sum(own.clone()) / count
        scale = (weight.double() * inverse)[:, None, None]
        dx = (wide - both[0][:, None, None] - normal * both[1][:, None, None]) * scale
        return dx.float(), own[1].float(), own[0].float(), None, None


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the parts of a batch that several processes hold."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _GlobalNormalisation.apply(x, self.weight, self.bias, self.ranks, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
        result: Tensor = y
        return result


def share_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Makes all batch normalisations of a model take the statistics of the global batch, in place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                shared.ranks = ranks
                setattr(parent, name, shared)
