# %% [markdown]
# # 04 · PPO's clip
#
# After this lesson you can
#
# - say for any ρ and A which side of the clip is flat, and why the formula takes the min and not the max;
# - show that the clip is a pessimistic lower bound of the surrogate;
# - compute how far a ratio runs although it is clipped at 1.2, and why;
# - read clip-higher, dual clip and CISPO as one replaced part each.
#
# You need lesson 03: the ratio ρ, the surrogate ρA, stale samples.
#
# Running all cells takes {{time}}.

# %%
import torch

import course
from course import ladder
from course.lab import figures
from course.parts import CISPO, Clip, ImportanceSampling

lesson = course.setup("04")
print("replaced in this lesson:", ", ".join(ladder.clip.diff(ladder.surrogate)))

# %% [markdown]
# ## The rung
#
# Lesson 03 ended with two findings. Several updates on one rollout drive the bare surrogate ρA into a corner; and TRPO's bound on the step costs second-order machinery.
# PPO replaces one part by one line:

# %%
ladder.clip

# %%
from course.parts.surrogate import clipped_surrogate

lesson.code(clipped_surrogate)

# %% [markdown]
# ## Two signs, two formulas
#
# <!-- answers: 5 -->
#
# The line has a min, a clip and an A of either sign, which is why it confuses. Take the signs apart. For $A > 0$ the smaller of two products has the smaller factor,
# and $\min(\rho, \mathrm{clip}(\rho)) = \min(\rho, 1+\varepsilon)$. For $A < 0$ the smaller product has the **larger** factor, $\max(\rho, \mathrm{clip}(\rho)) = \max(\rho, 1-\varepsilon)$:
#
# $$f(\rho, A) = \begin{cases} A\,\min(\rho,\,1+\varepsilon) & A > 0\\ A\,\max(\rho,\,1-\varepsilon) & A < 0\end{cases} \tag{4.1}$$
#
# `eq:clipped-surrogate` · Schulman et al. 2017 (PPO, 1707.06347), eq. 7, one sign at a time. Each sign meets one bound only; where the two differ in width they are called $\varepsilon_{low}$ and $\varepsilon_{high}$. (In “GRPO”, Vera, the lower bound is printed 1ε: a minus sign was lost.)

# %% jupyter={"source_hidden": true}
lesson.ask("flat-side")

# %%
print("slope of f in ρ, ε = 0.2")
for advantage in (1.0, -1.0):
    for rho in (0.5, 0.9, 1.1, 1.5):
        place = torch.tensor(rho, requires_grad=True)
        [slope] = torch.autograd.grad(
            clipped_surrogate(place, torch.tensor(advantage), 0.2, 0.2), place
        )
        print(
            f"A = {advantage:+g}, ρ = {rho}: {float(slope) + 0.0:+.0f}"
            + ("   flat" if slope == 0 else "")
        )

# %% [markdown]
# Two of the eight are flat: good samples that have risen by more than ε, bad ones that have fallen by more than ε. **A sample is switched off when it has moved far enough in the direction its own advantage pushes it.** A sample that moved the other way keeps its push.
# “A Not So Gentle Introduction” writes that the ratio is capped at 1.2 and at 0.8; which of the two applies depends on the sign of A, and the ratio itself is not touched.

# %% jupyter={"source_hidden": true}
RHO = torch.linspace(0, 2.4, 241)


def draw_clip(epsilon_low, epsilon_high, way):
    figure, panels = figures.new_figure(1, 2, width=9.0, height=3.5)
    for ax, sign in zip(panels, (1.0, -1.0)):
        A = torch.tensor(sign)
        inside = RHO.clamp(1 - epsilon_low, 1 + epsilon_high) * A
        shown = (
            clipped_surrogate(RHO, A, epsilon_low, epsilon_high)
            if way == "min"
            else torch.maximum(RHO * A, inside)
        )
        flat = shown.diff().abs() < 1e-6
        figures.expectation(ax, RHO * A, RHO)
        figures.band(ax, RHO, shown, name="clip", linestyle="-", linewidth=2.6)
        low, high = ax.get_ylim()
        ax.fill_between(
            RHO[1:], low, high, where=flat.numpy(), color="#888888", alpha=0.18, linewidth=0
        )
        ax.set_ylim(low, high)
        ax.plot([1], [sign], "o", color=figures.INK)
        figures.describe(
            ax, f"A = {sign:+g}", "ρ (dot: π_old)", "objective; dashed: ρA; grey: flat"
        )
    return figure


# %%
from course.lesson import Choice, Slider

lesson.explore(
    "clip",
    draw_clip,
    "Grey is where the sample has no gradient. Then take max in place of min, and ask where a"
    " sample can go when it has left the slope.",
    epsilon_low=Slider(0.05, 0.95, 0.05, 0.2, "ε_low"),
    epsilon_high=Slider(0.05, 1.0, 0.05, 0.2, "ε_high"),
    way=Choice(("min", "max"), "min", "min or max"),
)

# %% [markdown]
# ## Its gradient
#
# Where f is not flat it is ρA, whose gradient you know from lesson 03, (3.3). So
#
# $$\nabla_\theta f = \begin{cases} 0 & A>0,\ \rho>1+\varepsilon \quad\text{or}\quad A<0,\ \rho<1-\varepsilon\\ \rho A\,\nabla_\theta\log\pi_\theta & \text{else} \end{cases} \tag{4.2}$$
#
# `eq:clip-flat` · Schulman et al. 2017, §3. The *clip fraction* of a log is the share of samples in the first line. At $\pi_{old}$ every ρ is 1 and nothing is clipped: with one update per rollout this rung **is** the rung below (lesson 03).

# %%
lesson.code(Clip.clipped)

# %%
clipped = lesson.exercise("clip")

# %%
def my_clip(ratio, advantage, epsilon_low, epsilon_high):
    """ratio, advantage: tensors of one shape; the bounds are numbers ≥ 0 → the objective, same
    shape.
    """
    return NotImplemented


clipped.check(my_clip)

# %% [markdown]
# ## A pessimistic lower bound
#
# Subtract (4.1) from ρA. What is left is the part that the clip refuses to count:
#
# $$\rho A - f(\rho, A) = \begin{cases} A\,\max(0,\ \rho-(1+\varepsilon)) & A>0\\ |A|\,\max(0,\ (1-\varepsilon)-\rho) & A<0\end{cases}\quad\ge 0
# \quad\Rightarrow\quad \mathbb E_{\pi_{old}}[f] \le \mathbb E_{\pi_{old}}[\rho A] = J(\pi_\theta)-J(\pi_{old}) \tag{4.3}$$
#
# `eq:clip-lower-bound` · Schulman et al. 2017, §3 (“a lower bound … a pessimistic bound”); the equality on the right is (3.2), for one choice per answer and $b = J(\pi_{old})$. “A Not So Gentle Introduction” calls the min an *upper* bound; it is this lower one.
#
# The cell moves B3's policy towards reward and away from it, $\pi_\theta\propto\pi_{old}\,e^{\lambda\mu}$, lists every group of 4 samples, and averages the rungs' own objectives with $b = J(\pi_{old})$.

# %%
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.theory import effective_samples as far

old, mean = (
    torch.tensor(B3_POLICY, dtype=torch.float64),
    torch.tensor(B3_MEANS, dtype=torch.float64),
)
J_old = float(old @ mean)
print("  λ   true improvement   E[ρA]     E[clip]")
for strength in (-4.0, -1.0, 0.2, 1.0, 4.0):
    moved = far.tilted(old.log(), mean, strength)
    listed, gain = far.bernoulli_arms(moved, old.log()), float(moved.exp() @ mean) - J_old
    plain, low = (
        far.objective_moments(far.centred(rung, J_old), listed, 4)[0]
        for rung in (ladder.surrogate, ladder.clip)
    )
    print(f"{strength:>4}   {gain:<16.3g}   {plain:<7.3g}   {low:.3g}")

# %% [markdown]
# Never above the truth; and below it as soon as a sample has passed the bound of its sign, even where the policy did improve (λ = 4). Pessimism has a price: improvement beyond the bounds is not seen.

# %% jupyter={"source_hidden": true}
lesson.ask("why-min")

# %%
# a good sample that fell, a good sample that rose
place = torch.tensor([0.5, 1.5], requires_grad=True)
for name, choose in (("min", torch.minimum), ("max", torch.maximum)):
    [slope] = torch.autograd.grad(choose(place, place.clamp(0.8, 1.2)).sum(), place)
    print(f"{name}: slope for A = +1 at ρ = 0.5: {slope[0]:+.0f}, at ρ = 1.5: {slope[1]:+.0f}")

# %% [markdown]
# ## It does not bound the ratio
#
# “Clipping prevents the policy from moving too far” is the sentence you will read most. Test it where everything can be computed: two arms that pay 1 and 0, the good one sampled with $\pi_1 = 0.1$,
# a rollout in exact proportion, and small steps of equal length on it until nothing moves.

# %% jupyter={"source_hidden": true}
lesson.ask("stops-at")

# %%
from bandits.theory import clip_unbounded

shares = (0.01, 0.05, 0.1, 0.5)  # of the good arm in the rollout: π₁
rungs = {
    "surrogate": ladder.surrogate,
    "clip": ladder.clip,
    "clip, no baseline": clip_unbounded.UNCENTRED,
}
paths = {
    name: clip_unbounded.small_steps(rung, shares, group=200, length=0.004, steps=1200)
    for name, rung in rungs.items()
}
here = shares.index(0.1)
for name, path in paths.items():
    good, bad, flat = (
        float(path.good[-1, here]),
        float(path.bad[-1, here]),
        float(path.clipped[here]),
    )
    print(
        f"{name:<17} ρ of the good arm ends at {good:.2g}, of the bad arm at {bad:.2g}; clip"
        f" fraction {flat:.0%}"
    )

# %% jupyter={"source_hidden": true}
figure, [ax] = figures.new_figure(width=7.6, height=3.8)
lines = []
for name, label in (
    ("surrogate", "ρA"),
    ("clip", "clip"),
    ("clip, no baseline", "clip, no baseline"),
):
    style = {"color": "#c96f00", "linestyle": figures.DASHDOT} if "," in name else {}
    keep = paths[name].steps <= 800
    lines.append(
        figures.band(
            ax,
            paths[name].steps[keep],
            paths[name].good[keep, here],
            name=name,
            label=label,
            **style,
        )
    )
for level, text in ((1.2, "1 + ε = 1.2"), (2.8, "(1 − 0.8·0.9)/0.1 = 2.8")):
    figures.expectation(ax, level)
    ax.text(790, level + 0.07, text, ha="right", fontsize=10, color=figures.INK)
ax.set_ylim(0.9, 4.6)
figures.describe(
    ax, "Clipped at 1.2, the ratio goes to 2.8", "small steps on one rollout", "ρ of the good arm"
)
ax.text(
    315,
    4.3,
    "ρA, no clip",
    ha="right",
    color=figures.readable(figures.style_of("surrogate")["color"]),
    fontsize=10,
)
figures.label_ends(ax, lines[1:])
lesson.picture(
    figure,
    "the clip's ratio passes 1.2 and stops at 2.8; without a baseline it stops at 1.2; without a"
    " clip it goes on",
)

# %% [markdown]
# Both bounds did what (4.2) says. Arm 1 fell silent at $\rho_1 = 1+\varepsilon$. Arm 2, with its negative advantage, did not: it pushes its own probability down, and what one arm loses the other gets. It is silent when
# $\rho_2 < 1-\varepsilon$. Then $\pi_\theta(2) = (1-\varepsilon)(1-\pi_1)$, and since probabilities sum to 1
#
# $$\rho_1 \to \frac{1-(1-\varepsilon)(1-\pi_1)}{\pi_1} \qquad\text{if that is above } 1+\varepsilon \tag{4.4}$$
#
# `eq:clip-limit` · after Wang et al. 2019 (1903.07940); derived. The rarer the arm, the larger. Between the two bounds, only arm 2 pushes. The expected gradient of arm 1's logit, with $A_2 = 0 - \pi_1$ (reward less mean), is then
#
# $$\pi_{old}(2)\,\rho_2\,A_2\,\frac{\partial\log\pi_\theta(2)}{\partial\theta_1} = \pi_\theta(2)\,(-\pi_1)\,(-\pi_\theta(1)) = \pi_1\,\pi_\theta(1)\,\pi_\theta(2) \tag{4.5}$$
#
# `eq:clip-push` · derived. Positive: it never turns back by itself. Without a baseline $A_2 = 0$, nobody pushes after 1.2, and the ratio stops there: that is the third curve.

# %%
share = torch.tensor(shares, dtype=torch.float64)
print("π₁                     ", [f"{x:g}" for x in share.tolist()])
print(
    "(4.4), or 1 + ε        ", [f"{x:.3g}" for x in clip_unbounded.limit(share, 0.8, 1.2).tolist()]
)
print("measured, small steps  ", [f"{x:.3g}" for x in paths["clip"].after.tolist()])
for ratio in (1.1, 2.0, 2.81):
    print(f"push on arm 1's logit at ρ₁ = {ratio}: {clip_unbounded.push(0.1, ratio):.3g}")
print(f"(4.5) at ρ₁ = 2: {0.1 * 0.2 * 0.8:.3g}")

# %% [markdown]
# At 1.1 both arms push, at 2 only the second, as (4.5) says; at 2.81 nobody. The widget shows the two pushes apart.

# %% jupyter={"source_hidden": true}
def draw_push(share, epsilon_low, epsilon_high, centred):
    figure, [ax] = figures.new_figure(width=8.6, height=3.6)
    stop = float(
        clip_unbounded.limit(
            torch.tensor(share, dtype=torch.float64), 1 - epsilon_low, 1 + epsilon_high
        )
    )
    stop = stop if centred == "r − mean" else min(1 + epsilon_high, 1 / share)
    rho = torch.linspace(0.9, min(1.25 * stop, 0.999 / share), 400, dtype=torch.float64)
    p = share * rho  # probability of the good arm now; the bad arm's ratio is (1 − p)/(1 − share)
    b = share if centred == "r − mean" else 0.0
    good = p * (1 - b) * (1 - p) * (rho <= 1 + epsilon_high)
    bad = (1 - p) * b * p * ((1 - p) / (1 - share) >= 1 - epsilon_low)
    ax.fill_between(
        rho,
        0,
        good,
        color="#00875f",
        alpha=0.45,
        linewidth=0,
        step="mid",
        label="good arm's samples",
    )
    ax.fill_between(
        rho,
        good,
        good + bad,
        color="#b8320f",
        alpha=0.45,
        linewidth=0,
        step="mid",
        label="bad arm's samples",
    )
    figures.expectation(ax, x=1 + epsilon_high)
    ax.axvline(stop, color=figures.INK, linewidth=1.6)
    ax.set_ylim(0, None)
    ax.legend(frameon=False, loc="upper right")
    figures.describe(
        ax,
        f"clipped at {1 + epsilon_high:.3g}, it stops at {stop:.3g}",
        "ρ of the good arm (dashed: 1 + ε_high)",
        "push on its logit",
    )
    return figure


# %%
lesson.explore(
    "push",
    draw_push,
    "The good arm's push ends at the dashed line; the bad arm's goes on to the solid one. Make the"
    " arm rarer; raise ε_high and see which of the two lines it moves; take the baseline away.",
    steady=False,  # its labels grow
    share=Slider(0.02, 0.6, 0.02, 0.1, "π₁"),
    epsilon_low=Slider(0.05, 0.6, 0.05, 0.2, "ε_low"),
    epsilon_high=Slider(0.05, 0.6, 0.01, 0.2, "ε_high"),
    centred=Choice(("r − mean", "r, no baseline"), "r − mean", "advantage"),
)

# %%
stops = lesson.exercise("where-it-stops")

# %%
def my_limit(share, epsilon_low, epsilon_high):
    """share: π₁ of the good arm; two bounds → the ratio ρ₁ at which nothing pushes any more."""
    return NotImplemented


stops.check(my_limit)

# %% [markdown]
# ## On sampled rollouts
#
# A flat region has a second weakness: nothing pulls back. A sample that jumped over its bound has gradient 0 and stays. Sixteen questions that share their parameters, ten answers each, 8 samples per question, 20 runs: one rollout, the update loop by hand.

# %%
from bandits.linear import linear_bandit

SIZES, zero = (16, 10, 48), torch.zeros(1)
bandit, noise = linear_bandit(SIZES, zero, range(20), group=8, seed=0)
rollout = bandit.sample(noise)
frozen = ladder.clip.freeze(rollout)  # advantages and weights, once
ratios = {}
for update in range(1, 65):
    [gradient] = torch.autograd.grad(
        ladder.clip.objective(bandit.policy(rollout), frozen).sum(), bandit.parameters
    )
    with torch.no_grad():
        bandit.parameters[0].add_(16.0 * gradient)
        ratios[update] = ladder.clip.log_ratio(bandit.policy(rollout), rollout).exp()
good, bad = frozen.advantage > 0, frozen.advantage < 0
for update in (1, 4, 16, 64):
    now = ratios[update]
    flat, low = float((now[good] > 1.2).double().mean()), float((now[bad] < 0.8).double().mean())
    print(
        f"after {update:>2} updates: good samples above 1.2: {flat:.0%}, the largest"
        f" {float(now[good].max()):.2f};   bad ones below 0.8: {low:.0%}, the smallest"
        f" {float(now[bad].min()):.2f}"
    )

# %% jupyter={"source_hidden": true}
figure, panels = figures.new_figure(1, 2, width=9.0, height=3.3)
for ax, which, text, colour in zip(
    panels, (good, bad), ("good samples, A > 0", "bad samples, A < 0"), ("#00875f", "#b8320f")
):
    ax.hist(
        ratios[64][which].numpy(), bins=torch.linspace(0, 4.5, 91).numpy(), color=colour, alpha=0.75
    )
    figures.expectation(ax, x=1.2 if which is good else 0.8)
    ax.set_yticks([])
    ax.grid(False)
    figures.describe(
        ax, text, "ρ after 64 updates (dashed: the bound)", "samples" if which is good else ""
    )
lesson.picture(
    figure,
    "good samples pile up beyond 1.2, with a tail to 4; bad ones below 0.8, with some above 1",
)

# %% [markdown]
# After four updates nine of ten good samples are switched off. Yet between the 4th and the 64th the largest ratio goes from 1.64 to 4.12: the bad samples, and those of other questions, still move the shared parameters.
# So a clip fraction tells how many samples are silent. It does not tell how far the policy has gone. Log the KL and the largest ρ beside it.
#
# ## What it buys
#
# And yet it is worth its line. Sixteen updates per rollout, 60 rollouts, 20 runs, the same bandit, one learning rate for all. (So many large steps blow up rounding errors: on another processor, last digits may be others.)

# %%
from course.lab.statistics import interval
from course.learner import Learner
from course.train.optim import SGD


def trained(estimator, rate=64.0, epochs=16):
    """The history of 20 runs of 60 rollouts."""
    bandit, noise = linear_bandit(SIZES, zero, range(20), group=8, seed=0)
    return Learner(bandit, estimator, SGD(rate), noise, epochs=epochs).train(60)


def report(name, history):
    mean, half = interval(history["expected_reward"][-1, 0])
    entropy = float(history["entropy"][4].mean())
    far_ratio, kl = float(history["ratio_max"].max()), float(history["kl_old"].mean())
    print(
        f"{name:<20} final reward {mean:.2f} ± {half:.2f}   entropy, 5th rollout: {entropy:.2f}"
        f" nats   largest ρ: {far_ratio:.2g}   mean KL: {kl:.2g}"
    )


# %% tags=["nbval-ignore-output"]
runs = {name: trained(ladder.get(name).estimator) for name in ("baseline", "surrogate", "clip")}
for name, history in runs.items():
    report(name, history)

# %% [markdown]
# Of the three the clip keeps the policy undecided longest, moves it a tenth as far per rollout as the bare ratio (in KL), and ends highest. Not a bound, a strong brake.
#
# ## One more replaced part: clip-higher
#
# What may a sample's probability $p$ gain before its own push ends? In small steps at most
#
# $$\pi_\theta - \pi_{old} = \varepsilon_{high}\; p, \qquad p = \pi_{old}(o) \tag{4.6}$$
#
# `eq:clip-higher` · Yu et al. 2025 (DAPO, 2503.14476), §3.1 and eq. 10. An answer of $p = .01$ gets .002, one of $p = .5$ gets .1. (One large step can overshoot.) DAPO raises the upper bound alone, to 0.28, to leave rare tokens more room:

# %%
higher = course.replace(ladder.clip, surrogate=Clip(0.2, 0.28))
higher

# %%
for p in (0.01, 0.5):
    print(f"p = {p}: room {p * 0.2:.3g} with ε_high = 0.2, {p * 0.28:.3g} with 0.28")
print(
    "(4.4) for the two: ",
    [
        f"{float(clip_unbounded.limit(torch.tensor(0.01, dtype=torch.float64), 0.8, 1 + e)):.3g}"
        for e in (0.2, 0.28)
    ],
    "at π₁ = 0.01",
)

# %% tags=["nbval-ignore-output"]
for name, estimator in (
    ("clip", ladder.clip),
    ("clip-higher", higher),
    ("ε_high = 0.5", course.replace(ladder.clip, surrogate=Clip(0.2, 0.5))),
):
    report(name, trained(estimator))

# %% [markdown]
# Two sober findings. Where bad samples push as well, a rare arm's ratio ends at (4.4), which has no $\varepsilon_{high}$ in it. And on this bandit the wider bound speeds up commitment: entropy falls *faster*, the reward is no better.
# DAPO reports that on a language model entropy stays higher with it. What you see here does not contradict that; it says that the effect is not in the formula alone.
#
# ## Dual clip
#
# (4.1) leaves one side open: $A<0$ and a large ρ. The push is $\rho A$, and ρ may be anything. Dual clip cuts it off:
#
# $$f_{dual}(\rho, A) = \max\left(f(\rho, A),\ cA\right) \quad\text{where } A<0,\qquad c > 1+\varepsilon \tag{4.7}$$
#
# `eq:dual-clip` · Ye et al. 2019 (1912.09729).

# %%
dual = course.replace(ladder.clip, surrogate=Clip(0.2, dual_clip=3.0))
dual

# %%
far_out = torch.tensor([1.5, 2.9, 3.1, 30.0], dtype=torch.float64)
minus = torch.full_like(far_out, -1.0)
for name, part in (
    ("clip", Clip(0.2)),
    ("dual clip, c = 3", Clip(0.2, dual_clip=3.0)),
    ("ratio cap 3", Clip(0.2, ratio_cap=3.0)),
):
    print(
        f"{name:<17} at A = −1, ρ = 1.5, 2.9, 3.1, 30:",
        [f"{x:.3g}" for x in part(far_out.log(), far_out.log(), minus).tolist()],
    )

# %% tags=["nbval-ignore-output"]
report("dual clip", trained(dual))

# %% [markdown]
# verl clips twice by default ($c = 3$); TRL does not, and its `delta` caps ρ inside the min: here the same numbers, another formula, and another function where the cap is below $1+\varepsilon$. Above ρ = 3 the sample is flat: the clip now has gradient 0 just where a bad sample went *most* wrong. Here it hardly matters: ratios that large are rare.
#
# ## CISPO
#
# <!-- answers: 24 -->
#
# The clip silences samples. CISPO clips the **weight** instead and differentiates log π, so that every sample keeps a gradient:
#
# $$\nabla_\theta\ \mathrm{sg}[\mathrm{clip}(\rho)]\,A\log\pi_\theta = \mathrm{clip}(\rho,\,0,\,1+\varepsilon_{high})\;A\,\nabla_\theta\log\pi_\theta \tag{4.8}$$
#
# `eq:cispo` · MiniMax 2025 (MiniMax-M1, 2506.13585), eqs. 4 and 5. sg is stop-gradient; the paper leaves the lower side open, which for a ratio is 0.

# %%
cispo = course.replace(ladder.clip, surrogate=CISPO(epsilon_high=0.28))
cispo

# %% jupyter={"source_hidden": true}
lesson.ask("cispo-epsilon")

# %%
def weight(surrogate, ratio, advantage):
    """What multiplies A·∇log π: the derivative of the objective by log π, over A."""
    # π_old = 1 as the unit
    log_prob = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    A = torch.tensor(advantage, dtype=torch.float64)
    return float(torch.autograd.grad(surrogate(log_prob, log_prob, A), log_prob)[0] / A) + 0.0


parts = {
    "ρA": ImportanceSampling(),
    "clip": Clip(0.2),
    "clip-higher": Clip(0.2, 0.28),
    "dual clip": Clip(0.2, dual_clip=3.0),
    "CISPO 0.28": CISPO(epsilon_high=0.28),
}
print("weight of A∇log π at ρ =", (0.5, 1.0, 1.25, 2.0, 5.0))
for name, part in parts.items():
    for sign in (1.0, -1.0):
        print(
            f"  {name:<12} A = {sign:+g}: ",
            "  ".join(f"{weight(part, rho, sign):<5.3g}" for rho in (0.5, 1.0, 1.25, 2.0, 5.0)),
        )
print(
    "an offset of 1.28 where 0.28 was meant: weight at ρ = 5 is",
    f"{weight(CISPO(epsilon_high=1.28), 5.0, 1.0):.3g}",
)

# %% tags=["nbval-ignore-output"]
report("CISPO", trained(cispo))

# %% [markdown]
# Zeros are silent samples. CISPO has none: it bounds the weight of *one* push, not how often the push is repeated. With sixteen updates per rollout on this bandit it behaves like the bare ratio, early commitment included. MiniMax made it for long answers whose rare but decisive tokens the clip silences; a bandit has none.
# Every line of the table is the rung with one part replaced.

# %% [markdown]
# ## Break it
#
# Two runs of this rung, sixteen updates per rollout, 20 seeds each. One has a fault in the surrogate.

# %% jupyter={"source_hidden": true}
from dataclasses import dataclass


@dataclass(frozen=True)
class Faulty(Clip):
    """The fault."""

    def __call__(self, log_ratio, log_prob, advantage):
        ratio = log_ratio.exp()
        return torch.maximum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


broken = {"run A": runs["clip"], "run B": trained(course.replace(ladder.clip, surrogate=Faulty()))}
figure, panels = figures.new_figure(1, 3, width=9.0, height=3.2)
for label, colour in (("run A", "#332288"), ("run B", "#c96f00")):
    for ax, metric in zip(panels, ("expected_reward", "ratio_max", "ratio_min")):
        figures.band(
            ax,
            torch.arange(1, 61),
            broken[label][metric].mean((1, 2)),
            None,
            label=label,
            color=colour,
            linestyle="-",
        )
for ax, title in zip(panels, ("expected reward", "largest ρ", "smallest ρ")):
    figures.describe(ax, title, "rollouts (mean of 20 runs)", "")
panels[1].set_yscale("log")
panels[2].set_yscale("log")
panels[0].legend(frameon=False)
lesson.picture(
    figure,
    "run A climbs to 0.87; run B jumps at once above 0.5 and ends near 0.7; its largest ratios go"
    " up to 100, its smallest down to 0.00003",
)

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %% [markdown]
# The reveal: run B computes `torch.maximum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)`, flat where a sample went the wrong way. Beside it the bare ratio:

# %% tags=["nbval-ignore-output"]
for name, history in (
    ("min: the clip", runs["clip"]),
    ("max: run B", broken["run B"]),
    ("ρA, no clip at all", runs["surrogate"]),
):
    report(name, history)

# %% [markdown]
# The reward still rises and nothing crashes. That it ends low has many possible causes. The ratios narrow it down: nothing brakes. Whether the clip is missing or the wrong way round they do not tell; the slopes at ρ = 0.5 and 1.5 above do.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# The clip is a flat region for each sample, on the side its advantage pushes to, and makes the objective a pessimistic lower bound. It bounds neither the ratio nor the KL: others move the sample too, and nothing pulls it back.
#
# ## Next
#
# All of this used one baseline for the whole batch. PPO as it was published uses a critic, a learned value for every token: lesson 05 builds it, and lesson 06 replaces it by the mean of a group.
