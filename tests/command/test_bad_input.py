"""Bad input, a case a line: each ends in one message, exit 2, no stack, and with nothing written or changed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from conftest import Outcome
from pyarrow import parquet
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from hatemtl.corpora.files import read_table
from hatemtl.encoders.files import WAY_OUT
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.methods.base import LOADERS
from hatemtl.saved_runs.saved_run import (
    LIBRARIES,
    SavedRun,
    read_results,
    read_tables,
    write_config,
    write_labels,
    write_record,
)

LONG = "a" * 5000
NESTED = "[" * 100_000 + "]" * 100_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
TASK: dict[str, Any] = {"corpus": {}, "head": {"pooling": "mean"}}
CONFIG: dict[str, Any] = {"choices": {"encoder": "tiny"}, "tasks": {"target": TASK}, "encoder": {"max_length": 128}}
RECORD = {"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "someone/encoder"}


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As much of a saved run as is read before its weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, CONFIG)
    write_labels(folder, {"target": LabelSpace("multilabel", ("a", "b"))})
    write_record(folder, RECORD)
    return folder


def as_config(**keys: Any) -> str:
    return yaml.safe_dump({**CONFIG, **keys})


def as_record(**keys: Any) -> str:
    return json.dumps({**RECORD, **keys})


def as_labels(**keys: Any) -> str:
    return json.dumps({"target": {"kind": "multilabel", "names": ["a", "b"], **keys}})


def head(run: SavedRun) -> Any:
    return run.configured("tasks", "target", "head")


def length(run: SavedRun) -> Any:
    return run.configured("encoder", "max_length")


SMALL: dict[str, Any] = {"model_type": "bert", "vocab_size": 9, "hidden_size": 4, "intermediate_size": 4}
SMALL |= {"num_hidden_layers": 1, "num_attention_heads": 1}


def small_encoder(folder: Path, **keys: Any) -> Encoder:
    """An encoder of a folder whose weights, if there are any, are a tiny BERT's."""
    (folder / "config.json").write_text(json.dumps({**SMALL, **keys}))
    if not (folder / "model.safetensors").exists():
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return Encoder(source=str(folder), max_length=8, attention="eager", random=None)


def config(run: SavedRun) -> Any:
    return run.config


def record(run: SavedRun) -> Any:
    return run.record


def labels(run: SavedRun) -> Any:
    return run.labels


def results(run: SavedRun) -> Any:
    return read_results(run.folder)


def tables(run: SavedRun) -> Any:
    return read_tables(run.folder, run.record["tables"])


@pytest.mark.parametrize(
    ("file", "content", "read", "said"),
    [
        ("config.yaml", yaml.safe_dump({"tasks": {}}), length, "has no encoder;"),
        ("config.yaml", as_config(encoder={}), length, "has no encoder.max_length;"),
        ("config.yaml", as_config(tasks={}), head, "has no tasks.target;"),
        ("config.yaml", as_config(tasks={"target": {}}), head, "has no tasks.target.head;"),
        ("config.yaml", yaml.safe_dump({"encoder": {}}), config, "has no tasks;"),
        ("config.yaml", as_config(tasks=None), config, "tasks is None, expected keys with values;"),
        ("config.yaml", as_config(tasks=["target"]), config, "tasks is ['target'], expected keys"),
        ("config.yaml", as_config(tasks={"target": 3}), config, "tasks.target is 3, expected keys"),
        ("config.yaml", as_config(tasks={"target": {"head": "x"}}), config, "tasks.target.head is 'x', expected keys"),
        ("config.yaml", as_config(encoder=3), config, "encoder is 3, expected keys with values;"),
        ("config.yaml", as_config(trainer=[1]), config, "trainer is [1], expected keys with values;"),
        ("config.yaml", as_config(choices="x"), config, "choices is 'x', expected keys with values or null;"),
        ("config.yaml", "", config, "holds None, expected keys with values;"),
        ("config.yaml", "3", config, "holds 3, expected keys with values;"),
        ("config.yaml", "tasks: {targ", config, "not valid YAML"),
        ("config.yaml", "\0", config, "not valid YAML"),
        ("config.yaml", "tasks: {}\nday: 2001-02-30\n", config, "not valid YAML (day is out of range"),
        ("config.yaml", f"tasks: {{}}\nseed: {'9' * 4301}\n", config, "not valid YAML (Exceeds the limit"),
        ("config.yaml", "tasks: !!python/object/apply:os.getcwd []\n", config, "not valid YAML (could not determine"),
        (
            "config.yaml",
            f"tasks: {'[' * 1000}{']' * 1000}\n",
            config,
            "config.yaml: ",
        ),  # who gives up first is YAML's affair
        ("config.yaml", f"tasks: {{}}\n{BOMB}", config, "an alias, *name, which no such file has"),
        ("config.yaml", "tasks: &a {target: *a}\n", config, "an alias"),
        ("config.yaml", "- &a [x]\n- [*a, *a]\n", config, "an alias"),
        ("run.json", as_record(tables="x"), tables, "tables is 'x', expected a list;"),
        (
            "run.json",
            as_record(tables=["../victim.csv"]),
            tables,
            "tables holds '../victim.csv', expected names",
        ),
        ("run.json", as_record(tables=["/tmp/victim.csv"]), tables, "expected names of CSV files of"),
        ("run.json", as_record(tables=["results.csv"]), tables, "expected names of CSV files of"),
        ("run.json", as_record(tables=[["a.csv"]]), tables, "expected names of CSV files of"),
        ("run.json", "[]", record, "holds [], expected keys with values;"),
        ("run.json", as_record(library=None), record, "library is None, expected one of adapterhub, peft"),
        ("run.json", as_record(library=["peft"]), record, "library is ['peft'], expected one of"),
        ("run.json", as_record(library="../x"), record, "library is '../x', expected one of"),
        ("run.json", as_record(versions=3), record, "versions is 3, expected keys with values;"),
        ("run.json", as_record(lexicons=[]), record, "lexicons is [], expected keys with values;"),
        ("run.json", as_record(ledger="x"), record, "ledger is 'x', expected keys with values or null;"),
        ("run.json", as_record(ledger={"seconds": 3}), record, "ledger.seconds is 3, expected keys with values;"),
        ("run.json", as_record(ledger={"tokens": {"training": "x"}}), record, "ledger.tokens.training is 'x', expected a"),
        ("run.json", as_record(ledger={"price": []}), record, "ledger.price is [], expected a number or null;"),
        (
            "run.json",
            as_record(ledger={"device": [{}]}),
            record,
            "ledger.device.0 is {}, expected a text, a number or null;",
        ),
        ("run.json", as_record(method=[]), record, "method is [], expected a text;"),
        ("run.json", f'{{"method": {NESTED}}}', record, "not valid JSON (maximum recursion depth"),
        ("labels.json", "[1]", labels, "holds [1], expected keys with values;"),
        ("labels.json", f'{{"target": {NESTED}}}', labels, "not valid JSON (maximum recursion depth"),
        ("labels.json", f'{{"target": {"[" * 100}{"]" * 100}}}', labels, "more than 64 levels"),
        ("labels.json", f'{{"target": {"9" * 4301}}}', labels, "not valid JSON (Exceeds the limit"),
        ("labels.json", '{"target": NaN}', labels, "the labels of task 'target' are nan"),
        ("labels.json", as_labels(names=["\ud800", "b"]), labels, "'\\ud800' holds half an emoji"),
        ("labels.json", '{"\\ud800": {}}', labels, "'\\ud800' holds half an emoji"),
        ("labels.json", as_labels(kind=["multilabel"]), labels, "expected their kind and names;"),
        ("labels.json", as_labels(kind=None), labels, "expected their kind and names;"),
        ("labels.json", as_labels(names=["a", "a"]), labels, "expected their kind and names;"),
        ("results.csv", "metric,value\nx,y\n", results, "expected the columns metric and value"),
        ("results.csv", "a\nb\n", results, "expected the columns metric and value"),
        ("results.csv", "metric,value\nx\n", results, "expected the columns metric and value"),
    ],
)
def test_a_file_of_a_saved_run(run: Path, file: str, content: str, read: Callable[..., Any], said: str) -> None:
    (run / file).write_text(content, encoding="utf-8")
    before = contents(run)
    with pytest.raises(UserError) as error:
        read(SavedRun(run))
    assert str(error.value).startswith(f"{run / file}: ")
    assert said in str(error.value)
    assert str(error.value).endswith("train the run again with overwrite=true")
    assert contents(run) == before


def test_every_library_has_a_method_that_loads_it() -> None:
    assert {*LIBRARIES} == {*LOADERS}


@pytest.mark.parametrize("given", [LONG, f"me/{LONG}/x", f"/tmp/{LONG}", "a\0b"])
def test_a_path_of_no_saved_run(given: str) -> None:
    with pytest.raises(UserError, match="there is no such saved run; train one"):
        SavedRun(given)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_type": "t5"}, "t5 is no encoder of text that hatemtl can train"),
        ({"model_type": "clip"}, "do not fit the CLIPModel of"),
        ({"model_type": "whisper"}, "whisper is no encoder of text that hatemtl can train"),
        ({"model_type": "timm_backbone"}, "timm_backbone is no encoder of text that hatemtl can train"),
        ({"model_type": "nope"}, "cannot be read (The checkpoint you are trying to load has model type `nope`"),
        ({"pad_token_id": 99}, "cannot be read (Padding_idx must be within num_embeddings)"),
        ({"pad_token_id": -99}, "cannot be read (Padding_idx must be within num_embeddings)"),
        ({"pad_token_id": "x"}, "cannot be read ("),
    ],
)
def test_an_encoder_of_another_family(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        small_encoder(tmp_path, **keys).model(dropout=False, seed=0)
    assert said in str(error.value)
    assert str(error.value).endswith(WAY_OUT)


def test_hidden_states_that_an_encoder_gives_otherwise(tmp_path: Path) -> None:
    own = BertModel(BertConfig(**SMALL))
    own.save_pretrained(tmp_path)
    encoder = small_encoder(tmp_path, output_hidden_states=True, return_dict=False)
    given = encoder.model(dropout=False, seed=0)(torch.tensor([[1, 2]]))
    assert given.hidden_states is None
    assert given.last_hidden_state.shape == (1, 2, 4)


TEXT = b"text\nhello\n"


@pytest.mark.parametrize(
    ("name", "content", "encoding", "said"),
    [
        ("p.jsonl", f'{{"x": {NESTED}}}'.encode(), "utf-8", "line 1: not valid JSON (maximum recursion depth"),
        ("p.jsonl", b'{}\n{"x": ' + b"9" * 4301 + b"}", "utf-8", "line 2: not valid JSON (Exceeds the limit"),
        ("p.jsonl", b'{"text": "\xed\xa0\x80"}', "utf-8", "line 1: byte 0xed is no UTF-8"),
        ("p.jsonl", b'{"text": ', "utf-8", "line 1: not valid JSON (Expecting value)"),
        ("p.json", NESTED.encode(), "utf-8", "p.json: not valid JSON (maximum recursion depth"),
        ("p.json", b"9" * 4301, "utf-8", "p.json: not valid JSON (Exceeds the limit"),
        ("p.csv", TEXT, "undefined", "encoding=undefined: no such encoding"),
        ("p.csv", TEXT, "idna", "encoding=idna: no such encoding"),
        ("p.csv", TEXT, "hex", "encoding=hex: no such encoding"),
        ("p.csv", TEXT, "utf-9", "encoding=utf-9: no such encoding"),
        ("p.csv", TEXT, "utf-8\0", "no such encoding"),
        ("p.csv", TEXT, "", "encoding=: no such encoding"),
        ("p.csv", TEXT, "utf-16", "no UTF-16" if sys.version_info >= (3, 13) else "UTF-16 stream does not start with BOM"),
        ("p.csv", TEXT, "utf-32", "byte 0x74 is no UTF-32"),
        ("p.csv", TEXT.decode().encode("utf-16"), "utf-8-sig", "byte 0xff is no UTF-8"),
        ("p.csv", TEXT.decode().encode("utf-16") + b"\0", "utf-16", "byte 0x00 is no UTF-16"),
        ("p.parquet", b"PAR1xxxxPAR1", "utf-8", "cannot be read"),
    ],
)
def test_a_file_of_posts(tmp_path: Path, name: str, content: bytes, encoding: str, said: str) -> None:
    (path := tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_table(path, delimiter=None, encoding=encoding, keys="predict.")
    assert said in str(error.value)


def test_a_parquet_file_with_bytes_where_texts_are_asked_for(tmp_path: Path) -> None:
    how: dict[str, Any] = {"delimiter": None, "encoding": "utf-8", "keys": ""}
    parquet.write_table(pa.table({"text": [b"hello"]}), path := tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"row 1, column 'text': b'hello', expected a text"):
        read_table(path, **how).posts("text")
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    parquet.write_table(pa.table({"text": broken}), path)
    with pytest.raises(UserError, match=r"p.parquet cannot be read \(.*Invalid UTF8 sequence"):
        read_table(path, **how)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["action=predict", "load_path=RUN", "predict.input=DIR/p.csv", "predict.output=[a,b]"], "expected a text or null"),
        (["action=export", "load_path=RUN", "export.format=merged", "export.path=[a,b]"], "expected a text or null"),
        (["action=predict", f"load_path={LONG}", "predict.input=DIR/p.csv"], "there is no such saved run"),
        (["action=predict", f"load_path=me/{LONG}", "predict.input=DIR/p.csv"], "me/aaa"),
        (["encoder=tiny", "corpus@tasks.target.corpus=sample", f"save_path=DIR/{LONG}"], "no run can be left there"),
        (["tasks=[table]", "tasks.table.column=x", f"tasks.table.corpus.path={LONG}.csv"], "File name too long"),
        (["encoder=tiny", f"data.dir={LONG}"], "File name too long; type data.dir=FOLDER"),
    ],
)
def test_a_command(cli: Callable[..., Outcome], run: Path, arguments: list[str], said: str) -> None:
    (run.parent / "p.csv").write_bytes(TEXT)
    before = contents(run.parent)
    given = [word.replace("RUN", str(run)).replace("DIR", str(run.parent)) for word in arguments]
    outcome = cli(*given)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("error: ") == 1
    assert contents(run.parent) == before
