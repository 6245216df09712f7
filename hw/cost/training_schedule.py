"""Precision schedules of a training as data: in the paper's notation, or as the record of a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import index
from pathlib import Path

from hw.layer_tables import shape_of
from hw.networks import Bits, ConvShape, network

SKIP = Bits(0, 0, 0)  #: of samples that skip a layer, which costs nothing
# The paper keeps depthwise convolutions at FW-8/BW-16 under every schedule.
DEPTHWISE = Bits(8, 8, 16)
# (activation, gradient) widths that a gate chooses from, by dataset, with the width of the weights.
CIFAR_OPTIONS = tuple(Bits(4, a, g) for a, g in ((3, 6), (4, 6), (4, 8), (6, 8), (6, 12)))
IMAGENET_OPTIONS = tuple(Bits(6, a, g) for a, g in ((3, 6), (4, 8), (6, 12), (8, 16)))

Mixture = tuple[tuple[float, Bits], ...]


@dataclass(frozen=True)
class Trained:
    """What a run has trained, for the defaults of its cost.

    Attributes:
        model, classes, width, image: see ``hw.networks.network``; ``image`` is the shape of any sample.
        samples: of an epoch: images, or sequences of a text.
        batch: samples per step.
        layers: of a network that ``hw.networks`` does not have.
    """

    model: str
    classes: int
    width: int
    image: tuple[int, ...]
    samples: int
    batch: int
    layers: tuple[ConvShape, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", "width", "samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a run is {getattr(self, name)}; it is at least 1")
        if (len(self.image) not in (1, 3) and not self.layers) or min(self.image, default=1) < 1:
            raise ValueError(f"image of a run is {list(self.image)}; it is [channels, height, width], or [tokens]")

    def shapes(self) -> list[ConvShape]:
        """The network, layer by layer.

        Raises:
            ValueError: one that ``hw.networks`` does not know.
        """
        return list(self.layers) or network(self.model, self.classes, width=self.width, image=self.image)


def cp_percent(bits: Bits) -> float:
    """``cp``: CC of an option as a share of full precision, mean over the three products, in percent."""
    return 100 * (bits.a * bits.w + bits.g * bits.w + bits.a * (bits.weight_g or bits.g)) / 1024 / 3


def mixture_for(target: float, options: Sequence[Bits]) -> Mixture:
    """Shares of samples and layers per option such that the mean ``cp`` meets a target.

    Gates settle near their target; which options they use is not published, so the two that enclose it are mixed.  A
    target outside the range of the options gives the nearest option, as it does in training.

    Args:
        target: in percent.
        options: at least one, in any order.

    Raises:
        ValueError: no options, or a target that is not positive.
    """
    if not options or not 0 < target <= 100:
        raise ValueError(
            f"a cp target of {target} % over {len(options)} options has no mixture; give a percentage of full precision "
            "above 0, up to 100, and options"
        )
    ordered = sorted(options, key=cp_percent)
    for low, high in pairwise(ordered):
        a, b = cp_percent(low), cp_percent(high)
        if a <= target <= b and a < b:
            share = (target - a) / (b - a)
            return tuple((s, bits) for s, bits in ((1 - share, low), (share, high)) if s > 0)
    return ((1.0, ordered[0] if target < cp_percent(ordered[0]) else ordered[-1]),)


@dataclass(frozen=True)
class Stage:
    """A span of training under one distribution of precisions.

    Attributes:
        epochs: length; need not be whole.
        mixture: (share, widths) over samples, for all layers that ``layers`` does not name; shares sum to one.
        layers: layer name -> its own mixture, for instance what gates chose in a run.
        ran: layer name -> how it ran where that is not as scheduled (a layer left in float32, a shortcut whose block is
            skipped); None where no run has told.  Shares sum to one, or to more where a layer ran several times for a
            sample (gates that compute every option).

    Samples that skip a layer have ``SKIP`` for its widths.

    Raises:
        ValueError: negative length, shares that are negative or have another sum, or widths that do not exist.
    """

    epochs: float
    mixture: Mixture
    layers: Mapping[str, Mixture] = field(default_factory=dict)
    ran: Mapping[str, Mixture] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"a stage of {self.epochs} epochs cannot be trained; give 0 or more")
        several = [(f"what {name} ran", mixture, math.inf) for name, mixture in (self.ran or {}).items()]
        once = [(name, mixture, 1 + 1e-6) for name, mixture in (("all layers", self.mixture), *self.layers.items())]
        for where, mixture, limit in (*once, *several):
            shares = [share for share, _ in mixture]
            if not min(shares, default=-1) >= 0 or not 1 - 1e-6 < sum(shares) < limit:
                rule = "one or more" if limit == math.inf else "one"
                raise ValueError(f"shares {shares} of {where} do not sum to {rule}; divide counts by that of samples")
            for _, bits in mixture:
                if bits != SKIP and not (all(1 <= b <= 32 for b in bits[:3]) and 0 <= bits.weight_g <= 32):
                    raise ValueError(
                        f"widths {list(bits)} of {where} do not exist; give 1 to 32 bits each, or 0, 0, 0 for samples "
                        "that skip the layer"
                    )


@dataclass(frozen=True)
class TrainingSchedule:
    """Precision over a whole training.

    Attributes:
        name: for reports.
        stages: in order.
        fixed: layer kind -> widths that no stage changes.
        gated: precision is chosen by gates; decides which layers the ``full`` count takes as unquantized.
        uncounted: layers that the ``paper`` count leaves out.
        trained: what has been trained, where the schedule is the record of a run.
        gate_macs: multiply-accumulates per sample and product of gates, which the ``full`` count takes in float32.
        notes: where the schedule is not quite what was asked for, and why.

    Raises:
        ValueError: some stages tell how they ran, and others do not; a negative number of multiply-accumulates.
    """

    name: str
    stages: tuple[Stage, ...]
    fixed: Mapping[str, Bits] = field(default_factory=lambda: {"depthwise": DEPTHWISE})
    gated: bool = False
    uncounted: frozenset[str] = frozenset()
    trained: Trained | None = None
    gate_macs: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gate_macs < 0:
            raise ValueError(f"schedule {self.name}: gate_macs is {self.gate_macs}; give 0 or more")
        if len({stage.ran is None for stage in self.stages}) > 1:
            raise ValueError(f"schedule {self.name}: some stages have 'ran' and others do not; give it to all or none")

    @property
    def recorded(self) -> bool:
        """Whether stages tell how layers ran."""
        return any(stage.ran is not None for stage in self.stages)

    @property
    def epochs(self) -> float:
        """Length of the training."""
        return sum(stage.epochs for stage in self.stages)

    def mixture(self, stage: Stage, shape: ConvShape) -> Mixture:
        """Shares of widths with which a stage trains a layer."""
        if shape.name in stage.layers:
            return stage.layers[shape.name]
        if shape.kind in self.fixed:
            return ((1.0, self.fixed[shape.kind]),)
        return stage.mixture

    def truncated(self, epochs: float) -> TrainingSchedule:
        """The first ``epochs`` of the schedule; where it is shorter than that, its last stage goes on.

        Raises:
            ValueError: the schedule has no stages, or the length is negative.
        """
        if not self.stages or epochs < 0:
            raise ValueError(
                f"schedule {self.name} of {len(self.stages)} stages cannot last {epochs} epochs; give it one or more"
            )
        stages, left = [], epochs
        for stage in self.stages:
            span = left if stage is self.stages[-1] else min(stage.epochs, left)
            stages.append(replace(stage, epochs=span))
            left -= span
        return replace(self, stages=tuple(stages))

    def check(self, shapes: Sequence[ConvShape], model: str) -> None:
        """Refuse layer names that a network does not have.

        Raises:
            ValueError: names of layers that are not in ``shapes``.
        """
        named = set(self.uncounted).union(*(set(s.layers) | set(s.ran or {}) for s in self.stages))
        if unknown := sorted(named - {shape.name for shape in shapes}):
            raise ValueError(
                f"schedule {self.name} has layers that {model} does not have: {', '.join(unknown)}; name the model that "
                "was trained (layers are called as its modules: stem, blocks.0.conv1, head; records of old versions, with "
                "stage1.0.conv1 and fc, are not read)"
            )


def stage_epochs(stages: int, epochs: float, early: float = 0.5) -> list[float]:
    """Assumed stage lengths where none are known: all but the last stage share the early part equally.

    The paper places its stages before the first drop of the learning rate: half of training on CIFAR, a third on
    ImageNet.

    Args:
        stages: how many.
        epochs: whole training.
        early: share of training before the last stage.
    """
    if stages == 1:
        return [epochs]
    return [epochs * early / (stages - 1)] * (stages - 1) + [epochs * (1 - early)]


def static_schedule(bits: Bits, epochs: float) -> TrainingSchedule:
    """The same widths throughout."""
    return TrainingSchedule(str(bits), (Stage(epochs, ((1.0, bits),)),))


def _unreached(targets: Iterable[float], options: Sequence[Bits]) -> tuple[str, ...]:
    """What to say of targets that no mixture of the options meets."""
    costs = [cp_percent(bits) for bits in options]
    beyond = [target for target in targets if not min(costs) <= target <= max(costs)]
    if not beyond:
        return ()
    named = ", ".join(f"{target:g}" for target in beyond)
    return (
        f"cp targets {named} % are outside what the gates' options cost, {min(costs):.3g} to {max(costs):.3g} %; the nearest "
        "option is taken, as in training",
    )


def parse_schedule(
    text: str,
    epochs: float,
    lengths: Sequence[float] | None = None,
    options: Sequence[Bits] = CIFAR_OPTIONS,
    early: float = 0.5,
) -> TrainingSchedule:
    """A schedule in the paper's notation.

    ``FW-8/BW-16`` and ``w/a/g`` are static, ``FW(3,4,6,8)/BW(6,6,8,8)`` is PFQ with one stage per pair, and
    ``cp=1.5/2/2.5/3`` gives gates one target after the other (a single target is DFQ).

    Args:
        text: the notation; case and blanks do not matter.
        epochs: length of the training.
        lengths: epochs per stage; by default as ``stage_epochs`` assumes.
        options: what gates choose from.
        early: share of training before the last stage, where ``lengths`` are not given.

    Raises:
        ValueError: text in no known form, or as many lengths as there are not stages.
    """
    key = re.sub(r"\s", "", text).lower()
    mixtures: list[Mixture]
    notes: tuple[str, ...] = ()
    if match := re.fullmatch(r"fw[-(]?([\d,]+)\)?/bw[-(]?([\d,]+)\)?", key):
        forward, backward = ([int(n) for n in part.split(",")] for part in match.groups())
        if len(forward) != len(backward):
            raise ValueError(f"schedule {text!r} has {len(forward)} forward and {len(backward)} backward stages")
        mixtures = [((1.0, Bits(fw, fw, bw)),) for fw, bw in zip(forward, backward, strict=True)]
    elif match := re.fullmatch(r"cp=((?:\d+\.?\d*|\.\d+)(?:/(?:\d+\.?\d*|\.\d+))*)", key):
        targets = [float(target) for target in match[1].split("/")]
        mixtures = [mixture_for(target, options) for target in targets]
        notes = _unreached(targets, options)
    elif re.fullmatch(r"\d+([,/]\d+){2,3}", key):
        mixtures = [((1.0, Bits.parse(key)),)]
    else:
        raise ValueError(
            f"schedule {text!r} is unknown, nor is there such a folder; write FW-8/BW-8, FW(3,4,6,8)/BW(6,6,8,8), "
            "cp=1.5/2/3, w/a/g or the folder of a run"
        )
    spans = list(lengths) if lengths is not None else stage_epochs(len(mixtures), epochs, early)
    if len(spans) != len(mixtures):
        raise ValueError(f"schedule {text!r} has {len(mixtures)} stages, but {len(spans)} lengths are given")
    stages = tuple(Stage(span, mixture) for span, mixture in zip(spans, mixtures, strict=True))
    return TrainingSchedule(text, stages, gated=key.startswith("cp"), notes=notes)


RECORD = "schedule.json"  #: in the folder of a run: what it really used


def load_schedule(path: Path) -> TrainingSchedule:
    """Read what a run really used: a file, or the ``schedule.json`` of a run's folder.

    The file is JSON; only the stages with epochs and options are required::

        {"name": "...", "gated": false, "gate_macs": 0,
         "stages": [{"epochs": 2, "options": mixture, "layers": {layer: mixture}, "ran": {layer: mixture}}],
         "fixed": {kind: widths}, "uncounted": [layer, ...],
         "trained": {"model", "classes", "width", "image": [channels, height, width] or [tokens], "samples", "batch",
                     "layers": [of a network that hw.networks does not have, see hw.layer_tables, ...]}}

    A mixture is ``[[share, widths], ...]`` over the samples of the stage; its shares sum to one, in ``ran`` also to more,
    of a layer that ran several times for a sample.  Widths are ``[w, a, g]``, or with a fourth
    number for a gradient that is quantized to another width for the weight gradient; 32 stands for float32, and
    ``[0, 0, 0]`` for samples that skip the layer.  Of a stage, ``options`` is what the schedule gives to all layers that
    ``layers`` does not name, and ``ran`` lists layers that ran otherwise than that; a file has it in all stages (possibly
    empty) or in none, when it is assumed which layers stay in float32.  ``uncounted`` are layers that the published
    count of the cost leaves out; ``gate_macs`` those of all gates for a sample, per product; ``trained`` gives the cost its
    defaults.

    Raises:
        ValueError: the file does not have that form.
    """

    def mixture(rows: list[list]) -> Mixture:
        return tuple((float(share), Bits(*(index(b) for b in bits))) for share, bits in rows)

    def mixtures(rows: dict[str, list[list]]) -> dict[str, Mixture]:
        return {name: mixture(options) for name, options in rows.items()}

    def known(row: dict, *names: str) -> dict:
        if unknown := sorted(set(row) - set(names)):
            raise ValueError(f"{path} has unknown keys {', '.join(unknown)}; known are {', '.join(names)}")
        return row

    if path.is_dir():
        folder, path = path, path / RECORD
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {RECORD}: no epoch of a run has been finished there, or by an old version"
            )
    else:
        folder = path.with_suffix("")
    try:
        keys = "name", "gated", "gate_macs", "stages", "fixed", "uncounted", "trained"
        data = known(json.loads(path.read_text(encoding="utf-8")), *keys)
        stages = tuple(
            Stage(
                float(row["epochs"]),
                mixture(row["options"]),
                mixtures(row.get("layers", {})),
                mixtures(row["ran"]) if "ran" in row else None,
            )
            for row in (known(row, "epochs", "options", "layers", "ran") for row in data["stages"])
        )
        fixed = {kind: Bits(*bits) for kind, bits in data.get("fixed", {"depthwise": DEPTHWISE}).items()}
        trained = None
        if row := data.get("trained"):
            image = tuple(index(n) for n in row["image"])
            counts = {name: index(row[name]) for name in ("classes", "width", "samples", "batch")}
            layers = tuple(shape_of(layer) for layer in row.get("layers", ()))
            trained = Trained(str(row["model"]), image=image, layers=layers, **counts)
        name, uncounted = str(data.get("name", folder.name)), frozenset(map(str, data.get("uncounted", ())))
        gate_macs = index(data.get("gate_macs", 0))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a schedule ({type(error).__name__}: {error}); expected JSON with a list 'stages' of "
            "objects with 'epochs' and 'options'"
        ) from error
    return TrainingSchedule(name, stages, fixed, bool(data.get("gated", False)), uncounted, trained, gate_macs)
