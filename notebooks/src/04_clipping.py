# %% [markdown]
# # 04 · PPO's clip
#
# When you are through you can
#
# - say for any ρ and A which side of the clip is flat, and why the formula takes the min and not the max;
# - compute how far a ratio runs although it is clipped at 1.2, and say why;
# - write the whole training loop in plain PyTorch, with epochs, the clip and a stop on the KL;
# - read clip-higher, dual clip and CISPO as one replaced part each.
#
# You need lesson 03: the ratio ρ, the surrogate ρA, stale samples, KL in nats.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

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
# Lesson 03 ended in a corner: several updates on one rollout drive the bare surrogate ρA to a policy that is sure of one answer. TRPO bounds each step, at the price of second-order machinery (lesson 03b).
# PPO, proximal policy optimisation, replaces one part by one line:

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
# The line is $\min(\rho A,\ \mathrm{clip}(\rho)A)$, where $\mathrm{clip}(\rho)$ is ρ held between $1-\varepsilon$ and $1+\varepsilon$. It has a min, a clip and an A of either sign, which is why it confuses. Take the signs apart.
# For $A > 0$ the smaller of the two products has the smaller factor, and $\min(\rho, \mathrm{clip}(\rho)) = \min(\rho, 1+\varepsilon)$: below the range clip only makes ρ larger. For $A < 0$ the smaller product has the **larger** factor, $\max(\rho, \mathrm{clip}(\rho)) = \max(\rho, 1-\varepsilon)$:
#
# $$f(\rho, A) = \begin{cases} A\,\min(\rho,\,1+\varepsilon) & A > 0\\ A\,\max(\rho,\,1-\varepsilon) & A < 0\end{cases} \tag{4.1}$$
#
# `eq:clipped-surrogate` · Schulman et al. 2017 (PPO), eq. 7, one sign at a time. Each sign meets one bound only; where the two differ in width they are called $\varepsilon_{low}$ and $\varepsilon_{high}$.
#
# With $\varepsilon = .2$, a good sample ($A = 1$) at $\rho = 1.5$ counts $\min(1.5, 1.2) = 1.2$, and at $\rho = .5$ it counts .5.

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
# So “the ratio is capped at 1.2 and .8” is loose: which of the two applies depends on the sign of A, and the ratio itself is not touched.

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
# `eq:clip-flat` · Schulman et al. 2017, §3. The **clip fraction** of a log is the share of samples in the first line.

# %%
lesson.code(Clip.clipped)

# %% [markdown]
# ## Do it: the clip

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
# ## “My clip fraction is always 0”
#
# <!-- answers: 4 -->
# At $\pi_{old}$ every ρ is 1, and 1 lies inside every range. So with one update per rollout nothing is ever clipped, and this rung **is** the rung below. Many ask why their clip fraction stays 0, and raise the group size. What counts is whether a rollout gets more than one update (lesson 03):

# %%
from bandits.linear import linear_bandit
from course.learner import Learner
from course.train.optim import SGD

SIZES, zero = (16, 10, 48), torch.zeros(1)  # questions, answers of each, shared parameters
for group in (8, 32):
    for updates in (1, 2, 4):
        bandit, noise = linear_bandit(SIZES, zero, range(1), group=group, seed=0)
        history = Learner(bandit, ladder.clip, SGD(64.0), noise, epochs=updates).train(20)
        fraction, ratio = history["clip_fraction"].mean(), history["ratio_max"].max()
        print(
            f"G = {group:>2}, {updates} updates per rollout: clip fraction {float(fraction):.1%},"
            f" largest ρ {float(ratio):.3g}"
        )

# %% [markdown]
# ## A pessimistic lower bound
#
# Subtract (4.1) from ρA. What is left is the part that the clip refuses to count:
#
# $$\rho A - f(\rho, A) = \begin{cases} A\,\max(0,\ \rho-(1+\varepsilon)) & A>0\\ |A|\,\max(0,\ (1-\varepsilon)-\rho) & A<0\end{cases}\quad\ge 0
# \quad\Rightarrow\quad \mathbb E_{\pi_{old}}[f] \le \mathbb E_{\pi_{old}}[\rho A] = J(\pi_\theta)-J(\pi_{old}) \tag{4.3}$$
#
# `eq:clip-lower-bound` · Schulman et al. 2017, §3 (“a lower bound … a pessimistic bound”); the equality on the right is (3.2), for one choice per answer and $b = J(\pi_{old})$.
# It is a *lower* bound on ρA: the min of ρA and something else is at most ρA.
#
# The cell moves B3's policy towards reward and away from it, $\pi_\theta\propto\pi_{old}\,e^{\lambda\mu}$ with $\mu$ each arm's mean reward, lists every group of 4 samples, and averages the rungs' own objectives with $b = J(\pi_{old})$.

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
# “Clipping prevents the policy from moving too far” is the sentence you will read most. Test it where everything can be computed: two arms that pay 1 and 0. The good one was sampled with probability $p = \pi_{old}(1) = .1$.
# The rollout holds the arms in exact proportion, so its mean reward is $p$. Take small steps of equal length on it until nothing moves.

# %% jupyter={"source_hidden": true}
lesson.ask("stops-at")

# %%
from bandits.theory import clip_unbounded

shares = (0.01, 0.05, 0.1, 0.5)  # of the good arm in the rollout: p
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
# Both bounds did what (4.2) says. Arm 1 fell silent at $\rho_1 = 1+\varepsilon$. Arm 2, with its negative advantage, did not: it pushes its own probability down, and what one arm loses the other gets. It falls silent at
# $\rho_2 = 1-\varepsilon$. Then $\pi_\theta(2) = (1-\varepsilon)(1-p)$, and since probabilities sum to 1
#
# $$\rho_1 = \frac{\pi_\theta(1)}{p} \to \frac{1-(1-\varepsilon)(1-p)}{p} \qquad\text{if that is above } 1+\varepsilon \tag{4.4}$$
#
# `eq:clip-limit` · after Wang et al. 2019; derived. At $p = .1$ it is $(1 - .8\cdot.9)/.1 = 2.8$. The rarer the arm, the larger.
#
# Between the two bounds only arm 2 pushes. Its advantage is $A_2 = 0 - p$, reward less mean. Its samples' share of the expected gradient of arm 1's logit is, with $\pi_{old}(2)\,\rho_2 = \pi_\theta(2)$ and the score of a softmax, $\partial\log\pi_\theta(2)/\partial\theta_1 = -\pi_\theta(1)$,
#
# $$\pi_{old}(2)\,\rho_2\,A_2\,\frac{\partial\log\pi_\theta(2)}{\partial\theta_1} = \pi_\theta(2)\,(-p)\,(-\pi_\theta(1)) = p\,\pi_\theta(1)\,\pi_\theta(2) \tag{4.5}$$
#
# `eq:clip-push` · derived. It is positive, so arm 1 goes on rising. Without a baseline $A_2 = 0$: nobody pushes after 1.2, and the ratio stops there. That is the third curve.

# %%
share = torch.tensor(shares, dtype=torch.float64)
print("p                      ", [f"{x:g}" for x in share.tolist()])
print(
    "(4.4), or 1 + ε        ", [f"{x:.3g}" for x in clip_unbounded.limit(share, 0.8, 1.2).tolist()]
)
print("measured, small steps  ", [f"{x:.3g}" for x in paths["clip"].after.tolist()])
for ratio in (1.1, 2.0, 2.81):
    print(f"push on arm 1's logit at ρ₁ = {ratio}: {clip_unbounded.push(0.1, ratio):.3g}")
print(f"(4.5) at ρ₁ = 2: {0.1 * 0.2 * 0.8:.3g}")

# %% [markdown]
# At 1.1 both arms push, at 2 only the second, as (4.5) says; at 2.81 nobody.
#
# ## Explore: who pushes

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
    now = share * rho  # the good arm's probability; the bad arm's ratio is (1 − now)/(1 − share)
    b = share if centred == "r − mean" else 0.0
    good = now * (1 - b) * (1 - now) * (rho <= 1 + epsilon_high)
    bad = (1 - now) * b * now * ((1 - now) / (1 - share) >= 1 - epsilon_low)
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
    share=Slider(0.02, 0.6, 0.02, 0.1, "p = π_old(1)"),
    epsilon_low=Slider(0.05, 0.6, 0.05, 0.2, "ε_low"),
    epsilon_high=Slider(0.05, 0.6, 0.01, 0.2, "ε_high"),
    centred=Choice(("r − mean", "r, no baseline"), "r − mean", "advantage"),
)

# %% [markdown]
# ## Do it: where it stops

# %%
stops = lesson.exercise("where-it-stops")

# %%
def my_limit(share, epsilon_low, epsilon_high):
    """share: the old probability p of the good arm; two bounds → the ratio ρ₁ at which nothing
    pushes any more.
    """
    return NotImplemented


stops.check(my_limit)

# %% [markdown]
# ## The training loop, in plain PyTorch
#
# Until now nothing was sampled. Training is a loop: sample a rollout, compute the advantages once, take several updates on it, begin again. Here it is without anything of this course but the problem, which samples and pays. It is the problem of
# lesson 03: sixteen questions, ten answers each, 48 parameters that all questions share. One line is new: before each further update it measures $\mathrm{KL}(\pi_{old}\|\pi_\theta)$ and leaves the rollout if that is too large.

# %%
def train_by_hand(rollouts, epochs, rate, epsilon=0.2, kl_stop=None):
    """PPO without a critic, on one run. Returns the parameters and the updates of each rollout."""
    problem, noise = linear_bandit(SIZES, zero, range(1), group=8, seed=0)
    features, [theta] = problem.arm_policy.features, problem.parameters  # [16, 10, 48], [1, 1, 48]
    optimizer, updates = torch.optim.SGD([theta], lr=rate, maximize=True), []
    for _ in range(rollouts):
        rollout = problem.sample(noise)  # answers, rewards and log π_old, all without gradient
        answer = rollout.data["action"][0, 0]  # [16 questions, 8 answers]
        old_all = torch.log_softmax(features @ theta[0, 0], -1).detach()  # [16, 10]
        old = old_all.gather(-1, answer)
        reward = rollout.reward[0, 0, ..., 0]
        advantage = reward - reward.mean()  # once per rollout, a constant from here on
        for taken in range(epochs):
            now_all = torch.log_softmax(features @ theta[0, 0], -1)
            kl = (old_all.exp() * (old_all - now_all)).sum(-1).mean()
            if kl_stop is not None and taken > 0 and kl > kl_stop:
                break
            ratio = (now_all.gather(-1, answer) - old).exp()
            inside = ratio.clamp(1 - epsilon, 1 + epsilon)
            objective = torch.minimum(ratio * advantage, inside * advantage).mean()
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
        else:
            taken = epochs  # no break
        updates.append(taken)
    return theta.detach(), updates


# %% [markdown]
# `Learner` is the same loop, for any problem and any rung. Its `kl_stop` is the same test.

# %%
for kl_stop in (None, 0.02):
    theta, updates = train_by_hand(20, epochs=8, rate=16.0, kl_stop=kl_stop)
    bandit, noise = linear_bandit(SIZES, zero, range(1), group=8, seed=0)
    learner = Learner(bandit, ladder.clip, SGD(16.0), noise, epochs=8, kl_stop=kl_stop)
    history = learner.train(20)
    same = torch.allclose(theta, bandit.parameters[0].detach(), rtol=0, atol=1e-9)
    print(
        f"kl_stop = {kl_stop}: the parameters agree to 1e-9: {same}; updates of the first"
        f" rollouts: {updates[:6]}"
    )
    if kl_stop is not None:
        counted = history["updates"].flatten().long().tolist()
        print(f"   Learner counts the same updates in all 20 rollouts: {counted == updates}")

# %% [markdown]
# With the stop at .02 nats the first rollout ends after seven updates, the third after four.
#
# ## Nothing pulls back
#
# On sampled rollouts a flat region has a second weakness. A sample that jumped over its bound has gradient 0, so its own term does not pull it back. Others still move it. Follow one rollout over 64 updates, in 20 runs:

# %%
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
# After four updates nine of ten good samples are switched off. Yet between the 4th and the 64th the largest ratio goes from 1.64 to 4.12: the samples that are not silent still move the parameters, which all questions share.
# So a clip fraction tells how many samples are silent. It does not tell how far the policy has gone. Log the KL and the largest ρ beside it.
#
# ## What it buys
#
# <!-- answers: 49 -->
# And yet it is worth its line. Sixteen updates per rollout, 60 rollouts, 20 runs, one learning rate for all; ± is a 95 % interval over the runs. (So many large steps blow up rounding errors: on another processor, last digits may be others.)

# %%
from course.lab.statistics import interval


def trained(estimator, rate=64.0, epochs=16, kl_stop=None):
    """The history of 20 runs of 60 rollouts."""
    bandit, noise = linear_bandit(SIZES, zero, range(20), group=8, seed=0)
    learner = Learner(bandit, estimator, SGD(rate), noise, epochs=epochs, kl_stop=kl_stop)
    return learner.train(60)


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
# But one learning rate for all three is no fair comparison: it may suit one of them by chance. `course bandits staleness` tries five learning rates for every rung and every number of updates, chooses the best on 40 runs and reports 40 others. These are its numbers,
# first at the rate that is best with one update, then with each rung at its own best rate:

# %%
from course.lab.places import measured
from course.lab.result import Result

found = Result.load(measured("staleness"))
last = found.settings["epochs"].index(16)
for name in ("baseline", "surrogate", "clip"):
    rung = found.series["rungs"][name]
    row = [
        f"{what} {rung[kind][i]:.2f} ± {rung[kind + '_half'][i]:.2f}"
        for what, kind, i in (
            ("one update", "fixed", 0),
            ("16 updates, same rate", "fixed", last),
            ("16, own rate", "retuned", last),
        )
    ]
    print(f"{name:<10} {'   '.join(row)}   own rate: {rung['rates'][last]:g}")

# %% [markdown]
# With a rate of its own `baseline` hardly loses: much of its fall to .55 was a learning rate that is too large for sixteen updates. What remains is the finding that counts. Only the clip turns sixteen updates into more reward than one, .88 against .78.
#
# ## When the clip does not hold: stop on the KL
#
# What do you do when the policy runs away although it is clipped? You stop using the rollout: measure the KL before each further update, and go on to the next rollout once it is above a limit. That is the line in the loop above. The same runs with two limits, with the clip and without:

# %% tags=["nbval-ignore-output"]
for name in ("clip", "surrogate"):
    for kl_stop in (None, 0.2, 0.05):
        history = runs[name]
        if kl_stop is not None:
            history = trained(ladder.get(name).estimator, kl_stop=kl_stop)
        end, half = interval(history["expected_reward"][-1, 0])
        updates = float(history["updates"].mean()) if kl_stop else 16
        print(
            f"{name:<10} kl_stop {kl_stop!s:<5} final reward {end:.2f} ± {half:.2f}   updates per"
            f" rollout {updates:<5.3g} KL before the last update: mean"
            f" {float(history['kl_old'].mean()):.2g}, largest {float(history['kl_old'].max()):.2g}"
        )

# %% [markdown]
# The bare ratio ends no lower: .77 and .78 against .74, a difference within the intervals. Its KL was up to 4.3 nats and is now below the limit whenever an update begins. (The last update of a rollout can still overshoot.) Beside the clip a limit of .2, four times the usual KL, hardly ever fires and costs
# nothing that these runs can tell. A limit of .05 fires half-way through a rollout, and the reward falls to .80: it stops samples that the clip had not silenced and that still had something to teach.
#
# So a KL stop bounds what the clip does not, and it is a safety net, not an improvement on the clip. Set it to a few times the KL that you usually see.
#
# ## One more replaced part: clip-higher
#
# <!-- answers: 35 -->
# What may a sample's probability $p = \pi_{old}(o)$ gain before its own push ends? At $\rho = 1 + \varepsilon_{high}$ it has gained
#
# $$\pi_\theta - \pi_{old} = \varepsilon_{high}\; p \tag{4.6}$$
#
# `eq:clip-higher` · Yu et al. 2025 (DAPO), §3.1 and eq. 10. An answer of $p = .01$ gets .002, one of $p = .5$ gets .1. (One large step can overshoot.) DAPO raises the upper bound alone, to .28, to leave rare tokens more room:

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
    "at p = 0.01",
)

# %% tags=["nbval-ignore-output"]
report("clip", runs["clip"])
report("clip-higher", trained(higher))
report("ε_high = 0.5", trained(course.replace(ladder.clip, surrogate=Clip(0.2, 0.5))))

# %% [markdown]
# People ask why the entropy of their policy collapses, or why it climbs once they raise $\varepsilon_{high}$. Two sober findings from here. Where bad samples push as well, a rare arm's ratio ends at (4.4), which has no $\varepsilon_{high}$ in it. And on this bandit the wider bound speeds up commitment: entropy falls *faster*, the reward is no better.
# DAPO reports that on a language model entropy stays higher with it. What you see here does not contradict that; it says that the effect is not in the formula alone.
#
# ## Dual clip (optional)
#
# (4.1) leaves one side open: $A<0$ and a large ρ. The push is $\rho A$, and ρ may be anything. Dual clip cuts it off:
#
# $$f_{dual}(\rho, A) = \max\left(f(\rho, A),\ cA\right) \quad\text{where } A<0,\qquad c > 1+\varepsilon \tag{4.7}$$
#
# `eq:dual-clip` · Ye et al. 2019. With $c = 3$ a bad sample counts at most three times.

# %%
dual = course.replace(ladder.clip, surrogate=Clip(0.2, dual_clip=3.0))
dual

# %% [markdown]
# verl clips twice by default ($c = 3$), TRL does not. Above ρ = 3 the sample is flat: the clip now has gradient 0 just where a bad sample went *most* wrong. The table of weights below shows it, in the last column.
#
# ## CISPO (optional)
#
# <!-- answers: 24 -->
#
# The clip silences samples. CISPO clips the **weight** instead and differentiates log π, so that every sample keeps a gradient:
#
# $$\nabla_\theta\ \mathrm{sg}[\mathrm{clip}(\rho)]\,A\log\pi_\theta = \mathrm{clip}(\rho,\,0,\,1+\varepsilon_{high})\;A\,\nabla_\theta\log\pi_\theta \tag{4.8}$$
#
# `eq:cispo` · MiniMax 2025 (MiniMax-M1), eqs. 4 and 5. sg is stop-gradient: the value is used, and it is not differentiated (`detach`). The paper leaves the lower side open, which for a ratio is 0.

# %%
cispo = course.replace(ladder.clip, surrogate=CISPO(epsilon_high=0.28))
cispo

# %% jupyter={"source_hidden": true}
lesson.ask("rare-token")

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
print("\n1.28 where an offset is meant: weight at ρ = 5 is", f"{weight(CISPO(1.28), 5.0, 1.0):.3g}")
print("0.28 where the bound itself is meant: weight at ρ = 1 is", f"{min(1.0, 0.28):.3g}")

# %% tags=["nbval-ignore-output"]
report("CISPO", trained(cispo))

# %% [markdown]
# Zeros are silent samples. CISPO has none: it bounds the weight of *one* push, not how often the push is repeated. With sixteen updates per rollout on this bandit it behaves like the bare ratio, early commitment included. MiniMax made it for long answers whose rare but decisive tokens the clip silences; a bandit has none.
#
# Is $\varepsilon$ an offset from 1 or the bound itself? In the paper, here and in verl it is an offset: .28 cuts at 1.28. TRL's `epsilon_high` is the bound itself under `loss_type="cispo"`: there you write 1.28, and with .28 every weight is cut to .28, even on policy.

# %% [markdown]
# ## Break it
#
# Two runs of this rung, sixteen updates per rollout, 20 seeds each. One has a fault in the surrogate.

# %% jupyter={"source_hidden": true}
Suspect = lesson.hidden("Suspect")  # in the file of exercises: look after you have answered
broken = {"run A": runs["clip"], "run B": trained(course.replace(ladder.clip, surrogate=Suspect()))}
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
# The reveal: run B takes `torch.maximum`, flat where a sample went the wrong way. Beside it the bare ratio:

# %%
lesson.code(Suspect)

# %% tags=["nbval-ignore-output"]
for name, history in (
    ("min: the clip", runs["clip"]),
    ("max: run B", broken["run B"]),
    ("ρA, no clip at all", runs["surrogate"]),
):
    report(name, history)

# %% [markdown]
# The reward still rises and nothing crashes. That it ends low has many possible causes. The ratios narrow it down: nothing brakes. Whether the clip is missing or the wrong way round they do not tell; the slopes at ρ = .5 and 1.5 above do.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# The clip is a flat region for each sample, on the side its advantage pushes to, and makes the objective a pessimistic lower bound. It bounds neither the ratio nor the KL: others move the sample too, and its own term does not pull it back. What stops a rollout is a test of the KL.
#
# ## Next
#
# All of this used one baseline for the whole batch. PPO as it was published uses a critic, a learned value for every token: lesson 05 builds it, and lesson 06 replaces it by the mean of a group.
