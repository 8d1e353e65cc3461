"""The `adapter_config.json` of a LoRA adapter: read strictly, refused if it says more than factors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_taskvec.errors import CheckpointError
from hf_taskvec.vectors.entries import check_sane
from hf_taskvec.weights.folders import check_text

CONFIG = "adapter_config.json"
MAX_RANK = 1 << 16
MAX_MODULE = 250  # characters of a module's name
MAX_STEPS = 1e9  # of matching all patterns with all names, in the worst case
# Initialisations that also edit the base, so that the adapter alone is not the change of its weights.
_BASE_EDITING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {
    "layer_replication": "replicates layers",
    "trainable_token_indices": "trains single tokens",
    "target_parameters": "targets bare parameters",
    "lora_bias": "trains a bias in the factors",
    "use_qalora": "is made for a quantised base",
    "alora_invocation_tokens": "acts on some tokens only, so it is no change of weights",
    "megatron_config": "is made for Megatron layers",
}
_VARIANTS = ("use_dora", "velora_config", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config")
# Entries that say nothing about the change of the weights, or whose effect is in the factors already.
_IDLE = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
}
_READ = {
    "peft_type",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
}
_TOKEN = re.compile(r"\\[.dwsDWS_\-]|\[\^?[\w.\-\\]+\]|[\w.\-^$|()]|(?P<repeat>[*+?])")


@dataclass(frozen=True)
class Pattern:
    """A pattern of module names and the value it stands for.

    Attributes:
        regex: Matches a whole name, or its end after a dot, as `peft` does.
        repeats: How many parts of it may repeat; the time to match grows by the name's length with each.
        value: The rank or alpha.
    """

    regex: re.Pattern[str]
    repeats: int
    value: float


@dataclass(frozen=True)
class AdapterConfig:
    """What a configuration says of the change of the weights.

    Attributes:
        base, revision: The base it names, and the revision.
        rank, alpha: Where no pattern matches.
        rank_patterns, alpha_patterns: The first that matches a module counts.
        rslora: Whether the factor is `alpha / sqrt(rank)`.
        transposed: Whether the weights are stored as (in, out).
        modules_to_save: Modules that were trained as a whole.
    """

    base: str | None
    revision: str | None
    rank: int
    alpha: float
    rank_patterns: tuple[Pattern, ...]
    alpha_patterns: tuple[Pattern, ...]
    rslora: bool
    transposed: bool
    modules_to_save: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of one module's factors."""
        return int(_first(self.rank_patterns, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """What the product of one module's factors is multiplied by."""
        rank, alpha = self.rank_of(module), _first(self.alpha_patterns, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def check_modules(self, modules: Iterable[str]) -> None:
        """Raises a `CheckpointError` if matching the patterns with these names could take long."""
        lengths = [len(module) for module in modules]
        if lengths and max(lengths) > MAX_MODULE:
            raise CheckpointError(f"the adapter names a module of {max(lengths)} characters, more than {MAX_MODULE}")
        patterns = (*self.rank_patterns, *self.alpha_patterns)
        if sum(length ** (pattern.repeats + 1) for pattern in patterns for length in lengths) > MAX_STEPS:
            raise CheckpointError(f"the patterns in {CONFIG} would take too long to match; write names instead")


def parse_config(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """Reads a configuration.

    Args:
        values: The content of the file.
        where: The adapter's name, for messages.

    Raises:
        CheckpointError: If an entry is of a wrong type, unknown and not empty, or the adapter changes more than the
            product of its factors.

    Example:
        >>> parse_config({"peft_type": "LORA", "r": 4, "lora_alpha": 8}, "mine").scaling_of("q_proj")
        2.0
    """
    check_sane(f"{where}: {CONFIG}", dict(values))
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{where} is a peft adapter of type {str(kind)[:40]!r}; only LORA has an exact weight change here"
        )
    _refuse_more_than_factors(values, where)
    take = _Taker(values, where)
    return AdapterConfig(
        base=take("base_model_name_or_path", None, _is_text, "text"),
        revision=take("revision", None, _is_text, "text"),
        rank=take("r", 8, _is_rank, "a whole number above 0"),
        alpha=take("lora_alpha", 8, _is_positive, "a number above 0"),
        rank_patterns=take.patterns("rank_pattern", _is_rank, "whole numbers above 0"),
        alpha_patterns=take.patterns("alpha_pattern", _is_positive, "numbers above 0"),
        rslora=take("use_rslora", False, _is_flag, "true or false"),
        transposed=take("fan_in_fan_out", False, _is_flag, "true or false"),
        modules_to_save=tuple(take("modules_to_save", None, _is_names, "a list of names") or ()),
    )


def _refuse_more_than_factors(values: Mapping[str, Any], where: str) -> None:
    for key, value in values.items():
        if not value or value == "none":
            continue  # an entry that is off, also one of a newer peft
        if key in _VARIANTS:
            raise CheckpointError(f"{where} uses the variant {key}, whose change is not the product of the factors")
        if key in _REFUSED:
            reason = _REFUSED[key]
            raise CheckpointError(f"{where} sets {key}: it {reason}, which the product of the factors does not hold")
        if key not in _IDLE | _READ:
            raise CheckpointError(
                f"{where} sets {key[:80]!r}, which this hf_taskvec does not know; what it changes could be missed"
            )
    if values.get("bias", "none") != "none":
        raise CheckpointError(
            f"{where} trained biases (bias={str(values['bias'])[:40]!r}), which the factors do not hold"
        )
    start = values.get("init_lora_weights", True)
    if not isinstance(start, bool | str | None):
        raise CheckpointError(f"{where}: 'init_lora_weights' must be true, false or a name, got {str(start)[:40]!r}")
    if isinstance(start, str) and start.lower().startswith(_BASE_EDITING):
        raise CheckpointError(
            f"{where} was initialised by {start!r}, which edits the base too; save it with peft's "
            "path_initial_model_for_weight_conversion first"
        )


@dataclass(frozen=True)
class _Taker:
    """Takes entries of a configuration that have the right type."""

    values: Mapping[str, Any]
    where: str

    def __call__(self, key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.values.get(key)
        if value is None:
            return default
        if not fits(value):
            raise CheckpointError(f"{self.where}: {key!r} in {CONFIG} must be {what}, got {str(value)[:80]!r}")
        return value

    def patterns(self, key: str, fits: Callable[[Any], bool], what: str) -> tuple[Pattern, ...]:
        values = self(key, {}, lambda value: isinstance(value, dict) and all(map(fits, value.values())), what)
        return tuple(_pattern(text, value, f"{self.where}: {key!r} in {CONFIG}") for text, value in values.items())


def _pattern(text: str, value: float, where: str) -> Pattern:
    """A pattern that takes no longer than a power of the name's length: what repeats is one character of a kind."""
    check_text(text, where)
    position, repeats, repeatable = 0, 0, False
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["repeat"] and not repeatable):
            raise CheckpointError(f"{where} has the pattern {text[:80]!r}; only names, '.*' and the like are read")
        repeats += token["repeat"] is not None
        repeatable = token["repeat"] is None and token[0] not in "^$|()"
        position = token.end()
    try:
        return Pattern(re.compile(rf"(.*\.)?({text})$"), repeats + 1, value)
    except re.error as error:
        raise CheckpointError(f"{where} has the pattern {text[:80]!r}, which is none: {error}") from None


def _first(patterns: Iterable[Pattern], module: str, default: float) -> float:
    return next((pattern.value for pattern in patterns if pattern.regex.match(module)), default)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
