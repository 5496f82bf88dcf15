"""Examples -> training, validation and test rows: `split` keeps groups together, labels in proportion, and is the same for the same seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.data.content import own_text
from tunewright.data.example import Chat, Completion, Example, Labelled, input_and_answer
from tunewright.data.groups import Groups, beginnings, near_links, same
from tunewright.errors import BadConfig

MOST_LABELS = 200


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows go where. `parts`: places of the rows by part, in the file's order. `groups`: (rows,) the group of each row, by its first row.

    `joined`: how many rows each way of finding groups joined to an earlier one; `templates`: words of a beginning that more than half of the
    rows have, and how many have it; `labels`: (rows,) what was held in proportion, or nothing; `asked`: rows that each part was to have.
    """

    parts: dict[str, list[int]]
    groups: list[int]
    joined: dict[str, int]
    templates: list[tuple[int, int]]
    labels: list[str] | None
    asked: dict[str, float]

    @property
    def largest(self) -> int:
        """Rows of the largest group."""
        return max(Counter(self.groups).values())


def split(examples: Sequence[Example], shares: dict[str, float], seed: int = 0, keys: Sequence[Hashable] | None = None) -> Split:
    """Deal rows out to the parts named in `shares`, which add up to 1. `keys`: rows with the same one stay together too; None joins nothing.

    Raises BadConfig where a part would be empty.
    """
    if (total := sum(shares.values())) < 1 - 1e-9 or total > 1 + 1e-9 or min(shares.values()) <= 0:
        raise BadConfig("The parts' shares must be above 0 and add up to 1", code="bad_shares", param="--validation")
    found = Groups(len(examples))
    texts = [own_text(example) for example in examples]
    given = [pair[0] or pair for pair in map(input_and_answer, examples)]
    found.join("same input", same(given))
    templates: list[tuple[int, int]] = []
    found.join("same passage", beginnings(texts, templates))
    found.join("near duplicate", near_links(texts))
    if keys is not None:
        found.join("same key", same(keys))
    groups = [found.root(i) for i in range(len(examples))]
    labels = _labels(examples)
    parts = _dealt(groups, labels, shares, np.random.default_rng(seed))
    if empty := [name for name, rows in parts.items() if not rows]:
        largest = max(Counter(groups).values())
        reason = f"the largest group that must stay together has {largest:,} of them" if largest > 1 else "it takes more"
        message = f"{len(examples):,} rows in {len(set(groups)):,} groups leave none for {', '.join(empty)}: {reason}"
        raise BadConfig(f"{message}; give more rows, or a larger share", code="empty_part", param=f"--{empty[0]}")
    asked = {name: share * len(examples) for name, share in shares.items()}
    return Split(parts, groups, found.joined, templates, labels, asked)


def _labels(examples: Sequence[Example]) -> list[str] | None:
    """What each row is to be told apart by: its label, or its answer where answers are few and recur."""
    found = []
    for example in examples:
        match example:
            case Labelled():
                found.append(example.label)
            case Completion():
                found.append(example.completion.strip())
            case Chat():
                found.append(example.messages[-1].content.strip())
            case _:
                return None
    if all(isinstance(example, Labelled) for example in examples):
        return found
    return found if len(set(found)) <= min(MOST_LABELS, len(found) / 5) else None


def _dealt(groups: Sequence[int], labels: Sequence[str] | None, shares: dict[str, float], generator: np.random.Generator) -> dict[str, list[int]]:
    """Groups go, the largest first, to the part that lacks most of their labels."""
    names = sorted(set(labels)) if labels else [""]
    column = {name: at for at, name in enumerate(names)}
    rows_of: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        rows_of[group].append(i)
    counts = {group: np.bincount([column[labels[i]] if labels else 0 for i in rows], minlength=len(names)) for group, rows in rows_of.items()}
    lacking = _targets(np.sum(list(counts.values()), axis=0), np.array(list(shares.values())))
    order = [int(i) for i in generator.permutation(list(rows_of))]
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for group in sorted(order, key=lambda group: -len(rows_of[group])):
        best = int(np.argmax(lacking @ counts[group]))
        lacking[best] -= counts[group]
        parts[list(shares)[best]] += rows_of[group]
    return {name: sorted(rows) for name, rows in parts.items()}


def _targets(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(parts, labels) whole numbers of rows, each within one of its share, that add up to `sizes`, and over labels nearly to the parts' sizes."""
    exact = shares[:, None] * sizes[None, :]
    targets: np.ndarray = np.floor(exact + 1e-9).astype(int)
    spare = shares * sizes.sum() - targets.sum(axis=1)
    # Rare labels first, while the largest part lacks most: a label that is seen once is to be learnt.
    for label in np.argsort(sizes, kind="stable"):
        rest = int(sizes[label] - targets[:, label].sum())
        open_parts = [int(part) for part in np.argsort(-spare, kind="stable") if exact[part, label] - targets[part, label] > 1e-9]
        for part in open_parts[:rest]:
            targets[part, label] += 1
            spare[part] -= 1
    # What one part has too much of goes to another, where both stay within one row of their share of the label.
    while (movable := _movable(targets, exact, spare)) is not None:
        giver, taker, label = movable
        targets[[giver, taker], label] += [-1, 1]
        spare[[giver, taker]] += [1, -1]
    return targets


def _movable(targets: np.ndarray, exact: np.ndarray, spare: np.ndarray) -> tuple[int, int, int] | None:
    """A part that gives a row, one that takes it, and its label, where that brings both nearer to their sizes."""
    for giver in np.argsort(spare):
        for taker in np.argsort(-spare):
            fits = (targets[giver] > exact[giver] + 1e-9) & (targets[taker] < exact[taker] - 1e-9)
            if spare[taker] - spare[giver] > 1 + 1e-9 and fits.any():
                return int(giver), int(taker), int(np.argmax(fits))
    return None
