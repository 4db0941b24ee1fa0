"""Progress: a bar in a terminal, lines in a pipe, nothing when quiet."""

import os
import pty
import subprocess
import sys

import pytest
from deepens.experiments.store import progress
from deepens.experiments.store.progress import Display

CODE = """
import time
from deepens.experiments.store.progress import Display
display = Display(quiet={quiet})
with display.task("outer", 2) as outer:
    for _ in range(2):
        with display.task("inner work", 3) as inner:
            for step in range(3):
                time.sleep(0.15)
                inner.advance(f"step {{step}}")
        display.say("said aloud")
        outer.advance()
print("the result")
"""


def _run_in_terminal(code):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    return shown.decode()


def test_terminal_shows_bars_of_nested_tasks_with_the_time_left():
    shown = _run_in_terminal(CODE.format(quiet=False))
    assert "inner work" in shown
    assert "outer" in shown
    assert "2/3" in shown
    assert "left" in shown
    assert "0:00:0" in shown
    assert "said aloud" in shown


STILL = """
import time
from deepens.experiments.store.progress import Display
with Display().task("measure", 2, still=True) as task:
    for step in range(2):
        time.sleep(0.6)
        task.advance(f"step {step}")
        print("between")
"""


def test_a_still_task_is_drawn_only_where_a_step_is_done():
    shown = _run_in_terminal(STILL)
    started, first, second = (part.count("measure") for part in shown.split("between"))
    assert "1/2" in shown
    assert "2/2" in shown
    # At the start, after each step, and as it ends: not ten times a second.
    assert started + first + second <= 6


def test_quiet_terminal_shows_the_result_alone():
    assert _run_in_terminal(CODE.format(quiet=True)).strip() == "the result"


def test_pipe_shows_plain_lines_and_keeps_the_result_apart():
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(quiet=False)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "the result\n"
    assert "\x1b" not in done.stderr
    assert done.stderr.count("inner work: done in") == 2
    assert "said aloud\n" in done.stderr


def test_pipe_says_how_much_time_is_left(capsys, monkeypatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Display().task("work", 10) as task:
        for step in range(10):
            task.advance(f"note {step}")
    lines = capsys.readouterr().err.splitlines()
    # 7 s a look at the clock: every second step is at least 10 s after the last line.
    assert lines[0] == "work: 2 of 10, 56 s left. note 1"
    assert lines[-1].startswith("work: done in")


def test_resumed_work_does_not_count_what_an_earlier_process_did(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Display().task("work", 100) as task:
        task.start_at(90)
        task.advance()
    # One step took 20 s; nine are left.
    assert capsys.readouterr().err.splitlines()[0] == "work: 91 of 100, 3 min 0 s left. "


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (61.0, "1 min 1 s"), (7260.0, "2 h 1 min")]
)
def test_durations_are_in_words(seconds, words):
    assert progress.duration(seconds) == words
