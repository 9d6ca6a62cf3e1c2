"""The page of saved runs in a browser: nothing fails, keys sort, filter and open it, and hostile names do nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import report
from tested_runs import listed, save

pytestmark = pytest.mark.slow
HOSTILE = ('<img src=x onerror="window.struck=1">', "</script><script>window.struck=2</script>", "' onload='window.struck=3")
NAMES = (*HOSTILE, "arab", "asian", "islam", "jewish", "other", "women")
OPEN = "document.querySelectorAll('details').forEach((of) => (of.open = true))"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of two systems of two seeds, whose labels, names and settings are hostile."""
    folder = tmp_path_factory.mktemp("study")
    for seed in range(2):
        for name, right in (("a", 0.6), ("b", 0.9)):
            draw, gold = np.random.default_rng([seed, ord(name)]), np.arange(90) % len(NAMES)
            given = np.where(draw.random(90) < right, gold, draw.integers(0, len(NAMES), 90))
            scores = draw.random((90, len(NAMES))) + 4 * (np.arange(len(NAMES)) == given[:, None])
            rows = {"test_label_accuracy": float((given == gold).mean())}
            scores /= scores.sum(axis=1, keepdims=True)
            save(folder / f"{name}_{seed}", gold[:, None], scores, seed=seed, names=NAMES, rows=rows,
                 config={"method": {"name": HOSTILE[ord(name) % 2]}}, words=[f"seed={HOSTILE[1]}"])  # fmt: skip
    marks = {"marked": "0 0 0 0 1 1 1", "explained": "0.1 0.9 -0.2 -0.8 0.3 0.2 1"}
    listed(folder / "b_0", text=f"{HOSTILE[0]} a mild invented post", **marks)
    runs, page = [str(folder / f"{name}_?") for name in "ab"], folder / "report.html"
    assert report.main([*runs, "--name", "plain", HOSTILE[0], "--resamples", "100", "--output", str(page)]) == 0
    return page.as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of this width; what it complained of must be nothing in the end."""
    complaints, windows = [], []

    def opened(width: int = 1280, **settings: Any) -> Any:
        windows.append(browser.new_context(viewport={"width": width, "height": 800}, **settings))
        page = windows[-1].new_page()
        page.on("console", lambda said: complaints.append(said.text[:300]))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(address, timeout=120_000)  # of a busy machine
        return page

    yield opened
    for window in windows:
        window.close()
    assert not complaints


def test_names_from_files_do_nothing(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate(OPEN)
    assert page.evaluate("window.struck") is None and page.locator("img").count() == 0
    assert page.locator("script").count() == 1 and page.locator("u", has_text="post").count() > 0
    assert page.locator("th", has_text=HOSTILE[0]).count() > 0 and page.locator("td", has_text=HOSTILE[1]).count() > 0


def test_tables_sort_and_filter_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    page.get_by_text("Numbers and command: F1 of each label").press("Enter")
    table = page.get_by_role("region", name="F1 of each label, task label", exact=True)
    head = table.get_by_role("columnheader", name="plain")
    place = head.evaluate("(of) => of.cellIndex")

    def values() -> list[float]:
        cells = table.locator(f"tbody tr:visible > :nth-child({place + 1})").all_inner_texts()
        return [float(cell.split()[0]) for cell in cells]

    before = values()
    for way in ("ascending", "descending"):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == way
        assert values() == sorted(before, reverse=way == "descending") != before
    field = page.locator("label:visible").get_by_role("searchbox")
    field.press_sequentially("WOM")
    assert len(values()) == 1 and page.locator("label:visible output").inner_text() == "1 of 9"
    field.fill("")
    assert sorted(values()) == sorted(before)


def test_everything_is_reached_by_tab(visit: Callable[..., Any]) -> None:
    page, reached = visit(), set()
    wanted = page.evaluate("document.querySelectorAll('a, summary, .box').length")
    page.evaluate("[...document.querySelectorAll('a, summary, .box')].forEach((of, place) => (of.dataset.place = place))")
    page.evaluate(OPEN)
    for _ in range(600):
        page.keyboard.press("Tab")
        place = page.evaluate("document.activeElement.dataset.place ?? null")
        if place is not None:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            reached.add(place)
        if len(reached) == wanted:
            break
    assert len(reached) == wanted


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_makes_the_page_wider_than_the_window(visit: Callable[..., Any], width: int) -> None:
    page = visit(width)
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_post_is_read_on_a_telephone_without_going_to_and_fro(visit: Callable[..., Any]) -> None:
    page = visit(360)
    page.evaluate(OPEN)
    row = page.locator(".posts tbody tr", has_text="kind").first
    both = row.evaluate("(of) => of.cells[0].offsetWidth + of.cells[1].offsetWidth")
    assert both <= row.evaluate("(of) => of.closest('.box').clientWidth")


def test_on_paper_all_numbers_are_open_and_afterwards_closed(visit: Callable[..., Any]) -> None:
    page = visit(794)  # A4
    closed = page.locator("details:not([open])").count()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.posts)").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 794
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Callable[..., Any], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(color_scheme=scheme)
    page.evaluate(OPEN)
    faults = axe.run(page).response["violations"]
    assert not [(of["id"], of["nodes"][0]["html"]) for of in faults if of["impact"] in ("serious", "critical")]
