"""What the tests of publishing share: a finished run, and a stand-in of the Hub to which `huggingface_hub` talks."""

import time

import pytest
from hub_server import TOKEN, HubServer, Repository

import facebones
from facebones.evaluation.protocol import find_protocols
from facebones.evaluation.run import run_protocols
from facebones.publishing.push import push
from facebones.recipe import recipe_from_dict
from facebones.training.run import train


@pytest.fixture(scope="session")
def finished(small_data, tiny_backbone, tmp_path_factory):
    """A finished run with thresholds; its results on a pair set are in the folder `results` beside it."""
    root = tmp_path_factory.mktemp("published")
    sections = {
        "backbone": {"name": tiny_backbone, "embedding_size": 16},
        "data": {"path": str(small_data), "workers": 0},
        "training": {"epochs": 1, "batch_size": 4},
        "validation": {"sets": ["tiny"]},
    }
    train(recipe_from_dict(sections), root / "run", device="cpu")
    pairs = small_data / "tiny.bin"
    options = {"bootstrap": 100, "device": "cpu", "progress": False}
    run_protocols({"it": root / "run"}, find_protocols(pairs), output=root / "results", **options)
    facebones.calibrate(root / "run", pairs, false_match_rates=[0.5], output=root / "run", device="cpu")
    return root / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in; the user has logged in, and the cache is empty."""
    from huggingface_hub import close_session, constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has the plain transfer only
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its tries
        yield server
        close_session()


@pytest.fixture
def published(hub, finished, tmp_path):
    """The stand-in with the public repository ann/mbf, which holds the run."""
    folder = tmp_path / "as_pushed"
    push(finished, "ann/mbf", license="mit", output=folder)
    hub.repositories["ann/mbf"] = Repository()
    hub.repositories["ann/mbf"].commit({path.name: path.read_bytes() for path in folder.iterdir()})
    return hub
