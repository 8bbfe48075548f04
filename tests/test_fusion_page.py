"""docs/fusion.md: its counts are the program's, and so are the formulas beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.build import skeleton
from runner.config import CONF, build, compose
from runner.inventory import components_of

PAGE = Path(__file__).parents[1] / "docs" / "fusion.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \| (?:([\d,]+) \|)?", TEXT, re.MULTILINE)
ITEMS = ["encoder/image=patch_rgb64", "encoder/audio=spectrogram", "show.part=parameters"]
WIDTHS = {"image": 128, "audio": 64}
SMALL = {"m": 2, "k": 16, "l": 2, "heads": 4, "S": sum(WIDTHS.values()), "H": 64}


def test_each_fusion_has_a_row_and_each_picture_is_there() -> None:
    assert sorted(name for name, *_ in ROWS) == sorted(file.stem for file in (CONF / "fusion").glob("*.yaml"))
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", TEXT, re.MULTILINE)
    assert len(pictures) == 8 and all((PAGE.parent / one).is_file() for one in pictures)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def value(formula: str, **letters: int) -> int:
    """A formula of the page: `16 l D² + (m + 1) D`."""
    products = re.sub(r"(?<=[\w²)]) (?=[\w(])", " * ", formula.replace("none", "0"))
    return int(eval(products.replace("²", "**2"), {"__builtins__": {}}, {**SMALL, **letters}))


@pytest.mark.parametrize(
    ("llm", "width", "layers"),
    [("tiny", 64, 2), pytest.param("qwen2_5_0_5b", 896, 24, marks=pytest.mark.zoo)],
)
@pytest.mark.parametrize("row", [row for row in ROWS if row[3]], ids=lambda row: row[0])
def test_counts_and_formulas_are_the_programs(row: tuple[str, ...], llm: str, width: int, layers: int) -> None:
    name, formula, of_qwen, of_tiny = row
    shown = number(of_tiny if llm == "tiny" else of_qwen)
    words = [f"fusion={name}", f"llm={llm}", *ITEMS]
    counts = [one.trainable for one in components_of(skeleton(compose("show", words))) if one.name == "fusion"]
    hidden_size = width if name == "film" else 4 * width
    assert sum(counts) == value(formula, D=width, n=layers, h=hidden_size) == shown


@pytest.mark.parametrize("row", [row for row in ROWS if not row[3]], ids=lambda row: row[0])
def test_counts_and_formulas_without_a_language_model(row: tuple[str, ...]) -> None:
    name, formula, shown, _ = row
    fusion = build(compose("show", ["model=classify", f"fusion={name}"]).tree["fusion"], widths=WIDTHS)
    assert sum(one.numel() for one in fusion.parameters()) == value(formula) == number(shown)
