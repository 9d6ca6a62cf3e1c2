from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from laid_out import on_hub

from hatemtl.corpora.ethos import FILES, LABELS, Ethos
from hatemtl.corpora.folds import Folds
from hatemtl.errors import UserError

HATE = {f"dronk number {i}; or so": (0.2 if i % 3 else 0.8) for i in range(60)} | {"half a snorf": 0.5}
ASPECTS = {text: [share, 0.5, 0.49, 0, 1, 0, 0, 0.25] for text, share in HATE.items() if share >= 0.5}


def write(folder: Path, aspects: dict[str, list[float]] = ASPECTS) -> Ethos:
    folder.mkdir(exist_ok=True)
    binary = [f'"{text}";{share}' for text, share in HATE.items()]
    (folder / FILES[0]).write_text("\n".join(["comment;isHate", *binary]), encoding="utf-8")
    lines = [f'"{text} ";{";".join(map(str, row))}' for text, row in aspects.items()]
    (folder / FILES[1]).write_text("\n".join([f"comment;{';'.join(LABELS)}", *lines]), encoding="utf-8")
    return Ethos(dir=str(folder), fractions=[0.5, 0.25, 0.25])


def test_half_of_the_annotators_make_hate(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    column = posts.columns["hate"]
    assert column.space.names == ("not_hate", "hate") and column.has.all()
    assert column.values.tolist() == [int(share >= 0.5) for share in HATE.values()]
    assert posts.texts == list(HATE)


def test_aspects_are_matched_by_text_and_missing_elsewhere(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    label = posts.columns["label"]
    assert label.space.names == LABELS
    assert [text for text, has in zip(posts.texts, label.has, strict=True) if has] == list(ASPECTS)
    assert label.values[label.has].tolist() == len(ASPECTS) * [[1, 1, 0, 0, 1, 0, 0, 0]]
    assert not label.values[~label.has].any()


def test_shares_are_kept_in_training_posts_alone(tmp_path: Path) -> None:
    hard = write(tmp_path)
    posts, flags = replace(hard, soft=True).load(), hard.load()
    label, train = posts.columns["label"], posts.splits == "train"
    soft = label.has & train
    shares = np.array([ASPECTS[text] for text, has in zip(posts.texts, soft, strict=True) if has], np.float32)
    assert soft.any() and np.array_equal(label.values[soft], shares)
    assert (posts.splits == flags.splits).all()
    assert np.array_equal(label.values[~train], flags.columns["label"].values[~train])
    dealt = [Folds(number=2, fold=1).of_run(of) for of in (posts, flags)]
    (soft_label, hard_label), test = (of.columns["label"].values for of in dealt), dealt[0].splits == "test"
    assert np.array_equal(soft_label[test], hard_label[test]) and not np.array_equal(soft_label, hard_label)
    assert (label.has & ~train).any()


def test_the_hub_has_the_same_posts_but_no_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = [{"text": text, "label": int(share >= 0.5)} for text, share in HATE.items()]
    aspects = [
        {"text": text, **{name: int(x >= 0.5) for name, x in zip(LABELS, row, strict=True)}} for text, row in ASPECTS.items()
    ]
    on_hub(tmp_path, "iamollas/ethos", "binary", {"train": binary})
    folder = on_hub(tmp_path, "iamollas/ethos", "multilabel", {"train": aspects})
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda repo, **how: folder)
    official = write(tmp_path / "official")
    hub = replace(official, dir=str(tmp_path / "nothing"))
    assert hub.load().fingerprint() == official.load().fingerprint()
    with pytest.raises(
        UserError, match=f"soft=true: the hub has no shares.*; download {FILES[1]} again from .* to .*nothing"
    ):
        replace(hub, soft=True).load()


@pytest.mark.parametrize("name", FILES)
def test_one_file_without_the_other_is_refused(tmp_path: Path, name: str) -> None:
    corpus = write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}, but needs .*; download {name} again"):
        corpus.load()


def test_a_share_above_one_is_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path, {"half a snorf": [0, 0, 0, 0, 0, 0, 0, 1.2]})
    with pytest.raises(UserError, match=r"line 2, column 'sexual_orientation': '1.2', expected a number from 0 to 1"):
        corpus.load()


@pytest.mark.skipif(not (DATA / "ethos" / FILES[0]).is_file(), reason=f"no ETHOS in {DATA}")
def test_the_real_comments_have_their_published_counts() -> None:
    columns = Ethos(dir=str(DATA / "ethos"), fractions=[0.8, 0.1, 0.1]).load().columns
    assert np.bincount(columns["hate"].values).tolist() == [565, 433]
    assert np.array_equal(columns["label"].has, columns["hate"].values == 1)
