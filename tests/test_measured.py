"""What is kept of a machine's measurements when several measure at once."""

import multiprocessing

import pytest

from facebones.system.autotune_cache import keep, recall

MEASURING, EACH = 4, 10


def measure(number, start):
    start.wait()
    for index in range(EACH):
        keep("test", f"{number} {index}", index)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "facebones" / "test.json"


def test_those_who_measure_at_once_all_keep_theirs(cache):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(MEASURING)
    processes = [context.Process(target=measure, args=(number, start)) for number in range(MEASURING)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [recall("test", f"{number} {index}") for number in range(MEASURING) for index in range(EACH)]
    assert found == list(range(EACH)) * MEASURING


def test_a_folder_that_cannot_be_made_is_said(cache, capsys):
    cache.parent.write_text("")
    keep("test", "here", 1)
    assert "what was measured is not kept: " in capsys.readouterr().err and recall("test", "here") is None
