"""Which commit of this package runs, where it runs from a checkout: versions are the same for months."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str | None:
    """The commit, with "-dirty" where files differ from it; None for an installed package, or without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 (our words)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
