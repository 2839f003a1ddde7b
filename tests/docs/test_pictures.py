"""The pictures of the concepts are those that the script draws today."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "concepts"


def words(path):
    """Labels, ticks and numbers of a picture; its lines may differ by rounding from machine to machine."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))


def test_the_pictures_are_up_to_date(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_concepts", ROOT / "scripts" / "draw_concepts.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.draw(tmp_path)
    drawn = {path.name: words(path) for path in tmp_path.iterdir()}
    assert all(len(labels) > 3 for labels in drawn.values())
    assert drawn == {path.name: words(path) for path in KEPT.glob("*.svg")}, "run: python scripts/draw_concepts.py"


def test_each_picture_is_shown_with_a_description():
    shown = {}
    for page in KEPT.glob("*.md"):
        for text, name in re.findall(r"^!\[([^\]]*)\]\((\w+\.svg)\)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            shown[name] = text
    assert {*shown} == {path.name for path in KEPT.glob("*.svg") if not path.stem.endswith("_dark")}
    assert all(len(text) > 30 for text in shown.values())
