"""Children that train and die by SIGKILL, forked from a server that has imported but computed nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig


def train_and_die(config: TrainConfig, out: Path, writes: int) -> None:
    """Trains until file number ``writes`` (from 0) of the run folder would be replaced, and is killed right before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count, replace = itertools.count(), os.replace

    def die(source: Any, target: Any) -> None:
        if next(count) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    with patch("os.replace", die):
        train(config, out=out)


def run_child(config: TrainConfig, out: Path, writes: int) -> int:
    """Exit status of a child that does so: -SIGKILL, or 0 if it had fewer files to write."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", __name__])
    child = context.Process(target=train_and_die, args=(config, out, writes))
    child.start()
    child.join(300)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode
