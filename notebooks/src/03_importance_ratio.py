# %% [markdown]
# # 03 · The importance ratio
#
# When you are through you can
#
# - say what the samples of one policy tell you about another, and why that takes the ratio ρ;
# - write the surrogate ρA, and explain a loss of 0 with a gradient that is not;
# - compute how many of your samples are left once the policy has moved;
# - say what several updates on one rollout do, and which curve to watch meanwhile.
#
# You need lessons 01 and 02: the policy gradient, and a baseline.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from bandits.exact import B3_MEANS, B3_POLICY
from course import ladder
from course.lab import figures

lesson = course.setup("03")
print("replaced in this lesson:", ", ".join(ladder.surrogate.diff(ladder.baseline)))

# %% [markdown]
# ## Old samples, new policy
#
# So far you sampled, took one update, and threw the samples away. That is **on-policy** learning: the samples come from the policy that is updated.
# With a language model sampling is the expensive part, so you want several updates on the same answers. After the first of them the
# answers come from a policy $\pi_{old}$ that you no longer have. From there on you learn **off-policy**.
#
# Take B3, the three-armed bandit of lesson 02: $\pi_{old} = (.5, .3, .2)$, arms that pay 1 with probability $\mu = (.2, .5, .8)$.
# Say the policy has since moved to $\pi_\theta = (.2, .3, .5)$. Half of your samples are of arm 1, where the new policy would draw it once in five times.
# So correct the counts: weigh each sample by how much more often the new policy would have drawn it. This is **importance sampling**, and the weight is
# the **importance ratio** ρ. For any function $f$ of the answer
#
# $$\rho_{i,t} = \frac{\pi_\theta(o_{i,t})}{\pi_{old}(o_{i,t})}, \qquad
# \mathbb E_{o\sim\pi_{old}}[\rho f] = \sum_o \pi_{old}(o)\,\frac{\pi_\theta(o)}{\pi_{old}(o)}\,f(o) = \mathbb E_{o\sim\pi_\theta}[f] \tag{3.1}$$
#
# `eq:importance-ratio` · Schulman et al. 2017 (PPO), §3; Shao et al. 2024 (DeepSeekMath), eq. 3.
# One condition: $\pi_{old}(o) > 0$ wherever $\pi_\theta(o) > 0$, which a softmax always meets. While an answer is one token we leave the index $t$ out.
#
# A sample of arm 3 counts $.5/.2 = 2.5$ times, a sample of arm 1 only .4 times:

# %%
old = torch.tensor(B3_POLICY, dtype=torch.float64)
new = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
mean = torch.tensor(B3_MEANS, dtype=torch.float64)  # expected reward of each arm
rho = new / old
J_old, J_new = float(old @ mean), float(new @ mean)

print("ρ of the three arms:", [f"{x:.3g}" for x in rho.tolist()])
print(f"mean reward of the samples:   E_old[r]  = {float(old @ mean):.3g}")
print(f"the same samples, weighed:    E_old[ρr] = {float(old @ (rho * mean)):.3g}")
print(f"expected reward of the new policy       = {J_new:.3g}")

# %% [markdown]
# The code keeps the ratio as a logarithm. This is where it is made; tokens that the policy did not choose get $\log\rho = 0$.

# %%
lesson.code(ladder.surrogate.log_ratio)

# %% [markdown]
# ## How good is the new policy?
#
# Put the advantage in: $A = r - b$ with $b = J(\pi_{old})$, what the old policy earned. Then
#
# $$\mathbb E_{\pi_{old}}[\rho A] = \mathbb E_{\pi_\theta}[r - b] = J(\pi_\theta) - b = J(\pi_\theta) - J(\pi_{old}) \tag{3.2}$$
#
# `eq:surrogate-identity` · Kakade & Langford 2002, lemma 6.1, for answers that are one choice. The first step is (3.1) with $f = r - b$.
# The second takes the number $b$ out of the mean, since probabilities sum to 1.
#
# For the move above that is $.59 - .41 = .18$.

# %% jupyter={"source_hidden": true}
lesson.ask("how-far")

# %% [markdown]
# The cell moves along $\pi_\theta \propto \pi_{old}\,e^{\lambda\mu}$, straight towards reward. It evaluates the rung's own objective, with
# $b = J(\pi_{old})$, on **every** group of 8 samples that can occur, and averages with the groups' probabilities. Nothing is drawn.

# %%
from bandits.theory import effective_samples as far

surrogate = far.centred(ladder.surrogate, J_old)  # b = J(π_old)
print("  λ   π_θ                  J(π_θ) − J(π_old)   E[objective]   one group of 8: ±")
for strength in (0.1, 1.0, 5.0):
    moved = far.tilted(old.log(), mean, strength)
    listed = far.bernoulli_arms(moved, old.log())
    value, spread = far.objective_moments(surrogate, listed, group=8)
    gain = float(moved.exp() @ mean) - J_old
    policy = ", ".join(f"{p:.2f}" for p in moved.exp().tolist())
    print(
        f"{strength:>4}   ({policy})   {gain:<17.3g}   {value:<12.3g}   {spread:<17.3g}",
        "equal to 1e-12:",
        abs(value - gain) < 1e-12,
    )

# %% [markdown]
# Equal at every distance: (3.2) is an identity, not an approximation. What grows is the last number, how far off a single group of 8 is: from .175 to .298.
#
# (In an episode of many steps a new policy also visits other *states*. TRPO drops that effect, and its theorem 1 bounds the error. One choice per question has no such effect.)
#
# ## The rung
#
# So the samples of $\pi_{old}$ define an objective for $\pi_\theta$. One part is replaced, the surrogate:

# %%
ladder.surrogate

# %%
from course.parts import ImportanceSampling

lesson.code(ImportanceSampling)

# %% [markdown]
# It is the surrogate of conservative policy iteration (Kakade & Langford 2002). TRPO maximises the same thing **under a constraint** (lesson 03b, optional).
#
# ## Its gradient
#
# $A$ and $\pi_{old}$ are constants: they were computed when the samples were drawn. Only $\pi_\theta$ in the numerator moves, and lesson 01's log-derivative trick,
# $\nabla\pi_\theta = \pi_\theta\nabla\log\pi_\theta$, gives
#
# $$\nabla_\theta\,\rho = \frac{\nabla_\theta\,\pi_\theta}{\pi_{old}} = \rho\,\nabla_\theta\log\pi_\theta
# \quad\Rightarrow\quad
# \nabla_\theta\,\mathbb E_{\pi_{old}}[\rho A] = \mathbb E_{\pi_{old}}[\rho A\,\nabla_\theta\log\pi_\theta] = \mathbb E_{\pi_\theta}[A\,\nabla_\theta\log\pi_\theta] = \nabla J(\pi_\theta) \tag{3.3}$$
#
# `eq:surrogate-gradient` · Schulman et al. 2015 (TRPO), eq. 4, here at any $\theta$, for one choice. The last but one step is (3.1) with
# $f = A\nabla\log\pi_\theta$. The last is lesson 02: subtracting a constant $b$ does not change the mean.
#
# At the moment of sampling $\rho = 1$, and this holds for every single sample:
#
# $$\nabla_\theta(\rho_i A_i)\big|_{\pi_\theta=\pi_{old}} = A_i\,\nabla_\theta\log\pi_\theta(o_i) \tag{3.4}$$
#
# `eq:surrogate-gradient-at-old` · Xu 2025 (“From PPO to GRPO”), below eq. 3: PPO then reduces to policy gradient.
#
# ## Do it: the surrogate

# %%
written = lesson.exercise("surrogate")

# %%
def my_surrogate(log_prob, old_log_prob, advantage):
    """log_prob (differentiable), old_log_prob, advantage: tensors of one shape → ρA, same shape."""
    return NotImplemented


written.check(my_surrogate)

# %% jupyter={"source_hidden": true}
lesson.ask("two-gradients")

# %%
from course.exact import microscope

moved = far.tilted(old.log(), mean, 5.0)  # far out: (0.09, 0.23, 0.69)
for where, now in (("at π_old", old.log()), ("far out", moved)):
    for rung in ("baseline", "surrogate"):
        seen = microscope(
            ladder.get(rung).estimator, far.bernoulli_arms(now, old.log()), 8, covariance=False
        )
        length = float(seen.expected.norm() / seen.gradient.norm())
        print(
            f"{where:<9} {rung:<10} cosine of E[ĝ] and ∇J: {seen.cosine:.3g}   length of E[ĝ] /"
            f" ‖∇J‖: {length:.3g}"
        )

# %% [markdown]
# The surrogate keeps the direction exactly. Its length is 7/8 of ∇J's at both places, because the batch mean includes the sample itself (lesson 02).
# On stale samples the policy gradient has turned away, by the 44° that a cosine of .714 means.

# %% [markdown]
# ## “My loss is 0”
#
# <!-- answers: 2, 3 -->
# Everybody who trains with this objective asks why the loss is 0. Predict first.

# %% jupyter={"source_hidden": true}
lesson.ask("loss-zero")

# %%
logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
arm, reward = torch.tensor([2, 0, 0, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
A = reward - reward.mean()
log_prob = torch.log_softmax(logits, -1)[arm]
ratio = (log_prob - log_prob.detach()).exp()  # π_old is a constant, though the same number

[by_ratio] = torch.autograd.grad(-(ratio * A).mean(), logits, retain_graph=True)
[by_score] = torch.autograd.grad(-(A * log_prob).mean(), logits)
print("ρ:", ratio.tolist(), "  loss:", float((ratio * A).mean().detach().abs()))
print("gradient of the loss with ρ:      ", [f"{g:.3g}" for g in by_ratio.tolist()])
print("gradient of the loss with A·log π:", [f"{g:.3g}" for g in by_score.tolist()])

# %% [markdown]
# `exp(logp - logp.detach())` **is** 1, and the advantage does not cancel: the derivative of $e^{x - c}$ at $x = c$ is 1, not 0.
# The four advantages, +.5, −.5, −.5 and +.5, sum to 0. Their gradients do not, since each is multiplied with another $\nabla\log\pi$.

# %% [markdown]
# ## What gives out: the samples
#
# (3.2) is exact on average. You have $G$ samples. With a fixed $b$ the estimate $\frac1G\sum_i \rho_i A_i$ is a mean of independent terms, so its variance is
# $(\mathbb E_{\pi_{old}}[\rho^2A^2] - (J(\pi_\theta)-J(\pi_{old}))^2)/G$. The $\rho^2$ is what made the last column of the table grow.
#
# How many samples are the weights alone worth? A weighted mean of $G$ values, independent of each other and of the weights, each of variance $\sigma^2$, has the variance
# $\sigma^2\sum_i\rho_i^2/(\sum_i\rho_i)^2$. Since $\mathbb E_{\pi_{old}}[\rho] = 1$, that is about $\sigma^2\,\mathbb E_{\pi_{old}}[\rho^2]/G$: the variance of a plain mean of
#
# $$G_{\text{eff}} = \frac{G}{\mathbb E_{\pi_{old}}[\rho^2]} \tag{3.5}$$
#
# values, the **effective sample size**. `eq:effective-samples` · Kish 1965
#
# For the move to $(.2, .3, .5)$ it is $\mathbb E_{\pi_{old}}[\rho^2] = .5\cdot.4^2 + .3\cdot1^2 + .2\cdot2.5^2 = 1.63$, so 8 samples are worth 4.9.
#
# It falls with the distance between the two policies. The fitting one is the **KL divergence** (Kullback & Leibler 1951), the mean log-ratio under the new policy:
#
# $$\mathrm{KL}(\pi_\theta\|\pi_{old}) = \mathbb E_{\pi_\theta}[\log\rho] = \sum_o \pi_\theta(o)\log\frac{\pi_\theta(o)}{\pi_{old}(o)}.$$
#
# It is 0 where the policies are equal and positive elsewhere; swapping the two gives another number. Its unit is the **nat**, because the logarithm is the natural one. Here it is
# $.2\log.4 + .3\log1 + .5\log2.5 = .275$ nats.
#
# Now the bound. By (3.1) $\mathbb E_{\pi_{old}}[\rho^2] = \mathbb E_{\pi_\theta}[\rho]$, and ρ is $e^{\log\rho}$. The exponential curves upwards, so the mean of an exponential is at least the
# exponential of the mean (**Jensen's inequality**):
#
# $$\mathbb E_{\pi_\theta}[e^{\log\rho}] \ge e^{\mathbb E_{\pi_\theta}[\log\rho]} = e^{\mathrm{KL}(\pi_\theta\|\pi_{old})},
# \qquad\text{so}\qquad G_{\text{eff}} \le G\,e^{-\mathrm{KL}(\pi_\theta\|\pi_{old})}.$$
#
# After .275 nats at most $e^{-.275} = 76\%$ of the samples are left. This is the first reason to measure steps in KL.

# %%
lesson.code(far.second_moment)
listed = far.bernoulli_arms(new.log(), old.log())
second, kl = far.second_moment(listed), far.distance(listed)
print(f"E[ρ²] = {second:.3g}: 8 samples are worth {8 / second:.2g}, {1 / second:.0%} of them")
print(f"KL = {kl:.3g} nats: at most exp(−KL) = {torch.tensor(-kl).exp():.0%} can be left")

# %% jupyter={"source_hidden": true}
grid = torch.linspace(0, 5, 51, dtype=torch.float64)
paths = torch.log_softmax(old.log() + grid[:, None] * mean, -1)  # [51, 3]
weights = (paths - old.log()).exp()
gains = paths.exp() @ mean - J_old
second = (old * weights**2).sum(-1)
chance = torch.stack([mean, 1 - mean], -1)  # [3, 2] of the rewards 1 and 0
# E[A²] of each arm
square = ((torch.tensor([1.0, 0.0], dtype=torch.float64) - J_old) ** 2 * chance).sum(-1)
spreads = ((old * weights**2 * square).sum(-1) - gains**2).sqrt()  # of one sample
share_bound = (-(paths.exp() * (paths - old.log())).sum(-1)).exp()

many = lesson.noise(24, dtype=torch.float64, use=1)
drawn = (many.uniform(128).unsqueeze(-1) >= old.cumsum(0)[:2]).sum(-1)  # [24 groups, 128 arms]
paid = (many.uniform(128) < mean[drawn]).double() - J_old


def draw_surrogate(strength, group):
    place = round(float(strength) / 0.1)
    figure, (left, right) = figures.new_figure(1, 2, width=9.0, height=3.5)
    half = spreads / group**0.5
    figures.band(left, grid, gains, half, "surrogate", label="_")
    figures.expectation(left, gains, grid)
    estimates = (weights[place][drawn[:, :group]] * paid[:, :group]).mean(-1)
    left.plot(
        [float(grid[place])] * 24,
        estimates,
        "o",
        color=figures.style_of("surrogate")["color"],
        alpha=0.55,
        markersize=4,
    )
    left.set_ylim(-0.5, 1.1)
    figures.describe(
        left,
        f"24 groups of {group} judge one policy",
        "λ: how far the policy has moved",
        "improvement (dashed: true)",
    )
    right.plot(grid, 100 / second, color=figures.style_of("surrogate")["color"], linewidth=2)
    figures.expectation(right, 100 * share_bound, grid)
    right.plot([float(grid[place])], [100 / float(second[place])], "o", color=figures.INK)
    right.set_ylim(0, 105)
    left_over = group / float(second[place])
    figures.describe(
        right,
        f"{group} samples are worth {left_over:.3g}",
        "λ: how far the policy has moved",
        "1/E[ρ²] in %, dashed: exp(−KL)",
    )
    return figure


# %%
from course.lesson import Choice, Slider

lesson.explore(
    "surrogate-and-truth",
    draw_surrogate,
    "The dots are 24 sampled estimates of the same improvement. Move the policy away: their centre"
    " stays on the dashed truth, they scatter more. Then take more samples. Band: ± one standard"
    " deviation.",
    strength=Slider(0.0, 5.0, 0.1, 3.0, "λ, distance"),
    group=Choice((4, 8, 32, 128), 8, "G, samples"),
)

# %% [markdown]
# ## Do it: how many samples are left

# %%
effective = lesson.exercise("effective-samples")

# %%
def my_effective_samples(log_old, log_new, samples):
    """log_old, log_new: [K] log-probabilities of all answers; samples: G, drawn from old → a
    number, G_eff.
    """
    return NotImplemented


# %% [markdown]
# ## Several tokens: a product of ratios
#
# An answer of $|o_i|$ tokens is one choice among all answers. Its ratio is
#
# $$\rho_i = \frac{\pi_\theta(o_i)}{\pi_{old}(o_i)} = \prod_{t=1}^{|o_i|}\rho_{i,t} = \exp\sum_{t=1}^{|o_i|}\left(\log\pi_\theta(o_{i,t}) - \log\pi_{old}(o_{i,t})\right) \tag{3.6}$$
#
# `eq:sequence-ratio` · Sutton & Barto 2018, eq. 5.3. Each token's probability is given the tokens before it.
#
# With this one ratio (3.2) and (3.3) stay exact. But it costs samples. If every token moves alike, whatever came before it, the expectation of the product is the
# product of the expectations: $\mathbb E[\rho_i^2]$ is that of one token **to the power** $|o_i|$.

# %% jupyter={"source_hidden": true}
lesson.ask("token-power")

# %% [markdown]
# So PPO and GRPO give each token its own ratio $\rho_{i,t}$, as the rung above says: $\sum_t\rho_{i,t}A_i$ in place of $\rho_iA_i$. That is cheap in samples and has the right gradient at $\pi_{old}$. Further
# out it is an approximation. The cell lists all answers of three tokens (right if they sum to 3) and compares:

# %%
from course.parts import SequenceMean, SequenceRatio

one = far.second_moment(far.bernoulli_arms(far.tilted(old.log(), mean, 1.6), old.log()))
print(
    "effective share at λ = 1.6, by tokens:",
    {tokens: f"{one**-tokens:.2g}" for tokens in (1, 4, 16, 64)},
)

task = far.Sums(tokens=3, words=3)
(_, right), start = far.answers(task), far.start(task)
token = far.centred(ladder.surrogate, float(start.exp() @ right))
# the mean of |o| equal terms is ρA
whole = course.replace(token, ratio=SequenceRatio(), aggregation=SequenceMean())
for strength in (0.3, 1.0, 5.0):
    listed = far.sequences(task, far.tilted(start, right, strength), start)
    gain = float(far.tilted(start, right, strength).exp() @ right - start.exp() @ right)
    values = [far.objective_moments(estimator, listed, 1)[0] for estimator in (token, whole)]
    print(
        f"3 tokens, λ = {strength}: true improvement {gain:.3g}   token ratios {values[0]:.3g}  "
        f" the answer's ratio {values[1]:.3g}"
    )

# %% [markdown]
# The token ratios miss 3% of the improvement near $\pi_{old}$ and 17% far out. The answer's ratio misses nothing, and pays in samples.
#
# ## One number for an answer: GSPO (optional)
#
# <!-- answers: 23 -->
# GSPO takes a third way, one number per answer that does not explode: the $|o_i|$-th root of the product, which is the geometric mean of the token ratios.
# Its log is a mean of log-ratios. A mean of many is close to its expectation under $\pi_{old}$, which is $-\mathrm{KL}(\pi_{old}\|\pi_\theta)$ of one token.
#
# Why that matters: the next rung stops a sample as soon as its ratio has left $1\pm\varepsilon$, usually with $\varepsilon = .2$ (the clip, lesson 04). Who leaves that range depends on which ratio
# you take. The cell draws 400 answers from B3's policy, each token an arm, and asks the three about a policy a little further on:

# %%
from course.parts import SequenceMeanRatio, TokenRatio

near = far.tilted(old.log(), mean, 0.4)
for tokens in (10, 100, 1000):
    picks = (
        lesson.noise(dtype=torch.float64, use=2).uniform(400, tokens, 1) >= old.cumsum(0)[:2]
    ).sum(-1)
    log_ratio, mask = (near - old.log())[picks], torch.ones(400, tokens, dtype=torch.bool)
    for part in (TokenRatio(), SequenceRatio(whole=True), SequenceMeanRatio(whole=True)):
        ratio = part(log_ratio, mask).exp()
        outside = ((ratio < 0.8) | (ratio > 1.2)).double().mean()
        print(
            f"{tokens:>5} tokens   {type(part).__name__:<18} outside 0.8 … 1.2:"
            f" {float(outside):>4.0%}   median |ρ − 1|: {float((ratio - 1).abs().median()):.2g}"
        )
print(
    f"|ρ − 1| at ρ = exp(−KL of one token): {1 - float((old * (near - old.log())).sum().exp()):.2g}"
)

# %% [markdown]
# The token ratio does not know the length. The product leaves .8 … 1.2 for almost every long answer. The root settles half a percent from 1, at $e^{-\mathrm{KL}}$ of one token: an $\varepsilon$
# of .2 never touches it here. That is why GSPO's paper takes $\varepsilon = 3\cdot10^{-4}$ below and $4\cdot10^{-4}$ above
# (Zheng et al. 2025). An $\varepsilon$ belongs to one kind of ratio and cannot be carried to another.

# %% [markdown]
# ## One rollout, many updates
#
# Now use a rollout more than once. The problem has sixteen questions of ten answers each; one answer to each is right and pays 1. All questions share 48 parameters, so an update for
# one moves the others too. Each point below is 40 runs of 60 rollouts, with one learning rate and the same random numbers for everybody.

# %% jupyter={"source_hidden": true}
lesson.ask("one-update")

# %%
from dataclasses import replace as change

from bandits.ablations import staleness
from bandits.linear import linear_bandit
from bandits.theory.staleness import THREE_ARMS, stale_limit
from course.lab.statistics import interval
from course.learner import Learner
from course.train.optim import SGD

SIZES = (16, 10, 48)  # questions, answers of each, parameters that all share
settings = change(staleness.SETTINGS, runs=20, rollouts=60)
zero, UPDATES = torch.zeros(1, dtype=torch.float64), (1, 4, 16)
final = {
    name: torch.stack(
        [
            staleness.train(ladder.get(name).estimator, settings, epochs, (64.0,), range(40))[0][0]
            for epochs in UPDATES
        ]
    )
    for name in ("reinforce", "baseline", "surrogate")
}
for name, ends in final.items():
    print(
        f"{name:<10}",
        "  ".join(
            f"{epochs:>2} update{'s'[: epochs - 1]}: {end:.2f}"
            for epochs, end in zip(UPDATES, ends.mean(-1).tolist())
        ),
    )
same = (final["baseline"][0] - final["surrogate"][0]).abs().max() < 1e-9
print("one update: baseline and surrogate end every run alike:", bool(same))

# %% jupyter={"source_hidden": true}
figure, [ax] = figures.new_figure(width=7.0, height=3.6)
for name, ends in final.items():
    figures.band(ax, UPDATES, *interval(ends), name, marker="o", markersize=4)
ax.set_xscale("log", base=2)
ax.set_xticks(UPDATES, [str(count) for count in UPDATES])
figures.describe(
    ax, "Stale samples: who can use them", "updates per rollout", "final expected reward ± 95%"
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "final reward against updates per rollout, 1, 4 and 16: baseline falls from 0.77 to 0.54;"
    " surrogate and reinforce stay between 0.74 and 0.80",
)

# %% [markdown]
# **`baseline` falls.** Take one question and $b = J(\pi_{old})$. The score of a softmax is $e_a - \pi_\theta$ (lesson 01; $e_a$ is 1 at arm $a$ and 0 elsewhere), so on stale samples the expected gradient in the logits is $\sum_a\pi_{old}(a)\,(\mu_a - b)\,(e_a - \pi_\theta)$. Its part with $\pi_\theta$ is 0, because
# $\sum_a\pi_{old}(a)\,(\mu_a - b) = J(\pi_{old}) - b = 0$.
# What is left does not depend on $\pi_\theta$, so the push never fades. Sixteen updates are one update with sixteen times the learning rate. (With a mean
# over sixteen questions the terms cancel over the batch, not in each question.)
#
# **`surrogate` does not gain.** Its direction is right, (3.3). But $\sum_i\rho_iA_i$ is linear in $\pi_\theta$, so it is largest in a corner: all probability on one answer. Sixteen updates on the *first* rollout already go most of the way.
# Two numbers show it. The **entropy** $-\sum_a\pi_a\log\pi_a$ says how undecided a policy is: log 10 = 2.30 nats if it is uniform over ten answers, 0 if
# it is certain. And some questions are lost: their right answer has almost no probability left, so it will not be sampled again and cannot be learned.
# (Hundreds of very large steps blow up rounding errors: on another processor, last digits may be others.)

# %% tags=["nbval-ignore-output"]
for group in (8, 64):
    for updates in (1, 16):
        bandit, noise = linear_bandit(SIZES, zero, range(10), group=group, seed=0)
        learner = Learner(bandit, ladder.surrogate, SGD(64.0), noise, epochs=updates)
        learner.train(1)
        first = bandit.arm_policy.log_probs().detach()
        entropy = float(-(first.exp() * first).sum(-1).mean())
        learner.train(59)
        policy = bandit.arm_policy.log_probs().exp().detach()
        right_answer = policy.gather(-1, bandit.environment.best.expand(*policy.shape[:-1], 1))
        print(
            f"G = {group:>2}, {updates:>2} update(s) per rollout: entropy after the first rollout"
            f" {entropy:.2f} nats; at the end lost (π(right) < 0.01):"
            f" {float((right_answer < 0.01).double().mean()):.0%} of the questions"
        )

# %% [markdown]
# One update on the first rollout leaves 2.23 of the 2.30 nats, sixteen leave .57: most of the decision has fallen, on the word of eight samples per question. In the end a quarter of the questions is lost either way, and with eight times the samples still a fifth.
# What is needed is something that stops a rollout's updates on the way, before the corner: PPO's clip (lesson 04) or a bound on the KL (lesson 03b).
#
# (All of this is at one learning rate. At a smaller one `baseline` hardly falls: lesson 04 compares each at its own best.)

# %% [markdown]
# ### Why `reinforce` does not mind (optional)
#
# `reinforce` has neither ratio nor baseline, and it does not mind stale samples. With rewards in {0, 1} and $b = 0$ the $\pi_\theta$ term stays, and the push is 0 where
#
# $$\sum_a \pi_{old}(a)\,\mu_a\,(e_a - \pi_\theta) = 0 \quad\Leftrightarrow\quad \pi_\theta(a) = \frac{\pi_{old}(a)\,\mu_a}{J(\pi_{old})},
# \qquad J(\pi_\theta) = \frac{\mathbb E_{\pi_{old}}[\mu^2]}{\mathbb E_{\pi_{old}}[\mu]} \ge J(\pi_{old}) \tag{3.7}$$
#
# `eq:stale-limit` · Dayan & Hinton 1997; derived. The inequality says that a variance, $\mathbb E[\mu^2]-\mathbb E[\mu]^2$, is not negative.
# REINFORCE imitates the rewarded samples, and having imitated them it stops. Exactly, on B3:

# %%
from bandits.flow import ascend

limit, limit_reward, before = stale_limit()
for name, steps in (("reinforce", 300), ("baseline", 300)):
    path = ascend(
        ladder.get(name).estimator, THREE_ARMS, old.log(), 4, rate=0.5, steps=steps, stale=True
    )
    print(
        f"{name:<10} after {steps} updates on one rollout: π ="
        f" {[round(p, 3) for p in path[-1].exp().tolist()]}"
    )
print(
    f"(3.7): π = {[round(p, 3) for p in limit.tolist()]}, expected reward {before:.3g} →"
    f" {limit_reward:.3g}"
)

# %% [markdown]
# `baseline` has put everything on one arm, on the word of a single rollout. Here it is the right arm, since the expectation was exact.

# %% [markdown]
# ## Updates per rollout, group, batch
#
# <!-- answers: 4, 44 -->
# Three numbers are easily mixed up:
#
# - $G$, how many answers one question gets: `num_generations` in TRL, `rollout.n` in verl;
# - the batch, how many answers make one gradient. In TRL it is the product of `per_device_train_batch_size`, `gradient_accumulation_steps` and the number of processes; in verl `ppo_mini_batch_size` questions of $G$ answers each;
# - updates per rollout: how often the samples are used (TRL's `num_iterations`, verl's `ppo_epochs`) times the number of batches that a rollout is cut into. TRL cuts it where `steps_per_generation` is larger than `gradient_accumulation_steps`;
#   verl where `train_batch_size` is larger than `ppo_mini_batch_size`.
#
# Only the last moves $\pi_\theta$ away from $\pi_{old}$ while the samples are in use:

# %%
for group, batches, epochs in ((8, 1, 1), (32, 1, 1), (8, 2, 1), (8, 1, 2), (8, 4, 1), (32, 2, 2)):
    bandit, noise = linear_bandit(SIZES, zero, range(1), group=group, seed=0)
    loop = {"minibatches": batches, "epochs": epochs}
    history = Learner(bandit, ladder.surrogate, SGD(16.0), noise, **loop).train(20)
    print(
        f"G = {group:>2}, {batches} batch(es), used {epochs} time(s): updates per rollout"
        f" {batches * epochs}, largest ρ {float(history['ratio_max'].max()):.3g}"
    )

# %% [markdown]
# With one update per rollout every ρ is 1, whatever $G$ is. If a log shows a clip fraction of 0 for ever (lesson 04), look here first.
#
# ## Which curve to watch
#
# <!-- answers: 1, 37 -->
# Is GRPO on- or off-policy? The first update of every rollout is on-policy, later ones are not.
#
# Which curve tells you that it learns? Not the loss. Its centred part is 0 at the start of every rollout, for ever: each ρ is 1 and the advantages sum to 0. And yet people see the
# loss of GRPO *rise* while the reward rises. GRPO, the top rung, subtracts one more term: $\beta$ times an estimate of $\mathrm{KL}(\pi_\theta\|\pi_{ref})$, where the **reference** $\pi_{ref}$ is a frozen copy of the policy that training began with
# (lesson 07, which also says what the estimate `k3` is). That term is 0 at first and grows as the policy leaves its reference. Here is one run on the sixteen questions, one update per rollout, $\beta = .04$:

# %%
from course.parts.kl import k3

bandit, noise = linear_bandit(SIZES, zero, range(1), group=8, seed=0, reference="start")
learner, watch = (
    Learner(bandit, ladder.grpo, SGD(4.0), noise),
    lesson.noise(1, 1, dtype=torch.float64),
)
for rollouts in (0, 10, 30, 60):
    if rollouts:
        learner.train(rollouts - learner.steps)
    fresh = bandit.sample(watch)
    loss = round(float(ladder.grpo.loss(bandit.policy(fresh), fresh).detach()), 12)
    kl = float(k3(fresh.ref_log_prob - fresh.log_prob).mean())
    same, earned = abs(loss - 0.04 * kl) < 1e-9, float(bandit.metrics()["expected_reward"])
    print(
        f"after {rollouts:>2} rollouts: loss {abs(loss):.3g}, equal to 0.04·KL: {same}, expected"
        f" reward {earned:.3g}"
    )

# %% [markdown]
# The loss rises from 0 to .0538, all of it the KL term, while the reward rises from .1 to .633. So watch the reward on questions you hold out, the KL, the entropy and the gradient norm. The loss of these methods is a device to make a gradient; its value measures no progress.

# %% [markdown]
# ## Explore: three rungs move (optional)
#
# Three arms make a triangle. A corner is certainty, the middle is the uniform policy. The thin lines join policies of equal expected reward, written below them. The expected gradient (groups of 4, nothing sampled)
# drives two rungs from the same start for 64 updates, each on a rollout of its own or all on one.

# %% jupyter={"source_hidden": true}
SHOWN = ("reinforce", "baseline", "surrogate")


def travel(name, every, total=64):
    """[total + 1, 3] probabilities: every `every` updates the current policy samples anew."""
    path = [old.log()]
    for _ in range(total // every):
        rung = ladder.get(name).estimator
        path.extend(ascend(rung, THREE_ARMS, path[-1], 4, rate=1.0, steps=every, stale=True)[1:])
    return torch.stack(path).exp()


travelled = {(name, every): travel(name, every) for name in SHOWN for every in (1, 64)}
CORNERS = torch.tensor([[0.0, 0.0], [0.5, 0.866], [1.0, 0.0]], dtype=torch.float64)


def draw_simplex(left, right, update, every):
    figure, panels = figures.new_figure(1, 2, width=9.0, height=3.7)
    for ax, name in zip(panels, (left, right)):
        ax.set_axis_off()
        ax.set_aspect("equal")
        ax.plot(*CORNERS[[0, 1, 2, 0]].T, color="#777777", linewidth=1)
        for level in (0.3, 0.4, 0.5, 0.6, 0.7):
            cuts = []
            for a, b in ((0, 2), (0, 1) if level < mean[1] else (1, 2)):
                part = (level - float(mean[a])) / float(mean[b] - mean[a])
                cuts.append(CORNERS[a] + part * (CORNERS[b] - CORNERS[a]))
            ax.plot(*torch.stack(cuts).T, color="#bbbbbb", linewidth=0.8)
            ax.text(
                float(cuts[0][0]),
                -0.02,
                f"{level:g}",
                ha="center",
                va="top",
                fontsize=10,
                color="#666666",
            )
        way = travelled[name, every][: update + 1] @ CORNERS
        ax.plot(*way.T, linewidth=2.2, **figures.style_of(name))
        ax.plot(*way[:1].T, "o", color=figures.INK, markerfacecolor="white")
        ax.plot(*way[-1:].T, "o", color=figures.style_of(name)["color"], markersize=8)
        for (x, y), text, side in zip(
            CORNERS.tolist(), ("pays 0.2", "pays 0.5", "pays 0.8"), ("right", "left", "left")
        ):
            ax.text(
                x + (0.03 if side == "left" else 0),
                y if y else -0.02,
                text,
                ha=side if y else "center",
                va="center" if y else "top",
                fontsize=10,
            )
        policy = travelled[name, every][update]
        ax.set_title(
            f"{name}: J = {float(policy @ mean):.2f}, π ="
            f" ({', '.join(f'{p:.2f}' for p in policy.tolist())})",
            fontsize=11,
            loc="left",
        )
    return figure


# %%
lesson.explore(
    "simplex",
    draw_simplex,
    "With one update per rollout, baseline and surrogate travel alike. Take 64 updates on one"
    " rollout: both go on to the corner, surrogate on another way; reinforce stops inside the"
    " triangle, at the limit (3.7).",
    left=Choice(SHOWN, "reinforce", "left rung"),
    right=Choice(SHOWN, "surrogate", "right rung"),
    update=Slider(0, 64, 1, 64, "updates so far"),
    every=Choice((1, 64), 64, "updates per rollout"),
)

# %% [markdown]
# ## Break it
#
# Two runs of this rung with 16 updates per rollout, 20 seeds each. Everything is equal but one line of code. Run A has the fault.

# %% jupyter={"source_hidden": true}
faulty = lesson.hidden("faulty")  # in the file of exercises: look after you have answered


def follow_run(estimator):
    bandit, noise = linear_bandit(SIZES, zero, range(20), group=8, seed=0)
    return Learner(bandit, estimator, SGD(64.0), noise, epochs=16).train(60)


broken = {
    "run A": follow_run(faulty()),
    "run B": follow_run(ladder.surrogate),
}
figure, panels = figures.new_figure(1, 3, width=9.0, height=3.2)
for label, colour in (("run A", "#c96f00"), ("run B", "#332288")):
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
titles = ("expected reward", "largest ρ, as logged", "smallest ρ, as logged")
for ax, title in zip(panels, titles):
    figures.describe(ax, title, "rollouts (mean of 20 runs)", "")
panels[1].set_yscale("log")
panels[2].set_yscale("log")
panels[0].legend(frameon=False)
lesson.picture(
    figure,
    "run A stays near 0.56; its largest and smallest logged ratio are 1"
    " throughout. Run B climbs to 0.74; its ratios go far above and far below 1",
)

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %%
lesson.code(lesson.hidden("Suspect"))
plain = follow_run(ladder.baseline)
print(
    "run A is the rung `baseline`, rollout by rollout:",
    bool(((broken["run A"]["expected_reward"] - plain["expected_reward"]).abs() < 1e-9).all()),
)

# %% tags=["nbval-ignore-output"]
for label, history in (*broken.items(), ("the rung `baseline`", plain)):
    print(
        f"{label:<20} final reward {float(history['expected_reward'][-1].mean()):.3f}   largest ρ"
        f" logged {float(history['ratio_max'].max()):.3g}"
    )

# %% [markdown]
# In `log_ratio - log_ratio.detach()` the old log-probability cancels: what is subtracted is the *current* one. The value is always 1 and the gradient is $A\nabla\log\pi$: right at the first update, stale at the other fifteen. It is the rung
# `baseline` in disguise.
#
# Now compare the last column. Run A and `baseline` are the same run to the digit. One logs a largest ρ of 1, the other of 687. **The log measures ρ with the same faulty line**, so it reports that nothing has moved while the true ratio
# of some sample is 687. A metric that is computed from the suspect quantity cannot accuse it.
#
# If every ratio is 1 although you make several updates per rollout, look for this. Log-probabilities of the rollout are taken **once**, when it is sampled, from the distribution that sampled.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# For one choice per question, $\mathbb E_{\pi_{old}}[\rho A]$ *is* the improvement, at any distance, and its gradient is $\nabla J$ where you stand. What limits a step is the number of samples that is left, at most $G\,e^{-\mathrm{KL}}$.
#
# ## Next
#
# Lesson 04 replaces the surrogate once more: the clip takes a sample out of the gradient when its own ratio has gone far enough. It costs one line, and it is not a bound. Lesson 03b, optional, shows what a real bound costs: TRPO.
