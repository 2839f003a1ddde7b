"""The blocks of a page in Markdown, and how each is executed: what the page says of it stands in a comment before it.

<!-- not run: REASON -->        the block is not executed
<!-- run with: OPTIONS -->      its facebones commands get these options too, so that they end in seconds
<!-- file: NAME -->             the block is written into a file of this name
<!-- setup                      lines of a shell that are not shown, such as those that make the data
LINES
-->
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from facebones.cli.main import main

PART = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$|"
    r"(?:^<!-- (?P<marker>not run|run with|file): (?P<words>.+?) -->\n+)?"
    r"^(?P<fence>```+)(?P<language>\S*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
EXECUTED = ("sh", "python")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a page.

    Attributes:
        line: of the page, where it begins.
        language: "sh", "python", ...; empty where the page names none.
        code: its text.
        marker: "not run", "run with", "file", or empty.
        words: of the marker.
    """

    line: int
    language: str
    code: str
    marker: str = ""
    words: str = ""

    @property
    def executed(self) -> bool:
        return self.language in EXECUTED and self.marker != "not run"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order; those of setup are shell."""
    text, found = page.read_text(encoding="utf-8"), []
    for part in PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["setup"] is not None:
            found.append(Block(line=line, language="sh", code=part["setup"]))
        else:
            marked = {"marker": part["marker"] or "", "words": part["words"] or ""}
            found.append(Block(line=line, language=part["language"], code=part["code"], **marked))
    return found


def run_page(page: Path, folder: Path) -> None:
    """Execute the blocks of a page in order, in a folder that is the current one; Python shares one namespace."""
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if block.marker == "file":
            (folder / block.words).write_text(block.code, encoding="utf-8")
        elif block.executed and block.language == "python":
            exec(compile(block.code, f"{page.name}:{block.line}", "exec"), namespace)
        elif block.executed:
            run_lines(block, f"{page.name}:{block.line}")


def run_lines(block: Block, where: str) -> None:
    """Run the lines of a shell; facebones in this process, which knows the package already."""
    more = shlex.split(block.words) if block.marker == "run with" else []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["facebones"]:
            status = main([*words[1:], *more])
            assert status == 0, f"{where}: {line}: ended with {status}"
        elif words:
            subprocess.run(["bash", "-c", line], check=True)
