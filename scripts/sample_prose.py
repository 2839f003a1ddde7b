"""Print random passages of docstrings and documentation pages, of this version and of an earlier one.

python scripts/sample_prose.py --seed 0 --against REV [--count 10]
"""

import argparse
import ast
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORTEST, LONGEST = 80, 800  # characters of a passage


def git(*words: str) -> str:
    """The output of a git command in this checkout."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def docstrings(text: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a Markdown page, without code, tables and headings."""
    for number, part in enumerate(text.split("```")):
        if number % 2 == 0:
            yield from (block for block in part.split("\n\n") if block.strip()[:1] not in {"", "|", "#", "<"})


def passages(revision: str) -> list[tuple[str, str]]:
    """Each passage of a revision with its file; an empty revision is the working tree."""
    listed = git("ls-tree", "-r", "--name-only", revision) if revision else git("ls-files")
    found = []
    for name in listed.splitlines():
        page = name == "README.md" or (name.startswith("docs/") and name.endswith(".md"))
        if not page and not (name.startswith("src/") and name.endswith(".py")):
            continue
        if not revision and not (ROOT / name).exists():
            continue
        text = git("show", f"{revision}:{name}") if revision else (ROOT / name).read_text(encoding="utf-8")
        parts = paragraphs(text) if page else docstrings(text)
        found += [(name, part.strip()) for part in parts if SHORTEST <= len(part.strip()) <= LONGEST]
    return found


def main(seed: int, against: str, count: int) -> None:
    """Print the passages of both versions, drawn with one seed."""
    for title, revision in ((f"before ({against})", against), ("after", "")):
        print(f"\n===== {title}")
        for name, text in random.Random(seed).sample(passages(revision), count):
            print(f"\n--- {name}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="of the sample")
    parser.add_argument("--against", required=True, metavar="REV", help="the earlier version, such as v0.1.0")
    parser.add_argument("--count", type=int, default=10, help="passages of each version")
    main(**vars(parser.parse_args()))
