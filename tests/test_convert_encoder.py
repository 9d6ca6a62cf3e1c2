"""An encoder that is published as a pickle is made one of safetensors: the same numbers, and no code of it is run."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from encoders.test_pretrained import at, change, hidden, ids, save
from transformers import BertweetTokenizer, PreTrainedModel

from scripts.convert_encoder import main


def pickled(folder: Path, kind: str = "bert") -> PreTrainedModel:
    """Lays out an encoder as older repositories of the hub have it."""
    model = save(kind, folder)
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in model.state_dict().items()}
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize("kind", ["bert", "camembert"])
def test_the_numbers_are_the_same(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pickled(tmp_path / "old", kind)
    assert main([str(tmp_path / "old"), str(tmp_path / "deep/new")]) == 0
    assert f"encoder.source={tmp_path}/deep/new" in capsys.readouterr().out
    encoder = at(tmp_path / "deep/new")
    found, expected = (hidden(each, ids()) for each in (encoder.model(dropout=False, seed=0), model))
    assert torch.allclose(found, expected, atol=1e-5)
    assert encoder.tokenizer()("this is fine")["input_ids"] == [1, 5, 7, 8, 2]


def test_a_tokenizer_without_a_fast_class_is_what_its_rules_say(tmp_path: Path) -> None:
    """BERTweet has the rules of a fast tokenizer, and transformers has but a slow class of its name."""
    folder = tmp_path / "old"
    pickled(folder, "roberta")
    rules = (folder / "tokenizer.json").read_text()
    (folder / "vocab.txt").write_text("this 1\nis 1\n")
    (folder / "bpe.codes").write_text("t h 1\n")
    BertweetTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes")).save_pretrained(folder)
    change(folder, tokenizer_class="BertweetTokenizer")
    (folder / "tokenizer.json").write_text(rules)
    assert main([str(folder), str(tmp_path / "new")]) == 0
    assert at(tmp_path / "new").tokenizer()("this is fine")["input_ids"] == [1, 5, 7, 8, 2]
    (folder / "tokenizer.json").unlink()
    assert main([str(folder), str(tmp_path / "newer")]) == 2


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(self.path), "w")  # type: ignore[attr-defined]


def test_nothing_in_a_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickled(tmp_path / "old")
    bomb = Bomb()
    bomb.path = tmp_path / "boom"  # type: ignore[attr-defined]
    (tmp_path / "old/pytorch_model.bin").write_bytes(pickle.dumps({"weight": bomb}, protocol=2))
    assert main([str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    assert "holds more than tensors" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize("held", [torch.ones(2), {"config": "x"}, [torch.ones(2)]])
def test_what_is_no_map_of_tensors_is_told(held: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pickled(tmp_path / "old")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "old/pytorch_model.bin")  # as some trainers leave it
    assert main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    torch.save(held, tmp_path / "old/pytorch_model.bin")
    assert main([str(tmp_path / "old"), str(tmp_path / "newer")]) == 2
    assert "holds more than tensors by name" in capsys.readouterr().err


def test_what_cannot_be_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("bert", tmp_path / "safe")
    (tmp_path / "there").mkdir()
    for source, out, said in (
        ("safe", "new", "has no pytorch_model.bin"),
        ("safe", "there", "is there already"),
        ("not a name", "new", "is no name of a hub model"),
    ):
        given = tmp_path / source
        assert main([str(given) if given.exists() else source, str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
    pickled(tmp_path / "code")
    config = json.loads((tmp_path / "code/config.json").read_text())
    (tmp_path / "code/config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.X"}}))
    assert main([str(tmp_path / "code"), str(tmp_path / "new")]) == 2
    assert "auto_map" in capsys.readouterr().err and not (tmp_path / "new").exists()
