"""The menu: the groups and options that the folders of YAML files offer, and sentences about what is not on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runner.combinations import OBJECTIVE_SEATS
from runner.complaints import is_readable, reason, yaml_mistake
from runner.overrides import Given
from runner.spelling import did_you_mean

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import CachingConfigRepository


class Menu:
    """Of our own folder and the plugin folder, for one primary config."""

    def __init__(self, loader: ConfigLoaderImpl, repository: CachingConfigRepository, config_name: str) -> None:
        self._loader, self._repository, self._config_name = loader, repository, config_name
        self._known_groups: list[str] | None = None

    def groups(self) -> list[str]:
        """Every config group of ours and of the plugin folder."""
        if self._known_groups is not None:
            return self._known_groups
        found: list[str] = []
        waiting = [""]
        while waiting:
            group = waiting.pop(0)
            inside = self._repository.get_group_options(group, results_filter=None)
            below = [f"{group}/{name}".lstrip("/") for name in inside if name != "hydra"]
            below = [name for name in dict.fromkeys(below) if self._repository.group_exists(name)]
            found += [name for name in below if self._repository.get_group_options(name)]
            waiting += below
        self._known_groups = found
        return found

    def no_such_option(self, group: str, option: str, typed: str | None = None) -> str:
        options = self._repository.get_group_options(group)
        if not options:
            below = [f"{name}={option}" for name in self.groups() if name.startswith(f"{group}/")]
            return f"{group}={option}: {group} holds several options. Write {' or '.join(below)}."
        hint = did_you_mean(option, options)
        return f"{typed or group}={option}: no such option{hint} There are {', '.join(options)}."

    def objective_seats(self, objective: str | None) -> list[str] | None:
        """The seats that an objective's YAML lists."""
        loaded = self._repository.load_config(f"model/{objective}") if objective else None
        if loaded is None or loaded.defaults_list is None:
            return None
        listed = [str(getattr(one, "group", "") or "").lstrip("/").partition("/")[0] for one in loaded.defaults_list]
        return [seat for seat in OBJECTIVE_SEATS if seat in listed]

    def lacks_package(self, experiment: str | None) -> str | None:
        """A sentence when the keys of an experiment's file do not land at the top."""
        loaded = self._repository.load_config(f"experiment/{experiment}") if experiment else None
        if loaded is None or loaded.header.get("package"):
            return None
        return (
            f"experiment/{experiment}.yaml: its keys land under `experiment`. Begin it with the line "
            "`# @package _global_`, and write it as key: value."
        )

    def unknown_fields(self, tree: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
        """Names in data.fields that are neither in the option's own YAML nor a modality."""
        data, encoders = tree.get("data"), tree.get("encoder")
        fields = data.get("fields") if isinstance(data, Mapping) else None
        loaded = self._repository.load_config(f"data/{choices.get('data')}")
        own = OmegaConf.select(loaded.config, "fields") if loaded else None
        if not isinstance(fields, Mapping) or own is None:
            return []
        known = [*map(str, own), *(encoders if isinstance(encoders, Mapping) else ())]
        wrong = [name for name in fields if name not in known]
        return [f"data.fields.{name}: a row has no such field{did_you_mean(name, known)}" for name in wrong]

    def origin(self, path: str, hydra: DictConfig) -> str:
        """` (in FILE)` for a key that a YAML file brought, not the command line."""
        given = OmegaConf.to_container(hydra.overrides, resolve=False)  # an override may be an interpolation itself
        assert isinstance(given, dict)
        overrides = [*given["hydra"], *given["task"]]
        if any(f"{path}.".startswith(one.lstrip("+").partition("=")[0] + ".") for one in overrides):
            return ""
        found = self._loader.compute_defaults_list(self._config_name, overrides, RunMode.RUN)
        for default in reversed(found.defaults):
            package = default.package if default.package not in (None, "_global_") else ""
            inside = path.removeprefix(f"{package}.") if package else path
            loaded = self._repository.load_config(default.config_path) if default.config_path else None
            if loaded and (not package or inside != path) and has_key(loaded.config, inside):
                return f" (in {default.config_path}.yaml)"
        return ""

    def unreadable(self, error: Exception, given: Sequence[Given]) -> str:
        """What an error says, with the chosen file that cannot be read by itself or leads back to itself."""
        if isinstance(error, yaml.YAMLError):
            return yaml_mistake(error)
        chosen = [self._config_name, *(f"{one.group}/{option}" for one in given for option in one.options)]
        guilty = next((f"{name}.yaml: " for name in chosen if not is_readable(self._repository, name)), "")
        said = f"{reason(error)}.".replace("?.", "?")
        if guilty and guilty.removesuffix(".yaml: ") in said:
            return said
        return (guilty or ("" if isinstance(error, HydraException) else "Hydra cannot compose this: ")) + said


def has_key(config: Any, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_list(node) or (OmegaConf.is_dict(node) and last in node.keys())
