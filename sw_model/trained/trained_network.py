"""The network that a run has trained, ready for use: its weights, its precision, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from host.operands import Engine
from sw_model.data.images import ImageSet
from sw_model.data.inputs import FileInputs, ImageInputs
from sw_model.nn.layers import attach, set_precision
from sw_model.nn.precision import Precision, Run
from sw_model.nn.reproducible import arithmetic
from sw_model.train.folder import CHECKPOINT, load_checkpoint
from sw_model.train.pretrained import build_network
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import Classification, Task, open_task


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode at the precision that its last epoch was tested with.

    Attributes:
        config: the run's recipe.
        inputs: how image files become its inputs, and what its outputs mean; None: they do not.
        model: maps float32 (N, C, H, W) to logits (N, classes), or words (N, T) to logits (N, T, words).
        precision: of the layers that the schedule governs; gates choose that of their own.
        run: what its layers share.
        example: a batch of one input, zeros.
    """

    config: TrainConfig
    inputs: FileInputs | None
    model: nn.Module
    precision: Precision
    run: Run
    example: Tensor

    @property
    def gated(self) -> bool:
        """Whether gates choose the precision of blocks for every image."""
        return self.config.schedule == "dfq"

    @torch.no_grad()
    def logits(self, x: Tensor, engine: Engine | None = None) -> Tensor:
        """The network's outputs.

        Args:
            x: see :attr:`model`.
            engine: computes the quantized products exactly; None takes the fast path.
        """
        self.run.engine = engine
        with arithmetic(self.run):
            result: Tensor = self.model(x)
        return result


def open_trained(run: Path) -> TrainedNetwork:
    """The network of a run folder, as its last checkpoint has it.

    Only a run of a version before this one, whose checkpoints do not say what the network takes, needs its data again.

    Raises:
        ConfigError, DataError: no checkpoint, a damaged one, or data that is needed and not there.
    """
    state = load_checkpoint(run / CHECKPOINT)
    config = TrainConfig.from_toml(state["config"], f"of {run / CHECKPOINT}")
    task, inputs = _task(config, state)
    base, gated = build_network(config, task, pretrained=False)
    model = base if gated is None else gated
    shared = attach(
        model,
        Run(
            seed=config.seed,
            mode=config.mode,
            quantizer=config.quantizer,
            gradient=config.gradient,
            range_momentum=config.range_momentum,
        ),
    )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ConfigError(f"{run / CHECKPOINT} does not fit its own recipe ({error}); it is damaged") from error
    precision = _last_precision(config, state)
    set_precision(model, precision)
    return TrainedNetwork(config, inputs, model.eval(), precision, shared, task.example())


def _task(config: TrainConfig, state: Mapping[str, Any]) -> tuple[Task, FileInputs | None]:
    """The run's task, on no images where the checkpoint says what they are like, and what its network takes."""
    if state.get("inputs") is None:
        task = open_task(config)
        return task, task.data.inputs()
    inputs = ImageInputs.from_record(state["inputs"])
    images, labels = np.zeros((0, *inputs.shape), np.uint8), np.zeros(0, np.int64)
    like = ImageSet(images, labels, images, labels, inputs.classes, 255.0, inputs.mean, inputs.std, shift=0, flip=False)
    return Classification(like), inputs


def _last_precision(config: TrainConfig, state: Mapping[str, Any]) -> Precision:
    """The precision of the last whole epoch, which its test used; before the end of one, that of the first."""
    history, stages = state["history"], config.stages
    bits = history[-1]["bits"] if history else None
    if bits not in (None, "gated"):
        return Precision(*(0 if bits == "fp32" else int(width) for width in bits.split("/")))
    stage = history[-1]["stage"] if history else 0
    return Precision(*stages[min(stage, len(stages) - 1)])
