"""Where a training step's time goes: the operators of hatemtl's step, of a LoRA by default, by what they are for."""

import argparse
import os

import torch
from torch.profiler import ProfilerActivity, profile

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", default="sample", help="`sample`, or a folder with hatexplain/ in it, as ../shared/data")
    parser.add_argument("--train-posts", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as behind main.py: method=full")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = Source(name=options.posts, train=options.train_posts, evaluation=100)
    run = Run(composed(source, ("label",), ["optimization.epochs=1", *options.words]))
    run.train()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run.train()
    times = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profiler.key_averages()}
    whole = sum(times.values())
    rows = [[kind, f"{sum(times.get(name, 0) for name in names) / whole:.0%}"] for kind, names in KINDS.items()]
    known = {name for names in KINDS.values() for name in names}
    rows.append(["all other operators", f"{sum(t for n, t in times.items() if n not in known) / whole:.0%}"])
    print(org(["of a training step's time on the CPU", "share"], rows))


if __name__ == "__main__":
    main()
