"""Networks and data of others by reference: ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:FUNCTION``.

Nothing is imported but what a reference names.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

LIBRARIES = ("timm", "torchvision")


def is_reference(text: str) -> bool:
    """Whether a model or data set is named by reference, and is not one of ours or a path."""
    library, colon, name = text.partition(":")
    return bool(colon and name) and (library in LIBRARIES or library.endswith(".py"))


def function_of(reference: str) -> Callable[..., Any]:
    """The function that ``FILE.py:FUNCTION`` names; the file, from the working directory, is run as a module.

    Raises:
        ValueError: there is no such file or function.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ValueError(
            f"{reference!r}: there is no file {path}; write FILE.py:FUNCTION, the file from the working directory"
        )
    spec = importlib.util.spec_from_file_location(f"fractrain_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_"))
        raise ValueError(f"{reference!r}: {path.name} has no function {name!r}; it has {known or 'none'}")
    return function  # type: ignore[no-any-return]


def call_with(function: Callable[..., Any], **offered: Any) -> Any:
    """What a function returns, given those arguments on offer that it names."""
    taken = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        return function(**offered)
    return function(**{name: value for name, value in offered.items() if name in taken})


def build_referenced(reference: str, classes: int, image: tuple[int, ...], seed: int = 0) -> nn.Module:
    """A freshly initialised network; the caller's random state is left as it was.

    Args:
        reference: see :func:`is_reference`.  A function is given ``classes`` and ``image`` where it has arguments of these
            names.
        classes: outputs.
        image: shape of a sample, such as channels, height and width.
        seed: initialisation.

    Raises:
        ValueError: a library that is not installed, a name that it does not have, or what is no network.
    """
    library, _, name = reference.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            model = _timm(name, classes, image)
        elif library == "torchvision":
            model = _torchvision(name, classes)
        else:
            model = call_with(function_of(reference), classes=classes, image=image)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{reference!r} returned {type(model).__name__}, which is no torch.nn.Module")
    return model


def import_library(name: str) -> Any:
    """``timm`` or ``torchvision``, for their networks.

    PyPI's builds of torchvision are made for PyTorch with CUDA.  Beside PyTorch's build for the CPU their compiled operators
    do not load, and the import ends at the names of two of them, which no network needs; those are declared then.

    Raises:
        ValueError: it is not installed, or does not load for another reason.
    """
    try:
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::" not in str(error) or _DECLARED:
                raise
            _DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            for operator in ("nms", "qnms"):
                _DECLARED[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} is not installed ({error}); pip install 'fractrain-fabric[models]'") from error
    except RuntimeError as error:
        raise ValueError(
            f"{name} does not load ({error}); install the build of torchvision for PyTorch {torch.__version__}"
        ) from error


#: torchvision's operators that had to be declared
_DECLARED: list[Any] = []


def _timm(name: str, classes: int, image: tuple[int, ...]) -> Any:
    timm = import_library("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "see timm.list_models()"
        raise ValueError(f"timm has no model {name!r}; near are {near}")
    options = {"num_classes": classes, "in_chans": image[0]}
    try:
        return timm.create_model(name, **options, img_size=image[1:])
    except TypeError:  # a network that takes images of any size
        return timm.create_model(name, **options)


def _torchvision(name: str, classes: int) -> Any:
    models = import_library("torchvision").models
    if name not in models.list_models():
        raise ValueError(f"torchvision has no model {name!r}; see torchvision.models.list_models()")
    return models.get_model(name, weights=None, num_classes=classes)
