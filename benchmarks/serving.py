"""What serving costs: one post at a time, and 32 clients at once, beside transformers' pipeline with a LoRA of PEFT.

MiniLM with a LoRA of rank 16. Three servers stand side by side and are asked in turns, each round: hatemtl's in bf16 and in
int8 (`action=serve`), and the one of transformers' manual (plain_server.py). The pipeline is called in a process of its own
too, without any server, which is what one post is compared with. Every server and the pipeline has all threads.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import command_line, machine
from benchmarks.readings import Spread, org, ratio, spread, times

ROOT = Path(__file__).parents[1]
OURS, INT8, PLAIN, PIPELINE = "hatemtl", "hatemtl, int8", "starlette and pipeline", "pipeline"
MANY = 256  # posts of a large request


class Server(NamedTuple):
    """A server that listens, the number of its process, and whether it is ours."""

    port: int
    pid: int
    ours: bool

    @property
    def busy(self) -> float:
        """Gives the seconds that its process has computed so far, in all threads; Linux alone tells."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def request(self, texts: Sequence[str]) -> bytes:
        content = json.dumps({"texts": texts}) if self.ours else texts[0]
        kind, path = ("application/json", "/predict") if self.ours else ("text/plain", "/")
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: {kind}\r\ncontent-length: "
        return f"{head}{len(content.encode())}\r\n\r\n{content}".encode()


class Round(NamedTuple):
    """What one server did in a round: seconds of one post, of each; those that its processor was busy with one, on average,
    which others on the machine hardly change; posts a second of many clients, of large requests.
    """

    one: list[float]
    busy: float
    clients: float
    large: float


@contextmanager
def running(command: Sequence[str], line: str, *, threads: int) -> Iterator[tuple[str, int]]:
    """Starts a program, inside, once it has printed a line that begins so; gives that line, and its process."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = next((said for said in process.stdout if said.startswith(line)), None)
            if said is None:
                raise RuntimeError(f"{' '.join(command)} ended without {line!r}")
            yield said.strip(), process.pid
        finally:
            process.terminate()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Any:
    """Sends a request, and reads its answer, which must be a good one."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith("http/1.1 200"):
        raise RuntimeError(body.decode())
    return body


async def one_by_one(server: Server, requests: Sequence[Sequence[str]]) -> list[tuple[float, Any]]:
    """Seconds and answers of requests, each sent when the one before is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    found = []
    for texts in requests:
        request, begun = server.request(texts), time.perf_counter()
        answer = await asked(reader, writer, request)
        found.append((time.perf_counter() - begun, answer))
    writer.close()
    return found


async def at_once(server: Server, texts: Sequence[str], *, clients: int, seconds: float) -> float:
    """Posts a second of so many clients, each of which sends one post as soon as its last one is answered."""
    end, done = time.perf_counter() + seconds, 0

    async def client(number: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while time.perf_counter() < end:
            await asked(reader, writer, server.request([texts[(number + done) % len(texts)]]))
            done += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    return done / (time.perf_counter() - begun)


async def measured(server: Server, texts: Sequence[str], *, clients: int, seconds: float) -> Round:
    """One round of a server; large requests are ours alone."""
    before = server.busy
    one = [taken for taken, _ in await one_by_one(server, [[text] for text in texts[:50]])]
    busy = (server.busy - before) / len(one)
    many = await at_once(server, texts, clients=clients, seconds=seconds)
    large = [[*texts, *texts][begin : begin + MANY] for begin in range(0, len(texts), MANY)][:2] if server.ours else []
    taken = await one_by_one(server, large)
    return Round(one, busy, many, sum(map(len, large)) / sum(time for time, _ in taken) if taken else 0.0)


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference of two answers' scores."""
    pairs = zip(json.loads(one)["run"], json.loads(other)["run"], strict=True)
    return max(abs(a[key] - b[key]) for a, b in pairs for key in a if isinstance(a[key], float))


def report(rounds: Mapping[str, Sequence[Round]], pipeline: Sequence[Round], difference: float) -> str:
    """An org table of each server, and what is aimed at beside what came."""
    every = {**rounds, PIPELINE: pipeline}
    one = {name: [1e3 * median(of.one) for of in each] for name, each in every.items()}
    busy = {name: [1e3 * of.busy for of in each] for name, each in every.items()}
    clients = {name: [of.clients for of in each] for name, each in rounds.items()}
    large = {name: [of.large for of in each] for name, each in rounds.items() if name != PLAIN}
    rows = []
    for name in one:
        many, whole = (f"{spread(of[name]).middle:.0f}" if name in of else "" for of in (clients, large))
        rows.append([name, *(f"{spread(of[name]).middle:.1f}" for of in (one, busy)), many, whole])
    table = org(["", "one post, p50, ms", "processor, ms", "32 clients, posts/s", "256 posts a request, posts/s"], rows)
    aims: list[tuple[str, Spread, str]] = [
        ("one post over the pipeline's", ratio(one[OURS], one[PIPELINE]), "at most 0.33"),
        ("of the processor's time, the same", ratio(busy[OURS], busy[PIPELINE]), ""),
        ("32 clients over starlette and pipeline", ratio(clients[OURS], clients[PLAIN]), "at least 6"),
        ("int8 over bf16, 32 clients", ratio(clients[INT8], clients[OURS]), "at least 1.3"),
        ("int8 over bf16, 256 posts a request", ratio(large[INT8], large[OURS]), "at least 1.3"),
    ]
    said = [[name, times(came), aim] for name, came, aim in aims]
    said.append(["int8 and bf16, largest difference of scores", f"{difference:.3f}", "at most 0.02"])
    return f"{table}\n\n{org(['', 'times (least–greatest round)', 'aim'], said)}"


def main() -> None:
    parser = command_line.parser(__doc__, posts=True, quick="one short round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the clients, each round")
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error("serving is measured on the CPU; leave --device out")
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)

    from benchmarks.ours import SAMPLE, Source, encoder_of, texts  # slow, and nothing that --help needs
    from benchmarks.plain_server import classifier

    source = Source(name=options.posts, train=400, evaluation=100)
    posts = [" ".join(text.split()) for text in texts(source)][: 4 * MANY]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Path(folder) / "run"
        train = ["main.py", "tasks=[label]", "encoder=minilm", "method=peft_lora16", "optimization.epochs=3"]
        train += ["tasks.label.corpus.limit=400" if source.name != SAMPLE else "tasks.label.corpus.size=500"]
        train += [*source.overrides(("label",)), f"save_path={run}", "trainer.accelerator=cpu"]
        subprocess.run([sys.executable, *dict.fromkeys(train)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        serve = ["main.py", "action=serve", f"load_path={run}", "serve.port=0", "trainer.accelerator=cpu"]
        servers = {}
        for name, more in ((OURS, ["trainer.precision=bf16"]), (INT8, ["serve.precision=int8"])):
            said, pid = stack.enter_context(running([*serve, *more], "http://", threads=options.threads))
            servers[name] = Server(int(said.rpartition(":")[2]), pid, ours=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        labels = str(len(json.loads((run / "labels.json").read_text(encoding="utf-8"))["label"]["names"]))
        plain = [encoder_of(run), str(run / "adapter"), labels]
        command = [str(ROOT / "benchmarks/plain_server.py"), *plain, str(port), str(options.threads)]
        _, pid = stack.enter_context(running(command, "ready", threads=options.threads))
        servers[PLAIN] = Server(port, pid, ours=False)
        pipe = classifier(plain[0], run / "adapter", int(labels), threads=options.threads)
        taken: dict[str, list[Round]] = {name: [] for name in servers}
        alone: list[Round] = []
        for number in range(rounds + 1):
            for name, server in servers.items():
                came = asyncio.run(measured(server, posts, clients=options.clients, seconds=seconds))
                print(f"round {number}, {name}: {1e3 * median(came.one):.1f} ms, {came.clients:.0f}/s", file=sys.stderr)
                taken[name] += [came] if number else []  # the first round fills the caches
            one, busy = [], time.process_time()
            for text in posts[:50]:
                begun = time.perf_counter()
                pipe(text)
                one.append(time.perf_counter() - begun)
            alone += [Round(one, (time.process_time() - busy) / len(one), 0.0, 0.0)] if number else []
        answers = [asyncio.run(one_by_one(servers[name], [posts[:MANY]]))[0][1] for name in (OURS, INT8)]
    about = machine.description(options.device, options.threads)
    command_line.leave(options.out, "serving", f"{report(taken, alone, largest_difference(*answers))}\n\n{about}")


if __name__ == "__main__":
    main()
