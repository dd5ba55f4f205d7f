"""Subtract a level from an exposure's arrays, and undo it."""

import numpy as np

__all__ = ["add_variance", "blank_value", "remove_variance", "shift"]


def shift(data: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """
    Add a level to pixels.

    Parameters
    ----------
    data : ndarray
        Pixels.
    level : float or ndarray of the shape of the data
        Level, negative to subtract; the sum is made in double precision.

    Returns
    -------
    ndarray
        Of the type of the data.
    """
    return np.add(data, level, dtype=np.float64).astype(data.dtype)


def blank_value(dtype: np.dtype, level: float) -> np.floating:
    """Value of a pixel that was zero before a level was subtracted."""
    return shift(np.zeros(1, dtype), -level)[0]


def add_variance(error: np.ndarray, sigma: float) -> np.ndarray:
    """Error after the level's own standard error is added in quadrature."""
    return np.hypot(error, sigma, dtype=np.float64).astype(error.dtype)


def remove_variance(error: np.ndarray, sigma: float) -> np.ndarray:
    """Undo `add_variance`."""
    square = np.square(error, dtype=np.float64) - sigma**2
    return np.sqrt(np.maximum(square, 0)).astype(error.dtype)
