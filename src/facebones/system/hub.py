"""Files of the Hugging Face Hub: addresses such as hf:owner/name@revision, downloads into its cache, and its errors.

The client is the package `huggingface_hub` (extra `hub`). It is imported where an address is used. Its environment
variables hold here too: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from facebones.errors import CheckpointError, ConfigError, FaceBonesError, MissingExtraError, RunError, first_line

PREFIX = "hf:"
REPOSITORY = re.compile(r"(?=.{3,200}$)[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"\w[\w./+-]{0,199}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# How the Hub's cache names the folder of a model; no name of a repository holds "--".
CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
NO_ACCESS = 401, 403
NO_CONNECTION = "ConnectError", "ConnectTimeout", "ProxyError"  # of the HTTP client, which versions change


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A repository of the Hub, at a revision.

    Attributes:
        repository: "owner/name".
        revision: a branch, a tag or a commit; None: the newest of the main branch.

    >>> HubAddress(repository="ann/mbf", revision="v1").name
    'mbf'
    """

    repository: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """Name of the repository, without its owner."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(model: Path | str) -> bool:
    """Whether a model is named by its place on the Hub.

    >>> is_hub_address("hf:ann/mbf"), is_hub_address("runs/mbf")
    (True, False)
    """
    return str(model).startswith(PREFIX)


def parse_address(text: Path | str) -> HubAddress:
    """The address that a text such as hf:owner/name@revision names.

    Raises:
        ConfigError: it is no such text.

    >>> parse_address("hf:ann/mbf@v1")
    HubAddress(repository='ann/mbf', revision='v1')
    """
    repository, at, revision = str(text).removeprefix(PREFIX).partition("@")
    if at and (not REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(f"{text!s:.200}: no revision after '@'; give a branch, a tag or a commit")
    return HubAddress(repository=checked_repository(repository, str(text)), revision=revision or None)


def checked_repository(repository: str, where: str = "") -> str:
    """A name of a repository of the Hub.

    Args:
        repository: "owner/name".
        where: what an error begins with; the name itself by default.

    Raises:
        ConfigError: it is no such name.
    """
    if not REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigError(
            f"{where or repository:.200}: no repository of the Hugging Face Hub; give OWNER/NAME, of letters, digits,"
            " '-', '_' and '.'"
        )
    return repository


def origin(path: Path) -> str:
    """Where a file is from: its address with the commit if it lies in the Hub's cache, else its path.

    >>> commit = "0123456789abcdef0123456789abcdef01234567"
    >>> origin(Path("hub/models--ann--mbf/snapshots", commit, "model.safetensors"))
    'hf:ann/mbf@0123456789abcdef0123456789abcdef01234567'
    >>> origin(Path("runs/mbf/model.safetensors"))
    'runs/mbf/model.safetensors'
    """
    match path.parts:
        case [*_, folder, "snapshots", commit, _] if COMMIT.fullmatch(commit) and (found := CACHED.fullmatch(folder)):
            return str(HubAddress(repository=f"{found['owner']}/{found['name']}", revision=commit))
    return str(path)


def removable(path: Path) -> Path:
    """The folder to remove so that a damaged file is fetched again: in the Hub's cache, that of the repository.

    >>> removable(Path("runs/mbf/model.safetensors"))
    PosixPath('runs/mbf')
    """
    return path.parents[2] if is_hub_address(origin(path)) else path.parent


def pinned(address: HubAddress, path: Path) -> HubAddress:
    """The address at the commit that a downloaded file is of."""
    return replace(address, revision=path.parent.name)


def download(address: HubAddress, file: str, *, most: int, size: int | None = None) -> Path:
    """Fetch a file into the Hub's cache, unless it is there; without a network, the cached file is taken.

    Args:
        address: of the repository.
        file: its name there.
        most: bytes that it may have.
        size: bytes that it must have; None: any up to `most`.

    Returns:
        its path in the cache, in a folder that the commit gives its name.

    Raises:
        CheckpointError: no such repository, revision or file, no access, or another size.
        RunError: the Hub cannot be reached, or the download was cut short.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    hub = client()
    with hub_errors(address, file):
        found = hub.hf_hub_download(address.repository, file, revision=address.revision, dry_run=True)
        if found.file_size is None or found.file_size > most or size not in (None, found.file_size):
            wanted = f"up to {most:,}" if size is None else f"{size:,}"
            raise CheckpointError(f"{address}: {file} has {found.file_size or 0:,} bytes instead of {wanted}")
        # By the name as given, which the cache then knows without a network.
        return Path(hub.hf_hub_download(address.repository, file, revision=address.revision))


def client() -> Any:
    """The module `huggingface_hub`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("hub") from error
    if "HF_HUB_VERBOSITY" not in os.environ:
        # Else each of its retries is a warning before our one line.
        logging.getLogger(huggingface_hub.__name__).setLevel(logging.ERROR)
    return huggingface_hub


@contextmanager
def hub_errors(address: HubAddress, file: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises within the block into an error of one line.

    Raises:
        CheckpointError: the Hub has answered, and has no such thing or does not give it.
        RunError: no answer, or half of one.
    """
    try:
        yield
    except FaceBonesError:
        raise
    except Exception as error:
        if (told := _in_words(error, address, file)) is None:
            raise
        raise told from error


def _in_words(error: Exception, address: HubAddress, file: str) -> FaceBonesError | None:
    """The error to show in place of one of `huggingface_hub`; None for one that is not the Hub's."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.GatedRepoError():
            return CheckpointError(
                f"{address}: access is given on request; ask for it on the repository's page, then log in by `hf auth"
                " login`"
            )
        case errors.RepositoryNotFoundError():
            return CheckpointError(
                f"{address}: no such repository, or a private one that you have no access to; check the name, and log"
                " in by `hf auth login` or set HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return CheckpointError(f"{address}: the repository has no such revision; give a branch, a tag or a commit")
        case errors.LocalEntryNotFoundError():
            return _unreachable(error, address, file)
        case errors.EntryNotFoundError():
            return CheckpointError(
                f"{address}: no facebones model: the repository holds no {file}; `facebones push` writes such a"
                " repository"
            )
        case errors.HfHubHTTPError() if status in NO_ACCESS:
            return CheckpointError(
                f"{address}: access refused ({status}); log in by `hf auth login`, or set HF_TOKEN to a token that may"
                " do this"
            )
        case errors.HFValidationError():
            return ConfigError(f"{address}: no name of a repository: {first_line(error):.160}")
        case errors.HfHubHTTPError():
            return RunError(f"{address}: the Hub answered {first_line(error):.200}; try again later")
        case errors.OfflineModeIsEnabled():
            return RunError(f"{address}: HF_HUB_OFFLINE forbids connections; unset it")
    if type(error).__name__ in NO_CONNECTION:
        return RunError(f"{address}: the Hub cannot be reached: {first_line(error):.160}; check the network")
    http_error = errors.HfHubHTTPError.__bases__[0]  # of the HTTP client that this version uses
    cut_short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    # RuntimeError: of an upload, whose cause says why, and of the transfer protocol Xet.
    if cut_short or isinstance(error, http_error | RuntimeError):
        return RunError(
            f"{address}: {file} was not transferred as a whole: {first_line(error.__cause__ or error):.160}; check the"
            " network, and run the same command again"
        )
    if isinstance(error, OSError):
        return RunError(
            f"{address}: {file} cannot be kept in the cache: {error.strerror or first_line(error):.160}; free space, or"
            " set HF_HOME to another folder"
        )
    return None


def _unreachable(error: Exception, address: HubAddress, file: str) -> FaceBonesError:
    """The Hub gave no answer, and the cache lacks the file."""
    cause = error.__cause__ or error
    if type(cause).__name__ == "OfflineModeIsEnabled":
        return RunError(
            f"{address}: {file} is not in the cache, and HF_HUB_OFFLINE forbids connections; unset it, or fetch the"
            " model before"
        )
    return RunError(
        f"{address}: {file} is not in the cache, and the Hub cannot be reached: {first_line(cause):.160}; check the"
        " network"
    )
