"""Trains as every process of test_parallel.py: ``parallel_worker.py FOLDER``.  Leaves codes, weights, the
result, and the names of the threads that are left."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sw_model import fused, layers, training
from sw_model.parallel import ALONE, Ranks, processes
from sw_model.recipe import TrainConfig
from sw_model.text import TokenSet

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
#: settings, text, and steps after which weights are compared
CASES: dict[str, tuple[TrainConfig, TokenSet | None, int]] = {
    "images, float32": (replace(STATIC, stages=FULL), None, 5),
    "images": (STATIC, None, 1),
    "uneven": (replace(STATIC, batch=33, train_limit=66, stages=((4, 4, 6, 8),)), None, 1),
    "text, float32": (replace(LANGUAGE, stages=FULL), TEXT, 5),
    "text": (LANGUAGE, TEXT, 1),
}


def run(folder: Path, ranks: Ranks) -> None:
    """Trains all cases into ``folder``/case; what the first step quantized, and the result, go beside, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    quantize_and_keep, gradient_values = layers.quantize_and_keep, layers.Run.gradient_values
    for name, (config, data, steps) in CASES.items():
        codes: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []

        def note_codes(*args: Any, codes: list[torch.Tensor] = codes, **kwargs: Any) -> Any:
            values, kept = quantize_and_keep(*args, **kwargs)
            codes.append(kept.clone(memory_format=torch.contiguous_format))
            return values, kept

        def note_gradients(*args: Any, gradients: list[torch.Tensor] = gradients, **kwargs: Any) -> torch.Tensor:
            values = gradient_values(*args, **kwargs)
            gradients.append(values.clone(memory_format=torch.contiguous_format))
            return values

        def stop(step: training.Step) -> None:
            layers.quantize_and_keep, layers.Run.gradient_values = quantize_and_keep, gradient_values  # type: ignore[method-assign]

        layers.quantize_and_keep, layers.Run.gradient_values = note_codes, note_gradients  # type: ignore[method-assign, assignment]
        result = training.train(config, data=data, ranks=ranks, on_step=stop, out=folder / name, stop_after=steps)
        torch.save([codes, gradients], folder / f"{name}-{ranks.part.rank}.pt")
        figures = [result.cc, result.cc_full, result.images, result.steps, result.test_score]
        (folder / f"{name}-{ranks.part.rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    with processes() as found:
        assert found is not ALONE
        run(target / "kernels", found)
        fused.usable = lambda x: False
        run(target / "plain", found)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    (target / f"threads-{found.part.rank}.json").write_text(json.dumps(threads))
