"""Reads labels off the folder that this file lies in, with torch, transformers and safetensors alone.

    python load.py "a text" "another one"

prints a line a text. In a program, `from load import Reader`; `Reader(folder)(texts)` gives each task's scores of the texts.
hatemtl puts a copy of this file beside what it exports.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer


class Reader:
    """The encoder and the heads of a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder).float().eval()
        self.weights = load_file(Path(folder) / "heads.safetensors")
        self.preprocess = _preprocess(Path(folder))
        self.heads: dict[str, Any] = json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8"))

    @torch.inference_mode()
    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Any]:
        """Each task's scores, (texts, labels); for tokens a list of its words' scores a text.

        seconds: the text that each is read with. For choice, (texts, 1): of a text's choices the right one has the highest.
        """
        # as they were read in training: words with one space between
        texts, seconds = ([self.preprocess(" ".join(text.split())) for text in some or ()] for some in (texts, seconds))
        types = None if seconds else False  # as the model was trained: a text alone has none
        how: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt", "return_token_type_ids": types}
        batch = self.tokenizer(texts, seconds or None, return_offsets_mapping=True, **how)
        spans = batch.pop("offset_mapping").tolist()
        hidden = self.encoder(**batch).last_hidden_state
        found: dict[str, Any] = {task: self._scores(task, hidden, batch["attention_mask"]) for task in self.heads}
        for task, scores in found.items():
            if self.heads[task]["kind"] == "tokens":
                mine = [[place == 0 for place in batch.sequence_ids(i)] for i in range(len(texts))]
                found[task] = list(map(_words, texts, mine, spans, scores.squeeze(-1).tolist()))
        return found

    def said(self, task: str, scores: Any, text: str) -> Any:
        """Gives what the scores of one text say: a label, labels, a number, or the words that are marked."""
        kind, names, thresholds = (self.heads[task].get(key) for key in ("kind", "names", "thresholds"))
        scores = torch.as_tensor(scores)
        if kind == "multiclass":
            return names[int(scores.argmax())]
        if kind == "ordinal":  # the median
            return names[int((scores.cumsum(0)[:-1] < 0.5).sum())]
        if kind in ("multilabel", "tokens"):
            all_of_them = names if kind == "multilabel" else text.split()
            chosen = (scores >= torch.tensor(thresholds)).tolist()  # in float32, as they were trained
            return [name for name, yes in zip(all_of_them, chosen, strict=False) if yes]
        return float(scores)

    def _scores(self, task: str, hidden: Tensor, mask: Tensor) -> Tensor:
        kind = self.heads[task]["kind"]
        own = {key.partition(".")[2]: weight for key, weight in self.weights.items() if key.partition(".")[0] == task}
        x = hidden if kind == "tokens" else _pooled(hidden, mask, self.heads[task]["pooling"], own)
        places = sorted({int(key.split(".")[1]) for key in own if key.startswith("layers.")})
        for place in places:
            x = F.linear(x, own[f"layers.{place}.weight"], own[f"layers.{place}.bias"])
            x = x if place == places[-1] else F.gelu(x)
        if kind == "multiclass":
            return x.softmax(-1)
        if kind == "ordinal":  # P(level > k) = σ(x - θₖ)
            first, gaps = own["first_and_gaps"][:1], own["first_and_gaps"][1:]
            above = (x - torch.cat([first, F.softplus(gaps) + 1e-4]).cumsum(0)).sigmoid()
            return F.pad(above, (1, 0), value=1.0) - F.pad(above, (0, 1))
        if kind == "score":
            return x * own["scale"][1] + own["scale"][0]
        return x if kind == "choice" else x.sigmoid()


def _preprocess(folder: Path) -> Callable[[str], str]:
    """Rewrites a text as the network was trained to read it, where preprocess.py lies beside; each word stays one."""
    if not (folder / "preprocess.json").is_file():
        return str
    spec: Any = importlib.util.spec_from_file_location("preprocess", folder / "preprocess.py")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Preprocess(**json.loads((folder / "preprocess.json").read_text(encoding="utf-8")))


def _words(text: str, mine: list[bool], spans: list[list[int]], scores: list[float]) -> list[float]:
    """A word's score is that of the token it begins with; words are what spaces part. mine: the tokens of this text."""
    words: dict[int, float] = {}
    for (first, end), inside, score in zip(spans, mine, scores, strict=True):
        if inside and end > first:
            words.setdefault(text.count(" ", 0, end), score)
    return [words.get(i, float("nan")) for i in range(max(words, default=-1) + 1)]


def _pooled(hidden: Tensor, mask: Tensor, how: str, own: dict[str, Tensor]) -> Tensor:
    """(B, T, D) → (B, D): the first token, the mean of all, or a learned weighting of them."""
    if how == "cls":
        return hidden[:, 0]
    logits = torch.zeros(mask.shape)
    if how == "attention":
        logits = F.linear(hidden, own["pool.query.weight"], own["pool.query.bias"]).squeeze(-1)
    return torch.einsum("bt,btd->bd", logits.masked_fill(mask == 0, -torch.inf).softmax(1), hidden)


if __name__ == "__main__":
    reader = Reader(Path(__file__).parent)
    found = reader(sys.argv[1:])
    for i, text in enumerate(sys.argv[1:]):
        print(json.dumps({task: reader.said(task, scores[i], text) for task, scores in found.items()}, ensure_ascii=False))
