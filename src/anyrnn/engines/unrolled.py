"""The loop over a plain step, written out for its number of states: `loop_of`.

A fall-back shall cost what the user's own loop costs. A function of ours in each step, or a loop over one or two
states, is cold after the work of a step, and takes longer than an operation on a small tensor: together a tenth of a
cheap cell's step (`benchmarks/fallback.py`). So this is code that has neither, made once for each kind of step, as
`dataclass` makes its methods. For a cell that takes and returns one state h:

    def loop(cell, steps, states, keep, signature):
        h0, = states
        shape0, dtype0 = h0.shape, h0.dtype
        for x, _ in steps:
            version0 = h0._version
            returned = cell(x, h0)
            try:
                result = returned
                new0 = result
                if new0.shape != shape0:
                    signature.check(cell, (new0,), (h0,))
                keep([new0.clone()])
                if new0.dtype is not dtype0:
                    new0 = new0.to(dtype0)
                if new0.is_inference():
                    new0 = new0.clone()
            except AnyRNNError:
                raise
            except (AttributeError, TypeError, ValueError) as cause:
                raise signature.unlike(cell, returned, len(x)) from cause
            wrote = h0._version != version0
            h0 = new0
            if wrote:
                return (h0,), True
        return (h0,), False
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from anyrnn.protocol import Signature

#: Takes the cell, an iterator over ``(x, anything)`` of each step, the states, what keeps the tensors that there are
#: for a step, and the signature. Returns the new states, and whether it ended since a step had written into its states.
Loop: TypeAlias = """Callable[
    [nn.Module, Iterator[tuple[Tensor, Any]], tuple[Tensor, ...], Callable[[list[Tensor]], None], Signature],
    tuple[tuple[Tensor, ...], bool],
]"""


def loop_of(signature: Signature) -> Loop | None:
    """Return the loop over steps that take x and the state, and return the state or ``(output, state)``, else None."""
    unusual = signature.spread or signature.flat or signature.names is not None or signature.kind is not tuple
    return None if unusual else _loop(len(signature.state_sizes), signature.bare, signature.has_output)


@functools.cache
def _loop(count: int, bare: bool, has_output: bool) -> Loop:
    every = range(count)

    def row(name: str) -> str:
        return "".join(f"{name}{k}, " for k in every)

    def joined(text: str, between: str) -> str:
        return between.join(text.format(k=k) for k in every)

    new, state = ("new0", "h0") if bare else (f"({row('new')})", f"({row('h')})")
    unpacked = (
        (f"{new} = result",)
        if bare
        else (
            f"if len(result) != {count}:",
            f"    signature.check(cell, tuple(result), {state})",
            f"{new} = result",
        )
    )
    taken = (
        *(("output, result = returned",) if has_output else ("result = returned",)),
        *unpacked,
        f"if {joined('new{k}.shape != shape{k}', ' or ')}:",
        f"    signature.check(cell, ({row('new')}), ({row('h')}))",
        f"keep([{'output' if has_output else 'new0'}.clone()])",
        *(f"if new{k}.dtype is not dtype{k}: new{k} = new{k}.to(dtype{k})" for k in every),
        *(f"if new{k}.is_inference(): new{k} = new{k}.clone()" for k in every),
    )
    lines = (
        "def loop(cell, steps, states, keep, signature):",
        f"    {row('h')} = states",
        *(f"    shape{k}, dtype{k} = h{k}.shape, h{k}.dtype" for k in every),
        "    for x, _ in steps:",
        *(f"        version{k} = h{k}._version" for k in every),
        f"        returned = cell(x, {state})",
        "        try:",
        *(f"            {line}" for line in taken),
        "        except AnyRNNError:",
        "            raise",
        "        except (AttributeError, TypeError, ValueError) as cause:",
        "            raise signature.unlike(cell, returned, len(x)) from cause",
        f"        wrote = {joined('h{k}._version != version{k}', ' or ')}",
        f"        {row('h')} = {row('new')}",
        "        if wrote:",
        f"            return ({row('h')}), True",
        f"    return ({row('h')}), False",
    )
    made: dict[str, Any] = {"__name__": __name__, "AnyRNNError": AnyRNNError}
    exec("\n".join(lines), made)  # noqa: S102 - numbers and flags alone are put into the text
    loop: Loop = made["loop"]
    return loop
