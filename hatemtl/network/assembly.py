"""Assembles encoder, method and heads into the network of a run, and checks everything that would be silently wrong."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from hatemtl.batches.batch import Batch
from hatemtl.corpora.preprocess import Preprocess
from hatemtl.encoders.pretrained import Encoder, fingerprint, keep_trainable
from hatemtl.errors import Refusal, UserError, refusing
from hatemtl.labels import LabelSpace
from hatemtl.methods.base import LOADERS, Component, Method, components, module_name
from hatemtl.network import initial_heads
from hatemtl.network.forward import Forward
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.network.merge_search import Search
from hatemtl.network.merge_statistics import informed
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.regularisers.base import Regulariser, Run
from hatemtl.objective.weighting import Weighting
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task


@dataclass(frozen=True)
class Network:
    """The module of a run, and what its saved run must say of it.

    mark: the fingerprint of the pretrained encoder. name: under which the method's adapter stands. notes, lost: as in
    `Attached`. search: for a merge's weights. seconds: that merging took, statistics of posts and search included.
    """

    module: MultitaskModule
    encoder: Encoder
    method: Method
    mark: str
    name: str
    notes: tuple[str, ...] = ()
    lost: Mapping[str, float] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    seconds: float = 0.0

    def store(self, dtype: torch.dtype) -> None:
        """Keeps the body's frozen weights in the type of the computation: no cast at every step, half the memory in bf16."""
        self.module.through.dtype = dtype
        pattern = self.method.library.pattern
        for name, parameter in self.module.encoder.named_parameters():
            frozen = not parameter.requires_grad and parameter.is_floating_point()  # a quantized weight stays as it is
            if frozen and not (pattern and pattern.search(name)):
                parameter.data = parameter.data.to(dtype)

    def merged(self) -> list[dict[str, object]]:
        """Gives a row a layer of a merge: what was lost, and the weight of each source where they were searched for."""
        found = [*enumerate(self.search.found, 1)]
        weights = {layer: {f"weight_{n}": float(of.get(layer, 0)) for n, of in found} for layer in self.lost}
        return [{"layer": layer, "lost": lost, **weights[layer]} for layer, lost in self.lost.items()]

    def parts(self) -> list[Component]:
        """Counts the body, each adapter and each head, with their parameters."""
        parts = components(self.method, self.module.encoder)
        for task, head in self.module.heads.items():
            sizes = {parameter: parameter.numel() for parameter in head.parameters()}
            trained = sum(size for parameter, size in sizes.items() if parameter.requires_grad)
            parts.append(Component(task, "head", sum(sizes.values()), trained, active=True))
        return parts


def assemble(
    *,
    encoder: Encoder,
    method: Method,
    tasks: Mapping[str, Task],
    spaces: Mapping[str, LabelSpace],
    weighting: Callable[..., Weighting],
    optimization: Optimization,
    seed: int,
    name: str,
    heads_from: SavedRun | None,
    heads_merge: HeadsMerge = "fresh",
    posts: Callable[[str, int], list[Batch]] | None = None,
    regularisers: Mapping[str, Regulariser] | None = None,
    teacher: Callable[[SavedRun], Forward] | None = None,
    paired: Collection[str] = (),
) -> Network:
    """Builds the network; heads start from `heads_from`, from those of the method's sources, or fresh by their own draws.

    posts: batches of so many posts of a split, for a merge that has to know some; None where none are at hand.
    teacher: gives the network of a saved run that a regulariser asks. paired: the tasks of posts with second texts.
    Raises UserError where a head does not fit its labels or what was saved, Refusal where the method does not fit the rest.
    """
    for task, space in spaces.items():
        if tasks[task].kind != space.kind:
            raise UserError(
                f"task {task!r} has a head for {tasks[task].kind} labels, but those of its column are {space.kind}; type "
                f"head@tasks.{task}.head={space.kind}"
            )
    model = encoder.model(dropout=method.body_dropout, seed=seed)
    mark = fingerprint(model)
    notes = {}
    with refusing():
        for source in [*method.starts_from(), *([heads_from] if heads_from else [])]:
            check_encoder(source, mark, encoder)
            bits = source.configured("encoder").get("quantize")  # a run from before there was such a key had none
            if bits != encoder.quantize:
                notes[source.folder] = (
                    f"{source.folder} was trained over {bits or 'float'} weights of this encoder and stands over "
                    f"{encoder.quantize or 'float'} ones here: its scores will differ a little"
                )
    if encoder.quantize is not None and not method.library.quantizable:
        raise Refusal(
            f"encoder.quantize={encoder.quantize}: {type(method).__name__} ({method.library.name}) needs the weights of "
            f"{encoder.source} as floats; type encoder.quantize=null, or method=peft_lora16"
        )
    needs = method.merge.needs if method.merge and posts else None
    heads = initial_heads.fresh(model, tasks, spaces, seed)
    known = method.starts_from() if heads_merge in ("concat", "mean") else []
    if heads_from is not None:
        known = [heads_from]
        initial_heads.load(heads, heads_from, tasks)
        if posts is None:  # it is used; what is trained finds its own
            initial_heads.load_thresholds(heads, heads_from)
    elif heads_merge in ("concat", "mean") or (heads_merge == "refit" and needs == "search"):  # a search needs some already
        initial_heads.merge(heads, method.starts_from(), tasks, heads_merge)
    elif needs == "search":
        raise UserError(
            "merge=learned searches with the heads of the sources, and heads.merge=fresh draws new ones; type "
            "heads.merge=concat for parts, or heads.merge=mean"
        )
    told, begun = Search(), time.perf_counter()
    if needs and posts:
        trained = partial(initial_heads.of_run, tasks=tasks, hidden_size=model.config.hidden_size)
        method, told = informed(method, model, heads, trained, posts, seed)
    name, body = module_name(name), encoder.quantized(model)
    with refusing():
        attached = method.attach(body, name=name, seed=seed)
    seconds = time.perf_counter() - begun if method.merge else 0.0
    keep_trainable(attached.model)
    module = MultitaskModule(
        attached.model,
        heads,
        weights={task: tasks[task].weight for task in spaces},
        by_label=[task for task in spaces if tasks[task].by_label],
        weighting=weighting,
        optimization=optimization,
        seed=seed,
    )
    if regularisers and teacher:
        numbers = {corpus: number for number, corpus in enumerate(dict.fromkeys(task.corpus for task in tasks.values()))}
        corpora = {task: numbers[tasks[task].corpus] for task in spaces}
        module.regularise(regularisers, Run(seed=seed, corpora=corpora, teacher=teacher, paired=paired))
    cuts = [note for saved in known for note in initial_heads.other_thresholds(saved, tasks)]
    said = (*notes.values(), *cuts, *attached.notes)
    return Network(module, encoder, method, mark, name, said, attached.lost, told, seconds)


def check_encoder(saved: SavedRun, mark: str, encoder: Encoder) -> None:
    """Raises UserError where the saved run was trained on another encoder than this one, whose fingerprint is `mark`."""
    if saved.record["encoder"] not in (mark, None):  # of the hub, where nobody says: whether its shapes fit is seen later
        raise UserError(
            f"{saved.folder} was trained on another encoder: {saved.record['encoder_source']} "
            f"({saved.record['encoder']}), and this run has {encoder.source} ({mark}); type encoder=NAME of the former"
        )


def check_tokenizer(saved: SavedRun, mark: str) -> None:
    """Raises UserError where the saved run read its posts through another tokenizer: its weights know other token ids."""
    if saved.record.get("tokenizer", mark) != mark:
        raise UserError(
            f"{saved.folder} was trained with another tokenizer ({saved.record['tokenizer']}) than this encoder's ({mark}); "
            f"type encoder=NAME of the one that it was trained on ({saved.record['encoder_source']})"
        )


def preprocessed_otherwise(saved: SavedRun, given: Preprocess) -> str | None:
    """Says how the saved run's posts were rewritten, where that is not how this run's are; None where it is."""
    trained = {name: bool(value) for name, value in (saved.config.get("preprocess") or {}).items()}
    other = [name for name, asked in vars(given).items() if trained.get(name, False) != asked]
    if not other:
        return None
    keys = " ".join(f"preprocess.{name}={str(trained.get(name, False)).lower()}" for name in other)
    return f"{saved.folder} was trained with {keys}, and this run reads posts otherwise"


def check_preprocess(saved: SavedRun, given: Preprocess) -> None:
    """Raises UserError where the saved run would read posts that are rewritten otherwise than those it was trained on."""
    if said := preprocessed_otherwise(saved, given):
        raise UserError(f"{said}; type these keys as well, or none of preprocess where the run is used")


def check_method(saved: SavedRun, method: Method, encoder: Encoder) -> None:
    """Raises UserError where the encoder side under the saved heads would be another than the one trained with them."""
    with refusing():
        starts = method.starts_from()
    if [source.folder.resolve() for source in starts] != [saved.folder.resolve()]:
        raise Refusal(
            f"the given method does not load the encoder side of {saved.folder}, which its heads were trained with; "
            f"type method={LOADERS[saved.record['library']]}"
        )
    length = saved.configured("encoder", "max_length")
    if encoder.max_length != length:
        raise UserError(
            f"load_path={saved.folder} was trained with encoder.max_length={length}, this run has {encoder.max_length}; "
            f"type encoder.max_length={length}"
        )
