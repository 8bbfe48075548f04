"""Free text and paths on the command line, quoted for Hydra so that they arrive as typed: `name="a b, c=d: (x)"`.

As they are stay `null`, a value already wholly in quotes (`'prompt="..."'`; there `${...}` is an interpolation), and in
a sweep `choice(...)`: `-m 'name=choice("a, b", c)'`. A comma in free text is never a sweep. Several items are a list,
`image=[a.png,b.png]`; one whose name holds a comma stands in quotes there. `series=[[1,2,3]]` stays numbers. So is
`data.path=[a.csv,b.csv]`, and `data.path={a: x.csv, b: y.csv}` is a mapping as Hydra writes it.
"""

from __future__ import annotations

import re

FREE_TEXT = (
    *("prompt", "run", "to", "image", "audio", "text", "series", "name", "input", "output", "resume"),
    *("data.path", "data.val_path", "data.prompt", "llm.path", "lora.init", "show.html"),
)
ITEMS = ("image", "audio", "text", "series", "data.path")
HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Quoted too, but `${now:%H}` and the like stay interpolations there."""

ASSIGNMENT = re.compile(r"(\+{0,2})([^=]*)=(.*)", re.DOTALL)
QUOTED = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*""", re.DOTALL)


def quote(override: str, sweeping: bool) -> str:
    """An override as Hydra has to read it."""
    match = ASSIGNMENT.fullmatch(override)
    if match is None:
        return override
    sign, key, value = match.groups()
    if key not in (*FREE_TEXT, *HYDRA_PATHS) or value == "null" or QUOTED.fullmatch(value):
        return override
    if sweeping and value.startswith("choice(") and value.endswith(")"):
        return override
    if key == "data.path" and re.fullmatch(r"\{\s*\w+:.*\}", value, re.DOTALL):
        return override
    if key in ITEMS and value.startswith("[") and value.endswith("]"):
        return override if value.startswith("[[") else f"{sign}{key}=[{','.join(items_in_quotes(value[1:-1]))}]"
    return f"{sign}{key}={in_quotes(value if key in HYDRA_PATHS else without_interpolation(value))}"


def items_in_quotes(text: str) -> list[str]:
    """Of a list's inside, each item as Hydra has to read it."""
    items = [found[0].strip() for found in re.finditer(rf"{QUOTED.pattern}(?=,|\Z)|[^,]+", text, re.DOTALL)]
    return [one if QUOTED.fullmatch(one) else in_quotes(without_interpolation(one)) for one in items if one]


def in_quotes(text: str) -> str:
    """In Hydra's grammar: a backslash counts only before a quote, where it is doubled."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def without_interpolation(text: str) -> str:
    """`${` as itself in OmegaConf's grammar: `\\${`, the backslashes before it doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
