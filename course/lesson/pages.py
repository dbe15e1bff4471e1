"""The generated pages of notebooks/: equations with functions and tests, confusions, cheat sheet.

The list of claims is generated here as well, and the pages of `course.lesson.reference`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course import ladder
from course.errors import require
from course.exact import microscope
from course.lab import claims, ledger
from course.lesson import at_work, build, conventions, reference
from course.lesson.confusions import CONFUSIONS
from course.lesson.reference import PACKAGES
from course.lesson.syllabus import folder, info
from course.train.files import replace_files

EQUATION = re.compile(r"\beq:([a-z0-9]+(?:-[a-z0-9]+)*)")
ANSWERS = re.compile(r"<!--\s*answers:\s*([\d,\s]+)-->")

SYMBOLS = (  # symbol, variable, shape, unit, meaning
    (
        r"$\pi_\theta$",
        "`policy.log_prob` (its logarithm)",
        "[…, Q, G, T]",
        "nats",
        "the current policy's probability of a sampled token",
    ),
    (
        r"$\pi_{old}$",
        "`rollout.log_prob` (its logarithm)",
        "[…, Q, G, T]",
        "nats",
        "the policy before the updates, which sampled unless there is a μ",
    ),
    (
        r"$\mu$",
        "`rollout.sampler_log_prob` (its logarithm)",
        "[…, Q, G, T]",
        "nats",
        "the policy that sampled, where that is not π_old",
    ),
    (
        r"$\pi_{ref}$",
        "`rollout.ref_log_prob` (its logarithm)",
        "[…, Q, G, T]",
        "nats",
        "the reference policy, frozen",
    ),
    (
        r"$r_{i,t}$",
        "`rollout.reward`",
        "[…, Q, G, T]",
        "reward",
        "reward of a token; a verifiable reward sits on the last",
    ),
    (r"$R_i$", "`rollout.total_reward`", "[…, Q, G]", "reward", "sum of a sample's rewards"),
    (
        r"$R_{i,t}$",
        "`frozen.target`, `credit(…)`",
        "[…, Q, G, T]",
        "reward",
        "what a token is credited with",
    ),
    (
        r"$b$",
        "`baseline(…)`",
        "broadcasts to […, Q, G, T]",
        "reward",
        "what is subtracted from the credit",
    ),
    (
        r"$A_{i,t}$",
        "`frozen.advantage`",
        "[…, Q, G, T]",
        "reward, or none once divided by a std",
        "the advantage, a constant to the gradient",
    ),
    (
        r"$\rho_{i,t}$",
        "`estimator.log_ratio(…)` (its logarithm)",
        "[…, Q, G, T]",
        "–",
        "importance ratio, per token or sequence",
    ),
    (
        r"$\kappa_{i,t}$",
        "`log_kappa(rollout)` (its logarithm)",
        "[…, Q, G, T]",
        "–",
        "π_old over μ, constant during the updates",
    ),
    (
        r"$c_{i,t}$",
        "`frozen.correction`",
        "[…, Q, G, T]",
        "–",
        "weight of a token's surrogate for a sampler that is not π_old",
    ),
    (r"$w_{i,t}$", "`frozen.weight`", "[…, Q, G, T]", "–", "weight of a token in the objective"),
    (r"$|o_i|$", "`rollout.length`", "[…, Q, G]", "tokens", "tokens that the policy chose"),
    (
        r"$V_{i,t}$",
        "`rollout.value`, `policy.value`",
        "[…, Q, G, T]",
        "reward",
        "the critic's value of the state before a token",
    ),
    (r"$\varepsilon$", "`epsilon_low`, `epsilon_high`", "number", "–", "half-widths of the clip"),
    (r"$\beta$", "`kl.beta`", "number", "reward per nat", "strength of the KL penalty"),
    (
        r"$\gamma,\ \lambda$",
        "`gamma`, `gae_lambda`",
        "number",
        "–",
        "discount per token, and GAE's mixture",
    ),
    (r"$G$", "`group`", "number", "samples", "samples of one prompt"),
    (
        r"$J,\ \nabla J$",
        "`exact.objective`, `exact.gradient`",
        "number, [n]",
        "reward",
        "expected reward and its exact gradient",
    ),
    (
        r"$L(\theta)$",
        "`estimator.objective(…)`",
        "[…]",
        "–",
        "the objective that is climbed for its gradient; its value is not $J$",
    ),
    (
        r"$\hat g$",
        "`exact.microscope(…)`",
        "[n]",
        "reward",
        "an estimator's gradient on one batch of samples",
    ),
)


# what a problem must provide for an estimator, and the fields of rollout and policy that need it
NEEDS = (
    ("critic", ("rollout.value", "policy.value")),
    ("reference", ("rollout.ref_log_prob", "rollout.ref_log_dist")),
    ("greedy answers", ("rollout.greedy_reward",)),
)


@dataclass(frozen=True)
class Place:
    """Where a tag is: the file, and the function or class around it."""

    file: str
    name: str


def tags_in_lessons() -> dict[str, list[str]]:
    """Equation id → numbers of the lessons whose prose has it (each id belongs to one)."""
    found: dict[str, list[str]] = {}
    for lesson in build.written():
        for _, text in build.prose(lesson):
            for tag in EQUATION.findall(text):
                found.setdefault(tag, []).append(lesson.number)
    return found


def tags_in_code(packages: tuple[str, ...] = PACKAGES) -> dict[str, list[Place]]:
    """Equation id → the functions and classes of the packages whose source has it."""
    root = folder().parent
    found: dict[str, list[Place]] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            if (root / "course" / "lesson") in path.parents:
                continue
            text = path.read_text(encoding="utf-8")
            if "eq:" in text:
                for tag, name in _tagged(text):
                    found.setdefault(tag, []).append(Place(path.relative_to(root).as_posix(), name))
    return found


def _tagged(text: str) -> Iterator[tuple[str, str]]:
    """Yield (id, innermost function or class) of every tag in a module."""
    spans = [
        (node.lineno, node.end_lineno or node.lineno, name)
        for name, node in _definitions(ast.parse(text), "")
    ]
    for number, line in enumerate(text.splitlines(), 1):
        for tag in EQUATION.findall(line):
            around = [(start, name) for start, end, name in spans if start <= number <= end]
            yield tag, max(around)[1] if around else "(module)"


def _definitions(node: ast.AST, above: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{above}.{child.name}" if above else child.name
            yield name, child
            yield from _definitions(child, name)


def equations_page() -> str:
    """EQUATIONS.md: every equation id with its lesson, functions and tests; then the symbols."""
    lessons, code, tests = tags_in_lessons(), tags_in_code(), tags_in_code(("tests",))
    lines = [
        "# Equations, functions, tests\n",
        (
            "Generated by `python -m course notebooks --pages`. Search for an id to find its three"
            " places.\n"
        ),
        "| id | lesson | function | numerical test |",
        "| --- | --- | --- | --- |",
    ]
    for tag in sorted(lessons, key=lambda each: (lessons[each][0], each)):
        where = "<br>".join(f"[`{p.name}`](../{p.file})" for p in code.get(tag, []))
        proof = "<br>".join(f"[`{p.name}`](../{p.file})" for p in tests.get(tag, []))
        number = lessons[tag][0]
        mark = f'<a id="eq-{tag}"></a>`eq:{tag}`'
        lines.append(f"| {mark} | {reference.to_lesson(info(number))} | {where} | {proof} |")
    lines += [
        "\n## Symbols\n",
        "| symbol | variable | shape | unit | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in SYMBOLS]
    return "\n".join(lines) + "\n"


def confusions_page() -> str:
    """CONFUSIONS.md: the lesson and heading that answer each common question."""
    where: dict[int, list[str]] = {}
    for lesson in build.written():
        for heading, text in build.prose(lesson):
            for group in ANSWERS.findall(text):
                for number in (int(part) for part in group.replace(",", " ").split()):
                    require(
                        number in CONFUSIONS,
                        f"{lesson.file}: answers",
                        number,
                        f"a number of course/lesson/confusions.py, {min(CONFUSIONS)} to"
                        f" {max(CONFUSIONS)}",
                    )
                    quoted = heading.strip("“”").replace("|", "\\|")
                    where.setdefault(number, []).append(
                        f"[{lesson.number}]({lesson.file}.ipynb), “{quoted}”"
                    )
    lines = [
        "# What people ask, and where it is answered\n",
        "Generated by `python -m course notebooks --pages`.\n",
        "| question | asked in | answered in |",
        "| --- | --- | --- |",
    ]
    for number, (question, asked) in CONFUSIONS.items():
        lines.append(
            f"| {number}. {question} | {asked} | {'<br>'.join(where.get(number, ['(to come)']))} |"
        )
    return "\n".join(lines) + "\n"


def claims_page() -> str:
    """CLAIMS.md: the numbered list of claims, with the results that measure each."""
    return claims.page(ledger.ledger(folder().parent / "figures").measured)


def slips_page() -> str:
    """SLIPS.md: see `reference.slips_page`."""
    return reference.slips_page(tags_in_lessons())


def cheat_sheet() -> str:
    """CHEATSHEET.md: every objective, what it needs, its bias and spread, its TRL and verl names.

    Bias and spread are exact, on the bandit B3.
    """
    exact, names = on_b3(), conventions.rungs()
    lines = [
        "# Cheat sheet: every objective on one page\n",
        (
            "Generated from the registry by `python -m course notebooks --pages`. Bias and spread"
            " are those of the gradient on the bandit B3 (π = (.5, .3, .2), Bernoulli means (.2,"
            " .5, .8), one prompt, G = 4, on policy, a reference of (.2, .3, .5), the exact value"
            " as the critic's), by enumeration, as a share of ‖∇J‖. TRL's and verl's options:"
            " `course/CONVENTIONS.md` has their footnotes.\n"
        ),
        "| name | replaces | objective | needs | bias | spread | in TRL | in verl |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rung in ladder.RUNGS.items():
        if rung.kind == "own":
            continue
        estimator = rung.estimator
        needs = [what for what, asked in NEEDS if any(field in estimator.needs for field in asked)]
        needs += ["groups"] if any(p.scope == "group" for p in estimator.parts.values()) else []
        bias, spread = exact[name]
        row = (
            f"**{name}**",
            f"`{rung.replaced}`" if rung.on else "—",
            f"`{estimator.text()}`",
            ", ".join(needs) or "samples",
            f"{bias:.2f}",
            f"{spread:.2f}",
        )
        allowed = f"a table of rungs with a row for `{name}`"
        require(name in names, "course/CONVENTIONS.md", "no such row", allowed)
        lines.append(
            "| " + " | ".join(conventions.cell(text) for text in (*row, *names[name])) + " |"
        )
    return "\n".join(lines) + "\n"


def on_b3() -> dict[str, tuple[float, float]]:
    """Rung → bias and spread of its gradient on B3, divided by ‖∇J‖; exact, by enumeration."""
    from bandits.theory.cases import cases  # imported late: the core does not depend on bandits

    on_policy = cases()["on policy"]
    found = {}
    for name, rung in ladder.RUNGS.items():
        seen = microscope(rung.estimator, on_policy, 4)
        found[name] = seen.relative_bias, float(seen.std / seen.gradient.norm())
    return found


def conventions_page() -> str:
    """CONVENTIONS.md: course/CONVENTIONS.md with a heading for every convention, to link to."""
    head, _, rest = conventions.PATH.read_text(encoding="utf-8").partition(
        f"## {conventions.DIFFERS}\n"
    )
    part, _, others = rest.partition("\n## ")
    below = [line for line in part.strip().splitlines() if not line.startswith("|")]
    title, _, opening = head.partition("\n")
    where: dict[str, list[str]] = {}
    for lesson in build.written():
        for name in at_work.load(lesson).named:
            where.setdefault(name, []).append(reference.to_lesson(lesson))
    lines = [
        title,
        "",
        "Generated from course/CONVENTIONS.md by `python -m course notebooks --pages`.",
        f"{opening}## {conventions.DIFFERS}\n",
    ]
    trl, verl = conventions.versions()
    for row in conventions.conventions().values():
        says = [("ours", row.ours), (trl, row.trl), (verl, row.verl), ("source", row.source)]
        says.append(("held by", row.tests.replace("` `", "`, `")))
        says.append(("lessons", ", ".join(where.get(row.name, []))))
        lines.append(f"### {row.name}\n")
        lines += [f"- **{who}**: {said}" for who, said in says if said] + [""]
    return "\n".join([*lines, *below]).strip() + f"\n\n## {others.strip()}\n"


PAGES = {
    "EQUATIONS.md": equations_page,
    "CONFUSIONS.md": confusions_page,
    "CLAIMS.md": claims_page,
    "CHEATSHEET.md": cheat_sheet,
    "CONVENTIONS.md": conventions_page,
    "BIBLIOGRAPHY.md": reference.bibliography_page,
    "GLOSSARY.md": reference.glossary_page,
    "SLIPS.md": slips_page,
}


def write() -> list[Path]:
    """Write all generated pages; returns those that changed."""
    changed = []
    for name, make in PAGES.items():
        path, text = folder() / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace_files({path: text.encode("utf-8")})
            changed.append(path)
    return changed
