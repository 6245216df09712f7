"""Trains as every process of test_parallel.py: ``parallel_worker.py FOLDER [die]``.  Without ``die`` leaves codes, weights, the
result, and the names of the threads that are left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sw_model.data.text import TokenSet
from sw_model.nn import gated_convolution, layers, quantized_product
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.parallel import ALONE, Ranks, Shard, processes
from sw_model.quantize import kernels
from sw_model.quantize.affine import Group, quantize
from sw_model.train import loop
from sw_model.train.recipe import TrainConfig

STATIC = TrainConfig(
    width=4,
    schedule="static",
    stages=((8, 8, 8),),
    epochs=1,
    batch=32,
    train_limit=100,
    test_limit=41,
    quantize_head=True,
)
WORDS = np.random.default_rng(0).integers(2, 20, 300)
TEXT = TokenSet(WORDS, WORDS[:60], ("<unk>", "<eos>", *"abcdefghijklmnopqr"), 8)
LANGUAGE = replace(STATIC, model="transformer-small", batch=12, train_limit=0)
FULL = ((0, 0, 0),)
GATES = replace(STATIC, schedule="dfq", options=((3, 6), (4, 6), (6, 8)), targets=(2.0,), beta=0.1, gate="sample")
SKIP = replace(GATES, options=((0, 0), (3, 6), (6, 8)))
SLU = replace(GATES, options=((0, 0), (32, 32)), weight_bits=32, targets=(40.0,), stages=FULL)


def lonely(block: int, samples: int, options: int) -> Tensor:
    """Choices by which a block runs for the first half of the batch only, one for the second, one for a single image."""
    place = torch.arange(samples)
    stays = (place < samples // 2, place >= samples // 2, place == samples - 2)[block]
    return stays * (1 + place % (options - 1))


class Case(NamedTuple):
    """A training.

    Attributes:
        config, data: of it; steps: after which weights are compared.
        choose: options of all samples at a block in place of the gate's, from (block, samples, options).
    """

    config: TrainConfig
    data: TokenSet | None = None
    steps: int = 1
    choose: Callable[[int, int, int], Tensor] | None = None


CASES: dict[str, Case] = {
    "images, float32": Case(replace(STATIC, stages=FULL), steps=5),
    "images": Case(STATIC),
    "uneven": Case(replace(STATIC, batch=33, train_limit=66, stages=((4, 4, 6, 8),))),
    "text, float32": Case(replace(LANGUAGE, stages=FULL), TEXT, 5),
    "text": Case(LANGUAGE, TEXT),
    "gates": Case(replace(GATES, gate="argmax")),
    "gates, drawn": Case(GATES),
    "gates, every option": Case(replace(GATES, mode="masked-noise")),
    "gates, uneven, skipping": Case(replace(SKIP, batch=33, train_limit=66)),
    "gates, skipping by one process": Case(SKIP, choose=lonely),
    "one option, skipping by one process": Case(replace(SKIP, options=((0, 0), (4, 8))), choose=lonely),
    "skipping, float32": Case(SLU, steps=5),
    # One process is below the target, both together are above it.
    "skipping by one process, float32": Case(replace(SLU, targets=(34.0,)), steps=5, choose=lonely),
    "skipping, few, float32": Case(replace(SLU, batch=3, train_limit=12), steps=5),
}


def run(folder: Path, ranks: Ranks) -> None:
    """Trains all cases into ``folder``/case; what the first step quantized, and the result, go beside, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        noted = Noted(case)
        losses: list[float] = []

        def stop(step: loop.TrainingStep, noted: Noted = noted, losses: list[float] = losses) -> None:
            noted.stop()
            assert step.loss is not None
            losses.append(step.loss)

        with noted:
            result = loop.train(
                case.config, data=case.data, ranks=ranks, on_step=stop, out=folder / name, stop_after=case.steps
            )
        torch.save([noted.codes, noted.gradients, noted.choices], folder / f"{name}-{ranks.part.rank}.pt")
        figures = [result.cc, result.cc_full, result.images, result.steps, losses, result.test_score]
        (folder / f"{name}-{ranks.part.rank}.json").write_text(json.dumps(figures))


class Noted:
    """What a training's first step quantizes, and what gates choose in it: within ``with``, until :meth:`stop`.

    Attributes:
        codes: of activations; gradients: values; choices: of gates.  One tensor per call, samples first.
    """

    def __init__(self, case: Case) -> None:
        self.codes: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.choices: list[Tensor] = []
        self._case, self._on = case, True
        self._plain = (
            quantized_product.quantize_and_keep,
            layers.Run.gradient_values,
            gated_convolution.fake_quantize_groups,
        )
        self._choose = GatedNetwork._choose

    def stop(self) -> None:
        self._on = False

    def __enter__(self) -> Noted:
        quantize_and_keep, gradient_values, fake_quantize_groups = self._plain

        def note_codes(*args: Any) -> Any:
            values, kept = quantize_and_keep(*args)
            self._note(self.codes, kept)
            return values, kept

        def note_gradients(*args: Any) -> Tensor:
            values = gradient_values(*args)
            self._note(self.gradients, values)
            return values

        def note_groups(x: Tensor, groups: Sequence[Group], scratch: str) -> Tensor:
            values = fake_quantize_groups(x, groups, scratch)
            if scratch == "gradient":
                self._note(self.gradients, values)
            else:
                codes = torch.empty(x.shape)
                for samples, grid, _ in groups:
                    codes[samples] = quantize(x[samples], grid)
                self._note(self.codes, codes)
            return values

        def choose(network: GatedNetwork, soft: Tensor, block: int) -> Tensor:
            own = self._choose(network, soft, block)
            if self._case.choose is not None and network.training:
                shard = network.base.stem.run.shard or Shard.of_batch(ALONE, len(soft))
                own = self._case.choose(block, shard.total, soft.shape[1])[shard.before : shard.before + shard.count]
            self._note(self.choices, own)
            return own

        quantized_product.quantize_and_keep, layers.Run.gradient_values = note_codes, note_gradients  # type: ignore[method-assign, assignment]
        gated_convolution.fake_quantize_groups, GatedNetwork._choose = note_groups, choose  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        quantized_product.quantize_and_keep, layers.Run.gradient_values, gated_convolution.fake_quantize_groups = (
            self._plain
        )  # type: ignore[method-assign]
        GatedNetwork._choose = self._choose  # type: ignore[method-assign]

    def _note(self, place: list[Tensor], x: Tensor) -> None:
        if self._on:
            place.append(x.clone(memory_format=torch.contiguous_format))


LONG = replace(SKIP, targets=(1.0, 2.0), deadlines=(0,), epochs=2, batch=25, checkpoint_every=1)


def train_and_die(folder: Path, ranks: Ranks) -> None:
    """Trains ``LONG`` in ``folder``/whole, then in ``folder``/killed until a process dies.

    The second process dies after the third step; in a run that goes on from there, the first one does while it writes
    the checkpoint of the sixth.
    """
    killed = folder / "killed"
    resume = (killed / "checkpoint.pt").exists()
    if not resume:
        loop.train(LONG, ranks=ranks, out=folder / "whole")

    def die(step: loop.TrainingStep) -> None:
        if ranks.part.rank == 1 and step.global_step == 2:
            os._exit(9)
        if ranks.part.rank == 0 and step.global_step == 5:
            torch.save = write_half  # type: ignore[assignment]

    def write_half(state: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        os._exit(9)

    loop.train(LONG, ranks=ranks, out=killed, resume=resume, on_step=die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    if sys.argv[2:] == ["die"]:
        with processes() as found:
            train_and_die(target, found)
        sys.exit("nobody died")
    with processes() as found:
        assert found is not ALONE
        run(target / "kernels", found)
        with kernels.portable():
            run(target / "plain", found)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    (target / f"threads-{found.part.rank}.json").write_text(json.dumps(threads))
