"""Reads delimited, JSON-lines and Parquet files into `Rows`, with the ways out of a missing one."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hatemtl.corpora.parquet import read_parquet
from hatemtl.corpora.questions import laid_out
from hatemtl.corpora.rows import LONGEST, Rows, shown
from hatemtl.errors import UserError, did_you_mean, unreadable
from hatemtl.harmless import unguarded
from hatemtl.machine.hub import NAME, fetch

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet")


def label_name(written: str) -> str:
    """Turns a label as a file writes it into a name that a metric can carry.

    >>> label_name("Black people "), label_name("non-hateful")
    ('black_people', 'non_hateful')
    """
    return re.sub(r"\W+", "_", written.strip().casefold()).strip("_")


def read_table(path: Path, *, delimiter: str | None, encoding: str, keys: str, lines: str | None = None) -> Rows:
    """Reads a user's file as its suffix says, or as cells between delimiters where one is given.

    keys: stands before `delimiter` and `encoding` where an error says what to type. lines: the column that the lines of a
    .txt become; None reads none. Raises UserError with the line and the way out.
    """
    probe = "a text, and another\n" * 8  # which idna takes for a name that is too long
    try:
        usable = probe.encode(encoding).decode(encoding) == probe
    except (LookupError, TypeError, ValueError):  # an encoding of Python's may be undefined, by name and by nature
        usable = False
    if not usable:
        raise UserError(f"{keys}encoding={encoding}: no such encoding; try utf-8-sig, cp1252 or utf-16") from None
    if path.suffix == ".jsonl":
        return read_jsonl(path, again="mend the line")
    if path.suffix == ".parquet":
        return read_parquet(path, again="write the file anew")
    if path.suffix == ".json":
        return read_questions(path, again="mend the file, or name one of a JSON object a line NAME.jsonl")
    between, recode = delimiter_of(path, delimiter), f"type {keys}encoding=cp1252"
    if between is None and path.suffix == ".txt" and lines:
        again = f"mend the line, or {recode}"
        with _reading(path, encoding, again):
            posts = path.read_text(encoding=encoding).removesuffix("\n").split("\n")
        return Rows(path, {lines: posts}, range(1, len(posts) + 1), again)
    if between is None:
        near = did_you_mean(path.suffix or path.name, [*SUFFIXES, *([".txt"] if lines else [])])
        raise UserError(f"{path}: {near}; for another file of delimited cells, {_quoted(keys, ',')}")
    if len(between) != 1 or between in '"\r\n':
        raise UserError(f"{keys}delimiter={delimiter!r}: expected one character, tab, or null for the suffix's own")
    again = f'mend the line (a cell that holds the delimiter stands between quotes: "…"), or {recode}'
    with _reading(path, encoding, again), path.open(encoding=encoding) as file:
        header = file.readline(LONGEST)
    other = max(",\t;|", key=header.count)
    if between not in header and other in header:
        found = f"one column only between delimiters {between!r}, {header.strip()[:60]!r}"
        raise UserError(f"{path}: {found}; it looks as if it were another: {_quoted(keys, other)}")
    rows = read_delimited(path, again=again, delimiter=between, quoted=None, encoding=encoding)
    return replace(rows, columns={unguarded(name): [*map(unguarded, cells)] for name, cells in rows.columns.items()})


def delimiter_of(path: Path, given: str | None) -> str | None:
    """Finds the delimiter of a file's cells: as given, or as its suffix says; None where neither says any."""
    return DELIMITERS.get(path.suffix) if given is None else "\t" if given in ("tab", "\\t") else str(given)


def _quoted(keys: str, delimiter: str) -> str:
    return f"type {keys}delimiter=" + ("tab" if delimiter == "\t" else f"\"'{delimiter}'\"")


def read_delimited(
    path: Path,
    *,
    again: str,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    quoted: bool | None = True,
    encoding: str = "utf-8-sig",
    only: Callable[[str], bool] | None = None,
    torn: bool = False,
) -> Rows:
    """Reads a file of cells between delimiters; `names` where it has no header.

    quoted: whether "..." may hold delimiters and ends of lines; None where nobody said: if all quotes pair up so.
    only: which columns to keep, by name; the others take no memory. A byte order mark, CRLF and empty lines are passed over.
    torn: whether rows with too few cells, as an end of line inside a text leaves them, are left out and not refused.
    Raises UserError with the line where the file cannot be read, or a row has more or fewer cells than the header.
    """
    if quoted is None:
        read = partial(read_delimited, path, again=again, delimiter=delimiter, names=names, encoding=encoding)
        read = partial(read, only=only, torn=torn)
        for one in (True, False):
            with suppress(UserError):
                return read(quoted=one)
        quoted = True  # whose error is the one to tell
    csv.field_size_limit(LONGEST)
    columns: dict[int, list[str]] = {}  # not a list a row, of which a million would keep the garbage collector busy
    lines = []
    with _reading(path, encoding, again), path.open(newline="", encoding=encoding) as file:
        reader = csv.reader(
            file, delimiter=delimiter, strict=quoted, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        )
        header, before = list(names) if names is not None else None, 0
        try:
            for row in reader:
                line, before = before + 1, reader.line_num
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                    continue
                if torn and len(row) < len(header):
                    continue
                if len(row) != len(header):
                    expected = f"{len(header)} ({', '.join(header)})"
                    raise UserError(f"{path}, line {line}: {len(row)} cells, expected {expected}; {again}")
                columns = columns or {i: [] for i, name in enumerate(header) if only is None or only(name)}
                for i, column in columns.items():
                    column.append(row[i])
                lines.append(line)
        except csv.Error as error:
            raise UserError(f"{path}, line {before + 1}: cannot be read ({error}); {again}") from error
    if not lines or header is None:
        raise UserError(f"{path}: holds no rows, expected a line of names and below it a row a post; {again}")
    kept = {header[i]: column for i, column in columns.items()}
    if len(kept) != len(columns):
        raise UserError(f"{path}: two columns have one name ({', '.join(header)}); {again}")
    return Rows(path, kept, lines, again)


@contextmanager
def _reading(path: Path, encoding: str, again: str) -> Iterator[None]:
    """Makes of a failure to read or decode an error with the line and the way out."""
    try:
        yield
    except UnicodeDecodeError as error:
        first = error
        try:
            path.read_bytes().decode(encoding)  # whole, as a reader that decodes by the piece counts from its piece
        except UnicodeDecodeError as found:
            first = found
        line, byte = first.object.count(b"\n", 0, first.start) + 1, first.object[first.start]
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{path}, line {line}: byte {byte:#04x} is no {name} ({first.reason}); {again}") from error
    except (OSError, LookupError, UnicodeError) as error:
        raise unreadable(path, error, again) from error


def read_jsonl(path: Path, *, again: str) -> Rows:
    """Reads a file with a JSON object a line; a key that a line lacks is None there. Raises UserError with the line."""
    found: dict[int, dict[str, Any]] = {}
    with _reading(path, "utf-8-sig", again), path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if len(line) > 10 * LONGEST:
                    raise UserError(f"{path}, line {number}: {len(line):,} characters, which is no post; {again}")
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: {shown(row)}, expected a JSON object; {again}")
                found[number] = row
        except UnicodeError:
            raise
        except (ValueError, RecursionError) as error:  # a number or a nesting that is too long, too
            raise UserError(f"{path}, line {number}: not valid JSON ({_told(error)}); {again}") from error
    if not found:
        raise UserError(f"{path}: holds no rows, expected a JSON object a line; {again}")
    names = dict.fromkeys(name for row in found.values() for name in row)
    return Rows(path, {name: [row.get(name) for row in found.values()] for name in names}, [*found], again)


def read_questions(path: Path, *, again: str) -> Rows:
    """Reads a JSON file of SQuAD's layout, a row a question. Raises UserError with the place where it is another."""
    with _reading(path, "utf-8-sig", again):
        text = path.read_text(encoding="utf-8-sig")
    try:
        return laid_out(path, json.loads(text), again)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not valid JSON ({_told(error)}); {again}") from error


def _told(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


@dataclass(frozen=True)
class Hub:
    """A dataset's CONFIG/SPLIT/*.parquet in its branch refs/convert/parquet. only: which columns are read; None for all."""

    repo: str
    config: str
    only: Callable[[str], bool] | None = None

    def splits(self, names: Sequence[str], way_out: str, *, some: bool = False) -> Iterator[tuple[str, Rows]]:
        """Reads the rows of each split. way_out: what to type without network. some: whether one of the splits is enough."""
        if "@" in self.repo or not NAME.fullmatch(self.repo):
            raise UserError(f"{self.repo!r} is no name of a hub dataset, expected OWNER/NAME; {way_out}")
        patterns = [f"{self.config}/{name}/*.parquet" for name in names]
        folder = fetch(f"{self.repo}@refs/convert/parquet", kind="dataset", patterns=patterns, way_out=way_out)
        again = f"delete {folder} and run again to download it anew"
        found = {name: sorted(folder.glob(pattern)) for name, pattern in zip(names, patterns, strict=True)}
        if some and not any(found.values()):
            there = f"no splits {', '.join(names)} in its configuration {self.config!r}"
            raise UserError(f"the hub's dataset {self.repo!r} has {there}; give another config")
        for name, paths in found.items():
            if paths:
                yield name, read_parquet(*paths, again=again, only=self.only)
            elif not some:
                raise UserError(f"{folder} has no {self.config}/{name}/*.parquet; {again}")


def again(name: str, home: str) -> str:
    """Says the way out of a broken file of a corpus whose home is there."""
    return f"download {Path(name).name} again from {home}"


def ways_out(folder: Path, files: Sequence[str]) -> str:
    """Says what to type where a corpus is neither in its folder nor within reach."""
    return f"{folder} has no {' and '.join(files)} either: {_put(folder, files[0])}"


def _put(folder: Path, file: str) -> str:
    return f"type data.dir=FOLDER with {folder.name}/{file} in it, or corpus@tasks.TASK.corpus=sample to run without data"


def complete(folder: Path, files: Sequence[str], home: str, *, hub: bool = True) -> bool:
    """Tells whether a corpus' official files are there; False where none is, but the hub has them. home: their source.

    Raises UserError where one is missing otherwise.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and not hub:
        raise UserError(f"{folder} has no {missing[0]}: get it by hand at {home}, then {_put(folder, missing[0])}")
    if missing and len(missing) < len(files):
        needed = f"{folder} has no {' and no '.join(missing)}, but needs {' and '.join(files)}"
        raise UserError(f"{needed}; {again(missing[0], home)}")
    return not missing


def official(
    dir: str,
    files: Sequence[str],
    home: str,
    *,
    read: Callable[..., Rows] = read_delimited,
    hub: Hub | None = None,
    splits: Sequence[str] = ("train",),
) -> list[tuple[str, Rows]]:
    """Reads a corpus' official files, each with its name; where none of them is there, these splits of the hub.

    home: where the files come from. read: called as `read_delimited` is, with a path and the way out.
    Raises UserError with the file, the line and the way out.
    """
    folder = Path(dir).expanduser()
    if complete(folder, files, home, hub=hub is not None) or hub is None:
        return [(name, read(folder / name, again=again(name, home))) for name in files]
    return [*hub.splits(splits, ways_out(folder, files))]
