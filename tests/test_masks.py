"""Random masks by counting: the generator against published numbers, machine code against the definition."""

import pytest
import torch

import anyrnn
from anyrnn import masks

# The known answers of the authors' library Random123 (its file kat_vectors), for Threefry-4x32 with 20 rounds:
# counter, key and result, of zeros, ones, and digits of pi.
KNOWN = [
    ("00000000 " * 8, "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
    ("ffffffff " * 8, "2a881696 57012287 f6c7446e a16a6732"),
    (
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 082efa98 ec4e6c89",
        "59cd1dbb b8879579 86b5d00c ac8b6d84",
    ),
]
SEED = torch.tensor(-1234567890123456789)


def draw(steps, rows, width, p=0.3, *, stream=5, seed=SEED, value=1.0, dtype=torch.float32):
    return torch.ops.anyrnn.mask(seed, stream, steps, rows, width, p, value, dtype)


@pytest.mark.parametrize(("given", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_the_generator_gives_the_published_numbers(given, expected):
    words = [torch.tensor(int(word, 16)) for word in given.split()]
    assert [f"{int(w):08x}" for w in masks.threefry(words[:4], words[4:])] == expected.split()


@pytest.mark.parametrize("cpu", ["", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 3, 5), (7, 2, 16), (8, 1, 17), (9, 3, 40), (0, 2, 3), (2, 0, 3)])
def test_machine_code_draws_what_the_definition_says(monkeypatch, cpu, dtype, sizes):
    if cpu and anyrnn.engines.cpu.machine._architecture() != "x86_64":
        pytest.skip("names of other processors")
    monkeypatch.setenv("ANYRNN_CPU", cpu)
    for p, value in ((0.0, 1.0), (0.1, 1 / 0.9), (0.5, 2.0), (1.0, 1.0)):
        expected = masks._mask(SEED, 5, *sizes, p, value, dtype)
        assert torch.equal(draw(*sizes, p, value=value, dtype=dtype), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_mask_is_the_same_in_any_number_of_threads(threads):
    expected = masks._mask(SEED, 5, 90, 16, 64, 0.3, 1.0, torch.float32)
    torch.set_num_threads(threads)
    assert torch.equal(draw(90, 16, 64), expected)


def test_a_row_does_not_depend_on_its_batch_mates_nor_on_the_number_of_steps():
    assert torch.equal(draw(5, 2, 6), draw(11, 4, 9)[:5, :2, :6])


def test_streams_and_seeds_are_independent():
    whole = torch.stack([draw(50, 20, 64), draw(50, 20, 64, stream=6), draw(50, 20, 64, seed=SEED + 1)])
    whole = torch.cat([whole, whole[:1].roll(1, 1), whole[:1].roll(1, 2), whole[:1].roll(1, 3)]).flatten(1)
    correlation = torch.corrcoef(whole) - torch.eye(len(whole))
    assert correlation.abs().max() < 5 / whole.shape[1] ** 0.5  # five standard deviations


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.5, 0.75, 1.0])
def test_the_frequency_is_the_probability_and_the_mean_is_kept(p):
    drawn = masks.mask(SEED, 1, (100, 50, 64), p, torch.float64)
    deviation = (p * (1 - p) / drawn.numel()) ** 0.5
    assert abs((drawn == 0).double().mean() - p) <= 5 * deviation
    if p < 1:
        assert torch.allclose(drawn[drawn != 0], torch.tensor(1 / (1 - p), dtype=torch.float64))
        assert abs(drawn.mean() - 1) <= 5 * deviation / (1 - p)


def test_seeds_come_from_pytorchs_generator():
    x = torch.zeros(1)
    torch.manual_seed(3)
    first, second = int(masks.seed_for(x)), int(masks.seed_for(x))
    torch.manual_seed(3)
    assert (first, second) == (int(masks.seed_for(x)), int(masks.seed_for(x)))
    assert first != second


def test_the_operators_are_what_they_say():
    torch.library.opcheck(torch.ops.anyrnn.mask.default, (SEED, 5, 3, 4, 5, 0.3, 1.0, torch.float32))


def test_half_precision_gets_its_own_type():
    drawn = masks.mask(SEED, 1, (1, 2, 3), 0.5, torch.bfloat16)
    assert drawn.dtype == torch.bfloat16
    assert set(drawn.flatten().tolist()) <= {0.0, 2.0}
