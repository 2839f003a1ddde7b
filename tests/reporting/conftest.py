"""Figures as they are drawn, and what is asked of every picture."""

import cv2
import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch):
    """Figures, each once, as they are written."""
    figures, save = [], Figure.savefig

    def remember(figure, *arguments, **options):
        if figure not in figures:
            figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


@pytest.fixture(scope="session")
def assert_is_picture():
    """That a file can be read as a picture with something on it, and nothing temporary is left beside it."""

    def check(path):
        image = cv2.imread(str(path))
        assert image is not None
        assert image.std() > 0
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    return check


@pytest.fixture(scope="session")
def assert_all_is_readable():
    """That no text of a picture of curves is cut, and the legend is whole, below the axes and their labels."""

    def check(figure):
        (axes,), (legend,) = figure.axes, figure.legends
        figure.draw_without_rendering()
        whole, inner, box = figure.bbox, axes.get_tightbbox(), legend.get_window_extent()
        assert box.y1 <= inner.y0
        for part in (inner, box):
            assert part.x0 >= 0 and part.x1 <= whole.width
            assert part.y0 >= 0 and part.y1 <= whole.height
        assert axes.bbox.height > 3.9 * figure.dpi  # the legend has taken nothing of the curves' height

    return check
