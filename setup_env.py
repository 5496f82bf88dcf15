"""Set up `.venv`: a virtual environment with everything that Tunewright needs, at the versions in requirements.lock.

`make` runs this before every target. When nothing has changed since the last time it returns at once; pip and the network are not touched.
It needs Python 3.11 or later and its standard library alone.

torch stands apart from the lock, because the plain wheel for Linux brings gigabytes of CUDA packages that a machine without an NVIDIA GPU
has no use for. Where pip's own configuration offers a CPU build, such a machine gets that one. Everything else is fetched by uv, with hashes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "tunewright-setup.txt"
LOCK = ROOT / "requirements.lock"

TORCH = "2.13.0"
UV = "uv==0.13.8"
PIP = "pip==26.3"

# Imported once at the end: it shows that the installed files work, and it leaves their bytecode behind, so that first use is not slow.
WARM_UP = "import torch, transformers, peft, torch.utils.tensorboard, typer; from transformers import AutoTokenizer, LlamaForCausalLM"

NO_PIP = f"""{sys.executable} cannot make an environment with pip in it: neither the module ensurepip nor any pip is here.
Install one of them and run make again; on Debian and Ubuntu that is  apt-get install python3-venv
Or name another Python, 3.11 or later:  make PYTHON=/path/to/python3 setup"""


class SetupError(Exception):
    """A set-up step that did not work; the message says which and what to do."""


def run(*command: str | Path, show: bool = False) -> str:
    """Run a command and return what it said; with `show`, its standard output goes to the terminal instead. SetupError if it fails."""
    # Bytecode is wanted here whatever the caller's environment says: without it every later import of torch compiles it anew.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    out = None if show else subprocess.PIPE
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    said = (done.stdout or "") + done.stderr
    if done.returncode != 0:
        raise SetupError(f"{' '.join(str(c) for c in command)}\nfailed:\n{said[-4000:].strip()}")
    return said


def works(*command: str | Path) -> bool:
    try:
        run(*command)
    except (SetupError, OSError):
        return False
    return True


def wanted() -> str:
    """What the stamp of a finished, up-to-date environment says. Its folder comes first: an environment that was copied or moved is of no use,
    since its scripts hold their absolute path."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = repr((settings["build-system"], settings["project"], settings["tool"]["hatch"])).encode()
    return f"{ROOT}\n{hashlib.sha256(installed + LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest()}\n"


def is_current() -> bool:
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted()


def make_venv() -> None:
    """An environment with pip in it, from ensurepip or, where that is lacking (Debian without python3-venv), by a pip or uv from outside."""
    ours = STAMP.exists() and STAMP.read_text().startswith(f"{ROOT}\n")
    if not (ours and works(PYTHON, "-m", "pip", "--version")):
        shutil.rmtree(VENV, ignore_errors=True)
        if not (works(sys.executable, "-c", "import ensurepip") and works(sys.executable, "-m", "venv", VENV)):
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
            put_pip()
    STAMP.write_text(f"{ROOT}\nunfinished\n")


def put_pip() -> None:
    for outside in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if works(*outside, "--python", PYTHON, "install", "--quiet", PIP):
            return
    if not works("uv", "pip", "install", "--quiet", "--python", PYTHON, PIP):
        raise SetupError(NO_PIP)


def pip(*arguments: str | Path, show: bool = False) -> str:
    return run(PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, show=show)


def uv(*arguments: str | Path) -> str:
    command, rest = arguments[0], arguments[1:]
    return run(VENV / "bin" / "uv", "--quiet", "pip", command, "--python", PYTHON, *rest)


def install_lock() -> None:
    pip("install", "--quiet", UV)
    arguments = ("--no-deps", "--require-hashes", "--requirement", LOCK)
    try:
        uv("install", *arguments)
    except SetupError:
        # uv does not read pip's configuration. Behind a mirror that only pip knows, pip does the same, in two minutes instead of ten seconds.
        say("uv could not fetch them; trying pip, which is slower")
        pip("install", "--quiet", *arguments)


def has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or works("nvidia-smi", "--list-gpus")


def install_cpu_torch() -> bool:
    """Fetched by pip, which knows where from; unpacked by uv, which is faster. False if pip finds no such build."""
    with tempfile.TemporaryDirectory(dir=VENV) as wheels:
        try:
            pip("download", "--quiet", "--no-deps", "--dest", wheels, f"torch=={TORCH}+cpu")
        except SetupError as error:
            if "No matching distribution found" in str(error):
                return False
            raise
        uv("install", "--no-deps", "--no-index", "--find-links", wheels, f"torch=={TORCH}+cpu")
    return True


def install_torch() -> None:
    """The CPU build where there is no NVIDIA GPU and pip finds one; otherwise the plain wheel, and its size said before it is fetched."""
    if works(PYTHON, "-c", f"from importlib.metadata import version as v; assert v('torch').split('+')[0] == '{TORCH}'"):
        return
    gpu = has_nvidia_gpu()
    if not gpu and install_cpu_torch():
        return
    if sys.platform == "linux":
        reason = "an NVIDIA GPU is here" if gpu else "pip's configuration offers no CPU build"
        say(f"{reason}: fetching the plain torch {TORCH}, with its CUDA packages about 2.7 GB and 5 GB unpacked")
    else:
        say(f"fetching torch {TORCH}, about 0.1 GB")
    pip("install", f"torch=={TORCH}", show=True)


def install_project() -> None:
    uv("install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    uv("check")


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def main() -> None:
    fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)  # until this program ends: a second one waits, and finds the work done
    if is_current():
        return
    version = ".".join(str(n) for n in sys.version_info[:3])
    print(f"Setting up .venv with Python {version}: once, about 2 GB on disk.", flush=True)
    begin = time.monotonic()
    locked = sum(line[0].isalpha() for line in LOCK.read_text().splitlines() if line)
    steps = (
        ("a virtual environment", make_venv),
        (f"the {locked} packages of requirements.lock", install_lock),
        (f"torch {TORCH}", install_torch),
        ("tunewright itself, and a check that all fits", install_project),
        ("a first import", lambda: run(PYTHON, "-c", WARM_UP)),
    )
    for what, step in steps:
        start = time.monotonic()
        step()
        say(f"{time.monotonic() - start:4.0f} s  {what}")
    STAMP.write_text(wanted())
    print(f"Ready in {time.monotonic() - begin:.0f} s.", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(not is_current())
    try:
        main()
    except SetupError as error:
        sys.exit(f"Set-up stopped. {error}")
