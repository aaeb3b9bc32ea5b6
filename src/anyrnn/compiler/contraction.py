"""Products of tensors with inner dimensions, while a step is traced: one `einsum` each, its first letter the batch.

PyTorch takes `einsum`, `matmul` and `Linear` apart into `bmm` and `mm` of folded dimensions, (B S, K), and moves the
batch to another dimension where that suits a kernel. So these functions are replaced where they are called:

    F.linear(h, W)              h (B, S, K)        einsum("bsk,kn->bsn", h, W.t())
    A @ h                       h (B, N, F)        einsum("nm,bmf->bnf", A, h)
    einsum("bhd,hde->bhe")      W (H, D, E)        a product of rows and a matrix for each of a few h, side by side
    bmm(h.transpose(0, 1), W).transpose(0, 1)      likewise: two transpositions that cancel are none

Of rows and a matrix it is ``h @ W``. What depends on x alone is left as it is, unless its batch would move.
"""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyrnn.compiler.graph import Ref
    from anyrnn.compiler.recorder import Recorder

#: For so many heads, products with a matrix each are the fastest way: the rows of the batch share the weights.
MOST_HEADS = 32
_FEWEST_COLUMNS = 4  # of a matrix that a product is worth; for fewer, the numbers of a row are summed up

#: Functions that permute dimensions.
_PERMUTING = frozenset({"transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis"})


class Contractions(TorchFunctionMode):
    """A mode that replaces products of tensors."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.moved: set[Ref] = set()  # tensors whose batch is not their first dimension, by transposing
        self._axes: dict[int, int] = {}  # by the id of a tensor, the dimension of its batch if it may not be the first
        self._sources: dict[int, tuple[Tensor, list[int]]] = {}  # and what it is permuted from

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call a function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _PERMUTING and args and isinstance(args[0], Tensor) and self.recorder.is_varying(args[0]):
            return self._permuted(args[0], _order(func, args, kwargs), lambda: func(*args, **kwargs))
        if name == "einsum" and not kwargs:
            product = _rows_by_matrix(*args)
            if product is not None:
                return product
        form = _FORMS.get(name)
        if form is not None:
            result = self._formed(form, args, kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)

    # ---- Where the batch is ----

    def _permuted(self, tensor: Tensor, order: list[int], plain: Callable[[], Tensor] | None = None) -> Tensor:
        """Permute the dimensions of a tensor; what was permuted before, and is put back, is what it was."""
        axis = self._axes.get(id(tensor), 0)
        if plain is not None and order[0] == axis == 0:
            return plain()
        source, earlier = self._sources.get(id(tensor), (tensor, list(range(tensor.dim()))))
        composed = [earlier[k] for k in order]
        if composed == sorted(composed):
            return source
        result = source.permute(composed) if plain is None or source is not tensor else plain()
        self._sources[id(result)] = source, composed
        self._axes[id(result)] = order.index(axis)
        if order[0] != axis:
            self.moved.add(self.recorder.ref(result))
        return result

    # ---- Products ----

    def _formed(self, form: Callable[..., Tensor | None], args: Any, kwargs: Any) -> Tensor | None:
        """The result of a function, if it is a product of tensors that depend on the state, or whose batch moves."""
        tensors = [t for a in args for t in (a if isinstance(a, list | tuple) else [a]) if isinstance(t, Tensor)]
        in_loop = any(map(self.recorder.is_stateful, tensors)) or any(id(t) in self._axes for t in tensors)
        if not in_loop and form is not _einsum:
            return None
        try:
            return form(self, *args, **kwargs)
        except (TypeError, IndexError):
            return None  # a form that is not known, or an error: the function itself will say so

    def contracted(self, terms: list[str], operands: list[Tensor], output: str) -> Tensor | None:
        """The sum of products of operands; None if rows of the batch meet in it."""
        rows = [self.recorder.is_varying(t) for t in operands]
        batch = {term[self._axes.get(id(t), 0)] for term, t, row in zip(terms, operands, rows, strict=True) if row}
        if len(batch) != 1 or any(len(set(term)) < len(term) for term in terms):
            return None
        (b,) = batch
        if b not in output or any(row and b not in term for term, row in zip(terms, rows, strict=True)):
            return None
        for k, term in enumerate(terms):
            if not rows[k] and b in term:  # a weight that is spread over the rows
                terms[k], operands[k] = term.replace(b, ""), operands[k].select(term.index(b), 0)
            elif rows[k] and term[0] != b:
                terms[k] = b + term.replace(b, "")
                operands[k] = self._permuted(operands[k], [term.index(a) for a in terms[k]])
        pairs = sorted(zip(terms, operands, strict=True), key=lambda pair: b not in pair[0])
        first = b + output.replace(b, "")
        letters, total = pairs[0]
        for k, (term, operand) in enumerate(pairs[1:], 2):
            later = "".join(other for other, _ in pairs[k:]) + first
            kept = "".join(a for a in dict.fromkeys(letters + term) if a in later) if k < len(pairs) else first
            total, letters = self._pair(letters, total, term, operand, kept), kept
        return total if first == output else self._permuted(total, [first.index(a) for a in output])

    def plus(self, product: Tensor, addend: Tensor) -> Tensor:
        """A sum; of a product whose batch was moved, it is taken where it is the first dimension."""
        source, order = self._sources.get(id(product), (product, None))
        if order is None:
            return product + addend
        addend = (
            addend.reshape(*[1] * (product.dim() - addend.dim()), *addend.shape)
            if addend.dim() < product.dim()
            else addend
        )
        return self._permuted(source + self._permuted(addend, [order.index(k) for k in range(len(order))]), order)

    def scaled(self, tensor: Tensor, factor: float) -> Tensor:
        """A tensor times a number, likewise."""
        source, order = self._sources.get(id(tensor), (tensor, None))
        return tensor * factor if order is None else self._permuted(source * factor, order)

    def _pair(self, a: str, x: Tensor, c: str, y: Tensor, output: str) -> Tensor:
        """The product of two tensors, of which the first one has a row for each of the batch, as the result has."""
        (a, x), (c, y) = _reduced(a, x, c + output), _reduced(c, y, a + output)
        (a, x), (c, y) = _without_ones(a, x, c, y), _without_ones(c, y, a, x)
        rows = self._heads(a, x, c, y, output) if a[0] not in c else None
        if rows is not None:
            return rows
        if set(a) == set(output) >= set(c) or set(c) == set(output) >= set(a):
            return _spread(a, x, output) * _spread(c, y, output)
        with _disable_current_modes():
            result = self.recorder.whole(torch.ops.aten.einsum.default, (f"{a},{c}->{output}", [x, y]))
        # However it lies in memory, which may depend on the number of rows: what follows has to be the same.
        return torch.clone(result, memory_format=torch.contiguous_format)

    def _heads(self, a: str, rows: Tensor, c: str, weight: Tensor, output: str) -> Tensor | None:
        """A product of rows and a matrix for each head; None if there are many, or it is another product."""
        shape = dict(zip(a + c, (*rows.shape, *weight.shape), strict=True))
        heads = [n for n in c if n in a and n in output]
        summed = [n for n in c if n in a and n not in output]
        columns = [n for n in c if n not in a]
        own = [n for n in a[1:] if n not in c]
        H, K, N = (math.prod(shape[n] for n in each) for each in (heads, summed, columns))
        if own or not summed or N < _FEWEST_COLUMNS or H > MOST_HEADS:
            return None
        order = [*heads, *summed]
        x = _in_order(a, rows, [a[0], *order]).flatten(1).unflatten(1, (H, K))
        w = _in_order(c, weight, [*order, *columns]).reshape(H, K, N)
        products = [x_head @ w_head for x_head, w_head in zip(x.unbind(1), w.unbind(0), strict=True)]
        y = (torch.stack(products, 1) if H > 1 else products[0].unsqueeze(1)).flatten(1)
        y = y.unflatten(1, [shape[n] for n in (*heads, *columns)])
        return _in_order("".join([a[0], *heads, *columns]), y, [*output])


def _in_order(letters: str, tensor: Tensor, wanted: Sequence[str]) -> Tensor:
    order = [letters.index(n) for n in wanted]
    return tensor if order == sorted(order) else tensor.permute(order)


def _spread(letters: str, tensor: Tensor, output: str) -> Tensor:
    """A tensor with the dimensions of others, of size one where it has none."""
    tensor = _in_order(letters, tensor, [n for n in output if n in letters])
    for k, n in enumerate(output):
        if n not in letters:
            tensor = tensor.unsqueeze(k)
    return tensor


def _reduced(letters: str, tensor: Tensor, others: str) -> tuple[str, Tensor]:
    """A tensor, summed over dimensions that nothing else has."""
    alone = [k for k, n in enumerate(letters) if n not in others]
    return ("".join(n for n in letters if n in others), tensor.sum(alone)) if alone else (letters, tensor)


def _without_ones(letters: str, tensor: Tensor, others: str, other: Tensor) -> tuple[str, Tensor]:
    """A tensor without dimensions of size one that are spread over those of another."""
    sizes = dict(zip(others, other.shape, strict=True))
    ones = [k for k, n in enumerate(letters) if k and tensor.shape[k] == 1 and sizes.get(n, 1) > 1]
    return (
        ("".join(n for k, n in enumerate(letters) if k not in ones), tensor.squeeze(ones))
        if ones
        else (letters, tensor)
    )


def _order(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The order that a function permutes dimensions to, seen by a tensor whose sizes are all different."""
    sizes = range(2, 2 + args[0].dim())
    with _disable_current_modes():
        return [size - 2 for size in func(torch.empty(*sizes, device="meta"), *args[1:], **kwargs).shape]


# ---- The forms of products: from the arguments of a function to `contracted(letters, operands, letters)` -------------


def _einsum(mode: Contractions, equation: Any, *operands: Any) -> Tensor | None:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) < 2:
        return None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        return None
    free = [a for a in string.ascii_letters if a not in equation]
    most = max(t.dim() - len(term.replace("...", "")) for term, t in zip(terms, operands, strict=True))
    dots = "".join(free[:most]) if "..." in inputs else ""
    if not arrow:
        letters = inputs.replace("...", "").replace(",", "")
        output = ("..." if dots else "") + "".join(sorted(a for a in set(letters) if letters.count(a) == 1))
    for k, (term, t) in enumerate(zip(terms, operands, strict=True)):
        terms[k] = term.replace("...", dots[len(dots) - (t.dim() - len(term) + 3) :]) if "..." in term else term
    return mode.contracted(terms, list(operands), output.replace("...", dots))


def _matmul(mode: Contractions, a: Tensor, b: Tensor) -> Tensor | None:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or (a.dim() <= 2 and b.dim() == 2) or a.dim() < 1:
        return None
    dots = string.ascii_uppercase[: max(a.dim(), b.dim()) - 2] if max(a.dim(), b.dim()) > 2 else ""
    first = "k" if a.dim() == 1 else dots[len(dots) - a.dim() + 2 :] + "mk"
    second = "k" if b.dim() == 1 else dots[len(dots) - b.dim() + 2 :] + "kn"
    output = dots + "m" * (a.dim() > 1) + "n" * (b.dim() > 1)
    return mode.contracted([first, second], [a, b], output)


def _linear(mode: Contractions, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if x.dim() < 3 or weight.dim() != 2:
        return None
    product = _matmul(mode, x, weight.t())
    return product if product is None or bias is None else mode.plus(product, bias)


def _bmm(mode: Contractions, a: Tensor, b: Tensor) -> Tensor | None:
    return mode.contracted(["zmk", "zkn"], [a, b], "zmn")


def _baddbmm(
    mode: Contractions, addend: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    product = _bmm(mode, a, b)
    if product is None:
        return None
    product = product if alpha == 1 else mode.scaled(product, alpha)
    return mode.plus(product, addend if beta == 1 else mode.scaled(addend, beta))


def _bilinear(mode: Contractions, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if a.dim() != 2 or b.dim() != 2:
        return None
    product = mode.contracted(["bi", "oij", "bj"], [a, weight, b], "bo")
    return product if product is None or bias is None else mode.plus(product, bias)


#: By the names of functions and methods.
_FORMS: Mapping[str, Callable[..., Tensor | None]] = {
    **{"einsum": _einsum, "linear": _linear, "bmm": _bmm, "baddbmm": _baddbmm, "bilinear": _bilinear},
    **{"matmul": _matmul, "__matmul__": _matmul, "mv": _matmul},
    "__rmatmul__": lambda mode, b, a: _matmul(mode, a, b),
}


def _rows_by_matrix(equation: Any, *operands: Any) -> Tensor | None:
    """The result of `einsum` as a product of rows and a matrix; None if it is another contraction."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    inputs, arrow, output = str(equation).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not isinstance(equation, str) or not arrow or len(terms) != 2 or len(operands) != 2:
        return None
    rows, matrix = sorted(zip(terms, operands, strict=True), key=lambda pair: len(pair[0].replace("...", "")) == 2)
    for (a, x), (b, w) in ((rows, matrix), (matrix, rows)):
        inner = a[-1:]
        if len(b) != 2 or "." in b or w.dim() != 2 or x.dim() != 2 or inner not in b:
            continue
        outer = b.replace(inner, "", 1)
        if inner != outer and outer not in a and inner not in a[:-1] and output == a[:-1] + outer:
            return torch.matmul(x, w if b[0] == inner else w.t())
    return None
