"""Random numbers of many items at once, each item's own: a function of (seed, epoch, item) alone."""

import numpy as np

# SplitMix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform_numbers(seed: int, epochs: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """(B, count) float64 from [0, 1): `count` numbers of each of the items (B,) in its epoch (B,).

    What an item gets depends on no other item, so batches may be cut in any way and made by any process.
    """
    state = _mixed(np.full(len(items), seed % 2**64, dtype=np.uint64) + STEP)
    for part in (epochs, items):
        state = _mixed(state + (part.astype(np.uint64) + np.uint64(1)) * STEP)
    counter = np.arange(1, count + 1, dtype=np.uint64) * STEP
    return (_mixed(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Every bit of each uint64 depends on all of it; overflow is meant."""
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST_FACTOR
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND_FACTOR
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
