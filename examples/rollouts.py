"""Recurrent reinforcement learning: sb3-contrib's RecurrentPPO, whose loop over steps becomes one call with resets.

`pip install sb3-contrib` (which brings stable-baselines3, gymnasium and CartPole), then `python examples/rollouts.py`:
it trains with the loop and with the call, in turns, and prints how long each takes and the reward that it reaches.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

import anyrnn

State = tuple[Tensor, Tensor]


def process_sequence(features: Tensor, state: State, starts: Tensor, lstm: Any) -> tuple[Tensor, State]:
    """Run an LSTM over sequences whose rows start anew, from a state of zeros, where an episode starts.

    In the place of `RecurrentActorCriticPolicy._process_sequence`, which calls the LSTM once for each step.

    Args:
        features: (B * T, I), row by row.
        state: h and c before the first step, (L, B, H) each.
        starts: 1 where an episode starts, else 0, (B * T,).
        lstm: The layer; as everything that `anyrnn.accelerate` has swapped, it has nn.LSTM's parameters.

    Returns:
        The outputs (B * T, H), and h and c after the last step.
    """
    B = state[0].shape[1]
    x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
    reset = starts.reshape(B, -1).T.bool()
    output, state = lstm(x, state, reset=reset, reset_to=lstm.initial_state(B))
    return output.transpose(0, 1).flatten(0, 1), state


def accelerate(policy: Any) -> None:
    """Let a recurrent policy of sb3-contrib run its LSTMs by this package."""
    anyrnn.accelerate(policy)
    policy._process_sequence = process_sequence


def trained(steps: int, *, fast: bool, seed: int, **options: Any) -> tuple[float, float]:
    """Train RecurrentPPO on CartPole; return the seconds it takes, and the mean reward of the last episodes."""
    from sb3_contrib import RecurrentPPO  # noqa: PLC0415 - whoever reads or tests the rest need not have it

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=seed, device="cpu", **options)
    if fast:
        accelerate(model.policy)
    begin = time.perf_counter()
    model.learn(steps)
    rewards = [episode["r"] for episode in model.ep_info_buffer]
    return time.perf_counter() - begin, sum(rewards) / len(rewards)
