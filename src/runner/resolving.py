"""A composed config as plain values: interpolations resolved, missing values told, literal secrets refused."""

from __future__ import annotations

import os
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.combinations import at
from runner.schema import UNKNOWN

SECRET_WORDS = ("key", "token", "secret", "password")
VOCABULARY = ("pad", "eos", "bos", "unk", "mask", "sep", "cls", "image", "audio", "text", "series", "special", "sort")
"""`pad_token`, `sort_key` and the like are no secrets."""
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
"""`"\\ud800"` in YAML: no file and no tracker could take it."""
FROM_ENVIRONMENT = re.compile(r"\$\{\s*(oc\.env:\s*\w+\s*(,\s*(null|''|\"\")\s*)?|[\w.]+)\}")


def resolve(config: DictConfig, lines: list[str]) -> dict[str, Any]:
    """What is wrong goes into `lines`; such a value stands as UNKNOWN."""
    raw = OmegaConf.to_container(config, resolve=False)
    tree = {str(key): _value(config, raw, key, str(key), lines) for key in config}
    expand_home(tree)  # here, so that a config that another process or a later verb reads back has it too
    return tree


def expand_home(tree: dict[str, Any]) -> None:
    """`~` in every path that a config names, before anything reads it."""
    for path in (
        "data.path",
        "data.val_path",
        "data.files",
        "lora.init",
        "llm.path",
        "resume",
        "run",
        "input",
        "output",
    ):
        parent, _, key = path.rpartition(".")
        node = at(tree, parent) if parent else tree
        if isinstance(node, dict) and isinstance(node.get(key), str):
            node[key] = os.path.expanduser(node[key])


def _value(config: Any, raw_parent: Any, key: Any, path: str, lines: list[str]) -> Any:
    if OmegaConf.is_missing(config, key):
        lines.append(f"{path} needs a value. Set {path}=VALUE.")
        return UNKNOWN
    raw = raw_parent[key]
    if is_secret(path, raw) and not may_stand(raw):
        lines.append(f"{path}: a secret must not stand in a config. Set {path}='${{oc.env:NAME}}' and export NAME.")
        return UNKNOWN
    if isinstance(raw, str) and "${hydra:" in raw:
        lines.append(f"{path}: {raw} is known to Hydra alone, so the run could not be resumed. Write the value.")
        return UNKNOWN
    try:
        value = config[key]
    except OmegaConfBaseException as error:
        lines.append(f"{path}: {raw} does not resolve{why(error)}")
        return UNKNOWN
    if OmegaConf.is_config(value):
        inside = raw if isinstance(raw, dict | list) else OmegaConf.to_container(value, resolve=False)
        if isinstance(value, ListConfig):
            return [_value(value, inside, index, f"{path}.{index}", lines) for index in range(len(value))]
        return {str(inner): _value(value, inside, inner, f"{path}.{inner}", lines) for inner in value}
    if isinstance(value, bytes) or (isinstance(value, str) and HALF_A_CHARACTER.search(value)):
        lines.append(f"{path}: {value!a} is no text. Write one in UTF-8.")
        return UNKNOWN
    return value


def is_secret(path: str, raw: Any) -> bool:
    """By its name's last word; a number is no key or token, but may be a password."""
    words = path.rpartition(".")[2].lower().split("_")
    if words[-1] in ("key", "token") and isinstance(raw, int | float):
        return False
    return words[-1] in SECRET_WORDS and words[0] not in VOCABULARY


def may_stand(raw: Any) -> bool:
    """Under a secret's name: null, nothing, or what comes from elsewhere."""
    if isinstance(raw, str):
        return raw == "" or FROM_ENVIRONMENT.fullmatch(raw) is not None
    return raw is None or isinstance(raw, dict | list)


def why(error: OmegaConfBaseException) -> str:
    """The end of the sentence that a value does not resolve."""
    text = str(error).splitlines()[0]
    variable = re.search(r"Environment variable '(\w+)' not found", text)
    if variable:
        return f": the environment variable {variable[1]} is not set."
    return f": {text}."
