"""One sum of LoRA adapters, timed: `merging_lora.py FOLDER SIZE COUNT ours|peft`."""

from __future__ import annotations

import sys
from pathlib import Path

from merging_meter import Meter

meter = Meter()
with meter.timed("import"):
    import torch
    from merging_data import SIZES
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import CLIPVisionModel

    from hf_taskvec.merging.knots import merge_adapters
    from hf_taskvec.vectors.lora import LoraAdapter

RANK = 16


def make_adapters(folder: Path, model: CLIPVisionModel, count: int) -> None:
    """Writes random adapters of the queries and values; what exists is kept."""
    for index in range(count):
        if (folder / str(index)).exists():
            continue
        config = LoraConfig(target_modules=["q_proj", "v_proj"], r=RANK, lora_alpha=RANK)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(index), std=0.01)
        adapted.save_pretrained(str(folder / str(index)))
        adapted.unload()


def by_ours(folders: list[Path], out: Path) -> None:
    with meter.timed("load"):
        adapters = [LoraAdapter.from_pretrained(folder) for folder in folders]
    with meter.timed("merge"):
        merged = merge_adapters(adapters, rank=RANK)
    with meter.timed("save"):
        merged.save_pretrained(out)


def by_peft(model: CLIPVisionModel, folders: list[Path], out: Path) -> None:
    with meter.timed("load"):
        adapted = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
        for folder in folders[1:]:
            adapted.load_adapter(str(folder), adapter_name=folder.name)
    with meter.timed("merge"):
        names = [folder.name for folder in folders]
        adapted.add_weighted_adapter(names, [1.0] * len(names), "sum", combination_type="svd", svd_rank=RANK)
    with meter.timed("save"):
        adapted.save_pretrained(str(out), selected_adapters=["sum"])


def main(folder: Path, size: str, count: int, by: str) -> None:
    model = CLIPVisionModel(SIZES[size])
    make_adapters(folder, model, count)
    folders = [folder / str(index) for index in range(count)]
    if by == "ours":
        by_ours(folders, folder / "merged")
    else:
        by_peft(model, folders, folder / "merged")
    meter.report()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
