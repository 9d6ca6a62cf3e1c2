"""The page of a server in a browser: texts and files are scored, words explained, and hostile texts do nothing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import main

from hatemtl.command.configuration import requested
from hatemtl.command.used_run import using_alone
from hatemtl.using.serve.action import bound
from hatemtl.using.serve.app import app
from hatemtl.using.serve.one_encoder import together
from hatemtl.using.serve.queue import Queue
from hatemtl.using.serve.runs import Runs

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="window.struck=1"> </script><script>window.struck=2</script>'


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two LoRAs side by side, of which one marks words."""
    folder, tasks = tmp_path_factory.mktemp("served"), {"one": ("label", "rationale"), "other": ("label", "target")}
    for name, mine in tasks.items():
        corpora = [word for t in mine for word in (f"corpus@tasks.{t}.corpus=sample", f"tasks.{t}.corpus.size=150")]
        tiny = ["encoder=tiny", "optimization.epochs=1", f"tasks=[{','.join(mine)}]", f"save_path={folder / name}"]
        assert main(*tiny, *corpora) == 0
    typed = ["trainer.accelerator=cpu"]
    runs = Runs(together({name: requested(using_alone(folder / name, typed)) for name in tasks}))
    queue, listening = Queue(runs, limit=100), bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app(runs, queue, host="127.0.0.1"), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    queue.close()


@pytest.fixture(params=[(360, "dark"), (1100, "light")], ids=["narrow", "wide"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page after two texts were scored, at two widths; nothing may have been complained of in the end."""
    width, scheme = request.param
    opened, complaints = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    opened.on("console", lambda said: complaints.append(said.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address, timeout=120_000)  # of a busy machine
    opened.fill("#texts", f"a mild day at the choir\n\n{HOSTILE} hello")
    opened.get_by_role("button", name="Score").click()
    opened.wait_for_selector("#download:not([hidden])")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    yield opened
    assert opened.evaluate("window.struck ?? null") is None and opened.locator("img").count() == 0
    opened.close()
    assert not complaints


def test_texts_are_scored_and_explained_side_by_side(page: Any) -> None:
    assert page.locator("article").count() == 2 and page.get_by_text("2 texts scored").count() == 1
    assert page.locator("article").nth(1).get_by_text("<img src=x").count() >= 1
    heads = page.locator("article").first.locator("table").first.locator("thead th").all_inner_texts()
    assert heads == ["label", "one", "other"]
    page.locator("summary").first.click()
    page.locator("details.why button").first.click()
    page.wait_for_selector("details.why mark")


def test_who_asks_before_the_runs_are_known_waits(browser: Any, address: str) -> None:
    page, held = browser.new_page(), []
    page.route("**/runs", lambda route: held.append(route))
    with page.expect_request("**/runs"):
        page.goto(address, timeout=120_000)
    page.fill("#texts", "a mild day at the choir")
    page.get_by_role("button", name="Score").click()
    assert page.locator("#error").inner_text() == ""
    held[0].continue_()
    page.get_by_text("1 texts scored").wait_for()
    page.close()


def test_a_file_is_scored_and_saved(page: Any, tmp_path: Path) -> None:
    posts = tmp_path / "posts.csv"
    posts.write_text(f'id,text\n1,a day\n2,\n3,"{HOSTILE.replace(chr(34), "")}"\n', encoding="utf-8")
    page.set_input_files("#file", posts)
    page.get_by_text("2 texts scored").wait_for()
    page.get_by_text("1 empty ones left out").wait_for()
    with page.expect_download() as saved:
        page.click("#save")
    lines = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and '"run":"other"' in lines[1] and '"id":"1"' in lines[0]


def test_axe_finds_no_serious_fault(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.locator("summary").first.click()
    faults = axe.run(page).response["violations"]
    assert not [(of["id"], of["nodes"][0]["html"]) for of in faults if of["impact"] in ("serious", "critical")]
