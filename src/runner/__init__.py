"""Fine-tune multimodal language models with one training loop.

`runner.train([...])` trains a run from Python: the same composition as on the command line, no exit. Nothing heavy is
imported before it is called. `runner.Predictor.from_run(FOLDER)` answers with a trained run.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any


def train(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train one run and return its summary. Raises `runner.protocols.Mistake`, `Fault` or `Stopped`."""
    from runner.launch import run_in_python

    return run_in_python("train", overrides)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("multimodal-runner")
    if name == "Predictor":
        return import_module("runner.predictor").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
