"""Measure how much of its time training spends waiting for tiles.

The same steps are run twice in turn: on bags that are read from tile stores while the network works, and on the same
bags held in memory. Give a cohort whose stores were made with `wsiseg tile --pixels`.

    python benchmarks/train_reading.py tiles/cohort.csv --arch resnet18
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from wsiseg.network.network import build
from wsiseg.run.memory import keep_freed_memory
from wsiseg.training.bags import Bag, TileSource, Visit, ahead, drawn, visits_of
from wsiseg.training.slides import labelled_slides
from wsiseg.training.step import Stepper


def main() -> None:
    """Print one line of JSON: tiles per second read and in memory, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--bag", type=int, default=150)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    network = build(args.arch, "none").to(memory_format=torch.channels_last).train()
    slides = [slide for slide in labelled_slides(args.cohort) if slide.split == "train"][: args.slides]
    draw = partial(_draw, TileSource(), args.bag)
    visits = visits_of(slides, (0,))
    stepper = Stepper(0.2, 0.2, torch.device("cpu"), micro_batch=args.micro_batch)
    held = [draw(visit) for visit in visits]
    _seconds(network, stepper, lambda: held[:1])
    read, memory = [], []
    for _ in range(args.rounds):
        read.append(_seconds(network, stepper, lambda: ahead([partial(draw, visit) for visit in visits])))
        memory.append(_seconds(network, stepper, lambda: ahead([partial(_same, bag) for bag in held])))
    tiles = sum(len(bag.tiles) for bag in held)
    rates = {"read": tiles / statistics.median(read), "memory": tiles / statistics.median(memory)}
    print(json.dumps({"tiles": tiles, **{name: round(rate, 2) for name, rate in rates.items()},
                      "ratio": round(rates["read"] / rates["memory"], 4)}))  # fmt: skip


def _draw(source: TileSource, bag: int, visit: Visit) -> Bag:
    return drawn(visit, source, bag)


def _same(bag: Bag) -> Bag:
    return bag


def _seconds(network: nn.Module, stepper: Stepper, bags: Callable[[], Iterable[Bag]]) -> float:
    """Time the steps over some bags, from the request for the first to the end of the last."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)
    began = time.perf_counter()
    for bag in bags():
        optimizer.zero_grad()
        stepper.backward(network, bag)
        optimizer.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
