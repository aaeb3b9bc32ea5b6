"""Cells in the style of public projects run unchanged: as in the loop of their own users, and compiled.

The cells, the loops and how each is run are those of `benchmarks/strangers.py`, which measures them.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import anyrnn
import strangers_cells as cells
from strangers import STRANGERS, Sizes

T, B, S = 6, 5, 4
LENGTHS = {"full": None, "ragged": [6, 0, 3, 1, 5]}
#: A convolution in the loop is what the compiler leaves to the cell's own loop.
CONVOLUTIONS = {"ConvLSTM", "Tacotron 2 decoder"}


@pytest.fixture(autouse=True)
def _double():
    """Numbers that a project keeps as tensors are then float64, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Case:
    """A stranger of small sizes, its layer, and what a call is given."""

    def __init__(self, name, **options):
        torch.manual_seed(0)
        self.stranger = STRANGERS[name]
        self.sizes = n = Sizes(T, B, *self.stranger.small, S)
        self.model = None if options else self.stranger.make(n)
        self.layer = self.stranger.layer(n, self.model, **options)
        self.inputs, self.context = self.stranger.inputs(n), self.stranger.context(n)
        self.states = self.stranger.drawn(n)
        self.x = torch.randn(T, B, *self.stranger.x(n))
        self.leaves = [self.x, *self.states, *self.extras]
        for leaf in self.leaves:
            leaf.requires_grad_()

    @property
    def extras(self):
        """The tensors of inputs and context, in order."""
        values = pytree.tree_leaves((self.inputs, self.context), is_leaf=lambda v: type(v).__name__ == "Shared")
        return [getattr(v, "tensor", v) for v in values]

    def given(self, model):
        """x as the loop reads it."""
        return self.stranger.before(model, self.x)

    def call(self, x, state=None, lengths=None):
        return self.layer(x, state, lengths=lengths, inputs=self.inputs or None, context=self.context or None)

    def by_layer(self, lengths, with_state):
        """Outputs, then final states."""
        states = tuple(s.unsqueeze(0) for s in self.states)
        state = (states if len(states) > 1 else states[0]) if with_state else None
        output, final = self.call(self.given(self.model), state, lengths)
        return [*pytree.tree_leaves(output), *(f.squeeze(0) for f in pytree.tree_leaves(final))]

    def loop(self, model, x, rows, length, with_state):
        """The users' loop over some rows, which are all of one length."""
        states = tuple(s[rows] if with_state else torch.zeros_like(s[rows]) for s in self.states)
        count = len(pytree.tree_leaves(self.inputs))
        shared = any(type(c).__name__ == "Shared" for c in self.context)
        extras = [e[:length, rows] if k < count else e if shared else e[rows] for k, e in enumerate(self.extras)]
        state = states if len(states) > 1 else states[0]
        output, final = self.stranger.loop(model, x[:length, rows], state, *extras)
        return pytree.tree_leaves(output), pytree.tree_leaves(final)

    def by_loop(self, lengths, with_state):
        """The same by the users' loop: of a ragged batch each row by itself, up to its length."""
        x = self.given(self.model)
        if lengths is None:
            return [t for part in self.loop(self.model, x, slice(None), T, with_state) for t in part]
        outputs, finals = [], []
        for row, length in enumerate(lengths):
            some = slice(row, row + 1)
            steps, final = self.loop(self.model, x, some, max(length, 1), with_state)
            padding = [t.new_zeros(T, *t.shape[1:]) for t in steps]
            outputs.append([torch.cat([t[:length], p[length:]]) for t, p in zip(steps, padding, strict=True)])
            start = [s[some] if with_state else torch.zeros_like(s[some]) for s in self.states]
            finals.append(final if length else start)
        together = [torch.cat(t, 1) for t in zip(*outputs, strict=True)]
        return [*together, *(torch.cat(t) for t in zip(*finals, strict=True))]

    def explained(self):
        x = self.given(self.model)
        return anyrnn.explain(self.layer, x, inputs=self.inputs or None, context=self.context or None).parts[0]


def loss_of(results):
    """A sum in which every number counts differently."""
    return sum((t * torch.cos(torch.arange(t.numel()) * 1.0).reshape(t.shape)).sum() for t in results)


def with_gradients(results, leaves):
    grads = torch.autograd.grad(loss_of(results), leaves, allow_unused=True, retain_graph=True)
    return [*results, *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", STRANGERS)
def test_it_is_its_own_users_loop_and_runs_on_the_engine_that_is_expected(name):
    case = Case(name)
    leaves = [*case.leaves, *case.model.parameters()]
    part = case.explained()
    assert part.engine == case.stranger.engine, part.refused
    for lengths, with_state in ((None, True), (LENGTHS["ragged"], False), (LENGTHS["ragged"], True)):
        used = leaves if with_state else [t for t in leaves if all(t is not s for s in case.states)]
        close(
            with_gradients(case.by_layer(lengths, with_state), used),
            with_gradients(case.by_loop(lengths, with_state), used),
        )


def test_only_convolutions_run_on_the_reference():
    assert {name for name, stranger in STRANGERS.items() if stranger.engine == "reference"} == CONVOLUTIONS
    for name in CONVOLUTIONS:
        assert "`aten.convolution` in the loop" in Case(name).explained().refused["cpu"]
    assert len(STRANGERS) - len(CONVOLUTIONS) >= 20


class Kept(nn.Module):
    """Keeps its weights in a dict beside the module's own, numbers in nested containers, and asks for a parameter."""

    def __init__(self):
        super().__init__()
        self.hidden_size = 4
        self.w, self.u = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 4))
        self.weights = {"w": self.w, "of": [torch.rand(4), (torch.rand(4),)]}

    def forward(self, x, h):
        scale, (shift,) = self.weights["of"]
        return torch.tanh(x @ self.weights["w"] + h @ self.get_parameter("u") * scale + shift)


def test_tensors_in_containers_are_those_of_the_present_call():
    layer, x = anyrnn.Recurrent(Kept(), 3), torch.randn(T, B, 3)
    cell, seen = layer.cells[0], []

    def same_as_plain():
        found = []
        for engine in ("cpu", "reference"):
            with anyrnn.engine(engine):
                output, _ = layer(x)
            found.append(with_gradients([output], [*layer.parameters(), cell.weights["w"]]))
        close(*found)
        assert all(not torch.equal(found[0][0], before) for before in seen)
        seen.append(found[0][0].detach())

    same_as_plain()
    with torch.no_grad():
        cell.weights["of"][0].mul_(0.5)  # changed in place
    same_as_plain()
    cell.weights["of"][1] = (torch.rand(4),)  # another tensor
    same_as_plain()
    with torch.no_grad():
        cell.weights["w"].mul_(0.5)
    same_as_plain()
    cell.weights["w"] = nn.Parameter(torch.randn(3, 4))  # no more the module's
    same_as_plain()
    cell.weights["w"] = cell.w = nn.Parameter(torch.randn(3, 4))  # both
    same_as_plain()
    cell.w = nn.Parameter(torch.randn(3, 4))  # of the module alone, which the step does not read
    seen.clear()
    same_as_plain()


def test_a_step_given_as_a_function_says_what_it_takes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Linear(3, 4)

        def advance(self, x, h, c, gate):
            c = c + gate * torch.tanh(self.W(x) + h)
            return torch.tanh(c), c

    for step in (lambda m, x, s, gate: m.advance(x, *s, gate), Net.advance):
        layer = anyrnn.Recurrent(Net(), 3, step=step, state_sizes=(4, 4))
        x, gate = torch.randn(T, B, 3), torch.rand(B, 4)
        output, _ = layer(x, context=gate)
        h = c = x.new_zeros(B, 4)
        for t in range(T):
            h, c = layer.cells[0].advance(x[t], h, c, gate)
            close(output[t], h)
        with pytest.raises(anyrnn.AnyRNNError, match=r"its step takes \(x, .*gate\), and got nothing.*`gate`"):
            anyrnn.Recurrent(Net(), 3, step=step, state_sizes=(4, 4))(x)


# ---- Directions and stacks ----

#: Those that read what x is, so that two cells can read it from both sides.
TWO_DIRECTIONS = ["neuralhydrology EALSTM", "neuralhydrology MCLSTM", "ncps CfC", "xlstm sLSTM, 4 heads", "DCRNN"]


@pytest.mark.parametrize("name", TWO_DIRECTIONS)
def test_in_two_directions_it_is_two_loops_of_its_users(name):
    case = Case(name, bidirectional=True)
    leaves = [case.x, *case.extras, *case.layer.parameters()]
    output, final = case.call(case.x)
    assert {part.engine for part in anyrnn.explain(
        case.layer, case.x, inputs=case.inputs or None, context=case.context or None).parts} == {"cpu"}  # fmt: skip
    outputs, finals = [], []
    for cell, turned in zip(case.layer.cells, (False, True), strict=True):
        whole = copy.copy(case)
        if turned:
            whole.inputs = pytree.tree_map(lambda t: t.flip(0), case.inputs)
        (steps, *_), final_of_cell = whole.loop(cell, case.x.flip(0) if turned else case.x, slice(None), T, False)
        outputs.append(steps.flip(0) if turned else steps)
        finals.append(final_of_cell)
    wanted = [torch.cat(outputs, -1), *(torch.stack(t) for t in zip(*finals, strict=True))]
    close(with_gradients([output, *pytree.tree_leaves(final)], leaves), with_gradients(wanted, leaves))


def test_stanzas_packed_batches_in_two_directions():
    n = Sizes(T, B, 3, 4, S)
    layer = anyrnn.Recurrent(lambda _: cells.LSTMwRecDropout(n.I, n.H), n.I, bidirectional=True)
    x, mask = torch.randn(T, B, n.I, requires_grad=True), (torch.rand(B, n.H) > 0.4).to(torch.float64)
    packed = pack_padded_sequence(x, [6, 4, 4, 2, 1])
    assert {part.engine for part in anyrnn.explain(layer, packed, context=mask).parts} == {"cpu"}
    output, (h, c) = layer(packed, context=mask)
    zeros = x.new_zeros(B, n.H), x.new_zeros(B, n.H)
    found = [
        cells.lstm_with_dropout(cell, packed, zeros, mask, reverse)
        for cell, reverse in zip(layer.cells, (False, True), strict=True)
    ]
    wanted = torch.cat([steps.data for steps, _ in found], 1)
    finals = [torch.stack(t) for t in zip(*(final for _, final in found), strict=True)]
    leaves = [x, *layer.parameters()]
    close(with_gradients([output.data, h, c], leaves), with_gradients([wanted, *finals], leaves))
    assert torch.equal(pad_packed_sequence(output)[1], torch.tensor([6, 4, 4, 2, 1]))


def speechbrains(layers, x, hx):
    """As speechbrain's cells: layers stacked within a step, with states (L, B, H)."""
    outputs = []
    for x_t in x:
        h = [layers[0](x_t, hx[0])]
        for k in range(1, len(layers)):
            h.append(layers[k](h[k - 1], hx[k]))
        hx = torch.stack(h)
        outputs.append(h[-1])
    return torch.stack(outputs), hx


def test_speechbrains_stacks_with_states_of_all_layers():
    layer = anyrnn.Recurrent([lambda n: nn.GRUCell(n, 4)] * 3, 3)
    x, hx = torch.randn(T, B, 3, requires_grad=True), torch.randn(3, B, 4, requires_grad=True)
    leaves = [x, hx, *layer.parameters()]
    assert {part.engine for part in anyrnn.explain(layer, x, hx).parts} == {"cpu"}
    close(with_gradients([*layer(x, hx)], leaves), with_gradients([*speechbrains(layer.cells, x, hx)], leaves))


# ---- Feedback ----


class WordDecoder(nn.Module):
    """A decoder of words: an embedding, a cell and a head."""

    def __init__(self, words=7, features=3, hidden_size=4):
        super().__init__()
        self.embedding = nn.Embedding(words, features)
        self.cell, self.out = nn.GRUCell(features, hidden_size), nn.Linear(hidden_size, words)

    def expected(self, h):
        """The embedding that is expected next, of a probability for each word."""
        return torch.softmax(self.out(h), 1) @ self.embedding.weight

    def likeliest(self, h):
        """That of the likeliest word."""
        return self.embedding(self.out(h).argmax(1))


@pytest.mark.parametrize("forced", [False, True], ids=["generated", "teacher forcing"])
@pytest.mark.parametrize("feed", ["expected", "likeliest"])
def test_a_decoder_of_words_reads_what_it_wrote(feed, forced):
    model = WordDecoder()
    layer, following = anyrnn.Recurrent(model.cell), getattr(model, feed)
    words, h = torch.randint(0, 7, (T, B)), torch.randn(B, 4, requires_grad=True)
    x, is_forced = model.embedding(words), torch.rand(T, B) > 0.5
    is_forced[0] = True
    if forced:
        output, final = layer(x, h.unsqueeze(0), feedback=following, forced=is_forced)
    else:
        output, final = layer.generate(h.unsqueeze(0), T, first=x[0], feed=following)
    state, outputs, fed = h, [], x[0]
    for t in range(T):
        state = model.cell(fed, state)
        outputs.append(state)
        fed = following(state)
        if forced and t + 1 < T:
            fed = torch.where(is_forced[t + 1].unsqueeze(1), x[t + 1], fed)
    leaves = [h, *model.parameters()]
    got, wanted = [output, final[0]], [torch.stack(outputs), state]
    close(with_gradients(got, leaves), with_gradients(wanted, leaves))


def test_a_forecast_goes_on_with_two_cells():
    """As pytorch/examples' sequences of sines: two LSTM cells, and a future that reads its own forecasts."""
    layer, linear = anyrnn.Recurrent([nn.LSTMCell(1, 4), nn.LSTMCell(4, 4)], 1), nn.Linear(4, 1)
    x = torch.randn(T, B, 1, requires_grad=True)
    seen, state = layer(x)
    future, _ = layer.generate(state, 3, first=linear(seen[-1]), feed=linear)
    first, second = layer.cells
    outputs, pairs = [], [(x.new_zeros(B, 4),) * 2] * 2
    for t in range(T + 3):
        pairs = [first(x[t] if t < T else outputs[-1], pairs[0]), pairs[1]]
        pairs[1] = second(pairs[0][0], pairs[1])
        outputs.append(linear(pairs[1][0]))
    leaves = [x, *layer.parameters(), *linear.parameters()]
    got = linear(torch.cat([seen, future]))
    close(with_gradients([got], leaves), with_gradients([torch.stack(outputs)], leaves))


# ---- Within PyTorch ----


class Model(nn.Module):
    """A layer with its further arguments by position, as a model around it has them."""

    def __init__(self, case):
        super().__init__()
        self.layer, self.shared = case.layer, any(type(c).__name__ == "Shared" for c in case.context)

    def forward(self, x, inputs, context):
        context = tuple(map(anyrnn.shared, context)) if self.shared else context
        output, state = self.layer(torch.sin(x), inputs=inputs or None, context=context or None)
        return pytree.tree_map(lambda t: 2 * t, output), tuple(state)


def arguments(case):
    return case.given(case.model), case.inputs, tuple(getattr(c, "tensor", c) for c in case.context)


COMPILED = [
    "neuralhydrology CustomLSTM", "neuralhydrology MCLSTM", "GRU-D", "snntorch, two layers of Leaky",
    "norse LIFRecurrentCell", "DCRNN", "OpenNMT input-feed decoder",
]  # fmt: skip


@pytest.mark.grid(2)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", COMPILED)
def test_below_torch_compile_it_is_the_same_without_graph_breaks(name):
    torch._dynamo.reset()
    case = Case(name)
    model, given = Model(case), arguments(case)
    leaves = [case.x, *case.extras, *case.layer.parameters()]
    backend = "aot_eager" if name in COMPILED[::3] else "eager"
    results = [
        with_gradients(pytree.tree_leaves(run(*given)), leaves)
        for run in (torch.compile(model, fullgraph=True, backend=backend), model)
    ]
    close(*results)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["neuralhydrology EALSTM", "ODE-LSTM", "norse LIFRecurrentCell"])
def test_saved_by_torch_export_it_is_the_same(name):
    case = Case(name)
    model, given = Model(case), pytree.tree_map(torch.Tensor.detach, arguments(case))
    want = model(*given)
    program = torch.export.export(model, given)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "anyrnn.scan.default" in targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    close(pytree.tree_leaves(torch.export.load(file).module()(*given)), pytree.tree_leaves(want))
