"""The browser of the tests, for tests and benchmarks of the page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, of the system or Playwright's own.

    Raises:
        playwright.sync_api.Error: there is none.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


def open_and_sort(browser: Browser, address: str, seconds: float) -> dict[str, float]:
    """Open a page and sort its first table as soon as that can be done; the table must answer.

    Args:
        browser: a browser.
        address: of the page of a report.
        seconds: the most that it may take.

    Returns:
        seconds from the start to "parsed" (DOMContentLoaded), "loaded" and "sorted"; and "processor", those of the
        page's main thread up to then, which depend less on what else the machine does.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * seconds)
    protocol = page.context.new_cdp_session(page)
    protocol.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address, wait_until="commit")
    page.locator("table.sortable thead button").first.click()
    page.locator("table.sortable th[aria-sort=ascending]").first.wait_for()
    found = page.evaluate(
        """() => {
            const [page] = performance.getEntriesByType("navigation");
            return {parsed: page.domContentLoadedEventEnd, loaded: page.loadEventEnd, sorted: performance.now()};
        }"""
    )
    metrics = {one["name"]: one["value"] for one in protocol.send("Performance.getMetrics")["metrics"]}
    page.close()
    return {name: time / 1000 for name, time in found.items()} | {"processor": metrics["TaskDuration"]}
