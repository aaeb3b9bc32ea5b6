"""Train the small character model that chapter 7 looks into, and write it with an excerpt of its text.

`python benchmarks/seeing_inside.py tinyshakespeare.txt` takes some minutes with one thread and writes
`docs/chapters/data/characters.safetensors` (weights in half precision, as the chapter uses them) and `characters.txt`,
the beginning of the last 5 % of the text, which the model was not trained on. The text is Shakespeare's, as compiled
for github.com/karpathy/char-rnn, in the public domain; the weights have this project's licence.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import anyrnn

DATA = Path(__file__).parents[1] / "docs" / "chapters" / "data"
HIDDEN, EMBEDDED, BATCH, CHUNK, EXCERPT = 128, 32, 32, 64, 6000


def model_of(alphabet: int) -> nn.Sequential:
    """The model: a vector for each character, an LSTM, a score for each next character."""
    return nn.Sequential(nn.Embedding(alphabet, EMBEDDED), anyrnn.LSTM(EMBEDDED, HIDDEN), nn.Linear(HIDDEN, alphabet))


def train(model: nn.Sequential, text: Tensor, epochs: float) -> None:
    """Train statefully by truncated backpropagation, as examples/characters.py does."""
    optimizer = torch.optim.Adam(model.parameters())
    rows = text[: len(text) // BATCH * BATCH].view(BATCH, -1)
    streams = itertools.cycle([(row[:-1], row[1:]) for row in rows])  # of one length, so that no chunk has padding
    steps, state, total = int(epochs * rows.shape[1] / CHUNK), None, 0.0
    for step, chunk in enumerate(itertools.islice(anyrnn.chunks(streams, CHUNK, batch=BATCH), steps)):
        optimizer.param_groups[0]["lr"] = 0.004 * min(1, (step + 1) / 100) * math.cos(math.pi / 2 * step / steps) ** 2
        optimizer.zero_grad()
        x, target = chunk.data
        output, state = model[1](model[0](x), anyrnn.reset(anyrnn.detach(state), chunk.starts))
        loss = cross_entropy(model[2](output).flatten(0, 1), target.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if step % 500 == 499:
            print(f"step {step + 1} of {steps}: {total / 500:.3f} nats a character", flush=True)
            total = 0.0


@torch.no_grad()
def evaluate(model: nn.Sequential, text: Tensor) -> float:
    """Compute the loss over a text, in nats a character."""
    return cross_entropy(model[2](model[1](model[0](text[:-1]))[0]), text[1:]).item()


def main() -> None:
    """Train, round, evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--epochs", type=float, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    characters = args.text.read_text(encoding="utf-8")
    alphabet, cut = "".join(sorted(set(characters))), len(characters) * 95 // 100
    text, begin = torch.tensor([alphabet.index(c) for c in characters]), time.perf_counter()
    model = model_of(len(alphabet))
    train(model, text[:cut], args.epochs)
    DATA.mkdir(exist_ok=True)
    halves = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    halves["alphabet"] = torch.tensor([ord(character) for character in alphabet])
    save_file(halves, DATA / "characters.safetensors")
    (DATA / "characters.txt").write_text(characters[cut : cut + EXCERPT], encoding="utf-8")
    rounded = load_file(DATA / "characters.safetensors")
    model.load_state_dict({name: rounded[name].float() for name in model.state_dict()})
    loss = evaluate(model, text[cut:])
    print(f"{loss:.3f} nats a character on the last 5 %, after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
