"""Splits the encoder over the processes of a run: each holds its part of every weight, gradient and optimizer state.

A layer's weights are whole only while it computes (Zhao et al. 2023, PyTorch FSDP, arXiv:2304.11277, by torch's
`fully_shard`). Which parts there are shows in nothing that is written: what is kept is whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@contextmanager
def sharded(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Splits a model, which lies on the device, over all processes inside; afterwards its very parameters are whole again.

    After an error inside, the model is of no use.
    """
    kept = [(m, name, p) for m in model.modules() for name, p in m.named_parameters(recurse=False, remove_duplicate=False)]
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    parts: Any = [*_layers(model), model]
    for part in parts:  # the model last: it splits what is in no layer, and leaves no weight of its own whole in between
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for _, _, parameter in kept:
        parameter.data = parameter.new_empty(0)
    yield
    for part in parts:
        part.reshard()
    for module, name, parameter in kept:
        split = getattr(module, name)
        parameter.data = whole(split.detach()).to(split.device)
        parameter.requires_grad = split.requires_grad
    for part in parts:
        _joined(part)
    for module, name, parameter in kept:
        setattr(module, name, parameter)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Finds the encoder's layers; none where they share their weights."""
    config: Any = model.config
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return [*module]
    return []


def can_join() -> bool:
    """Tells whether this torch keeps what `_joined` takes off where that looks for it: no release promises to."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
    except ImportError:
        return False
    return hasattr(FSDPState(), "_fsdp_param_groups")


def _joined(part: Any) -> None:
    """Takes off a module what `fully_shard` put on it; torch itself has no way back."""
    state = part._get_fsdp_state()
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        handles += group._module_to_pre_save_state_dict_hook_handle.values()
        handles += group._module_to_pre_load_state_dict_hook_handle.values()
        handles += [parameter._post_load_hook_handle for parameter in group.fsdp_params]
    for handle in handles:
        handle.remove()
    part.__class__ = type(part).__mro__[part._orig_cls_mro_index]
    for module in part.modules():
        vars(module).pop("_is_fsdp_managed_module", None)


def whole(tensor: Tensor) -> Tensor:
    """Gives all of a tensor whose parts the processes hold, which all ask for it together; another as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    there: Any = tensor.to(tensor.device_mesh.device_type)  # Lightning moves what it trained to the CPU
    return there.full_tensor()


def mine(tensor: Tensor) -> Tensor:
    """Gives what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Gives this process's part of a whole tensor, split as another is."""
    if not isinstance(like, DTensor):
        return tensor
    here = tensor.to(like.device_mesh.device_type)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)  # all hold the same


def clip(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scales gradients down to a norm of all together, split ones among them, of `most`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [mine(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
    if not parts:
        nn.utils.clip_grad_norm_(parameters, most)
        return
    rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = nn.utils.get_total_norm(parts).square()
    distributed.all_reduce(square)
    length = (square + nn.utils.get_total_norm(rest).square()).sqrt()
    torch._foreach_mul_([*parts, *rest], (most / (length + 1e-6)).clamp(max=1.0))


def keep_whole(optimizer: torch.optim.Optimizer) -> None:
    """Lets the optimizer's state be whole where it is written to a checkpoint, and split where it is read."""

    def written(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {n: {k: whole(v) for k, v in of.items()} for n, of in state["state"].items()}}

    def read(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        likes = dict(zip(numbers, [p for group in optimizer.param_groups for p in group["params"]], strict=True))
        split = {
            number: {key: part_of(v, likes[number]) if v.shape == likes[number].shape else v for key, v in of.items()}
            for number, of in state["state"].items()
        }
        return {**state, "state": split}

    optimizer.register_state_dict_post_hook(written)
    optimizer.register_load_state_dict_pre_hook(read)
