"""Fill the holes of images from what is around them."""

import numpy as np

__all__ = ["fill_holes"]

_SWEEPS = 20


def fill_holes(image: np.ndarray, known: np.ndarray, wanted: np.ndarray | bool = True) -> np.ndarray:
    """
    Fill the holes of an image smoothly.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Image; its values in holes do not matter.
    known : ndarray of bool, shape (ny, nx)
        False in holes.
    wanted : ndarray of bool, shape (ny, nx), optional
        Where the fill shall be smooth to the pixel; elsewhere it follows from means of 2 x 2 pixels, which saves time.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        The image where it is known; a solution of Laplace's equation in the holes, about, so that gradients go on
        through them. Zero if nothing is known.

    Notes
    -----
    Means of 2 x 2 pixels are filled first, then those of pixels start from them and are relaxed (nested iteration;
    Briggs, Henson & McCormick 2000, *A Multigrid Tutorial*, chapter 3).
    """
    if known.all():
        return np.array(image, dtype=np.float32)
    if not known.any() or max(image.shape) < 2:
        return np.where(known, image, 0).astype(np.float32)
    coarse = fill_holes(*_halved(image, known))
    filled = np.where(known, image, _doubled(coarse, image.shape)).astype(np.float32)
    return _relaxed(filled, ~known & wanted)


def _halved(image: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the known among 2 x 2 pixels, and whether there are any."""
    padding = [(0, size % 2) for size in image.shape]
    count = _sums(np.pad(known.astype(np.float32), padding))
    return _sums(np.pad(np.where(known, image, 0), padding)) / np.maximum(count, 1), count > 0


def _sums(image: np.ndarray) -> np.ndarray:
    rows = image[::2] + image[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _doubled(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate an image of half the size linearly."""
    for axis, size in enumerate(shape):
        place = np.clip((np.arange(size) - 0.5) / 2, 0, image.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (place - low).reshape([-1 if k == axis else 1 for k in range(2)])
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


def _relaxed(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Replace pixels in holes by the mean of their neighbours, several times; edges of the image reflect."""
    row, column = np.nonzero(hole)
    ny, nx = image.shape
    beside = [
        (np.abs(row - 1), column),
        (ny - 1 - np.abs(ny - 2 - row), column),
        (row, np.abs(column - 1)),
        (row, nx - 1 - np.abs(nx - 2 - column)),
    ]
    flat = image.ravel()
    own, others = row * nx + column, [np.clip(y, 0, ny - 1) * nx + np.clip(x, 0, nx - 1) for y, x in beside]
    for _ in range(_SWEEPS):
        flat[own] = sum(flat[other] for other in others) / 4
    return flat.reshape(image.shape)
