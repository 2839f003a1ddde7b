"""Upload files to a repository of the Hugging Face Hub: all in one commit, so that nobody sees a part of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import facebones
from facebones.errors import ConfigError, FaceBonesError
from facebones.system.hub import HubAddress, client, hub_errors


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What was uploaded.

    Attributes:
        address: of the model at its commit, such as "hf:ann/mbf@0123...".
        url: of the repository's page.
        private: whether others see it.
    """

    address: str
    url: str
    private: bool


def upload(repository: str, files: Mapping[str, bytes], *, public: bool, message: str) -> Uploaded:
    """Commit files to a repository, which is made if there is none.

    Args:
        repository: "owner/name".
        files: content by the name in the repository. Other files there stay.
        public: make a new repository public; without it, a new one is private, and a public one is refused.
        message: of the commit.

    Raises:
        ConfigError: no token, a public repository without `public`, or the Hub refuses the card.
        CheckpointError: no access.
        RunError: the Hub cannot be reached, or fails; then no file of the repository has changed.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub, address = client(), HubAddress(repository=repository)
    if not hub.get_token():
        raise ConfigError("no token of the Hugging Face Hub: log in by `hf auth login`, or set HF_TOKEN")
    api = hub.HfApi(library_name="facebones", library_version=facebones.__version__)
    what = "the model"
    with hub_errors(address, what):
        private = _visibility(api, repository, public)
        is_new = private is None
        if is_new:
            private = not public
            api.create_repo(repository, private=private)
    try:
        with hub_errors(address, what):
            made = _commit(api, hub, repository, files, message)
    except FaceBonesError as error:
        left = "nothing was published" + (", and the new repository is empty" if is_new else "")
        raise type(error)(f"{error}; {left}") from error
    pinned = HubAddress(repository=repository, revision=made.oid)
    return Uploaded(address=str(pinned), url=f"{api.endpoint}/{repository}", private=bool(private))


def _visibility(api: Any, repository: str, public: bool) -> bool | None:
    """Whether a repository is private; None if there is none.

    Raises:
        ConfigError: it is public, and that is not asked for.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        private = bool(api.model_info(repository).private)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    if not private and not public:
        raise ConfigError(f"hf:{repository}: is public; give --public to publish there, or choose another name")
    return private


def _commit(api: Any, hub: Any, repository: str, files: Mapping[str, bytes], message: str) -> Any:
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    try:
        return api.create_commit(repository, operations, commit_message=message)
    except ValueError as error:
        if "Invalid metadata" not in str(error):
            raise
        reason = " ".join(str(error).split()).removeprefix("Invalid metadata in README.md. - ")
        raise ConfigError(f"hf:{repository}: the Hub refuses the card: {reason:.200}; check --license") from error
