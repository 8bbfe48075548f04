"""The folders that transformers' save_pretrained writes: read, hashed by weight file, held against an architecture.

Every part that takes such a folder or a hub name reads it here, so what can be wrong with one is told in one way. An
architecture is some fields of a published config.json: shapes are built from them alone, without network or files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import fingerprint
from runner.protocols import Mistake
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read(setting: str, path: str, what: str, from_pretrained: Any, **arguments: Any) -> Any:
    """What `from_pretrained` makes of the folder or hub name `path`; `setting` is the config key that gives it
    (`llm.path`). Raises `Mistake` where it cannot: a stranger's folder can be broken in any way."""
    try:
        return from_pretrained(path, **arguments)
    except (MemoryError, Mistake):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Mistake(
            f"{setting}={path}: no {what.removeprefix('an ').removeprefix('a ')} could be read ({reason}). "
            "Give a folder that transformers' save_pretrained wrote, or a hub name that this machine can reach."
        ) from error


def find(setting: str, path: str, name: str) -> Path:
    """One file of the folder or hub name `path`. Raises `Mistake` without it."""
    from transformers.utils import cached_file

    return Path(str(read(setting, path, name, lambda _: cached_file(path, name))))


def shapes_alone() -> bool:
    """Whether parts are built without their weights, to be shown: under `torch.device("meta")`."""
    import torch

    return torch.get_default_device().type == "meta"


def weight_files(path: str) -> dict[str, str]:
    """sha256 of each weight file of a folder or hub name, by the file's name."""
    from transformers.utils import cached_file

    folder = Path(str(cached_file(path, "config.json"))).parent
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return {file.name: fingerprint.of_file(file) for file in weights}


def config_of(setting: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The config that the fields of an architecture make; `setting` is the key that gives them (`llm.architecture`).

    Raises `Mistake` for fields that are no architecture of transformers'."""
    from transformers import AutoConfig

    with told_of(setting):  # a field's type and range are held against the family's own rules there
        config = AutoConfig.for_model(**fields)
        plain = type(config)()
    check_known(setting, fields, {*plain.to_dict(), *plain.attribute_map}, f"a {config.model_type} config")
    return config


@contextmanager
def told_of(setting: str) -> Iterator[None]:
    """Say of what is raised while an architecture is built that its fields are at fault."""
    try:
        yield
    except (MemoryError, Mistake):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise Mistake(
            f"{setting}: {reason.removesuffix('.')}. Write the fields of the model's published config.json."
        ) from error


def check_known(setting: str, fields: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raises `Mistake` naming the first field that `what` does not have."""
    for name in fields:
        if name not in known:
            raise Mistake(f"{setting}.{name}: {what} has no such field{did_you_mean(name, known)}")


def values_of(config: PreTrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the same fields, a family's other names for them and its defaults included."""
    return {name: getattr(config, name, None) for name in fields}


def check_agrees(seat: str, option: str, path: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises `Mistake` naming the first field in which the config at `path` is another architecture than the seat's;
    `option` (`llm=pretrained`) is the choice that takes any."""
    for name, ours in wanted.items():
        if ours != found[name]:
            raise Mistake(
                f"{seat}.architecture.{name} is {ours} and the config of {seat}.path={path} says {found[name]}, so it "
                f"is another model. Set {option} {seat}.path={path} to take it as it is."
            )
