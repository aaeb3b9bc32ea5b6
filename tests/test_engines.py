"""Which engine runs a call: by name, by the environment, or by itself; and what `explain` says of it."""

import threading

import pytest
import torch
from torch import nn

import anyrnn
from anyrnn.engines import select
from zoo import CASES, ENGINES, B, H, I, T, close, x_of

NAMES = ", ".join(select.ENGINES)


def engines(layer, *args, **options):
    return [part.engine for part in anyrnn.explain(layer, *args, **options).parts]


@pytest.fixture
def spy(monkeypatch):
    """Names of the engines that ran, in order."""
    ran = []
    for name, engine in select.ENGINES.items():
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda call, name=name, run=run: (ran.append(name), run(call))[1])
    return ran


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_engine_that_explain_names_is_the_one_that_runs(case, spy):
    layer = case.layer(bidirectional=True)
    for name in (*ENGINES, "auto"):
        if name in ENGINES and not ENGINES[name](case):
            continue
        with anyrnn.engine(name):
            told = engines(layer, x_of(), lengths=[2, 4, 0])
            assert spy == [], "explaining runs nothing"
            layer(x_of(), lengths=[2, 4, 0])
        assert spy == told
        assert set(told) == ({name} if name != "auto" else set(told[:1]))
        spy.clear()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_asked_for_by_name_an_engine_that_cannot_raises(case):
    layer = case.layer()
    for name, runs in ENGINES.items():
        if runs(case):
            continue
        with anyrnn.engine(name), pytest.raises(anyrnn.AnyRNNError) as caught:
            layer(x_of())
        assert str(caught.value).startswith(f"engine {name!r} was asked for by name and cannot run this call: ")
        with anyrnn.engine(name), pytest.raises(anyrnn.AnyRNNError, match="asked for by name"):
            anyrnn.explain(layer, x_of())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_auto_takes_the_first_engine_that_can_and_says_why_those_before_cannot(case):
    layer, x = case.layer(), x_of()
    with anyrnn.engine("reference"):
        want, _ = layer(x)
    (part,) = anyrnn.explain(layer, x).parts
    order = list(select.ENGINES)
    assert list(part.refused) == order[: order.index(part.engine)]
    assert part.reason
    for name, refusal in part.refused.items():
        with anyrnn.engine(name), pytest.raises(anyrnn.AnyRNNError) as caught:
            layer(x)
        assert refusal in str(caught.value)
    close([layer(x)[0]], [want])


KERNELS = "RNN, LSTM and GRU only"
REFUSALS = {
    "an empty sequence": (lambda: (anyrnn.GRU(I, H), torch.randn(0, B, I)), "no empty sequences or batches"),
    "an empty batch": (lambda: (anyrnn.GRU(I, H), torch.randn(T, 0, I)), "no empty sequences or batches"),
    "another activation": (lambda: (anyrnn.GRU(I, H, activations={"n": torch.relu}), torch.randn(T, B, I)), KERNELS),
    "the papers' GRU": (lambda: (anyrnn.GRU(I, H, reset_after=False), torch.randn(T, B, I)), KERNELS),
    "another cell": (lambda: (anyrnn.PeepholeLSTM(I, H), torch.randn(T, B, I)), "PeepholeLSTMCell is none of them"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_torchs_kernels_say_why_they_cannot(why):
    make, text = REFUSALS[why]
    layer, x = make()
    with anyrnn.engine("torch"), pytest.raises(anyrnn.AnyRNNError, match=text):
        layer(x)
    with anyrnn.engine("reference"):
        want, _ = layer(x)
    close([layer(x)[0]], [want], atol=1e-6)


def test_an_rnn_with_the_other_torch_activation_is_still_torchs():
    layer = anyrnn.RNN(I, H, activations={"h": torch.relu})
    twin = anyrnn.RNN(I, H, nonlinearity="relu")
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    with anyrnn.engine("torch"):
        close([layer(x)[0]], [twin(x)[0]], atol=0)


def test_choices_nest_and_end_with_their_block():
    layer, x = anyrnn.LSTM(I, H), torch.randn(T, B, I)
    usual = engines(layer, x)
    with anyrnn.engine("reference"):
        assert engines(layer, x) == ["reference"]
        with anyrnn.engine("torch"):
            assert engines(layer, x) == ["torch"]
            with anyrnn.engine("auto"):
                assert engines(layer, x) == usual
        assert engines(layer, x) == ["reference"]
        with pytest.raises(ZeroDivisionError), anyrnn.engine("torch"):
            1 / 0  # noqa: B018
        assert engines(layer, x) == ["reference"]
    assert engines(layer, x) == usual


def test_a_choice_is_for_this_thread_only():
    layer, x, seen = anyrnn.LSTM(I, H), torch.randn(T, B, I), {}
    usual, ready = engines(layer, x), threading.Barrier(2)

    def work(name):
        with anyrnn.engine(name):
            ready.wait()
            seen[name] = engines(layer, x)
            ready.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("reference", "torch")]
    with anyrnn.engine("reference"):
        bare = threading.Thread(target=lambda: seen.update(bare=engines(layer, x)))
        bare.start()
        bare.join()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"bare": usual, "reference": ["reference"], "torch": ["torch"]}


def test_the_environment_chooses_outside_of_blocks(monkeypatch):
    layer, x = anyrnn.LSTM(I, H), torch.randn(T, B, I)
    usual = engines(layer, x)
    monkeypatch.setenv("ANYRNN_ENGINE", "reference")
    assert engines(layer, x) == ["reference"]
    with anyrnn.engine("torch"):
        assert engines(layer, x) == ["torch"]
    with anyrnn.engine("auto"):
        assert engines(layer, x) == usual
    monkeypatch.setenv("ANYRNN_ENGINE", "")
    assert engines(layer, x) == usual
    monkeypatch.setenv("ANYRNN_ENGINE", "cudnn")
    with pytest.raises(anyrnn.AnyRNNError) as caught:
        layer(x)
    assert str(caught.value) == f"ANYRNN_ENGINE: got 'cudnn', expected one of auto, {NAMES}"
    with anyrnn.engine("reference"):
        layer(x)  # the block comes first


def test_an_unknown_engine_is_refused_with_the_names_there_are():
    with pytest.raises(anyrnn.AnyRNNError) as caught, anyrnn.engine("refrence"):
        pass
    assert str(caught.value) == f"engine: got 'refrence', expected one of auto, {NAMES}"
    with pytest.raises(anyrnn.AnyRNNError, match="planned, not in this version"), anyrnn.engine("triton"):
        pass


def test_an_explanation_is_a_value_with_a_part_for_each_row_of_the_state():
    layer = anyrnn.Recurrent(lambda i: nn.LSTMCell(i, H), I, 2, bidirectional=True)
    told = anyrnn.explain(layer, torch.randn(T, B, I))
    assert [(p.layer, p.direction, p.cell) for p in told.parts] == [
        (0, "forward", "LSTMCell"),
        (0, "backward", "LSTMCell"),
        (1, "forward", "LSTMCell"),
        (1, "backward", "LSTMCell"),
    ]
    assert told.layer == "Recurrent"
    assert str(told) == str(anyrnn.explain(layer, torch.randn(T, B, I)))
    with anyrnn.engine("reference"):
        assert "asked for by name" in str(anyrnn.explain(layer, torch.randn(T, B, I)))


def test_explain_takes_what_the_call_takes_and_refuses_what_it_refuses():
    layer = anyrnn.GRU(I, H, 2, batch_first=True, dtype=torch.float64)
    x, state = x_of().transpose(0, 1), torch.zeros(2, B, H, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x_of(), torch.tensor([4, 2, 1]))
    for arguments in ((x,), (x, state), (x, state, [1, 2, 3]), (packed, state), (x[0],)):
        assert engines(layer, *arguments) == engines(layer, x)
        assert len(engines(layer, *arguments)) == 2
    with pytest.raises(anyrnn.AnyRNNError, match="expected input_size=2"):
        anyrnn.explain(layer, torch.zeros(B, T, 7, dtype=torch.float64))
    with pytest.raises(anyrnn.AnyRNNError, match="got a LSTM, expected a layer of anyrnn"):
        anyrnn.explain(nn.LSTM(I, H), x)


# ---- Why a cell runs as a Python loop --------------------------------------------------------------------------------


class Own(nn.Module):
    """A cell of somebody's own; what `change` makes of its state keeps it from machine code."""

    def __init__(self, change):
        super().__init__()
        self.hidden_size, self.change = H, change
        self.input, self.recurrent = nn.Linear(I, H), nn.Linear(H, H)

    def forward(self, x, h):
        return torch.tanh(self.input(x) + self.recurrent(self.change(h, x)))


def refusal(cell):
    with pytest.raises(anyrnn.AnyRNNError) as caught:
        anyrnn.explain(anyrnn.Recurrent(cell), torch.zeros(T, B, I))
    return str(caught.value)


NUMBER = ": a Python number is taken from a tensor (.item(), float(), if): compute with tensors, e.g. torch.where"
FALLBACKS = {
    ".item()": (lambda h, _: h * h.max().item(), "`aten._local_scalar_dense.default`" + NUMBER),
    "float()": (lambda h, _: h * float(h.max()), "`aten._local_scalar_dense.default`" + NUMBER),
    "if": (lambda h, _: h if h.sum() > 0 else -h, "`aten._local_scalar_dense.default`" + NUMBER),
    "torch.equal": (lambda h, _: h if torch.equal(h, -h) else -h, "`aten.equal.default`" + NUMBER),
    "noise": (
        lambda h, _: torch.normal(h, 1.0),
        "`aten.normal` in the loop, which reads numbers of the state to draw others; draw them apart, by "
        "torch.rand_like or randn_like",
    ),
    "another operation": (
        lambda h, _: h - h.median(1, keepdim=True).values,
        "`aten.median` in the loop, which has no such operation: do it to x or weights alone, or write it with others",
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_explain_says_why_a_cell_falls_back_and_what_helps_and_no_more(name):
    change, reason = FALLBACKS[name]
    told = anyrnn.explain(anyrnn.Recurrent(Own(change)), torch.zeros(T, B, I))
    assert str(told) == f"Recurrent\n  layer 0 forward: Own on engine 'reference': {reason}"
    assert list(told.parts[0].refused) == ["cpu", "torch"], "as fields, all of it"
    with anyrnn.engine("cpu"):
        assert reason in refusal(Own(change))
    with anyrnn.engine("torch"):
        assert KERNELS in refusal(Own(change))


CURES = {
    "torch.where": lambda h, _: torch.where(h.sum(1, keepdim=True) > 0, h, -h),
    "noise of its own": lambda h, x: h + torch.randn_like(h),
}


@pytest.mark.parametrize("name", CURES)
def test_the_cures_that_messages_name_help(name):
    (part,) = anyrnn.explain(anyrnn.Recurrent(Own(CURES[name])), torch.zeros(T, B, I)).parts
    assert (part.engine, part.refused) == ("cpu", {})


def test_explain_says_why_no_engine_can_run_a_cell_that_several_know():
    layer = anyrnn.Recurrent(nn.GRUCell(I, H))
    layer.cell().register_forward_hook(lambda *_: None)
    (part,) = anyrnn.explain(layer, torch.zeros(T, B, I)).parts
    assert part.reason == "; ".join(part.refused.values())
    assert part.reason == (
        "hooks are called when its modules are, which machine code would not do; "
        "the cell has hooks, which a kernel for the whole sequence would not call"
    )
