# %% [markdown]
# # 02 · Baselines and advantages
#
# When you are through you can
#
# - say which numbers may be subtracted from a reward without moving the expected gradient, and prove it in one line;
# - compute what a baseline buys: the exact variance for any constant, and the constant where it is least;
# - say what it costs when the baseline has to be estimated from the samples themselves, and when that costs more than it saves;
# - recognise a "baseline" that looks at the sample's own action, and a case where two baselines of equal variance have different fates.
#
# You need lesson 01: the score $s=\nabla\log\pi_\theta$, $\nabla J=\mathbb E[R\,s]$, and the bandit B3 with $\pi=(.5,.3,.2)$ and arms that
# pay 1 with probability $.2$, $.5$, $.8$.
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
# Probabilities add up to 1, and 1 has no gradient. So the score is zero on average:
#
# $$\mathbb E[s]=\sum_o\pi_\theta(o)\,\frac{\nabla\pi_\theta(o)}{\pi_\theta(o)}=\nabla\sum_o\pi_\theta(o)=\nabla1=0.$$
#
# Multiply it by any number $b$ that does not depend on which answer was drawn, and it is still zero:
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
# The mean does not move. The scatter does, by a factor of about 200 between these four. That factor is all you can win or lose.
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
# In general reinforcement learning the reward stands there as $Q(s,a)$, what is earned from here on. With one step, $Q$ is the reward
# itself. Giovanidis 2025 (step 2) subtracts the plain average over all answers, $\frac1{|O|}\sum_or(o)$: by (2.1) that is allowed, but it
# is not $V$, which weighs each answer by how often the policy gives it.

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
# The total variance of one sample's $\hat g=(R-b)\,s$ is its mean square less the square of its mean, and the mean is $\nabla J$ whatever
# $b$:
#
# $$\operatorname{Var}(b)=\mathbb E\big[(R-b)^2\|s\|^2\big]-\|\nabla J\|^2\tag{2.4}$$
#
# `eq:variance-at-baseline` · Greensmith et al. 2004
#
# That is a parabola in $b$. Set its derivative, $-2\,\mathbb E[(R-b)\|s\|^2]$, to zero:
#
# $$b^*=\frac{\mathbb E[R\,\|s\|^2]}{\mathbb E[\|s\|^2]}\tag{2.5}$$
#
# `eq:best-constant-baseline` · Weaver & Tao 2001; Greensmith et al. 2004
#
# It is a mean of the rewards in which each sample counts by its squared score. Any other $b$ costs $(b-b^*)^2\,\mathbb E\|s\|^2$ more.

# %%
lesson.code(exact.covariance_at_baseline, exact.optimal_baseline)

# %%
best = float(exact.optimal_baseline(B3))
print("baseline            b      variance of one sample")
for label, b in (("none", 0.0), ("V", V), ("best constant", best), ("largest reward", 1.0)):
    print(f"{label:<15} {b:>6.3f}     {float(exact.variance_at_baseline(B3, b)):.4f}")

# %% [markdown]
# $V$ halves the variance, and leaves 4 % for the best constant to win. You will not know $b^*$ in practice, since it needs the scores; $V$
# is nearly as good here.
#
# ## Do it: the best constant of a softmax
#
# For a softmax over its own logits the score of arm $a$ is $s_a=e_a-\pi$ (lesson 01), so everything in (2.5) can be written with $\pi$ and
# the arms' mean rewards alone.


# %%
best_constant = lesson.exercise("best-constant")

# %%
def my_best_constant(pi, mean):
    """π [K] and each arm's mean reward [K] → b*, one number."""
    return NotImplemented


best_constant.check(my_best_constant)

# %% [markdown]
# With two arms, $\|s_a\|^2=2(1-\pi_a)^2$, and your formula shrinks to $b^*=\pi_2r_1+\pi_1r_2$: the mean reward with the probabilities
# **exchanged**. The best constant follows the arm you rarely pull, since that is where the long scores are. Keep this in mind for the end
# of the lesson.

# %%
pi, pay = (
    torch.tensor([0.9, 0.1], dtype=torch.float64),
    torch.tensor([0.2, 0.7], dtype=torch.float64),
)
print(
    f"V = {float(pi @ pay):.3g},  b* = {float(best_constant.solution(pi, pay)):.3g},  exchanged:"
    f" {float(pi.flip(0) @ pay):.3g}"
)

# %% [markdown]
# One constant for each logit $d$ is better still:
#
# $$b^*_d=\frac{\mathbb E[R\,s_d^2]}{\mathbb E[s_d^2]}\tag{2.6}$$
#
# `eq:best-baseline-per-logit` · Greensmith et al. 2004; Peters & Schaal 2008
#
# On B3 it takes the variance from .1372 to .1283. Now the other experiment from lesson 01: add 4 to every reward.

# %% jupyter={"source_hidden": true}
lesson.ask("shifted")

# %%
print("offset   none     V        best constant   best per logit")
for offset in (0.0, 4.0):
    listed = b3(offset=offset)
    baselines = (
        0.0,
        exact.objective(listed),
        exact.optimal_baseline(listed),
        exact.optimal_baseline_per_coordinate(listed),
    )
    row = [float(exact.variance_at_baseline(listed, b)) for b in baselines]
    print(f"{offset:>4g}     {row[0]:<7.4g}  {row[1]:.4f}   {row[2]:.4f}          {row[3]:.4f}")

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
# Dots are enumerated, the dashed curve is (2.4). The offset pushes the parabola along with the rewards; "no baseline" is the choice to stay
# at 0 wherever the rewards go.
#
# ## From a constant to a batch
#
# Nobody tells you $V$. You have $N$ samples, and their mean is the obvious guess:
#
# $$b=\frac1N\sum_{j=1}^NR_j\tag{2.7}$$
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
# $b$ is a mean of $N$ rewards, and only the own one goes along with $s_i$: $\mathbb E[b\,s_i]=\frac1N\mathbb E[R_is_i]=\frac1N\nabla J$.
# The gradient is too short by $\frac1N$ and points where it should. A learning rate takes care of that. Or leave
# yourself out, and take the mean of the others among the $G$ answers to the same question, its **group**:
#
# $$b_i=\frac1{G-1}\sum_{j\ne i}R_j\tag{2.8}$$
#
# `eq:leave-one-out-baseline` · Kool et al. 2019; Ahmadian et al. 2024 (2402.14740), eq. 9
#
# Now $b_i$ has nothing to do with $s_i$, and (2.1) holds exactly. This estimator is called RLOO. With one question, as on B3, $G=N$.

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
# A baseline from few samples is itself noisy, and that noise goes into $\hat g$. How much? Write $b_i$ as $V$ plus its error,
# $b_i=V+\frac1{G-1}\sum_{j\ne i}(R_j-V)$, and the gradient splits into two sums. They are uncorrelated, since samples are independent,
# $\mathbb E[R_j-V]=0$ and $\mathbb E[s_i]=0$:
#
# $$\hat g=\frac1G\sum_i(R_i-V)\,s_i-\frac1{G(G-1)}\sum_{i\ne j}(R_j-V)\,s_i.$$
#
# The first has the variance $V_J/G$, $V_J$ being (2.4) at $b=V$. In the second sum, the term of $(i,j)$ is correlated only with itself,
# which gives $\sigma^2\,\mathbb E\|s\|^2$, and with its mirror image $(j,i)$, which gives
# $\mathbb E[(R_j-V)s_j]\cdot\mathbb E[(R_i-V)s_i]=\|\nabla J\|^2$. There are $G(G-1)$ terms of each kind, so
#
# $$\operatorname{Var}=\frac{V_J}G+\frac{\sigma^2\,\mathbb E\|s\|^2+\|\nabla J\|^2}{G(G-1)}\tag{2.9}$$
#
# `eq:leave-one-out-variance` · derived here
#
# with $\sigma^2$ the variance of the rewards. The second term is the price of not knowing $V$. It falls with $1/G^2$, so it matters for
# small groups.

# %% jupyter={"source_hidden": true}
lesson.ask("two-samples")

# %%
none, known = (float(exact.variance_at_baseline(B3, b)) for b in (0.0, V))
print(" G   REINFORCE   V known   RLOO enumerated   RLOO by (2.9)      (all times G)")
for group in (2, 3, 4, 8, 16):
    listed = exact.microscope(ladder.rloo, B3, group).variance * group
    formula = float(exact.rloo_covariance(B3, group)[0].trace()) * group
    print(f"{group:>2}   {none:<9.4f}   {known:.4f}    {listed:<15.4f}   {formula:.4f}")

# %% [markdown]
# Where do the two meet? Without a baseline the variance is $V_0/G$, (2.4) at $b=0$. Set that equal to (2.9) and solve for $G$:
#
# $$G=1+\frac{\sigma^2\,\mathbb E\|s\|^2+\|\nabla J\|^2}{V_0-V_J}\tag{2.10}$$
#
# `eq:leave-one-out-crossover` · derived here
#
# RLOO is quieter above it. Where $V_0\le V_J$ there is nothing to save, and it never is.

# %%
print(
    "B3:             RLOO is quieter than no baseline above G ="
    f" {float(exact.rloo_crossover(B3)):.3g}"
)
print(f"B3, rewards +4: above G = {float(exact.rloo_crossover(b3(offset=4.0))):.3g}")
lesson.code(exact.rloo_covariance, exact.rloo_crossover)

# %% [markdown]
# Giovanidis 2025 concludes that the value function "was never necessary". For the mean of $\hat g$ that is (2.1). For its scatter, "V
# known" against "RLOO" in the table is what a perfect **critic**, a learned $V$, would save: more than half of the variance at $G=2$, a seventh of it at $G=8$.
#
# ## Explore: the scatter around ∇J
#
# Each batch of $G$ samples gives one $\hat g$; what you see is its component along $\nabla J$, over 3,000 batches. Bars are sampled; the
# thin dashed line is the exact $\|\nabla J\|$, and the black bar under the histogram is the exact mean ± one exact standard deviation.

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
    counts, _, _ = ax.hist(
        found.clamp(-1.2, 1.2).numpy(), bins=torch.linspace(-1.2, 1.2, 61).tolist(), color="#8fb3d9"
    )
    figures.expectation(ax, x=length)
    ax.axvline(0, color="#999999", linewidth=0.8)
    top, centre = float(counts.max()), shrink * length
    ax.errorbar(centre, -0.06 * top, xerr=variance**0.5, fmt="o", color="#000000", capsize=4)
    ax.set_xlim(-1.25, 1.25)
    ax.set_ylim(-0.12 * top, 1.08 * top)
    wrong_way = float((found < 0).double().mean())
    title = (
        f"{baseline}, G = {group}: scatter {variance**0.5 / centre:.2f} × its mean, {wrong_way:.0%}"
        " of batches point down"
    )
    figures.describe(ax, title, "ĝ along ∇J (beyond ±1.2: in the last bars)", "batches of 3,000")
    return figure


lesson.explore(
    "scatter",
    draw_scatter,
    "put the offset to 4 and change the baseline; then go down to two samples",
    group=course.lesson.Slider(2, 64, 1, 8, "samples G"),
    baseline=course.lesson.Choice(
        ["none", "V", "best constant", "mean of the batch", "leave one out"], "none", "baseline"
    ),
    offset=course.lesson.Slider(0.0, 4.0, 0.5, 0.0, "offset of all rewards"),
)

# %% [markdown]
# ## One number for all questions
#
# Real batches hold several questions, and (2.7) is one number for all of them. It is nobody's value. Take B3 and beside it a harder
# question, $V=.08$, each asked $G$ times. Lengths differ by (2.7)'s shrinking, so compare scatter over the length of the mean,
# $\sqrt{\operatorname{Var}}/\|\mathbb E[\hat g]\|$:

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
# With two samples per question the batch's mean is the better guess, because it averages over four rewards. From four on, a baseline of
# each question's own is. That trade is what the group baseline of GRPO is about (lesson 06), and one reason why it wants large groups.
#
# ## "REINFORCE++": group or batch?
#
# Both, under two names. REINFORCE++ (Hu 2025) centres and scales with the mean and std over all tokens of the **batch**; it is this
# lesson's idea, and needs no groups. REINFORCE++-baseline first subtracts the **group's** mean, and then scales over the batch. GRPO takes
# both from the group. Two questions with four answers each show the difference:
# <!-- answers: 27 -->

# %%
from course.rollout import Rollout

# an easier and a hard question
rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
log_prob = torch.zeros(2, 4, 1, dtype=torch.float64)
rollout = Rollout(
    rewards.unsqueeze(-1), log_prob, torch.ones(2, 4, 1, dtype=torch.bool), ref_log_prob=log_prob
)
for name in ("baseline", "reinforce_pp", "reinforce_pp_baseline", "group_std"):
    rows = [
        "  ".join(f"{x:+.2f}" for x in row)
        for row in ladder.get(name).estimator.freeze(rollout).advantage[..., 0].tolist()
    ]
    print(f"{name:<22} easier: {rows[0]}     hard: {rows[1]}")

# %% [markdown]
# Look at the one right answer to the hard question. The first two rows give it what any right answer of the batch gets. Once the group's
# own mean is subtracted it gets more, because there it was a surprise; and where the std is the group's, too, the easier question's answers
# stay at ±1 whatever happens in the rest of the batch.
#
# ## A curve everybody prints
#
# The smallest critic is a running mean of the rewards. Sutton & Barto 2018 (figure 2.5) use it on ten arms whose means are near 4, one pull
# per update, and print these ends: .86 and .73 with it, .49 and .27 without. Ours, on 1,000 runs:

# %% jupyter={"source_hidden": true}
from bandits.theory import gradient_bandit as book
from course.lab.statistics import interval

settings = book.Setup(runs=1000, log_every=40)
# share of the baseline: 1 or 0
history = book.train(
    settings, book.OWN, [0.1, 0.4, 0.1, 0.4], [1.0, 1.0, 0.0, 0.0], dtype=torch.float64
)
ends = history["optimal_action"][-1].mean(-1)
figure, [ax] = figures.new_figure(width=7.6, height=3.4)
curves = [(0.1, True), (0.4, True), (0.1, False), (0.4, False)]
for place, (rate, used) in enumerate(curves):
    best_arm = history["optimal_action"][:, place]
    style = {
        "color": "#b8860b" if used else "#000000",
        "linestyle": figures.SOLID if rate == 0.1 else figures.DASH,
    }
    figures.band(
        ax,
        history.steps,
        *interval(best_arm),
        label=f"{'running mean' if used else 'none'}, α = {rate:g}",
        **style,
    )
    figures.expectation(ax, book.PUBLISHED[rate, used], 1000, marker="D")
ax.set_ylim(0, 1)
figures.describe(
    ax,
    "The gradient bandit (◇: the book's ends)",
    "pulls, one update each",
    "probability of the best arm",
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "With a running mean as baseline both curves end near the book's .86 and .73; without, near .49"
    " and .27.",
)

# %%
errors = (history["optimal_action"][-1].std(-1) / settings.runs**0.5).tolist()
for (rate, used), end, error in zip(curves, ends.tolist(), errors, strict=True):
    off = book.printed_error(book.PUBLISHED[rate, used])
    print(
        f"α = {rate}, {'running mean' if used else 'none        '}: {end:.2f} ± {error:.2f}   book"
        f" {book.PUBLISHED[rate, used]} ± {off:.2f}"
    )

# %% [markdown]
# Ours are a few points lower with the running mean, about two standard errors of the difference. "The mean of the rewards so far" can also
# be read in several ways: before or after the reward that it judges, and with 0 or the first reward to begin with. Same arms, same noise,
# three readings at $\alpha=.4$:

# %%
ends_by_rule = {}
for rule in book.RULES:
    short = book.train(
        book.Setup(runs=1000, log_every=1000), rule, [0.4], [1.0], dtype=torch.float64
    )
    ends_by_rule[rule] = float(short["optimal_action"][-1].mean())
print("\n".join(f"{rule:<26} ends at {end:.2f}" for rule, end in ends_by_rule.items()))

# %% [markdown]
# Starting the mean at 0 judges the first pull by 0: whatever was pulled first is praised for the whole offset of 4. One wrong number in one
# step costs several points after a thousand.
#
# ## Break it
#
# Three programs train on B3, two samples per update. Each subtracts something. One subtracts $V$. One has a slip of the **sign** and
# subtracts $-V$. One team found $V$ too crude, since it says the same for every answer, and trained a better predictor, which looks at the
# question **and the answer**: it subtracts $Q(q,o)$, the mean reward of the arm that was pulled.

# %%
from dataclasses import replace as copy_with

from bandits.environments import Bernoulli
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
# The better the predictor, the less is left to learn from: $\mathbb E[(R-Q(q,o))\,s]=\mathbb E\big[(\mathbb E[R\mid q,o]-Q)\,s\big]=0$. A
# baseline may know the question, other samples, other models, the weather. It must not know the sample's own answer.
#
# ## Equal variance, different fates
#
# So a baseline is about variance. Is it *only* about variance? Chung et al. 2021 (2008.13773) found a case where it is not. Three arms pay
# 1, .7 and 0, for sure. The policy starts out preferring the worst. One pull per update, and natural gradient steps (lesson 03), for which
# one pull of arm $a$ changes the logits by $\frac{r-b}{\pi_a}$ at $a$'s place, up to a shift of all. The least variance is at
#
# $$b^*=\frac{\sum_ar_a/\pi_a}{\sum_a1/\pi_a}\tag{2.11}$$
#
# `eq:natural-least-variance` · derived here, after Chung et al. 2021
#
# the same parabola as (2.5) with other weights, and it follows the rare arms even more. Take $b^*-\frac12$ and $b^*+\frac12$: the same
# distance from the bottom, the same variance.

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
# $b^*$ is a mean of the rewards, so $b^*-\frac12$ is at most $\frac12$: a pull of the arm that pays .7 is good news at **every** policy, and it may
# feed on itself until nothing else is pulled. $V$ starts lower still, but follows the policy: as that arm takes over, $V$ rises to .7 and the
# praise stops.
#
# Read the table across, too: with the larger step more runs commit, whatever the baseline. An estimator's bias and variance describe one
# step. What a thousand steps do is another matter, because each decides what will be sampled next.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# Subtract anything that does not know the sample's own answer: $\mathbb E[\hat g]$ stays. The scatter follows a parabola with its bottom
# near $V$. A baseline that has to be estimated brings its own noise, which at $G=2$ can exceed what it saves.
#
# ## Next
#
# Samples are expensive, and you want more than one update from a batch. After the first update the policy is no longer the one that
# sampled. Lesson 03 replaces the surrogate, $A\log\pi$ by $\rho A$, and asks how far that carries.
