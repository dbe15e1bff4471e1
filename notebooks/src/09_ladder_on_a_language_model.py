# %% [markdown]
# # 09 · The ladder on a language model
#
# You have all eight rungs, and on bandits each replaced part had an effect. Which part matters when a transformer is trained, where, and by how much? After this lesson you can
#
# * run a comparison that decides: one replaced part, one stress, both arms paired, each at its own best learning rate;
# * compute the interval of a paired difference, and say what an undecided one allows;
# * say for every part of the ladder what it is for, what it buys there, and how little it can matter elsewhere;
# * read the curves of a training log, and find a bug that they hardly show.
#
# You need lessons 06 to 08: the group, the KL, and a prompt as a bandit. Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import dataclasses

import numpy as np
import torch

import course
from course import ladder
from course.lab import figures, stress
from course.lab.places import measured
from course.lab.result import Result

lesson = course.setup("09")
ladder.grpo

# %% [markdown]
# ## First, a run that works
#
# The command `course tinylm train` takes a small transformer, trains it on demonstrations of two-digit sums, and then trains it with GRPO. It was run with twenty fresh seeds and the same settings each time. The next cell reads the file that the command wrote.


# %% jupyter={"source_hidden": true}
def load(name):
    return Result.load(measured(name))


runs = load("tinylm_train")
curves, rollouts = runs.array("accuracy"), runs.array("rollouts")  # [seeds, logs], [logs]
when, goal = runs.array("crossed"), runs.settings["goal"]
per_rollout = runs.settings["prompts"] * runs.settings["group"]
reached = curves.max(-1) >= goal
print(f"{int(reached.sum())} of {len(curves)} seeds reach {goal:.0%} of the held-out questions")
print(f"accuracy at the end: {curves[:, -1].min():.1%} to {curves[:, -1].max():.1%}")
half_way = np.median(when[reached])
print(
    f"median: after {half_way:.0f} rollouts = {half_way * per_rollout:,.0f} completions;"
    f" {np.median(runs.array('seconds')):.0f} seconds on one thread, warm start included"
)

# %% jupyter={"source_hidden": true}
figure, [ax] = figures.new_figure(width=5.6, height=2.7)
colour = figures.style_of("grpo")["color"]
ax.fill_between(rollouts, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
ax.plot(rollouts, np.median(curves, 0), color=colour)
figures.expectation(ax, goal, label=f"{goal:.0%}")
figures.describe(ax, "GRPO on two-digit sums", "rollouts", "held-out, greedy accuracy")
lesson.picture(
    figure,
    f"median and range of {len(curves)} seeds: accuracy on held-out questions climbs above 95 %",
)

# %% [markdown]
# So GRPO works here. But *which of its parts* made it work? Would plain REINFORCE have done as well? A curve that goes up cannot say.
#
# ## How to ask
#
# Each rung differs from the one below in **one part**, and each part was invented against one difficulty. So train a rung and the rung below under that difficulty, and again without it:
#
# * **One part, one stress.** The *stress* is the difficulty that the part is for, such as a constant added to every reward. The *control* is the same training without it.
# * **Paired.** Both arms start from the same weights and draw from the same random streams, seed by seed. What is compared is the difference at each seed.
# * **Each arm at its own best learning rate**, chosen on other seeds than those that are judged. A second number answers another question: what if I take the part away and change nothing else, not even the rate?
# * **Exact.** With one right answer per question the expected reward needs no sampling. It is the probability of that one completion, $o^*_q$:
#
# $$J(\theta)=\frac1Q\sum_{q}\pi_\theta(o^*_q\mid q)=\frac1Q\sum_q\prod_{t}\pi_\theta(o^*_{q,t}\mid q,o^*_{q,<t}) \tag{9.1}$$
#
# `eq:exact-success-rate` · the expected reward of exact match; the bridge of lesson 08
#
# * **An interval with every number.** With $y_s(k)$ the outcome of seed $s$ at log $k$ of $K$, the effect of a part is
#
# $$\Delta_s=\frac1K\sum_{k=1}^K\big(y_s^{\text{rung}}(k)-y_s^{\text{below}}(k)\big),\qquad \bar\Delta\pm t_{n-1}\,\text{se}(\Delta) \tag{9.2}$$
#
# `eq:paired-effect` · the mean along the run, so that an arm that learns sooner is ahead
#
# $$\text{se}(x)=\frac{1}{\sqrt n}\sqrt{\frac{1}{n-1}\sum_s(x_s-\bar x)^2} \tag{9.3}$$
#
# `eq:seed-standard-error` · Student 1908; 95 % of such intervals hold the true mean, with $t_{n-1}$ = 2.2 for 12 seeds and 4.3 for three
#
# ## One pair, by your own hands
#
# Let us do it once, live, for the first part of the ladder. A nano transformer learns one-digit sums from demonstrations until it is right about two times in five. Sixteen of them, each with random weights of its own: four choose the learning rate, twelve are judged.

# %%
from course.estimator import replace
from course.learner import Learner
from course.parts import K3
from course.train.optim import Adam, LinearDecay
from tinylm import tasks
from tinylm.evaluate import right_to_go
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import ExactMatch
from tinylm.warm_start import LIKELIHOOD, Demonstrations

TUNING, JUDGED = range(4), range(4, 16)  # seeds
RATES = (3e-4, 1e-3, 3e-3)
double = {"dtype": torch.float64}  # so that your numbers are these
task = tasks.make(tasks.TaskSettings(digits=1))
shape = dataclasses.replace(PRESETS["nano"], context=task.context)
start = Transformer(shape, (16,), **double)
demonstrations = Demonstrations(start, task, batch=64)
noise = lesson.noise(16, use=1, **double)
Learner(demonstrations, LIKELIHOOD, Adam(5e-3), noise, max_grad_norm=1.0).train(110)


def exact(model):
    """[...] the expected reward J over all training questions, exactly (9.1)."""
    return right_to_go(model, task, task.train)[..., 0].mean(-1)


print(f"{start.size:,} weights each; {len(task.train)} questions; J of the sixteen:")
print([round(each, 2) for each in exact(start).tolist()])

# %% [markdown]
# The sixteen differ a lot, from .31 to .50: some learned far more from their demonstrations than others. That will matter.
#
# Now the training itself. The stress is one line: 1 more for every answer, right or wrong. It changes nothing about which answer is best. Every arm gets the same questions, 60 rollouts of 16 questions × 8 completions, and Adam with a learning rate that rises for ten updates and then falls linearly to 0.


# %%
@dataclasses.dataclass(frozen=True)
class Shifted(ExactMatch):
    """1 for the right answer and 0 for any other, plus a constant."""

    add: float = 0.0

    def __call__(self, completion, question, task):
        return super().__call__(completion, question, task) + self.add


class Watched(LanguageModel):
    """The same problem; its log has the exact J, too."""

    @torch.no_grad()
    def metrics(self):
        return {"J": exact(self.model)}


def train(estimator, rates, seeds, add=0.0, rollouts=60):
    """Train at all rates on all seeds at once; a log whose curves are [logs, rates, seeds]."""
    runs = (len(rates), len(seeds))
    model = Transformer(shape, runs, **double)
    with torch.no_grad():
        for name, weight in start.weights.items():
            model.weights[name].copy_(weight[list(seeds)].expand_as(model.weights[name]))
    problem = Watched.of(estimator, model, task, prompts=16, group=8, reward=Shifted(add=add))
    lr = torch.tensor(rates, **double).unsqueeze(-1).expand(runs)
    adam = Adam(lr, LinearDecay(rollouts, warmup=10), betas=(0.9, 0.98))
    noise = lesson.noise(*runs, use=2, numbers=[*seeds] * len(rates), **double)
    return Learner(problem, estimator, adam, noise, max_grad_norm=1.0, log_every=4).train(rollouts)


# %% [markdown]
# `numbers` gives each seed its own random stream, the same one at every rate and for every rung. Nothing more is needed for pairing.

# %% jupyter={"source_hidden": true}
lesson.ask("offset")


# %%
def at_best(name, add):
    """Choose the rate of a rung on the tuning seeds; train it there on the judged ones."""
    tried = train(ladder.get(name).estimator, RATES, TUNING, add)["J"].mean((0, 2))
    rate = RATES[int(tried.argmax())]
    print(
        f"{name:9} + {add:g}: mean J along the run on tuning seeds"
        f" {[round(each, 3) for each in tried.tolist()]} → rate {rate:g}"
    )
    return rate, train(ladder.get(name).estimator, [rate], JUDGED, add)


with_one = {name: at_best(name, 1.0) for name in ("reinforce", "baseline")}
along = {name: log["J"][:, 0].mean(0) for name, (_, log) in with_one.items()}  # [seeds]
for name, values in along.items():
    print(f"{name:9}", [f"{each:.3f}" for each in values.tolist()])

# %% [markdown]
# Two rows of twelve numbers, one column per seed. Is the second row better? Compute it.

# %%
from course.lab.statistics import interval, paired_interval

exercise_paired = lesson.exercise("paired-interval")

# %%
def my_paired(first, second, t):
    """first, second [n]: the outcome of two arms, seed by seed; t from the table.

    → (mean difference, half the width of its 95 % interval).
    """
    return NotImplemented


exercise_paired.check(my_paired)

# %% [markdown]
# Here is the answer, and beside it the interval that one gets by forgetting who belongs to whom:


# %% jupyter={"source_hidden": true}
def unpaired(first, second):
    """The interval of two independent samples (Welch 1947)."""
    from scipy.stats import ttest_ind

    low, high = ttest_ind(first, second, equal_var=False).confidence_interval()
    return (high + low) / 2, (high - low) / 2


def shown(mean, half):
    """A difference with its interval, and what the interval allows one to say."""
    if half < 1e-9 and abs(mean) < 1e-9:
        return "0, exactly"
    sign = "above 0" if mean > half else "below 0" if mean < -half else ""
    bound = abs(mean) + half
    bound = f"{bound:.3f}" if bound > 5e-4 else f"{bound:.0e}"
    return f"{mean:+.3f} ± {half:.3f}: {sign or f'undecided, less than ±{bound}'}"


first, second = along["baseline"], along["reinforce"]
print("baseline − reinforce, + 1 on every reward, mean J along the run, 12 seeds")
print("  unpaired:", shown(*unpaired(first, second)))
print("  paired:  ", shown(*paired_interval(first, second)))
rate = with_one["baseline"][0]
without = train(ladder.reinforce, [rate], JUDGED, 1.0)["J"][:, 0].mean(0)
print(f"  paired, both at the baseline's rate {rate:g}:", shown(*paired_interval(first, without)))

# %% [markdown]
# ### Which difference between two runs is noise?
# <!-- answers: 36 -->
# These are the same twelve pairs. Unpaired, the interval is +.019 ± .055: the different starts make it wide, and it holds 0. Paired, what the two arms of a start have in common cancels, and it is +.019 ± .004. A report that gives each method a mean with a band over seeds
# has thrown this away. With one seed per method there is no interval at all.
#
# And the control?

# %% jupyter={"source_hidden": true}
lesson.ask("control")

# %% jupyter={"source_hidden": true}
_, imitating = at_best("reinforce", 0.0)
unmoved = train(ladder.baseline, [rate], JUDGED, 0.0)  # its own rate, by the same four seeds
calm = {"reinforce": imitating["J"][:, 0].mean(0), "baseline": unmoved["J"][:, 0].mean(0)}
print(
    "baseline − reinforce, no constant:",
    shown(*paired_interval(calm["baseline"], calm["reinforce"])),
)
print("reinforce, + 1 less no constant:  ", shown(*paired_interval(second, calm["reinforce"])))
same = torch.allclose(calm["baseline"], first, atol=1e-9)
print("baseline's curve is the same with and without the constant, to 1e-9:", same)

# %% [markdown]
# So the first part of the ladder is an insurance. It makes the constant invisible, and where there is no constant it has a price for these twelve models, .014 of J. ("Best rate" means the best of three. REINFORCE's lies at an end of the three both times, so that a wider sweep could help it. The main experiment has one.)
#
# ## The main experiment
#
# The same was done for every part of the ladder, on two problems. The **transformer** is a nano one as above: one warm start, 16 random streams. The **contextual bandit** has nine questions from hard to easy, ten answers each, a linear policy whose features the questions share, and 256 streams. `course ladder` runs both; the next cell reads what it wrote.

# %%
parts = {
    "contextual bandit": load("bandit_parts"),
    "transformer": load("tinylm_parts"),
}
for problem, found in parts.items():
    print(f"{problem}: {found.settings['rollouts']} rollouts, rates {found.settings['rates']}")


def reveal(key):
    """Print one row of the experiment: both problems, stress and control."""
    rung, name = key.split(", ")
    print(f"{rung} − {ladder.get(rung).on}   stress: {stress.STRESSES[name].says}")
    for problem, found in parts.items():
        row = found.series["rows"][key]
        edge = "" if row["interior"] else "   (best rate at the end of the sweep)"
        print(f"\n  {problem}, mean of {len(row['values_rung'])} pairs{edge}")
        print("    effect, each at its best rate  ", shown(row["effect"], row["effect_half"]))
        if row["predicted"] is not None:
            print(f"      predicted                     {row['predicted']:+.3f}")
        print("    part taken away, rate unchanged", shown(row["removed"], row["removed_half"]))
        print("    control, no stress             ", shown(row["control"], row["control_half"]))


reveal("baseline, offset")

# %% [markdown]
# This is your own experiment again, with one start and 16 streams. On the bandit a prediction stands beside the effect. It trains with normal random updates that have the exact expectation and the exact covariance of a sampled one (lesson 02), and with no sampled reward. It gives +.094, inside the measured +.101 ± .011: the smaller variance is enough to explain the effect.
#
# Effects are means of the success probability along the run, so +.05 means five more of a hundred answers right, on average over the training. "Undecided" comes with a bound: a larger effect lies outside of the interval.
#
# The price you saw without the constant is not seen here: the control's interval holds 0 on both problems. Your twelve models and this one are different policies at different rates, and so small a price depends on them. A paired interval over streams speaks for the one start that all streams share; one over starts speaks for more.
#
# ### A constant of each question's own
#
# Some questions pay more than others whatever the answer: a reward model that likes a topic, a unit test that always passes. The stress adds to all answers of a question one number, drawn once from $N(0, 2^2)$. `clip` subtracts the batch's mean, `group_mean` each group's own.

# %% jupyter={"source_hidden": true}
lesson.ask("constants")

# %%
reveal("group_mean, constants")

# %% [markdown]
# Insurance again: a gain under the stress, and without it nothing, or a small loss (−.003 ± .002 on the transformer). On the bandit expectation and covariance predict +.147 of +.148.
#
# #### One learning rate for all variants: is that fair?
# <!-- answers: 49 -->
# It answers another question. On the transformer the part's effect is +.029 with each arm at its best rate, and +.062 if the part is taken away and the rate stays. A rung without its part can make up for some of the loss with a smaller rate. With the old rate it cannot.
# Either number may be what you want; a report has to say which one it gives.
#
# ### Many updates on each rollout
#
# Now the two parts that came from TRPO and PPO. Sampling is expensive, so take 16 (bandit) or 8 (transformer) updates on each rollout. From the second on, the samples are of an older policy.

# %% jupyter={"source_hidden": true}
lesson.ask("one-update")

# %% jupyter={"source_hidden": true}
lesson.ask("stale")

# %%
reveal("surrogate, stale")
print()
reveal("clip, stale")

# %% [markdown]
# All four effects are above 0, and their sizes are in opposite order on the two problems: +.082 for the ratio and +.005 for the clip on the bandit, +.016 and +.033 on the transformer. With the rate kept, the ratio's absence costs most on both (+.208, +.133): without it, the rate that suits the ratio is far too large. The control is 0, up to the rounding of float32: a clip threshold does nothing with **one optimiser step** per rollout on fresh samples. With minibatches, an asynchronous sampler, or a separate sampling engine, the samples are off-policy in the first epoch already.
#
# ### Questions of different difficulty
#
# The std divides each group's advantages by their scatter. By lesson 06, a question with success $p$ has the weight $w_G(p)$ in expectation, and it is largest where nearly all answers fail or nearly all succeed. So the stress is a set of questions of very different difficulty, and there are two outcomes: the success on the hardest third and on the easiest.
#
# But the std of rewards 0 and 1 is at most ½, so dividing by it makes all advantages larger. Is that just a larger step? Not here: on the transformer the cut of the gradient and Adam all but undo a constant factor (the last section shows it), and on the bandit each arm has its own best rate.

# %% jupyter={"source_hidden": true}
lesson.ask("std")

# %% jupyter={"source_hidden": true}
reveal("group_std, hard")
print()
reveal("group_std, easy")
print("\nhardest less easiest third, pair by pair")
for problem, found in parts.items():
    hard, easy = (
        found.array("rows", f"group_std, {third}", "values_rung")
        - found.array("rows", f"group_std, {third}", "values_below")
        for third in ("hard", "easy")
    )
    print(f"  {problem}:", shown(*paired_interval(hard, easy)))

# %% [markdown]
# The hard third gains on both (+.049, +.017), and more than the easy third. The easy third itself loses on the transformer (−.011) and gains a little on the bandit (+.004), where the expected path, without noise, predicts the same +.004. (The course had first claimed that the easy third loses on both. That did not hold, and the claim became "gains less than the hard third". A claim that was changed after looking is worth less, so you should know.)
#
# ### Answers of two lengths
#
# With $1/|o|$ every token of a long answer weighs less. For a right answer that is a smaller reward per token, for a wrong one a smaller **penalty** per token. The stress is questions that can be answered short or long with the same pay. The outcome is the mean length of *wrong* answers, as a share of the limit.

# %% jupyter={"source_hidden": true}
lesson.ask("lengths")

# %%
reveal("length_mean, lengths")

# %% [markdown]
# Wrong answers become longer on both: by .003 of the limit on the transformer, by .221 on the bandit, where the expected path without noise gives .232. (A mean length is no success: this row shows a side effect.) Where all answers have one length, success changes by less than .002. So $1/|o|$ is a choice with a side effect, and you now know its sign.
#
# ### A skill that is no longer rewarded
#
# The last part is the KL to the policy as it was at the start, with β = .1 on the bandit and 1 on the transformer. The stress: the policy has two skills at the start, and only one of them is still rewarded (on the bandit the even questions; on the transformer sums, but not differences). The outcome is the success at the *other*. In the control both are rewarded, with the same β, and the outcome is the success at both.

# %% jupyter={"source_hidden": true}
lesson.ask("unrewarded")

# %%
reveal("grpo, unrewarded")

# %% [markdown]
# More of the skill is left on both (+.153, +.033), and the controls show the price: where nothing has to be kept, the same KL costs .060 and .034 of success. Is that all that it is good for? TRL's default leaves it out.
#
# ### β = 0: the training reward rises, the held-out one falls (optional)
# <!-- answers: 45 -->
# Users see it with few training questions. Here the twelve judged models train on **eight** of the hundred sums, with GRPO at β = 0 and at β = 1, and J is exact on the eight and on the other 92:

# %% jupyter={"source_hidden": true}
eight = dataclasses.replace(task, train=task.train[::11][:8])
others = torch.tensor([q for q in range(100) if q not in eight.train.tolist()])


class Few(LanguageModel):
    """Training on eight questions; the log has the exact J on them and on all others."""

    @torch.no_grad()
    def metrics(self):
        right = (right_to_go(self.model, task, rows)[..., 0] for rows in (eight.train, others))
        return dict(zip(("trained", "others"), (each.mean(-1) for each in right), strict=True))


def on_eight(beta):
    """The log of twelve models, one seed each: curves [logs, seeds]."""
    model = Transformer(shape, (len(JUDGED),), **double)
    with torch.no_grad():
        for name, weight in start.weights.items():
            model.weights[name].copy_(weight[list(JUDGED)])
    estimator = replace(ladder.grpo, kl=K3(beta))
    problem = Few.of(estimator, model, eight, prompts=8, group=8)
    adam = Adam(1e-3, LinearDecay(60, warmup=10), betas=(0.9, 0.98))
    noise = lesson.noise(len(JUDGED), use=2, numbers=[*JUDGED], **double)
    return Learner(problem, estimator, adam, noise, max_grad_norm=1.0, log_every=6).train(60)


few = {beta: on_eight(beta) for beta in (0.0, 1.0)}
for what in ("trained", "others"):
    before = few[0.0][what][0].mean()
    print(f"J on {what:8} {before:.3f} after one rollout", end="")
    for beta, log in few.items():
        print(f"   β = {beta:g}: {log[what][-1].mean():.3f}", end="")
    print("   β = 1 less β = 0:", shown(*paired_interval(few[1.0][what][-1], few[0.0][what][-1])))

# %% [markdown]
# Without a KL the eight rise from .43 to .69, and the others fall from .39 to .31: training on eight questions costs the others, which share all weights with them. With β = 1 the others keep .049 more, and the eight gain .069 less.
#
# ## From random weights
#
# Until now demonstrations had shown the model what an answer looks like. Take them away: random weights, and only a reward, 1 for the exact answer and up to ½ for right digits in it. This is the KL's second stress, with the rung's own β of .04. The nano transformer gets one-digit sums. The bandit has one question with three answers: one pays 0, one ½, and the third, which has a probability of 1 in 1,000 at the start, pays 1½.

# %% jupyter={"source_hidden": true}
lesson.ask("zero")

# %%
reveal("grpo, random")

# %% [markdown]
# The same, larger: a `mini` transformer on two-digit sums, many more rollouts, and other arms beside the two. What counts is the greedy accuracy on held-out questions.

# %% jupyter={"source_hidden": true}
zero = load("tinylm_zero")
arms = zero.series["arms"]
rungs = ("reinforce", "group_mean", "length_mean", "grpo")
others = ("reinforce_kl", "group_mean_kl", "reverse_kl", "entropy", "length_mean_end", "grpo_exact")
print(f"{zero.settings['rollouts']} rollouts from random weights, {zero.settings['seeds']} models")
print(f"{'arm, at the end':32}held-out      cut  model by model       grpo less this arm")
for name in (*rungs, *others):
    arm, cut = arms[name], zero.array("arms", name, "truncated")[-1].mean()
    found = zero.series["differences"].get(f"grpo - {name}")
    print(
        f"{arm['label']:32}{arm['final_mean']:.2f} ± {arm['final_half']:.2f}{cut:6.2f}  "
        + " ".join(f"{each:.2f}" for each in arm["final"])
        + ("" if found is None else "  " + shown(found["mean"], found["half"]))
    )
print("cut: answers cut at the limit. ±: 95 % over four models, the last column paired")

# %% jupyter={"source_hidden": true}
figure, panels = figures.new_figure(1, 2, width=7.6, height=2.6)
for ax, what, title in zip(
    panels, ("accuracy", "entropy"), ("Held-out accuracy", "Entropy, nats per token"), strict=True
):
    for name in ("grpo", "length_mean"):
        steps, models = (zero.array("arms", name, each) for each in ("rollouts", what))
        for model in models.T:
            ax.plot(steps, model, color=figures.style_of(name)["color"], linewidth=0.6)
        figures.band(ax, steps, models.mean(-1), name=name)
    figures.describe(ax, title, "rollouts", "")
panels[0].set_ylim(-0.03, 1.05)
panels[1].set_ylim(-0.05, None)
for ax in panels:
    figures.label_ends(ax)
lesson.picture(
    figure,
    "from random weights: with the KL entropy falls slowly and accuracy climbs to near 1; without"
    " it entropy is near 0 after a few rollouts, and accuracy stays at 0. Thin: each model",
)

# %% [markdown]
# Read the row of `length_mean`, GRPO without its KL: three of four models end with every answer cut at the limit, and in the figure the entropy falls far sooner. Half a reward for digits can be had without the end token. Once that token has died out, no sample shows that it was worth another half. That is not all: with the end credited as well, no answer is cut, and .35 are right. (One model found it in time. So the interval against this rung is wide: at 95 % it lies above 0, at the 99 % that the course asks of claims on four models it does not.)
#
# Which part of GRPO does it? Replace $k_3$ by $k_2$, the reverse KL, or leave out the std and $1/|o|$: the interval of the difference from GRPO holds 0, with bounds of .094 and .041. So an anchor decides, and its form and the std matter by less than these bounds. The anchor alone is not enough: under REINFORCE, without a baseline, the same KL reaches .21 in the same time. An entropy bonus in its place reaches .72.
#
# ### Is SFT needed first? (optional)
# <!-- answers: 42 -->
# Not with this reward: GRPO gets from random weights to .99. It is with the exact reward alone (last row, 0.00), since no sample of a random model is ever right and every group is silent. A start from which some samples of a group succeed is what training needs; demonstrations are one way to get it, credit for parts of an answer
# is another. In lesson 08, 80 updates on demonstrations took the share of right samples from .1 to 39 %.
#
# ### Why an anchor? (optional)
#
# A bandit with three arms shows a part of it: one arm pays ½ and is found soon, a rare one pays 1½ (its digits and the end), and one pays nothing. How many of the sampled runs found the rare one?

# %% jupyter={"source_hidden": true}
rare = load("rare_prize")
for name in rare.series["anchors"]:
    mean, half = interval(rare.array("anchors", name, "found_share"))
    print(f"{name:8} {mean:.2f} ± {half:.2f} of {rare.settings['runs']} runs found the rare arm")
mean, half = interval(zero.array("arms", "grpo", "silent_groups")[-4:].mean(0))
print(f"\nGRPO's silent groups on the transformer, last four logs: {mean:.3f} ± {half:.3f}")
print(
    "where KL and reward balance on the bandit, it has:"
    f" {float(zero.array('predicted', 'silent_groups')):.3f}"
)

# %% [markdown]
# In the loss, $k_3$ has the gradient of KL(π_ref‖π) (lesson 07): it pushes the logit of arm $a$ by $\beta(\pi_{ref}(a)-\pi(a))$, which stays when $\pi(a)$ goes to 0. The push of $k_2$ and of an entropy bonus has a factor $\pi(a)$ and dies with the arm: their intervals and that of no anchor overlap. On the transformer $k_2$ did as well as $k_3$, within .094, and with the bonus all four models learned, so three arms do not explain everything. The last two lines compare a level: near its end .48 of GRPO's groups are silent, and .46 would be if the pulls of KL and reward balanced at every token.
#
# ## A term that nobody asked for (optional)
# <!-- answers: 26 -->
#
# **Is there an entropy bonus in my loss?** Some trainers had one on by default (verl#514). Two runs of one name then differ by a term that no equation of the report shows:
#
# $$L\leftarrow L+c_{\mathcal H}\sum_{i,t}w_{i,t}\,\mathcal H_{i,t},\qquad \mathcal H_{i,t}=-\sum_v\pi(v\mid\cdot)\log\pi(v\mid\cdot) \tag{9.4}$$
#
# `eq:entropy-bonus` · Williams & Peng 1991; Schulman et al. 2017, eq. 9 ($L$ is maximised; $w_{i,t}$ are the tokens' weights of (0.1))
#
# Here it is a field of the estimator, 0 by default, and an estimator prints it:

# %%
replace(ladder.group_std, entropy_coef=0.1)

# %% [markdown]
# In the log you see the entropy, the mean over chosen tokens. Below are the twelve judged starts, with and without the bonus:
#
# $$\mathcal H=\frac{1}{\sum_i|o_i|}\sum_{i,t}\mathcal H_{i,t} \tag{9.5}$$
#
# `eq:token-entropy` · Shannon 1948, §6

# %%
plain = train(ladder.group_std, [1e-3], JUDGED, rollouts=40)
bonus = train(replace(ladder.group_std, entropy_coef=0.1), [1e-3], JUDGED, rollouts=40)
for what in ("entropy", "J"):
    print(
        f"{what:8} at the end, bonus less plain:",
        shown(*paired_interval(bonus[what][-1, 0], plain[what][-1, 0])),
    )

# %% [markdown]
# The bonus raises the entropy by .023 nats and costs .005 of J here. If your entropy does not fall where everybody else's does, look for this term before you look for a discovery.
#
# ## All parts in one picture
#
# All rows, both problems, effect and control. Diamonds are predictions: for the two baselines from the expectation and the covariance of an update, for the std and $1/|o|$ from the expectation alone.

# %% jupyter={"source_hidden": true}
lesson.picture(
    stress.forest(parts),
    "a forest plot, one row per part and stress, for the bandit and the transformer: nearly all"
    " effects lie to the right of the zero line, nearly all controls on it",
)

# %% [markdown]
# Now pair by pair. Choose a row: each line on the left is one stream, from the rung below to the rung; on the right are the differences.

# %% jupyter={"source_hidden": true}
from course.lesson import Choice

KEYS = list(parts["transformer"].series["rows"])


def draw_pairs(key, problem):
    row = parts[problem].series["rows"][key]
    low, high = (torch.tensor(row[f"values_{arm}"])[:64] for arm in ("below", "rung"))
    figure, panels = figures.new_figure(1, 2, width=8.2, height=3.1)
    colour = figures.style_of(row["rung"])["color"]
    panels[0].plot([0, 1], torch.stack([low, high]), color=colour, linewidth=0.9, alpha=0.6)
    panels[0].set_xticks([0, 1], [row["below"], row["rung"]])
    panels[0].set_xlim(-0.3, 1.3)
    figures.describe(panels[0], problem, "", stress.STRESSES[row["stress"]].outcome)
    panels[1].plot(range(len(low)), (high - low).sort().values, "o", color=colour, markersize=4)
    panels[1].axhspan(
        row["effect"] - row["effect_half"],
        row["effect"] + row["effect_half"],
        color=colour,
        alpha=0.25,
    )
    figures.expectation(panels[1], 0.0)
    figures.describe(panels[1], "rung − rung below, sorted; 95 %", "stream", "difference")
    return figure


lesson.explore(
    "pairs",
    draw_pairs,
    "find a row whose lines on the left overlap completely and whose differences are nearly all on"
    " one side of 0",
    steady=False,  # its labels grow
    key=Choice(KEYS, "clip, stale", "part, stress"),
    problem=Choice(list(parts), "transformer", "problem"),
)

# %% [markdown]
# ## How much is chance?
#
# Of eighteen 95 % intervals some would exclude 0 by luck. How many would, and how many do? And how far apart are two *identical* trainings? The transformer's `baseline` without stress against itself, on other streams, shows that noise floor.

# %% jupyter={"source_hidden": true}
from course.lab.statistics import student

rows = [row for found in parts.values() for row in found.series["rows"].values()]
outside = sum(abs(row["effect"]) > row["effect_half"] for row in rows)
strict = 0
for row in rows:
    streams = len(row["values_rung"])
    wider = student(0.05 / len(rows), streams) / student(0.05, streams)
    strict += abs(row["effect"]) > wider * row["effect_half"]
print(
    f"effects whose interval excludes 0: {outside} of {len(rows)}; by luck {0.05 * len(rows):.1f}"
)
print(f"still so at 95 % for all {len(rows)} together (Bonferroni): {strict}")

same = torch.tensor(parts["transformer"].series["rows"]["baseline, offset"]["control_values_rung"])
print("baseline less baseline, 8 streams and 8 others:", shown(*unpaired(same[:8], same[8:])))
costs = [
    f"{row['rung']} ({problem}, {row['control']:+.3f} ± {row['control_half']:.3f})"
    for problem, found in parts.items()
    for row in found.series["rows"].values()
    if row["control"] < -row["control_half"]
]
print("parts that cost without their stress:", "; ".join(dict.fromkeys(costs)))

# %% [markdown]
# Two identical trainings from one start, unpaired and with eight streams each, differ by .001 here, and the interval reaches to .006. A leaderboard of rungs whose gaps are smaller ranks streams, not rungs.
#
# ### Everybody wants a ranking
#
# Here is one, with its noise floor inside. A larger model (`small`) has seen demonstrations of two-digit sums until a third of its samples were right. From there the rungs train it without any stress, with one update per rollout and with eight (two epochs of four minibatches), each at its own best rate, eight models each. One row, `again`, is `reinforce` once more: the same weights and the same rate, other random streams.

# %% jupyter={"source_hidden": true}
lesson.ask("ranking")

# %%
whole = load("tinylm_ladder")
for updates, table in whole.series.items():
    print(f"{updates} update(s) per rollout: mean accuracy along the run, less reinforce's")
    for name, row in table.items():
        same = f" (and {', '.join(row['alike'])})" if row["alike"] else ""
        print(f"  {row['ahead']:+.3f} ± {row['ahead_half']:.3f}  {name}{same}")

# %% [markdown]
# Unstressed, nothing beats the lowest rung here, and every rung is behind it by more than `again`. With one update many rungs are one and the same training. With eight, `baseline` has no ratio and falls another .04 behind `surrogate`, which has one. Neighbours in this list are mostly not told apart: `clip` above `surrogate`, `baseline` above `group_mean` and `length_mean` above `grpo` were expected before the run, and none of the three holds.
#
# A ranking without stress ranks prices. What the parts are *for* stands in the picture above.
#
# ## Break it
#
# One of two runs is `group_std`. In the other, one part is sabotaged. Every log has curves that should show it: J, the entropy per token, the gradient's norm before it is cut, and silent groups.

# %% jupyter={"source_hidden": true}
from course.parts import GroupStd
from course.parts.scale import inverse_std


@dataclasses.dataclass(frozen=True)
class WrongAxis(GroupStd):
    """The bug: the std over the questions of the batch, for each place in the group, where the
    group's own is meant.
    """

    def __call__(self, advantage, returns, rollout):
        # [..., 1, G]
        over_questions = inverse_std(returns.transpose(-1, -2), self.ddof, self.eps).transpose(
            -1, -2
        )
        return advantage * over_questions.unsqueeze(-1)


broken = replace(ladder.group_std, scale=WrongAxis())
suspects = {"run A": train(broken, [1e-3], JUDGED, rollouts=40), "run B": plain}


def draw_suspects():
    figure, panels = figures.new_figure(1, 4, width=8.8, height=2.2)
    for ax, (what, title) in zip(
        panels,
        (
            ("J", "J"),
            ("entropy", "Entropy"),
            ("gradient_norm", "Gradient norm"),
            ("silent_groups", "Silent groups"),
        ),
        strict=True,
    ):
        for (name, log), colour in zip(suspects.items(), ("#444444", "#0f7f7f"), strict=True):
            mean, half = interval(log[what][:, 0])
            figures.band(ax, log.steps, mean, half, label=name, color=colour, linestyle="-")
        figures.describe(ax, title, "rollouts", "")
    panels[1].legend(frameon=False)
    return figure


lesson.picture(
    draw_suspects(),
    "J, entropy, gradient norm and silent groups of run A and run B",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-is-broken")

# %% [markdown]
# So look inside, at the advantages of one rollout: for every group that is not silent, the sum of A, and its standard deviation (population).

# %% jupyter={"source_hidden": true}
problem = LanguageModel(start, task, prompts=16, group=8)
rollout = problem.sample(lesson.noise(16, use=3, **double))
for name, estimator in (("run A", broken), ("run B", ladder.group_std)):
    advantage = estimator.freeze(rollout).advantage[..., 0]
    spread = advantage.std(-1, correction=0)
    loud = rollout.total_reward.amax(-1) > rollout.total_reward.amin(-1)
    print(
        f"{name}: |sum of A in a group| at most {advantage.sum(-1).abs()[loud].max():.2f}; std of A"
        f" in a group from {spread[loud].min():.2f} to {spread[loud].max():.2f}"
    )
for what in ("J", "entropy", "gradient_norm"):
    first, second = (log[what][:, 0].mean(0) for log in suspects.values())
    print(f"{what:14} mean along the run, A − B, paired:", shown(*paired_interval(first, second)))

# %% [markdown]
# Run B's groups all have Σ A = 0 and a std of 1. Run A's do not: it divides each *place* in the group by the scatter over questions. Two lines on one rollout, a sum and a std, find it at once. The learning curves do not: J and entropy differ by less than .001. Only the gradient's norm separates the two, and only when it is paired. That is why estimators are tested on small tensors, and not by their curves.


# %% [markdown]
# ### Do it: the clip fraction (optional)
#
# Two more curves are measured at the last update on a rollout. With one update they are 0 for everybody, so the figure left them out:
#
# $$\mathrm{KL}_{\text{old}}=\frac{1}{\sum_i|o_i|}\sum_{i,t}\sum_v\pi_{\text{old}}(v\mid\cdot)\log\frac{\pi_{\text{old}}(v\mid\cdot)}{\pi(v\mid\cdot)} \tag{9.6}$$
#
# `eq:mean-token-kl` · the quantity of PPO's penalty, Schulman et al. 2017, eq. 8; where the distributions are not kept, the mean of $k_3$
#
# $$\text{clip fraction}=\frac{\#\{(i,t):\;A_{i,t}>0,\ \rho_{i,t}>1+\varepsilon\;\;\text{or}\;\;A_{i,t}<0,\ \rho_{i,t}<1-\varepsilon\}}{\sum_i|o_i|} \tag{9.7}$$
#
# `eq:flat-token-share` · lesson 04: the tokens whose slope in ρ is 0

# %%
exercise_clip = lesson.exercise("clip-fraction")

# %%
def my_clip_fraction(ratio, advantage, mask, epsilon):
    """ratio, advantage [n, T]; mask [n, T] bool, True where the policy chose the token; epsilon a
    number → a number.
    """
    return NotImplemented


exercise_clip.check(my_clip_fraction)

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# **A part is an insurance against one difficulty.** Under its stress every part of the ladder has an effect whose interval excludes 0, on bandit and transformer. Without it there is a price, or an effect within .013 of 0. Ratio and clip change places between the two problems, and where training starts from random weights, GRPO learns with its KL and mostly not without. To find out about a part of yours: one part, one stress, the same seeds for both arms, each at its best rate, and the interval of the differences.
#
# ## Next
#
# The course ends here for now. Every reward in it was right; a reward that is designed badly, or learned from preferences and open to being fooled, is another story. Take a part of your own, and give it a stress and a control: `course ladder --rungs mine.py:mine` trains it beside the rung below.
#
# ## The loop's fine print (optional)
#
# The learning rate rises for $w$ of $n$ updates and then falls linearly:
#
# $$\text{lr}_k=\text{lr}\cdot\begin{cases}(k+1)/w&k<w\\1-\frac{k-w}{n-w}&k\ge w\end{cases} \tag{9.8}$$
#
# `eq:learning-rate-schedule` · a linear warm-up of $w$ of $n$ updates and a linear decay, usual since Vaswani et al. 2017 (its decay is $1/\sqrt k$)
#
# The length of the gradient is cut,
#
# $$g\leftarrow g\cdot\min\!\big(1,\;c/\lVert g\rVert\big) \tag{9.9}$$
#
# `eq:gradient-norm-clip` · Pascanu et al. 2013, algorithm 1; here $c=1$, per run
#
# and Adam divides by the root of the mean square,
#
# $$\theta\leftarrow\theta-\text{lr}\;\hat m/(\sqrt{\hat v}+\epsilon),\qquad \hat m,\hat v:\ \text{bias-corrected running means of } g,\;g^2 \tag{9.10}$$
#
# `eq:adam-step` · Kingma & Ba 2015, algorithm 1
#
# Multiply every $g$ by 10, and $\hat m$ and $\sqrt{\hat v}$ both grow by 10. On the bandit, which uses plain gradient ascent, a factor *is* a learning rate: one more reason to give each arm its own best.

# %%
from course.train.optim import SGD, Closures


def walk(optimizer, factor):
    place = torch.zeros(2, **double)
    closures = Closures([place], loss=None, log_dist=None, mean_kl=None, old_log_dist=None)
    for gradient in ([1.0, -0.2], [0.5, 0.1], [0.8, -0.3], [0.1, 0.4], [-0.2, 0.2]):
        optimizer.step([factor * torch.tensor(gradient, **double)], closures)
    return [round(each, 4) for each in place.tolist()]


for optimizer in (SGD, Adam):
    print(
        f"{optimizer.__name__:5} gradients: {walk(optimizer(0.1), 1)}   ten times the gradients:"
        f" {walk(optimizer(0.1), 10)}"
    )
