"""Where the curves of a run go: TensorBoard's files always, and services that people keep their experiments in.

Each service is reached through its own package, which is imported only when asked for, and set up as it always is: by its login,
its environment variables and its files. Offline modes are theirs too (docs/training.md).
"""

import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from resnest_det.errors import UserError, nearest
from resnest_det.files import atomic_write

logger = logging.getLogger(__name__)

PROJECT = "resnest_det"
_RUNS = "tracking.json"  # in the run's folder: service to the name of the run there, for resuming


class Writer(Protocol):
    """Takes curves and pictures."""

    def scalars(self, values: Mapping[str, float], iteration: int) -> None: ...

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """A picture, (H, W, 3) uint8 RGB."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`; a resumed run takes the place of what was written from `start_iteration` on."""

    def __init__(self, folder: str, start_iteration: int = 0):
        # Importing TensorBoard takes a second, which evaluating alone need not spend.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=start_iteration or None)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._writer.add_image(name, image, iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases."""

    package = "wandb"

    def __init__(self, module: ModuleType, folder: str, settings: Mapping, run: str | None):
        self._module = module
        self._run = module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", _name_of(folder)),
            dir=folder,
            config=dict(settings),
            id=run,
            resume="allow" if run else None,
        )
        self.run = self._run.id

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(values), step=iteration)

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._run.log({name: self._module.Image(image)}, step=iteration)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow; without MLFLOW_TRACKING_URI, in the file mlflow.db of the run's folder."""

    package = "mlflow"

    def __init__(self, module: ModuleType, folder: str, settings: Mapping, run: str | None):
        self._module = module
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            module.set_tracking_uri(f"sqlite:///{Path(folder, 'mlflow.db').resolve()}")
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if module.get_experiment_by_name(experiment) is None:
            # Of a store of its own, pictures stay in the folder too.
            here = None if os.environ.get("MLFLOW_TRACKING_URI") else Path(folder, "mlartifacts").resolve().as_uri()
            module.create_experiment(experiment, artifact_location=here)
        module.set_experiment(experiment)
        self.run = module.start_run(run_id=run, run_name=None if run else _name_of(folder)).info.run_id
        if not run:
            texts = {key: str(value) for key, value in settings.items()}
            module.log_params({key: text[:500] for key, text in texts.items()})

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        # Only some characters may be in its names; a class may be called anything.
        self._module.log_metrics({_plain(name): value for name, value in values.items() if np.isfinite(value)}, step=iteration)

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._module.log_image(image, key=_plain(name).replace("/", "_"), step=iteration)

    def close(self) -> None:
        self._module.end_run()


class ClearML:
    """ClearML."""

    package = "clearml"

    def __init__(self, module: ModuleType, folder: str, settings: Mapping, run: str | None):
        self._task = module.Task.init(
            project_name=os.environ.get("CLEARML_PROJECT", PROJECT),
            task_name=_name_of(folder),
            continue_last_task=run or False,
            reuse_last_task_id=False,
            # Nothing is taken by itself: the same curves would come from TensorBoard's files, and models from torch.save.
            auto_connect_frameworks=False,
            auto_connect_arg_parser=False,
        )
        self._task.connect({key: str(value) for key, value in settings.items()}, name="configuration")
        self.run = self._task.id

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            title, _, series = name.rpartition("/")
            self._task.get_logger().report_scalar(title or "training", series, value, iteration)

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._task.get_logger().report_image("pictures", name, iteration, image=image)

    def close(self) -> None:
        self._task.close()


class Comet:
    """Comet; offline, the archive that `comet upload` takes is in the run's folder."""

    package = "comet_ml"

    def __init__(self, module: ModuleType, folder: str, settings: Mapping, run: str | None):
        self._experiment = module.start(
            project_name=os.environ.get("COMET_PROJECT_NAME", PROJECT),
            experiment_key=run,
            online=False if os.environ.get("COMET_START_ONLINE", "") in ("0", "false", "False") else None,
            experiment_config=module.ExperimentConfig(
                name=_name_of(folder), offline_directory=folder, auto_metric_logging=False, auto_param_logging=False
            ),
        )
        self._experiment.log_parameters({key: str(value) for key, value in settings.items()})
        self.run = self._experiment.get_key()

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self._experiment.log_metrics(dict(values), step=iteration)

    def image(self, name: str, image: np.ndarray, iteration: int) -> None:
        self._experiment.log_image(image, name=name, step=iteration)

    def close(self) -> None:
        self._experiment.end()


SERVICES = {"wandb": Wandb, "mlflow": Mlflow, "clearml": ClearML, "comet": Comet}


def check_services(names: Sequence[str]) -> None:
    """That the services are known and their packages installed.

    Raises:
        UserError: one is not; the message says how to install it.
    """
    for name in names:
        if name not in SERVICES:
            near = nearest(name, SERVICES, count=1)
            raise UserError(f"{name!r} is none of {', '.join(SERVICES)}" + (f"; did you mean {near[0]}?" if near else ""))
        _package_of(name)


def open_services(names: Sequence[str], folder: str, settings: Mapping[str, object], *, resumed: bool) -> list[Writer]:
    """A writer for each service in `names`.

    Args:
        folder: of the run, whose name the run gets there.
        settings: its configuration by full keys.
        resumed: go on with the services' runs that this folder has begun.

    Raises:
        UserError: one cannot be reached, is not set up, or is not installed.
    """
    file = Path(folder, _RUNS)
    try:
        earlier = json.loads(file.read_text()) if resumed and names else {}
        runs = {name: run for name, run in earlier.items() if name in SERVICES and isinstance(run, str)}
    except (OSError, ValueError, AttributeError):
        runs = {}
    opened = []
    for name in names:
        try:
            writer = SERVICES[name](_package_of(name), folder, settings, runs.get(name))
        except UserError:
            raise
        except Exception as error:  # each package has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name} cannot be used: {reason[:400]}; without it, leave --track {name} out") from error
        runs[name] = writer.run
        opened.append(writer)
    if opened:
        with atomic_write(file) as out:
            json.dump(runs, out)
    return opened


def _package_of(name: str) -> ModuleType:
    package = SERVICES[name].package
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f'{name} needs the package {package}, which is not installed: pip install "{package}"') from error


def _name_of(folder: str) -> str:
    return Path(folder).resolve().name or PROJECT


def _plain(name: str) -> str:
    return "".join(each if each.isalnum() or each in "_-. /" else "_" for each in name)
