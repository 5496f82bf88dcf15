"""Lists in pages: `page` over a table, in the order its rows were made, from one row's id to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

After = Annotated[str | None, Query(max_length=64, description="The id of the last row already seen.")]
Limit10 = Annotated[int, Query(ge=0, le=1000, description="Rows a page: 10 by default.")]
Limit20 = Annotated[int, Query(ge=0, le=1000, description="Rows a page: 20 by default.")]


def page(
    session: Session,
    table: Any,
    show: Callable[[Any], dict[str, Any]],
    *,
    within: Sequence[ColumnElement[bool]],
    where: Sequence[ColumnElement[bool]] = (),
    limit: int,
    after: str | None,
    newest_first: bool = True,
    ends: bool = False,
) -> dict[str, Any]:
    """One page as OpenAI's lists are: `object`, `data`, `has_more`, and with `ends` also `first_id` and `last_id`.

    `within` says whose list it is (an owner, a job): an `after` from outside it names nothing, and what follows nothing is an
    empty page. `where` narrows the list further; a row that has left it since (deleted) is still a place to go on from.
    `table` has the columns `id` and `seq`; `show` turns a row into what is sent.
    """
    rows = select(table).where(*within, *where).order_by(table.seq.desc() if newest_first else table.seq.asc())
    found: Sequence[Any] = ()
    seq = session.scalar(select(table.seq).where(*within, table.id == after)) if after else None
    if seq is not None:
        rows = rows.where(table.seq < seq if newest_first else table.seq > seq)
    if seq is not None or not after:
        found = session.scalars(rows.limit(limit + 1)).all()
    rows_shown = found[:limit]
    body: dict[str, Any] = {"object": "list", "data": [show(row) for row in rows_shown], "has_more": len(found) > limit}
    if ends:
        body |= {"first_id": rows_shown[0].id if rows_shown else None, "last_id": rows_shown[-1].id if rows_shown else None}
    return body
