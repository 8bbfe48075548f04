"""Phase 2 on phase 1: the encoders and projectors that an earlier run brought together, loaded strictly and frozen.

What they were made of goes into the new run's checkpoints beside their weights, so that nothing needs the earlier run
once the new one has begun.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from runner import labelling
from runner.checkpoint import own_tensors, restore
from runner.chosen import Chosen, choose
from runner.combinations import beside
from runner.config import Composed
from runner.models.aligned import Aligned
from runner.protocols import Encoder, Mistake
from runner.saved_config import read_run_config
from runner.schema import projectors_of
from runner.seats import build_checkpointer, build_encoders, build_projectors

OWN = ("path", "trainable", "dropout")
"""Of an encoder: what may differ between the two runs. Frozen, it neither trains nor drops anything."""


@dataclass(frozen=True)
class Alignment:
    """What phase 1 trained, and of what. It stands in checkpoints as JSON."""

    run: str
    step: int
    width: int
    """W, of the shared space"""
    encoder: Mapping[str, Mapping[str, Any]]
    """By modality: the node of phase 1's config."""
    projector: Mapping[str, Any]
    """The seat's node in phase 1's config."""
    trained: Sequence[str]
    """Encoders with files whose weights phase 1 changed, so that the files do not have them."""


def aligned_encoders(composed: Composed, memory: Mapping[str, Any] | None) -> tuple[dict[str, Encoder], Alignment]:
    """By modality. With the `memory` of a checkpoint their weights are left for that to give, and phase 1 is not asked.

    Raises `Mistake` for an aligner that is not there, is ambiguous, or is not of this config's encoders.
    """
    if memory is not None and "aligner" in memory:
        alignment = Alignment(**memory["aligner"])
        return freeze(build(composed, alignment), alignment), alignment
    folder = find_run(composed.tree["model"]["aligner"])
    phase_1 = read_run_config(folder, {}, composed.plugin_folders)
    alignment = describe(composed, phase_1, folder)
    chosen = choose(folder, "best", build_checkpointer(phase_1))
    encoders = build(composed, alignment)
    trained = put_in(encoders, chosen, phase_1)
    alignment = replace(alignment, step=chosen.content.step, trained=trained)
    return freeze(encoders, alignment), alignment


def memory_of(alignment: Alignment | None) -> dict[str, Any]:
    """What `aligned_encoders` needs to build them again."""
    return {"aligner": asdict(alignment)} if alignment else {}


def told(alignment: Alignment | None) -> tuple[str, ...]:
    """What a person should hear of it."""
    if alignment is None:
        return ()
    names = " and ".join(alignment.encoder)
    return (f"Aligner: {names} as {alignment.run} brought them together by step {alignment.step}, frozen.",)


def find_run(pattern: str) -> Path:
    """The one run's folder that a path or a glob means."""
    if Path(pattern).is_dir():
        return Path(pattern)
    found = sorted(one for one in glob.glob(os.path.expanduser(pattern)) if (Path(one) / "config.yaml").is_file())
    if not found:
        raise Mistake(
            f"model.aligner={pattern}: there is no trained run{beside(pattern)}. Train phase 1 first "
            "(experiment=trimodal_align), and give its folder."
        )
    if len(found) > 1:
        listed = "".join(f"\n  {one}" for one in found[:10])
        raise Mistake(f"model.aligner={pattern} matches {len(found)} runs. Give the one that is meant:{listed}")
    return Path(found[0])


def describe(composed: Composed, phase_1: Composed, folder: Path) -> Alignment:
    """Raises `Mistake` where phase 1 was about something else."""
    named = f"model.aligner={folder}"
    asks = labelling.asked_by_model(phase_1) if not phase_1.tree.get("llm") else set()
    width = phase_1.tree["model"].get("width")
    if "projectors" not in asks or width is None:
        target = phase_1.tree["model"]["_target_"]
        raise Mistake(
            f"{named} was trained with {target}, which brings no encoders together. Give a run of model=align."
        )
    if width != composed.tree["model"]["aligner_width"]:
        raise Mistake(f"{named} has a space of {width} numbers. Set model.aligner_width={width}.")
    here = {name: node for name, node in (composed.tree.get("encoder") or {}).items() if node is not None}
    there = {name: node for name, node in phase_1.tree["encoder"].items() if node is not None}
    if not here:
        raise Mistake("model.aligner: there is no encoder that it could be for. Choose one by encoder/image=OPTION.")
    lines = []
    for name, node in here.items():
        if name not in there:
            lines.append(f"encoder.{name}: {folder} brought {', '.join(there)} together. Take it away.")
            continue
        for key in dict.fromkeys([*there[name], *node]):
            if key not in OWN and node.get(key) != there[name].get(key):
                lines.append(
                    f"encoder.{name}.{key} is {node.get(key)} here and {there[name].get(key)} in {folder}, whose "
                    "weights it is to take. Make them the same."
                )
    if lines:
        raise Mistake("\n".join(lines))
    nodes = {name: there[name] for name in here}
    return Alignment(str(folder), 0, width, nodes, phase_1.tree["projector"], ())


def build(composed: Composed, alignment: Alignment) -> dict[str, Aligned]:
    """As phase 1 made them; where files lie is for this config to say."""
    here = composed.tree["encoder"]
    nodes = {
        name: {**node, **({"path": here[name]["path"]} if "path" in here[name] else {})}
        for name, node in alignment.encoder.items()
    }
    tree = {**composed.tree, "encoder": nodes, "projector": alignment.projector}
    as_then = replace(composed, tree=tree)
    encoders = build_encoders(as_then)
    aligners = build_projectors(as_then, {name: one.width for name, one in encoders.items()}, alignment.width)
    return {name: Aligned(one, aligners[name], alignment.width) for name, one in encoders.items()}


def put_in(encoders: Mapping[str, Aligned], chosen: Chosen, phase_1: Composed) -> list[str]:
    """Give them phase 1's weights, each tensor once and none left over; gives the encoders that are no file's now."""
    owners = {name: owner_of(name, one.aligner, phase_1) for name, one in encoders.items()}
    learnt = nn.Module()
    learnt.encoder = nn.ModuleDict({name: one.encoder for name, one in encoders.items()})
    learnt.projector = nn.ModuleDict({owners[name]: one.aligner for name, one in encoders.items()})
    taken = tuple([f"encoder.{name}." for name in encoders] + [f"projector.{name}." for name in owners.values()])
    saved = {name: one for name, one in chosen.content.trainable.items() if name.startswith(taken)}
    restore(own_tensors(learnt), saved, chosen.path)
    files = chosen.content.state["files"]
    with_files = {name: one.encoder.files for name, one in encoders.items() if getattr(one.encoder, "files", None)}
    for name, own in with_files.items():
        if own != files.get(f"encoder.{name}"):
            raise Mistake(
                f"model.aligner: the weight files of encoder.{name} are not those that {chosen.path} was trained with. "
                f"Name the folder where they lie by encoder.{name}.path."
            )
    return [name for name in with_files if any(key.startswith(f"encoder.{name}.") for key in saved)]


def owner_of(modality: str, aligner: nn.Module, phase_1: Composed) -> str:
    """The modality under whose name phase 1's checkpoint has its projector: the first one's, where several share it."""
    _, apart = projectors_of(phase_1.tree)
    if modality in apart or not getattr(aligner, "shared", False):
        return modality
    return next(name for name, node in phase_1.tree["encoder"].items() if node is not None and name not in apart)


def freeze(encoders: Mapping[str, Aligned], alignment: Alignment) -> dict[str, Encoder]:
    for name, one in encoders.items():
        one.requires_grad_(False)
        if name in alignment.trained:
            one.encoder.files = {}  # type: ignore[assignment]  # its weights go into this run's own checkpoints
    return dict(cast(Mapping[str, Encoder], encoders))
