"""What an evaluation found: the content of `metrics.json`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from wsiseg.run.errors import counted
from wsiseg.run.record import SlideRecord, in_words
from wsiseg.run.version import __version__

_OF_A_CLASS = {"without_background", "with_background", "per_site", "per_split", "per_location", "slide_auc",
               "unknown_share", "tumor_area", "percentages", "reliability", "froc", "threshold"}  # fmt: skip
Source = Literal["option", "validation", "model"]


class Threshold(BaseModel, frozen=True):
    """From which probability a cell was called tumour, and who said so."""

    value: float
    source: Source
    note: str = ""

    @property
    def origin(self) -> str:
        """The source, and what a reader should know of it."""
        return f"{self.source}: {self.note}" if self.note else self.source


class Gate(BaseModel, frozen=True):
    """A condition that was set, `least` or `most`, and what the measure is."""

    measure: str
    least: float | None = None
    most: float | None = None
    value: float | None = None
    ci95: tuple[float, float] | None = None
    path: tuple[str, ...] = Field(default=(), exclude=True)  # the keys that lead to the measure in `metrics.json`

    @property
    def is_met(self) -> bool:
        """True if the measure is defined and within its limit."""
        if self.value is None:
            return False
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def limit(self) -> str:
        """The limit, as `>= 0.8000`."""
        return f"<= {self.most:.4f}" if self.least is None else f">= {self.least:.4f}"


class Comparison(BaseModel, frozen=True):
    """A further run, and by how much it differs from the first on the slides that both have."""

    run: str
    slides: int
    failed: tuple[SlideRecord, ...] = ()
    without_background: dict[str, Any]
    with_background: dict[str, Any]
    difference: dict[str, dict[str, Any]]


class Report(BaseModel, frozen=True, populate_by_name=True):
    """What an evaluation found."""

    schema_: str = Field(default="wsiseg.metrics/1", alias="schema")
    version: str = __version__
    run: str
    positive_class: str = "tumor"
    unit: Literal["pixel", "patch"] = "pixel"
    split: str | None = None
    without_background: dict[str, Any]
    with_background: dict[str, Any]
    per_site: dict[str, Any] = Field(default_factory=dict)
    per_split: dict[str, Any] = Field(default_factory=dict)
    per_location: dict[str, Any] = Field(default_factory=dict)
    per_class: dict[str, Any] = Field(default_factory=dict)
    judged: dict[str, Any] | None = None
    slide_auc: dict[str, Any] | None = None
    unknown_share: dict[str, Any] | None = None
    tumor_area: dict[str, Any] | None = None
    percentages: dict[str, Any] | None = None
    reliability: dict[str, Any] | None = None
    froc: dict[str, Any] | None = None
    threshold: Threshold
    runs: tuple[Comparison, ...] = ()
    gates: tuple[Gate, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    slides: tuple[SlideRecord, ...] = ()
    not_in_cohort: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple["Report", ...] = Field(default=(), exclude=True)  # on the further classes of the maps

    def with_others(self, others: Sequence["Report"]) -> "Report":
        """Return the report with those on further classes; `per_class` has the measures of all."""
        every = {one.positive_class: one.model_dump(mode="json", include=_OF_A_CLASS) for one in (self, *others)}
        return self.model_copy(update={"others": tuple(others), "per_class": every}) if others else self

    @property
    def word(self) -> str:
        """The class as sentences call it."""
        return in_words(self.positive_class)

    @property
    def failed(self) -> tuple[SlideRecord, ...]:
        """The slides that could not be compared, of all runs."""
        reports = (self, *self.others)
        further = (record for one in reports for run in one.runs for record in run.failed)
        records = (*(record for one in reports for record in one.slides), *further)
        return tuple(record for record in records if record.status == "failed")

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The blocks that are shown side by side, by what they are over."""
        if self.unit == "pixel":
            return {"without background": self.without_background, "with background": self.with_background}
        return {"all patches": self.without_background, **({"judged patches": self.judged} if self.judged else {})}

    @property
    def rows(self) -> dict[str, list[str]]:
        """Every measure of the headline by name, written for a person, a text a column; Dice is F1, and once enough."""
        names, blocks = measured(self.without_background), self.columns.values()
        return {
            "f1 (Dice)" if name == "f1" else name: [
                with_interval(block[name]) if name in block else "" for block in blocks
            ]
            for name in names
            if name != "dice"
        }

    @property
    def has_truth(self) -> bool:
        """True where pixels were compared with truth, and not the slides' percentages alone."""
        return bool(self.rows)

    @property
    def counted(self) -> str:
        """How many of the slides that should be there the headline is over, as `1 of 3 slides`."""
        block = self.without_background
        return counted(block["slides"], "patch") if self.unit == "patch" else of_expected(block)

    @property
    def scope(self) -> str:
        """What the headline is over, as `test split, 3 of 4 slides`."""
        return f"{self.split} split, {self.counted}" if self.split else self.counted

    @property
    def unmet(self) -> tuple[Gate, ...]:
        """The gates that are not met."""
        return tuple(gate for gate in self.gates if not gate.is_met)

    @property
    def exit_code(self) -> int:
        """3 where a gate is not met, 1 where a slide could not be compared, else 0."""
        return 3 if self.unmet else 1 if self.failed else 0


def figure(value: float | None) -> str:
    """Write a number for a person, `-` where it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def with_interval(measure: Mapping[str, Any]) -> str:
    """Write a measure for a person, its interval in brackets."""
    low_high = measure["ci95"]
    return figure(measure["value"]) + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")


def signed(difference: Mapping[str, Any]) -> str:
    """Write a difference of measures for a person, with its interval."""
    value, low_high = difference["value"], difference["ci95"]
    text = "-" if value is None else f"{value:+.4f}"
    return text + (f", {low_high[0]:+.3f} to {low_high[1]:+.3f}" if low_high else "")


def of_expected(block: Mapping[str, Any]) -> str:
    """Write how many of the slides that should be there a block is over, as `1 of 3 slides`."""
    return f"{block['slides']} of {counted(block['expected_slides'], 'slide')}"


def measured(block: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the measures of a block, without its counts and tables."""
    return {name: value for name, value in block.items() if isinstance(value, Mapping) and "value" in value}
