"""The cache of measurements when several processes measure at the same time."""

import multiprocessing

import pytest

from facebones.system.autotune_cache import load_measurement, save_measurement

MEASURING, EACH = 4, 10


def measure(number, start):
    start.wait()
    for index in range(EACH):
        save_measurement("test", f"{number} {index}", index)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "facebones" / "test.json"


def test_processes_that_measure_at_the_same_time_all_keep_their_values(cache):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(MEASURING)
    processes = [context.Process(target=measure, args=(number, start)) for number in range(MEASURING)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [load_measurement("test", f"{number} {index}") for number in range(MEASURING) for index in range(EACH)]
    assert found == list(range(EACH)) * MEASURING


def test_a_folder_that_cannot_be_created_is_reported(cache, capsys):
    cache.parent.write_text("")
    save_measurement("test", "here", 1)
    assert "the measurement is not saved: " in capsys.readouterr().err and load_measurement("test", "here") is None
