"""A training run for tests that kill it, resume it or start it twice."""

from __future__ import annotations

import argparse
import os
from typing import Any

from transformers import TrainerCallback

from hf_taskvec import Task, TaskVectorConfig, TaskVectorTrainer, load_base


class Die(TrainerCallback):
    """Ends the process in the middle of a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Dies without any clean-up."""
        if state.global_step == self.step:
            os._exit(9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("dataset")
    parser.add_argument("output_dir")
    parser.add_argument("--die_at", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--optim", default="adamw_torch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard", action="store_true")
    options = parser.parse_args()
    config = TaskVectorConfig(
        output_dir=options.output_dir,
        num_train_epochs=3,
        learning_rate=1e-2,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=4,
        logging_strategy="no",
        optim=options.optim,
        per_device_train_batch_size=options.batch,
        shard=options.shard,
    )
    callbacks: list[TrainerCallback] = [] if options.die_at is None else [Die(options.die_at)]
    trainer = TaskVectorTrainer(
        load_base(options.base), config, task=Task.from_dataset(options.dataset), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=options.resume)
    if config.should_save:
        trainer.task_vector().save_pretrained(f"{options.output_dir}/final")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
