"""What is distributed: a wheel that is whole and works outside the checkout, and pins for all that it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    code = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "runner").rglob("*.py")}
    conf = {str("runner" / file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.yaml")}
    about = f"multimodal_runner-{PROJECT['version']}.dist-info"
    assert len(code) > 20 and len(conf) > 20
    assert (code | conf | {f"{about}/licenses/LICENSE", f"{about}/entry_points.txt"}) - names == set()
    assert {name.partition("/")[0] for name in names} == {"runner", about}


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path, working_folder: Path) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    train = unpacked / "runner" / "conf" / "train.yaml"
    train.write_text(train.read_text(encoding="utf-8").replace("\nseed: 0\n", "\nseed: 4711\n"), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "runner", "train", "--cfg", "job", "optimizer.lr=0.25"],
        capture_output=True,
        text=True,
        cwd=working_folder,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )
    assert ran.returncode == 0, ran.stderr
    assert {"seed: 4711", "  lr: 0.25", "  _target_: runner.data.digits.Digits"} <= set(ran.stdout.splitlines())


def needed(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """The names of a requirement and of all that it brings on this machine."""
    name = canonicalize_name(requirement.name)
    key = f"{name}{sorted(requirement.extras)}"
    if key in seen:
        return
    seen.add(key)
    yield name
    for below in map(Requirement, requires(requirement.name) or []):
        if not below.marker or any(below.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            yield from needed(below, seen)


def test_all_that_is_needed_has_an_exact_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []  # no local version, no host
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    requirements = [*map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])]
    for requirement in requirements:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    seen: set[str] = set()
    # NVIDIA's libraries come with a build of torch for GPUs, which pins them itself.
    brought = {name for one in requirements for name in needed(one, seen) if not name.startswith(("nvidia-", "cuda-"))}
    assert brought - pinned.keys() - {"triton"} == set()
    assert not {"torchvision", "torchaudio"} & pinned.keys()
