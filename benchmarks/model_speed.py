"""Compare model files: seconds that each takes for a square millimetre of a dense map, in turn, the best of six rounds.

python benchmarks/model_speed.py OLD.onnx NEW.onnx
"""

import sys
import time

import numpy as np

from wsiseg.model_file.model_file import ModelFile

ROUNDS, SIDE_UM, MULTIPLE_PX = 6, 448, 32


def main() -> None:
    """Measure the files that are named."""
    models = [ModelFile.open(path, "cpu") for path in sys.argv[1:]]
    best = [float("inf")] * len(models)
    for _ in range(ROUNDS):
        for number, model in enumerate(models):
            side = round(SIDE_UM / model.card.mpp / MULTIPLE_PX) * MULTIPLE_PX
            images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
            began = time.perf_counter()
            model.answer_map(images)
            seconds = time.perf_counter() - began
            best[number] = min(best[number], seconds / (len(images) * (side * model.card.mpp / 1000) ** 2))
    for model, seconds in zip(models, best, strict=True):
        print(f"{model.path}: {seconds:.3f} s a mm2 at {model.card.mpp:g} um/px")


if __name__ == "__main__":
    main()
