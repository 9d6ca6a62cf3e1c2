"""Records what AdapterHub's library makes of bottlenecks and a fusion: `uv run tests/methods/bottleneck/fixtures.py`.

recorded/ then has, of each, the adapter in the library's own files, and recorded.json what the small encoder of `encoder`
says with it and the norms of its gradients: for tests where the library is missing.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

HERE = Path(__file__).parent / "recorded"
KINDS = {"seq": "seq_bn", "double_seq": "double_seq_bn", "par": "par_bn"}
SIZE: dict[str, Any] = {
    **{"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"max_position_embeddings": 16, "attn_implementation": "eager"},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def spread(module: nn.Module, among: str = "") -> None:
    """Fills parameters with numbers in ±1 that hang on nothing but their order: sines of whole numbers."""
    for i, (name, parameter) in enumerate(sorted(module.named_parameters())):
        if among in name:
            numbers = torch.arange(parameter.numel(), dtype=torch.float64).mul_(1.7).add_(i).sin_()
            size = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.data.copy_(numbers.mul_(size).add_(float("LayerNorm.weight" in name)).view(parameter.shape))


def encoder() -> Any:
    """A BERT of few numbers that no draw has made."""
    model = BertModel(BertConfig(**SIZE)).eval()
    model.pooler = None
    spread(model)
    return model


def said(model: Any) -> tuple[Tensor, dict[str, float]]:
    """Hidden states of two posts, one padded, and the norm of each trained parameter's gradient."""
    ids = 3 + torch.arange(14).view(2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    (hidden * torch.arange(hidden.numel()).mul(0.9).sin().view(hidden.shape)).sum().backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), norms


def main() -> None:
    from methods.test_base import RATES, record

    from hatemtl.methods.adapterhub.several_adapters import LIBRARY
    from hatemtl.methods.adapterhub.train_and_load import AdapterFusion, AdapterHubAdapter

    found = {}
    for kind, config in {**KINDS, "other": "seq_bn"}.items():
        method = AdapterHubAdapter(config=config, reduction_factor=4, leave_out=[], **RATES)
        model: Any = method.attach(encoder(), name="run", seed=0).model
        found[kind] = _keep(model, kind, "adapters", LIBRARY, record)
    matrices = {"query": True, "key": True, "value": True, "width": None, "dropout": 0.0}
    fusion = AdapterFusion(sources=str(HERE / "[so]*"), **matrices, **RATES)
    found["fusion"] = _keep(fusion.attach(encoder(), name="run", seed=0).model, "fusion", "fusion_layer", LIBRARY, record)
    (HERE / "recorded.json").write_text(json.dumps(found, indent=1) + "\n")


def _keep(model: Any, kind: str, among: str, library: Any, record: Any) -> dict[str, Any]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(
                torch.arange(parameter.numel()).mul(math.sqrt(len(name))).sin().mul(0.3).view(parameter.shape)
            )
    record(HERE / kind, library="adapterhub")
    library.save(model, "run", HERE / kind)
    hidden, norms = said(model)
    return {"hidden": [[round(x, 6) for x in row] for row in hidden.tolist()], "gradients": norms}


if __name__ == "__main__":
    main()
