"""TRL's half of training.py: the same rows, batches, optimizer and start, by SFTTrainer. Runs in the peers' environment.

    python trl_side.py FOLDER padded|padding_free

FOLDER holds what training.py put there: base/ (model and tokenizer), rows.jsonl ({"ids", "labels"}, in the order of the steps), job.json.
Prints one JSON line: seconds and loss of each step, and the peak of the memory.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of each optimizer step, from the moment its first batch is asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.begun)


def main() -> None:
    folder, layout = Path(sys.argv[1]), sys.argv[2]
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(job["seed"])
    lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=job["steps"],
            per_device_train_batch_size=job["batch"],
            train_sampling_strategy="sequential",
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.99,
            adam_epsilon=1e-8,
            max_grad_norm=1.0,
            max_length=None,
            padding_free=layout == "padding_free",
            gradient_checkpointing=False,
            bf16=job["precision"] == "bf16",
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row["ids"], "labels": row["labels"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": clock.seconds, "losses": losses, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
