"""The defaults that `course/CONVENTIONS.md` states are those of the installed TRL and verl.

verl's settings are read from its own file, without importing it: that needs nothing that it pins.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest

from course.lesson.conventions import options

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VERL = "trainer/config/_generated_ppo_trainer.yaml"


def test_trls_defaults_are_its_config_classes() -> None:
    """Each row names a field of a config class that TRL exports, and that field's default."""
    trl = pytest.importorskip("trl")
    stated = [option for option in options().values() if option.library == "TRL"]
    assert len(stated) >= 20
    for option in stated:
        kind, _, name = option.name.partition(".")
        known = {field.name: field.default for field in dataclasses.fields(getattr(trl, kind))}
        assert name in known, option.name
        default = ast.literal_eval(option.default)
        assert (type(default), default) == (type(known[name]), known[name]), option.name


def test_trl_has_no_critic_and_no_trust_region() -> None:
    """What lessons 03 and 05 say that TRL lacks: it exports no trainer of these names."""
    trl = pytest.importorskip("trl")
    exported = [name.lower() for name in dir(trl) if name.endswith("Trainer")]
    assert "grpotrainer" in exported
    assert [name for name in exported if "ppo" in name or "trpo" in name] == []


def test_verls_defaults_are_in_its_file_of_settings() -> None:
    """Each row names an entry of the settings that verl's trainer starts from, and its value."""
    yaml = pytest.importorskip("yaml")
    found = importlib.util.find_spec("verl")
    if found is None or found.origin is None:
        pytest.skip("could not find verl")
    settings = yaml.safe_load((Path(found.origin).parent / VERL).read_text(encoding="utf-8"))
    stated = [option for option in options().values() if option.library == "verl"]
    assert len(stated) >= 20
    for option in stated:
        value = settings
        for name in option.name.split("."):
            assert name in value, option.name
            value = value[name]
        default = yaml.safe_load(option.default)
        assert (type(default), default) == (type(value), value), option.name
