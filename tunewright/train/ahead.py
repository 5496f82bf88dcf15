"""Tasks, each with what is made ready for it: `in_turn` when its turn comes, `ahead` in a thread while the one before it is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Ready = TypeVar("Ready")


def in_turn(tasks: Iterable[Task], prepare: Callable[[Task], Ready]) -> Iterator[tuple[Task, Ready]]:
    """Each task with what `prepare` makes of it, in order."""
    return ((task, prepare(task)) for task in tasks)


def ahead(tasks: Iterable[Task], prepare: Callable[[Task], Ready]) -> Iterator[tuple[Task, Ready]]:
    """Each task with what `prepare` makes of it, in order; the next one is being prepared while one is out.

    `prepare` must be a function of its task alone, so that when it runs changes nothing. What it raises is raised here, at its task.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: tuple[Task, Future[Ready]] | None = None
        for task in tasks:
            coming = task, thread.submit(prepare, task)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()
