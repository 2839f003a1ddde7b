"""What plots share: looks that stay with a model, files that are whole and equal, names as they are."""

import resource
import string
import subprocess
import sys
import warnings
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from facebones.errors import ConfigError, RunError
from facebones.reporting.plots.style import (
    curve_axes,
    fix_layout,
    in_percent,
    label_axes,
    legend_below,
    missing_glyphs,
    model_styles,
    plot_paths,
    rate_limits,
    save_plot,
    styles_of,
)

MODELS = [f"model {number}" for number in range(140)]


def labelled_figure(names=("a",), title="title"):
    figure, axes = curve_axes()
    axes.plot([0.0, 1.0], [0.0, 1.0])
    label_axes(axes, title, "x", "y")
    legend_below(figure, names, list(model_styles(range(len(names))).values()))
    return figure


@pytest.mark.parametrize(
    ("models", "parts"),
    [(28, ("color", "linestyle")), (140, ("color", "linestyle", "marker")), (14, ("color", "marker"))],
)
def test_models_can_be_told_apart(models, parts):
    looks = model_styles(MODELS[:models]).values()
    assert len({tuple(look[part] for part in parts) for look in looks}) == models
    listed = list(looks)
    for part in ("color", "linestyle", "marker"):
        assert all(one[part] != next_one[part] for one, next_one in pairwise(listed))


def test_the_look_stays_with_the_model():
    looks = model_styles(MODELS[:14])
    assert looks == model_styles(MODELS[:14])
    some = [MODELS[9], MODELS[2]]
    assert styles_of(some, looks) == {name: looks[name] for name in some}
    assert styles_of(some, None) == model_styles(some) != styles_of(some, looks)
    with pytest.raises(ValueError, match="model 20 has no style"):
        styles_of(["model 20"], looks)


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_the_suffix_decides_the_format(tmp_path, suffix, start):
    save_plot(labelled_figure(), tmp_path / f"plot.{suffix}")
    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(start)


def test_one_call_writes_several_formats(tmp_path):
    paths = plot_paths(tmp_path / "v1.5" / "roc")
    save_plot(labelled_figure(), paths)
    assert [path.name for path in paths] == ["roc.png", "roc.pdf"]
    assert sorted((tmp_path / "v1.5").iterdir()) == sorted(paths)


def test_a_figure_is_drawn_once_for_each_file(tmp_path, monkeypatch):
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: drawn.append(1) or draw(figure, renderer))
    save_plot(labelled_figure(), plot_paths(tmp_path / "plot", ("png", "pdf", "svg")))
    assert len(drawn) == 3


@pytest.mark.parametrize("name", ["plot.docx", "plot", "png"])
def test_an_unknown_format_is_named_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be written as .* png"):
        save_plot(labelled_figure(), [tmp_path / "good.png", tmp_path / name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_full_disk_is_one_line(tmp_path, kind):
    figure = labelled_figure(title=string.printable.strip())  # the more letters, the longer the font in the PDF
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(RunError, match=rf"^{tmp_path}/roc\.{kind}: cannot be written: .*; free space"):
            save_plot(figure, tmp_path / f"roc.{kind}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "date"), [("png", b"tIME"), ("pdf", b"CreationDate"), ("svg", b"dc:date")])
def test_equal_plots_are_equal_bytes_and_bear_no_date(tmp_path, kind, date):
    contents = []
    for name in ("first", "second"):
        save_plot(labelled_figure(), tmp_path / f"{name}.{kind}")
        contents.append((tmp_path / f"{name}.{kind}").read_bytes())
    assert contents[0] == contents[1]
    assert date not in contents[0]


def test_a_pdf_holds_its_fonts_as_truetype(tmp_path):
    save_plot(labelled_figure(), tmp_path / "plot.pdf")
    content = (tmp_path / "plot.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_settings_of_the_process_stay_as_they_were(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_plot(labelled_figure(), tmp_path / "plot.pdf")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ([f"r{number}" for number in range(14)], 3),
        ([f"shufflefacenet_1_{number}, synthetic_profile" for number in range(9)], 2),
        ([f"a name that is a good deal longer than that, of the file number {n:04}" for n in range(14)], 1),
        ([f"{n} {'a path of many parts/' * 12}" for n in range(3)], 1),
        (["W" * 300, "short"], 1),
        (["one"], 1),
    ],
)
def test_the_legend_is_below_and_whole(names, columns, assert_all_is_readable):
    figure = labelled_figure(names)
    assert figure.legends[0]._ncols == columns
    assert_all_is_readable(figure)
    shown = ["".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    assert shown == ["".join(name.split()) for name in names]


@pytest.mark.parametrize(
    "name", ["_hidden", "$x^", r"$\frac{", "a_$1$", "\udcff.pth", "", "100 %", "a\u3000b", "\u65e5\u672c"]
)
def test_names_are_shown_as_they_are(tmp_path, name):
    figure = labelled_figure([name, "b"], title=name)
    save_plot(figure, plot_paths(tmp_path / "plot"))
    shown = name.encode(errors="backslashreplace").decode()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [shown, "b"]
    assert figure.axes[0].get_title() == shown


CONTROLS = "a\x00b\x07c\nd\x1be\u202ef\uffffg"


@pytest.mark.parametrize("letters", [1, 50])  # a long one is broken into lines
def test_control_characters_are_written_out_and_an_svg_can_be_read(tmp_path, letters):
    figure = labelled_figure([CONTROLS * letters], title=CONTROLS)
    save_plot(figure, tmp_path / "plot.svg")
    ElementTree.parse(tmp_path / "plot.svg")
    shown = "a\\x00b\\x07c\\nd\\x1be\\u202ef\\uffffg"
    assert figure.axes[0].get_title() == shown
    assert figure.legends[0].get_texts()[0].get_text().replace("\n", "") == shown * letters


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_no_warnings_but_others_are(tmp_path):
    figure = labelled_figure(["\u65e5\u672c " * 40], title="\u65e5\u672c")
    fix_layout(figure)
    save_plot(figure, plot_paths(tmp_path / "plot", ("png", "svg", "pdf")))
    with pytest.warns(UserWarning, match="another"), missing_glyphs():
        warnings.warn("another", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("scale", "limits", "expected"),
    [
        ("linear", (0.9795, 0.993), ["98.0", "98.2", "98.4", "98.6", "98.8", "99.0", "99.2"]),
        ("linear", (0.0, 1.01), ["0", "20", "40", "60", "80", "100"]),
        ("log", (0.9e-4, 1.0), ["0.01", "0.1", "1", "10", "100"]),
        ("log", (0.9e-8, 1e-6), ["0.000001", "0.00001", "0.0001"]),
    ],
)
def test_ticks_are_percent_without_exponents(scale, limits, expected):
    figure, axes = curve_axes()
    axes.set(yscale=scale, ylim=limits)
    in_percent(axes.yaxis)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    places = axes.get_yticks()
    assert [text for text, y in zip(labels, places, strict=True) if limits[0] <= y <= limits[1]] == expected


def test_limits_are_close_around_the_rates():
    assert rate_limits(0.9) == pytest.approx((0.892, 1.003))
    assert rate_limits(0.5, 0.7) == pytest.approx((0.484, 0.706))
    assert rate_limits(1.0) == pytest.approx((0.9892, 1.0003))
    assert rate_limits(0.0)[0] == -0.01


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    code = (
        "import sys, facebones.reporting.plots.curves as i\n"
        "import facebones.reporting.plots.report_plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"i.plot_cmc({{'a': [0.5, 0.6]}}, {str(tmp_path / 'y.pdf')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
