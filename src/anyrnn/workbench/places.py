"""Where the training runs of a comparison are done: in this process, in several here, or on a cluster."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.jobs import Jobs, Tell, jobs_in
from anyrnn.workbench.lesson import AnyLesson
from anyrnn.workbench.processes import world


@dataclass(frozen=True)
class Place:
    """A place for training runs.

    Attributes:
        workers: How many processes here.
        client: Is connected with the scheduler of a cluster; None: they are done here.
    """

    workers: int = 1
    client: Any = None

    def jobs(self, lesson: AnyLesson, tell: Tell, say: Callable[[str], None]) -> AbstractContextManager[Jobs]:
        """Do jobs there inside a ``with`` block: see `anyrnn.workbench.jobs.jobs_in`."""
        if self.client is None:
            return jobs_in(self.workers, lesson, tell, say)
        from anyrnn.workbench.cluster import jobs_on  # noqa: PLC0415 - few need it

        return jobs_on(self.client, lesson, tell, say)


@contextmanager
def place(workers: int, scheduler: str | None) -> Iterator[Place]:
    """Find a place by what was asked for; it is there inside a ``with`` block.

    Args:
        workers: How many processes here.
        scheduler: The address of Dask's scheduler.

    Raises:
        AnyRNNError: if that makes no sense, or nothing answers at the address.
    """
    if not isinstance(workers, int) or workers < 1:
        raise AnyRNNError(f"workers: got {workers!r}, expected how many training runs go on at once, at least 1")
    asked = [f"workers={workers}"] if workers > 1 else []
    asked += [f"scheduler={scheduler!r}"] if scheduler is not None else []
    if len(asked) > 1:
        raise AnyRNNError(
            f"got {' and '.join(asked)}, but workers are processes on this machine, and a scheduler has workers of its "
            "own, one training run at a time for each; expected one of the two"
        )
    if asked and world().size > 1:
        raise AnyRNNError(
            f"got {asked[0]}, but torchrun has started {world().size} processes that train each network together; "
            "expected one of the two"
        )
    if scheduler is None:
        yield Place(workers)
        return
    from anyrnn.workbench.cluster import connected  # noqa: PLC0415 - few need it

    with connected(scheduler) as client:
        yield Place(client=client)
