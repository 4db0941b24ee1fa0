"""Units of work: costly ones first, each after what it needs, tried again once, shown as one."""

import signal
from concurrent.futures import Future

import pytest
from deepens.experiments.store.progress import Display
from deepens.experiments.store.reporting import Report, Reporter, read_report
from deepens.experiments.training.scheduling import WorkUnit, run_units
from joblib.externals.loky.process_executor import TerminatedWorkerError


class Here:
    """An executor in this process, which does a call when it is submitted."""

    def __init__(self, slots=1, kill=()):
        self.slots, self.closed, self.kill, self.calls = slots, [], list(kill), 0

    def submit(self, call):
        future = Future()
        self.calls += 1
        if self.calls in self.kill:
            future.set_exception(TerminatedWorkerError("exit codes {SIGKILL(-9)}"))
        else:
            future.set_result(call())
        return future

    def close(self, *, kill=False):
        self.closed.append(kill)


DONE: list[str] = []


def work(options, display):
    display.say(f"all begin like {options.get('like', 'this')}")
    with display.task("train", 4) as task:
        for _ in range(4):
            task.advance()
    if options["fails"] > sum(name == options["name"] for name in DONE):
        DONE.append(options["name"])
        raise ValueError(f"{options['name']} cannot be")
    DONE.append(options["name"])


def unit(name, *, cost=1.0, after=(), fails=0):
    return WorkUnit(name, work, {"name": name, "fails": fails}, cost, (), tuple(after))


@pytest.fixture
def carry_out(tmp_path, capsys):
    DONE.clear()

    def carry_out(*units, **how):
        executor = Here(**how)
        try:
            run_units(units, executor, Display(), title="all", folder=tmp_path)
        finally:
            assert executor.closed == [False]
            assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().err

    return carry_out


def test_costly_units_come_first_and_each_after_what_it_needs(carry_out):
    handler = signal.getsignal(signal.SIGINT)
    said = carry_out(
        unit("small"), unit("whole", cost=9, after=["a", "b"]), unit("a", cost=2), unit("b", cost=3)
    )
    assert DONE == ["b", "a", "whole", "small"]
    assert said.count("all begin like this") == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_unit_that_fails_is_tried_again_once(carry_out):
    said = carry_out(unit("a", fails=1), unit("b"))
    assert sorted(DONE) == ["a", "a", "b"]
    assert "a: a cannot be; it is tried again" in said


def test_a_unit_whose_process_is_killed_is_tried_again(carry_out):
    said = carry_out(unit("a"), unit("b"), kill=[1])
    assert sorted(DONE) == ["a", "b"]
    assert "a: its process was killed (SIGKILL(-9)), as where memory runs out; it is tried" in said


def test_others_are_finished_before_a_failure_is_named(carry_out):
    units = unit("a", fails=9, cost=3), unit("b", cost=2), unit("never", after=["a"])
    with pytest.raises(ValueError, match="^a failed twice: a cannot be; what the others did is k"):
        carry_out(*units)
    assert DONE == ["a", "a", "b"]


def test_a_report_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "report.json"
    assert read_report(file) == Report()
    display = Reporter(file)
    display.say("first")
    with display.task("train", 3) as task:
        task.start_at(1)
        display.say("second")
        assert read_report(file) == Report("train", 1, 3, ("first", "second"))
    file.write_text('{"task": 3}')
    assert read_report(file) == Report()
