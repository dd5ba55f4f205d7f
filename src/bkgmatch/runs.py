"""Labels of the pixels of an image, as runs of equal labels: few numbers where there are many pixels."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Runs"]


@dataclass(frozen=True)
class Runs:
    """
    Runs of pixels of a flattened image, each with a label.

    Parameters
    ----------
    stops : ndarray of int, shape (n_runs,)
        Pixel after the last of each run, increasing; the first run begins at pixel 0.
    labels : ndarray of int, shape (n_runs,)
        Label of each run.
    """

    stops: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> "Runs":
        """Find the runs of an image of labels."""
        flat = image.ravel()
        ends = np.flatnonzero(np.diff(flat, append=flat[-1:] + 1)) + 1
        return cls(ends, flat[ends - 1])

    def at(self, pixels: np.ndarray) -> np.ndarray:
        """Labels of some pixels, by their numbers in the flattened image."""
        return self.labels[np.searchsorted(self.stops, pixels, side="right")]

    def part(self, start: int, stop: int) -> "Runs":
        """Take the pixels from ``start`` to ``stop``, and number them from 0."""
        first, last = np.searchsorted(self.stops, [start, stop - 1], side="right")
        return Runs(np.minimum(self.stops[first : last + 1], stop) - start, self.labels[first : last + 1])

    def image(self) -> np.ndarray:
        """Label of each pixel of the flattened image, int32."""
        return np.repeat(self.labels.astype(np.int32), np.diff(self.stops, prepend=0))
