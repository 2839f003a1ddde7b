"""Progress where stderr is no terminal: a plain line now and then."""

import pytest

from facebones.system import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves; each item prints a line."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    return clock


def test_a_slow_first_item_does_not_count_in_the_estimate(clock, capsys):
    for number in progress.track(range(4), "embedding", 400, size=100, unit="images"):
        clock.now += 300 if number == 0 else 10
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 100/400",
        "embedding: 200/400, 20s left, 10.0 images/s",
        "embedding: 300/400, 10s left, 10.0 images/s",
    ]
