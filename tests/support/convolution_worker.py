"""Compares every convolution of the fast path with the exact one in a process of its own, which may crash.

Arguments: "all" for every number of channels with every kernel, else "some".  Prints one line per shape that is wrong,
and "done" with their number at the end.  The environment chooses oneDNN's instructions (ONEDNN_MAX_CPU_ISA) and how
closely the C library watches the heap.
"""

from __future__ import annotations

import itertools
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from host.exact_engine import ExactEngine
from sw_model.nn import layers as L
from sw_model.nn.convolution import convolve, gradients
from sw_model.nn.gated_convolution import dispatch

CHANNELS, KERNELS, STRIDES = range(1, 18), (1, 3, 5), (1, 2, 3)
OPTIONS = [L.Precision(8, 8, 8), L.Precision(8, 6, 8)]


def differ(found: Tensor, wanted: Tensor, bound: float = 1e-5) -> bool:
    return bool((found.double() - wanted.double()).abs().max() > bound * wanted.double().abs().max())


def image(size: tuple[int, ...], seed: int) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def trained(layer: L.QConv2d, x: Tensor, exact: bool, gated: bool) -> tuple[Tensor, ...]:
    """Output and both gradients of a quantized layer."""
    L.attach(layer, L.Run(engine=ExactEngine() if exact else None))
    layer.precision = OPTIONS[0]
    layer.weight.grad = None
    x = x.clone().requires_grad_()
    y = dispatch(layer, x, torch.eye(2)[torch.arange(len(x)) % 2], OPTIONS) if gated else layer(x)
    y.backward(image(tuple(y.shape), 2))
    assert x.grad is not None and layer.weight.grad is not None
    return y.detach(), x.grad, layer.weight.grad


def layers_differ(channels: int, kernel: int, stride: int, groups: int, size: tuple[int, int], gated: bool) -> bool:
    out = channels if groups > 1 else 8
    layer = L.QConv2d(channels, out, kernel, stride, kernel // 2, groups)
    x = image((4, channels, *size), 1)
    pairs = zip(trained(layer, x, False, gated), trained(layer, x, True, gated), strict=True)
    return any(differ(*pair) for pair in pairs)


def floats_differ(channels: int, kernel: int, stride: int, groups: int, size: tuple[int, int], padding: int) -> bool:
    """Float convolutions, whose gradients are taken by autograd, together, and one at a time, against double precision."""
    x = image((8, channels, *size), 1).requires_grad_()
    w = torch.randn(2 * channels, channels // groups, kernel, kernel, requires_grad=True)
    wanted = F.conv2d(x.double(), w.double(), None, stride, padding, 1, groups)
    y = convolve(x, w, stride, padding, groups)
    g = image(tuple(y.shape), 2)
    exact = torch.autograd.grad(wanted, (x, w), g.double())
    rest = (x.detach(), w.detach(), g, stride, padding, groups)
    found = [torch.autograd.grad(y, (x, w), g), gradients(*rest)]
    found.append((gradients(*rest, of=(True, False))[0], gradients(*rest, of=(False, True))[1]))
    return differ(y, wanted) or any(differ(a, b) for pair in found for a, b in zip(pair, exact, strict=True) if a is not None)  # fmt: skip


def main() -> None:
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):  # type: ignore[no-untyped-call]
        F.conv2d(torch.zeros(2, 16, 14, 14), torch.zeros(16, 16, 3, 3))
    wrong, few = 0, (1, 3, 7, 8, 16)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for channels, kernel, stride in itertools.product(CHANNELS, KERNELS, STRIDES):
            if kernel > 1 and channels not in few and sys.argv[1] != "all":
                continue
            cases = [
                ("dense", layers_differ(channels, kernel, stride, 1, (16, 16), False)),
                ("odd", layers_differ(channels, kernel, stride, 1, (13, 9), False)),
                ("gated", layers_differ(channels, kernel, stride, 1, (16, 16), True)),
                ("depthwise", layers_differ(channels, kernel, stride, channels, (9, 16), False)),
                ("float", floats_differ(channels, kernel, stride, 1, (32, 32), kernel // 2)),
                ("float, padded", floats_differ(channels, kernel, stride, 1, (7, 12), kernel // 2 + 1)),
            ]
            if channels % 2 == 0:
                cases.append(("two groups", floats_differ(channels, kernel, stride, 2, (16, 11), kernel // 2)))
            for name, bad in cases:
                if bad:
                    wrong += 1
                    print(
                        f"{name}: {channels} channels, kernel {kernel}, stride {stride}, {threads} threads", flush=True
                    )
    torch.set_num_threads(1)
    for channels in range(1, 18, 3):  # images so large that 16 lanes leave the workspace
        if floats_differ(channels, 1, 2, 1, (64, 64), 0):
            wrong += 1
            print(f"large: {channels} channels", flush=True)
    print("done", wrong)


if __name__ == "__main__":
    main()
