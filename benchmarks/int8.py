"""What int8 changes: scores, figures and speed of a saved run on its task's test posts, beside bf16's and float32's.

    uv run benchmarks/int8.py adapters/run --task label --overrides data.dir=../shared/data

One process holds the run in each number format. Passes over the posts are timed in turns, in seconds of the processor.
"""

import time
from itertools import product

import numpy as np

from benchmarks import command_line
from benchmarks.posts import macro_f1
from benchmarks.readings import org, ratio, times
from hatemtl.machine.startup import keep_memory

FORMATS = ("int8", "bf16", "32")


def compared(scores: dict[str, np.ndarray], gold: np.ndarray, seconds: dict[str, list[float]]) -> str:
    """An org table, a number format a row, differences to bf16. scores: (N, C). gold: (N,)."""
    rows = []
    for how, mine in scores.items():
        off, said = np.abs(mine - scores["bf16"]), mine.argmax(1)
        f1, right = macro_f1(said, gold, mine.shape[1]), (said == gold).mean()
        speed = ratio(seconds["bf16"], seconds[how])
        moved = (said != scores["bf16"].argmax(1)).mean()
        figures = [f"{off.max():.4f}", f"{off.mean():.4f}", f"{moved:.1%}", f"{f1:.4f}", f"{right:.4f}", times(speed)]
        rows.append([how, *figures])
    head = ["format", "largest difference", "mean", "other label", "macro-F1", "accuracy", "times bf16's posts a second"]
    return org(head, rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=False, quick="one round of 64 posts")
    parser.add_argument("run", help="the folder of a saved run")
    parser.add_argument("--task", default="label", help="of one label a post")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timed", type=int, default=640, help="posts of a timed pass; scores are of all")
    parser.add_argument("--overrides", nargs="*", default=[], help="as data.dir=../shared/data")
    options = parser.parse_args()
    keep_memory()
    import torch

    from hatemtl.using.predictor import Predictor

    torch.set_num_threads(options.threads)
    typed = [*options.overrides, f"tasks=[{options.task}]", "trainer.accelerator=cpu"]
    of = {how: Predictor.load(options.run, *typed, f"trainer.precision={how}") for how in FORMATS}
    posts = of["bf16"].request.tasks[options.task].corpus.load()
    column, mine = posts.columns[options.task], posts.splits == "test"
    places = np.flatnonzero(mine & column.has)[: 64 if options.quick else None]
    texts = [posts.texts[place] for place in places]
    pool = of["bf16"].pool(texts)
    some = of["bf16"].pool(texts[:: max(1, len(texts) // options.timed)])
    scores = {how: np.array(predictor.scores(pool)[options.task]) for how, predictor in of.items()}
    seconds: dict[str, list[float]] = {how: [] for how in FORMATS}
    for _, how in product(range(1 if options.quick else options.rounds), FORMATS):
        begun = time.process_time()
        of[how].scores(some)
        seconds[how].append(time.process_time() - begun)
    command_line.leave(options.out, "int8", compared(scores, column.values[places], seconds))


if __name__ == "__main__":
    main()
