"""The clock: phases without gaps, and time that counts across the attempts of a resumed run."""

import time

import pytest

from harness.clock import Clock


def test_phases_add_up_to_elapsed_time():
    clock = Clock()
    clock.start_run()
    with clock.phase("input"):
        time.sleep(0.02)
        with clock.phase("checkpoint"):
            time.sleep(0.02)
    clock.switch("evaluation")
    time.sleep(0.02)
    elapsed_s = clock.elapsed_s
    seconds = clock.phase_seconds()
    assert sum(seconds.values()) - seconds["init"] == pytest.approx(elapsed_s, abs=1e-4)
    for name in ("input", "checkpoint", "evaluation"):
        assert 0.02 <= seconds[name] < 0.2


def test_a_phase_ends_when_its_block_fails():
    clock = Clock()
    clock.start_run()
    with pytest.raises(KeyError), clock.phase("input"):
        raise KeyError
    before = clock.phase_seconds()["input"]
    time.sleep(0.01)
    assert clock.phase_seconds()["input"] == before


def test_downtime_counts():
    first = Clock()
    first.start_run()
    time.sleep(0.01)
    state = first.state()
    state["saved_utc_s"] -= 100  # the checkpoint was taken 100 s ago
    second = Clock()
    downtime_s = second.resume(state)
    assert downtime_s == pytest.approx(100, abs=0.1)
    assert second.elapsed_s == pytest.approx(state["elapsed_s"] + 100, abs=0.1)
    assert second.run_start_utc_s == first.run_start_utc_s
    assert (second.num_resumes, second.valid) == (1, True)
    seconds = second.phase_seconds()
    assert seconds["init"] == state["phase_s"]["init"]  # this attempt's set-up is downtime
    assert sum(seconds.values()) - seconds["init"] == pytest.approx(second.elapsed_s, abs=1e-3)


def test_a_utc_clock_set_back_marks_the_run_invalid():
    first = Clock()
    first.start_run()
    state = first.state()
    state["saved_utc_s"] += 50
    second = Clock()
    assert second.resume(state) < 0
    assert not second.valid
    third = Clock()
    third.resume(second.state())
    assert not third.valid  # for good


def test_log_times_follow_the_monotonic_clock(monkeypatch):
    clock = Clock()
    clock.start_run()
    before_ms = clock.unix_ms
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets the machine's clock
    assert before_ms <= clock.unix_ms <= before_ms + 1000
