"""Compare predictions with truth: exact pixel measures of a cohort, with intervals, gates and a page to read."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsiseg.annotations.truth import Classes, Reading, ZeroedMapError, truth_files
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation import measures
from wsiseg.evaluation.comparison import Compared, compare
from wsiseg.evaluation.gate import gates, junit, parsed, read_baseline
from wsiseg.evaluation.measures import MODES, Judged, Judging, number
from wsiseg.evaluation.metrics_file import Comparison, Report, Threshold
from wsiseg.evaluation.page import write_evaluation
from wsiseg.evaluation.pcam_evaluation import evaluate_pcam
from wsiseg.heatmap.opening import prediction_files
from wsiseg.mathematics.metrics import best_threshold, curve, reliability
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import write_text
from wsiseg.run.record import Failure, Progress, Silent, SlideRecord
from wsiseg.slides.cohort import Cohort, CohortSlide


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> Report:
    """Compare predictions with truth.

    Args:
        config: The settings.
        progress: Who watches.

    Returns:
        The measures, what became of every slide, and whether the gates are met. Files are written where the settings
        name a place for them.

    Raises:
        UsageError: A folder, the cohort or a named measure does not exist.
        WsisegError: No slide at all could be compared.
    """
    progress = progress or Silent()
    least, drops = parsed(config.fail_under, "--fail-under"), parsed(config.max_drop, "--max-drop")
    baseline = read_baseline(config.baseline) if config.baseline else None
    if config.out is not None and config.out.resolve() in {place.resolve() for place in config.predictions}:
        raise UsageError(f"{config.out}: its report.html is that of predict", "give --out another folder")
    if config.pcam is not None and config.model is not None:
        report, patches = evaluate_pcam(config, config.pcam, config.model, progress)
        slides = [patches]
    else:
        report, slides = _evaluated(config, progress)
    from wsiseg.run.version import __version__  # noqa: PLC0415  the package imports this module

    found = gates(report.model_dump(mode="json", by_alias=True), least, baseline, drops)
    report = report.model_copy(update={"gates": found, "version": __version__})
    if config.out is not None:
        write_evaluation(config.out, report, slides)
    if config.junit is not None:
        write_text(config.junit, junit(report))
    return report


def _evaluated(config: EvaluateConfig, progress: Progress) -> tuple[Report, list[Compared]]:
    """Compare all runs; give the report, and the first run's slides of the headline."""
    cohort = Cohort.read(config.cohort) if config.cohort else Cohort(())
    predictions = [prediction_files(place) for place in config.predictions]
    progress.begin(sum(len(files) for files in predictions))
    runs = [_compared(config, files, cohort, progress) for files in predictions]
    first = runs[0][0]
    report = _report(config, cohort, *runs[0])
    others = zip(config.predictions[1:], runs[1:], strict=True)
    further = tuple(_comparison(config, place, run[0], first) for place, run in others)
    return report.model_copy(update={"runs": further}), _headline(config, first, [])[1]


Run = tuple[list[Compared], list[SlideRecord], list[str]]


def _compared(config: EvaluateConfig, predictions: Mapping[str, Path], cohort: Cohort, progress: Progress) -> Run:
    """Compare all slides of a run; give them with what became of each, and what a person should know."""
    assert config.truth is not None  # noqa: S101  the settings were checked
    rows = {row.slide: row for row in cohort.slides}
    truths = truth_files(config.truth)
    reading = Reading(Classes(config.tumor_class, config.negative_class), config.truth_origin, config.truth_mpp)
    compared, records, used = [], [], set()
    for slide, path in predictions.items():
        row = rows.get(slide) or CohortSlide(slide=slide, path=Path(), case=slide)
        names = {name for name in (slide, row.path.name, row.path.stem, f"{slide}.svs") if name in truths}
        began = time.monotonic()
        try:
            one = _one(config, row, path, [file for name in sorted(names) for file in truths[name]], reading)
            compared.append(one)
            record = SlideRecord(slide=slide, path=str(path), status="ok", warnings=one.notes)
        except ZeroedMapError as error:
            record = SlideRecord(slide=slide, path=str(path), status="skipped", error=Failure.of(error))
        except WsisegError as error:
            record = SlideRecord(slide=slide, path=str(path), status="failed", error=Failure.of(error))
        used.update(names)
        records.append(record.model_copy(update={"seconds": round(time.monotonic() - began, 3)}))
        progress.done(records[-1])
    notes = [f"{slide}: stands not in the cohort" for slide in predictions if rows and slide not in rows]
    notes += [
        f"{file.name}: truth without a prediction" for name in sorted(set(truths) - used) for file in truths[name]
    ]
    return compared, records, notes


def _one(config: EvaluateConfig, row: CohortSlide, path: Path, files: Sequence[Path], reading: Reading) -> Compared:
    if not files:
        raise WsisegError(f"{row.slide}: no truth for this slide", "an outline file without outlines means no tumour")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise WsisegError(f"{row.slide}: has more than one truth: {names}", "keep one of them in the folder")
    with_picture = config.out is not None
    return compare(row, path, files[0], reading, with_picture=with_picture, with_lesions=config.froc)


def _report(
    config: EvaluateConfig,
    cohort: Cohort,
    compared: list[Compared],
    records: list[SlideRecord],
    notes: list[str],
) -> Report:
    split, chosen = _headline(config, compared, records)
    judging, threshold = _judging(config, compared)
    judged = {one.row.slide: Judged.of(one, judging.threshold) for one in compared}
    main = [judged[one.row.slide] for one in chosen]
    slides = [one.compared for one in main]
    return Report(
        run=str(config.predictions[0]),
        split=split,
        **measures.group_measures(main, judging),
        per_site=_groups(main, judging, [one.compared.row.site for one in main]),
        per_split=_groups(judged.values(), judging, [one.row.split for one in compared]),
        per_location=_groups(main, judging, _locations(cohort, slides)),
        slide_auc=measures.slide_auc(slides, judging),
        tumor_area=measures.tumor_area(slides, judging),
        reliability=_reliability(slides),
        froc=measures.lesion_measures(slides),
        threshold=threshold,
        settings={"resamples": config.resamples, "resampled": "case", "seed": config.seed},
        slides=tuple(_with_measures(record, judged.get(record.slide), judging) for record in records),
        notes=tuple(notes),
    )


def _headline(
    config: EvaluateConfig,
    compared: list[Compared],
    records: list[SlideRecord],
) -> tuple[str | None, list[Compared]]:
    """Choose the slides that the headline is about: the split asked for, the test split, or all.

    Raises:
        UsageError: No slide is of the split asked for.
        WsisegError: No slide could be compared.
    """
    if not compared:
        reason = next((str(record.error.message) for record in records if record.error), "no slides")
        raise WsisegError(f"nothing could be evaluated: {reason}", "see --truth")
    splits = {one.row.split for one in compared}
    split = config.split or ("test" if "test" in splits else None)
    chosen = [one for one in compared if split is None or one.row.split == split]
    if not chosen:
        known = ", ".join(sorted(name for name in splits if name)) or "none"
        raise UsageError(f"no slide of split {split} could be evaluated", f"the splits are: {known}")
    return split, chosen


def _judging(config: EvaluateConfig, compared: Sequence[Compared]) -> tuple[Judging, Threshold]:
    """Choose the threshold: the one asked for, the best on the validation split, or the model's own.

    Raises:
        UsageError: It should be the model's, but the heatmaps name several.
    """
    named: dict[str, float] = {}
    if config.threshold is not None:
        named["option"] = config.threshold
    validation = best_threshold(curve([one.tissue for one in compared if one.row.split == "val"]))
    if validation is not None:
        named["validation"] = validation
    own = {one.threshold for one in compared}
    if len(own) == 1:
        named["model"] = own.pop()
    if not named:
        listed = ", ".join(f"{value:g}" for value in sorted(own))
        raise UsageError(f"the heatmaps were made with several thresholds: {listed}", "give --threshold")
    source, value = next(iter(named.items()))
    judging = Judging(value, named, config.resamples, config.seed)
    return judging, Threshold.model_validate({"value": value, "source": source})


def _groups(slides: Iterable[Judged], judging: Judging, keys: Sequence[str | None]) -> dict[str, Any]:
    """Measure slides by a key; those without one are left out."""
    groups: dict[str, list[Judged]] = {}
    for one, key in zip(slides, keys, strict=True):
        if key:
            groups.setdefault(key, []).append(one)
    return {key: measures.group_measures(group, judging) for key, group in sorted(groups.items())}


def _locations(cohort: Cohort, slides: Sequence[Compared]) -> list[str | None]:
    """Tell slides of organs that the model was trained on from those it never saw (the paper's section 3)."""
    trained = {row.site for row in cohort.slides if row.split == "train" and row.site}
    if not trained:
        return [None] * len(slides)
    return [
        None if not one.row.site else "in_distribution" if one.row.site in trained else "out_of_location"
        for one in slides
    ]


def _reliability(slides: Sequence[Compared]) -> dict[str, Any]:
    found = reliability([one.tissue for one in slides])
    names = ("mean_score", "tumor_share", "pixels")
    return {name: [number(value) for value in getattr(found, name)] for name in names}


def _with_measures(record: SlideRecord, judged: Judged | None, judging: Judging) -> SlideRecord:
    """Add the measures of a slide to what became of it."""
    if judged is None:
        return record
    one = judged.compared
    mm2 = one.mpp[0] * one.mpp[1] / 1e6 if one.mpp else None
    fields = {
        "case": one.row.case,
        "label": one.row.label,
        "split": one.row.split,
        "site": one.row.site,
        "mpp": one.mpp,
        "tumor_mm2": mm2 and one.called_px(judging.threshold) * mm2,
        "truth_mm2": mm2 and one.truth_px * mm2,
        **{mode: {name: number(value) for name, value in judged.measures[mode].items()} for mode in MODES},
    }
    return record.model_copy(update=fields)


def _comparison(config: EvaluateConfig, place: Path, compared: list[Compared], first: list[Compared]) -> Comparison:
    """Compare a further run with the first, on the slides of the headline that both have."""
    _, chosen = _headline(config, first, [])
    mine = {one.row.slide: one for one in compared}
    both = [one for one in chosen if one.row.slide in mine]
    if not both:
        raise UsageError(f"{place}: has no slide in common with the first run", "compare runs on the same slides")
    same = [mine[one.row.slide] for one in both]
    judgings = _judging(config, first)[0], _judging(config, compared)[0]
    judged = [Judged.of(one, judgings[1].threshold) for one in same]
    difference = measures.group_differences(both, same, judgings)
    return Comparison(
        run=str(place), slides=len(both), difference=difference, **measures.group_measures(judged, judgings[1])
    )


__all__ = ["Report", "evaluate"]
