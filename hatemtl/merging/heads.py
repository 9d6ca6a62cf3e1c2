"""Makes heads of several saved runs one: their labels side by side, or the mean of heads that know the same labels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

State = Mapping[str, Tensor]  # the weights of one head, by name


def instead(how: str) -> str:
    """Says what to type in place of a heads.merge that the sources' heads do not allow."""
    return "heads.merge=refit" if how != "refit" else "merge=mean, for a search needs heads before they are fitted"


def concat(
    task: str, sources: Mapping[str, tuple[LabelSpace, State]], space: LabelSpace, how: str = "concat"
) -> dict[str, Tensor]:
    """Makes the head that knows every label as the one source trained for it does; where all know all, their `mean`.

    sources: by name, what each knows and its weights. how: the heads.merge that was typed.
    Raises UserError where a label is known to none or to several, or the heads share more than what is one label's own.
    """
    if all(known == space for known, _ in sources.values()):
        return mean(task, sources, space)
    owner: dict[str, str] = {}
    for label in space.names:
        owners = [name for name, (known, _) in sources.items() if label in known.names]
        if len(owners) != 1:
            trained = f"{' and '.join(owners)} were both" if owners else "no source was"
            raise UserError(
                f"heads.merge={how}: {trained} trained for the label {label!r} of task {task!r}; "
                f"{'leave one out of' if owners else 'add one that was to'} method.sources, or type {instead(how)}"
            )
        owner[label] = owners[0]
    merged = {}
    for key, tensor in next(iter(sources.values()))[1].items():
        parts = {name: state[key] for name, (_, state) in sources.items()}
        of_labels = key != "counts.scale"  # of a lexicon's categories, which may be as many
        if of_labels and all(len(part) == len(sources[name][0]) for name, part in parts.items()):
            merged[key] = torch.stack([parts[owner[x]][sources[owner[x]][0].names.index(x)] for x in space.names])
        elif all(torch.equal(part, tensor) for part in parts.values()):
            merged[key] = tensor.clone()
        else:
            raise UserError(
                f"heads.merge={how}: the heads for task {task!r} have weights that all their labels share ({key}), and "
                f"each run has others; train the sources with tasks.{task}.head.layers=1 tasks.{task}.head.pooling=mean, or "
                f"type {instead(how)}"
            )
    return merged


def mean(task: str, sources: Mapping[str, tuple[LabelSpace, State]], space: LabelSpace) -> dict[str, Tensor]:
    """Averages the heads' weights. Raises UserError where one knows other labels than `space`, or in another order."""
    for name, (known, _) in sources.items():
        if known != space:
            raise UserError(
                f"heads.merge=mean: the head of {name} for task {task!r} knows {', '.join(known.names)}, and the mean needs "
                f"{', '.join(space.names)}; type heads.merge=concat for parts, or heads.merge=refit"
            )
    states: Sequence[State] = [state for _, state in sources.values()]
    return {key: torch.stack([state[key].double() for state in states]).mean(0).to(states[0][key]) for key in states[0]}
