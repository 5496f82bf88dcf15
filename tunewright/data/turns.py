"""Chat -> Rendering: a chat as the model's template writes it, and where in it stands what was said, called and is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from tunewright.data import calls
from tunewright.data.example import Chat, Message
from tunewright.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewright.data.rendering import Renderer


TURN = Lock()
"""Whether special tokens are read as such is a switch on the tokenizer itself, so threads that ask it take turns."""


class NotRenderable(Problem):
    """A chat template cannot say this example without changing or losing part of it."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a rendered chat are a user's text, in which nothing is a control token.

    `trained`: an answer, to be learnt with the end of its turn. `whole`: no token may lie across its start.
    """

    start: int
    end: int
    trained: bool
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered chat. `spans`: in order. `turns`: start and end of the turns with calls that are learnt, all that the template writes for them."""

    text: str
    spans: list[Span]
    turns: tuple[tuple[int, int], ...] = ()


def apply_template(chat: Chat, tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None = None) -> Rendering:
    """Render a chat and say where each message's content stands.

    The template runs twice: over the messages as they are, and with each content replaced by a mark of
    private-use characters that no text holds. Putting the contents back must give the first rendering;
    where a template trims its contents the trimmed ones are tried. Otherwise the template rewrites what
    the messages say, no one knows which of its tokens are the answer, and the row is refused by name.
    """
    if chat.tools or any(message.extra for message in chat.messages):
        return _with_extras(chat, tokenizer, generation, renderer)
    marks = [f"\ue000{i}\ue001" for i in range(len(chat.messages))]
    contents = [message.content for message in chat.messages]
    plain = run_template(chat, contents, tokenizer, generation, renderer)
    # An empty content is marked too, unless the template treats "nothing said" as something else (a tool call, say).
    for shown in (marks, [mark if content else "" for mark, content in zip(marks, contents, strict=True)]):
        marked = _run_marked(chat, shown, tokenizer, generation, renderer)
        for candidate in (contents, [content.strip() for content in contents]):
            text, spans = _put_back(marked, marks, candidate, chat.messages)
            if text == plain:
                return Rendering(text, spans)
    raise _rewritten(chat)


def _rewritten(chat: Chat) -> NotRenderable:
    return NotRenderable(
        f"line {chat.line}: the chat template changes what the messages say, so what is learnt cannot be marked. "
        "Choose a model whose template keeps contents as they are",
        code="template_rewrites_content",
    )


def _with_extras(chat: Chat, tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None) -> Rendering:
    """As `apply_template`, for chats with tools, calls, names and ids: these are marked too, and the turns whose calls are learnt are found.

    Templates get the arguments of calls as objects, or, where they refuse these or print them as Python does (which hides the marks), as texts.
    A template may write the tools' definitions in other words than theirs; then they must show to be harmless.
    """
    refused: NotRenderable | None = None
    for tools in (True, False) if chat.tools else (False,):
        if chat.tools and not tools:
            _check_tools(chat, tokenizer, generation, renderer)
        for form in (calls.as_objects, calls.as_texts):
            given = replace(chat, messages=tuple(replace(message, extra=form(message.extra)) for message in chat.messages))
            try:
                found = _placed(given, tools, tokenizer, generation, renderer)
            except NotRenderable as problem:
                refused = refused or problem
                continue
            if found is not None:
                return _learnt(given, *found, tokenizer, renderer)
            refused = refused or _rewritten(chat)
    assert refused is not None
    raise refused


def _check_tools(chat: Chat, tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None) -> None:
    """Raise NotRenderable where the tools' definitions give the rendering other control tokens than marks in their place do."""
    marked = calls.marked_tools(chat.tools, calls.numbered_tools(chat.tools, 0))
    for form in (calls.as_objects, calls.as_texts):
        given = replace(chat, messages=tuple(replace(message, extra=form(message.extra)) for message in chat.messages))
        try:
            found = _controls(given, tokenizer, generation, renderer)
        except NotRenderable:
            continue  # for another reason, and whoever renders will tell
        try:
            harmless = found == _controls(replace(given, tools=marked), tokenizer, generation, renderer)
        except NotRenderable:
            harmless = False
        if not harmless:
            what = f"line {chat.line}: the chat template changes the tools' definitions, and writes other control tokens with them than without"
            raise NotRenderable(f"{what}. Remove what looks like a control token from the tools", code="control_token_in_tools")


def _controls(chat: Chat, tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None) -> list[int]:
    """The control tokens of a chat's rendering, as it reads. Raises NotRenderable."""
    text = run_template(chat, [message.content for message in chat.messages], tokenizer, generation, renderer)
    with TURN:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token for token in ids if token in special_ids(tokenizer)]


@lru_cache(maxsize=16)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of the tokenizer's control tokens."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


_Places = list[tuple[int, int, int]]


def _placed(
    chat: Chat, tools: bool, tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None
) -> tuple[str, _Places, dict[str, int]] | None:
    """The rendering, where its marked texts stand, and the numbers of those that messages hold and are not contents: contents have their message's place.

    `tools`: whether the tools' definitions are marked as well.
    """
    contents = [message.content for message in chat.messages]
    numbers = calls.numbered([message.extra for message in chat.messages], len(contents))
    defined = calls.numbered_tools(chat.tools, len(contents) + len(numbers)) if tools else {}
    marked = replace(
        chat,
        messages=tuple(replace(message, extra=calls.marked(message.extra, numbers)) for message in chat.messages),
        tools=calls.marked_tools(chat.tools, defined),
    )
    spelt: dict[int, Sequence[str]] = {i: (content, content.strip()) for i, content in enumerate(contents)}
    spelt |= {number: calls.spellings(text) for known in (numbers, defined) for text, number in known.items()}
    plain = run_template(chat, contents, tokenizer, generation, renderer)
    for kept in (True, False):  # an empty content is marked too, unless the template treats it as something else
        shown = [calls.mark(i) if content or kept else "" for i, content in enumerate(contents)]
        with_marks = run_template(marked, shown, tokenizer, generation, renderer)
        if (places := calls.place(plain, with_marks, spelt)) is not None:
            return plain, places, numbers
    return None


def _learnt(
    chat: Chat, text: str, places: _Places, numbers: dict[str, int], tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Rendering:
    """The rendering of a chat with calls, each of which must show in it. Raises NotRenderable."""
    messages, turns = chat.messages, []
    for i, message in enumerate(messages):
        learnt = message.trained and bool(message.extra.get("tool_calls"))
        start, end = _turn(chat, i, text, tokenizer, renderer) if learnt else (0, len(text))
        shows = {number for number, *place in places if start <= place[0] and place[1] <= end}
        for called in calls.called(message.extra) if learnt else [call["function"]["name"] for call in message.extra.get("tool_calls") or ()]:
            if numbers[called] not in shows:
                what = f"line {chat.line}: the model's chat template does not show {called[:100]!r} of a tool call"
                raise NotRenderable(f"{what}. Choose a model whose template knows calls, or delete the row", code="tool_call_not_rendered")
        turns += [(start, end)] if learnt else []
    spans = [Span(start, start, False) for start, _ in turns]
    for number, start, end in places:
        content = number < len(messages)
        alone = content and messages[number].trained and not messages[number].extra.get("tool_calls")
        spans.append(Span(start, end, alone, whole=content))
    return Rendering(text, sorted(spans, key=lambda span: (span.start, span.end)), tuple(turns))


def _turn(chat: Chat, i: int, text: str, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None) -> tuple[int, int]:
    """Start and end of what the template writes for a message after the generation prompt. Raises NotRenderable."""
    before = after = ""
    if i:  # templates need a message before they ask for an answer
        try:
            before, after = (
                run_template(replace(chat, messages=some), [message.content for message in some], tokenizer, generation, renderer)
                for some, generation in ((chat.messages[:i], True), (chat.messages[: i + 1], False))
            )
        except NotRenderable:
            before = after = ""
    if before and len(before) < len(after) and after.startswith(before) and text.startswith(after):
        return len(before), len(after)
    what = f"line {chat.line}: the chat template writes a turn with a tool call otherwise once more follows, so what is learnt cannot be marked"
    raise NotRenderable(f'{what}. End the row with that turn, or write "weight": 0 there', code="tool_call_not_located")


def _run_marked(chat: Chat, shown: list[str], tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None) -> str:
    """The rendering with marks, which chats of the same roles have in common."""
    if renderer:
        return run_template(chat, shown, tokenizer, generation, renderer)
    return _same_roles(tokenizer, str(tokenizer.chat_template), tuple(m.role for m in chat.messages), tuple(shown), generation)


@lru_cache(maxsize=512)
def _same_roles(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...], shown: tuple[str, ...], generation: bool) -> str:
    chat = Chat(tuple(Message(role, content) for role, content in zip(roles, shown, strict=True)))
    return run_template(chat, shown, tokenizer, generation, None)


def _put_back(text: str, marks: list[str], contents: list[str], messages: Sequence[Message]) -> tuple[str, list[Span]]:
    out, spans, done, length = [], [], 0, 0
    for mark, content, message in zip(marks, contents, messages, strict=True):
        if (at := text.find(mark, done)) < 0:
            continue  # empty, or not shown by the template: the comparison with the plain rendering decides
        out += [text[done:at], content]
        length += at - done
        spans.append(Span(length, length + len(content), message.trained))
        length += len(content)
        done = at + len(mark)
    return "".join([*out, text[done:]]), spans


def run_template(chat: Chat, contents: Sequence[str], tokenizer: PreTrainedTokenizerBase, generation: bool, renderer: Renderer | None) -> str:
    """The chat as the tokenizer's template renders it, with `contents` in the messages' place. Raises NotRenderable."""
    from jinja2 import TemplateError

    # Most templates know "system" and not "developer", its newer name in OpenAI's API.
    rename = {} if "developer" in (tokenizer.chat_template or "") else {"developer": "system"}
    messages: list[dict[str, Any]] = [
        {"role": rename.get(m.role, m.role), "content": content, **m.extra} for m, content in zip(chat.messages, contents, strict=True)
    ]
    try:
        if renderer is not None:
            text = renderer.render(messages, chat.tools, generation, tokenizer.special_tokens_map)
        else:
            text = tokenizer.apply_chat_template(messages, tools=list(chat.tools) or None, tokenize=False, add_generation_prompt=generation)
    except (TemplateError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise NotRenderable(f"line {chat.line}: the model's chat template refuses this chat: {error}", code="template_refused") from None
    return str(text)
