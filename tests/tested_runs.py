"""Invented runs as a test leaves them: predictions.parquet, labels.json, run.json, config.yaml and results.csv."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pyarrow import parquet

from hatemtl.harmless import guarded

NAMES = ("kind", "other", "rude")


def classes(posts: int, accuracy: float, draw: np.random.Generator, gold_seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gold labels (N, 1), the same for one gold_seed, and scores (N, 3) of which that share is right."""
    gold = np.random.default_rng(gold_seed).integers(0, 3, posts)
    given = np.where(draw.random(posts) < accuracy, gold, (gold + draw.integers(1, 3, posts)) % 3)
    scores = draw.random((posts, 3)) * 0.2 + (np.arange(3) == given[:, None])
    return gold[:, None].astype(float), scores / scores.sum(axis=1, keepdims=True)


def save(
    folder: Path,
    gold: Any,
    scores: Any,
    *,
    seed: int = 0,
    kind: str = "multiclass",
    names: Sequence[str] = NAMES,
    task: str = "label",
    rows: dict[str, float] | None = None,
    posts: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    labels: dict[str, Any] | None = None,
    **record: Any,
) -> Path:
    """Writes a tested run; config: what stands beside tasks.TASK.head.threshold and the seed. Its rows are those given."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = posts or [f"p{i}" for i in range(len(gold))]
    table = [
        {"post_id": post, "task": task, "gold": list(map(float, g)), "scores": list(map(float, np.asarray(s, np.float32)))}
        for post, g, s in zip(ids, gold, scores, strict=True)
    ]
    parquet.write_table(pa.Table.from_pylist(table), folder / "predictions.parquet")
    lines = "".join(f"{metric},{value!r}\n" for metric, value in (rows or {}).items())
    (folder / "results.csv").write_text(f"metric,value\n{lines}", encoding="utf-8")
    space = {"kind": kind, "names": list(names), **(labels or {})}
    (folder / "labels.json").write_text(json.dumps({task: space}), encoding="utf-8")
    mark = {"data": {task: "f" * 16}, "tested_data": {task: "f" * 16}, "leaks": []}
    (folder / "run.json").write_text(json.dumps({"seed": seed, **mark, **record}), encoding="utf-8")
    settings = {"head": {"threshold": 0.5}, "mask_pattern": (config or {}).get("mask_pattern")}
    kept = {key: value for key, value in (config or {}).items() if key != "mask_pattern"}
    whole = {"seed": seed, "save_path": str(folder), "method": {"rank": 16}, "tasks": {task: settings}, **kept}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return folder


def system(folder: Path, name: str, accuracies: Sequence[float], *, posts: int = 200, start: int = 0) -> None:
    """Runs NAME_0, NAME_1, ... of one system, a seed each, right in about these shares of the posts."""
    for seed, accuracy in enumerate(accuracies, start):
        draw = np.random.default_rng([sum(map(ord, name)), seed])
        gold, scores = classes(posts, accuracy, draw)
        right = float((scores.argmax(axis=1) == gold[:, 0]).mean())
        rows = {"test_label_accuracy": right, "test_label_ece": 1 - right}
        save(folder / f"{name}_{seed}", gold, scores, seed=seed, rows=rows, config={"method": {"name": name}})


def listed(folder: Path, groups: Sequence[str] = ("women; arab", ""), **more: str) -> None:
    """Writes what a test with evaluations=[errors] leaves: errors of posts of these groups, false positives and negatives by
    turns, and a word. more: cells of the errors."""
    row = {"task": "label", "label": "kind", "score": "0.9", "gold": "rude", "predicted": "kind"}
    sides = ("false_positive", "false_negative")
    rows = [row | {"error": sides[1 - i % 2], "post_id": f"p{i}", "groups": of, **more} for i, of in enumerate(groups, 1)]
    words = {"task": "label", "label": "kind", "error": "false_positive", "word": "tea", "wrong": "3", "of_wrong": "4"}
    words |= {"right": "1", "of_right": "9", "log_odds": "1.25", "z": "2.5"}
    for name, table in (("errors.csv", rows), ("error_words.csv", [words])):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([[*table[0]], *([*map(guarded, of.values())] for of in table)])
