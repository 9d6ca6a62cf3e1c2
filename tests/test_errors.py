"""The nearest name to whatever YAML holds, be it a name or not."""

import pytest

from hatemtl.corpora.frenk import Frenk
from hatemtl.corpora.glue import Glue
from hatemtl.corpora.hateval import HatEval
from hatemtl.corpora.hatexplain import HateXplain
from hatemtl.corpora.headline_cause import HeadlineCause
from hatemtl.corpora.russian_superglue import RussianSuperGlue
from hatemtl.corpora.xnli import Xnli
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import did_you_mean
from hatemtl.heads.base import Pool
from hatemtl.heads.score import ScoreHead
from hatemtl.labels import LabelSpace
from hatemtl.methods.peft_adapters.library import check_kind
from hatemtl.objective.optimization import Optimization
from hatemtl.training.trainer_settings import TrainerSettings

SCORE = LabelSpace("score", ("x",))
NO_NAMES = (3, 0.5, None, True, ["cola"], {"a": 1})
OF_ALL: dict[str, Any] = {"fraction": 1.0, "limit": None, "seed": 0}
SETTINGS: dict[str, Any] = {"precision": "32", "compile": False, "progress": None, "fast": "auto"}
RATES: dict[str, Any] = {"encoder_lr": 1e-3, "head_lr": 1e-3, "weight_decay": 0.0, "heads_first": 0, "warmup": 0}
REST: dict[str, Any] = {"epochs": 1, "clip": None, "accumulate": 1, "patience": None}
ENCODER: dict[str, Any] = {"source": "x", "revision": None, "max_length": 8, "random": None}
MAKERS: dict[str, Callable[[Any], object]] = {
    "glue": lambda given: Glue(dir="x", task=given, validation=0.1, **OF_ALL),
    "headline_cause": lambda given: HeadlineCause(dir="x", config=given, **OF_ALL),
    "hateval": lambda given: HatEval(dir="x", language=given, **OF_ALL),
    "hatexplain": lambda given: HateXplain(dir="x", rationale=given, **OF_ALL),
    "frenk": lambda given: Frenk(dir="x", language=given, **OF_ALL),
    "frenk topics": lambda given: Frenk(dir="x", topics=[given], **OF_ALL),
    "russian_superglue": lambda given: RussianSuperGlue(dir="x", task=given, validation=0.1, **OF_ALL),
    "xnli": lambda given: Xnli(dir="x", language=given, **OF_ALL),
    "attention": lambda given: Encoder(**ENCODER, attention=given),
    "pooling": lambda given: Pool(given, 4),
    "loss": lambda given: ScoreHead(hidden_size=4, space=SCORE, pooling="cls", layers=1, dropout=0.0, loss=given),
    "kind": lambda given: check_kind(given, None),
    "schedule": lambda given: Optimization(schedule=given, **RATES, **REST),
    "accelerator": lambda given: TrainerSettings(accelerator=given, **SETTINGS),
}


@pytest.mark.parametrize("given", [3, 0.5, None, True, ["cola"], {"a": 1}], ids=str)
def test_what_is_no_name_is_near_to_none(given: object) -> None:
    assert did_you_mean(given, ["tiny", "minilm"]) == "known: tiny, minilm"


def test_near_names() -> None:
    assert did_you_mean("Tinny", ["minilm", "tiny"]) == "did you mean 'tiny'?"
    assert did_you_mean("XNLI", ["xnli", "terra"]) == "did you mean 'xnli'?"
    assert did_you_mean("f1_a", ["f1_A", "f1_a"]) == "did you mean 'f1_A' or 'f1_a'?"
    assert did_you_mean(31, [32, 16]) == "known: 32, 16"
    assert did_you_mean("x", []) == "known: none"
