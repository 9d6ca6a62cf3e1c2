"""Writes a model card from a saved run: everything in it was measured, typed, or is said of the corpora in their files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hatemtl.corpora.origin import Origin
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.publish import measured, snippets
from hatemtl.using.publish.facts import Facts
from hatemtl.using.publish.markdown import block, code, plain, table
from hatemtl.using.publish.places import last, shared_source

ABOUT = {
    "multiclass": "one label a text",
    "multilabel": "any number of labels a text",
    "ordinal": "one of ordered levels a text",
    "score": "a number a text",
    "tokens": "the words of a text that are marked",
    "choice": "which of several second texts is right",
    "masked": "tokens that were masked",
}


def write(facts: Facts) -> str:
    """The card, without its metadata."""
    parts = [
        ("", [f"# {plain(facts.name)}", _what(facts)]),
        ("How to use", [*_use(facts)]),
        ("Labels", [*_labels(facts)]),
        ("Intended use", [_intended(facts)]),
        ("Out of scope", [_out_of_scope(facts)]),
        ("Limits", [_limits(facts)]),
        ("Evaluation", [*measured.evaluation(facts)]),
        ("By group", [*measured.groups(facts)]),
        ("Comparison with alternatives", [*measured.comparison(facts)]),
        ("Data", [*_data(facts)]),
        ("Training", [_training(facts)]),
        ("Cost and energy", [_cost(facts)]),
        ("Licence", [_licence(facts)]),
    ]
    return "\n\n".join(text for title, texts in parts for text in ([f"## {title}"] if title else []) + texts) + "\n"


def _what(facts: Facts) -> str:
    record, tasks = (
        facts.run.record,
        ", ".join(f"{code(task)} ({ABOUT.get(head.kind, head.kind)})" for task, head in facts.heads.items()),
    )
    source = record["encoder_source"]
    on = code(facts.base or shared_source(source, None) or last(source))
    drawn = " with weights drawn at random" if facts.run.config["encoder"].get("random") else ""
    return (
        f"A classifier of short texts: {tasks}. {on}{drawn}, trained {_method(facts.run)} of hatemtl "
        f"{record['versions']['hatemtl']}. Content warning: its labels and its training posts may be about hate and abuse."
    )


def _method(run: SavedRun) -> str:
    name, settings = str(run.record["method"]), run.config.get("method")
    rank = settings.get("rank") if isinstance(settings, Mapping) else None
    if re.fullmatch(r"(ah|peft)_lora\d*", name) and isinstance(rank, int):
        return f"as a LoRA of rank {rank}, by the method {code(name)}"
    return f"by the method {code(name)}"


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
    more.append("- Texts are read with one space between words: load.py sees to it, a pipeline must be given them so.")
    if facts.rewrites:
        more.append(f"- Texts are rewritten before they are read ({', '.join(facts.rewrites)}); load.py does so.")
    if facts.language is None:
        more.append("- The languages of its data were not stated by its author; see the data.")
    leaks = facts.run.record.get("leaks") or []
    more += [f"- Found between splits of the data: {plain(leak)}." for leak in leaks]
    return "\n".join([cut, *more])


def _data(facts: Facts) -> Iterator[str]:
    tasks: dict[Origin, list[str]] = {}
    for task, origins in facts.corpora.items():
        for of in origins:
            tasks.setdefault(of, []).append(task)
    for of, names in tasks.items():
        lines = [f"### {code(of.name)}: {', '.join(map(code, names))}", ""]
        if of.licence is None:
            unknown = "Where these posts are from and under which licence is not known to hatemtl, and was not stated."
            lines.append(f"- {plain(facts.data or unknown)}")
        else:
            lines.append(f"- Licence: {plain(of.licence)}. The posts are not in this folder.")
        lines += [f"- Source: {plain(of.source)}."] if of.source else []
        lines += [f"- Hub: [{plain(of.hub)}](https://huggingface.co/datasets/{of.hub})."] if of.hub else []
        lines += [f"- Please cite: {plain(of.cite)}."] if of.cite else []
        cuts = dict.fromkeys(", ".join(f"{key} {value}" for key, value in facts.cut.get(name, {}).items()) for name in names)
        lines += [f"- Not the whole corpus in splits of its own: {plain(cut)}." for cut in cuts if cut]
        marks = dict.fromkeys(facts.run.record.get("data", {}).get(name) for name in names)
        lines += [f"- Fingerprint of posts, splits and labels: {code(mark)}." for mark in marks if mark]
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
        else f"- No epoch of training{': what it is made of was merged' if sources else ''}.",
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
    if not spent:
        return "- Not recorded."
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
        lines.append(f"- {_of_sources(list(sources))}")
    return "\n".join(lines)


def _of_sources(folders: Sequence[str]) -> str:
    """Tells what the runs took that it started from, where they are still there and say so."""
    spent: list[Mapping[str, Any]] = []
    with suppress(UserError, OSError):  # a run that is gone, or none any more
        spent = [SavedRun(folder).record.get("ledger", {}) for folder in folders]
    joules: list[Any] = [of.get("joules") for of in spent]
    if not spent or None in joules:
        return f"Training the {len(folders)} runs that it started from is not included."
    seconds = sum(sum(of["seconds"].values()) for of in spent)
    minutes, kwh = seconds / 60, sum(joules) / 3.6e6
    return f"The {len(folders)} runs that it started from took {minutes:.1f} minutes and {kwh:.4f} kWh more."


def _licence(facts: Facts) -> str:
    stated = f"{plain(facts.license)}, as its author states." if facts.license else "Its author has stated none: ask first."
    return f"{stated} The licences of the data and of the encoder hold beside it."
