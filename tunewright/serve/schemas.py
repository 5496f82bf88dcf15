"""What a client sends to make a job, and a job, event, checkpoint or permission as a client sees it. Bounds are OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tunewright.config import TrainConfig
from tunewright.jobs.store import Checkpoint, Job, JobEvent, Permission
from tunewright.serve.config import ServeConfig

Auto = Literal["auto"]


class _Asked(BaseModel):
    """Keys that we do not know are left alone, as the hosted service leaves them; null is as good as nothing."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class Hyperparameters(_Asked):
    """OpenAI's own."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100, strict=False)] | None = None
    beta: Auto | Annotated[float, Field(gt=0, le=2, strict=False)] | None = None

    @field_validator("learning_rate_multiplier", "beta", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value != "auto"):
            raise ValueError('should be a number or "auto"')
        return value


class MethodPart(_Asked):
    """What stands under the method's name."""

    hyperparameters: Hyperparameters | None = None


class Method(_Asked):
    """Only the part that `type` names is read: clients send the others filled in as well."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Any = None
    dpo: Any = None


Id = Annotated[str, Field(min_length=1, max_length=64)]
Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class JobAsked(_Asked):
    """The body of POST /fine_tuning/jobs."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    training_file: Id
    validation_file: Id | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=5)] | None = None
    tunewright: Annotated[dict[Annotated[str, Field(max_length=64)], Any], Field(max_length=32)] | None = None
    """Tunewright's own settings: those of a training config, without what the fields above say. An unknown one is refused."""

    @field_validator("suffix")
    @classmethod
    def _is_a_name(cls, suffix: str | None) -> str | None:
        if suffix and not all(letter.isalnum() or letter in "-_. " for letter in suffix):
            raise ValueError("should hold letters, digits, spaces and - _ . alone")
        return suffix


class PermissionAsked(_Asked):
    """The body of POST .../permissions."""

    project_ids: Annotated[list[Id], Field(min_length=1, max_length=100)]


# What a job may set of a training config: all but where things lie, and what the API has fields of its own for.
SETTINGS = frozenset(TrainConfig.model_fields) - {"data", "validation", "model", "out", "hyperparameters", "seed"}


def job(row: Job, config: ServeConfig) -> dict[str, Any]:
    """A fine_tuning.job object."""
    method = row.request["method"]
    shown = {name: value for name, value in row.hyperparameters.items() if name != "beta"}
    asked = {**row.hyperparameters} if method == "dpo" else shown
    body = {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": int(row.created_at),
        "finished_at": _time(row.finished_at),
        "estimated_finish": _time(row.estimated_finish),
        "model": row.model,
        "fine_tuned_model": row.fine_tuned_model,
        "organization_id": config.organization,
        "status": row.status,
        "hyperparameters": shown,
        "method": {"type": method, method: {"hyperparameters": asked}},
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "result_files": list(row.result_files),
        "trained_tokens": row.trained_tokens,
        "error": row.error,
        "seed": row.seed,
        "metadata": row.labels,
        "integrations": None,
        "user_provided_suffix": row.suffix,
        "tunewright": {**row.request["tunewright"], **_cost(row, config)},
    }
    return body


def _cost(row: Job, config: ServeConfig) -> dict[str, Any]:
    """What the training tokens cost by the price table: as counted, or as expected from the rows and epochs."""
    base = row.model.split(":")[1] if row.model.startswith("ft:") else row.model
    price, epochs = config.prices.get(base), row.hyperparameters.get("n_epochs")
    expected = row.tokens * epochs if row.tokens is not None and isinstance(epochs, int) else None
    tokens = row.trained_tokens if row.trained_tokens is not None else expected
    return {"cost_estimate": price.training * tokens / 1e6} if price and tokens is not None else {}


def event(row: JobEvent) -> dict[str, Any]:
    """A fine_tuning.job.event object."""
    return {
        "object": "fine_tuning.job.event",
        "id": row.id,
        "created_at": int(row.created_at),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.data,
    }


def checkpoint(row: Checkpoint) -> dict[str, Any]:
    """A fine_tuning.job.checkpoint object."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": row.id,
        "created_at": int(row.created_at),
        "fine_tuned_model_checkpoint": row.model,
        "fine_tuning_job_id": row.job_id,
        "step_number": row.step,
        "metrics": row.metrics,
    }


def permission(row: Permission) -> dict[str, Any]:
    """A checkpoint.permission object."""
    return {"object": "checkpoint.permission", "id": row.id, "created_at": int(row.created_at), "project_id": row.project_id}


def _time(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
