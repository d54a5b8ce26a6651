"""Compare predictions with truth: exact pixel measures of a cohort, with intervals, gates and a page to read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation import measures
from wsiseg.evaluation.comparison import Compared, ComparedRun, MissingMapError, Sought, compare_run
from wsiseg.evaluation.froc import lesion_measures
from wsiseg.evaluation.gate import conditions, junit, measures_of_patches, measures_of_slides, with_values
from wsiseg.evaluation.measures import MODES, Judging, number, numbers
from wsiseg.evaluation.metrics_file import Comparison, Report, Threshold
from wsiseg.evaluation.page import class_folder, write_evaluation
from wsiseg.evaluation.pcam import evaluate_pcam
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import prediction_files
from wsiseg.mathematics.metrics import best_threshold, curve
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.memory import start_zarr
from wsiseg.run.outputs import check_folder, write_text
from wsiseg.run.record import Progress, SlideRecord
from wsiseg.slides.cohort import Cohort, CohortSlide

_MOST_NAMES = 3  # in a note; the report holds all


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> Report:
    """Compare predictions with truth.

    Returns:
        The measures, what became of every slide, and whether the gates are met. Files are written where the settings
        name a place for them.

    Raises:
        UsageError: A folder, the cohort, its split or a measure that a gate names does not exist.
        OutputError: The places cannot be written to; nothing was compared.
        WsisegError: No slide at all could be compared, or a file of PatchCamelyon cannot be read.
        ModelFileError: The model for PatchCamelyon cannot compute.
    """
    progress = progress or Progress()
    start_zarr()
    if config.out is not None and config.out.resolve() in {place.resolve() for place in config.predictions}:
        raise UsageError(f"{config.out}: its report.html is that of predict", "give --out another folder")
    if config.pcam is not None:
        asked = conditions(config, measures_of_patches())
        _check_places(config)
        report, slides = evaluate_pcam(config, progress)
    else:
        scopes = _scopes(config)
        asked = conditions(config, measures_of_slides(scopes[0].groups(), with_lesions=config.froc))
        _check_places(config)
        (report, slides), *others = (_evaluated(config, scope, progress) for scope in scopes)
        report = report.with_others([one for one, _ in others])
        for one, of_class in others:
            if config.out is not None:
                write_evaluation(config.out / class_folder(one), one, of_class)
    content = report.model_dump(mode="json")
    report = report.model_copy(update={"gates": tuple(with_values(gate, content) for gate in asked)})
    if config.out is not None:
        write_evaluation(config.out, report, slides)
    if config.junit is not None:
        write_text(config.junit, junit(report))
    return report


def _check_places(config: EvaluateConfig) -> None:
    for folder in (config.out, config.junit and config.junit.parent):
        if folder is not None:
            check_folder(folder)


@dataclass(frozen=True)
class Scope:
    """Which slides are to be evaluated."""

    cohort: tuple[CohortSlide, ...]  # the rows of the cohort, where there is one
    split: str | None  # the split of the headline; None for all slides
    sought: Sought  # what is looked for in them

    @classmethod
    def of(cls, config: EvaluateConfig, sought: Sought) -> Self:
        """Read the cohort and choose the split asked for, the test split, or all."""
        is_first = sought.name == sought.every[0]
        cohort = Cohort.read(config.cohort, sought.name, is_first=is_first).slides if config.cohort else ()
        if config.truth is None:
            cohort = tuple(row for row in cohort if row.about is not None)
            if not cohort:
                name = sought.name
                advice = f"write {name}_percent, or {name}_min and {name}_max, into it, or give --truth"
                raise UsageError(f"{config.cohort}: states no percentage of {sought.word}", advice)
        splits = sorted({row.split for row in cohort if row.split})
        if config.split and config.split not in splits:
            known = f"the splits are: {', '.join(splits) or 'none'}"
            raise UsageError(f"--split {config.split}: {config.cohort} has no slide of that split", known)
        return cls(cohort, config.split or ("test" if "test" in splits else None), sought)

    def holds(self, row: CohortSlide) -> bool:
        """Tell whether a slide belongs to the headline."""
        return self.split is None or row.split == self.split

    def location(self, row: CohortSlide) -> str | None:
        """Tell whether the model was trained on the organ of a slide (the paper's section 3); None if not known."""
        trained = {one.site for one in self.cohort if one.split == "train" and one.site}
        return ("in_distribution" if row.site in trained else "out_of_location") if trained and row.site else None

    def groups(self) -> dict[str, list[str]]:
        """List the sites, splits and locations that are to be evaluated."""
        rows = [row for row in self.cohort if self.holds(row)]
        found: dict[str, set[str | None]] = {"site": {row.site for row in rows}}
        found |= {"split": {row.split for row in self.cohort}, "location": {self.location(row) for row in rows}}
        found |= {"class": set(self.sought.every)} if len(self.sought.every) > 1 else {}
        return {kind: sorted(name for name in names if name) for kind, names in found.items()}


def _scopes(config: EvaluateConfig) -> list[Scope]:
    """Return which slides are to be evaluated for each class of the maps."""
    files: Iterable[Path] = ()
    with suppress(UsageError):  # it is told later, when the gates were read
        files = prediction_files(config.predictions[0]).values()
    classes = (_classes_in(path) for path in files if path.is_dir())
    every = next(filter(None, classes), Sought().every)
    if len(every) > 1 and config.tumor_class:
        text = f"the maps are of {', '.join(every)}, which are found in truth by their names"
        raise UsageError(text, "leave out tumor-class")
    return [Scope.of(config, Sought(name, every)) for name in every]


def _classes_in(path: Path) -> tuple[str, ...]:
    """Return the classes of a heatmap; none of one that cannot be read."""
    try:
        return Heatmap.open(path).classes
    except WsisegError:
        return ()


def _evaluated(config: EvaluateConfig, scope: Scope, progress: Progress) -> tuple[Report, list[Compared]]:
    """Compare all runs; return the report, and the first run's slides of the headline.

    Slides of the headline that the first run has no map of fail. Without a cohort these are the slides with a truth,
    where a gate is to speak of all of them.
    """
    predictions = [prediction_files(place) for place in config.predictions]
    if config.truth is None:
        stating = {row.slide for row in scope.cohort}
        predictions = [{name: files[name] for name in files if name in stating} for files in predictions]
    names_all = bool(scope.cohort or config.fail_under or config.fail_over)
    runs: list[ComparedRun] = []
    for place, files in zip(config.predictions, predictions, strict=True):
        is_due = scope.holds if names_all and not runs else lambda _: False
        runs.append(compare_run(config, place, files, scope.cohort, is_due, progress, scope.sought))
    if not any(scope.holds(one.row) for one in runs[0].compared):
        names = {row.slide for row in runs[0].expected if scope.holds(row)}
        reasons = [record.error.message for record in runs[0].records if record.error and record.slide in names]
        of_split = f" of split {scope.split}" if scope.split else ""
        raise WsisegError(f"nothing{of_split} could be evaluated: {next(iter(reasons), 'no slides')}", "see --truth")
    judgings = [_judging(config, scope, run) for run in runs]
    first, *others = map(measures.judged, runs, judgings)
    chosen = [one for one in first.compared if scope.holds(one.row)]
    report = _report(config, scope, first, judgings[0], chosen)
    pairs = zip(others, judgings[1:], strict=True)
    expected = report.without_background["expected_slides"]
    further = tuple(_comparison(run, chosen, expected, (judgings[0], judging)) for run, judging in pairs)
    return report.model_copy(update={"runs": further}), chosen


def _report(
    config: EvaluateConfig, scope: Scope, run: ComparedRun, judging: Judging, chosen: Sequence[Compared]
) -> Report:
    wanted = [row for row in run.expected if scope.holds(row)]
    compared, threshold = {one.row.slide: one for one in run.compared}, judging.threshold.value
    of_pixels = {} if config.truth is None else _pixel_measures(scope, run, judging, chosen, wanted)
    counts = {"slides": len(chosen), "cases": len({one.row.case for one in chosen}), "expected_slides": len(wanted)}
    has_cases = any(one.row.case != one.row.slide for one in chosen)
    return Report(
        run=str(run.place),
        positive_class=scope.sought.name,
        split=scope.split,
        **{**dict.fromkeys(MODES, counts), **of_pixels},
        slide_auc=measures.slide_auc([one for one in chosen if config.truth or one.row.label is not None], judging),
        percentages=measures.percentages(chosen, judging),
        threshold=judging.threshold,
        settings={
            "resamples": config.resamples, "resampled": "case" if has_cases else "slide", "seed": config.seed,
        },
        slides=tuple(_with_measures(config, one, compared.get(one.slide), threshold) for one in run.records),
        not_in_cohort=run.outside,
        without_prediction=run.unpredicted,
        notes=tuple(_notes(run, of_pixels.get("per_site"), wanted)),
    )  # fmt: skip


def _pixel_measures(
    scope: Scope, run: ComparedRun, judging: Judging, chosen: Sequence[Compared], wanted: Sequence[CohortSlide]
) -> dict[str, Any]:
    """Return what the report has of pixels that have a truth."""
    headline = measures.group_measures(chosen, judging, len(wanted))
    return {
        **headline,
        "unknown_share": headline[MODES[0]]["unknown_share"],
        "per_site": _groups(chosen, judging, wanted, lambda row: row.site),
        "per_location": _groups(chosen, judging, wanted, scope.location),
        "per_split": _groups(run.compared, judging, run.expected, lambda row: row.split),
        "tumor_area": measures.tumor_area(chosen, judging),
        "reliability": measures.reliability_table([one.tissue for one in chosen]),
        "froc": lesion_measures([one.lesions for one in chosen if one.lesions is not None]),
    }


def _notes(run: ComparedRun, sites: Mapping[str, Any] | None, wanted: Sequence[CohortSlide]) -> Iterable[str]:
    skipped = [record for record in run.records if record.status == "skipped"]
    missing = [record.slide for record in skipped if record.error and record.error.type == MissingMapError.__name__]
    without = sorted({row.site for row in wanted if sites is not None and row.site and row.site not in sites})
    for names, text in (
        (run.outside, "maps of slides that are not in the cohort"),
        (run.unpredicted, "files of truth without a map"),
        (run.unknown_classes, "named classes that no truth has"),
        (missing, "slides without a map, which may be missing"),
        (without, "sites of which no slide could be evaluated"),
    ):
        if names:
            yield f"{text}: {len(names)} ({', '.join(names[:_MOST_NAMES])}{', ...' * (len(names) > _MOST_NAMES)})"


def _judging(config: EvaluateConfig, scope: Scope, run: ComparedRun) -> Judging:
    """Choose the threshold: the one asked for, the best on the validation split, or the model's own."""
    validation = [one.tissue for one in run.compared if one.row.split == "val"]
    best, wanted = best_threshold(curve(validation)), sum(row.split == "val" for row in scope.cohort)
    own = sorted({one.threshold for one in run.compared})
    named = {"option": config.threshold, "validation": best, "model": own[0] if len(own) == 1 else None}
    known = {name: value for name, value in named.items() if value is not None}
    if not known:
        listed = ", ".join(f"{value:g}" for value in own)
        raise UsageError(f"the heatmaps were made with several thresholds: {listed}", "give --threshold")
    source = next(iter(known))
    note = ""
    if source == "validation" and len(validation) < wanted:
        note = f"from {len(validation)} of {wanted} validation slides"
    if source == "model" and scope.cohort and config.truth:
        reason = f"{len(validation)} of {wanted} could be compared" + f", without {scope.sought.word}" * bool(
            validation
        )
        note = f"not from validation slides: {reason}" if wanted else "the cohort has no validation slides"
    threshold = Threshold.model_validate({"value": known[source], "source": source, "note": note})
    return Judging(threshold, known, config.resamples, config.seed)


def _groups(
    slides: Sequence[Compared],
    judging: Judging,
    expected: Iterable[CohortSlide],
    key: Callable[[CohortSlide], str | None],
) -> dict[str, Any]:
    """Measure slides by a key; those without one are left out."""
    counts, named = Counter(map(key, expected)), [(key(one.row), one) for one in slides]
    return {
        name: measures.group_measures([one for of, one in named if of == name], judging, counts[name])
        for name in sorted({name for name, _ in named if name})
    }


def _with_measures(config: EvaluateConfig, record: SlideRecord, one: Compared | None, threshold: float) -> SlideRecord:
    """Add the measures of a slide to what became of it."""
    if one is None:
        return record
    mm2 = one.pixel_mm2
    fields = {
        "mpp": one.mpp,
        "tumor_mm2": mm2 and one.called_px(threshold) * mm2,
        "predicted_percent": one.predicted_percent(threshold),
        "stated_percent": one.row.about,
        "truth_mm2": config.truth and mm2 and one.truth_px * mm2,
        "unknown_mm2": mm2 and sum(one.unknown) * mm2,
        "unknown_share": number(one.own[MODES[0]]["unknown_share"]),
        **({mode: numbers(values) for mode, values in one.own.items()} if config.truth else {}),
    }
    return record.model_copy(update=fields)


def _comparison(
    run: ComparedRun, chosen: Sequence[Compared], expected: int, judgings: tuple[Judging, Judging]
) -> Comparison:
    """Compare a further run with the first, on the slides of the headline that both have."""
    mine = {one.row.slide: one for one in run.compared}
    both = [one for one in chosen if one.row.slide in mine]
    if not both:
        raise UsageError(f"{run.place}: has no slide in common with the first run", "compare runs on the same slides")
    same = [mine[one.row.slide] for one in both]
    return Comparison(
        run=str(run.place),
        slides=len(both),
        failed=tuple(record for record in run.records if record.status == "failed"),
        difference=measures.group_differences(both, same, judgings),
        **measures.group_measures(same, judgings[1], expected),
    )
