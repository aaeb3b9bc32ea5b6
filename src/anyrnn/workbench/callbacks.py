"""Training runs as TensorBoard, MLflow and Weights & Biases show them: `compare(..., callbacks=[TensorBoard("logs")])`.

A callback is anything that is called after each epoch with a record, the content of a line of `metrics.jsonl`; at the
end its `close` is called, if it has one. The packages are imported at the first use, and no dependencies of anyrnn.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyrnn.errors import AnyRNNError

Record = Mapping[str, Any]
# Of a record, the numbers that make curves. A score stands there by the name of its metric.
_CURVES = ("train_loss", "validation_loss", "learning_rate")
_PACE = "_a_second"  # the end of the name of another: of sequences, windows or tokens


def curves(record: Record) -> dict[str, float]:
    """The numbers of a record that make curves, by name.

    >>> curves({"metric": "rmse", "train_loss": 0.5, "validation_score": 2.0, "test_score": None})
    {'train_loss': 0.5, 'validation_rmse': 2.0}
    """
    found = {name: record.get(name) for name in _CURVES}
    found |= {name: value for name, value in record.items() if name.endswith(_PACE)}
    found |= {f"{part}_{record['metric']}": record.get(f"{part}_score") for part in ("validation", "test")}
    return {name: float(value) for name, value in found.items() if value is not None}


def _name(record: Record) -> str:
    return f"{str(record['model']).replace(':', '.')}-{record['seed']}"


def _needed(module: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise AnyRNNError(f"{what} needs the package {package}: pip install {package} ({cause})") from cause


class TensorBoard:
    """Writes what TensorBoard shows: a folder for each training run, MODEL-SEED.

    A run that goes on from a checkpoint replaces the points that came after it.

    Args:
        folder: To be named to `tensorboard --logdir`.

    Raises:
        AnyRNNError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._make = _needed("torch.utils.tensorboard", "tensorboard", "TensorBoard").SummaryWriter
        self._folder = Path(folder)
        self._writers: dict[str, Any] = {}

    def __call__(self, record: Record) -> None:
        """Write the points of an epoch, and see that they are in the file."""
        name, epoch = _name(record), record["epoch"]
        if name not in self._writers:
            self._writers[name] = self._make(self._folder / name, purge_step=epoch)
        for curve, value in curves(record).items():
            self._writers[name].add_scalar(curve, value, epoch)
        self._writers[name].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """Logs each training run as a run of MLflow, MODEL-SEED.

    Args:
        experiment: Its name.
        tracking_uri: Where MLflow keeps it, such as "sqlite:///mlflow.db"; None: where its own settings say.

    Raises:
        AnyRNNError: if the package mlflow is not installed.
    """

    def __init__(self, experiment: str, tracking_uri: str | None = None) -> None:
        client = _needed("mlflow.tracking", "mlflow", "MLflow").MlflowClient
        self._client = client(tracking_uri=tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._runs: dict[str, str] = {}

    def __call__(self, record: Record) -> None:
        """Log the points of an epoch."""
        name = _name(record)
        if name not in self._runs:
            run = self._client.create_run(self._experiment, run_name=name)
            self._runs[name] = run.info.run_id
            for parameter in ("model", "seed", "epochs"):
                self._client.log_param(run.info.run_id, parameter, record[parameter])
        for curve, value in curves(record).items():
            self._client.log_metric(self._runs[name], curve, value, step=record["epoch"])

    def close(self) -> None:
        """Say that the runs have ended."""
        for run in self._runs.values():
            self._client.set_terminated(run)


class WeightsAndBiases:
    """Logs each training run as a run of Weights & Biases, MODEL-SEED.

    Args:
        project: Its name.
        group: What its runs have in common; None: nothing.
        options: Further arguments of `wandb.init`, such as `mode="offline"`.

    Raises:
        AnyRNNError: if the package wandb is not installed.
    """

    def __init__(self, project: str, group: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._init = _needed("wandb", "wandb", "WeightsAndBiases").init
        self._options = {"project": project, "group": group, **(options or {})}
        self._run: Any = None
        self._name = ""

    def __call__(self, record: Record) -> None:
        """Log the points of an epoch."""
        name = _name(record)
        if name != self._name:
            self.close()
            config = {key: record[key] for key in ("model", "seed", "epochs")}
            self._run, self._name = self._init(name=name, config=config, **self._options), name
        self._run.log(curves(record), step=record["epoch"])

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
        self._run, self._name = None, ""
