"""Run a verb's command line: composed and checked first, so that every mistake is told at once, then by Hydra."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import CONF, Composed, Composer, Report, refuse_sweeps
from runner.folders import choose_folder, free_folder, make_folder, writing
from runner.protocols import Mistake, Stopped
from runner.quoting import in_quotes, quote, without_interpolation
from runner.resolving import why
from runner.run_folder import failure_of, read_status, record_failure
from runner.spelling import did_you_mean
from runner.sweep import check_sweep
from runner.verbs import DONE, FAULT, MISTAKE, VERBS, WITH_RUN_FOLDER

QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""A run's folder and log are ours, not Hydra's."""
KEPT = 2**30
"""Bytes: freed memory up to this stays with the process; a larger piece comes from the kernel and goes back to it."""


def run_verb(verb: str, words: Sequence[str]) -> int:
    """The exit code. Raises `Mistake` before anything is built, and SystemExit after one of Hydra's own pages."""
    spin_briefly()
    keep_freed_memory()
    flags = read_flags(verb, words)
    named = f"hydra.job.name={verb}"
    hydra_words = [word for word in words if word not in flags.overrides]
    if flags.hydra_help or flags.info in ("plugins", "searchpath"):
        return enter_hydra(verb, [*hydra_words, named, *flags.overrides], job=None)
    composer, report = Composer(verb, flags.config_dir, flags.config_name), Report()
    sweeping = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides
    given = composer.read([quote(word, sweeping) for word in flags.overrides], report)
    config = composer.load([one for one in given if not one.is_sweep], report)
    given = [one for one in given if one.text]
    if flags.help or flags.cfg or flags.info:
        refuse_sweeps(given, report)
        composer.check(config, report)
        if not flags.resolve:
            report.values.clear()  # a config may be looked at before it is whole
        report.raise_if_any()
        return enter_hydra(verb, [*hydra_words, named, *(one.text for one in given)], job=None)
    sweeping = sweeping or str(config.hydra.mode).endswith("MULTIRUN")
    if sweeping:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        composed = check_sweep(composer, given, params, report)
    else:
        refuse_sweeps(given, report)
        composed = composer.check(config, report)
        report.raise_if_any()
    words = [*hydra_words, named, *QUIET, *(one.text for one in given)]
    return run_jobs(verb, flags, words, composed, config, sweeping)


def spin_briefly() -> None:
    """Let CPU threads wait for each other asleep after 0.2 ms or so, not 10 times that: docs/BENCHMARKS.md has figures.

    It must be said before torch is imported, so the command line says it; a user's own choice goes before it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def keep_freed_memory() -> None:
    """Let glibc give freed tensors to the next ones, not back to the kernel, which zeroes every page it hands out.

    By default what is larger than 32 MB goes back at once, so that a batch of 32 pictures took a CPU twice as long a
    picture as one of 8: docs/BENCHMARKS.md has figures. A user's own choice goes before it. The environment is read
    when a process starts, so it is for those that this one starts.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc; other C libraries lack it
    for name, parameter in (("MALLOC_TRIM_THRESHOLD_", -1), ("MALLOC_MMAP_THRESHOLD_", -3)):
        os.environ[name] = str(KEPT)
        if mallopt is not None:
            mallopt(parameter, KEPT)


def run_jobs(
    verb: str, flags: argparse.Namespace, words: list[str], composed: Composed, config: DictConfig, sweeping: bool
) -> int:
    codes: list[int] = []

    def job(task: DictConfig) -> None:
        codes.append(run_job(verb, flags.config_dir, flags.config_name, task, sweeping))

    with tempfile.TemporaryDirectory() as nowhere:
        folder = folder_of(composed, config, sweeping) if verb in WITH_RUN_FOLDER else Path(nowhere)
        key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
        enter_hydra(verb, [*words, f"{key}={in_quotes(without_interpolation(str(folder)))}"], job)
        # A launcher may run its jobs in other processes; then their status.json tells.
        return worst(codes or [read_status(one.parent).get("exit_code") or DONE for one in folder.rglob("status.json")])


def folder_of(composed: Composed, config: DictConfig, sweeping: bool) -> Path:
    """Of the run, or of the whole sweep."""
    if not sweeping:
        return choose_folder(composed.tree, given_path(config, "hydra.run.dir"))
    path = given_path(config, "hydra.sweep.dir")
    if path:
        return make_folder(Path(path))
    parent = Path("multirun", composed.tree["name"])
    with writing(parent):
        return free_folder(parent)


def read_flags(verb: str, words: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, and the overrides wherever they stand. Raises `Mistake` for a flag that cannot be taken."""
    parser = get_args_parser()
    known = list(parser._option_string_actions)

    def refuse(message: str) -> NoReturn:
        unknown = [word for word in words if word.startswith("-") and word not in known]
        hint = did_you_mean(unknown[0], known) if unknown else "."
        raise Mistake(f"runner {verb}: {message}{hint}")

    parser.error = refuse  # type: ignore[method-assign]
    for word in words:
        if not word.isprintable() and re.search("[\0\ud800-\udfff]", word):
            raise Mistake(f"{word!a} holds what is no UTF-8 text, or a NUL. Write it in UTF-8.")
    flags = parser.parse_intermixed_args(list(words))
    if sum(word.partition("=")[0] in ("--config-dir", "-cd") for word in words) > 1:
        raise Mistake("--config-dir is given twice, but there can be one such folder. Put the files into one.")
    if flags.experimental_rerun is not None:
        raise Mistake(
            "--experimental-rerun would run a pickle, which may hold any code. Give the overrides themselves."
        )
    if flags.config_path is not None:
        raise Mistake("--config-path would replace every option of runner. Add a folder of your own by --config-dir.")
    if flags.config_dir is not None:
        flags.config_dir = Path(flags.config_dir)
    if sum(map(bool, (flags.run, flags.multirun, flags.cfg, flags.info, flags.help))) > 1:
        raise Mistake("Only one of --run, --multirun, --cfg, --info and --help can be given.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise Mistake("--resolve goes with --cfg or --help.")
    return flags


def enter_hydra(
    verb: str, words: Sequence[str], job: Callable[[DictConfig], None] | None, program: str | None = None
) -> int:
    """Run Hydra on these words. `job` is None for what Hydra prints, `program` the name that it goes by."""

    def task(config: DictConfig) -> None:
        sys.argv = before
        if job is not None:
            job(config)

    before, asked = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program or f"runner {verb}", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints a traceback of its own and exits
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=verb)(task)()
    except SystemExit as end:
        if job is None and end.code == 1:  # a page that it cannot show: --package of a key that is not there
            raise SystemExit(MISTAKE) from end
        raise
    finally:
        sys.argv = before
        if asked is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = asked
    return DONE


def given_path(config: DictConfig, key: str) -> str | None:
    """hydra.run.dir or hydra.sweep.dir where the user gave one, by the command line or a YAML file."""
    raw = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(raw, dict)
    if raw[key.split(".")[1]]["dir"].endswith("/${now:%Y-%m-%d}/${now:%H-%M-%S}"):  # Hydra's own
        return None
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)  # for ${hydra:...} in the path
    try:
        return str(OmegaConf.select(config, key))
    except OmegaConfBaseException as error:
        raise Mistake(f"{key}: it does not resolve{why(error)}") from error
    finally:
        holder.cfg = before


def run_job(verb: str, config_dir: Path | None, config_name: str | None, task: DictConfig, sweeping: bool) -> int:
    """One job inside Hydra: its exit code. Raises only SystemExit, after a stop by a signal, which ends a sweep."""
    own = HydraConfig.get()
    folder = Path(own.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    if sweeping:
        overrides = OmegaConf.to_container(own.overrides.task, resolve=False)
        print(f"job {own.job.num}: {' '.join(map(str, overrides or ()))}", file=sys.stderr)

    def work() -> None:
        report = Report()
        config = OmegaConf.merge({"hydra": own}, task)
        assert isinstance(config, DictConfig)
        composed = Composer(verb, config_dir, config_name).check(config, report)
        report.raise_if_any()
        call(verb, composed, folder)

    return attempt(work, folder if verb in WITH_RUN_FOLDER else None)


def attempt(work: Callable[[], None], folder: Path | None) -> int:
    """Its exit code; what went wrong is told on stderr and recorded in the run's folder, if there is one."""
    try:
        work()
        return DONE
    except Stopped as error:
        tell(str(error), folder)
        raise SystemExit(128 + error.signal) from error
    except Exception as error:
        code, text = failure_of(error, folder / "train.log" if folder else None)
    if folder is not None:
        record_failure(folder, code, text)
    tell(text, folder)
    return code


def tell(text: str, folder: Path | None) -> None:
    """On stderr, and in the run's train.log."""
    print(text, file=sys.stderr)
    if folder is not None:
        with suppress(OSError), (folder / "train.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def call(verb: str, composed: Composed, folder: Path) -> dict[str, Any]:
    module, _, name = VERBS[verb].partition(":")
    function = getattr(import_module(module), name)
    return dict(function(composed, folder) if verb in WITH_RUN_FOLDER else function(composed))


def worst(codes: Sequence[int]) -> int:
    """Of the jobs of a sweep: a stop by a signal is worse than a fault, a fault worse than a mistake."""
    order = (DONE, MISTAKE, FAULT)
    return max(codes, key=lambda code: order.index(code) if code in order else code, default=DONE)


def run_in_python(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The same words from Python: the verb's summary. Raises what went wrong; the run's folder has a record of it."""
    flags = read_flags(verb, words)
    if flags.multirun or flags.cfg or flags.info or flags.help or flags.hydra_help:
        raise Mistake("From Python, overrides, --config-dir and --config-name can be given; sweep by a loop.")
    composer, report = Composer(verb, flags.config_dir, flags.config_name), Report()
    given = composer.read([quote(word, sweeping=False) for word in flags.overrides], report)
    refuse_sweeps(given, report)
    config = composer.load(given, report)
    composed = composer.check(config, report)
    report.raise_if_any()
    folder = choose_folder(composed.tree, given_path(config, "hydra.run.dir"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return call(verb, composed, folder)
    except Stopped:
        raise
    except Exception as error:
        record_failure(folder, MISTAKE if isinstance(error, Mistake) else FAULT, str(error))
        raise
