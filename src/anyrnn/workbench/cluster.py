"""Training runs on the workers of a Dask cluster: `--scheduler tcp://host:8786`. It needs the extra `anyrnn[dask]`.

Dask has the connections, the launchers (of Slurm, Kubernetes, ssh) and the dashboard. What it is asked to do is small:
a task is a stretch of one training run, some epochs from one checkpoint to the next. The checkpoint comes back with
what is told of the epochs, is kept in the run folder here, and goes out again with the next stretch. So nothing is
needed of a shared disk, and when a worker dies the training run goes on elsewhere from what came back last.

A worker has one stretch at a time, whatever its threads: PyTorch's random numbers are those of a process. Dask does not
move tasks of a dead worker by itself here: each worker has the data as a value of its own, which dies with it, and a
task on it is then given up. It is said, counted and handed out again as with processes on this machine.
"""

import importlib
import os
import pickle
import platform
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import llvmlite
import numpy
import torch

import anyrnn
from anyrnn.engines.cpu.machine import Machine
from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import Checkpoints, Packed
from anyrnn.workbench.fingerprint import checksum_of_module, checksum_of_sources
from anyrnn.workbench.jobs import TRIES, Jobs, Tell
from anyrnn.workbench.lesson import AnyLesson, EpochEnd
from anyrnn.workbench.models import network
from anyrnn.workbench.work import Done, Failed, Job, Order, Outcome, Work, done, outcome, pickled

_PATIENCE = 10  # seconds until a scheduler has to answer
_LOOK = 1.0  # seconds between two looks at which workers there are
# A stretch is long enough for what it takes to begin and to send it, and for the one who hands out so many of them.
_LEAST_STRETCH = 2.0
_STRETCH_A_WORKER = 0.1
_SHARE = 0.05  # of the time, for beginning and sending
_BYTES_A_SECOND = 50e6  # of a network that is not fast
_LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Be connected with a scheduler inside a ``with`` block: a client of Dask's.

    Raises:
        AnyRNNError: without the package distributed, or if no scheduler answers there.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as cause:
        raise AnyRNNError(f"a scheduler needs the package distributed: pip install 'anyrnn[dask]' ({cause})") from cause
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except ValueError as cause:
        raise AnyRNNError(
            f"scheduler: got {address!r}, expected an address such as tcp://host:8786 ({cause})"
        ) from cause
    except OSError as cause:
        raise AnyRNNError(
            f"scheduler: nothing answers at {address} ({cause}); start one by `dask scheduler`, and see that this "
            "machine reaches its port"
        ) from cause
    try:
        yield client
    finally:
        with suppress(OSError):  # it is gone
            client.close(timeout=_PATIENCE)


@contextmanager
def jobs_on(client: Any, lesson: AnyLesson, tell: Tell, say: Callable[[str], None]) -> Iterator[Jobs]:
    """Do jobs inside a ``with`` block on the workers that there are, and on those that come later.

    Args:
        client: Is connected with the scheduler.
        lesson: What is learned, and how.
        tell: Called in this process after each epoch of each job.
        say: Is told what went wrong and was put right.
    """
    jobs = _OnCluster(client, lesson, tell, say)
    try:
        yield jobs
    finally:
        jobs.end()


@dataclass
class _Worker:
    """A worker of the cluster.

    Attributes:
        address: Where it is.
        work: The data, in its memory.
        job: What it is at.
        answer: The stretch of it that it is at, which Dask calls a future.
    """

    address: str
    work: Any
    job: Job | None = None
    answer: Any = None


class _OnCluster:
    """Jobs on a cluster."""

    def __init__(self, client: Any, lesson: AnyLesson, tell: Tell, say: Callable[[str], None]) -> None:
        self._client, self._lesson, self._tell, self._say = client, lesson, tell, say
        self._address: str = client.scheduler.address
        self._work = Sent(pickled(Work.of(lesson)))
        self._waiting: deque[Job] = deque()
        self._own: set[str] = set()  # cells
        self._workers: dict[str, _Worker] = {}  # by their addresses
        self._unfit: set[str] = set()  # likewise
        self._kept: dict[int, Packed | None] = {}  # by the number of the run
        self._beginning: defaultdict[int, float] = defaultdict(float)  # likewise, the seconds until a stretch begins
        self._deaths: Counter[int] = Counter()  # likewise, since its last checkpoint
        self._answers: SimpleQueue[Any] = SimpleQueue()  # of stretches that have ended, whichever way
        self._looked, self._said_alone = -float("inf"), False

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        if ":" in job.network.name:
            self._own.add(job.network.name)

    def as_completed(self) -> Iterator[tuple[Job, Outcome]]:
        while self._waiting or any(worker.job for worker in self._workers.values()):
            self._look()
            for worker in self._workers.values():
                if worker.job is None and self._waiting:
                    self._begin(worker, self._waiting.popleft())
            with suppress(Empty):
                ended = self._heard(self._answers.get(timeout=_LOOK))
                if ended is not None:
                    yield ended

    def end(self) -> None:
        """Let go of what is not done: workers end their stretches, and begin no others."""
        answers = [worker.answer for worker in self._workers.values() if worker.job is not None]
        self._workers.clear()
        with suppress(OSError):
            self._client.cancel(answers)

    # Workers

    def _look(self) -> None:
        """See which workers are gone, and which ones are new."""
        if time.monotonic() < self._looked + _LOOK:
            return
        try:
            there = set(self._client.nthreads())
        except (OSError, RuntimeError, ValueError) as cause:
            raise AnyRNNError(
                f"{self._address}: the scheduler cannot be reached any more ({cause}); what came back until now is in "
                "the run folder, if there is one: go on with --resume (resume=True)"
            ) from cause
        self._looked = time.monotonic()
        for address in self._workers.keys() - there:
            self._lost(address)
        if new := sorted(there - self._workers.keys() - self._unfit):
            self._meet(new)
        if not self._workers and not self._said_alone:
            self._say(f"{self._address}: no worker is there; waiting for one")
        self._said_alone = not self._workers

    def _meet(self, addresses: Sequence[str]) -> None:
        """Send the data to workers that are as this process is; leave out others."""
        here = installation(sorted(self._own))
        found = self._client.run(installation, sorted(self._own), workers=list(addresses), on_error="return")
        troubles: list[str] = []
        for address, there in found.items():
            if isinstance(there, OSError):  # it is gone again
                continue
            if trouble := _trouble(there, here):
                troubles.append(f"the worker {address} {trouble}")
                self._unfit.add(address)
                continue
            if there[_PROCESSOR] != here[_PROCESSOR]:
                self._say(
                    f"the worker {address} has another processor ({there[_PROCESSOR]}; here: {here[_PROCESSOR]}): its "
                    "numbers may differ in the last digits"
                )
            with suppress(OSError):  # if it is gone meanwhile
                work = self._client.scatter(self._work, workers=[address], hash=False, direct=False)
                self._workers[address] = _Worker(address, work)
        if troubles and not self._workers:
            raise AnyRNNError(f"{self._address}: {'; '.join(troubles)}")
        for trouble in troubles:
            self._say(f"{trouble}; it gets nothing to do")

    def _lost(self, address: str) -> None:
        """A worker is gone: its job is lined up again, before the others."""
        job = self._workers.pop(address).job
        if job is None:
            return
        self._deaths[job.run] += 1
        if self._deaths[job.run] == TRIES:
            raise AnyRNNError(
                f"{job}: its worker was lost ({address}), {TRIES} times between two checkpoints; if memory is short, "
                "give each worker more (--memory-limit), or leave the scheduler out to see what happens"
            )
        self._say(f"{job}: its worker was lost ({address}); this training run is tried again")
        self._waiting.appendleft(job)

    # Stretches

    def _begin(self, worker: _Worker, job: Job) -> None:
        """Have a worker do the next stretch of a job."""
        if job.run not in self._kept:
            self._kept[job.run] = None if job.checkpoints is None else job.checkpoints.packed()
        order = Order(job.network.name, job.seed, None, {})
        cost = self._beginning[job.run]
        if (last := self._kept[job.run]) is not None:
            cost += 2 * len(last.tensors) / _BYTES_A_SECOND
        seconds = max(_LEAST_STRETCH, _STRETCH_A_WORKER * len(self._workers), cost / _SHARE)
        with importlib.import_module("dask").config.set({_LARGE_GRAPH: "1 TiB"}):  # a checkpoint may well be large
            worker.answer = self._client.submit(
                stretch,
                worker.work,
                order,
                last,
                seconds,
                workers=[worker.address],
                pure=False,
                key=f"{job.network.name}-{job.seed}-{os.urandom(8).hex()}",
            )
        worker.job = job
        worker.answer.add_done_callback(self._answers.put)

    def _heard(self, answer: Any) -> tuple[Job, Outcome] | None:
        """Take what came of a stretch; return the job, if it was the last one of it."""
        worker = next((each for each in self._workers.values() if each.answer is answer), None)
        if worker is None or worker.job is None:  # it was lost
            return None
        job = worker.job
        found = self._result(job, answer)
        if found is None:
            self._lost(worker.address)
            return None
        self._beginning[job.run] = found.beginning
        for end in found.epochs:
            self._tell(job, end)
        if found.kept is not None:
            self._keep(job, found.kept, ended=found.answer is not None)
        if found.answer is None:
            self._begin(worker, job)
            return None
        worker.job = worker.answer = None
        return job, outcome(self._lesson, job, found.answer)

    def _result(self, job: Job, answer: Any) -> "Stretch | None":
        """What a stretch has returned; None if its worker is gone."""
        if answer.status == "error":
            error = answer.exception()
            if type(error).__name__ == "KilledWorker":  # of a scheduler that gives up at the first
                return None
            raise RuntimeError(f"{job}: a worker failed: {type(error).__name__}: {error}") from error
        try:
            found: Stretch = answer.result()
        except importlib.import_module("distributed").CancelledError:
            return None
        return found

    def _keep(self, job: Job, kept: Packed, *, ended: bool) -> None:
        """Keep a checkpoint, for the next stretch and in the run folder."""
        self._deaths[job.run] = 0
        self._kept[job.run] = None if ended else kept
        if job.checkpoints is not None and (ended or job.checkpoints.due):
            job.checkpoints.store(kept)


class Sent:
    """What all jobs have in common, on its way: Dask carries bytes, of which the first stretch there makes a value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._size = data, len(data)
        self._work: Work | None = None

    @property
    def work(self) -> Work:
        """The value; the bytes are not needed any more.

        Raises:
            AnyRNNError: if it cannot be had here, such as data in a file that is elsewhere.
        """
        if self._work is None:
            self._work = pickle.loads(self._data)  # noqa: S301 - from whoever has started this worker
            self._data = b""
        return self._work

    def __reduce__(self) -> tuple[Any, ...]:
        return Sent, (self._data or pickled(self._work),)

    def __sizeof__(self) -> int:
        return self._size


# On both sides

_PROCESSOR, _PROCESS = "processor", "process"
_SHORT = 14  # digits of a checksum, which people have to compare


def installation(own: Sequence[str]) -> dict[str, str]:
    """All that the numbers of a training run depend on in a process, beside the data and the settings.

    Args:
        own: The names of cells that are not anyrnn's.
    """
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "anyrnn": anyrnn.__version__}
    found["code of anyrnn"] = checksum_of_sources(Path(anyrnn.__file__).parent)[:_SHORT]
    found |= {module.__name__: module.__version__ for module in (torch, numpy, llvmlite)}
    for name in own:
        network(name)
        found[f"code of {name}"] = (checksum_of_module(name.partition(":")[0]) or "without a file")[:_SHORT]
    cpu = Machine.host()
    found[_PROCESSOR] = f"{cpu.cpu}, {8 * cpu.vector_bytes} bits, {torch.backends.cpu.get_cpu_capability()}"
    found[_PROCESS] = f"{platform.node()} {os.getpid()}"
    return found


def _trouble(there: Any, here: Mapping[str, str]) -> str:
    """Why a worker cannot be used; "" if it can."""
    if isinstance(there, Exception):
        return f"cannot do it: {type(there).__name__}: {there}; install there what is installed here"
    if there[_PROCESS] == here[_PROCESS]:
        return "is this very process; expected workers in processes of their own (LocalCluster(processes=True))"
    different = [
        f"{what}: {there.get(what, 'none')} there, {mine} here"
        for what, mine in here.items()
        if what not in {_PROCESSOR, _PROCESS} and there.get(what) != mine
    ]
    return f"has something else than this machine ({'; '.join(different)}): install the same" if different else ""


# On a worker


@dataclass(frozen=True)
class Stretch:
    """What came of some epochs of a training run.

    Attributes:
        epochs: What is to be told of each.
        kept: The checkpoint that the next ones go on from; None: the one before.
        answer: What came of the whole training run, if these were the last ones.
        beginning: The seconds of a processor until the training began, or went on.
    """

    epochs: tuple[EpochEnd, ...]
    kept: Packed | None
    answer: Done | Failed | None
    beginning: float


class _Enough(BaseException):
    """The stretch is done. It is no error, so that nobody takes it for one."""


class _Relay(Checkpoints):
    """Checkpoints of a stretch: from bytes to bytes, and the one that is due ends it.

    Args:
        last: The one to go on from.
        seconds: How long the stretch is to be.

    Attributes:
        beginning: The seconds of a processor until the training began, or went on.
    """

    def __init__(self, last: Packed | None, seconds: float) -> None:
        self.last, self._seconds, self._ends = last, seconds, False
        self._start, self._loaded, self.beginning = time.thread_time(), 0.0, 0.0

    def load(self) -> dict[str, Any] | None:
        """The state to go on from. The training begins here."""
        state = None if self.last is None else self.last.unpacked()
        self._loaded, self.beginning = time.perf_counter(), time.thread_time() - self._start
        return state

    @property
    def due(self) -> bool:
        """Whether the stretch has been long enough: then the state that is kept now is its end."""
        self._ends = time.perf_counter() >= self._loaded + self._seconds
        return self._ends

    def save(self, state: Mapping[str, Any]) -> None:
        """Take a state to be sent."""
        self.last = Packed.of(state)
        if self._ends:
            raise _Enough


_BUSY = threading.Lock()  # of a worker with several threads, if several comparisons use it


def stretch(sent: Sent, order: Order, last: Packed | None, seconds: float) -> Stretch:
    """Train for about so many seconds, a whole number of epochs, from a checkpoint to the next."""
    with _BUSY:
        epochs: list[EpochEnd] = []
        relay = _Relay(last, seconds)
        answer: Done | Failed | None = None
        try:
            answer = done(sent.work, order, epochs.append, relay)
        except _Enough:
            pass
        except AnyRNNError as error:  # the data cannot be had here
            answer = Failed(str(error), refused=True)
        return Stretch(tuple(epochs), None if relay.last is last else relay.last, answer, relay.beginning)
