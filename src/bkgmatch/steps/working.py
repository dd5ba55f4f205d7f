"""How the work of a step is done: threads or a cluster, temporary files, and results of an interrupted run."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jwst.stpipe import Step

from bkgmatch.cluster import cluster
from bkgmatch.execution import Work
from bkgmatch.journal import Journal
from bkgmatch.steps.inputs import number_of_cores
from bkgmatch.workspace import WorkFolder

__all__ = ["work_of"]

log = logging.getLogger("stpipe.bkgmatch.working")


@contextmanager
def work_of(step: Step, n: int, *, from_files: bool) -> Iterator[Work]:
    """
    Prepare the work of a step.

    Parameters
    ----------
    step : Step
        The step, with its parameters.
    n : int
        Number of exposures.
    from_files : bool
        Whether they are all in files: then results are kept beside ``save_table`` until the work is complete.

    Yields
    ------
    Work
        What the core takes. Temporary files are removed at the end, those of the journal by `BackgroundStep.run`.

    Raises
    ------
    ValueError, ImportError, ConnectionError, FileNotFoundError
        If a parameter cannot be used, or the cluster cannot.
    """
    cores = number_of_cores(step.maximum_cores, n)
    journal = Journal(Path(f"{step.save_table}.resume").absolute()) if step.save_table and from_files else None
    with ExitStack() as stack:
        folder = None
        if step.dask_scheduler or not step.in_memory:
            folder = stack.enter_context(WorkFolder(step.temp_dir))
        if step.dask_scheduler:
            assert folder is not None
            shared = [folder, journal.folder.parent] if journal else [folder]
            work = Work(stack.enter_context(cluster(step.dask_scheduler, shared)), folder, journal)
        else:
            if step.maximum_cores != "none":
                log.info("Exposures are measured in %d threads", cores)
            work = Work(stack.enter_context(ThreadPoolExecutor(cores)) if cores > 1 else None, folder, journal)
        if folder:
            log.info("Temporary files are in %s", folder)
        if journal:
            journal.open()
            step.journals.append(journal)
        yield work
