

# %% [markdown]
# # 02 · Baselines and advantages
#
# When you are through you can
#
# - say which numbers may be subtracted from a reward without moving the expected gradient, and prove it in one line;
# - compute what a baseline buys: the exact variance for any constant, and the constant where it is least;
# - say what it costs when the baseline has to be estimated from the samples themselves, and when that costs more than it saves;
# - recognise a "baseline" that looks at the sample's own action.
#
# You need lesson 01: the score $s=\nabla\log\pi_\theta$, $\nabla J=\mathbb E[R\,s]$, $\mathbb E[s]=0$, and the bandit B3 with $\pi=(.5,.3,.2)$ and arms that pay 1 with probability $.2$, $.5$, $.8$.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from course import exact, ladder
from course.lab import figures

lesson = course.setup("02")
ladder.baseline

# %%
for part, (here, below) in ladder.baseline.diff(ladder.reinforce).items():
    print(f"{part}: {here.short} in place of {below.short}")

# %% [markdown]
# One part of REINFORCE is replaced. $R_i$ becomes $A_i=R_i-b$, with $b$ the mean reward of the batch. This lesson is about that minus sign.
#
# ## Why you may subtract
#
# The score is 0 on average, (1.4) of lesson 01. Multiply it by any number $b$ that does not depend on which answer was drawn, and it is still 0 on average. So
#
# $$\mathbb E[(R-b)\,s]=\mathbb E[R\,s]-b\,\mathbb E[s]=\nabla J\qquad\text{for every }b\tag{2.1}$$
#
# `eq:constant-baseline` · Williams 1992, theorem 1
#
# Not nearly: exactly. Test it with absurd numbers. The microscope forms every batch that can occur, as in lesson 01.

# %%
from bandits.exact import B3_MEANS, B3_POLICY, b3
from course.estimator import replace
from course.parts import Constant

B3 = b3()
for b in (-100.0, 0.0, 0.41, 7.0):
    seen = exact.microscope(replace(ladder.reinforce, baseline=Constant(b)), B3, 2)
    off = float(seen.bias.norm()) < 1e-10
    print(f"b = {b:>6g}: E[ĝ] is ∇J to 1e-10: {off}    scatter of a batch of two: {seen.std:.3g}")

# %% [markdown]
# The mean does not move. The scatter does, by a factor of about 200 between these four. In one update that scatter is all you can win or lose.
#
# ## The value, and the advantage
#
# Which $b$? A natural one is what the question is worth on average under the policy, its **value**:
#
# $$V(q)=\sum_o\pi_\theta(o\mid q)\,r(q,o)=\mathbb E[R\mid q]\tag{2.2}$$
#
# `eq:value-of-a-question` · Sutton & Barto 2018, §3.5, for one step
#
# A sample's reward less the baseline is its **advantage**, and with $b=V$ it says how much better than usual the answer was:
#
# $$A_i=R_i-b\tag{2.3}$$
#
# `eq:advantage-of-a-sample` · Williams 1992; with b = V: Baird 1993
#
# On B3 $V=.41$. An answer that earned 1 has the advantage $+.59$, one that earned 0 has $-.41$. Mind that $V$ weighs each answer by how often the policy gives it. The plain average of the three arms is $.5$; by (2.1) it is allowed as well, but it is not the value ([a slip](SLIPS.md)). In general reinforcement learning $Q(s,a)$ takes the place of the reward: what is earned from here on, on average. With one step that is the reward's mean, $Q(q,o)=r(q,o)$.

# %%
probability, mean = (
    torch.tensor(B3_POLICY, dtype=torch.float64),
    torch.tensor(B3_MEANS, dtype=torch.float64),
)
V = float(probability @ mean)
print(f"V = Σ π r = {V:.3g},   plain average of the arms = {float(mean.mean()):.3g}")
print("advantage of each arm's mean:", "  ".join(f"{x:+.2f}" for x in (mean - V).tolist()))
print(f"E[A] = Σ π A is 0: {abs(float(probability @ (mean - V))) < 1e-12}")

# %% jupyter={"source_hidden": true}
lesson.ask("which-constant")

# %% [markdown]
# ## What it buys: a parabola
#
# How much does one sample's $\hat g=(R-b)\,s$ scatter? Its total variance is its mean square less the square of its mean, and the mean is $\nabla J$ whatever $b$ is:
#
# $$v(b)=\mathbb E\big[(R-b)^2\|s\|^2\big]-\|\nabla J\|^2\tag{2.4}$$
#
# `eq:variance-at-baseline` · Greensmith et al. 2004
#
# As a function of $b$ that is a parabola, with $\mathbb E\|s\|^2$ in front of $b^2$. Its slope is $-2\,\mathbb E[(R-b)\|s\|^2]$. Set it to 0 and solve for $b$:
#
# $$b^*=\frac{\mathbb E[R\,\|s\|^2]}{\mathbb E[\|s\|^2]}\tag{2.5}$$
#
# `eq:best-constant-baseline` · Weaver & Tao 2001; Greensmith et al. 2004
#
# It is a mean of the rewards in which each sample counts by its squared score. Any other $b$ costs more by $v(b)-v(b^*)=(b-b^*)^2\,\mathbb E\|s\|^2$.

# %%
lesson.code(exact.covariance_at_baseline, exact.optimal_baseline)

# %%
best = float(exact.optimal_baseline(B3))
print("baseline            b      variance of one sample")
for label, b in (("none", 0.0), ("V", V), ("best constant", best), ("largest reward", 1.0)):
    print(f"{label:<15} {b:>6.3f}     {float(exact.variance_at_baseline(B3, b)):.4f}")
square = float((exact.probability(B3)[0] * B3.total_score[0].square().sum(-1)).sum())  # E‖s‖²
costs = float(exact.variance_at_baseline(B3, V) - exact.variance_at_baseline(B3, best))
print(f"V costs {costs:.4f} more than b*;  (V − b*)²·E‖s‖² = {(V - best) ** 2 * square:.4f}")

# %% [markdown]
# On B3 $V$ halves the variance, and leaves 4 % of it for the best constant to win. You will not know $b^*$ in practice, since it needs the scores. Is $V$ always nearly as good? Subtract $V=\mathbb E[R]$ from (2.5):
#
# $$b^*-V=\frac{\operatorname{Cov}(R,\|s\|^2)}{\mathbb E[\|s\|^2]}.$$
#
# So they are equal if long scores earn as much as short ones. The long scores are those of rare answers. What decides is whether *rare answers pay differently*.
#
# ## Do it: the best constant of a softmax
#
# For a softmax over its own logits the score of arm $a$ is $s_a=e_a-\pi$ (lesson 01), so everything in (2.5) can be written with $\pi$ and the arms' mean rewards alone.

# %%
best_constant = lesson.exercise("best-constant")

# %%
def my_best_constant(pi, mean):
    """π [K] and each arm's mean reward [K] → b*, one number."""
    return NotImplemented


best_constant.check(my_best_constant)

# %% jupyter={"source_hidden": true}
lesson.ask("two-arms")

# %% [markdown]
# With two arms, $\|s_a\|^2=2(1-\pi_a)^2$, and your formula shrinks to $b^*=\pi_2r_1+\pi_1r_2$: the mean reward with the probabilities **exchanged**. The best constant follows the arm that you rarely pull. How often does that matter? Here is the case of the question, with arms that pay 1 or 0, and then bandits drawn at random: policies that are undecided (spread 1) and policies that are nearly sure (spread 4).

# %%
from bandits.environments import Bernoulli
from bandits.exact import outcomes

pi, pay = (
    torch.tensor([0.9, 0.1], dtype=torch.float64),
    torch.tensor([0.2, 0.7], dtype=torch.float64),
)
b = float(best_constant.solution(pi, pay))
two = outcomes(Bernoulli(pay[None]), pi.log()[None])
print(f"V = {float(pi @ pay):.3g},  b* = {b:.3g},  exchanged: {float(pi.flip(0) @ pay):.3g}")
print(
    f"variance at V {float(exact.variance_at_baseline(two, float(pi @ pay))):.4f}, at b*"
    f" {float(exact.variance_at_baseline(two, b)):.4f}"
)


def excess(spread):
    """Var(V)/Var(b*) of 2,000 bandits: three arms, logits normal with this `spread`, each arm's
    chance of paying 1 uniform.
    """
    noise = lesson.noise(dtype=torch.float64, use=2)
    pi, pay = (spread * noise.normal(2000, 3)).softmax(-1), noise.uniform(2000, 3)
    square = pi * (1 - 2 * pi + pi.square().sum(-1, keepdim=True))  # π‖s‖² of each arm
    values = (pi * pay).sum(-1, keepdim=True)
    best = (square * pay).sum(-1, keepdim=True) / square.sum(-1, keepdim=True)  # (2.5)
    signal = (pi * (pay - values)).square().sum(-1)  # ‖∇J‖²
    at_values, at_best = (
        (square * (pay * (1 - b).square() + (1 - pay) * b.square())).sum(-1) - signal
        for b in (values, best)
    )
    return at_values / at_best


for spread in (1.0, 4.0):
    found = excess(spread)
    a, b = (f"{(found > factor).double().mean():.0%}" for factor in (1.1, 2.0))
    print(f"spread {spread:g}: Var(V) is above 1.1 times the least in {a}, above twice in {b}")

# %% [markdown]
# For most undecided policies $V$ is nearly as good as $b^*$, as on B3. For policies that are nearly sure it often is not. What speaks for $V$ all the same is that it can be estimated: it is a mean of rewards, without any score.

# %%
print("offset   none     V        best constant")
for offset in (0.0, 4.0):
    listed = b3(offset=offset)
    at = (0.0, exact.objective(listed), float(exact.optimal_baseline(listed)))
    row = [float(exact.variance_at_baseline(listed, b)) for b in at]
    print(f"{offset:>4g}     {row[0]:<7.4g}  {row[1]:.4f}   {row[2]:.4f}")

# %% jupyter={"source_hidden": true}
span = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64)
figure, (near, far) = figures.new_figure(1, 2, width=9, height=3.3)
for ax, offset, title in ((near, 0.0, "Rewards 0 and 1"), (far, 4.0, "The same, plus 4")):
    listed = b3(offset=offset)
    b = span + offset if not offset else torch.linspace(-0.5, 6.0, 131, dtype=torch.float64)
    curve = [float(exact.variance_at_baseline(listed, float(x))) for x in b]
    figures.expectation(ax, x=b, y=curve)
    for label, colour, at in (
        ("none", "#000000", 0.0),
        ("V", "#b8860b", exact.objective(listed)),
        ("b*", "#0057a3", float(exact.optimal_baseline(listed))),
    ):
        seen = exact.microscope(
            replace(ladder.reinforce, baseline=Constant(at)), listed, 1
        ).variance
        ax.plot(at, seen, "o", color=colour, markersize=8)
        places = {"none": (8, 4), "V": (-16, 12), "b*": (8, 12)}
        ax.annotate(
            label, (at, seen), xytext=places[label], textcoords="offset points", color=colour
        )
    ax.set_ylim(bottom=0)
    ax.set_xticks([-0.5, 0, 0.5, 1, 1.5] if not offset else range(7))
    figures.describe(ax, title, "baseline b", "variance of one sample's ĝ")
lesson.picture(
    figure,
    "Equal parabolas on different axes, the second four further right: none stands far up its"
    " slope, V and b* lie at the bottom.",
)

# %% [markdown]
# Dots are enumerated, the dashed curve is (2.4). The offset of lesson 01 pushes the parabola along with the rewards. "No baseline" is the choice to stay at 0 wherever the rewards go: 4 higher, its variance is 12.71 against .1425 at $V$, 89 times as much.

# %% [markdown]
# ## From a constant to a batch
#
# Nobody tells you $V$. You have $N$ samples, and their mean is the obvious guess:
#
# $$b=\frac1N\sum_{j=1}^NR_j\tag{2.6}$$
#
# `eq:batch-mean-baseline` · this rung
#
# But (2.1) wanted a $b$ that does not depend on the sample it is subtracted from, and this one contains $R_i$.

# %% jupyter={"source_hidden": true}
lesson.ask("self-included")

# %%
for samples in (2, 4, 8, 32):
    seen = exact.microscope(ladder.baseline, B3, samples)
    ratio = float(seen.expected @ seen.gradient / seen.gradient.square().sum())
    print(
        f"N = {samples:>2}: E[ĝ] = {ratio:.4g} · ∇J,  (N − 1)/N = {(samples - 1) / samples:.4g}, "
        f" cosine is 1: {abs(seen.cosine - 1) < 1e-12}"
    )

# %% [markdown]
# Of the $N$ rewards in $b$, only the sample's own is correlated with its score $s_i$: $\mathbb E[b\,s_i]=\frac1N\mathbb E[R_is_i]=\frac1N\nabla J$. The gradient is too short by $\frac1N$ and points where it should. A learning rate takes care of that. Or leave yourself out, and take the mean of the others among the $G$ answers to the same question, its **group**:
#
# $$b_i=\frac1{G-1}\sum_{j\ne i}R_j\tag{2.7}$$
#
# `eq:leave-one-out-baseline` · Kool et al. 2019; Ahmadian et al. 2024 (2402.14740), eq. 9
#
# Now $b_i$ is independent of $s_i$, and (2.1) holds exactly. This estimator is called **RLOO**, REINFORCE leave-one-out. With one question, as on B3, $G=N$, and the two advantages differ by the factor alone. Since the mean is $\frac1N\big(R_i+(N-1)\,b_i\big)$, $R_i-\text{mean}=\frac{N-1}N(R_i-b_i)$. With rewards $(1,0,0,1)$ the first sample's are $1-\frac12=\frac12$ and $1-\frac13=\frac23$, and $\frac34\cdot\frac23=\frac12$.

# %%
from course.parts.baseline import BatchMean, leave_one_out

lesson.code(BatchMean, leave_one_out)
ladder.rloo

# %% [markdown]
# ## Do it: leave one out
#
# No loop over samples: a sum, a subtraction, a division.

# %%
loo_exercise = lesson.exercise("leave-one-out")

# %%
def my_leave_one_out(reward):
    """Rewards [Q, G] → baselines [Q, G]: for each sample the mean of the others of its row."""
    return NotImplemented


loo_exercise.check(my_leave_one_out)

# %% [markdown]
# ## When it costs
#
# A baseline from few samples is itself noisy, and that noise goes into $\hat g$. How much? Write $b_i$ as $V$ plus its error, $b_i=V+\frac1{G-1}\sum_{j\ne i}(R_j-V)$. Then $\hat g=\frac1G\sum_i(R_i-b_i)\,s_i$ is two sums:
#
# $$\hat g=\frac1G\sum_i(R_i-V)\,s_i-\frac1{G(G-1)}\sum_{i\ne j}(R_j-V)\,s_i.$$
#
# 1. The first sum is the gradient with $V$ known. Its variance is $v(V)/G$, with (2.4).
# 2. The two sums are uncorrelated. Take a term $(R_k-V)s_k$ of the first and $(R_j-V)s_i$ of the second, $i\ne j$. Samples are independent, so a sample that is in one of them alone comes as a factor of its own, $\mathbb E[s_i]=0$ or $\mathbb E[R_j-V]=0$. One such sample there always is.
# 3. Within the second sum a term $(R_j-V)s_i$ is correlated with itself, which gives $\mathbb E[(R_j-V)^2]\,\mathbb E\|s_i\|^2=\sigma^2\,\mathbb E\|s\|^2$, with $\sigma^2$ the variance of the rewards. It is correlated with its mirror image $(R_i-V)s_j$, too, which gives $\mathbb E[(R_j-V)s_j]\cdot\mathbb E[(R_i-V)s_i]=\|\nabla J\|^2$; and with no other term, by step 2's argument.
# 4. There are $G(G-1)$ terms of each kind, and the factor in front is squared: $\frac{G(G-1)}{G^2(G-1)^2}=\frac1{G(G-1)}$.
#
# $$\operatorname{Var}=\frac{v(V)}G+\frac{\sigma^2\,\mathbb E\|s\|^2+\|\nabla J\|^2}{G(G-1)}\tag{2.8}$$
#
# `eq:leave-one-out-variance` · derived here
#
# The second term is the price of not knowing $V$. It falls like $1/G^2$, so it matters for small groups.

# %% jupyter={"source_hidden": true}
lesson.ask("two-samples")

# %%
none, known = (float(exact.variance_at_baseline(B3, b)) for b in (0.0, V))
print(" G   REINFORCE   V known   RLOO enumerated   RLOO by (2.8)      (all times G)")
for group in (2, 3, 4, 8, 16):
    listed = exact.microscope(ladder.rloo, B3, group).variance * group
    formula = float(exact.rloo_covariance(B3, group)[0].trace()) * group
    print(f"{group:>2}   {none:<9.4f}   {known:.4f}    {listed:<15.4f}   {formula:.4f}")

# %% [markdown]
# Where do the two meet? Without a baseline the variance is $v(0)/G$. Set that equal to (2.8), multiply by $G$, and solve for $G$:
#
# $$G=1+\frac{\sigma^2\,\mathbb E\|s\|^2+\|\nabla J\|^2}{v(0)-v(V)}\tag{2.9}$$
#
# `eq:leave-one-out-crossover` · derived here
#
# RLOO is quieter above it. Where $v(0)\le v(V)$ there is nothing to save, and it never is.

# %%
print(
    "B3:             RLOO is quieter than no baseline above G ="
    f" {float(exact.rloo_crossover(B3)):.3g}"
)
print(f"B3, rewards +4: above G = {float(exact.rloo_crossover(b3(offset=4.0))):.3g}")
lesson.code(exact.rloo_covariance, exact.rloo_crossover)

# %% [markdown]
# A model that learns $V$, a **critic**, is the other way to get a baseline (lesson 05). "It was never necessary", one reads. For the mean of $\hat g$ that is (2.1). For its scatter, "V known" against "RLOO" in the table is what a perfect critic would save: more than half of the variance at $G=2$, a seventh of it at $G=8$.
#
# ## Explore: the scatter around ∇J
#
# Each batch of $G$ samples gives one $\hat g$; what you see is its component along $\nabla J$, over 3,000 batches. Bars are sampled; the thin dashed line is the exact $\|\nabla J\|$, and the black bar under the histogram is the exact mean ± one exact standard deviation.

# %% jupyter={"source_hidden": true}
batches = 3000
sampling = exact.probability(B3)[0].cumsum(0)[:-1].contiguous()
# [batches, 64] outcome numbers
drawn = torch.searchsorted(sampling, lesson.noise(dtype=torch.float64).uniform(batches, 64))
length = float(exact.gradient(B3).norm())
along = B3.total_score[0] @ (exact.gradient(B3) / length)  # [outcomes] score along ∇J
KNOWN = {
    "none": lambda listed: 0.0,
    "V": exact.objective,
    "best constant": lambda listed: float(exact.optimal_baseline(listed)),
}


def draw_scatter(group, baseline, offset):
    outcome, listed = drawn[:, :group], b3(offset=offset)
    reward, u = listed.total_reward[0][outcome], exact.gradient(B3) / length
    shrink = 1.0
    if baseline in KNOWN:
        b = KNOWN[baseline](listed)
        variance = float(u @ exact.covariance_at_baseline(listed, b)[0] @ u) / group
    else:
        shrink = (group - 1) / group if baseline == "mean of the batch" else 1.0
        b = loo_exercise.solution(reward) if shrink == 1.0 else reward.mean(-1, keepdim=True)
        variance = shrink**2 * float(u @ exact.rloo_covariance(listed, group)[0] @ u)
    found = ((reward - b) * along[outcome]).mean(-1)
    figure, [ax] = figures.new_figure(width=7.6, height=3.4)
    bins = torch.linspace(-1.2, 1.2, 61).tolist()
    counts, _, _ = ax.hist(
        found.clamp(-1.2, 1.2).numpy(), bins=bins, histtype="stepfilled", color="#8fb3d9"
    )
    figures.expectation(ax, x=length)
    ax.axvline(0, color="#999999", linewidth=0.8)
    top, centre = float(counts.max()), shrink * length
    ax.errorbar(centre, -0.06 * top, xerr=variance**0.5, fmt="o", color="#000000", capsize=4)
    ax.set_xlim(-1.25, 1.25)
    ax.set_ylim(-0.12 * top, 1.08 * top)
    wrong_way = float((found < 0).double().mean())
    title = (
        f"baseline: {baseline}, G = {group}: scatter {variance**0.5 / centre:.2f} × mean,"
        f" {wrong_way:.0%} point down"
    )
    figures.describe(ax, title, "ĝ along ∇J (beyond ±1.2: in the last bars)", "batches of 3,000")
    return figure


lesson.explore(
    "scatter",
    draw_scatter,
    "at the offset 4 without a baseline nearly half of the batches point down, and each baseline in"
    " the menu mends that; with two samples and no offset, leave one out is wider than none",
    steady=False,  # its labels grow
    group=course.lesson.Slider(2, 64, 1, 8, "samples G"),
    baseline=course.lesson.Choice(
        ["none", "V", "best constant", "mean of the batch", "leave one out"], "none", "baseline"
    ),
    offset=course.lesson.Slider(0.0, 4.0, 0.5, 4.0, "offset of all rewards"),
)

# %% [markdown]
# ## One number for all questions
#
# Real batches hold several questions, and (2.6) is one number for all of them. It is nobody's value. Take B3 and beside it a harder question, $V=.08$, each asked $G$ times. Lengths differ by (2.6)'s shrinking, so compare scatter over the length of the mean, $\sqrt{\operatorname{Var}}/\|\mathbb E[\hat g]\|$:

# %%
from bandits.theory.cases import cases

pair, table = cases()["two prompts"], ["                               G = 2    G = 4    G = 8"]
for label, rung in (
    ("batch mean", "baseline"),
    ("leave one out, per question", "rloo"),
    ("each question's V known", "ppo_value"),
):
    row = [exact.microscope(ladder.get(rung).estimator, pair, group) for group in (2, 4, 8)]
    table.append(
        f"{label:<29}  " + "    ".join(f"{one.std / float(one.expected.norm()):.3f}" for one in row)
    )
print("\n".join(table))

# %% [markdown]
# Here, with two samples per question, the batch's mean is the better guess, because it averages over four rewards. From four on, a baseline of each question's own is. That trade is what the group baseline of GRPO is about (lesson 06), and one reason why it wants large groups.

# %% [markdown]
# ## Break it
#
# Three programs train on B3, two samples per update. Each subtracts something. One subtracts $V$. One has a slip of the **sign** and subtracts $-V$. One team found $V$ too crude, since it says the same for every answer, and trained a better predictor, which looks at the question **and the answer**: it subtracts $Q(q,o)$, the mean reward of the arm that was pulled.

# %%
from dataclasses import replace as copy_with

from bandits.policies import Softmax
from bandits.problem import Bandit
from course.learner import Learner
from course.parts import Value
from course.train.optim import SGD


class Predicted(Bandit):
    """A bandit that stores a prediction with each sample; `predict(π [..., K], action [..., G])`
    makes it.
    """

    predict = None

    def sample(self, noise):
        rollout = super().sample(noise)
        guess = type(self).predict(rollout.old_log_dist[..., 0, :, :].exp(), rollout.data["action"])
        return copy_with(rollout, value=guess.unsqueeze(-1).expand(rollout.reward.shape))


subtracted = {
    "V": lambda pi, action: (pi * mean).sum(-1),
    "−V, the sign slipped": lambda pi, action: -(pi * mean).sum(-1),
    "Q(q, o), of the arm pulled": lambda pi, action: mean[action],
}

# %% jupyter={"source_hidden": true}
order = {"run A": "−V, the sign slipped", "run B": "Q(q, o), of the arm pulled", "run C": "V"}
trained = {}
for label, what in order.items():
    problem = type("Predicted", (Predicted,), {"predict": staticmethod(subtracted[what])})
    bandit = problem(
        Bernoulli(mean.expand(200, 1, 3)), Softmax.of(probability.expand(200, 1, 3)), group=2
    )
    noise = lesson.noise(200, dtype=torch.float64, use=1)
    history = Learner(
        bandit, replace(ladder.reinforce, baseline=Value()), SGD(0.2), noise, log_every=10
    ).train(400)
    trained[label] = history.steps, history["expected_reward"]


def draw_runs(reveal):
    figure, [ax] = figures.new_figure(width=7.6, height=3.5)
    for (label, (steps, values)), colour in zip(
        trained.items(), ("#b8860b", "#4a98e0", "#000000"), strict=True
    ):
        low, high = values.quantile(0.05, -1), values.quantile(0.95, -1)
        figures.band(
            ax,
            steps,
            (low + high) / 2,
            (high - low) / 2,
            label="_",
            color=colour,
            linestyle="-",
            linewidth=0,
        )
        until = ", " if label == "run A" else ", of"
        text = (
            f"{label}: {order[label].partition(until)[0]}"
            if reveal
            else label
        )
        figures.band(ax, steps, values.mean(-1), label=text, color=colour, linestyle="-")
    ax.set_ylim(0.2, 0.85)
    figures.describe(
        ax, "Three programs, one learning rate", "updates of two samples", "J (bands: 90 % of runs)"
    )
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_runs(False),
    "Run C rises to .79 with a narrow band, run A too with a wide one. Run B stays near .41 on"
    " average while its band widens.",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %%
for label in trained:
    what = subtracted[order[label]]
    arms = torch.arange(6) // 2  # the arm of each of B3's six outcomes
    b = what(probability.expand(6, 3), arms) + torch.zeros(6, dtype=torch.float64)
    expected = torch.einsum(
        "k,k,kd->d", exact.probability(B3)[0], B3.total_reward[0] - b, B3.total_score[0]
    )
    print(
        f"{label}: {order[label]:<27} E[ĝ] =",
        "  ".join(f"{x:+.3f}" for x in (expected.round(decimals=6) + 0.0).tolist()),
    )
lesson.picture(draw_runs(True), "Run A subtracts −V, run B subtracts Q(q, o), run C subtracts V.")

# %% [markdown]
# The better the predictor, the less is left to learn from. Given question and answer, $s$ is fixed and $R$ is $r(q,o)$ on average, so $\mathbb E[(R-Q(q,o))\,s]=\mathbb E\big[(r(q,o)-Q(q,o))\,s\big]=0$: luck has no gradient. A baseline may know the question, other samples, other models, the weather. It must not know what it judges. For a whole answer that is the answer; for one token (lesson 05) it is that token and all later ones, while the tokens before it may be known.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# Subtract anything that does not know the answer it judges: $\mathbb E[\hat g]$ stays. The scatter follows a parabola; on B3 its bottom is near $V$, and where a policy is nearly sure and its rare answers pay differently it is not. A baseline that has to be estimated brings its own noise, which at $G=2$ can exceed what it saves.
#
# ## Next
#
# Samples are expensive, and you want more than one update from a batch. After the first update the policy is no longer the one that sampled. Lesson 03 replaces the surrogate, $A\log\pi$ by $\rho A$, and asks how far that carries.

# %% [markdown]
# ## Appendix (optional): equal variance, different fates
#
# So a baseline is about variance. Is it *only* about variance? Chung et al. 2021 (2008.13773) found a case where it is not. Three arms pay 1, .7 and 0, for sure. The policy starts out preferring the worst. One pull per update, and natural gradient steps (lesson 03b), for which one pull of arm $a$ adds $\frac{r_a-b}{\pi_a}$ to that arm's logit, up to a shift of all logits, which changes nothing.
#
# Its mean does not depend on $b$. Its mean square does: arm $a$ is pulled with probability $\pi_a$, so it is $\sum_a\pi_a\big(\frac{r_a-b}{\pi_a}\big)^2=\sum_a\frac{(r_a-b)^2}{\pi_a}$, up to a factor for the shift that is the same for all arms. The slope in $b$ is 0 where $\sum_a\frac{r_a-b}{\pi_a}=0$, that is at
#
# $$b^*=\frac{\sum_ar_a/\pi_a}{\sum_a1/\pi_a}\tag{2.10}$$
#
# `eq:natural-least-variance` · derived here, after Chung et al. 2021
#
# It follows the rare arms even more than (2.5). Take $b^*-\frac12$ and $b^*+\frac12$: the same distance from the bottom of the parabola, the same variance.

# %%
from bandits.theory import committal

where = committal.ThreeArms()
rewards, start = (
    torch.tensor(where.rewards, dtype=torch.float64),
    torch.tensor(where.start, dtype=torch.float64).log_softmax(0),
)
star = float(committal.least_variance_baseline(start, rewards))
print(
    "policy at the start:",
    "  ".join(f"{x:.4f}" for x in start.exp().tolist()),
    f"   V = {float(start.exp() @ rewards):.3f}",
)
for label, b in (
    ("b* − ½", star - 0.5),
    ("b*", star),
    ("b* + ½", star + 0.5),
    ("V", float(start.exp() @ rewards)),
):
    print(
        f"{label:<7} b = {b:.3f}   variance of one step"
        f" {float(committal.natural_variance(start, rewards, b)):.3g}"
    )

# %% jupyter={"source_hidden": true}
lesson.ask("fates")

# %%
kinds, rates, runs = (
    ("below", "best", "above", "value"),
    torch.tensor([0.1, 0.4], dtype=torch.float64),
    200,
)
bandit = committal.problem(where, kinds, start.expand(4, 2, runs, -1))
teacher = committal.learner(bandit, rates[:, None].expand(4, 2, runs).contiguous(), 0)
path = [bandit.arm_policy.log_probs().detach()[..., 0, :].exp()]
for _ in range(50):
    teacher.train(20)
    path.append(bandit.arm_policy.log_probs().detach()[..., 0, :].exp())
path = torch.stack(path)  # [51, baselines, rates, runs, arms]
missed = (path[-1, ..., 0] < 0.5).double().mean(-1)
print("runs that miss the best arm    step .1   step .4")
for label, row in zip(("b* − ½", "b*", "b* + ½", "V"), missed.tolist()):
    print(f"{label:<30} {row[0]:>6.0%}    {row[1]:>6.0%}")

# %% [markdown]
# A policy of three arms is a point in a triangle, the **simplex**: a corner is a policy that always pulls one arm, and the middle is the uniform policy. Each line is one run, from near the corner on top.

# %% jupyter={"source_hidden": true}
# best, middle, worst arm
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
figure, panels = figures.new_figure(1, 3, width=9, height=3.0)
for ax, kind, label in zip(panels, (0, 2, 3), ("b* − ½", "b* + ½", "V"), strict=True):
    ax.plot(*torch.cat([corners, corners[:1]]).T, color="#777777", linewidth=0.8)
    for run in range(40):
        way = path[:, kind, 0, run] @ corners
        found = bool(path[-1, kind, 0, run, 0] >= 0.5)
        ax.plot(*way.T, color="#0057a3" if found else "#b8320f", linewidth=0.9, alpha=0.6)
    for corner, text, shift in zip(
        corners,
        ("pays 1", "pays .7", "pays 0: start"),
        ((-4, -14), (-30, -14), (8, -4)),
        strict=True,
    ):
        ax.annotate(
            text,
            corner.tolist(),
            xytext=shift,
            textcoords="offset points",
            color=figures.INK,
            fontsize=10,
        )
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_ylim(-0.14, 0.95)
    ax.set_title(
        f"{label}: {float(missed[kind, 0]):.0%} missed", loc="left", fontsize=12, color=figures.INK
    )
lesson.picture(
    figure,
    "Paths on the simplex, step .1: with b* − ½ many end (red) at the arm that pays .7; with b* + ½"
    " few, with V none.",
)

# %% [markdown]
# $b^*$ is a mean of the rewards, so $b^*-\frac12$ is at most $\frac12$: a pull of the arm that pays .7 is good news at **every** policy, and it may feed on itself until nothing else is pulled. $V$ starts lower still, but follows the policy: as that arm takes over, $V$ rises to .7 and the praise stops.
#
# Read the table across, too: with the larger step more runs commit, whatever the baseline. An estimator's bias and variance describe one step. What a thousand steps do is another matter, because each decides what will be sampled next.
#
# ## Appendix (optional): one constant for each logit
#
# The total variance is a sum over the logits $d$, and each term is a parabola of its own, as in (2.4) with $s_d^2$ for $\|s\|^2$. So one constant for each logit is better still:
#
# $$b^*_d=\frac{\mathbb E[R\,s_d^2]}{\mathbb E[s_d^2]}\tag{2.11}$$
#
# `eq:best-baseline-per-logit` · Greensmith et al. 2004; Peters & Schaal 2008

# %%
each = exact.optimal_baseline_per_coordinate(B3)
print("b* of each logit:", "  ".join(f"{x:.3f}" for x in each[0].tolist()))
for label, b in (("one constant", best), ("one for each logit", each)):
    print(f"{label:<19} variance {float(exact.variance_at_baseline(B3, b)):.4f}")
