"""From overrides to a config that is known to be right: composed by Hydra, held against its schema.

Hydra stops at its first mistake and merges unknown keys of a YAML file in silence, so a config passes here first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.combinations import OBJECTIVE_SEATS, check_combinations, no_such_seat, reads_no_rows
from runner.complaints import yaml_mistake
from runner.menu import Menu, has_key
from runner.overrides import Given, read_override
from runner.protocols import Mistake
from runner.quoting import quote
from runner.resolving import resolve
from runner.schema import TOPS, Check, own_arguments, section
from runner.spelling import did_you_mean
from runner.targets import build, check_config_dir, check_hydra

__all__ = [
    "CONF", "Composed", "Composer", "Report",
    "build", "compose", "composed_again", "own_arguments", "refuse_sweeps", "section",
]  # fmt: skip

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
"""In a wheel it lies inside the package, in a checkout beside src/."""


@dataclass(frozen=True)
class Composed:
    """A config that is known to be right."""

    tree: dict[str, Any]
    """Resolved, nested, plain. A seat that was taken away is None or absent."""
    saved: str
    """As YAML with interpolations unresolved, so that no secret stands in it."""
    choices: dict[str, str]
    """Config group: option."""
    plugin_folders: tuple[Path, ...]


def composed_again(saved: str, choices: dict[str, str], plugin_folders: tuple[Path, ...]) -> Composed:
    """A checked config in another process, out of what `Composed` held of it."""
    lines: list[str] = []
    task = OmegaConf.create(saved)
    assert isinstance(task, DictConfig)
    tree = resolve(task, lines)
    if lines:  # an environment variable that this process lacks
        raise Mistake("\n".join(lines))
    return Composed(tree, saved, choices, plugin_folders)


@dataclass
class Report:
    """What is wrong. `composition` holds for every job of a sweep, `values` for this one."""

    composition: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        lines = list(dict.fromkeys([*self.composition, *self.values]))
        if lines:
            raise Mistake("\n".join(lines))


def compose(
    verb: str, overrides: Sequence[str], config_dir: Path | None = None, config_name: str | None = None
) -> Composed:
    """Raises `Mistake` with everything that is wrong, a line each."""
    composer, report = Composer(verb, config_dir, config_name), Report()
    given = composer.read([quote(one, sweeping=False) for one in overrides], report)
    refuse_sweeps(given, report)
    composed = composer.check(composer.load(given, report), report)
    report.raise_if_any()
    return composed


def refuse_sweeps(given: list[Given], report: Report) -> None:
    """Take out what Hydra would ask -m for."""
    for one in [one for one in given if one.is_sweep]:
        report.composition.append(
            f"{one.typed} is several values. Add -m to sweep over them, or write a list: {one.name}=[a,b]."
        )
        given.remove(one)


class Composer:
    """Composes and checks the configs of one verb, one primary config and one plugin folder."""

    def __init__(self, verb: str, config_dir: Path | None, config_name: str | None) -> None:
        self.verb, self.config_name = verb, config_name or verb
        self.plugin_folders = (config_dir.resolve(),) if config_dir else ()
        if config_dir:
            check_config_dir(config_dir)
        setup_globals()
        search_path = create_config_search_path(str(CONF))
        for folder in self.plugin_folders:
            search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(config_search_path=search_path)
        self._repository = CachingConfigRepository(self.loader.repository)
        self.menu = Menu(self.loader, self._repository, self.config_name)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        if not self._repository.config_exists(self.config_name):
            known = self._repository.get_group_options("")
            raise Mistake(
                f"--config-name: there is no config {self.config_name}{did_you_mean(self.config_name, known)}"
            )

    def read(self, overrides: Sequence[str], report: Report) -> list[Given]:
        """Parse overrides, each by itself, and hold their groups and options against what there is."""
        paths = [
            read_override(text, self._repository).parsed for text in overrides if text.startswith("hydra.searchpath=")
        ]
        try:
            self.loader._process_config_searchpath(self.config_name, paths, self._repository)
        except Exception as error:  # of Hydra, OmegaConf or YAML, for the primary config too
            raise Mistake(self.menu.unreadable(error, ())) from error
        given = []
        for text in overrides:
            try:
                one = read_override(text, self._repository)
                line = self._wrong_group(one)
            except Mistake as error:
                report.composition.append(str(error))
                continue
            except OSError as error:  # a name that is too long for a file
                report.composition.append(f"{text}: {error.strerror}.")
                continue
            if line:
                report.composition.append(line)
            else:
                given.append(one)
        chosen = {one.key for one in given if one.options or one.key == "experiment"}
        # quick is about a model and data of its own
        if chosen & {"model", "data"} and "experiment" not in chosen and self.verb not in TOPS:
            given.append(read_override("experiment=null", self._repository))
        return given

    def load(self, given: list[Given], report: Report) -> DictConfig:
        """Compose, changing what Hydra would stop at: see `Given.text`. Hydra's own node is in it.

        Raises `Mistake` when nothing comes of it.
        """
        base = self._base([one for one in given if one.is_group and not one.is_removal], given, report)
        choices = base.hydra.runtime.choices
        for one in given:
            if one.is_removal:
                below = [f"{key}=null" for key in choices if key.startswith(f"{one.key}/") and choices[key]]
                if below and one.key not in choices:
                    report.composition.append(f"{one.typed}: {one.key} holds several options. Write {' '.join(below)}.")
                one.text = f"~{one.key}" if choices.get(one.key) is not None else ""
            elif one.is_deletion and not one.is_group and "." not in one.key:
                report.composition.append(
                    f"{one.typed}: {one.key} cannot be taken away; only the option of a group can."
                )
                one.text = ""
            elif not (one.is_group or one.is_hydra or one.is_deletion) and not has_key(base, one.key):
                one.text = f"++{one.text.lstrip('+')}"  # whether there may be such a key is for the schema to say
            elif one.text.startswith("+") and not one.is_group:
                one.text = one.text.lstrip("+") if has_key(base, one.key) else one.text
        return self._load(given, report)

    def check(self, config: DictConfig, report: Report) -> Composed:
        """Hold a composed config against the schema; what is wrong goes into the report."""
        task, hydra = config.copy(), config.hydra
        with open_dict(task):
            del task["hydra"]
        choices = {key: option for key, option in hydra.runtime.choices.items() if not key.startswith("hydra/")}
        report.composition += check_hydra(OmegaConf.to_container(hydra, resolve=False))
        tree = resolve(task, report.values)
        foreign_verbs = [file.stem for file in CONF.glob("*.yaml") if file.stem not in ("train", self.verb)]
        check = Check(self.plugin_folders, foreign_verbs, self.verb)
        check.tree(tree)
        report.values += check.lines
        lacking = self.menu.lacks_package(choices.get("experiment"))
        if lacking and any(f"{path}.".startswith("experiment.") for path in check.unknown):
            report.composition.append(lacking)
            check.unknown = [path for path in check.unknown if not f"{path}.".startswith("experiment.")]
        report.composition += [
            f"{path}: no such key{self.menu.origin(path, hydra)}{check.suggestion(path)}" for path in check.unknown
        ]
        report.composition += self.menu.unknown_fields(tree, choices)
        seats = self.menu.objective_seats(choices.get("model"))
        report.values += check_combinations(tree, choices, seats)
        if reads_no_rows(tree):
            report.values = [line for line in report.values if not line.startswith("data.path")]
        return Composed(tree, OmegaConf.to_yaml(task), choices, self.plugin_folders)

    def _wrong_group(self, one: Given) -> str | None:
        if not one.is_group:
            if "/" not in one.key or one.is_hydra:
                return None
            groups = self.menu.groups()
            hint = did_you_mean(one.key, groups, otherwise=f"; there are {', '.join(groups)}.")
            return f"{one.key}: no such config group{hint}"
        if self.verb in TOPS and not one.is_hydra and one.key not in ("precision", "data"):
            return f"{one.typed}: that is as the run was trained; runner {self.verb} takes it from the run's config."
        for option in one.options:
            if one.is_sweep and option == "null":
                return f"{one.name}: null cannot be one of several options. Run it apart, by {one.name}=null."
            if not self._repository.config_exists(f"{one.group}/{option}"):
                return self.menu.no_such_option(one.group, option, one.name)
        return None

    def _base(self, groups: list[Given], given: list[Given], report: Report) -> DictConfig:
        """The config of the chosen groups without a value overridden."""
        key = tuple(one.text for one in groups)
        if key not in self._bases:
            self._bases[key] = self._load(groups, report)
            dropped = [one for one in groups if not one.text]
            given[:] = [one for one in given if one not in dropped]
        return self._bases[key]

    def _load(self, given: Sequence[Given], report: Report) -> DictConfig:
        """Compose by Hydra, taking out and reporting what it stops at, until it is content."""
        while True:
            try:
                return self.loader.load_configuration(
                    self.config_name,
                    [one.text for one in given if one.text],
                    RunMode.RUN,
                    validate_sweep_overrides=False,
                )
            except HydraException as error:
                if self._mend(error, given, report):
                    continue
            except Exception as error:  # so Hydra and OmegaConf answer some files, and overrides that the grammar takes
                report.composition.append(self.menu.unreadable(error, given))
            report.raise_if_any()

    def _mend(self, error: HydraException, given: Sequence[Given], report: Report) -> bool:
        """Report what Hydra says; True when the override that it speaks of could be changed or taken out."""
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = said[0] if said else ""
        by_key = {one.key: one for one in given if one.text}
        if isinstance(error.__cause__, yaml.YAMLError):
            report.composition.append(yaml_mistake(error.__cause__))
            return False
        match = re.match(r"(?:Multiple values for )?([\w/@.]+?)(?:\. | appears more than once)", text)
        if match and match[1] in by_key and by_key[match[1]].text.startswith("+"):
            by_key[match[1]].text = by_key[match[1]].text.lstrip("+")  # it has an option already: another one is chosen
            return True
        match = re.match(r"Could not (?:override|delete) '([^'=]+)", text)
        if match and match[1] in by_key:
            one = by_key[match[1]]
            report.composition.append(self._not_in_defaults(one, given))
            one.text = ""
            return True
        match = re.match(r"Error merging override (.*)", text)
        guilty = [one for one in given if match and one.text == match[1]]
        for one in guilty:
            report.composition.append(f"{one.text}: {str(error.__cause__ or 'cannot be set').splitlines()[0]}.")
            one.text = ""
        if not guilty:
            report.composition.append(self._told_by_hydra(error, text, given))
        return bool(guilty)

    def _not_in_defaults(self, one: Given, given: Sequence[Given]) -> str:
        if one.is_deletion:
            return f"{one.typed}: there is nothing at {one.name} to take away."
        seat = one.group.partition("/")[0]
        chosen = [other.options[0] for other in given if other.key == "model" and other.options]
        objective = chosen[-1] if chosen else None
        listed = self.menu.objective_seats(objective)
        if seat in OBJECTIVE_SEATS and listed is not None and seat not in listed:
            return no_such_seat(seat, objective, listed)
        return f"{one.name}: nothing of this name is in the config yet. Add it by +{one.typed}."

    def _told_by_hydra(self, error: HydraException, text: str, given: Sequence[Given]) -> str:
        """A mistake in a YAML file's defaults list."""
        missing = str(getattr(error, "missing_cfg_file", None) or "")
        group, _, option = missing.rpartition("/")
        if not group or not self._repository.group_exists(group):
            return self.menu.unreadable(error, given)
        for name in [f"{one.group}/{chosen}" for one in given for chosen in one.options]:
            loaded = self._repository.load_config(name)
            if loaded and any(str(getattr(one, "value", None)) == option for one in loaded.defaults_list or ()):
                return f"{name}.yaml: {self.menu.no_such_option(group, option)}"
        return self.menu.no_such_option(group, option)
