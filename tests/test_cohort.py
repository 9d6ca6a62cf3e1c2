"""Runs trained side by side are the runs that each would be by itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor

from hatemtl.cohort import Member, check_body
from hatemtl.command.configuration import build
from hatemtl.encoders.fast import lora_linear
from hatemtl.errors import UserError
from hatemtl.machine.interruption import Interrupted
from hatemtl.saved_runs.claiming import differences
from hatemtl.saved_runs.saved_run import SavedRun, unfinished
from hatemtl.training.callbacks import BestWeights, EpochLine

Cli = Callable[..., Outcome]
RUN = [
    "encoder=minilm",
    "corpus@tasks.target.corpus=sample",
    "tasks.target.corpus.size=300",
    "tasks.target.head.dropout=0.3",  # drawn from each run's own random numbers
    "method.learning_rate=5e-3",
    "optimization.epochs=2",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small encoder on disk: the weights of encoder=tiny are others for every seed."""
    folder = tmp_path_factory.mktemp("encoder")
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        tiny = build(compose("config", ["encoder=tiny"]).encoder)
    tiny.model(dropout=True, seed=0).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    GlobalHydra.instance().clear()
    return f"encoder.source={folder}"


def weights(run: Path) -> dict[str, Tensor]:
    files = [run / "heads.safetensors", *sorted((run / "adapter").glob("*.safetensors"))]
    return {f"{file.name}/{key}": value for file in files for key, value in load_file(file).items()}


def distance(a: Path, b: Path) -> float:
    """How far apart two runs ended, in shares of how large their weights are."""
    ours, others = (torch.cat([value.flatten() for _, value in sorted(weights(run).items())]) for run in (a, b))
    return float((ours - others).norm() / others.norm())


def same(cohort: Path, solo: Path) -> None:
    """Both are one run: its configuration, its course, its results and weights but for the order of sums."""
    assert not differences(SavedRun(cohort).config, SavedRun(solo).config)
    for key in ("epochs", "best_epoch", "steps", "trained_parameters", "seed", "data", "tokenizer"):
        assert SavedRun(cohort).record[key] == SavedRun(solo).record[key], key
    assert distance(cohort, solo) < 1e-3
    results, others = SavedRun(cohort).results, SavedRun(solo).results
    assert results.keys() == others.keys()
    counts = [name for name in results if name.rsplit("_", 2)[-2] in ("tp", "fp", "fn")]
    assert sum(abs(results[name] - others[name]) for name in counts) <= 2  # scores that lay on the threshold


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ah_lora16", "peft_lora16"])
def test_parts_side_by_side_are_the_parts_trained_apart(cli: Cli, encoder: str, tmp_path: Path, method: str) -> None:
    run = [*RUN, encoder, f"method={method}", "action=[train,test]"]
    together = cli(*run, "cohort.parts=2", f"save_path={tmp_path}/target")
    assert together.code == 0, together.err
    for part in (1, 2):
        solo = tmp_path / f"solo_{part}"
        assert cli(*run, f'tasks.target.mask_pattern="{part} 2"', f"save_path={solo}").code == 0
        same(tmp_path / f"target_part_{part}", solo)
        record = SavedRun(tmp_path / f"target_part_{part}").record
        assert record["cohort"] == 2
        assert not record["compiled"]
        assert SavedRun(solo).record["cohort"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"target_part_1", "target_part_2", "solo_1", "solo_2"}


@pytest.mark.slow
def test_seeds_side_by_side_are_the_seeds_trained_apart(cli: Cli, encoder: str, tmp_path: Path) -> None:
    """Batches of other posts, lengths and numbers of posts; the heads learn alone at first; two batches a step."""
    run = [*RUN, encoder, "optimization.heads_first=1", "optimization.accumulate=2", "batching=tokens"]
    together = cli(*run, "cohort.seeds=[0,1,5]", f"save_path={tmp_path}/run")
    assert together.code == 0, together.err
    for seed in (0, 1, 5):
        assert cli(*run, f"seed={seed}", f"save_path={tmp_path}/solo_{seed}").code == 0
        same(tmp_path / f"run_seed_{seed}", tmp_path / f"solo_{seed}")
    assert distance(tmp_path / "run_seed_0", tmp_path / "run_seed_1") > 0.1  # what is told apart can be told apart


@pytest.mark.slow
def test_rates_side_by_side_are_the_rates_trained_apart(cli: Cli, encoder: str, tmp_path: Path) -> None:
    """From a saved LoRA on, in bf16 where the processor has it."""
    assert cli(*RUN, encoder, f"save_path={tmp_path}/start").code == 0
    run = [*RUN, encoder, "trainer.precision=auto", "method=ah_load", f"load_path={tmp_path}/start", "heads.load=true"]
    together = cli(*run, "cohort.rates=[1e-3,1e-2]", f"save_path={tmp_path}/run/")
    assert together.code == 0, together.err
    for rate in (0.001, 0.01):
        solo = tmp_path / f"solo_{rate}"
        assert cli(*run, f"method.learning_rate={rate}", f"save_path={solo}").code == 0
        cohort = tmp_path / f"run_rate_{rate}"
        assert not differences(SavedRun(cohort).config, SavedRun(solo).config)
        assert SavedRun(cohort).record["steps"] == SavedRun(solo).record["steps"]
        assert distance(cohort, solo) < 0.05  # bf16 rounds to one part in 256
    assert distance(tmp_path / "run_rate_0.001", tmp_path / "run_rate_0.01") > 0.1


@pytest.mark.slow
def test_several_tasks_stepped_apart_are_as_each_run_has_them(cli: Cli, encoder: str, tmp_path: Path) -> None:
    """Masked words among them, and batches made by another process."""
    tasks = ("label", "target", "mlm")
    sample = [option for task in tasks for option in (f"corpus@tasks.{task}.corpus=sample", f"tasks.{task}.corpus.size=100")]
    run = [option for option in RUN if not option.startswith(("corpus", "tasks"))]
    run += [encoder, f"tasks=[{','.join(tasks)}]", *sample, "weighting.step=per_task", "data.workers=1"]
    together = cli(*run, "cohort.seeds=[0,1]", f"save_path={tmp_path}/run")
    assert together.code == 0, together.err
    for seed in (0, 1):
        assert cli(*run, f"seed={seed}", f"save_path={tmp_path}/solo_{seed}").code == 0
        same(tmp_path / f"run_seed_{seed}", tmp_path / f"solo_{seed}")


@pytest.mark.slow
def test_each_stops_by_its_own_scores(cli: Cli, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [*RUN, encoder, "optimization.epochs=4", "optimization.patience=1", "tasks.target.corpus.size=100"]
    judge = BestWeights.on_validation_end

    def judged(self: BestWeights, trainer: Trainer, module: LightningModule) -> None:
        worse = module.seed == 1 and trainer.current_epoch == 1  # of this run, no epoch after the first is better
        self.score = float("inf" if worse else "-inf")
        judge(self, trainer, module)

    monkeypatch.setattr(BestWeights, "on_validation_end", judged)
    assert cli(*run, "cohort.seeds=[0,1,2]", f"save_path={tmp_path}/run").code == 0
    for seed, epochs in enumerate((4, 2, 4)):
        assert cli(*run, f"seed={seed}", f"save_path={tmp_path}/solo_{seed}").code == 0
        same(tmp_path / f"run_seed_{seed}", tmp_path / f"solo_{seed}")
        assert SavedRun(tmp_path / f"run_seed_{seed}").record["epochs"] == epochs


@pytest.mark.slow
def test_parts_and_seeds_multiply_and_what_is_finished_stays(cli: Cli, encoder: str, tmp_path: Path) -> None:
    run = [*RUN, encoder, "optimization.epochs=1"]
    alone = tmp_path / "run_seed_1_part_2"
    assert cli(*run, "seed=1", 'tasks.target.mask_pattern="2 2"', f"save_path={alone}").code == 0
    stamp = (alone / "run.json").stat().st_mtime_ns
    ended = cli(*run, "cohort.seeds=[0,1]", "cohort.parts=2", f"save_path={tmp_path}/run")
    assert ended.code == 0, ended.err
    assert "not trained again" in ended.out
    assert (alone / "run.json").stat().st_mtime_ns == stamp
    names = {f"run_seed_{seed}_part_{part}" for seed in (0, 1) for part in (1, 2)}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.slow
def test_one_that_fails_leaves_the_others_whole(
    cli: Cli, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solo, line = [*RUN, encoder, "optimization.epochs=3"], EpochLine.on_train_epoch_end
    run = [*solo, "cohort.seeds=[0,1]", f"save_path={tmp_path}/run"]

    def diverge(self: EpochLine, trainer: Trainer, module: LightningModule) -> None:
        if module.seed == 0 and trainer.current_epoch == 1:  # type: ignore[operator]
            raise UserError("the training loss is nan")
        line(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(EpochLine, "on_train_epoch_end", diverge)
        ended = cli(*run)
    assert ended.code == 2
    assert "seed_0: the training loss is nan; the others go on" in ended.err
    assert unfinished(tmp_path / "run_seed_0").is_dir()
    assert cli(*solo, "seed=1", f"save_path={tmp_path}/solo").code == 0
    same(tmp_path / "run_seed_1", tmp_path / "solo")
    resumed = cli(*run)  # of which one run goes on by itself
    assert resumed.code == 0, resumed.err
    assert "goes on after its last whole epoch" in resumed.out
    assert cli(*solo, f"save_path={tmp_path}/first").code == 0
    same(tmp_path / "run_seed_0", tmp_path / "first")


@pytest.mark.slow
def test_what_is_broken_off_goes_on(cli: Cli, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [*RUN, encoder, "cohort.parts=2", f"save_path={tmp_path}/run"]

    go_on, cuts = Member.go_on, iter([Interrupted()])

    def cut(self: Member) -> None:
        if len(list(tmp_path.glob(".run_*/last.ckpt"))) == 2 and (now := next(cuts, None)):
            raise now
        go_on(self)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "go_on", cut)
        cut_off = cli(*run)
    assert cut_off.code == 130
    assert cut_off.err == "interrupted with 2 runs unfinished; the same command goes on after the last whole epoch of each\n"
    assert {path.name for path in tmp_path.iterdir()} == {".run_part_1.unfinished", ".run_part_2.unfinished"}
    assert cli(*run).code == 0
    for part in (1, 2):
        solo = tmp_path / f"solo_{part}"
        assert cli(*RUN, encoder, f'tasks.target.mask_pattern="{part} 2"', f"save_path={solo}").code == 0
        same(tmp_path / f"run_part_{part}", solo)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["cohort=4"], "type cohort.seeds=[0,1,2]"),
        (["cohort.rates=[0]"], "type cohort.rates=[1e-4,1e-3]"),
        (["cohort.rates=1e-3"], "type cohort.rates=[1e-4,1e-3]"),
        (["cohort.seeds=3"], "type cohort.seeds=[0,1,2]"),
        (["cohort.seeds=[1,1]"], "expected different numbers"),
        (["cohort.seeds=[]"], "expected different numbers"),
        (["cohort.seeds=[1.5]"], "expected different numbers"),
        (["cohort.seeds=[-1]"], "expected different numbers"),
        (["cohort.parts=0"], "type cohort.parts=4"),
        (["cohort.parts=two"], "type cohort.parts=4"),
        (["cohort.parts=99"], "99"),
        (["cohort.parts=2", 'tasks.target.mask_pattern="1 2"'], "tasks.target.mask_pattern"),
        (["cohort.parts=2", "tasks=[target,label]", "corpus@tasks.label.corpus=sample"], "one task"),
        (["cohort.seeds=[0,1]", "action=test"], "a cohort trains"),
        (["cohort.seeds=[0,1]", "trainer.compile=true"], "trainer.compile=false"),
        (["cohort.seeds=[0,1]", "trainer.progress=true"], "trainer.progress=false"),
        (["cohort.seeds=[0,1]", "data.cache_prefix=true"], "data.cache_prefix=false"),
        (["cohort.seeds=[0,1]", "logger=wandb"], "logger=csv"),
        (["cohort.seeds=[0,1]", "method=full", "method.learning_rate=1e-4"], "method=ah_lora16"),
        (["cohort.seeds=[0,1]", "method=ah_seq_bn"], "method=ah_lora16"),
        (["cohort.seeds=[0,1]", "method.dropout=0.1"], "without dropout"),
        (["cohort.seeds=[0,1]", "encoder=tiny"], "type another, as encoder=minilm"),
        (["cohort.seeds=[0,1]", "method.body_dropout=true"], "method.body_dropout=false"),
    ],
)
def test_what_cannot_train_side_by_side_is_refused(
    cli: Cli, encoder: str, tmp_path: Path, given: list[str], said: str
) -> None:
    run = [option for option in RUN if not option.startswith("method.")]
    ended = cli(*run, *([] if "encoder=tiny" in given else [encoder]), *given, f"save_path={tmp_path}/run")
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_runs_on_different_encoders_are_told_apart() -> None:
    one, other = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    for encoder in (one, other):
        encoder[0].requires_grad_(False)
    with torch.no_grad():
        other[1].weight.add_(1)  # trained
    check_body([one, other, one])
    with torch.no_grad():
        other[0].weight.add_(1e-3)
    with pytest.raises(UserError, match="different encoders"):
        check_body([one, other, one])


def test_a_layer_that_reads_no_posts_is_refused() -> None:
    layer = torch.nn.Linear(4, 3)
    lora = lora_linear.LoRALinear(layer, torch.nn.Parameter(torch.ones(2, 4)), torch.nn.Parameter(torch.ones(3, 2)), 1.0)
    lora.beside = (lora, lora)
    assert lora(torch.ones(4, 5, 4)).shape == (4, 5, 3)
    with pytest.raises(UserError, match="something else than posts"):
        lora(torch.ones(1, 6, 4))


def test_the_record_is_json(cli: Cli, encoder: str, tmp_path: Path) -> None:
    assert cli(*RUN, encoder, "optimization.epochs=1", "cohort.seeds=[3]", f"save_path={tmp_path}/run").code == 0
    assert json.loads((tmp_path / "run_seed_3" / "run.json").read_text())["seed"] == 3
