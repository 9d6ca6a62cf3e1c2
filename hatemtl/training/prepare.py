"""Makes network and data ready to train: tokens, compiled code, frozen layers' states, labels' counts."""

from pathlib import Path

from hatemtl.batches.datamodule import DataModule
from hatemtl.encoders.pretrained import vocabulary
from hatemtl.errors import UserError
from hatemtl.machine.startup import started
from hatemtl.network.assembly import Network, check_tokenizer
from hatemtl.network.frozen_prefix import Prefix
from hatemtl.training.trainer_settings import TrainerSettings


def prepare(
    network: Network, data: DataModule, settings: TrainerSettings, epochs: int, cache: Path | None, *, cache_prefix: bool
) -> str:
    """Makes network and data ready to train so many epochs: tokens, compiled code, frozen layers' states, labels' counts.

    cache: the folder that keeps the first three. Gives what tells the tokenizer from others.
    Raises UserError where cache_prefix has no such folder, or nothing to keep, or a source was trained on other tokens.
    """
    module, tokenizer = network.module, network.encoder.tokenizer()
    words = vocabulary(tokenizer)
    for source in network.method.starts_from():
        check_tokenizer(source, words)
    data.tokenize(tokenizer, network.encoder.max_length, cache)
    if network.encoder.quantize is None or settings.compile is True:  # no one has seen that it pays for quantized layers
        module.through.compiled = settings.compiled(module.encoder, tokens=data.training_tokens(epochs), cache=cache)
    if cache_prefix:
        if cache is None:
            raise UserError("data.cache_prefix=true needs a folder to keep them in; type data.cache=FOLDER")
        if data.pool.masks or data.augmentations:
            what = "masked" if data.pool.masks else "augmented"
            raise UserError(
                f"data.cache_prefix=true: a post that is {what} is another each epoch; type data.cache_prefix=false"
            )
        if network.encoder.quantize is not None:
            raise UserError(
                "data.cache_prefix=true: what quantized layers make of a post is not kept; type data.cache_prefix=false, or "
                "encoder.quantize=null"
            )
        started()  # it may take long
        batches = data.batching.in_order(data.pool.lengths)
        prefix = Prefix(module.encoder.to(settings.device))
        prefix.fill(data.pool, batches, cache, network.mark)
        prefix.install()
        module.through.prefix = prefix
    for task in data.tasks:
        module.head(task).observe(data.observed(task))
        data.weigh(task, module.head(task))
        if (counts := module.head(task).counts) is not None:
            counts.observe(data.counted(task))
    return words
