"""Trains a small CLIP from scratch on image-text pairs.

accelerate launch recipes/pretrain_tiny_clip.py --config recipes/configs/tiny_clip.yaml --pairs <folder>/photo-captions
"""

from __future__ import annotations

from dataclasses import dataclass

from pretraining.trainer import PretrainingConfig, pretrain

from hf_taskvec.arguments import arg, run_recipe


@dataclass
class PretrainArguments:
    """Where the pairs come from and where the model goes; the rest is `PretrainingConfig`."""

    pairs: list[str] = arg("Hub ids or folders of datasets with the columns `image` and `text`.")
    output_dir: str = arg("Where to save the model, its state and its log.", default="out/tiny-clip")
    generated_pairs: int = arg("How many generated pairs (coloured shapes and stripes) to add.", default=0)


def main(args: PretrainArguments, config: PretrainingConfig) -> dict[str, float]:
    """Trains, saves, prints and returns the retrieval figures."""
    figures = pretrain(args.pairs, config=config, output_dir=args.output_dir, generated=args.generated_pairs)
    print(figures)
    return figures


if __name__ == "__main__":
    run_recipe(
        main, PretrainArguments, PretrainingConfig,
        stopped="The same command goes on from the last saved state in --output_dir (one every --save_steps).",
    )  # fmt: skip
