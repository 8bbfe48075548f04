"""One override of the command line, read by Hydra's own grammar: what it is about and what it would do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from runner.complaints import reason
from runner.protocols import Mistake

OF_ONE = re.compile(r"(?P<sign>\+{0,2}|~)projector/(?P<modality>\w+)(?P<rest>=.*|$)", re.DOTALL)
"""`projector/image=linear`: an option of `projector` for one modality, which Hydra keeps in a package of its own."""


@dataclass
class Given:
    text: str
    """As Hydra gets it; empty when there is nothing to do. Changed where Hydra would not understand what is meant:
    `encoder/image=null` becomes `~encoder/image`, `projector/image=linear` becomes
    `+projector@projector.image=linear`, and a key that stands in no YAML is added by `++`."""
    typed: str
    """As the person wrote it."""
    key: str
    """As Hydra knows it: `projector@projector.image`."""
    group: str
    """Of a group: where its options are."""
    is_group: bool
    is_hydra: bool
    is_deletion: bool
    is_removal: bool
    """`group=null`"""
    is_sweep: bool
    options: list[str]
    """Of a group: every option that it names."""
    parsed: Override

    @property
    def name(self) -> str:
        """The key as the person wrote it: `projector/image`."""
        return self.typed.lstrip("+~").partition("=")[0]


def read_override(text: str, repository: IConfigRepository) -> Given:
    """Raises `Mistake` for what Hydra's grammar does not take."""
    typed = text
    of_one = OF_ONE.fullmatch(text)
    if of_one and repository.group_exists("projector"):
        text = f"{'~' if of_one['sign'] == '~' else '+'}projector@projector.{of_one['modality']}{of_one['rest']}"
    try:
        parsed = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:
        if "=" not in text:
            raise Mistake(f"{text}: an override is written key=value.") from error
        name, _, typed = text.partition("=")
        why = reason(error) if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise Mistake(f"{text}: Hydra cannot read it ({why}). Quote the value: '{name}=\"{typed}\"'.") from error
    group = parsed.key_or_group
    key = f"{group}@{parsed.package}" if parsed.package else group
    value: Any = None if parsed.is_sweep_override() else parsed.value()
    is_group = not isinstance(value, dict) and repository.group_exists(group)
    deletes = parsed.is_delete()
    return Given(
        text=text,
        typed=typed,
        key=key,
        group=group,
        is_group=is_group,
        is_hydra=parsed.is_hydra_override(),
        is_deletion=deletes,
        is_removal=is_group and not deletes and not parsed.is_sweep_override() and value is None,
        is_sweep=parsed.is_sweep_override(),
        options=options_of(parsed, value) if is_group and not deletes else [],
        parsed=parsed,
    )


def options_of(parsed: Override, value: Any) -> list[str]:
    if parsed.is_sweep_override():
        from hydra.core.override_parser.types import Glob

        if isinstance(parsed._value, Glob) or not parsed.is_choice_sweep():
            return []
        return [str(one).strip("'\"") for one in parsed.sweep_string_iterator()]
    return [str(one) for one in (value if isinstance(value, list) else [value])] if value is not None else []
