"""Plug-ins: the user's own modules that register backbones, heads, protocols, data formats or callbacks.

A plug-in is named by `--import`, by `import:` in a recipe or study, or by an entry point of the group
`facebones.plugins` in an installed package. It is imported, and its decorators register what it offers.
"""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from facebones.errors import ConfigError, FaceBonesError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

ENTRY_POINTS = "facebones.plugins"

_imported: list[str] = []


def import_plugins(names: Sequence[str], where: str = "--import", *, listed_in: Path | None = None) -> None:
    """Import modules by name, or Python files by path. A plug-in is imported once per process.

    Args:
        names: such as "my_package.nets" or "my_net.py".
        where: names the origin of `names` in errors.
        listed_in: the YAML file that lists them, which may be a stranger's: one note on stderr names it and the modules
            before their code runs.

    Raises:
        ConfigError: there is no such module or file, or importing it failed.
    """
    if "" in names:
        raise ConfigError(f"{where}: an empty name; give a module or a Python file")
    keys = [str(Path(name).resolve()) if name.endswith(".py") else name for name in names]
    new = {key: None for key in keys if key not in _imported}
    if new and listed_in is not None:
        from facebones.system.progress import say

        say(f"note: {listed_in} imports {', '.join(new)}: this runs their code")
    for name in new:
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except FaceBonesError as error:
            raise ConfigError(f"{where} {name}: {error}") from error
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{where} {name}: cannot be imported: {reason:.300}") from error
        _imported.append(name)


def imported_plugins() -> list[str]:
    """The plug-ins imported so far, in order, files as absolute paths: a child process has to import the same ones."""
    return list(_imported)


def has_plugins() -> bool:
    """Whether a plug-in was imported or an installed package offers one; nothing is imported to find out."""
    return bool(imported_plugins() or _entry_points())


def raised_in_plugin(error: BaseException) -> str | None:
    """File and line of the plug-in whose code raised an error, the innermost; None if no plug-in took part."""
    import traceback

    files = {getattr(sys.modules.get(name), "__file__", None) or name for name in _imported}
    found = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{found[-1].filename}, line {found[-1].lineno}" if found else None


@cache
def import_entry_points() -> None:
    """Import the plug-ins of installed packages, once per process. Registries call this before they refuse a name.

    Raises:
        ConfigError: importing one of them failed.
    """
    for point in _entry_points():
        import_plugins([point.value.partition(":")[0]], f"entry point {point.name}:")


def _entry_points() -> "EntryPoints":
    from importlib.metadata import entry_points  # here: a third of the time of `facebones --help`

    return entry_points(group=ENTRY_POINTS)


def _import_file(path: Path) -> None:
    """Import a file under a module name that is the same in every process, so that its classes can be pickled."""
    if not path.is_file():
        raise ConfigError("no such file")
    name = f"facebones_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look modules up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
