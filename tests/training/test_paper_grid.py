"""How the configurations of a grid are ranked and told."""

import shlex
from dataclasses import replace
from pathlib import Path

from wsiseg.cli import train as command_line
from wsiseg.pages.configurations import Configured, best_first, export_command
from wsiseg.training.train import Trained


def configured(name: str, alpha: float | None, val: dict[str, float], test: dict[str, float]) -> Configured:
    return Configured(alpha, alpha and 0.2, Path("grid") / name, 0.5, {"val": {"all": val}, "test": {"all": test}})


CONFIGURED = [
    configured("low", 0.2, {"auc": 0.7, "slide_auc": 0.9}, {"auc": 0.99, "slide_auc": 1.0}),
    configured("tie", 0.4, {"auc": 0.8, "slide_auc": 0.8}, {"auc": 0.97, "slide_auc": 1.0}),
    configured("best", 0.6, {"auc": 0.8, "slide_auc": 0.9}, {"auc": 0.5, "slide_auc": 0.5}),
    configured("supervised", None, {"auc": 0.95, "slide_auc": 1.0}, {"auc": 0.98, "slide_auc": 1.0}),
]


def test_validation_ranks_test_has_no_say_and_true_labels_come_last() -> None:
    assert [one.out.name for one in best_first(CONFIGURED)] == ["best", "tie", "low", "supervised"]


def test_slides_rank_where_there_is_no_truth() -> None:
    some = [configured(str(area), 0.2, {"slide_auc": area}, {}) for area in (0.5, 0.9, 0.7)]
    assert [one.out.name for one in best_first(some)] == ["0.9", "0.7", "0.5"]


def test_the_command_ends_with_the_ranking() -> None:
    ranked = tuple(best_first(CONFIGURED))
    lines = list(command_line._train_lines(Trained(Path("grid"), "ok", ranked[0], ranked)))
    assert lines[:2] == ["grid/report.html", "AUC of configurations, best first by the validation slides:"]
    assert lines[2].split("  ")[-4:] == ["val pixel", "test pixel", "val slide", "test slide"]
    assert lines[3].split() == ["1.", "best", "0.800", "0.500", "0.900", "0.500"]
    assert lines[6].split() == ["4.", "supervised", "0.950", "0.980", "1.000", "1.000"]
    assert len({len(line) for line in lines[2:7]}) == 1, "figures stand below their heads"
    assert lines[7:] == ["grid/grid.csv", "grid/best/best.pt"]
    words = shlex.split(export_command(replace(ranked[0], out=Path("a grid/it's best"))))
    assert words == ["wsiseg", "export", "a grid/it's best", "--out", "it's best.onnx"]
    alone = Trained(Path("run"), "ok", CONFIGURED[0])
    assert list(command_line._train_lines(alone)) == [
        "run/report.html",
        "        auc  slide_auc",
        "val   0.700      0.900",
        "test  0.990      1.000",
        f"{CONFIGURED[0].out}/best.pt",
    ]
