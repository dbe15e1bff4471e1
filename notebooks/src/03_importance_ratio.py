# %% [markdown]
# # 03 · The importance ratio and TRPO
#
# After this lesson you can
#
# - say exactly what the samples of one policy tell you about another, and why that takes the ratio ρ;
# - read the loss of PPO or GRPO in a log, and say what it does not tell you;
# - compute how many of your samples are left once the policy has moved;
# - take one step of TRPO by hand: Fisher matrix, conjugate gradient, step length, line search.
#
# You need lessons 01 and 02: the policy gradient, and a baseline.
#
# Running all cells takes {{time}}.

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
# So far every update threw its samples away. With a language model sampling is the expensive part, so you want to update twice on
# the same answers. But after the first update they come from a policy $\pi_{old}$ that is no longer yours.
#
# Take B3, the three-armed bandit of lesson 02: $\pi_{old} = (.5, .3, .2)$, arms that pay 1 with probability
# $\mu = (.2, .5, .8)$. Say the policy has since moved to $\pi_\theta = (.2, .3, .5)$. You still hold samples of $\pi_{old}$. Weigh each by
# how much more often the new policy would have drawn it. For any function $f$ of the answer:
#
# $$\rho_{i,t} = \frac{\pi_\theta(o_{i,t})}{\pi_{old}(o_{i,t})}, \qquad
# \mathbb E_{o\sim\pi_{old}}[\rho f] = \sum_o \pi_{old}(o)\,\frac{\pi_\theta(o)}{\pi_{old}(o)}\,f(o) = \mathbb E_{o\sim\pi_\theta}[f] \tag{3.1}$$
#
# `eq:importance-ratio` · Schulman et al. 2017 (PPO), §3; Shao et al. 2024 (DeepSeekMath), eq. 3. One condition: $\pi_{old}(o) > 0$
# wherever $\pi_\theta(o) > 0$, which a softmax always meets. With one token for each answer we leave the index $t$ out.

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
# In the code the ratio is kept as a logarithm. This is where it is made; tokens that the policy did not choose get $\log\rho = 0$.

# %%
lesson.code(ladder.surrogate.log_ratio)

# %% [markdown]
# ## How good is the new policy?
#
# Put the advantage in: $A = r - b$ with $b = J(\pi_{old})$, what the old policy earned. Then
#
# $$\mathbb E_{\pi_{old}}[\rho A] = \mathbb E_{\pi_\theta}[r - b] = J(\pi_\theta) - b = J(\pi_\theta) - J(\pi_{old}) \tag{3.2}$$
#
# `eq:surrogate-identity` · Kakade & Langford 2002, lemma 6.1, for answers that are one choice. The first step is (3.1), the second
# uses that probabilities sum to 1.

# %% jupyter={"source_hidden": true}
lesson.ask("how-far")

# %% [markdown]
# The cell moves along $\pi_\theta \propto \pi_{old}\,e^{\lambda\mu}$, straight towards reward. It evaluates the rung's own objective, with
# $b = J(\pi_{old})$, on **every** group of 8 samples that can occur, and averages with the groups' probabilities. Nothing is drawn.

# %%
from bandits.theory import effective_samples as far

surrogate = far.centred(ladder.surrogate, J_old)  # b = J(π_old)
print("  λ   KL(π_θ‖π_old)   J(π_θ) − J(π_old)   E[objective]   one group of 8: ±")
for strength in (0.1, 1.0, 5.0):
    moved = far.tilted(old.log(), mean, strength)
    listed = far.bernoulli_arms(moved, old.log())
    value, spread = far.objective_moments(surrogate, listed, group=8)
    gain = float(moved.exp() @ mean) - J_old
    print(
        f"{strength:>4}   {far.distance(listed):<13.3g}   {gain:<17.3g}   {value:<12.3g}  "
        f" {spread:<18.3g}",
        end="",
    )
    print("equal to 1e-12:", abs(value - gain) < 1e-12)

# %% [markdown]
# Equal at every distance: an identity, not an approximation. What grows is the last number: how far a single group of 8 is off. Keep it in mind.
#
# For an episode of many steps (3.2) needs more: a new policy also visits other *states*, and $A$ must be averaged over those. TRPO drops
# that effect, and its theorem bounds the error (Schulman et al. 2015, eq. 3 and theorem 1). One choice per question has no such effect.
# Keep (3.2) apart from $\mathbb E_{\pi_\theta}[A]$, which “From PPO to GRPO” (Xu) writes as its eq. (1): with $\pi_\theta$'s own advantage that is 0 for every policy.
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
# “GRPO is just PPO for bandits” (Giovanidis) calls this $L^{TRPO}$. TRPO is this **under a constraint**, which comes at the end of
# the lesson; without one it is the surrogate of conservative policy iteration.
#
# ## Its gradient
#
# $A$ and $\pi_{old}$ are constants. Only $\pi_\theta$ in the numerator moves, and $\nabla\pi_\theta = \pi_\theta\nabla\log\pi_\theta$:
#
# $$\nabla_\theta\,\rho = \rho\,\nabla_\theta\log\pi_\theta
# \quad\Rightarrow\quad
# \nabla_\theta\,\mathbb E_{\pi_{old}}[\rho A] = \mathbb E_{\pi_{old}}[\rho A\,\nabla_\theta\log\pi_\theta] = \mathbb E_{\pi_\theta}[A\,\nabla_\theta\log\pi_\theta] = \nabla J(\pi_\theta) \tag{3.3}$$
#
# `eq:surrogate-gradient` · Schulman et al. 2015 (TRPO), eq. 4, at any $\theta$ for one choice. The last step is lesson 02: a constant baseline does not change the mean.
# At the moment of sampling $\rho = 1$, and sample by sample
#
# $$\nabla_\theta(\rho_i A_i)\big|_{\pi_\theta=\pi_{old}} = A_i\,\nabla_\theta\log\pi_\theta(o_i) \tag{3.4}$$
#
# `eq:surrogate-gradient-at-old` · Xu 2025 (“From PPO to GRPO”), below eq. 3: PPO then reduces to policy gradient.

# %% jupyter={"source_hidden": true}
lesson.ask("two-gradients")

# %%
from course.exact import microscope

moved = far.tilted(old.log(), mean, 5.0)  # far out: (.09, .23, .69)
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
# The surrogate keeps the direction exactly. Its length is 7/8 of ∇J's at both places, because the batch mean includes the sample itself: $(G-1)/G$, lesson 02.
# On stale samples the policy gradient has turned away, by the 44° that a cosine of .714 means.

# %% [markdown]
# ## “My loss is 0”
#
# <!-- answers: 1, 2, 3 -->
# Everybody who trains with this objective for the first time asks why the loss is 0, or why it rises while the reward rises. Predict first.

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
#
# Now the rise. GRPO, the last rung, subtracts $\beta$ times a KL (lesson 07). The centred part of the loss is 0 at the start of every rollout, for ever: each ρ is 1, the advantages sum to 0,
# and $1/|o_i|$ counts an answer once whatever its length. (Under a sum or a mean over tokens long answers count more: where lengths differ, a remainder is left.)
# What is left in your log is $\beta\cdot$KL, which starts at 0 and grows as the policy leaves its reference. Sixteen questions, ten answers each, one update per rollout:

# %%
from bandits.linear import linear_bandit
from course.learner import Learner
from course.parts.kl import k3
from course.train.optim import SGD

SIZES = (16, 10, 48)  # questions, answers of each, parameters that all share
bandit, noise = linear_bandit(SIZES, torch.zeros(1), range(1), group=8, seed=0, reference="start")
learner, watch = (
    Learner(bandit, ladder.grpo, SGD(4.0), noise),
    lesson.noise(1, 1, dtype=torch.float64),
)
for rollouts in (0, 10, 30, 60):
    if rollouts:
        learner.train(rollouts - learner.steps)
    fresh = bandit.sample(watch)
    loss = round(float(ladder.grpo.loss(bandit.policy(fresh), fresh).detach()), 12)
    kl = float(k3(fresh.ref_log_prob - fresh.log_prob).mean())  # lesson 07
    same, earned = abs(loss - 0.04 * kl) < 1e-9, float(bandit.metrics()["expected_reward"])
    print(
        f"after {rollouts:>2} rollouts: loss {abs(loss):.3g}, equal to 0.04·KL: {same}, expected"
        f" reward {earned:.3g}"
    )

# %% [markdown]
# So watch the reward, the KL, the gradient norm. The loss of these methods is a device to make a gradient; its value measures no progress.

# %% [markdown]
# ## What gives out: the samples
#
# (3.2) is exact on average. You have $G$ samples. With a fixed $b$ the estimate $\frac1G\sum_i \rho_i A_i$ is a mean of independent terms, so its variance is
# $(\mathbb E_{\pi_{old}}[\rho^2A^2] - (J(\pi_\theta)-J(\pi_{old}))^2)/G$. Leave $A$ aside and ask of the weights alone how many samples they are worth:
#
# $$G_{\text{eff}} = \frac{G}{\mathbb E_{\pi_{old}}[\rho^2]} \tag{3.5}$$
#
# `eq:effective-samples` · Kish 1965. At $\pi_{old}$ it is $G$. And it must fall as you move: by (3.1) $\mathbb E_{\pi_{old}}[\rho^2] = \mathbb E_{\pi_\theta}[\rho]$, and Jensen's inequality gives
# $\mathbb E_{\pi_\theta}[e^{\log\rho}] \ge e^{\mathbb E_{\pi_\theta}[\log\rho]} = e^{\mathrm{KL}(\pi_\theta\|\pi_{old})}$. So at most $G\,e^{-\mathrm{KL}}$ are left. This is the first reason to measure steps in KL.

# %%
lesson.code(far.second_moment)

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

# %%
effective = lesson.exercise("effective-samples")

# %%
def my_effective_samples(log_old, log_new, samples):
    """log_old, log_new: [K] log-probabilities of all answers; samples: G, drawn from old → a
    number, G_eff.
    """
    return NotImplemented


effective.check(my_effective_samples)

# %% [markdown]
# ## Several tokens: a product of ratios
#
# <!-- answers: 23 -->
# An answer of $|o_i|$ tokens is one choice among all answers. Its ratio is
#
# $$\rho_i = \frac{\pi_\theta(o_i)}{\pi_{old}(o_i)} = \prod_{t=1}^{|o_i|}\rho_{i,t} = \exp\sum_{t=1}^{|o_i|}\left(\log\pi_\theta(o_{i,t}) - \log\pi_{old}(o_{i,t})\right) \tag{3.6}$$
#
# `eq:sequence-ratio` · Sutton & Barto 2018, eq. 5.3. Each token's probability is given the tokens before it. With this one ratio, (3.2) and (3.3) stay exact. But if all tokens move alike, whatever came before them,
# $\mathbb E[\rho^2]$ is that of one token **to the power** $|o_i|$. So PPO and GRPO take each token's own ratio $\rho_{i,t}$, as the rung above says: cheap in samples, right at $\pi_{old}$, an approximation elsewhere.

# %% jupyter={"source_hidden": true}
lesson.ask("token-power")

# %%
from course.parts import SequenceMean, SequenceRatio

one = far.second_moment(far.bernoulli_arms(far.tilted(old.log(), mean, 1.6), old.log()))
print(
    "effective share at λ = 1.6, by tokens:",
    {tokens: f"{one**-tokens:.2g}" for tokens in (1, 4, 16, 64)},
)

task = far.Sums(tokens=3, words=3)  # answers of 3 tokens, right if they sum to 3
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
# On three tokens the token ratios miss 3% of the improvement near $\pi_{old}$ and 17% far out; the answer's ratio misses nothing, and pays in samples.
#
# GSPO takes a third way: one number per answer, the product's $|o_i|$-th root, which is the geometric mean of the token ratios. Its log is a mean of log-ratios,
# and a mean of many is close to its expectation, $-\mathrm{KL}(\pi_{old}\|\pi_\theta)$ of one token.
# The cell draws 400 answers from B3's policy, each token an arm, and asks the three ratio parts about a policy a little further on:

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
# The token ratio does not know the length. The product leaves 0.8 … 1.2 for almost every long answer. The root settles at $e^{-\mathrm{KL}}$ of one token, half a percent from 1: bounds
# of 0.2 never touch it here. GSPO's paper takes $\varepsilon = 3\cdot10^{-4}$ and $4\cdot10^{-4}$. An $\varepsilon$ belongs to one kind of ratio and cannot be carried to another.

# %% [markdown]
# ## One rollout, many updates
#
# Now use a rollout more than once. The sixteen questions again, 40 independent runs for each point, 60 rollouts each, the same learning rate and random numbers for everybody; only the number of updates per rollout grows.

# %% jupyter={"source_hidden": true}
lesson.ask("one-update")

# %%
from dataclasses import replace as change

from bandits.ablations import staleness
from bandits.theory.staleness import THREE_ARMS, stale_limit
from course.lab.statistics import interval

settings = change(staleness.SETTINGS, runs=20, rollouts=60)
zero, UPDATES = torch.zeros(1, dtype=torch.float64), (1, 4, 16)
final = {
    name: torch.stack(
        [
            staleness.train(ladder.get(name).estimator, settings, epochs, (64.0,), range(40))[0][0]
            for epochs in UPDATES
        ]
    )
    for name in ("reinforce", "baseline", "surrogate", "clip")
}
for name, ends in final.items():
    print(
        f"{name:<10}",
        "  ".join(
            f"{epochs} updates: {end:.2f}" for epochs, end in zip(UPDATES, ends.mean(-1).tolist())
        ),
    )
same = torch.stack([final[name][0] for name in ("baseline", "surrogate", "clip")])
print("one update: the three rungs end every run alike:", bool((same - same[0]).abs().max() < 1e-9))

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
    "final reward against updates per rollout: baseline falls, surrogate stays, clip rises,"
    " reinforce without baseline stays",
)

# %% [markdown]
# Four curves to explain, one at a time.
#
# **`baseline` falls.** Take one question. With stale samples the expected gradient in the logits is $\sum_a\pi_{old}(a)(\mu_a - b)(e_a - \pi_\theta) = \pi_{old}\,(\mu - b)$: with $b = J(\pi_{old})$ the term with $\pi_\theta$ sums to 0.
# A force that does not depend on where you are never fades. Sixteen updates are one update with sixteen times the learning rate. (With the mean
# of a batch of sixteen questions the terms cancel over the batch, not in each question.)
#
# **`reinforce` does not mind**, and it has neither ratio nor baseline. With rewards in {0, 1} and $b = 0$ the $\pi_\theta$ term stays, and the force is 0 where
#
# $$\sum_a \pi_{old}(a)\,\mu_a\,(e_a - \pi_\theta) = 0 \quad\Leftrightarrow\quad \pi_\theta(a) = \frac{\pi_{old}(a)\,\mu_a}{J(\pi_{old})},
# \qquad J(\pi_\theta) = \frac{\mathbb E_{\pi_{old}}[\mu^2]}{\mathbb E_{\pi_{old}}[\mu]} \ge J(\pi_{old}) \tag{3.7}$$
#
# `eq:stale-limit` · Dayan & Hinton 1997; derived. It imitates the rewarded samples, and having imitated them it stops. Exactly, on B3:

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
#
# **`surrogate` does not gain.** Its direction is right, (3.3). But $\sum_i\rho_iA_i$ is linear in $\pi_\theta$, so it is largest in a corner: all probability on one answer. The more updates, the nearer
# the corner after the *first* rollout, and an answer that is never sampled again cannot be learned. The entropy shows it (uniform: log 10 = 2.30 nats), and so do the questions whose right answer has lost almost all of its probability.
# (Here and below hundreds of very large steps blow up rounding errors: on another processor, last digits may be others.)

# %% tags=["nbval-ignore-output"]
for group in (8, 64):
    for name in ("surrogate", "clip"):
        bandit, noise = linear_bandit(SIZES, zero, range(10), group=group, seed=0)
        history = Learner(bandit, ladder.get(name).estimator, SGD(64.0), noise, epochs=16).train(60)
        policy = bandit.arm_policy.log_probs().exp().detach()
        right_answer = policy.gather(-1, bandit.environment.best.expand(*policy.shape[:-1], 1))
        print(
            f"G = {group:>2} {name:<10} entropy in the first rollout:"
            f" {float(history['entropy'][0].mean()):.2f} nats   questions lost (π(right) < .01):"
            f" {float((right_answer < 0.01).double().mean()):.0%}"
        )

# %% [markdown]
# Eight times the samples do not cure it. **`clip` rises** because it leaves the linear objective on the way, before the corner: lesson 04.
#
# ## Updates per rollout are not the group size
#
# <!-- answers: 4 -->
# The log of the next rung has a *clip fraction*: the share of samples at which the clip is flat, because their ratio has left its range on the side $A$ pushes to. Many ask why theirs is always 0. $G$ is how many answers a question gets;
# updates per rollout is how often they are used. Only the second moves $\pi_\theta$ away from $\pi_{old}$ while the samples are in use:

# %%
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
# ## See the rungs move
#
# Three arms make a triangle: a corner is certainty, the middle is the uniform policy. The thin lines join policies of equal expected reward, written below them. The expected gradient (groups of 4, nothing sampled)
# drives two rungs from the same start for 64 updates, each on a rollout of its own or all on one. Two rungs are left out: with one question `group_mean` is `clip`, with one token `length_mean` is `group_std`.

# %% jupyter={"source_hidden": true}
SHOWN = ("reinforce", "baseline", "surrogate", "clip", "group_std", "grpo")


def travel(name, every, total=64):
    """[total + 1, 3] probabilities: every `every` updates the current policy samples anew."""
    path = [old.log()]
    for _ in range(total // every):
        reference = old.log() if name == "grpo" else None
        more = ascend(
            ladder.get(name).estimator,
            THREE_ARMS,
            path[-1],
            4,
            rate=1.0,
            steps=every,
            stale=True,
            reference=reference,
        )
        path.extend(more[1:])
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
            CORNERS.tolist(), ("pays .2", "pays .5", "pays .8"), ("right", "left", "left")
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
    "With one update per rollout, baseline, surrogate and clip travel alike. Take 64: surrogate"
    " against clip shows where the clip stops, reinforce shows the limit (3.7).",
    left=Choice(SHOWN, "surrogate", "left rung"),
    right=Choice(SHOWN, "clip", "right rung"),
    update=Slider(0, 64, 1, 64, "updates so far"),
    every=Choice((1, 64), 64, "updates per rollout"),
)

# %% [markdown]
# ## TRPO: a bound on the step
#
# TRPO climbs the same surrogate, but no further than the samples carry:
#
# $$\max_\theta\ \mathbb E_{\pi_{old}}[\rho A] \quad\text{subject to}\quad \mathrm{KL}(\pi_{old}\|\pi_\theta) \le \delta \tag{3.8}$$
#
# `eq:trust-region-problem` · Schulman et al. 2015 (TRPO), eq. 14. No part is replaced: the objective is that of the rung, the *optimiser* is another.
# Solve it for a small step $d$. The surrogate is $g^\top d$ to first order, $g = \nabla J$. The KL has no first order, because it is 0 at $d = 0$ and never below. Its second:
# $\mathrm{KL} = -\mathbb E_{\pi_{old}}[\log\pi_{\theta+d} - \log\pi_\theta]$, where $\mathbb E[\nabla\log\pi] = 0$ and, since $\nabla^2\log\pi = \nabla^2\pi/\pi - s s^\top$ and $\sum_a\nabla^2\pi_a = 0$,
#
# $$\mathrm{KL}(\pi_\theta\|\pi_{\theta+d}) = \tfrac12\,d^\top F d + O(\|d\|^3), \qquad F = \mathbb E_{\pi_\theta}[s\,s^\top],\quad s = \nabla_\theta\log\pi_\theta \tag{3.9}$$
#
# `eq:fisher-kl` · Kakade 2001; Schulman et al. 2015, appendix C. $F$ is the Fisher matrix. It has as many entries as the square of the number of parameters: nobody writes it down for a transformer. But $F$ **times a vector** is two backward passes through the KL.
#
# (3.5) bounded samples with the other direction, $\mathrm{KL}(\pi_\theta\|\pi_{old})$. To second order the two are one, and $\mathbb E_{\pi_{old}}[\rho^2] - 1$ is twice it: a small step leaves
# $G_{\text{eff}} \approx G/(1 + 2\,\mathrm{KL})$, so a bound on this KL is a bound on the samples that are lost.

# %%
from course.train.trust_region import TRPO, conjugate_gradient, fisher_product

lesson.code(fisher_product)

# %%
from course.parts.kl import exact_kl
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
scores = torch.eye(3, dtype=torch.float64) - old  # one row for each arm
print("F by two backward passes:", [[round(x, 3) for x in row] for row in F.tolist()])
print(
    "equal to E[s sᵀ] to 1e-12:",
    bool((F - torch.einsum("a,ai,aj->ij", old, scores, scores)).abs().max() < 1e-12),
)

# %% [markdown]
# ## The natural gradient
#
# Maximise $g^\top d$ with $\tfrac12 d^\top Fd = \delta$: a Lagrange multiplier $\eta$ gives $g = \eta F d$, so $d$ is parallel to a solution $x$ of $Fx = g$, and the constraint fixes its length:
#
# $$d = \sqrt{\frac{2\delta}{x^\top F x}}\;x, \qquad F x = g \tag{3.10}$$
#
# `eq:trust-region-length` · Schulman et al. 2015, appendix C. For a softmax over its own logits you can solve $Fx = g$ in your head. $F = \mathrm{diag}(\pi) - \pi\pi^\top$ and $g_a = \pi_a A_a$. Try $x = A$:
# $(FA)_a = \pi_a A_a - \pi_a\sum_b\pi_bA_b = \pi_aA_a$, because $A$ averages to 0. A constant added to all logits changes nothing, so $F$ has no inverse; of the solutions take the one
# that sums to 0, which is what the pseudo-inverse $F^{+}$ gives:
#
# $$F^{+}\nabla J = A - \tfrac1K\textstyle\sum_a A_a \tag{3.11}$$
#
# `eq:natural-gradient-softmax` · Kakade 2001; derived.

# %% jupyter={"source_hidden": true}
lesson.ask("rare-arm")

# %% [markdown]
# Without a matrix, $Fx = g$ is solved by conjugate gradient: each iteration asks for one product $Fp$ and goes as far as it pays along a direction that spoils none of the earlier ones.
#
# $$\alpha = \frac{r^\top r}{p^\top F p},\quad x \leftarrow x + \alpha p,\quad r' = r - \alpha F p,\quad p \leftarrow r' + \frac{r'^\top r'}{r^\top r}\,p \tag{3.12}$$
#
# `eq:conjugate-gradient` · Hestenes & Stiefel 1952, start $x = 0$, $r = p = g$. It is done after as many iterations as $F$ has different eigenvalues above 0.

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

# %% [markdown]
# ## The line search
#
# (3.9) is a parabola; the true KL is not. So TRPO tries the full step (3.10), measures the **exact** KL and the surrogate, and halves the step until the KL is at most $\delta$ and the surrogate has risen. If ten tries, the full step and nine halvings, do not help, it stays.

# %%
lesson.code(TRPO.step)

# %% jupyter={"source_hidden": true}
lesson.ask("full-step")

# %%
for delta in (0.001, 0.01, 0.1, 1.0):
    [x] = conjugate_gradient(product, [g], runs=0, iterations=10)
    full = (2 * delta / (x @ F @ x)).sqrt() * x
    kl_full = float(exact_kl(old.log(), torch.log_softmax(old.log() + full, -1)).sum())
    with torch.no_grad():
        theta.copy_(old.log())
    gradient = torch.autograd.grad(everything().loss(), [theta])
    taken = TRPO(delta, damping=0.0).step(gradient, everything())
    J_after = float(torch.softmax(theta.detach(), -1) @ mean)
    share, kl = float(taken["step_fraction"]), float(taken["trust_region_kl"])
    print(
        f"δ = {delta:<5g}   full step: KL {kl_full:<7.3g}   accepted: {share:g} of it, KL"
        f" {kl:<8.3g}   J: {J_old:.2f} → {J_after:.3f}"
    )

# %% [markdown]
# The parabola is good here: off by 6% at most, at $\delta = 0.1$. But it errs on the wrong side at every $\delta$ (the next term has the sign of $\mathbb E_{\pi_{old}}[A^3]$, and here the good arm is the rare one), so the line search
# halves every time and leaves three quarters of the allowed KL unused.
# TRPO's steps are inside their bound, seldom at it.

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
# Sixteen questions, 20 runs, equal samples. TRPO takes one step per rollout at $\delta = 0.1$; the clip of the next lesson and plain ascent on the same surrogate take 8 plain gradient steps.

# %%
from bandits.ablations import trust_region
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
figures.describe(left, "Reward at equal samples", "samples", "expected reward")
figures.describe(right, "The farthest run of each rollout", "samples", "largest KL(π_old‖π), nats")
for ax in (left, right):
    figures.label_ends(ax)
lesson.picture(
    figure,
    "TRPO ends highest and never passes its bound of 0.1; the clip passes it at first and now and"
    " then; plain ascent starts fastest, at more than 1 nat",
)

# %% [markdown]
# At these step sizes the bounded step ends highest, and its bound is never passed. Plain ascent is the fastest at first and then stays behind. `python -m bandits trust_region` sweeps the step sizes of all three and finds the same order at each one's best.
# The price is in the code above: eleven Fisher products (ten of conjugate gradient, one for the length) and up to ten evaluations for one step. That is what PPO set out to save.

# %% [markdown]
# ## Now you: the surrogate itself

# %%
written = lesson.exercise("surrogate")

# %%
def my_surrogate(log_prob, old_log_prob, advantage):
    """log_prob (differentiable), old_log_prob, advantage: tensors of one shape → ρA, same shape."""
    return NotImplemented


written.check(my_surrogate)

# %% [markdown]
# ## Break it
#
# Two runs of the clip rung with 16 updates per rollout, 20 seeds each, everything equal but one line of code. One of them is broken.

# %% jupyter={"source_hidden": true}
from dataclasses import dataclass


@dataclass(frozen=True)
class Suspect(TokenRatio):
    """(The fault. Do not look before you have answered.)"""

    def __call__(self, log_ratio, mask):
        return log_ratio - log_ratio.detach()


def follow_run(estimator):
    bandit, noise = linear_bandit(SIZES, zero, range(20), group=8, seed=0)
    return Learner(bandit, estimator, SGD(64.0), noise, epochs=16).train(60)


broken = {
    "run A": follow_run(course.replace(ladder.clip, ratio=Suspect())),
    "run B": follow_run(ladder.clip),
}
figure, panels = figures.new_figure(1, 3, width=9.0, height=3.2)
for label, colour in (("run A", "#c96f00"), ("run B", "#332288")):
    for ax, metric in zip(panels, ("expected_reward", "clip_fraction", "ratio_max")):
        figures.band(
            ax,
            torch.arange(1, 61),
            broken[label][metric].mean((1, 2)),
            None,
            label=label,
            color=colour,
        )
for ax, title in zip(panels, ("expected reward", "clip fraction", "largest ρ, mean of runs")):
    figures.describe(ax, title, "rollouts", "")
panels[0].legend(frameon=False)
lesson.picture(
    figure,
    "run A jumps up at first and then stays near 0.56, its clip fraction is 0 and its largest ratio"
    " 1 throughout; run B climbs to 0.87 with ratios above 1",
)

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %% [markdown]
# The reveal: run A's ratio part returns `log_ratio - log_ratio.detach()`, in which $\log\pi_{old}$ cancels: it subtracts the *current* log-probability. Value 1, gradient $A\nabla\log\pi$: right at the first update, stale at the other fifteen. It is the rung `baseline` in disguise:

# %%
plain = follow_run(ladder.baseline)
print(
    "run A is the rung `baseline`, rollout by rollout:",
    bool(((broken["run A"]["expected_reward"] - plain["expected_reward"]).abs() < 1e-9).all()),
)

# %% tags=["nbval-ignore-output"]
for label, history in (*broken.items(), ("the rung `baseline`", plain)):
    print(
        f"{label:<20} final reward {float(history['expected_reward'][-1].mean()):.3f}   largest ρ"
        f" seen {float(history['ratio_max'].max()):.3g}"
    )

# %% [markdown]
# If your clip fraction is 0 although you make several updates per rollout, look for this. Log-probabilities of the rollout are taken **once**, when it is sampled, from the distribution that sampled.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# For one choice per question, $\mathbb E_{\pi_{old}}[\rho A]$ *is* the improvement, at any distance, and its gradient is $\nabla J$ where you stand. What limits a step is the number of samples that is left, at most $G\,e^{-\mathrm{KL}}$.
#
# ## Next
#
# TRPO bounds the KL and pays with second-order machinery. Lesson 04 replaces the surrogate once more: `Clip` takes a sample out of the gradient when its own ratio has gone far enough. It costs one line. It is also not a bound, which you will see.
