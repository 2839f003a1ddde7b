"""Measure the source code: modules, lengths of files and functions, one-statement functions, cycles of packages.

python scripts/house.py [src/facebones]
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

LONGEST = 5  # files and functions that are listed


@dataclass(frozen=True)
class Function:
    """A function or method: where it is, its lines from `def` to its end, its statements after the docstring."""

    place: str
    lines: int
    statements: int


def functions(tree: ast.AST, place: str) -> Iterator[Function]:
    """All functions of a module, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            statements = len(node.body) - (ast.get_docstring(node, clean=False) is not None)
            yield Function(f"{place}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1, statements)


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names that a module imports anywhere, except under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = ".".join(filter(None, [above if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from imported_modules(node, package)


def package_imports(root: Path, trees: dict[Path, ast.AST]) -> dict[str, set[str]]:
    """Each package or module at the top level, and the others of these that it imports."""
    units = {path.name for path in root.iterdir() if (path / "__init__.py").exists()}
    units |= {path.stem for path in root.glob("*.py") if path.stem != "__init__"}
    edges: dict[str, set[str]] = {unit: set() for unit in units}
    for path, tree in trees.items():
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue
        package = ".".join([root.name, *parts[:-1]])
        for name in imported_modules(tree, package):
            first, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if first == root.name and target in units and target != parts[0]:
                edges[parts[0]].add(target)
    return edges


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of packages that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for name in edges[todo.pop()] - found:
                found.add(name)
                todo.append(name)
        return found

    reach = {name: reached(name) for name in edges}
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in edges if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def spread(numbers: list[int]) -> str:
    """Median, 90th percentile and maximum."""
    return f"median {median(numbers):.0f}, p90 {quantiles(numbers, n=10)[-1]:.0f}, longest {max(numbers)}"


def main(root: Path) -> None:
    """Print the measurements of one package."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))}
    trees: dict[Path, ast.AST] = {path: ast.parse(text) for path, text in texts.items()}
    files = {str(path.relative_to(root)): text.count("\n") for path, text in texts.items()}
    found = [item for path, tree in trees.items() for item in functions(tree, str(path.relative_to(root)))]
    single = sum(item.statements == 1 for item in found) / len(found)
    print(f"modules: {len(files)}, of which {sum(name.endswith('__init__.py') for name in files)} are __init__.py")
    print(f"lines: {sum(files.values())}")
    print(f"lines per file: {spread(list(files.values()))}; over 500: {sum(n > 500 for n in files.values())}")
    print(f"functions: {len(found)}; {single:.0%} hold one statement")
    lengths = [item.lines for item in found]
    print(f"lines per function: {spread(lengths)}; over 60: {sum(n > 60 for n in lengths)}")
    for name, lines in sorted(files.items(), key=lambda item: -item[1])[:LONGEST]:
        print(f"  {lines:4} lines  {name}")
    for item in sorted(found, key=lambda item: -item.lines)[:LONGEST]:
        print(f"  {item.lines:4} lines  {item.place}")
    groups = cycles(package_imports(root, trees))
    print("cycles of packages: " + ("; ".join(" <-> ".join(group) for group in groups) or "none"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "src/facebones"))
