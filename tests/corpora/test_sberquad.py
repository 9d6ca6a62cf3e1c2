import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import on_hub

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.sberquad import FILES, SberQuad
from hatemtl.errors import UserError


def asked(name: str, i: int) -> dict[str, Any]:
    """Two questions about each paragraph."""
    context = f"Суп {i // 2} варят  в {name}. Его едят дома."
    text = ("дома", "Суп")[i % 2]
    given = {"text": [text], "answer_start": [context.index(text)]}
    return {
        "id": 10 * i + len(name),
        "title": "SberChallenge",
        "context": context,
        "question": f"Что {i}?",
        "answers": given,
    }


def write(folder: Path, **changed: Any) -> SberQuad:
    for file, name, n in zip(FILES, ("train", "validation"), (40, 6), strict=True):
        rows = [asked(name, i) for i in range(n)]
        rows[0]["answers"] = {**rows[0]["answers"], **changed}
        paragraphs = []
        for row in rows:
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            one = {"id": row["id"], "question": row["question"], "answers": [{"text": text, "answer_start": start}]}
            paragraphs.append({"context": row["context"], "qas": [one]})
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps({"data": [{"title": "SberChallenge", "paragraphs": paragraphs}]}))
    return SberQuad(dir=str(folder), validation=0.1)


def test_official_files_and_hub_say_the_same(tmp_path: Path, hub: Path) -> None:
    posts = write(tmp_path / "official").load()
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [36, 4, 6]
    column = posts.columns["answer"]
    assert column.has.all() and column.space.kind == "span" and column.values.shape == (46, 1, 2)
    pairs: Any = posts.pairs
    for (context,), ((begin, end),), i in zip(pairs, column.values.tolist(), range(40), strict=False):
        assert context[begin:end] == ("дома", "Суп")[i % 2] and "  " not in context
    of = {split: {pairs[i] for i in np.flatnonzero(posts.splits == split)} for split in SPLITS}
    assert not of["train"] & of["val"]
    rows = {name: [asked(name, i) for i in range(n)] for name, n in (("train", 40), ("validation", 6))}
    on_hub(hub, "kuznetsoffandrey/sberquad", "sberquad", rows)
    nothing = SberQuad(dir=str(tmp_path / "nothing"), validation=0.1)
    assert nothing.load().fingerprint() == posts.fingerprint()


def test_an_answer_that_stands_elsewhere_leaves_its_question_unannotated(tmp_path: Path) -> None:
    column = write(tmp_path / "official", answer_start=[1]).load().columns["answer"]
    assert column.has.sum() == 44 and not column.has[0]


def test_missing_files_say_where_they_are_to_be_had(tmp_path: Path) -> None:
    write(tmp_path / "official")
    (tmp_path / "official" / FILES[1]).unlink()
    with pytest.raises(UserError, match=r"has no dev-v1\.1\.json.*sber_squad"):
        SberQuad(dir=str(tmp_path / "official"), validation=0.1).load()
