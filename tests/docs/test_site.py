"""The documentation site: it builds without a warning, what is generated is complete, and its pages are usable."""

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium
from playwright.sync_api import Error

import facebones
from facebones.backbones.catalogue import read_catalogue
from facebones.cli.main import COMMANDS
from facebones.heads import list_heads
from facebones.recipe import field_help

ROOT = Path(__file__).parents[2]
# One page of each kind: text, pictures, wide tables, generated tables, docstrings, a notebook, the search.
KINDS = ("index", "faq", "concepts/margin", "trust", "reference/commands", "reference/recipe", "reference/models",
         "reference/api", "notebooks/reading_results", "search")  # fmt: skip
PHONE = {"width": 390, "height": 844}
# An element that sticks out of the window and whose parents do not scroll.
STICKS_OUT = """() => [...document.querySelectorAll("article *")].filter(element => {
    if (element.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let box = element; box; box = box.parentElement)
        if (["auto", "scroll", "hidden"].includes(getComputedStyle(box).overflowX)) return false;
    return true;
}).map(element => element.outerHTML.slice(0, 120))"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning fails the build."""
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    command = [
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        f"{folder}/trees",
        ROOT / "docs",
        folder / "html",
    ]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    yield folder / "html"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def browser():
    with ExitStack() as stack:
        try:
            found = stack.enter_context(chromium())
        except Error as error:
            pytest.fail(f"no browser to look at the site with: `make test` installs one ({error})", pytrace=False)
        yield found


@pytest.fixture
def visit(site, browser):
    """Open a page of the site: `visit("faq", scheme="dark")`."""
    with ExitStack() as stack:

        def opened(name, *, scheme="light", size=None, query=""):
            context = browser.new_context(color_scheme=scheme, viewport=size or {"width": 1400, "height": 900})
            stack.callback(context.close)
            page = context.new_page()
            page.goto((site / f"{name}.html").as_uri() + query)
            return page

        yield opened


class Page(HTMLParser):
    """The links, the anchors and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.text = [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get("id"))
        if tag in {"a", "img", "link", "script"} and (link := found.get("href") or found.get("src")):
            self.links.append(link)

    def handle_data(self, data):
        self.text += data


def test_every_link_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "report.html"}
    assert len(pages) > 40
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {link}"


def test_no_link_leads_to_a_page_of_the_repository_that_the_site_has(site):
    for path in site.rglob("*.html"):
        if path.name != "report.html":
            links = [link for link in Page(path).links if "/blob/main/docs/" in link]
            assert all("?plain=true" in link for link in links), f"{path.relative_to(site)}: {links}"  # view this page


def test_the_reference_is_complete(site):
    text = {
        name: Page(site / "reference" / f"{name}.html").text
        for name in ("commands", "recipe", "models", "losses", "api")
    }
    fields = text["recipe"] + text["losses"]
    missing = [name for name in COMMANDS if f"facebones {name}" not in text["commands"]]
    missing += [name for name, _ in field_help() if name.partition(".")[2] not in fields]
    missing += [row["name"] for row in read_catalogue() if row["name"] not in text["models"]]
    missing += [name for name in list_heads() if name not in text["losses"]]
    missing += [name for name in facebones._API if f"{name}(" not in text["api"]]
    assert missing == []


def serious(page, **options):
    """What axe finds of some weight."""
    found = Axe().run(page, options=options).response["violations"]
    weighty = [rule for rule in found if rule["impact"] in {"serious", "critical"}]
    return [(rule["id"], node["html"][:200]) for rule in weighty for node in rule["nodes"]]


@pytest.mark.parametrize("name", KINDS)
def test_the_page_is_accessible(visit, name):
    page = visit(name)
    assert serious(page) == []
    page.emulate_media(color_scheme="dark")
    assert serious(page, runOnly=["color-contrast"]) == []


def test_every_page_fits_a_phone(site, visit):
    for path in sorted(site.rglob("*.html")):
        if path.name != "report.html":
            name = path.relative_to(site).with_suffix("").as_posix()
            page = visit(name, size=PHONE)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
            assert page.evaluate(STICKS_OUT) == [], name
            page.close()


def test_a_dark_page_is_dark_and_has_dark_pictures(visit):
    page = visit("concepts/margin", scheme="dark")
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 40
    shown = [image.get_attribute("src") for image in page.locator("article img").all() if image.is_visible()]
    assert shown and all(name.endswith("_dark.svg") for name in shown)


def test_the_search_finds_a_page(visit):
    page = visit("search", query="?q=threshold")
    page.locator("#search-results li a").first.wait_for()
    assert any("Trust" in text for text in page.locator("#search-results li a").all_inner_texts())
