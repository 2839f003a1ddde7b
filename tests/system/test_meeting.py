"""Processes that meet at a store in which an earlier group has left its keys, as after a restart by torchrun."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from facebones.system.meeting import own_part, within


def meet(store, size, *, late=0):
    """What process 0 tells the others in their part of the store, as each finds it."""

    def be(rank):
        if rank == late:
            time.sleep(0.2)
        part = own_part(store, rank, size, 10)
        if rank == 0:
            part.set("told", str(time.monotonic_ns()))
        return part.get("told")

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(be, range(size)))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_group_does_not_read_what_an_earlier_one_left(late):
    store = torch.distributed.HashStore()
    rounds = [meet(store, size, late=late) for size in (3, 3, 2, 3)]
    assert [len({*told}) for told in rounds] == [1] * 4 and len({told[0] for told in rounds}) == 4


def test_one_that_is_alone_says_so_in_time():
    for rank in (0, 1):
        with pytest.raises(RuntimeError, match=r"not all of the 2 came within 0\.2 s"):
            own_part(torch.distributed.HashStore(), rank, 2, 0.2)


def test_an_answer_that_does_not_come():
    with pytest.raises(RuntimeError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        within(1, lambda: 1 / 0)
