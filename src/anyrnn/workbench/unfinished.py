"""The folder of a run from its first moment to its last: claimed, trained into, and finished or gone on with.

While a run is trained its folder has `metrics.jsonl` and `training/`: `run.json`, which says what is trained, and a
folder of checkpoints for each training run. At the end the models, the report and the results move in, and `training/`
goes. So a folder with `training/` is a run that is being trained, or was cut off.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Self

from anyrnn.errors import AnyRNNError
from anyrnn.workbench.checkpoint import DESCRIPTION, Checkpoints, refuse_other_run, warn
from anyrnn.workbench.durable import write_whole
from anyrnn.workbench.runs import JOURNAL, METRICS, TRAINING, check_destination, disk_trouble
from anyrnn.workbench.stored import file_names

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_RUN, _LOCK = "run.json", "lock"


class UnfinishedRun:
    """A run that is kept as it goes.

    Args:
        folder: Where it will be.
        resume: Go on with what was begun there; begin, if nothing was.
        overwrite: Replace a run that is there, finished or not.
        numbered: Take the first of FOLDER, FOLDER-2, FOLDER-3, ... that is free, or that holds this run to resume.
        say: Is told if checkpoints cannot be written.

    Attributes:
        folder: Where it is, once it has begun.
        say: See above.
        replaces: Whether a finished run stays there until this one is finished.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        numbered: bool = False,
        say: Callable[[str], None] = warn,
    ) -> None:
        if resume and overwrite:
            raise AnyRNNError("resume goes on with a run, and overwrite begins it anew: expected one of the two")
        self.folder, self.replaces = folder, False
        self.say = say
        self._resume, self._overwrite, self._numbered = resume, overwrite, numbered
        self._lock: IO[bytes] | None = None
        self._made: list[Path] = []  # folders that were not there before, the innermost first
        self._begun = False

    @property
    def metrics(self) -> Path:
        """The file that grows by a line with each epoch."""
        return self.folder / METRICS

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Claim the folder for a run, or find the one to go on with.

        Raises:
            AnyRNNError: if the place will not do, or holds another run than this one, or one that is being trained.
        """
        with disk_trouble(self.folder):
            if not (self._resume and self._found(identity)):
                self._claim()
                write_whole(self._training / _RUN, json.dumps(identity, indent=1).encode("utf-8", "surrogatepass"))
        self._begun = True

    def checkpoints(self, network: str, seed: int, identity: Mapping[str, Any]) -> Checkpoints:
        """Those of one training run."""
        name = f"{Path(file_names(network)[0]).stem}-{seed}"
        return Checkpoints(self._training / name, {**identity, "network": network, "seed": seed}, self.say)

    def finish(self, saved: Path | None = None) -> None:
        """The run is saved, here or elsewhere: what was kept to go on with it goes."""
        if saved is not None and saved.resolve() != self.folder.resolve():
            with suppress(OSError):
                shutil.copyfile(self.metrics, saved / METRICS)
            self._clear()
        shutil.rmtree(self._training, ignore_errors=True)
        self._release()

    def close(self) -> bool:
        """Let go of a run that is not finished; return whether there is something to go on with."""
        if not self._begun or not self._training.is_dir():
            self._release()
            return False
        left = any(self._training.glob(f"*/{DESCRIPTION}")) or (self._training / JOURNAL).exists()
        if not left:
            self._clear()
        self._release()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _training(self) -> Path:
        return self.folder / TRAINING

    def _found(self, identity: Mapping[str, Any]) -> bool:
        """Find what was begun, and hold it."""
        others: list[tuple[Path, Any]] = []
        for folder in self._candidates():
            run = folder / TRAINING / _RUN
            if not run.exists():
                continue
            try:
                begun = json.loads(run.read_bytes().decode("utf-8", "surrogatepass"))
                refuse_other_run(folder, begun, identity)
            except AnyRNNError as difference:
                others.append((folder, difference))
                continue
            except ValueError as cause:
                raise AnyRNNError(f"{run}: it is not JSON ({cause}); begin the run anew (--overwrite)") from cause
            self.folder = folder
            self._hold()
            self.replaces = _is_finished(folder)
            return True
        if others:
            raise others[-1][1]
        if not self._numbered and (self.folder / "results.json").exists():
            raise AnyRNNError(
                f"{self.folder}: the run there is finished, there is nothing to resume; choose another folder, or "
                "begin it anew (--overwrite)"
            )
        return False

    def _candidates(self) -> Iterator[Path]:
        if not self._numbered:
            yield self.folder
            return
        for folder in _numbers(self.folder):
            if not folder.exists():
                return
            yield folder

    def _claim(self) -> None:
        """Make the folder of a new run."""
        if not self._numbered:
            self._claim_named()
        else:
            for folder in _numbers(self.folder):
                if not (folder.exists() or folder.is_symlink()):
                    self.folder = folder
                    try:
                        self._make(folder)
                    except FileExistsError:  # somebody was faster
                        continue
                    break
        self._make(self._training)
        self._hold()
        if self.metrics.exists():  # of the run that is replaced
            self.metrics.rename(self._training / METRICS)

    def _claim_named(self) -> None:
        check_destination(self.folder, self._overwrite or self._resume)
        if self._training.is_dir():  # of a run that is to be replaced, or of one that had only just begun
            self._hold()
            shutil.rmtree(self._training)
            self._release()
        self.replaces = _is_finished(self.folder)
        if not self.folder.is_dir():
            self._make(self.folder)

    def _make(self, folder: Path) -> None:
        """Make a folder, which nobody else has made meanwhile, and those above it."""
        for parent in [each for each in folder.absolute().parents if not each.exists()][::-1]:
            with suppress(FileExistsError):
                parent.mkdir()
                self._made.insert(0, parent)
        folder.mkdir()
        self._made.insert(0, folder)

    def _clear(self) -> None:
        """Take away what was made: the folder, too, if nothing else is in it."""
        with suppress(OSError):
            self.metrics.unlink(missing_ok=True)
            (self._training / METRICS).rename(self.metrics)
        shutil.rmtree(self._training, ignore_errors=True)
        for folder in self._made or [self.folder]:
            with suppress(OSError):  # not there, or not empty
                folder.rmdir()

    def _hold(self) -> None:
        """See that one process trains into a folder; the system lets go of it when that ends, however it does."""
        lock = (self._training / _LOCK).open("wb")
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                lock.close()
                raise AnyRNNError(
                    f"{self.folder}: another process is training this run; wait for it, or choose another folder"
                ) from cause
            except OSError:  # a file system without locks
                pass
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _numbers(folder: Path) -> Iterator[Path]:
    for k in count(1):
        yield folder if k == 1 else folder.with_name(f"{folder.name}-{k}")


def _is_finished(folder: Path) -> bool:
    """Whether a folder holds a run with all the networks that were asked for."""
    try:
        results = json.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and not results.get("unfinished")
