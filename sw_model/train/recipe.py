"""Training recipes: every setting of a run, read from TOML, checked before anything starts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from host.training.precision_schedule import PUBLISHED_DECAYS, SCHEDULE_DEFECTS, PrecisionSchedule, make_schedule
from hw.files import TomlError, parse_toml, read_text
from hw.networks import spelled
from sw_model.convert.references import is_reference
from sw_model.data.images import SUBSETS
from sw_model.nn.gates import GATE_DEFECTS
from sw_model.nn.precision import LAYER_DEFECTS, Precision, has_defect
from sw_model.quantize.limits import refusal
from sw_model.quantize.methods import METHODS, check_bits
from sw_model.quantize.statquant import QUANTIZERS


class ConfigError(ValueError):
    """A recipe or option is wrong; the message names it, its value and what is allowed."""


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A plain value as an annotation of :class:`TrainConfig` asks for it: lists as tuples, integers as floats.

    Raises:
        ConfigError: another type, a number that is not finite, or an integer that TOML has no place for (64 bits).
    """
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} = {value!r} must be a list")
        return tuple(_typed(f"{name}[{i}]", element, get_args(kind)[0]) for i, element in enumerate(value))
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise ConfigError(f"{name} = {value!r} must be {'an integer' if kind is int else 'a number'}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ConfigError(f"{name} = {value} is beyond 64 bits; use a smaller number")
        if not math.isfinite(value):
            raise ConfigError(f"{name} = {value} must be a finite number")
    elif not isinstance(value, kind):
        raise ConfigError(f"{name} = {value!r} must be a {kind.__name__}")
    return kind(value)


#: settings that count something
AT_LEAST_ONE = ("epochs", "batch", "eval_every", "width", "context", "cycles", "window", "norm_epochs")
#: settings whose 0 stands for a default
NOT_NEGATIVE = ("train_limit", "test_limit", "eval_batch", "checkpoint_every")
#: widths of what the fabric's step keeps
FABRIC_WIDTHS = ("kept_bits", "shortcut_bits", "shortcut_gradient_bits")
#: setting -> its values
CHOICES = {
    "schedule": ("static", "pfq", "cyclic", "manual", "dfq"),
    "optimizer": ("sgd", "adam"),
    "lr_schedule": ("cosine", "steps", "inverse-sqrt"),
    "quantizer": ("affine", *METHODS),
    "gradient": ("affine", *QUANTIZERS),
    "norm": ("batch", "range", "fabric"),
    "gate": ("argmax", "sample"),
    "subset": SUBSETS,
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run.  A recipe is a TOML file with these names as keys."""

    # -- data

    #: "digits" or a path, see :func:`sw_model.data.image_folders.open_images` and, for language models,
    #: :func:`sw_model.data.text.load_text`; or "FILE.py:FUNCTION", which returns a training and a test set, see
    #: :class:`sw_model.data.own_data.OwnData`
    data: str = "digits"
    #: images (or sequences) to train on; 0: all
    train_limit: int = 0
    #: images (or sequences) to test on; 0: all
    test_limit: int = 0
    #: images only: "all" or half of the data set, see :func:`sw_model.data.images.half_of`
    subset: str = "all"

    # -- network

    #: run folder or checkpoint whose weights training starts from ("": random ones), see
    #: :func:`sw_model.train.pretrained.load_pretrained`; a relative path starts at the working directory
    init: str = ""
    #: see :func:`sw_model.nn.models.build_model`, or a language model of :data:`hw.networks.TRANSFORMERS`; or a network of
    #: others: "timm:NAME", "torchvision:NAME" or "FILE.py:FUNCTION", see :func:`sw_model.convert.references.build_referenced`
    model: str = "resnet-8"
    #: networks of others: modules that stay in float32, see :func:`sw_model.convert.conversion.convert`
    keep: tuple[str, ...] = ()
    #: channels of the first stage of a ResNet for small images
    width: int = 8
    #: language models: words per sequence
    context: int = 64
    #: language models: entries of the vocabulary; 0: all words
    vocabulary: int = 0
    #: language models: probability, by default that of Vaswani et al.'s base model, see
    #: :class:`sw_model.nn.transformer.TransformerLM`
    dropout: float = 0.1
    #: whether schedules apply to the first layer
    quantize_stem: bool = True
    #: whether schedules apply to the last layer
    quantize_head: bool = False

    # -- schedule of precisions

    #: "static", "pfq", "cyclic", "manual" or "dfq" (gates; with several targets FracTrain)
    schedule: str = "pfq"
    #: bits (weight, activation, gradient[, gradient in the weight gradient]) of each stage; 0: float32
    stages: tuple[tuple[int, ...], ...] = ((3, 3, 4), (4, 4, 6), (6, 6, 8), (8, 8, 8))
    #: manual schedule: first epoch of each stage
    starts: tuple[int, ...] = ()
    #: PFQ's indicator, with the next four: see :class:`host.training.precision_schedule.Indicator`
    eps: float = 0.05
    #: see ``eps``
    alpha: float = 0.3
    #: see ``eps``
    window: int = 5
    #: see ``eps``
    norm_epochs: int = 10
    #: see ``eps``
    deadlines: tuple[int, ...] = ()
    #: cyclic schedule: least width of weights and activations; gradients have that of ``stages[0]``
    low: int = 3
    #: cyclic schedule: greatest width of weights and activations
    high: int = 8
    #: cyclic schedule: number of cycles
    cycles: int = 8

    # -- gates (schedule "dfq")

    #: (activation, gradient) widths that gates choose from; [0, 0] skips a block
    options: tuple[tuple[int, ...], ...] = ()
    #: "argmax" takes the likeliest option, "sample" draws one by its probability; options [0, 0] and [32, 32] with
    #: sampling are E2-Train's selective layer update (SLU)
    gate: str = "argmax"
    #: width of the weights in gated blocks
    weight_bits: int = 4
    #: cost to aim at, percent of float32; several, none below the one before, make FracTrain, which advances from one to
    #: the next by PFQ's indicator.  Ungated layers follow ``stages`` (one entry serves all targets)
    targets: tuple[float, ...] = ()
    #: weight of the cost in percent of float32 (not in the published code's units, see
    #: :func:`sw_model.nn.gates.gated_loss`)
    beta: float = 0.1
    #: dead band around the target, in percent
    band: float = 0.0
    #: limit of the cost's term as a share of the task loss; 0: none
    cap: float = 0.0

    # -- optimization

    #: length of training
    epochs: int = 10
    #: images (or sequences) per step
    batch: int = 64
    #: "sgd" (with ``momentum`` and ``nesterov``) or "adam" (with ``betas``, and weight decay apart from the gradient)
    optimizer: str = "sgd"
    #: learning rate, at its greatest
    lr: float = 0.1
    #: SGD's
    momentum: float = 0.9
    #: SGD's: whether the gradient is taken ahead of the momentum's step
    nesterov: bool = False
    #: Adam's: share of the old value in the mean of the gradient and of its square
    betas: tuple[float, ...] = (0.9, 0.98)
    #: of all parameters
    weight_decay: float = 1e-4
    #: "cosine" (to zero), "steps" (times ``lr_decay`` at each of the ``milestones``) or "inverse-sqrt"
    #: (lr * sqrt(warmup steps / step) after the warmup, which it needs)
    lr_schedule: str = "cosine"
    #: shares of training
    milestones: tuple[float, ...] = (0.5, 0.75)
    #: factor at every milestone
    lr_decay: float = 0.1
    #: share of training over which the learning rate rises linearly
    warmup: float = 0.0
    #: whether training images are shifted (and flipped, where the data set allows)
    augment: bool = True

    # -- arithmetic

    #: "fixed", "paper" (all details of the published code), or some of them by name, joined by "+": see
    #: :data:`sw_model.nn.precision.LAYER_DEFECTS`, for gated training :data:`sw_model.nn.gates.GATE_DEFECTS`, and where PFQ's indicator
    #: decides :data:`host.training.precision_schedule.SCHEDULE_DEFECTS`
    mode: str = "fixed"
    #: share of the old value in the running activation ranges, which evaluation uses; 0 means 0.1, or the published 0.9
    #: where ``mode`` keeps it
    range_momentum: float = 0.0
    #: "affine", or a comparison method: "dorefa", "wageubn" or "mxint", see :mod:`sw_model.quantize.methods`
    quantizer: str = "affine"
    #: quantizer of gradients beside affine weights and activations, see :class:`sw_model.nn.precision.Run`
    gradient: str = "affine"
    #: "batch", "range" for Banner et al.'s Range BN, or "fabric" for the whole step in the fabric's integers, see
    #: :mod:`sw_model.step.fabric_step`
    norm: str = "batch"
    #: norm "fabric": bits of the normalised activations that the backward pass reads; 0: 8 where activations have 8 bits
    #: or more, else 6
    kept_bits: int = 0
    #: norm "fabric": bits of the activations that a shortcut carries; 0: the default of ``kept_bits``
    shortcut_bits: int = 0
    #: norm "fabric": bits of the gradients that a shortcut carries; 0: 8 where gradients have 8 bits or more, else 6
    shortcut_gradient_bits: int = 0
    #: of everything random
    seed: int = 1

    # -- evaluation and checkpoints

    #: epochs between evaluations; the last epoch is always evaluated
    eval_every: int = 1
    #: images per evaluation step; 0 means ``batch``
    eval_batch: int = 0
    #: steps between checkpoints; 0 means at the end of every epoch only
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), kind))
        if not is_reference(self.model):
            object.__setattr__(self, "model", spelled(self.model))
        self._check_reference()
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must not be negative (0 means the default)")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; use one of {', '.join(allowed)}")
        self._check_stages()
        for name, (fits, need) in self._needs().items():
            if not fits:
                raise ConfigError(f"{name} = {getattr(self, name)!r} must be {need}")
        self._check_mode()
        self._check_quantizer()
        if self.vocabulary < 0 or self.vocabulary in (1, 2):
            raise ConfigError(f"vocabulary = {self.vocabulary} must be 0 (all words) or at least 3")
        if self.lr_schedule == "inverse-sqrt" and not self.warmup:
            raise ConfigError("lr_schedule 'inverse-sqrt' counts from the end of the warmup; set warmup above 0")
        self._check_schedule()
        if self.model.startswith("transformer"):
            self._check_attention()
        if self.norm == "fabric":
            self._check_fabric()

    def _needs(self) -> dict[str, tuple[bool, str]]:
        """Whether each setting with a range is within it, and the range in words."""
        share = "from 0 up to, but less than, 1"
        return {
            "seed": (self.seed >= 0, "at least 0"),
            "lr": (self.lr > 0, "above 0"),
            "lr_decay": (0 < self.lr_decay <= 1, "above 0, and at most 1"),
            "milestones": (all(0 <= m <= 1 for m in self.milestones), "shares of training, from 0 to 1"),
            "momentum": (0 <= self.momentum < 1, share),
            "nesterov": (self.momentum > 0 or not self.nesterov, "false without momentum"),
            "betas": (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), f"two numbers {share}"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup": (0 <= self.warmup < 1, share),
            "range_momentum": (0 <= self.range_momentum < 1, share),
            "dropout": (0 <= self.dropout < 1, share),
            "starts": (all(epoch >= 0 for epoch in self.starts), "epochs from 0"),
            "deadlines": (all(epoch >= 0 for epoch in self.deadlines), "epochs from 0"),
            "targets": (
                all(0 < t <= 100 for t in self.targets) and list(self.targets) == sorted(self.targets),
                "percentages of float32 above 0, up to 100, none below the one before",
            ),
            "beta": (self.beta >= 0, "at least 0"),
            "band": (self.band >= 0, "at least 0"),
            "cap": (self.cap >= 0, "at least 0 (0: none)"),
        }

    def _check_stages(self) -> None:
        """Refuses stages without a width for each tensor."""
        if not self.stages:
            raise ConfigError("stages is empty; give at least one [weight, activation, gradient]")
        for stage in self.stages:
            if len(stage) not in (3, 4):
                raise ConfigError(
                    f"stage {list(stage)} needs 3 or 4 widths: weight, activation, gradient[, weight gradient]"
                )

    def _check_schedule(self) -> None:
        """Refuses what is no schedule, and options that gates cannot choose."""
        try:
            self.make_schedule()
            if self.schedule == "dfq":
                for option in self.options:
                    Precision(self.weight_bits, *option)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.schedule == "dfq" and not self.weight_bits:
            raise ConfigError("weight_bits = 0 must be 1..16, or 32 where gates choose between float32 and skipping")

    def _check_mode(self) -> None:
        """Refuses names that are no details of the published code, or that this schedule does not have."""
        known = (*LAYER_DEFECTS, *GATE_DEFECTS) if self.schedule == "dfq" else LAYER_DEFECTS
        if self.schedule in ("pfq", "dfq"):
            known = (*known, *SCHEDULE_DEFECTS)
        named = self.mode.split("+")
        wrong = sorted(set(named) - set(known)) if self.mode not in ("fixed", "paper") else []
        if wrong:
            raise ConfigError(
                f"mode = {self.mode!r} names {', '.join(map(repr, wrong))}; use 'fixed', 'paper', or {', '.join(known)} "
                f"joined by '+' (schedule {self.schedule!r})"
            )
        if "norm-per-option" in named and "masked-noise" not in named:
            raise ConfigError("mode: 'norm-per-option' comes with computing every option, so with 'masked-noise' too")

    def _check_reference(self) -> None:
        """Refuses what networks of others do not have, and what only they have."""
        if not is_reference(self.model):
            if self.keep:
                raise ConfigError(f"keep = {list(self.keep)} belongs to networks of others; model {self.model!r} has quantize_stem "
                                  "and quantize_head")  # fmt: skip
            return
        for name, only in (("norm", "batch"), ("quantizer", "affine")):
            if getattr(self, name) != only:
                raise ConfigError(f"{name} = {getattr(self, name)!r} changes networks of ours; use {only!r} with {self.model!r}")

    def _check_quantizer(self) -> None:
        """Refuses what a quantizer cannot be combined with."""
        places = {
            "gates": self.schedule == "dfq",
            "attention": self.model.startswith("transformer"),
            "method": self.quantizer != "affine",
        }
        for place in (name for name, asked in places.items() if asked):
            if why := refusal(place, self):
                raise ConfigError(why)
        if self.quantizer == "affine":
            return
        if self.quantizer == "dorefa" and (self.quantize_stem or self.quantize_head or self.model == "mobilenetv2"):
            raise ConfigError(
                "dorefa clips activations to 0..1, which suits what follows a ReLU: it leaves the first and the last "
                "layer in float32 (quantize_stem = false, quantize_head = false) and has no linear bottlenecks "
                f"(model {self.model!r})"
            )
        try:
            for stage in self.stages:
                check_bits(self.quantizer, Precision(*stage).widths)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_attention(self) -> None:
        """Refuses widths that products of two activations cannot have, which attention consists of."""
        for precision in self.precisions():
            if precision.quantized and not (precision.activation and precision.grad):
                raise ConfigError(
                    f"stages: {precision} leaves activations or gradients in float32, which attention quantizes together; "
                    f"give both 1..16 bits, or all operands none, with model {self.model!r}"
                )

    def _check_fabric(self) -> None:
        """Refuses what no passes of the fabric compute."""
        for name, allowed in (("quantizer", "affine"), ("gradient", "affine"), ("mode", "fixed"), ("gate", "argmax")):
            if getattr(self, name) != allowed:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r}: the fabric's step has quantizers of its own; use {allowed!r} with "
                    "norm 'fabric'"
                )
        for name in FABRIC_WIDTHS:
            if not 0 <= getattr(self, name) <= 8 or getattr(self, name) == 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be 2 to 8, or 0 for the default")
        options = [Precision(self.weight_bits, *option) for option in self.options]
        for precision in [*self.precisions(), *options]:
            w, a, g, last = precision.widths
            if max(w, a, g, last) > 16 or min(w, g, last) < 2:
                raise ConfigError(
                    f"{precision}: norm 'fabric' takes weights and gradients of 2..16 bits and activations of 1..16 bits, "
                    "no float32 and no skipped blocks"
                )

    def precisions(self) -> list[Precision]:
        """Every precision of the layers that a schedule governs; of a cyclic one, whose widths swing, the lowest."""
        if self.schedule == "cyclic":
            return [Precision(self.low, self.low, self.stages[0][2])]
        return [Precision(*stage) for stage in self.stages]

    def make_schedule(self) -> PrecisionSchedule:
        """A fresh schedule as configured."""
        for stage in self.stages:
            Precision(*stage)  # refuses widths that there are not
        if self.schedule != "dfq" and (self.options or self.targets):
            raise ConfigError(f"options and targets belong to schedule 'dfq', not {self.schedule!r}; leave them out")
        if self.schedule == "dfq" and (
            not self.targets or len(self.options) < 2 or any(len(option) != 2 for option in self.options)
        ):
            raise ConfigError(
                f"dfq needs targets and at least two options [activation, gradient]; has targets "
                f"{list(self.targets)}, options {[list(o) for o in self.options]}"
            )
        return make_schedule(vars(self), PUBLISHED_DECAYS if has_defect(self.mode, "eps-decay") else None)

    def other_than(self, trained: TrainConfig) -> list[str]:
        """Names of the settings that keep this recipe from going on with a run of another one; it may be longer."""
        before = asdict(trained)
        names = sorted(name for name, value in asdict(self).items() if value != before[name])
        return [name for name in names if name != "epochs" or self.epochs < trained.epochs]

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> TrainConfig:
        """A configuration from plain values (a parsed recipe), types checked, unknown names refused."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"unknown recipe keys {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_recipe(cls, path: Path, **overrides: Any) -> TrainConfig:
        """A configuration from a TOML recipe; ``overrides`` win."""
        try:
            return cls.from_toml(read_text(path), str(path), **overrides)
        except FileNotFoundError as error:
            raise ConfigError(f"recipe {path} does not exist; see configs/recipes/") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {path} cannot be read ({error}); give a text file in UTF-8") from error

    @classmethod
    def from_toml(cls, text: str, name: str, **overrides: Any) -> TrainConfig:
        """A configuration from the text of a recipe, which errors call ``name``; ``overrides`` win."""
        try:
            values = parse_toml(text)
        except TomlError as error:
            raise ConfigError(f"recipe {name} is not valid TOML: {error}") from error
        return cls.from_mapping({**values, **overrides})

    def to_toml(self) -> str:
        """The configuration as a recipe; JSON's scalars and arrays are TOML's, which only escapes what JSON does and DEL."""
        lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(self).items())
        return "".join(lines).replace("\x7f", "\\u007f")
