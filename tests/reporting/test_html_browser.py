"""The interactive page as a reader meets it: in a real browser, with mouse, keyboard, phone and paper."""

import csv
import re
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium
from playwright.sync_api import Error, expect

from facebones.reporting.answer import Answer
from facebones.reporting.face_pairs import FacePair, ModelFaces, SetFaces, _data_url
from facebones.reporting.page import page_text, save_page
from facebones.system.number_format import rounded

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 700}

# Indices of the backbones that each plot shows, by their traces.
SHOWN = """() => [...document.querySelectorAll(".plot")].map(
    plot => [...new Set(plot.data.map(trace => trace.meta).filter(Number.isInteger))].sort())"""
# Of each plot the sizes of what is drawn for a backbone.
DRAWN = """() => [...document.querySelectorAll(".plot")].map(plot => {
    const traces = [...plot.querySelectorAll("svg .scatterlayer .trace")];
    return traces.map(trace => trace.getBoundingClientRect()).map(box => Math.max(box.width, box.height));
})"""
# Where the first point of a backbone's trace is in the window.
POINT = """(plot, model) => {
    const trace = plot.data.find(one => one.meta === model), {xaxis, yaxis} = plot._fullLayout;
    const box = plot.getBoundingClientRect(), last = trace.x.length - 1;
    return [box.left + xaxis._offset + xaxis.d2p(trace.x[last]), box.top + yaxis._offset + yaxis.d2p(trace.y[last])];
}"""
# Contrast of each look with the surface it stands on (WCAG 2, relative luminance).
CONTRASTS = """() => [...document.querySelectorAll(".chip")].map(chip => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const parts = [getComputedStyle(chip).backgroundColor, getComputedStyle(chip.querySelector(".look")).color];
    const [low, high] = parts.map(light).sort((a, b) => a - b);
    return high / low;
})"""
COLOURS = """() => [getComputedStyle(document.body).backgroundColor,
    ...[...document.querySelectorAll(".plot .main-svg:first-child")].map(paper => paper.style.background)]"""


@pytest.fixture(scope="module")
def browser():
    with ExitStack() as stack:
        try:
            found = stack.enter_context(chromium())
        except Error as error:
            pytest.fail(f"no browser to look at the page with: `make test` installs one ({error})", pytrace=False)
        yield found


def test_the_page_rounds_as_the_tables_do(browser):
    script = resources.files("facebones.reporting").joinpath("page_assets/report.js").read_text()
    source = re.search(r"const rounded = (.*?\n  \});", script, re.DOTALL)[1]
    values = [count / 8 for count in range(1, 800, 9)] + [66.62499999999999, 66.635, -0.125, 1e-9, 0.0, 100.0]
    page = browser.new_page()
    found = page.evaluate(f"values => {{ const rounded = {source}; return values.map(one => rounded(one)); }}", values)
    page.close()
    assert found == [rounded(value) for value in values]


@pytest.fixture(scope="module")
def address(page_results, page_tables, tmp_path_factory):
    """Of the page of seven backbones, one with a name that Plotly would read as HTML."""
    results = page_results(["alpha", "beta", "<b>%{x}</b>", *(f"backbone_{number}" for number in range(4))])
    path = tmp_path_factory.mktemp("page") / "report.html"
    answer = Answer(sentences=["Take alpha."], rules=["At 5 %."])
    overview, runs = page_tables(results)
    tuning = replace(runs, key="tuning", title="Tuning", section="tuning")
    trials = replace(runs, key="tuning_trials", title="All trials", section="tuning", folded=True)
    save_page(page_text(results, [overview, runs, tuning, trials], answer, faces_of(results)), path)
    return path.as_uri()


def faces_of(results):
    """The worst pairs of the first two backbones on a set, as grey images."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 112, 112, 3), np.uint8)
    pairs = [
        FacePair(number=1000 + place, score=0.5, is_wrong=place < 2, images=(_data_url(one), _data_url(one)))
        for place, one in enumerate(noise)
    ]
    models = [
        ModelFaces(place=place, run=results.runs[0].name, errors=(2, 0), impostors=pairs[:6], genuine=pairs[6:12])
        for place in (0, 1)
    ]
    known = {"file": Path("lfw.bin"), "pairs": 6000, "measure": "accuracy", "chosen_of": 7}
    return [SetFaces(title="lfw", models=models, **known)]


@pytest.fixture(scope="module")
def many(page_results, page_tables, tmp_path_factory):
    """Address of the page of fourteen backbones with long names."""
    results = page_results([f"a_backbone_with_a_long_name_{number:02}" for number in range(14)], seeds=1)
    path = tmp_path_factory.mktemp("page") / "many.html"
    answer = Answer(sentences=["Take any."], rules=[])
    save_page(page_text(results, page_tables(results), answer), path)
    return path.as_uri()


@pytest.fixture
def visit(browser, address, many):
    """Open the page; at the end it must have said nothing on the console and asked for nothing but itself."""
    contexts, complaints = [], []

    def allow(route):
        if route.request.url in (address, many):
            route.continue_()
        else:
            complaints.append(f"request: {route.request.url}")
            route.abort()

    def open_page(address=address, *, unfolded=True, **options):
        context = browser.new_context(**{"viewport": DESK} | options)
        contexts.append(context)
        page = context.new_page()
        page.route("**/*", allow)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.goto(address)
        if unfolded:
            page.evaluate("for (const part of document.querySelectorAll('.fold')) part.open = true")
            expect(page.locator(".plot:not(.js-plotly-plot)")).to_have_count(0, timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def tab_to(page, selector, most=80):
    """Press Tab until an element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{selector} is not reached by {most} Tabs")


def serious(page):
    """What axe finds of some weight."""
    found = Axe().run(page).response["violations"]
    return [(rule["id"], node["html"]) for rule in found for node in rule["nodes"] if rule["impact"] in WEIGHTY]


WEIGHTY = ("serious", "critical")


def test_every_plot_is_drawn_and_described(visit):
    page = visit()
    drawn = page.evaluate(DRAWN)
    assert len(drawn) == page.locator("figure .plot").count()
    assert all(sizes and min(sizes) > 1 for sizes in drawn), drawn
    for label in page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.getAttribute('aria-label'))"):
        assert re.search(r"[Bb]est|7 backbones", label)
    assert "alpha" in page.locator("#cost figcaption").inner_text()


def test_switch_and_click_hide_a_model_everywhere(visit):
    page = visit()
    everyone = list(range(7))
    switches = page.locator(".chip input")
    assert all(shown == everyone for shown in page.evaluate(SHOWN))
    switches.nth(1).click()
    assert all(shown == [0, *everyone[2:]] for shown in page.evaluate(SHOWN))
    assert page.locator("tr.off").count() == 7  # in the overview, and its two runs in three tables
    assert page.locator(".heat [data-model='1']:visible").count() == 0
    for key, model in (("cost", 3), ("roc0", 4)):
        plot = page.locator(f".plot[data-key={key}]")
        plot.scroll_into_view_if_needed()
        page.mouse.move(*plot.evaluate(POINT, model))
        page.mouse.click(*plot.evaluate(POINT, model))
    assert all(not {1, 3} & set(shown) and len(shown) == 4 for shown in page.evaluate(SHOWN))
    assert not switches.nth(3).is_checked()
    page.locator("#all").click()
    assert all(shown == everyone for shown in page.evaluate(SHOWN))
    page.locator("#none").click()
    assert not any(page.evaluate(SHOWN))


def test_a_hostile_name_is_shown_as_it_stands_on_hovering(visit):
    page = visit()
    plot = page.locator(".plot[data-key=cost]")
    plot.scroll_into_view_if_needed()
    page.mouse.move(*plot.evaluate(POINT, 2))
    page.locator(".hoverlayer .hovertext").wait_for()
    assert "<b>%{x}</b>" in page.locator(".hoverlayer .hovertext").text_content()
    assert "<b>%{x}</b>" in plot.locator(".textpoint").nth(2).text_content()


def test_selections_change_the_plots(visit):
    page = visit()
    plot = page.locator(".plot[data-key=cost]")
    assert plot.evaluate("plot => plot._fullLayout.xaxis.type") == "log"
    page.locator("#cost-metric").select_option(label="faces 1:N Rank-1")
    page.locator("#cost-axis").select_option(label="parameters")
    page.locator("#cost-log").uncheck()
    assert plot.evaluate("plot => plot._fullLayout.xaxis.type") == "linear"
    assert plot.evaluate("plot => plot.data.find(one => one.meta === 6).x[0]") == 1000
    assert "faces 1:N Rank-1 against parameters" in page.locator("#cost figcaption").inner_text()
    page.locator("#heat-metric").select_option(label="faces 1:N Rank-1")
    assert page.locator(".heat:visible h3").all_inner_texts() == ["faces 1:N Rank-1"]
    for place, button in enumerate(page.locator(".copy").all()):
        button.click()
        expect(page.locator(".copied").nth(place)).not_to_be_empty()


def test_sets_curves_and_tables_are_folded_and_a_link_opens_one(visit, address):
    page = visit(unfolded=False)
    assert page.locator("#roc .plot:visible").count() == page.locator("#training .plot:visible").count() == 1
    assert page.locator("#tables .scroll:visible").count() == 0
    folded = page.locator("#training .fold").nth(1)
    assert folded.locator(".js-plotly-plot").count() == 0  # it costs nothing yet
    folded.locator("summary").click()
    expect(folded.locator(".plot")).to_be_visible()
    assert folded.locator(".main-svg").first.bounding_box()["width"] > 500
    page.evaluate("location.hash = document.querySelector('#tables h3').id")
    expect(page.locator("#tables .scroll").first).to_be_visible()


def test_the_answer_stands_beside_the_plot_and_names_do_not_cover_each_other(visit, many):
    page = visit(many, viewport={"width": 1400, "height": 900})
    answer, cost = (page.locator(part).bounding_box() for part in ("#answer", "#cost"))
    assert answer["y"] == cost["y"] and answer["x"] + answer["width"] < cost["x"]
    assert page.evaluate("document.documentElement.scrollHeight") < 20_000
    boxes = [name.bounding_box() for name in page.locator("[data-key=cost] .textpoint text").all()]
    boxes = [box for box in boxes if box and box["width"]]
    assert len(boxes) >= 7
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
            down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
            assert across < 2 or down < 2


def test_a_name_without_room_beside_its_mark_crosses_lines_instead_of_being_left_out(page_results, browser, tmp_path):
    results = page_results(["a_network_with_a_name", "another_with_a_longer_name", "the_last_of_three_at_the_edge"])
    save_page(page_text(results, [], Answer(sentences=["Take any."], rules=["At 5 %."])), tmp_path / "report.html")
    for viewport in (DESK, PHONE):
        page = browser.new_page(viewport=viewport)
        page.goto((tmp_path / "report.html").as_uri())
        page.locator("[data-key=cost] .textpoint").first.wait_for()
        names = page.locator("[data-key=cost] .textpoint").all_text_contents()
        page.close()
        assert sorted(name.strip() for name in names) == sorted(results.backbones), viewport


def test_the_plot_and_the_tables_are_saved(visit, tmp_path):
    page = visit()
    with page.expect_download() as download:
        page.locator("#overview .save").click()
    with download.value.path().open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert download.value.suggested_filename == "at_a_glance.csv"
    assert len(rows) == 7 and rows[0]["backbone"] == "alpha"
    headings = [text.strip() for text in page.locator("#overview th").all_inner_texts()]
    shown = [
        [text.strip() for text in row.locator("td").all_inner_texts()]
        for row in page.locator("#overview tbody tr").all()
    ]
    assert [[" ".join(row[name].split()) for name in headings] for row in rows] == [
        [" ".join(text.split()) for text in row] for row in shown
    ]
    values = page.locator("#overview td:nth-child(2)").evaluate_all(
        "cells => cells.map(cell => cell.dataset.value ?? '')"
    )
    assert [row[f"{headings[1]}: value"] for row in rows] == values
    with page.expect_download() as download:
        page.locator("#png").click()
    assert download.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_tables_sort_up_and_down_with_empty_cells_last(visit):
    page = visit()
    table = page.locator("#overview table")
    head = table.locator("th").nth(1)
    for direction, wanted in (("ascending", sorted), ("descending", lambda some: sorted(some, reverse=True))):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = [float(cell.get_attribute("data-value")) for cell in table.locator("td:nth-child(2)").all()]
        assert values == wanted(values)
    table.locator("th button").first.click()
    assert table.locator("[aria-sort]").count() == 1
    runs = page.locator("#tables table")
    for _ in range(2):
        runs.locator("th button").nth(1).click()
        assert runs.locator("td:nth-child(2)").last.get_attribute("data-value") is None


def test_all_trials_of_a_tuning_are_folded_until_asked_for(visit):
    page = visit()
    shown, folded = page.locator("#tuning > .scroll"), page.locator("#tuning details .scroll")
    expect(shown).to_be_visible()
    expect(folded).to_be_hidden()
    page.locator("#tuning summary").click()
    expect(folded).to_be_visible()
    assert page.locator("#tables .sortable").count() == 1


@pytest.mark.parametrize("system", ["light", "dark"])
def test_both_themes_recolour_the_page_and_its_plots_and_can_be_read(visit, system):
    page = visit(color_scheme=system, reduced_motion="reduce")
    before = page.evaluate(COLOURS)
    assert serious(page) == []
    assert min(page.evaluate(CONTRASTS)) >= 3
    page.locator("#theme").click()
    assert all(new != old for new, old in zip(page.evaluate(COLOURS), before, strict=True))
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_phone_does_not_scroll_sideways(visit):
    page = visit(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator("#theme").bounding_box()["x"] > 0
    for region in page.locator(".scroll:visible").all():
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")


def test_the_keyboard_alone_is_enough(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(page, "#theme")
    before = page.evaluate(COLOURS)[0]
    page.keyboard.press("Enter")
    assert page.evaluate(COLOURS)[0] != before
    tab_to(page, "#overview th button")
    page.keyboard.press("Enter")
    assert page.locator("#overview th").first.get_attribute("aria-sort") == "ascending"
    tab_to(page, ".chip input[data-model='0']")
    page.keyboard.press("Space")
    assert all(0 not in shown for shown in page.evaluate(SHOWN))


def test_paper_has_no_controls_and_is_light(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    papers = page.locator(".plot > .plot-container .main-svg:first-child")
    expect(papers.first).to_have_attribute("width", "660")
    for selector in ("button:not(th *)", "select", "input", "nav"):
        assert page.locator(f"{selector}:visible").count() == 0
    assert page.locator(".chip:visible").count() == 7  # the legend
    assert set(page.evaluate(COLOURS)) == {"rgb(255, 255, 255)"}
    assert page.pdf()[:5] == b"%PDF-"
    page.emulate_media(media="screen", color_scheme="dark")
    expect(papers.first).not_to_have_attribute("width", "660")
    # Before a reader's own printing the rules for paper do not hold yet, but the plots must be drawn for it.
    dark = page.evaluate(COLOURS)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(papers.first).to_have_attribute("width", "660")
    assert set(page.evaluate(COLOURS)[1:]) == {"rgb(255, 255, 255)"}
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(papers.first).not_to_have_attribute("width", "660")
    assert page.evaluate(COLOURS) == dark


def test_without_scripts_text_and_tables_are_all_there(visit):
    page = visit(java_script_enabled=False, unfolded=False)
    page.locator("#tables summary").click()
    assert page.locator("noscript").is_visible()
    assert page.locator(".heat table:visible").count() == 2
    assert page.locator("#tables td:visible").count() == 28
    for selector in (".plot", "button", "select", "input"):
        assert page.locator(f"{selector}:visible").count() == 0


def test_the_faces_of_a_backbone_are_hidden_with_it(visit):
    page = visit()
    faces, empty = page.locator("#faces .faces:visible"), page.locator("#faces .nobody")
    assert faces.count() == 2 and page.locator("#faces img:visible").count() == 48
    sizes = page.evaluate("[...document.querySelectorAll('#faces img')].map(image => image.naturalWidth)")
    assert set(sizes) == {112}  # the page's policy lets them be shown
    expect(empty).to_be_hidden()
    page.locator(".chip input").nth(0).uncheck()
    assert faces.count() == 1
    page.locator(".chip input").nth(1).uncheck()
    assert faces.count() == 0
    expect(empty).to_be_visible()


def test_without_a_backbone_the_heat_map_says_so(visit):
    page = visit()
    caption = page.locator(".heat:visible figcaption")
    words = caption.inner_text()
    page.locator("#none").click()
    assert page.locator(".heat .scroll:visible").count() == 0
    assert caption.inner_text() == "No backbone is switched on."
    page.locator("#all").click()
    assert page.locator(".heat .scroll:visible").count() == 1
    assert caption.inner_text() == words


FADING = "place => [place.dataset.more ?? '', getComputedStyle(place).maskImage.includes('gradient')]"


def test_what_scrolls_fades_where_there_is_more_and_stays_in_its_column(visit, many):
    page = visit(many, viewport={"width": 1000, "height": 900})
    heat, chips = page.locator(".heat:visible .scroll"), page.locator(".chips")
    assert heat.evaluate(FADING) == ["right", True]
    assert chips.evaluate(FADING) == ["down", True]
    for place, wanted in ((heat, "left"), (chips, "up")):
        place.evaluate("place => place.scrollTo({left: 1e6, top: 1e6, behavior: 'instant'})")
        expect(place).to_have_attribute("data-more", wanted)
    assert page.locator("#overview .scroll").evaluate(FADING) == ["", False]
    page.set_viewport_size({"width": 1600, "height": 900})
    assert heat.bounding_box()["x"] == page.locator("#tests h2").bounding_box()["x"]
    assert page.locator("#overview").bounding_box()["width"] == pytest.approx(1280, abs=2)
    assert page.locator("#overview td.number").first.evaluate("cell => getComputedStyle(cell).whiteSpace") == "nowrap"


def test_the_bar_of_fourteen_backbones_is_low_on_a_phone(visit, many):
    page = visit(many, viewport=PHONE)
    rows = page.locator(".chips").evaluate("bar => bar.clientHeight / bar.firstElementChild.offsetHeight")
    assert rows <= 3
    assert page.locator(".chips").evaluate(FADING) == ["right", True]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
