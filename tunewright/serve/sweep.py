"""What time brings: files and uploads that have expired go, and so do the left-overs of a server that was killed."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import delete, select, update

from tunewright.jobs.home import REPORT, Home
from tunewright.jobs.store import Delivery, File, Part, Store, Upload
from tunewright.serve.files import remove_file

log = logging.getLogger("tunewright.serve")
_EVERY = 60


def sweep(store: Store, home: Home, keep_days: float) -> None:
    """Remove what has expired, and records older than `keep_days` of what is gone."""
    now = store.now()
    with store.read() as session:
        files = session.scalars(select(File.id).where(File.expires_at <= now, File.deleted_at.is_(None)).limit(1000)).all()
        uploads = session.scalars(select(Upload.id).where(Upload.status == "pending", Upload.expires_at <= now).limit(1000)).all()
    for id in files:
        remove_file(store, home, id)
    for id in uploads:
        with store.write() as session:
            session.execute(update(Upload).where(Upload.id == id, Upload.status == "pending").values(status="expired"))
        shutil.rmtree(home.upload(id), ignore_errors=True)
    before = now - keep_days * 86400
    with store.write() as session:
        old = select(Upload.id).where(Upload.status != "pending", Upload.expires_at < before)
        session.execute(delete(Part).where(Part.upload_id.in_(old)))
        session.execute(delete(Upload).where(Upload.status != "pending", Upload.expires_at < before))
        session.execute(delete(Delivery).where(Delivery.done_at < before))


def clear_left_overs(store: Store, home: Home) -> None:
    """Remove what a killed server left: half-received files, and bytes whose row was never written or is gone. Only while the home is locked."""
    for path in (home.path / "tmp").iterdir():
        path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path, ignore_errors=True)
    with store.read() as session:
        files = set(session.scalars(select(File.id).where(File.deleted_at.is_(None))))
        uploads = set(session.scalars(select(Upload.id).where(Upload.status == "pending")))
    for path in (home.path / "files").iterdir():
        if path.name.removesuffix(REPORT) not in files:
            path.unlink(missing_ok=True)
    for path in (home.path / "uploads").iterdir():
        if path.name not in uploads:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def sweeping(store: Store, home: Home, keep_days: float) -> Iterator[None]:
    """Sweep every minute, in a thread, until the block ends."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_EVERY):
            try:
                sweep(store, home, keep_days)
            except Exception:
                log.exception("sweeping failed; it is tried again in a minute")

    thread = threading.Thread(target=run, name="sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)
