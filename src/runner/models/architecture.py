"""A language model's architecture: from its published fields alone, without network or files, or from a config.json.

Of a family that is published with towers for other modalities only the text's is built and read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner import pretrained
from runner.protocols import Mistake
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TEXT_TOWERS: Mapping[str, tuple[str, ...]] = {
    "gemma3n_text": ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")
}
"""Text towers that are causal language models of their own: what the names of the other towers' tensors begin with."""

WEIGHTS_READ: Mapping[str, tuple[str, ...]] = {"gemma3n_text": ("prediction_coefs", "correction_coefs")}
"""Linear layers that are never called in training, as the family reads their weights (AltUp clips them): an adapter on
one would learn nothing, and in 4 bits there would be no weight to read."""


def of_fields(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Raises `Mistake` for fields that are no architecture of transformers'."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**fields)
        plain = type(config)()
    except Exception as error:  # a field's type and range are held against the family's own rules there
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise Mistake(f"llm.architecture: {reason}. Write the fields of the model's published config.json.") from error
    known = {*plain.to_dict(), *plain.attribute_map}
    for name in fields:
        if name not in known:
            raise Mistake(
                f"llm.architecture.{name}: a {config.model_type} config has no such field{did_you_mean(name, known)}"
            )
    return config


def of_path(path: str) -> PreTrainedConfig:
    """What `path`, a folder or a hub name, holds; of a family of several towers the text's."""
    from transformers import AutoConfig

    config: PreTrainedConfig = pretrained.read("llm.path", path, "a config", AutoConfig.from_pretrained)
    text: PreTrainedConfig = config.get_text_config()
    return text if text.model_type in TEXT_TOWERS else config


def check_agrees(path: str, found: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Raises `Mistake` naming the first field in which the config at `path` is another architecture."""
    wanted, there = of_fields(fields), found.get_text_config()
    for name in fields:
        ours, theirs = getattr(wanted, name, None), getattr(there, name, None)
        if ours != theirs:
            raise Mistake(
                f"llm.architecture.{name} is {ours} and the config of llm.path={path} says {theirs}, so it is another "
                f"model. Set llm=pretrained llm.path={path} to take it as it is."
            )


def check_all_read(path: str, config: PreTrainedConfig, loaded: Mapping[str, Any]) -> None:
    """Raises `Mistake` for a tensor that the model lacks, or that its text tower should have taken.

    `loaded` is what transformers' output_loading_info says.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise Mistake(
            f"llm.path={path}: the folder lacks {len(missing)} of the model's tensors ({missing[0]}), which "
            "would be random. Give one with all its weights."
        )
    others = TEXT_TOWERS.get(config.model_type)
    foreign = sorted(name for name in loaded["unexpected_keys"] if others and not name.startswith(others))
    if foreign:
        raise Mistake(
            f"llm.path={path}: {len(foreign)} tensors belong to no tower of a {config.model_type} model "
            f"({foreign[0]}). Give a folder of that family."
        )


@contextmanager
def quiet_about_towers(config: PreTrainedConfig) -> Iterator[None]:
    """Transformers would list each tensor of the other towers as unexpected; `check_all_read` says what is."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    if config.model_type in TEXT_TOWERS:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
