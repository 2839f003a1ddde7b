"""Plug-ins: modules of the user's that register backbones, heads, protocols or data formats.

A plug-in is named by `--import`, by `import:` in a recipe or study, or by an entry point of the group
`facebones.plugins` in an installed package. Importing it is all that happens: its decorators register what it offers.
"""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from facebones.errors import ConfigError, FaceBonesError

ENTRY_POINTS = "facebones.plugins"

_loaded: list[str] = []


def import_plugins(names: Iterable[str], where: str = "--import") -> None:
    """Import modules by name, or Python files by path; each once in a process.

    Args:
        names: such as "my_package.nets" or "my_net.py".
        where: how an error names the place that asked for them.

    Raises:
        ConfigError: no such module or file, or it raised while it was imported.
    """
    for name in names:
        key = str(Path(name).resolve()) if name.endswith(".py") else name
        if key in _loaded:
            continue
        try:
            _import_file(Path(key)) if name.endswith(".py") else importlib.import_module(name)
        except FaceBonesError as error:
            raise ConfigError(f"{where} {name}: {error}") from error
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{where} {name}: cannot be imported: {reason:.300}") from error
        _loaded.append(key)


def imported_plugins() -> list[str]:
    """What `import_plugins` has imported, in order, files by absolute path: what a child process has to import too."""
    return list(_loaded)


@cache
def import_entry_points() -> None:
    """Import the plug-ins of installed packages, once in a process; registries call it before they give up on a name.

    Raises:
        ConfigError: one raised while it was imported.
    """
    for point in entry_points(group=ENTRY_POINTS):
        import_plugins([point.value.partition(":")[0]], f"entry point {point.name}:")


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError("no such file")
    name = f"facebones_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
