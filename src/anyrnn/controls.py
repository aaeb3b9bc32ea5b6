"""What acts on the recurrence of a cell from outside it, whatever the cell: resets, masks, limits.

`Controlled` is a cell around a cell. It changes what the inner cell reads and what becomes of its new states; what
differs from call to call (masks) it gets as further arguments. So everything that runs a cell runs it: the reference's
loop, the compiler, torch.compile, an export; none of them knows of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anyrnn.cells.base import ORIGIN, origin_of
from anyrnn.compiler.clipping import clip_gradient, clip_gradient_norm
from anyrnn.probing import kinds_of
from anyrnn.protocol import Extra, Signature
from anyrnn.state_products import MaskedProducts
from anyrnn.traced import MADE, constant_to_dynamo, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anyrnn.runtime.call import Call


class Control(NamedTuple):
    """What acts on a cell; it says which tensors a `Controlled` gets, in the order of these fields.

    Attributes:
        resets: Resets within a sequence: it gets for each step which rows start anew, (T, B) true or false.
        fresh: It gets the states from which they start, (B, ...) each; else from zero.
        masked: Recurrent dropout: for each state, whether it gets a mask (B, ...) that is on the state where a
            product takes it.
        dropped: DropConnect: parameters of the cell, by dotted name, for each of which it gets a mask of its shape.
        held: Zoneout in training: for each state, whether it gets a mask (T, B, ...), which is 1 where the new state is
            taken, and 0 where the old one is held.
        mixed: Zoneout in evaluation, its mean: for each state, which share of the old one is in the next one.
        clip: New states are limited to [-clip, clip].
        clip_gradient: So is the gradient of what a step reads of the states.
        clip_gradient_norm: The gradient of each state that a step reads has in each row at most this norm.
        probes: For `anyrnn.gradient_flow`, it gets for each state zeros (T, B, ...), which it adds to the new ones: so
            their gradients are those of the states.
    """

    resets: bool = False
    fresh: bool = False
    masked: tuple[bool, ...] = ()
    dropped: tuple[str, ...] = ()
    held: tuple[bool, ...] = ()
    mixed: tuple[float, ...] = ()
    clip: float | None = None
    clip_gradient: float | None = None
    clip_gradient_norm: float | None = None
    probes: bool = False


NO_CONTROL = Control()


class Controlled(nn.Module):
    """A cell, and what acts on it.

    Args:
        cell: The cell.
        signature: Its signature.
        control: What acts on it.
    """

    inner_name = "cell"

    def __init__(self, cell: nn.Module, signature: Signature, control: Control) -> None:
        super().__init__()
        self.cell = cell
        self.signature = signature
        self.control = control

    def forward(
        self, x: Tensor, states: tuple[Tensor, ...], *extras: Tensor, **named: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run a step: the outputs as a tuple, and the new states."""
        control, rest = self.control, iter(extras)
        if control.resets:
            states = self._begun_anew(states, rest)
        masks = [next(rest) if is_masked else None for is_masked in control.masked]
        weights = {name: next(rest) for name in control.dropped}
        taken = [next(rest) if is_held else None for is_held in control.held]
        probes = [next(rest) for _ in states] if control.probes else []
        if control.clip_gradient is not None:
            states = tuple(clip_gradient(s, s.new_full((), control.clip_gradient)) for s in states)
        if control.clip_gradient_norm is not None:
            bound = control.clip_gradient_norm
            states = tuple(clip_gradient_norm(s.flatten(1), s.new_full((), bound)).view_as(s) for s in states)
        arguments: list[tuple[int | str, Tensor]] = [*enumerate(rest), *named.items()]
        cell = self._dropping(weights) if weights else self.cell
        with _masked(states, masks):
            outputs, new = self.signature.step(cell, x, states, arguments)
        changed = list(new)
        if (clip := control.clip) is not None:
            changed = [s.clamp(-clip, clip) for s in changed]
        if taken:
            changed = list(map(_held, states, changed, taken))
        if control.mixed:
            changed = [n + p * (s - n) if p else n for s, n, p in zip(states, changed, control.mixed, strict=True)]
        if probes:
            changed = [s + probe for s, probe in zip(changed, probes, strict=True)]
        return _changed(outputs, new, changed)

    def _dropping(self, masks: dict[str, Tensor]) -> Any:
        """The cell with masks on some of its weights, as a function."""
        weights = {name: attrgetter(name)(self.cell) * mask for name, mask in masks.items()}
        return lambda *args, **named: torch.func.functional_call(self.cell, weights, args, named)

    def bound(self, cell: nn.Module) -> Controlled:
        """The same around another cell, which has the weights of a call."""
        around = self.__new__(type(self))
        around.__dict__.update(self.__dict__, _modules={"cell": cell}, training=cell.training)
        around.__dict__[ORIGIN] = self
        return around

    def _begun_anew(self, states: tuple[Tensor, ...], rest: Iterator[Tensor]) -> tuple[Tensor, ...]:
        """The states, of rows that start anew those from which they do."""
        is_new = next(rest)
        begun = []
        for s in states:
            here = is_new.reshape(-1, *[1] * (s.dim() - 1))
            begun.append(torch.where(here, next(rest) if self.control.fresh else torch.zeros_like(s), s))
        return tuple(begun)


def _masked(states: tuple[Tensor, ...], masks: list[Tensor | None]) -> AbstractContextManager[Any]:
    """Within it, products take the states with these masks on them."""
    pairs = [(s, m) for s, m in zip(states, masks, strict=False) if m is not None]
    return MaskedProducts(pairs) if pairs else nullcontext()


def _held(old: Tensor, new: Tensor, taken: Tensor | None) -> Tensor:
    """The new state where `taken` is 1, the old one where it is 0: exactly, since one of the products is zero."""
    return new if taken is None else (old - taken * old) + taken * new


def _changed(
    outputs: tuple[Tensor, ...], old: tuple[Tensor, ...], new: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Put new states for old ones; an output that is one of the old ones becomes the new one."""
    found = {id(o): n for o, n in zip(old, new, strict=True)}
    return tuple(found.get(id(output), output) for output in outputs), tuple(new)


def resting(
    cells: Sequence[nn.Module], signatures: Sequence[Signature], controls: Sequence[Control]
) -> tuple[Sequence[nn.Module], Sequence[Signature]]:
    """Cells, each in a `Controlled` if something acts on it, and their signatures.

    For what runs cells without a `Call` of each (a stream, feedback), so of controls that need no tensors.
    """
    if all(control == NO_CONTROL for control in controls):
        return cells, signatures
    around = [*map(Controlled, cells, signatures, controls)]
    return around, [Signature.of_tuples(s.state_sizes, s.output_sizes) for s in signatures]


def controlled(call: Call, control: Control, tensors: Sequence[Extra], owner: nn.Module) -> Call:
    """A call of a cell with what acts on it, which gets these tensors.

    Args:
        call: The call.
        control: What acts on the cell.
        tensors: What it gets for that.
        owner: The layer, or the cell itself: what is made for torch.compile goes with it.
    """
    around = _around(call.cell, call.signature, control, owner)
    count = len(tensors)
    moved = [e._replace(key=e.key + count) if isinstance(e.key, int) else e for e in call.extras]
    signature = Signature.of_tuples(call.signature.state_sizes, call.signature.output_sizes)
    return replace(call, cell=around, signature=signature, extras=(*tensors, *moved), memo={})


def resetting(call: Call, reset: Tensor, fresh: Sequence[Tensor] | None) -> list[Extra]:
    """The tensors for a call whose rows start anew before the steps at which `reset` (T, B) is true.

    Args:
        call: The call.
        reset: Which rows, at each step. Where the sequence is run backwards, the pieces are the same ones: a row then
            starts anew after such a step.
        fresh: The states from which they start, (B, ...) each; zero if None.
    """
    if call.reverse:
        T = reset.shape[0]
        reset = torch.cat([reset[1:], reset.new_zeros(min(T, 1), reset.shape[1])])
        if call.lengths is not None:  # what is after a row's last step is not the row's
            steps = torch.arange(1, T + 1, device=reset.device).unsqueeze(1)
            reset = reset & (steps < call.lengths.to(reset.device))
    return [Extra(0, "input", reset), *(Extra(k, "context", s) for k, s in enumerate(fresh or (), 1))]


# ---- Cells with what acts on them ----

#: For each cell, by what acts on it: from what the `Controlled` of its calls are made. These have no cell, or it would
#: never go. A call has one that has it, and is known to the engines by what it came from.
_TEMPLATES: WeakKeyDictionary[nn.Module, dict[tuple[Signature, Control], Controlled]] = WeakKeyDictionary()


def _around(cell: nn.Module, signature: Signature, control: Control, owner: nn.Module) -> Controlled:
    """The cell of a call with what acts on it."""
    origin = origin_of(cell)
    if torch.compiler.is_dynamo_compiling():  # which records the step of what it came from
        made: Controlled = getattr(MADE, _made_apart(owner, origin, fields_of(signature), tuple(control)))
        return made.bound(cell)
    if torch.compiler.is_compiling():
        return Controlled(origin, signature, control).bound(cell)
    known = _TEMPLATES.setdefault(origin, {})
    template = known.get((signature, control))
    if template is None:
        template = known[signature, control] = Controlled(nn.Identity(), signature, control)
    return template.bound(cell)


@constant_to_dynamo
def _made_apart(owner: nn.Module, cell: nn.Module, fields: tuple[Any, ...], control: tuple[Any, ...]) -> str:
    """Put what acts on a cell around it, and return its name among `MADE`; it goes with the owner."""
    signature: Signature = Signature(*(*fields, *kinds_of(cell)))
    return MADE.add(Controlled(cell, signature, Control(*control)), owner)
