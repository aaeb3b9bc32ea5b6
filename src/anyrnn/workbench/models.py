"""The networks that the workbench knows by name, and a trained one with all it needs to predict.

`network` finds a `Network` by its name; `build` makes the untrained module; a `Model` is what training hands on.
"""

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import anyrnn
from anyrnn.errors import AnyRNNError
from anyrnn.layers import Layer
from anyrnn.workbench.gaps import Gaps, without_padding
from anyrnn.workbench.gru_d import GRUDCell
from anyrnn.workbench.large import gathered
from anyrnn.workbench.names import did_you_mean
from anyrnn.workbench.plain import as_numpy
from anyrnn.workbench.reading import Reading, check_reading
from anyrnn.workbench.sequences import Scaler

Pool = Literal["last", "mean", "max"]
POOLS: tuple[Pool, ...] = get_args(Pool)

_AT_ONCE = 4096  # sequences that are scaled together
_CHUNK = 256  # sequences a call when predicting: bounds the memory, changes no result
_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Network:
    """A recurrent layer that can be asked for by name.

    It can be pickled where its cell can: the workbench's own are found again by their names.

    Attributes:
        name: As given to `--cells`: a key of `KNOWN`, or "module:Class" for a user's own cell.
        title: As shown in tables.
        layer: Makes the layer from an input size, a hidden size and the options of `anyrnn.Recurrent`, of which its own
            win.
        gaps: What it has to be told of missing values; None: it takes what comes.
    """

    name: str
    title: str
    layer: Callable[..., Layer]
    gaps: Gaps | None = None

    def input_size(self, scaler: Scaler) -> int:
        """How many columns it gets from a scaler.

        Raises:
            AnyRNNError: if they are not what it expects.
        """
        if self.gaps not in {None, scaler.kind}:
            raise AnyRNNError(
                f"cell {self.name!r} reads what is said of missing values, but they are told by gaps={scaler.kind!r}; "
                f"expected gaps={self.gaps!r} (--gaps {self.gaps})"
            )
        return scaler.width

    def __reduce__(self) -> tuple[Any, ...]:
        if NETWORKS.get(self.name) is self:
            return network, (self.name,)
        return Network, (self.name, self.title, self.layer)


def _layer(make: Callable[..., Layer], **own: Any) -> Callable[..., Layer]:
    """A layer by its constructor, with options that are its own."""
    return lambda input_size, hidden_size, **options: make(input_size, hidden_size, **{**options, **own})


def _wrapped(
    wrapper: Callable[[nn.Module], nn.Module], cell: Callable[..., nn.Module], **own: Any
) -> Callable[..., Layer]:
    """A layer of a cell around a cell."""

    def make(input_size: int, hidden_size: int, **options: Any) -> Layer:
        return anyrnn.Recurrent(lambda size: wrapper(cell(size, hidden_size)), input_size, **options)

    return make


def _gru_d(input_size: int, hidden_size: int, *, gaps: Gaps | None = None, **options: Any) -> Layer:
    if gaps != "since":
        raise AnyRNNError(
            "cell 'gru-d' reads what is said of missing values, which there is for a class or a number of sequences, "
            "or of each step, only, with gaps='since' (--gaps since)"
        )
    if options.keys() & {"num_layers", "bidirectional"}:
        raise AnyRNNError(
            "cell 'gru-d' has one layer and one direction, since it reads what is known of missing values by then; "
            "leave out layers and bidirectional (--layers, --bidirectional)"
        )
    return anyrnn.Recurrent(GRUDCell(input_size, hidden_size), input_size, **options)


NETWORKS: Mapping[str, Network] = {
    network.name: network
    for network in (
        Network("rnn", "RNN", _layer(anyrnn.RNN)),
        Network("lstm", "LSTM", _layer(anyrnn.LSTM)),
        Network("gru", "GRU", _layer(anyrnn.GRU)),
        Network("peephole-lstm", "peephole LSTM", _layer(anyrnn.PeepholeLSTM)),
        Network("bilstm", "bidirectional LSTM", _layer(anyrnn.LSTM, bidirectional=True)),
        Network("lstm-2", "two-layer LSTM", _layer(anyrnn.LSTM, num_layers=2)),
        Network("layernorm-lstm", "layer-normalised LSTM", _wrapped(anyrnn.LayerNormed, anyrnn.LSTMCell)),
        Network("layernorm-gru", "layer-normalised GRU", _wrapped(anyrnn.LayerNormed, anyrnn.GRUCell)),
        Network("mi-lstm", "multiplicative LSTM", _wrapped(anyrnn.MultiplicativeIntegration, anyrnn.LSTMCell)),
        Network("indrnn", "IndRNN", _wrapped(anyrnn.IndependentRecurrence, anyrnn.RNNCell)),
    )
}
# Those that read what is said of missing values: they are for data of that kind alone.
FOR_GAPS: Mapping[str, Network] = {"gru-d": Network("gru-d", "GRU-D", _gru_d, gaps="since")}
KNOWN: Mapping[str, Network] = {**NETWORKS, **FOR_GAPS}
COMPARED = ("rnn", "lstm", "gru", "peephole-lstm", "bilstm", "lstm-2")  # if nobody says which


def is_network_name(name: object) -> bool:
    """Whether this is a key of `KNOWN` or of the form "module:Class"; neither can leave a folder as a file name."""
    return isinstance(name, str) and (name in KNOWN or _OWN.fullmatch(name) is not None)


def network(name: str, *, never_from: Path | None = None) -> Network:
    """Find a network by name.

    Args:
        name: A key of `KNOWN`, or "module:Class": a user's own cell, an `nn.Module` whose class is called as
            ``Class(input_size, hidden_size)``, in a module that Python or the current directory has.
        never_from: A folder from which no module is imported, whatever the path of the interpreter says.

    Raises:
        AnyRNNError: if there is no such network, module or class.
    """
    if name in KNOWN:
        return KNOWN[name]
    if not is_network_name(name):
        raise AnyRNNError(
            f"cell {name!r} is not known; the names are {', '.join(KNOWN)}, and 'module:Class' takes a cell "
            f"class of your own.{did_you_mean(name, KNOWN)}"
        )
    return own_network(name, _own_cell_class(name, never_from))


def own_network(name: str, make: Callable[[int, int], nn.Module]) -> Network:
    """The network of a user's own cell.

    Args:
        name: For messages.
        make: What makes the cell, a class or a function: called as ``make(input_size, hidden_size)``.
    """
    return Network(name, getattr(make, "__name__", type(make).__name__), _OwnLayer(name, make))


@dataclass(frozen=True)
class _OwnLayer:
    """Makes layers of a user's own cell: not a function within one, since that could not be pickled."""

    name: str
    make: Callable[[int, int], nn.Module]

    def __call__(self, input_size: int, hidden_size: int, **options: Any) -> Layer:
        if options.keys() & {"num_layers", "bidirectional"}:
            return anyrnn.Recurrent(lambda size: self._cell(size, hidden_size), input_size, **options)
        return anyrnn.Recurrent(self._cell(input_size, hidden_size), input_size, **options)

    def _cell(self, input_size: int, hidden_size: int) -> nn.Module:
        made = getattr(self.make, "__name__", type(self.make).__name__)
        call, kind = f"{made}({input_size}, {hidden_size})", "class" if isinstance(self.make, type) else "function"
        expected = f"expected a {kind} that is called as {kind.capitalize()}(input_size, hidden_size)"
        try:
            cell = self.make(input_size, hidden_size)
        except Exception as cause:  # a user's class may raise anything
            raise AnyRNNError(f"cell {self.name!r}: {call} failed: {cause}; {expected}") from cause
        if not isinstance(cell, nn.Module):
            raise AnyRNNError(
                f"cell {self.name!r}: {call} gave a {type(cell).__name__}; {expected} and gives a torch.nn.Module that "
                "computes one step"
            )
        return cell


def stacked(network: Network, input_size: int, hidden_size: int, layers: int) -> Layer:
    """The layers of a network, as many as asked for unless it says so itself."""
    return network.layer(input_size, hidden_size, **({} if layers == 1 else {"num_layers": layers}))


@dataclass(frozen=True)
class Structure:
    """What a network is made of beside its cell.

    Attributes:
        hidden_size: H, of each layer and direction.
        pool: How the head summarises the steps.
        layers: How many, one upon the other, unless the network says so itself.
        bidirectional: Whether each has a second direction, likewise.
    """

    hidden_size: int
    pool: Pool = "last"
    layers: int = 1
    bidirectional: bool = False


class _DroppingHead(anyrnn.ManyToOne):
    """With dropout between the layer and the linear layer while training."""

    def __init__(self, layer: Layer, out_features: int, pool: str, dropout: float) -> None:
        super().__init__(layer, out_features, pool)
        self.dropout = dropout

    def _pooled(self, output: Tensor, lengths: Any, batch_first: bool) -> Tensor:
        return nn.functional.dropout(super()._pooled(output, lengths, batch_first), self.dropout, self.training)


def build(
    network: Network,
    input_size: int,
    out_features: int,
    structure: Structure,
    *,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    clip_gradient: float | None = None,
) -> anyrnn.ManyToOne:
    """Make the untrained module: the recurrent layers and, on top of them, one linear layer.

    Args:
        network: Which.
        input_size: I.
        out_features: Of the linear layer.
        structure: Of what.
        dropout: Between two layers, and before the linear layer.
        recurrent_dropout: Of the state, the same at all steps.
        clip_gradient: The limit of each number of the gradient of the state between two steps.
    """
    layer = layer_of(network, input_size, structure, recurrent_dropout=recurrent_dropout, clip_gradient=clip_gradient)
    if not dropout:
        return anyrnn.ManyToOne(layer, out_features, pool=structure.pool)
    if layer.num_layers > 1:
        layer.dropout = dropout
    return _DroppingHead(layer, out_features, structure.pool, dropout)


def layer_of(
    network: Network,
    input_size: int,
    structure: Structure,
    *,
    recurrent_dropout: float = 0.0,
    clip_gradient: float | None = None,
) -> Layer:
    """Make the untrained recurrent layers; see `build`."""
    asked = {
        "num_layers": (structure.layers, 1),
        "bidirectional": (structure.bidirectional, False),
        "recurrent_dropout": (recurrent_dropout, 0.0),
        "clip_gradient": (clip_gradient, None),
    }
    options: dict[str, Any] = {name: value for name, (value, usual) in asked.items() if value != usual}
    if network.gaps is not None:
        options["gaps"] = network.gaps
    return network.layer(input_size, structure.hidden_size, **options)


def outputs(module: anyrnn.ManyToOne, sequences: Sequence[Tensor]) -> Tensor:
    """Return what the head makes of scaled sequences (T, I), without dropout or gradients: (N, out_features)."""
    module.eval()
    parts = [torch.empty(0, module.linear.out_features)]
    with torch.no_grad():
        chunks = (range(first, min(first + _CHUNK, len(sequences))) for first in range(0, len(sequences), _CHUNK))
        for x, lengths in gathered(sequences, chunks):
            parts.append(module(x, lengths=lengths)[0])
    return torch.cat(parts)


@dataclass(frozen=True)
class Predictions:
    """What a model says about some sequences.

    Attributes:
        values: For each sequence the index of its class, or the number.
        labels: For each sequence the name of its class; None where a number is predicted.
        probabilities: (N, classes), or None where a number is predicted.
        digits: How many of a number mean something: seven of what it differs from the mean of the training targets.
    """

    values: tuple[int, ...] | tuple[float, ...]
    labels: tuple[str, ...] | None
    probabilities: Tensor | None
    digits: int = 9

    @property
    def texts(self) -> tuple[str, ...]:
        """For each sequence the label, or the number as text."""
        if self.labels is not None:
            return self.labels
        return tuple(f"{value:.{self.digits}g}" for value in self.values)


@dataclass(frozen=True)
class Model:
    """A trained network with all that it takes to go from sequences as read to predictions.

    Attributes:
        network: Which one.
        structure: Of what it is made.
        features: The names of the features, in order.
        classes: The names of the classes; None if a number is predicted.
        target: The name of what is predicted.
        scaler: Fitted on the training sequences.
        target_scale: Mean and standard deviation of the training targets where a number is predicted.
        seed: The seed of the training run.
        module: The trained `anyrnn.ManyToOne`.
        id_column: The column that named the sequences of the table it was trained on; None if that was no table.
        time_column: The column that sorted their steps; None if none did.
        reading: What was made of the columns of the table; None: each is a feature.
    """

    network: Network
    structure: Structure
    features: tuple[str, ...]
    classes: tuple[str, ...] | None
    target: str
    scaler: Scaler
    target_scale: tuple[float, float] | None
    seed: int
    module: anyrnn.ManyToOne
    id_column: str | None = None
    time_column: str | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if len(self.scaler.mean) != len(self.features):
            raise AnyRNNError(
                f"{self.network.name}: the scaler has {len(self.scaler.mean)} features, expected {len(self.features)}"
            )
        if (self.classes is None) is (self.target_scale is None):
            raise AnyRNNError(f"{self.network.name}: expected either classes or a target scale, got both or none")
        check_reading(self.network.name, self.reading, self.features)

    @property
    def layer(self) -> Layer:
        """The recurrent layer under the head."""
        return self.module.layer

    def predict(self, sequences: Sequence[Any]) -> Predictions:
        """Predict the class or the number of each sequence.

        Args:
            sequences: (T, I) tensors or arrays as read, not scaled, with the features in the order of `features`. Steps
                at the end in which every feature is NaN are padding.

        Raises:
            AnyRNNError: for a sequence of another shape, or one that is not all finite, or so far from those of the
                training that the network's answer is not. NaN is taken as missing where values could be missing in
                training, too.
        """
        firsts = range(0, len(sequences), _AT_ONCE)
        answers = [self._answers(first, sequences[first : first + _AT_ONCE]) for first in firsts]
        return self.read(torch.cat([torch.empty(0, self.module.linear.out_features), *answers]))

    def _answers(self, first: int, sequences: Sequence[Any]) -> Tensor:
        """What the head says of sequences (N, out_features), the first of which has this number."""
        scaled = [
            read(self.network.name, k, given, self.features, self.scaler, padded=True)
            for k, given in enumerate(sequences, first)
        ]
        answers = outputs(self.module, scaled)
        wild = (~answers.isfinite().all(1)).nonzero().flatten().tolist()
        if wild:
            raise AnyRNNError(
                f"{self.network.name}: the answer for sequence {first + wild[0]} is not finite; its largest feature is "
                f"{scaled[wild[0]].abs().max():.3g} standard deviations from the mean of those that the network was "
                "trained on; expected sequences like those"
            )
        return answers

    def read(self, outputs: Tensor) -> Predictions:
        """Turn the head's output (N, out_features) into predictions."""
        if self.target_scale is not None:
            mean, std = self.target_scale
            digits = 7 + max(0, math.ceil(math.log10(max(abs(mean) / std, 1.0))))
            return Predictions(tuple((outputs[:, 0].double() * std + mean).tolist()), None, None, min(digits, 17))
        classes = self.classes or ()
        indices = outputs.argmax(1).tolist()
        return Predictions(tuple(indices), tuple(classes[k] for k in indices), outputs.softmax(1))


def read(owner: str, k: int, given: Any, features: Sequence[str], scaler: Scaler, *, padded: bool = False) -> Tensor:
    """Check and scale a sequence (T, I).

    Args:
        owner: Whose sequence it is, for messages.
        k: Its number, likewise.
        given: A tensor or an array, as read.
        features: The names of the features.
        scaler: Of these.
        padded: Steps without any value at the end are no part of it.

    Raises:
        AnyRNNError: for another shape, and for what is not finite, or missing where nothing may be.
    """
    try:
        x = torch.as_tensor(as_numpy(f"{owner}: sequence {k}", given))
    except (TypeError, ValueError, RuntimeError) as cause:
        raise AnyRNNError(
            f"{owner}: sequence {k} is a {type(given).__name__}, expected a tensor or an array (T, features): {cause}"
        ) from cause
    if x.dim() != 2 or len(x) == 0 or x.shape[1] != len(features):
        raise AnyRNNError(
            f"{owner}: sequence {k} has shape {tuple(x.shape)}, expected (T, {len(features)}), one column for each of "
            f"the features that the network was trained on: {', '.join(features)}"
        )
    x = without_padding(x) if padded else x
    if x.is_complex() or not (x.isfinite() | (x.isnan() & (scaler.missing is not None))).all():
        raise AnyRNNError(
            f"{owner}: sequence {k} holds NaN or infinity, expected finite numbers; fill or drop them first"
        )
    return scaler(x)


def _own_cell_class(name: str, never_from: Path | None) -> Callable[[int, int], nn.Module]:
    module_name, _, class_name = name.partition(":")
    with _current_directory_importable(never_from):
        try:
            if never_from is not None:
                _check_origin(module_name, never_from)
            module = importlib.import_module(module_name)
        except AnyRNNError as cause:
            raise AnyRNNError(f"cell {name!r}: {cause}") from cause
        except Exception as cause:  # a user's module may raise anything
            raise AnyRNNError(
                f"cell {name!r}: importing {module_name} failed: {type(cause).__name__}: {cause}; expected a "
                f"module that is installed or lies in the current directory, {Path.cwd()}"
            ) from cause
    cell_class = getattr(module, class_name, None)
    if not (isinstance(cell_class, type) and issubclass(cell_class, nn.Module)):
        names = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        raise AnyRNNError(
            f"cell {name!r}: {module_name} has no class {class_name} that is a torch.nn.Module; "
            f"those it has: {', '.join(names) or 'none'}.{did_you_mean(class_name, names)}"
        )
    return cell_class


def _check_origin(module_name: str, never_from: Path) -> None:
    """Refuse a module that would come from this folder, a package of it at a time: finding one imports the one above.

    A package whose parts lie in several folders counts as coming from all of them.
    """
    parts = module_name.split(".")
    for depth in range(1, len(parts) + 1):
        package = ".".join(parts[:depth])
        if package in sys.modules:
            continue
        spec = importlib.util.find_spec(package)
        if spec is None:
            return  # importing it says so better
        for place in (spec.origin, *(spec.submodule_search_locations or ())):
            if place is not None and _lies_in(place, never_from):
                raise AnyRNNError(
                    f"{package} would come from {place}, in the folder of the run, and nothing is imported from "
                    "there; if you trust it, copy the module to another folder and start from that one"
                )


def _lies_in(place: str, folder: Path) -> bool:
    path = Path(place or ".")
    return any(
        each.is_relative_to(within) for each, within in ((path.absolute(), folder.absolute()), _resolved(path, folder))
    )


def _resolved(*paths: Path) -> tuple[Path, ...]:
    return tuple(path.resolve() for path in paths)


@contextmanager
def _current_directory_importable(never_from: Path | None = None) -> Iterator[None]:
    """Let modules of the current directory be found inside a ``with`` block, first of all; but none of `never_from`."""
    before = list(sys.path)
    during = [str(Path.cwd()), *before]
    if never_from is not None:
        during = [place for place in during if not _lies_in(place, never_from)]
    sys.path[:] = during
    try:
        yield
    finally:
        sys.path[:] = [*before, *(place for place in sys.path if place not in during)]  # which a module may extend
