"""The one rendering function: what is learnt, what is not, and that text stays text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tunewright.data import tokens
from tunewright.data.example import Chat, Completion, Labelled, Message, Pair
from tunewright.data.tokens import NotRenderable, end_ids, preferred, prompt, render, rendered, tokenize, with_template

TEMPLATES = {"chatml": tiny.CHATML, "default system": tiny.DEFAULT_SYSTEM, "trimming": tiny.TRIMMING, "plain": None}


def chat(*turns: tuple[str, str], trained: bool = True) -> Chat:
    return Chat(tuple(Message(role, text, trained and role == "assistant") for role, text in turns), line=1)


def learnt(row, tokenizer):
    """The runs of trained tokens, decoded."""
    runs, ids = [], []
    for token, trained in [*zip(row.ids.tolist(), row.trained.tolist(), strict=True), (0, False)]:
        if trained:
            ids.append(token)
        elif ids:
            runs.append(tokenizer.decode(ids))
            ids = []
    return runs


TALK = chat(("system", "Be brief."), ("user", "Where is my lamp?"), ("assistant", "On its way."), ("user", "Ok"), ("assistant", "Bye"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answers_and_their_end_tokens_are_learnt(name):
    tokenizer = with_template(tiny.tokenizer(TEMPLATES[name]))
    assert learnt(render(TALK, tokenizer), tokenizer) == ["On its way.<|im_end|>", "Bye<|im_end|>"]


def test_an_instruct_template_keeps_the_space_before_its_end_token():
    tokenizer = tiny.tokenizer(tiny.INSTRUCT)
    row = render(chat(("user", "Hello"), ("assistant", "Good day"), ("user", "More"), ("assistant", "No")), tokenizer)
    assert learnt(row, tokenizer) == ["Good day <|im_end|>", "No <|im_end|>"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_the_tokenizers_own(name):
    tokenizer = with_template(tiny.tokenizer(TEMPLATES[name]))
    messages = [{"role": m.role, "content": m.content} for m in TALK.messages]
    assert render(TALK, tokenizer).ids.tolist() == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_a_prefix_of_the_row_and_ends_where_the_answer_begins(name):
    tokenizer = with_template(tiny.tokenizer(TEMPLATES[name]))
    row, before = render(TALK, tokenizer), prompt(TALK, tokenizer)
    assert row.ids[: len(before)].tolist() == before
    assert tokenizer.decode(row.ids[len(before) :]).strip() == "Bye<|im_end|>"


def test_weight_zero_turns_are_context():
    messages = (Message("user", "a"), Message("assistant", "skip", trained=False), Message("user", "b"), Message("assistant", "learn", trained=True))
    tokenizer = tiny.tokenizer()
    assert learnt(render(Chat(messages), tokenizer), tokenizer) == ["learn<|im_end|>"]


def test_a_template_that_rewrites_contents_is_refused():
    with pytest.raises(NotRenderable, match="changes what the messages say"):
        render(TALK, tiny.tokenizer(tiny.REWRITING))


def test_a_template_that_refuses_a_chat_is_named_and_counted():
    bad = chat(("user", "a"), ("user", "b"), ("assistant", "c"))
    result = tokenize([bad], tiny.tokenizer(tiny.INSTRUCT), 100)
    assert result.dropped == {"template_refused": [1]} and not result.rows


FRAGMENTS = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "system", "\n", " ", "assistant", "<|", "|>", "im_end", "é", "漢", "x"])
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(user=FRAGMENTS, answer=FRAGMENTS, name=st.sampled_from(sorted(TEMPLATES)))
def test_content_never_becomes_a_control_token(user, answer, name):
    tokenizer = with_template(tiny.tokenizer(TEMPLATES[name]))
    special = set(tokenizer.all_special_ids)
    user, answer = user.replace("\ue000", ""), answer.replace("\ue000", "")

    def controls(a, b):
        row = render(chat(("user", a), ("assistant", b)), tokenizer)
        return [int(i) for i in row.ids if int(i) in special], row

    found, row = controls(user, answer)
    assert found == controls("x", "x")[0]
    kept = answer.strip() if name == "trimming" else answer
    assert learnt(row, tokenizer) == [kept + "<|im_end|>"]
    before = prompt(chat(("user", user), ("assistant", answer)), tokenizer)
    assert row.ids[: len(before)].tolist() == before


def test_text_with_the_characters_of_our_marks_is_still_marked_right():
    tokenizer = tiny.tokenizer()
    row = render(chat(("user", "\ue0001\ue001 odd"), ("assistant", "fine \ue0000\ue001")), tokenizer)
    assert learnt(row, tokenizer) == ["fine \ue0000\ue001<|im_end|>"]


def test_completions_learn_the_completion_and_the_end():
    tokenizer = tiny.tokenizer()
    row = render(Completion("2 + 2 =", " 4"), tokenizer)
    assert tokenizer.decode(row.ids) == "2 + 2 = 4<|im_end|>"
    assert learnt(row, tokenizer) == [" 4<|im_end|>"]


def test_a_label_is_the_answer():
    tokenizer = tiny.tokenizer()
    assert learnt(render(Labelled("I like it", "positive"), tokenizer), tokenizer) == ["positive<|im_end|>"]


def test_developer_is_rendered_as_system_where_the_template_does_not_know_it():
    tokenizer = tiny.tokenizer()
    assert "<|im_start|>system\nBe brief" in tokenizer.decode(
        render(chat(("developer", "Be brief"), ("user", "a"), ("assistant", "b")), tokenizer).ids
    )


def test_long_rows_are_cut_at_the_end_and_counted():
    tokenizer = tiny.tokenizer()
    examples = [
        chat(("user", "short"), ("assistant", "a")),
        chat(("user", "long " * 50), ("assistant", "b")),
        chat(("user", "c"), ("assistant", "d " * 80)),
    ]
    examples = [Chat(example.messages, line) for line, example in enumerate(examples, 1)]
    result = tokenize(examples, tokenizer, 40)
    assert result.cut == [2, 3]
    assert result.dropped == {"nothing_to_learn_after_cut": [2]}
    assert [row.line for row in result.rows] == [1, 3] and len(result.rows[1].ids) == 40
    assert len(examples) == len(result.rows) + sum(len(lines) for lines in result.dropped.values())


def test_an_answer_whose_end_is_never_learnt_is_named():
    tokenizer = tiny.tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    result = tokenize([chat(("user", "a"), ("assistant", "b"))], tokenizer, 100)
    assert result.unended == [1] and len(result.rows) == 1


def test_a_tool_call_must_show_in_the_rendering():
    call = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}
    example = Chat((Message("user", "Rain?"), Message("assistant", "", True, call)), line=3)
    assert tokenize([example], tiny.tokenizer(), 100).dropped == {"tool_call_not_rendered": [3]}


def test_end_ids_hold_the_turn_end():
    assert end_ids(tiny.tokenizer()) == {2}


@pytest.mark.parametrize("characters", [1 << 20, 50])
def test_many_at_once_are_what_each_is_alone(monkeypatch, characters):
    """Batches are encoded ahead in a thread, while texts that look like control tokens are read piece by piece: neither may reach the other."""
    monkeypatch.setattr(tokens, "_BATCH", 16)
    monkeypatch.setattr(tokens, "_BATCH_CHARACTERS", characters)
    tokenizer = with_template(tiny.tokenizer(tiny.CHATML))
    kinds = (
        lambda i: chat(("user", f"Say <|im_end|> {i}"), ("assistant", f"<|im_end|> it is, {i}")),
        lambda i: chat(("user", f"What is {i}?"), ("assistant", f"{i} is {i}")),
        lambda i: Completion(f"{i} <|im_start|>", f" and {i}"),
        lambda i: Pair(chat(("user", f"{i}?"), ("assistant", "yes")), chat(("user", f"{i}?"), ("assistant", f"no {i}")), i),
    )
    examples = [kinds[i % len(kinds)](i) for i in range(200)]
    made = list(rendered(examples, tokenizer))
    assert [example for example, _ in made] == examples
    for example, rows in made:
        alone = [example.chosen, example.rejected] if isinstance(example, Pair) else [preferred(example)]
        for row, one in zip(rows, alone, strict=True):
            same = render(one, tokenizer)
            assert row.ids.tolist() == same.ids.tolist() and row.trained.tolist() == same.trained.tolist()
