"""Recording: the local variables of a cell's step, as they are when its methods return."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType


def innermost(cell: nn.Module) -> nn.Module:
    """The cell inside what this package has put around it: a class says under which name it has it, `inner_name`."""
    while (name := getattr(type(cell), "inner_name", None)) is not None:
        cell = getattr(cell, name)
    return cell


def is_method_of(frame: FrameType, cell: nn.Module) -> bool:
    """Whether a frame runs a method of a cell: `forward`, or another one that it calls."""
    code = frame.f_code
    return code.co_argcount > 0 and code.co_filename != _CALLING and frame.f_locals.get(code.co_varnames[0]) is cell


_CALLING = nn.Module.__call__.__code__.co_filename  # what is around every step


@contextlib.contextmanager
def locals_of(cell: nn.Module, found: dict[str, Any]) -> Iterator[None]:
    """Gather the local variables of a cell's methods while a step runs; of equal names, those that return last."""
    outer: Any = sys.getprofile()
    cell = innermost(cell)

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and is_method_of(frame, cell):
            found.update(frame.f_locals)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(outer if callable(outer) else None)
        if hasattr(outer, "enable"):  # cProfile's, which only itself can put back
            outer.enable()


def recorded_of(name: str, found: Mapping[str, Any], names: Sequence[str], rows: int) -> list[Tensor]:
    """Return the local variables of some names, each a tensor with the rows of the batch.

    Raises:
        AnyRNNError: for a name that the step has not, and for a value that differs not by row.
    """
    there = [key for key, value in found.items() if isinstance(value, Tensor) and value.shape[:1] == (rows,)]
    for key in names:
        if key not in found:
            msg = f"{name}: got record={key!r}, expected a local variable of its step, such as {', '.join(there)}"
            raise AnyRNNError(msg)
        if key not in there:
            value = found[key]
            got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            msg = f"{name}: got record={key!r}, which is {got}, expected one (B, ...) with a row for each of {rows}"
            raise AnyRNNError(msg)
    return [found[key] for key in names]
