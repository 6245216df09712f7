"""The one plan of training products: what the driver fills and sends, and every cost model counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hw.design import Design
from hw.model.lowering import lower
from hw.model.product import Product
from hw.model.schedule import steps_of
from hw.model.steps import Step
from hw.packet import END, Packet


def steps(design: Design, products: Sequence[Product]) -> Iterator[Step]:
    """Steps of one program of products, without its END.

    Raises:
        LoweringError: a product that the design's buffers cannot hold, however it is cut.
    """
    return steps_of(design, [lower(design, product) for product in products])


def packets(design: Design, products: Sequence[Product]) -> Iterator[Packet]:
    """Packets of one program of products, END included; raises as :func:`steps` does."""
    for step in steps(design, products):
        yield from step.packets
    yield END
