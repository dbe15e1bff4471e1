# %% [markdown]
# # 03b · TRPO (optional)
#
# No other lesson needs this one. It shows where PPO comes from: the same surrogate as in lesson 03, with a real bound on every step, and what such a bound costs.
#
# When you are through you can
#
# - state TRPO as a constraint on a step, and say why no part of the objective is replaced;
# - derive the Fisher matrix as the second order of the KL, and multiply with it without writing it down;
# - take one step by hand: natural gradient, step length, line search;
# - say what the bound bounds, and what it does not.
#
# You need lesson 03: the surrogate ρA, and the KL divergence in nats.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from bandits.exact import B3_MEANS, B3_POLICY
from course import ladder
from course.lab import figures

lesson = course.setup("03b")
old = torch.tensor(B3_POLICY, dtype=torch.float64)
mean = torch.tensor(B3_MEANS, dtype=torch.float64)  # expected reward of each arm
J_old = float(old @ mean)
ladder.surrogate

# %% [markdown]
# ## A bound on the step
#
# Lesson 03 ended with a policy in a corner: the surrogate $\mathbb E_{\pi_{old}}[\rho A]$ is right on average at any distance, but far out too few samples are left to say so.
# TRPO (trust region policy optimisation) climbs the same surrogate, and no further than the samples carry:
#
# $$\max_\theta\ \mathbb E_{\pi_{old}}[\rho A] \quad\text{subject to}\quad \mathrm{KL}(\pi_{old}\|\pi_\theta) \le \delta \tag{3b.1}$$
#
# `eq:trust-region-problem` · Schulman et al. 2015 (TRPO), eq. 14
#
# The **trust region** is the set of policies inside the bound. No part is replaced: the objective is that of the rung above, and the *optimiser* is another one.
#
# Lesson 03 bounded the samples that are left with the other direction, $G_{\text{eff}} \le G\,e^{-\mathrm{KL}(\pi_\theta\|\pi_{old})}$. Near $\pi_{old}$ the direction does not matter. Far from it, it does:

# %%
from course.parts.kl import exact_kl


def apart(first, then):
    """KL(first‖then), KL(then‖first), and the share 1/E[ρ²] of the samples that is left."""
    first, then = (torch.tensor(p, dtype=torch.float64).log() for p in (first, then))
    left = 1 / float((2 * then - first).exp().sum())
    return float(exact_kl(first, then)), float(exact_kl(then, first)), left


near, sudden = (0.5, 0.3, 0.2), (0.998, 0.001, 0.001)
for first, then in ((near, (0.45, 0.3, 0.25)), (sudden, (0.5, 0.25, 0.25))):
    one, other, left = apart(first, then)
    print(
        f"{first} → {then}: KL(π_old‖π) = {one:.3g}, KL(π‖π_old) = {other:.3g},"
        f" samples left {left:.1%}"
    )

# %% [markdown]
# In the second row the KL that TRPO bounds is .68 nats and less than one sample in a hundred is left. So a bound on it is a bound on the lost samples for small steps only.
#
# ## One small step: two expansions
#
# Solve (3b.1) for a small step $d$ of the parameters. Write $s_a = \nabla_\theta\log\pi_\theta(a)$ for the score.
#
# *The surrogate.* Its gradient at $\pi_{old}$ is $g = \nabla J$, by (3.3). So it is $g^\top d$ to first order.
#
# *The KL.* Expand $\log\pi_{\theta+d}$ to second order and average:
#
# $$\mathrm{KL}(\pi_\theta\|\pi_{\theta+d}) = -\mathbb E_{\pi_\theta}[\log\pi_{\theta+d}-\log\pi_\theta]
# = -\underbrace{\mathbb E[s]}_{=\,0}{}^{\!\top} d \;-\; \tfrac12\,d^\top\,\mathbb E[\nabla^2\log\pi]\,d + O(\|d\|^3).$$
#
# The first order is 0, because a score has mean 0 (lesson 01). It has to be: a KL is 0 at $d = 0$ and nowhere negative. For the second order differentiate $s = \nabla\pi/\pi$ once more with the quotient rule,
#
# $$\nabla^2\log\pi = \frac{\nabla^2\pi}{\pi} - \frac{\nabla\pi\,\nabla\pi^\top}{\pi^2} = \frac{\nabla^2\pi}{\pi} - s\,s^\top,
# \qquad \mathbb E\Big[\frac{\nabla^2\pi}{\pi}\Big] = \sum_a\nabla^2\pi_a = \nabla^2\,1 = 0.$$
#
# Only $-s\,s^\top$ is left, and two minus signs cancel:
#
# $$\mathrm{KL}(\pi_\theta\|\pi_{\theta+d}) = \tfrac12\,d^\top F d + O(\|d\|^3), \qquad F = \mathbb E_{\pi_\theta}[s\,s^\top] \tag{3b.2}$$
#
# `eq:fisher-kl` · Kakade 2001; Schulman et al. 2015, appendix C
#
# $F$ is the **Fisher matrix**. It says how much a change of the parameters changes the distribution. It has as many entries as the square of the number of parameters, so nobody writes it down for a transformer.
# But $F$ **times a vector** is two backward passes: one gives the gradient of the KL, the other the gradient of that gradient times the vector.

# %%
from course.train.trust_region import TRPO, conjugate_gradient, fisher_product

lesson.code(fisher_product)

# %%
from course.train.optim import Closures

theta = old.log().clone().requires_grad_()


def everything():
    """What an optimiser may ask for, on B3: its logits, the loss −Σ π_θ A, all log-probabilities,
    the KL.
    """
    return Closures(
        parameters=[theta],
        loss=lambda: -(torch.softmax(theta, -1) @ (mean - J_old)),
        log_dist=lambda: torch.log_softmax(theta, -1),
        mean_kl=lambda q, p: exact_kl(q, p).sum(),
        old_log_dist=old.log(),
    )


product = fisher_product(everything(), damping=0.0)
F = torch.stack([product([row])[0] for row in torch.eye(3, dtype=torch.float64)])
scores = torch.eye(3, dtype=torch.float64) - old  # one row for each arm: e_a − π
print("F by two backward passes:", [[round(x, 3) for x in row] for row in F.tolist()])
print(
    "equal to E[s sᵀ] to 1e-12:",
    bool((F - torch.einsum("a,ai,aj->ij", old, scores, scores)).abs().max() < 1e-12),
)
d = torch.tensor([0.0, 0.0, 0.1], dtype=torch.float64)
for factor in (1, 2, 4):
    true = float(exact_kl(old.log(), torch.log_softmax(old.log() + factor * d, -1)))
    print(
        f"arm 3's logit + {factor * 0.1:.1f}: ½ dᵀFd = {float(factor**2 * d @ F @ d / 2):.3g},"
        f" true KL {true:.3g}"
    )

# %% [markdown]
# Twice the step, about four times the KL.
#
# ## Do it: F times a vector

# %%
fisher = lesson.exercise("fisher-product")

# %%
def my_fisher_product(probability, vector):
    """probability, vector: [K], for a softmax over its own K logits → F·vector, [K]."""
    return NotImplemented


fisher.check(my_fisher_product)

# %% [markdown]
# ## The natural gradient
#
# Maximise $g^\top d$ under $\tfrac12 d^\top Fd = \delta$. At the best $d$ no small change along the surface can raise $g^\top d$, so the gradients of the two, $g$ and $Fd$, are parallel: $g = \eta F d$ for some number $\eta$, which is called a **Lagrange multiplier**.
# Hence $d$ is parallel to a solution $x$ of $Fx = g$. Put $d = cx$ into the constraint: $\tfrac12c^2\,x^\top Fx = \delta$, so
#
# $$d = \sqrt{\frac{2\delta}{x^\top F x}}\;x, \qquad F x = g \tag{3b.3}$$
#
# `eq:trust-region-length` · Schulman et al. 2015, appendix C
#
# For a softmax over its own logits you can solve $Fx = g$ in your head. There $F = \mathrm{diag}(\pi) - \pi\pi^\top$ and $g_a = \pi_a A_a$ with $A_a = \mu_a - J$. Try $x = A$:
# $(FA)_a = \pi_a A_a - \pi_a\sum_b\pi_bA_b = \pi_aA_a$, because $A$ averages to 0.
#
# It is not the only solution. A constant added to all logits changes no probability, so $F$ times a constant vector is 0, and $F$ has no inverse. Of all solutions take the one
# that sums to 0. It is the shortest, and choosing the shortest solution is what the **pseudo-inverse** $F^{+}$ does:
#
# $$F^{+}\nabla J = A - \tfrac1K\textstyle\sum_a A_a \tag{3b.4}$$
#
# `eq:natural-gradient-softmax` · Kakade 2001; derived. On B3 it is $(-.21, .09, .39) - .09 = (-.3, 0, .3)$, where the plain gradient is $\pi_aA_a = (-.105, .027, .078)$.

# %% jupyter={"source_hidden": true}
lesson.ask("rare-arm")

# %% [markdown]
# Without a matrix, $Fx = g$ is solved by **conjugate gradient**. Each iteration asks for one product $Fp$, goes along $p$ until the error $r = g - Fx$ has no part left in that direction, and picks the next direction so that it spoils none of the earlier ones:
#
# $$\alpha = \frac{r^\top r}{p^\top F p},\quad x \leftarrow x + \alpha p,\quad r' = r - \alpha F p,\quad p \leftarrow r' + \frac{r'^\top r'}{r^\top r}\,p \tag{3b.5}$$
#
# `eq:conjugate-gradient` · Hestenes & Stiefel 1952, start $x = 0$, $r = p = g$. It is done after at most as many iterations as $F$ has different eigenvalues above 0: two on B3.

# %%
lesson.code(conjugate_gradient)

# %%
from bandits.natural import natural_direction

g = old * (mean - J_old)  # ∇J
closed = (mean - J_old) - (mean - J_old).mean()
print("A − mean(A):    ", [round(v, 3) + 0.0 for v in closed.tolist()])
for iterations in (1, 2):
    [x] = conjugate_gradient(product, [g], runs=0, iterations=iterations)
    off = float((x - x.mean() - closed).abs().max())
    print(
        "CG, iteration",
        iterations,
        [round(v, 3) + 0.0 for v in (x - x.mean()).tolist()],
        "  equal to 1e-12:",
        off < 1e-12,
    )
print(
    "natural_direction, the closed form of the package, agrees:",
    bool((natural_direction(g, old.log()) - closed).abs().max() < 1e-12),
)

# %% jupyter={"source_hidden": true}
POLICIES = {
    "(0.5, 0.3, 0.2)": old,
    "(0.9, 0.08, 0.02)": torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64),
    "(0.1, 0.8, 0.1)": torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64),
}
CORNERS = torch.tensor([[0.0, 0.0], [0.5, 0.866], [1.0, 0.0]], dtype=torch.float64)
ROUND = torch.linspace(0, 2 * torch.pi, 181, dtype=torch.float64)


def region(policy, delta):
    """The border of KL(π_old‖π) ≤ δ, [181, 3]: along every direction, found by halving."""
    way = torch.stack([ROUND.cos(), (ROUND + 2.094).cos(), (ROUND + 4.189).cos()], -1)
    low = torch.zeros(len(ROUND), 1, dtype=torch.float64)
    high = torch.where(way < 0, -policy / way, torch.inf).amin(-1, keepdim=True)  # the triangle's
    for _ in range(40):
        middle = (low + high) / 2
        kl = exact_kl(policy.log(), (policy + middle * way).log()).unsqueeze(-1)
        low, high = torch.where(kl < delta, middle, low), torch.where(kl < delta, high, middle)
    return policy + low * way


def parabola(policy, delta):
    """The border of ½ dᵀFd ≤ δ over all steps d of the logits, [181, 3]."""
    value, vector = torch.linalg.eigh(torch.diag(policy) - torch.outer(policy, policy))
    axes = vector[:, 1:] / value[1:].sqrt()  # the two directions that change the policy
    d = (2 * delta) ** 0.5 * torch.stack([ROUND.cos(), ROUND.sin()], -1) @ axes.T
    return torch.softmax(policy.log() + d, -1)


def draw_region(start, delta):
    policy = POLICIES[start]
    advantage = mean - policy @ mean
    figure, [ax] = figures.new_figure(width=6.4, height=4.6)
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.plot(*CORNERS[[0, 1, 2, 0]].T, color="#777777", linewidth=1)
    ax.plot(*(region(policy, delta) @ CORNERS).T, color=figures.INK, linewidth=1.6, label="KL = δ")
    ax.plot(
        *(parabola(policy, delta) @ CORNERS).T,
        color=figures.INK,
        linewidth=1.2,
        linestyle="--",
        label="½ dᵀFd = δ",
    )
    told = []
    for name, way, colour in (
        ("natural", advantage - advantage.mean(), "#225522"),
        ("plain", policy * advantage, "#c96f00"),
    ):
        length = (2 * delta / (policy @ (way - policy @ way) ** 2)).sqrt()
        share = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
        path = torch.softmax(policy.log() + share * length * way, -1)
        ax.plot(*(path @ CORNERS).T, color=colour, linewidth=2.2, label=f"{name} gradient")
        ax.plot(*(path[-1:] @ CORNERS).T, "o", color=colour)
        told.append(f"{name} {float(path[-1] @ mean - policy @ mean):+.3f}")
    ax.plot(*(policy[None] @ CORNERS).T, "o", color=figures.INK, markerfacecolor="white")
    names = ("arm 1 pays 0.2", "   arm 2 pays 0.5", "arm 3 pays 0.8")
    for (x, y), text in zip(CORNERS.tolist(), names):
        ax.text(x, y - (0 if y else 0.03), text, ha="left" if y else "center", va="top")
    ax.legend(frameon=False, loc="upper left", fontsize=10)
    ax.set_title(f"gain of the full step: {', '.join(told)}", fontsize=11, loc="left")
    return figure


# %%
from course.lesson import Choice, Slider

lesson.explore(
    "trust-region",
    draw_region,
    "The triangle holds all policies over three arms; the open circle is π_old. The solid line is"
    " the true border of the trust region, the dashed one the parabola's. They part as δ grows."
    " Both steps end on the dashed line; the natural one gains more. Start from (0.9, 0.08, 0.02),"
    " where the good arm is rare, to see the two directions differ most.",
    start=Choice(list(POLICIES), "(0.5, 0.3, 0.2)", "π_old"),
    delta=Slider(0.01, 0.5, 0.01, 0.1, "δ, nats"),
)

# %% [markdown]
# ## The line search
#
# (3b.2) is a parabola; the true KL is not. So TRPO tries the full step (3b.3), measures the **exact** KL and the surrogate, and halves the step until the KL is at most $\delta$ and the surrogate has risen. If ten tries, the full step and nine halvings, do not help, it stays.

# %%
lesson.code(TRPO.step)

# %% jupyter={"source_hidden": true}
lesson.ask("full-step")

# %%
[x] = conjugate_gradient(product, [g], runs=0, iterations=10)
for delta in (0.001, 0.01, 0.1, 1.0):
    full = (2 * delta / (x @ F @ x)).sqrt() * x
    kl_full = float(exact_kl(old.log(), torch.log_softmax(old.log() + full, -1)))
    print(f"δ = {delta:<5g}   full step: KL {kl_full:.3g}")
    for shrink in (0.5, 0.9):
        with torch.no_grad():
            theta.copy_(old.log())
        gradient = torch.autograd.grad(everything().loss(), [theta])
        taken = TRPO(delta, damping=0.0, shrink=shrink).step(gradient, everything())
        J_after = float(torch.softmax(theta.detach(), -1) @ mean)
        share, kl = float(taken["step_fraction"]), float(taken["trust_region_kl"])
        print(
            f"   shrinking by {shrink}: {share:g} of it, KL {kl:<8.3g} J: {J_old:.2f} →"
            f" {J_after:.3f}"
        )

# %% [markdown]
# The parabola is good here: off by 6% at most, at $\delta = .1$. But it errs on the wrong side at every $\delta$, so the full step is refused each time. (The next term of the expansion has the sign of $\mathbb E_{\pi_{old}}[A^3]$ along this direction, which is positive where the good arm is the rare one.)
# Halving then leaves three quarters of the allowed KL unused. Shrinking by .9 leaves less than a fifth, at the price of more tries where a step is far too long.
#
# ## Do it: one step in closed form

# %%
with torch.no_grad():
    theta.copy_(old.log())
natural = lesson.exercise("trust-region-step")

# %%
def my_trust_region_step(probability, reward, delta):
    """probability, reward: [K] of one bandit; delta: nats → [K], the change of the logits."""
    return NotImplemented


natural.check(my_trust_region_step)

# %% [markdown]
# ## Does the bound hold in training?
#
# Sixteen questions that share their parameters, as in lesson 03; 20 runs, equal samples. TRPO takes one step per rollout at $\delta = .1$. Beside it are plain ascent on the same surrogate and PPO's clip (lesson 04: a sample drops out of the
# gradient once its own ratio has left $1\pm0.2$); both take 8 plain gradient steps per rollout.

# %%
from dataclasses import replace as change

from bandits.ablations import trust_region
from course.lab.statistics import interval
from course.lab.terminal import QUIET

short = change(trust_region.SETTINGS, runs=10, rollouts=40)
runs = {"trpo": trust_region.train(ladder.surrogate, (0.1,), True, short, QUIET, "TRPO")}
for name in ("clip", "surrogate"):
    runs[name] = trust_region.train(ladder.get(name).estimator, (64.0,), False, short, QUIET, name)

# %% tags=["nbval-ignore-output"]
for name, climb in runs.items():
    end, kl = climb.reward[-1].mean(), climb.moved
    print(
        f"{trust_region.LABELS[name]:<13} final reward {float(end):.2f}   KL of a rollout: mean"
        f" {float(kl.mean()):.2g}, largest {float(kl.max()):.2g}"
    )
print(
    "TRPO's steps above the bound, of",
    runs["trpo"].moved.numel(),
    ":",
    int((runs["trpo"].moved > 0.1 * (1 + 1e-9)).sum()),
)

# %% jupyter={"source_hidden": true}
figure, (left, right) = figures.new_figure(1, 2, width=9.0, height=3.6)
samples = torch.arange(1, short.rollouts + 1) * short.group * short.prompts
for name, climb in runs.items():
    each = climb.reward[:, 0]
    figures.band(left, samples, *interval(each), name, trust_region.LABELS[name])
    figures.band(
        right,
        samples,
        climb.moved[:, 0].amax(-1).clamp(min=1e-4),
        None,
        name,
        trust_region.LABELS[name],
    )
figures.expectation(right, 0.1)
right.set_yscale("log")
right.set_ylim(3e-3, None)
right.text(0.03, 0.05, "dashed: δ = 0.1", fontsize=10, color=figures.INK, transform=right.transAxes)
left.set_ylim(0, 1)
figures.describe(left, "Reward at equal samples", "samples", "expected reward ± 95%")
figures.describe(right, "The farthest run of each rollout", "samples", "largest KL(π_old‖π), nats")
for ax in (left, right):
    figures.label_ends(ax)
lesson.picture(
    figure,
    "TRPO ends highest and never passes its bound of 0.1; the clip passes it at first and now and"
    " then; plain ascent starts fastest, at more than 1 nat",
)

# %% [markdown]
# At these step sizes the bounded step ends highest, and its bound is never passed. Plain ascent is the fastest at first and then stays behind. `course bandits trust_region` sweeps the step sizes of all three and finds the same order at each one's best.

# %% jupyter={"source_hidden": true}
lesson.ask("mean-of-questions")

# %%
from bandits.linear import linear_bandit
from course.learner import Learner

zero = torch.zeros(1, dtype=torch.float64)
bandit, noise = linear_bandit((16, 10, 48), zero, range(20), group=8, seed=0)
learner, steps = Learner(bandit, ladder.surrogate, TRPO(0.1), noise), []
for _ in range(40):
    before = bandit.arm_policy.log_probs().detach()
    learner.step()
    steps.append(exact_kl(before, bandit.arm_policy.log_probs().detach()))  # [1, 20 runs, 16]
kl = torch.stack(steps)
most = float(kl.mean(-1).max())
print(f"mean over the questions: largest of {kl[..., 0].numel()} steps {most:.2g}")
print(
    f"the farthest question: median {float(kl.amax(-1).median()):.2g}, largest"
    f" {float(kl.max()):.2g}"
)

# %% [markdown]
# The mean keeps its bound. The farthest question of a step passes it as a rule, with .19 nats in the median and 1.5 at most. The mean of sixteen bounds a single question sixteen times more loosely.
#
# The price is in the code above: eleven Fisher products (ten of conjugate gradient, one for the length) and up to ten evaluations for one step. That is what PPO set out to save.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# TRPO replaces no part of the objective. It bounds the mean KL of each step, and pays with second-order machinery: a Fisher product is two backward passes, a natural gradient ten of them, and a line search that refuses every step beyond the bound.
#
# ## Next
#
# Lesson 04 replaces the surrogate once more, by one line: the clip. It is cheaper than a trust region, and it is not a bound.
