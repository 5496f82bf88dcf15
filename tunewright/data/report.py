"""What a check found: `Report`, as JSON values (`to_dict`) and as plain text (`render`). `page` makes an HTML page of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.data.findings import quoted
from tunewright.data.formats import Format
from tunewright.data.profile import Tokens
from tunewright.data.traits import Families, Often, Spread, Surprise, evenness
from tunewright.errors import Fault

_LINES_SHOWN = 5
_MESSAGES_SHOWN = 5
_NAMES_SHOWN = 12
_FEW = 50  # rows: with fewer, what rows have in common says little
_BAR = 32


@dataclass(frozen=True, slots=True)
class Group:
    """The faults of one code: how many there are, the first with their lines and messages, and how to mend them."""

    code: str
    warning: bool
    count: int
    faults: tuple[Fault, ...]

    @property
    def mends(self) -> list[str]:
        """How to mend them, each way once."""
        return list(dict.fromkeys(fault.mend for fault in self.faults))

    @property
    def messages(self) -> dict[str, list[int]]:
        """The lines by message."""
        by_message: dict[str, list[int]] = {}
        for fault in self.faults:
            by_message.setdefault(fault.message, []).append(fault.line)
        return by_message


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a data file and what is wrong with it.

    `rows` = `sound` + `lost`, the latter by the first error of each row. `turns` counts messages by role, and `labels` rows by label, in sound
    rows; `trained_characters` is the length of what is learnt from them: answers, completions or labels. `unlisted`: faults beyond those in
    `faults`, by code. `lengths` are in characters; `languages` of a sample; `copies`: the rows that stand there most often, (times, first line);
    `first`: the lines of the first rows.
    """

    path: Path
    format: Format | None
    rows: int
    sound: int
    faults: tuple[Fault, ...]
    turns: dict[str, int]
    labels: dict[str, int]
    trained_characters: int
    validation: Report | None = None
    unlisted: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    lengths: Spread | None = None
    answers: Often | None = None
    openings: Often | None = None
    languages: dict[str, int] = field(default_factory=dict)
    families: Families | None = None
    copies: list[tuple[int, int]] = field(default_factory=list)
    tokens: Tokens | None = None
    first: tuple[int, ...] = ()
    surprise: Surprise | None = None

    @property
    def ok(self) -> bool:
        """No errors, in the validation file neither. Warnings may be there."""
        return all(fault.warning for fault in self.faults) and (self.validation is None or self.validation.ok)

    @property
    def ledger(self) -> dict[str, int]:
        """Rows that would be trained, and those lost by each named reason; together they are all rows."""
        dropped = {**self.lost, **(self.tokens.dropped if self.tokens else {})}
        return {"trained": self.tokens.kept if self.tokens else self.sound, **dropped}

    @property
    def groups(self) -> list[Group]:
        """Faults of one code together: errors before warnings, those of the whole file first, then by number."""
        groups: dict[tuple[bool, str], list[Fault]] = {}
        for fault in self.faults:
            groups.setdefault((fault.warning, fault.code), []).append(fault)
        order = sorted(groups.items(), key=lambda g: (g[0][0], g[1][0].line > 0, -len(g[1]) - self.unlisted.get(g[0][1], 0)))
        return [Group(code, warning, len(group) + self.unlisted.get(code, 0), tuple(group)) for (warning, code), group in order]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        groups = [
            {"code": g.code, "warning": g.warning, "count": g.count, "lines": [f.line for f in g.faults[:20]], "mend": g.mends} for g in self.groups
        ]
        plain = {name: getattr(self, name) for name in ("format", "rows", "sound", "turns", "labels", "trained_characters", "languages", "unlisted")}
        parts = {
            name: one and asdict(one)
            for name in ("lengths", "answers", "openings", "families", "tokens", "surprise")
            for one in [getattr(self, name)]
        }
        return {
            "path": str(self.path),
            "ok": self.ok,
            **plain,
            "ledger": self.ledger,
            "groups": groups,
            "faults": [asdict(fault) for fault in self.faults],
            "copies": [{"times": times, "line": line} for times, line in self.copies],
            **parts,
            "validation": self.validation and self.validation.to_dict(),
        }


def render(report: Report) -> str:
    """The report as plain text: what the file holds, then its faults by code, the worst first."""
    parts = [*_summary(report), *_character(report), *_tokens(report)]
    for group in report.groups:
        parts += _group(group)
    if report.validation:
        parts += ["", render(report.validation)]
    return "\n".join(parts)


def _summary(report: Report) -> Iterator[str]:
    if not report.rows:
        yield f"{report.path}: no rows read"
        return
    kind = f" ({report.format})" if report.format else ""
    wrong = report.rows - report.sound
    state = f"{report.sound:,} sound, {wrong:,} with errors" if wrong else "all sound"
    yield f"{report.path}: {rows(report.rows)}{kind}, {state}"
    if report.sound:
        held = [f"{count:,} {role}" for role, count in report.turns.items()]
        names = [f"{quoted(label)} {count:,}" for label, count in report.labels.items()]
        shown = names[:_NAMES_SHOWN] + [f"{len(names) - _NAMES_SHOWN:,} more labels"] * (len(names) > _NAMES_SHOWN)
        yield "  " + ", ".join([*held, *shown, f"{report.trained_characters:,} characters to learn"])


def _character(report: Report) -> Iterator[str]:
    """What the rows are like, where there are enough of them to say it."""
    if report.sound < _FEW or not report.lengths:
        return
    spread = report.lengths
    far = f"; {spread.outliers:,} far longer, first {_at(spread.longest)}" if spread.outliers else ""
    yield f"  lengths: median {spread.median:,} characters, 95 % up to {spread.p95:,}, longest {spread.most:,}{far}"
    if len(report.labels) > 1:
        counts = list(report.labels.values())
        yield f"  labels: {len(counts):,}, from {min(counts):,} to {max(counts):,} rows each, evenness {evenness(counts):.2f} (1 is even)"
    if report.languages:
        total = sum(report.languages.values())
        shown = [f"{name} {count / total:.0%}" for name, count in report.languages.items() if count / total >= 0.005]
        yield f"  languages ({'sample of ' if total < report.sound else ''}{rows(total)}): {', '.join(shown[:_LINES_SHOWN])}"
    if (kin := report.families) and kin.families:
        part = f" of the first {kin.compared:,}" if kin.compared < kin.rows else ""
        large = f"; the largest holds {kin.largest[0][0]:,}, with line {kin.largest[0][1]}" if kin.largest else ""
        yield f"  diversity: {kin.families:,} families of rows{part} that are at least half alike{large}"
    if odd := report.surprise:
        far = f"; {odd.outliers:,} far above, highest {odd.highest[0][0]:,.1f} at line {odd.highest[0][1]}" if odd.outliers else ""
        yield f"  perplexity of answers ({rows(odd.rows)}): median {odd.median:,.2f}, 95 % up to {odd.p95:,.1f}{far}"
    for name, often in (("answer", report.answers), ("opening", report.openings)):
        if often and often.most and (often.most[0][1] >= 0.05 * often.rows):
            text, count, line = often.most[0]
            yield f"  most frequent {name}: {quoted(text)} in {count / often.rows:.0%} of rows, first line {line}"


def _tokens(report: Report) -> Iterator[str]:
    if not (tokens := report.tokens) or not tokens.rows:
        return
    share = tokens.trained / max(1, tokens.read)
    yield f"  tokens ({tokens.model}, at most {tokens.limit:,} a row): {tokens.read:,} read, {tokens.trained:,} of them trained ({share:.1%})"
    if tokens.distinct:
        part = f"of the first {rows(tokens.tree_rows)}, " if tokens.tree_rows < tokens.kept else ""
        yield f"  prefix tree: {part}{tokens.distinct:,} of {tokens.tree_tokens:,} tokens are distinct, {tokens.tree_tokens / tokens.distinct:.1f} times fewer to compute"
    lost = " + ".join(f"{count:,} {reason}" for reason, count in report.ledger.items() if reason != "trained")
    yield f"  ledger: {rows(report.rows)} = {tokens.kept:,} trained{' + ' if lost else ''}{lost}"
    if tokens.lengths and report.sound >= _FEW:
        highest = max(height for *_, height in tokens.lengths.bars)
        yield f"  tokens a row: median {tokens.lengths.median:,}, 95 % up to {tokens.lengths.p95:,}, longest {tokens.lengths.most:,}"
        wide = len(f"{tokens.lengths.bars[-1][1]:,}")
        for start, end, height in tokens.lengths.bars:
            cut = "  cut" if start >= tokens.limit and height else ""
            yield f"  {start:>{wide},} - {end - 1:>{wide},} {'█' * round(_BAR * height / highest) or ('▏' if height else '')} {height:,}{cut}"


def _group(group: Group) -> Iterator[str]:
    yield ""
    yield f"{'warning' if group.warning else 'error'}: {group.code}" + (f" ({group.count:,})" if group.count > 1 else "")
    by_message, unlisted = group.messages, group.count - len(group.faults)
    for message, numbers in list(by_message.items())[:_MESSAGES_SHOWN]:
        alone = len(by_message) == 1
        yield f"  {_where(numbers, unlisted if alone else 0)}{message}"
    if rest := [line for numbers in list(by_message.values())[_MESSAGES_SHOWN:] for line in numbers]:
        yield f"  {_where(rest, unlisted)}the like"
    elif unlisted and len(by_message) > 1:
        yield f"  and {unlisted:,} more of the like"
    for mend in group.mends[:2]:
        yield f"  -> {mend}."


def _where(numbers: Sequence[int], unlisted: int = 0) -> str:
    if not numbers[0]:
        return ""
    distinct = list(dict.fromkeys(numbers))
    shown = ", ".join(map(str, distinct[:_LINES_SHOWN]))
    rest = max(0, len(distinct) - _LINES_SHOWN) + unlisted
    return f"line{'s' if len(distinct) > 1 else ''} {shown}{f' + {rest:,} more' if rest else ''}: "


def _at(longest: Sequence[tuple[int, int]]) -> str:
    length, line = longest[0]
    return f"line {line} with {length:,}"


def rows(count: int) -> str:
    """1 row, 1,000 rows."""
    return f"{count:,} row{'s' if count != 1 else ''}"
