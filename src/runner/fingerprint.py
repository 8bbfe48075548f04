"""Hashes that say whether two things are the same: files, and anything JSON can hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
