"""How fast the check is and how much memory it takes, on rows made here, seeded.

    python benchmarks/gate_speed.py read 200        # MB: reading and validating; the whole check without tokens
    python benchmarks/gate_speed.py tokens 50       # MB: tokens, beside `datasets.map` and a plain loop with the same tokenizer
    python benchmarks/gate_speed.py near 1000000    # rows: near duplicates, a tenth of them planted
    python benchmarks/gate_speed.py memory 1000     # MB: the most memory that one check takes, in a process of its own

Each prints seconds by the clock and processor seconds of all threads: on a machine that others use too, the latter say more.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunewright.data.check import check
from tunewright.data.formats import Tally, stream
from tunewright.data.near import Near, candidates, verified
from tunewright.data.tokens import rendered
from tunewright.models.reader import reader

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tunewright" / "data" / "sample" / "train.jsonl"
REAL = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"


@contextmanager
def timed(what: str, amount: float, unit: str) -> Iterator[None]:
    """Print the speed of what stands inside."""
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    took, spent = time.perf_counter() - clock, time.process_time() - cpu
    print(f"{what}: {took:.2f} s, {amount / took:,.1f} {unit}/s by the clock; {amount / max(spent, 1e-9):,.1f} {unit} a processor second", flush=True)


def texts() -> list[tuple[str, str]]:
    """Questions and answers to make rows of: GSM8K where it is at hand, else the sample data."""
    if REAL.is_file():
        return [(row["question"], row["answer"]) for row in map(json.loads, REAL.read_text(encoding="utf-8").splitlines())]
    rows = [json.loads(line)["messages"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    return [(row[-2]["content"], row[-1]["content"]) for row in rows]


def write(path: Path, megabytes: float) -> int:
    """Chats, no two alike, up to this size; returns how many."""
    draw, source, count = random.Random(0), texts(), 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for _ in range(1000):
                question, answer = draw.choice(source)
                words = question.split()
                draw.shuffle(words)
                messages = [{"role": "user", "content": f"{' '.join(words)} ({count})"}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": messages}) + "\n")
                count += 1
    return count


def reading(folder: Path, megabytes: float) -> None:
    path = folder / "a.jsonl"
    rows, size = write(path, megabytes), path.stat().st_size / 1e6
    print(f"{size:.0f} MB, {rows:,} rows")
    with timed("reading and validating", size, "MB"):
        assert sum(1 for _ in stream(path, Tally())) == rows
    with timed("the whole check without tokens (repeats, near duplicates, personal data, traits)", size, "MB"):
        assert check(path).sound == rows


def tokens(folder: Path, megabytes: float) -> None:
    path = folder / "a.jsonl"
    write(path, megabytes)
    examples, read = list(stream(path, Tally())), reader("nano")
    tokenizer = read.tokenizer
    total = sum(len(row.ids) for _, rows in rendered(examples[:1000], tokenizer) if isinstance(rows, list) for row in rows) * len(examples) / 1000
    print(f"{len(examples):,} rows, about {total:,.0f} tokens, nano's tokenizer of {len(tokenizer):,}")
    with timed("ours: rendered, encoded, and masked", total, "tokens"):
        for _ in rendered(examples, tokenizer):
            pass
    chats = [[{"role": m.role, "content": m.content} for m in example.messages] for example in examples]  # type: ignore[union-attr]
    with timed("plain loop, no mask: apply_chat_template, one by one", total, "tokens"):
        for chat in chats:
            tokenizer.apply_chat_template(chat)
    try:
        from datasets import Dataset, disable_caching, disable_progress_bars
    except ImportError:
        print("datasets is not installed here: no comparison with datasets.map")
        return
    disable_caching()
    disable_progress_bars()
    data = Dataset.from_dict({"messages": chats})
    for processes in (None, 2):
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if processes else "true"
        with timed(f"datasets.map, no mask, batched, num_proc={processes}", total, "tokens"):
            data.map(lambda batch: {"input_ids": tokenizer.apply_chat_template(batch["messages"])["input_ids"]}, batched=True, num_proc=processes)


def near(rows: int) -> None:
    draw = random.Random(1)
    words = ["".join(draw.choice("bcdfghklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(1, 4))) for _ in range(5000)]
    held, kept, planted = Near(), [], 0
    clock = time.perf_counter()
    for i in range(rows):
        if i % 10 == 9:
            copy = draw.choice(kept).split()
            copy[draw.randrange(len(copy))] = "changed"
            text, planted = " ".join(copy), planted + (len(copy) >= 36)  # one word of 36 changes 3 triples of 34: alike in 0.84
        else:
            text = " ".join(draw.choices(words, k=draw.randint(12, 80)))
            kept = [*kept[-999:], text] if i % 100 == 0 else kept or [text]
        held.add(text, i)
    pairs, _ = candidates(held)
    found = sum(1 for _ in verified(held, None, pairs))
    took = time.perf_counter() - clock
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{rows:,} rows in {took:.0f} s ({time.process_time():.0f} processor seconds), {found:,} near duplicates, {most:.0f} MB")


def memory(folder: Path, megabytes: float) -> None:
    path = folder / "a.jsonl"
    rows = write(path, megabytes)
    program = "import sys, time, resource; from pathlib import Path; from tunewright.data.check import check\n"
    program += "r = check(Path(sys.argv[1])); print(r.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, time.process_time())"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    counted, most, spent = done.stdout.split()
    assert int(counted) == rows
    print(f"{path.stat().st_size / 1e6:,.0f} MB, {rows:,} rows: at most {most} MB, {float(spent):.0f} processor seconds")


def main() -> None:
    what, amount = sys.argv[1], float(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        match what:
            case "read":
                reading(Path(name), amount)
            case "tokens":
                tokens(Path(name), amount)
            case "near":
                near(int(amount))
            case "memory":
                memory(Path(name), amount)


if __name__ == "__main__":
    main()
