"""docs/two_phases.md: its script and its commands, as a reader would run them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doc_commands import Command, Walk, commands, hold, run, script_of
from safetensors.torch import load_file
from torch import Tensor

PAGE = Path(__file__).parents[1] / "docs" / "two_phases.md"
FEWER = {"0, 800)": "768, 800)", "800, 1000)": "800, 816)", "1000, 1500)": "1000, 1016)", "1500, 1700)": "1500, 1516)"}
"""Of the script's rows, which would take a minute and show nothing that these do not."""
COMMANDS = commands(PAGE)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The page's commands, one after the other in one folder, each a process of its own."""
    folder = tmp_path_factory.mktemp("two_phases")
    script = script_of(PAGE, "keys.py")
    for rows, fewer in FEWER.items():
        assert script.count(f" {rows}") == 1
        script = script.replace(f" {rows}", f" {fewer}")
    (folder / "keys.py").write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = {command.text: run(command, {}) for command in COMMANDS}
    yield Walk(folder, said)


def test_the_page_has_commands_of_every_kind() -> None:
    assert len(COMMANDS) == 13
    assert [shlex.split(one.text)[0] for one in COMMANDS if not one.text.startswith("runner")] == ["python", "mv"]
    assert all(one.shown for one in COMMANDS if one.text.startswith("runner"))


@pytest.mark.zoo
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{k}" for k in range(len(COMMANDS))])
def test_a_command_of_the_page_prints_what_stands_there(walk: Walk, command: Command) -> None:
    hold(command, *walk.printed[command.text])


@pytest.mark.zoo
def test_phase_2_has_phase_1s_weights_where_the_page_says(walk: Walk) -> None:
    def newest(run: str) -> dict[str, Tensor]:
        return load_file(max((walk.folder / run / "checkpoints").iterdir()) / "trainable.safetensors")

    before, after = newest("elsewhere"), newest("outputs/phase_2")
    for name, tensor in before.items():
        part, _, rest = name.partition(".")
        if part != "scale":
            modality, _, rest = rest.partition(".")
            within = {"encoder": "encoder", "projector": "aligner"}[part]
            assert torch.equal(after[f"encoder.{modality}.{within}.{rest}"], tensor)
    assert len(before) == 1 + sum(name.startswith("encoder.") for name in after)
