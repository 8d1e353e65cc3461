# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Fine-tunes a vision tower on one task and saves its task vector.

accelerate launch recipes/finetune.py --task mnist --base openai/clip-vit-base-patch32 --output_dir out/mnist
python recipes/finetune.py --task digits --learning_rate 3e-4 --num_train_epochs 3 --output_dir out/digits

The vector is in <output_dir>/vector. A run that was stopped goes on after its last checkpoint; another one in its
folder is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

try:  # noqa: SIM105 (it comes before anything heavy)
    import interrupts  # noqa: F401
except ImportError:  # a job elsewhere gets this file alone
    pass

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, get_task, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.training.output import last_checkpoint
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.weights.folders import check_output_folder


@dataclass
class FinetuneArguments:
    task: str = arg("A registered task, or a folder's name in data_dir.")
    base: str | None = arg("Hub id or folder of a CLIP, SigLIP, ViT or DINOv2; the tiny CLIP by default.", default=None)
    base_revision: str | None = arg("Branch, tag or commit of the base.", default=None)
    attn_implementation: str | None = arg(
        "Attention, as Transformers names it; eager is the fastest on a CPU with --bf16.", default=None
    )
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)


def main(args: FinetuneArguments, config: TaskVectorConfig) -> TaskVector:
    output_dir = Path(str(config.output_dir))
    check_output_folder(output_dir / "vector", marker=CONFIG_NAME)
    base = load_base(args.base, revision=args.base_revision, attn_implementation=args.attn_implementation)
    trainer = TaskVectorTrainer(base, config, task=get_task(args.task, data_dir=args.data_dir))
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint or last_checkpoint(output_dir))
    if config.should_save:
        trainer.task_vector().save_pretrained(output_dir / "vector")
        print(f"The vector is in {output_dir / 'vector'}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return trainer.task_vector()


if __name__ == "__main__":
    run_recipe(
        main,
        FinetuneArguments,
        TaskVectorConfig,
        stopped="The same command goes on from the last checkpoint in --output_dir, or anew where there is none.",
    )
