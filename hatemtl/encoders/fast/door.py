"""Opens the door to hatemtl's own layers: who uses them knows nothing else of this folder.

They compute plain LoRAs (of AdapterHub or PEFT, without dropout, on float weights) of any encoder on any device, and whole
layers of BERT, ELECTRA, RoBERTa, XLM-RoBERTa and CamemBERT where nothing but such LoRAs is trained, attention is eager (as
it is on a CPU) and the body's dropout is off; see docs/fast.org. The libraries keep the parameters and save them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from torch import nn

from hatemtl.encoders.fast.bert_layer import BertLayer
from hatemtl.encoders.fast.bert_stack import BertStack, stacks
from hatemtl.encoders.fast.lora_linear import LoRALinear


def accelerate(model: nn.Module, loras: Sequence[LoRALinear]) -> None:
    """Lets these LoRAs be computed here, and whole layers where nothing else is trained, in place of any before."""
    restore(model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    alone = loras and trained == {id(factor) for lora in loras for factor in (lora.A, lora.B)}
    steps: Iterator[LoRALinear | BertStack] = chain(loras, map(BertStack, stacks(model) if alone else []))
    for ours in steps:  # a stack is made of what computes when its turn comes: the LoRAs
        ours.before, ours.owner.forward = ours.owner.__dict__.get("forward"), ours


def restore(model: nn.Module) -> None:
    """Lets every module compute as it did before `accelerate`; what others put in the place of a `forward` stays."""
    for module in model.modules():
        ours = module.__dict__.get("forward")
        if isinstance(ours, LoRALinear | BertStack):
            del module.forward
            if ours.before is not None:
                module.forward = ours.before


@contextmanager
def merged(model: nn.Module) -> Iterator[bool]:
    """Merges each LoRA computed here into the weight under it, inside, while nothing is trained; says if there is any.

    Afterwards all is as before, to the last bit. What a library computes is left as it is, and says the same but for
    rounding: to merge and unmerge as the libraries do would change the frozen weights.
    """
    forwards = [module.forward for module in model.modules()]
    steps: list[LoRALinear | BertLayer] = [f for f in forwards if isinstance(f, LoRALinear)]
    steps += [layer for f in forwards if isinstance(f, BertStack) for _, layer, _ in f.layers]
    try:
        for step in steps:
            step.merge()
        yield bool(steps)
    finally:
        for step in steps:
            step.merged = None


def is_fast(model: nn.Module) -> bool:
    """Tells whether whole layers of the model are computed here: those are as fast as compiled code."""
    return any(isinstance(module.forward, BertStack) for module in model.modules())
