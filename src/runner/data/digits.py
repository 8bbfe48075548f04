"""1,797 real handwritten digits (8x8 scans, shipped with scikit-learn) as rows: the picture goes in, "seven" comes out.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

from annotated_types import Gt, Lt

from runner.protocols import Message, Row

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = ("Which digit?", "Name it.", "What is this?", "Read this.")


class Digits:
    """`val_share` of each class is held out, always the same scans: the split does not depend on the run's seed."""

    def __init__(self, val_share: Annotated[float, Gt(0), Lt(1)]) -> None:
        self.val_share = val_share

    in_memory = True

    def fingerprint(self) -> dict[str, Any]:
        return {"digits": version("scikit-learn"), "val_share": self.val_share}

    def read(self, modalities: Sequence[str]) -> dict[str, list[Row]]:
        from PIL import Image
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        scans = load_digits()
        rows = []
        for number, (scan, digit) in enumerate(zip(scans.images, scans.target, strict=True), start=1):
            name, word = f"digit-{number:04d}", WORDS[digit]
            # By a hash: classes follow one another in the file, so a position may tell something of the answer.
            question = QUESTIONS[hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % len(QUESTIONS)]
            rows.append(
                Row(
                    id=name,
                    where=f"scikit-learn digits, scan {number}",
                    messages=(Message("user", question), Message("assistant", word)),
                    items={"image": (Image.fromarray((scan * (255 / 16)).round().astype("uint8")),)},
                    label=word,
                )
            )
        train, val = train_test_split(
            range(len(rows)), test_size=self.val_share, random_state=0, stratify=scans.target, shuffle=True
        )
        return {"train": [rows[i] for i in sorted(train)], "val": [rows[i] for i in sorted(val)]}
