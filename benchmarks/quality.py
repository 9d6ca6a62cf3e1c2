"""Is hatemtl as good as the plain recipe it outruns? Macro-F1 and accuracy over several seeds, on HateXplain's test posts.

Every arm trains the label task on the same posts, with LoRA of rank 16 on the same layers, batches of 32, the same number of
epochs, a learning rate of 5e-4 that falls linearly, gradients clipped at norm 1, and keeps its last weights: no validation
chooses among epochs, for the Trainer's quick start has none. What differs stays each library's own: hatemtl's head reads the
mean of the tokens and learns at 1e-3, with weight decay .01 and bf16; the Trainer's reads the pooled first token at the one
rate that there is, without decay, in float32. A second Trainer has hatemtl's head, its rate and decay, so that what is
left but for the draws is what makes hatemtl fast. Three further arms
take choices of hatemtl's back: one, one, and all together.
"""

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks import command_line, machine
from benchmarks.readings import org

ONE = ("label",)
OURS = "hatemtl"
# What each arm of hatemtl's changes. These, but no rival, share a seed's initial weights with the default.
VARIANTS: dict[str, list[str]] = {
    OURS: [],
    "hatemtl, plain shuffling": ["batching.window=1"],
    "hatemtl, body dropout": ["method.body_dropout=true"],
    "hatemtl, all of it undone": ["batching.window=1", "method.body_dropout=true", "trainer.precision=32"],
}
# The learning rate of a rival's head that is hatemtl's; None for the rival's own.
RIVALS: dict[str, float | None] = {
    "Trainer + PEFT, quick start": None,
    "the same, hatemtl's head and its rate": 1e-3,
}
SCORES = ("macro_f1", "accuracy")


def trained(arm: str, *, posts: str, train_posts: int, epochs: int, seed: int, device: str) -> dict[str, float]:
    """The test scores of one arm trained with one seed."""
    from benchmarks import encoders
    from benchmarks.ours import Run, Source, composed, examples
    from benchmarks.rivals import Recipe, TrainerArm

    source = Source(name=posts, train=train_posts, evaluation=64)
    if arm in RIVALS:
        encoder = str(encoders.installed())
        recipe = Recipe(encoder=encoder, epochs=epochs, learning_rate=5e-4, seed=seed, head_rate=RIVALS[arm])
        rival = TrainerArm(recipe, examples(source, "train"), examples(source, "test"), device=device, tasks=ONE)
        rival.train(ONE)
        rival.evaluate(ONE)
        return {score: rival.scores[f"eval_{score}"] for score in SCORES}
    run = Run(
        composed(source, ONE, [f"seed={seed}", f"optimization.epochs={epochs}", *VARIANTS[arm]], device=device),
        device=device,
    )
    run.train()
    rows = run.test()
    return {score: rows[f"test_label_{score}"] for score in SCORES}


def difference(mine: Sequence[float], other: Sequence[float], *, paired: bool) -> tuple[float, float, float]:
    """The difference of the means, mine less other, with its 95 % interval: paired t, or Welch's."""
    from scipy import stats  # comes with scikit-learn

    test = stats.ttest_rel(mine, other) if paired else stats.ttest_ind(mine, other, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return statistics.fmean(mine) - statistics.fmean(other), float(low), float(high)


def report(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Mean ± standard deviation of each arm, and the default less each other arm: arm → score → a value a seed."""
    rows = []
    for arm, values in scores.items():
        row = [arm]
        for score in SCORES:
            several = len(values[score]) > 1
            row.append(
                f"{statistics.fmean(values[score]):.3f}" + (f" ± {statistics.stdev(values[score]):.3f}" if several else "")
            )
            gap = ""
            if several and arm != OURS:
                middle, low, high = difference(scores[OURS][score], values[score], paired=arm not in RIVALS)
                gap = f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"
            row.append(gap)
        rows.append(row)
    return org(["arm", *(text for score in SCORES for text in (score, f"hatemtl less this, {score}"))], rows)


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    about = machine.description(options.device, options.threads)
    scores: dict[str, dict[str, list[float]]] = {arm: {score: [] for score in SCORES} for arm in (OURS, *options.arms)}
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "quality.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "epochs", "train_posts", *SCORES, *about])
        for seed in range(options.seeds):
            for arm in scores:
                found = trained(
                    arm,
                    posts=options.posts,
                    train_posts=options.train_posts,
                    epochs=options.epochs,
                    seed=seed,
                    device=options.device,
                )
                for score in SCORES:
                    scores[arm][score].append(found[score])
                writer.writerow([arm, seed, options.epochs, options.train_posts, *found.values(), *about.values()])
                file.flush()
                print(f"seed {seed}  {arm}: {found}", file=sys.stderr, flush=True)
    text = (
        f"Test scores of the label task, {options.train_posts} training posts, {options.epochs} epochs, {options.seeds} "
        f"seeds: mean ± standard deviation, differences with 95 % intervals (paired by seed; Welch's "
        "against the Trainers).\n\n"
        f"{report(scores)}\n"
    )
    (options.out / "quality.org").write_text(text, encoding="utf-8")
    print(text)


def _options() -> argparse.Namespace:
    parser = command_line.parser(__doc__, posts=True, quick="two seeds of few posts")
    parser.add_argument("--train-posts", type=int, default=2000, help="drawn once, the same for all seeds (default 2000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    others = [arm for arm in (*VARIANTS, *RIVALS) if arm != OURS]
    parser.add_argument("--arms", nargs="*", choices=others, default=others, help=f"what {OURS} is compared with")
    given = parser.parse_args()
    if given.quick:
        given.train_posts, given.epochs, given.seeds = 96, 1, 2
    return given


if __name__ == "__main__":
    main()
