"""What each task reaches on public data, and how fast a classifier trains beside a plain PyTorch loop.

    python benchmarks/tasks.py clinc150 --data ../shared/data/clinc150      accuracy on the 4,500 in-scope test rows, minilm, full tuning
    python benchmarks/tasks.py rt_polarity --data ../shared/data/rt_polarity   accuracy on a seeded tenth that is held out, minilm
    python benchmarks/tasks.py multi30k --data ../shared/data/multi30k      BLEU en-de of a small T5 from scratch on 2,000 rows
    python benchmarks/tasks.py speed --data ../shared/data/clinc150         examples a second beside a plain loop, in turn, medians and ratio

Settings are the program's own and can be changed with --set, as in `tunewright train`. Prints figures with 95 % intervals and a line about the machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

RECIPE = {
    "tuning": {"kind": "full"},
    "method": {"kind": "supervised", "label_smoothing": 0.1},
    "hyperparameters": {"n_epochs": 7, "batch_size": 32},
    "optimizer": {"learning_rate": 3e-4},
    "schedule": {"kind": "cosine", "warmup": 0.05},
}


def clinc150(source: Path, out: Path, given: argparse.Namespace) -> None:
    """In-scope intents: 15,000 rows to train, 4,500 to test."""
    found = json.loads((source / "data_full.json").read_text())
    for split in ("train", "test"):
        _write(out / f"{split}.jsonl", [{"text": text, "label": label} for text, label in found[split]][: given.rows])
    _train_and_measure(out, given, {"model": "minilm", **RECIPE})


def rt_polarity(source: Path, out: Path, given: argparse.Namespace) -> None:
    """Sentences of film reviews; a tenth of each side, drawn by seed 0, is held out."""
    rows = [{"text": line, "label": side} for side in ("neg", "pos") for line in (source / f"rt-polarity.{side}").read_text("latin-1").splitlines()]
    random.Random(0).shuffle(rows)
    rows = rows[: given.rows]
    cut = len(rows) // 10
    _write(out / "test.jsonl", rows[:cut])
    _write(out / "train.jsonl", rows[cut:])
    _train_and_measure(
        out, given, {"model": "minilm", **RECIPE, "hyperparameters": {"n_epochs": 3, "batch_size": 32}, "optimizer": {"learning_rate": 1e-4}}
    )


def multi30k(source: Path, out: Path, given: argparse.Namespace) -> None:
    """English captions to German by a T5 of 3 + 3 layers with random weights: it shows that the way is whole, not a translator."""
    for split, name, count in (("train", "train", given.rows or 2000), ("test", "test_2016_flickr", 200)):
        sides = [gzip.decompress((source / f"{name}.{language}.gz").read_bytes()).decode().splitlines() for language in ("en", "de")]
        _write(out / f"{split}.jsonl", [{"source": en, "target": de} for en, de in zip(*sides, strict=True)][:count])
    _small_t5(out / "t5", out / "train.jsonl")
    settings = {
        "model": str(out / "t5"),
        "tuning": {"kind": "full"},
        "hyperparameters": {"n_epochs": 15, "batch_size": 32},
        "optimizer": {"learning_rate": 1e-3},
    }
    _train_and_measure(out, given, settings)


def _small_t5(folder: Path, train: Path) -> None:
    """A T5 shape with random weights, and a tokenizer learnt from the training rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    texts = [text for line in train.read_text().splitlines() for text in json.loads(line).values()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=128).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 3, "num_heads": 4}
    T5ForConditionalGeneration(T5Config(vocab_size=4000, **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)).save_pretrained(folder)


def _train_and_measure(out: Path, given: argparse.Namespace, settings: dict) -> None:
    from tunewright.cli.evaluate import measured
    from tunewright.config import TrainConfig
    from tunewright.data import formats
    from tunewright.train.loop import train

    config = TrainConfig.parse({"data": str(out / "train.jsonl"), "out": str(out / "run"), **settings}, given.set)
    begun = time.perf_counter()
    for event in train(config):
        if event.kind == "message":
            print(event.message, flush=True)
    seconds = time.perf_counter() - begun
    found = measured(str(out / "run"), formats.load(out / "test.jsonl", minimum=1), generate=True, beams=given.beams)
    print(f"\n{given.what}: trained in {seconds:.0f} s")
    for name, row in found.summary().items():
        print(f"{name}: {row.value:.4f} [{row.low:.4f}, {row.high:.4f}], {row.n:,} rows")


def speed(source: Path, out: Path, given: argparse.Namespace) -> None:
    """Ours and a plain loop on the same rows, batches and threads, each at its best precision, in turn; the first round warms up."""
    found = json.loads((source / "data_full.json").read_text())["train"]
    random.Random(0).shuffle(found)
    rows = [{"text": text, "label": label} for text, label in found][: given.rows or 1600]
    _write(out / "train.jsonl", rows)
    sides = {"tunewright": _ours(out, given), "plain loop": _plain(rows, given, bf16=False), "plain loop, bf16": _plain(rows, given, bf16=True)}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for round in range(given.rounds + 1):
        for name, step in sides.items():
            begun = time.perf_counter()
            for at in range(0, given.steps * 32, 32):
                step(at % (len(rows) - 31))
            if round:
                taken[name].append(given.steps * 32 / (time.perf_counter() - begun))
    for name, rates in taken.items():
        print(f"{name}: median {statistics.median(rates):.1f} examples/s, {min(rates):.1f} to {max(rates):.1f} over {len(rates)} rounds")
    best = max((name for name in sides if name != "tunewright"), key=lambda name: statistics.median(taken[name]))
    ratios = [a / b for a, b in zip(taken["tunewright"], taken[best], strict=True)]
    print(f"against the {best}: {statistics.median(ratios):.2f}x, round by round {min(ratios):.2f} to {max(ratios):.2f}")


def _ours(out: Path, given: argparse.Namespace):
    from tunewright.config import TrainConfig
    from tunewright.train.loop import take_step
    from tunewright.train.start import start

    settings = {"data": str(out / "train.jsonl"), "model": "minilm", "out": str(out / "run"), "threads": given.threads, **RECIPE}
    (out / "run").mkdir()
    events = start(TrainConfig.parse(settings, given.set))
    try:
        while True:
            print(next(events).message)
    except StopIteration as end:
        run = end.value
    return lambda at: take_step(run, run.rows[at : at + 32], 1e-5)


def _plain(rows: list[dict], given: argparse.Namespace, bf16: bool):
    """What one writes by hand: batches padded to their longest, AdamW, label smoothing, clipping."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tunewright.models.tasks import minilm

    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(names), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)

    def step(at: int) -> None:
        torch.set_num_threads(given.threads)
        some = rows[at : at + 32]
        batch = tokenizer([row["text"] for row in some], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**batch).logits
        labels = torch.tensor([names.index(row["label"]) for row in some])
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Choose by name, in a folder that is kept only with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    programs = {"clinc150": clinc150, "rt_polarity": rt_polarity, "multi30k": multi30k, "speed": speed}
    parser.add_argument("what", choices=programs)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--out", type=Path, help="keep data and run here; an interrupted run goes on")
    parser.add_argument("--rows", type=int, help="only so many rows, for a quick try")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of `speed`, a round")
    parser.add_argument("--threads", type=int, default=1, help="of `speed`")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        programs[given.what](given.data, out, given)
    print(f"Python {sys.version.split()[0]}, {platform.processor() or platform.machine()}, {platform.system()}")


if __name__ == "__main__":
    main()
