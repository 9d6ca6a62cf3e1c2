"""Of a saved run's configuration choices of options and plain values are taken, and nothing is built of it."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from hatemtl.command import used_run
from hatemtl.errors import UserError


@pytest.mark.parametrize("task", ["../../run/payload", "label/../../x", "a b", "x=1", ""])
def test_a_saved_run_leads_to_no_other_yaml_by_the_name_of_a_task(task: str, tmp_path: Path) -> None:
    (tmp_path / "payload.yaml").write_text("# @package _global_\nseed: {_target_: builtins.exit}\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"choices": {"encoder": "tiny"}, "tasks": {task: {}}}))
    (tmp_path / "labels.json").write_text("{}")
    record = {"library": "adapterhub", "method": "x", "encoder": "x", "encoder_source": "x"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is no name of a task; do not use this run"):
        used_run.using_alone(tmp_path, [])


def test_what_a_saved_run_left_out_stays_out() -> None:
    """Its null takes the place of what our YAML has, also of several keys."""
    ours = OmegaConf.create({"encoder": {"random": {"layers": 2}, "source": "a"}})
    used_run._lay_over(ours, {"encoder": {"random": None, "source": "b"}}, {})
    assert ours == {"encoder": {"random": None, "source": "b"}}
