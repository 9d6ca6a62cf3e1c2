"""The moving average by hand; what is evaluated and kept; a resumed run goes on with it to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from network.test_module import Data, batch, module, trainer
from objective.regularised import RUN, Linear
from training.test_callbacks import Scripted, fit, same

from hatemtl.errors import UserError
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.regularisers.ema import EMA, Average
from hatemtl.training.callbacks import BestWeights, Checkpoint


def test_it_is_the_weighted_mean_of_the_weights_after_each_step() -> None:
    forward: Any = Linear()
    average = EMA(decay=0.5, start=0.5).begin(forward, RUN)
    shift, seen = forward.encoder.shift, []
    for step, progress in enumerate([0.0, 0.5, 0.6, 0.7]):
        forward.progress = progress
        shift.data.fill_(2.0**step)
        average.after_update(forward)
        with average.evaluating(forward):
            seen.append(shift[0].item())
        assert float(shift[0].detach()) == 2.0**step
    assert seen == pytest.approx([1, 2, (2 * 0.5 + 4) / 1.5, (2 * 0.25 + 4 * 0.5 + 8) / 1.75])


def test_after_an_evaluation_that_failed_the_weights_are_back() -> None:
    forward: Any = Linear()
    average = EMA(decay=0.9, start=0.0).begin(forward, RUN)
    average.after_update(forward)
    forward.encoder.shift.data.fill_(7.0)
    with pytest.raises(ZeroDivisionError), average.evaluating(forward):
        raise ZeroDivisionError
    assert forward.encoder.shift.tolist() == [7.0] * 3


def averaging() -> MultitaskModule:
    multitask = module("label")
    multitask.regularise({"ema": EMA(decay=0.8, start=0.0)}, RUN)
    return multitask


def fitted(multitask: MultitaskModule, best: BestWeights) -> None:
    trainer(callbacks=[best], accumulate_grad_batches=2).fit(multitask, Data(batch(6), 5))


def test_training_is_the_same_and_the_best_weights_are_the_averaged_ones() -> None:
    plain, multitask = module("label"), averaging()
    kept, mine = (BestWeights(patience=None, spared=0) for _ in range(2))
    fitted(plain, kept)
    fitted(multitask, mine)
    state = multitask.trained_state()
    assert all(torch.equal(value, state[name]) for name, value in plain.trained_state().items())
    average = multitask.regularisers["ema"]
    assert isinstance(average, Average)
    assert average.steps == 3, "five batches, two a step"
    assert [*mine.weights] == [*state]
    for found, expected in zip(mine.weights.values(), average.buffers(), strict=True):
        assert torch.equal(found, expected)
    assert any(not torch.equal(mine.weights[name], kept.weights[name]) for name in state)
    mine.restore(multitask)
    seen: list[torch.Tensor] = []
    first, weights = next(iter(mine.weights.items()))
    multitask.encoder.register_forward_pre_hook(lambda *_: seen.append(multitask.trained_state()[first].clone()))
    trainer().validate(multitask, Data(batch(6), 1), verbose=False)
    assert torch.equal(seen[0], weights), "no average takes the place of what was restored"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(epochs: int, resume: Path | None = None) -> dict[str, Any]:
        scripted, best = Scripted([0.1, 0.6, 0.3]), BestWeights(patience=None, spared=0)
        scripted.regularise({"ema": EMA(decay=0.8, start=0.2)}, RUN)
        fit(scripted, epochs, best, Checkpoint(tmp_path / "last.ckpt"), resume=resume)
        kept = {f"best {name}": weights for name, weights in best.weights.items()}
        return {**scripted.trained_state(), **kept, **scripted.states.state_dict()}

    whole, _ = run(3), run(2)
    resumed = run(3, tmp_path / "last.ckpt")
    assert whole.pop("ema._extra_state") == resumed.pop("ema._extra_state") > 0
    assert same(resumed, whole)


@pytest.mark.parametrize(("key", "value"), [("decay", 1.0), ("decay", float("nan")), ("start", -0.1), ("start", 1.0)])
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"regulariser\.ema\.{key}="):
        EMA(**{"decay": 0.9, "start": 0.0, key: value})
