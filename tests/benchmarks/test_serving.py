"""The report of serving says what came beside what is aimed at, of servers that were asked in the same rounds."""

import json

from benchmarks.serving import INT8, OURS, PLAIN, Round, Server, largest_difference, report


def test_the_report_tells_ratios_of_rounds() -> None:
    rounds = {
        OURS: [Round([0.004, 0.006, 0.005], 0.002, 600.0, 900.0), Round([0.01], 0.004, 400.0, 800.0)],
        INT8: [Round([0.004], 0.002, 900.0, 1800.0), Round([0.01], 0.004, 400.0, 800.0)],
        PLAIN: [Round([0.03], 0.02, 100.0, 0.0), Round([0.02], 0.02, 50.0, 0.0)],
    }
    lines = report(rounds, [Round([0.02], 0.01, 0.0, 0.0), Round([0.04], 0.01, 0.0, 0.0)], 0.0125).splitlines()
    cells = {row[0]: row[1:] for row in ([c.strip() for c in line.split("|")[1:-1]] for line in lines if "|" in line)}
    assert cells[OURS] == ["7.5", "3.0", "500", "850"] and cells[PLAIN] == ["25.0", "20.0", "75", ""]
    assert cells["pipeline"] == ["30.0", "10.0", "", ""]
    assert cells["one post over the pipeline's"] == ["0.25 (0.25–0.25)", "at most 0.33"]
    assert cells["32 clients over starlette and pipeline"] == ["7.00 (6.00–8.00)", "at least 6"]
    assert cells["int8 over bf16, 256 posts a request"] == ["1.50 (1.00–2.00)", "at least 1.3"]
    assert cells["int8 and bf16, largest difference of scores"][1] == "at most 0.02"


def test_the_largest_difference_is_of_scores_alone() -> None:
    one, other = ({"run": [{"text": "a", "pred_label": "b", "pred_label_b": score}]} for score in (0.5, 0.25))
    assert largest_difference(json.dumps(one), json.dumps(other)) == 0.25


def test_a_request_is_whole() -> None:
    head, _, body = Server(8000, 1, ours=True).request(["läuf"]).partition(b"\r\n\r\n")
    assert json.loads(body) == {"texts": ["läuf"]} and f"content-length: {len(body)}".encode() in head
    assert Server(8000, 1, ours=False).request(["läuf"]).endswith("\r\n\r\nläuf".encode())
