# %% [markdown]
# # 09 · The ladder on a language model
#
# You have all eight rungs. On bandits each of them made its point. Now: which part matters when a transformer is trained, where, and by how much? After this lesson you can
#
# * run a comparison that decides: one replaced part, one stress, both arms paired, each at its own best learning rate;
# * compute the interval of a paired difference, and say what an undecided one allows;
# * say for every part of the ladder what it is for, what it brings there, and within which bound it brings nothing elsewhere;
# * read the curves of a training log, and find a bug that they hardly show.
#
# You need lessons 06 to 08: the group, the KL, and a prompt as a bandit. A first read takes about 55 minutes. Running all its cells takes {{time}}.

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
# The command `python -m tinylm train` takes a small transformer, shows it some demonstrations of two-digit sums, and then trains it with GRPO. It was started with fresh seeds, nothing tuned in between. Here is what the file of those runs says. (Every file in `figures/` was written by one command of the course. A lesson reads it and prints its numbers.)


# %%
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
figure, [ax] = figures.new_figure(width=6.4, height=3.3)
for seed in curves:
    ax.plot(rollouts, seed, color=figures.style_of("grpo")["color"], linewidth=0.9, alpha=0.7)
figures.expectation(ax, goal, label=f"{goal:.0%}")
figures.describe(ax, "GRPO on two-digit sums", "rollouts", "held-out, greedy accuracy")
lesson.picture(figure, "accuracy on held-out questions climbs above 95 % for the seeds shown")

# %% [markdown]
# So GRPO works. But *which of its parts* made it work? All seven were switched on. Would plain REINFORCE have done as well? A curve that goes up cannot say.
#
# ## How to ask
#
# The ladder tells us how. Each rung differs from the one below in **one part**, and each part was invented against one trouble. So train a rung and the rung below in that trouble, and again without it:
#
# * **One part, one stress.** The *stress* is the trouble the part is for, such as a constant added to every reward. The *control* is the same training without it.
# * **Paired.** Both arms start from the same weights and draw from the same random streams, seed by seed. What is compared is the difference at each seed.
# * **Each arm at its own best learning rate**, chosen on other seeds than those that are judged. Beside it stands the harder question: what if I take the part away and change nothing else, the rate included?
# * **Exact.** With one right answer per question nobody has to sample to know the expected reward. It is the probability of that one completion:
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
from course.learner import Learner
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
# The sixteen differ a lot: some learned from their demonstrations far more than others. Remember that.
#
# Now the training itself. The stress is one line: 1 more for every answer, right or wrong. It changes nothing about which answer is best. Every arm gets the same questions, 60 rollouts of 16 questions × 8 completions, and Adam with a learning rate that rises first and then falls in a line:
#
# $$\text{lr}_k=\text{lr}\cdot\begin{cases}(k+1)/w&k<w\\1-\frac{k-w}{n-w}&k\ge w\end{cases} \tag{9.4}$$
#
# `eq:learning-rate-schedule` · a linear warm-up of $w$ of $n$ updates and a linear decay, usual since Vaswani et al. 2017 (its decay is $1/\sqrt k$)


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
# `numbers` gives each seed its own random stream, the same one at every rate and for every rung. That is all that pairing takes.

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


# %%
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
# The same twelve pairs. Unpaired, the scatter is that of the starts, and the comparison says nothing. Paired, what a start has in common for both arms cancels. A report that gives each method a mean ± a band over seeds has thrown this away.
#
# And the control?

# %% jupyter={"source_hidden": true}
lesson.ask("control")

# %%
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
# So the first part of the ladder is an insurance. It makes the constant invisible; and for these twelve models, where there is no constant, it has a price. Keep both halves in mind for what follows.
#
# ## The main experiment
#
# The same was done for every part of the ladder, on two problems. The **transformer** is a nano one as above: one warm start, 16 random streams. The **contextual bandit** has nine questions from hard to easy, ten answers each, a linear policy whose features the questions share, and 256 streams. `course ladder` runs both; the next cell reads what it wrote. Before each row is revealed, say what you expect.

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
# Your own experiment again, with one start and 16 streams. On the bandit a prediction stands beside the effect. It takes for every update its exact expectation and its exact covariance (lesson 02), draws a normal number with these two, and trains with it: no sampled reward is left. If it lands on the measured effect, the variance is the whole of what a baseline changes.
#
# Effects are means along the run of the success probability, so +.05 means: five more of a hundred answers right, on average over the training. "Undecided" comes with a bound: an effect larger than that lies outside of the interval.
#
# The price you saw without the constant is not seen here: the control's interval holds 0 on both problems. Your twelve models and this one are other policies at other rates, and a price that small depends on them. A paired interval over streams speaks for the one start that all streams share; one over starts speaks for more.
#
# ### A constant of each question's own
#
# Some questions pay more than others whatever one answers: a reward model that likes a topic, a unit test that always passes. The stress adds to all answers of a question one number, drawn once from $N(0, 2^2)$. `clip` subtracts the batch's mean, `group_mean` each group's own.

# %% jupyter={"source_hidden": true}
lesson.ask("constants")

# %%
reveal("group_mean, constants")

# %% [markdown]
# Insurance again, and again the bandit's effect is the one that expectation and covariance predict: a gain under the stress, and without it nothing, or a small loss. Compare the second line with the first: take the part away and keep the learning rate, and more is lost than the part's effect. A rung without its part can partly save itself with a smaller rate. Whoever removes the part and changes nothing else cannot. Which of the two numbers you want depends on your question, so a report should say which it gives.
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
# All four effects are above 0, and their sizes are in opposite order on the two problems. With the rate kept it is the ratio that is missed most on both: without it, the rate that suits the ratio is far too large. The control is 0, up to float32's rounding where it is not exact: a clip threshold does nothing with **one optimiser step** per rollout on fresh samples. With minibatches, an asynchronous sampler or a second engine that samples, the samples are stale at one epoch, too.
#
# ### Questions of different difficulty
#
# The std divides each group's advantages by their scatter. Lesson 06: in expectation a question with success $p$ is weighed with $w_G(p)$, most where nearly all fail or nearly all succeed. So the stress is a set of questions of very different difficulty, and two outcomes are looked at: the success on the hardest third and on the easiest.
#
# But a division by at most ½ also makes all advantages larger. Is that not simply a larger step? Two things in the transformer's loop undo a constant factor. The length of the gradient is cut,
#
# $$g\leftarrow g\cdot\min\!\big(1,\;c/\lVert g\rVert\big) \tag{9.5}$$
#
# `eq:gradient-norm-clip` · Pascanu et al. 2013, algorithm 1; here $c=1$, per run
#
# and Adam divides by the root of the mean square,
#
# $$\theta\leftarrow\theta-\text{lr}\;\hat m/(\sqrt{\hat v}+\epsilon),\qquad \hat m,\hat v:\ \text{bias-corrected running means of } g,\;g^2 \tag{9.6}$$
#
# `eq:adam-step` · Kingma & Ba 2015, algorithm 1
#
# Multiply every $g$ by 10, and $\hat m$ and $\sqrt{\hat v}$ both grow by 10. On the bandit, plain gradient ascent, a factor *is* a learning rate: one more reason to give each arm its own best.

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

# %% jupyter={"source_hidden": true}
lesson.ask("std")

# %%
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
# The hard third gains on both, and more than the easy third. The easy third itself loses on the transformer and gains a little on the bandit, where the expected path, without noise, predicts the same: it is no luck. (The course had first claimed that the easy third loses on both. That did not hold, and the claim became "gains less than the hard third". A claim that was mended after looking is worth less than one that was not, so you should know.)
#
# ### Answers of two lengths
#
# $1/|o|$ makes every token of a long answer weigh less. For a right answer that is a smaller reward per token, for a wrong one a smaller **penalty** per token. The stress: questions that can be answered short or long with the same pay. The outcome is the mean length of *wrong* answers, in shares of the limit.

# %% jupyter={"source_hidden": true}
lesson.ask("lengths")

# %%
reveal("length_mean, lengths")

# %% [markdown]
# Longer on both, and far more on the bandit, where the expected path, without noise, stands beside it. (That mean length is no success: this row shows a side effect.) Where all answers have one length, the part leaves success as it was, within what is printed. So $1/|o|$ is no cure. It is a choice whose side effect you now know the sign of.
#
# ### A skill that is no longer rewarded
#
# The last part: the KL to the policy as it was at the start, with β = 0.1 on the bandit and 1 on the transformer. The stress: two skills are there at the start, and only one of them is still rewarded (the bandit's even questions; on the transformer, sums are, differences are not). The outcome is the success at the *other*. In the control both are rewarded, with the same β, and the outcome is the success at both.

# %% jupyter={"source_hidden": true}
lesson.ask("unrewarded")

# %%
reveal("grpo, unrewarded")

# %% [markdown]
# More of the skill is left on both, and the controls show the price: where nothing has to be kept, the same KL costs success on both. It is no free insurance. Is that all that it is good for? TRL's default leaves it out.
#
# ## From random weights
#
# Until now a warm start had shown the model what an answer looks like. Take it away: random weights, and only a reward, 1 for the exact answer and up to ½ for right digits in it. This is the KL's second stress, with the rung's own β of .04. The nano transformer gets one-digit sums. The bandit has one question with three answers: one pays 0, one ½, and a third, which has a probability of 1 in 1,000 at the start, 1½.

# %% jupyter={"source_hidden": true}
lesson.ask("zero")

# %%
reveal("grpo, random")

# %% [markdown]
# The same, larger: a `mini` transformer on two-digit sums, many more rollouts, and other arms beside the two. What counts is the greedy accuracy on held-out questions.

# %%
zero = load("tinylm_zero")
arms = zero.series["arms"]
print(f"{zero.settings['rollouts']} rollouts from random weights, {zero.settings['seeds']} models")
print(f"{'arm, at the end':32}held-out     entropy  cut  silent  held-out, model by model")
for name, arm in arms.items():
    last = {what: zero.array("arms", name, what)[-1].mean() for what in ("entropy", "truncated")}
    silent = zero.array("arms", name, "silent_groups")[-1].mean()
    print(
        f"{arm['label']:32}{arm['final_mean']:.2f} ± {arm['final_half']:.2f}"
        f"{last['entropy']:9.2f}{last['truncated']:6.2f}{silent:6.2f}    "
        + " ".join(f"{each:.2f}" for each in arm["final"])
    )
print("\ncut: answers cut at the limit. Paired differences of the final accuracy:")
for pair, found in zero.series["differences"].items():
    print(f"  {pair:28}", shown(found["mean"], found["half"]))

# %% jupyter={"source_hidden": true}
figure, panels = figures.new_figure(1, 2, width=8.2, height=3.0)
for ax, what, title in zip(
    panels, ("accuracy", "entropy"), ("Held-out accuracy", "Entropy, nats per token"), strict=True
):
    for name in ("grpo", "length_mean"):
        steps, models = (zero.array("arms", name, each) for each in ("rollouts", what))
        for model in models.T:
            ax.plot(steps, model, color=figures.style_of(name)["color"], linewidth=0.8, alpha=0.5)
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
# Read the row of `length_mean`, GRPO without its KL: three of four models end with every answer cut at the limit and silent groups, and in the figure an entropy that falls far sooner. Half a reward for digits can be had without the end token. Once that token has died out, no sample shows that it was worth another half. (One model found it in time. So the interval against this rung is wide: at 95 % it lies above 0, at the 99 % that the course asks of claims on four models it does not.)
#
# Which part of GRPO does it? Replace the KL by $k_2$, the reverse KL, or leave out the std and $1/|o|$: the difference from GRPO is small, and its interval holds 0. So what is decided is that *an* anchor counts. If its form or the std count at the end at all, then for less than the bounds printed above. The anchor alone does not do it either: under REINFORCE, without a baseline, the same KL comes not nearly as far in the same time. An entropy bonus in its place gets all four models off the ground and none as far; credit for the end token, without a KL, some. And the exact reward alone teaches nothing, for it never fires.
#
# A bandit explains it, with three arms: one that pays ½ and is found soon, a rare one that pays 1½ (its digits and the end), and one that pays nothing. How many of the sampled runs found the rare one?

# %%
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
# In the loss, $k_3$ has the gradient of KL(π_ref‖π) (lesson 07): it pushes the logit of arm $a$ by $\beta(\pi_{ref}(a)-\pi(a))$, and that stays when $\pi(a)$ goes to 0. The push of $k_2$ and of an entropy bonus has a factor $\pi(a)$, which dies with the arm. Their intervals and that of no anchor overlap. (On the transformer $k_2$ did as well as $k_3$, and the bonus better than nothing: three arms do not explain everything.)
#
# <!-- answers: 26 -->
# ## A term that nobody asked for
#
# **Is there an entropy bonus in my loss?** Some trainers had one on by default (the public question is verl#514), and two runs of one name then differed by a term that appeared in neither report's equations:
#
# $$L\leftarrow L+c_{\mathcal H}\sum_{i,t}w_{i,t}\,\mathcal H_{i,t},\qquad \mathcal H_{i,t}=-\sum_v\pi(v\mid\cdot)\log\pi(v\mid\cdot) \tag{9.7}$$
#
# `eq:entropy-bonus` · Williams & Peng 1991; Schulman et al. 2017, eq. 9 ($L$ is maximised)
#
# Here it is a field of the estimator, 0 unless you say otherwise, and an estimator shows what it has:

# %%
from course.estimator import replace

replace(ladder.group_std, entropy_coef=0.1)

# %% [markdown]
# What you see of it is the entropy of the log, the mean over chosen tokens. Below, the twelve judged starts, with and without the bonus:
#
# $$\mathcal H=\frac{1}{\sum_i|o_i|}\sum_{i,t}\mathcal H_{i,t} \tag{9.8}$$
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
# The two runs print the same name in a config that does not show the coefficient. If your entropy does not fall where everybody else's does, look for this term before you look for a discovery.
#
# ## The table
#
# All rows, both problems, effect and control; then the picture of the same numbers. Diamonds are predictions: for the two baselines from the expectation and the covariance of an update, for the std and $1/|o|$ from the expectation alone.

# %%
print(stress.CELLS + "\n")
print(stress.table(parts))

# %% jupyter={"source_hidden": true}
lesson.picture(
    stress.forest(parts),
    "a forest plot, one row per part and stress, for the bandit and the transformer: nearly all"
    " effects lie to the right of the zero line, nearly all controls on it",
)

# %% [markdown]
# And pair by pair. Choose a row: each line on the left is one stream, from the rung below to the rung; on the right are the differences.

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
    key=Choice(KEYS, "clip, stale", "part, stress"),
    problem=Choice(list(parts), "transformer", "problem"),
)

# %% [markdown]
# ## How much is chance?
#
# Eighteen intervals of 95 %, so some would exclude 0 by luck. How many would, and how many do? And the noise floor: the same arm, the transformer's `baseline` without stress, against itself on other streams.

# %%
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
# The interval of `baseline` less itself is what two *identical* unpaired trainings show, from one and the same start. A leaderboard of rungs whose gaps are smaller ranks streams, not rungs.
#
# ## Break it
#
# One of two runs is `group_std`. In the other one part was sabotaged. Every log has curves that should show it: J, the entropy (9.8), the gradient's norm before (9.5), silent groups, and two more, measured at the last update on a rollout. Here, with one update, these two are 0 for everybody, so they are not drawn:
#
# $$\mathrm{KL}_{\text{old}}=\frac{1}{\sum_i|o_i|}\sum_{i,t}\sum_v\pi_{\text{old}}(v\mid\cdot)\log\frac{\pi_{\text{old}}(v\mid\cdot)}{\pi(v\mid\cdot)} \tag{9.9}$$
#
# `eq:mean-token-kl` · the quantity of PPO's penalty, Schulman et al. 2017, eq. 8; where the distributions are not kept, the mean of $k_3$
#
# $$\text{clip fraction}=\frac{\#\{(i,t):\;A_{i,t}>0,\ \rho_{i,t}>1+\varepsilon\;\;\text{or}\;\;A_{i,t}<0,\ \rho_{i,t}<1-\varepsilon\}}{\sum_i|o_i|} \tag{9.10}$$
#
# `eq:flat-token-share` · lesson 04: the tokens whose slope in ρ is 0

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
    figure, panels = figures.new_figure(1, 4, width=9.4, height=2.6)
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

# %%
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
# Run B's groups all have Σ A = 0 and a std of 1. Run A's have neither: it divides each *place* in the group by the scatter over questions. Two lines on one rollout, a sum and a std, find it at once. Learning does not: read the bounds on J and entropy. Only the gradient's norm separates, and only when it is paired. That is why estimators are tested on small tensors, and not by their curves.


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
# **A part is an insurance against one trouble.** Under its stress every part of the ladder has an effect whose interval excludes 0, on bandit and transformer. Without it there is a bound close to 0, and sometimes a price. Ratio and clip change places between the two problems, and where training starts from random weights, GRPO learns with its KL and mostly not without. To find out about yours: one part, one stress, the same seeds for both arms, each at its best rate, and the interval of the differences.
#
# ## Next
#
# Every curve here went after a reward that was right. What if it is not: designed badly, or learned from preferences and open to be fooled? In the meantime, try it out on your own part: `course ladder --help` says how.
