"""Comet: online with an API key, else its offline archive in the run's folder (comet/*.zip), which touches no network.

An online run whose server does not answer goes into an archive as well. Every wait for the server is bounded by the
settings below; a COMET_* variable that the user has set goes before them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from comet_ml import CometExperiment
    from PIL.Image import Image

    from runner.protocols import Prediction, RunDescription

LOGGER = logging.getLogger(__name__)

ENVIRONMENT = {
    "COMET_ERROR_TRACKING_ENABLE": "false",  # else it looks up and calls Sentry, offline too
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_LOGGING_CONSOLE": "CRITICAL",  # what goes wrong is told in one line by this file
    # Seconds and retries. Comet's own wait for hours at the end of a run, and half a minute for a refused connection.
    "COMET_TIMEOUT_HTTP": "4",
    "COMET_TIMEOUT_API": "4",
    "COMET_TIMEOUT_FILE_UPLOAD": "10",
    "COMET_TIMEOUT_CLEANING": "10",
    "COMET_TIMEOUT_UPLOAD": "10",
    "COMET_HTTP_SESSION_RETRY_TOTAL": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_TOTAL": "0",
    "COMET_GET_OR_ADD_EXPERIMENT_RETRY_CONNECT": "0",
}
NOTHING_BY_ITSELF: dict[str, Any] = dict.fromkeys(
    "log_code log_graph parse_args log_git_metadata log_git_patch log_env_details log_env_gpu log_env_host log_env_cpu "
    "log_env_network log_env_disk auto_output_logging auto_param_logging auto_metric_logging auto_log_co2".split(),
    False,
)
"""Only what this file logs is logged; log_env_details alone would ask 169.254.169.254 for the cloud's name."""
SMALLEST_SIDE, LARGEST_SIDE = 256, 1024
"""Pixels of a logged picture's longer side: an 8 x 8 scan is enlarged so that a person sees it, a photo is reduced."""
EMPTY_ARCHIVE_BYTES = 22
"""Comet makes the archive when a run starts and fills it at the end: this is what a killed run leaves."""


class Comet:
    """`api_key` None or empty means offline, even where ~/.comet.config has a key: the run's config decides."""

    def __init__(self, project: str, workspace: str | None, api_key: str | None, tags: list[str]) -> None:
        self._project = project
        self._workspace = workspace
        self._api_key = api_key
        self._tags = tags
        self._experiment: CometExperiment | None = None
        self._key: str | None = None
        self._online = False
        self._folder = Path()
        self._archives: set[Path] = set()
        """Those of the run's earlier lives."""

    @property
    def resume_key(self) -> str | None:
        return self._key

    def start(self, run: RunDescription) -> None:
        self._folder = run.folder / "comet"
        self._archives = set(self._folder.glob("*.zip"))
        for archive in self._archives:
            if archive.stat().st_size == EMPTY_ARCHIVE_BYTES:
                archive.unlink()
        self._key = run.resume_key
        experiment = self._start_online(run) if self._api_key else None
        self._online = experiment is not None
        experiment = experiment or self._open(run, online=False)
        self._experiment, self._key = experiment, experiment.get_key()
        experiment.log_parameters(dict(run.parameters))
        experiment.log_asset(str(run.config_file), file_name=run.config_file.name)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self._experiment is not None:
            self._experiment.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)

    def log_samples(self, predictions: Sequence[Prediction], step: int) -> None:
        """A table `samples-step-N.csv`, and each picture under its row's id with question, answer and truth."""
        if self._experiment is None:
            return
        columns = ("id", "prompt", "answer", "truth")
        table = [[getattr(one, column) for column in columns] for one in predictions]
        self._experiment.log_table(f"samples-step-{step}.csv", table, headers=list(columns))
        for one, cells in zip(predictions, table, strict=True):
            metadata = dict(zip(columns, cells, strict=True))
            for k, picture in enumerate(pictures(one)):
                name = f"{one.id} {k + 1}" if k else one.id
                self._experiment.log_image(picture, name=name, step=step, metadata=metadata)

    def finish(self, status: Literal["finished", "failed", "stopped"]) -> None:
        if self._experiment is None:
            return
        experiment, self._experiment = self._experiment, None
        experiment.log_other("status", status)
        close(experiment)
        for archive in sorted(set(self._folder.glob("*.zip")) - self._archives):
            if self._online:
                LOGGER.warning(
                    "Comet did not take the whole run. To send it: comet upload --force-reupload %s", archive
                )
            else:
                LOGGER.info("Comet's archive; to send it: comet upload %s", archive)

    def _start_online(self, run: RunDescription) -> CometExperiment | None:
        """None, and one line of warning, when the server cannot be reached or does not take the key."""
        with LastError() as last:
            try:
                experiment = self._open(run, online=True)
                if experiment.alive:
                    return experiment
                close(experiment)
                reason = last.text
            except Exception as error:
                reason = str(error)
        reason = " ".join(reason.replace(str(self._api_key), "$COMET_API_KEY").split())
        reason = reason.split(" For more details")[0][:300]
        LOGGER.warning("Comet is not online; the run goes into an archive in %s. Reason: %s", self._folder, reason)
        return None

    def _open(self, run: RunDescription, online: bool) -> CometExperiment:
        comet_ml = import_comet()
        return comet_ml.start(
            online=online,
            api_key=self._api_key if online else None,
            project_name=self._project,
            workspace=self._workspace,
            experiment_key=self._key,
            mode="get_or_create",
            experiment_config=comet_ml.ExperimentConfig(
                name=run.name,
                tags=self._tags,
                offline_directory=str(self._folder),
                display_summary_level=0,
                **NOTHING_BY_ITSELF,
            ),
        )


class LastError(logging.Handler):
    """The last error that Comet logged while the block ran: it logs what other libraries raise."""

    text = "unknown"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()

    def __enter__(self) -> LastError:
        import_comet()
        self._comet = logging.getLogger("comet_ml")
        self._level = self._comet.level
        self.setLevel(logging.ERROR)
        self._comet.setLevel(min(self._level, logging.ERROR))
        self._comet.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._comet.removeHandler(self)
        self._comet.setLevel(self._level)


def import_comet() -> Any:
    """comet_ml, quiet and bounded. Its hook on uncaught exceptions is taken off: it would call the server."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    hook = sys.excepthook
    import comet_ml

    sys.excepthook = hook
    return comet_ml


def close(experiment: CometExperiment) -> None:
    experiment.end()
    shutil.rmtree(experiment.tmpdir, ignore_errors=True)  # an online one leaves it


def pictures(prediction: Prediction) -> Iterator[Image]:
    """A prediction's pictures in a size that a person can look at."""
    from PIL import Image, ImageOps

    for modality, items in prediction.items.items():
        for item in items:
            if isinstance(item, Image.Image):
                picture = item
            elif modality == "image":
                with Image.open(item) as file:
                    picture = ImageOps.exif_transpose(file)
            else:
                continue
            picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
            longer = max(picture.size)
            if longer < SMALLEST_SIDE:
                factor = SMALLEST_SIDE // longer
                picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
            picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            yield picture
