"""Where a training step's time goes: the operators of hatemtl's step, by what they are for, for encoders and methods."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import encoders
from benchmarks.cases import CASES
from benchmarks.ours import Run, Source, composed
from benchmarks.readings import org

KINDS = {
    "products of matrices": ("mm", "addmm", "addmm_", "bmm", "baddbmm_", "mkldnn::_linear_pointwise"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "GELU": ("gelu", "gelu_backward"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "sums, masks and scales": ("add", "add_", "mul", "mul_", "div", "div_", "sub", "sum", "bitwise_and", "bitwise_and_"),
    "copies and casts": ("copy_", "_foreach_copy_", "clone", "cat", "fill_", "index_select", "gather", "embedding"),
    "optimizer and clipping": ("_fused_adamw_", "_foreach_norm", "linalg_vector_norm", "_foreach_mul_"),
}
REST = "all other operators"


def shares(source: Source, words: Sequence[str]) -> dict[str, float]:
    """The share of each of `KINDS`, and of the rest, in the second of two passes over the posts."""
    run = Run(composed(source, ("label",), ["optimization.epochs=1", *words]))
    run.train()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run.train()
    times = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profiler.key_averages()}
    found = {kind: sum(times.get(name, 0) for name in names) / sum(times.values()) for kind, names in KINDS.items()}
    return {**found, REST: 1 - sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", default="sample", help="`sample`, or a folder with hatexplain/ in it, as ../shared/data")
    parser.add_argument("--train-posts", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["minilm,ah_lora16"], metavar="ENCODER,METHOD")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    with tempfile.TemporaryDirectory() as parent:
        for name in options.cases:
            case = CASES[name]
            source = Source(name=options.posts, train=min(options.train_posts, case.posts), evaluation=100)
            words = [f"encoder={case.encoder}", f"encoder.source={encoders.folder(case.encoder, Path(parent))}"]
            found[name] = shares(source, [*words, f"method={case.method}"])
    rows = [[kind, *(f"{of[kind]:.0%}" for of in found.values())] for kind in (*KINDS, REST)]
    print(org(["of a training step's time on the CPU", *(name.replace(",", ", ") for name in found)], rows))


if __name__ == "__main__":
    main()
