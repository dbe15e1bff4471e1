# %% [markdown]
# # 06 · The group baseline
#
# After this lesson you can
#
# - write GRPO's advantage, and say exactly what its mean does (a factor) and what its std does (another objective);
# - compute how many groups teach nothing, what becomes of a question that is solved 2 % of the time, and what refilling changes;
# - build a case in which dividing by the std prefers the worse answer, and one in which $1/|o|$ makes wrong answers long;
# - say where GRPO lands among ε-greedy, UCB and Thompson sampling when all get the same number of pulls (optional).
#
# You need lesson 02 (baselines, leave-one-out) and lesson 04 (the clip, which this lesson keeps as it is).
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import math

import torch

import course
from course import exact, ladder
from course.lab import figures

lesson = course.setup("06")
ladder.group_mean

# %% jupyter={"source_hidden": true}
for upper, lower in (
    ("group_mean", "clip"),
    ("group_std", "group_mean"),
    ("length_mean", "group_std"),
):
    changed = ladder.get(upper).estimator.diff(ladder.get(lower).estimator)
    print(
        f"{upper:<12}",
        "; ".join(
            f"{part}: {here.short} in place of {there.short}"
            for part, (here, there) in changed.items()
        ),
    )

# %% [markdown]
# Three rungs, three replaced parts. The baseline first: in place of the batch's mean, the mean of the answers to **the same question**.
#
# ## A mean for every question
#
# Ask each question $G$ times, and judge an answer by its own group:
#
# $$A_{i,t}=R_i-\frac1G\sum_{j=1}^GR_j\tag{6.1}$$
#
# `eq:group-mean-baseline` · Shao et al. 2024 (2402.03300), §4.1.1
#
# Every token of the answer gets the same $A$. The group's mean estimates $V(q)$, without a critic. That matters as soon as questions differ
# in what they pay:

# %%
from course.rollout import Rollout


def of_rewards(rewards):
    """One-token answers [Q, G] with these rewards, as an estimator sees them."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64).unsqueeze(-1)
    return Rollout(rewards, torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool))


# the second pays two points more, whatever you answer
two_questions = of_rewards([[1, 0, 1, 0], [3, 2, 3, 2]])
for name in ("clip", "group_mean"):
    rows = ladder.get(name).estimator.freeze(two_questions).advantage[..., 0].tolist()
    print(f"{name:<12}", "    ".join("  ".join(f"{x:+.1f}" for x in row) for row in rows))

# %% [markdown]
# With the batch's mean (`clip`) the first question's right answers are punished and the second one's wrong answers praised. The group's
# mean compares like with like.
#
# ## The group contains yourself
#
# Your own reward is in the mean. Take it out: with $\bar R_{-i}$ the mean of the others, $\bar R=\frac1GR_i+\frac{G-1}G\bar R_{-i}$, so
#
# $$R_i-\bar R=\frac{G-1}G\,\big(R_i-\bar R_{-i}\big)\tag{6.2}$$
#
# `eq:group-mean-factor` · Kool et al. 2019
#
# This holds sample by sample, for any rewards. Leave-one-out is unbiased (lesson 02), so on policy $\mathbb E[\hat g]=\frac{G-1}G\nabla J$.
# Compared with leave-one-out, the mean that includes yourself makes a shorter step and changes nothing else. <!-- answers: 21 -->

# %% jupyter={"source_hidden": true}
lesson.ask("learning-rate")

# %%
from bandits.exact import b3

B3 = b3()
mean_of_all, others = (
    exact.every_group(ladder.group_mean, B3, 5),
    exact.every_group(ladder.rloo, B3, 5),
)
print(f"groups of five on B3, order aside: {len(others.chance)}")
print(
    "group mean's ĝ is 4/5 of leave-one-out's in each of them:",
    torch.allclose(mean_of_all.gradient, 0.8 * others.gradient, atol=1e-12),
)
for group in (2, 8, 64):
    seen = exact.microscope(ladder.group_mean, B3, group, covariance=False)
    ratio = float(seen.expected @ seen.gradient / seen.gradient.square().sum())
    print(
        f"G = {group:>2}: E[ĝ] = {ratio:.4g} · ∇J,   (G − 1)/G ="
        f" {exact.group_mean_factor(group):.4g}"
    )

# %% [markdown]
# ## What a group knows: differences (optional)
#
# Let $s_i$ be the score of answer $i$ (lesson 01). Leave-one-out subtracts $\bar R_{-i}=\frac1{G-1}\sum_{j\ne i}R_j$, so its gradient is the double sum
# $\frac1G\sum_i(R_i-\bar R_{-i})\,s_i=\frac1{G(G-1)}\sum_i\sum_{j\ne i}(R_i-R_j)\,s_i$. Collect the two terms of each pair,
# $(R_i-R_j)\,s_i+(R_j-R_i)\,s_j=(R_i-R_j)(s_i-s_j)$:
#
# $$\hat g_{\text{RLOO}}=\frac1{G(G-1)}\sum_{i<j}(R_i-R_j)(s_i-s_j)\tag{6.3}$$
#
# `eq:pairs-of-samples` · Ahmadian et al. 2024 (2402.14740) for G = 2; here for every G
#
# Each pair votes: towards the better answer, away from the worse, by the difference of their rewards. A pair with equal rewards does not
# vote. There is a second form. By (6.2) the gradient is $\frac1{G-1}\sum_i(R_i-\bar R)\,s_i$, and since $\sum_i(R_i-\bar R)=0$ you may subtract the mean score $\bar s$
# from every $s_i$:
#
# $$\hat g_{\text{RLOO}}=\frac1{G-1}\sum_i(R_i-\bar R)(s_i-\bar s)\tag{6.4}$$
#
# `eq:covariance-of-reward-and-score` · Kool et al. 2019
#
# the **sample covariance** of reward and score. With $\frac1G$ in place of $\frac1{G-1}$ it is the group mean's gradient: the self-included
# mean is to leave-one-out what the population covariance is to the sample covariance.

# %%
outcome = others.outcome[:, 0]
reward, score = B3.total_reward[0][outcome], B3.total_score[0][outcome]
print(
    "sum over pairs   = RLOO's ĝ:",
    torch.allclose(exact.pair_gradient(reward, score), others.gradient, atol=1e-12),
)
print(
    "sample covariance = RLOO's ĝ:",
    torch.allclose(exact.sample_covariance(reward, score), others.gradient, atol=1e-12),
)
lesson.code(exact.pair_gradient, exact.sample_covariance)

# %% [markdown]
# ## Silent groups
#
# If all answers of a group earn the same, every advantage is 0. The field calls this a **zero-variance group**; we also say that the group is **silent**, and that the others vote. With rewards 0 or 1
# and success probability $p$ a group is silent with probability
#
# $$P(\text{silent})=p^G+(1-p)^G\tag{6.5}$$
#
# `eq:silent-groups` · Yu et al. 2025 (DAPO, 2503.14476), §3.2

# %% jupyter={"source_hidden": true}
lesson.ask("silent-share")

# %% jupyter={"source_hidden": true}
print("P(silent)      G = 2    G = 4    G = 8   G = 16   G = 64")
for p in (0.5, 0.1, 0.02):
    print(
        f"p = {p:<9g}",
        "   ".join(
            f"{float(exact.silent_probability(p, group)):>6.1%}" for group in (2, 4, 8, 16, 64)
        ),
    )
print(
    "G in the papers:", {name: ladder.get(name).paper["G"] for name in ("grpo", "dapo", "dr_grpo")}
)

# %% [markdown]
# So a small group is mostly silent on hard questions, which are what you would like to learn, and on easy ones. At $p=.1$ and $G=8$, 43 % of the groups teach nothing.
# Thaker's "From PPO to GRPO" says 4 to 8 answers per prompt; DeepSeekMath used 64 and DAPO 16. <!-- answers: 8 -->
#
# ### Two rewards that cancel
# <!-- answers: 6 -->
# What has to vary is the **sum** of a group's rewards. Two reward functions that both vary can cancel:

# %% jupyter={"source_hidden": true}
lesson.ask("two-rewards")

# %%
form, correct = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[0, 1.0, 0, 1]])
for label, rewards in (
    ("form alone", form),
    ("correct alone", correct),
    ("form + correct", form + correct),
    ("form + 2·correct", form + 2 * correct),
):
    row = ladder.group_mean.freeze(of_rewards(rewards)).advantage.flatten().tolist()
    print(f"{label:<16}", "  ".join(f"{x + 0.0:+.2f}" for x in row))

# %% [markdown]
# ### Two ways to get NaN (optional)
# <!-- answers: 7 -->
# A single answer cannot be compared with anything: its standard deviation with the divisor $G-1$ is $0/0$. And a reward
# function that returns NaN (a parser that failed, say) spoils its whole group, and through the gradient every weight of the model. The course refuses
# both and says why:

# %%
from course.errors import CourseError

print(
    "std of one reward, divisor G − 1:",
    float(((torch.tensor([1.0]) - 1.0) ** 2).sum() / torch.tensor(0.0)),
)
print("mean of (1, NaN, 0):", float(torch.tensor([1.0, math.nan, 0.0]).mean()))
for rewards in ([[1.0]], [[1.0, math.nan, 0.0]]):
    try:
        ladder.group_mean.freeze(of_rewards(rewards))
    except CourseError as refusal:
        print("refused:", refusal)

# %% [markdown]
# ### What a silent group still does
# <!-- answers: 9 -->
# A silent group has no vote on the reward, but it counts in the mean over samples, so it **dilutes** the others. And a KL
# penalty (lesson 07) needs no advantages, so a silent group **still feels the KL**. Two questions, the second one silent:

# %%
from course.estimator import replace
from course.parts import K3, DropSilentGroups
from course.rollout import Policy

rewards = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 1]], dtype=torch.float64).unsqueeze(-1)
old, reference = torch.full_like(rewards, -1.0), torch.full_like(rewards, -0.5)
one_silent = Rollout(
    rewards, old, torch.ones_like(rewards, dtype=torch.bool), ref_log_prob=reference
)
for label, estimator in (
    ("group_mean", ladder.group_mean),
    ("group_mean with GRPO's KL", replace(ladder.group_mean, kl=K3(0.04))),
    ("group_mean, silent dropped", replace(ladder.group_mean, sample_filter=DropSilentGroups())),
):
    now = old.clone().requires_grad_()
    [push] = torch.autograd.grad(
        estimator.objective(Policy(now), estimator.freeze(one_silent)), now
    )
    rows = ["  ".join(f"{x + 0.0:+.4f}" for x in row) for row in push[..., 0].tolist()]
    print(f"{label:<28} {rows[0]}   silent: {rows[1]}")

# %% [markdown]
# The numbers are derivatives of the objective with respect to each answer's $\log\pi$. Dropping the silent group doubles the other one's weight, since the
# mean then runs over four samples in place of eight.
#
# ## The std: what it divides
#
# The next rung divides by the group's standard deviation:

# %%
ladder.group_std

# %% [markdown]
# $$A_{i,t}=\frac{R_i-\operatorname{mean}_j(R_j)}{\operatorname{std}_j(R_j)}\tag{6.6}$$
#
# `eq:group-std-advantage` · Shao et al. 2024, §4.1.2; Giovanidis 2025
#
# In a silent group it is 0. Let rewards be 0 or 1, and $M$ of the $G$ answers right. The mean is $\frac MG$ and the std $\sqrt{\frac MG(1-\frac MG)}=\frac1G\sqrt{M(G-M)}$. A right answer is
# $1-\frac MG=\frac{G-M}G$ above the mean, so its advantage is $\frac{G-M}{\sqrt{M(G-M)}}=\sqrt{\frac{G-M}M}$; a wrong one's is $-\sqrt{\frac M{G-M}}$. The rarer a success, the
# larger its advantage. One right in $G$ gets the most, $\sqrt{G-1}$: with $G=8$ that is 2.65.

# %%
from course.parts.scale import GroupStd, inverse_std

for right in (1, 4, 7):
    row = (
        ladder.group_std.freeze(of_rewards([[1.0] * right + [0.0] * (8 - right)]))
        .advantage.flatten()
        .tolist()
    )
    print(
        f"{right} of 8 right: {row[0]:+.3f} and {row[-1]:+.3f}    formula"
        f" {math.sqrt((8 - right) / right):+.3f} and {-math.sqrt(right / (8 - right)):+.3f}"
    )
lesson.code(inverse_std, GroupStd.__call__)

# %% [markdown]
# ## Do it: group advantages
#
# Mean, std (population: divide by $G$), and silence. Mind that the mean of seven float32 numbers $.7$ is not $.7$.

# %%
advantages_exercise = lesson.exercise("group-advantages")

# %%
def my_advantages(reward):
    """Rewards [Q, G] → advantages [Q, G]."""
    return NotImplemented


advantages_exercise.check(my_advantages)

# %% [markdown]
# ## Several rewards under one std (optional)
# <!-- answers: 38 -->
# Rewards are often sums: 1 for the right answer, 1 for the right format. Each term is then divided by the std of the **whole** sum. One answer of eight is right in each row below, four are well-formed in the
# second and the third:

# %%
is_right = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]])
well_formed = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
for label, rewards in (
    ("right", is_right),
    ("right + well-formed", is_right + well_formed),
    ("right + ¼ well-formed", is_right + well_formed / 4),
):
    one, other, *_, last = ladder.group_std.freeze(of_rewards(rewards)).advantage.flatten().tolist()
    print(
        f"{label:<22} right {one:+.2f}   wrong, well-formed {other:+.2f}   neither {last:+.2f}  "
        f" lead of right over wrong, both well-formed: {one - other:.2f}"
    )

# %% [markdown]
# A right answer leads by 3.02 where it is the only reward, and by 1.44 beside a format that half of the answers have: the frequent reward takes its share of the std. A weight of ¼ gives most of the lead back.
# So the weights that you wrote down are not the weights that the group sees; those depend on how often each reward varies.

# %% [markdown]
# ## "REINFORCE++": group or batch? (optional)
# <!-- answers: 27 -->
# The mean and the std can also be those of the **batch**. REINFORCE++ (Hu 2025) takes both over all tokens of the batch, which is called whitening, and needs no groups. REINFORCE++-baseline subtracts the **group's** mean, and then scales with the std of the
# batch. GRPO takes both from the group. Two questions with four answers each show the difference:

# %%
# an easier and a hard question
rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
same = torch.zeros(2, 4, 1, dtype=torch.float64)  # log π, and log π_ref: no KL yet
of_both = Rollout(
    rewards.unsqueeze(-1), same, torch.ones_like(same, dtype=torch.bool), ref_log_prob=same
)
for name in ("baseline", "reinforce_pp", "reinforce_pp_baseline", "group_std"):
    rows = [
        "  ".join(f"{x:+.2f}" for x in row)
        for row in ladder.get(name).estimator.freeze(of_both).advantage[..., 0].tolist()
    ]
    print(f"{name:<22} easier: {rows[0]}     hard: {rows[1]}")

# %% [markdown]
# Look at the one right answer to the hard question. The first two rows give it what any right answer of the batch gets. With the group's
# own mean subtracted it gets more, because there it was rare. With the group's std as well, it gets 1.73, and the easier question's answers
# stay at ±1 whatever happens in the rest of the batch.

# %% [markdown]
# ## What the std optimises
#
# What does the division do on average over groups? Let $p$ be the question's success probability under the policy. Its gradient is
# $\nabla p=\mathbb E[\mathbf 1_{\text{right}}\,s]$ (lesson 01, with $\mathbf 1_{\text{right}}$ as the reward). An average over right answers alone divides by their share: $\mathbb E[s\mid\text{right}]=\frac{\nabla p}p$. And
# $p\,\mathbb E[s\mid\text{right}]+(1-p)\,\mathbb E[s\mid\text{wrong}]=\mathbb E[s]=0$, so $\mathbb E[s\mid\text{wrong}]=-\frac{\nabla p}{1-p}$. Now fix $M$, the number of right answers. In
# $\hat g=\frac1G\sum A_is_i$ there are $M$ right answers with the advantage and the mean score above, and $G-M$ wrong ones. On average that is
#
# $$\frac1G\left[M\sqrt{\tfrac{G-M}M}\,\frac{\nabla p}p+(G-M)\sqrt{\tfrac M{G-M}}\,\frac{\nabla p}{1-p}\right]
# =\frac{\sqrt{M(G-M)}}{G}\left(\frac1p+\frac1{1-p}\right)\nabla p.$$
#
# Here $\frac1p+\frac1{1-p}=\frac1{p(1-p)}$. Silent groups ($M=0$ or $M=G$) give 0, and $M$ has a binomial distribution. So
#
# $$\mathbb E[\hat g]=w_G(p)\,\nabla p,\qquad w_G(p)=\frac{\mathbb E\big[\sqrt{M(G-M)}\big]}{G\,p\,(1-p)},\quad M\sim\operatorname{Bin}(G,p)\tag{6.7}$$
#
# `eq:group-std-weight` · Davis & Recht 2025 (2510.13651) and Mroueh 2025 (2503.06639) for G = ∞; here for every G
#
# This is exact on policy, with eps = 0 and the tokens of an answer summed. The std does not turn one question's gradient. It **weighs questions against each other**, by their
# difficulty. The articles that this course follows divide by it and do not ask what it does.

# %% jupyter={"source_hidden": true}
lesson.ask("which-question")

# %%
from bandits.theory import difficulty

print(
    "              p = .02    p = .1    p = .5    p = .9     (first by listing every group, then by"
    " (6.7))"
)
for group in (2, 8, 64):
    listed = [
        difficulty.weight(difficulty.STD, difficulty.right_or_wrong(p), group)
        for p in (0.02, 0.1, 0.5, 0.9)
    ]
    formula = exact.group_std_weight(torch.tensor([0.02, 0.1, 0.5, 0.9]), group).tolist()
    print(f"G = {group:<9}", "   ".join(f"{x:>7.4f}" for x in listed))
    print(" " * 13, "   ".join(f"{x:>7.4f}" for x in formula))
lesson.code(exact.group_std_weight)

# %% [markdown]
# Three ends of this formula are worth knowing.
#
# - $G=2$: $\sqrt{M(G-M)}$ is 1 with probability $2p(1-p)$, else 0, so $w_2=\frac{2p(1-p)}{2p(1-p)}=1$ for every $p$. With two samples the std undoes the factor $\frac12$ of the self-included mean, and nothing else.
# - $p\to0$: only $M=1$ matters. It has probability $Gp$ and $\sqrt{M(G-M)}=\sqrt{G-1}$, so $w_G\to\frac{Gp\sqrt{G-1}}{Gp}=\sqrt{G-1}$.
# - $G\to\infty$: $M\approx Gp$, so $w\to\frac{\sqrt{Gp\,G(1-p)}}{Gp(1-p)}=\frac1{\sqrt{p(1-p)}}$. That is the derivative of a function, since $\frac{d}{dp}2\arcsin\sqrt p=\frac2{\sqrt{1-p}}\cdot\frac1{2\sqrt p}$:
#
# $$\frac{1}{\sqrt{p(1-p)}}\,\nabla p=\nabla\;2\arcsin\sqrt p\tag{6.8}$$
#
# `eq:arcsine-objective` · Davis & Recht 2025
#
# So with large groups the mean and the std together climb $\sum_q2\arcsin\sqrt{p_q}$ and not $\sum_qp_q$ (rewards 0 or 1, on policy, tokens
# summed, no KL).

# %%
seen = exact.microscope(difficulty.STD, B3, difficulty.MANY, covariance=False)
want = difficulty.arcsine_gradient()  # ∇ 2·arcsin √J by automatic differentiation
print(
    f"B3, G = {difficulty.MANY}: E[ĝ] and ∇ 2·arcsin √J differ by"
    f" {float((seen.expected - want).norm() / want.norm()):.1g} of their length"
)

# %% [markdown]
# ## Explore: $w_G(p)$
#
# Lines are (6.7), dots are listed groups. `ddof` = 1 divides the squares by $G-1$, as TRL and verl do; eps is what is added to the std.

# %% jupyter={"source_hidden": true}
fine = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
spots = (0.02, 0.1, 0.5, 0.8)
answers = {p: difficulty.right_or_wrong(p) for p in spots}


def draw_weight(group, ddof, eps):
    figure, [weight, quiet] = figures.new_figure(1, 2, width=9, height=3.3, width_ratios=(3, 2))
    estimator = replace(ladder.group_mean, scale=GroupStd(ddof=ddof, eps=eps))
    figures.band(
        weight,
        fine,
        exact.group_std_weight(fine, group, ddof, eps),
        name="group_std",
        label="mean and std",
    )
    weight.plot(
        spots,
        [difficulty.weight(estimator, answers[p], group) for p in spots],
        "o",
        color=figures.style_of("group_std")["color"],
    )
    figures.band(
        weight,
        fine,
        torch.full_like(fine, exact.group_mean_factor(group)),
        name="group_mean",
        label="mean only",
    )
    figures.expectation(
        weight, exact.group_std_weight(fine, math.inf), fine, label="G = ∞, eps = 0"
    )
    weight.set_ylim(0, 9.5)
    weight.legend(frameon=False, loc="upper center")
    figures.describe(weight, f"E[ĝ] = w · ∇p, G = {group}", "p, success probability", "w")
    figures.band(
        quiet,
        fine,
        exact.silent_probability(fine, group),
        label="_",
        color="#666666",
        linestyle="-",
    )
    quiet.set_ylim(0, 1)
    figures.describe(quiet, "share of silent groups", "p", "")
    return figure


lesson.explore(
    "weight",
    draw_weight,
    "start at G = 2 and go up: the ends rise first; then raise eps until the weights are flat"
    " again",
    group=course.lesson.Choice([2, 4, 8, 16, 32, 64], 16, "group size G"),
    ddof=course.lesson.Choice([0, 1], 0, "ddof"),
    eps=course.lesson.Slider(-8.0, 0.5, 0.5, -8.0, "eps added to the std", log=True),
)

# %% [markdown]
# ## Which questions are worth a rollout? (optional)
# <!-- answers: 46 -->
# A rule of thumb keeps questions that are solved 20 to 80 % of the time. Let each question have its own two logits, for right and wrong, so that $\nabla p=p(1-p)\,(1,-1)$. A small step
# $\eta\,\mathbb E[\hat g]=\eta\,w\nabla p$ gains $\eta\,w\,\lVert\nabla p\rVert^2=2\eta\,w\,p^2(1-p)^2$. The control is the same number of groups on questions taken as they come, here with $p$
# spread evenly over 0 to 1:

# %%
spread = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
middle = spread[(spread > 0.2) & (spread < 0.8)]


def gain(p, weight):
    """What an update gains on questions with success p, as a share of that at p = ½."""
    half = torch.tensor(0.5, dtype=torch.float64)
    return weight(p) * (p * (1 - p)) ** 2 / (weight(half) * half**4)


rows = {
    "mean": torch.ones_like,
    "mean and std": lambda p: exact.group_std_weight(p, 8),
}
print("gain at p =   .02    .1     .2     .5     .8")
for name, weight in rows.items():
    some = gain(torch.tensor([0.02, 0.1, 0.2, 0.5, 0.8], dtype=torch.float64), weight)
    better = float(gain(middle, weight).mean() / gain(spread, weight).mean())
    print(
        f"{name:<13}",
        "  ".join(f"{x:.3f}" for x in some.tolist()),
        f"   20 to 80 % against as they come: {better:.2f} times",
    )

# %% [markdown]
# Under the rule a group gains about 1.5 times as much, in **this** update. That leaves out the noise of sampling, and that a question solved 2 % of the time has to be asked before it can become one
# that is solved 20 %. The std narrows the gap a little and does not close it: at $p=.02$ the gain is .009 of that at ½, since the gradient itself is small.
#
# ### The same prompt twice in a batch (optional)
# <!-- answers: 48 -->
# Some programs group by position, and see two groups of 8. Some group by the text of the prompt, and see one of 16. Both are baselines
# of that question alone, so neither is wrong, but it is another $G$:

# %% jupyter={"source_hidden": true}
print("p = .1            silent   mean's factor   std's weight w")
for label, group in (("two groups of 8", 8), ("one group of 16", 16)):
    print(
        f"{label}  {float(exact.silent_probability(0.1, group)):.1%}   "
        f" {exact.group_mean_factor(group):.3f}          "
        f" {float(exact.group_std_weight(0.1, group)):.3f}"
    )

# %% [markdown]
# ## The same questions, opposite decisions
#
# Weights matter once questions share parameters. Here one coin decides for two questions at once, as a shared habit would: with probability
# $x$ the policy takes style A. On the first question A is right with probability .75 and B with .5; on the second, A never and B with .22.

# %% jupyter={"source_hidden": true}
lesson.ask("opposite")

# %%
from bandits.environments import Bernoulli
from bandits.exact import outcomes

right = torch.tensor([[0.75, 0.5], [0.0, 0.22]], dtype=torch.float64)  # [question, style]


def coin(x):
    """Both questions under the coin x; its two logits belong to both, so that their scores are the
    same.
    """
    log_prob = torch.tensor([x, 1 - x], dtype=torch.float64).log()
    return outcomes(
        Bernoulli(right), log_prob.expand(2, 2), score=exact.softmax_score(log_prob).expand(2, 2, 2)
    )


def push(estimator, x, group=8):
    """E[ĝ] on the logit of A."""
    return float(exact.microscope(estimator, coin(x), group, covariance=False).expected[0])


for x in (0.02, 0.5, 0.98):
    print(
        f"x = {x}: group mean {push(ladder.group_mean, x):+.5f}   group std"
        f" {push(difficulty.STD, x):+.5f}   ∇J {float(exact.gradient(coin(x))[0]):+.5f}"
    )

# %% jupyter={"source_hidden": true}
for name, estimator in (("group mean", ladder.group_mean), ("group std", difficulty.STD)):
    u = 0.0  # the log-odds of A
    for _ in range(60):
        u += 2 * 40.0 * push(estimator, 1 / (1 + math.exp(-u)))  # the two logits move apart
    x = 1 / (1 + math.exp(-u))
    solved = (right @ torch.tensor([x, 1 - x], dtype=torch.float64)).tolist()
    print(
        f"{name:<10} ends at x = {x:.2f}: solves {solved[0]:.0%} and {solved[1]:.0%}, on average"
        f" {sum(solved) / 2:.1%}"
    )

# %% [markdown]
# Neither is a bug. They optimise two different things, and only the first of them is $J$.
#
# ## Do it: refill the silent groups
#
# DAPO calls it **dynamic sampling**: silent groups are thrown away and new ones are sampled until the batch is full. Begin with the simplest way to do that: ask the **same question** again until its group
# is not silent. What does that make of $w_G(p)$? You may use `exact.group_std_weight`.

# %%
refill = lesson.exercise("refill")

# %%
def my_refilled_weight(p, group):
    """Success probability p, group size G → the weight with refilling, one number."""
    return NotImplemented


refill.check(my_refilled_weight)

# %% [markdown]
# At $p=.02$ and $G=8$, 85 % of the groups are silent, so that weight is nearly seven times $w_8(.02)$. But DAPO does something else: it fills the batch with **other prompts**.

# %% jupyter={"source_hidden": true}
lesson.ask("refill-which")

# %% [markdown]
# Take two kinds of question, hard ($p=.02$) and easy ($p=.5$), equally many of each. Let $v=1-P(\text{silent})$ be the share of groups that vote. A group that votes has the mean gradient
# $\frac{w}{v}\nabla p$, since the silent rest of the average $w\nabla p$ is 0. Three programs:
#
# - **The same question again**: every question ends with a voting group, so its weight is $\frac wv$.
# - **New prompts**: a place in the batch is filled from the voting groups of all questions. A question fills its share of places in proportion to $v$, and $\frac wv\cdot\frac v{\bar v}=\frac w{\bar v}$, where $\bar v$
#   is the mean of $v$ over the questions. The factor $\frac1{\bar v}$ is the same for all: a larger step, and no new direction.
# - **Dropped, no refill**, as our rung `dapo` does it: the mean runs over the groups that are left, $1+L$ of them if $L$ others vote. A question's weight is then
#   $w\,\mathbb E\big[\frac{Q}{1+L}\big]$, with $Q$ prompts in the batch. That depends on the others, and on $Q$.

# %%
ladder.dapo

# %% jupyter={"source_hidden": true}
hard, easy = 0.02, 0.5


def vote(p):
    """The share of groups of 8 that are not silent."""
    return 1 - float(exact.silent_probability(p, 8))


def dropped(p, other, prompts):
    """w E[Q/(1 + L)]: prompts/2 questions of each kind, one of them ours."""
    votes = torch.zeros(prompts, dtype=torch.float64)  # the distribution of L
    votes[0] = 1.0
    for each in [vote(p)] * (prompts // 2 - 1) + [vote(other)] * (prompts // 2):
        votes = votes * (1 - each) + torch.cat([votes.new_zeros(1), votes[:-1]]) * each
    count = 1 + torch.arange(prompts, dtype=torch.float64)
    return float(exact.group_std_weight(p, 8) * (votes * prompts / count).sum())


mean_vote = (vote(hard) + vote(easy)) / 2
plain = [float(exact.group_std_weight(p, 8)) for p in (hard, easy)]
cases = {
    "as they come": plain,
    "same question again": [w / vote(p) for w, p in zip(plain, (hard, easy), strict=True)],
    "new prompts": [w / mean_vote for w in plain],
    **{
        f"dropped, {prompts} prompts": [dropped(hard, easy, prompts), dropped(easy, hard, prompts)]
        for prompts in (2, 4, 64, 512)
    },
}
print(f"{'':22}p = .02   p = .5   hard : easy")
for name, (w_hard, w_easy) in cases.items():
    print(f"{name:22}{w_hard:7.2f}  {w_easy:7.2f}   {w_hard / w_easy:10.3f}")

# %% [markdown]
# Refilling with new prompts leaves the ratio at 1.387, where it was. Asking the same question again makes it 9.2. Dropping without a refill even pushes it below 1 in a batch of two or four prompts: where the hard
# question votes, the easy one nearly always does, too, and takes half of the mean. In large batches the number of groups that are left hardly varies, and the ratio comes back towards 1.387. Here is the smallest batch through the
# estimator itself, all pairs of groups listed:

# %%
two = outcomes(
    Bernoulli(torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)),
    torch.tensor([[hard, 1 - hard], [easy, 1 - easy]], dtype=torch.float64).log(),
)
seen = exact.microscope(
    replace(difficulty.STD, sample_filter=DropSilentGroups()), two, 8, covariance=False
)
slope = seen.gradient.view(2, 2)  # [question, logit]
along = (seen.expected.view(2, 2) * slope).sum(-1) / slope.square().sum(-1)
print(f"dropped, 2 prompts, listed: {float(along[0] / along[1]):.3f}")

# %% [markdown]
# ## When the std turns the gradient round
#
# (6.7) needs rewards with two values. With three, the std can reverse the gradient. Arm A pays .5, always. Arm B pays 10 one time in ten, else 0: it is
# worth 1, twice as much as A. The policy tosses a fair coin.

# %% jupyter={"source_hidden": true}
lesson.ask("rare-prize")

# %%
from bandits.theory import heavy_tail

prize = heavy_tail.RarePrize(sure=0.5, large=10.0, chance=0.1)
half = heavy_tail.listed(prize)
print("E[ĝ] on B's logit, all groups listed (J's own slope: +0.125)")
print("  G    mean only   mean and std")
for group in (2, 8, 32, 43, 44, 128):
    only, both = (heavy_tail.push(one, half, group) for one in (ladder.group_mean, heavy_tail.STD))
    print(f"{group:>3}    {only:+.4f}     {both:+.4f}")
for b in (0.5, 0.2, 0.05):
    print(
        f"B has probability {b}: the first G that points to B is {heavy_tail.first_group(prize, b)}"
    )

# %% [markdown]
# It takes groups of 44 until the std lets the better arm win. The mean alone is right at every $G$ of the table. A policy that has begun to leave B needs larger groups still: 98 at $b=.2$, 373 at $b=.05$.
#
# ### The same by hand (optional)
#
# Let $m$ of the group draw A, $n$ draw B and win the prize, and the rest draw B and win nothing. B's logit has the score $1-b$ on a sample of B and $-b$ on one of
# A, with $b=\frac12$ the probability of B. So
#
# $$\mathbb E[\hat g_B]=\sum_{m,n}P(m,n)\,\frac{(1-b)\sum_{i\text{ on B}}A_i-b\sum_{i\text{ on A}}A_i}{G}\tag{6.9}$$
#
# `eq:push-on-the-rare-prize` · derived here
#
# with $P$ multinomial and $A_i$ the advantage of sample $i$ from (6.6).

# %%
for group in (8, 44):
    print(f"G = {group:>2}: by (6.9) {heavy_tail.push_by_counts(prize, group):+.4f}")
lesson.code(heavy_tail.push_by_counts)

# %% [markdown]
# ## The length mean, $1/|o|$
#
# The third rung divides by the length of the answer. Until now, the tokens of an answer were summed:

# %%
ladder.length_mean

# %% [markdown]
# $$w_{i,t}=\frac1N\cdot\frac1{|o_i|}\tag{6.10}$$
#
# `eq:one-over-length` · Shao et al. 2024, eq. 3; $w_{i,t}$ is a token's weight, as in (0.1), and $N$ the number of sampled answers
#
# Giovanidis 2025 leaves $\frac1{|o|}$ out; Vera 2025 averages twice, by $\mathbb E_t$ and by $\frac1{|o|}\sum_t$. On a bandit $|o|=1$ and nothing
# changes. So give answers a length: right or wrong, of 2 or of 8 tokens, all four equally likely.

# %% jupyter={"source_hidden": true}
lesson.ask("length")

# %% jupyter={"source_hidden": true}
from bandits.flow import ascend
from bandits.theory import length_bias

lengths, steps = (2, 8), 150
figure, panels = figures.new_figure(1, 2, width=9, height=3.3, sharey=True)
final = {}
for name in ("group_std", "length_mean", "dr_grpo"):
    one, arms, uniform = (
        ladder.get(name).estimator,
        length_bias.four_answers(lengths),
        length_bias.UNIFORM,
    )
    # the same size of the first step
    rate = 0.05 / float(length_bias.first_push(one, lengths, 8).abs().mean())
    policies = ascend(one, arms, uniform, 8, rate=rate, steps=steps, reference=uniform).exp()
    read = final[name] = length_bias.read_off(policies)
    for ax, which in zip(panels, ("long_right", "long_wrong"), strict=True):
        figures.band(ax, range(steps + 1), read[which], name=name)
for ax, title in zip(panels, ("long among right answers", "long among wrong answers"), strict=True):
    ax.set_ylim(0, 1)
    figures.describe(ax, title, "updates along the exact E[ĝ]", "share" if ax is panels[0] else "")
figures.label_ends(panels[1])
lesson.picture(
    figure,
    "Under 1/|o| right answers turn short and wrong ones long; under the sum and under a constant"
    " divisor both shares stay at one half.",
)

# %% jupyter={"source_hidden": true}
for name, read in final.items():
    print(
        f"{name:<12} solved {float(read['success'][-1]):.0%}   long among right"
        f" {float(read['long_right'][-1]):.2f}   long among wrong"
        f" {float(read['long_wrong'][-1]):.2f}"
    )

# %% [markdown]
# $1/|o|$ looks as if it removed a bias towards length. It brings one in: right answers become short, wrong ones **long**. Here 96 of 100 right answers end short, and 74 of 100 wrong
# ones end long. Dividing by a **constant** keeps the step small without weighing lengths against each other. Dr. GRPO is
# the `group_mean` rung with that one part replaced, so without the std and without $1/|o|$. <!-- answers: 10 -->

# %%
ladder.dr_grpo

# %% [markdown]
# ### The law behind it (optional)
#
# The right answers of a group share $M\sqrt{\frac{G-M}M}=\sqrt{M(G-M)}$, and there are $Gp$ of them on average. So a right answer's mean advantage is
# $\frac{\mathbb E[\sqrt{M(G-M)}]}{Gp}=w_G(p)(1-p)$, and a wrong one's is $-w_G(p)\,p$. With $1/|o|$ in front of the score of answer $a$:
#
# $$\mathbb E[\hat g]=w_G(p)\sum_a\pi_a\,\frac{\mathbf 1[a\text{ right}]-p}{|o_a|}\,s_a\tag{6.11}$$
#
# `eq:length-mean-law` · derived here; the bias: Liu et al. 2025 (Dr. GRPO, 2503.20783)

# %%
four = difficulty.four_answers(0.5, 2, 8)
listed = exact.microscope(difficulty.LENGTH_MEAN, four, 8, covariance=False).expected
print(
    "listing equals (6.11) to 1e-12:",
    torch.allclose(listed, difficulty.length_law(four, 8), atol=1e-12),
)
print(
    "E[ĝ]:",
    "   ".join(
        f"{name} {x:+.3f}"
        for name, x in zip(
            ("right 2", "right 8", "wrong 2", "wrong 8"), listed.tolist(), strict=True
        )
    ),
)
print(
    f"angle to ∇p: {difficulty.angle(difficulty.LENGTH_MEAN, four, 8):.0f} degrees; with the sum in"
    f" place of the mean: {difficulty.angle(difficulty.STD, four, 8):.0f}"
)
lesson.code(difficulty.length_law)

# %% [markdown]
# ## Break it
#
# Three programs train on eight questions with ten arms each, $G=8$, with the same learning rate and the same random numbers. The curves show the
# probability of the right arm. On the left, rewards are 0 and 1. On the right, every other question pays two points extra, whatever you answer. One
# program is right. One **forgot the std**. One **mixed the groups**: its sampler returns the rewards answer by answer, and the program cuts them into rows of eight as if they came
# question by question.

# %% jupyter={"source_hidden": true}
from dataclasses import dataclass

from course.parts import Baseline, GroupMean, Scale


def cut_wrongly(tensor):
    """[..., Q, G] → the same numbers in rows of G that hold answers to different questions."""
    return tensor.transpose(-1, -2).reshape(tensor.shape)


def put_back(rows):
    """Undo `cut_wrongly`: [..., Q, G]."""
    *runs, questions, group = rows.shape
    return rows.reshape(*runs, group, questions).transpose(-1, -2)


@dataclass(frozen=True)
class MixedMean(Baseline):
    """The fault: the mean of a row that is no group."""

    def __call__(self, returns, rollout):
        return put_back(
            GroupMean()(cut_wrongly(returns), rollout).squeeze(-1).expand(returns.shape)
        ).unsqueeze(-1)


@dataclass(frozen=True)
class MixedStd(Scale):
    """The fault: the std of a row that is no group."""

    def __call__(self, advantage, returns, rollout):
        return advantage * put_back(
            inverse_std(cut_wrongly(returns), 0, 1e-6).expand(returns.shape)
        ).unsqueeze(-1)


# %% jupyter={"source_hidden": true}
from bandits.environments import Discrete
from bandits.policies import Softmax
from bandits.problem import Bandit
from course.lab.statistics import interval
from course.learner import Learner
from course.train.optim import SGD

programs = {
    "run A": ("std forgotten", ladder.group_mean),
    "run B": ("right", ladder.group_std),
    "run C": ("groups mixed", replace(ladder.clip, baseline=MixedMean(), scale=MixedStd())),
}


def questions(noise, extra):
    """Eight questions: one right arm, the others pay with up to 0 … 90 % of its probability; every
    other one pays `extra` on top.
    """
    chance = torch.linspace(0, 0.9, 8, dtype=torch.float64)[:, None] * noise.uniform(8, 10)
    best = (noise.uniform(8, 1) * 10).long().clamp(max=9)
    chance = chance.scatter(-1, best, 1.0)
    level = torch.tensor([0.0, extra] * 4, dtype=torch.float64)[:, None].expand(8, 10)
    return Discrete(
        torch.stack([level + 1, level], -1).expand(*chance.shape, 2),
        torch.stack([chance, 1 - chance], -1),
    )


curves = {}
for extra in (0.0, 2.0):
    for label, (_, estimator) in programs.items():
        noise = lesson.noise(100, dtype=torch.float64)
        bandit = Bandit(questions(noise, extra), Softmax.uniform(noise, 8, 10), group=8)
        history = Learner(bandit, estimator, SGD(2.0), noise, log_every=10).train(150)
        curves[extra, label] = history.steps, history["optimal_action"]


def draw_programs(reveal):
    figure, panels = figures.new_figure(1, 2, width=9, height=3.3, sharey=True)
    for ax, extra in zip(panels, (0.0, 2.0), strict=True):
        for label, colour in zip(programs, ("#b8860b", "#000000", "#4a98e0"), strict=True):
            steps, values = curves[extra, label]
            text = f"{label}: {programs[label][0]}" if reveal else label
            style = figures.DASH if label == "run C" else figures.SOLID
            figures.band(
                ax,
                steps,
                *interval(values),
                label=text,
                color=colour,
                linestyle=style,
            )
        title = "rewards 0 and 1" if not extra else "every other question pays 2 more"
        ax.set_ylim(0, 1)
        figures.describe(ax, title, "updates", "probability of the right arm" if not extra else "")
    figures.label_ends(panels[1])
    return figure


lesson.picture(
    draw_programs(False),
    "Left, B and C coincide and A is slower. Right, A and B are as before, and C has fallen"
    " behind A.",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %%
lesson.picture(draw_programs(True), "Run A forgot the std, run B is right, run C mixed its groups.")
# the second question pays two points more
level = of_rewards(torch.tensor([[0.0, 1, 0, 1], [2, 3, 2, 3]]))
for label in ("run B", "run C"):
    rows = programs[label][1].freeze(level).advantage[..., 0].mean(-1).tolist()
    print(
        f"{label}, {programs[label][0]:<12}: mean advantage of the two questions"
        f" {rows[0] + 0.0:+.2f} and {rows[1] + 0.0:+.2f}"
    )

# %% [markdown]
# On the left nothing gives the fault away: eight answers to other questions are a baseline, too, and (2.1) of lesson 02 allows any. That is
# why wrong grouping can go unnoticed. One line finds it: in a right program the advantages of every question **add up to 0**. Assert that.
# <!-- answers: 22 -->

# %% [markdown]
# ## Is GRPO a good bandit algorithm? (optional)
#
# Giovanidis 2025 ends with this question: GRPO being a bandit algorithm, others might do as well or better. Ten arms pay 1 with a probability drawn from $U(0,1)$, and everybody gets 1,024 pulls. Three classics:
#
# - **ε-greedy** pulls a random arm with probability ε, else the arm with the best mean so far;
# - **UCB** pulls the arm with the largest mean plus a bonus, which grows with the logarithm of all pulls and shrinks with the arm's own;
# - **Thompson sampling** draws a success rate for each arm from its posterior, and pulls the arm with the largest draw.
#
# Policy gradients update after every 16 pulls, the classics after each. Every setting (learning rate, ε, bonus) is chosen on 100 runs and judged on 200 others, by
#
# $$\text{regret}=\sum_{\text{pulls}}\big(\mu^*-\mu_a\big)\tag{6.12}$$
#
# `eq:regret` · Lai & Robbins 1985; Lattimore & Szepesvári 2020, §4.4
#
# which is what the pulls cost against always pulling the best arm.

# %% jupyter={"source_hidden": true}
lesson.ask("where-grpo-lands")

# %% jupyter={"source_hidden": true}
from bandits import contest

rules = contest.Contest(pulls=1024, every=16, tuning_runs=100, runs=200)
sweeps = {
    "epsilon_greedy": (1 / 32, 1 / 16, 1 / 8),
    "ucb": (contest.TEXTBOOK / 16, contest.TEXTBOOK / 8, contest.TEXTBOOK / 4, contest.TEXTBOOK),
    "thompson": (1.0,),  # nothing to set
    **dict.fromkeys(
        ("reinforce", "group_mean", "group_std", "grpo"), (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    ),
}
judged = {
    name: contest.judge(rules, values, contest.played(rules, name, values, group=16))
    for name, values in sweeps.items()
}
figure, [ax] = figures.new_figure(width=7.6, height=3.8)
for name, one in judged.items():
    figures.band(
        ax, one.series["pulls"], one.series["regret"], one.series["regret_half"], name=name
    )
ax.set_xscale("log", base=2)
ax.set_ylim(0, 90)
figures.describe(
    ax, "Equal pulls, each at its best setting", "pulls", "regret, mean of 200 runs (95 %)"
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "Thompson sampling and tuned UCB lose least; group mean and std lie between them and ε-greedy"
    " and REINFORCE.",
)

# %% jupyter={"source_hidden": true}
print("                 setting   regret ± s.e. of 200 runs")
for name, one in sorted(judged.items(), key=lambda item: float(item[1].regret.mean())):
    error = float(one.regret.std()) / len(one.regret) ** 0.5
    print(f"{name:<15} {one.choice.rate:>8.3g}   {float(one.regret.mean()):>5.0f} ± {error:.0f}")
print(f"pulling at random: {contest.uniform_cost(10) * 1024:.0f}")

# %% [markdown]
# A group makes the gradient quieter. It does not explore: whether an arm has been tried often enough appears nowhere in the advantage. On a language model there are more arms than anyone could pull once, and
# Thompson sampling has no posterior over them. What carries over is the warning, not the ranking.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# On policy the group's mean is a baseline: a factor $\frac{G-1}G$ and other noise (less, as a rule: lesson 02), nothing else. The group's std is not: it changes **what is
# optimised**, from $p$ to something near $2\arcsin\sqrt p$ for right and wrong, and with rewards of other kinds even the sign can change.
# $1/|o|$ turns a question's gradient where its right answers differ in length among themselves, or its wrong ones.
#
# ## Next
#
# GRPO has one more part, the KL. Lesson 07 replaces `NoKL()`, and asks which of three estimators it should be, and where to put it.
