"""accelerate and restore: torch.nn's layers become this package's and torch's again, and nobody else notices."""

import copy
import copyreg
import dataclasses
import io
import itertools
import pickle
import subprocess
import sys
import warnings
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import anyrnn
from zoo import close, flat, gradients, loss_of

pytestmark = pytest.mark.grid(2)

T, B, I, H = 5, 3, 4, 6

KINDS = {
    "RNN": (nn.RNN, {}),
    "RNN-relu": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (nn.LSTM, {}),
    "LSTM-projected": (nn.LSTM, {"proj_size": 2}),
    "GRU": (nn.GRU, {}),
}
OURS = {nn.RNN: anyrnn.RNN, nn.LSTM: anyrnn.LSTM, nn.GRU: anyrnn.GRU}
SHAPES = [
    {"num_layers": n, "bidirectional": b, "bias": bias, "batch_first": first}
    for n, b, bias, first in itertools.product((1, 2), (False, True), (True, False), (False, True))
]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["-".join(map(str, s.values())) for s in SHAPES])


def made(kind="LSTM", dtype=torch.float64, **options):
    torch.manual_seed(7)
    theirs, extra = KINDS[kind]
    return theirs(I, H, dtype=dtype, **extra, **options)


def state_of(layer, *batch):
    """A state that is not zero: h, or (h, c)."""
    generator = torch.Generator().manual_seed(5)
    lead = (layer.num_layers * (1 + layer.bidirectional), *batch)
    sizes = (getattr(layer, "proj_size", 0) or H, H)[: 2 if "LSTM" in type(layer).__name__ else 1]
    states = tuple(torch.randn(*lead, size, generator=generator, dtype=torch.float64) for size in sizes)
    return states if len(states) == 2 else states[0]


def inputs(layer):
    """Every form in which torch.nn takes a sequence: arguments and keywords."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(T, B, I, generator=generator, dtype=torch.float64)
    outer = x.transpose(0, 1) if layer.batch_first else x
    yield (outer,), {}
    yield (outer,), {"hx": state_of(layer, B)}
    yield (x[:, 0], state_of(layer)), {}
    for lengths, given in (([5, 3, 2], None), ([2, 5, 1], state_of(layer, B))):
        yield (pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), given), {}


def results(layer):
    """Everything that calls of a layer give: outputs, states, and the gradients of x, state and parameters."""
    found = []
    for args, keywords in inputs(layer):
        leaves = [t.detach().clone().requires_grad_() for t in tensors_of((args, keywords))]
        given, named = replaced((args, keywords), iter(leaves))
        output, final = layer(*given, **named)
        if isinstance(output, PackedSequence):
            found += [output.batch_sizes, output.sorted_indices, output.unsorted_indices]
            output = output.data
        trained = [p for p in layer.parameters() if p.requires_grad]
        found += [output, *flat(final), *gradients([*leaves, *trained], loss_of(output, *flat(final)))]
    return [t.detach() for t in found]


def tensors_of(nested):
    """The tensors of real numbers in arguments."""
    if isinstance(nested, PackedSequence):
        return [nested.data]
    if isinstance(nested, dict):
        return tensors_of(tuple(nested.values()))
    if isinstance(nested, tuple):
        return [t for part in nested for t in tensors_of(part)]
    return [] if nested is None else [nested]


def replaced(nested, leaves):
    """The same arguments with other tensors in the place of those of `tensors_of`."""
    if isinstance(nested, PackedSequence):
        return nested._replace(data=next(leaves))
    if isinstance(nested, dict):
        return {key: replaced(value, leaves) for key, value in nested.items()}
    if isinstance(nested, tuple):
        return tuple(replaced(part, leaves) for part in nested)
    return None if nested is None else next(leaves)


def same_objects(got, want):
    return len(got) == len(want) and all(a is b for a, b in zip(got, want, strict=True))


@every_kind
@every_shape
def test_outputs_states_and_gradients_are_the_same_before_and_after(kind, shape):
    layer = made(kind, **shape)
    before = results(layer)
    report = anyrnn.accelerate(layer)
    assert len(report.swapped) == 1
    assert isinstance(layer, OURS[KINDS[kind][0]])
    assert isinstance(layer, KINDS[kind][0])
    with anyrnn.engine("torch"):  # the engine that compiles nothing, so that the table may be long
        close(results(layer), before)
    assert anyrnn.restore(layer) == ("",)
    close(results(layer), before, atol=0)


@every_kind
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_every_engine_gives_what_torch_gave(kind, engine):
    layer = made(kind, num_layers=2)
    before = results(layer)
    anyrnn.accelerate(layer)
    with anyrnn.engine(engine):
        close(results(layer), before)


@every_kind
@every_shape
def test_nothing_of_a_layer_changes_but_its_class(kind, shape):
    layer = made(kind, **shape).eval()
    layer.remark = "the user's own"
    layer.register_buffer("count", torch.tensor(3), persistent=False)
    layer.weight_ih_l0.requires_grad_(False)
    attributes, shown, weights = dict(vars(layer)), repr(layer), layer.all_weights
    state, random = layer.state_dict(), torch.get_rng_state()
    cached = {"_flat_weights", "_flat_weight_refs"}
    anyrnn.accelerate(layer)
    assert {key for key in attributes if vars(layer).get(key) is not attributes[key]} == cached
    assert repr(layer) == shown
    assert all(same_objects(*pair) for pair in zip(layer.all_weights, weights, strict=True))
    now = layer.state_dict()
    assert list(now) == list(state)
    assert now._metadata == state._metadata
    assert all(now[key].data_ptr() == state[key].data_ptr() for key in state)
    anyrnn.restore(layer)
    assert type(layer) is KINDS[kind][0]
    assert set(vars(layer)) == set(attributes)
    assert {key for key in attributes if vars(layer)[key] is not attributes[key]} <= cached
    assert same_objects(layer._flat_weights, attributes["_flat_weights"])
    assert layer._flat_weight_refs == attributes["_flat_weight_refs"]
    assert torch.equal(torch.get_rng_state(), random)


class Tagger(nn.Module):
    """A model as people write them: layers in containers, one used twice, two that share a weight, and others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.encoder = nn.DataParallel(nn.Sequential(nn.Linear(I, I), nn.LSTM(I, H, bidirectional=True)))
        self.stack = nn.ModuleList([nn.GRU(2 * H, H), nn.GRU(H, H)])
        self.stack[1].weight_hh_l0 = self.stack[0].weight_hh_l0
        self.by_name = nn.ModuleDict({"decoder": nn.RNN(H, H), "again": self.stack[1]})
        self.unregistered = [self.by_name["decoder"]]
        self.head = nn.Linear(H, 2)
        self.double()

    def forward(self, x, lengths):
        x = self.encoder.module[0](x)
        x, (h, c) = self.encoder.module[1](pack_padded_sequence(x, lengths, enforce_sorted=False))
        for layer in (*self.stack, self.by_name["again"], *self.unregistered):
            layer.flatten_parameters()
            x, _ = layer(x)
        x, _ = pad_packed_sequence(x)
        return self.head(x) + h.mean() + c.mean()


LAYERS_OF_TAGGER = ("encoder.module.1", "stack.0", "stack.1", "by_name.decoder")


def train(model, optimizer, steps):
    x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x, torch.tensor([5, 1, 3])) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)],
    ids=["SGD", "Adam"],
)
def test_training_goes_on_with_the_optimizer_of_before(optimizer):
    model, twin = Tagger(), Tagger()
    ours, theirs = optimizer(model.parameters()), optimizer(twin.parameters())
    parameters, names = list(model.parameters()), [name for name, _ in model.named_parameters()]
    losses = train(model, ours, 2)
    assert tuple(found.name for found in anyrnn.accelerate(model).swapped) == LAYERS_OF_TAGGER
    losses += train(model, ours, 2)
    assert anyrnn.restore(model) == LAYERS_OF_TAGGER
    losses += train(model, ours, 2)
    close([*losses, *model.parameters()], [*train(twin, theirs, 6), *twin.parameters()])
    assert same_objects(list(model.parameters()), parameters)
    assert [name for name, _ in model.named_parameters()] == names
    assert losses[-1] < losses[0]


def test_layers_and_weights_in_several_places_stay_shared():
    model = Tagger()
    modules = list(model.modules())
    anyrnn.accelerate(model)
    assert same_objects(list(model.modules()), modules)
    assert model.by_name["again"] is model.stack[1]
    assert model.unregistered[0] is model.by_name["decoder"]
    assert model.stack[0].weight_hh_l0 is model.stack[1].weight_hh_l0
    assert all(isinstance(module, anyrnn.layers.Layer) for module in model.modules() if isinstance(module, nn.RNNBase))
    anyrnn.restore(model)
    assert same_objects(list(model.modules()), modules)
    assert [type(m).__name__ for m in modules] == [type(m).__name__ for m in Tagger().modules()]


HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "forward with kwargs": lambda layer, hook: layer.register_forward_hook(hook, with_kwargs=True, always_call=True),
    "forward-pre": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "backward-pre": nn.Module.register_full_backward_pre_hook,
    "state_dict": nn.Module.register_state_dict_post_hook,
    "state_dict-pre": nn.Module.register_state_dict_pre_hook,
    "load_state_dict": nn.Module.register_load_state_dict_post_hook,
    "load_state_dict-pre": nn.Module.register_load_state_dict_pre_hook,
    "of a parameter": lambda layer, hook: layer.weight_hh_l0.register_post_accumulate_grad_hook(hook),
}


@every_kind
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_called_and_their_handles_remove_them(kind, hook):
    layer, first, second = made(kind), [], []

    def use():
        first.clear()
        second.clear()
        layer(torch.ones(T, B, I, dtype=torch.float64, requires_grad=True))[0].sum().backward()
        layer.load_state_dict(layer.state_dict())
        return len(first), len(second)

    handle = HOOKS[hook](layer, lambda *_: first.append(1))
    assert use() == (1, 0)
    anyrnn.accelerate(layer)
    assert use() == (1, 0)
    other = HOOKS[hook](layer, lambda *_: second.append(1))
    assert use() == (1, 1)
    anyrnn.restore(layer)
    assert use() == (1, 1)
    anyrnn.accelerate(layer)
    handle.remove()
    assert use() == (0, 1)
    anyrnn.restore(layer)
    other.remove()
    assert use() == (0, 0)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many a model
        nn.utils.weight_norm(layer, "weight_hh_l0")


def weight_drop(layer):
    """What published code for it does: the parameter gets another name, a tensor takes its place, at each call."""
    layer.register_parameter("weight_hh_l0_raw", layer._parameters.pop("weight_hh_l0"))
    layer.register_forward_pre_hook(
        lambda layer, _: setattr(layer, "weight_hh_l0", nn.functional.dropout(layer.weight_hh_l0_raw, 0.5, False))
    )
    layer.flatten_parameters = lambda: None
    layer(torch.zeros(1, 1, I, dtype=torch.float64))


COMPUTED = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, "weight_ih_l1"),
    "own, on two": lambda layer: [
        parametrize.register_parametrization(layer, name, Half()) for name in ("weight_hh_l0", "weight_ih_l1")
    ],
    "old weight_norm": old_weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight_hh_l1", amount=0.5),
    "weight drop": weight_drop,
}


def compute(change, layer):
    torch.manual_seed(4)  # some draw numbers
    COMPUTED[change](layer)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("change", COMPUTED)
@pytest.mark.parametrize("when", ["before the swap", "after the swap"])
def test_computed_weights_are_carried_over(kind, change, when):
    layer, plainly = made(kind, num_layers=2), made(kind, num_layers=2)
    compute(change, plainly)
    want = results(plainly)
    if when == "before the swap":
        compute(change, layer)
        close(results(layer), want, atol=0)
    anyrnn.accelerate(layer)
    if when == "after the swap":
        compute(change, layer)
    close(results(layer), want)
    anyrnn.restore(layer)
    assert type(layer).__mro__[-len(KINDS[kind][0].__mro__) :] == KINDS[kind][0].__mro__
    close(results(layer), want, atol=0)
    assert list(layer.state_dict()) == list(plainly.state_dict())
    if parametrize.is_parametrized(layer):
        anyrnn.accelerate(layer)
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name)
        assert isinstance(layer, OURS[KINDS[kind][0]])
        close(results(layer)[:2], want[:2])
        anyrnn.restore(layer)
        assert type(layer) is KINDS[kind][0]


def test_copies_of_a_parametrized_layer_are_swapped_each_by_itself():
    layer = parametrizations.weight_norm(made("GRU"), "weight_hh_l0")
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    anyrnn.accelerate(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    close(results(twin)[:2], results(layer)[:2])
    assert isinstance(twin, nn.GRU)


class OwnForward(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(2 * x, hx)


class OwnStart(nn.GRU):
    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight_ih_l0)


class LazyRNN(nn.modules.lazy.LazyModuleMixin, nn.RNN):
    """A layer that would make its parameters at its first call."""

    def initialize_parameters(self, *_):
        pass


def scripted():
    return torch.jit.script(nn.Sequential(nn.GRU(I, H, dtype=torch.float64)))


def quantized():
    from torch.ao.nn.quantized import dynamic  # noqa: PLC0415 - not needed by the other tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says that it is deprecated
        return dynamic.LSTM(I, H)


def quantizable():
    from torch.ao.nn import quantizable  # noqa: PLC0415

    return quantizable.LSTM(I, H)


def changed(layer, key, value):
    setattr(layer, key, value)
    return layer


def patched():
    layer = made()
    return changed(layer, "forward", layer.forward)


LEFT = {
    "own forward": (lambda: OwnForward(I, H).double(), "", "of another class, OwnForward"),
    "own initial values": (lambda: OwnStart(I, H).double(), "", "of another class, OwnStart"),
    "lazy": (lambda: LazyRNN(I, H).double(), "", "of another class, LazyRNN"),
    "own forward, parametrized": (
        lambda: parametrizations.weight_norm(OwnForward(I, H).double(), "weight_hh_l0"), "", "of another class, OwnF",
    ),
    "patched forward": (patched, "", "'forward' of its own, set on the object"),
    "attribute like a method of ours": (lambda: changed(made(), "cell", "LSTM"), "", "'cell' of its own"),
    "module like a method of ours": (lambda: changed(made(), "cell", nn.Linear(1, 1)), "", "'cell' of its own"),
    "method that torch calls": (
        lambda: changed(made(), "check_forward_args", lambda *_: None), "", "'check_forward_args' of its own",
    ),
    "torch.jit": (scripted, "0", "torch.jit has compiled it"),
    "quantized": (quantized, "", "made for quantization"),
    "quantizable": (quantizable, "", "made for quantization"),
    "peephole": (lambda: anyrnn.PeepholeLSTM(I, H).double(), "", "a layer of anyrnn already"),
    "ours": (lambda: anyrnn.GRU(I, H).double(), "", "a layer of anyrnn already"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_the_swap_could_break_is_left_alone_and_named(case):
    make, inner, reason = LEFT[case]
    layer = make()
    x = torch.randn(T, B, I, dtype=torch.float32 if "quant" in case else torch.float64)
    before, kind, attributes = layer(x), type(layer), dict(vars(layer))
    model = nn.Sequential(nn.Linear(2, 2), layer)
    report = anyrnn.accelerate(model)
    assert report.swapped == ()
    assert [found.name for found in report.left] == [f"1.{inner}".rstrip(".")]
    assert reason in report.left[0].reason
    assert f"\n  {report.left[0].name}: " in str(report)
    assert reason in str(report)
    assert anyrnn.restore(model) == ()
    assert type(layer) is kind
    assert vars(layer) == attributes
    close(flat(layer(x)), flat(before), atol=0)


def written(model):
    torch.save(model, file := io.BytesIO())
    return file.getvalue()


def saved(model):
    return torch.load(io.BytesIO(written(model)), weights_only=False)


IN_FILES = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


def test_a_deepcopy_of_an_accelerated_model_works_and_can_be_restored():
    model = Tagger()
    anyrnn.accelerate(model)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 5, 4])
    want = model(x, lengths)
    twin = copy.deepcopy(model)
    close([twin(x, lengths)], [want], atol=0)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert twin.by_name["again"] is twin.stack[1]
    assert twin.unregistered[0] is twin.by_name["decoder"]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert anyrnn.restore(twin) == LAYERS_OF_TAGGER
    close([twin(x, lengths)], [want])
    assert type(twin.stack[0]) is nn.GRU
    assert isinstance(model.stack[0], anyrnn.GRU)
    close([model(x, lengths)], [want], atol=0)
    close([saved(twin)(x, lengths)], [twin(x, lengths)], atol=0)


@pytest.mark.parametrize("way", IN_FILES)
def test_what_comes_out_of_a_file_is_the_model_of_before(way):
    model, plainly = Tagger(), Tagger()
    anyrnn.accelerate(model)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 5, 4])
    model(x, lengths)
    twin = IN_FILES[way](model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in plainly.modules()]
    assert [set(vars(m)) for m in twin.modules()] == [set(vars(m)) for m in plainly.modules()]
    close([twin(x, lengths)], [plainly(x, lengths)], atol=0)
    assert twin.by_name["again"] is twin.stack[1]
    assert twin.unregistered[0] is twin.by_name["decoder"]
    assert same_objects(twin.stack[0]._flat_weights, list(twin.stack[0].parameters()))
    assert anyrnn.restore(twin) == ()
    assert tuple(found.name for found in anyrnn.accelerate(twin).swapped) == LAYERS_OF_TAGGER
    assert isinstance(model.stack[0], anyrnn.GRU)


def test_what_a_file_takes_that_is_read_with_weights_only():
    needed = torch.serialization.get_unsafe_globals_in_checkpoint
    model = nn.Sequential(nn.LSTM(3, 4))
    plain, before = [w.clone() for w in model[0].state_dict().values()], set(needed(io.BytesIO(written(model))))
    anyrnn.accelerate(model)
    assert set(needed(io.BytesIO(written(model)))) == {*before, "builtins.object", "copyreg._reconstructor"}
    allowed = [nn.Sequential, nn.LSTM, object, copyreg._reconstructor]
    with torch.serialization.safe_globals(allowed):
        read = torch.load(io.BytesIO(written(model)), weights_only=True)
    assert type(read[0]) is nn.LSTM
    assert all(map(torch.equal, read[0].state_dict().values(), plain))
    anyrnn.restore(model)
    assert set(needed(io.BytesIO(written(model)))) == before


def test_a_file_can_be_read_by_a_process_without_this_package(tmp_path):
    """As PyTorch's word_language_model example saves its model, with a hook and a shared weight."""
    model = nn.Sequential(made("LSTM", num_layers=2), made("GRU"))
    model[0].weight_hh_l1 = model[0].weight_hh_l0
    x = torch.randn(T, B, I, dtype=torch.float64)
    want = model[0](x)[0]
    anyrnn.accelerate(model)
    model[0](x)
    torch.save(model, tmp_path / "model.pt")
    torch.save((x, want), tmp_path / "data.pt")
    code = (
        "import sys, torch\n"
        "model, (x, want) = (torch.load(name, weights_only=False) for name in ('model.pt', 'data.pt'))\n"
        "lstm = model[0]\n"
        "assert type(lstm) is torch.nn.LSTM and type(model[1]) is torch.nn.GRU\n"
        "assert lstm.weight_hh_l1 is lstm.weight_hh_l0 is lstm._flat_weights[5]\n"
        "assert torch.equal(lstm(x)[0], want)\n"
        "assert not any(name.startswith('anyrnn') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


def test_a_parametrized_layer_goes_into_no_file_and_can_still_be_copied():
    layer = made("GRU")
    anyrnn.accelerate(layer)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    anyrnn.restore(layer)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    twin = copy.deepcopy(layer)
    close(results(twin), results(layer), atol=0)
    with torch.no_grad():
        twin.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.equal(results(twin)[0], results(layer)[0])


class Delegating(nn.LSTM):
    """Counts its calls, works on twice its input, and asks torch's names for what they say."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = 0

    def forward(self, x, hx=None):
        self.calls += 1
        self.flatten_parameters()
        assert all(
            w is getattr(self, name) for w, name in zip(self._flat_weights, self._flat_weights_names, strict=True)
        )
        output, state = super().forward(2 * x, hx)
        return output + 1, state


class OfGRU(nn.GRU):
    """Nothing but a name."""


class Checking(nn.GRU):
    def check_forward_args(self, *args):
        super().check_forward_args(*args)


class HasCell(nn.GRU):
    def cell(self):
        return 3


def test_subclasses_that_are_vouched_for_keep_their_own_methods():
    model = nn.ModuleList([Delegating(I, H, 2).double(), OfGRU(I, H).double(), nn.RNN(I, H).double()])
    x = torch.randn(T, B, I, dtype=torch.float64)
    want = [layer(x) for layer in model]
    assert len(anyrnn.accelerate(model, classes=(OfGRU,)).swapped) == 2
    assert type(model[0]) is Delegating
    report = anyrnn.accelerate(model, classes=(Delegating,))
    assert [found.name for found in report.swapped] == ["0"]
    for layer, before, kind in zip(model, want, (Delegating, OfGRU, nn.RNN), strict=True):
        assert isinstance(layer, kind)
        assert isinstance(layer, anyrnn.layers.Layer)
        close(flat(layer(x)), flat(before))
        assert type(saved(layer)) is kind
    assert model[0].calls == 2
    assert copy.deepcopy(model)[0].calls == 2
    assert anyrnn.explain(model[0], x).parts[0].engine == "cpu"
    assert anyrnn.restore(model) == ("0", "1", "2")
    assert [type(layer) for layer in model] == [Delegating, OfGRU, nn.RNN]
    for layer, before in zip(model, want, strict=True):
        close(flat(layer(x)), flat(before), atol=0)


def test_subclasses_whose_methods_would_be_lost_are_left_alone_though_vouched_for():
    model = nn.ModuleList([Checking(I, H), HasCell(I, H), OwnForward(I, H)])
    report = anyrnn.accelerate(model, classes=(Checking, HasCell))
    assert [found.reason for found in report.left] == [
        "its class Checking has a 'check_forward_args' of its own, which the swap would break",
        "its class HasCell has a 'cell' of its own, which the swap would break",
        "it is of another class, OwnForward, which may compute something else",
    ]
    for wrong in (nn.Linear, "LSTM", anyrnn.LSTM):
        with pytest.raises(anyrnn.AnyRNNError, match=r"among classes, expected subclasses of nn\.RNN, nn\.LSTM"):
            anyrnn.accelerate(model, classes=(wrong,))


@every_kind
@every_shape
def test_what_torchs_layers_show_is_shown_by_swapped_layers_and_by_this_packages(kind, shape):
    layer, swapped = made(kind, **shape), made(kind, **shape)
    anyrnn.accelerate(swapped)
    options = shape | KINDS[kind][1]
    ours = OURS[KINDS[kind][0]](I, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx, sizes = state_of(layer, *((T,) if shape["batch_first"] else (B,))), torch.tensor([3, 1])
    for other in (swapped, ours):
        assert (other.mode, other.proj_size) == (layer.mode, layer.proj_size)
        assert other._flat_weights_names == layer._flat_weights_names
        assert other._all_weights == layer._all_weights
        assert [w.shape for w in other._flat_weights] == [w.shape for w in layer._flat_weights]
        assert [ref() for ref in other._flat_weight_refs] == other._flat_weights
        for batch_sizes in (None, sizes):
            assert other.get_expected_hidden_size(x, batch_sizes) == layer.get_expected_hidden_size(x, batch_sizes)
        other.check_input(x, None)
        other.check_forward_args(x, hx, None)
        with pytest.raises(RuntimeError, match="Expected hidden"):
            other.check_forward_args(x[:, :1], hx, None) if not shape["batch_first"] else other.check_forward_args(
                x[:1], hx, None
            )
        turned = torch.arange(flat(hx)[0].shape[1]).flip(0)
        close(flat(other.permute_hidden(hx, turned)), flat(layer.permute_hidden(hx, turned)), atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torch_jit_gets_torchs_layers():
    model = nn.Sequential(made("GRU"))
    x = torch.randn(T, B, I, dtype=torch.float64)
    want = flat(model(x))
    anyrnn.accelerate(model)
    close(flat(torch.jit.script(model)(x)), want, atol=0)
    assert type(model[0]) is nn.GRU


def test_torch_fx_sees_one_node():
    model = Tagger()
    anyrnn.accelerate(model)
    x = torch.randn(T, B, I, dtype=torch.float64)
    traced = torch.fx.symbolic_trace(nn.Sequential(model.stack[0]))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    wide = x.repeat(1, 1, 3)
    close(flat(traced(wide)), flat(model.stack[0](wide)), atol=0)


def test_quantization_passes_a_swapped_layer_by_and_takes_a_restored_one():
    from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415

    model = nn.Sequential(made("LSTM", dtype=torch.float32))
    anyrnn.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        assert isinstance(quantize_dynamic(model, {nn.LSTM})[0], anyrnn.LSTM)
        anyrnn.restore(model)
        assert "quantized" in type(quantize_dynamic(model, {nn.LSTM})[0]).__module__


def test_what_happens_in_between_stays():
    model = Tagger()
    anyrnn.accelerate(model)
    model.float().eval()
    model.stack[0].weight_ih_l0 = nn.Parameter(torch.ones(3 * H, 2 * H))
    model.requires_grad_(False)
    model.load_state_dict({k: v + 0.125 for k, v in model.state_dict().items()}, assign=True)
    parameters = list(model.parameters())
    x, lengths = torch.randn(T, B, I), torch.tensor([5, 1, 3])
    with anyrnn.engine("torch"):
        want = model(x, lengths)
    anyrnn.restore(model)
    assert same_objects(list(model.parameters()), parameters)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in parameters)
    assert model.stack[0].weight_ih_l0[0, 0] == 1.125
    close([model(x, lengths)], [want], atol=1e-5)  # in float32


def test_flags_and_options_of_before_hold():
    layer = made(num_layers=2, dropout=0.4)
    layer.weight_hh_l1.requires_grad_(False)
    layer.eval()
    x = torch.randn(T, B, I, dtype=torch.float64)
    calm = layer(x)[0]
    layer.train()
    torch.manual_seed(1)
    noisy = layer(x)[0]
    anyrnn.accelerate(layer)
    assert layer.training
    torch.manual_seed(1)
    close([layer(x)[0]], [noisy])
    layer(x)[0].sum().backward()
    assert layer.weight_hh_l1.grad is None
    assert layer.weight_hh_l0.grad is not None
    layer.eval()
    close([layer(x)[0]], [calm])
    anyrnn.restore(layer)
    assert not layer.training
    close([layer(x)[0]], [calm], atol=0)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
def test_what_torch_warns_of_when_the_layer_is_made_is_not_said_again():
    layer = made(dropout=0.5)
    before = results(layer)
    assert str(anyrnn.accelerate(layer)).endswith("LSTM(4, 6, dropout=0.5)")
    close(results(layer), before)


def test_layers_without_memory_or_weights_yet_are_swapped():
    real = made("GRU", num_layers=2)
    with torch.device("meta"):
        model = nn.Sequential(nn.LazyLinear(I), made("GRU", num_layers=2))
    anyrnn.accelerate(model)
    layer = model[1]
    assert all(p.is_meta for p in layer.parameters())
    assert layer(torch.zeros(T, B, I, dtype=torch.float64, device="meta"))[0].shape == (T, B, H)
    layer.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert nn.parameter.is_lazy(model[0].weight)
    close(results(layer), results(real))
    anyrnn.restore(model)
    close(results(layer), results(real), atol=0)


def test_swapping_and_restoring_twice_changes_nothing_more():
    layer = made()
    anyrnn.accelerate(layer)
    attributes = dict(vars(layer))
    report = anyrnn.accelerate(layer)
    assert (len(report.swapped), report.left[0].reason) == (0, "it was swapped before")
    assert vars(layer) == attributes
    assert anyrnn.restore(layer) == ("",)
    assert anyrnn.restore(layer) == ()
    assert type(layer) is nn.LSTM
    assert anyrnn.accelerate(layer).swapped[0].layer == "LSTM(4, 6)"


def test_the_report_is_a_value_that_prints_well():
    model = nn.ModuleDict(
        {"a": nn.LSTM(I, H, 2), "b": nn.Sequential(nn.RNN(I, H), OwnStart(I, H)), "c": nn.Linear(I, H)}
    )
    report = anyrnn.accelerate(model)
    assert str(report) == (
        "swapped: 2\n"
        "  a: LSTM(4, 6, num_layers=2)\n"
        "  b.0: RNN(4, 6)\n"
        "left as they are: 1\n"
        "  b.1: OwnStart(4, 6): it is of another class, OwnStart, which may compute something else"
    )
    anyrnn.restore(model)
    assert {anyrnn.accelerate(model)} == {report}
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.left = ()
    assert str(anyrnn.accelerate(nn.GRU(I, H))) == "swapped: 1\n  (the model itself): GRU(4, 6)"
    assert str(anyrnn.accelerate(model["c"])) == "the model has no nn.RNN, nn.LSTM or nn.GRU"


@pytest.mark.parametrize("function", [anyrnn.accelerate, anyrnn.restore])
@pytest.mark.parametrize(
    "wrong, got", [(nn.LSTM, "the class LSTM"), (MappingProxyType({}), "a mappingproxy"), (None, "a NoneType")]
)
def test_something_else_than_a_module_is_refused(function, wrong, got):
    with pytest.raises(anyrnn.AnyRNNError, match=f"{function.__name__}: got {got}, expected an nn.Module"):
        function(wrong)
