import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from hatemtl.command.suggestions import CONF, explain


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("method=ah_lora61", "method=ah_lora61: no such option; did you mean 'ah_lora16'"),
        ("tasks=[label,targets]", "tasks=targets: no such option; did you mean 'target'"),
        ("corpus@tasks.target.corpus=smaple", "corpus=smaple: no such option; did you mean 'sample'?"),
        ("merge=xyz", "merge=xyz: no such option; known: breadcrumbs, core_space"),
        (
            "optimization.warm_up=3",
            "optimization.warm_up: optimization=adamw has no such key; did you mean 'optimization.warmup'",
        ),
        ("heads.merg=refit", "heads.merg: no such key; did you mean 'heads.merge'"),
        ("format=peft", "format: no such key; did you mean 'export.format'?"),
        ("save_pth=x", "save_pth: no such key; did you mean 'save_path'"),
        ("seed 3", "seed 3"),
    ],
)
def test_the_nearest_name_is_told(typed: str, said: str) -> None:
    with (
        pytest.raises(HydraException) as error,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        compose("config", overrides=[typed])
    assert said in explain(error.value)
    assert "search path" not in explain(error.value)


def test_keys_are_those_of_the_option_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["method=full_merge", "method.rank=8"]
    monkeypatch.setattr("sys.argv", ["main.py", *overrides])
    with pytest.raises(HydraException) as error, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=overrides)
    said = explain(error.value)
    assert "method.rank: method=full_merge has no such key" in said
    assert "'method.rank'" not in said
