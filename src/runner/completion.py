"""Tab completion of verbs and overrides: Hydra's own, with the verb taken out of the line before Hydra sees it.

Install: `eval "$(runner -sc install=bash)"`; for fish, `runner -sc install=fish | source`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from runner.verbs import DEFAULT_VERB, DONE, MISTAKE, VERBS

FLAGS_WITH_PATH = ("--config-dir", "-cd")


def complete(words: Sequence[str]) -> int:
    """Answer `-sc install=SHELL`, `-sc uninstall=SHELL`, or `-sc query=SHELL` for the line in COMP_LINE."""
    if not any(word.startswith("query=") for word in words):
        from runner.launch import enter_hydra

        return enter_hydra(DEFAULT_VERB, [word for word in words if word not in VERBS], job=None, program="runner")
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()
    typed = typed[3:] if typed[1:3] == ["-m", "runner"] else typed[1:]
    current = "" if line.endswith(" ") or not typed else typed[-1]
    before = typed[: len(typed) - bool(current)]
    if before and before[-1] in FLAGS_WITH_PATH:
        return DONE  # the shell completes paths
    verb = DEFAULT_VERB
    if before and before[0] in VERBS:
        verb = before.pop(0)
    elif not before:
        print("\n".join(name for name in VERBS if name.startswith(current)))
    flags = []
    for flag in FLAGS_WITH_PATH:
        if flag in before:
            place = before.index(flag)
            flags += before[place : place + 2]
            del before[place : place + 2]
    os.environ["COMP_LINE"] = " ".join(["runner", *before, current])
    from runner.launch import enter_hydra

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # half a line may not compose
        try:
            return enter_hydra(verb, [*flags, *words], job=None, program="runner")
        except Exception:
            return MISTAKE  # in silence: a sentence would stand in the middle of what is being typed
