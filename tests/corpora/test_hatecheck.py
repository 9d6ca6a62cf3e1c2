from dataclasses import replace
from pathlib import Path

import pytest
from laid_out import on_hub

from hatemtl.corpora.hatecheck import HateCheck
from hatemtl.errors import UserError

HEADER = ",functionality,case_id,test_case,label_gold,target_ident,direction,focus_words"
NAMES = HEADER.split(",")[1:]
CASES = [
    ["derog_neg_emote_h", "1", "I can't stand snorfs.", "hateful", "gay people", "general", "stand"],
    ["derog_neg_emote_h", "2", "I can't stand dronks, ever.", "hateful", "women", "general", "stand"],
    ["ident_neutral_nh", "1301", "I am a snorf.", "non-hateful", "gay people", "", ""],
    ["target_obj_nh", "2500", "I can't stand soup.", "non-hateful", "", "", ""],
]


def write(folder: Path, cases: list[list[str]] = CASES) -> HateCheck:
    folder.mkdir(exist_ok=True)
    lines = [",".join([str(i), *(f'"{cell}"' for cell in case)]) for i, case in enumerate(cases)]
    (folder / "test_suite_cases.csv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return HateCheck(dir=str(folder))


def test_all_cases_are_for_testing(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    assert set(posts.splits) == {"test"}
    assert (posts.ids, posts.texts[1]) == (["1", "2", "1301", "2500"], "I can't stand dronks, ever.")


def test_a_case_has_a_label_a_test_and_maybe_a_group(tmp_path: Path) -> None:
    columns = write(tmp_path).load().columns
    read = {name: [column.space.names[i] for i in column.values[column.has]] for name, column in columns.items()}
    assert read == {
        "label": ["hateful", "hateful", "non_hateful", "non_hateful"],
        "functionality": ["derog_neg_emote_h", "derog_neg_emote_h", "ident_neutral_nh", "target_obj_nh"],
        "target": ["gay_people", "women", "gay_people"],
    }
    assert columns["functionality"].space.names == ("derog_neg_emote_h", "ident_neutral_nh", "target_obj_nh")
    assert columns["target"].has.tolist() == [True, True, True, False] and columns["target"].values[3] == 0


def test_labels_are_called_as_the_head_under_test_calls_them(tmp_path: Path) -> None:
    label = replace(write(tmp_path), labels=["not_hate", "hate"]).load().columns["label"]
    assert [label.space.names[i] for i in label.values] == ["hate", "hate", "not_hate", "not_hate"]
    for labels in (["hate"], ["hate", "hate"], ["a", "b", "c"]):
        with pytest.raises(UserError, match="expected two names"):
            HateCheck(dir=".", labels=labels)


def test_the_hub_has_the_same_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{name: cell or None for name, cell in zip(NAMES, case, strict=True)} for case in CASES]
    folder = on_hub(tmp_path, "Paul/hatecheck", "default", {"test": rows})
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda repo, **how: folder)
    official, hub = write(tmp_path / "official"), HateCheck(dir=str(tmp_path / "nothing"))
    assert hub.load().fingerprint() == official.load().fingerprint()


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="line 2, column 'label_gold': 'spiteful', expected one of non_hateful, hateful; download"
    ):
        write(tmp_path, [["a", "1", "hm", "spiteful", "", "", ""]]).load()


def test_a_file_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_suite_cases.csv").write_text("functionality,case_id,test_case,gold_label\na,1,hm,hateful\n")
    with pytest.raises(UserError, match="has no column 'label_gold'"):
        HateCheck(dir=str(tmp_path)).load()
