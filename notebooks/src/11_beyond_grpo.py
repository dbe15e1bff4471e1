# %% [markdown]
# # 11 · Beyond GRPO
#
# After this lesson you can
#
# - read off any advantage of right and wrong answers what it maximises, as a curve $w(p)$;
# - compare all surrogates by one function, the weight $\varphi(\rho)$ of a sample;
# - say before an update whether it costs entropy;
# - say what happens to the samples that are dropped, and to those that another policy drew, and what a weight can mend.
#
# You need lesson 04 (the clip) and lesson 06 (what the std optimises); ρ is lesson 03's.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from bandits.theory import beyond, difficulty, trust_regions
from bandits.theory.objectives import SCALES
from course import exact, ladder
from course.estimator import replace
from course.lab import figures
from course.lab.statistics import interval
from course.lesson import Choice, Slider

lesson = course.setup("11")
F64 = torch.float64

# %% [markdown]
# ## Five questions
#
# Since GRPO, reports have named DAPO, CISPO, MaxRL, VESPO and a dozen more. Each replaces one part of what you have, and nearly all of them answer one of five questions:

# %%
QUESTIONS = {
    "what is maximised?": ("maxrl", "leader", "pkpo", "gdpo"),
    "how far to trust?": ("cispo", "sapo", "vespo", "dppo_tv", "mirror_descent"),
    "which tokens?": ("high_entropy", "clip_cov"),
    "which samples?": ("dapo", "opsm", "m2po"),
    "whose samples?": ("tis_grpo",),
}
for question, names in QUESTIONS.items():
    for name in names:
        rung = ladder.RUNGS[name]
        print(f"{question:<18} {rung.title:<20} {rung.replaced}")

# %% [markdown]
# Do not learn the names. Learn the failure behind each question, and the one quantity that answers it.
#
# ## 1. What is maximised?
#
# **The failure.** A hard question, right one time in a hundred, hardly moves: $\nabla p$ is small there, and $J$ weighs all questions alike. Lesson 06 found that the std changes the weight. So *every* advantage has a weight, chosen or not.
#
# Let $M$ of a group's $G$ answers be right, and let a right answer get the advantage $a_M$ and a wrong one $b_M$. Lesson 06 has the two mean scores: $\frac{\nabla p}{p}$ over right answers, $-\frac{\nabla p}{1-p}$ over wrong ones. Then
#
# $$\mathbb E[\hat g]=w(p)\,\nabla p,\qquad w(p)=\frac1G\,\mathbb E\left[\frac{M\,a_M}{p}-\frac{(G-M)\,b_M}{1-p}\right],\quad M\sim\operatorname{Bin}(G,p)\tag{11.1}$$
#
# `eq:weight-by-counts` · derived here, on policy, for rewards 0 and 1. What is climbed is $\sum_qF(p_q)$ with $F'=w$.
#
# For the group mean $a_M=1-\frac MG$ and $b_M=-\frac MG$; the bracket is $\frac{M(G-M)}{Gp(1-p)}$ and $w=\frac{G-1}G$, the factor of lesson 06.

# %%
weights = lesson.exercise("weight")

# %%
def my_weight(right, wrong, p, group):
    """right(m), wrong(m): the advantages where m of the group are right, numbers.

    p strictly between 0 and 1, group: G → w(p), a number.
    """
    return NotImplemented


weights.check(my_weight)

# %% [markdown]
# ### Any of k, and the logarithm
#
# Whoever draws $k$ answers and keeps a right one wants $\text{pass@}k$:
#
# $$\text{pass@}k=1-(1-p)^k,\qquad \frac{d\,\text{pass@}k}{dp}=k(1-p)^{k-1},\qquad \sum_{k=1}^{\infty}\frac1k\,\frac{d\,\text{pass@}k}{dp}=\sum_{k=1}^\infty(1-p)^{k-1}=\frac1p\tag{11.2}$$
#
# `eq:pass-at-k` · Chen et al. 2021; the sum: Tajwar et al. 2026. $\frac1p$ is the slope of $\log p$: maximum likelihood is all pass@k at once.
#
# **MaxRL** divides by the group's mean: $A=(R-\bar R)/\bar R$, so $a_M=\frac{G-M}M$ and $b_M=-1$. The bracket of (11.1) is $\frac{G-M}{p(1-p)}$, except at $M=0$, where nothing is learned. With $\mathbb E[G-M]=G(1-p)$ and $P(M=0)=(1-p)^G$
#
# $$w(p)=\frac{G(1-p)-G(1-p)^G}{G\,p\,(1-p)}=\frac{1-(1-p)^{G-1}}p=\sum_{k=1}^{G-1}(1-p)^{k-1}\tag{11.3}$$
#
# `eq:maxrl-weight` · Tajwar et al. 2026 (MaxRL); the order $G-1$: here
#
# It is the logarithm's slope, cut off after $G-1$ terms. (After $G$ without the baseline.)

# %%
ladder.maxrl

# %% jupyter={"source_hidden": true}
lesson.ask("hard-question")

# %%
print("w(p), all groups of 8 listed    p = .01     .1     .5     .9")
spots = [0.01, 0.1, 0.5, 0.9]
for name in ("mean, group", "group std", "MaxRL"):
    estimator = SCALES[name].estimator(4)
    row = [difficulty.weight(estimator, difficulty.right_or_wrong(p), 8) for p in spots]
    print(f"{name:<32}", "  ".join(f"{w:5.3f}" for w in row))
formula = SCALES["MaxRL"].formula(torch.tensor(spots, dtype=F64), 8, 4)
print(f"{'(11.3)':<32}", "  ".join(f"{w:5.3f}" for w in formula.tolist()))

# %% [markdown]
# ### The leader
#
# Can a group maximise pass@G itself? Its reward would be $\max_iR_i$, one number for $G$ answers. Write the policy gradient for the whole group, and use lesson 02: from sample $i$'s term you may subtract whatever does not depend on sample $i$. The best of the *others*, say:
#
# $$\nabla\,\mathbb E\big[\max_jR_j\big]=\mathbb E\Big[\sum_i\big(\max_jR_j-\max_{j\ne i}R_j\big)\,s_i\Big],\qquad \max_jR_j-\max_{j\ne i}R_j=\begin{cases}R_{(1)}-R_{(2)}&i\text{ is the best}\\0&\text{else}\end{cases}\tag{11.4}$$
#
# `eq:leader-gradient` · Tang et al. 2025; $R_{(1)}\ge R_{(2)}$ are the two largest rewards, $s_i$ is the score
#
# Only the leader learns, by its lead. That holds for any rewards, ties included. On three arms that pay .2, .5 and .8, $\mathbb E[\max]$ of four is easily written down, so its gradient needs no groups:

# %%
from bandits.environments import Deterministic
from bandits.exact import B3_MEANS, B3_POLICY, outcomes

pay = torch.tensor(B3_MEANS, dtype=F64)
theta = torch.tensor(B3_POLICY, dtype=F64).log().requires_grad_()
below = theta.softmax(0).cumsum(0)  # the chance that one answer pays at most .2, .5, .8
best_of_four = pay[2] - ((pay[1:] - pay[:-1]) * below[:2] ** 4).sum()
[slope] = torch.autograd.grad(best_of_four, theta)
arms = outcomes(Deterministic(pay[None]), torch.tensor([B3_POLICY], dtype=F64).log())
seen = exact.microscope(ladder.leader, arms, 4, covariance=False)
print("∇E[max of 4]:           ", [f"{x:+.4f}" for x in slope.tolist()])
print("4 · E[ĝ] of the leader: ", [f"{4 * x:+.4f}" for x in seen.expected.tolist()])
print("groups of 8 in which only one is right:", "   ".join(
    f"{8 * p * (1 - p) ** 7:.1%} at p = {p}" for p in (0.1, 0.3, 0.5)
))

# %% [markdown]
# The last line is the price. With rewards 0 and 1 only a group with exactly one right answer votes: at $p=.5$ that is 3 % of them, where 99 % vote under the mean. **PKPO** averages the lead over all subsets of $k$, for any $k\le G$: its weight is $k(1-p)^{k-1}$, and with $k=4$ a group of 8 votes unless fewer than three are wrong or none is right.
#
# ### Explore: $w(p)$ and $F(p)$

# %% jupyter={"source_hidden": true}
from bandits.theory.objectives import objective_of, pass_at_k_weight

fine = torch.linspace(0.002, 0.998, 250, dtype=F64)


def draw_scales(which, group, k):
    figure, panels = figures.new_figure(1, 2, width=9, height=3.5)
    for name, curve in SCALES.items():
        w = curve.formula(fine, group, min(k, group))
        style = {"color": "#bbbbbb", "linewidth": 1.2, "linestyle": "-", "label": "_"}
        if name == which:
            style = {"color": "#b8320f", "linewidth": 2.6, "linestyle": "-", "label": name}
        figures.band(panels[0], fine, w, **style)
        figures.band(panels[1], fine, objective_of(w, fine), **style)
    asked = pass_at_k_weight(fine, k)
    figures.expectation(panels[0], asked, fine)
    figures.expectation(panels[1], objective_of(asked, fine), fine)
    panels[0].set_ylim(0, 8)
    panels[1].set_ylim(0, 1)
    figures.describe(panels[0], f"{which}, G = {group}", f"p (dashed: pass@{k})", "w(p)")
    figures.describe(panels[1], "what is climbed, F(p)", "p", "share of F from 0 to 1")
    return figure


# %%
lesson.explore(
    "scales",
    draw_scales,
    "Left, the weight; right, its integral, which is what training climbs. Take MaxRL and make G"
    " larger: its left end rises to G − 1, the std's only to √(G − 1). Which scales fit the dashed"
    " line?",
    which=Choice(tuple(SCALES), "MaxRL", "scale"),
    group=Choice([2, 8, 32], 8, "group size G"),
    k=Slider(1, 8, 1, 4, "k of pass@k"),
)

# %% [markdown]
# ### Does training cross the base model?
#
# <!-- answers: 39 -->
# Sixteen questions, ten answers each, one right, parameters shared by all (lesson 04). The untrained policy guesses: $p=.1$ everywhere, so pass@16 is $1-.9^{16}=81\,\%$. Train 100 rollouts with each scale. The learning rates make all first steps equally long on average: rate times $w(.1)$ is the same.

# %% jupyter={"source_hidden": true}
lesson.ask("crossing")

# %%
from bandits.linear import linear_bandit
from course.learner import Learner
from course.train.optim import SGD

SIZES, zero = (16, 10, 48), torch.zeros(1)


def right_answers(estimator, runs=20):
    """p of every question after training, [runs, 16]."""
    rate = 56 / difficulty.weight(estimator, difficulty.right_or_wrong(0.1), 8)
    bandit, noise = linear_bandit(SIZES, zero, range(runs), group=8, seed=0)
    Learner(bandit, estimator, SGD(rate), noise).train(100)
    chance = bandit.arm_policy.log_probs().detach().exp()[0]
    return chance.gather(-1, bandit.environment.best[0].expand(*chance.shape[:-1], 1))[..., 0]


chosen = ("mean, group", "group std", "MaxRL", "PKPO", "leader")
trained = {name: right_answers(SCALES[name].estimator(4)) for name in chosen}
trained["untrained"] = torch.full((20, 16), 0.1, dtype=F64)
print("pass@k, mean of 20 runs           k = 1             4            16            64")
for name, p in trained.items():
    cells = [interval(beyond.pass_at_k(p, k).mean(-1)) for k in (1, 4, 16, 64)]
    print(f"{name:<26}", "  ".join(f"{float(m):6.3f} ± {float(h):.3f}" for m, h in cells))

# %% jupyter={"source_hidden": true}
STYLES = dict(zip(chosen, ("group_mean", "group_std", "maxrl", "pkpo", "leader")))
ks = 2.0 ** torch.arange(0, 9, dtype=F64)
figure, [ax] = figures.new_figure(width=7.6, height=3.6)
for name, p in trained.items():
    curve = beyond.pass_at_k(p.unsqueeze(-1), ks).mean(-2).mean(0)
    if name == "untrained":
        figures.expectation(ax, curve, ks)
        ax.text(3, 0.2, "untrained", fontsize=10, color=figures.INK)
    else:
        figures.band(ax, ks, curve, label=name, **figures.style_of(STYLES[name]))
figures.powers_of_two(ax)
ax.set_ylim(0, 1.02)
figures.describe(ax, "Who leads depends on k", "k", "pass@k")
figures.label_ends(ax)
lesson.picture(
    figure,
    "Mean, std and MaxRL start high and stay flat, below the untrained curve from 16 or 32 samples"
    " on; PKPO and the leader start lower and stay above it up to 32 samples.",
)

# %% [markdown]
# Mean and std cross: from 16 samples on the untrained policy is better. Their curves are flat, because every question has become sure, some three in four of its right answer and the rest of a wrong one, and who is sure gains nothing from being asked again. MaxRL has given up fewer questions and crosses later. And who leads depends on $k$: at 4 it is PKPO, which was asked for 4; at 16 the leader, which was asked for 8.
#
# So whether RL "crosses the base model" is no fact about RL. It depends on $w$: on this bandit the same loop does both. That says nothing about what a large base model holds.
#
# ### Several rewards, each by itself (optional)
#
# In lesson 06 one std for a sum of rewards let the frequent one take its share. **GDPO** (2601.05242) normalises each reward in its group, adds them, and divides by the std of the whole batch. Two groups of two, where one answer is right, and in the second it is also well-formed; then lesson 06's eight answers, one right, four well-formed; then two rewards that cancel:

# %%
from course.rollout import Rollout


def both_ways(right, formed):
    """Advantages of the two rewards [Q, G]: added first, and each by itself."""
    each = torch.tensor([right, formed], dtype=F64).movedim(0, -1)  # [Q, G, rewards]
    total = each.sum(-1, keepdim=True)
    zero = torch.zeros_like(total)
    rollout = Rollout(total, zero, zero == 0, components=each)
    for name in ("length_mean", "gdpo"):
        rows = ladder.get(name).estimator.freeze(rollout).advantage[..., 0].tolist()
        shown = "   |   ".join("  ".join(f"{x + 0.0:+.2f}" for x in row) for row in rows)
        print(f"   {'added first' if name == 'length_mean' else 'each by itself':<15} {shown}")


print("right (0, 1), well-formed (0, 0)   |   right (0, 1), well-formed (0, 1)")
both_ways([[0, 1], [0, 1]], [[0, 0], [0, 1]])
print("one of eight right, four well-formed")
both_ways([[1, 0, 0, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 0, 0, 0, 0]])
print("right (1, 0, 1, 0), well-formed (0, 1, 0, 1)")
both_ways([[1, 0, 1, 0]], [[0, 1, 0, 1]])

# %% [markdown]
# Added first, the better of two answers is 1 above, whether it is better in one thing or in two. Each by itself, it is worth twice as much in the second group. A rare right answer leads a wrong one of the same form by 1.83 in place of 1.44. Rewards that cancel cancel both ways.
#
# ## 2. How far to trust?
#
# **The failure.** The clip silences. After four updates on one rollout nine of ten good samples had gradient 0 (lesson 04), among them the rare tokens: from .01 to .013 is already $\rho=1.3$.
#
# The replies look different in print. Compare them where they act, in their gradient. The surrogate $f$ depends on θ through $\log\pi$ alone, so
#
# $$\nabla_\theta f=\varphi(\rho)\,A\,\nabla_\theta\log\pi_\theta,\qquad\varphi=\frac1A\,\frac{\partial f}{\partial\log\pi_\theta}\tag{11.5}$$
#
# `eq:surrogate-weight` · derived; for the bare ratio $\varphi=\rho$, for the clip ρ or 0, for CISPO $\min(\rho,1+\varepsilon)$
#
# SAPO's gate $\frac4\tau\,\sigma(\tau(\rho-1))$ has the slope $4\sigma(1-\sigma)$ in ρ, hence $\varphi=4\sigma(1-\sigma)\rho$: no corner, and it fades above. VESPO chooses φ itself, $e^{\lambda}\rho^ke^{-\lambda\rho}$. Its logarithm has the slope $\frac k\rho-\lambda$, so it is largest at $\rho=\frac k\lambda$: at ⅔ for good samples ($k=2,\lambda=3$), at 1.5 for bad ones ($3, 2$).

# %%
print(ladder.vespo.text())

# %% jupyter={"source_hidden": true}
lesson.ask("fallen")

# %%
SURROGATES = {
    "ρA": ladder.surrogate.surrogate,
    "clip": ladder.clip.surrogate,
    "CISPO": ladder.cispo.surrogate,
    "SAPO": ladder.sapo.surrogate,
    "VESPO": ladder.vespo.surrogate,
    "DPPO-TV": ladder.dppo_tv.surrogate,
}


def weight_at(part, ratio, A, old=0.1):
    """φ at the ratios [n], for tokens of old probability `old`."""
    return trust_regions.slope(part, ratio, torch.full_like(ratio, old), A)


AT = (0.5, 2 / 3, 1.0, 1.25, 1.5, 2.0, 5.0)
print("φ at ρ =            ", "   ".join(f"{rho:5.3g}" for rho in AT))
for name, part in SURROGATES.items():
    for sign in (1.0, -1.0):
        row = weight_at(part, torch.tensor(AT, dtype=F64), sign) + 0.0
        print(f"{name:<7} A = {sign:+g}       ", "   ".join(f"{x:5.3f}" for x in row.tolist()))

# %% [markdown]
# The column ρ = 1 is 1 in every row. **With one update per rollout all of these are one algorithm.**
#
# The last row holds at $\pi_{old}=.1$, and only there. **DPPO** asks how far the *probability* has moved: a good token is silent once $\pi-\pi_{old}>.15$, which is $\rho>1+\frac{.15}{\pi_{old}}$. That is 2.5 at .1 and 16 at .01: room for rare tokens. A likely one may do much with a small ratio: a bad token of .9 falls silent at .83 already.
#
# ### Explore: the slope of a surrogate

# %% jupyter={"source_hidden": true}
from course.parts import MirrorDescent

RHO = torch.linspace(0.02, 4, 200, dtype=F64)
FORMS = (*SURROGATES, "GMPO", "TOPR's taper", "mirror descent, β = .3")


def draw_slope(which, sign, epsilon, old):
    figure, [ax] = figures.new_figure(width=7.6, height=3.6)
    shown = SURROGATES | {
        "GMPO": ladder.gmpo.surrogate,
        "TOPR's taper": ladder.tapered.surrogate,
        "mirror descent, β = .3": MirrorDescent(0.3),
    }
    shown["clip"] = type(shown["clip"])(min(epsilon, 1.0), epsilon)
    shown["CISPO"] = type(shown["CISPO"])(epsilon)
    A = 1.0 if sign == "A > 0" else -1.0
    possible, inside = RHO * old <= 1, RHO.clamp(max=1 / old)  # π = ρ·π_old is at most 1
    for other, part in shown.items():
        style = {"color": "#bbbbbb", "linewidth": 1.2, "linestyle": "-"}
        if other == which:
            style = {"color": "#b8320f", "linewidth": 2.6, "linestyle": "-", "zorder": 3}
        phi = torch.where(possible, weight_at(part, inside, A, old), torch.nan)
        figures.band(ax, RHO, phi, label=other, **style)
    ax.plot([1], [1], "o", color=figures.INK, zorder=4)
    ax.set_ylim(-0.5, 2.6)
    figures.describe(ax, f"{which}, {sign}", "ρ (dot: π_old)", "weight φ of A∇log π")
    return figure


# %%
lesson.explore(
    "slope",
    draw_slope,
    "All pass through the dot. Ask of each: which samples does it silence, which does it turn down,"
    " and is it the same for A > 0 and A < 0? One even changes its sign. ε moves the clip and"
    " CISPO, π_old DPPO.",
    which=Choice(FORMS, "VESPO", "surrogate"),
    sign=Choice(("A > 0", "A < 0"), "A > 0", "sign of A"),
    epsilon=Slider(0.05, 1.0, 0.05, 0.2, "ε of clip and CISPO"),
    old=Slider(0.02, 0.9, 0.02, 0.1, "π_old"),
)

# %% [markdown]
# ### Does the shape matter?
#
# `course bandits trust_regions` asked eleven forms twice. First lesson 04's two arms, the good one with $\pi_{old}=.1$: small steps on one rollout, where does its ρ stop? Then training with 16 updates per rollout, each form at its own best rate, 40 paired runs:

# %%
from course.lab.places import measured
from course.lab.result import Result

found = Result.load(measured("trust_regions"))
here, last = found.settings["shares"].index(0.1), found.settings["epochs"].index(16)
print("                  ρ stops at   final reward     more than ρA, paired, 95 %")
for name in found.settings["rungs"]:
    end = found.series["end"][name][here]
    stops = f"{end:.2g}" if end < 9.5 else "nowhere"
    row = found.series["training"][name]
    mean, half = row["retuned"][last], row["retuned_half"][last]
    gain = found.series["gain"].get(name)
    more = f"{gain['retuned']:+.3f} ± {gain['retuned_half']:.3f}" if gain else ""
    print(f"{name:<18} {stops:<10}  {mean:.3f} ± {half:.3f}    {more}")

# %% [markdown]
# What only fades (SAPO, VESPO) or keeps a floor (CISPO) never stops on one rollout: small as the push gets, enough steps reach certainty. In training at *one* rate all ten beat the bare ratio, by .11 to .17. With its own rate for each, half of them are undecided, the clip too (.023 ± .024). What is left is .03 for GMPO and M2PO, and .05 for the two forms of DPPO and for **mirror descent**, $A\log\pi-\frac\beta2(\log\rho)^2$, whose spring pulls back where the clip only lets go. So a trust region mostly buys room for the learning rate.
#
# ## 3. Which tokens?
#
# <!-- answers: 35 -->
# **The failure.** Entropy falls early, then nothing new is tried. When does an update cost entropy? For a softmax with logits $z$, $H=-\sum_a\pi_a\log\pi_a$ has the slope $\partial H/\partial z_a=-\pi_a(\log\pi_a+H)$. Let an update move the logits by $\Delta z$. Since $\mathbb E[\log\pi]=-H$, to first order
#
# $$\Delta H=-\sum_a\pi_a\big(\log\pi_a-\mathbb E[\log\pi]\big)\,\Delta z_a=-\operatorname{Cov}_\pi\big(\log\pi,\Delta z\big)\tag{11.6}$$
#
# `eq:entropy-covariance` · Cui et al. 2025. For the expected policy gradient $\Delta z_a=\eta\,\pi_aA_a$.
#
# So an update costs entropy where what is already probable is praised, and *earns* entropy where the improbable is.

# %% jupyter={"source_hidden": true}
lesson.ask("entropy-first")

# %%
from bandits.theory.entropy import predicted
from course.rollout import entropy

log_pi = torch.tensor(B3_POLICY, dtype=F64).log()


def step_of(log_prob, rate):
    """What the expected policy gradient adds to B3's logits."""
    return rate * log_prob.exp() * (pay - log_prob.exp() @ pay)


for rate in (0.01, 0.1, 1.0):
    step = step_of(log_pi, rate)
    change = float(entropy(torch.log_softmax(log_pi + step, -1)) - entropy(log_pi))
    first = float(predicted(log_pi, step))
    ratio = f"measured: {change:+.5f}   ratio {change / first:.3f}"
    print(f"rate {rate:<5g} (11.6): {first:+.5f}   {ratio}")
path = [log_pi]
for _ in range(120):
    path.append(torch.log_softmax(path[-1] + step_of(path[-1], 1.0), -1))
after = {n: float(entropy(path[n])) for n in (0, 5, 20, 60, 120)}
print("entropy after", ", ".join(f"{n} updates: {h:.3f}" for n, h in after.items()))

# %% [markdown]
# It rises for five updates, until the best arm is no longer rare, and then falls for good. A warm-started model is past that point on most tokens.
#
# ### Do it: what an update costs

# %%
entropies = lesson.exercise("entropy-change")

# %%
def my_entropy_change(log_prob, advantage, rate):
    """log_prob, advantage [K] of one softmax → the first-order change of its entropy.

    The update is rate times the expected policy gradient.
    """
    return NotImplemented


entropies.check(my_entropy_change)

# %% [markdown]
# Replies are many. **Clip-Cov** drops the surrogate of the few tokens with the largest $(A-\bar A)(\log\pi-\overline{\log\pi})$, those that (11.6) blames. The **high-entropy mask** keeps only the fifth of the tokens with most entropy. A **bonus** adds entropy to the objective; clip-higher (lesson 04) leaves rare tokens more room. `course bandits entropy` trained them all and compared what is left *where the reward is the same*, .8, run by run:

# %%
found = Result.load(measured("entropy"))
rates, rows = found.series["rates"], found.series["left"]
shown = [rates.index(rate) for rate in (8.0, 32.0, 128.0)]
for kind, base in (("parts", "clip"), ("scales", "group_mean")):
    print(f"nats more than {base}, 40 pairs    rate", "             ".join(
        f"{rates[i]:4g}" for i in shown
    ))
    for name, row in rows[kind].items():
        if name != base:
            more, half = row["difference"], row["difference_half"]
            cells = [f"{more[i]:+.3f} ± {half[i]:.3f}" for i in shown]
            print(f"   {name:<24}", "    ".join(cells))

# %% [markdown]
# Clip-higher and Clip-Cov change .02 nats at most, of about .7 that are spent. The mask helps at the small rate and hurts at the large one. The bonus helps at every rate. And the largest number is no reply to entropy at all: PKPO. With one question every scale pushes along the same $\nabla p$ and pays the same for it. With many, $w$ decides who is sharpened first, and a scale that is content with one right answer in four leaves the rest alone. So the first of the five questions does more for entropy here than the third.
#
# ### Why a fifth of the tokens is enough (optional)
#
# A token's score with respect to its own logits is $e_o-\pi$, and
#
# $$\mathbb E\lVert e_o-\pi\rVert^2=1-2\,\mathbb E[\pi_o]+\sum_v\pi_v^2=1-\sum_v\pi_v^2\tag{11.7}$$
#
# `eq:score-size` · derived; $\mathbb E[\pi_o]=\sum_v\pi_v^2$. A token with $\pi=(.99,.01)$ has .02, one with $(.5,.5)$ has .5.
#
# On a transformer that has seen a few demonstrations of one-digit sums:

# %% jupyter={"source_hidden": true}
import dataclasses

from course.train.optim import Adam
from tinylm import tasks
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.warm_start import LIKELIHOOD, Demonstrations

task = tasks.make(tasks.TaskSettings(digits=1))
model = Transformer(dataclasses.replace(PRESETS["nano"], context=task.context), (1,), dtype=F64)
noise = lesson.noise(1, use=1, dtype=F64)
demonstrations = Demonstrations(model, task, batch=64)
Learner(demonstrations, LIKELIHOOD, Adam(5e-3), noise, max_grad_norm=1.0).train(110)

# %%
problem = LanguageModel.of(ladder.high_entropy, model, task, prompts=32, group=8)
rollout = problem.sample(lesson.noise(1, use=2, dtype=F64))
policy, chosen = problem.policy(rollout), rollout.mask
spread, size = policy.entropy.detach()[chosen], beyond.score_size(policy.log_dist.detach())[chosen]
order = spread.argsort(descending=True)
print(f"{len(order)} tokens of 256 answers, {float(rollout.total_reward.mean()):.0%} right")
for share in (0.1, 0.2, 0.5):
    top = order[: int(share * len(order))]
    print(
        f"the {share:.0%} with most entropy (from {float(spread[top[-1]]):.2f} nats on) have"
        f" {float(size[top].sum() / size.sum()):.0%} of the squared scores"
    )

# %% [markdown]
# A fifth of the tokens has 64 % of the gradient's squared size. The mask drops a third of it, and nothing here says that what it drops is noise.
#
# ## 4. Which samples?
#
# <!-- answers: 34 -->
# **The failure.** Sampling is slow, so it runs beside training, and long answers arrive late. A system that drops what is too old and asks anew keeps its queue moving. It also chooses by length. (Silent groups, dropped or refilled, are in lesson 06.)
#
# Let answer $a$ be kept with probability $c_a$. What reaches the learner is drawn from
#
# $$\mu_a=\frac{\pi_a\,c_a}{\sum_b\pi_b\,c_b},\qquad\mathbb E_\mu\big[(R-\bar R_\mu)\,s^{(a)}\big]=\mu_a\,(R_a-\bar R_\mu)\tag{11.8}$$
#
# `eq:requeued` · derived here; the push on logit $a$, whose score is $s^{(a)}=\mathbf 1[o=a]-\pi_a$. With $\bar R_\mu=\mathbb E_\mu[R]$ the second part of it drops out.
#
# On policy the push is $\pi_a(R_a-J)$. So two right answers that are equally probable are pushed in the ratio of their $c$. Take four answers, right or wrong, short or long, all equally likely, and keep one long answer in four.

# %% jupyter={"source_hidden": true}
lesson.ask("requeue")

# %%
from course.exact import Outcomes, microscope
from course.parts import SequenceTIS

reward = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64)  # right short, right long, wrong …
KEPT = torch.tensor([1.0, 0.25, 1.0, 0.25], dtype=F64)
corrected = replace(ladder.rloo, correction=SequenceTIS(cap=None))


def queue(estimator, kept, updates=60):
    """The policy after each exact update, groups of 8: [updates + 1, 4] probabilities."""
    log_prob = [torch.full((4,), 0.25, dtype=F64).log()]
    for _ in range(updates):
        now = log_prob[-1]
        drawn = beyond.requeued(now, kept)
        listed = Outcomes.of_arms(now[None], reward[None], sampler_log_prob=drawn[None])
        push = microscope(estimator, listed, 8, covariance=False).expected
        log_prob.append(torch.log_softmax(now + push, -1))
    return torch.stack(log_prob).exp()


queued = {
    "all kept": queue(ladder.rloo, torch.ones_like(KEPT)),
    "late ones dropped": queue(ladder.rloo, KEPT),
    "dropped, weight π/μ": queue(corrected, KEPT),
}
for name, p in queued.items():
    right_long, wrong_long = p[-1, 1] / p[-1, :2].sum(), p[-1, 3] / p[-1, 2:].sum()
    print(
        f"{name:<20} solved {float(p[-1] @ reward):.1%}   long among right {float(right_long):.2f}"
        f"   long among wrong {float(wrong_long):.2f}"
    )

# %% [markdown]
# Nobody rewarded length. Yet right answers turn short, since the long ones are seldom there to be praised, and wrong ones turn long, since they are seldom there to be blamed. It is the picture of $1/|o|$ in lesson 06, made by a queue. The weight $\pi/\mu$ undoes it, but a queue does not log its $c$. So do not drop by age alone: wait for the late ones, or interrupt long answers and go on with them later.
#
# ### Two more filters (optional)
#
# **Off-policy sequences** (DeepSeek-V3.2) drop the blame of answers that the policy has left: $A<0$ and $\operatorname{mean}_t\log\frac\mu{\pi_\theta}>\delta$. **M2PO** drops the tokens that moved farthest until the mean $(\log\rho)^2$ of the rest is at most τ, a budget for the batch where the clip has a bound for each. Five tokens, each an answer of its own, with A = −1, +1, −1, +1, −1:

# %%
from course.parts.sample_filter import Tokens

moved = torch.tensor([0.05, 0.1, -0.2, -0.6, -0.8], dtype=F64)[None, :, None]  # log ρ
ones = torch.ones_like(moved)
sign = torch.tensor([-1.0, 1, -1, 1, -1], dtype=F64)[None, :, None]
facts = Tokens(ones.bool(), sign, -ones, moved, moved, ~ones.bool(), None)
print("log ρ         ", moved.flatten().tolist())
for name in ("opsm", "m2po"):
    part = ladder.get(name).estimator.sample_filter
    print(f"kept by {name}: ", [int(kept) for kept in part.tokens(facts).flatten()], "", part.text)

# %% [markdown]
# ## 5. Whose samples?
#
# <!-- answers: 33 -->
# **The failure.** A fast engine samples and a trainer learns. Same weights, other kernels, another precision, weights an update old: μ is not π, and no line of the loss knows. This is not ρ, which compares two states of the learner; it is there at the first update.
#
# Write what you want as what you have, over whole answers $o$, before the first update. With $\kappa=\pi/\mu$
#
# $$\nabla J=\sum_o\pi(o)\,A(o)\,s(o)=\mathbb E_\mu\Big[\kappa(o)\,A(o)\sum_ts_t\Big],\qquad\kappa(o)=\prod_t\kappa_t\tag{11.9}$$
#
# `eq:answer-weight` · lesson 03's identity, with μ in place of π_old; it needs $\mu>0$ wherever $\pi>0$
#
# All tokens of an answer need the weight of the *whole* answer. Its noise grows with the length, so practice takes less: each token's own $\kappa_t$ (**token TIS**), a cap (**truncated** importance sampling, TIS), or 0 outside some bounds (**masked**: IcePop, MIS).

# %%
ladder.tis_grpo

# %% jupyter={"source_hidden": true}
lesson.ask("which-unbiased")

# %%
from bandits.theory import mismatch
from bandits.theory.effective_samples import Sums

answers = Sums(3, 4)  # all 64 answers of three tokens
learned = mismatch.learner(answers, 0, 16, 1.0)  # 16 updates; π is the last


def drifted(kind, size):
    return mismatch.outcomes(answers, learned[-1], mismatch.sampler(kind, size, learned))


cases = {
    "bfloat16": drifted("bits", 8),  # 8 significant bits of the logits
    "4 updates old": drifted("updates", 4),
    "16 updates old": drifted("updates", 16),
    "temperature 1.2": drifted("temperature", 1.2),
    "top-p .95": drifted("top-p", 0.95),
}
print(f"{'bias of E[ĝ] / noise, in ‖∇J‖':<32}", "  ".join(f"{name:>15}" for name in cases))
for name, part in mismatch.CORRECTIONS.items():
    rows = [mismatch.table_row(part, case) for case in cases.values()]
    print(f"{name:<32}", "  ".join(f"{r['bias']:>8.3f} / {r['noise']:4.2f}" for r in rows))

# %% [markdown]
# - **none**: bfloat16 alone costs .8 % of bias, four updates of age 25 %, sixteen of age more than the gradient itself.
# - **token TIS** leaves about a third of that: each token forgets that its prefix came from μ, too.
# - **sequence TIS** is exact until its cap of 2 binds, at 16 updates; without a cap it is exact always. Here it is even less noisy than none. With three tokens that is easy; with three thousand it is not.
# - **sequence-mask TIS**, with its bounds for long answers (.999 to 1.002 on the geometric mean), drops *everything* beyond the first column, and **k3 rejection** most of what is four updates old. A bias of 1 means that nothing is left.
# - **top-p**: no row helps. What μ never draws has no sample to be weighed.
#
# ### Do it: the weight of an answer

# %%
whole = lesson.exercise("answer-weight")

# %%
def my_answer_weight(log_prob, sampler_log_prob, mask, cap):
    """log π and log μ of the tokens [..., T], mask [..., T] bool; outside it anything may stand.

    → the truncated weight min(κ, cap) of the whole answer, on each of its tokens, [..., T].
    """
    return NotImplemented


whole.check(my_answer_weight)

# %% [markdown]
# ### Two ratios (optional)
#
# With a correction the objective holds both: $\kappa_t\,\min(\rho_tA,\operatorname{clip}(\rho_t)A)$. κ is computed once and says who sampled; ρ moves with the updates and says how far you have gone. To clip their product instead would spend the clip's room on the drift. Keeping them apart is **decoupled PPO** (Hilton et al. 2021): at κ = 1.3 and ρ = 1 a good sample has the weight

# %%
from course.parts import ImportanceSampling, TokenTIS

kappa = torch.tensor([1.3], dtype=F64)
for name, part, ratio, factor in (
    ("κ · clip(ρ)", ladder.clip.surrogate, kappa / 1.3, 1.3),
    ("clip(κρ)", ladder.clip.surrogate, kappa, 1.0),
    ("κρ, no clip", ImportanceSampling(), kappa, 1.0),
):
    print(f"{name:<12} {factor * float(weight_at(part, ratio, 1.0)):.2f}")
print(replace(ladder.clip, correction=TokenTIS(cap=None)).text())

# %% [markdown]
# ## Break it
#
# Three programs train with a sampler that is hotter than the learner. One uses the weight of the whole answer, one uses no weight, one has a fault. The curves are the exact bias as the sampler's temperature grows.

# %% jupyter={"source_hidden": true}
Suspect = lesson.hidden("Suspect")  # in the file of exercises: look after you have answered
from course.parts import NoCorrection

programs = {"run A": NoCorrection(), "run B": Suspect(), "run C": SequenceTIS(cap=None)}
heats = (1.02, 1.05, 1.1, 1.15, 1.2)
hot = {heat: drifted("temperature", heat) for heat in heats}
figure, [ax] = figures.new_figure(width=7.0, height=3.5)
for (label, part), colour in zip(programs.items(), ("#b8860b", "#4a98e0", "#000000")):
    bias = torch.tensor([mismatch.seen(part, case).relative_bias for case in hot.values()])
    figures.band(ax, heats, bias, label=label, color=colour, linestyle="-", marker="o")
title = "Answers of three tokens, π unchanged"
figures.describe(ax, title, "temperature of μ", "‖E[ĝ] − ∇J‖ / ‖∇J‖")
figures.label_ends(ax)
lesson.picture(
    figure,
    "run C stays at 0; run A rises to 0.4 at temperature 1.2; run B rises about twice as fast as A",
)

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %%
lesson.code(Suspect)
print("temperature   bias of A    bias of B     B/A   mean weight of B   of C")
for heat, case in hot.items():
    bias = {name: mismatch.seen(part, case).relative_bias for name, part in programs.items()}
    drawn = case.sampler[0].sum(-1).exp()
    every = torch.arange(len(drawn))
    mean = {
        name: float(drawn @ mismatch.weights(part, case, every)[:, 0])
        for name, part in programs.items()
    }
    a, b = bias["run A"], bias["run B"]
    print(
        f"{heat:<12g}  {a:<11.3f}  {b:<11.3f} {b / a:5.2f}"
        f"  {mean['run B']:>15.3f}  {mean['run C']:>6.3f}"
    )

# %% [markdown]
# The weight is upside down, μ/π. To first order a weight $\kappa$ removes the drift once, so its inverse adds it once more: twice the bias of doing nothing. Nothing crashes, the weights are near 1, and the reward may still rise.
#
# One line finds it. $\mathbb E_\mu[\kappa]=\sum_o\mu\frac\pi\mu=1$ exactly, whatever the drift (unless μ rules answers out), while $\mathbb E_\mu[1/\kappa]>1$. Log the mean weight of whole answers before the cap: it must stay around 1.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# A new name is one replaced part, and one quantity says what it does: $w(p)$ for what is maximised, $\varphi(\rho)$ for trust, $\operatorname{Cov}(\log\pi,\Delta z)$ for entropy, and $\pi/\mu$ for whatever chose the samples, be it another engine or a queue. With one update per rollout all surrogates are one algorithm, and with one sampler all corrections are.
#
# ## Next
#
# You can read the method section of a report now: find the part, find the quantity, compute it on a bandit before you spend a cluster on it. `course rungs` lists them all, [the cheat sheet](CHEATSHEET.md) has every objective on one page with its exact bias, and [the conventions](CONVENTIONS.md) say what the libraries call them.
