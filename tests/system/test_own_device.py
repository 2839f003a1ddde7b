"""Which GPU a process of several takes."""

import pytest
import torch

from facebones.errors import ConfigError
from facebones.system.process_group import MeetingError, own_device


@pytest.fixture
def on_gpus(monkeypatch):
    """A process of a machine with so many GPUs."""

    def set_up(gpus, rank, here):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": here}
        for name, value in own.items():
            monkeypatch.setenv(name, str(value))

    return set_up


def test_each_process_takes_the_gpu_of_its_number(on_gpus):
    on_gpus(4, rank=3, here=4)
    assert own_device("auto") == own_device("cuda") == "cuda:3"
    assert own_device("cpu") == "cpu"
    assert own_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(("rank", "kind"), [(0, MeetingError), (1, ConfigError), (2, ConfigError)])
def test_more_processes_than_gpus_are_refused_in_all_of_the_machine(on_gpus, rank, kind):
    on_gpus(2, rank, here=3)
    with pytest.raises(ConfigError, match="3 processes for 2 GPUs") as raised:
        own_device("auto")
    assert raised.type is kind  # the first of the machine says it
