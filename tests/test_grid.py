"""A grid: every comparison once, refused before it costs anything, and the same after a stop."""

import csv
import dataclasses
import importlib
import re
import shutil
from pathlib import Path

import pytest
import yaml
from deepens.datasets import load
from deepens.experiments.cli import entry as cli
from deepens.experiments.cli import grid
from deepens.experiments.cli.grid import make_grid, run_grid_report
from deepens.experiments.cli.grid_cells import expand, read_grid
from deepens.experiments.comparison.headlines import Headline
from deepens.experiments.report.grid_index import Outcome, index_markdown, index_page
from deepens.experiments.store.errors import one_line
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_config
from report_data import Reader, make_comparison

comparing = importlib.import_module("deepens.experiments.comparison.compare")
QUIET = Display(quiet=True)
pytestmark = pytest.mark.usefixtures("unchecked")  # whole trainings; their parts are checked
PROTOCOL = Path(__file__).parent.parent / "experiments" / "protocols" / "digits-grid.yaml"
VIT = {"backbone": "vit-micro/4", "optimizer": {"name": "adamw", "lr": 0.001}}
TINY = {
    "data": "digits",
    "backbone": ["small-cnn", VIT],
    "methods": ["wide", "deep"],
    "members": [2],
    "replicates": 2,
    "epochs": 1,
    "draws": 200,
    "corruptions": ["none"],
}


def _written(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


@pytest.fixture
def stand_in(monkeypatch):
    """Comparisons that train nothing; a backbone that is called to fail does."""
    seen = []

    def compare(config, *, splits, display, finished):
        seen.append((config.directory().name, splits))
        config.directory().mkdir(parents=True)
        if config.width == 0.5:
            raise ValueError("no width comes within 2 %")
        if config.width == 0.25:
            raise RuntimeError("out of memory")
        for name in config.methods:
            for replicate in range(config.replicates):
                finished(f"{name}-{replicate}")
        rows = f"method,replicate,split,metric,value\ndeep,0,test,nll,{len(seen)}.5\n"
        (config.directory() / "results.csv").write_text(rows)
        return make_comparison()

    monkeypatch.setattr(grid, "compare", compare)
    return seen


def test_every_data_set_meets_every_backbone_once_and_data_sets_stay_together(tmp_path):
    cells = expand({"data": ["digits", "mnist"], "backbone": ["resnet8", "wrn-16-4"]}, tmp_path)
    assert [cell.name for cell in cells] == [
        "digits-resnet8", "digits-wrn-16-4", "mnist-resnet8", "mnist-wrn-16-4",
    ]  # fmt: skip
    assert [(cell.config.data, cell.config.backbone) for cell in cells] == [
        ("digits", "resnet8"), ("digits", "wrn-16-4"), ("mnist", "resnet8"), ("mnist", "wrn-16-4"),
    ]  # fmt: skip
    assert all(cell.path == tmp_path / cell.name for cell in cells)


def test_several_numbers_of_members_become_methods_of_one_comparison(tmp_path):
    options = {"methods": ["single", "wide", "deep"], "members": [2, 4]}
    (cell,) = expand(options, tmp_path)
    assert cell.config.methods == ("single", "wide-2", "deep-2", "wide-4", "deep-4")
    (more,) = expand(options | {"members": [2, 4, 8]}, tmp_path)
    assert more.config.methods[:5] == cell.config.methods
    # All but the methods is as before, so that a grid with more numbers grows the comparison.
    assert dataclasses.replace(more.config, methods=cell.config.methods) == cell.config
    (one,) = expand(options | {"members": 3}, tmp_path)
    assert (one.config.methods, one.config.members) == (("single", "wide", "deep"), 3)


def test_entries_override_the_grid_and_a_backbone_overrides_its_data(tmp_path):
    options = {
        "data": ["digits", {"data": "cifar10", "near_ood": ["svhn"], "epochs": 7, "seed": 1}],
        "backbone": ["resnet8", VIT | {"epochs": 9}],
        "epochs": 5,
        "near_ood": ["dtd"],
        "optimizer": {"momentum": 0.5, "clip": 1.0},
    }
    cells = {cell.name: cell.config for cell in expand(options, tmp_path)}
    assert {name: config.epochs for name, config in cells.items()} == {
        "digits-resnet8": 5, "digits-vit-micro-4": 9,
        "cifar10-resnet8": 7, "cifar10-vit-micro-4": 9,
    }  # fmt: skip
    assert cells["cifar10-vit-micro-4"].near_ood == ("svhn",)
    assert cells["digits-vit-micro-4"].near_ood == ("dtd",)
    assert [config.seed for config in cells.values()] == [0, 0, 1, 1]
    first, second = cells["digits-resnet8"].optimizer, cells["digits-vit-micro-4"].optimizer
    assert (first.name, first.momentum, first.clip) == ("sgd", 0.5, 1.0)
    assert (second.name, second.lr, second.clip) == ("adamw", 0.001, None)  # replaced as a whole


def test_names_are_safe_in_directories_and_told_apart_by_their_own(tmp_path):
    data = ["folder:/a/photos", {"data": "folder:/b/photos", "name": "../my photos"}]
    backbone = ["timm:resnet18@a/b.safetensors", {"backbone": "resnet8", "name": "né"}]
    cells = expand({"data": data, "backbone": backbone}, tmp_path)
    assert [cell.name for cell in cells] == [
        "photos-timm-resnet18-a-b.safetensors", "photos-né",
        "my-photos-timm-resnet18-a-b.safetensors", "my-photos-né",
    ]  # fmt: skip
    assert all(cell.path.resolve().parent == tmp_path.resolve() for cell in cells)
    assert [cell.data for cell in cells] == ["photos", "photos", "../my photos", "../my photos"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"epochz": 3}, "grid, digits-small-cnn: unknown option epochz; did you mean epochs?"),
        ({"epochs": "three"}, "grid, digits-small-cnn: .*epochs.* three"),
        ({"epochs": None}, "grid, digits-small-cnn: epochs must have a value, got none"),
        ({"optimizer": 3}, "optimizer must contain options by name, got 3"),
        ({"optimizer": {"lrr": 3}}, "unknown option optimizer.lrr; did you mean optimizer.lr?"),
        ({"replicates": 0}, "grid, digits-small-cnn: replicates must be >= 1, got 0"),
        ({"data": []}, "data must be one or more names, got none"),
        ({"data": [3]}, "data must be a name, or a mapping with data: NAME .* got 3"),
        ({"backbone": [{"epochs": 3}]}, "backbone must be a name, or a mapping with backbone"),
        ({"backbone": [{"backbone": "a", "out": "x"}]}, "out belongs to the whole grid"),
        ({"backbone": [{"backbone": "a", "data": "x"}]}, "data belongs to the whole grid"),
        ({"data": [{"data": "digits", "members": [2, 2]}]}, "members must be one or more differ"),
        ({"members": []}, "members must be one or more different numbers >= 1, got"),
        ({"members": [0]}, "members must be one or more different numbers >= 1, got"),
        ({"members": [True]}, "members must be one or more different numbers >= 1, got"),
        ({"members": [2], "methods": "deep"}, "methods must be a list of names, got 'deep'"),
        ({"methods": "deep"}, "grid, digits-small-cnn: .*methods"),
        ({"data": ["folder:a/x", "folder:b/X"]}, "would both be X-small-cnn; give an entry a name"),
        ({"backbone": ["vit-tiny/4", "vit-tiny-4"]}, "would both be digits-vit-tiny-4"),
        ({"data": [{"data": "digits", "name": 3}]}, "the name of data digits must be text, got 3"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(tmp_path, options, line):
    with pytest.raises(ValueError, match=line) as refused:
        expand(options, tmp_path)
    assert len(one_line(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("later", "line"),
    [
        ({"methods": ["single", "deap"]}, "grid, digits-later: .*'deap'; did you mean 'deep'"),
        ({"methods": ["cascade-deep"]}, "grid, digits-later: .*add deep to --methods"),
        ({"objective": "fordee"}, "grid, digits-later: unknown objective 'fordee'; did you mean"),
        ({"detectors": ["knnn"]}, "grid, digits-later: .*knn"),
        ({"backbone": "resnet9"}, "grid, digits-later: name must be a known network, got 'resnet9"),
        ({"backbone": "vit-micro/3"}, "grid, digits-later: .*3"),
        ({"train_size": 9}, "grid, digits-later: train_size must be left out with the digits"),
        ({"near_ood": ["folder:missing"]}, "grid, digits-later: .*'missing': not found"),
        ({"near_ood": ["folder:$UNSET_X/a"]}, "grid, digits-later: .*variable UNSET_X"),
    ],
)
def test_all_comparisons_are_checked_before_the_first_is_made(tmp_path, stand_in, later, line):
    entry = {"backbone": "small-cnn", "name": "later"} | later
    with pytest.raises(ValueError, match=line):
        make_grid({"backbone": ["small-cnn", entry]}, tmp_path / "g", display=QUIET)
    assert stand_in == []
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_cannot_be_found_is_refused_before_the_first_is_made(tmp_path, stand_in):
    with pytest.raises(ValueError, match="grid, digitz-small-cnn: .*the nearest is 'digits'"):
        make_grid({"data": ["digits", "digitz"]}, tmp_path / "g", display=QUIET)
    assert stand_in == []
    assert list(tmp_path.iterdir()) == []


def test_each_data_set_is_in_memory_once_for_all_its_comparisons(tmp_path, stand_in, monkeypatch):
    asked = []
    monkeypatch.setattr(grid, "load", lambda o, **_: asked.append(o.near_ood) or load(o))
    data = [{"data": "digits", "name": n, "near_ood": o} for n, o in (("a", ["none"]), ("b", []))]
    make_grid({"data": data, "backbone": ["small-cnn", "resnet8"]}, tmp_path / "g", display=QUIET)
    assert [name for name, _ in stand_in] == [
        "a-small-cnn",
        "a-resnet8",
        "b-small-cnn",
        "b-resnet8",
    ]
    assert stand_in[0][1] is stand_in[1][1]
    assert stand_in[2][1] is stand_in[3][1]
    # The check goes backwards, so that it leaves the first one's data in memory.
    assert asked == [(), ("none",), ()]


def test_one_that_fails_does_not_lose_the_others(tmp_path, stand_in, capsys):
    file = tmp_path / "many.yaml"
    slim = [{"backbone": "resnet8", "name": n, "width": w} for n, w in (("a", 0.5), ("b", 0.25))]
    file.write_text(yaml.safe_dump({"backbone": [*slim, "small-cnn"], "replicates": 1}))
    assert cli.main(["compare", f"--grid={file}", "--out", str(tmp_path / "g"), "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "deepens: digits-a failed: no width comes within 2 %",
        "deepens: digits-b failed: RuntimeError: out of memory; DEEPENS_TRACEBACK=1 shows where",
    ]
    assert said.out.splitlines()[0].startswith("digits-small-cnn: ")
    assert said.out.splitlines()[-1] == str(tmp_path / "g" / "index.html")
    rows = (tmp_path / "g" / "results.csv").read_text().splitlines()
    assert rows == [
        "data,backbone,method,replicate,split,metric,value",
        "digits,small-cnn,deep,0,test,nll,3.5",
    ]
    text = Reader((tmp_path / "g" / "index.html").read_text()).text
    assert "3 comparisons, 2 of them failed." in text
    assert "no width comes within 2 %" in text


def test_a_grid_lies_in_a_directory_of_its_own(tmp_path, stand_in, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="exists and is not a grid directory; choose another --out"
    ):
        make_grid({}, tmp_path, display=QUIET)
    with pytest.raises(
        ValueError, match="exists and is not a grid directory; choose another --out"
    ):
        make_grid({}, tmp_path / "notes.txt", display=QUIET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many.yaml").write_text("replicates: 1\nquiet: true\n")
    assert cli.main(["compare", "--grid", "many.yaml"]) == 0
    assert read_grid(Path("runs/many/grid.yaml")) == {"replicates": 1}
    (tmp_path / "named.yaml").write_text("replicates: 1\nquiet: true\nout: elsewhere\n")
    assert cli.main(["compare", "--grid", "named.yaml"]) == 0
    assert (tmp_path / "elsewhere" / "digits-small-cnn").is_dir()


def test_a_changed_recipe_is_refused_before_anything_is_made(tmp_path, stand_in):
    for cell in expand({"backbone": ["small-cnn", "resnet8"], "epochs": 3}, tmp_path):
        cell.path.mkdir()
        (cell.path / "config.yaml").write_text(cell.config.to_yaml())
    (tmp_path / "grid.yaml").write_text("epochs: 3\n")
    before = {name: (tmp_path / name).read_bytes() for name in _written(tmp_path)}
    for changed in ({"epochs": 4}, {"members": 2}, {"optimizer": {"lr": 0.2}}):
        options = {"backbone": ["wrn-16-4", "small-cnn"], "epochs": 3} | changed
        with pytest.raises(ValueError, match=f"grid, digits-small-cnn: .*{next(iter(changed))}"):
            make_grid(options, tmp_path, display=QUIET)
    assert stand_in == []
    assert {name: (tmp_path / name).read_bytes() for name in _written(tmp_path)} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--grid", "g.yaml", "--members", "3"], "--out, --quiet and --plugin only, got --members"),
        (["--config=a.yaml", "--grid=g.yaml"], "got --config; write the option into"),
        (["--grid", "missing.yaml"], "grid must be a YAML file, got 'missing.yaml': not found"),
        (["--grid", "list.yaml"], "list.yaml must hold options by name"),
        (["--grid", "broken.yaml"], "broken.yaml is not valid YAML"),
        (["--grid", "out.yaml"], "out must be a directory, got 3"),
        (["--grid", "quiet.yaml"], "quiet must be true or false, got 'no way'"),
        (["--grid"], "grid"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    files = {"g": "", "list": "[1]", "broken": "a: [", "out": "out: 3", "quiet": "quiet: no way"}
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    assert cli.main(["compare", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert line in said.err
    assert not Path("runs").exists()


def test_help_of_compare_names_the_grid(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    assert "--grid GRID.yaml [--out DIR] [--quiet]" in " ".join(capsys.readouterr().out.split())


def test_time_left_counts_neither_what_was_done_before_nor_what_is_left_out(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("deepens.experiments.store.progress.time.monotonic", lambda: now[0])
    with Display().task("grid", 10) as task:
        task.start_at(4)
        now[0] = 60.0
        task.advance("a")
        task.leave_out(3)
        now[0] = 120.0
        task.advance("b")
    # Two minutes for two runs, and one more to come: 10 less the 3 left out and the 6 done.
    assert capsys.readouterr().err.splitlines()[:2] == [
        "grid: 5 of 10, 5 min 0 s left. a",
        "grid: 6 of 7, 1 min 0 s left. b",
    ]


def test_the_index_is_whole_escaped_and_allows_nothing_from_elsewhere():
    told = Headline("In <part>", "", "deep & wide", "2 of 3.")
    outcomes = [
        Outcome("a b-<c>", "a b", "<c>", (told, told), ("mind <this>",)),
        Outcome("d-e", "d", "e", (), ("mind <this>",)),
        Outcome("f-g", "f", "g", error="<script>alert(1)</script>"),
    ]
    page = index_page(outcomes)
    reader = Reader(page)
    assert (reader.open, reader.wrong) == ([], [])
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<script|src=|https?:|@import|url\(", page)
    assert page.count('<a href="a%20b-%3Cc%3E/report.html">a b-&lt;c&gt;</a>') == 2
    assert "f-g/report.html" not in page
    for expected in ("In <part>.", "deep & wide", "<script>alert(1)</script>", "No verdict"):
        assert expected in reader.text
    assert reader.text.count("a b-<c>, d-e: mind <this>") == 1


def test_the_index_in_markdown_has_a_row_an_answer_with_as_many_cells_as_the_head():
    told = Headline("In part", "", "deep | wide", "2 of 3.")
    outcomes = [Outcome("a-b", "a", "b", (told, told)), Outcome("f-g", "f", "g", error="a | b")]
    lines = [row for row in index_markdown(outcomes).splitlines() if row.startswith("|")]
    assert len(lines) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in lines} == {7}
    assert "[a-b](a-b/report.html)" in lines[2]
    assert "report.html" not in lines[4]


def test_the_example_among_the_protocols_is_a_grid(tmp_path):
    options = read_grid(PROTOCOL)
    cells = expand({k: v for k, v in options.items() if k != "out"}, tmp_path)
    assert [cell.name for cell in cells] == ["digits-small-cnn", "digits-vit-micro-4"]
    assert cells[0].config.methods == ("single", "wide-2", "deep-2", "wide-4", "deep-4")
    assert [cell.config.optimizer.name for cell in cells] == ["sgd", "adamw"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small grid that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "g"
    return path, make_grid(TINY, path, display=QUIET)


@pytest.mark.slow
def test_index_and_table_tell_of_every_comparison(whole, capsys):
    path, outcomes = whole
    assert [(outcome.name, outcome.error) for outcome in outcomes] == [
        ("digits-small-cnn", ""), ("digits-vit-micro-4", ""),
    ]  # fmt: skip
    with (path / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for outcome in outcomes:
        with (path / outcome.name / "results.csv").open() as lines:
            own = list(csv.DictReader(lines))
        both = {"data": "digits", "backbone": outcome.backbone}
        assert [row for row in rows if row["backbone"] == outcome.backbone] == [
            both | row for row in own
        ]
        assert {row["method"] for row in own} == {"wide-2", "deep-2"}
        (headline,) = outcome.headlines
        assert headline.subject in Reader((path / "index.html").read_text()).text
        assert (path / outcome.name / "report.html").is_file()
    assert read_grid(path / "grid.yaml") == TINY


def replace_training(monkeypatch, before):
    """Call ``before`` with the configuration of every run that is trained or found finished."""
    alone, together = comparing.train_and_evaluate, comparing.train_and_evaluate_together

    def one(config, **more):
        before(config)
        return alone(config, **more)

    def several(configs, **more):
        for config in configs:
            before(config)
        return together(configs, **more)

    monkeypatch.setattr(comparing, "train_and_evaluate", one)
    monkeypatch.setattr(comparing, "train_and_evaluate_together", several)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 6])
def test_a_grid_that_was_killed_ends_in_the_same_place(whole, tmp_path, monkeypatch, stop):
    trained = []

    def stopping(config):
        if len(trained) == stop:
            raise KeyboardInterrupt
        trained.append(str(config.out))

    path = tmp_path / "g"
    with monkeypatch.context() as patched:
        replace_training(patched, stopping)
        with pytest.raises(KeyboardInterrupt):
            make_grid(TINY, path, display=QUIET)
    assert not (path / "index.html").exists()
    before = {p: p.stat().st_mtime_ns for p in path.glob("*/*/weights.safetensors")}
    assert len(before) == stop
    make_grid(TINY, path, display=QUIET)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()
    assert (path / "results.csv").read_bytes() == (whole[0] / "results.csv").read_bytes()


@pytest.mark.slow
def test_what_is_finished_is_neither_loaded_nor_trained_again_and_reports_are_rebuilt(
    whole, monkeypatch, capsys
):
    path, _ = whole
    kept = {name: (path / name).read_bytes() for name in ("results.csv", "index.html", "index.md")}
    reports = {p: p.read_bytes() for p in path.glob("*/report.html")}
    assert len(reports) == 2
    monkeypatch.setattr(comparing, "train_and_evaluate", None)
    monkeypatch.setattr(comparing, "train_and_evaluate_together", None)
    monkeypatch.setattr(grid, "load", None)
    for again in (lambda: make_grid(TINY, path, display=QUIET), lambda: run_grid_report(path)):
        for file in (*(path / name for name in kept), *reports):
            file.unlink()
        again()
        assert {name: (path / name).read_bytes() for name in kept} == kept
        assert {p: p.read_bytes() for p in reports} == reports
    assert capsys.readouterr().out.splitlines()[-1] == str(path / "index.html")


@pytest.mark.slow
def test_a_grid_grows_by_what_is_missing(whole, tmp_path, monkeypatch):
    path = Path(shutil.copytree(whole[0], tmp_path / "grid"))
    trained = []

    def noting(config):
        if not (Path(config.out) / "metrics.json").exists():
            trained.append(str(Path(config.out).relative_to(path)))

    replace_training(monkeypatch, noting)
    grown = TINY | {"backbone": ["small-cnn"], "members": [2, 3], "methods": ["deep"]}
    outcomes = make_grid(grown, path, display=QUIET)
    assert trained == ["digits-small-cnn/deep-3-0", "digits-small-cnn/deep-3-1"]
    assert [outcome.error for outcome in outcomes] == [""]
    assert read_config(path / "digits-small-cnn", type(expand(grown, path)[0].config)).methods == (
        "wide-2", "deep-2", "deep-3",
    )  # fmt: skip
