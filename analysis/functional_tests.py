"""Shows how often tested runs are right in each group of posts: in HateCheck's functional tests, target groups and labels.

Groups are the values in columns of a CSV with a row a post, found by the post's id; --id and --by name the columns of other
files than HateCheck's. A post whose cell is empty is in no group of that column. The number of a group's posts stands behind
its name. For tasks with one right label a post; with several seeds type one --name for each run, and --mean.

Without --posts, shows runs of any corpus that were judged by evaluations=[functional], which asks them HateCheck's cases.
"""

import argparse
import csv
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from results import PREDICTIONS, Results, ResultsError, again, chosen, find_results, note, read_predictions, read_results
from summaries import averaged
from table import Table, add_output_options, run_names

EXAMPLES = """examples:
  uv run analysis/functional_tests.py adapters/hatecheck --posts data/hatecheck/test_suite_cases.csv
  uv run analysis/functional_tests.py "adapters/hatecheck_seed_?" --name lora lora lora --mean \\
      --posts data/hatecheck/test_suite_cases.csv --by functionality --output hatecheck.tex
  uv run analysis/functional_tests.py adapters/toxic adapters/davidson --published
  uv run analysis/functional_tests.py adapters/toxic --interval
  uv run analysis/functional_tests.py adapters/mine --posts posts.csv --id id --by author year
"""
EVERY, MACRO_F1 = "every post", "macro-F1"
CASES = {EVERY: 3728, "label=hateful": 2563, "label=non_hateful": 1165}  # of HateCheck
SOURCE = "Röttger et al. 2021, HateCheck, doi:10.18653/v1/2021.acl-long.4"
PUBLISHED = {
    "BERT on Davidson": {EVERY: 0.632, "label=hateful": 0.755, "label=non_hateful": 0.360, MACRO_F1: 0.559},
    "BERT on Founta": {EVERY: 0.602, "label=hateful": 0.655, "label=non_hateful": 0.485, MACRO_F1: 0.563},
    "Perspective": {EVERY: 0.766, "label=hateful": 0.895, "label=non_hateful": 0.482, MACRO_F1: 0.702},
}
ROW = re.compile(
    r"test_(.+?)_functional_(?:(macro_f1)|(?:(label|functionality|target)_)?accuracy)(?:_(?!_posts)(.+?))?(__posts)?"
)
Z = 1.959964  # of 95 %
# By group, how many posts are in it, and a value a run.
Groups = dict[str, tuple[int, list[float]]]


def read_right(run: Results, task: str | None) -> dict[str, bool]:
    """Whether the run's likeliest label is the right one, by post id; `task` where it has several.

    Raises ResultsError where the run was not tested, has no likeliest labels, or another accuracy than these give.
    """
    task, mine = read_predictions(run, task)
    metric = f"test_{task}_accuracy"
    if metric not in run.rows or f"test_{task}_quadratic_kappa" in run.rows:  # of levels, whose median is predicted
        raise ResultsError(
            f"{run.path}: task {task!r} has no likeliest label a post; expected one with head=multiclass (or choice), whose "
            f"row {metric} is the share of posts where that is right"
        )
    right = {row["post_id"]: row["scores"].index(max(row["scores"])) == row["gold"][0] for row in mine}
    share = fmean(right.values())
    if not math.isclose(share, run.rows[metric], abs_tol=1e-9):
        raise ResultsError(
            f"{run.path.parent / PREDICTIONS}: the likeliest label is right for {share:.4f} of the posts, but {metric} in "
            f"{run.path} is {run.rows[metric]:.4f}; expected both of one test; test it again: {again(run)}"
        )
    return right


def read_groups(path: Path, key: str, columns: Sequence[str], option: str = "--by") -> dict[str, list[str]]:
    """The ids of the posts in each group, by COLUMN=VALUE, in the order of the columns and of the file.

    option: the one that columns are asked for by.

    Raises ResultsError, with file and line, where the file is not a CSV with these columns and one row a post.
    """
    if not path.is_file():
        raise ResultsError(
            f"--posts {path}: there is no such file; expected the CSV that the posts came from, as test_suite_cases.csv of "
            "github.com/paul-rottger/hatecheck-data"
        )
    groups: dict[str, dict[str, list[str]]] = {column: {} for column in columns}
    seen: set[str] = set()
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            known = reader.fieldnames or []
            for option, name in (("--id", key), *((option, column) for column in columns)):
                if name not in known:
                    raise ResultsError(
                        f"{path} has no column {name!r}; type {option} with one of {', '.join(filter(None, known))}"
                    )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise ResultsError(f"{where}: expected {len(known)} cells, {','.join(known)}")
                if row[key] in seen:
                    raise ResultsError(
                        f"{where}: a row above has {key} {row[key]!r} too; expected one a post, or another --id"
                    )
                seen.add(row[key])
                for column in columns:
                    if value := row[column].strip():
                        groups[column].setdefault(f"{column}={value}", []).append(row[key])
        except csv.Error as error:
            raise ResultsError(
                f"{path}:{reader.reader.line_num}: {error}; expected a CSV file, commas between cells"
            ) from None
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path}: {error}; expected a CSV file in UTF-8") from None
    return {group: posts for found in groups.values() for group, posts in found.items()}


def shares(rights: Sequence[Mapping[str, bool]], groups: Mapping[str, Sequence[str]]) -> Groups:
    """The share of right answers in each run, of all posts and of each group that the runs answered posts of.

    Raises ResultsError where they answered none of any group.
    """
    answered = list(rights[0])
    known = dict.fromkeys(post for posts in groups.values() for post in posts)
    others = [post for post in answered if post not in known]
    if len(others) == len(answered):
        ids, expected = (", ".join(list(some)[:3]) for some in (known, answered))
        raise ResultsError(
            f"--posts: no post of a group was tested; their ids are {ids or 'none'}, ..., expected some of {expected}, ...; "
            "type the CSV that the posts came from, and --id with its column of ids"
        )
    if others:
        note(f"{len(others)} of {len(answered)} posts are in no group, as {others[0]}")
    found = {group: [post for post in posts if post in rights[0]] for group, posts in groups.items()}
    everything = {EVERY: answered, **found}
    return {
        group: (len(posts), [fmean(right[post] for post in posts) for right in rights])
        for group, posts in everything.items()
        if posts
    }


def judged(runs: Sequence[Results], task: str | None) -> Groups:
    """The rows of runs that evaluations=[functional] judged. Raises ResultsError where one was not, or was asked others."""
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for run in runs:
        rows = {metric: match for metric in run.rows if (match := ROW.fullmatch(metric))}
        if not rows:
            raise ResultsError(
                f"{run.path}: was not asked HateCheck's cases; type uv run main.py action=test load_path={run.path.parent} "
                f"evaluations=[functional], or --posts FILE for a run whose test split they are"
            )
        mine = chosen("task", task, list(dict.fromkeys(row[1] for row in rows.values())))
        values: dict[str, float] = {}
        numbers: dict[str, float] = {}
        for metric, (of, macro_f1, column, label, counts) in ((metric, match.groups()) for metric, match in rows.items()):
            if of == mine:
                group = MACRO_F1 if macro_f1 else EVERY if column is None else f"{column}={label}"
                (numbers if counts else values)[group] = run.rows[metric]
        found.append((values, numbers))
        if numbers != found[0][1] or numbers.keys() != values.keys():
            raise ResultsError(f"{runs[0].path} and {run.path} were asked other cases; judge them by the same again")
    return {group: (int(number), [values[group] for values, _ in found]) for group, number in found[0][1].items()}


def published(groups: Groups) -> dict[str, list[float | None]]:
    """The published values of each group, a column each. Raises ResultsError where these are not all cases."""
    named = {group: group.replace("label_gold=", "label=").replace("non-hateful", "non_hateful") for group in groups}
    numbers = {named[group]: posts for group, (posts, _) in groups.items()}
    if any(numbers.get(group) != posts for group, posts in CASES.items()):
        had = ", ".join(f"{group} {numbers.get(group, 0)}" for group in CASES)
        raise ResultsError(
            f"--published: these rows are of all {CASES[EVERY]} cases, of every label; expected them, not {had}"
        )
    note(f"columns {', '.join(PUBLISHED)}: {SOURCE}")
    return {group: [column.get(named[group]) for column in PUBLISHED.values()] for group in groups}


def wilson(share: float, posts: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many posts (Wilson 1927, doi:10.2307/2276774).

    >>> [round(end, 3) for end in wilson(0.5, 10)], [round(end, 3) for end in wilson(1.0, 10)]
    ([0.237, 0.763], [0.722, 1.0])
    """
    middle, width = share + Z**2 / (2 * posts), Z * math.sqrt(share * (1 - share) / posts + Z**2 / (4 * posts**2))
    return (middle - width) / (1 + Z**2 / posts), (middle + width) / (1 + Z**2 / posts)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="tested run, its results.csv, or a quoted glob of them")
    parser.add_argument(
        "--posts", type=Path, metavar="FILE", help="CSV with a row a post; without: evaluations=[functional]"
    )
    parser.add_argument("--id", default="case_id", metavar="COLUMN", help="its column of post ids (default: %(default)s)")
    hatecheck = ["functionality", "target_ident", "label_gold"]
    parser.add_argument("--by", nargs="+", default=hatecheck, metavar="COLUMN", help=f"default: {' '.join(hatecheck)}")
    parser.add_argument("--task", help="needed where a run has several")
    parser.add_argument("--name", nargs="+", action="extend", help="names of the columns, one a run or one a glob")
    parser.add_argument("--mean", action="store_true", help="one column for runs of one name: mean ± standard deviation")
    parser.add_argument("--published", action="store_true", help="beside the rows that HateCheck's paper has of all cases")
    parser.add_argument("--interval", action="store_true", help="behind each column its 95 %% interval, of one run a column")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        paths = find_results(args.runs)
        names = run_names(args.name, args.runs, paths)
        runs = [read_results(path) for path in paths]
        inputs = [*paths]
        if args.posts is None:
            groups = judged(runs, args.task)
        else:
            of_posts = read_groups(args.posts, args.id, args.by)
            rights = [read_right(run, args.task) for run in runs]
            for path, right in zip(paths, rights, strict=True):
                if right.keys() != rights[0].keys():
                    raise ResultsError(
                        f"{paths[0]} and {path} saw different posts; type runs that were tested on the same ones"
                    )
            groups = shares(rights, of_posts)
            inputs += [args.posts, *(path.parent / "predictions.parquet" for path in paths)]
        if args.interval and args.mean:
            raise ResultsError("--interval is of one run's posts, and --mean of several runs; type one of them")
        rows: dict[str, list[float | None]] = {group: [*values] for group, (_, values) in groups.items()}
        if args.interval:
            names = [column for name in names for column in (name, "from", "to")]
            for group, (posts, values) in groups.items():
                ends = [(None, None) if group == MACRO_F1 else wilson(value, posts) for value in values]
                rows[group] = [cell for value, pair in zip(values, ends, strict=True) for cell in (value, *pair)]
        if args.published:
            names = [*names, *PUBLISHED]
            rows = {group: [*rows[group], *theirs] for group, theirs in published(groups).items()}
        make = averaged if args.mean else Table
        titled = {f"{group} ({groups[group][0]})": values for group, values in rows.items()}
        table = make(names, titled, digits=args.digits, corner="group", counts=False)
        table.show(args.format, args.output, inputs)
    except (ResultsError, OSError) as error:
        print(f"functional_tests.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
