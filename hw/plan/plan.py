"""The one plan of training products: what the driver fills and sends, and every cost model counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hw.contract import HEADER_WORDS
from hw.design import Design
from hw.packet import END, Packet
from hw.plan.lowering import lower
from hw.plan.product import Product
from hw.plan.schedule import steps_of
from hw.plan.steps import Boundary, Step

PROGRAM_WORDS = 1 << 21  #: a program is closed when its words and results pass this


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


def programs(design: Design, planned: Iterable[Step], limit: int = PROGRAM_WORDS) -> Iterator[tuple[Step, ...]]:
    """Steps cut into the programs that the driver sends: one, or several if it grows long.

    Args:
        planned: what :func:`steps` returns.
        limit: a program is closed at the next place where it may be when its words and results pass this number.
    """
    made: list[Step] = []
    size = 0
    for step in planned:
        if isinstance(step, Boundary):
            if size > limit:
                yield tuple(made)
                made, size = [], 0
            continue
        made.append(step)
        size += sum(HEADER_WORDS + p.payload_words + p.result_words(design) for p in step.packets)
    if made:
        yield tuple(made)
