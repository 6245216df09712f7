"""An engine that shows its products to a test."""

from __future__ import annotations

from host.operands import ConvGeometry, Engine, Operand, Sums


class ObservedEngine:
    """Answers as another engine does and hands every product to :meth:`observe`, which subclasses define."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.meter = engine, engine.meter

    def observe(self, product: str, a: Operand, b: Operand, sums: Sums) -> None:
        """Takes a product's name, operands and result."""
        raise NotImplementedError

    def _product(self, product: str, a: Operand, b: Operand, geometry: ConvGeometry) -> Sums:
        sums: Sums = getattr(self.engine, product)(a, b, geometry)
        self.observe(product, a, b, sums)
        return sums

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        return self._product("forward", x, w, geometry)

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        return self._product("input_gradient", g, w, geometry)

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        return self._product("weight_gradient", x, g, geometry)
