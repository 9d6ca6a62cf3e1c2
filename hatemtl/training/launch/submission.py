"""Keeps in a sweep's folder which run was submitted as which job, and tells from files where a run stands."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.saved_runs.claiming import differences
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.saved_runs.writing import write_text
from hatemtl.training.launch.base import Ended, Run, reported

PLACE = ".submitted"  # in the folder that the runs share: what is known of the jobs, what each reports, and submitit's files
AGAIN = "submit the sweep again: main.py -m ... launcher=slurm, or ray"


@dataclass(frozen=True)
class Submitted:
    """Holds a run in a cluster's hands. folder: its own, in the sweep's. config: it is known by this. job: its number.

    stood: tells the finished run that stood there when it was submitted from any later one; None where none did.
    """

    name: str
    folder: str
    config: Mapping[str, Any]
    cluster: str
    job: str
    stood: str | None = None


def read(folder: Path) -> dict[str, Submitted]:
    """Reads what was submitted, by the folder of each run. Raises UserError where nothing was."""
    path = folder / PLACE / "runs.json"
    if not path.is_file():
        why = "no sweep was submitted there" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"save_path={folder}: {why}; give the save_path of a sweep that a cluster has, or submit one by main.py -m ... "
            f"launcher=slurm, or ray"
        )
    runs = json_object.read(path, AGAIN, "runs")["runs"]
    try:
        found = {run["folder"]: Submitted(**run) for run in runs}
        for run in found.values():
            texts = all(isinstance(text, str) for text in (run.name, run.folder, run.cluster, run.job, run.stood or ""))
            if not texts or not isinstance(run.config, dict) or Path(run.folder).name != run.folder:  # it may lead elsewhere
                raise TypeError(f"{run.folder!r:.60}")
        return found
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not what a submitted sweep leaves ({error}); {AGAIN}") from error


def write(folder: Path, runs: Iterable[Submitted]) -> None:
    """Writes what was submitted."""
    text = json.dumps({"runs": [asdict(run) for run in runs]}, indent=1, ensure_ascii=False)
    write_text(folder / PLACE / "runs.json", text + "\n")


def report_of(folder: Path, run: str) -> Path:
    """Gives the file in which the job of a run says that it began, and how it ended."""
    return folder / PLACE / f"{run}.json"


def leave(
    runs: Iterable[Run],
    launcher: str,
    cluster: str,
    states: Callable[[Path, Sequence[Submitted]], Mapping[str, str | None]],
    submit: Callable[[Path, Sequence[Run]], Sequence[str]],
) -> Iterator[tuple[Run, Ended]]:
    """Submits the runs that no job waits for or works at, and tells where each stands.

    cluster: whose they become. states: tells those of jobs, by the runs' folders. submit: gives the name of each one's job.
    Raises UserError, before anything is written, where the runs share no folder, or it holds another sweep.
    """
    if not (due := [*runs]):
        return
    folder = shared_folder(due, launcher)
    before = read(folder) if (folder / PLACE / "runs.json").is_file() else {}
    refuse_others(folder, due, before)
    working = states(folder, [one for one in before.values() if one.cluster == cluster])
    new: list[Run] = []
    stood: dict[Run, str | None] = {}
    for run in due:
        name = run.save_path.name if run.save_path is not None else ""
        if name in working and (now := stands(folder, before[name], working[name])).state in ("submitted", "running"):
            yield run, now
        else:
            new.append(run)
    (folder / PLACE / "jobs").mkdir(parents=True, exist_ok=True)
    for run in new:
        assert run.save_path is not None
        stood[run] = _mark(run.save_path)
        report_of(folder, run.save_path.name).unlink(missing_ok=True)
    try:
        jobs = submit(folder.absolute(), new) if new else ()
    except UserError:  # the cluster takes none, as of a partition that it does not have
        if not before:
            shutil.rmtree(folder / PLACE)
            with suppress(OSError):  # it holds runs that were trained otherwise
                folder.rmdir()
        raise
    for run, job in zip(new, jobs, strict=True):
        assert run.save_path is not None and run.config is not None
        before[run.save_path.name] = Submitted(run.name, run.save_path.name, run.config, cluster, job, stood[run])
    write(folder, before.values())
    for run in new:
        assert run.save_path is not None
        yield run, Ended("submitted", f"job {before[run.save_path.name].job}")
    print(f"action=status save_path={folder} tells where they stand, action=collect gathers them")


def shared_folder(runs: Iterable[Run], launcher: str) -> Path:
    """Gives the one folder in which all runs have theirs. Raises UserError where there is none."""
    folders = {run.save_path.parent if run.save_path is not None and run.config is not None else None for run in runs}
    if None in folders:
        raise UserError(f"launcher={launcher} submits runs that train, action=train or [train,test]; type another launcher")
    if len(folders) > 1:
        some = ", ".join(sorted(map(str, folders))[:3])
        raise UserError(f"launcher={launcher}: the runs land in {some}; give one save_path=FOLDER that holds all of them")
    return next(folder for folder in folders if folder is not None)


def refuse_others(folder: Path, runs: Iterable[Run], before: Mapping[str, Submitted]) -> None:
    """Raises UserError where another sweep was submitted to the folder: over other keys, or with other values elsewhere."""
    for run in runs:
        assert run.save_path is not None and run.config is not None
        here = run.save_path.name
        told = differences(before[here].config, run.config) if here in before else []
        if before and not told and _over(here) not in {_over(one) for one in before}:
            went, goes = (" and ".join(_over(one)) or "nothing" for one in (next(iter(before)), here))
            told = [f"that went over {went}, and this one goes over {goes}"]
        if told:
            raise UserError(
                f"save_path={folder} holds another sweep that was submitted ({here}: {'; '.join(told[:3])}); give another "
                f"save_path"
            )


def _mark(save_path: Path) -> str | None:
    """Tells one training's finished run from another's of the same weights; None where there is none."""
    try:
        run = SavedRun(save_path)
        return f"{run.digest()} {run.record.get('seconds')}"
    except UserError:
        return None


def _over(name: str) -> tuple[str, ...]:
    """Gives the keys that a sweep went over, of the name of one of its runs.

    >>> _over("method.rank=4,tasks=label+target"), _over("tuesday")
    (('method.rank', 'tasks'), ())
    """
    return tuple(word.partition("=")[0] for word in name.split(",") if "=" in word)


def stands(folder: Path, run: Submitted, state: str | None) -> Ended:
    """Tells where a run stands. state: of its job while that waits or works, in the cluster's words; None once gone."""
    save_path, path = folder / run.folder, report_of(folder, run.folder)
    said = reported(path)
    begun = said is not None and said.state == "running"
    if state is not None and (said is None or begun):
        return Ended("running" if begun else "submitted", f"job {run.job}: {state}")
    done = save_path.is_dir() and not differences(SavedRun(save_path).config, run.config)
    if said is not None and said.state == "failed" and not (done and _mark(save_path) != run.stood):
        return said  # else somebody finished it since, by whatever clock
    if done:
        return Ended("finished", str(save_path))
    if said is not None and not begun and said.state != "interrupted":
        return Ended("not begun", f"its folder is gone; {AGAIN}")
    return Ended("interrupted", f"job {run.job} is gone before its end; the same command goes on with it")
