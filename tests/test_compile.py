"""Below torch.compile and torch.export a layer is one operator a scan: same results and gradients, no graph breaks."""

import pytest
import torch
from torch import nn

import anyrnn

LAYERS = {
    "LSTM, 2 layers, 2 directions": lambda: anyrnn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "PeepholeLSTM": lambda: anyrnn.PeepholeLSTM(3, 5),
    "own cell": lambda: anyrnn.Recurrent(Leaky(3, 4)),
}


class Leaky(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.new = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x, h):
        return 0.9 * h + 0.1 * torch.tanh(self.new(torch.cat((x, h), 1)))


class Model(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.output_size, 2)

    def forward(self, x, lengths):
        return self.head(torch.relu(self.layer(2 * x, lengths=lengths)[0]))


@pytest.fixture(params=LAYERS)
def model(request):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Model(LAYERS[request.param]()).double()


def call():
    x = torch.randn(7, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return x, torch.tensor([7, 2, 0])


@pytest.mark.filterwarnings("default")  # PyTorch's compiler warns of itself
def test_a_compiled_model_has_the_eager_values_and_gradients_without_graph_breaks(model):
    x, lengths = call()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        y = run(x, lengths)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])])
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("default")
def test_an_exported_model_has_the_eager_values(model):
    x, lengths = call()
    program = torch.export.export(model, (x, lengths))
    torch.testing.assert_close(program.module()(x, lengths), model(x, lengths), rtol=0, atol=1e-10)
