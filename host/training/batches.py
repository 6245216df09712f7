"""Images as training sees them: the order of an epoch, random shifts and flips, normalisation.

The order of an epoch is a function of (seed, epoch), the augmentation of a batch one of (seed, epoch, batch index), so
training can resume at any batch without replaying the ones before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from host.arrays import F32, I64
from host.numerics import ceil_div

Images = npt.NDArray[np.uint8]  #: (N, C, H, W)


def epoch_order(count: int, seed: int, epoch: int) -> I64:
    """Places of ``count`` images in the order in which an epoch shows them."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def epoch_batches(count: int, batch: int, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, I64]]:
    """Number and images' places of each batch of an epoch from batch ``start``; the last one may be smaller."""
    order = epoch_order(count, seed, epoch)
    for index in range(start, ceil_div(count, batch)):
        yield index, order[index * batch : (index + 1) * batch]


def augmented(images: Images, seed: int, epoch: int, index: int, *, shift: int, flip: bool) -> Images:
    """A whole batch moved at random by up to ``shift`` pixels along both axes, zeros moving in, and mirrored at random.

    Args:
        seed, epoch, index: of the batch.
    """
    rng = np.random.default_rng((seed, epoch, index))
    n, _, h, w = images.shape
    if shift:
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
        offsets = rng.integers(0, 2 * shift + 1, size=(2, n))
        rows, columns = offsets[0][:, None] + np.arange(h), offsets[1][:, None] + np.arange(w)
        images = padded[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        images = images.transpose(0, 3, 1, 2)
    if flip:
        mirrored = rng.random(n) < 0.5
        images = images.copy()
        images[mirrored] = images[mirrored, :, :, ::-1]
    return images


def normalised(images: Images, full_scale: float, mean: Sequence[float], std: Sequence[float]) -> F32:
    """Images scaled to 0..1, less the mean, over the deviation of each channel: float32, C order."""
    x = np.ascontiguousarray(images).astype(np.float32)
    x /= np.float32(full_scale)
    x -= np.array(mean, np.float32).reshape(-1, 1, 1)
    x /= np.array(std, np.float32).reshape(-1, 1, 1)
    return x
