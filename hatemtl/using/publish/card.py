"""Writes a model card from a saved run: everything in it was measured, typed, or is said of the corpora in their files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatemtl.corpora.origin import Origin
from hatemtl.heads.base import Head
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.publish import snippets
from hatemtl.using.publish.evaluation import CONFIDENCE, RESAMPLES, Figures, OfGroup, by_group
from hatemtl.using.publish.markdown import block, code, plain, table
from hatemtl.using.publish.said_head import SaidHead

ABOUT = {
    "multiclass": "one label a text",
    "multilabel": "any number of labels a text",
    "ordinal": "one of ordered levels a text",
    "score": "a number a text",
    "tokens": "the words of a text that are marked",
    "choice": "which of several second texts is right",
    "masked": "tokens that were masked",
}


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    task: whose head `said` is; None where no class says it, which `why` tells. left_out: why a layout is not there, by its
    name. base: what others load the encoder by. compared: rows that analysis/compare.py wrote. siblings: as in
    `evaluation.siblings`, by task. corpora: origins by task. data: what the author says of posts of their own.
    """

    run: SavedRun
    heads: Mapping[str, Head]
    task: str
    said: SaidHead | None
    why: str
    layouts: Sequence[str]
    left_out: Mapping[str, str]
    base: str | None
    figures: Mapping[str, Figures]
    siblings: Mapping[str, Sequence[float]]
    corpora: Mapping[str, Sequence[Origin]]
    rewrites: Sequence[str] = ()
    compared: Sequence[Mapping[str, Any]] = ()
    hub_id: str | None = None
    license: str | None = None
    language: str | None = None
    data: str | None = None
    max_length: int = 0

    @property
    def name(self) -> str:
        return self.run.folder.resolve().name if self.hub_id is None else self.hub_id.rpartition("/")[2]


def write(facts: Facts) -> str:
    """The card, without its metadata."""
    parts = [
        ("", [f"# {plain(facts.name)}", _what(facts)]),
        ("How to use", [*_use(facts)]),
        ("Labels", [*_labels(facts)]),
        ("Intended use", [_intended(facts)]),
        ("Out of scope", [_out_of_scope(facts)]),
        ("Limits", [_limits(facts)]),
        ("Evaluation", [*_evaluation(facts)]),
        ("Bias by group", [*_bias(facts)]),
        ("Comparison with alternatives", [*_comparison(facts)]),
        ("Data", [*_data(facts)]),
        ("Training", [_training(facts)]),
        ("Cost and energy", [_cost(facts)]),
        ("Licence", [_licence(facts)]),
    ]
    return "\n\n".join(text for title, texts in parts for text in ([f"## {title}"] if title else []) + texts) + "\n"


def _what(facts: Facts) -> str:
    record, tasks = facts.run.record, ", ".join(f"{code(task)} ({ABOUT[head.kind]})" for task, head in facts.heads.items())
    on = code(facts.base or record["encoder_source"])
    return (
        f"A classifier of short texts: {tasks}. {on}, trained with {code(record['method'])} by hatemtl "
        f"{record['versions']['hatemtl']}. Content warning: its labels and its training posts may be about hate and abuse."
    )


def _use(facts: Facts) -> Iterator[str]:
    begin, said = snippets.beginning(facts.hub_id), facts.said

    def program(rest: str) -> str:
        return block("python", snippets.whole(begin, rest))

    if said is not None:
        yield f"Each of these gives the same scores of the task {code(facts.task)}, to 1e-4."
        if "transformers" in facts.layouts:
            yield "### transformers\n\n" + program(snippets.transformers(said))
            if said.mean:
                yield (
                    "The head reads the mean of all tokens, and no class for sequences does: this one is for tokens, and "
                    "the mean of its logits is the head's. A `text-classification` pipeline would read it wrongly."
                )
        if "peft" in facts.layouts:
            yield "### PEFT\n\n" + program(snippets.peft(said))
        if "adapterhub" in facts.layouts:
            yield "### AdapterHub\n\n" + program(snippets.adapterhub(said, str(facts.base)))
    else:
        yield (
            f"The head of {code(facts.task)} is in no class of transformers, PEFT or AdapterHub: {plain(facts.why)}. "
            f"`load.py` of this folder reads it; what is in the folders of adapters has no head."
        )
    if "transformers" in facts.layouts:
        yield "### load.py\n\n" + program(snippets.reader())
        yield f"It reads {'all tasks' if len(facts.heads) > 1 else 'the task'}, with torch, transformers and safetensors."
    for layout, why in facts.left_out.items():
        yield f"Not in this folder: {layout}, since {plain(why)}."


def _labels(facts: Facts) -> Iterator[str]:
    rows = []
    for task, head in facts.heads.items():
        cuts = head.written_thresholds() or []
        for i, label in enumerate(head.space.names):
            cut = "the highest score" if head.kind == "multiclass" else "—"
            rows.append([code(task), code(label), f"score ≥ {cuts[i]:g}" if cuts else cut])
    yield table(["task", "label", "is predicted from"], rows)
    yield "`labels.json` has the same for programs."


def _intended(facts: Facts) -> str:
    corpora = ", ".join(dict.fromkeys(code(of.name) for each in facts.corpora.values() for of in each))
    return (
        f"Research on texts like those of {corpora}, and help for people who sort such texts: a score says what to look at "
        f"first. Before it is used on other texts, test it on a few hundred of these that people have labelled."
    )


def _out_of_scope(facts: Facts) -> str:
    return (
        "Deciding alone about people or what they wrote (removal, bans, reports, employment, law enforcement); judging who "
        "wrote a text, or a person by their texts; other languages, kinds of texts and definitions of the labels than "
        "those of the data; finding targets for harassment."
    )


def _limits(facts: Facts) -> str:
    cut = f"- It reads {facts.max_length} tokens at most; what is behind them is not seen."
    more = [
        "- Labels are what annotators of the data gave, with their errors and their view; others would label otherwise.",
        "- Like other such classifiers it may take words of a group for hate against it, quotation and reclaimed words for "
        "abuse, and may miss what is implied.",
        "- Scores are no probabilities of being right unless the calibration was tested, which the evaluation would say.",
    ]
    if facts.rewrites:
        more.append(f"- Texts are rewritten before they are read ({', '.join(facts.rewrites)}); load.py does so.")
    if facts.language is None:
        more.append("- The languages of its data were not stated by its author; see the data.")
    leaks = facts.run.record.get("leaks") or []
    more += [f"- Found between splits of the data: {plain(leak)}." for leak in leaks]
    return "\n".join([cut, *more])


def _evaluation(facts: Facts) -> Iterator[str]:
    for task, found in facts.figures.items():
        rows = [
            [code(name if label is None else f"{name} {label}"), f"{value:.3f}", f"{low:.3f} to {high:.3f}"]
            for name, label, value, low, high in found.rows
        ]
        yield f"### {task}"
        yield (
            f"{found.posts:,} test posts of {', '.join(code(of.name) for of in facts.corpora[task])}. {CONFIDENCE:.0%} "
            f"intervals are percentiles over {RESAMPLES:,} draws of these posts; they are of this one run, and how much "
            f"another seed would differ they do not say. Computed in {code(facts.run.record['precision'])}; the folder's "
            f"float32 differs by rounding."
        )
        yield table(["figure", "value", "interval"], rows)
        yield _chosen(facts, task)
    beyond = [*_beyond(facts)]
    if beyond:
        yield "Judged beside these:"
        yield table(["figure", "value"], beyond)


def _chosen(facts: Facts, task: str) -> str:
    """How the run was chosen among those of other seeds."""
    mine, *others = facts.siblings[task]
    metric = facts.figures[task].primary
    if not others:
        return f"No run of another seed was found beside it, so nothing tells how {code(metric)} varies with seeds."
    values = sorted([mine, *others])
    mean, rank = sum(values) / len(values), sorted([mine, *others], reverse=True).index(mine) + 1
    place = "the best" if rank == 1 else "the worst" if rank == len(values) else f"number {rank}"
    return (
        f"By {code(metric)} it is {place} of {len(values)} runs that differ by their seed alone: mean {mean:.3f}, from "
        f"{values[0]:.3f} to {values[-1]:.3f}. The mean, not this run, says how good the method is."
    )


def _beyond(facts: Facts) -> Iterator[list[str]]:
    """Rows of the test that no head gives and that have no interval: those of further evaluations."""
    known = {(task, name, label) for task, found in facts.figures.items() for name, label, *_ in found.rows}
    rows = facts.run.rows
    grouped = {of.metric for task in facts.heads for of in by_group(rows, task)}
    for row in rows:
        own = (row.task, row.name, row.label) in known or row.name in ("tp", "fp", "fn") or row.name.endswith("_cut")
        if row.stage == "test" and row.task in facts.heads and row.behind is None and not own and row.metric not in grouped:
            yield [code(row.metric), _number(row.value)]


def _bias(facts: Facts) -> Iterator[str]:
    found = {task: by_group(facts.run.rows, task) for task in facts.heads}
    for task, figures in found.items():
        if figures:
            yield f"### {task}, by group"
            yield table(["figure", "group", "value", "interval", "posts"], [*map(_group, figures)])
    if any(found.values()):
        yield (
            "Figures by Borkan et al. (2019, arXiv:1903.04561): `subgroup_auc` tells a group's abusive posts from its "
            "others; a low `bpsn_auc` means that harmless posts about it are taken for abuse, a low `bnsp_auc` that abuse "
            "of it is missed."
        )
    else:
        yield (
            "It was **not** tested for bias by group (hatemtl's `evaluations=[bias]`), so nothing is known of how it treats "
            "texts about different groups. Do not suppose that it treats them alike."
        )


def _group(of: OfGroup) -> list[str]:
    low, high, posts = (of.behind.get(key) for key in ("low", "high", "posts"))
    span = "—" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    group = "all" if of.group is None else code(of.group)
    return [code(of.figure), group, f"{of.value:.3f}", span, "—" if posts is None else f"{posts:,.0f}"]


def _comparison(facts: Facts) -> Iterator[str]:
    if not facts.compared:
        yield (
            "No other system was compared with it here, so nothing says that it is better than a simpler one "
            "(`analysis/compare.py` of hatemtl compares; `publish.verdicts` takes what it wrote)."
        )
        return
    head = [
        "system",
        "metric",
        "runs",
        "mean",
        "interval",
        "difference",
        "p (Holm)",
        "smallest p possible",
        "verdict",
    ]
    rows = []
    for of in facts.compared:
        span = f"{_number(of.get('low'))} to {_number(of.get('high'))}"
        numbers = [_number(of.get(key)) for key in ("difference", "p_holm", "smallest_p")]
        runs, mean = f"{float(of.get('runs') or 1):.0f}", _number(of.get("mean"))
        rows.append(
            [code(of["system"]), code(of["metric"]), runs, mean, span, *numbers, plain(of.get("verdict") or "baseline")]
        )
    yield table(head, rows)
    sentences = [f"- {plain(of['sentence'])}" for of in facts.compared if of.get("sentence")]
    if sentences:
        yield "\n".join(sentences)


def _data(facts: Facts) -> Iterator[str]:
    for task, origins in facts.corpora.items():
        for of in origins:
            lines = [f"### {code(of.name)}, task {code(task)}"]
            if of.licence is None:
                lines.append(f"- Posts of the author's own. {plain(facts.data or 'Their licence was not stated.')}")
            else:
                lines.append(f"- Licence: {plain(of.licence)}. The posts are not in this folder.")
            lines += [f"- Source: {plain(of.source)}."] if of.source else []
            lines += [f"- Hub: [{plain(of.hub)}](https://huggingface.co/datasets/{of.hub})."] if of.hub else []
            lines += [f"- Please cite: {plain(of.cite)}."] if of.cite else []
            fingerprint = facts.run.record.get("data", {}).get(task)
            lines += [f"- Fingerprint of posts, splits and labels: {code(fingerprint)}."] if fingerprint else []
            yield "\n".join(lines)


def _training(facts: Facts) -> str:
    record, spent = facts.run.record, facts.run.record.get("ledger", {})
    posts = spent.get("posts", {}).get("training")
    sources = record.get("sources") or {}
    lines = [
        f"- Method {code(record['method'])}: {record['trained_parameters']:,} of {record['parameters']:,} parameters "
        f"trained; seed {record['seed']}; {code(record['precision'])}.",
        f"- {record['epochs']} epochs, of which the best by validation, {record['best_epoch']}, was kept"
        f"{f'; {posts:,} posts read in all' if posts else ''}."
        if record["epochs"]
        else "- No epoch of training: what it is made of was merged.",
    ]
    if sources:
        names = ", ".join(code(name.rpartition("/")[2]) for name in sources)
        lines.append(f"- Started from {len(sources)} saved runs: {names}.")
    versions = ", ".join(f"{name} {of}" for name, of in record["versions"].items())
    lines.append(f"- Commit {code(record.get('git_commit') or 'not recorded')}; {plain(versions)}.")
    lines.append("- `config.yaml` has every setting, without paths of the machine.")
    return "\n".join(lines)


def _cost(facts: Facts) -> str:
    spent = facts.run.record.get("ledger", {})
    seconds, joules = sum(spent.get("seconds", {}).values()), spent.get("joules")
    lines = [
        f"- {seconds / 60:.1f} minutes on {plain(spent.get('device', 'a machine that was not recorded'))}, test included."
    ]
    if joules is None:
        lines.append("- Energy was not measured: no counter could be read, and no estimate was asked for.")
    else:
        source = spent.get("energy_source")
        by = f"an estimate from {plain(spent.get('watts'))} W, no measurement" if source == "estimate" else plain(source)
        lines.append(f"- {joules / 3.6e6:.4f} kWh, by {by}. Emissions depend on the grid and are not computed.")
    price = spent.get("price")
    if price is not None:
        lines.append(f"- Price: {price:.2f}, at {plain(spent.get('per_hour'))} an hour, in the currency of its author.")
    if sources := facts.run.record.get("sources"):
        lines.append(f"- Training the {len(sources)} runs that it started from is not included.")
    return "\n".join(lines)


def _licence(facts: Facts) -> str:
    stated = f"{plain(facts.license)}, as its author states." if facts.license else "Its author has stated none: ask first."
    return f"{stated} The licences of the data and of the encoder hold beside it."


def _number(value: Any) -> str:
    return "—" if not isinstance(value, int | float) or not math.isfinite(value) else f"{value:.3f}"
