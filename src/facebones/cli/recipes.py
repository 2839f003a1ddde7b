"""Commands that list the recipes and studies that come with the package."""

import argparse

from facebones.cli.options import Arguments, Command, json_option, print_json


def _recipes(arguments: Arguments) -> None:
    _list(arguments, "recipe", ".")


def _studies(arguments: Arguments) -> None:
    _list(arguments, "study", "studies")


def _list(arguments: Arguments, kind: str, folder: str) -> None:
    from facebones.strict_yaml import shipped_files

    rows = [{"name": name, "summary": summary(path.read_text())} for name, path in shipped_files(folder).items()]
    if arguments.json:
        print_json(rows)
        return
    from facebones.reporting.console import print_table

    print_table((kind, "what it is"), [(row["name"], row["summary"]) for row in rows])


def summary(text: str) -> str:
    r"""The first line of a YAML file's first comment.

    >>> summary("# Small sets.\n# More.\nbackbone: {}")
    'Small sets.'
    """
    return text.partition("\n")[0].lstrip("# ")


def _options(parser: argparse.ArgumentParser) -> None:
    json_option(parser)


COMMANDS = {
    "recipes": Command("list the recipes for `train`", "facebones recipes", _options, _recipes, takes_plugins=False),
    "studies": Command("list the studies for `compare`", "facebones studies", _options, _studies, takes_plugins=False),
}
