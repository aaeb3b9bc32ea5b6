"""Control flow while tracing: what a step's Python asks of tensors is answered so that the graph holds for every call.

A trace records operations; what a step decides by an answer that is no tensor (`if x.shape[0] > 1`) is not in it. So a
`TorchFunctionMode` sees every such question. Sizes, dtypes and devices may be asked: those of features are the same in
every call, and the size of the batch is a symbolic integer (`Batch`), which may be passed on and multiplied, but not
compared. All else (requires_grad, is_contiguous, numbers) is refused, and so is what acts behind operations, as hooks.
"""

from __future__ import annotations

import datetime
import operator
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from anyrnn.cells import products
from anyrnn.compiler.reach import is_standard_file, is_trusted_file
from anyrnn.errors import AnyRNNError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, FrameType

#: Questions that may be asked: the answer follows from the sizes of the cell and the dtypes of its tensors.
_HARMLESS = frozenset(
    {"shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "dtype", "device", "layout", "itemsize"}
    | {"element_size", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_complex", "is_floating_point"}
    | {"is_tensor", "is_signed", "is_same_size", "is_nested", "is_mkldnn", "is_mps", "is_xpu", "is_conj", "is_neg"}
    | {
        "is_inference",
        "get_device",
        "__len__",
        "result_type",
        "promote_types",
        "can_cast",
        "broadcast_shapes",
        "names",
        "_is_view",
        "is_sparse_csr",
    }
    | {"is_storage", "has_names", "__class__", "__repr__", "__hash__", "__format__"}
)
#: Functions that return no tensor and may be called: the recorder sees what they do.
_RECORDED = frozenset({"__setitem__", "_assert_async", "_check", "_set_grad_enabled"})

#: Functions whose result depends on the moment of the call. Named by code that ran, they are refused.
MOMENTARY = frozenset(
    {"is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled"}
    | {
        "get_autocast_dtype",
        "get_autocast_cpu_dtype",
        "get_autocast_gpu_dtype",
        "get_num_threads",
        "is_anomaly_enabled",
    }
    | {"get_rng_state", "set_rng_state", "initial_seed", "manual_seed", "fork_rng", "urandom", "environ", "getenv"}
    | {"current_thread", "get_ident", "getpid", "perf_counter", "monotonic", "process_time", "time_ns"}
    | {"import_module"}
)
#: Functions of C whose result does, by whatever name the code calls them, as in `from time import time as now`.
_CLOCKS = frozenset(
    {time.time, time.localtime, time.gmtime, time.ctime, time.monotonic_ns, time.perf_counter_ns, time.process_time_ns}
    | {datetime.datetime.now, datetime.datetime.utcnow, datetime.datetime.today, datetime.date.today, os.urandom, open}
    | {time.monotonic, time.perf_counter, time.process_time, time.time_ns, os.getpid, os.times, globals, eval, exec}
)


def is_momentary(function: Any, file: str) -> bool:
    """Whether a function, called by code of a file, has another result in the next call.

    A clock that Python's own library reads, for a log, and a file that it opens, for a warning, tell a step nothing.
    """
    if function not in _CLOCKS:
        return False
    return function is os.urandom or "pathlib" in file or not (is_trusted_file(file) or is_standard_file(file))


class Batch(int):  # noqa: PLW1641 - to hash it is refused
    """A symbolic integer, a multiple of the batch size: may be passed on, multiplied, divided, compared with another.

    Any other operation would have a result that holds for the traced size only.
    """

    def _refuse(self, *_: object) -> Any:
        msg = (
            "it decides something by the size of the batch, which differs from call to call, and from step to step in "
            "a ragged batch; compute with tensors (torch.where), or decide it when the cell is made"
        )
        raise AnyRNNError(msg)

    def _compared(self, other: object, compare: Callable[[Any, Any], bool]) -> bool:
        """Compare with numbers with which every batch size compares alike: its multiples, and those below one."""
        if isinstance(other, Batch):
            return compare(int.__index__(self), int.__index__(other))
        if isinstance(other, int | float) and other > 0:
            self._refuse()
        return compare(int.__index__(self), other)

    def __eq__(self, other: object) -> bool:
        return self._compared(other, operator.eq)

    def __ne__(self, other: object) -> bool:
        return self._compared(other, operator.ne)

    def __lt__(self, other: Any) -> bool:
        return self._compared(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self._compared(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self._compared(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self._compared(other, operator.ge)

    def __bool__(self) -> bool:
        return True  # an empty batch is not traced

    def __mul__(self, other: Any) -> Any:
        return Batch(int.__index__(self) * other) if type(other) is int and other > 0 else self._refuse()

    def __floordiv__(self, other: Any) -> Any:
        divisor = int.__index__(other) if isinstance(other, int) else 0
        if divisor < 1 or int.__index__(self) % divisor:
            return self._refuse()
        quotient = int.__index__(self) // divisor
        return quotient if isinstance(other, Batch) else Batch(quotient)

    __rmul__ = __mul__
    __hash__ = __repr__ = __str__ = __format__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mod__ = __rmod__ = __rfloordiv__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _refuse
    __float__ = __int__ = __neg__ = __abs__ = __and__ = __or__ = __xor__ = _refuse


class Number(float):
    """A symbolic float: an attribute of the cell that is an input of the graph, with the tensor that stands for it.

    Arithmetic computes with the tensor, too. Whatever would read the number, as `if` does, is refused.
    """

    tensor: Tensor

    @staticmethod
    def of(value: float, tensor: Tensor) -> Number:
        """Return a number with its tensor, a scalar."""
        number = Number(value)
        number.tensor = tensor
        return number

    def _refuse(self, *_: object) -> Any:
        msg = "it looks at a number that differs from call to call"
        raise AnyRNNError(msg)

    def _computed(self, other: Any, compute: Callable[[Any, Any], Any], reflected: bool = False) -> Any:
        if isinstance(other, Tensor) or not isinstance(other, int | float):
            return NotImplemented
        value = float.__pos__(other) if isinstance(other, float) else other
        tensor = other.tensor if isinstance(other, Number) else other
        pairs = (float.__pos__(self), value), (self.tensor, tensor)
        return Number.of(*(compute(b, a) if reflected else compute(a, b) for a, b in pairs))

    def __add__(self, other: Any) -> Any:
        return self._computed(other, operator.add)

    def __sub__(self, other: Any) -> Any:
        return self._computed(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._computed(other, operator.sub, reflected=True)

    def __mul__(self, other: Any) -> Any:
        return self._computed(other, operator.mul)

    def __truediv__(self, other: Any) -> Any:
        return self._computed(other, operator.truediv)

    def __rtruediv__(self, other: Any) -> Any:
        return self._computed(other, operator.truediv, reflected=True)

    def __neg__(self) -> Any:
        return self._computed(-1, operator.mul)

    __radd__, __rmul__ = __add__, __mul__
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse
    __repr__ = __str__ = __format__ = __int__ = __float__ = __round__ = __trunc__ = _refuse
    __floor__ = __ceil__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __pow__ = __rpow__ = __divmod__ = __rdivmod__ = __abs__ = is_integer = hex = _refuse


class Witness(TorchFunctionMode):
    """Sees every function of PyTorch's that a step calls, and answers with symbolic numbers.

    Args:
        batch: The batch size of the trace; None if its multiples are no symbolic integers.
        questions: A set to which "len" is added if `len` is asked for the batch size, whose result cannot be symbolic.
    """

    def __init__(self, batch: int | None, questions: set[str]) -> None:
        super().__init__()
        self._batch = batch
        self._questions = questions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function, with symbolic sizes in its result, or refuse it."""
        kwargs = dict(kwargs or {})
        if any(isinstance(v, Number) for v in pytree.tree_leaves((args, kwargs))):
            args, kwargs = pytree.tree_map_only(Number, lambda number: number.tensor, (args, kwargs))
        name = _name_of(func)
        if name in MOMENTARY:
            msg = f"it asks `{name}`, whose answer may be another one in the next call"
            raise AnyRNNError(msg)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) or name in _RECORDED:
            return result
        if any(isinstance(r, Tensor) for r in pytree.tree_leaves(result)):
            return result
        by_user = not is_trusted_file(_caller().co_filename)
        if name not in _HARMLESS and (result is None or name in _BEHIND or by_user):
            msg = f"it uses `Tensor.{name}`, and what comes of that is no operation; compute with tensors"
            raise AnyRNNError(msg)
        return self._symbolic(name, result) if by_user else result

    def _symbolic(self, name: str, result: Any) -> Any:
        """Put a symbolic integer in the place of each multiple of the batch size."""
        if isinstance(result, torch.Size):
            return torch.Size([self._symbolic(name, n) for n in result])
        if self._batch is None or type(result) is not int or result % self._batch or not result:
            return result
        if name == "__len__":
            self._questions.add("len")
            return result
        return Batch(result)


#: Functions that act behind operations: refused even if PyTorch's code calls them.
_BEHIND = frozenset(
    {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "numpy", "__array__", "tolist", "data_ptr"}
    | {"untyped_storage", "storage", "__dlpack__", "backward", "set_", "resize_", "grad_fn", "_backward_hooks"}
)


def _name_of(func: Any) -> str:
    """The name of a function, or of the attribute that a getter or setter is for."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        owner = getattr(func, "__self__", None)
        return str(getattr(owner, "__name__", name))
    return name


def _caller() -> CodeType:
    """The code that called the function which the mode sees."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    assert frame is not None
    return frame.f_code


_BETWEEN = tuple(str(module.__file__) for module in (torch.overrides, torch._tensor, products))
