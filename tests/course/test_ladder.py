"""The registry: every rung complete and standing on another, its equation well-formed, and
estimators of one's own as good as ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from course import RUNGS, Estimator, ladder, register, replace
from course.errors import CourseError
from course.estimator import CHANGED, PART_KINDS
from course.lab import figures
from course.learner import Learner
from course.parts import (
    GAE,
    K1,
    K3,
    AllSamples,
    Baseline,
    Clip,
    DropSilentGroups,
    GroupMean,
    GroupStd,
    InReward,
    LeaveOneOut,
    NoBaseline,
    NoKL,
    SequenceMean,
    SequenceRatio,
    SequenceTIS,
    SoftGate,
    TotalReturn,
)
from course.registry import SOLID, LineStyle
from course.rollout import Rollout
from course.train.optim import SGD
from tests.helpers import bernoulli_bandit, close, make_rollout, stream


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before = dict(RUNGS)
    yield
    RUNGS.clear()
    RUNGS.update(before)


OURS = {name: rung for name, rung in RUNGS.items() if rung.kind != "own"}
every_rung = pytest.mark.parametrize("name", OURS)

# ---------------------------------------------------------------- the registry


@every_rung
def test_every_rung_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    rung = OURS[name]
    assert rung.name == name
    assert rung.title != name
    assert re.search(r"(19|20)\d\d", rung.source), rung.source  # a year
    assert all(isinstance(value, str | int | float) for value in rung.paper.values())
    with pytest.raises(TypeError):
        rung.paper["lr"] = 1.0  # type: ignore[index]


@every_rung
def test_from_every_rung_the_chain_leads_down_to_reinforce(name: str) -> None:
    climbed = [name]
    while (below := RUNGS[climbed[-1]].on) is not None:
        climbed.append(below)
        assert len(climbed) < len(RUNGS)
    assert climbed[-1] == "reinforce"


def test_no_two_rungs_are_the_same_estimator() -> None:
    assert all(ladder.name_of(rung.estimator) == name for name, rung in OURS.items())
    assert len({rung.title for rung in OURS.values()}) == len(OURS)


def test_rungs_branches_and_descendants_stand_where_the_derivation_puts_them() -> None:
    """Above or beside the ladder; PPO with a critic is a second way to GRPO: take the
    critic away.
    """
    on = {name: rung.on for name, rung in OURS.items()}
    assert (on["rloo"], on["remax"], on["opo"]) == ("baseline", "baseline", "baseline")
    assert (on["dr_grpo"], on["token_mean"], on["ppo_kl"], on["ppo_value"]) == (
        "group_mean",
        "group_std",
        "surrogate",
        "clip",
    )
    assert (on["dapo"], on["clip_higher"], on["gspo"], on["ppo"]) == (
        "clip_higher",
        "token_mean",
        "sequence_ratio",
        "ppo_value",
    )
    without_critic = replace(
        replace(replace(ladder.ppo, credit=TotalReturn()), value_coef=0.0), baseline=GroupMean()
    )
    assert without_critic == ladder.group_mean
    assert {rung.kind for rung in OURS.values()} == {"rung", "descendant", "branch"}


# from the papers: what each algorithm changes in the one it stands on, settings that are not the
# defaults included
REPLACED = {
    "reinforce": "—",
    "baseline": "baseline: BatchMean()",
    "surrogate": "surrogate: ImportanceSampling()",
    "clip": "surrogate: Clip()",
    "group_mean": "baseline: GroupMean()",
    "group_std": "scale: GroupStd()",
    "length_mean": "aggregation: SequenceMean()",
    "grpo": "kl: K3()",
    "rloo": "baseline: LeaveOneOut()",
    "remax": "baseline: Greedy()",
    "opo": "baseline: LengthWeighted()",
    "optimal_token": "baseline: OptimalToken()",
    "whitened": "scale: TokenWhitening()",
    "whitened_length": "aggregation: SequenceMean()",
    "whitened_to_go": "credit: RewardToGo()",
    "reinforce_pp": "kl: K1(beta=0.01, place=InReward())",
    "dr_grpo": "aggregation: ConstantLength()",
    "token_mean": "aggregation: TokenMean()",
    "clip_higher": "surrogate: Clip(epsilon_high=0.28)",
    "dapo": "sample_filter: DropSilentGroups()",
    "sequence_ratio": "ratio: SequenceMeanRatio()",
    "gspo": "surrogate: Clip(epsilon_low=0.0003, epsilon_high=0.0004)",
    "luspo": "aggregation: SequenceSum()",
    "cispo": "surrogate: CISPO(epsilon_high=0.28)",
    "sapo": "surrogate: SoftGate()",
    "tis_grpo": "correction: TokenTIS()",
    "answer_ratio": "ratio: SequenceRatio()",
    "vespo": "surrogate: GammaWeight()",
    "maxrl": "scale: MaxRL()",
    "gdpo": "scale: EachReward()",
    "lite_ppo": "scale: BatchStd()",
    "lite_cispo": "surrogate: CISPO(epsilon_high=0.28)",
    "prompt_mean": "aggregation: GroupTokenMean()",
    "scale_rl": "sample_filter: DropSilentGroups()",
    "leader": "scale: Leader()",
    "pkpo": "scale: PKPO()",
    "pass_k_training": "scale: PassKTraining()",
    "plus_minus": "baseline: Constant(b=0.5)",
    "w_reinforce": "scale: PositivesTimes()",
    "high_entropy": "sample_filter: HighEntropy()",
    "clip_cov": "sample_filter: ClipCov()",
    "no_clip": "surrogate: ImportanceSampling()",
    "m2po": "sample_filter: SecondMoment()",
    "opsm": "sample_filter: OffPolicySequences()",
    "dppo_tv": "surrogate: DivergenceTV()",
    "dppo_kl": "surrogate: DivergenceKL()",
    "gmpo": "surrogate: GeometricMean()",
    "mirror_descent": "surrogate: MirrorDescent()",
    "kimi": "ratio: SequenceRatio()",
    "tapered": "surrogate: Tapered()",
    "topr": "ratio: SequenceRatio()",
    "asymre": "baseline: BelowMean()",
    "ppo_value": "baseline: Value()",  # its coefficient is no part
    "ppo": "credit: GAE()",
    "ppo_long": "credit: LengthAdaptiveGAE()",
    "distillation": "credit: TeacherLogRatio()",
    "ppo_kl": "kl: ExactKL(beta=1.0, anchor=OldPolicy())",
    "ppo_kl_adaptive": (
        "kl: ExactKL(beta=AdaptiveBeta(initial=1.0, target=0.01), anchor=OldPolicy())"
    ),
    "group_whitened": "scale: TokenWhitening()",
    "group_whitened_length": "aggregation: SequenceMean()",
    "reinforce_pp_baseline": "kl: K2(beta=0.01)",
}


def test_what_was_replaced_is_what_the_papers_replace() -> None:
    assert {name: rung.replaced for name, rung in OURS.items()} == REPLACED


def test_the_defaults_are_the_published_settings() -> None:
    """PPO's ε = .2, GRPO's population std, GAE's λ = .95, SAPO's temperatures, β = .04, halves and
    doubles about d = .01.
    """
    assert (Clip().epsilon_low, Clip().high, Clip().ratio_cap, Clip().dual_clip) == (
        0.2,
        0.2,
        None,
        None,
    )
    assert (GroupStd().ddof, GroupStd().eps) == (0, 1e-6)
    assert (GAE().gamma, GAE().gae_lambda) == (1.0, 0.95)
    assert (SoftGate().tau_positive, SoftGate().tau_negative) == (1.0, 1.05)
    assert K3().beta == 0.04
    assert not SequenceMean().count_empty


def test_select_keeps_the_order_asked_for() -> None:
    assert [rung.name for rung in ladder.select(["grpo", " rloo "])] == ["grpo", "rloo"]
    assert len(ladder.select()) == 8
    with pytest.raises(CourseError, match="at least one name"):
        ladder.select([])


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(CourseError, match=r"^unknown rung 'dr_grop': did you mean 'dr_grpo'\?$"):
        ladder.get("dr_grop")
    with pytest.raises(CourseError, match="unknown rung 'xyzzy': known: reinforce, baseline"):
        ladder.get("xyzzy")


def test_a_name_cannot_stand_for_two_estimators() -> None:
    with pytest.raises(CourseError, match="'grpo', which stands for another estimator already"):
        register("grpo", ladder.dapo)
    with pytest.raises(CourseError, match="Python identifier"):
        register("my rung", ladder.grpo)
    with pytest.raises(CourseError, match=r"rung\.style: got .*red"):
        register("mine", replace(ladder.grpo, kl=K3(beta=0.1)), style=LineStyle("red", SOLID))
    with pytest.raises(CourseError, match=r"rung\.kind: got 'best'"):
        register("mine", replace(ladder.grpo, kl=K3(beta=0.1)), kind="best")
    assert (
        register("grpo", ladder.grpo) is OURS["grpo"]
    )  # naming it again does not take it off the ladder
    assert len(ladder.select()) == 8


@every_rung
def test_every_rung_of_the_course_brings_its_line(name: str) -> None:
    """One call carries everything: the figures read it from there."""
    style = OURS[name].style
    assert style is not None
    assert figures.style_of(name) == {"color": style.colour, "linestyle": style.dashes}


def test_an_estimator_of_your_own_may_bring_its_line() -> None:
    before = figures.style_of("mine")
    mine = replace(ladder.grpo, kl=K3(beta=0.1))
    register("mine", mine)
    assert figures.style_of("mine") == before  # by its name alone, in every process
    register("mine", mine, style=LineStyle("#123456", SOLID))
    assert figures.style_of("mine") == {"color": "#123456", "linestyle": "-"}


# ---------------------------------------------------------------- equations


def coloured(latex: str) -> int:
    return latex.count(rf"\color{{{CHANGED}}}")


@every_rung
def test_the_equation_is_well_formed(name: str) -> None:
    latex = OURS[name].estimator.latex()
    depth = 0
    for previous, char in zip(" " + latex, latex, strict=False):
        depth += (char == "{" and previous != "\\") - (char == "}" and previous != "\\")
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"\\left(?![a-z])", latex)) == len(re.findall(r"\\right(?![a-z])", latex))
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", latex) == ["aligned", "aligned"]
    body = latex.removeprefix(r"\begin{aligned}").removesuffix(r"\end{aligned}")
    assert all(line.count("&") == 1 for line in body.split(r"\\ "))
    assert body.startswith(r"L(\theta)&=")  # J is the expected reward, and an objective is not
    assert "None" not in latex
    assert OURS[name].estimator._repr_latex_() == f"$\\displaystyle {latex}$"


@every_rung
def test_the_equation_colours_what_differs_from_the_rung_below_and_nothing_else(name: str) -> None:
    estimator = OURS[name].estimator
    assert coloured(estimator.latex(colour=None)) == 0
    if name == "reinforce":
        assert coloured(estimator.latex()) == 0
        return
    places = {*estimator.changed} & {*PART_KINDS}
    assert len(places) == 1
    pieces = re.findall(rf"\{{\\color\{{{CHANGED}\}}\{{(.*?)\}}\}}(?=[^}}]|$)", estimator.latex())
    assert len(pieces) == coloured(estimator.latex()) >= 1
    part = getattr(estimator, places.pop())
    core = part.latex.split("{")[0] or part.latex
    assert any(core in piece for piece in pieces)
    # with the colours taken out it is the plain equation
    plain = estimator.latex(colour=None)
    stripped = re.sub(r"[{}]", "", estimator.latex().replace(rf"\color{{{CHANGED}}}", ""))
    assert stripped == re.sub(r"[{}]", "", plain)


def test_a_part_that_was_taken_away_is_coloured_too() -> None:
    """Where the new part is «none», what stands in its place is shown in colour: − 0, or all
    samples.
    """
    assert coloured(replace(ladder.grpo, kl=NoKL()).latex()) == 1
    assert coloured(replace(ladder.clip, baseline=NoBaseline()).latex()) == 1
    assert coloured(replace(ladder.dapo, sample_filter=Estimator().sample_filter).latex()) == 1


def test_equations_on_one_line_for_the_terminal() -> None:
    assert ladder.reinforce.text() == "1/N Σ_i Σ_t [A·log π],  A = R"
    assert ladder.surrogate.text() == "1/N Σ_i Σ_t [ρ·A],  A = R − mean_batch(R)"
    assert (
        ladder.grpo.text()
        == "1/N Σ_i 1/|o_i| Σ_t [min(ρ·A, clip(ρ, 0.8, 1.2)·A) − 0.04·k3(π‖ref)],  A = (R −"
        " mean_group(R)) / (std_group(R) + 1e-06)"
    )
    assert str(ladder.rloo) == "1/N Σ_i Σ_t [A·log π],  A = R − mean_others(R)"
    assert ladder.dapo.text().endswith(",  drop silent groups")
    assert "ρ = (π/π_old)^(1/|o|) per sequence" in ladder.gspo.text()
    assert ladder.reinforce_pp.text().endswith("r ← r − 0.01·k1(π‖ref)")
    assert (
        replace(ladder.reinforce, entropy_coef=0.01).text()
        == "1/N Σ_i Σ_t [A·log π + 0.01·H],  A = R"
    )
    assert "- 0.5·½(V" not in ladder.ppo.text()
    assert "− 0.5·½(V − R)²" in ladder.ppo.text()


@every_rung
def test_every_rung_has_an_equation_of_its_own(name: str) -> None:
    for shown in (
        lambda estimator: estimator.text(),
        lambda estimator: estimator.latex(colour=None),
    ):
        same = [
            other
            for other, rung in OURS.items()
            if shown(rung.estimator) == shown(OURS[name].estimator)
        ]
        assert same == [name]


# ---------------------------------------------------------------- diff and replace


def test_diff_names_what_differs_with_both_values() -> None:
    assert ladder.grpo.diff(ladder.grpo) == {}
    assert ladder.grpo.diff(ladder.length_mean) == {"kl": (K3(), NoKL())}
    found = ladder.dapo.diff(ladder.group_std)
    assert list(found) == ["surrogate", "aggregation", "sample_filter"]
    assert found["surrogate"] == (Clip(0.2, 0.28), Clip(0.2))
    assert ladder.ppo.diff(ladder.clip).keys() == {"credit", "baseline", "value_coef"}


def test_an_estimator_is_its_parts_wherever_it_was_made_from() -> None:
    again = replace(replace(ladder.grpo, baseline=LeaveOneOut()), baseline=GroupMean())
    assert again == ladder.grpo
    assert again.below != ladder.grpo.below
    assert again.changed == {"baseline"}
    assert ladder.name_of(again) == "grpo"


def test_a_replacement_that_is_no_part_is_refused() -> None:
    with pytest.raises(
        CourseError, match=r"replace: got 'advantage'; allowed is one of credit, baseline"
    ):
        replace(ladder.grpo, advantage=GroupStd())
    with pytest.raises(
        CourseError, match=r"estimator\.baseline: got GroupStd.*a Baseline of course\.parts"
    ):
        replace(ladder.grpo, baseline=GroupStd())


# ---------------------------------------------------------------- one's own


def test_a_new_algorithm_in_ten_lines_is_trained_like_any_other() -> None:
    """The group's best answer as the baseline: A ≤ 0, and 0 for the winners."""

    @dataclass(frozen=True)
    class GroupMax(Baseline):
        symbol = r"\max_j R_j"
        plain = "max_group(R)"

        def __call__(self, returns: Tensor, rollout: Rollout) -> Tensor:
            return returns.amax(-1, keepdim=True).unsqueeze(-1)

    mine = replace(ladder.grpo, baseline=GroupMax())
    rung = register("against_the_best", mine)
    assert (rung.on, rung.replaced, rung.kind) == ("grpo", "baseline: GroupMax()", "own")
    assert ladder.select(["against_the_best", "grpo"])[0] is rung
    assert rf"-{{\color{{{CHANGED}}}{{\max_j R_j}}}}" in mine.latex()
    assert "R − max_group(R)" in mine.text()
    unscaled = replace(mine, scale=Estimator().scale)
    frozen = unscaled.freeze(make_rollout([[[1.0], [3.0], [2.0]]], ref_log_prob=[[[-1.0]] * 3]))
    close(frozen.advantage, [[[-2.0], [0.0], [-1.0]]])
    problem = bernoulli_bandit((20,), reference="start")
    history = Learner(problem, rung.estimator, SGD(0.3), stream((20,))).train(60)
    reward = history["expected_reward"].mean(-1)
    assert reward[0] < 0.6 < 0.7 < reward[-1]


OWN_FILE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from course import Estimator, ladder, replace
from course.parts import Baseline, K3, SequenceRatio


@dataclass(frozen=True)
class Half(Baseline):
    """b = share · mean(group)."""

    share: float = 0.5
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, returns, rollout):
        return self.share * returns.mean(-1, keepdim=True).unsqueeze(-1)


half = replace(ladder.grpo, baseline=Half())
quarter = replace(half, baseline=Half(0.25))
number = 3
'''


def test_an_estimator_is_loaded_from_a_file_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN_FILE)
    half = ladder.get(f"{path}:half")
    assert (half.name, half.on, half.kind, half.source) == ("half", "grpo", "own", "your own")
    assert half.replaced == "baseline: Half()"
    assert (
        ladder.get(f"{path}:half").estimator == half.estimator
    )  # a second time is no second estimator
    assert ladder.get(f"{path}:quarter").on == "half"
    assert ladder.get("half").estimator is half.estimator
    assert [rung.name for rung in ladder.select(["clip", f"{path}:half"])] == ["clip", "half"]
    rollout = make_rollout([[[1.0], [0.0]]], ref_log_prob=[[[-1.0]] * 2])
    close(
        replace(half.estimator, scale=Estimator().scale).freeze(rollout).advantage,
        [[[0.75], [-0.25]]],
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "nowhere.py:half",
            "nowhere.py', which is no file; allowed is a registered name or FILE.py:NAME",
        ),
        ("mine.py:number", "mine.py:number: got int; allowed is an Estimator"),
        ("mine.py:missing", "mine.py:missing: got no such name; allowed is an Estimator"),
    ],
)
def test_a_file_without_the_estimator_is_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_FILE)
    with pytest.raises(CourseError, match=re.escape(says)):
        ladder.get(f"{tmp_path}/{name}")


def test_two_files_may_not_use_one_name_for_two_estimators(tmp_path: Path) -> None:
    for folder, share in (("a", "0.5"), ("b", "0.6")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            OWN_FILE.replace("share: float = 0.5", f"share: float = {share}")
        )
    ladder.get(f"{tmp_path}/a/mine.py:half")
    with pytest.raises(CourseError, match="'half', which stands for another estimator already"):
        ladder.get(f"{tmp_path}/b/mine.py:half")


def test_a_part_without_a_symbol_is_shown_by_its_class() -> None:
    @dataclass(frozen=True)
    class Nameless(Baseline):
        def __call__(self, returns: Tensor, rollout: Rollout) -> float:
            return 0.0

    mine = replace(ladder.rloo, baseline=Nameless())
    assert r"\mathrm{Nameless}" in mine.latex()
    assert mine.text().endswith("A = R − Nameless")


def test_everything_at_once_still_makes_an_equation() -> None:
    """All nine parts replaced, entropy and a penalty in the reward: nothing is shown twice or left
    out.
    """
    whole = replace(
        replace(ladder.gspo, ratio=SequenceRatio(), kl=K1(beta=3e-5, place=InReward())),
        sample_filter=DropSilentGroups(),
        correction=SequenceTIS(1.75),
        entropy_coef=0.01,
    )
    latex = whole.latex()
    for piece in (
        r"3\times 10^{-5}",
        r"\mathcal H",
        r"\max R\ne\min R",
        r"\leftarrow",
        r"\frac1{|o_i|}",
        r"10^{-6}",
        r"\min(\kappa_i,1.75)",
        r"c_{i,t}\,\min",
        r"\kappa_i=\prod_t",
    ):
        assert latex.count(piece) == 1, piece
    assert torch.isfinite(
        whole.freeze(make_rollout([[[1.0], [0.0]]], ref_log_prob=[[[-1.0]] * 2])).weight
    ).all()


def test_a_part_of_ones_own_is_named_also_where_it_derives_from_one_that_is_implied() -> None:
    """No baseline, no KL, every sample, whole returns and token ratios need no words; what only
    descends from them does.
    """

    class Half(NoBaseline):
        plain, symbol = "half", "h"

        def __call__(self, returns: Tensor, rollout: Rollout) -> float:
            return 0.5

    class Best(AllSamples):
        plain, symbol = "only the best", "best"

        def __call__(self, rollout: Rollout) -> Tensor:  # type: ignore[override]
            return rollout.total_reward > 0

    class Renamed(NoBaseline):
        plain, symbol = "nothing", "n"

    first = Estimator()
    same = Estimator(baseline=Renamed())
    assert (same.text(), same.latex()) == (first.text(), first.latex())
    own = Estimator(baseline=Half(), sample_filter=Best())
    assert "A = R − half" in own.text()
    assert own.text().endswith("only the best")
    assert "R_i-h" in own.latex()
    assert "best" in own.latex()
