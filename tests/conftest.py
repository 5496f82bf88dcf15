"""What every test stands on: one thread, no network, and the real data where it is at hand."""

import os
import sys
from collections.abc import Callable

# Before torch is imported, and handed down to the programs that tests start. One thread: tests run beside each other, on small models.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets beside the checkout, in ../shared/data. They are not part of the project; a test that needs them is skipped without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not here")
    return folder


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `tunewright WORDS` in this process and in the test's own folder: the code it leaves with, and all that it says."""
    from tunewright.cli import main

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tunewright", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of twelve chats."""
    import tiny

    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(lines[:12]))
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model of Llama's shape."""
    import tiny

    return tiny.save(tmp_path_factory.mktemp("llama"), tiny.llama())
