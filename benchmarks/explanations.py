"""What explaining and judging cost, as a multiple of one plain pass over the same posts.

MiniLM with a LoRA of rank 16; the posts of the test whose words are marked; both evaluations in both protocols. Each round
times a plain pass right before each explainer.
"""

from collections.abc import Mapping, Sequence

from benchmarks import command_line, machine
from benchmarks.readings import THREE, org, ratio, spread

EXPLAINERS = ("attention", "rationale", "gradient_input", "integrated_gradients")


def report(seconds: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An org table: of each explainer, seconds of all over those of a plain pass, over rounds."""
    rows = []
    for name, of in seconds.items():
        plain, whole = zip(*of, strict=True)
        times, seconds_of = ratio(whole, plain), spread(whole)
        rows.append([f"={name}=", f"{times.middle:.1f} ({times.low:.1f}–{times.high:.1f})", f"{seconds_of.middle:.1f}"])
    return org(["explainer", "plain passes", "seconds"], rows)


def main() -> None:
    parser = command_line.parser(__doc__, posts=True, quick="one round")
    parser.add_argument("--explainers", nargs="+", choices=EXPLAINERS, default=EXPLAINERS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import torch  # slow, and nothing that --help needs

    from benchmarks.ours import Run, Source, composed

    torch.set_num_threads(options.threads)
    source = Source(name=options.posts, train=100, evaluation=100)
    overrides = ["evaluations=[plausibility,faithfulness]"]
    run = Run(composed(source, (THREE[0], THREE[2]), overrides, device=options.device), device=options.device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.explainers}
    for _ in range(1 if options.quick else options.rounds):
        for name in options.explainers:
            seconds[name].append(run.explained(name))
    about = machine.description(options.device, options.threads)
    command_line.leave(options.out, "explanations", f"{report(seconds)}\n\n{about}")


if __name__ == "__main__":
    main()
