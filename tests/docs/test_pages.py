"""The commands and the Python of the documentation's pages run as they stand there, or the page says why not."""

import re
import shlex
from pathlib import Path

import pytest
from page_blocks import EXECUTED, blocks, run_page

from facebones.cli.main import _parse
from facebones.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*(DOCS / f"{name}.md" for name in ("start", "howto", "faq", "publishing")),
         *sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("concepts/*.md"))]  # fmt: skip
# They train or measure.
LONG = ("start", "faq", "publishing", "cost", "compare", "reproduce", "distil", "gpus", "slurm")


def marked(page):
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_names_its_language_and_each_reason_is_one(page):
    for block in blocks(page):
        assert block.language, f"{page.name}:{block.line}: a block without a language is not executed"
        if block.marker in {"not run", "run with"}:
            assert block.language in EXECUTED, f"{page.name}:{block.line}: {block.language} is never run"
        if block.marker == "not run":
            assert len(block.words.split()) >= 3, f"{page.name}:{block.line}: say why it is not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_text_are_understood(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"`facebones ([^`]+)`", prose):
        try:
            _parse(shlex.split(line))
        except ConfigError as error:
            assert "required" in str(error), f"{page.name}: {line}: {error}"  # shortened: the rest is left out


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if any(block.executed for block in blocks(page))])
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)
