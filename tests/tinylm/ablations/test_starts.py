"""Other warm starts: every row from each, counted on the side of theory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from course.lab.ablation import run_ablation
from course.lab.result import Result
from course.lab.terminal import QUIET, Progress
from tinylm.ablations import parts, starts


def test_starts_are_counted_whose_interval_is_on_the_side_of_theory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three starts: one clear, one undecided, one clearly against theory."""
    effects = {1: 0.3, 2: 0.1, 3: -0.3}

    def run(settings: parts.Settings, progress: Progress) -> Result:
        assert progress is not None
        row = {"effect": effects[settings.seed], "effect_half": 0.2}
        return Result(series={"rows": {"baseline, offset": row}})

    monkeypatch.setattr(parts, "run", run)
    settings = dataclasses.replace(starts.SETTINGS, rungs=("baseline",))
    result = run_ablation(starts, settings, tmp_path, QUIET)
    [fact] = result.facts
    assert (fact.measured, fact.expected, fact.holds) == (1, 3, False)
    assert (tmp_path / "tinylm_starts.png").stat().st_size > 5_000
