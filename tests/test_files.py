"""Files, uploads and lists as the official client sees them, on SQLite or PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from serving import Server, new_database, server, serving
from tunewright.jobs.store import File, Upload
from tunewright.serve.sweep import clear_left_overs, sweep

__all__ = ["server"]
LINE = b'{"messages": []}\n'


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def test_a_file_comes_back_as_it_was_sent(server: Server, client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 9000  # over two pieces, and every byte
    file = client.files.create(file=("räd.jsonl", data), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (file.bytes, file.filename, file.status, file.purpose) == (len(data), "räd.jsonl", "processed", "fine-tune")
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    answer = client.files.content(file.id)
    assert answer.read() == data
    headers = answer.response.headers
    assert headers["content-type"] == "application/octet-stream" and headers["content-disposition"].startswith("attachment")
    with server.store.read() as session:
        (row,) = session.query(File)
    assert row.sha256 == hashlib.sha256(data).hexdigest()
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    assert not server.home.file(file.id).exists() and not list((server.home.path / "tmp").iterdir())


def test_lists_go_page_by_page_in_both_orders(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", LINE), purpose="fine-tune").id for n in range(5)]
    other = client.files.create(file=("x.txt", LINE), purpose="vision").id
    assert [file.id for file in client.files.list()] == [other, *reversed(made)]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == [*made, other]
    assert [file.id for file in client.files.list(purpose="fine-tune", limit=2)] == made[::-1]
    page = client.files.list(limit=2, after=made[4])
    assert ([file.id for file in page.data], page.has_more) == ([made[3], made[2]], True)
    client.files.delete(made[3])  # a cursor that is deleted is still a place
    assert [file.id for file in client.files.list(after=made[3])] == [made[2], made[1], made[0]]
    assert client.files.list(after="file-nobody").data == []


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("empty", {"file": ("a.jsonl", b""), "purpose": "fine-tune"}),
    ("not jsonl", {"file": ("notes.txt", b"hello"), "purpose": "fine-tune"}),
    ("bytes without a name", {"file": LINE, "purpose": "fine-tune"}),
    ("unknown purpose", {"file": ("a.jsonl", LINE), "purpose": "no-such"}),
    ("expires too soon", {"file": ("a.jsonl", LINE), "purpose": "fine-tune", "expires_after": {"anchor": "created_at", "seconds": 60}}),
    ("unknown anchor", {"file": ("a.jsonl", LINE), "purpose": "fine-tune", "expires_after": {"anchor": "now", "seconds": 3600}}),
]


@pytest.mark.parametrize("arguments", [case for _, case in REFUSED], ids=[name for name, _ in REFUSED])
def test_a_file_is_refused_and_nothing_of_it_stays(server: Server, client: openai.OpenAI, arguments: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(**arguments)
    assert caught.value.body["message"] and "param" in caught.value.body  # type: ignore[index,call-overload]
    assert client.files.list().data == []
    assert not list((server.home.path / "tmp").iterdir()) and not list((server.home.path / "files").iterdir())


def test_a_file_sent_again_after_a_lost_answer_is_one_file(client: openai.OpenAI) -> None:
    first = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    again = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune", extra_headers={"x-stainless-retry-count": "1"})
    on_purpose = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    assert first.id == again.id != on_purpose.id


def test_parts_are_joined_in_the_order_asked_for(server: Server, client: openai.OpenAI) -> None:
    upload = client.uploads.create(bytes=6, filename="p.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    late, early = (client.uploads.parts.create(upload.id, data=data).id for data in (b"def", b"abc"))
    with pytest.raises(openai.BadRequestError, match="bytes together"):
        client.uploads.complete(upload.id, part_ids=[early])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=[early, late], md5="0" * 32)
    done = client.uploads.complete(upload.id, part_ids=[early, late], md5=hashlib.md5(b"abcdef").hexdigest())
    assert done.status == "completed" and done.file and client.files.content(done.file.id).read() == b"abcdef"
    again = client.uploads.complete(upload.id, part_ids=[early, late], extra_headers={"x-stainless-retry-count": "1"})
    assert again.file and again.file.id == done.file.id
    for call in (lambda: client.uploads.parts.create(upload.id, data=b"x"), lambda: client.uploads.cancel(upload.id)):
        with pytest.raises(openai.BadRequestError, match="completed"):
            call()
    assert not server.home.upload(upload.id).exists()


def test_the_clients_own_helper_for_large_files(client: openai.OpenAI) -> None:
    data = LINE * 1000
    done = client.uploads.upload_file_chunked(
        file=data, filename="c.jsonl", bytes=len(data), mime_type="text/jsonl", purpose="fine-tune", part_size=len(data) // 3
    )
    assert done.file and client.files.content(done.file.id).read() == data


def test_an_upload_ends_by_cancel_and_by_time(server: Server, client: openai.OpenAI) -> None:
    cancelled, late = (client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune") for _ in range(2))
    assert client.uploads.cancel(cancelled.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(cancelled.id, data=b"abc")
    server.store.clock = lambda: late.expires_at + 1
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.uploads.parts.create(late.id, data=b"abc")
    sweep(server.store, server.home, keep_days=30)
    assert not server.home.upload(late.id).exists()
    with server.store.read() as session:
        assert session.get_one(Upload, late.id).status == "expired"


def test_files_expire(server: Server, client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at
    server.store.clock = lambda: float(file.expires_at or 0)
    assert client.files.list().data == []
    sweep(server.store, server.home, keep_days=30)
    assert not server.home.file(file.id).exists()


def test_what_a_killed_server_left_is_cleared_and_nothing_else(server: Server, client: openai.OpenAI) -> None:
    kept = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    upload = client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    for left in ("tmp/in-half", "files/file-withoutrow", "uploads/upload_withoutrow"):
        (server.home.path / left).write_bytes(b"half")
    clear_left_overs(server.store, server.home)
    assert [path.name for path in (server.home.path / "files").iterdir()] == [kept.id]
    assert [path.name for path in (server.home.path / "uploads").iterdir() if path.is_dir()] == [upload.id]
    assert not list((server.home.path / "tmp").iterdir())


def test_another_owners_things_do_not_exist(server: Server, client: openai.OpenAI) -> None:
    other = server.client(server.add_key(owner="other"))
    mine = other.files.create(file=("b.jsonl", LINE), purpose="fine-tune")
    file = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    upload = client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    calls: list[Callable[[], Any]] = [
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.uploads.cancel(upload.id),
        lambda: other.uploads.complete(upload.id, part_ids=[]),
        lambda: other.uploads.parts.create(upload.id, data=b"abc"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert [one.id for one in other.files.list()] == [mine.id]
    assert other.files.list(after=file.id).data == []  # nor is another's id a place in one's own list
    assert server.client(server.add_key(scope="read")).files.retrieve(file.id).id == file.id  # a key of the same owner


def test_the_quota_of_bytes(server: Server) -> None:
    small = server.client(server.add_key(owner="small", bytes=100))
    small.files.create(file=("a.jsonl", b"x" * 60), purpose="fine-tune")
    with pytest.raises(openai.RateLimitError, match="quota"):
        small.files.create(file=("b.jsonl", b"x" * 60), purpose="fine-tune")
    assert len(list((server.home.path / "files").iterdir())) == 1
    server.client().files.create(file=("b.jsonl", b"x" * 60), purpose="fine-tune")


def test_the_quota_of_files_and_waiting_uploads(server: Server) -> None:
    few = server.client(server.add_key(owner="few", files=2))
    few.files.create(file=("a.jsonl", LINE), purpose="fine-tune")
    upload = few.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    for call in (
        lambda: few.files.create(file=("b.jsonl", LINE), purpose="fine-tune"),
        lambda: few.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune"),
    ):
        with pytest.raises(openai.RateLimitError, match="files"):
            call()
    few.uploads.cancel(upload.id)
    few.files.create(file=("b.jsonl", LINE), purpose="fine-tune")


def test_files_lie_where_only_this_user_reads(server: Server, client: openai.OpenAI) -> None:
    file = client.files.create(file=("../../../etc/x.jsonl", LINE), purpose="fine-tune")
    path = server.home.file(file.id)
    assert path.parent == server.home.path / "files" and path.stat().st_mode & 0o777 == 0o600
    assert server.home.path.stat().st_mode & 0o777 == 0o700
    path.unlink()
    path.symlink_to(Path("/etc/passwd"))
    answer = server.http.get(f"/v1/files/{file.id}/content")
    assert answer.status_code == 404


def test_postgresql_serves_alike(tmp_path: Path) -> None:
    """A short walk on a real PostgreSQL, in every run of the suite; TUNEWRIGHT_TEST_DATABASE=postgresql brings all these tests there."""
    with serving(tmp_path / "home", database=new_database()) as server:
        assert server.store.url.get_backend_name() == "postgresql"
        client = server.client()
        made = [client.files.create(file=(f"{n}.jsonl", LINE), purpose="fine-tune").id for n in range(3)]
        assert [file.id for file in client.files.list(limit=1)] == made[::-1]
        upload = client.uploads.upload_file_chunked(file=LINE, filename="c.jsonl", bytes=len(LINE), mime_type="text/jsonl", purpose="fine-tune")
        assert upload.file and client.files.content(upload.file.id).read() == LINE
        job = client.fine_tuning.jobs.create(model="nano", training_file=made[0], metadata={"k": "v"})
        assert [one.id for one in client.fine_tuning.jobs.list(metadata={"k": "v"})] == [job.id]
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert client.files.delete(made[0]).deleted and server.http.get("/metrics").status_code == 200
