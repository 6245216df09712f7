"""Where quantizers run: the one table of what each place takes, asked by recipes, layers, engines and exports."""

from __future__ import annotations

from dataclasses import dataclass

#: where PyTorch computes, see :func:`sw_model.train.accelerator.choose_accelerator`
ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Place:
    """A part of training that does not take every quantizer.

    Attributes:
        takes: setting of a recipe -> the values that run there.
        reason: what keeps the others out, as the predicate of a sentence.
    """

    takes: dict[str, tuple[str, ...]]
    reason: str


_AFFINE: dict[str, tuple[str, ...]] = {"quantizer": ("affine",), "gradient": ("affine",)}

PLACES = {
    "engine": Place(
        {**_AFFINE, "mode": ("fixed",)}, "has the fast path only: integer engines multiply codes of single affine grids"
    ),
    "gates": Place(_AFFINE, "has no rule for gates, which mix the grids of affine quantizers"),
    "attention": Place(
        {"quantizer": ("affine",)}, "has no rule for products of two activations, which attention consists of"
    ),
    "processes": Place({**_AFFINE, "norm": ("batch",)}, "takes the whole batch in one process"),
    "job": Place({**_AFFINE, "mode": ("fixed",), "norm": ("batch", "fabric")}, "has no counterpart in jobs"),
    #: with a comparison method of :mod:`sw_model.quantize.methods`
    "method": Place(
        {"gradient": ("affine",), "mode": ("fixed",)},
        "belongs to affine quantization, and comparison methods bring their own",
    ),
}


def refusal(place: str, settings: object) -> str | None:
    """Why settings do not run in a place, with the remedy; None if they do.

    Args:
        place: a key of :data:`PLACES`.
        settings: has the settings as attributes, as a recipe and a :class:`sw_model.nn.precision.Run` do.
    """
    for name, values in PLACES[place].takes.items():
        value = getattr(settings, name)
        if value not in values:
            return f"{name} = {value!r} {PLACES[place].reason}; use {' or '.join(map(repr, values))}"
    return None
