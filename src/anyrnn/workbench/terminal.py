"""Output that does not end a command: streams that are full, closed or of another alphabet lose nothing else.

A training of hours shall not be lost since its table could not be shown. What cannot be written is noted, and the
command goes on; the exit status says so at the end.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from anyrnn.errors import AnyRNNError

_OF_STREAMS = {errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF}
_PLAIN = {"µ": "u", "±": "+-", "…": "...", "“": '"', "”": '"', "–": "-", "×": "x", "\N{NO-BREAK SPACE}": " "}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write what a stream's encoding lacks in ASCII: µs as us, a letter of an id as its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    known = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing)
    return known, error.end


codecs.register_error("anyrnn.plain", _plain)


class Output(io.TextIOBase):
    """stdout or stderr, whichever it is at the time, without its errors.

    Attributes:
        failed: What could not be written, if anything could not.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.failed: OSError | None = None

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # while a progress bar is shown

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream, by which rich chooses its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream is not None and bool(self._stream.isatty())
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        """The stream's descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        """Write, or note why that failed."""
        encoding = self.encoding
        self._attempt("write", text.encode(encoding, "anyrnn.plain").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, or note why that failed."""
        self._attempt("flush")

    def write_bytes(self, data: bytes) -> None:
        """Write bytes, such as those of a file that goes to stdout.

        Raises:
            AnyRNNError: if that failed; nobody is told so where the reader has left, as `head` does.
        """
        self.flush()
        buffer = getattr(self._stream, "buffer", None)
        if buffer is None and self._stream is not None:
            self._attempt("write", data.decode())
        else:
            self._attempt("write", data, stream=buffer)
            self._attempt("flush", stream=buffer)
        if self.failed is not None and self.failed.errno != errno.EPIPE:
            raise AnyRNNError(f"{self._name}: this cannot be written: {self.reason}; name a file (--out)")

    @property
    def reason(self) -> str:
        """Why writing failed."""
        return "" if self.failed is None else str(self.failed.strerror or self.failed)

    def _attempt(self, method: str, *arguments: Any, stream: Any = None) -> None:
        if self.failed is not None:
            return
        try:
            getattr(stream or self._stream, method)(*arguments)
        except (OSError, ValueError, AttributeError) as cause:  # full or gone; closed; None, closed from the start
            self.failed = cause if isinstance(cause, OSError) else OSError(errno.EBADF, "it is closed")
            _drop(self._stream)


def _drop(stream: Any) -> None:
    """Let the rest of a stream that failed go nowhere, so that the interpreter does not fail on it when it ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):  # no file behind it: nothing to fail
        pass


@contextmanager
def outlive(status: int) -> Iterator[None]:
    """Run a command line inside a ``with`` block whose stdout and stderr may be closed, full or of any alphabet.

    What other code writes to them, such as help texts, ends with this exit status if it cannot be written.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _occupy_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="anyrnn.plain")
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_STREAMS:
            raise  # it was something else
        _drop(sys.stdout)
        if error.errno != errno.EPIPE and sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write(f"anyrnn: stdout: not all could be written: {error.strerror}\n")
        sys.exit(status)
    except SystemExit as end:
        if not _flushes(sys.stdout) and not end.code:
            sys.exit(status)
        raise


def _flushes(stream: Any) -> bool:
    """Whether all that was written to a stream has arrived; if not, the rest is dropped."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        _drop(stream)
        return False
    return True


def _occupy_standard_streams() -> None:
    """Open what was closed before the start, so that no file of ours gets the number of stdout."""
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            return
