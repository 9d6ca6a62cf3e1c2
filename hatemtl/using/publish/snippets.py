"""Writes the lines of Python with which each library reads a published folder; all give the same scores."""

from hatemtl.machine.hub import parted
from hatemtl.using.publish.said_head import SaidHead

TEXTS = '["A text.", "Another one, which says a little more."]'
BODY = """\
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits"""
ACTIVATIONS = {"softmax": ".softmax(dim=-1)", "sigmoid": ".sigmoid()", "none": ""}


def beginning(hub_id: str | None) -> str:
    """Finds the folder, and has texts to read."""
    here = f'folder = Path(snapshot_download("{hub_id}"))' if hub_id else 'folder = Path(".")  # this folder'
    fetch = "\nfrom huggingface_hub import snapshot_download" if hub_id else ""
    return f"from pathlib import Path\n{fetch}\n{here}\ntexts = {TEXTS}"


def transformers(said: SaidHead) -> str:
    """Reads the merged model."""
    if said.form == "sequence":
        return (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model=str(folder), top_k=None, truncation=True)\n'
            'scores = [{one["label"]: one["score"] for one in of_text} for of_text in classify(texts)]\nprint(scores)'
        )
    load = f"model = {said.class_name}.from_pretrained(folder).eval()"
    return f"import torch\nfrom transformers import {said.class_name}, AutoTokenizer\n\n{load}\n{_reading(said)}"


def peft(said: SaidHead) -> str:
    """Reads the adapter and the head with PEFT, on the encoder that it was trained on."""
    name = said.class_name.replace("AutoModel", "AutoPeftModel")
    act = getattr(said.model.config, "pooler_hidden_act", None)  # DeBERTa's, which another one than its own stands for
    more = f", pooler_hidden_act={act!r}" if act and said.form == "sequence" else ""
    return (
        f"import torch\nfrom peft import {name}\nfrom transformers import AutoConfig, AutoTokenizer\n\n"
        f"names = AutoConfig.from_pretrained(folder).id2label\n"
        f'model = {name}.from_pretrained(folder / "peft", id2label=names{more}).eval()\n{_reading(said)}'
    )


def adapterhub(said: SaidHead, base: str) -> str:
    """Reads the adapter and the head with AdapterHub's library, on the encoder that it was trained on."""
    repo, revision = parted(base)
    at = f", revision={revision!r}" if revision else ""
    return (
        "import torch\nfrom adapters import AutoAdapterModel\nfrom transformers import AutoConfig, AutoTokenizer\n\n"
        f"model = AutoAdapterModel.from_pretrained({repo!r}{at})\n"
        'model.load_adapter(str(folder / "adapterhub"), set_active=True, use_safetensors=True)\n'
        "model.eval()\nmodel.config.id2label = AutoConfig.from_pretrained(folder).id2label\n"
        f"{_reading(said)}"
    )


def reader() -> str:
    """Reads all heads with load.py."""
    return (
        "import sys\n\nsys.path.insert(0, str(folder))\nfrom load import Reader  # a file of this folder\n\n"
        "scores = Reader(folder)(texts)\nprint(scores)"
    )


def _reading(said: SaidHead) -> str:
    tokenizer, name = "tokenizer = AutoTokenizer.from_pretrained(folder)", "list(model.config.id2label.values())"
    body, activation = BODY, ACTIVATIONS[said.activation]
    if said.form == "tokens" and not said.mean:
        body = body.replace("padding=True", "return_offsets_mapping=True, padding=True").replace(
            "\nwith", '\nspans = batch.pop("offset_mapping").tolist()\nwith'
        )
        return (
            f"{tokenizer}\n{body}\nmarked = logits.softmax(dim=-1)[..., 1].tolist()\n"
            "scores = [  # of a word counts the first piece\n"
            "    [(text[a:b], score) for (a, b), score in zip(span, row) if b > a]\n"
            "    for text, span, row in zip(texts, spans, marked)\n]\nprint(scores)"
        )
    mean = ""
    if said.mean:
        mean = (
            'mask = batch["attention_mask"].unsqueeze(-1)\n'
            "logits = (logits * mask).sum(dim=1) / mask.sum(dim=1)  # a text's are the mean of its tokens'\n"
        )
    return (
        f"{tokenizer}\n{body}\n{mean}rows = logits{activation}.tolist()\n"
        f"scores = [dict(zip({name}, row)) for row in rows]\nprint(scores)"
    )


def whole(begin: str, rest: str) -> str:
    """One program of a beginning and the rest, its imports first."""
    lines = [*begin.splitlines(), *rest.splitlines()]
    first = [line for line in lines if line.startswith(("import ", "from ")) and "load import" not in line]
    return "\n".join([*first, "", *[line for line in lines if line not in first and line]])
