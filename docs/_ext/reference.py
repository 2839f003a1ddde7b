"""Pages that are generated from the code while the site is built, and links that work on GitHub and in the site.

A page holds a line such as `<!-- generated: commands -->`; what `GENERATORS` names there takes its place. The text is
Markdown and is never saved, so it cannot be older than the code.
"""

import argparse
import ast
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx

import facebones
from facebones.backbones.catalogue import read_catalogue
from facebones.cli.main import COMMANDS, GROUPS, _build_parser
from facebones.heads.registry import HeadOptions, list_heads, lookup_head
from facebones.recipe_sections import SECTIONS
from facebones.reporting.words import markdown_table
from facebones.strict_yaml import LARGEST_INTEGER, LARGEST_NUMBER, limits_of
from facebones.study.launchers.options import LauncherOptions
from facebones.study.study import ProfileSettings, Study
from facebones.study.tuning import TuneSettings

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
REPOSITORY = "https://github.com/facebones/facebones"
MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"^!\[([^\]]*)\]\((\S+)\.svg\)$", re.MULTILINE)
ORPHAN = "---\norphan: true\n---\n\n"  # in no table of contents
# Classes that the public functions take and return, or that plug-ins derive from.
CLASSES = (
    "facebones.evaluation.models.Model",
    "facebones.statistics.metric.Metric",
    "facebones.statistics.metric.Interval",
    "facebones.reporting.results.Results",
    "facebones.profiling.conditions.Conditions",
    "facebones.evaluation.protocol.Protocol",
    "facebones.data.training_set.TrainingSet",
    "facebones.training.callbacks.Callback",
    "facebones.heads.partial_fc.Head",
)


# ----------------------------------------------------------------------------------------------------------- text


def escaped(text: str) -> str:
    """Plain text as Markdown of a table's cell: what is in backticks and options are code, all else is literal."""
    parts = re.split(r"(`[^`]*`|--[a-z][\w.-]*\w)", " ".join(text.split()))
    plain = [re.sub(r"([\\*_<>\[\]|$])", r"\\\1", part) for part in parts[::2]]
    words = [code(part.strip("`")) for part in parts[1::2]]
    return linked("".join(text for pair in zip(plain, [*words, ""], strict=True) for text in pair))


def linked(text: str) -> str:
    """Papers and pages of the documentation as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"\b(?:and|,) (\d{4}\.\d{5})(?!\])", r", [\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"doi (10\.\d+/[\w.]+\w)", r"[doi \1](https://doi.org/\1)", text)
    return re.sub(r"docs/(\w+)\\?\.md", r"[\1](../\1.md)", text)


def code(text: str) -> str:
    """Text as code in a cell of a table; nothing for no text."""
    return f"`{text}`".replace("|", r"\|") if text else ""


# ------------------------------------------------------------------------------------------------------- commands


def commands() -> Iterator[str]:
    """Every command with its usage, its options and its example."""
    parsers = dict(leaves(_build_parser()))
    for group, names in groupby(COMMANDS, key=lambda name: name.partition(" ")[0]):
        if group in GROUPS:
            yield f"## facebones {group}\n\n{GROUPS[group].capitalize()}.\n"
        for name in names:
            level = "###" if group in GROUPS else "##"
            yield f"{level} facebones {name}\n"
            yield from describe_command(parsers[name], name)


def leaves(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parsers of all commands, by their names."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield prefix, parser
    for group in groups:
        for name, child in group.choices.items():
            yield from leaves(child, f"{prefix} {name}".strip())


def describe_command(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """One command."""
    command = COMMANDS[name]
    formatter = argparse.HelpFormatter(parser.prog, width=92)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield f"{escaped(parser.description or '')}\n"
    yield f"```text\n{formatter.format_help().strip()}\n```\n"
    rows = [(code(invocation(action)), escaped(action.help or "")) for action in shown(parser)]
    if command.takes_recipe_fields:
        rows.append((code("--SECTION.FIELD VALUE"), "any [field of the recipe](recipe.md)"))
    yield markdown_table(("argument", "meaning"), rows)
    yield f"Example:\n\n```sh\n{command.example}\n```\n"


def shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that are no help and are not hidden, in the order of the help."""
    hidden = (argparse.SUPPRESS,)
    return [item for item in parser._actions if item.help not in hidden and not isinstance(item, argparse._HelpAction)]


def invocation(action: argparse.Action) -> str:
    """How an argument is written: `--data SET [SET ...]`."""
    formatter = argparse.HelpFormatter("")
    if not action.option_strings:
        return formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
    values = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    return f"{', '.join(action.option_strings)} {values}".strip()


# --------------------------------------------------------------------------------------------------------- fields


def field_rows(kind: type[Any], skip: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """Name, type, default, range and meaning of each field that was made by `setting`."""
    hints, defaults = get_type_hints(kind), kind()
    return [
        (code(item.name), type_name(hints[item.name]), default_text(getattr(defaults, item.name)),
         range_text(limits_of(item)), escaped(limits_of(item)["help"]))
        for item in dataclasses.fields(kind)
        if item.metadata and item.name not in skip and limits_of(item)["help"]
    ]  # fmt: skip


def type_name(hint: Any) -> str:
    """What YAML holds for a type."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(hint) or f"list of {names[hint.__args__[0]]}s".replace("texts", "text")


def default_text(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(f"{value:g}" if isinstance(value, float) else str(value)) if value != "" else "none"


def range_text(limits: Mapping[str, Any]) -> str:
    """The values that a field accepts."""
    if limits["choices"]:
        return ", ".join(map(code, limits["choices"]))
    if limits["form"][1]:
        return escaped(limits["form"][1])
    low = f"above {limits['above']:g}" if limits["above"] > -LARGEST_NUMBER else ""
    low = f"{limits['minimum']:g} or more" if limits["minimum"] > -LARGEST_NUMBER else low
    if limits["maximum"] in (LARGEST_INTEGER, LARGEST_NUMBER):
        return low
    return f"{low.removesuffix(' or more')} to {limits['maximum']:,}" if low else f"up to {limits['maximum']:,}"


FIELD_COLUMNS = ("field", "type", "default", "range", "meaning")


def recipe() -> Iterator[str]:
    """Every field of a recipe, by section; the options of heads are on the page of losses."""
    for name, kind in SECTIONS.items():
        yield f"## {name}\n\n{escaped((kind.__doc__ or '').partition(chr(10))[0])}\n"
        if name == "head":
            known = ", ".join(f"[`{head}`](losses.md#{head})" for head in list_heads())
            yield f"`name` is one of {known}, or a head of a plug-in. Each has options of its own; all have these:\n"
        yield markdown_table(FIELD_COLUMNS, field_rows(HeadOptions if name == "head" else kind))
    yield "## Recipes that come with the package\n"
    yield from shipped("recipes")


def study() -> Iterator[str]:
    """Every key of a study's file."""
    keys = [(code("import" if row[0] == "`imports`" else row[0].strip("`")), *row[1:]) for row in field_rows(Study)]
    keys += [
        (code("overrides"), "mapping", "none", "", "fields of the recipe (`section.field`) and their values"),
        (code("vary"), "mapping", "none", "", "[factors and levels](../comparing.md#varying-more-than-the-backbone)"),
        (code("tune"), "mapping", "none", "", "[below](#tune)"),
        (code("profile"), "true, false or mapping", "`true`", "", "[below](#profile)"),
    ]
    yield markdown_table(FIELD_COLUMNS, keys)
    yield f"## profile\n\n{escaped(ProfileSettings.__doc__ or '')}\n"
    yield markdown_table(FIELD_COLUMNS, field_rows(ProfileSettings, skip=("enabled",)))
    yield "## tune\n\nHow each backbone finds fields of its own, besides `space`, the values that trials choose from.\n"
    yield markdown_table(FIELD_COLUMNS, field_rows(TuneSettings))
    yield f"## launcher\n\nOptions of the command, `--launcher.NAME`. {escaped(LauncherOptions.__doc__ or '')}\n"
    yield markdown_table(FIELD_COLUMNS, field_rows(LauncherOptions))
    yield "## Studies that come with the package\n"
    yield from shipped("recipes/studies")


def shipped(folder: str) -> Iterator[str]:
    """The YAML files of a folder."""
    for path in sorted((ROOT / folder).glob("*.yaml")):
        yield f"### {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"


# ----------------------------------------------------------------------------------------------- models and losses


def models() -> Iterator[str]:
    """Every backbone by family, with its cost and its papers."""
    for family, members in groupby(read_catalogue(), key=lambda row: row["family"]):
        title, *paragraphs = docstring(f"facebones.backbones.{family}").split("\n\n")
        rows = [
            (code(row["name"]), f"{row['parameters'] / 1e6:,.2f} M", f"{row['macs'] / 1e6:,.1f} M",
             escaped(row["summary"]) + "".join(f"; also {code(alias)}" for alias in row["aliases"]))
            for row in members
        ]  # fmt: skip
        yield f"## {family}\n\n{escaped(title)}\n"
        yield markdown_table(("name", "parameters", "MACs", "what it is"), rows, right=(1, 2))
        yield from (f"{escaped(text)}\n" for text in paragraphs)


def docstring(module: str) -> str:
    """The docstring of a module, without importing it: some need extras."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def losses() -> Iterator[str]:
    """Every head with its formula, which docs/heads.md has, its paper and its options."""
    table = (DOCS / "heads.md").read_text(encoding="utf-8")
    formulas = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    for name in list_heads():
        entry = lookup_head(name)
        yield f"## {name}\n\n{escaped(entry.summary)}.\n"
        yield f"Logit of the true class, at the angle t: {formulas[name]}.\n"
        yield markdown_table(FIELD_COLUMNS, field_rows(entry.options))


# ------------------------------------------------------------------------------------------------------------ API


def api() -> Iterator[str]:
    """The public functions in the groups of docs/api.md, then the classes that they use."""
    for part in re.split(r"^## ", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        names = [name for name in re.findall(r"^### (\w+)$", part, re.MULTILINE) if name in facebones._API]
        yield f"## {part.partition(chr(10))[0]}\n"
        yield from (directive(f"autofunction:: facebones.{name}") for name in names)
    yield "## Classes\n"
    yield from (directive(f"autoclass:: {name}") for name in CLASSES)
    yield "## Errors\n"
    yield directive("automodule:: facebones.errors")


def directive(text: str) -> str:
    """A directive of reStructuredText, which docstrings need."""
    return f"```{{eval-rst}}\n.. {text}\n```\n"


GENERATORS: Mapping[str, Callable[[], Iterator[str]]] = {
    generator.__name__: generator for generator in (commands, recipe, study, models, losses, api)
}


# ---------------------------------------------------------------------------------------------------------- Sphinx


def generate(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put generated text in the place of its marker, and make links work that leave the folder of documentation."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md":
        text = MARKER.sub(lambda found: "\n".join(GENERATORS[found[1]]()), source[0])
        prose_and_code = FENCED.split(text)
        prose_and_code[::2] = [prose(path, part) for part in prose_and_code[::2]]
        alone = ORPHAN if path.match("studies/*/tables.md") else ""  # its study links to it
        source[0] = alone + "".join(prose_and_code)


def prose(page: Path, text: str) -> str:
    """Text outside of code, with links for the site and with the dark form of each picture that has one."""
    text = LINK.sub(lambda found: target(page, found), text)
    return PICTURE.sub(lambda found: both_forms(page, found), text)


def both_forms(page: Path, picture: re.Match[str]) -> str:
    """A picture twice, of which the theme shows one; GitHub shows the light one alone."""
    if not (page.parent / f"{picture[2]}_dark.svg").is_file():
        return picture[0]
    return f"{picture[0]}{{.only-light}}\n![{picture[1]}]({picture[2]}_dark.svg){{.only-dark}}"


def target(page: Path, link: re.Match[str]) -> str:
    """A link to a file of the repository outside of docs/ as GitHub's address; to a page of a report, as a plain file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    path, anchor = (page.parent / link[1]).resolve(), link[2] or ""
    if not path.exists():
        raise FileNotFoundError(f"{page}: links to {link[1]}, which is not there")
    if path.name == "report.html":
        return f"]({link[1]}){{.external}}"
    if path.is_relative_to(DOCS):
        return link[0]
    kind = "tree" if path.is_dir() else "blob"
    return f"]({REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor})"


def finish(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Give the captions of the sidebar, which are headings, the level that screen readers ask for; set dashes."""
    if navigation := context.get("furo_navigation_tree"):
        context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')
    if name == "reference/api":
        context["body"] = context["body"].replace(" -- ", " \N{EN DASH} ")


def copy_reports(app: Sphinx, error: Exception | None) -> None:
    """Put the reports of studies beside their pages: they open in the browser instead of being downloaded."""
    if error is None:
        for path in DOCS.glob("studies/*/report.html"):
            shutil.copyfile(path, Path(app.outdir) / path.relative_to(DOCS))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", generate)
    app.connect("html-page-context", finish, priority=900)  # the theme has made the sidebar by then
    app.connect("build-finished", copy_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
