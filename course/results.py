"""Results: one schema for everything that is measured. A JSON beside each figure holds its data and the facts it checked."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course.errors import CourseError, require
from course.terminal import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "pg-ladder result 1"
RELATIONS = {"equal": "=", "above": ">", "below": "<"}
ERRORS = 4.0  # a fact may be off by this many standard errors: by chance about once in 16,000 facts
SERIES_DIGITS, FACT_DIGITS = 7, 12  # significant digits that are kept
NUMBERS_PER_LINE = 12
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has no such numbers: they are written as strings
Value = float | int | bool | str


# ---------------------------------------------------------------- facts


@dataclass(frozen=True)
class Fact:
    """A claim compared with what was measured.

    `number` is its place in the course's list of claims (None: not on the list), `source` who says so, with the equation.
    `measured` and `expected` are in the claim's own unit; `standard_error` is that of `measured` (0: exact).
    `relation`: measured is "equal" to expected within `tolerance`, or "above" or "below" it by more than `tolerance`.
    Use the constructors (`exact`, `simulated`, `published`, `above`, `below`): there the tolerance follows from the stated
    errors. Numbers are rounded to 12 significant digits first, so what is judged is what is written.
    Raises `CourseError` on a negative error, an unknown relation, or words where only numbers can be compared.
    """

    claim: str
    source: str
    measured: Value
    standard_error: float
    expected: Value
    tolerance: float
    relation: str = "equal"
    number: int | None = None

    def __post_init__(self) -> None:
        for name in ("claim", "source"):
            text = getattr(self, name)
            require(isinstance(text, str) and text.strip() != "", f"fact.{name}", text, "a sentence")
        require(self.relation in RELATIONS, "fact.relation", self.relation, ", ".join(RELATIONS))
        number = self.number
        require(number is None or (type(number) is int and number > 0), "fact.number", number, "a whole number ≥ 1, or None")
        for name in ("measured", "standard_error", "expected", "tolerance"):
            object.__setattr__(self, name, _scalar(name, getattr(self, name)))
        for name in ("standard_error", "tolerance"):
            value = getattr(self, name)
            require(_is_number(value) and not value < 0, f"fact.{name}", value, "a number ≥ 0")
        if not (_is_number(self.measured) and _is_number(self.expected)):
            require(self.relation == "equal", "fact.relation", self.relation, f"equal, since {self.measured!r} is no number")

    @property
    def holds(self) -> bool:
        """Whether the claim was reproduced. What is not a number (NaN) never is, nor what has an infinite tolerance."""
        measured, expected = self.measured, self.expected
        if not (_is_number(measured) and _is_number(expected)):
            return type(measured) is type(expected) and measured == expected
        assert not isinstance(measured, str)
        assert not isinstance(expected, str)
        if not math.isfinite(self.tolerance):
            return False
        if self.relation == "equal":
            return measured == expected or abs(measured - expected) <= self.tolerance
        return measured - expected > self.tolerance if self.relation == "above" else expected - measured > self.tolerance

    @classmethod
    def exact(
        cls,
        claim: str,
        source: str,
        measured: Any,
        expected: Any,
        digits: int = 9,
        *,
        scale: float | None = None,
        number: int | None = None,
    ) -> Fact:
        """Two computations of one number, equal to `digits` significant digits: tolerance = 10^−digits · scale.

        `scale` is the size of the terms that are added up; default |expected|, or 1 where 0 is expected. Words and
        truth values are compared as they are.
        """
        require(0 < digits < FACT_DIGITS, "fact.digits", digits, f"1 … {FACT_DIGITS - 1}")
        want = _scalar("expected", expected)
        size = scale if scale is not None else (abs(float(want)) or 1.0) if _is_number(want) else 0.0
        tolerance = 10.0**-digits * size if math.isfinite(size) else 0.0
        return cls(claim, source, measured, 0.0, expected, tolerance, number=number)

    @classmethod
    def simulated(
        cls,
        claim: str,
        source: str,
        measured: Any,
        standard_error: Any,
        expected: Any,
        expected_error: Any = 0.0,
        *,
        number: int | None = None,
    ) -> Fact:
        """A simulation against a formula or another simulation: tolerance = 4·√(standard_error² + expected_error²)."""
        errors = float(standard_error), float(expected_error)
        for name, error in zip(("standard_error", "expected_error"), errors, strict=True):
            require(not error < 0, f"fact.{name}", error, "a number ≥ 0")
        return cls(claim, source, measured, standard_error, expected, ERRORS * math.hypot(*errors), number=number)

    @classmethod
    def published(
        cls, claim: str, source: str, measured: Any, standard_error: Any, expected: Any, rounding: float, *, number: int | None = None
    ) -> Fact:
        """A simulation against print: tolerance = 4·standard_error + rounding.

        `rounding` is half a unit of the last published digit (.73 → .005), or the error of reading the number off a figure.
        """
        require(rounding >= 0, "fact.rounding", rounding, "half a unit of the last published digit, ≥ 0")
        return cls(claim, source, measured, standard_error, expected, ERRORS * float(standard_error) + rounding, number=number)

    @classmethod
    def above(cls, claim: str, source: str, measured: Any, expected: Any, standard_error: Any = 0.0, *, number: int | None = None) -> Fact:
        """measured > expected, by more than 4 standard errors."""
        return cls(claim, source, measured, standard_error, expected, ERRORS * float(standard_error), "above", number)

    @classmethod
    def below(cls, claim: str, source: str, measured: Any, expected: Any, standard_error: Any = 0.0, *, number: int | None = None) -> Fact:
        """measured < expected, by more than 4 standard errors."""
        return cls(claim, source, measured, standard_error, expected, ERRORS * float(standard_error), "below", number)

    def as_json(self) -> dict[str, Any]:
        """The fact as it is written, the verdict included."""
        return {"number": self.number, **{k: v for k, v in asdict(self).items() if k != "number"}, "holds": self.holds}

    @classmethod
    def from_json(cls, data: Any) -> Fact:
        """Read a fact back. Raises `CourseError` if a field is missing or foreign, or the written verdict is not what the numbers say."""
        names = [f.name for f in fields(cls)]
        require(isinstance(data, dict), "fact", type(data).__name__, "a JSON object")
        require(set(data) == {*names, "holds"}, "fact", ", ".join(data), f"an object with {', '.join(names)}, holds and no more")
        numeric = ("measured", "standard_error", "expected", "tolerance")
        fact = cls(**{name: _decode(data[name]) if name in numeric else data[name] for name in names})
        require(data["holds"] is fact.holds, "fact.holds", data["holds"], f"{fact.holds}, which is what its numbers say: {fact.claim}")
        return fact

    @property
    def found(self) -> str:
        """measured ± standard error, for a table."""
        return _with_error(self.measured, self.standard_error)

    @property
    def wanted(self) -> str:
        """The relation, what was expected, and the tolerance, for a table."""
        exact = self.tolerance == 0 or not _is_number(self.expected)
        close = isinstance(self.expected, int | float) and 0 < self.tolerance <= 1e-6 * abs(self.expected)
        return f"{RELATIONS[self.relation]} {_show(self.expected)}" + ("" if exact or close else f" ± {self.tolerance:.2g}")


def mean_error(samples: Any) -> tuple[Any, Any]:
    """Mean and standard error over the first axis (independent runs) of `samples` [n, …], n ≥ 2: floats, or arrays [...].

    eq:seed-standard-error
    """
    values = np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples, dtype=np.float64)
    require(values.ndim > 0 and len(values) > 1, "samples", values.shape, "at least 2 independent runs on the first axis")
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))
    return (float(mean), float(error)) if values.ndim == 1 else (mean, error)


def share_error(hits: int, total: int) -> tuple[float, float]:
    """A share and its standard error after Agresti & Coull 1998 (two hits and two misses added), which is never 0."""
    require(0 <= hits <= total and total > 0, "hits", hits, f"0 … {total}")
    adjusted = (hits + 2) / (total + 4)
    return hits / total, math.sqrt(adjusted * (1 - adjusted) / (total + 4))


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Result:
    """All that one ablation found: what its figure is drawn from, and what can be checked later.

    `settings` field → value, `series` name → number or nested lists (tensors and arrays are converted, numbers rounded to
    7 significant digits: a figure drawn from the JSON is the figure drawn at once). `seconds` is the time of the run,
    `environment` what `environment()` gives, `caption` one sentence for below the figure. An ablation returns
    `Result(series=…, facts=…, caption=…)`; what runs it fills in the rest. Raises `CourseError` on what JSON cannot hold.
    """

    name: str = ""
    title: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Any] = field(default_factory=dict)
    facts: Sequence[Fact] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    caption: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "title", "caption"):
            require(isinstance(getattr(self, name), str), f"result.{name}", getattr(self, name), "text")
        require(re.fullmatch(r"[A-Za-z0-9_-]*", self.name) is not None, "result.name", self.name, "letters, digits, _ and -")
        require(isinstance(self.seconds, int | float) and self.seconds >= 0, "result.seconds", self.seconds, "a number ≥ 0")
        for name, digits in (("settings", None), ("series", SERIES_DIGITS), ("environment", None)):
            object.__setattr__(self, name, plain(getattr(self, name), digits, f"result.{name}"))
            require(isinstance(getattr(self, name), dict), f"result.{name}", type(getattr(self, name)).__name__, "a mapping")
        object.__setattr__(self, "facts", list(self.facts))
        for fact in self.facts:
            require(isinstance(fact, Fact), "result.facts", fact, "a list of Fact")
        object.__setattr__(self, "seconds", float(f"{self.seconds:.3g}"))

    def array(self, *keys: str) -> NDArray[np.float64]:
        """The series under `keys` (one per level) as an array of float64. Raises `CourseError` naming the series there are."""
        level: Any = self.series
        for key in map(str, keys):
            if not isinstance(level, dict) or key not in level:
                there = ", ".join(level) if isinstance(level, dict) else "a number or a list"
                raise CourseError(f"result.series: got {'.'.join(map(str, keys))!r}; allowed is {there}")
            level = level[key]
        return np.asarray(level, dtype=np.float64)

    @property
    def held(self) -> int:
        """How many of the facts hold."""
        return sum(fact.holds for fact in self.facts)

    def text(self) -> str:
        """The JSON text: one line per list of up to 12 numbers, so that diffs stay readable."""
        body = {
            "schema": SCHEMA,
            "name": self.name,
            "title": self.title,
            "caption": self.caption,
            "settings": self.settings,
            "facts": [fact.as_json() for fact in self.facts],
            "environment": self.environment,
            "seconds": self.seconds,
            "series": self.series,
        }
        return _dump(body) + "\n"

    def save(self, folder: Path | str, figure: Figure | bytes) -> tuple[Path, Path]:
        """Write NAME.png and NAME.json, both or neither, and return their paths. `figure`: a Figure, or a PNG's bytes.

        The picture is rendered first; both files are then written beside their places and renamed into them. Whatever
        stops this (Ctrl-C too) leaves what was there before. Raises `CourseError` if the folder cannot be written.
        """
        require(self.name != "", "result.name", self.name, "a name to save it under")
        picture = figure if isinstance(figure, bytes) else _render(figure)
        folder = Path(folder)
        paths = folder / f"{self.name}.png", folder / f"{self.name}.json"
        replace_files(dict(zip(paths, (picture, self.text().encode()), strict=True)))
        return paths

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Read a result back. Raises `CourseError`, naming the file, if it is missing, damaged or no result of this course."""
        path = Path(path)
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CourseError(f"{path}: got no such file; allowed is the JSON of an ablation that has been run") from None
        except OSError as error:
            raise CourseError(f"{path}: got {error.strerror or error}; allowed is a file that can be read") from None
        except ValueError as error:
            raise CourseError(f"{path}: got a damaged file ({error}); allowed is JSON: run the ablation again") from None
        try:
            require(isinstance(body, dict) and body.get("schema") == SCHEMA, "schema", _kind(body), f"{SCHEMA!r}")
            body.pop("schema")
            names = [f.name for f in fields(cls)]
            require(set(body) == set(names), "fields", ", ".join(body), ", ".join(names))
            require(isinstance(body["facts"], list), "facts", type(body["facts"]).__name__, "a list")
            body["facts"] = [Fact.from_json(fact) for fact in body["facts"]]
            body["series"] = _decode(body["series"])
            body["settings"] = _decode(body["settings"])
            return cls(**body)
        except CourseError as error:
            raise CourseError(f"{path} is no whole result of this course: {error}") from None


def check_writable(folder: Path | str) -> Path:
    """Make sure, before a long run, that files can be written to `folder` (made if need be). Raises `CourseError` if not."""
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files so that either all are new or all are as before, whatever stops it. Raises `CourseError` on disk errors."""
    fresh = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    kept = {path: path.with_name(f".{path.name}.{os.getpid()}.old") for path in contents}
    begun: list[Path] = []
    try:
        for path, content in contents.items():
            fresh[path].write_bytes(content)
            if path.is_file():
                kept[path].write_bytes(path.read_bytes())
        for path in contents:
            begun.append(path)
            os.replace(fresh[path], path)
    except BaseException as error:
        for path in begun:
            renamed = not fresh[path].exists()
            if renamed and kept[path].exists():
                os.replace(kept[path], path)
            elif renamed:  # nothing was there before
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(next(iter(contents)).parent, error) from None
        raise
    finally:
        for path in (*fresh.values(), *kept.values()):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, hardware and threads that numbers may depend on; no date, so the same run gives the same text."""
    packages = {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": _version("matplotlib"), "course": _version("pg-ladder")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": cores}
    if device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {"python": platform.python_version(), **packages, "hardware": hardware, "threads": torch.get_num_threads(), "device": device}


# ---------------------------------------------------------------- the ledger


@dataclass(frozen=True)
class Ledger:
    """Every fact of a folder of results, as (name of the result, fact), in the order of the course's list of claims."""

    entries: Sequence[tuple[str, Fact]]

    @property
    def held(self) -> int:
        """How many facts hold."""
        return sum(fact.holds for _, fact in self.entries)

    @property
    def summary(self) -> str:
        """«N of M claims reproduced»."""
        return f"{self.held} of {len(self.entries)} claims reproduced"

    def table(self) -> str:
        """The facts as a table in plain text."""
        rows = [
            (fact.number or "–", "yes" if fact.holds else "NO", fact.found, fact.wanted, f"{fact.claim}  [{name}]")
            for name, fact in self.entries
        ]
        return text_table(("claim", "holds", "measured ± se", "expected", "what is claimed  [where it is measured]"), rows, right=[0])


def ledger(folder: Path | str) -> Ledger:
    """Collect the facts of all results in `folder`. Raises `CourseError` if there are none, or a file is damaged."""
    folder = Path(folder)
    results = [Result.load(path) for path in sorted(folder.glob("*.json"))]
    require(len(results) > 0, "folder", str(folder), "a folder with results: `python -m bandits NAME` makes one")
    entries = [(result.name, fact) for result in results for fact in result.facts]
    return Ledger(sorted(entries, key=lambda entry: (entry[1].number is None, entry[1].number or 0)))


def update_readme(path: Path | str, pieces: Mapping[str, str]) -> bool:
    """Write each piece between its markers, `<!-- name -->` and `<!-- /name -->`, of a text file; True if that changed it.

    Raises `CourseError` where the file or a pair of markers is missing; then nothing is written.
    """
    path = Path(path)
    try:
        text = changed = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CourseError(f"readme: got {str(path)!r} ({error.strerror}); allowed is a text file that is there") from None
    for name, piece in pieces.items():
        pattern = re.compile(f"(<!-- {re.escape(name)} -->).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
        require(pattern.search(changed) is not None, "readme", str(path), f"a file with the markers <!-- {name} --> and <!-- /{name} -->")
        changed = pattern.sub(lambda found, piece=piece: f"{found[1]}{piece}{found[2]}", changed)  # type: ignore[misc]
    if changed != text:
        replace_files({path: changed.encode()})
    return changed != text


# ---------------------------------------------------------------- into JSON and back


def plain(value: Any, digits: int | None = None, where: str = "value") -> Any:
    """`value` in what JSON knows: tensors and arrays become nested lists, dataclasses and mappings dicts with text keys.

    Floats are rounded to `digits` significant digits (None: kept). Raises `CourseError` naming the place of anything else.
    """
    if isinstance(value, str):
        require(value not in SPECIAL, where, value, f"any text but {', '.join(SPECIAL)}")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return _round(float(value), digits)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return plain((tensor.double() if tensor.is_floating_point() else tensor).numpy(), digits, where)
    if isinstance(value, np.ndarray | np.generic):
        require(value.dtype.kind in "biufU", where, f"an array of {value.dtype}", "numbers, truth values or text")
        return plain(value.tolist(), digits, where)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), digits, f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item, digits, where) for item in value]
    if isinstance(value, Path | torch.device):
        return str(value)
    raise CourseError(f"{where}: got {type(value).__name__}; allowed is numbers, text, tensors, arrays, and lists or dicts of them")


def _round(value: float, digits: int | None) -> float:
    return value if digits is None or not math.isfinite(value) else float(f"{value:.{digits}g}") + 0.0  # + 0.0: no minus zero


def _scalar(name: str, value: Any) -> Any:
    """One number, truth value or word out of whatever holds it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        require(int(np.prod(value.shape)) == 1, f"fact.{name}", f"shape {tuple(value.shape)}", "a single number")
        value = value.item()
    require(isinstance(value, bool | int | float | str), f"fact.{name}", value, "a number, a truth value or text")
    if isinstance(value, str):
        require(value not in SPECIAL, f"fact.{name}", value, f"any text but {', '.join(SPECIAL)}")
    return _round(value, FACT_DIGITS) if isinstance(value, float) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decode(value: Any) -> Any:
    """Undo the strings that stand for NaN and the infinities."""
    if isinstance(value, str):
        return SPECIAL.get(value, value)
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return {key: _decode(item) for key, item in value.items()} if isinstance(value, dict) else value


def _dump(value: Any, indent: str = "") -> str:
    """JSON: an entry of a dict or a list of lists on each line, plain lists 12 to a line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_dump(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(deeper + _dump(item, deeper) for item in value) + f"\n{indent}]"
    if isinstance(value, list):
        items = [_dump(item) for item in value]
        lines = [", ".join(items[start : start + NUMBERS_PER_LINE]) for start in range(0, len(items), NUMBERS_PER_LINE)]
        return "[" + f",\n{deeper}".join(lines) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        value = next(word for word, number in SPECIAL.items() if str(number) == str(value))
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _render(figure: Figure) -> bytes:
    from course.figures import png  # here, so that `import course.results` stays free of matplotlib

    return png(figure)


def _show(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _with_error(value: Value, error: float) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool) or not error > 0 or not math.isfinite(error):
        return _show(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error
    return f"{value:.{decimals}f} ± {error:.{decimals}f}" if decimals <= 8 else f"{value:.6g} ± {error:.1e}"


def _unwritable(folder: Path, error: OSError) -> CourseError:
    return CourseError(f"out: got {str(folder)!r} ({error.strerror or error}); allowed is a folder that can be written")


def _kind(body: Any) -> str:
    return str(body.get("schema", "no schema")) if isinstance(body, dict) else f"a JSON {type(body).__name__}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
