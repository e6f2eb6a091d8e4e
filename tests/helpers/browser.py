"""A real browser without a window, where this machine has one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = (390, 844), (1280, 900)  # CSS pixels
_MILLISECONDS = 60_000  # a busy machine takes long to draw a page


@contextmanager
def opened_tab(size: tuple[int, int]) -> Iterator:
    """Playwright's page of this width and height, in a browser of its own.

    Skips the test where there is no Chromium or no playwright.
    """
    if _CHROMIUM is None:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=as_root, timeout=_MILLISECONDS)
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        tab.set_default_timeout(_MILLISECONDS)
        yield tab
        browser.close()


def overflow(tab) -> int:
    """Pixels by which the page is wider than its window."""
    return tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
