"""Commands of which each word may be right, and which all the same cannot be meant: one message, exit 2, nothing changed."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from broken import advises, contents
from conftest import Outcome
from every_file import SAMPLE, laid_out
from tiers import tier

# What stands for several words, and DIR for the folder of `every_file.laid_out`.
SHORT = {
    "SAMPLE": SAMPLE,
    "OUT": ["save_path=DIR/out"],
    "USE": ["load_path=DIR/run", "data.cache=null"],
    "TABLE": ["tasks=[table]", "encoder=tiny", "tasks.table.column=mood", "tasks.table.corpus.path=DIR/posts.csv"],
}
COMMANDS = r"""
action=predict USE predict.input=DIR/posts.csv predict.output=/dev/null
action=predict USE predict.input=DIR/posts.csv predict.output=DIR
action=predict USE predict.input=DIR/posts.csv predict.output=DIR/posts.csv
action=predict USE predict.input=DIR/posts.csv predict.output=DIR/posts.csv overwrite=true
action=predict USE predict.input=DIR/posts.csv predict.output=DIR/posts.tsv
action=predict USE predict.input=DIR/posts.csv predict.output=DIR/posts.csv/x.csv
action=predict USE predict.input=DIR
action=predict USE predict.input=/dev/null
action=predict USE predict.input=DIR/posts.docx
action=predict USE
action=predict predict.input=DIR/posts.csv
action=predict USE predict.input=DIR/posts.csv predict.text=nope
action=predict USE predict.input=DIR/posts.csv predict.pair=nope
action=predict USE predict.input=DIR/posts.csv predict.delimiter=ab
action=predict USE predict.input=DIR/posts.csv predict.encoding=utf-17
action=predict USE predict.input=DIR/posts.csv tasks=[target]
action=predict USE predict.input=DIR/posts.csv encoder.max_length=100000
action=export USE export.format=peft export.path=/dev/null
action=export USE export.format=peft export.path=DIR/posts.csv
action=export USE export.format=peft export.path=DIR/three
action=export USE export.format=peft export.path=DIR/three overwrite=true
action=export USE export.format=peft export.path=DIR/run overwrite=true
action=export USE export.format=peft export.path=DIR overwrite=true
action=export USE export.format=peft
action=export USE export.path=DIR/out
action=export USE export.format=pickle export.path=DIR/out
action=export export.format=peft export.path=DIR/out
action=publish USE
action=publish USE publish.folder=/dev/null
action=publish USE publish.folder=DIR/three
action=publish USE publish.folder=DIR/out "publish.hub_id=a b/c"
action=publish USE publish.folder=DIR/out publish.upload=true
action=publish USE publish.folder=DIR/out publish.license=nope!
action=publish USE publish.folder=DIR/out publish.head_of=nope
action=serve
action=serve USE serve.port=-1
action=serve USE serve.port=99999
action=serve USE serve.queue=0
action=test SAMPLE
action=test load_path=DIR/nowhere
action=test load_path=/dev/null
action=test load_path=DIR/posts.csv
action=test "load_path=''"
action=test load_path=DIR
action=test USE encoder=minilm
action=test USE method=full
action=test USE method=peft_load
action=test USE heads.load=false
action=test USE save_path=/dev/null
action=test USE save_path=DIR/posts.csv
action=nope
action=[train,nope] OUT SAMPLE
action=[] OUT SAMPLE
action=[test,train] OUT SAMPLE
SAMPLE save_path=/dev/null
SAMPLE save_path=DIR/posts.csv
SAMPLE save_path=DIR/posts.csv/x
SAMPLE save_path=DIR/three
SAMPLE save_path=DIR/three overwrite=true
SAMPLE save_path=DIR/run
SAMPLE "save_path=''"
SAMPLE save_path=/
SAMPLE save_path=.
SAMPLE save_path=/proc/x
SAMPLE OUT data.cache=null data.cache_prefix=true
tasks=[label] OUT encoder=tiny data.dir=/dev/null
tasks=[label] OUT encoder=tiny data.dir=DIR/nowhere
SAMPLE OUT heads.load=true
SAMPLE OUT heads.load=true heads.merge=mean
SAMPLE OUT heads.merge=concat
SAMPLE OUT optimization.epochs=0
SAMPLE OUT method=ah_load
SAMPLE OUT method=ah_merge16
SAMPLE OUT method=ah_merge16 "method.sources='DIR/none_*'"
SAMPLE OUT method=ah_merge16 "method.sources='DIR/three'"
SAMPLE OUT method=ah_merge16 "method.sources='DIR/run'" merge=ties merge.density=2
SAMPLE OUT method=peft_merge16 "method.sources='DIR/run'" method.rank=0
SAMPLE OUT merge=ties
SAMPLE OUT load_path=DIR/run
SAMPLE OUT "tasks.label.mask_pattern='1 4'"
SAMPLE OUT tasks=[label,label]
SAMPLE OUT tasks=[]
SAMPLE OUT tasks=[label,nope]
SAMPLE OUT tasks.label.column=nope
SAMPLE OUT head@tasks.label.head=multilabel
SAMPLE OUT head@tasks.label.head=tokens
SAMPLE OUT tasks.label.names=[a,b]
SAMPLE OUT tasks.label.labels={x:[nope]}
SAMPLE OUT tasks.label.head.primary=nope
SAMPLE OUT tasks.label.head.label_weights={nope:2}
SAMPLE OUT weighting=pcgrad
SAMPLE OUT folds.number=5 folds.fold=6
SAMPLE OUT folds.number=1
SAMPLE OUT folds.fold=2
SAMPLE OUT folds.number=5 folds.group_by=nope
SAMPLE OUT trainer.devices=0
SAMPLE OUT trainer.accelerator=cuda:9
SAMPLE OUT trainer.nodes=2
SAMPLE OUT trainer.strategy=fsdp
SAMPLE OUT data.workers=-1
SAMPLE OUT data.micro_batches=0
SAMPLE OUT unlabelled.posts=0 corpus@unlabelled.corpus=sample
SAMPLE OUT regulariser=[vat] regulariser.vat.weight=-1
SAMPLE OUT regulariser=[distil]
SAMPLE OUT regulariser=[vat,vat]
SAMPLE OUT tasks.label.weight=0
SAMPLE OUT unlabelled.posts=5
SAMPLE OUT augmentation=[drop] augmentation.drop.share=2
SAMPLE OUT evaluations=[bias]
SAMPLE OUT evaluations=[nope]
SAMPLE OUT logger=nope
SAMPLE OUT encoder.source=DIR/nowhere
SAMPLE OUT encoder.source=DIR/three
SAMPLE OUT encoder.source=/dev/null
SAMPLE OUT encoder.source=package:nope/x
SAMPLE OUT encoder.random={nope:1}
SAMPLE OUT encoder.random={num_hidden_layers:-1}
SAMPLE OUT encoder.random={hidden_act:nope}
SAMPLE OUT encoder.random={vocab_size:3}
SAMPLE OUT encoder.random={pad_token_id:99999}
SAMPLE OUT encoder.max_length=2
SAMPLE OUT encoder.max_length=100000
SAMPLE OUT method.rank=0
SAMPLE OUT method.attention=[nope]
SAMPLE OUT method.leave_out=[99]
SAMPLE OUT method.leave_out=[0,1]
SAMPLE OUT method.attention=[] method.intermediate=false method.output=false
SAMPLE OUT method=ah_seq_bn method.config=nope
SAMPLE OUT method=ah_seq_bn "method.config='__import__(1)'"
SAMPLE OUT preprocess.urls=3
SAMPLE OUT cost.per_hour=-1
SAMPLE OUT cost.watts=nan
SAMPLE OUT experiment=nope
SAMPLE OUT experiment=[demo,own]
SAMPLE OUT optimization.stages=[{learns:nope}]
SAMPLE OUT optimization.stages=[{weighting:nope}]
SAMPLE OUT optimization.stages=[3]
SAMPLE OUT optimization.stages=[{nope:1}]
SAMPLE OUT optimization.stages=[{learns:heads,epochs:x}]
SAMPLE OUT optimization.warmup=-1
SAMPLE OUT optimization.clip=0
SAMPLE OUT optimization.evaluate_every=0
SAMPLE OUT batching.batch_size=0
SAMPLE OUT batching=tokens batching.batch_tokens=1
SAMPLE OUT sampling=temperature sampling.temperature=0
SAMPLE OUT seed=4294967296
SAMPLE OUT nope=3
SAMPLE OUT seed
SAMPLE OUT =3
SAMPLE OUT seed=[1,
SAMPLE OUT seed=${nope}
SAMPLE OUT seed=${oc.env:NOPE_X}
SAMPLE OUT encoder._target_=os.system
SAMPLE OUT tasks.label.corpus._target_=builtins.eval
SAMPLE OUT +hydra.run.dir=3
tasks=[table] OUT tasks.table.column=mood encoder=tiny
tasks=[table] OUT encoder=tiny tasks.table.corpus.path=DIR/posts.csv
tasks=[table] OUT tasks.table.column=nope encoder=tiny tasks.table.corpus.path=DIR/posts.csv
TABLE OUT tasks.table.corpus.text=nope
TABLE OUT tasks.table.corpus.id=mood
TABLE OUT tasks.table.corpus.split=mood
TABLE OUT tasks.table.corpus.fractions=[1,1,1]
TABLE OUT tasks.table.corpus.fractions=[1]
TABLE OUT tasks.table.corpus.fractions=[0,0,0]
TABLE OUT tasks.table.corpus.group_by=nope
TABLE OUT tasks.table.corpus.limit=-1
TABLE OUT head@tasks.table.head=score
tasks=[table] OUT tasks.table.column=mood encoder=tiny tasks.table.corpus.path=DIR
tasks=[table] OUT tasks.table.column=mood encoder=tiny tasks.table.corpus.path=/dev/null
tasks=[table] OUT tasks.table.column=mood encoder=tiny tasks.table.corpus.path=a/b/c/d
tasks=[table] OUT tasks.table.column=mood encoder=tiny tasks.table.corpus.path=../x/y
action=tune OUT SAMPLE
action=tune OUT SAMPLE tune.space={nope:[1,2]}
action=tune OUT SAMPLE tune.space={method.rank:x}
action=tune OUT SAMPLE tune.space={method.rank:[4,8]} tune.by=nope
action=tune OUT SAMPLE tune.space={method.rank:[4,8]} tune.sampler=nope
action=tune OUT SAMPLE "tune.space={method.rank:'int(8,4)'}"
action=status OUT
action=collect save_path=DIR/three
""".strip().split("\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    laid_out(at := tmp_path_factory.mktemp("whole"))
    return at


def cases() -> list[object]:
    return [pytest.param(command, id=command, marks=tier(command, fast=20)) for command in COMMANDS]


@pytest.mark.parametrize("command", cases())
def test_a_command_that_cannot_be_meant(
    cli: Callable[..., Outcome], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(whole, at := tmp_path / "at")
    before = contents(at)
    monkeypatch.chdir(at)
    words = [word.replace("DIR", str(at)) for typed in shlex.split(command) for word in SHORT.get(typed, [typed])]
    outcome = cli(*words)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("error: ") == 1
    assert len(outcome.err) < 1000 and advises(outcome.err), outcome.err
    assert contents(at) == before
