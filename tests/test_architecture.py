"""The shape of the code: imports point down only, and what must start fast does not import torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TORCH_FREE = [
    "tunewright",
    "tunewright.cli",
    "tunewright.config",
    "tunewright.errors",
    "tunewright.event",
    "tunewright.data.check",
    "tunewright.data.clean",
    "tunewright.data.clean_folder",
    "tunewright.data.split",
    "tunewright.data.labels",
    "tunewright.data.augment",
    "tunewright.data.formats",
    "tunewright.data.sampler",
    "tunewright.serve.chat",
    "tunewright.serve.completions",
    "tunewright.serve.engine",
    "tunewright.jobs.launch",
    "tunewright.jobs.store",
    "tunewright.cli.serve",
    "tunewright.serve.app",
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", program, "--no-logo", "--no-cache", "--config", str(folder / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_imports_point_down_only() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("config.py", "import tunewright.data.formats"),
        ("data/sampler.py", "def late():\n    import tunewright.models.load"),
        ("models/load.py", "from tunewright import cli"),
        ("newcomer.py", ""),  # a module that belongs to no layer
    ],
)
def test_the_contract_sees_an_import_that_points_up(tmp_path: Path, module: str, line: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tunewright", tmp_path / "tunewright", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    with (tmp_path / "tunewright" / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Broken contracts" in result.stdout
    assert f"tunewright.{module.removesuffix('.py').replace('/', '.')}" in result.stdout


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_torch_line(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'peft', 'accelerate'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], f"importing {module} imports {result.stdout.strip()}"
