"""Truncated backpropagation through time: long streams in chunks, and gradients through more steps than a chunk has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anyrnn.checks import check_choice, check_flags, check_sizes
from anyrnn.errors import AnyRNNError
from anyrnn.states import detach, reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


@dataclass(frozen=True)
class Chunk:
    """Some steps of several streams, one a row; row b goes on where row b of the chunk before has ended.

    Attributes:
        data: The streams' tensors (T, B, ...), or (B, T, ...) with `batch_first`, in their structure: a tensor, a
            tuple, a dict. Zero behind the end of a row.
        lengths: How many steps each row has, int64 (B,): 0 for one that has no stream left.
        starts: The rows in which a stream begins with the first step, bool (B,): their state has to be set back.
        reset: The steps with which a stream begins, bool (T, B), or (B, T) with `batch_first`.
        mask: The steps that there are, bool (T, B), or (B, T): for the loss.
        streams: The number of the stream of each row's first step, int64 (B,); -1 for a row without one.
    """

    data: Any
    lengths: Tensor
    starts: Tensor
    reset: Tensor
    mask: Tensor
    streams: Tensor


def chunks(
    streams: Iterable[Any], steps: int, *, batch: int, fill: str = "chunk", batch_first: bool = False
) -> Iterator[Chunk]:
    """Cut long streams into chunks of some steps, for stateful training: truncated backpropagation through time.

    Every row of the batch reads one stream from its beginning to its end, then the next one that no row has read yet.

    Args:
        streams: The streams, in any number, one after the other, of different lengths: a list, a dataset, a generator,
            which is read as streams are needed. Each is a tensor (T, ...), or several of one length in a tuple or dict,
            such as inputs and targets.
        steps: The number of steps of a chunk, k1; less where all rows end before.
        batch: B, the number of rows.
        fill: When a row whose stream has ended begins with its next one. "chunk": with the next chunk. The rest of this
            one is padding, and `starts` are all the states to be set back. "step": at once. Chunks are full as long as
            there are streams, and states have to be set back between two steps, those that `reset` tells:
            ``layer(x, state, reset=chunk.reset)``.
        batch_first: Whether a chunk is (B, T, ...).

    Returns:
        An iterator over the chunks. It can be read once; for another epoch, call this again.

    Raises:
        AnyRNNError: for streams that are no tensors, or differ in structure or shape; when they are read.

    Example:
        >>> import torch, anyrnn
        >>> series = [torch.randn(n, 3) for n in (95, 20, 70)]
        >>> layer, head, state = anyrnn.GRU(2, 16), torch.nn.Linear(16, 1), None
        >>> optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()])
        >>> for chunk in anyrnn.chunks([(s[:, :2], s[:, 2:]) for s in series], 30, batch=2):
        ...     x, y = chunk.data
        ...     state = anyrnn.reset(anyrnn.detach(state), chunk.starts)
        ...     output, state = layer(x, state, lengths=chunk.lengths)
        ...     loss = (head(output) - y)[chunk.mask].square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> chunk.lengths.tolist(), chunk.streams.tolist()
        ([5, 10], [0, 2])
    """
    check_sizes("chunks", steps=steps, batch=batch)
    check_choice("chunks", "fill", fill, ("chunk", "step"))
    check_flags("chunks", batch_first=batch_first)
    return _Reader(streams, steps, batch, fill == "step", batch_first).chunks()


@dataclass
class _Row:
    """What a row of the batch reads: a stream, its number, and how far it has been read."""

    tensors: list[Tensor]
    number: int
    at: int = 0

    @property
    def rest(self) -> int:
        return len(self.tensors[0]) - self.at


class _Reader:
    """Reads streams into rows, and rows into chunks."""

    def __init__(self, streams: Iterable[Any], steps: int, batch: int, at_once: bool, batch_first: bool) -> None:
        self.streams = enumerate(streams)
        self.steps, self.batch, self.at_once, self.batch_first = steps, batch, at_once, batch_first
        self.rows: list[_Row | None] = [None] * batch
        self.spec: Any = None
        self.like: list[Tensor] = []

    def chunks(self) -> Iterator[Chunk]:
        while True:
            parts = [self._read(b) for b in range(self.batch)]
            longest = max(sum(len(part[0][0]) for part in row) for row in parts)
            if not longest:
                return
            yield self._chunk(parts, longest)

    def _next(self) -> _Row | None:
        """The next stream that has steps."""
        for number, stream in self.streams:
            tensors, spec = pytree.tree_flatten(stream)
            if not tensors or not all(isinstance(t, Tensor) and t.dim() for t in tensors):
                msg = f"chunks: stream {number} is a {type(stream).__name__}, expected a tensor (T, ...), or several"
                raise AnyRNNError(msg)
            if len({len(t) for t in tensors}) > 1:
                msg = (
                    f"chunks: stream {number} has tensors of {[len(t) for t in tensors]} steps, expected equal numbers"
                )
                raise AnyRNNError(msg)
            if not self.like:
                self.spec, self.like = spec, tensors
            shapes = [tuple(t.shape[1:]) for t in tensors]
            known = [tuple(t.shape[1:]) for t in self.like]
            if spec != self.spec or shapes != known:
                msg = f"chunks: stream {number} has steps of shapes {shapes}, expected {known} as in the first stream"
                raise AnyRNNError(msg)
            if len(tensors[0]):
                return _Row(tensors, number)
        return None

    def _read(self, b: int) -> list[tuple[list[Tensor], int, bool]]:
        """The next steps of a row: pieces of streams, the number of each, and whether it begins with the piece."""
        parts: list[tuple[list[Tensor], int, bool]] = []
        room = self.steps
        while room and (self.at_once or not parts):
            row = self.rows[b]
            if row is None or not row.rest:
                row = self.rows[b] = self._next()
            if row is None:
                break
            count = min(room, row.rest)
            parts.append(([t[row.at : row.at + count] for t in row.tensors], row.number, row.at == 0))
            row.at += count
            room -= count
        return parts

    def _chunk(self, parts: list[list[tuple[list[Tensor], int, bool]]], longest: int) -> Chunk:
        data = [like.new_zeros(longest, self.batch, *like.shape[1:]) for like in self.like]
        is_first = torch.zeros(longest, self.batch, dtype=torch.bool, device="cpu")
        mask = torch.zeros(longest, self.batch, dtype=torch.bool, device="cpu")
        numbers = torch.full((self.batch,), -1, device="cpu")
        for b, row in enumerate(parts):
            at = 0
            for tensors, _, begins in row:
                end = at + len(tensors[0])
                for whole, tensor in zip(data, tensors, strict=True):
                    whole[at:end, b] = tensor
                is_first[at, b] = begins
                at = end
            mask[:at, b] = True
            if row:
                numbers[b] = row[0][1]
        device = self.like[0].device
        is_first, mask = is_first.to(device), mask.to(device)
        lengths, starts = mask.sum(0), is_first[0].clone()
        if self.batch_first:
            data = [t.transpose(0, 1) for t in data]
            is_first, mask = is_first.t(), mask.t()
        return Chunk(pytree.tree_unflatten(data, self.spec), lengths, starts, is_first, mask, numbers.to(device))


class Truncated:
    """A layer that is trained over long streams, with gradients through k2 steps: truncated backpropagation.

    It keeps the state from chunk to chunk, as if the layer were run over the whole stream. Of a chunk of k1 steps, the
    gradients of the outputs go back through this chunk and the k2 - k1 steps before it: every output is in one loss
    only, and its gradient passes at least k2 - k1 steps. That is BPTT(h; h') of Williams and Peng ("An efficient
    gradient-based algorithm for on-line training of recurrent network trajectories", 1990) with h = k2 and h' = k1.

    The steps before the chunk are run again, from the state in front of them and with the weights of now; graphs of
    earlier chunks, whose weights an optimizer has changed, would not do. So a chunk takes the time of up to k2 steps.

    Args:
        layer: A layer, or a function ``layer(x, state, lengths=lengths)`` that returns ``(output, state)``, such as a
            model with what is around the layer. x may be several tensors, in a tuple or dict, if it takes them.
        k1: The steps of a chunk.
        k2: How many steps gradients go back, at least k1.
        batch_first: Whether x and the output are (B, T, ...); that of the layer if None.
        initial: What the state of a row is when a stream begins, as in `anyrnn.reset`: zeros if None.

    Raises:
        AnyRNNError: for k2 < k1, a bidirectional layer, and chunks of more than k1 steps.

    Example:
        >>> import torch, anyrnn
        >>> layer = anyrnn.GRU(3, 16)
        >>> model = anyrnn.Truncated(layer, k1=10, k2=30)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> for chunk in anyrnn.chunks(torch.randn(4, 100, 3).unbind(), 10, batch=4):
        ...     output = model(chunk.data, chunk.lengths, chunk.starts)
        ...     loss = output.square().mean()  # of 10 steps; its gradients go back through 30
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> output.shape
        torch.Size([10, 4, 16])
    """

    def __init__(
        self, layer: Callable[..., Any], k1: int, k2: int, *, batch_first: bool | None = None, initial: Any = None
    ) -> None:
        check_sizes("Truncated", k1=k1, k2=k2)
        if k2 < k1:
            msg = f"Truncated: got k1={k1}, k2={k2}, expected a k2 of at least k1: gradients go back through the chunk"
            raise AnyRNNError(msg)
        if getattr(layer, "bidirectional", False):
            msg = "Truncated: got a bidirectional layer, whose output hangs on later steps; expected one direction"
            raise AnyRNNError(msg)
        self.layer, self.k1, self.k2, self.initial = layer, k1, k2, initial
        self.batch_first = getattr(layer, "batch_first", False) if batch_first is None else batch_first
        self.clear()

    def clear(self) -> None:
        """Forget all streams: the next chunk begins new ones in every row."""
        self._state: Any = None  # in front of the history
        self._history: list[Tensor] = []  # the steps before the next chunk, (k2 - k1, B, ...)
        self._counts: Tensor | None = None  # how many of them each row has, from the first on
        self._is_initial: Tensor | None = None  # the rows in front of whose history the stream begins
        self._last: Any = None

    @property
    def state(self) -> Any:
        """The state after the last step, without gradients: to generate from, or to run on."""
        return self._last

    def __call__(self, x: Any, lengths: Tensor | None = None, starts: Tensor | None = None) -> Any:
        """Run the next chunk.

        Args:
            x: The next T steps of every row, (T, B, ...) or (B, T, ...), T at most k1: a tensor, a tuple or a dict.
            lengths: How many of them each row has, (B,); all, if None.
            starts: The rows in which another stream begins, (B,); none, if None.

        Returns:
            The output of these steps, in the layer's structure, zero where a row has none.

        Raises:
            AnyRNNError: for more than k1 steps, and for another number of rows than in the chunk before.
        """
        new, spec = pytree.tree_flatten(x)
        new = [t.transpose(0, 1) for t in new] if self.batch_first else new
        counts = self._begun(new, lengths, starts)
        T, B = new[0].shape[:2]
        count = torch.full((B,), T, device="cpu") if lengths is None else lengths.to("cpu", torch.int64)
        state = self._state
        if state is not None:
            state = reset(state, self._is_initial, self.initial)  # type: ignore[arg-type]
        elif self.initial is not None:
            state = _spread(self.initial, B)
        window = [_joined(old, t, counts) for old, t in zip(self._history, new, strict=True)] if self._history else new
        total = counts + count
        kept = total.clamp(max=self.k2 - self.k1)  # the history of the next chunk
        before = total - kept
        first, middle = self._run(_rows(window, torch.zeros_like(before), before), spec, state, before)
        history = _rows(window, before, kept)
        second, last = self._run(history, spec, middle, kept)
        output = self._output(first, second, before, counts, count)
        self._state, self._last = detach(middle), detach(last)
        self._history, self._counts = [t.detach() for t in history], kept
        assert self._is_initial is not None
        self._is_initial = self._is_initial & (before == 0)
        return output

    def _begun(self, new: list[Tensor], lengths: Tensor | None, starts: Tensor | None) -> Tensor:
        """The numbers of steps of the rows' histories, of which those rows have none in which a stream begins."""
        T, B = new[0].shape[:2]
        if self.k1 < T:
            msg = f"Truncated: got a chunk of {T} steps, expected at most k1={self.k1}"
            raise AnyRNNError(msg)
        if self._counts is None or self._is_initial is None:
            self._is_initial = torch.ones(B, dtype=torch.bool, device="cpu")
            return torch.zeros(B, dtype=torch.int64, device="cpu")
        for name, given in (("lengths", lengths), ("starts", starts)):
            if given is not None and given.shape != (B,):
                msg = f"Truncated: {name} has shape {tuple(given.shape)}, expected ({B},), one for each row"
                raise AnyRNNError(msg)
        if len(self._counts) != B:
            msg = f"Truncated: got {B} rows, expected {len(self._counts)} as before; or clear() for new streams"
            raise AnyRNNError(msg)
        if starts is None:
            return self._counts
        begins = starts.to("cpu", torch.bool)
        self._is_initial = self._is_initial | begins
        return torch.where(begins, 0, self._counts)

    def _run(self, x: list[Tensor], spec: Any, state: Any, lengths: Tensor) -> tuple[Any, Any]:
        """Run some steps of every row; no output if there are none."""
        if not len(x[0]):
            return None, state
        given = [t.transpose(0, 1) for t in x] if self.batch_first else x
        ragged = {} if int(lengths.min()) == len(x[0]) else {"lengths": lengths}
        output, state = self.layer(pytree.tree_unflatten(given, spec), state, **ragged)
        return output, state

    def _output(self, first: Any, second: Any, before: Tensor, skipped: Tensor, count: Tensor) -> Any:
        """The output of the chunk's own steps, of those of the window's two parts, behind the history."""
        parts = [pytree.tree_flatten(part) for part in (first, second) if part is not None]
        leaves = zip(*(leaves for leaves, _ in parts), strict=True)
        return pytree.tree_unflatten([self._own(each, before, skipped, count) for each in leaves], parts[0][1])

    def _own(self, parts: Sequence[Tensor], before: Tensor, skipped: Tensor, count: Tensor) -> Tensor:
        parts = [t.transpose(0, 1) for t in parts] if self.batch_first else parts
        whole = parts[0] if len(parts) == 1 else _joined(parts[0], parts[1], before)
        (own,) = _rows([whole], skipped, count)
        return own.transpose(0, 1) if self.batch_first else own


def _joined(first: Tensor, second: Tensor, counts: Tensor) -> Tensor:
    """The first so many steps of each row of a tensor, then those of another one."""
    whole = torch.cat([first, second])
    if int(counts.min()) == len(first):
        return whole
    steps = torch.arange(len(whole), device="cpu").unsqueeze(1)
    index = torch.where(steps < counts, steps, steps + len(first) - counts).clamp(max=len(whole) - 1)
    return _gathered(whole, index)


def _rows(tensors: list[Tensor], first: Tensor, counts: Tensor) -> list[Tensor]:
    """So many steps of each row from one on, zero where a row has less than others."""
    longest, at = int(counts.max()), int(first.min())
    if at == int(first.max()) and int(counts.min()) == longest:
        return [t[at : at + longest] for t in tensors]
    steps = torch.arange(longest, device="cpu").unsqueeze(1)
    index, there = (steps + first).clamp(max=len(tensors[0]) - 1), steps < counts
    found = []
    for tensor in tensors:
        valid = there.to(tensor.device).reshape(*there.shape, *[1] * (tensor.dim() - 2))
        found.append(torch.where(valid, _gathered(tensor, index), tensor.new_zeros(())))
    return found


def _gathered(tensor: Tensor, index: Tensor) -> Tensor:
    """The steps (T, B) that an index tells of a tensor (S, B, ...)."""
    rows = torch.arange(tensor.shape[1], device=tensor.device)
    return tensor[index.to(tensor.device), rows]


def _spread(state: Any, B: int) -> Any:
    """A state with a row for each of the batch."""
    return pytree.tree_map(lambda s: s.expand(s.shape[0], B, *s.shape[2:]), state)
