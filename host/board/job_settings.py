"""Checks of the settings in a job: every value has its type and range, whatever wrote the file."""

from __future__ import annotations

from typing import Any

from host.board.gate_decisions import Gates
from host.board.job_archive import mapping
from host.board.operations import JobError
from host.training.precision_schedule import make_schedule


def get(mapping: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """``mapping[key]``, which must be there and of a kind; booleans are no numbers."""
    if key not in mapping:
        raise JobError(f"{what} lacks {key!r}")
    value = mapping[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise JobError(f"{what}: {key} is {value!r:.60}, of a wrong type")
    return value


def integer_list(value: Any, what: str, low: int, high: int, most: int = 64) -> tuple[int, ...]:
    """A list of at most ``most`` integers between ``low`` and ``high``."""
    if not isinstance(value, list) or len(value) > most:
        raise JobError(f"{what} is not a list of at most {most} integers")
    for n in value:
        if not isinstance(n, int) or isinstance(n, bool) or not low <= n <= high:
            raise JobError(f"{what} holds {n!r:.40}, outside {low}..{high}")
    return tuple(value)


#: recipe key -> (type, least, greatest) or allowed words; lists of integers have the type list
RECIPE: dict[str, tuple[Any, ...]] = {
    "schedule": ("static", "pfq", "cyclic", "manual", "dfq"),
    "lr_schedule": ("cosine", "steps"),
    "stages": (list,),
    "starts": (list, 0, 1_000_000),
    "deadlines": (list, 0, 1_000_000),
    "milestones": (list,),
    "targets": (list,),
    "beta": (float, 0.0, 1e9),
    "band": (float, 0.0, 1e9),
    "cap": (float, 0.0, 1e9),
    "eps": (float, 0.0, 1e9),
    "alpha": (float, 1e-9, 1.0),
    "window": (int, 1, 100_000),
    "norm_epochs": (int, 1, 100_000),
    "low": (int, 1, 16),
    "high": (int, 1, 16),
    "cycles": (int, 1, 1_000_000),
    "epochs": (int, 1, 1_000_000),
    "batch": (int, 1, 65_536),
    "eval_batch": (int, 1, 65_536),
    "eval_every": (int, 1, 1_000_000),
    "checkpoint_every": (int, 0, 1_000_000_000),
    "lr": (float, 1e-12, 1e6),
    "lr_decay": (float, 0.0, 1e6),
    "momentum": (float, 0.0, 0.999999),
    "weight_decay": (float, 0.0, 1e6),
    "warmup": (float, 0.0, 0.999999),
    "nesterov": (bool,),
    "seed": (int, 0, (1 << 63) - 1),
    "range_momentum": (float, 0.0, 1.0),
}


def checked_recipe(raw: Any) -> dict[str, Any]:
    """The settings of :data:`RECIPE`, all of them and no others."""
    recipe = mapping(raw, "recipe")
    if unknown := sorted(set(recipe) ^ set(RECIPE)):
        raise JobError(f"recipe: {unknown[0]!r} is missing or unknown")
    clean = {key: _setting(recipe, key, rule) for key, rule in RECIPE.items()}
    if clean["schedule"] == "cyclic" and not clean["stages"][0][2]:
        raise JobError("recipe: a cyclic schedule needs a gradient of 1..16 bits in its stage")
    try:
        make_schedule(clean)
    except ValueError as e:
        raise JobError(f"recipe: {e}") from e
    return clean


def _setting(recipe: dict[str, Any], key: str, rule: tuple[Any, ...]) -> Any:
    value = recipe[key]
    if isinstance(rule[0], str):
        if value not in rule:
            raise JobError(f"recipe: {key} = {value!r:.60}; use one of {', '.join(rule)}")
        return value
    if key == "stages":
        if not isinstance(value, list) or not 1 <= len(value) <= 1000:
            raise JobError("recipe: stages must be a list of 1 to 1000 precisions")
        return tuple(checked_widths(stage) for stage in value)
    if key in ("milestones", "targets"):
        if not isinstance(value, list) or len(value) > 1000 or not all(is_number(v) for v in value):
            raise JobError(f"recipe: {key} must be a list of numbers")
        return tuple(float(v) for v in value)
    if rule[0] is list:
        return integer_list(value, f"recipe: {key}", rule[1], rule[2], 1000)
    if rule[0] is bool:
        return get(recipe, key, bool, "recipe")
    if rule[0] is int:
        value = get(recipe, key, int, "recipe")
    elif not is_number(value):
        raise JobError(f"recipe: {key} = {value!r:.60} is not a number")
    if not rule[1] <= value <= rule[2]:
        raise JobError(f"recipe: {key} = {value!r:.60} is outside {rule[1]}..{rule[2]}")
    return rule[0](value)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_widths(stage: Any) -> tuple[int, ...]:
    """A precision: 3 or 4 widths."""
    widths = integer_list(stage, "a stage", 0, 16, 4)
    if len(widths) not in (3, 4) or (0 in widths and any(widths)):
        raise JobError(f"stage {list(widths)} must be 3 or 4 widths of 1..16, or all 0 for float32")
    return widths


def checked_gates(raw: Any, recipe: dict[str, Any]) -> Gates | None:
    """What gates choose from; None without gates."""
    if (raw is not None) != (recipe["schedule"] == "dfq"):
        raise JobError("gates belong to schedule 'dfq', and it to them")
    if raw is None:
        return None
    gates = mapping(raw, "gates")
    options = get(gates, "options", list, "gates")
    if not 2 <= len(options) <= 64:
        raise JobError(f"gates choose among 2 to 64 options, not {len(options)}")
    pairs = [integer_list(option, "an option of the gates", 1, 16, 2) for option in options]
    if any(len(pair) != 2 for pair in pairs):
        raise JobError("an option of the gates is a pair of widths, activation and gradient")
    (bits,) = integer_list([gates.get("weight_bits")], "gates: weight_bits", 1, 16)
    return Gates(tuple((a, g) for a, g in pairs), bits, recipe["beta"], recipe["band"], recipe["cap"])
