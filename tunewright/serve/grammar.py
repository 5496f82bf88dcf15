"""What an answer must look like: llguidance's grammars over a model's own tokens."""

from __future__ import annotations

import json
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.tokens import end_ids
from tunewright.errors import Problem

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

_ANY_OBJECT = {"type": "object"}
# Enough for indented JSON; without an end, a small model may write spaces for ever.
_LONGEST = 200_000
SPACE = r"( ?|\n {0,12})"


class Tokens:
    """A model's vocabulary as bytes. Built at its first use, for that takes a moment with a large one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._special = {i: str(token).encode() for i, token in tokenizer.added_tokens_decoder.items()}
        self._built: LLTokenizer | None = None
        self._lock = Lock()

    def built(self) -> LLTokenizer:
        """llguidance's form of the tokenizer."""
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._built is None:
                size = max(self._size, len(self._tokenizer))
                self._built = from_tokenizer(self._tokenizer, n_vocab=size, eos_token=sorted(end_ids(self._tokenizer)))
            return self._built

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; of a special one, its name's."""
        special = self._special.get(token)
        return special if special is not None else bytes(self.built().decode_bytes([token]))

    def constraint(self, grammar: str) -> Constraint:
        """The state of an answer that follows a grammar. Raises Problem `invalid_json_schema`, `schema_too_complex`."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(initial_lexer_fuel=200_000, step_lexer_fuel=100_000, max_lexer_states=20_000, max_grammar_size=100_000)
        matcher = LLMatcher(self.built(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:300]
            raise Problem(f"The schema cannot be followed: {reason}", code="invalid_json_schema", param="response_format")
        made = Constraint(matcher)
        made.allowed(1)  # some schemas turn out too complex at their first token; here the request can still be refused
        return made


class Constraint:
    """Which tokens may come next."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> np.ndarray:
        """(size,) bool. Raises Problem where the grammar has become too much to follow."""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise Problem("The schema became too complex to follow; ask for less", code="schema_too_complex", param="response_format")
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[:size].astype(bool)
        return np.concatenate([allowed, np.zeros(size - len(allowed), bool)]) if len(allowed) < size else allowed

    def take(self, token: int) -> bool:
        """Go on by a token. True where nothing may follow it."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def of_schema(schema: dict[str, Any] | None) -> str:
    """The grammar of a JSON value by a schema, None for any object. Raises Problem `invalid_json_schema`."""
    from llguidance import LLMatcher

    try:
        text = json.dumps(_ANY_OBJECT if schema is None else schema)
        if len(text) > _LONGEST:
            raise ValueError(f"it has {len(text):,} characters, and {_LONGEST:,} are read")
        return str(LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACE}))
    except (ValueError, RecursionError) as error:
        raise Problem(f"The schema cannot be read: {error}"[:300], code="invalid_json_schema", param="response_format") from None
