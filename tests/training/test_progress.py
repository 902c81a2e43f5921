"""What a run shows and writes: exactly, also after a kill, and whatever a text contains."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from chumoku.errors import DependencyError, ResourceError
from chumoku.training import progress
from chumoku.training.flops import Shape, flops_per_token
from chumoku.training.progress import (
    JsonLog,
    Reports,
    Speed,
    Step,
    TensorBoard,
    Terminal,
    clock_time,
    printable,
    read_log,
    run_reports,
    speed_of,
    truncate_after,
)


def step(number: int, loss: float = 2.0, steps: int = 10, **parts: float) -> Step:
    return Step(
        step=number,
        steps=steps,
        loss=loss,
        learning_rate=1e-3 / 3,
        gradient_norm=0.1 + 0.2,
        tokens=600,
        seconds=0.5,
        epoch=number / 4,
        parts=parts,
    )


# ---- the log ----


def test_log_lines_are_exact(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.note("はじめ")
    log.resumed(0)
    log.step(step(1, 1 / 3, masked=0.25))
    log.evaluation(1, {"loss": 2 / 3, "accuracy": 1.0})
    log.sample(1, "猫\n\x1b[31m\ud800")
    log.step(step(2, math.nan))
    log.evaluation(2, {"loss": math.inf})
    log.close()
    lines = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    assert lines[0] == '{"kind": "note", "at": 0, "text": "はじめ"}'
    assert lines[1] == (
        '{"kind": "step", "at": 1, "loss": 0.3333333333333333, '
        '"learning_rate": 0.0003333333333333333, "gradient_norm": 0.30000000000000004, '
        '"tokens": 600, "seconds": 0.5, "epoch": 0.25, "parts": {"masked": 0.25}}'
    )
    assert lines[2].endswith('"metrics": {"loss": 0.6666666666666666, "accuracy": 1.0}}')
    assert "猫\\n\\u001b[31m\\ud800" in lines[3]
    assert '"loss": "nan"' in lines[4]
    assert '"loss": "inf"' in lines[5]
    entries = read_log(tmp_path / "log.jsonl")
    assert entries[1]["loss"].hex() == (1 / 3).hex()
    assert math.isnan(float(entries[4]["loss"]))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert all(json.loads(line, parse_constant=refuse) for line in lines)


def full_log(path: Path) -> None:
    log = JsonLog(path)
    log.resumed(0)
    for number in range(1, 8):
        log.step(step(number, number / 7))
        if number % 3 == 0:
            log.evaluation(number, {"loss": number / 9})


def test_a_resumed_log_has_no_point_twice(tmp_path: Path) -> None:
    """A run killed after step 7 goes on after step 4: the log is that of a run never killed."""
    whole, path = tmp_path / "whole", tmp_path / "log.jsonl"
    full_log(whole)
    full_log(path)
    log = JsonLog(path)
    log.resumed(4)
    assert [e["at"] for e in read_log(path)] == [1, 2, 3, 3, 4]
    for number in range(5, 8):
        log.step(step(number, number / 7))
        if number % 3 == 0:
            log.evaluation(number, {"loss": number / 9})
    assert path.read_bytes() == whole.read_bytes()
    JsonLog(path).resumed(0)
    assert path.read_bytes() == b""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "whole"]


def test_a_log_torn_at_any_byte_loses_its_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    full_log(path)
    whole = path.read_bytes()
    entries = read_log(path)
    ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[-3], len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end - 1 <= cut for end in ends)  # a whole line without its end is whole
        assert read_log(path) == entries[:kept], cut
        if cut % 20 == 0 or cut in ends:  # each waits for the disk
            truncate_after(path, 100)
            assert path.read_bytes() == whole[: ends[kept - 1]], cut
    path.write_bytes(whole[:-9])
    JsonLog(path).note("told before the run knows where it is")  # must not join the torn line
    assert [e["kind"] for e in read_log(path)][-2:] == ["evaluation", "note"]


def test_no_log_and_nonsense_are_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none") == []
    (tmp_path / "log.jsonl").write_bytes(b'\xff\xfe\n[1]\n{"kind": "step"}\n{"at": "3"}\n3\n')
    assert read_log(tmp_path / "log.jsonl") == []
    truncate_after(tmp_path / "new", 3)
    assert (tmp_path / "new").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(ResourceError, match="disk is full"):
        JsonLog(Path("/dev/full")).note("x")


def test_a_log_in_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        JsonLog(tmp_path / "none" / "log.jsonl").note("x")


# ---- the terminal ----


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(every: int | None = None) -> tuple[Terminal, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=40, force_terminal=False)
    speed = Speed(100.0, 1e6)
    return Terminal(console, speed, every=every, clock=clock), stream, clock


def test_plain_lines_every_n_steps() -> None:
    terminal, stream, _ = plain(every=4)
    for number in range(1, 11):
        terminal.step(step(number, 2.0 if number < 4 else 1.0))
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "step 4/10  loss 1.9000  lr 3.33e-04  1,200 tok/s  MFU 12.0%  0:03 left"
    )  # 0.9 * 2 + 0.1 * 1; 100 * 1200 / 1e6; 6 steps of 0.5 s; not folded at 40 columns
    assert [line.split()[1] for line in lines] == ["4/10", "8/10", "10/10"]
    assert lines[-1].endswith("0:00 left")
    assert "\x1b" not in stream.getvalue()


def test_plain_lines_by_the_clock() -> None:
    terminal, stream, clock = plain()
    for number in range(1, 31):
        clock.now += 1.0
        terminal.step(step(number, steps=100))
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [
        "1/100",
        "11/100",
        "21/100",
    ]


def test_a_loss_that_is_no_number_does_not_stay() -> None:
    terminal, stream, _ = plain(every=1)
    for number, loss in enumerate((math.nan, 2.0, math.inf, 2.0), start=1):
        terminal.step(step(number, loss))
    lines = stream.getvalue().splitlines()
    assert "loss" not in lines[0]
    assert all("loss 2.0000" in line for line in lines[1:])


def test_the_bar_of_a_terminal() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=120, force_terminal=True, color_system=None)
    terminal = Terminal(console, Speed(1e6, None), clock=clock)
    terminal.resumed(3)
    for number in range(4, 11):
        clock.now += 0.125
        terminal.step(step(number))
        if number == 6:
            terminal.evaluation(6, {"accuracy": 0.5})
            terminal.sample(6, "[bold]猫 :cat:\x1b[2J\u202e")
    terminal.close()
    out = stream.getvalue()
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    drawn = re.findall(r"(\d+)/10 loss 2\.0000", seen)
    assert list(dict.fromkeys(drawn)) == ["4", "6", "8", "10"]  # each 0.2 s, and the last
    assert "1,200 tok/s  1.2 GFLOP/s  0:02 left" in seen
    assert "going on after step 3\n" in seen
    assert "step 6: accuracy 0.5000" in seen
    assert "step 6: [bold]猫 :cat:\\x1b[2J\\u202e" in seen  # neither markup nor control
    assert "\x1b[2J" not in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # the cursor is given back
    terminal.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本語　全角", "日本語　全角"),
        ("a\nb", "a\nb"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\r\t\x9b31m\x7f", "\\r\\t\\x9b31m\\x7f"),
        ("\u200b\u2066\ud800", "\\u200b\\u2066\\ud800"),
        ("\U0001f431", "\U0001f431"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_no_text_can_steer_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    terminal, stream, _ = plain()
    terminal.note(text)
    assert stream.getvalue() == shown + "\n"


def test_clock() -> None:
    assert [clock_time(s) for s in (0.4, 59.6, 65, 7200)] == ["0:00", "1:00", "1:05", "2:00:00"]


# ---- several, TensorBoard, defaults ----


def test_reports_tell_all_and_close_all(tmp_path: Path) -> None:
    class Broken:
        def close(self) -> None:
            raise OSError("closed badly")

    one, two = JsonLog(tmp_path / "a"), JsonLog(tmp_path / "b")
    both = Reports([one, two])
    both.resumed(0)
    both.step(step(1))
    both.evaluation(1, {"loss": 1.0})
    both.sample(1, "x")
    both.note("y")
    both.close()
    kinds = [e["kind"] for e in read_log(tmp_path / "a")]
    assert kinds == ["step", "evaluation", "sample", "note"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    closed: list[int] = []
    last = JsonLog(tmp_path / "c")
    last.close = lambda: closed.append(1)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="closed badly"):
        Reports([last, Broken(), last]).close()  # type: ignore[list-item]
    assert closed == [1, 1]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.resumed(0)
    for number in (1, 2, 3):
        board.step(step(number, number / 2, masked=0.5))
    board.evaluation(3, {"accuracy": 0.75})
    board.sample(3, "猫")
    board.note("noted")
    board.close()
    resumed = TensorBoard(tmp_path)  # killed after 3, goes on after 2
    resumed.resumed(2)
    resumed.step(step(3, 9.0))
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = {e.step: e.value for e in events.Scalars("train/loss")}
    assert losses == {1: 0.5, 2: 1.0, 3: 9.0}
    assert len(events.Scalars("train/loss")) == 3
    assert events.Scalars("train/tokens_per_second")[0].value == 1200
    assert events.Scalars("train/parts/masked")[0].value == 0.5


def test_tensorboard_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match=r'chumoku\[train\]"'):
        TensorBoard(tmp_path)


def test_what_a_run_tells_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks: list[torch.dtype] = []

    def peak(device: torch.device, dtype: torch.dtype) -> float:
        peaks.append(dtype)
        return 1e9

    monkeypatch.setattr(progress, "peak_flops", peak)
    model = nn.Module()
    model.blocks = nn.Linear(8, 8)
    report = run_reports(tmp_path, model, shape=Shape(5), dtype=torch.bfloat16)
    report.step(step(10))
    report.close()
    assert [e["kind"] for e in read_log(tmp_path / "log.jsonl")] == ["step"]
    assert "step 10/10" in capsys.readouterr().err
    assert peaks == [torch.bfloat16]
    assert speed_of(model, Shape(5)) == Speed(flops_per_token(model, Shape(5)), 1e9)
    run_reports(tmp_path / "none", model, quiet=True).step(step(10))
    assert not (tmp_path / "none").exists()
    run_reports(tmp_path, model)  # without a shape nothing is measured
    assert peaks == [torch.bfloat16, torch.float32]


def test_a_run_that_begins_again_hides_what_was_told(tmp_path: Path) -> None:
    """As after a kill before the first snapshot; and who tells nothing leaves no file."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last in (6, 3):
        board = TensorBoard(tmp_path)
        board.resumed(0)
        for number in range(1, last + 1):
            board.step(step(number))
        board.close()
    silent = TensorBoard(tmp_path / "other")
    silent.resumed(0)
    silent.close()
    assert not (tmp_path / "other").exists()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]
