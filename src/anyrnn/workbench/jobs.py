"""The training runs of a comparison as jobs: done one after the other in this process, or several at once in others.

Both ways have one interface, `Jobs`, and give the same weights and scores, bit for bit: a training run depends on its
seed and on nothing that another one does. A process that dies costs one job, which is done again, from its last
checkpoint if there is one.

The processes are spawned, not forked: PyTorch's threads do not survive a fork. Each has a pipe to this one, and gets
the data once, then one job at a time; it sends what is told of each epoch as it happens.
"""

import multiprocessing
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.lesson import AnyLesson, EpochEnd
from anyrnn.workbench.work import Done, Failed, Job, Order, Outcome, Work, done, outcome, pickled

TRIES = 3  # of a job whose process dies: whatever kills it three times kills it again
_PROCESSES = multiprocessing.get_context("spawn")

Tell = Callable[[Job, EpochEnd], None]


class Jobs(Protocol):
    """Where jobs are done."""

    def submit(self, job: Job) -> None:
        """Line up a job."""

    def as_completed(self) -> Iterator[tuple[Job, Outcome]]:
        """Have them done; each comes when it is, in whatever order.

        Raises:
            AnyRNNError: if a job raises one, or if its process dies again and again. The other jobs end with it.
        """


@contextmanager
def jobs_in(workers: int, lesson: AnyLesson, tell: Tell, say: Callable[[str], None]) -> Iterator[Jobs]:
    """Do jobs inside a ``with`` block, in this process (one worker) or in several others, which end with the block.

    Args:
        workers: How many at once.
        lesson: What is learned, and how.
        tell: Called in this process after each epoch of each job.
        say: Is told what went wrong and was put right.
    """
    if workers == 1:
        yield _Here(lesson, tell)
        return
    processes = _Processes(workers, lesson, tell, say)
    try:
        yield processes
    finally:
        processes.end()


class _Here:
    """Jobs in this process, one after the other, in the order of their submission."""

    def __init__(self, lesson: AnyLesson, tell: Tell) -> None:
        self._lesson, self._tell = lesson, tell
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def as_completed(self) -> Iterator[tuple[Job, Outcome]]:
        while self._waiting:
            job = self._waiting.popleft()
            tell = partial(self._tell, job)
            yield job, self._lesson.train(job.network, job.seed, tell, job.checkpoints)


class _Processes:
    """Jobs in several processes."""

    def __init__(self, count: int, lesson: AnyLesson, tell: Tell, say: Callable[[str], None]) -> None:
        self._count, self._lesson, self._tell, self._say = count, lesson, tell, say
        self._work = pickled(Work.of(lesson))
        self._waiting: deque[Job] = deque()
        self._workers: dict[Connection, _Worker] = {}
        self._deaths: Counter[int] = Counter()  # by the number of the run
        self._told: Counter[int] = Counter()  # likewise, the last epoch that was told: a second try repeats some

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def as_completed(self) -> Iterator[tuple[Job, Outcome]]:
        self._start(min(self._count, len(self._waiting)))
        while self._waiting or any(worker.job for worker in self._workers.values()):
            for connection in wait(list(self._workers)):
                worker = self._workers[connection]  # type: ignore[index] # these are connections
                message = worker.receive()
                if message is None:
                    self._lost(worker)
                    continue
                done = self._heard(worker, message)
                if done is not None:
                    yield done

    def end(self) -> None:
        """End the processes, whatever they do: checkpoints are whole at any moment."""
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def _start(self, count: int) -> None:
        for _ in range(count):
            worker = _Worker()
            self._workers[worker.connection] = worker

    def _hand_out(self, worker: "_Worker") -> None:
        worker.job = self._waiting.popleft() if self._waiting else None
        if worker.job is not None:
            worker.send(Order.of(worker.job))

    def _heard(self, worker: "_Worker", message: Any) -> tuple[Job, Outcome] | None:
        """Do what a message asks for; return the job that it says is done."""
        job = worker.job
        if isinstance(message, _Ready):
            worker.ready = True
            worker.send_bytes(self._work)
            self._hand_out(worker)
        elif isinstance(message, EpochEnd) and job is not None:
            if message.epoch.epoch > self._told[job.run]:
                self._told[job.run] = message.epoch.epoch
                self._tell(job, message)
            worker.send(_Told())
        elif isinstance(message, _Said):
            self._say(message.text)
        elif isinstance(message, Done | Failed) and job is not None:
            if isinstance(message, Done):
                self._hand_out(worker)
            return job, outcome(self._lesson, job, message)
        return None

    def _lost(self, worker: "_Worker") -> None:
        """A process has died: another one takes its place, and its job."""
        del self._workers[worker.connection]
        how, job = worker.end(patience=5.0), worker.job  # what dies on an error takes a moment to do so
        if not worker.ready:
            raise AnyRNNError(
                f"workers: a worker process {how} before it could begin; in a script, the call of compare has to stand "
                'below `if __name__ == "__main__":`, since each worker process imports the script; if memory is short, '
                "have fewer workers"
            )
        if job is not None:
            self._deaths[job.run] += 1
            if self._deaths[job.run] == TRIES:
                raise AnyRNNError(
                    f"{job}: its worker process {how}, {TRIES} times; have fewer workers if memory is short, or none "
                    "(workers=1) to see what happens"
                )
            self._say(f"{job}: its worker process {how}; this training run is tried again")
            self._waiting.appendleft(job)
        if self._waiting:
            self._start(1)


class _Worker:
    """A process, and this end of the pipe to it."""

    def __init__(self) -> None:
        self.connection, there = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_work, args=(there,), daemon=True)
        with _no_interrupts():
            self._process.start()
        there.close()  # so that the pipe ends when the process does
        self.ready = False
        self.job: Job | None = None

    def receive(self) -> Any:
        """The next message; None: it has died."""
        try:
            return _receive(self.connection)
        except (EOFError, OSError):
            return None

    def send(self, message: Any) -> None:
        self.send_bytes(pickled(message))

    def send_bytes(self, message: bytes) -> None:
        with suppress(OSError):  # it has died: receiving from it will say so
            self.connection.send_bytes(message)

    def end(self, patience: float = 0.0) -> str:
        """End it, if it has not ended by itself within some seconds; say how it ended."""
        self.connection.close()
        self._process.join(patience)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit status {code})"


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that start inside a ``with`` block never hear of Ctrl-C, also while they import what they need.

    It goes to all processes of a terminal, and the first one sees to it, in a moment if it comes just now.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_a_second_run() -> None:
    """End this process if it imports the script that started it, which would now start processes itself.

    That is a script without a guard. The process that waits for this one says so, once.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)


# What goes through the pipes, beside a `Work`, an `Order` for each job, what comes of it, and an `EpochEnd` each epoch


@dataclass(frozen=True)
class _Told:
    """To a process: what it said of an epoch has been told."""


@dataclass(frozen=True)
class _Ready:
    """From a process: its imports, of seconds, are done, and it reads."""


@dataclass(frozen=True)
class _Said:
    """From a process: something to say."""

    text: str


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())  # noqa: S301 - from a process of our own


# In a worker process


def _work(connection: Connection) -> None:
    """Do jobs until the process that orders them is gone."""

    def tell(end: EpochEnd) -> None:
        """Tell of an epoch, and wait until it is told."""
        connection.send_bytes(pickled(end))
        _receive(connection)

    def say(text: str) -> None:
        connection.send_bytes(pickled(_Said(text)))

    with suppress(EOFError, ConnectionError):
        connection.send_bytes(pickled(_Ready()))
        work: Work = _receive(connection)
        while True:
            order: Order = _receive(connection)
            connection.send_bytes(pickled(done(work, order, tell, order.checkpoints(say))))
