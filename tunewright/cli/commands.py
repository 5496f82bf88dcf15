"""The commands: each a short function over the library. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunewright.config import TrainConfig
    from tunewright.data.formats import Format

app = typer.Typer(
    help="Fine-tune a language model on your own machine: check a file, train, evaluate, chat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, one object a line.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="A setting, e.g. `tuning.rank=8`. May be repeated.")]
As = Annotated[str | None, typer.Option("--format", help="Take every row as this kind, instead of what its keys say; an unknown one lists them.")]


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Where the run goes; an earlier demo there is replaced.")] = Path("runs/demo")) -> None:
    """Tune the built-in model on the sample data and show what it learnt; about a minute on two cores."""
    from tunewright.cli.demo import demo

    demo(out)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Training data: a file, a quoted pattern, or a folder of Parquet or Arrow files.")],
    validation: Annotated[Path | None, typer.Option(help="Validation file, checked beside it.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model to be tuned: tokens are counted as it reads them, and rows that it would lose are errors. Default: nano's tokens, no such errors. `none`: no tokens."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, max=1_000_000, help="Cut longer rows here. Default: the model's context, 4,096 at most.")
    ] = None,
    row: Annotated[int | None, typer.Option(min=1, help="Show the row on this line token by token, and nothing else.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML page, with pictures.")] = None,
    perplexity: Annotated[bool, typer.Option("--perplexity", help="Also let the model score each answer, and name those it expects least.")] = False,
    as_format: As = None,
    as_json: Json = False,
) -> None:
    """Look a data file over: every problem with its line and how to mend it. Exit code 3 if any is an error."""
    from tunewright.cli import check

    if row:
        check.row(data, row, _format(as_format), model, max_tokens, as_json)
        return
    ok = check.report(data, validation, _format(as_format), model, max_tokens, html, perplexity, as_json)
    raise typer.Exit(0 if ok else 3)


@app.command()
def convert(
    data: Annotated[Path, typer.Argument(help="A file, a quoted pattern, or a folder, in any format that `check` reads.")],
    out: Annotated[Path, typer.Argument(help="The file to write, which must not exist: JSON lines; with --to also .csv, .tsv or .parquet.")],
    to: Annotated[str | None, typer.Option(help="Write this format instead of OpenAI's; a row that it cannot hold whole is refused by name.")] = None,
    as_format: As = None,
    as_json: Json = False,
) -> None:
    """Write data in OpenAI's format. Rows with errors are left out, and said: then the exit code is 3."""
    from tunewright.data.check import render, summary

    if to:
        from tunewright.data.back import convert_to

        wanted = _format(to, "--to")
        assert wanted
        report = summary(convert_to(data, out, wanted, _format(as_format)))
    else:
        from tunewright.data.convert import convert

        report = summary(convert(data, out, _format(as_format)))
    record = {"out": str(out), "written": report.sound, **report.to_dict()}
    print(json.dumps(record, ensure_ascii=False) if as_json else f"{render(report)}\n\n{out}: {report.sound:,} rows written")
    raise typer.Exit(0 if report.ok else 3)


@app.command()
def clean(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to clean; with --undo, or --diff alone, one that was cleaned.")],
    out: Annotated[Path | None, typer.Option(help="The JSON lines to write. Must not exist.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML file with a list of steps.")] = None,
    step: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:KEY=VALUE,…]", help="A step, e.g. `length:at_least=20`; an unknown one lists them.")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes, row by row. Without --out nothing is written.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Write the file as it was before it was cleaned.")] = False,
    as_format: As = None,
    as_json: Json = False,
) -> None:
    """Mend texts and drop rows by named steps, and keep a record that can be repeated and reversed."""
    from tunewright.cli.clean import clean

    clean(file, out, recipe, step or [], diff, undo, _format(as_format), as_json)


@app.command()
def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file without errors, in any format that `check` reads.")],
    out: Annotated[Path, typer.Option(help="The folder to write train.jsonl, validation.jsonl, test.jsonl and split.json to. Must be empty.")],
    validation: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the rows; 0: none.")] = 0.1,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the rows; 0: none.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed, another split.")] = 0,
    group_by: Annotated[str | None, typer.Option(help="Rows with the same value under this key stay together too.")] = None,
    as_format: As = None,
    as_json: Json = False,
) -> None:
    """Deal rows out to training, validation and test: like rows stay together, labels stay in proportion."""
    from tunewright.cli.split import split

    split(file, out, validation, test, seed, group_by, _format(as_format), as_json)


@app.command()
def augment(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Training rows. Never validation or test rows.")],
    out: Annotated[Path, typer.Option(help="The JSON lines to write: every row as it was, and what was made of it. Must not exist.")],
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:KEY=VALUE,…]", help="How to vary rows, e.g. `drop:rate=0.1`; an unknown one lists them.")
    ] = None,
    copies: Annotated[int, typer.Option(min=0, max=20, help="Variants of each row by each method.")] = 1,
    balance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Add rows to rare labels until they have this share of the most frequent one's.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed, other variants.")] = 0,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Validation or test rows: none of them may be in FILE, no variant may be like them.")
    ] = None,
    protect: Annotated[list[str] | None, typer.Option(metavar="WORD", help="A word that stays in every variant.")] = None,
    model: Annotated[str, typer.Option(help="Whose embedding gives synonyms, and what --measure trains.")] = "nano",
    measure: Annotated[bool, typer.Option("--measure", help="Train with and without the new rows and compare both on the first --held-out.")] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Make more training rows with the same answers, and measure whether they help."""
    from tunewright.cli import augment as commands
    from tunewright.errors import BadConfig

    if measure and not held_out:
        raise BadConfig("--measure needs rows to measure on: --held-out FILE", code="options_clash", param="--held-out")
    record = commands.augment(file, out, method or [], copies, balance, seed, held_out or [], protect or [], model, as_json)
    print(json.dumps(record)) if as_json else commands.show(record, held_out or [])
    if measure and held_out:
        commands.measure(file, out, held_out[0], settings or [], model, as_json)


@app.command()
def train(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="A config; flags and --set go over it.")] = None,
    data: Annotated[Path | None, typer.Option(help="Training file.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Validation file.")] = None,
    model: Annotated[str | None, typer.Option(help="nano, a folder, or a Hub id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    settings: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    find_lr: Annotated[bool, typer.Option("--find-lr", help="Train nothing: try learning rates from 1e-6 to 1 and suggest one.")] = False,
    as_json: Json = False,
) -> None:
    """Tune a model. The result lies in OUT/model; a stopped run goes on with --resume OUT."""
    from tunewright.cli.run import run_to_end, show_rates
    from tunewright.errors import BadConfig

    flags = {"data": data, "validation": validation, "model": model, "out": out}
    if resume:
        if run or any(value is not None for value in flags.values()) or settings:
            raise BadConfig("--resume takes its settings from the run folder; give it alone", code="resume_alone", param="--resume")
        from tunewright.train.folder import read_config

        config = read_config(resume)
    else:
        config = _config(run, settings, **flags)
    raise typer.Exit(show_rates(config, as_json) if find_lr else run_to_end(config, as_json))


@app.command()
def plan(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="A config; flags and --set go over it.")] = None,
    data: Annotated[Path | None, typer.Option(help="Training file.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Validation file.")] = None,
    model: Annotated[str | None, typer.Option(help="nano, a folder, or a Hub id.")] = None,
    settings: Set = None,
    memory: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, metavar="GB", help="Plan for so much memory, not for what is free here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run will take: tokens, time, memory, disk, cost; and what would fit if it does not: then the exit code is 4."""
    from tunewright.cli.plan import plan

    raise typer.Exit(plan(_config(run, settings, data=data, validation=validation, model=model), memory, as_json))


@app.command()
def advise(
    data: Annotated[Path, typer.Option(help="Training file.")],
    validation: Annotated[Path | None, typer.Option(help="Validation file.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A base to choose from: a name, a folder, a Hub id. May be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the recipe to this file, for `train` and `plan`. Must not exist.")] = None,
    as_json: Json = False,
) -> None:
    """Advise on base, tuning, batch, epochs and learning rate for a file and this machine, each with its reason and source."""
    from tunewright.cli.advise import advise

    advise(data, validation, model or [], out, as_json)


@app.command()
def label(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows of text, prompt or messages, of which some or none have a label.")],
    model: Annotated[str | None, typer.Option(help="Suggest labels: a run folder, a model folder, or a Hub id.")] = None,
    corrections: Annotated[Path | None, typer.Option(help="Take labels from suggestions that someone has looked through.")] = None,
    agreement: Annotated[Path | None, typer.Option(help="Compare with another labeller's file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The JSON lines to write. Must not exist.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels to choose among, with commas. Default: those of FILE and of the run's training data.")
    ] = None,
    labels_from: Annotated[Path | None, typer.Option(help="A labelled file whose labels are to choose among.")] = None,
    at_least: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="With --corrections: also take suggestions as sure as this.")] = None,
    as_json: Json = False,
) -> None:
    """Suggest labels, take corrections, or compare two labellers: one of --model, --corrections, --agreement."""
    from tunewright.cli import label as commands
    from tunewright.errors import BadConfig

    if sum(option is not None for option in (model, corrections, agreement)) != 1:
        raise BadConfig("Give one of --model, --corrections and --agreement", code="options_clash")
    if agreement is not None:
        commands.agree(file, agreement, as_json)
        return
    if out is None:
        raise BadConfig("Name the file to write with --out", code="options_clash", param="--out")
    if corrections is not None:
        commands.fill(file, corrections, out, at_least, as_json)
    elif model is not None:
        commands.suggest(file, model, out, labels, labels_from, as_json)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Rows to measure on; best ones that no training has seen.")],
    model: Annotated[str, typer.Option(help="A run folder, a model folder, nano, or a Hub id.")] = "nano",
    before: Annotated[str | None, typer.Option(help="The model to compare with. Default: the base of an adapter. `none`: no comparison.")] = None,
    generate: Annotated[bool, typer.Option(help="Also write answers and compare them with the expected ones.")] = True,
    answers: Annotated[Path | None, typer.Option(help="Write every row's answers to this JSONL file.")] = None,
    beams: Annotated[int, typer.Option(min=1, max=64, help="For an encoder-decoder: search with so many beams; 1 is greedy.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure a model, and the difference from its base, on the same rows with greedy answers."""
    from tunewright.cli.evaluate import evaluate

    evaluate(data, model, before, generate, answers, as_json, beams)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, nano, or a Hub id.")] = "nano",
    message: Annotated[str | None, typer.Option("--message", "-m", help="Say this, print the answer, leave.")] = None,
    system: Annotated[
        str | None, typer.Option(help="A system prompt. Default: the one of the run's training data, where all rows share one.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0, help="Draw from the likeliest tokens that hold this share.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest answer.")] = 512,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="For the same draws again.")] = None,
) -> None:
    """Talk to a model. An empty line or Ctrl-D leaves."""
    from tunewright.cli.chat import chat

    chat(model, message, system, max_tokens, temperature, top_p, seed)


Home = Annotated[Path, typer.Option("--home", help="The server's folder: database, files, jobs, and serve.yaml.")]
HOME = Path("~/.tunewright")


@app.command()
def serve(
    home: Home = HOME,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1, this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: 8000. 0: any free one.")] = None,
    settings: Set = None,
) -> None:
    """Serve the OpenAI fine-tuning API: files, jobs, and the models they make."""
    from tunewright.cli.serve import serve

    serve(home, settings, host=host, port=port)


keys = typer.Typer(help="Who may ask the server: make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command("add")
def add_key(
    owner: Annotated[str, typer.Option(help="Whose files, jobs and models it sees; keys of one owner share them.")] = "default",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Annotated[str, typer.Option(help="read (look and ask models), write (also files and jobs), or admin.")] = "write",
    quotas: Annotated[list[str] | None, typer.Option("--quota", metavar="NAME=N", help="Its own quota, e.g. jobs=5. May be repeated.")] = None,
    home: Home = HOME,
) -> None:
    """Make a key and print it. It is stored hashed, so this is the only time."""
    from tunewright.cli.serve import add_key

    add_key(home, owner, name, scope, quotas)


@keys.command("list")
def list_keys(home: Home = HOME) -> None:
    """Show all keys: id, scope, owner, name."""
    from tunewright.cli.serve import list_keys

    list_keys(home)


@keys.command("revoke")
def revoke_key(id: Annotated[str, typer.Argument(help="As `keys list` shows it.")], home: Home = HOME) -> None:
    """End a key. A running server refuses it within a second."""
    from tunewright.cli.serve import revoke_key

    revoke_key(home, id)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at this machine: libraries, memory, GPU, and what will fit."""
    from tunewright.cli.display import hanging
    from tunewright.cli.doctor import examine, render

    findings = examine()
    print(json.dumps(findings) if as_json else hanging(render(findings), 11, get_terminal_size().columns))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        from tunewright import __version__

        print(f"tunewright {__version__}")
        raise typer.Exit


def _config(run: Path | None, settings: list[str] | None, **flags: Path | str | None) -> TrainConfig:
    """A config from a file, flags over it, and --set over both. Raises BadConfig."""
    from tunewright.config import TrainConfig, read_yaml
    from tunewright.errors import BadConfig

    if run is None and flags["data"] is None:
        raise BadConfig("Give a training file (--data FILE) or a config (RUN.yaml)", code="no_data", param="--data")
    given = {name: str(value) for name, value in flags.items() if value is not None}
    return TrainConfig.parse({**(read_yaml(run) if run else {}), **given}, settings)


def _format(name: str | None, flag: str = "--format") -> Format | None:
    from tunewright.data.formats import FORMATS
    from tunewright.errors import BadConfig

    found = next((known for known in FORMATS if known == name), None)
    if name is not None and found is None:
        raise BadConfig(f"{flag} {name!r} is not known; choose one of {', '.join(FORMATS)}", code="unknown_format", param=flag)
    return found
