"""A class or a number for whole sequences: scikit-learn's interface around the workbench's training and splitting."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Self

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state, column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from anyrnn.errors import AnyRNNError
from anyrnn.sklearn.inputs import absent_in, read_groups, read_sequences, read_weights
from anyrnn.workbench.gaps import GAPS, Gaps
from anyrnn.workbench.lesson import using_threads
from anyrnn.workbench.models import Network, Pool, Predictions, network, own_network
from anyrnn.workbench.plain import as_numpy
from anyrnn.workbench.schedules import Schedule
from anyrnn.workbench.sequences import Sequences
from anyrnn.workbench.split import split_validation
from anyrnn.workbench.train import Settings, Untested, train

Cell = str | Callable[[int, int], nn.Module]
Absent = str | float | Sequence[str | float] | None

# PyTorch has one random generator and one number of threads a process: what runs in several threads takes turns.
ONE_AT_A_TIME = threading.Lock()


class _RecurrentEstimator(BaseEstimator):
    """What the classifier and the regressor share."""

    def __init__(
        self,
        cell: Cell = "lstm",
        *,
        hidden_size: int = 100,
        layers: int = 1,
        bidirectional: bool = False,
        pool: Pool = "last",
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 0.005,
        schedule: Schedule = "one-cycle",
        validation: float = 0.2,
        patience: int | None = None,
        metric: str | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        clip_gradient: float | None = None,
        missing: Absent = None,
        gaps: Gaps = "fill",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.layers = layers
        self.bidirectional = bidirectional
        self.pool = pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.metric = metric
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_gradient = clip_gradient
        self.missing = missing
        self.gaps = gaps
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = absent_in(self) is not None
        return tags

    def _fit(
        self,
        x: tuple[Tensor, ...],
        y: Tensor,
        classes: tuple[str, ...] | None,
        weights: NDArray[np.float64],
        groups: tuple[str, ...] | None,
    ) -> None:
        """Train on sequences with targets as the workbench has them. A weight of 0 leaves a sequence out."""
        name = type(self).__name__
        settings = self._settings()
        if self.gaps not in GAPS:
            raise AnyRNNError(f"{name}: got gaps={self.gaps!r}, expected one of {', '.join(GAPS)}")
        share = plain(self.validation)
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise AnyRNNError(f"{name}: got validation={share!r}, expected a share from 0 to below 1")
        counted = np.flatnonzero(weights)
        whole = Sequences(x, y, tuple(map(str, range(len(x)))), groups).subset(counted.tolist())
        if np.ptp(weights[counted]) > 0:
            whole = replace(whole, weights=torch.from_numpy(weights[counted]))
        seed = seed_of(self.random_state)
        learned, chosen_by, how = split_validation(whole, classes, share, seed)
        features = tuple(f"channel {k}" for k in range(self._channels))
        absent = absent_in(self)
        told = None if absent is None else absent.texts, self.gaps
        data = Untested(features, classes, learned, chosen_by, how, *told)
        with ONE_AT_A_TIME:
            self.model_, run = train(network_of(self.cell, name), data, settings, seed)
        self.history_ = [
            {key: value for key, value in asdict(epoch).items() if value is not None} for epoch in run.history
        ]
        self.n_iter_, self.best_epoch_ = len(run.history), run.epoch
        self.split_ = how

    def _settings(self) -> Settings:
        given = {field.name: getattr(self, field.name) for field in fields(Settings) if hasattr(self, field.name)}
        return Settings(**{name: plain(value) for name, value in given.items()}, threads=threads_of(self.n_jobs))

    def _predict(self, X: Any) -> Predictions:
        check_is_fitted(self)
        x = read_sequences(self, X, reset=False)
        as_trained = Settings(hidden_size=self.model_.structure.hidden_size, threads=threads_of(self.n_jobs))
        with ONE_AT_A_TIME, using_threads(as_trained.thread_count):
            return self.model_.predict(x)

    def _targets(self, x: tuple[Tensor, ...], y: Any) -> Any:
        """Y as scikit-learn takes it: one for each sequence, and no NaN."""
        name = type(self).__name__
        if y is None:
            raise AnyRNNError(
                f"{name} requires y to be passed, but the target y is None: give one target for each sequence of X"
            )
        if isinstance(y, np.ma.MaskedArray):
            y = as_numpy(f"{name}: y", y)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y", estimator=self)
        y = column_or_1d(y, warn=True)
        if len(x) != len(y):
            raise AnyRNNError(
                f"{name}: X has {len(x)} sequences and y {len(y)} targets, expected one target for each sequence"
            )
        return y


class RecurrentClassifier(ClassifierMixin, _RecurrentEstimator):
    """A recurrent network that tells to which class a whole sequence belongs.

    X is an array (n, T, C) of n sequences with C channels, or an array or a table (n, T) of series with one channel, or
    a list of n arrays (T_i, C), for sequences of their own lengths; y has one class for each, of any type. What the
    workbench does is done: channels are scaled by the training part, a validation part chooses the epoch whose weights
    are kept, and the same seed gives the same network as ``anyrnn fit``.

    Args:
        cell: The name of a network of the workbench ("lstm", "gru", "layernorm-lstm", ...; "module:Class" is a cell
            of your own by name), or the class of a cell of your own, or a function; they are called as
            ``cell(input_size, hidden_size)``. To be pickled, or to train in several processes, it has to be one that
            a module holds, no lambda.
        hidden_size: H, the units of each layer and direction.
        layers: One upon the other, where the cell's name does not say it.
        bidirectional: Each layer has a second direction, that reads from the end.
        pool: How the steps are summarised: "last", "mean" or "max".
        epochs: Passes over the training sequences, at most. None: 20, or as many as make 200 updates if that is more.
        batch_size: Sequences an update.
        learning_rate: The highest of the schedule.
        schedule: "one-cycle", "cosine", "plateau" or "constant".
        validation: The share of the sequences, or groups, that are not trained on, and choose the epoch. With fewer
            than 100 sequences, or 10 groups, or 0, there is no such part, and the weights of the last epoch are kept;
            `split_` says which it was.
        patience: Epochs without a better validation score after which training ends. None: 10 for "plateau" and
            "constant", else never.
        metric: The score on the validation part that chooses: "accuracy" (if None), "balanced-accuracy", "macro-f1",
            "auc" or "log-loss"; of a regressor "rmse" (if None), "mae", "r2", "mape", "nse" or "kge".
        dropout: Of features between two layers, and before the linear layer.
        recurrent_dropout: Of features of the state, the same at all steps of a sequence.
        weight_decay: Of AdamW, on matrices only.
        clip_norm: The norm that the gradient of an update is cut to.
        clip_gradient: The limit of each number of the gradient of the state between two steps; None: there is none.
        missing: The value, or a list of them, that stands for a missing one beside NaN, such as -9999; "nan": NaN
            alone. None: NaN is refused, but for padding: steps at the end in which every channel is NaN. A missing
            value gets the last one of its sequence, or the training mean where there is none yet.
        gaps: What a network gets beside that: nothing ("fill"), for each channel one that is 1 where it was seen and 0
            where not ("mask"), or also one with the steps since it was last seen ("since"). The last two imply
            missing="nan".
        class_weight: How much each class counts in the loss: "balanced" (by the inverse of its frequency), or a dict
            from classes to numbers. None: all alike.
        n_jobs: CPU threads. None: 1 up to 256 units, where more do not pay; -1: all.
        random_state: Of the validation part, the initial weights and the order of the sequences: an int, a NumPy
            RandomState, or None for another one each time.

    Attributes:
        classes_: The classes, sorted.
        n_features_in_: C, the channels; of a table its columns, T.
        n_iter_: The epochs of training.
        best_epoch_: The one whose weights were kept.
        history_: For each epoch a dict: "epoch", "train_loss", and with a validation part "validation_loss" and
            "validation_score".
        split_: A sentence about the validation part.
        model_: The trained model of the workbench; ``model_.module`` is the torch module.

    Example:
        >>> import numpy as np
        >>> from anyrnn.sklearn import RecurrentClassifier
        >>> rng = np.random.default_rng(0)
        >>> y = np.array(["falls", "rises"] * 30)
        >>> X = [np.cumsum(rng.normal(0.5 if k == "rises" else -0.5, 1, (rng.integers(10, 20), 1)), 0) for k in y]
        >>> model = RecurrentClassifier("gru", hidden_size=8, random_state=0).fit(X[:40], y[:40])
        >>> bool(model.score(X[40:], y[40:]) > 0.8)
        True
    """

    def __init__(
        self,
        cell: Cell = "lstm",
        *,
        hidden_size: int = 100,
        layers: int = 1,
        bidirectional: bool = False,
        pool: Pool = "last",
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 0.005,
        schedule: Schedule = "one-cycle",
        validation: float = 0.2,
        patience: int | None = None,
        metric: str | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        clip_gradient: float | None = None,
        missing: Absent = None,
        gaps: Gaps = "fill",
        class_weight: str | Mapping[Any, float] | None = None,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell,
            hidden_size=hidden_size,
            layers=layers,
            bidirectional=bidirectional,
            pool=pool,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            validation=validation,
            patience=patience,
            metric=metric,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_gradient=clip_gradient,
            missing=missing,
            gaps=gaps,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train on sequences and their classes.

        Args:
            X: The sequences: see above.
            y: (n,): their classes.
            sample_weight: (n,): how much each sequence counts in the loss, in training and in validation; one of
                weight 0 is left out. The score that chooses the epoch, and the scaling, count all others alike.
            groups: (n,): what sequences have in common (a patient, an engine): those of one group are all in the
                validation part, or none is.

        Raises:
            ValueError: for an X, y or parameter that cannot be used; the message says what would do.
        """
        x = read_sequences(self, X, reset=True)
        y = self._targets(x, y)
        check_classification_targets(y)
        weights = read_weights(self, sample_weight, len(x))
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(np.unique(indices[weights > 0])) < 2:
            found = self.classes_[indices[np.argmax(weights)]]
            raise AnyRNNError(
                f"{type(self).__name__}: y has one class, {found!r}, in the sequences whose weight is above 0; "
                "expected two at least, to tell apart"
            )
        names = tuple(map(str, self.classes_.tolist()))
        self._fit(x, torch.from_numpy(indices), names, weights, read_groups(self, groups, len(x)))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """How likely each class of `classes_` is, for each sequence: (n, classes)."""
        shares = self._predict(X).probabilities
        assert shares is not None  # of a classifier
        exact = shares.double()
        return (exact / exact.sum(1, keepdim=True)).numpy()  # float32 adds up to 1 not quite

    def predict(self, X: Any) -> NDArray[Any]:
        """The most likely class of each sequence: (n,)."""
        indices = np.array(self._predict(X).values)
        labels: NDArray[Any] = self.classes_[indices]
        return labels


class RecurrentRegressor(RegressorMixin, _RecurrentEstimator):
    """A recurrent network that says a number for a whole sequence.

    X, the arguments and the attributes are those of `RecurrentClassifier`, without classes; y has one number for each
    sequence, and the squared error of the standardised number is what is learned.

    Example:
        >>> import numpy as np
        >>> from anyrnn.sklearn import RecurrentRegressor
        >>> X = np.random.default_rng(0).normal(size=(80, 10, 2))
        >>> model = RecurrentRegressor("gru", hidden_size=8, random_state=0).fit(X[:60], X[:60, :, 0].mean(1))
        >>> bool(model.score(X[60:], X[60:, :, 0].mean(1)) > 0.8)
        True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train on sequences and their numbers (n,): see `RecurrentClassifier.fit`."""
        x = read_sequences(self, X, reset=True)
        y = torch.from_numpy(np.array(self._targets(x, y), dtype=np.float64))
        self._fit(x, y, None, read_weights(self, sample_weight, len(x)), read_groups(self, groups, len(x)))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The number of each sequence: (n,)."""
        return np.array(self._predict(X).values, dtype=np.float64)


def network_of(cell: Any, name: str) -> Network:
    """The network of a cell that is given by its name, its class, or a function that makes it.

    Raises:
        AnyRNNError: if it is none of these.
    """
    if isinstance(cell, str):
        return network(cell)
    if isinstance(cell, nn.Module) or not callable(cell):
        raise AnyRNNError(
            f"{name}: got cell={cell!r}, expected a name such as 'lstm', the class of a cell of your own, or a "
            "function that makes one; it is called as cell(input_size, hidden_size)"
        )
    return own_network(getattr(cell, "__name__", type(cell).__name__), cell)


def seed_of(random_state: Any) -> int:
    """The seed of a training run: an int is that seed, as on the command line; anything else draws one."""
    if isinstance(random_state, int | np.integer):
        if not 0 <= random_state < 1 << 32:
            raise AnyRNNError(f"random_state: got {random_state}, expected a whole number from 0 to 2**32 - 1")
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def threads_of(n_jobs: int | None) -> int | None:
    """The CPU threads that scikit-learn's n_jobs asks for; None: as the workbench sees fit."""
    return None if n_jobs is None else effective_n_jobs(n_jobs)


def plain(value: Any) -> Any:
    """A number of NumPy's, as searches over parameters draw them, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value
