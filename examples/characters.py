"""A character model: trained statefully by truncated backpropagation, evaluated in one pass, writing text as a stream.

`python examples/characters.py tinyshakespeare.txt` trains for nine minutes on the first 95 % of a text and prints the
loss on the rest in nats a character: at most 1.60 for tinyshakespeare (github.com/karpathy/char-rnn) with two threads.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import anyrnn


def train(model: nn.Sequential, text: Tensor, *, seconds: float, steps: float) -> None:
    """Train until the time or the number of steps is used up; by then the learning rate has come down to zero."""
    encoder, rnn, readout = model[:2], model[2], model[3:]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows = text[: len(text) // 32 * 32].view(32, -1)
    streams = itertools.cycle([(row[:-1], row[1:]) for row in rows])  # of one length, so that no chunk has padding
    begin, state = time.perf_counter(), None
    for step, chunk in enumerate(anyrnn.chunks(streams, 64, batch=32)):
        done = max(step / steps, (time.perf_counter() - begin) / seconds)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = 0.003 * min(1, (step + 1) / 100) * math.cos(math.pi / 2 * done) ** 2
        optimizer.zero_grad()
        x, target = chunk.data
        output, state = rnn(encoder(x), anyrnn.reset(anyrnn.detach(state), chunk.starts))
        cross_entropy(readout(output).flatten(0, 1), target.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Sequential, text: Tensor) -> float:
    """Compute the loss over a text, in nats a character, from its beginning to its end."""
    total, state = 0.0, None
    for x, target in zip(text[:-1].split(1000), text[1:].split(1000), strict=True):
        output, state = model[2](model[:2](x), state)
        total += cross_entropy(model[3:](output), target, reduction="sum").item()
    return total / (len(text) - 1)


def write(model: nn.Sequential, length: int) -> list[int]:
    """Write a text: a stream of the whole model reads each character that was drawn from what it gave before."""
    stream, written = anyrnn.stepwise(model).stream(), []
    for _ in range(length):
        stream.step()
        stream.x[:] = torch.softmax(stream.y, 1).multinomial(1)[:, 0]
        written.append(int(stream.x))
    return written


def main(argv: list[str] | None = None) -> float:
    """Train, evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    for name, default in {"seconds": 540.0, "steps": math.inf, "hidden": 512}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    characters = args.text.read_text(encoding="utf-8")
    alphabet, cut = sorted(set(characters)), len(characters) * 95 // 100
    text = torch.tensor([alphabet.index(c) for c in characters])
    encoder, readout = nn.Embedding(len(alphabet), 64), nn.Linear(args.hidden, len(alphabet))
    model = nn.Sequential(encoder, nn.Dropout(0.1), anyrnn.LSTM(64, args.hidden), nn.Dropout(0.3), readout)
    train(model, text[:cut], seconds=args.seconds, steps=args.steps)
    loss = evaluate(model.eval(), text[cut:])
    print("".join(alphabet[i] for i in write(model, 500)), f"\n{loss:.4f} nats a character on the last 5 %")
    return loss


if __name__ == "__main__":
    main()
