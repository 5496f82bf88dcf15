"""Docstrings of installed, permissively licensed packages: real technical prose that needs no download."""

import ast
import importlib.metadata
import random
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "click",
    "peft",
    "accelerate",
    "huggingface_hub",
    "networkx",
    "sympy",
    "jinja2",
    "safetensors",
    "tokenizers",
    "packaging",
    "filelock",
    "httpx2",
    "anyio",
)


def licences() -> list[tuple[str, str, str]]:
    """(package, version, licence) of every package that is installed here and read."""
    found = []
    for package in PACKAGES:
        try:
            data = importlib.metadata.metadata(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        classifiers = [line.rsplit(":: ", 1)[1] for line in data.get_all("Classifier") or () if line.startswith("License ::")]
        licence = data.get("License-Expression") or ", ".join(classifiers) or (data.get("License") or "see package")
        found.append((package, data["Version"], licence.splitlines()[0][:80]))
    return found


def _sources(package: str) -> Iterator[Path]:
    for file in importlib.metadata.files(package) or ():
        path = Path(str(file))
        if path.suffix == ".py" and not any(part.startswith("test") for part in path.parts):
            yield Path(str(file.locate()))


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and 80 <= len(text) <= 3000 and "<|" not in text and sum(c.isalpha() or c == " " for c in text) > 0.75 * len(text):
                yield text


def docstrings(most_per_package: int = 1200) -> list[str]:
    """Docstrings of 80 to 3000 characters, each once; those that show chat markers or are mostly tables are left out."""
    seen: dict[str, None] = {}
    for package, _, _ in licences():
        paths = sorted(_sources(package))
        random.Random(package).shuffle(paths)  # parsing all of torch and transformers takes minutes: a sample is enough
        kept: dict[str, None] = {}
        for path in paths:
            if len(kept) < most_per_package:
                kept |= dict.fromkeys(_docstrings_of(path))
        seen |= kept
    return list(seen)
