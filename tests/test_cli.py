"""The commands as a user runs them: what they say, what they leave behind, and the code they leave with."""

import io
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import tiny
from tunewright import __version__
from tunewright.cli import demo as demo_module
from tunewright.cli import main
from tunewright.cli.display import printable
from tunewright.config import Lora
from tunewright.data import formats
from tunewright.data.example import Chat, Message
from tunewright.data.tokens import next_turn
from tunewright.errors import BadConfig, BadData
from tunewright.evaluate.metrics import measure
from tunewright.event import read_events
from tunewright.models.generate import answers
from tunewright.models.load import load
from tunewright.train import checkpoint
from tunewright.train.folder import read_config, sha256

ROOT = Path(__file__).resolve().parent.parent
FAST = "--set threads=1 --set precision=fp32 --set hyperparameters.batch_size=4 --set tuning.rank=4"


class Said(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Path) -> Iterator[Cli]:
    """Run `tunewright LINE` in the work folder, in this process; `{}` in the line is a folder of this test's own."""

    def run(line: str, *more: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["tunewright", *shlex.split(line), *map(str, more)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Said(left.value.code or 0, *capsys.readouterr())

    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "140")
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user might have it: data, a model, and all kinds of things that are neither."""
    folder = tmp_path_factory.mktemp("work")
    for name, rows in (("train.jsonl", slice(22)), ("valid.jsonl", slice(30, 38))):
        lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[rows]))
    model = tiny.llama()
    with torch.no_grad():  # larger weights, or all its answers would be one token
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(15)
    tiny.save(folder / "base", model)
    files: dict[str, bytes] = {
        "empty.jsonl": b"",
        "latin.jsonl": b'{"prompt": "a", "completion": "caf\xe9"}\n' * 12,
        "broken.yaml": b"data: [1\n",
        "list.yaml": b"- data\n",
        "bytes.yaml": b"data: \xff\n",
        "bomb.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndata: *c\n",
        "settings.yaml": b"data: train.jsonl\nmodel: base\nrank: 8\n",
        "half/config.json": (folder / "base/config.json").read_bytes(),
        "pickled/config.json": (folder / "base/config.json").read_bytes(),
        "pickled/pytorch_model.bin": b"\x80\x04.",
        "full/letter.txt": b"",
        "begun/config.json": b'{"data": "train.jsonl"}',
        "begun/events.jsonl": b"",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tuned(work: Path) -> Path:
    """A finished run, made through the command line."""
    command = shlex.split(
        f"train --data train.jsonl --validation valid.jsonl --model base --out tuned {FAST} --set hyperparameters.n_epochs=1 --json"
    )
    with pytest.MonkeyPatch.context() as patch, (work / "said.jsonl").open("w") as said:
        patch.chdir(work)
        patch.setattr(sys, "argv", ["tunewright", *command])
        patch.setattr(sys, "stdout", said)
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code
    return work / "tuned"


TRAIN = f"train --data train.jsonl --model base {FAST} --out {{}}"

REFUSED = [
    # what is asked, the exit code, a part of what is said
    ("train", 2, "Give a training file (--data FILE) or a config"),
    ("train --data missing.jsonl --model base --out {}", 3, "missing.jsonl: There is no such file"),
    ("train --data base --model base --out {}", 3, "This is a directory without a data file"),
    ("train --data empty.jsonl --model base --out {}", 3, "The file is empty"),
    ("train --data latin.jsonl --model base --out {}", 3, "is not UTF-8"),
    ("train --data valid.jsonl --model base --out {}", 3, "at least 10 are needed"),
    ("train --data train.jsonl --validation missing.jsonl --model base --out {}", 3, "missing.jsonl: There is no such file"),
    (TRAIN + " --set tuning.rnk=8", 2, "tuning.rnk: there is no such setting"),
    (TRAIN + " --set tuning.rank=eight", 2, "tuning.rank: should be a valid integer"),
    (TRAIN + " --set tuning.rank=0", 2, "tuning.rank: should be greater than or equal to 1"),
    (TRAIN + " --set tuning.rank=1025", 2, "tuning.rank: should be less than or equal to 1024"),
    (TRAIN + " --set optimizer.learning_rate=.nan", 2, "optimizer.learning_rate"),
    (TRAIN + " --set tuning=magic", 2, "tuning: tag 'magic'"),
    (TRAIN + " --set tuning.rank", 2, "--set 'tuning.rank': write it as tuning.rank=8"),
    (TRAIN + " --set tuning.rank=0 --set seed=-1", 2, "seed: should be greater than or equal to 0"),
    (TRAIN + " --set 'tuning.targets=[nothing]'", 2, "Target modules {'nothing'} not found"),
    ("train settings.yaml --out {}", 2, "rank: there is no such setting"),
    ("train missing.yaml", 2, "missing.yaml cannot be read: No such file"),
    ("train base", 2, "base cannot be read: Is a directory"),
    ("train broken.yaml", 2, "broken.yaml is not YAML"),
    ("train bytes.yaml", 2, "bytes.yaml is not YAML"),
    ("train list.yaml", 2, "list.yaml must hold `key: value` lines"),
    ("train bomb.yaml", 2, "uses YAML aliases"),
    ("train --data train.jsonl --model nosuch --out {}", 4, "There is no model 'nosuch'"),
    ("train --data train.jsonl --model ~nosuch/model --out {}", 4, "There is no model '~nosuch/model'"),
    ("train --data train.jsonl --model no/such --out {}", 4, "nor could it be fetched from the Hub"),
    ("train --data train.jsonl --model full --out {}", 4, "has no config.json, so it is no model folder"),
    ("train --data train.jsonl --model half --out {}", 4, "no safetensors weights"),
    ("train --data train.jsonl --model pickled --out {}", 4, "pytorch_model.bin can run code when opened"),
    ("train --data train.jsonl --model base --out full", 2, "full is not empty (letter.txt)"),
    ("train --data train.jsonl --model base --out train.jsonl", 5, "train.jsonl cannot be written to"),
    ("train --resume full", 2, "full holds no run"),
    ("train --resume nosuch", 2, "nosuch holds no run"),
    ("train --resume begun --data train.jsonl", 2, "--resume takes its settings from the run folder; give it alone"),
    ("train --resume begun --set seed=1", 2, "give it alone"),
    ("train settings.yaml --resume begun", 2, "give it alone"),
    ("evaluate --data missing.jsonl --model base", 3, "There is no such file"),
    ("evaluate --data valid.jsonl --model nosuch", 4, "There is no model 'nosuch'"),
    (f"evaluate --data valid.jsonl --model {'long' * 100}", 4, "There is no model 'longlong"),
    ("evaluate --data valid.jsonl --model base --before nosuch --no-generate", 4, "There is no model 'nosuch'"),
    ("evaluate --data valid.jsonl --model base --no-generate --answers nosuch/answers.jsonl", 2, "cannot be written: No such file"),
    ("evaluate --data valid.jsonl --model begun", 4, "has no model yet; finish it: tunewright train --resume begun"),
    ("chat nosuch -m hello", 4, "There is no model 'nosuch'"),
    ("chat ~nosuch/model -m hello", 4, "There is no model"),
    (f"chat base -m '{'words ' * 300}'", 1, "shorten the prompt"),
    ("demo --out full", 2, "full holds no run"),
    ("demo --out train.jsonl", 2, "train.jsonl is a file"),
]


@pytest.mark.parametrize(("line", "code", "part"), REFUSED, ids=[f"{line.split()[0]}-{part[:40]}" for line, _, part in REFUSED])
def test_what_cannot_be_done_is_a_sentence_and_a_code(cli: Cli, tmp_path: Path, line: str, code: int, part: str) -> None:
    said = cli(line.replace("{}", str(tmp_path / "out")))
    assert said.code == code
    assert said.err.startswith("tunewright: ") and part in said.err and "Traceback" not in said.err + said.out
    assert said.err.count("\n") == (3 if "All of it" in said.err else 1)


@pytest.mark.parametrize(("line", "code", "part"), [case for case in REFUSED if case[0].split()[0] in ("train", "evaluate")][::4])
def test_programs_are_told_in_json(cli: Cli, tmp_path: Path, line: str, code: int, part: str) -> None:
    said = cli(line.replace("{}", str(tmp_path / "out")) + " --json")
    error = json.loads(said.out.splitlines()[-1])["error"]
    assert (said.code, said.err) == (code, "") and part in error["message"] and set(error) == {"message", "code", "param"}


@pytest.mark.parametrize(
    "line", ["nosuch", "train --nosuch", "check", "chat base --temperature nan", "chat base --top-p 0", "chat base --max-tokens 0"]
)
def test_a_wrong_command_line_shows_how(cli: Cli, line: str) -> None:
    said = cli(line)
    assert said.code == 2 and "Usage: tunewright" in said.err and "Traceback" not in said.err


def test_a_data_files_problems_point_to_the_command_that_shows_all(cli: Cli, tmp_path: Path) -> None:
    said = cli("train --data latin.jsonl --model base --out", tmp_path / "out")
    assert "(and 11 more)" in said.err and "All of it: tunewright check " in said.err
    again = cli(said.err.rpartition("tunewright ")[2])
    assert again.code == 3 and "not_utf8 (12)" in again.out


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version") == (0, f"tunewright {__version__}\n", "")
    said = cli("--help")
    assert said.code == 0 and all(name in said.out for name in ("demo", "check", "train", "evaluate", "chat", "doctor"))


def test_check(cli: Cli) -> None:
    clean = cli("check train.jsonl --validation valid.jsonl")
    assert clean.code == 0 and "22 rows (chat), all sound" in clean.out and "8 rows (chat)" in clean.out
    record = json.loads(cli("check train.jsonl --validation valid.jsonl --json").out)
    assert record["ok"] and record["rows"] == record["sound"] == 22 and record["validation"]["rows"] == 8
    dirty = cli("check latin.jsonl")
    assert dirty.code == 3 and "iconv" in dirty.out
    dirty = cli("check latin.jsonl --json")
    record = json.loads(dirty.out)
    assert dirty.code == 3 and not record["ok"] and [fault["line"] for fault in record["faults"]] == list(range(1, 13))
    assert cli("check train.jsonl --validation missing.jsonl").code == 3


def test_train_says_its_events_as_json_lines(tuned: Path) -> None:
    said = (tuned.parent / "said.jsonl").read_text()
    assert said == (tuned / "events.jsonl").read_text()
    events = [json.loads(line) for line in said.splitlines()]
    assert [event["step"] for event in events if "train_loss" in event["data"]] == [1, 2, 3, 4, 5, 6]
    assert events[-1]["message"] == "The run has finished" and Path(events[-1]["data"]["model"]) == tuned / "model"


def test_train_for_people(cli: Cli, tmp_path: Path) -> None:
    said = cli(TRAIN.replace("{}", str(tmp_path / "out")) + " --validation valid.jsonl --set hyperparameters.n_epochs=3")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith("Training data: 22 of 22 rows") and lines[-1] == "The run has finished"
    assert [line.split()[1] for line in lines if line.startswith("step")] == [f"{step}/18" for step in range(1, 19)]
    assert sum("full validation loss" in line for line in lines) == 3
    again = cli("train --resume", tmp_path / "out")
    assert again.code == 0 and again.out.startswith("This run is finished; its model lies in")


def test_flags_and_assignments_go_over_the_file(cli: Cli, tmp_path: Path) -> None:
    record = {"data": "missing.jsonl", "model": "base", "seed": 7, "tuning": {"kind": "lora", "rank": 2, "dropout": 0.1}}
    record |= {"hyperparameters": {"n_epochs": 1, "batch_size": 11}, "threads": 1, "precision": "fp32", "out": str(tmp_path / "elsewhere")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    said = cli(f"train {tmp_path}/run.yaml --data train.jsonl --out {tmp_path}/out --set tuning.rank=4 --set seed=8 --set schedule.kind=constant")
    assert said.code == 0, said.err
    config = read_config(tmp_path / "out")
    assert config.data == Path.cwd() / "train.jsonl" and config.model == str(Path.cwd() / "base")
    assert config.tuning == Lora(rank=4, dropout=0.1)
    assert (config.seed, config.schedule.kind, config.hyperparameters.batch_size) == (8, "constant", 11)
    assert not (tmp_path / "elsewhere").exists()


def test_another_run_in_the_folder_is_refused(cli: Cli, tuned: Path) -> None:
    said = cli(f"train --data train.jsonl --model base --out {tuned}")
    assert said.code == 2 and f"tunewright train --resume {tuned}" in said.err


class Signalling(io.StringIO):
    """A standard output that sends this process a signal once a line begins in a certain way, while it is still being written."""

    def __init__(self, wanted: str, how: signal.Signals) -> None:
        super().__init__()
        self.wanted, self.how = wanted, how

    def write(self, text: str) -> int:
        if text.startswith(self.wanted):
            signal.raise_signal(self.how)
        return super().write(text)


def test_a_stopped_run_goes_on_to_the_same_weights(cli: Cli, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a program of its own, SIGTERM when it goes on, then to the end: as if nothing had happened."""
    line = f"train --data train.jsonl --model base {FAST} --set tuning.dropout=0.1 --set hyperparameters.n_epochs=10 --out"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli(line, whole).code == 0

    program = [sys.executable, "-u", "-c", "from tunewright.cli import main; main()", *shlex.split(f"{line} {parts}")]
    with subprocess.Popen(program, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for said in process.stdout:
            if said.startswith("step 1/60"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130 and f"Go on with:  tunewright train --resume {parts}" in rest and "Traceback" not in rest
    first = checkpoint.saved(parts / "checkpoints")[-1]
    assert checkpoint.verify(first) is None and not (parts / "model").exists()

    monkeypatch.setattr(sys, "stdout", out := Signalling("step 30/60", signal.SIGTERM))
    assert cli("train --resume", parts).code == 75 and f"Go on with:  tunewright train --resume {parts}" in out.getvalue()
    monkeypatch.undo()
    assert [place.name for place in checkpoint.saved(parts / "checkpoints")][-1] == "step-00000030" and not (parts / "exit.json").exists()

    assert cli("train --resume", parts).code == 0
    assert sha256(whole / "model/adapter_model.safetensors") == sha256(parts / "model/adapter_model.safetensors")
    losses = [{e.step: e.data["train_loss"] for e in read_events(run / "events.jsonl") if "train_loss" in e.data} for run in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 60


def test_evaluate_compares_with_the_base(cli: Cli, tuned: Path, tmp_path: Path) -> None:
    said = cli(f"evaluate --data valid.jsonl --model tuned --answers {tmp_path}/answers.jsonl --json")
    assert said.code == 0
    record = json.loads(said.out)
    examples = formats.load(tuned.parent / "valid.jsonl", minimum=1)
    ours = [measure((m := load(name)).model, m.tokenizer, examples, m.context) for name in (str(tuned.parent / "base"), str(tuned))]
    assert record["before"] == str(tuned.parent / "base") and record["rows"] == 8 and record["dropped"] == {}
    assert record["metrics"]["loss"]["value"] == pytest.approx(ours[1].summary()["loss"].value)
    row = record["difference"]["loss"]
    assert row["before"]["value"] == pytest.approx(ours[0].summary()["loss"].value)
    assert row["difference"] == pytest.approx(row["after"]["value"] - row["before"]["value"]) and row["low"] <= row["difference"] <= row["high"]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 9))
    assert [(row["expected"], row["before"], row["answer"]) for row in rows] == list(
        zip(ours[0].expected, ours[0].answers, ours[1].answers, strict=True)
    )


def test_evaluate_for_people(cli: Cli, tuned: Path) -> None:
    said = cli("evaluate --data valid.jsonl --model tuned/model")
    assert said.code == 0 and "before" in said.out and "perplexity" in said.out and "8 rows" in said.out
    alone = cli("evaluate --data valid.jsonl --model base --no-generate")
    assert alone.code == 0 and "before" not in alone.out and "exact match" not in alone.out and "token accuracy" in alone.out
    assert "difference" not in json.loads(cli("evaluate --data valid.jsonl --model tuned --before none --no-generate --json").out)


def answer_of(name: Path, *messages: Message, limit: int = 12) -> str:
    loaded = load(str(name))
    return answers(loaded.model, loaded.tokenizer, [next_turn(Chat(messages), loaded.tokenizer)], limit)[0].text


def test_chat_gives_the_models_answer(cli: Cli, work: Path) -> None:
    expected = answer_of(work / "base", Message("user", "My kettle leaks"))
    assert len(set(expected)) > 3, "the model says too little to tell anything"
    assert cli("chat base -m 'My kettle leaks' --max-tokens 12") == (0, printable(expected) + "\n", "")
    drawn = [cli(f"chat base -m 'My kettle leaks' --max-tokens 12 --temperature 2 --seed {seed}").out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_chat_with_a_run_has_the_system_prompt_of_its_data(cli: Cli, tuned: Path) -> None:
    first = formats.load(tuned.parent / "train.jsonl")[0]
    assert isinstance(first, Chat) and first.messages[0].role == "system"
    user = Message("user", "My kettle leaks")
    assert cli("chat tuned -m 'My kettle leaks' --max-tokens 12").out == printable(answer_of(tuned, first.messages[0], user)) + "\n"
    assert cli("chat tuned/model -m 'My kettle leaks' --max-tokens 12").out == printable(answer_of(tuned, first.messages[0], user)) + "\n"
    assert cli("chat tuned -m 'My kettle leaks' --max-tokens 12 --system ''").out == printable(answer_of(tuned, user)) + "\n"


def test_a_conversation_remembers(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello there\nAnd now\n\n"))
    said = cli("chat base --max-tokens 8")
    turns = [Message("user", "Hello there")]
    turns += [Message("assistant", answer_of(work / "base", *turns, limit=8)), Message("user", "And now")]
    second = answer_of(work / "base", *turns, limit=8)
    assert said.code == 0 and said.out.endswith(f"{printable(turns[1].content)}\n> {printable(second)}\n> ")


def test_doctor(cli: Cli) -> None:
    found: dict[str, Any] = json.loads(cli("doctor --json").out)
    assert found["libraries"]["torch"] == torch.__version__ and found["problems"] == []
    assert 0 < found["memory_free"] <= found["memory_total"] and found["cores"] >= 1
    assert 0 <= found["fits"]["full, fp32"] <= found["fits"]["LoRA, fp32 base"] <= found["fits"]["chat only, fp32"]
    said = cli("doctor")
    assert said.code == 0 and f"torch {torch.__version__}" in said.out and "Models that fit" in said.out


def test_demo(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step of it, with a tiny model on a few rows of the sample."""
    for name, count in (("train", 40), ("validation", 8), ("test", 6)):
        lines = (tiny.SAMPLE / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    monkeypatch.setattr(demo_module, "SAMPLE", tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    out = tmp_path / "runs/demo"
    demo_module.demo(out, str(work / "base"))
    said = capsys.readouterr().out
    assert all(f"{i}. " in said for i in (1, 2, 3, 4)) and "40 rows (chat), all sound" in said and "6 rows, the same for both" in said
    assert f"tunewright chat {out}" in said and (out / "model/adapter_model.safetensors").is_file()
    changed = json.loads((out / "config.json").read_text()) | {"seed": 1}
    (out / "config.json").write_text(json.dumps(changed))
    with pytest.raises(BadConfig, match="another run than a demo"):
        demo_module.demo(out, str(work / "base"))
    assert (out / "model").is_dir(), "a run of one's own was removed"
    (out / "config.json").write_text(json.dumps(changed | {"seed": 0}))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(BadData):  # it begins anew, and so finds that its data is gone
        demo_module.demo(out, str(work / "base"))
    assert not (out / "model").exists()


def readme_commands() -> list[str]:
    """The lines of README.md's shell blocks, as one would copy them; those of make are another test's."""
    blocks, inside = [], False
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("```"):
            inside = line.strip("` ") in ("sh", "console")
        elif inside:
            blocks.append(line.removeprefix("$ ").removeprefix(".venv/bin/"))
    return [line for line in blocks if line.startswith("tunewright ")]


def test_the_readmes_commands_run_as_written(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, from the repository's root; only that runs/ lies elsewhere and the sample is its first rows."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "sample").mkdir()
    for path in tiny.SAMPLE.glob("*.jsonl"):
        (tmp_path / "sample" / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[: 10 if path.stem == "train" else 4]))
    commands = readme_commands()
    assert {shlex.split(command)[1] for command in commands} >= {"check", "train", "evaluate", "chat"}
    for command in commands:
        assert all((ROOT / word).exists() for word in shlex.split(command) if word.startswith("tunewright/")), command
        moved = command.replace("runs/", f"{tmp_path}/runs/").replace("tunewright/data/sample/", f"{tmp_path}/sample/")
        said = cli(moved.removeprefix("tunewright "))
        assert said.code == 0 and said.out, f"{command}\n{said.err}"
