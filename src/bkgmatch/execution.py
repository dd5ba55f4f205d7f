"""Run a function over items: here, in threads, or on a cluster. The one place that knows of parallel work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from bkgmatch.journal import Journal
from bkgmatch.progress import Progress, stage
from bkgmatch.stored import Shelf, Stack, new_stack

__all__ = ["HERE", "Work", "batches", "threads"]

_WINDOW = 1024  # tasks under way: their arguments are in the memory of the scheduler

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """
    How work is done.

    Parameters
    ----------
    executor : concurrent.futures.Executor, optional
        What runs it: threads, or the executor of a Dask client. By default the calling thread.
    folder : str or Path, optional
        Folder for arrays that are not to be kept in memory. Workers of an executor that are not threads of this process
        must see it. The files stay there.
    journal : Journal, optional
        Results of an earlier run that are used again, and where those of this run are kept.

    Raises
    ------
    ValueError
        If the executor is not one of threads, and there is no folder.
    FileNotFoundError
        If the folder does not exist.
    """

    executor: Executor | None = None
    folder: Path | None = None
    journal: Journal | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
            if not self.folder.is_dir():
                raise FileNotFoundError(f"the folder {self.folder} does not exist; make it first")
        if self.folder is None and not self.shares_memory:
            raise ValueError("workers that are no threads of this process need a folder that they and it can see")

    @property
    def shares_memory(self) -> bool:
        """Whether all work is done in this process."""
        return self.executor is None or isinstance(self.executor, ThreadPoolExecutor)

    def run(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        what: str,
        name: Callable[[Item], str] | None = None,
        keep: bool = True,
    ) -> list[Result]:
        """
        Apply a function to each item.

        Parameters
        ----------
        function : callable
            Function of one item. For an executor that is not one of threads function, items and results are pickled:
            they are to be small.
        items : iterable
            Items.
        what : str
            What is done, for the log.
        name : callable, optional
            Name of an item, for messages.
        keep : bool
            Whether results may be taken from the journal; False for a function that writes them elsewhere.

        Returns
        -------
        list
            The results, in the order of the items.

        Raises
        ------
        RuntimeError
            If the workers of the executor die of an item, with its name.
        """
        journal = self.journal if keep else None
        return _Run(self.executor, journal, function, list(items), what, name or (lambda item: what)).results()

    @property
    def shelf(self) -> Shelf:
        """Where arrays are kept: with the results that refer to them, in the folder, or in memory."""
        return Shelf(self.journal.arrays if self.journal else self.folder)

    def once(self, make: Callable[[], Result], *of: Any) -> Result:
        """
        Make a result in the calling thread, unless an earlier run has made it.

        Parameters
        ----------
        make : callable
            Function without arguments.
        *of : object
            All that the result depends on, see `bkgmatch.journal.fingerprint`.

        Returns
        -------
        object
            The result.
        """
        key = self.journal.key(*of) if self.journal else None
        found = self.journal.get(key) if self.journal and key else None
        if found is not None:
            return found
        result = make()
        if self.journal and key:
            self.journal.put(key, result)
        return result

    def run_here(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function that uses the memory of this process to each item: in threads, if there are any."""
        return _Run(self.executor if self.shares_memory else None, None, function, list(items), "", repr).results()

    def stack(self, name: str, n: int, shape: tuple[int, ...], dtype: type) -> Stack:
        """Make room for n images, in memory or in the folder."""
        return new_stack(self.folder, name, n, shape, dtype)


@contextmanager
def threads(number: int) -> Iterator[Work]:
    """
    Work in threads of this process. NumPy releases the interpreter's lock in the heavy parts.

    Parameters
    ----------
    number : int
        How many.

    Yields
    ------
    Work
        In memory.

    Examples
    --------
    >>> from bkgmatch.execution import threads
    >>> with threads(2) as work:
    ...     work.run_here(abs, [-1, 2])
    [1, 2]
    """
    with ThreadPoolExecutor(number) as executor:
        yield Work(executor)


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """
    Divide items that are too small to be tasks of their own.

    Parameters
    ----------
    items : sequence
        The items.
    size : int
        How many go together.

    Returns
    -------
    list of sequence
        The batches, in order; the last may be smaller.

    Examples
    --------
    >>> from bkgmatch.execution import batches
    >>> batches([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


HERE = Work()
"""One item after the other, in the calling thread, in memory."""


class _Run:
    """One function over its items."""

    def __init__(
        self,
        executor: Executor | None,
        journal: Journal | None,
        function: Callable,
        items: Sequence,
        what: str,
        name: Callable[[Any], str],
    ) -> None:
        self._executor, self._journal, self._function, self._items = executor, journal, function, items
        self._what, self._name = what, name
        self._results: list = [None] * len(items)
        self._keys = [journal.key(function, item) if journal else None for item in items]

    def results(self) -> list:
        """Results of all items."""
        named = stage(self._what.partition(" (")[0].lower()) if self._what else nullcontext()
        with named, Progress(self._what, len(self._items)) as self._progress:
            return self._results_of_all()

    def _results_of_all(self) -> list:
        todo = [i for i in range(len(self._items)) if not self._is_known(i)]
        if self._executor is None:
            for i in todo:
                self._keep(i, self._function(self._items[i]))
        else:
            self._spread(self._executor, todo)
        return self._results

    def _is_known(self, i: int) -> bool:
        """Whether an earlier run has the result, which is taken then."""
        key = self._keys[i]
        found = self._journal.get(key) if self._journal and key else None
        if found is None:
            return False
        self._results[i] = found
        self._progress.take()
        return True

    def _keep(self, i: int, result: Any) -> None:
        self._results[i] = result
        key = self._keys[i]
        if self._journal and key:
            self._journal.put(key, result)
        self._progress.advance()

    def _spread(self, executor: Executor, todo: Sequence[int]) -> None:
        waiting, running, ready = deque(todo), dict[Future, int](), SimpleQueue[Future]()
        try:
            while waiting or running:
                while waiting and len(running) < _WINDOW:
                    i = waiting.popleft()
                    future = executor.submit(partial(self._function, self._items[i]))
                    running[future] = i
                    future.add_done_callback(ready.put)
                future = ready.get()
                i = running.pop(future)
                self._keep(i, self._result(future, i))
        finally:
            for future in running:
                future.cancel()

    def _result(self, future: Future, i: int) -> Any:
        try:
            return future.result()
        except BrokenExecutor as error:
            raise RuntimeError(f"{self._name(self._items[i])}: {error}") from error
