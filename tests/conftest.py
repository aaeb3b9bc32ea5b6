"""What every test starts from: one thread, one seed, no engine asked for by the environment."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # PyTorch says this once a process, of torch.nn.LSTM too: its own kernel is another one with a projection.
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported with oneDNN:UserWarning")


@pytest.fixture(autouse=True)
def _start(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.delenv("ANYRNN_ENGINE", raising=False)
