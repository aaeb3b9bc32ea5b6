"""accelerate and restore: torch.nn's layers become this package's and torch's again, and nobody else notices."""

import copy
import dataclasses
import io
import itertools
import pickle
import warnings
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import anyrnn
from zoo import close, flat, gradients, loss_of

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
    assert type(layer) is OURS[KINDS[kind][0]]
    assert not isinstance(layer, nn.RNNBase)
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
    assert not any(isinstance(module, nn.RNNBase) for module in model.modules())
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
        assert type(layer) is OURS[KINDS[kind][0]]
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


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved], ids=["deepcopy", "pickle", "torch.save"]
)
def test_copies_of_an_accelerated_model_work_and_can_be_restored(copied):
    model = Tagger()
    anyrnn.accelerate(model)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 5, 4])
    want = model(x, lengths)
    twin = copied(model)
    close([twin(x, lengths)], [want], atol=0)
    assert twin.by_name["again"] is twin.stack[1]
    assert twin.unregistered[0] is twin.by_name["decoder"]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert anyrnn.restore(twin) == LAYERS_OF_TAGGER
    close([twin(x, lengths)], [want])
    assert isinstance(twin.stack[0], nn.GRU)
    assert isinstance(model.stack[0], anyrnn.GRU)
    close([model(x, lengths)], [want], atol=0)
    close([saved(twin)(x, lengths)], [twin(x, lengths)], atol=0)


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
