"""Random masks by counting: number i of mask m depends on the seed, on m and on i, and on nothing else.

``anyrnn::mask`` draws with Threefry-4x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As
Easy as 1, 2, 3", 2011), a function of a key and a counter. So a mask is the same in every engine, on every device and
for every number of threads, and that of a row does not depend on how many rows or steps there are. A seed is drawn from
PyTorch's generator for each call of a layer (`seed_for`): after `torch.manual_seed` the same masks come again.

Here is the definition, in PyTorch's integers; it runs where there is no faster one. The cpu engine has its own.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

#: By how many bits the two words of a pair are rotated, for each of eight rounds in turn.
ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
ROUNDS = 20
#: The last word of the key's schedule, beside the key: it makes no word zero for a key of zeros.
PARITY = 0x1BD11BDA
#: A draw is a half of a word: a probability holds to 1 / 2**16.
DRAWS = 1 << 16
#: How many steps one block of four words is for.
STEPS = 8

_WORD = (1 << 32) - 1


def pairs(rounds: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The pairs of words that are mixed in a round."""
    return ((0, 1), (2, 3)) if rounds % 2 == 0 else ((0, 3), (2, 1))


def threefry(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Threefry-4x32-20 of four words of a counter and four of a key, as integers (int64) below 2**32."""
    schedule = [*key, PARITY ^ key[0] ^ key[1] ^ key[2] ^ key[3]]
    words = [(c + k) & _WORD for c, k in zip(counter, key, strict=True)]
    for r in range(ROUNDS):
        for (a, b), bits in zip(pairs(r), ROTATIONS[r % 8], strict=True):
            words[a] = (words[a] + words[b]) & _WORD
            words[b] = (((words[b] << bits) | (words[b] >> (32 - bits))) & _WORD) ^ words[a]
        if r % 4 == 3:
            turn = r // 4 + 1
            words = [(w + schedule[(turn + k) % 5]) & _WORD for k, w in enumerate(words)]
            words[3] = (words[3] + turn) & _WORD
    return words


def threshold_of(p: float) -> int:
    """Below which draw a number is dropped."""
    return round(p * DRAWS)


_LIBRARY = torch.library.Library("anyrnn", "FRAGMENT")
_LIBRARY.define(
    "mask(Tensor seed, int stream, SymInt steps, SymInt rows, SymInt width, float p, float value, ScalarType dtype) "
    "-> Tensor"
)
# Tagged, so that none is drawn again for a backward pass. PyTorch takes two equal calls for one nevertheless, so each
# has a number of its own.
_LIBRARY.define("seed(Tensor like, int number) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def _mask(
    seed: Tensor, stream: int, steps: int, rows: int, width: int, p: float, value: float, dtype: torch.dtype
) -> Tensor:
    """Draw a mask (steps, rows, width): zero with probability p, else `value`.

    The draws of a row and a column at eight steps are the halves, low ones first, of the four words for the counter
    (column, row, step // 8, stream), with the seed as the key.

    Args:
        seed: An integer (int64).
        stream: Which of the masks of this seed, below 2**32.
        steps: The size of the first dimension.
        rows: Of the second.
        width: Of the third.
        p: The probability, to 1 / 2**16.
        value: The number where nothing is dropped.
        dtype: The type, float32 or float64.
    """
    device, blocks = seed.device, -(-steps // STEPS)
    key = [seed & _WORD, (seed >> 32) & _WORD, torch.zeros_like(seed), torch.zeros_like(seed)]
    counter = [
        torch.arange(width, device=device),
        torch.arange(rows, device=device).unsqueeze(1),
        torch.arange(blocks, device=device).reshape(-1, 1, 1),
        torch.full((), stream, dtype=torch.int64, device=device),
    ]
    words = threefry([c.expand(blocks, rows, width) for c in counter], key)
    halves = torch.stack([half for w in words for half in (w & (DRAWS - 1), w >> 16)], 1)  # (blocks, 8, rows, width)
    draws = halves.reshape(STEPS * blocks, rows, width)[:steps]
    return (draws >= threshold_of(p)).to(dtype) * value


def _mask_form(
    seed: Tensor, stream: int, steps: int, rows: int, width: int, p: float, value: float, dtype: torch.dtype
) -> Tensor:
    return seed.new_empty(steps, rows, width, dtype=dtype)


def _seed(like: Tensor, number: int = 0) -> Tensor:
    """Draw a seed from PyTorch's generator of a device; the number tells calls in a graph apart."""
    return torch.randint(0, 2**63 - 1, (), device=like.device)


_LIBRARY.impl("mask", _mask, "CompositeExplicitAutograd")
_LIBRARY.impl("seed", _seed, "CompositeExplicitAutograd")
torch.library.register_fake("anyrnn::mask", _mask_form, lib=_LIBRARY)
torch.library.register_fake("anyrnn::seed", lambda like, number: like.new_empty((), dtype=torch.int64), lib=_LIBRARY)


def _mask_by_vmap(info: Any, in_dims: tuple[Any, ...], seed: Tensor, *others: Any) -> tuple[Tensor, int]:
    """The masks of many seeds."""
    return torch.stack([torch.ops.anyrnn.mask(one, *others) for one in seed.unbind(in_dims[0])]), 0


torch.library.register_vmap("anyrnn::mask", _mask_by_vmap, lib=_LIBRARY)


def seed_for(like: Tensor) -> Tensor:
    """Draw the seed of a call from PyTorch's generator, on the device of a tensor."""
    if not torch.compiler.is_compiling():
        return _seed(like)
    # An operator of our own: the compiled program then draws what an ordinary call draws.
    seed: Tensor = torch.ops.anyrnn.seed(like, _next_number())
    return seed


_numbers = itertools.count()


def _next_number() -> int:
    """Another number in each place of a program that PyTorch traces."""
    return next(_numbers)


_next_number._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as `traced.constant_to_dynamo` does


def mask(
    seed: Tensor, stream: int, sizes: tuple[int, int, int], p: float, dtype: torch.dtype, scaled: bool = True
) -> Tensor:
    """Draw a mask (T, B, width) that is zero with probability p, else 1 / (1 - p), or 1 if it is not to be scaled.

    Args:
        seed: What `seed_for` gives.
        stream: Which mask of this seed: another number, an independent mask.
        sizes: T, B, and the number of features.
        p: The probability, from 0 to 1.
        dtype: The type.
        scaled: Keep the mean: what is not dropped becomes larger (Srivastava et al. 2014).
    """
    value = 1.0 / (1.0 - p) if scaled and p < 1 else 1.0
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    made: Tensor = torch.ops.anyrnn.mask(seed, stream, *sizes, p, value, drawn)
    return made if drawn == dtype else made.to(dtype)
