"""Memory of large arrays: in huge pages, where the system has them."""

import re
import sys
from pathlib import Path

import pytest
import torch

from anyrnn.runtime.memory import empty


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 5), (3_000_001,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_tensor_is_an_ordinary_one(shape, dtype):
    tensor = empty(torch.ones(2, dtype=dtype, requires_grad=True), *shape)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (torch.Size(shape), dtype, True)
    assert not tensor.requires_grad
    assert (tensor.fill_(3) == 3).all()


def flags(address):
    """The kernel's flags of the mapping in which an address is."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    pytest.fail("the address is in no mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_large_arrays_are_in_huge_pages_and_others_are_left_alone():
    like = torch.empty(())
    assert "hg" in flags(empty(like, 50 << 20).data_ptr() + (1 << 20))
    assert "hg" not in flags(like.new_empty(51 << 20).data_ptr() + (1 << 20))
