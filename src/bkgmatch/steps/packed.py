"""WCS objects that wait in little memory until they are used."""

import pickle
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = ["PackedWcs"]

_UNPACKED = 8  # a few threads, each with one


class PackedWcs:
    """
    A function of pixels, as compressed bytes: some 30 kB for the gwcs of an exposure, which takes 750 kB.

    It is no dataclass, so that no journal can hold one: what is unpickled must come from this run.

    Parameters
    ----------
    packed : bytes
        The bytes, made by this process or its cluster's client.
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    @classmethod
    def of(cls, wcs: Callable) -> "PackedWcs":
        """Pack a function, such as a partial call of a gwcs."""
        return cls(zlib.compress(pickle.dumps(wcs), 1))

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions on the sky, in degrees, of pixels."""
        return _unpacked(self.packed)(x, y)


@lru_cache(maxsize=_UNPACKED)
def _unpacked(packed: bytes) -> Callable:
    return pickle.loads(zlib.decompress(packed))
