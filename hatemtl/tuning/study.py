"""Asks Optuna which settings to try, and tells it what they were worth; several processes may share one study.

The study is a journal in the study's folder. Every question is asked under a lock, so that a grid has no point twice and
the number of trials is what was asked for, whoever asks.
"""

import os
import pickle
import socket
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from cmaes import CMA
from filelock import FileLock, Timeout

from hatemtl.errors import UserError
from hatemtl.tuning.settings import JOURNAL, Tuning
from hatemtl.tuning.space import Choice, Dimension, Value, grid

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as missing:
    raise UserError(f"action=tune needs {missing.name}; type uv sync --extra tune") from missing

SEEDS = "values_of_seeds"  # what a trial keeps of each of its seeds
NAME = "hatemtl"
SEARCHER = ".searcher-"  # how the lock of a process that takes part is called
# all that a state of CMA-ES is made of, by its module: numbers, arrays and the class that holds them
OF_CMA = {"cmaes._cma": ("CMA",), "numpy": ("dtype", "ndarray")}
OF_CMA |= {f"numpy.{core}.multiarray": ("scalar", "_reconstruct") for core in ("core", "_core")}
EARLY = 10  # trials at random before a sampler that learns begins, and of a generation
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Study:
    """A study in a folder, as this process takes part in it.

    mark: what makes it this study and no other, by name. seed: of the sampler. Raises UserError where another stands there.
    """

    def __init__(
        self, folder: Path, tuning: Tuning, objectives: Mapping[str, bool], mark: Mapping[str, str], seed: int
    ) -> None:
        self.folder, self.tuning, self.seed, self.lower = folder, tuning, seed, [*objectives.values()]
        self.distributions = {key: distribution(of) for key, of in tuning.dimensions.items()}
        self.lock = FileLock(folder / ".study.lock")
        self.me = f"{SEARCHER}{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        with self.lock:
            journal = folder / JOURNAL
            _check_folder(folder, mark)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            ways = optuna.study.StudyDirection
            directions = [ways.MINIMIZE if lower else ways.MAXIMIZE for lower in self.lower]
            self.study = optuna.create_study(storage=storage, study_name=NAME, directions=directions, load_if_exists=True)
            for name, value in mark.items():
                self.study.set_user_attr(name, value)
            self.alive = FileLock(folder / self.me)
            self.alive.acquire()
        self.study.pruner = pruner(tuning, len(tuning.seeds or (0,)))

    def close(self) -> None:
        """Ends this process's part in the study."""
        self.alive.release()
        (self.folder / self.me).unlink(missing_ok=True)

    def ask(self) -> Trial | None:
        """Gives the next trial: one that a process which has ended left, or a new one; None where there is none left."""
        with self.lock:
            trials = self.trials()
            for frozen in trials:
                if frozen.state is TrialState.RUNNING and self._is_left(frozen):
                    return self._taken(Trial(self.study, frozen._trial_id))
            begun = [frozen for frozen in trials if frozen.state is not TrialState.WAITING]
            lost = [frozen for frozen in begun if self._may_do_better(frozen)]
            if self.tuning.trials is not None and len(begun) - len(lost) >= self.tuning.trials:
                return None
            if self.tuning.sampler == "grid" and not any(frozen.state is TrialState.WAITING for frozen in trials):
                tried = [frozen.params for frozen in trials if frozen not in lost]
                point = next((point for point in grid(self.tuning.dimensions) if point not in tried), None)
                if point is None:
                    return None
                self.study.enqueue_trial(point)
            # anew for each, by their number: else who goes on, and who shares the study, would draw the same again
            self.study.sampler = sampler(self.tuning, self.seed * 100_003 + len(begun))
            return self._taken(self.study.ask())

    def _taken(self, trial: Trial) -> Trial:
        trial.set_user_attr("searcher", self.me)
        for key, of in self.distributions.items():
            suggest(trial, key, of)
        return trial

    def _may_do_better(self, frozen: FrozenTrial) -> bool:
        """Tells whether another process saw it fail for what may be mended since, as a full disk."""
        own = frozen.user_attrs
        return frozen.state is TrialState.FAIL and not own.get("diverged") and own.get("searcher") != self.me

    def _is_left(self, frozen: FrozenTrial) -> bool:
        """Tells whether the process that took the trial has ended; its lock is then anyone's."""
        name = str(frozen.user_attrs.get("searcher"))
        path = self.folder / name
        if name == self.me:
            return False
        if not name.startswith(SEARCHER) or path.parent != self.folder or not path.exists():  # the journal may be anyone's
            return True
        try:
            with FileLock(path, blocking=False):
                path.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def add(self, params: Mapping[str, Value], values: Sequence[Sequence[float]]) -> None:
        """Adds what was trained before there was a study. values: of each seed, each objective's."""
        steps = {n: self._of_step(values[:n]) for n in range(1, len(values) + 1)} if len(self.lower) == 1 else {}
        self.study.add_trial(
            optuna.create_trial(
                params=dict(params),
                distributions=self.distributions,
                values=means(values),
                intermediate_values=steps,
                user_attrs={SEEDS: [*map(list, values)]},
            )
        )

    def tell(self, trial: Trial, values: Sequence[Sequence[float]], *, of: int) -> bool:
        """Tells what a trial was worth with the seeds so far, `of` so many; gives whether it is over."""
        trial.set_user_attr(SEEDS, [*map(list, values)])
        if len(self.lower) == 1 and of > 1:
            trial.report(self._of_step(values), len(values))
            if len(values) < of and trial.should_prune():
                self.study.tell(trial, state=TrialState.PRUNED)
                return True
        if len(values) < of:
            return False
        self.study.tell(trial, means(values))
        return True

    def _of_step(self, values: Sequence[Sequence[float]]) -> float:
        """Gives what the pruner compares after so many seeds, its step: the mean, or the last to wilcoxon."""
        return values[-1][0] if self.tuning.pruner == "wilcoxon" else means(values)[0]

    def fail(self, trial: Trial, why: str, *, diverged: bool) -> None:
        """Tells that a trial came to nothing. diverged: whether it always would."""
        trial.set_user_attr("why", why[:500])
        trial.set_user_attr("diverged", diverged)
        self.study.tell(trial, state=TrialState.FAIL)

    def trials(self) -> list[FrozenTrial]:
        """Lists the trials by number, of all processes."""
        return self.study.get_trials(deepcopy=False)

    def best(self) -> list[FrozenTrial]:
        """Gives the best trial, or of several objectives those that no other dominates, the first objective's best first."""
        if not any(frozen.state is TrialState.COMPLETE for frozen in self.trials()):
            return []
        if len(self.lower) == 1:
            return [self.study.best_trial]
        return sorted(self.study.best_trials, key=lambda of: of.values[0] * (1 if self.lower[0] else -1))


class _State(pickle.Unpickler):
    """Reads a state of CMA-ES, and nothing else that a pickle may name."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name not in OF_CMA.get(module_name, ()):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


class Cma(optuna.samplers.CmaEsSampler):
    """CMA-ES that runs no code from the journal, where Optuna keeps the state of its search as a pickle."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CMA | None:
        kept = ((of.number, self._pieces(of)) for of in reversed(completed_trials))
        number, pieces = next((one for one in kept if one[1]), (0, {}))
        if not pieces:
            return None
        try:
            state = _State(BytesIO(bytes.fromhex(self._concat_optimizer_attrs(pieces)))).load()
            if isinstance(state, CMA):
                return state
            raise TypeError(type(state).__name__)
        except Exception as error:  # of many kinds, by what is in it
            raise UserError(
                f"tune.sampler=cma: trial {number} of {JOURNAL} holds no state of a search ({error!r:.200}); do not use "
                f"this study, or remove {JOURNAL}, and finished runs are told anew"
            ) from error

    def _pieces(self, of: FrozenTrial) -> dict[str, str]:
        return {key: value for key, value in of.system_attrs.items() if key.startswith(self._attr_key_optimizer)}


def _check_folder(folder: Path, mark: Mapping[str, str]) -> None:
    """Raises UserError where the folder holds anything but this study, or no study."""
    journal = folder / JOURNAL
    if (folder / "config.yaml").exists():
        raise UserError(f"save_path={folder} is a saved run, and a study has a folder of its own; give another save_path")
    if not journal.exists():
        return
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        names = [study.study_name for study in storage.get_all_studies()]
    except Exception as error:  # of many kinds, by what is in it
        raise UserError(f"{journal} cannot be read ({error!r}); remove it, and finished runs are told anew") from error
    if names and names != [NAME]:
        raise UserError(
            f"{journal} holds {'two studies or more' if len(names) > 1 else 'a study of another program'} "
            f"({', '.join(names[:4])}); a study has a folder of its own: give another save_path"
        )
    if names:
        study = optuna.load_study(study_name=NAME, storage=storage)
        if other := [f"{k}: there {v}, given {mark.get(k)}" for k, v in study.user_attrs.items() if mark.get(k) != v]:
            raise UserError(f"save_path={folder} holds another study ({'; '.join(other)[:400]}); give another save_path")


def means(values: Sequence[Sequence[float]]) -> list[float]:
    """Gives each objective's mean over seeds."""
    return [sum(of) / len(of) for of in zip(*values, strict=True)]


def distribution(of: Dimension) -> BaseDistribution:
    """Gives a dimension as Optuna has it."""
    if isinstance(of, Choice):
        return CategoricalDistribution(of.values)
    return (
        IntDistribution(int(of.low), int(of.high))
        if of.kind == "int"
        else FloatDistribution(of.low, of.high, log=of.kind == "log")
    )


def suggest(trial: Trial, key: str, of: BaseDistribution) -> Any:
    """Draws a value for a key, or gives the one that the trial has."""
    match of:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(key, choices)
        case IntDistribution(low=low, high=high):
            return trial.suggest_int(key, low, high)
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(key, low, high, log=log)
    raise TypeError(of)


def sampler(tuning: Tuning, seed: int) -> optuna.samplers.BaseSampler:
    """Makes the sampler; a grid's points are given to it."""
    seed %= 2**32
    match tuning.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=EARLY, constant_liar=True)
        case "cma":
            return Cma(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=EARLY)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(tuning: Tuning, seeds: int) -> optuna.pruners.BasePruner:
    """Makes the pruner, whose steps are the seeds of a trial."""
    match tuning.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=seeds)
        case "wilcoxon":
            return optuna.pruners.WilcoxonPruner()
    return optuna.pruners.NopPruner()
