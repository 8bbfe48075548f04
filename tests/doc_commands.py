"""The console blocks of a page of docs/, run as a reader would: each command, and what must stand in its output."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ranks

NUMBER = re.compile(r"\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Command:
    """One command of a page, and what stands under it: runs of lines that follow one another."""

    text: str
    shown: tuple[tuple[str, ...], ...]
    is_whole: bool
    """Nothing is left out."""


@dataclass(frozen=True)
class Walk:
    """A page's commands, one after the other in one folder."""

    folder: Path
    printed: dict[str, tuple[int | None, str]]
    """By command, its exit code and what it printed."""


def script_of(page: Path, name: str) -> str:
    """The Python file of a page that begins with its name."""
    (script,) = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(script)


def commands(page: Path) -> list[Command]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = []
    for one in re.split(r"^\$ ", "".join(blocks).replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        text, _, shown = one.partition("\n")
        parts = [tuple(part.strip("\n").split("\n")) for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)]
        found.append(Command(text, tuple(part for part in parts if part != ("",)), len(parts) == 1))
    return found


def run(command: Command, shorter: Mapping[str, str]) -> tuple[int | None, str]:
    """In the working folder; its exit code and what it printed. `shorter`: by word, the words in its place."""
    program, *words = shlex.split(command.text)
    if program == "runner":
        words = [short for word in words for short in shorter.get(word, word).split()]
        process = ranks.launch(words, Path("printed"))
        process.join(60)
        return process.exitcode, Path("printed").read_text()
    if program == "python":
        runpy.run_path(words[0])
        return 0, ""
    done = subprocess.run([program, *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def hold(command: Command, code: int | None, output: str) -> None:
    """Numbers aside, which another machine may have a little differently; of a mistake, and of what `runner show`
    counts, to the letter."""
    assert code in (0, 2), output
    said = str.strip if code == 2 or command.text.startswith("runner show") else without_numbers
    lines = [said(line) for line in output.splitlines() if line.strip()]
    assert not command.is_whole or len(lines) == sum(bool(line.strip()) for part in command.shown for line in part), (
        output
    )
    at = 0
    for part in command.shown:
        wanted = [said(line) for line in part if line.strip()]
        starts = [k for k in range(at, len(lines) - len(wanted) + 1) if lines[k : k + len(wanted)] == wanted]
        assert starts, f"{wanted} is not printed after line {at} of\n{output}"
        at = starts[0] + len(wanted)


def without_numbers(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())
