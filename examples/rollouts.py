"""Recurrent reinforcement learning: sb3-contrib's RecurrentPPO, whose loop over steps becomes one call with resets.

`pip install sb3-contrib` (it brings stable-baselines3, gymnasium and CartPole), then `python examples/rollouts.py`: the
same training with the loop and with the call, the seconds that each takes, and the reward of the last 100 episodes.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import anyrnn

State = tuple[Tensor, Tensor]


def process_sequence(features: Tensor, state: State, starts: Tensor, lstm: Any) -> tuple[Tensor, State]:
    """Run an LSTM over the rows of a batch; where an episode starts, a row starts anew from a state of zeros.

    In the place of `RecurrentActorCriticPolicy._process_sequence`, which calls the LSTM once for each step.

    Args:
        features: (B * T, I), row by row.
        state: h and c before the first step, (L, B, H) each.
        starts: 1 where an episode starts, else 0, (B * T,).
        lstm: The layer.

    Returns:
        The outputs (B * T, H), and h and c after the last step.
    """
    B = state[0].shape[1]
    x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
    reset = starts.reshape(B, -1).T.bool()
    output, state = lstm(x, state, reset=reset, reset_to=lstm.initial_state(B))
    return output.transpose(0, 1).flatten(0, 1), state


def accelerate(policy: Any) -> None:
    """Let a recurrent policy of sb3-contrib run its LSTMs by this package, which keep their parameters."""
    anyrnn.accelerate(policy)
    policy._process_sequence = process_sequence


def train(args: argparse.Namespace, *, fast: bool) -> tuple[float, float]:
    """Train on CartPole; return the seconds that it takes, and the mean reward of the last episodes."""
    from sb3_contrib import RecurrentPPO  # noqa: PLC0415 - the tests of the lines above need none of it
    from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415

    model = RecurrentPPO(
        "MlpLstmPolicy", make_vec_env("CartPole-v1", args.envs, args.seed), seed=args.seed, device="cpu",
        n_steps=args.rollout, batch_size=args.batch, policy_kwargs={"lstm_hidden_size": args.hidden},
    )  # fmt: skip
    if fast:
        accelerate(model.policy)
    begin = time.perf_counter()
    model.learn(args.steps)
    rewards = [episode["r"] for episode in model.ep_info_buffer or ()]
    return time.perf_counter() - begin, sum(rewards) / max(1, len(rewards))


def main(argv: list[str] | None = None) -> None:
    """Train with the loop, and with the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    defaults = {"steps": 32768, "envs": 8, "rollout": 128, "batch": 256, "hidden": 64, "seed": 0, "threads": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=" ")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    (loop, reward), (call, same) = train(args, fast=False), train(args, fast=True)
    print(f"a loop over steps: {loop:.1f} s, reward {reward:.1f}; a call with resets: {call:.1f} s, reward {same:.1f}")
    print(f"{loop / call:.1f} times as fast")


if __name__ == "__main__":
    main()
