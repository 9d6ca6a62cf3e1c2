"""Says a model card's facts for programs: the metadata of the hub, and its files of evaluation results."""

from datetime import date
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hatemtl.using.publish.evaluation import CONFIDENCE
from hatemtl.using.publish.facts import Facts

# The hub's names of tasks and of metrics.
PIPELINES = {"sequence": "text-classification", "tokens": "token-classification"}
METRICS = {"macro_f1": "f1", "micro_f1": "f1", "matthews": "matthews_correlation"}


def header(facts: Facts) -> str:
    """The YAML at the head of the card, between its lines of dashes."""
    results = [
        EvalResult(
            task_type="token-classification" if head.space.about == "words" else "text-classification",
            task_name=task,
            dataset_type=of.hub or of.name,
            dataset_name=of.name,
            dataset_split="test",
            dataset_args=dict(facts.cut[task]) if facts.cut.get(task) else None,
            metric_type=METRICS.get(name, name),
            metric_name=f"{name}, {CONFIDENCE:.0%} interval {low:.3f} to {high:.3f}",
            metric_value=round(value, 6),
        )
        for task, head in facts.heads.items()
        for of in facts.corpora[task]
        for name, label, value, low, high in facts.figures[task].rows
        if label is None
    ]
    form = facts.said.form if facts.said is not None else None
    given: dict[str, Any] = {
        "language": facts.language,
        "license": facts.license,
        "base_model": facts.base if facts.base and not facts.base.startswith((".", "/", "~")) else None,
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
        entries = [
            {
                "dataset": {"id": of.hub, "task_id": task},
                "value": round(found.best[2], 6),
                "date": day.isoformat(),
                **source,
                "notes": f"{found.primary} of {found.posts} test posts, {CONFIDENCE:.0%} interval {found.best[3]:.3f} to "
                f"{found.best[4]:.3f}, one run",
            }
            for of in facts.corpora[task]
            if of.hub and not facts.cut.get(task)
        ]
        if entries:
            files[f"{task}.yaml"] = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    return files
