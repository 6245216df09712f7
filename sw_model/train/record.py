"""The precision that a run really used, epoch by epoch, as the record that ``hw.cost.training_schedule`` reads.

Two things are recorded of every layer: what the schedule or the gates chose for it, which the published count of the
cost goes by, and how its products ran.  The second differs where a layer stays in float32, where a sample that skips a
block still needs its shortcut, or where gates compute every option.  Layers have the names of
``hw.networks``, which are those of their modules; in a gated network :data:`GATED` stands before them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from hw.cost.training_schedule import SKIP, Trained
from hw.layer_tables import CALL, row_of
from hw.networks import Bits
from sw_model.nn.cost_meter import GATES
from sw_model.nn.layers import DEPTHWISE
from sw_model.nn.precision import Precision
from sw_model.train.recipe import ConfigError

GATED = "base."  #: before the names of the layers of a gated network


def widths(precision: Precision) -> Bits:
    """Widths as the cost models write them: 32 for float32, the fourth only where it differs."""
    w, a, g, last = precision.widths
    return Bits(w, a, g, 0 if last == g else last)


class RunSchedule:
    """Collects the choices of a run; :meth:`to_json` is the record.

    Args:
        trained: the network and its data.
        macs: multiply-accumulates per image and product, by the name of a layer, gated or not.
        depthwise: names of depthwise layers, which have a precision of their own.
        gated: whether gates choose the precision of the blocks.
        gate_macs: multiply-accumulates per image and product of all gates, which run in float32.
        blocks: names of the layers that each gate governs; by default of the layers of ``blocks.N``.
    """

    def __init__(
        self,
        trained: Trained,
        macs: Mapping[str, int],
        depthwise: Iterable[str] = (),
        gated: bool = False,
        gate_macs: int = 0,
        blocks: Sequence[Sequence[str]] = (),
    ) -> None:
        self.trained, self.gated, self.gate_macs = trained, gated, gate_macs
        self._macs = {layer.removeprefix(GATED): count for layer, count in macs.items()}
        self._depthwise = {layer.removeprefix(GATED) for layer in depthwise}
        self._blocks: dict[int, list[str]] = {number: list(names) for number, names in enumerate(blocks)}
        for name in self._macs:
            if gated and not blocks and name.startswith("blocks."):
                self._blocks.setdefault(int(name.split(".")[1]), []).append(name)
        self._open: dict[str, tuple[int, int, int, int]] = {}
        self._stages: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        """A new epoch: images by widths, of the schedule and of the gates, and multiply-accumulates by widths."""
        self._images = 0
        self._scheduled: Counter[Bits] = Counter()
        self._chosen: dict[str, Counter[Bits]] = {}
        self._ran: dict[str, Counter[Bits]] = {}

    def on_product(self, layer: str, product: str, macs: int, a: int, b: int) -> None:
        """Hook for :class:`sw_model.nn.precision.Run`: a layer reports its forward product, then its gradients.

        The products of one call make one entry.  A first layer has no input gradient; its width is not known then, and
        that of the weight gradient stands for it.  Gates run alike for every image, so nothing is collected of them.
        """
        if layer.startswith(GATES):
            return
        if product == "forward":
            self._open[layer] = (macs, b, a, 0)
            return
        macs, w, activation, g = self._open[layer]
        if product == "input_gradient":
            self._open[layer] = (macs, w, activation, a)
            return
        bits = Bits(w, activation, g or b, 0 if g in (0, b) else b)
        self._ran.setdefault(layer.removeprefix(GATED), Counter())[bits] += macs

    def step(
        self,
        precision: Precision,
        images: int,
        options: Sequence[Precision | None] = (),
        choices: Tensor | None = None,
    ) -> None:
        """Takes a training step.

        Args:
            precision: what the schedule gives to the layers that are not gated.
            images: in the batch.
            options: what gates choose from; None for skipping a block.
            choices: option of every image at every gated block, int64 (blocks, images).
        """
        self._images += images
        self._scheduled[widths(precision)] += images
        if self._depthwise:
            own = widths(DEPTHWISE if precision.quantized else precision)
            for name in self._depthwise:
                self._chosen.setdefault(name, Counter())[own] += images
        if choices is None:
            return
        on_offer = [SKIP if p is None else widths(p) for p in options]
        for block, row in enumerate(choices):
            counts = torch.bincount(row, minlength=len(options)).tolist()
            for name in self._blocks[block]:
                if name in self._depthwise:
                    continue
                chosen = self._chosen.setdefault(name, Counter())
                chosen.update({bits: count for bits, count in zip(on_offer, counts, strict=True) if count})

    def set_samples(self, samples: int) -> None:
        """Says how many samples an epoch has, where nothing knew before its end."""
        self.trained = replace(self.trained, samples=samples)

    def finish_epoch(self) -> None:
        """Closes an epoch; one like that before it makes that one longer."""
        self._stages = self._with_open_epoch()
        self._begin()

    def _with_open_epoch(self) -> list[dict[str, Any]]:
        if not self._images:
            return self._stages
        row = self._row()
        if self._stages and self._stages[-1] | {"epochs": 0} == row | {"epochs": 0}:
            row["epochs"] += self._stages[-1]["epochs"]
            return [*self._stages[:-1], row]
        return [*self._stages, row]

    def _row(self) -> dict[str, Any]:
        """The epoch so far as a stage."""
        layers, ran = {}, {}
        for name, macs in self._macs.items():
            scheduled = self._chosen.get(name, self._scheduled)
            if name in self._chosen:
                layers[name] = _mixture(scheduled, self._images)
            products = Counter(self._ran.get(name, {}))
            # Gates that compute every option run a layer several times for an image, so that nothing is left.
            if (left := macs * self._images - products.total()) > 0:
                products[SKIP] += left
            if products != Counter({bits: macs * count for bits, count in scheduled.items()}):
                ran[name] = _mixture(products, macs * self._images)
        return {
            "epochs": self._images / self.trained.samples,
            "options": _mixture(self._scheduled, self._images),
            "layers": layers,
            "ran": ran,
        }

    def to_json(self) -> str:
        """The record up to now, an unfinished epoch as a part of one; read by ``hw.cost.training_schedule.load_schedule``."""
        gated = {name for names in self._blocks.values() for name in names}
        head = {
            "gated": self.gated,
            "gate_macs": self.gate_macs,
            "trained": {**asdict(self.trained), "layers": [row_of(shape) for shape in self.trained.layers]},
            "fixed": {},
            # The published code's cost is that of the gated blocks.
            "uncounted": [name for name in self._macs if name not in gated] if self.gated else [],
        }
        stages = ",\n  ".join(json.dumps(self._by_row(stage)) for stage in self._with_open_epoch())
        return json.dumps(head)[:-1] + f',\n "stages": [\n  {stages}\n]}}\n'

    def _by_row(self, stage: dict[str, Any]) -> dict[str, Any]:
        """A stage whose layers are those of the table: every call of a layer that has several has what the layer has."""
        rows: dict[str, list[str]] = {}
        for shape in self.trained.layers:
            rows.setdefault(shape.name.split(CALL)[0], []).append(shape.name)
        return stage | {
            part: {row: mixture for name, mixture in stage[part].items() for row in rows.get(name, [name])}
            for part in ("layers", "ran")
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain containers; the inside of a step is not part of it."""
        return {
            "stages": self._stages,
            "images": self._images,
            "scheduled": _plain(self._scheduled),
            "chosen": {name: _plain(counts) for name, counts in self._chosen.items()},
            "ran": {name: _plain(counts) for name, counts in self._ran.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the record of a checkpoint.

        Raises:
            ConfigError: it names layers that the network does not have.
        """
        named = {*state["chosen"], *state["ran"]}.union(*({*s["layers"], *s["ran"]} for s in state["stages"]))
        if unknown := sorted(named - self._macs.keys()):
            raise ConfigError(
                f"the checkpoint records layers that {self.trained.model} does not have: {', '.join(unknown)}; an old "
                "version wrote it, with other names of layers: train in another folder, with init naming this one to "
                "start from its weights"
            )
        self._stages, self._images = list(state["stages"]), state["images"]
        self._scheduled = _counter(state["scheduled"])
        self._chosen = {name: _counter(rows) for name, rows in state["chosen"].items()}
        self._ran = {name: _counter(rows) for name, rows in state["ran"].items()}


def _mixture(counts: Counter[Bits], whole: int) -> list[list[Any]]:
    """Counts as shares of ``whole``, widths without a fourth one that says nothing."""
    return [[count / whole, list(bits[:3] if not bits.weight_g else bits)] for bits, count in sorted(counts.items())]


def _plain(counts: Counter[Bits]) -> list[list[Any]]:
    return [[list(bits), count] for bits, count in counts.items()]


def _counter(rows: list[list[Any]]) -> Counter[Bits]:
    return Counter({Bits(*bits): count for bits, count in rows})
