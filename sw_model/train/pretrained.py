"""The network that training starts from: a recipe's, with weights from a run's checkpoint or a file of named tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sw_model.nn.gates import Choice, GatedNetwork, way_of
from sw_model.nn.models import Backbone
from sw_model.train.folder import CHECKPOINT, read_tensors
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.record import GATED
from sw_model.train.tasks import Task

HEAD = "head."
RANGES = "step.tops"  #: a network has them only with norm "fabric", which finds them anew where there are none


def load_pretrained(model: nn.Module, path: Path) -> list[str]:
    """Gives a network the weights, statistics and activation ranges of a trained one.

    Of a gated run only the network inside is taken; gates start afresh.  The head keeps its initial values where the
    number of its outputs differs.

    Args:
        model: freshly initialised, without gates.
        path: a run folder, a checkpoint, or a file of named tensors (as ``torch.save`` writes a ``state_dict``).

    Returns:
        names that keep their initial values.

    Raises:
        ConfigError: if the file is missing or broken, or names or shapes differ; the model is then unchanged.
    """
    trained = _tensors(path / CHECKPOINT if path.is_dir() else path)
    own = model.state_dict()
    if any(name.startswith(GATED) for name in trained):
        trained = {name.removeprefix(GATED): x for name, x in trained.items() if name.startswith(GATED)}
    if RANGES in own:
        trained = {RANGES: own[RANGES], **trained}
    else:
        trained.pop(RANGES, None)
    missing, unknown = sorted(set(own) - set(trained)), sorted(set(trained) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"init = {str(path)!r} holds another network: it lacks {_some(missing)}, and the recipe's network has no "
            f"{_some(unknown)}; use the model that was trained"
        )
    other = {name for name, x in trained.items() if x.shape != own[name].shape}
    classes_differ = any(trained[name].shape[:1] != own[name].shape[:1] for name in other if name.startswith(HEAD))
    kept = sorted(name for name in own if name.startswith(HEAD)) if classes_differ else []
    for name in sorted(other):
        shapes = tuple(trained[name].shape), tuple(own[name].shape)
        if name not in kept or shapes[0][1:] != shapes[1][1:]:
            raise ConfigError(
                f"init = {str(path)!r}: {name} is {shapes[0]}, the recipe's network has {shapes[1]}; use the width and "
                "data that were trained"
            )
    model.load_state_dict({name: own[name] if name in kept else trained[name] for name in own})
    return kept


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"init: no checkpoint at {path}; give a run folder or a checkpoint")
    try:
        state = read_tensors(path)
    except ConfigError as error:
        raise ConfigError(
            f"init: {error}; it cannot be read: give a run folder, a checkpoint or a file of tensors"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise ConfigError(f"init: {path} holds no named tensors; give a run folder or a checkpoint")
    return {str(name): x for name, x in state.items()}


def build_network(config: TrainConfig, task: Task, *, pretrained: bool = True) -> tuple[nn.Module, GatedNetwork | None]:
    """The initial network of a recipe, and the gated network around it if the recipe has gates.

    Args:
        config, task: the recipe and its task.
        pretrained: whether to load the weights that ``config.init`` names; a resumed run has better ones.

    Raises:
        ConfigError: gates for a network that cannot have them; weights that do not fit.
    """
    model = task.build(config)
    if config.init and pretrained:
        load_pretrained(model, Path(config.init).expanduser())
    if config.schedule != "dfq":
        return model, None
    if not isinstance(model, Backbone):
        raise ConfigError(
            f"gates govern networks of residual blocks of ours, not {config.model}; in a loop of your own, fractrain.dfq names "
            "the blocks of any network"
        )
    options = [(option[0], option[1]) for option in config.options]
    choice: Choice = "sample" if config.gate == "sample" else "argmax"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return model, GatedNetwork(model, options, config.weight_bits, way=way_of(config.mode), choice=choice)
