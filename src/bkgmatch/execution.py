"""Run a function over items, here or in threads: the one place that knows of parallel work."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["run"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(function: Callable[[Item], Result], items: Iterable[Item], *, cores: int = 1) -> list[Result]:
    """
    Apply a function to each item, in order.

    Parameters
    ----------
    function : callable
        Function of one item. NumPy releases the interpreter's lock in the heavy parts.
    items : iterable
        Items.
    cores : int
        Number of threads; 1 runs in the calling thread.

    Returns
    -------
    list
        The results, in the order of the items.
    """
    if cores <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(max_workers=cores) as executor:
        return list(executor.map(function, items))
