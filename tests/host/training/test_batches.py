"""Batches: every image once an epoch, shifted and mirrored whole, normalised by channel."""

from __future__ import annotations

import numpy as np
import pytest

from host.training.batches import augmented, epoch_batches, normalised

IMAGES = np.random.default_rng(0).integers(1, 256, (30, 3, 12, 12), np.uint8)


@pytest.mark.parametrize("start", [0, 2])
def test_an_epoch_shows_every_image_once_from_any_batch_on(start: int) -> None:
    batches = list(epoch_batches(30, 8, 3, 2, start))
    assert [index for index, _ in batches] == list(range(start, 4)) and len(batches[-1][1]) == 6
    whole = np.concatenate([places for _, places in epoch_batches(30, 8, 3, 2)])
    assert sorted(whole) == list(range(30))
    assert np.array_equal(np.concatenate([places for _, places in batches]), whole[start * 8 :])
    for seed, epoch in ((4, 2), (3, 1)):
        assert not np.array_equal(next(epoch_batches(30, 8, seed, epoch))[1], whole[:8])


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    before = IMAGES.copy()
    changed = augmented(IMAGES, 1, 0, 0, shift=2, flip=True)
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (2, 2)))
    kinds = set()
    for n in range(30):
        found = [
            (dy, dx, mirror)
            for dy in range(5)
            for dx in range(5)
            for mirror in (1, -1)
            if (padded[n, :, dy : dy + 12, dx : dx + 12][..., ::mirror] == changed[n]).all()
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert len(kinds) > 10 and np.array_equal(IMAGES, before)
    assert np.array_equal(augmented(IMAGES, 1, 0, 0, shift=2, flip=True), changed)
    assert not np.array_equal(augmented(IMAGES, 1, 0, 1, shift=2, flip=True), changed)
    assert np.array_equal(augmented(IMAGES, 1, 0, 0, shift=0, flip=False), IMAGES)


def test_channels_are_normalised_by_their_own_statistics() -> None:
    mean, std = (0.25, 0.5, 0.75), (0.5, 0.25, 1.0)
    x = normalised(IMAGES.transpose(0, 1, 3, 2), 255.0, mean, std)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    for channel in range(3):
        wanted = (IMAGES[:, channel].transpose(0, 2, 1) / 255.0 - mean[channel]) / std[channel]
        assert np.abs(x[:, channel] - wanted).max() < 1e-6
