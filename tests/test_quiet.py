"""What other libraries say that is no business of the user's is not shown, and nothing else is kept back."""

import logging
import subprocess
import sys
from pathlib import Path

import tunewright.models  # noqa: F401

TRAIN = """
import sys
from tunewright import TrainConfig, load, train
config = {"data": sys.argv[1], "model": "nano", "out": sys.argv[2], "threads": 1, "precision": "fp32"}
said = [event.message for event in train(TrainConfig.parse(config, ["hyperparameters.n_epochs=1", "hyperparameters.batch_size=12"]))]
load(sys.argv[2])
print(len(said))
"""


def test_training_and_loading_an_adapter_leave_nothing_on_standard_error(data: Path, tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", TRAIN, str(data), str(tmp_path / "run")], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and int(said.stdout) > 2, said.stderr
    assert not said.stderr, said.stderr


def test_one_message_is_kept_back_and_not_its_neighbours(caplog) -> None:
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with caplog.at_level("INFO", log.name):
        log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "why")
        log.warning("Failed to load something else")
    assert [record.message for record in caplog.records] == ["Failed to load something else"]
