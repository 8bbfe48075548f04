"""A trained run's own config.yaml, with the few keys that may be set anew where the run is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import settings
from runner.combinations import beside
from runner.complaints import reason
from runner.config import Composed
from runner.protocols import Mistake
from runner.resolving import resolve
from runner.schema import TOPS, Check, fields_of, leaf_paths

ANEW = {
    "precision": r"compute",
    "cluster": r"device|threads",
    "data": r".+",
    "evaluation": r".+",
    "model": r"max_new_tokens",
    "llm": r"path|attention",
    "lora": r"init",
    "encoder": r"\w+\.path",
}
"""Node of the run's config: its keys that may be set anew, where weights lie, say. Others would change the model."""


def read_run_config(folder: Path, anew: Mapping[str, Any], plugin_folders: Sequence[Path]) -> Composed:
    """`anew` is the tree of a verb that uses the run. Raises `Mistake` for a folder that is no run's, and for a config
    that does not hold here: a part whose folder was not given, an environment variable that is not set."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise Mistake(no_run(folder))
    lines: list[str] = []
    try:
        saved = file.read_text(encoding="utf-8")
        config = OmegaConf.create(saved)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise Mistake(
            f"{file} cannot be read ({reason(error)}). Give a run's folder with its own config.yaml."
        ) from error
    if not isinstance(config, DictConfig):
        raise Mistake(f"{file} holds no config. Give a run's folder with its own config.yaml.")
    config.pop("tracker", None)  # its secrets need not be there
    tree = resolve(config, lines)
    tree["resume"] = None
    for name, keys in ANEW.items():
        given = anew.get(name)
        if given:
            foreign = [path for path in leaf_paths(name, given) if not re.fullmatch(rf"{name}\.({keys})", path)]
            lines += [f"{path}: that is as the run was trained, and cannot be set anew." for path in foreign]
            tree[name] = with_data(tree.get(name), given) if name == "data" else merged(tree.get(name), given)
    if isinstance(tree.get("data"), dict):
        tree["data"]["streaming"] = False  # all rows are asked, not the first of a stream
    check = Check(plugin_folders, foreign_verbs=("show", "prepare", *TOPS))
    check.tree(tree)
    lines += check.lines
    lines += [f"{path}: the run's config has no such key{check.suggestion(path)}" for path in check.unknown]
    if lines:
        parts = any("_target_" in line for line in lines)
        hint = "\nWhere the run was trained with a --config-dir, give the same folder again." if parts else ""
        raise Mistake(f"{file} does not hold here:\n  " + "\n  ".join(dict.fromkeys(lines)) + hint)
    return Composed(tree, saved, {}, tuple(plugin_folders))


def no_run(folder: Path) -> str:
    if not folder.exists():
        return f"run: there is no folder {folder}{beside(str(folder))}. Give the folder of a trained run."
    run = next((one for one in folder.absolute().parents if (one / "config.yaml").is_file()), None)
    if run is not None:
        step = re.search(r"\d+", folder.stem)
        at = f", and at={int(step[0])} for that checkpoint" if step else ""
        return f"run={folder} lies inside the run {run.name}. Give its run's folder{at}."
    return f"run={folder} is no run's folder: it has no config.yaml. Give the folder of a trained run."


def merged(node: Any, given: Any) -> Any:
    """`given` over `node`, key by key."""
    if not isinstance(given, Mapping):
        return given
    before = node if isinstance(node, Mapping) else {}
    return {**before, **{key: merged(before.get(key), value) for key, value in given.items()}}


def with_data(node: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Another file, or another row source with what all sources share. Rows given anew have no second file, and of a
    folder with them none are held out: the run was trained on none of them."""
    if "_target_" in given:
        shared = {key: value for key, value in (node or {}).items() if key in fields_of(settings.Data)}
        return {**shared, **given}
    both: dict[str, Any] = merged(node, given)
    if "path" in given:
        both |= {key: None for key in ("val_path", "val_share") if key in both and key not in given}
    return both
