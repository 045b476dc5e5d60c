"""Pictures that look alike: the lowest frequencies of a picture, which scaling or recompressing it hardly changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from vinvl.data.text import flat_ranges
from vinvl.pictures.reading import ReadingOptions, read_picture
from vinvl.run.errors import UserError
from vinvl.run.lines import in_order

SIDE = 32  # pixels of the small grey picture that is looked at
BITS = 64
PLAIN = 2.0  # grey levels: where pixels differ by less, what is left is noise
LEAST_CORRELATION = 0.9  # of the waves of two pictures that are taken for the same
BLOCK = 1 << 12

_TIMES, _PIXELS = np.arange(SIDE)[:, None], np.arange(SIDE)
_COSINES = np.cos(np.pi * _TIMES * (2 * _PIXELS + 1) / (2 * SIDE))  # (frequency, pixel) of the cosine transform
_LOWEST = sorted(np.ndindex(SIDE, SIDE), key=lambda at: (sum(at), at))[1 : BITS + 1]  # but for the mean
_ROWS, _COLUMNS = np.array(_LOWEST).T


def waves_of(image: Image.Image) -> np.ndarray | None:
    """(64,) float32 of length 1: the lowest frequencies of a picture; None for a picture of one colour."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    if grey.std() < PLAIN:
        return None
    waves = (_COSINES @ grey @ _COSINES.T)[_ROWS, _COLUMNS]
    length = float(np.linalg.norm(waves))
    return (waves / length).astype(np.float32) if length else None


def bits_of(waves: np.ndarray) -> np.ndarray:
    """(n,) uint64 of waves (n, 64): which of them are above their median, the usual perceptual hash."""
    above = waves > np.median(waves, axis=1, keepdims=True)
    return np.packbits(above, axis=1).reshape(-1).view(">u8").astype(np.uint64)


class Looks(NamedTuple):
    """What n pictures look like, whose places these are; without those that cannot be compared."""

    places: list[str]
    waves: np.ndarray  # (n, 64) float32
    plain: int  # pictures of one colour
    broken: list[str]  # a sentence for each picture that cannot be read


def looks_of(places: Sequence[str], workers: int) -> Iterator[Looks]:
    """The looks of the pictures at these places, some thousands at a time; `workers` processes."""
    blocks = (places[start : start + BLOCK] for start in range(0, len(places), BLOCK))
    return in_order(_looks, blocks, workers, fewer="--workers")


def _looks(places: Sequence[str]) -> Looks:
    found, waves, plain, broken, options = (
        list[str](),
        [np.zeros((0, BITS), np.float32)],
        0,
        list[str](),
        ReadingOptions(),
    )
    for place in places:
        try:
            one = waves_of(read_picture(place, options))
        except UserError as error:
            broken.append(str(error))
            continue
        if one is None:
            plain += 1
        else:
            found.append(place)
            waves.append(one[None])
    return Looks(found, np.concatenate(waves), plain, broken)


class Alike:
    """Finds those of M pictures that others look like: few bits differ, and the waves correlate.

    Two numbers that differ in at most k bits have one of k + 1 parts in common, by which they are looked up: the time
    for a picture grows with M / 2^(64 / (k + 1)).
    """

    def __init__(self, waves: np.ndarray, most: int) -> None:
        """waves: (M, 64) float32. most: k, from 0 to 16 of the 64 bits."""
        self.waves, self.bits, self.most = waves, bits_of(waves), most
        edges = np.linspace(0, BITS, most + 2).astype(int)
        self._parts = [(np.uint64(start), np.uint64(2 ** int(stop - start) - 1)) for start, stop in pairwise(edges)]
        self._orders = [np.argsort(self.bits >> start & mask, kind="stable") for start, mask in self._parts]

    def pairs(self, waves: np.ndarray) -> np.ndarray:
        """(P, 3) int64: a place in `waves` (n, 64), one among the M, and in how many bits they differ; sorted."""
        bits, found = bits_of(waves), [np.zeros((0, 3), dtype=np.int64)]
        for (start, mask), order in zip(self._parts, self._orders, strict=True):
            values, wanted = (self.bits >> start & mask)[order], bits >> start & mask
            first = np.searchsorted(values, wanted)
            counts = np.searchsorted(values, wanted, side="right") - first
            others, own = order[flat_ranges(first, counts)], np.repeat(np.arange(len(bits)), counts)
            differing = np.bitwise_count(bits[own] ^ self.bits[others])
            near = differing <= self.most
            found.append(np.stack([own[near], others[near], differing[near].astype(np.int64)], axis=1))
        pairs = np.unique(np.concatenate(found), axis=0)
        correlation = np.einsum("pw,pw->p", waves[pairs[:, 0]], self.waves[pairs[:, 1]])
        return pairs[correlation >= LEAST_CORRELATION]
