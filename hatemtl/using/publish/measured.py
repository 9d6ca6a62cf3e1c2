"""Writes what was measured into a model card: figures with intervals, by group, and beside other systems."""

from collections.abc import Iterator

from hatemtl.using.publish.evaluation import CONFIDENCE, RESAMPLES, OfGroup, by_group
from hatemtl.using.publish.facts import Facts
from hatemtl.using.publish.markdown import code, number, plain, span, table


def evaluation(facts: Facts) -> Iterator[str]:
    for task, found in facts.figures.items():
        computed = facts.run.record.get("tested_precision", {}).get(task, facts.run.record["precision"])
        rows = [
            [code(name if label is None else f"{name} {label}"), number(value), span(low, high)]
            for name, label, value, low, high in found.rows
        ]
        yield f"### {code(task)}"
        yield (
            f"{found.posts:,} test posts of {', '.join(code(of.name) for of in facts.corpora[task])}. {CONFIDENCE:.0%} "
            f"intervals are percentiles over {RESAMPLES:,} draws of these posts; they are of this one run, and how much "
            f"another seed would differ they do not say. Computed in {code(computed)}; the folder's "
            f"float32 differs by rounding."
        )
        yield table(["figure", "value", "interval"], rows)
        yield _chosen(facts, task)
    beyond = [*_beyond(facts)]
    if beyond:
        yield "Judged beside these:"
        yield table(["figure", "value"], beyond)


def _chosen(facts: Facts, task: str) -> str:
    """Tells how the run was chosen among those of other seeds."""
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
            yield [code(row.metric), number(row.value)]


def groups(facts: Facts) -> Iterator[str]:
    found = {task: by_group(facts.run.rows, task) for task in facts.heads}
    for task, figures in found.items():
        if figures:
            yield f"### {code(task)}, by group"
            yield table(["figure", "group", "value", "interval", "posts"], [*map(_group, figures)])
    shown = {of.figure for figures in found.values() for of in figures}
    if "subgroup_auc" in shown:
        yield (
            "Figures by Borkan et al. (2019, arXiv:1903.04561): `subgroup_auc` tells a group's abusive posts from its "
            "others; a low `bpsn_auc` means that harmless posts about it are taken for abuse, a low `bnsp_auc` that abuse "
            "of it is missed."
        )
    if "functional_target_accuracy" in shown:
        yield (
            "`functional_target_accuracy` is the share of HateCheck's cases about a group that are told rightly (Röttger et "
            "al. 2021, doi:10.18653/v1/2021.acl-long.4); they were made for tests, and are none of the test posts."
        )
    if not shown:
        yield (
            "It was **not** tested for bias by group (hatemtl's `evaluations=[bias]`), so nothing is known of how it treats "
            "texts about different groups. Do not suppose that it treats them alike."
        )


def _group(of: OfGroup) -> list[str]:
    low, high, posts = (of.behind.get(key) for key in ("low", "high", "posts"))
    group = "all" if of.group is None else code(of.group)
    return [code(of.figure), group, number(of.value), span(low, high), "—" if posts is None else f"{posts:,.0f}"]


def comparison(facts: Facts) -> Iterator[str]:
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
        given = [f"{of.get('runs') or 1:.0f}", number(of["mean"]), span(of.get("low"), of.get("high"))]
        tested = [number(of.get(key)) for key in ("difference", "p_holm", "smallest_p")]
        rows.append([code(of["system"]), code(of["metric"]), *given, *tested, plain(of.get("verdict") or "baseline")])
    yield table(head, rows)
    sentences = [f"- {plain(of['sentence'])}" for of in facts.compared if of.get("sentence")]
    if sentences:
        yield "\n".join(sentences)
