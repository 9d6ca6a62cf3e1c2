"""Says a model card's facts for programs: the metadata of the hub, and its files of evaluation results."""

import math
import re
from collections.abc import Sequence
from datetime import date
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hatemtl.corpora.origin import Origin
from hatemtl.machine.hub import parted
from hatemtl.using.publish.evaluation import CONFIDENCE
from hatemtl.using.publish.facts import Facts
from hatemtl.using.publish.markdown import span

# The hub's names of tasks and of metrics.
PIPELINES = {"sequence": "text-classification", "tokens": "token-classification"}
METRICS = {"macro_f1": "f1", "micro_f1": "f1", "matthews": "matthews_correlation"}


def header(facts: Facts) -> str:
    """The YAML at the head of the card, between its lines of dashes."""
    results = [
        EvalResult(
            task_type="token-classification" if head.space.about == "words" else "text-classification",
            task_name=task,
            dataset_type=_corpus(facts.corpora[task])[0],
            dataset_name=_corpus(facts.corpora[task])[1],
            dataset_config=task,  # without which the hub's client puts another task of the corpus under this one's name
            dataset_split="test",
            dataset_args=dict(facts.cut[task]) if facts.cut.get(task) else None,
            metric_type=METRICS.get(name, name),
            metric_name=name if math.isnan(low) else f"{name}, {CONFIDENCE:.0%} interval {low:.3f} to {high:.3f}",
            metric_value=round(value, 6),
        )
        for task, head in facts.heads.items()
        for name, label, value, low, high in facts.figures[task].rows
        if label is None and math.isfinite(value)
    ]
    form = facts.said.form if facts.said is not None else None
    given: dict[str, Any] = {
        "language": facts.language,
        "license": facts.license,
        "base_model": parted(facts.base)[0] if facts.base and not facts.base.startswith((".", "/", "~")) else None,
        "datasets": [*dict.fromkeys(of.hub for each in facts.corpora.values() for of in each if of.hub)] or None,
        "library_name": next((name for name in facts.layouts if name != "adapterhub"), "adapters"),
        "pipeline_tag": PIPELINES[form] if form else None,
        "tags": ["hatemtl", "hate-speech-detection", "text-classification", *facts.layouts],
        "metrics": [*dict.fromkeys(METRICS.get(of.primary, of.primary) for of in facts.figures.values())],
    }
    data = ModelCardData(model_name=facts.name, eval_results=results, **given)
    return f"---\n{data.to_yaml()}\n---\n\n"


def eval_results(facts: Facts, day: date) -> dict[str, str]:
    """The hub's files of evaluation results by name: what epochs were compared by, of tasks on the hub's own test posts."""
    files, source = {}, {}
    if facts.hub_id is not None:
        source = {"source": {"url": f"https://huggingface.co/{facts.hub_id}", "name": "model card"}}
    for task, found in facts.figures.items():
        of, *others = facts.corpora[task]
        _, _, value, low, high = found.best
        if others or not of.hub or facts.cut.get(task) or not math.isfinite(value):
            continue
        entry = {
            "dataset": {"id": of.hub, "task_id": task},
            "value": round(value, 6),
            "date": day.isoformat(),
            **source,
            "notes": f"{found.primary} of {found.posts} test posts, {CONFIDENCE:.0%} interval {span(low, high)}, one run",
        }
        name = re.sub(r"\W", "_", task)  # that is no path
        files[f"{name}.yaml"] = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    return files


def _corpus(origins: Sequence[Origin]) -> tuple[str, str]:
    """The type and name of the corpus that a figure is of: several that were joined are one, since it is of none of them."""
    if len(origins) == 1:
        return origins[0].hub or origins[0].name, origins[0].name
    return "joint", " and ".join(of.name for of in origins)
