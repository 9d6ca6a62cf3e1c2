"""The server over tiny runs: the JSON of `action=predict`, whoever asks, and every wrong request its message."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Outcome, main
from starlette.testclient import TestClient

from hatemtl.command.configuration import requested
from hatemtl.command.used_run import using_alone
from hatemtl.using.predictor import Predictor
from hatemtl.using.serve.app import PAGES, TEXT, app
from hatemtl.using.serve.one_encoder import OnOneEncoder, together
from hatemtl.using.serve.queue import Full, Queue
from hatemtl.using.serve.runs import Runs

pytestmark = pytest.mark.slow  # runs are trained
TEXTS = ["you dronk", "a  long and mild post about the choir in our garden", "<img src=x onerror=alert(1)>", "hm \ud83d"]
HERE = {"base_url": "http://127.0.0.1:8000", "raise_server_exceptions": False}
SAMPLE = ("encoder=tiny", "optimization.epochs=1", "method.learning_rate=1e-2", "trainer.precision=32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four runs on one encoder: two LoRAs of either library, a bottleneck, and one of all weights."""
    root, found = tmp_path_factory.mktemp("served"), {}
    for name, tasks, method in (
        ("first", ("label", "rationale"), "ah_lora16"),
        ("second", ("label", "target"), "peft_lora16"),
        ("third", ("label",), "ah_seq_bn"),
        ("fourth", ("label",), "full"),
    ):
        corpora = [w for t in tasks for w in (f"corpus@tasks.{t}.corpus=sample", f"tasks.{t}.corpus.size=150")]
        rate = [word for word in SAMPLE if method != "full" or "learning_rate" not in word]
        assert main(f"tasks=[{','.join(tasks)}]", *corpora, *rate, f"method={method}", f"save_path={root / name}") == 0
        found[name] = root / name
    return found


def loaded(folders: dict[str, Path], *names: str, also: Sequence[str] = ()) -> OnOneEncoder:
    typed = ["trainer.accelerator=cpu", *also]
    return together({name: requested(using_alone(folders[name], typed)) for name in names})


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> Iterator[TestClient]:
    runs = Runs(loaded(folders, "first"))
    queue = Queue(runs, limit=64)
    yield TestClient(app(runs, queue, host="127.0.0.1"), **HERE)
    queue.close()


@pytest.fixture(scope="module")
def four(folders: dict[str, Path]) -> Iterator[TestClient]:
    runs = Runs(loaded(folders, *folders))
    queue = Queue(runs, limit=64)
    yield TestClient(app(runs, queue, host="127.0.0.1"), **HERE)
    queue.close()


def same(one: dict[str, Any], other: dict[str, Any], *, within: float) -> bool:
    """Whether two rows say the same, numbers of these and in texts within so much."""
    assert [*one] == [*other]
    for key, value in one.items():
        if key.endswith("_scores"):
            assert np.allclose([*map(float, value.split())], [*map(float, other[key].split())], atol=1e-4 + within)
        elif isinstance(value, float):
            assert value == pytest.approx(other[key], abs=within)
        else:
            assert value == other[key]
    return True


def predicted(folder: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What `action=predict` writes of the texts."""
    source, target = tmp_path / "posts.jsonl", tmp_path / "scored.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    typed = [f"predict.input={source}", f"predict.output={target}", "overwrite=true", "trainer.accelerator=cpu"]
    assert main("action=predict", f"load_path={folder}", *typed) == 0
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_the_answer_is_what_predict_writes(alone: TestClient, folders: dict[str, Path], tmp_path: Path) -> None:
    written = predicted(folders["first"], tmp_path)
    answer = alone.post("/predict", content=json.dumps({"texts": TEXTS}), headers={"content-type": "application/json"})
    assert answer.status_code == 200 and [*answer.json()] == ["first"]
    assert len(written) == len(TEXTS)
    assert all(same(*rows, within=1e-6) for rows in zip(answer.json()["first"], written, strict=True))


def test_runs_side_by_side_say_what_each_says_alone(four: TestClient, folders: dict[str, Path], tmp_path: Path) -> None:
    answer = four.post("/predict", json={"texts": TEXTS[:3]}).json()
    assert [*answer] == [*folders]
    for name, folder in folders.items():
        rows = zip(answer[name], predicted(folder, tmp_path)[:3], strict=True)
        assert all(same(*pair, within=1e-5) for pair in rows)
    said = four.get("/runs").json()["runs"]
    assert [said[name]["adapter"] for name in folders] == ["in one batch", "in one batch", "alone", "alone"]
    some = four.post("/predict", json={"texts": TEXTS[:1], "runs": ["second"], "tasks": ["target"]}).json()
    assert [*some] == ["second"] and all("target" in key or key == "text" for key in some["second"][0])
    # of both ways, and back: a pass leaves nothing behind
    assert four.post("/predict", json={"texts": TEXTS[:3]}).json() == answer


def test_one_encoder_lies_in_memory_once(folders: dict[str, Path]) -> None:
    known = loaded(folders, *folders)
    words = {
        name: predictor.network.module.encoder.get_input_embeddings().weight.data_ptr()
        for name, predictor in known.predictors.items()
    }
    assert words["first"] == words["second"] == words["third"] != words["fourth"]  # which has trained its own
    assert known.predictors["first"].network.module.encoder is known.predictors["second"].network.module.encoder


@pytest.mark.parametrize("names", [("first",), ("first", "second")])
def test_int8_says_nearly_the_same(folders: dict[str, Path], names: tuple[str, ...]) -> None:
    runs = Runs(loaded(folders, *names, also=["trainer.precision=int8"]))
    said = runs.said(dict.fromkeys(names, TEXTS[:3]))
    for name in names:
        exact = Predictor.load(folders[name], "trainer.accelerator=cpu")(TEXTS[:3])
        for mine, theirs in zip(said[name], exact, strict=True):
            assert mine["label"].scores == pytest.approx(theirs["label"].scores, abs=0.02)
            assert mine["label"].scores != theirs["label"].scores


@pytest.mark.parametrize("by", ["gradient_input", "integrated_gradients"])
def test_words_are_explained_alone_as_side_by_side(alone: TestClient, four: TestClient, by: str) -> None:
    asked = {"text": TEXTS[1], "run": "first", "task": "label", "label": "normal", "by": by}
    one, other = (client.post("/explain", json=asked).json()["words"] for client in (alone, four))
    assert [word for word, _ in one] == TEXTS[1].split()
    assert [share for _, share in one] == pytest.approx([share for _, share in other], abs=1e-5)
    assert any(abs(share) > 1e-6 for _, share in one)
    if by == "integrated_gradients":  # completeness: what the score gains from a post of padding alone
        assert abs(sum(share for _, share in one)) < 1


@pytest.mark.parametrize(
    ("path", "asked", "status", "said"),
    [
        ("/predict", {"texts": []}, 422, "texts: expected a list of them"),
        ("/predict", {"texts": ["fine", " "]}, 422, r"texts\[1\]: expected a text with a word"),
        ("/predict", {"texts": [7]}, 422, r"texts\[0\]: expected a text"),
        ("/predict", {"texts": ["a" * (1 << 20)]}, 422, f"1,048,576 characters, expected {TEXT:,}"),
        ("/predict", {"texts": ["a"], "run": ["first"]}, 422, "'run': no such key; did you mean 'runs'"),
        ("/predict", {"texts": ["a"], "runs": ["fist"]}, 422, "runs: no 'fist'; did you mean 'first'"),
        ("/predict", {"texts": ["a"], "tasks": ["lable"]}, 422, "tasks: no 'lable'; did you mean 'label'"),
        ("/predict", {"texts": ["a"], "tasks": "label"}, 422, "tasks: expected a list"),
        ("/predict", {"texts": ["a"] * 65}, 413, "expected 64 texts at most"),
        ("/predict", ["a"], 422, "expected a JSON object"),
        ("/explain", {"text": "a", "label": "normel"}, 422, "label: no 'normel'; did you mean 'normal'"),
        ("/explain", {"text": "a", "task": "rationale"}, 422, "marks words itself"),
        ("/predct", {"texts": ["a"]}, 404, "POST /predct: did you mean '/predict'"),
        ("/health", {}, 405, "POST /health: expected GET"),
        ("/explain", {"text": "a", "by": "magic"}, 422, "by: no 'magic'; known: gradient_input"),
    ],
)
def test_a_wrong_request_is_told_why(alone: TestClient, path: str, asked: Any, status: int, said: str) -> None:
    answer = alone.post(path, json=asked)
    assert answer.status_code == status and re.search(said, answer.json()["error"])


def test_where_too_many_wait_the_answer_is_503(alone: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise Full

    monkeypatch.setattr(Queue, "predict", full)
    answer = alone.post("/predict", json={"texts": ["a"]})
    assert answer.status_code == 503 and "try again in a moment" in answer.json()["error"]


def test_a_file_is_read_as_predict_reads_it(alone: TestClient) -> None:
    answer = alone.post("/table?name=posts.csv", content=b'id,text\n1,"a day, mild"\n2,\'=SUM(A1)\n')
    assert answer.json() == {
        "text": "text",
        "columns": ["id", "text"],
        "rows": [{"id": "1", "text": "a day, mild"}, {"id": "2", "text": "=SUM(A1)"}],
    }
    assert alone.post("/table?name=POSTS.CSV", content=b"text\none\n").json()["rows"] == [{"text": "one"}]
    assert alone.post("/table?name=a.txt", content=b"one\ntwo\n").json()["rows"] == [{"text": "one"}, {"text": "two"}]
    assert "did you mean" in alone.post("/table?text=txt", content=b"id,text\n1,a\n").json()["error"]
    assert alone.post("/table?name=a.exe", content=b"").status_code == 422
    broken = alone.post("/table?name=posts.csv", content=b"id,text\n1,a,b\n").json()["error"]
    assert broken.startswith("posts.csv") and "tmp" not in broken


def test_every_route_is_described_and_no_page_loads_from_elsewhere(alone: TestClient) -> None:
    described = alone.get("/openapi.json").json()
    assert {*described["paths"]} == {route.path for route in alone.app.routes} - {*PAGES, "/openapi.json"}
    for path in PAGES:
        page = alone.get(path)
        assert page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
        assert "://" not in page.text.replace("http://www.w3.org", "") and "innerHTML" not in page.text
    health = alone.get("/health").json()
    answers = described["paths"]["/health"]["get"]["responses"]["200"]["content"]["application/json"]
    assert {*health} == {*answers["schema"]["required"]}
    assert health["status"] == "ok" and health["runs"] == ["first"]


def test_the_command_serves_until_it_is_interrupted(folders: dict[str, Path]) -> None:
    command = [sys.executable, "main.py", "action=serve", f"load_path={folders['first']},{folders['second']}"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "serve.port=0"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = next(line for line in process.stdout if line.startswith("http://"))
        port = int(said.strip().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", json.dumps({"texts": TEXTS[:1]}), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200 and [*json.loads(answer.read())] == ["first", "second"]
        head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {100 << 20}\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as large:
            large.sendall(f"{head}content-type: application/json\r\n\r\n".encode())  # and nothing of the body
            assert large.recv(99).startswith(b"HTTP/1.1 413")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 0 and "ended" in rest and TEXTS[0] not in rest


def test_no_text_is_logged(alone: TestClient, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("about secret words")

    monkeypatch.setattr(Queue, "predict", fails)
    answer = alone.post("/predict", json={"texts": ["secret words"]})
    assert answer.status_code == 500 and "secret" not in answer.text
    out, err = capfd.readouterr()
    assert "RuntimeError in test_app.py" in err and "secret" not in out + err


def test_runs_of_different_encoders_and_ports_in_use_are_told(folders: dict[str, Path], cli: Any, tmp_path: Path) -> None:
    from hatemtl.using.serve.action import bound

    other = tmp_path / "other"
    small = ["tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150"]
    assert main(*small, *SAMPLE, "seed=5", f"save_path={other}") == 0

    def told(*typed: str) -> str:
        outcome: Outcome = cli("action=serve", *typed)
        assert outcome.code == 2
        return outcome.err

    first = folders["first"]
    assert "trained on different encoders" in told(f"load_path={first},{other}")
    assert "no such saved run" in told(f"load_path={first},{tmp_path / 'nope'}")
    assert "is there twice" in told(f"load_path={first},{first}")
    assert "no trained head for task 'target'" in told(f"load_path={first}", "tasks=[target]")
    assert "type load_path=FOLDER" in told()
    assert "serve.port=99999" in told(f"load_path={first}", "serve.port=99999")
    assert "serve.precision=int4" in told(f"load_path={first}", "serve.precision=int4")
    twice = told(f"load_path={first}", "serve.precision=int8", "trainer.precision=32")
    assert "short for trainer.precision=int8; leave it or trainer.precision=32 out" in twice
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert "Address already in use; type serve.port=0" in told(f"load_path={first}", f"serve.port={port}")
    assert "takes several" in cli("action=test", f"load_path=[{first},{other}]").err
