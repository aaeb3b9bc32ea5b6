"""The words of `latex`: texts that know how tightly they hold together, numbers, and the names of tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: How tightly the parts of a text hold together: a comparison, a sum, a matrix with what it multiplies, a product.
LOW, SUM, MATRIX, PRODUCT, ATOM = range(5)

FUNCTIONS = {
    **{name: rf"\{name}" for name in ("tanh", "exp", "log", "sin", "cos", "tan", "sinh", "cosh")},
    **{"sigmoid": r"\sigma", "atan": r"\arctan", "maximum": r"\max", "minimum": r"\min", "logical_not": r"\lnot"},
    **{"relu": r"\operatorname{ReLU}", "native_layer_norm": r"\operatorname{LayerNorm}"},
}
BETWEEN = {
    **{"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"},
    **{"logical_and": r"\land", "logical_or": r"\lor"},
}
AROUND = {
    **{"abs": (r"\left|", r"\right|"), "floor": (r"\lfloor ", r" \rfloor"), "ceil": (r"\lceil ", r" \rceil")},
    **{"sqrt": (r"\sqrt{", "}"), "rsqrt": (r"\frac{1}{\sqrt{", "}}"), "reciprocal": (r"\frac{1}{", "}")},
}

# Without sigma, which is the logistic function here.
_GREEK = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho tau phi chi psi omega"
_LETTERS = {
    **{letter: rf"\{letter}" for letter in _GREEK.split()},
    **{letter.title(): rf"\{letter.title()}" for letter in "gamma delta theta lambda xi phi psi omega".split()},  # noqa: SIM905
}
_ACCENTS = ("tilde", "hat", "bar")
_OLD_OR_NEW = {"prev", "old", "last", "previous", "new", "next", "t", "tm1", "0", "1"}
#: Names that say nothing, of states and of local variables.
VAGUE = {"state", "states", "out", "output", "outputs", "result", "ret", "hx", "value", "first", "new", ""}


@dataclass(frozen=True)
class Tex:
    """A text, and how tightly it holds together.

    Attributes:
        text: LaTeX.
        level: One of `LOW` to `ATOM`.
        terms: Of a sum its terms, each with its sign.
        is_bias: It is a vector that is the same at every step, which a sum has last.
    """

    text: str
    level: int = ATOM
    terms: tuple[tuple[int, Tex], ...] = ()
    is_bias: bool = False

    def at(self, level: int) -> str:
        """The text for a place where what holds less tightly stands in parentheses."""
        return self.text if self.level >= level else parens(self.text)


def parens(text: str) -> str:
    """A text in parentheses of its height."""
    is_tall = r"\frac" in text or r"\begin" in text
    return rf"\left({text}\right)" if is_tall else f"({text})"


def total(terms: Iterable[tuple[int, Tex]]) -> Tex:
    """A sum; one with products of matrices has vectors that are the same at every step last, as biases are written."""
    flat = [(sign * inner, term) for sign, part in terms for inner, term in part.terms or ((1, part),)]
    if any(term.level == MATRIX for _, term in flat):
        flat.sort(key=lambda each: each[1].is_bias)
    text = ""
    for sign, term in flat:
        joint = (" - " if sign < 0 else " + ") if text else ("-" if sign < 0 else "")
        text += joint + term.at(MATRIX)
    return Tex(text, SUM, tuple(flat), all(term.is_bias for _, term in flat))


def number(value: complex) -> Tex:
    """A number."""
    if isinstance(value, bool):
        return Tex(rf"\mathrm{{{str(value).lower()}}}")
    if isinstance(value, complex):
        return Tex(str(value))
    if value < 0 or math.copysign(1, value) < 0:
        return Tex("-" + number(-value).text, SUM, ((-1, number(-value)),))
    if not math.isfinite(value):
        return Tex(r"\infty" if value == math.inf else r"\mathrm{nan}")
    digits, _, exponent = f"{value:.6g}".partition("e")
    if not exponent:
        return Tex(digits)
    power = f"10^{{{int(exponent)}}}"
    return Tex(power) if digits == "1" else Tex(rf"{digits} \cdot {power}", PRODUCT)


def named(name: str) -> str:
    r"""A name of the author's code as a symbol: ``f``, ``W_xf`` as W_{xf}, ``h_tilde`` with a tilde, ``alpha``."""
    name = name.strip("_").removesuffix("_t")
    head, _, rest = name.partition("_")
    if rest in _ACCENTS:
        return rf"\{rest}{{{_letter(head)}}}"
    digits = re.fullmatch(r"([A-Za-z]+)(\d+)", head)
    if digits:
        head, rest = digits[1], ",".join(filter(None, (digits[2], rest)))
    if rest == "t":
        rest = ""
    if len(head) > 1 and head not in _LETTERS:
        return _word(name)
    return indexed(_letter(head), _index(rest)) if rest else _letter(head)


def _letter(head: str) -> str:
    return _LETTERS.get(head) or (head if len(head) == 1 else _word(head))


def _index(rest: str) -> str:
    return rest if len(rest) <= 2 or re.fullmatch(r"[\d,]+", rest) else _LETTERS.get(rest) or _word(rest)


def _word(text: str) -> str:
    return rf"\mathrm{{{escaped(text)}}}"


def seen(text: str) -> int:
    """About how many characters of a text are seen."""
    return len(re.sub(r"\\(left|right|operatorname|mathrm|begin|end|text|frac)\b|[{}_^\s]", "", text).replace("\\", ""))


def escaped(text: str) -> str:
    """A word of Python as it may stand in mathematics."""
    return re.sub(r"([_#$%&{}])", r"\\\1", text)


def indexed(symbol: str, index: str) -> str:
    """A symbol with one more index."""
    core = symbol.rstrip("'")
    primes = symbol[len(core) :]
    inner = re.fullmatch(r"(.*?)_(?:\{(.*)\}|(\w))", core)
    if inner and not core.startswith(r"\mathrm"):
        return f"{inner[1]}{primes}_{{{inner[2] or inner[3]},{index}}}"
    return f"{symbol}_{index}" if len(index) == 1 else f"{symbol}_{{{index}}}"


def of_parameter(name: str, in_full: bool = False) -> str:
    """The symbol of a parameter by its dotted name: ``weight_ih`` is W_{ih}, ``new.bias`` b_{new}, ``U`` U."""
    *owners, last = [part for part in name.split(".") if part != "parametrizations"]
    while owners[:1] in (["module"], ["cell"]):  # what is around a cell calls it so
        owners = owners[1:]
    if last.startswith("original") and owners:  # of a parametrized tensor
        return indexed(of_parameter(".".join(owners), in_full), last.removeprefix("original") or "0")
    kind, _, rest = last.partition("_")
    letter = {"weight": "W", "bias": "b"}.get(kind)
    if letter is None:
        return named(f"{'_'.join(owners)}_{last}" if in_full and owners else last)
    near = owners[-2:] if owners and owners[-1].isdigit() else owners[-1:]
    owner = "_".join(owners if in_full else near) if not rest or in_full else ""
    if not rest and re.fullmatch(r"[A-Z](_\w+)?", owner):  # a module that is called as a matrix is
        return named(owner) if letter == "W" else indexed("b", named(owner))
    return named("_".join(filter(None, (letter, owner, rest))))


def of_state(old: Sequence[str], new: Sequence[str], k: int, count: int) -> str:
    """The symbol of a state variable, by what the author calls it before and after the step."""
    found = []
    for name in (*old, *new):
        parts = [part for part in name.split("_") if part not in _OLD_OR_NEW]
        if "_".join(parts) not in VAGUE:
            found.append("_".join(parts))
    found.sort(key=len)
    if found:
        return named(found[0])
    return ("h", "c")[k] if count <= 2 else f"s_{{{k}}}"
