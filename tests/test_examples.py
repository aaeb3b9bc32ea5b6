"""The examples: short, right, and each runs from its beginning to its end, in a shortened form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import anyrnn
import characters
import lem
import rollouts

EXAMPLES = Path(__file__).parents[1] / "examples"


def close(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_the_page_names_it(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    assert f"({path.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


# ---- LEM ----


def test_a_step_of_lem_is_the_papers_equation():
    I, H, B, dt = 2, 3, 4, 0.7
    cell = lem.LEMCell(I, H, dt).double()
    u, y, z = (torch.randn(B, size).double() for size in (I, H, H))
    got = cell(u, (y, z))
    (V1, V2, Vz, Vy), (b1, b2, bz, by) = cell.V.weight.split(H), cell.V.bias.split(H)
    (W1, W2, Wz), (c1, c2, cz) = cell.W.weight.split(H), cell.W.bias.split(H)
    for row in range(B):
        fast = dt * torch.sigmoid(W1 @ y[row] + V1 @ u[row] + b1 + c1)
        slow = dt * torch.sigmoid(W2 @ y[row] + V2 @ u[row] + b2 + c2)
        new_z = (1 - fast) * z[row] + fast * torch.tanh(Wz @ y[row] + Vz @ u[row] + bz + cz)
        new_y = (1 - slow) * y[row] + slow * torch.tanh(cell.Wy.weight @ new_z + Vy @ u[row] + by + cell.Wy.bias)
        close((got[0][row], got[1][row]), (new_y, new_z), 1e-12)


def test_lem_is_compiled_and_equals_the_loop_in_values_and_gradients():
    layer, u = anyrnn.Recurrent(lem.LEMCell(1, 16)).double(), torch.randn(30, 5, 1).double()
    assert "LEMCell on engine 'cpu'" in str(anyrnn.explain(layer, u))
    results = []
    for engine in ("cpu", "reference"):
        with anyrnn.engine(engine):
            output, state = layer(u)
        loss = output.square().sum() + sum(s.sin().sum() for s in state)
        results.append((output, state, torch.autograd.grad(loss, [*layer.parameters()])))
    close(*results)


def test_fitzhugh_nagumo_is_solved():
    v = lem.solve(2)
    assert v.shape == (1001, 2, 1)
    assert v[0].abs().max() <= 1
    for row in range(2):
        want = solve_ivp(
            lambda _, p: (p[0] - p[0] ** 3 / 3 - p[1] + 0.5, 0.02 * (p[0] + 0.7 - 0.8 * p[1])),
            (0, 400), (v[0, row].item(), 0.0), t_eval=np.linspace(0, 400, 1001), rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        close(v[:, row, 0], torch.tensor(want.y[0]).float(), 2e-6)


@pytest.mark.long
def test_lem_learns():
    assert lem.main(epochs=2, seed=0) < 0.5 < lem.solve(64).std()


# ---- Characters ----


@pytest.mark.long
def test_characters_are_learned_and_written(tmp_path, capsys):
    text = "To be, or not to be: " * 600
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    loss = characters.main([str(tmp_path / "text.txt"), "--steps", "200", "--hidden", "96"])
    written, _, report = capsys.readouterr().out.partition(" \n")
    assert loss < 0.1 < math.log(len(set(text)))
    assert report.startswith(f"{loss:.4f} nats")
    assert len(written) == 500
    assert sum(written[k : k + 21] in text for k in range(400)) > 300


def test_training_on_characters_ends_with_its_time():
    model = model_of_characters()
    before = [p.clone() for p in model.parameters()]
    characters.train(model, torch.randint(5, (32 * 200,)), seconds=0.01, steps=math.inf)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_loss_over_a_text_is_that_of_one_call():
    model, text = model_of_characters().eval(), torch.randint(5, (2345,))
    with torch.no_grad():
        output, _ = model[2](model[0](text[:-1]))
        want = nn.functional.cross_entropy(model[4](output), text[1:]).item()
    assert characters.evaluate(model, text) == pytest.approx(want, rel=1e-5)


def model_of_characters():
    return nn.Sequential(nn.Embedding(5, 8), nn.Dropout(0.1), anyrnn.LSTM(8, 16), nn.Dropout(0.3), nn.Linear(16, 5))


# ---- Rollouts ----

T, B, I, H = 12, 3, 4, 6


class Policy(nn.Module):
    """What is there of a recurrent policy of sb3-contrib: its LSTMs, and how it runs them over the steps."""

    def __init__(self, num_layers):
        super().__init__()
        self.lstm_actor, self.lstm_critic = (nn.LSTM(I, H, num_layers) for _ in range(2))

    @staticmethod
    def _process_sequence(features, state, starts, lstm):
        rows, outputs = state[0].shape[1], []
        x, starts = features.view(rows, -1, I), starts.view(rows, -1)
        for t in range(x.shape[1]):
            going_on = (1 - starts[:, t]).view(1, rows, 1)
            output, state = lstm(x[None, :, t], tuple(going_on * s for s in state))
            outputs.append(output[0])
        return torch.stack(outputs, 1).reshape(-1, H), state

    def run(self, features, state, starts):
        return [self._process_sequence(features, state, starts, m) for m in (self.lstm_actor, self.lstm_critic)]


def rollout(num_layers):
    torch.manual_seed(1)
    starts = torch.rand(B, T) < 0.3
    state = tuple(torch.randn(num_layers, B, H).double() for _ in range(2))
    return torch.randn(B * T, I).double(), state, starts.flatten().double()


def results(policy, arguments):
    outputs = policy.run(*arguments)
    loss = sum(output.square().sum() + state[0].sum() + state[1].sin().sum() for output, state in outputs)
    return outputs, torch.autograd.grad(loss, [*policy.parameters()])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_policy_runs_in_one_call_what_its_loop_over_steps_does(num_layers):
    policy, arguments = Policy(num_layers).double(), rollout(num_layers)
    parameters, want = [*policy.parameters()], results(policy, arguments)
    rollouts.accelerate(policy)
    assert all(a is b for a, b in zip(parameters, policy.parameters(), strict=True))
    assert isinstance(policy.lstm_actor, anyrnn.LSTM)
    close(results(policy, arguments), want)


def test_a_step_of_a_policy_is_that_of_its_loop():
    policy = Policy(1).double()
    features, state, _ = rollout(1)
    arguments = features[:B], state, torch.tensor([0.0, 1.0, 0.0]).double()
    want = results(policy, arguments)
    rollouts.accelerate(policy)
    close(results(policy, arguments), want)


def test_whole_rollouts_have_the_gradients_of_the_episodes_apart():
    policy = Policy(1).double()
    features, state, starts = rollout(1)
    _, want = results(policy, (features, state, starts))
    rollouts.accelerate(policy)
    loss, x, starts = 0, features.view(B, T, I), starts.view(B, T)
    for lstm in (policy.lstm_actor, policy.lstm_critic):
        for b in range(B):
            cuts = sorted({0, *starts[b].nonzero().flatten().tolist()})
            for begin, end in zip(cuts, [*cuts[1:], T], strict=True):
                initial = None if starts[b, begin] else tuple(s[:, b] for s in state)
                output, (h, c) = lstm(x[b, begin:end], initial)
                loss += output.square().sum() + (h.sum() + c.sin().sum() if end == T else 0)
    assert starts.sum() > B
    close(torch.autograd.grad(loss, [*policy.parameters()]), want)


def test_recurrent_ppo_learns_the_same_in_calls_with_resets(capsys):
    pytest.importorskip("sb3_contrib")
    rollouts.main(["--steps", "256", "--envs", "2", "--rollout", "64", "--batch", "64", "--hidden", "16"])
    loop, call, _ = capsys.readouterr().out.replace(";", "\n").splitlines()
    assert loop.partition("reward")[2] == call.partition("reward")[2]
