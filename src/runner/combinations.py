"""What cannot be together although each value alone is right, and files that are not there.

Each rule is a function of the config that yields sentences; it says nothing where the values themselves are wrong.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from runner.annotations import check_value
from runner.protocols import Mistake
from runner.settings import Part
from runner.spelling import did_you_mean, nearest
from runner.targets import find_target

Tree = Mapping[str, Any]

OBJECTIVE_SEATS = ("encoder", "projector", "fusion", "llm", "lora", "quantization")
"""Seats that an objective's YAML lists when it knows them."""


def check_combinations(tree: Tree, choices: Mapping[str, str], objective_seats: Sequence[str] | None) -> Iterator[str]:
    """`objective_seats`: those that the chosen objective's YAML lists; None when it is not known."""
    yield from name_is_a_folder(tree)
    yield from steps_or_epochs(tree)
    yield from batch_divides(tree)
    yield from streams(tree)
    yield from parts_say_how(tree)
    yield from local_is_one_process(tree, choices)
    yield from precision_on_device(tree)
    yield from seats_of_objective(tree, choices, objective_seats)
    yield from packing_has_a_sequence(tree, choices, objective_seats)
    yield from quantization_has_its_parts(tree)
    yield from shares_leave_rows(tree)
    yield from prepare_has_its_parts(tree)
    yield from features_have_a_folder(tree)
    yield from files_exist(tree)


def at(tree: Tree, path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def count(tree: Tree, path: str) -> int | None:
    value = at(tree, path)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def reads_no_rows(tree: Tree, plugin_folders: Sequence[Path]) -> bool:
    """Whether all that is asked for are shapes that depend on no row: with a language model, and of an objective whose
    constructor does not take `rows`."""
    if at(tree, "show.part") != "parameters":
        return False
    if tree.get("llm") is not None:
        return True
    try:
        objective = find_target("model", at(tree, "model._target_"), "model", plugin_folders)
        return "rows" not in objective.signature().arguments
    except Mistake:  # told where the config is held against its constructors
        return False


def name_is_a_folder(tree: Tree) -> Iterator[str]:
    name = tree.get("name")
    if isinstance(name, str) and (not name.strip(". ") or "/" in name or "\0" in name or len(name.encode()) > 200):
        yield f"name: {name!r} must do as a folder's name: no slash, not empty, at most 200 bytes."


def steps_or_epochs(tree: Tree) -> Iterator[str]:
    if not isinstance(tree.get("train"), Mapping):
        return
    steps, epochs = at(tree, "train.max_steps"), at(tree, "train.epochs")
    if steps is None and epochs is None:
        if "show" in tree or "prepare" in tree:  # nothing trains
            return
        yield "train.max_steps and train.epochs are both null. Set exactly one of them."
    elif count(tree, "train.max_steps") and count(tree, "train.epochs"):
        yield f"train.max_steps={steps} and train.epochs={epochs} are both set. Set exactly one and the other to null."


def batch_divides(tree: Tree) -> Iterator[str]:
    batch, processes = count(tree, "train.batch_size"), count(tree, "cluster.num_processes")
    micro = count(tree, "train.micro_batch_size")
    if batch is None or processes is None:
        return
    if count(tree, "train.micro_batch_tokens"):
        if micro is not None:
            yield (
                f"train.micro_batch_size={micro} and train.micro_batch_tokens={at(tree, 'train.micro_batch_tokens')} "
                "both say what a forward takes. Set one of them to null."
            )
        return
    if at(tree, "train.micro_batch_size") is None:
        if batch % processes:
            yield f"train.batch_size={batch} is no multiple of cluster.num_processes={processes}. Change one of them."
    elif micro is not None and batch % (micro * processes):
        yield (
            f"train.batch_size={batch} is not a multiple of train.micro_batch_size={micro} times "
            f"cluster.num_processes={processes}. Change one of them."
        )


def streams(tree: Tree) -> Iterator[str]:
    """What cannot be where the rows are not known beforehand."""
    if at(tree, "data.streaming") is not True:
        return
    if count(tree, "train.epochs"):
        yield "data.streaming=true: nobody knows how many rows an epoch has. Set train.max_steps, not epochs."
    if at(tree, "data.order") == "grouped":
        yield "data.streaming=true: rows that are not known cannot be grouped by length. Set data.order=shuffled."
    if (count(tree, "data.workers") or 0) > 1:
        yield f"data.workers={at(tree, 'data.workers')}: a stream is read by one worker at most. Set 1 or 0."
    if at(tree, "data.cache_features") is True:
        yield "data.streaming=true: items that are not known have no features yet. Set data.cache_features=false."
    if tree.get("llm") is None:
        yield "data.streaming=true: an objective without a language model goes by all its rows. Set it to false."


def parts_named(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Tree]]:
    """Of train.parts: each part's name in the model, and what is set for it."""
    for name, node in tree.items():
        if not isinstance(node, Mapping):
            continue
        own = {key: value for key, value in node.items() if not isinstance(value, Mapping)}
        if own:
            yield f"{prefix}{name}", own
        yield from parts_named(node, f"{prefix}{name}.")


def parts_say_how(tree: Tree) -> Iterator[str]:
    parts = at(tree, "train.parts")
    if not isinstance(parts, Mapping):
        return
    known = {key: annotation for key, annotation in get_type_hints(Part, include_extras=True).items()}
    for name, node in parts.items():
        if not isinstance(node, Mapping):
            yield f"train.parts.{name}: {node!r} is no part. Write train.parts.encoder.image.lr=1e-5, for instance."
    for name, node in parts_named(parts):
        path = f"train.parts.{name}"
        for key, value in node.items():
            if key not in known:
                yield f"{path}.{key}: a part has {', '.join(known)}{did_you_mean(key, known)}"
            elif line := check_value(f"{path}.{key}", value, known[key]):
                yield line
        first, last = node.get("from_step", 0), node.get("until_step")
        if isinstance(first, int) and isinstance(last, int) and first >= last:
            yield f"{path}: from_step={first} is not before until_step={last}, so it would never train."


def local_is_one_process(tree: Tree, choices: Mapping[str, str]) -> Iterator[str]:
    processes = count(tree, "cluster.num_processes")
    if choices.get("cluster") == "local" and processes not in (None, 1):
        yield f"cluster.num_processes={processes}: cluster=local is one process. Set cluster.num_processes=1."


def precision_on_device(tree: Tree) -> Iterator[str]:
    precision, device = at(tree, "precision.compute"), at(tree, "cluster.device")
    if precision not in ("fp16", "tf32") or device not in ("auto", "cpu", "cuda", "mps"):
        return
    found = available_device() if device == "auto" else device
    if found != "cuda":
        why = f"cluster.device={device}" + (
            f" finds {'none' if found == 'cpu' else 'another'}" if device == "auto" else ""
        )
        yield f"precision={precision} needs an NVIDIA GPU, and {why}. Set precision=bf16 or precision=fp32."


def available_device() -> str:
    """cuda, mps or cpu. Torch is imported only where it could have a GPU."""
    if metadata.version("torch").endswith("+cpu"):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def seats_of_objective(tree: Tree, choices: Mapping[str, str], listed: Sequence[str] | None) -> Iterator[str]:
    if listed is None:
        return
    if "llm" in listed and tree.get("llm") is None:
        yield f"llm is missing: model={choices.get('model')} needs a language model. Choose one by llm=OPTION."
    for seat in OBJECTIVE_SEATS:
        node = tree.get(seat)
        if seat not in listed and isinstance(node, Mapping) and any(one is not None for one in node.values()):
            yield no_such_seat(seat, choices.get("model"), listed)


def no_such_seat(seat: str, objective: str | None, listed: Sequence[str]) -> str:
    return f"{seat}: model={objective} has no such seat; it has {', '.join(listed)}. Take it away or change the model."


def packing_has_a_sequence(tree: Tree, choices: Mapping[str, str], listed: Sequence[str] | None) -> Iterator[str]:
    if at(tree, "data.packing") is True and listed is not None and "llm" not in listed:
        yield (
            f"data.packing: model={choices.get('model')} has no language model, so its rows are no text to lay one "
            "after another. Set data.packing=false."
        )


def quantization_has_its_parts(tree: Tree) -> Iterator[str]:
    if tree.get("quantization") is None or not isinstance(tree.get("llm"), Mapping):
        return
    if at(tree, "llm._target_") == "runner.models.llm.Tiny":
        yield (
            "quantization: the weights of llm=tiny are drawn, so there is no file to quantise. Set quantization=none, "
            "or llm=pretrained."
        )
    if tree.get("lora") is None:
        yield "quantization: weights that are quantised cannot train, and there is no adapter. Set lora=default."
    if str(at(tree, "quantization._target_")).endswith(".Int8") and at(tree, "lora.use_dora") is True:
        yield (
            "lora.use_dora: bitsandbytes cannot give back the 8-bit weights that DoRA measures. Set quantization=nf4, "
            "or lora.use_dora=false."
        )
    if find_spec("bitsandbytes") is None:
        yield (
            "quantization needs bitsandbytes, which is not installed. Install it by "
            "pip install 'multimodal-runner[quantization]', or set quantization=none."
        )


def shares_leave_rows(tree: Tree) -> Iterator[str]:
    val, test = at(tree, "prepare.val_share"), at(tree, "prepare.test_share")
    if isinstance(val, int | float) and isinstance(test, int | float) and val + test >= 1:
        yield f"prepare.val_share={val} and prepare.test_share={test} leave no row to train on. Lower one of them."
    if at(tree, "prepare.time_by") is not None and at(tree, "prepare.stratify_by") is not None:
        yield "prepare.time_by and prepare.stratify_by are both set: rows go by time or by class. Set one to null."


def prepare_has_its_parts(tree: Tree) -> Iterator[str]:
    for needed, package, without in (
        (at(tree, "prepare.near_duplicates") is not None, "datasketch", "prepare.near_duplicates=null"),
        (at(tree, "prepare.languages") is True, "py3langid", "prepare.languages=false"),
    ):
        if needed and find_spec(package) is None:
            yield (
                f"prepare needs {package}, which is not installed. Install it by pip install "
                f"'multimodal-runner[prepare]', or set {without}."
            )


def features_have_a_folder(tree: Tree) -> Iterator[str]:
    if at(tree, "data.cache_features") is True and at(tree, "data.cache") is None:
        yield "data.cache_features=true keeps features in data.cache, which is null. Name a folder there."


def files_exist(tree: Tree) -> Iterator[str]:
    for path in ("data.path", "data.val_path", "lora.init"):
        value = at(tree, path)
        several = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
        for one in several:
            if isinstance(one, str) and "://" not in one and not os.path.exists(one) and not matches(one):
                yield f"{path}: there is no {one}{beside(one)}. Give a file or folder that exists."
    weights = at(tree, "llm.path")
    if isinstance(weights, str) and looks_like_path(weights) and not os.path.exists(weights):
        yield f"llm.path: there is no {weights}{beside(weights)}. Give a folder, or a hub's owner/name."
    resume = tree.get("resume")
    if isinstance(resume, str) and resume != "auto" and not os.path.exists(resume):
        yield f"resume: there is no {resume}{beside(resume)}. Give auto, a run's folder or a checkpoint."


def matches(path: str) -> bool:
    """Whether it is a pattern (`shards/*.jsonl`) that some file has."""
    return glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None


def looks_like_path(text: str) -> bool:
    """Rather than a hub's `owner/name`."""
    return text.startswith((".", "/")) or text.count("/") > 1 or "\\" in text


def beside(path: str) -> str:
    """`; did you mean PATH?` when something with a near name lies in the same folder, else how far the path exists."""
    place = Path(path)
    try:
        near = nearest(place.name, os.listdir(place.parent))
    except OSError:
        return f" (nor a folder {place.parent})"
    return f" (there is {place.parent / near})" if near else ""
