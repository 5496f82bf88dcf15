"""A file's report over the API: what `check` says of it, for its owner alone, whatever the file holds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from serving import Server, server, serving
from tunewright.data.check import check
from tunewright.models.reader import reader
from tunewright.serve.sweep import clear_left_overs

__all__ = ["server"]


def row(question: str, answer: str = "Yes, that is so.") -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}).encode() + b"\n"


ROWS = [row(f"Is {n} a number?") for n in range(12)]
ROWS[2] = b'{"messages": \n'
ROWS[6] = b'{"messages": [{"role": "user", "content": "Who answers?"}]}\n'
ROWS[9] = ROWS[8]


def send(server: Server, data: bytes) -> str:
    return server.client().files.create(file=("a.jsonl", data), purpose="fine-tune").id


def test_the_owner_sees_each_fault_by_code_and_line_and_nobody_else_does(server: Server, tmp_path: Path) -> None:
    id = send(server, b"".join(ROWS))
    answer = server.http.get(f"/v1/files/{id}/report")
    found = answer.json()
    assert answer.status_code == 200 and (found["object"], found["file_id"], found["ok"]) == ("file.report", id, False)
    assert [(fault["line"], fault["code"]) for fault in found["faults"]] == [(3, "not_json"), (7, "no_assistant_turn"), (10, "duplicate_row")]
    assert found["ledger"] == {"trained": 10, "not_json": 1, "no_assistant_turn": 1} and found["tokens"] is None
    same = tmp_path / "a.jsonl"
    same.write_bytes(b"".join(ROWS))
    expected = json.loads(json.dumps(check(same).to_dict()))
    assert {name: value for name, value in found.items() if name not in ("object", "file_id")} == {
        name: value for name, value in expected.items() if name not in ("path", "validation")
    }
    assert str(server.home.path) not in answer.text

    other = {"Authorization": f"Bearer {server.add_key(owner='other')}"}
    assert server.http.get(f"/v1/files/{id}/report", headers=other).status_code == 404
    reader = {"Authorization": f"Bearer {server.add_key(scope='read')}"}
    assert server.http.get(f"/v1/files/{id}/report", headers=reader).json() == found

    kept = server.home.report(id)
    made = kept.stat().st_mtime_ns
    clear_left_overs(server.store, server.home)  # as at a start
    assert server.http.get(f"/v1/files/{id}/report").json() == found and kept.stat().st_mtime_ns == made
    kept.write_bytes(b'0.0.0 an older version\n{"ok": true}')
    assert server.http.get(f"/v1/files/{id}/report").json() == found
    server.client().files.delete(id)
    assert server.http.get(f"/v1/files/{id}/report").status_code == 404 and not kept.exists()


def test_with_a_model_it_counts_tokens_as_training_with_it_would(server: Server, tmp_path: Path) -> None:
    long = [row("Is it? " * 3000), *ROWS[7:9], *(row(f"Is {n} one too?") for n in range(9))]
    id = send(server, b"".join(long))
    found, plain = (server.http.get(f"/v1/files/{id}/report", params=params).json() for params in ({"model": "nano"}, {}))
    (tmp_path / "a.jsonl").write_bytes(b"".join(long))
    expected = check(tmp_path / "a.jsonl", reader=reader("nano", strict=True)).to_dict()
    assert found["tokens"] == json.loads(json.dumps(expected["tokens"])) and found["ledger"]["nothing_to_learn_after_cut"] == 1 and not found["ok"]
    assert plain["tokens"] is None and plain["ok"]
    for name in server.config.aliases:
        assert server.http.get(f"/v1/files/{id}/report", params={"model": name}).json() == found
    for name in ("nosuch", "../nano", "/etc", "ft:nano"):
        refused = server.http.get(f"/v1/files/{id}/report", params={"model": name})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_available")


BROKEN = [b"\xff\xfe\x00" * 99, b"\x1f\x8b\x08\x00" + b"damaged" * 9, b"[" * 99_999, b"\n\n\n", b"PAR1" + b"\0" * 99]


def test_a_broken_file_has_a_report(server: Server) -> None:
    for data in BROKEN:
        answer = server.http.get(f"/v1/files/{send(server, data)}/report")
        assert answer.status_code == 200 and not answer.json()["ok"] and answer.json()["groups"], (data[:9], answer.text)
    other = server.client().files.create(file=("a.png", b"PNG"), purpose="vision").id
    assert server.http.get(f"/v1/files/{other}/report").json()["error"]["code"] == "invalid_purpose"


def test_the_server_answers_others_while_it_checks_and_ends_what_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_OF_THE_SERVER", "secret")
    with serving(tmp_path / "home", limits={"report_seconds": 2.0}) as server:
        id = send(server, b"".join(ROWS))
        answers: list[Any] = []
        thread = Thread(target=lambda: answers.append(server.http.get(f"/v1/files/{id}/report")))
        thread.start()
        with held_up() as checking:  # so that it never ends by itself
            assert "secret" not in checking.environ().values()
            assert server.http.get(f"/v1/files/{id}").status_code == 200 and thread.is_alive()
            thread.join(20)
            assert not checking.is_running()
        assert answers[0].status_code == 400 and answers[0].json()["error"]["code"] == "report_takes_too_long"
        assert not list((server.home.path / "tmp").iterdir()) and not server.home.report(id).exists()


def the_check() -> psutil.Process:
    """The process that checks a file for this server, as soon as it is there."""
    for _ in range(2000):
        for child in psutil.Process().children():
            if "tunewright.serve.report" in child.cmdline():
                return child
        time.sleep(0.001)
    raise AssertionError("no check began")


@contextmanager
def held_up() -> Iterator[psutil.Process]:
    """The process that checks, stopped."""
    checking = the_check()
    checking.suspend()
    try:
        yield checking
    finally:
        with suppress(psutil.NoSuchProcess):
            checking.resume()


def test_a_file_that_is_deleted_while_it_is_checked_leaves_nothing(server: Server) -> None:
    id = send(server, b"".join(ROWS))
    answers: list[Any] = []
    thread = Thread(target=lambda: answers.append(server.http.get(f"/v1/files/{id}/report")))
    thread.start()
    with held_up():
        server.client().files.delete(id)
    thread.join(20)
    # The rows are gone from under the check, which may have read them before.
    assert answers[0].status_code in (404, 500) and not server.home.report(id).exists()


def test_a_check_that_breaks_off_is_our_fault_and_keeps_nothing(server: Server) -> None:
    id, answers = send(server, b"".join(ROWS)), list[Any]()
    thread = Thread(target=lambda: answers.append(server.http.get(f"/v1/files/{id}/report")))
    thread.start()
    the_check().kill()
    thread.join(20)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (500, "internal_error") and not server.home.report(id).exists()


def test_the_check_has_a_limit_on_memory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(ROWS))
    for megabytes, fails in ((100, True), (4096, False)):
        program = f"import tunewright.serve.report as r; r._MEMORY = {megabytes} << 20; r._main('a.jsonl', 'out-{megabytes}', 'file-x', '', '30')"
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
        assert bool(done.returncode) is fails is not (tmp_path / f"out-{megabytes}").exists()


@pytest.mark.parametrize("id", ["file-nosuch", "..%2f..%2fetc", "file-x.report"])
def test_no_such_file(server: Server, id: str) -> None:
    assert server.http.get(f"/v1/files/{id}/report").status_code == 404
