"""What the tests of studies share."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Speeds that a dry run measures are not those of another test, and not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("facebones.system.autotune_cache._file", lambda kind: folder / f"{kind}.json")
