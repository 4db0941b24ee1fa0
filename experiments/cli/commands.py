"""What the commands on a single run do: call the library, and print what a person wants to see."""

import functools
import sys
import warnings
from pathlib import Path

from ..comparison.formatting import number
from ..config import TrainConfig
from ..evaluation.assemble import assemble
from ..evaluation.cascade import calibrate_run, check_overwrite, load_cascade
from ..evaluation.evaluate import evaluate
from ..evaluation.options import (
    AssembleConfig,
    CascadeConfig,
    EvaluateConfig,
    PredictConfig,
    ScoreConfig,
)
from ..evaluation.predict import predict_folder
from ..evaluation.predictions import Predictions, load_metrics
from ..evaluation.score import check_outputs, score, undefined, write_metrics, write_samples
from ..evaluation.temperatures import load_unidentified
from ..evaluation.train_and_evaluate import train_and_evaluate
from ..store.data_record import data_remarks
from ..store.outputs import check_output, record_output
from ..store.progress import Display
from ..store.run import Run, exclusive, write_whole_text
from ..training.places import place_of
from .text_tables import cascade_table, metrics_table, predicted_text, score_tables, show


def run_train(config: TrainConfig) -> int:
    """Train and evaluate an ensemble, and print its metrics."""
    first = place_of(config).first
    run = train_and_evaluate(config, display=Display(quiet=config.quiet or not first))
    if not first:
        return 0
    status = _show_metrics(run)
    for line in data_remarks(run.path):
        print(line)
    return status


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate a run, and print its metrics."""
    run = Run.open(config.run, device=config.device)
    display = Display(quiet=config.quiet)
    with exclusive(run.path, otherwise="then give the same command again"):
        extent, detectors = config.evaluate, config.detectors
        evaluate(run, predict=config.predict, extent=extent, detectors=detectors, display=display)
    return _show_metrics(run)


def run_assemble(config: AssembleConfig) -> int:
    """Assemble members into one ensemble, and print its metrics."""
    paths = [Path(path) for path in config.runs]
    return _show_metrics(assemble(paths, config.out, display=Display(quiet=config.quiet)))


def run_predict(config: PredictConfig) -> int:
    """Classify images; exit status 2 where some could not be read and are not to be skipped."""
    out = config.file()
    check_output(out, config)
    run = Run.open(config.run, device=config.device)
    skip, display = config.skip_bad_images, Display(quiet=config.quiet)
    cascade = load_cascade(run, Path(config.cascade)) if config.cascade else None
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = functools.partial(_warn, None if config.quiet else display)
        bad = predict_folder(
            run, config.images, out, display=display, skip_bad_images=skip, cascade=cascade
        )
    record_output(out, config)
    if bad:
        holds = "leaves them out" if skip else "holds the others' answers"
        _remark(*bad, f"{len(bad)} images could not be read; {out} {holds}")
    if bad and not skip:
        return 2
    print(out)
    return 0


def run_score(config: ScoreConfig) -> int:
    """Score logits from files, write what was asked for, and print the metrics."""
    outputs = [Path(each) for each in (config.out, config.per_sample) if each is not None]
    check_outputs(config, outputs)
    for file in outputs:
        check_output(file, config)
    display = Display(quiet=config.quiet)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        scored = score(config, display=display)
    remarks = [str(each.message) for each in caught]
    _remark(*dict.fromkeys([*remarks, *undefined(scored.metrics)]))
    if config.per_sample is not None:
        write_samples(Path(config.per_sample), scored)
    if config.out is not None:
        write_metrics(Path(config.out), scored.metrics)
    for file in outputs:
        record_output(file, config)
    for index, (title, tables) in enumerate(score_tables(scored)):
        print("\n" * (index > 0) + title)
        for table in tables:
            show(table)
    for file in outputs:
        print(file)
    return 0


def run_cascade(config: CascadeConfig) -> int:
    """Calibrate a run's cascade, write it, its measures and its curve, and print a table."""
    run, file = Run.open(config.run), config.file()
    check_overwrite(file)
    check_output(file, config)
    cascade = calibrate_run(run, config, display=Display(quiet=config.quiet))
    cascade.save(file)
    record_output(file, config)
    from .cascade_figure import draw_curves  # drawing takes its time to import

    figure = draw_curves(cascade.points, cascade.label)
    write_whole_text(file.with_suffix(".svg"), figure)
    show(cascade_table(cascade.rows))
    if (other := cascade.content["held_out"]) is not None:
        print(
            f"on the {other['images']} calibration images on which nothing was chosen: coverage "
            f"{number(other['coverage'])}, risk {number(other['risk'])}, "
            f"{number(other['average_macs'] / cascade.content['macs'][0])} times the first stage's "
            "MACs"
        )
    for note in cascade.content["notes"]:
        print(f"note: {note}")
    print(f"{cascade.label} against average MACs: {file.with_suffix('.svg')}")
    print(file)
    return 0


def _show_metrics(run: Run) -> int:
    show(metrics_table(load_metrics(run)))
    predictions = Predictions(run)
    print(f"predicted: {predicted_text(predictions)}")
    if left_out := predictions.unmeasured:
        remedy = f"`deepens evaluate {run.path} --evaluate full` adds them"
        print(f"not measured: {' and '.join(left_out)}; {remedy}")
    print(f"all metrics: {run.metrics}")
    if run.config.precision == "bf16-mixed":
        print("trained in precision bf16-mixed")
    lacking: dict[str, list[str]] = {}
    for name, reason in load_unidentified(run).items():
        what = "conformal sets" if name == "conformal" else f"temperature {name!r}"
        lacking.setdefault(reason, []).append(what)
    for reason, names in lacking.items():
        _remark(f"not identified ({reason}), and not used: {', '.join(names)}")
    return 0


def _remark(*lines: str) -> None:
    for line in lines:
        print(f"deepens: {line}", file=sys.stderr, flush=True)


def _warn(display: Display | None, message: object, *_: object, **__: object) -> None:
    """Show a warning above the progress bars; it is shown even where progress is not."""
    if display is None:
        _remark(str(message))
    else:
        display.say(str(message))
