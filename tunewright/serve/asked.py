"""The bodies of requests for answers: what may be asked, and within which bounds. Unknown keys are ignored, nulls stand for nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_TEXT = 8_000_000

Name = Annotated[str, Field(min_length=1, max_length=512)]
Text = Annotated[str, Field(max_length=_TEXT)]
TokenId = Annotated[int, Field(ge=0, le=10_000_000)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Object = Annotated[dict[str, Any], Field(max_length=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Part(_Body):
    """A part of a message's content; only text is read."""

    type: Annotated[str, Field(max_length=100)]
    text: Text | None = None
    refusal: Text | None = None


class Function(_Body):
    """The function of a tool call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text = ""


class ToolCall(_Body):
    """What the assistant called in an earlier turn."""

    id: Annotated[str, Field(max_length=256)] = ""
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(_Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=4096)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None


class FunctionTool(_Body):
    """A function that the model may call. `parameters`: a JSON schema."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=20_000)] | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionTool


class JsonSchema(_Body):
    """The schema that an answer must follow."""

    name: Annotated[str, Field(max_length=64)]
    description: Annotated[str, Field(max_length=20_000)] | None = None
    schema_: Annotated[Object | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(_Body):
    """`text`, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


class StreamOptions(_Body):
    """What a stream says beside the text."""

    include_usage: bool | None = None


class _Sampling(_Body):
    """What both kinds of request have."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,8}$")], Bias], Field(max_length=1024)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _brings_no_template(cls, body: Any) -> Any:
        """A template comes with the model; one that a request brings, or what would steer it, is refused rather than ignored."""
        for key in ("chat_template", "chat_template_kwargs", "documents"):
            if isinstance(body, dict) and body.get(key):
                raise ValueError(f"{key} is not supported: the model's own chat template renders")
        return body

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(_Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Annotated[str, Field(max_length=20)] | Object | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class CompletionRequest(_Sampling):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]], Field(min_length=1, max_length=256)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    suffix: Text | None = None
