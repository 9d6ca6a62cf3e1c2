"""A browser without a window, for pages that the project writes or serves."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: uv sync --group browser")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        caged = [] if os.geteuid() else ["--no-sandbox"]  # its sandbox refuses root
        chrome = playwright.chromium.launch(executable_path=chromium, args=caged)
        yield chrome
        chrome.close()
