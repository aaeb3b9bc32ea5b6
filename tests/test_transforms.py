"""Derivatives of derivatives, torch.func, checkpoints, autocast: exact, or by an engine that can."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import anyrnn
from anyrnn.engines.low_precision import failure
from zoo import CASES, FEW, LAYER_PAIRS, PAIRS, I, close, flat, gradients, ids, layer_state, loss_of, state_of, x_of

# PyTorch's own remark on torch.nn's cells under vmap.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")

every = pytest.mark.parametrize(("case", "engine"), PAIRS, ids=ids(PAIRS))
# The reference differentiates by PyTorch alone: a few cells show that it is left to.
once = [(case, engine) for case, engine in PAIRS if engine != "reference" or case.name in FEW]
twice = [(case, engine) for case, engine in once if case.twice]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
named = pytest.mark.parametrize(
    "make", [anyrnn.RNN, anyrnn.LSTM, anyrnn.GRU, anyrnn.PeepholeLSTM], ids=lambda m: m.__name__
)


def scanned(case, engine, lengths, reverse):
    """The scan as a function of x, states and parameters, and the point at which to differentiate it."""
    cell = case.cell()
    states, names = flat(state_of(cell, 2)), [name for name, _ in cell.named_parameters()]
    bare = anyrnn.probing.describe(cell, I).bare

    def function(x, *rest):
        given, weights = rest[: len(states)], dict(zip(names, rest[len(states) :], strict=True))
        state = given[0] if bare else tuple(given)
        module = Scan(cell, lengths, reverse, engine)
        return functional_call(module, {f"cell.{k}": w for k, w in weights.items()}, (x, state))

    return function, [t.detach().clone().requires_grad_() for t in (x_of(max(lengths), 2), *states, *cell.parameters())]


class Scan(nn.Module):
    def __init__(self, cell, lengths, reverse, engine):
        super().__init__()
        self.cell, self.options, self.engine = cell, (lengths, reverse), engine

    def forward(self, x, state):
        with anyrnn.engine(self.engine):
            output, final = anyrnn.scan(self.cell, x, state, *self.options)
        return (output, *flat(final))


@pytest.mark.grid(3)
@pytest.mark.parametrize(("case", "engine"), once, ids=ids(once))
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_gradcheck(case, engine, reverse):
    function, point = scanned(case, engine, [3, 1], reverse)
    assert torch.autograd.gradcheck(function, point, fast_mode=True)


@pytest.mark.grid(3)
@pytest.mark.parametrize(("case", "engine"), twice, ids=ids(twice))
def test_gradgradcheck(case, engine):
    function, point = scanned(case, engine, [2, 1], False)
    assert torch.autograd.gradgradcheck(function, point, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case.twice], ids=lambda case: case.name)
def test_gradients_of_gradients_are_the_references_in_float32_too(case):
    """The vendor's kernel in float32 is another one than in float64."""
    found = []
    for engine in ("auto", "reference"):
        layer, x = case.layer(bidirectional=True).float(), x_of().float().requires_grad_()
        with anyrnn.engine(engine):
            (first,) = torch.autograd.grad(layer(x, lengths=[2, 4, 3])[0].square().sum(), x, create_graph=True)
        found.append(gradients(layer.parameters(), first.square().sum()))
    for a, b in zip(*found, strict=True):  # float32, and sums that are far above 1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# PyTorch cannot vmap its own nn.LSTMCell ("Batching rule not implemented for aten::lstm_cell"); anyrnn.LSTMCell it can.
@pytest.mark.parametrize("case", [case for case in CASES if case.name != "nn.LSTMCell"], ids=lambda case: case.name)
def test_vmap_over_inputs_grad_and_jvp(case):
    layer = case.layer(bidirectional=True).requires_grad_(False)
    state = layer_state(layer)
    stack = torch.stack([x_of(seed=k) for k in range(3)])  # (3, T, B, I)

    def output(x):
        return layer(x, state, lengths=[2, 4, 0])[0]

    with anyrnn.engine("reference"):
        want = torch.stack([output(x) for x in stack])
    close([vmap(output)(stack)], [want])
    x, tangent = stack[0], stack[1]
    value, slope = jvp(output, (x,), (tangent,))
    eps = 1e-6
    with anyrnn.engine("reference"):
        numeric = (output(x + eps * tangent) - output(x - eps * tangent)) / (2 * eps)
    close([value], [want[0]])
    close([slope], [numeric], atol=1e-7)
    leaf = x.clone().requires_grad_()
    with anyrnn.engine("reference"):
        want = torch.autograd.grad(loss_of(output(leaf)), leaf)
    close([grad(lambda x: loss_of(output(x)))(x)], want)


@each_case
def test_per_sample_gradients(case):
    layer = case.layer(num_layers=2)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    x = x_of()

    def loss(parameters, x):  # x (T, I), one sample
        return loss_of(functional_call(layer, parameters, (x,))[0])

    found = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for row in range(x.shape[1]):
        with anyrnn.engine("reference"):
            want = gradients(layer.parameters(), loss_of(layer(x[:, row])[0]))
        close([g[row] for g in found.values()], want)


@named
def test_an_ensemble_by_vmap_over_stacked_weights(make):
    members = [make(I, 3, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    x = x_of()
    found = vmap(lambda p, b: functional_call(members[0], (p, b), (x,))[0])(parameters, buffers)
    close([found], [torch.stack([m(x)[0] for m in members])])


@named
def test_a_jacobian_of_the_final_state(make):
    layer = make(I, 3, dtype=torch.float64).requires_grad_(False)
    x = x_of(2, 1)
    found = jacrev(lambda x: flat(layer(x)[1])[0])(x)
    close([found], [torch.autograd.functional.jacobian(lambda x: flat(layer(x)[1])[0], x)])


@pytest.mark.parametrize(("case", "engine"), LAYER_PAIRS, ids=ids(LAYER_PAIRS))
@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing(case, engine, reentrant):
    layer, found = case.layer(bidirectional=True), []
    state = layer_state(layer)

    def call(x):
        output, final = layer(x, state, lengths=[2, 4, 0])
        return output, *flat(final)

    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
        x = x_of().requires_grad_()
        with anyrnn.engine(engine):
            output, *final = wrap(call, x)
            layer.zero_grad()
            loss_of(output, *final).backward()
            found.append([output, *final, x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    close(*found)


@every
def test_under_autocast_the_state_keeps_its_type_and_can_be_carried_on(case, engine):
    layer, x = case.layer().float(), x_of().float()
    want, _ = layer(torch.cat((x, x)), lengths=[6, 8, 4])
    with anyrnn.engine(engine), torch.autocast("cpu", torch.bfloat16):
        if engine == "torch" and not kernel_works(case):
            with pytest.raises(
                anyrnn.AnyRNNError, match="does not work in this precision on this processor: could not"
            ):
                layer(x)
            return
        first, state = layer(x)
        second, state = layer(x, state, lengths=[2, 4, 0])
        mixed, _ = layer(x.bfloat16(), state)
    assert all(s.dtype == torch.float32 for s in flat(state))
    got = torch.cat((first, second)).float()
    torch.testing.assert_close(got, want, rtol=0, atol=0.1)  # eight bits of mantissa
    loss_of(first.float(), second.float(), mixed.float()).backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def kernel_works(case) -> bool:
    """Whether torch.nn's own network of this kind runs under autocast to bfloat16 on this processor."""
    return "LSTM" not in case.name or case.name == "LSTM-projected" or works(torch.float32, torch.bfloat16, True)


def works(dtype, autocast, trained, network=nn.LSTM) -> bool:
    """Whether torch.nn's network itself computes in these types on this processor."""
    with torch.set_grad_enabled(trained), torch.autocast("cpu", autocast, enabled=autocast is not None):
        try:
            output, _ = network(I, 3, dtype=dtype)(x_of().to(dtype))
            return not trained or output.sum().backward() is None
        except RuntimeError:
            return False


@pytest.mark.parametrize("network", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda n: n.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("trained", [True, False], ids=["training", "no_grad"])
def test_a_precision_is_refused_where_pytorchs_own_network_fails_in_it_and_auto_does_not_meet_it(
    network, dtype, autocast, trained
):
    """As oneDNN's LSTM in float16, or in bfloat16 on a processor without AVX-512."""
    torch.manual_seed(0)
    expected = works(dtype, autocast, trained, network)
    layer, x = getattr(anyrnn, network.__name__)(I, 3, dtype=dtype), x_of().to(dtype)
    with torch.set_grad_enabled(trained), torch.autocast("cpu", autocast, enabled=autocast is not None):
        with anyrnn.engine("torch"):
            if expected:
                layer(x)
            else:
                with pytest.raises(anyrnn.AnyRNNError, match="does not work in this precision on this processor"):
                    layer(x)
        with anyrnn.engine("auto"):
            output, _ = layer(x)
    assert output.isfinite().all()


def test_the_try_of_a_precision_leaves_nothing_behind_and_is_made_once(monkeypatch):
    """It sees none of what the caller has set up, and what is set up sees nothing of it."""
    layer, x, able, seen = anyrnn.LSTM(I, 3), x_of().float(), works(torch.float32, torch.bfloat16, True), []
    counted, kernel = [], torch._VF.lstm
    monkeypatch.setattr(torch._VF, "lstm", lambda *args: counted.append(args[0].shape[0]) or kernel(*args))
    failure.cache_clear()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.dtype) or t, lambda t: t)
    torch.manual_seed(5)
    want = torch.get_rng_state()
    with anyrnn.engine("torch"), torch.autocast("cpu", torch.bfloat16), hooks, torch.device("meta"):
        for _ in range(2):
            if able:
                assert anyrnn.explain(layer, x).parts[0].engine == "torch"
            else:
                with pytest.raises(anyrnn.AnyRNNError, match="does not work in this precision"):
                    anyrnn.explain(layer, x)
    assert counted == [1]
    assert seen == []
    assert torch.get_rng_state().equal(want)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_eval_mode_gradients_are_those_of_training_mode():
    for case, engine in PAIRS:
        layer = case.layer(bidirectional=True)
        found = []
        for mode in (True, False):
            layer.train(mode)
            x = x_of().requires_grad_()
            with anyrnn.engine(engine):
                output, final = layer(x)
            found.append(gradients([x, *layer.parameters()], loss_of(output, *flat(final))))
        close(*found)


def test_forward_mode_derivatives_go_to_an_engine_that_has_them():
    layer = anyrnn.LSTM(I, 3, dtype=torch.float64).requires_grad_(False)
    x = x_of()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        slope = torch.autograd.forward_ad.unpack_dual(layer(dual)[0]).tangent
        assert anyrnn.explain(layer, dual).parts[0].engine == "reference"
    eps = 1e-6
    close([slope], [(layer(x + eps)[0] - layer(x - eps)[0]) / (2 * eps)], atol=1e-7)


def test_where_torch_func_transforms_a_call_the_reference_runs_it_and_explain_says_why():
    layer, told = anyrnn.LSTM(I, 3, dtype=torch.float64).requires_grad_(False), []

    def output(x):
        told.append(anyrnn.explain(layer, x).parts[0])
        return layer(x)[0].sum()

    x = x_of()
    vmap(output)(torch.stack([x, x]))
    grad(output)(x)
    jacrev(output)(x)
    jvp(output, (x,), (x,))
    for part in told:
        assert part.engine == "reference"
        assert "torch.func transforms" in part.reason
        assert "forward-mode derivatives" in part.reason
    with anyrnn.engine("cpu"), pytest.raises(anyrnn.AnyRNNError, match=r"asked for by name .* torch\.func transforms"):
        grad(output)(x)
    assert len(told) == 4


# ---- Many gradients at once, and contexts around a call ----

BATCHED = ("LSTM", "GRU-reset-before", "nn.GRUCell", "ConcatLSTM", "MixedSizes", "NormLSTM", "LowRank")
batched = [(case, engine) for case, engine in PAIRS if case.name in BATCHED]


@pytest.mark.parametrize(("case", "engine"), batched, ids=ids(batched))
@pytest.mark.parametrize("lengths", [None, (3, 1)], ids=str)
def test_gradients_of_many_outputs_at_once(case, engine, lengths):
    cell = case.cell()
    x, *states = (t.detach().requires_grad_() for t in (x_of(3, 2), *flat(state_of(cell, 2))))
    bare = anyrnn.probing.describe(cell, I).bare

    def output(*inputs):
        with anyrnn.engine(engine):
            output, final = anyrnn.scan(cell, inputs[0], inputs[1] if bare else inputs[1:], lengths)
        return torch.cat([output.flatten(), *(s.flatten() for s in flat(final))])

    jacobian = torch.autograd.functional.jacobian
    with anyrnn.engine("reference"):
        want = [jacobian(lambda *a: torch.cat([t.flatten() for t in scan_of(cell, a, bare, lengths)]), (x, *states))]
    close(jacobian(output, (x, *states), vectorize=True), want[0])
    y = output(x, *states)
    inputs = [x, *states, *cell.parameters()]
    one_by_one = [torch.autograd.grad(each, inputs, retain_graph=True, allow_unused=True) for each in y]
    for create_graph in (False, True):
        found = torch.autograd.grad(
            y, inputs, torch.eye(len(y), dtype=y.dtype), is_grads_batched=True, retain_graph=True, allow_unused=True,
            create_graph=create_graph,
        )  # fmt: skip
        for k, g in enumerate(found):
            rows = [row[k] for row in one_by_one]
            if g is None:
                assert all(row is None for row in rows)
            else:
                close([g], [torch.stack([torch.zeros_like(inputs[k]) if row is None else row for row in rows])])


def scan_of(cell, inputs, bare, lengths):
    with anyrnn.engine("reference"):
        output, final = anyrnn.scan(cell, inputs[0], inputs[1] if bare else inputs[1:], lengths)
    return output, *flat(final)


def test_a_vectorised_hessian():
    layer = anyrnn.GRU(I, 3, dtype=torch.float64).requires_grad_(False)
    x = x_of(3, 2)
    hessian = torch.autograd.functional.hessian
    want = hessian(lambda x: layer(x)[0].square().sum(), x)
    for outer in ("reverse-mode", "forward-mode"):
        close([hessian(lambda x: layer(x)[0].square().sum(), x, vectorize=True, outer_jacobian_strategy=outer)], [want])


CONTEXTS = {
    "device meta": lambda: torch.device("meta"),
    "default device meta": lambda: default(torch.set_default_device, "meta", None),
    "default dtype": lambda: default(torch.set_default_dtype, torch.float16, torch.float32),
}


@contextlib.contextmanager
def default(set_it, inside, after):
    set_it(inside)
    try:
        yield
    finally:
        set_it(after)


few = [(case, engine) for case, engine in PAIRS if case.name in FEW]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("case", "engine"), few, ids=ids(few))
def test_defaults_of_devices_and_types_are_not_those_of_a_call(context, case, engine):
    """Also where the first call, the one for which a cell is described and traced, is made below them."""
    cell, x, lengths = case.cell(), x_of(), [2, 4, 0]
    layer = case.layer(bidirectional=True)
    packed = pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    found = []
    for around in (CONTEXTS[context], contextlib.nullcontext):
        twin, stack = copy.deepcopy(cell), copy.deepcopy(layer)
        point = x.clone().requires_grad_()
        with around(), anyrnn.engine(engine):
            results = []
            for reverse in (False, True):
                output, final = anyrnn.scan(twin, point, lengths=lengths, reverse=reverse)
                results += [output, *flat(final)]
            output, final = stack(point, lengths=lengths)
            results += [output, anyrnn.output_at(output, lengths, bidirectional=True), *flat(final)]
            results += [stack(packed)[0].data]
            grads = gradients([point, *twin.parameters(), *stack.parameters()], sum(r.square().sum() for r in results))
        assert all(r.dtype == torch.float64 and r.device.type == "cpu" for r in results)
        found.append([*results, *grads])
    close(*found)


def test_hooks_on_single_saved_tensors_may_change_their_form():
    layer, x = anyrnn.Recurrent(torch.nn.GRUCell(3, 4), 3).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    grads = []
    for is_hooked in (False, True):
        with anyrnn.engine("cpu"):
            output, _ = layer(x)
        node, seen = output.grad_fn, 0
        while node.name() != "_LoopFunctionBackward":
            node = node.next_functions[0][0]
        for saved in node._raw_saved_tensors if is_hooked else ():
            saved.register_hooks(torch.clone, lambda t: t.transpose(0, -1).contiguous().transpose(0, -1))
            seen += 1
        assert (seen > 4) == is_hooked
        grads.append(torch.autograd.grad(output.cos().sum(), [*layer.parameters()]))
    for plain, hooked in zip(*grads, strict=True):
        torch.testing.assert_close(hooked, plain, rtol=0, atol=0)
