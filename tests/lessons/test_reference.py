"""Sources, glossary and slips: every citation is a link, every place that a page names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from course import ladder
from course.errors import CourseError
from course.lab.result import Result
from course.lesson import build, info, pages, reference, sources
from course.lesson.question import Question

ROOT = Path(__file__).parents[2]
LESSONS = [lesson.number for lesson in build.written()]
each_lesson = pytest.mark.parametrize("number", LESSONS)
PPO = "https://arxiv.org/abs/1707.06347"


# ---------------------------------------------------------------- citations


@pytest.mark.parametrize(
    "said",
    [
        "Schulman et al. 2017",
        "Schulman et al. (2017)",
        "Schulman et al., 2017",
        "Schulman et al.\n2017",
    ],
)
def test_a_citation_becomes_a_link_to_its_source(said: str) -> None:
    assert sources.linked(f"See {said}, eq. 7.") == f"See [{said}]({PPO}), eq. 7."
    assert sources.cited(said) == {"Schulman et al. 2017"}


def test_and_is_as_good_as_an_ampersand() -> None:
    assert sources.linked("Davis and Recht (2025)").startswith("[Davis and Recht (2025)](https://")


def test_a_work_without_an_address_leads_to_its_row_of_the_bibliography() -> None:
    said = sources.linked("Xu 2025, eq. 6, and Xu's eq. 4")
    row = "BIBLIOGRAPHY.md#xu-2025"
    assert said == f"[Xu 2025]({row}), eq. 6, and [Xu]({row})'s eq. 4"
    assert '<a id="xu-2025"></a>' in reference.bibliography_page()


def test_two_articles_of_one_title_are_told_apart_by_their_authors() -> None:
    said = sources.linked("“From PPO to GRPO” (Xu) and “From PPO to GRPO” (Thaker)")
    assert "[Xu](BIBLIOGRAPHY.md#xu-2025)" in said
    assert "[Thaker](https://sahilt.com/from-ppo-to-grpo)" in said


@pytest.mark.parametrize(
    "text",
    [
        "`Schulman et al. 2017`",
        "```\nSchulman et al. 2017\n```",
        "$Schulman et al. 2017$",
        "[see Schulman et al. 2017](https://x.org)",
        "# By Schulman et al. 2017",
        "<!-- Schulman et al. 2017 -->",
        "Hsu 2025 and MySchulman 2020",
        "Schulman 20201",
    ],
)
def test_no_link_in_code_mathematics_headings_links_and_other_words(text: str) -> None:
    assert sources.linked(text) == text


def test_an_arxiv_number_is_a_link_once() -> None:
    link = "[2503.14476](https://arxiv.org/abs/2503.14476)"
    said = sources.linked("(2503.14476), `2503.14476`, Yu et al. 2025")
    assert said == f"({link}), `2503.14476`, [Yu et al. 2025](https://arxiv.org/abs/2503.14476)"
    assert sources.linked(link) == link


def test_a_citation_and_its_own_number_are_one_link_and_another_number_is_its_own() -> None:
    one = "Ahmadian et al. 2024 (2402.14740)"
    assert sources.linked(f"{one}, eq. 9") == f"[{one}](https://arxiv.org/abs/2402.14740), eq. 9"
    assert sources.linked("Ahmadian et al. 2024 (2503.14476)") == (
        "[Ahmadian et al. 2024](https://arxiv.org/abs/2402.14740)"
        " ([2503.14476](https://arxiv.org/abs/2503.14476))"
    )


def test_a_question_links_what_it_cites_in_its_words_and_its_feedback() -> None:
    cites = "Ahmadian et al. 2024: 1 < 2 & `b`"
    asked = Question("a", cites, {"x": cites, "y": "No such thing."}, "x")
    link = '<a href="https://arxiv.org/abs/2402.14740" target="_blank" rel="noopener">'
    html = f"{link}Ahmadian et al. 2024</a>: 1 &lt; 2 &amp; <code>b</code>"
    assert html in asked.feedback("x")
    assert asked.static.count(html) == 2
    head = asked.widget(lambda _: None).children[0]
    assert html in head.value


def test_a_citation_of_no_source_is_seen() -> None:
    text = "[Xu 2025](x.md), Nobody & Else 1999, Some et al. (2001), in January 2025, In 1998"
    assert list(sources.unknown(text)) == ["Nobody & Else 1999", "Some et al. (2001"]


@each_lesson
def test_no_citation_of_a_lesson_stays_without_a_link(number: str) -> None:
    for cell in build.cells(info(number)).cells:
        if cell.cell_type == "markdown":
            found = list(sources.unknown(cell.source))
            assert found == [], f"{found}: a work for notebooks/src/sources.toml?"


def test_every_work_that_code_and_facts_cite_is_a_source() -> None:
    """Docstrings, the sources of rungs and facts, and the page of conventions."""
    said = [(rung.name, rung.source) for rung in ladder.RUNGS.values()]
    said += [
        (path.name, fact.source)
        for path in sorted((ROOT / "figures").glob("*.json"))
        for fact in Result.load(path).facts
    ]
    conventions = ROOT / "course" / "CONVENTIONS.md"
    said.append((conventions.name, conventions.read_text(encoding="utf-8")))
    for path in reference.python_files(ROOT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                said.append((path.name, ast.get_docstring(node) or ""))
    lost = {(name, each) for name, text in said for each in sources.unknown(sources.linked(text))}
    assert lost == set()


def test_every_source_is_cited_and_has_a_row() -> None:
    cited = {*reference.cited_in_lessons(), *reference.cited_in_code()}
    cited |= {entry["article"] for entry in reference.slips()}
    known = sources.load()
    assert set(known) - cited == set()
    page = reference.bibliography_page()
    for source in known.values():
        assert page.count(f'<a id="{source.anchor}"></a>') == 1
    words = [word for source in known.values() for word in (source.key, *source.also)]
    assert len(set(words)) == len(words), "one word for two works"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('authors = "A"', "no title"),
        ('authors = "A"\ntitle = "T"\nlink = "arxiv.org"', "link"),
        ('authors = "A"\ntitle = "T"\nlink = "https://x.org/(1)"', "%28"),
        ('authors = "A"\ntitle = ""', "title"),
        ('authors = "A"\ntitle = "T"\nyears = 1', "years"),
    ],
)
def test_a_wrong_source_is_refused_by_its_name_and_field(
    entry: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.toml").write_text(f'["Some 2001"]\n{entry}\n', encoding="utf-8")
    monkeypatch.setattr(sources, "described", lambda: tmp_path)
    with pytest.raises(CourseError, match=re.escape("Some 2001")) as refused:
        sources.load()
    assert said in str(refused.value)


# ---------------------------------------------------------------- glossary and slips


def test_a_lesson_uses_each_word_that_it_introduces() -> None:
    texts = {
        lesson.number: reference.loose(
            build.source(lesson).read_text(encoding="utf-8").replace("\n# ", "\n")
        )
        for lesson in build.written()
    }
    lost = [
        (term, entry["lesson"])
        for term, entry in reference.terms().items()
        if not any(form in texts[entry["lesson"]] for form in reference.forms(term, entry))
    ]
    assert lost == []


def test_every_part_and_term_stands_in_the_glossary() -> None:
    page = reference.glossary_page()
    for part in reference.parts():
        assert f"| `{part.__name__}` |" in page
    for term in reference.terms():
        assert f"| **{term}** |" in page


def test_each_slip_leads_to_an_equation_or_a_heading_that_exists() -> None:
    equations = pages.tags_in_lessons()
    for entry in reference.slips():
        if "equation" in entry:
            assert entry["equation"] in equations, entry
        else:
            headings = {heading for heading, _ in build.prose(info(entry["lesson"]))}
            assert entry["heading"] in headings, entry
