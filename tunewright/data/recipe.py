"""A cleaning recipe as data: `Recipe` holds steps in the order in which they run, each one frozen class with its settings.

Steps that edit come before steps that drop: a row is judged by what is left of it, whatever the order in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.config import read_yaml
from tunewright.errors import BadConfig

Names = Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=1000)]
PersonalKind = Literal["email", "phone", "card", "iban", "ip", "secret"]


class _Step(BaseModel):
    """Frozen, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Encoding(_Step):
    """Repair text that was read in a wrong encoding (ftfy), and read lines that are not UTF-8 as Windows-1252."""

    step: Literal["encoding"] = "encoding"


class Unicode(_Step):
    """Write each character in one way, and remove those that cannot be seen: control characters, zero-width space, soft hyphen."""

    step: Literal["unicode"] = "unicode"
    form: Literal["NFC", "NFKC"] = "NFC"
    """NFKC also makes ligatures, wide letters and superscripts plain, which changes what formulas say."""


class Html(_Step):
    """Remove HTML tags and comments, with what scripts and styles hold, and resolve entities. Brackets that are no HTML stay."""

    step: Literal["html"] = "html"


class Whitespace(_Step):
    """Line ends become line feeds, spaces at line ends go, blank lines stand alone, texts begin and end with a character."""

    step: Literal["whitespace"] = "whitespace"
    collapse: bool = True
    """Runs of spaces become one, except on lines that begin with white space, such as code."""


class Spelling(_Step):
    """Correct slips inside words of one language (pyspellchecker's lists). Capitalised words, code, addresses and the file's own words stay."""

    step: Literal["spelling"] = "spelling"
    language: Literal["en", "de", "es", "fr", "it", "nl", "pt"] = "en"
    """Whose words. Texts in which few words are of it stay."""
    at_least: int = Field(6, ge=3, le=100)
    """Shorter words stay, for they are often one letter away from some other."""
    protect: Names = ()
    """Words that stay."""


class Mask(_Step):
    """Put a placeholder such as [EMAIL_1] for personal data and keys; the same value has the same placeholder in the whole file."""

    step: Literal["mask"] = "mask"
    kinds: Annotated[tuple[PersonalKind, ...], Field(min_length=1)] = get_args(PersonalKind)
    """What is masked."""


class Fill(_Step):
    """Write a value where a key is absent, null, empty, or stands for nothing."""

    step: Literal["fill"] = "fill"
    values: dict[Annotated[str, Field(min_length=1, max_length=200)], Annotated[str, Field(min_length=1, max_length=10_000)]] = Field(
        min_length=1, max_length=100
    )
    """What to write, by key: {label: unknown}."""
    as_missing: Names = ("nan", "n/a", "#n/a", "null")
    """Values that stand for nothing, in lower case."""


class Missing(_Step):
    """Drop rows of which a text, an answer or a label is absent, null, empty, or stands for nothing."""

    step: Literal["missing"] = "missing"
    as_missing: Names = ("nan", "n/a", "#n/a", "null")
    """Values that stand for nothing, in lower case."""


class Errors(_Step):
    """Drop rows that `check` refuses, each by the code of its first error."""

    step: Literal["errors"] = "errors"


class Length(_Step):
    """Drop rows by the characters of their text, system prompts aside."""

    step: Literal["length"] = "length"
    at_least: int = Field(1, ge=0, le=10_000_000)
    """Shorter rows go."""
    at_most: int = Field(10_000_000, ge=1, le=10_000_000)
    """Longer rows go."""


class Language(_Step):
    """Drop rows in another language, as py3langid tells them apart."""

    step: Literal["language"] = "language"
    keep: Annotated[tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...], Field(min_length=1, max_length=100)]
    """Codes of ISO 639: [en, de]."""
    confidence: float = Field(0.9, ge=0, le=1)
    """A row goes only where its language is surer than this."""
    at_least: int = Field(40, ge=0, le=100_000)
    """Texts of fewer characters stay, for they are often taken for the wrong language."""


class Conflicts(_Step):
    """Drop rows with the same input and different answers."""

    step: Literal["conflicts"] = "conflicts"
    keep: Literal["none", "first", "most"] = "none"
    """Which of them stay: none, those with the first answer, or with the answer that most of them have (none where two have as many)."""


class Duplicates(_Step):
    """Drop rows whose input and answer an earlier row has."""

    step: Literal["duplicates"] = "duplicates"


class NearDuplicates(_Step):
    """Drop rows that share 80 % of their word triples with an earlier row of the same label. Several questions on one passage are none."""

    step: Literal["near_duplicates"] = "near_duplicates"


class Outliers(_Step):
    """Drop rows whose length is far from the others': by the logarithm of their characters, in robust standard deviations (1.4826 x MAD)."""

    step: Literal["outliers"] = "outliers"
    deviations: float = Field(6.0, ge=2, le=100)
    """How far."""


Edit = Encoding | Unicode | Html | Whitespace | Spelling | Mask | Fill
Drop = Missing | Errors | Length | Language | Conflicts | Duplicates | NearDuplicates | Outliers
Step = Annotated[Edit | Drop, Field(discriminator="step")]

_ORDER: tuple[type[_Step], ...] = (*get_args(Edit), *get_args(Drop))
STEPS: dict[str, str] = {kind.model_fields["step"].default: str(kind.__doc__) for kind in _ORDER}
"""Every step's name and what it does, in the order in which they run."""


class Recipe(_Step):
    """The steps of a cleaning, each kind once."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=len(STEPS))]

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Recipe:
        """A recipe from a mapping; a step may be its name alone. Raises BadConfig with all that is wrong."""
        given = record.get("steps")
        if isinstance(given, list):
            record = {**record, "steps": [{"step": one} if isinstance(one, str) else one for one in given]}
        try:
            recipe = cls.model_validate(record)
        except ValidationError as error:
            raise BadConfig(f"The recipe: {explained(error, STEPS)}", code="invalid_recipe", param="--recipe") from None
        names = [one.step for one in recipe.steps]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise BadConfig(f"The recipe: {twice[0]} stands there twice; keep one", code="invalid_recipe", param="--recipe")
        return cls(steps=tuple(sorted(recipe.steps, key=lambda one: _ORDER.index(type(one)))))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """A recipe from a YAML file with a list under `steps`. Raises BadConfig."""
        return cls.parse(read_yaml(path))

    @classmethod
    def named(cls, steps: Sequence[str]) -> Recipe:
        """A recipe from names, each with settings after a colon where wanted: `length:at_least=20`. Raises BadConfig."""
        return cls.parse({"steps": named(steps, "step", "length:at_least=20,at_most=4000")})

    def to_yaml(self) -> str:
        """The recipe with every setting, to be read again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def named(given: Sequence[str], key: str, example: str) -> list[dict[str, Any]]:
    """Records from `name` or `name:setting=value,…`, the name under `key`. Raises BadConfig."""
    parsed = []
    for one in given:
        name, _, settings = one.partition(":")
        try:
            more = yaml.safe_load("{" + settings.replace("=", ": ") + "}")
        except yaml.YAMLError:
            raise BadConfig(f"--{key} {one!r}: write it as {example}", code=f"invalid_{key}", param=f"--{key}") from None
        parsed.append({key: name, **more})
    return parsed


def explained(error: ValidationError, kinds: Iterable[str]) -> str:
    """All that is wrong in one sentence each; `kinds` are the names to choose among."""
    # One that is wrong is left out of the list, which may leave none; that says nothing more.
    errors = [item for item in error.errors() if item["type"] != "too_short"] or error.errors()
    return "; ".join(dict.fromkeys(_said(item["loc"], item["msg"], item["type"], list(kinds)) for item in errors))


def _said(where: tuple[int | str, ...], message: str, kind: str, kinds: list[str]) -> str:
    place = ".".join(str(part) for part in where if part not in kinds)
    if kind == "union_tag_invalid":
        return f"{place}: there is no such name; choose among {', '.join(kinds)}"
    if kind == "missing":
        return f"{place}: is needed"
    return f"{place}: there is no such setting" if kind == "extra_forbidden" else f"{place}: {message}"
