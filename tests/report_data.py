"""Comparisons to report on, made without any training, and readers of what a report says."""

import dataclasses
from html.parser import HTMLParser

import torch
from deepens.experiments.comparison.examples import Examples, choose_examples
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate, Verdict
from deepens.experiments.cost.measurement import Cost
from deepens.metrics.core.catalogue import METRICS
from deepens.metrics.suite import SampleValues

OOD = ("near_ood/letters", "far_ood/noise")
SHIFTS = ("shift/gaussian_noise/1", "shift/gaussian_noise/3", "shift/blur/3")
# Name, MACs, accuracy: wide is the single model of deep's cost.
METHODS = (("single", 1_000_000, 0.90), ("deep", 4_000_000, 0.93), ("wide", 4_016_000, 0.92))
# How unsure a method is of the images of each kind of split.
DOUBTS = {"test": 0.2, "near_ood": 0.7, "far_ood": 1.5}


def make_values(images: int, accuracy: float, seed: int, *, doubt: float) -> SampleValues:
    labelled = doubt < 0.5
    generator = torch.Generator().manual_seed(seed)
    unsure = torch.rand(images, generator=generator, dtype=torch.float64) ** (1 / doubt)
    confidence = 1 - 0.9 * unsure
    entropy = -(confidence * confidence.log()) + (1 - confidence) * 2.0
    right = torch.rand(images, generator=generator) < confidence * accuracy + 0.05
    return SampleValues(
        nll=-confidence.log() if labelled else None,
        brier=(1 - confidence) ** 2 if labelled else None,
        correct=right if labelled else None,
        confidence=confidence,
        entropy=entropy,
        mutual_information=0.1 * entropy,
        disagreement=0.1 * entropy,
    )


def add_diversity(metrics: dict[str, dict[str, float]], *, several: bool) -> None:
    """Add how members differ, with decompositions that hold; of one network, that they do not."""
    for split, held in metrics.items():
        gap = 0.11 if several else 0.0
        held |= {"mutual_information": gap / 2, "pairwise_kl": 2 * gap}
        if several:
            held |= {"input_gradient_similarity": 0.23, "n_gradients": 20.0}
            held |= {"cosine_similarity": 0.9}
        if not split.partition("/")[0].endswith("ood"):
            held |= {
                "mean_member_nll": held["nll"] + gap,
                "jensen_gap": gap,
                "mean_member_brier": held["brier"] + gap / 3,
                "brier_ambiguity": gap / 3,
            }


def make_replicate(
    name: str, accuracy: float, seed: int, images: int, splits: tuple[str, ...]
) -> Replicate:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.004 * torch.randn(15 * len(splits), generator=generator, dtype=torch.float64)
    draw = iter(noise.tolist())
    metrics: dict[str, dict[str, float]] = {}
    for split in splits:
        if split.partition("/")[0].endswith("ood"):
            continue
        level = accuracy - (0.06 * int(split[-1]) if split.startswith("shift") else 0.0)
        metrics[split] = {
            "n": float(images),
            "accuracy": level + next(draw),
            "nll": 3 * (1 - level) + next(draw),
            "brier": 1.4 * (1 - level) + next(draw),
            "ece": 0.03 + next(draw),
            "aurc": 0.02 + next(draw),
            "augrc": 0.01 + next(draw),
            "coverage_at_5_risk": 0.9 + next(draw),
            "confidence": 0.9 + next(draw),
            "disagreement": 0.05 + next(draw),
        }
    for split in splits:
        if not split.partition("/")[0].endswith("ood"):
            continue
        metrics[split] = {
            "n_id": float(images),
            "n_ood": images / 2,
            **{
                f"{measure}_{score}": accuracy - 0.05 + next(draw)
                for measure in ("auroc", "aupr_out", "aupr_in", "fpr95")
                for score in ("msp", "entropy", "mutual_information")
            },
            "confidence": 0.6 + next(draw),
        }
    add_diversity(metrics, several=name not in ("single", "wide"))
    values = {
        split: make_values(images, accuracy, seed, doubt=DOUBTS[kind])
        for split in splits
        if (kind := split.partition("/")[0]) in DOUBTS
    }
    directory = f"runs/{name}-{seed}"
    return Replicate(directory=directory, metrics=metrics, values=values, log=make_log(seed))


def make_log(seed: int, epochs: int = 5) -> tuple[dict[str, int | float], ...]:
    return tuple(
        {
            "epoch": epoch,
            "train/loss": 2 / epoch + seed / 1e4,
            "val/nll": 1.5 / epoch,
            "val/accuracy": 1 - 0.5 / epoch,
        }
        for epoch in range(1, epochs + 1)
    )


def make_examples(methods=METHODS, images: int = 40) -> Examples:
    """Pictures of noise, with class names that are long."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 8, 8), generator=generator, dtype=torch.uint8)
    logits = 3 * torch.randn(len(methods), 2, images, 3, generator=generator)
    return choose_examples(
        pixels,
        torch.arange(images) % 3,
        classes=("7", "golden retriever", "Pembroke Welsh corgi with a long name"),
        runs=[f"runs/{name}" for name, *_ in methods],
        predictions=[(name, [here]) for (name, *_), here in zip(methods, logits, strict=True)],
    )


def make_verdict(split: str, metric: str, estimate: float, half: float, images: int) -> Verdict:
    info = METRICS[metric]
    low, high = estimate - half, estimate + half
    outcome = "undecided"
    if low > 0 or high < 0:
        outcome = "better" if (estimate > 0) == info.higher_is_better else "worse"
    return Verdict(
        split=split,
        metric=metric,
        challenger="deep",
        baseline="wide",
        estimate=estimate,
        low=low,
        high=high,
        agreeing=3,
        replicates=3,
        n=images,
        outcome=outcome,
        p_value=0.5 if outcome == "undecided" else 0.01,
        compared=20,
    )


def make_comparison(
    images: int = 200, replicates: int = 3, methods=METHODS, splits=("test", *SHIFTS, *OOD)
) -> Comparison:
    summaries = tuple(
        MethodSummary(
            name=name,
            description=f"the {name} method",
            cost=Cost(
                macs=macs,
                parameters=macs // 100,
                latency_ms_batch1=macs / 1e6,
                latency_ms_batch256=macs / 2e7,
                peak_memory_bytes=macs * 8,
                training_seconds=None if name == "wide" else macs / 5e4,
            ),
            replicates=tuple(
                make_replicate(name, accuracy, 100 * index + replicate, images, splits)
                for replicate in range(replicates)
            ),
        )
        for index, (name, macs, accuracy) in enumerate(methods)
    )
    verdicts = (
        make_verdict("test", "accuracy", 0.010, 0.004, images),
        make_verdict("test", "nll", -0.030, 0.010, images),
        make_verdict("test", "ece", 0.004, 0.002, images),
        make_verdict("test", "aurc", -0.001, 0.003, images),
        make_verdict("near_ood/letters", "auroc_entropy", 0.02, 0.01, images),
        make_verdict("far_ood/noise", "fpr95_entropy", -0.02, 0.03, images),
        make_verdict("shift", "accuracy", -0.02, 0.01, images),
    )
    return Comparison(
        data="digits",
        caveat="This data cannot tell strong methods apart: use it to try the tool out.",
        methods=summaries,
        judgements=verdicts,
        draws=400,
        notes=("wide is matched within 0.4 % of deep's MACs",),
        configuration="data: digits\nreplicates: 3\n",
        environment={"versions": {"torch": "2.6.0"}, "git": "abc123", "wall time": "12 s"},
        command="deepens compare --data digits",
        cautions=("40 of 200 test images are copies of training images.",),
        data_notes=("3 images are left out as unreadable.",),
        verdict_notes=("No verdict on packed: nothing costs the same.",),
        picture_notes=("There are no pictures of test images: the file is missing.",),
    )


def without_images(comparison: Comparison) -> Comparison:
    """Drop the per-image values, whose figures take most of the time."""
    methods = tuple(
        dataclasses.replace(
            method,
            replicates=tuple(
                dataclasses.replace(replicate, values={}) for replicate in method.replicates
            ),
        )
        for method in comparison.methods
    )
    return dataclasses.replace(comparison, methods=methods)


class Reader(HTMLParser):
    """Collects text and alternative texts, and remembers every tag that was not closed in order."""

    VOID = frozenset({"meta", "img", "line", "circle", "br", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.texts: list[str] = []
        self.alternatives: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.alternatives.append(dict(attrs).get("alt") or "")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def blocks_of(report, anchor: str) -> list:
    """Return the blocks of a section and of what is folded in them, none where it is left out."""
    found: list = []
    for section in report.sections:
        if section.anchor == anchor:
            waiting = list(section.blocks)
            while waiting:
                block = waiting.pop(0)
                found.append(block)
                waiting = [*getattr(block, "blocks", ()), *waiting]
    return found


def table_of(report, anchor: str, title: str):
    """Return the table whose title begins so."""
    tables = [each for each in blocks_of(report, anchor) if each.block == "table"]
    return next(table for table in tables if (table.title or table.label).startswith(title))


def row_of(table, head: str, group: str = ""):
    """Return the texts of one row's cells, with their notes."""
    row = next(row for row in table.rows if (row.head, row.group) == (head, group))
    return [f"{cell.text} {cell.note}".strip() for cell in row.cells]
