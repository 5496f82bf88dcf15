"""Files that nobody would write, given to the check: no traceback, no hang, bounded memory.

    python benchmarks/gate_fuzz.py 10000

Seeded. Each file is checked in one of two processes that may take no more than 2 GB of addresses, and each check must end within thirty seconds;
the report must be JSON, its text and its page must come out, and its ledger must add up.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tunewright.data.check import check, render
from tunewright.data.page import page

KEYS = ["messages", "role", "content", "prompt", "completion", "text", "label", "chosen", "rejected", "input", "conversations", "from", "value"]
KEYS += [
    "instruction",
    "output",
    "history",
    "tools",
    "tool_calls",
    "weight",
    "preferred_output",
    "non_preferred_output",
    "question",
    "answer",
    "name",
]
TEXTS = [
    "",
    " ",
    "hello",
    "user",
    "assistant",
    "human",
    "gpt",
    "\0",
    "\ud800",
    "\u202e",
    "é",
    "日本",
    "<b>",
    "a" * 3000,
    "1",
    "|",
    '"',
    "\\",
    "\n",
    "ada@example.org",
]
SECONDS, ADDRESSES = 30, 2 << 30


def value(draw: random.Random, depth: int) -> Any:
    """A JSON value of the kinds that records hold, in the wrong places."""
    kind = draw.randrange(9 if depth else 6)
    match kind:
        case 0 | 1 | 2:
            return draw.choice(TEXTS)
        case 3:
            return draw.choice([None, True, False, 0, 1, -1, 2**63, 2**70, 1.5, 1e308])
        case 4:
            return draw.choice([[], {}, "", None])
        case 5:
            return "".join(chr(draw.randrange(1, 0x2FFF)) for _ in range(draw.randrange(20)))
        case 6:
            return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
        case _:
            return {draw.choice(KEYS): value(draw, depth - 1) for _ in range(draw.randrange(5))}


def row(draw: random.Random) -> Any:
    """A record that is nearly sound: one of the formats, with a part of it replaced."""
    chat = {"messages": [{"role": "user", "content": draw.choice(TEXTS) or "q"}, {"role": "assistant", "content": "a"}]}
    record: Any = draw.choice(
        [
            chat,
            {"prompt": "q", "completion": "a"},
            {"text": "t", "label": "l"},
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"instruction": "q", "output": "a"},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"text": "t"},
        ]
    )
    if draw.random() < 0.5:
        record = {**record, draw.choice([*record, *KEYS]): value(draw, 3)}
    if draw.random() < 0.2 and "messages" in record and isinstance(record["messages"], list):
        record["messages"].insert(draw.randrange(3), value(draw, 3))
    return record if draw.random() < 0.95 else value(draw, 4)


def jsonl(draw: random.Random) -> bytes:
    rows = [row(draw) for _ in range(draw.randrange(1, 40))]
    end = draw.choice([b"\n", b"\r\n", b"\n\n", b"\r"])
    return end.join(json.dumps(one, ensure_ascii=True if draw.random() < 0.7 else None).encode("utf-8", "surrogatepass") for one in rows)


def csv(draw: random.Random) -> bytes:
    sign = draw.choice(",;\t")
    head = draw.choice(["text,label", "prompt,completion", "text,label,id", "label", "a,b", '"text","label"']).replace(",", sign)
    cells = [*TEXTS[:15], '"quoted"', '"open', 'in"side', '"two\nlines"', "a,b"]
    body = ["".join([sign.join(draw.choice(cells) for _ in range(draw.randrange(1, 4)))]) for _ in range(draw.randrange(30))]
    return draw.choice(["\n", "\r\n"]).join([head, *body]).encode("utf-8", "surrogatepass")


def parquet(draw: random.Random) -> bytes:
    columns = (
        {name: [draw.choice(TEXTS[2:7]) for _ in range(12)] for name in draw.sample(KEYS, 2)}
        if draw.random() < 0.5
        else {"text": ["t"] * 12, "label": [1] * 12}
    )
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice([0, 1, 7, 100, 5000]))


def deep(draw: random.Random) -> bytes:
    opening = draw.choice([b"[", b'{"a":', b'{"messages":['])
    return opening * draw.choice([10, 100, 5000, 200_000]) + draw.choice([b"", b"]" * 50])


def long(draw: random.Random) -> bytes:
    return draw.choice([b"a", b'"', b"{", b"\\", b"\xff", b"text,label\n", b"\n"]) * draw.choice(
        [1000, 40_000, 11_000_000 if draw.random() < 0.02 else 100]
    )


def mutated(draw: random.Random, data: bytes) -> bytes:
    """The same with bytes flipped, cut, doubled, moved or put in."""
    out = bytearray(data)
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(5):
            case 0 if at < len(out):
                out[at] = draw.randrange(256)
            case 1:
                del out[at : at + draw.randrange(1, 50)]
            case 2:
                out[at:at] = draw.randbytes(draw.randrange(1, 8))
            case 3:
                out = out[:at]
            case _:
                out[at:at] = out[at : at + draw.randrange(1, 200)]
    return bytes(out)


def made(seed: int) -> tuple[str, bytes]:
    """The `seed`th file's name and bytes."""
    draw = random.Random(seed)
    make = draw.choice([jsonl, jsonl, jsonl, csv, csv, parquet, noise, deep, long])
    data = mutated(draw, make(draw)) if draw.random() < 0.8 else make(draw)
    pack = draw.random()
    if pack < 0.08:
        data = mutated(draw, gzip.compress(data)) if draw.random() < 0.5 else gzip.compress(data)
    elif pack < 0.14:
        data = mutated(draw, zstandard.compress(data)) if draw.random() < 0.5 else zstandard.compress(data)
    elif pack < 0.17:
        data = data.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-32", "utf-16-le", "latin-1"]), "replace")
    return draw.choice(["a.jsonl", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.gz", "a"]), data


def one(seed: int) -> tuple[int, float, list[str], str]:
    """Seed, seconds, the codes that were said, and what went wrong, if anything."""
    name, data = made(seed)
    begun = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            signal.alarm(SECONDS)
            report = check(path, path if seed % 10 == 0 else None)
            text = json.dumps(report.to_dict(), allow_nan=False) + render(report) + (page(report) if seed % 5 == 0 else "")
            signal.alarm(0)
            assert sum(report.ledger.values()) == report.rows, "the ledger does not add up"
            assert report.sound or not report.ok, "nothing is sound and nothing is wrong"
            text.encode("utf-8")
        return seed, time.perf_counter() - begun, sorted({fault.code for fault in report.faults}), ""
    except BaseException:  # whatever it is, it is what we look for
        return seed, time.perf_counter() - begun, [], traceback.format_exc()


def begin() -> None:
    """Bounds of a worker."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    def late(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(f"over {SECONDS} s")  # which nothing in between may catch

    signal.signal(signal.SIGALRM, late)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    codes: Counter[str] = Counter()
    wrong, slowest, begun = [], (0.0, 0), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(2, begin) as pool:
        for seed, took, said, problem in pool.imap_unordered(one, range(first, first + count), chunksize=20):
            codes.update(said)
            slowest = max(slowest, (took, seed))
            if problem:
                wrong.append(seed)
                print(f"file {seed}:\n{problem}", flush=True)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(
        f"{count:,} files in {time.perf_counter() - begun:.0f} s: {len(wrong)} failed; slowest {slowest[0]:.1f} s (file {slowest[1]}); at most {most:.0f} MB"
    )
    print(f"{len(codes)} codes said: {', '.join(f'{code} {number:,}' for code, number in codes.most_common())}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
