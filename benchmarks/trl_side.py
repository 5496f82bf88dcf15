"""TRL's half of training.py: the same rows, batches, optimizer and start, by SFTTrainer or DPOTrainer. Runs in the peers' environment.

    python trl_side.py FOLDER padded|padding_free|precomputed|live

FOLDER holds what training.py put there: base/ (model and tokenizer), rows.jsonl (a list of {"ids", "trained"} a line: one row, or a pair's two;
in the order of the steps), job.json. "precomputed" and "live" say when DPO's reference log-probs are computed.
Prints one JSON line: seconds and loss of each step, seconds before the first, and the memory.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import datasets
import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of each optimizer step, from the moment its first batch is asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.begun)


class Ready(DPOTrainer):
    """Takes rows that are tokens already: both sides must see the same ones."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset.remove_columns(["prompt", "chosen", "rejected"])


def supervised(rows: list, model, tokenizer, shared: dict, layout: str, clock: Clock) -> SFTTrainer:
    """Labels are -100 where a token is not trained."""
    records = [{"input_ids": row["ids"], "labels": [i if t else -100 for i, t in zip(row["ids"], row["trained"], strict=True)]} for (row,) in rows]
    args = SFTConfig(**shared, padding_free=layout == "padding_free")
    return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(records), processing_class=tokenizer, callbacks=[clock])


def preferences(rows: list, model, tokenizer, shared: dict, layout: str, clock: Clock, beta: float) -> DPOTrainer:
    """A pair's answers are what is trained of its rows; what stands behind them, if anything, is left out."""
    records = []
    for chosen, rejected in rows:
        record = {"prompt": "", "chosen": "", "rejected": "", "prompt_ids": chosen["ids"][: chosen["trained"].index(True)]}
        for name, row in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            record[name] = [i for i, t in zip(row["ids"], row["trained"], strict=True) if t]
        records.append(record)
    args = DPOConfig(**shared, beta=beta, precompute_ref_log_probs=layout == "precomputed")
    return Ready(model=model, args=args, train_dataset=Dataset.from_list(records), processing_class=tokenizer, callbacks=[clock])


def main() -> None:
    folder, layout = Path(sys.argv[1]), sys.argv[2]
    job = json.loads((folder / "job.json").read_text())
    datasets.disable_caching()
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(job["seed"])
    lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        shared = {
            "output_dir": out,
            "max_steps": job["steps"],
            "per_device_train_batch_size": job["batch"],
            "train_sampling_strategy": "sequential",
            "learning_rate": job["learning_rate"],
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "adam_beta1": 0.9,
            "adam_beta2": 0.99,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
            "max_length": None,
            "gradient_checkpointing": False,
            "bf16": job["precision"] == "bf16",
            "use_cpu": not torch.cuda.is_available(),
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        begun = time.perf_counter()
        if job["method"] == "dpo":
            trainer = preferences(rows, model, tokenizer, shared, layout, clock, job["beta"])
        else:
            trainer = supervised(rows, model, tokenizer, shared, layout, clock)
        before, held = time.perf_counter() - begun, psutil.Process().memory_info().rss
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": clock.seconds, "losses": losses, "before": before, "held_bytes": held, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
