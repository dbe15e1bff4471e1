# %% [markdown]
# # 10 · Where rewards come from
#
# Nine lessons took the reward as given. Here it is the part that is replaced. After this lesson you can
#
# - derive the loss of a reward model from votes, and say what votes can never tell it;
# - tell a reward model from a critic, and say what an error in each of them costs;
# - say why a reward that ranks every answer rightly may still teach slowly;
# - predict from one covariance when the true reward begins to fall while the learned one rises, and say what a KL penalty, more votes and a held-out judge each do about it.
#
# You need lesson 02 (baselines), lesson 06 (the group's mean and std) and lesson 07 (the KL, exponential tilting).
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import math

import torch

import course
from course import ladder
from course.lab import figures
from course.lesson import Choice, Slider

lesson = course.setup("10")
double = torch.float64

# %% [markdown]
# ## Four places to take it from
#
# | source | what it needs | how it fails |
# | --- | --- | --- |
# | a check: is the sum right, do the tests pass | a task that can be checked | it never fires, or pays for something that is not meant |
# | a reward model, fitted to votes of people | many votes | it learns the voters' habits, and is wrong where nobody voted |
# | a judge: another model that is asked | a good judge | as above, and it can be talked into things |
# | a reward for each step of the work | someone who marks steps | steps that are paid are made, needed or not |
#
# A sum can be checked; the tone of a letter cannot. So begin with votes.
#
# ## Bradley–Terry: rewards from votes
#
# Two answers to one question are shown, and an annotator says which one is better. Give each answer a strength $e^{r}>0$, and let its chance to win be its share of the two strengths:
#
# $$P(o_w\succ o_l\mid q) = \frac{e^{r_\phi(q,o_w)}}{e^{r_\phi(q,o_w)}+e^{r_\phi(q,o_l)}} = \sigma\big(r_\phi(q,o_w)-r_\phi(q,o_l)\big), \qquad \sigma(x)=\frac1{1+e^{-x}}. \tag{10.1}$$
#
# `eq:bradley-terry` · Bradley & Terry 1952. (Divide by the numerator.) A **reward model** is a network $r_\phi(q,o)$, fitted by maximum likelihood to $N$ pairs of a winner $w$ and a loser $l$. It minimises
#
# $$L(\phi) = -\frac1N\sum_{n=1}^{N}\log\sigma\big(r_\phi(q_n,o_{w,n})-r_\phi(q_n,o_{l,n})\big). \tag{10.2}$$
#
# `eq:preference-loss` · Christiano et al. 2017, §2.2.3; Ouyang et al. 2022, eq. 1. With $r_w-r_l=.8$ the model gives the winner $\sigma(.8)=.69$, and this pair costs $-\ln .69=.37$.

# %% jupyter={"source_hidden": true}
lesson.ask("transitive")

# %% [markdown]
# Three properties to know:
#
# - **Binary cross-entropy.** It is the loss of a classifier with the logit $r_w-r_l$ and the label 1.
# - **Shift invariance.** Add any $c(q)$ to all rewards of a question: nothing changes. A reward model is known up to a constant *per question*.
# - **Transitivity.** The odds are $P/(1-P) = e^{r_w-r_l}$, so $\text{odds}(a\succ c) = \text{odds}(a\succ b)\cdot\text{odds}(b\succ c)$. A circle of preferences cannot be represented.

# %%
from torch.nn.functional import binary_cross_entropy_with_logits

from bandits.theory import preferences
from tinylm.reward_model import bradley_terry_loss

lesson.code(bradley_terry_loss)
win, lose = torch.tensor([1.2, -0.3, 2.0]), torch.tensor([0.4, 0.1, -1.0])
print(
    f"loss {bradley_terry_loss(win, lose):.3f}; binary cross-entropy"
    f" {binary_cross_entropy_with_logits(win - lose, torch.ones(3)):.3f}; with 5 added to all:"
    f" {bradley_terry_loss(win + 5, lose + 5):.3f}"
)
odds = 0.7 / 0.3 * 0.8 / 0.2
print(f"a ≻ b .7, b ≻ c .8: a ≻ c {odds / (1 + odds):.2f}")
# a beats b, b beats c, c beats a, always
strength = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
for _ in range(300):
    [downhill] = torch.autograd.grad(bradley_terry_loss(strength, strength.roll(-1)), strength)
    strength.data -= downhill
print(
    "a circle of sure preferences ends at",
    [f"{x:.2f}" for x in (strength - strength.roll(-1)).sigmoid().tolist()],
)

# %% [markdown]
# The circle ends at one half each: the model finds no order, and says so.
#
# ## Do it: the loss

# %%
preference = lesson.exercise("preference")


# %%
def my_loss(win, lose):
    """win, lose [N]: the rewards of the preferred answers and of the others → the mean loss."""
    return NotImplemented


preference.check(my_loss)

# %% [markdown]
# ## What one pair votes for
#
# Differentiate (10.2) for one pair: $\sigma'=\sigma(1-\sigma)$, so $-\partial L/\partial r_w = 1-\sigma(r_w-r_l)$, and $r_l$ gets the negative. A vote that the model expected pushes little. Now show one pair $a$, $b$ to many annotators, of whom a share $p$ prefers $a$. With the share $1-p$ the push is $-\sigma$, so on average
#
# $$-\frac{\partial\,\mathbb E[L]}{\partial r_a} = p\,(1-\sigma)+(1-p)(-\sigma) = p-\sigma(r_a-r_b). \tag{10.3}$$
#
# `eq:pair-vote` · derived. It is 0 where $\sigma(r_a-r_b)=p$, at $r_a-r_b=\ln\frac p{1-p}$. With $p=.9$ that is 2.2; where everybody agrees there is no such place, and the difference grows for as long as you train.

# %% jupyter={"source_hidden": true}
lesson.ask("tossed")

# %% jupyter={"source_hidden": true}
APART = torch.linspace(-5, 5, 201, dtype=double)


def draw_vote(share, coins, difference):
    figure, [ax] = figures.new_figure(width=7.6, height=3.6)
    push = preferences.vote(APART, share, coins)
    told = preferences.voted(share, coins)
    here = torch.tensor(difference, dtype=double)
    figures.expectation(ax, 0.0)
    ax.plot(APART, push, color="#332288", linewidth=2.4)
    at = float(preferences.vote(here, share, coins))
    ax.plot([difference], [at], "o", color="#b8320f", markersize=9)
    rest = math.log(told / (1 - told))
    ax.axvline(rest, color=figures.INK, linewidth=1.2, linestyle=":")
    ax.set_xlim(-5, 5)
    ax.set_ylim(-1.05, 1.05)
    figures.describe(
        ax,
        f"{told:.0%} of the votes are for a: at rest at a difference of {rest:+.2f}",
        "r_a − r_b (dot: now; dotted: at rest)",
        "push on r_a",
    )
    return figure


# %%
lesson.explore(
    "vote",
    draw_vote,
    "The push is 0 on the dotted line. Move the dot far to either side: an expected vote hardly"
    " pushes, a surprising one pushes with up to 1. Then let annotators toss coins.",
    share=Slider(0.05, 0.95, 0.05, 0.9, "share that prefers a"),
    coins=Slider(0.0, 0.9, 0.1, 0.0, "share of tossed votes"),
    difference=Slider(-5.0, 5.0, 0.25, 0.0, "r_a − r_b now"),
)

# %%
for coins in (0.0, 0.4):
    told = preferences.voted(0.9, coins)
    rest = math.log(told / (1 - told))
    print(f"tossed votes {coins:.0%}: a gets {told:.0%}, at rest at {rest:+.2f}")

# %% [markdown]
# Careless annotators do not turn the order round. They flatten the reward: 2.2 becomes 1.0.
#
# ## The unknown constant meets the ladder
#
# $c(q)$ differs from question to question, and nobody knows it. A mean over the group takes it out; one mean over the batch does not:

# %%
from course.rollout import Rollout


def of_rewards(rewards):
    """One-token answers [Q, G] with these rewards, as an estimator sees them."""
    rewards = torch.as_tensor(rewards, dtype=double).unsqueeze(-1)
    return Rollout(rewards, torch.zeros_like(rewards), torch.ones_like(rewards, dtype=torch.bool))


# the second question's rewards plus 5: the same preferences
for name in ("clip", "group_mean"):
    for rewards in ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [6.0, 5.0]]):
        advantage = ladder.get(name).estimator.freeze(of_rewards(rewards)).advantage[..., 0]
        shown = ["  ".join(f"{a:+.1f}" for a in row) for row in advantage.tolist()]
        print(f"{name:<11} rewards {rewards!s:<24} advantages {shown[0]}    {shown[1]}")

# %% [markdown]
# Under `clip` the wrong answer to the second question is praised with +2. Compare rewards of a reward model within a group only.
#
# ## An annotator with a habit
#
# Now a prompt whose answers can be listed: 11 qualities from 0 to 1 times 30 lengths, 330 answers. What an answer is worth, the **gold** reward, is its quality less .03 for every token. An annotator's log-odds are four times the difference in worth; a **hasty** one likes whatever is long, and adds .2 for every token. The reward model sees quality and length.

# %%
world = preferences.letters()
fair, hasty = preferences.annotator(), preferences.annotator(bias=0.2)
lesson.code(preferences.most_likely)
for name, weights in (("fair", fair), ("hasty", hasty)):
    print(f"{name}: log-odds per point of quality {weights[0]:.1f}, per token {weights[1]:+.2f}")
    for pairs in (30, 300, 3000):
        voted = preferences.ask(world, weights, pairs, lesson.noise(dtype=double))
        found = preferences.fit(world.features, *voted)
        print(f"   fitted to {pairs:>4} votes: {found[0]:.2f} and {found[1]:+.3f}")
    found = preferences.fit(world.features, *preferences.every_pair(world, weights), ridge=0.0)
    print(f"   fitted to all pairs:  {found[0]:.2f} and {found[1]:+.3f}")

# %% [markdown]
# More votes bring the fit to what the annotators weigh. For the hasty annotator that is a reward of +.08 for each token that should cost. **Votes remove noise, and no habit.**
#
# What does a policy do with it? Take the best policy under a KL penalty (lesson 07), $\pi_\beta\propto\pi_{ref}\,e^{r/\beta}$:

# %%
from bandits.theory import overoptimisation as over
from bandits.theory import proxy
from bandits.theory.effective_samples import tilted

print("            E[length] at β = ∞      4      1    0.5   0.25")
for name, weights in (("fair", fair), ("hasty", hasty)):
    reward = world.features @ weights
    row = [
        world.log_ref,
        *(tilted(world.log_ref, reward, 1 / beta) for beta in (4, 1, 0.5, 0.25)),
    ]
    lengths = [float(over.expected(each, world.length)) for each in row]
    print(f"{name:<24}", "".join(f"{length:>7.1f}" for length in lengths))

# %% [markdown]
# The fair annotator is the control: under it answers grow shorter. So it is the habit that makes them grow, and not training.
# <!-- answers: 41 -->
# People wonder that their model's answers shrink where they hoped for long thoughts, or grow into gibberish. Ask first what the reward does with length. There is a law for it, which the rest of the lesson needs.
#
# ## One covariance decides
#
# Let $\pi\propto\pi_{ref}\,e^{\lambda r}$ with $\lambda=1/\beta$, and $f$ any number that an answer has: its length, its worth. Since $\log\pi=\log\pi_{ref}+\lambda r-\log Z$ and $\sum_o\pi=1$, $\ \frac{d}{d\lambda}\log\pi=r-\mathbb E[r]$, so
#
# $$\frac{d}{d\lambda}\,\mathbb E_\pi[f] = \sum_o\pi(o)\,\big(r(o)-\mathbb E[r]\big)f(o) = \operatorname{Cov}_\pi(f, r). \tag{10.4}$$
#
# `eq:tilt-slope` · derived. **What grows is what covaries with the reward among the answers that the policy gives now.** With $f=r$ it is a variance: the reward that is trained on always rises.
#
# Length first. Its slope at the start is $\operatorname{Cov}(\text{length}, r)=.08\cdot\operatorname{Var}(\text{length})$, as quality and length are independent there.

# %%
reward = world.features @ hasty
slope = proxy.covariance(world.log_ref, world.length, reward)
step = [over.expected(tilted(world.log_ref, reward, x), world.length) for x in (1e-4, 2e-4)]
print(f"Cov(length, r) at the start {slope:.4f}; measured slope {(step[1] - step[0]) / 1e-4:.4f}")

# %% [markdown]
# ## Gold and proxy
#
# Train on a learned reward, the **proxy**, and measure the gold. The proxy rises: (10.4) with $f=r$. The gold rises as long as $\operatorname{Cov}_\pi(\text{gold}, \text{proxy})>0$. But quality ends at 1. Once nearly all answers are good their qualities no longer vary, and what still varies is length, where gold and proxy disagree. This is **over-optimisation**, one kind of **reward hacking**.

# %% jupyter={"source_hidden": true}
lesson.ask("which-beta")

# %%
def look(beta, *values):
    """π_β, and the means of the values under it."""
    now = tilted(world.log_ref, reward, 1 / beta)
    return now, *(float(over.expected(now, each)) for each in values)


print("   β   KL, nats   proxy    gold   Cov(gold, proxy)   quality   length")
for beta in (math.inf, 4, 1, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02):
    now, paid, worth, quality, length = look(
        beta, reward, world.gold, world.quality, world.length
    )
    apart, both = over.kl(now, world.log_ref), proxy.covariance(now, world.gold, reward)
    print(
        f"{beta:>5g}   {float(apart):>6.2f}   {paid:>7.2f}   {worth:>5.3f}   {float(both):>+12.4f}"
        f"   {quality:>11.2f}   {length:>6.1f}"
    )

# %% [markdown]
# The gold is highest where the covariance changes its sign, between β = .25 and .2, with quality near .9. After that the proxy goes on rising and the answers only grow longer.

# %% jupyter={"source_hidden": true}
from functools import cache

PATH = torch.logspace(-1.7, 1.3, 61, dtype=double)  # values of β


@cache
def learned(bias, pairs):
    """The weights of a reward model fitted to so many votes."""
    weights = preferences.annotator(bias)
    if pairs == "all":
        return weights
    voted = preferences.ask(world, weights, pairs, lesson.noise(dtype=double))
    return preferences.fit(world.features, *voted)


def along(reward):
    """√KL, gold and proxy of the tilted policies, [61] each; the proxy in units of the gold."""
    path = torch.log_softmax(world.log_ref + reward / PATH.unsqueeze(-1), -1)  # [61, 330]
    far = torch.stack([over.kl(each, world.log_ref).sqrt() for each in path])
    gold, paid = path.exp() @ world.gold, path.exp() @ reward
    start = over.expected(world.log_ref, world.gold)
    rise = (paid - over.expected(world.log_ref, reward)) / preferences.SHARPNESS
    return far, gold, start + rise


def draw_gold(beta, bias, pairs):
    reward = world.features @ learned(round(bias, 2), pairs)
    far, gold, rise = along(reward)
    now = tilted(world.log_ref, reward, 1 / beta)
    figure, [curves, lengths] = figures.new_figure(1, 2, width=9.0, height=3.5)
    here = float(over.kl(now, world.log_ref).sqrt())
    curves.plot(far, rise, color="#c96f00", linestyle="--", label="proxy ÷ 4")
    curves.plot(far, gold, color="#332288", linewidth=2.4, label="gold")
    curves.plot([here], [float(over.expected(now, world.gold))], "o", color="#332288", markersize=9)
    curves.set_xlim(0, 5.2)
    curves.set_ylim(-0.1, 1.6)
    curves.legend(frameon=False, loc="upper left")
    figures.describe(
        curves, f"β = {beta:.2g}", "√KL(π‖π_ref)", "gold, and proxy from the same start"
    )
    for log_prob, colour, label in ((world.log_ref, "#888888", "π_ref"), (now, "#332288", "π_β")):
        share = log_prob.exp().view(11, 30).sum(0)  # over the qualities
        lengths.step(range(1, 31), share, where="mid", color=colour, label=label)
    lengths.set_xlim(0, 31)
    lengths.set_ylim(0, 0.62)
    lengths.legend(frameon=False, loc="upper right")
    figures.describe(lengths, "how long the answers are", "tokens", "probability")
    return figure


# %%
lesson.explore(
    "gold",
    draw_gold,
    "Move β from right to left: the dot climbs, then falls. β moves the dot and no curve. Then"
    " change the curve: other votes, and an annotator without the habit.",
    beta=Slider(-1.7, 1.3, 0.1, -0.6, "β", log=True),
    bias=Slider(0.0, 0.3, 0.05, 0.2, "habit, per token"),
    pairs=Choice((30, 300, 3000, "all"), "all", "votes"),
)

# %% [markdown]
# ### Best of n
#
# There is a way to a higher proxy without training: draw $n$ answers and keep the one with the highest proxy. With $F(k)=P(r\le r_k)$ under $\pi_{ref}$, all $n$ are at most as good as $k$ with probability $F(k)^n$, and all are worse with $(F(k)-\pi_{ref}(k))^n$ (if no other answer has the same proxy). So
#
# $$P_n(k) = F(k)^n-\big(F(k)-\pi_{ref}(k)\big)^n. \tag{10.5}$$
#
# `eq:best-of-n` · derived. If answers are so many that none is drawn twice, $P_n(k)\approx n F^{n-1}\pi_{ref}(k)$ with $F$ even on $(0,1)$, and the KL is an integral,
#
# $$\mathrm{KL}(P_n\Vert\pi_{ref}) \le \int_0^1 nF^{n-1}\ln\big(nF^{n-1}\big)\,dF = \ln n-\frac{n-1}n. \tag{10.6}$$
#
# `eq:best-of-n-kl` · Stiennon et al. 2020, appendix G.3; that it is a bound: Beirami et al. 2024. For $n=16$ it is 1.84 nats.

# %%
print("     n   KL, listed   (10.6)    gold of best-of-n   gold of π_β at the same KL")
far, worths, _ = along(reward)
for n in (4, 16, 64, 256, 4096, 65536):
    best = over.best_of(world.log_ref, reward, n)
    listed, said = float(over.kl(best, world.log_ref)), over.best_of_kl(n)
    tuned = float(worths[(far.square() - listed).abs().argmin()])
    chosen = float(over.expected(best, world.gold))
    print(f"{n:>6}   {listed:>8.3f}   {said:>8.3f}   {chosen:>12.3f}   {tuned:>20.3f}")

# %% [markdown]
# Best-of-n over-optimises too: its gold is highest near $n=256$. It takes thousands of draws to do harm; training gets there by lowering one number. Gao et al. 2023 measured both on language models, with $d=\sqrt{\mathrm{KL}}$, and found that the gold gained follows $d(\alpha-\beta d)$ for best-of-n and $d(\alpha-\beta\ln d)$ for RL. `course bandits overoptimisation` has 128 bandits of 1,000 answers, reward models fitted to 500 sampled votes, and fits both forms:

# %%
from course.lab.places import measured
from course.lab.result import Result

measured_before = Result.load(measured("overoptimisation"))
for fact in measured_before.facts:
    if "fits gold" in fact.claim and "better" not in fact.claim:
        print(f"{fact.claim}: {fact.measured:.1%}")

# %% [markdown]
# ### Do it: the best of n

# %%
best_exercise = lesson.exercise("best-of-n")


# %%
def my_best_of_n(pi, reward, n):
    """pi [K]: probabilities; reward [K]: all different → the distribution of the best of n, [K]."""
    return NotImplemented


best_exercise.check(my_best_of_n)

# %% [markdown]
# ### Removed, or delayed?
# <!-- answers: 40 -->
# What does each remedy do to the path? You saw in the explore that β moves the dot along one curve. So a KL penalty **delays** the harm: it chooses where on the path you stop, and it helps as far as you can tell where the top is. Other remedies choose another path:

# %%
from course.lab.statistics import interval


def top(*every):
    """The highest gold on the path of each reward, and the gold at β = .02, as text."""
    golds = torch.stack([along(world.features @ weights)[1] for weights in every])
    if len(every) == 1:
        return f"at most {float(golds.max()):.2f}, at β = .02 {float(golds[0, 0]):.2f}"
    most, last = (interval(each) for each in (golds.amax(-1), golds[:, 0]))
    return f"at most {most[0]:.2f} ± {most[1]:.2f}, at β = .02 {last[0]:.2f} ± {last[1]:.2f}"


def from_votes(pairs, sets=20):
    """Reward models fitted to so many votes of the hasty annotator, one for each set of votes."""
    for each in range(sets):
        voted = preferences.ask(world, hasty, pairs, lesson.noise(use=10 + each, dtype=double))
        yield preferences.fit(world.features, *voted)


asked = [preferences.every_pair(world, each) for each in (fair, hasty)]
mixed = preferences.fit(world.features, *asked[0][:2], (asked[0][2] + asked[1][2]) / 2)
print("gold along the path of β")
for pairs in (30, 300, 3000):
    print(f"   {pairs:>4} hasty votes, 20 sets   {top(*from_votes(pairs))}")
print(f"   all hasty votes             {top(hasty)}")
print(f"   half of the votes are fair  {top(mixed)}")
print(f"   length left out of model    {top(hasty * torch.tensor([1.0, 0.0]))}")
print(f"   all fair: the control       {top(fair)}")

# %% [markdown]
# From 30 to 3,000 votes the end hardly changes, since the habit is in the votes. If half of the votes are fair, a token costs something again in the fitted reward, and down to β = .02 there is no top. A model that cannot see length cannot pay for it; it cannot charge for it either, and stays at .75. The control has no top at any β: proxy and gold are one there, and nothing can be gamed.
#
# How would you notice, with no gold to look at? The proxy alone tells nothing, as it always rises. Look at what nobody paid for, length above all, and ask a **held-out judge**: a reward model fitted to other votes, which training never sees. Here are two, one fitted to votes of fair annotators, one to more votes of hasty ones:

# %%
judges = [
    world.features
    @ preferences.fit(
        world.features,
        *preferences.ask(world, votes, 1000, lesson.noise(use=1, dtype=double)),
    )
    for votes in (fair, hasty)
]
print("   β   proxy   fair judge   hasty judge    gold   length")
for beta in (4, 1, 0.5, 0.25, 0.1, 0.05):
    _, paid, told, same, worth, length = look(
        beta, reward, *judges, world.gold, world.length
    )
    row = "".join(f"{x:>{w}.2f}" for x, w in ((paid, 8), (told, 13), (same, 14), (worth, 8)))
    print(f"{beta:>4g}{row}   {length:>6.1f}")

# %% [markdown]
# The fair judge turns where the gold turns. The one with the same habit rises to the end, as the proxy does: other votes are not enough, it takes other voters. Where the voters are right and the *model* is wrong, it takes new votes, on answers that the policy gives now. The ablation measures that, and more:

# %%
wanted = (
    "4,000 votes do not keep",
    "A model that can say it",
    "The best KL penalty gains",
    "An ensemble of linear models does not keep gold from falling (mean",
    "A second linear model",
    "Fresh votes on the policy's own",
)
for fact in measured_before.facts:
    if fact.claim.startswith(wanted):
        print(f"{fact.claim}: {fact.measured:+.2f}{'' if fact.holds else ', does not hold'}")

# %% [markdown]
# There a linear model cannot say that length pays only up to a point. More votes do not mend that, an ensemble of five such models does not, and a second one sees nothing. A model that can say it mends it; fresh votes on the policy's own answers show it. And stopping early is no KL penalty: plain policy gradient takes a path of its own, and the best stop on it had less than half the gold of the best β.
#
# ## A reward model is no critic
#
# Both are networks that give an answer a number, and both come from the same checkpoint as a rule. They are two things:
#
# | | reward model $r_\phi(q,o)$ | critic $V(q,o_{<t})$ |
# | --- | --- | --- |
# | looks at | a whole answer, whoever wrote it | a beginning, and asks what **this** policy will make of it |
# | learns from | votes, before training | returns, during training |
# | while the policy learns | stays as it is | has to follow |
# | says | what is good | what is expected |
# | an error in it | changes what is optimised | changes the noise (with GAE below λ = 1 a bias as well, lesson 05) |
#
# On a transformer either is a head with one output. Here is the reward model: it reads the answer to its last token, and one number is all it says.

# %%
from tinylm.reward_model import Annotator, RewardModel, fit, preference_accuracy, sample_pairs

lesson.code(RewardModel.__call__)

# %% [markdown]
# Watch both on the model of lesson 08, one-digit sums after SFT. Annotators vote on 1,000 pairs of its own answers to 7+8=, a right one beats a wrong one with probability $\sigma(4)=.98$, and a reward model is fitted. Then the policy trains for 25 rollouts, on the check. The critic's numbers are exact.

# %% jupyter={"source_hidden": true}
import dataclasses

from course.learner import Learner
from course.train.optim import Adam
from tinylm import tasks
from tinylm.evaluate import right_to_go
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.warm_start import LIKELIHOOD, Demonstrations

task = tasks.make(tasks.TaskSettings(digits=1))
model = Transformer(dataclasses.replace(PRESETS["nano"], context=task.context), dtype=double)
for weight in model.parameters:
    weight.requires_grad_()
Learner(
    Demonstrations(model, task, batch=128),
    LIKELIHOOD,
    Adam(1e-2),
    lesson.noise(use=2, dtype=double),
    max_grad_norm=1.0,
).train(80)
row = torch.tensor([78])  # 7+8=
pairs, fresh = (
    sample_pairs(model, task, Annotator(), lesson.noise(use=use, dtype=double), 1000, questions=row)
    for use in (20, 21)
)
learned_reward = RewardModel.on(model)
fit(learned_reward, pairs, lesson.noise(use=22, dtype=double), steps=100)
asks = task.prompt[row]
spoken = {"15⏎": [1, 5, tasks.END], "14⏎": [1, 4, tasks.END], "05⏎": [0, 5, tasks.END]}
answers = torch.tensor(list(spoken.values()))
problem = LanguageModel.of(ladder.group_mean, model, task, prompts=64, group=8)
noise = lesson.noise(use=3, dtype=double)
learner = Learner(problem, ladder.group_mean, Adam(3e-3), noise, epochs=4)
judged, expected = [], []
for trained in (False, True):
    if trained:
        learner.train(25)
    with torch.no_grad():
        judged.append(learned_reward(asks.expand(3, -1), answers).tolist())
    expected.append(right_to_go(model, task, row)[0].tolist())
figure, panels = figures.new_figure(1, 2, width=9.0, height=3.3)
for ax, names, pair, title, label in (
    (panels[0], list(spoken), judged, "the reward model: an answer", "score"),
    (panels[1], ["7+8=", "7+8=1", "7+8=15"], expected, "the critic: a beginning", "value"),
):
    for heights, shift, colour, when in (
        (pair[0], -0.2, "#999999", "policy before"),
        (pair[1], 0.2, "#332288", "and after"),
    ):
        ax.bar([i + shift for i in range(3)], heights, 0.38, color=colour, label=when)
    ax.axhline(0, color=figures.INK, linewidth=0.8)
    ax.set_xticks(range(3), names)
    figures.describe(ax, title, "", label)
panels[1].legend(frameon=False, loc="upper left")
lesson.picture(
    figure,
    "The scores of three answers are the same before and after the policy trains; the values of the"
    " beginnings 7+8= and 7+8=1 rise.",
)
shown = torch.cat([pairs.win, pairs.lose])
for name, each, score in zip(spoken, answers, judged[0], strict=True):
    seen = int((shown == each).all(-1).sum())
    print(f"{name} score {score:+.2f}, in {seen} of 2,000 answers that were voted on")
print(f"agrees with {float(preference_accuracy(learned_reward, fresh)):.0%} of fresh votes")

# %% [markdown]
# The scores do not move while the policy learns; the values do. And look at `05⏎`: it is wrong, and the reward model likes it. Nobody ever voted on it: the policy never said it. A policy that maximises the score will find such answers.

# %% jupyter={"source_hidden": true}
lesson.ask("one-error")

# %%
from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY, b3, outcomes
from course import exact

policy = torch.tensor([B3_POLICY], dtype=double).log()
true = exact.gradient(b3())
paid = torch.tensor([B3_MEANS], dtype=double)
paid[0, 0] += 0.3  # the reward model likes arm 1 better than it should
wrong_reward = outcomes(Bernoulli(paid), policy)
value = exact.objective(b3())
for name, seen, estimator in (
    ("reward and value right", b3(value=torch.tensor([value], dtype=double)), ladder.ppo),
    ("value too high by .3", b3(value=torch.tensor([value + 0.3], dtype=double)), ladder.ppo),
    ("reward of arm 1 too high by .3", wrong_reward, ladder.rloo),
):
    found = exact.microscope(estimator, seen, 4)
    off = float((found.expected - true).norm() / true.norm())
    variance = float(found.covariance.diagonal().sum())
    print(f"{name:<32} E[ĝ] is off by {off:.0%} of ∇J; variance {variance:.3f}")

# %% [markdown]
# A wrong critic costs noise. A wrong reward model costs the goal: E[ĝ] is the exact gradient of something else.
#
# ## A perfect ranking may be flat
#
# Is the best reward model the one that ranks most pairs rightly? Take four answers worth 0, .4, .6 and 1, and a policy that gives them with .6, .25, .1 and .05. Model A ranks all pairs as the gold does, but pays 0, .02, .04 and 1. Model B pays 0, .9, .7 and 1 and so gets one pair of six wrong.

# %% jupyter={"source_hidden": true}
lesson.ask("perfect")

# %% [markdown]
# For a softmax over answers $\partial\,\mathbb E[r]/\partial\theta_k=\pi_k(r_k-\mathbb E[r])$. Small steps along this gradient change any $\mathbb E[f]$ by the inner product with $f$'s own gradient:
#
# $$\frac{d}{dt}\,\mathbb E[g] = \sum_k\pi_k^2\,\big(g_k-\mathbb E[g]\big)\big(r_k-\mathbb E[r]\big), \qquad \frac{d}{dt}\,\mathbb E[r]=\lVert\nabla\mathbb E[r]\rVert^2\le\max_k\pi_k\cdot\operatorname{Var}_\pi(r). \tag{10.7}$$
#
# `eq:flat-landscape` · derived; after Razin et al. 2025. A reward that hardly varies *among the answers that the policy gives* teaches slowly, however well it ranks.

# %%
from bandits.environments import Deterministic
from bandits.flow import ascend

four = torch.tensor([0.0, 0.4, 0.6, 1.0], dtype=double)  # what they are worth
start = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=double).log()
models = {
    "gold itself": four,
    "A, ranks perfectly": torch.tensor([0.0, 0.02, 0.04, 1.0], dtype=double),
    "B, one pair wrong": torch.tensor([0.0, 0.9, 0.7, 1.0], dtype=double),
}
print("E[ĝ] of groups of 4, step 1:       Var(r)   speed of the gold   gold after 5     20     50")
for rung in ("group_mean", "group_std"):
    for name, reward_of in models.items():
        path = ascend(
            ladder.get(rung).estimator,
            Deterministic(reward_of[None]),
            start,
            4,
            rate=2.0,
            steps=50,
        ).exp()
        variance = float(proxy.covariance(start, reward_of, reward_of))
        speed = float(proxy.speed(start, four, reward_of))
        row = "".join(f"{float(path[steps] @ four):>7.2f}" for steps in (5, 20, 50))
        print(f"{rung:<11} {name:<21} {variance:>7.3f}   {speed:>10.4f}          {row}")

# %% [markdown]
# Early on B is the better teacher although it ranks worse; in the end A wins by far, since B's second answer keeps what it attracted. And the std takes much of the flatness away, .63 after five updates in place of .27: a group with one rare success is scaled up, whatever its size. (A reward that is flat by a constant factor is no problem at all: it is a learning rate.)
#
# ## Rewards that are noise (optional)
#
# Qwen models were reported to get better at mathematics when the rewards were drawn at random (Shao et al. 2025). What does a random reward teach? Let advantages be above and below 0 equally often, whatever the answer, with mean size $a=\mathbb E|A|$. Where the clip is not active the two cancel. Above $1+\varepsilon$ the samples with $A>0$ are silent, and those with $A<0$ push down with $\rho\,a/2$; below $1-\varepsilon$ it is the other way round. With $\pi_{old}\rho=\pi_\theta$ and the score $s_k$,
#
# $$\mathbb E[\hat g] = \frac a2\Big[\sum_{\rho_k<1-\varepsilon}\pi_\theta(k)\,s_k-\sum_{\rho_k>1+\varepsilon}\pi_\theta(k)\,s_k\Big]. \tag{10.8}$$
#
# `eq:random-reward-clip` · derived; cf. Shao et al. 2025.

# %%
from bandits.flow import expected_gradient

old = torch.tensor([0.7, 0.2, 0.1], dtype=double).log()
now = torch.tensor([0.6, 0.2, 0.2], dtype=double).log()  # the third arm's ρ is 2
coin = Bernoulli(torch.full((1, 3), 0.5, dtype=double))
size = 0.375  # E|r − mean| of four coins
for name in ("surrogate", "clip"):
    estimator = course.replace(ladder.get(name).estimator, baseline=ladder.group_mean.baseline)
    found = expected_gradient(estimator, coin, now, 4, old=old)
    print(f"{name:<10} E[ĝ] {[f'{x:+.4f}' for x in (found + 1e-12).tolist()]}")
print("(10.8)     ", [f"{x:+.4f}" for x in proxy.random_reward_push(now, old, size).tolist()])

# %% [markdown]
# Without the clip a random reward teaches nothing on average. With it, it pulls back to $\pi_{old}$: the arm that has risen is pushed down. There is no signal in that about which answer is right. That a model improves under it says something about the model: the paper explains it by habits that the model had before, which the clip strengthens. On this bandit the pull is back to $\pi_{old}$ and no further.
#
# ## A reward of a thousandth, or: the std reads the small print (optional)
#
# How much does the design of a reward matter? Lelarge's notebook has a policy $N(\theta,1)$ on a line that looks for a window of width 1 around 0. A bonus of a thousandth around δ = 2 is added. With the group's std that thousandth is worth as much as the target, where the group sees nothing else:

# %%
from bandits.theory import reward_design

print("E[ĝ] at θ = 5, from 20,000 groups of 10         mean only     mean and std")
for text, design in (("the window alone", (0.0, 2.0)), ("with .001 around 2", (0.001, 2.0))):
    row = [
        reward_design.push(ladder.get(name).estimator, design, [5.0], 10, 20_000, 0)[0][0]
        for name in ("group_mean", "group_std")
    ]
    print(f"{text:<46} {row[0]:>+10.4f}   {row[1]:>+12.3f}")

# %%
wanted = ("widens the basin by more than half", "θ = 3 leads to a bonus at δ = 4 and stays")
for fact in Result.load(measured("reward_design")).facts:
    if any(words in fact.claim for words in wanted):
        print(f"{fact.claim}: {fact.measured:.3g}")

# %% [markdown]
# A bonus that leads to the target helps a lot, and one that leads past it is a trap that holds what it caught. `course bandits reward_design` trains from every start and draws both.
#
# ## Graded on a guess: overconfidence (optional)
#
# An event happens with probability $p=.7$, and the policy says how sure it is. It earns $1-(q-y)^2$ for the forecast $q$, the Brier score, which on average is highest at $q=p$. All answers of a group are judged by the same event. Let there be two forecasts, the right one and $q>p$, the latter with probability $x$. Without the std the pull on the higher one is $-\frac{G-1}G\,x(1-x)(q-p)^2$: away from it. With the std the *size* of a reward is lost within each event, and all that counts is which forecast was nearer. The majority of events wins: the pull is $(2p-1)\,w_G(x)\,x(1-x)$, **towards** the higher one.

# %%
from bandits.theory import overconfidence

print("pull on the higher forecast q, p = .7, x = ½, G = 4:  listed    closed form")
for higher in (0.8, 0.95):
    for name, estimator, formula in (
        ("mean", ladder.group_mean, overconfidence.pair_by_score(0.7, higher, 0.5, 4)),
        ("mean and std", overconfidence.STD, overconfidence.pair_by_majority(0.7, 0.5, 4)),
    ):
        listed = overconfidence.pair(estimator, 0.7, higher, 0.5, 4)
        print(f"   q = {higher:<5} {name:<36} {listed:>+.4f}    {formula:>+.4f}")

# %% [markdown]
# So a model that is asked for its confidence and trained with the std learns to sound sure (Bereket & Leskovec 2025). `course bandits overconfidence` trains it: it leaves .7 and goes towards 1.
#
# ## A reward for every step (optional)
# <!-- answers: 32 -->
# How do process rewards, or the rewards of several turns, go into GRPO? They sit on more tokens than the last. What each token is credited with is the part `credit`: the whole sum for all, or what comes from the token on. Two answers of three steps, the second one slips at its second step and still ends right:

# %%
from course.parts import RewardToGo, TotalReturn

steps = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]], dtype=double)  # [Q, G, T]
marked = Rollout(steps, torch.zeros_like(steps), torch.ones_like(steps, dtype=torch.bool))
for name, credit in (("whole sum", TotalReturn()), ("from here on", RewardToGo())):
    estimator = course.replace(ladder.group_mean, credit=credit)
    rows = estimator.freeze(marked).advantage[0].tolist()
    shown = ["  ".join(f"{a:+.2f}" for a in row) for row in rows]
    print(f"{name:<13} first answer {shown[0]}     second {shown[1]}")

# %% [markdown]
# With the whole sum, the good third step of the second answer is blamed for its second. With reward-to-go each step answers for itself and what follows it; the baseline is still one mean of the whole answers' returns, so late steps, which have less to come, are low in both. Two traps: a step that is paid whenever it is made will be made more often than needed; and a mean over the rewards of all steps of a group (Shao et al. 2024, §4.1.3) weighs an answer with more steps more.
#
# ## Break it
#
# Three programs fit a reward model to the same 3,000 votes of the fair annotator, and tilt the policy by it. One is right. One has its winners and losers exchanged. One reads the score at the wrong place. Each point is one β, from 20 on the left to .02 on the right.

# %% jupyter={"source_hidden": true}
Blind = lesson.hidden(
    "seen_at_the_padding"
)  # in the file of exercises: look after you have answered
winner, loser = preferences.ask(world, fair, 3000, lesson.noise(use=4, dtype=double))
whole, padded = world.features, Blind(world.features)
fits = {
    "run A": padded @ preferences.fit(padded, winner, loser),
    "run B": whole @ preferences.fit(whole, winner, loser),
    "run C": whole @ preferences.fit(whole, loser, winner),
}
figure, panels = figures.new_figure(1, 3, width=9.4, height=3.2)
for (label, score), colour in zip(fits.items(), ("#b8860b", "#000000", "#4a98e0"), strict=True):
    path = [tilted(world.log_ref, score, 1 / float(beta)) for beta in PATH.flip(0)]
    for ax, read in zip(panels, (score / 4, world.gold, world.length), strict=True):
        rise = torch.stack([over.expected(each, read) for each in path])
        rise = rise - over.expected(world.log_ref, read) if ax is panels[0] else rise
        style = figures.DASH if label == "run A" else figures.SOLID
        ax.plot(1 / PATH.flip(0), rise, color=colour, linestyle=style, label=label)
for ax, title in zip(panels, ("its own proxy ÷ 4, risen by", "gold", "length"), strict=True):
    ax.set_xscale("log")
    figures.describe(ax, title, "1/β", "")
panels[0].legend(frameon=False, loc="upper left")
lesson.picture(
    figure,
    "All three proxies rise. The gold of run B rises to nearly 1, of run A a little, of run C falls"
    " below 0. Lengths fall in A and B and rise in C.",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %% [markdown]
# The reveal: run A took the score after the end, where all that is left of an answer is how long it was.

# %%
lesson.code(Blind)
for label, score in fits.items():
    fresh = preferences.ask(world, fair, 3000, lesson.noise(use=5, dtype=double))
    right = (score[fresh[0]] > score[fresh[1]]).double().mean()
    print(f"{label}: ranks {float(right):.0%} of 3,000 fresh votes rightly")
truth = world.features @ fair
print(
    f"the annotator's own reward: {float((truth[fresh[0]] > truth[fresh[1]]).double().mean()):.0%}"
)

# %% [markdown]
# The share of fresh votes that a reward model ranks rightly finds both faults before any policy is trained. Compare it with what the annotators' own reward would reach, since votes are noisy: nobody gets 100 %.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# Votes give a reward up to a constant per question, with the voters' habits in it. What grows in training is what covaries with the reward among the policy's own answers: first what is meant, then what is left. A KL penalty chooses where on that path you stop; other votes, or a model that sees less, choose another path. A judge that training never sees tells you where you are.
#
# ## Next (optional)
#
# Your own reward is flat, and none of this helps? Lesson 10b is a checklist. Lesson 11 replaces more parts of the ladder.
