"""Process of the test of a converted network under ``DistributedDataParallel``: trains, and says what it has come to."""

from __future__ import annotations

import importlib

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import fractrain
from tests.support.networks_of_others import UNet


def main() -> None:
    importlib.import_module("torch.distributed.nn.functional")  # before there is a group, see sw_model.nn.parallel
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model, rank = UNet(4), distributed.get_rank()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    fractrain.convert(model, images)
    training = fractrain.PrecisionScheduler(model, fractrain.pfq("4/4/6", "8/8/8", window=2, eps=0.2))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for _ in range(3):
        for _ in range(2):
            loss = wrapped(images).square().mean() * (
                1 + rank
            )  # of several sizes, so that they would not turn together
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            training.step(loss)
        training.end_epoch()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    print(f"rank {rank}: {training.bits} {weights.double().sum().item()!r} {training.cost.images}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
