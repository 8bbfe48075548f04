"""Comet's offline archives, read back: what a run would upload."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image


class Archive:
    """An offline archive, read back."""

    def __init__(self, file: Path) -> None:
        self.files = zipfile.ZipFile(file)
        self.head = json.loads(self.files.read("experiment.json"))
        self.messages = [json.loads(line) for line in self.files.read("messages.json").splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["payload"] for message in self.messages if message["type"] == kind]

    @property
    def metrics(self) -> list[tuple[str, int, float]]:
        found = [one["metric"] for one in self.of("metric_msg")]
        rows = [(one["metricName"], one["step"], float(one["metricValue"])) for one in found]
        return sorted(row for row in rows if "/" in row[0])

    @property
    def parameters(self) -> dict[str, Any]:
        found = [one.get("param") or one["params"] for one in self.of("parameter_msg")]
        return {one["paramName"]: one["paramValue"] for one in found if not one["paramName"].startswith("curr_")}

    @property
    def others(self) -> dict[str, Any]:
        return {one["key"]: one["value"] for one in self.of("log_other")}

    @property
    def assets(self) -> dict[str, bytes]:
        found = [one for one in self.of("file_upload") if one["upload_type"] == "asset"]
        return {one["additional_params"]["fileName"]: self.files.read(one["file_path"]) for one in found}

    @property
    def pictures(self) -> dict[str, tuple[Image.Image, dict[str, Any], int]]:
        """By name: the picture, its metadata and its step."""
        found: dict[str, tuple[Image.Image, dict[str, Any], int]] = {}
        for one in self.of("file_upload"):
            if one["upload_type"] == "visualization":
                place, picture = one["additional_params"], Image.open(io.BytesIO(self.files.read(one["file_path"])))
                found[place["figName"]] = (picture, one["metadata"], place["step"])
        return found


def archives(folder: Path) -> list[Archive]:
    return [Archive(file) for file in sorted((folder / "comet").glob("*.zip"), key=os.path.getmtime)]
