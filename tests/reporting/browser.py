"""The browser of the tests, for tests and benchmarks of the page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Every plot that is not folded is there.
DRAWN = """() => document.readyState === "complete" && [...document.querySelectorAll(".plot:not(.js-plotly-plot)")]
    .every((plot) => plot.closest("details:not([open])"))"""
SECONDS = 30  # that an expectation waits for, as other methods of Playwright do; a busy machine draws late
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, of the system or Playwright's own.

    Raises:
        playwright.sync_api.Error: there is none.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


def open_and_sort(browser: Browser, address: str, seconds: float) -> dict[str, float]:
    """Open a page, sort its first table as soon as that can be done, and wait until all plots are drawn.

    Args:
        browser: a browser.
        address: of the page of a report.
        seconds: the most that it may take.

    Returns:
        seconds from the start to "parsed" (DOMContentLoaded), "sorted" (a click was answered) and "drawn" (every plot
        that is not folded); and "processor", those of the page's main thread up to then, which depend less on what
        else the machine does.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * seconds)
    protocol = page.context.new_cdp_session(page)
    protocol.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address, wait_until="commit")
    page.locator("table.sortable thead button").first.click()
    page.locator("table.sortable th[aria-sort=ascending]").first.wait_for()
    found = page.evaluate(
        """() => ({
            parsed: performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd, sorted: performance.now(),
        })"""
    )
    page.wait_for_function(DRAWN)
    found["drawn"] = page.evaluate("performance.now()")
    metrics = {one["name"]: one["value"] for one in protocol.send("Performance.getMetrics")["metrics"]}
    page.close()
    return {name: time / 1000 for name, time in found.items()} | {"processor": metrics["TaskDuration"]}
