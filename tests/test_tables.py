"""Cells of tables that compare models."""

import pytest

from facebones.tables import format_interval, mark_best, print_table


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.5, 0.25, 0.75), "50.00 % [25.00, 75.00]"),
        ((1.0, 1.0, 1.0), "100.00 % [100.00, 100.00]"),
        ((0.0, 0.0, 0.0), "0.00 % [0.00, 0.00]"),
        ((0.9, 0.895, 0.9049), "90.00 % [89.50, 90.49]"),
        ((0.99950, 0.99912, 0.99980), "99.950 % [99.912, 99.980]"),
        ((0.999731, 0.999702, 0.999758), "99.9731 % [99.9702, 99.9758]"),
        ((0.5, 0.5 - 1e-9, 0.5 + 1e-9), "50.0000 % [50.0000, 50.0000]"),
        ((0.4, 0.5, 0.6), "40.00 % [50.00, 60.00]"),  # a percentile interval need not hold the value
    ],
)
def test_interval_in_percent(interval, text):
    assert format_interval(*interval) == text


@pytest.mark.parametrize("ends", [(0.6, 0.5), (float("nan"), 0.5), (0.5, float("nan"))])
def test_what_is_no_interval_is_refused(ends):
    with pytest.raises(ValueError, match="no interval"):
        format_interval(0.5, *ends)


def test_marks_of_a_column(capsys):
    column = mark_best(["98 %", "99 %", "97 %"], 1, [True, False, False])
    assert column == ["98 % *", "99 % best", "97 %"]
    print_table(["TAR"], [[cell] for cell in column])
    assert "99 % best" in capsys.readouterr().out
    with pytest.raises(ValueError, match="zip"):
        mark_best(["98 %"], 0, [True, False])
