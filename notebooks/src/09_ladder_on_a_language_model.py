# %% [markdown]
# # 09 · The ladder on a language model
#
# You have all eight rungs. Now they race on a transformer. After this lesson you can
#
# * set up a comparison that means something: equal samples, a sweep of learning rates, intervals over seeds;
# * read the six curves of every training log, and name the ones that people misread;
# * say when a "winner" is luck, and show it;
# * find a bug that no curve shows.
#
# You need lessons 06 to 08: the group, the KL, and a prompt as a bandit.
#
# Running time: {{time}}. Most of it is one cell, the race.

# %%
import torch

import course
from course import ladder
from course.lab import figures

lesson = course.setup("09")
ladder.grpo

# %% [markdown]
# ## The task, and what is held equal
#
# One-digit sums: `7+8=` is to be answered by `15` and an end token. Six small transformers, each with random weights of its own, first see demonstrations until they are right about
# one time in three. Each of the six is a **seed**. They are a run axis: one program trains them all, and they never mix.

# %%
from course.learner import Learner
from course.train.optim import Adam, LinearDecay
from tinylm import tasks
from tinylm.evaluate import accuracy, right_to_go
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import LanguageModel
from tinylm.warm_start import LIKELIHOOD, Demonstrations

SEEDS, RATES = 6, (8e-4, 2.4e-3, 7.2e-3)
double = {"dtype": torch.float64}  # so that your numbers are these
task = tasks.make(tasks.TaskSettings(digits=1))
shape = ModelSettings(width=24, layers=1, hidden=72, context=task.context)
start = Transformer(shape, (SEEDS,), **double)
supervised = Learner(
    Demonstrations(start, task, batch=128),
    LIKELIHOOD,
    Adam(3e-3),
    lesson.noise(SEEDS, use=1, **double),
    max_grad_norm=1.0,
)
supervised.train(110)
print(f"{start.size:,} weights each; {len(task.train)} questions to train on")

# %% [markdown]
# How good is each? With one right answer per question that number needs no sampling. It is the probability of that one completion:
#
# $$J(\theta)=\frac1Q\sum_{q}\pi_\theta(o^*_q\mid q)=\frac1Q\sum_q\prod_{t}\pi_\theta(o^*_{q,t}\mid q,o^*_{q,<t}) \tag{9.1}$$
#
# `eq:exact-success-rate` · the expected reward of exact match; the bridge of lesson 08
#
# Beside it stands the number that papers print, greedy accuracy: take the likeliest token at every step, and count.

# %%
def exact(model):
    """[...] the expected reward J over all training questions, exactly."""
    return right_to_go(model, task, task.train)[..., 0].mean(-1)


def greedy(model):
    """[...] the share of them that the greedy answer gets right."""
    return accuracy(model, task, questions=task.train).mean(-1)


before = exact(start)
print("J       ", [f"{each:.2f}" for each in before.tolist()])
print("greedy  ", [f"{each:.2f}" for each in greedy(start).tolist()])

# %% [markdown]
# Every estimator gets the same: the same six starts, 20 rollouts of 12 questions × 8 completions (1,920 completions), four updates on each rollout, gradients clipped in length, and
# Adam with a learning rate that rises over the first rollout and then falls to 0 in a line:
#
# $$\text{lr}_k=\text{lr}\cdot\begin{cases}(k+1)/w&k<w\\1-\frac{k-w}{n-w}&k\ge w\end{cases} \tag{9.2}$$
#
# `eq:learning-rate-schedule` · a linear warm-up of $w$ of $n$ updates and a linear decay, usual since Vaswani et al. 2017 (its decay is $1/\sqrt k$)
#
# Each trains at **three** learning rates, which are a second run axis. This is the whole of it:

# %%
class Watched(LanguageModel):
    """The same problem; it logs both measures of success, too."""

    @torch.no_grad()
    def metrics(self):
        return {"J": exact(self.model), "greedy": greedy(self.model)}


def climb(estimator, epochs=4, rates=RATES, rollouts=20):
    """Train from the common start; a history whose metrics are [logs, rates, seeds]."""
    runs = (len(rates), SEEDS)
    model = Transformer(shape, runs, **double)
    with torch.no_grad():
        for name, weight in start.weights.items():
            model.weights[name].copy_(weight.expand_as(model.weights[name]))
    problem = Watched.of(estimator, model, task, prompts=12, group=8)
    lr = torch.tensor(rates, **double).unsqueeze(-1).expand(runs)
    optimizer = Adam(lr, LinearDecay(rollouts * epochs, warmup=epochs), betas=(0.9, 0.98))
    noise = lesson.noise(*runs, use=2, numbers=[*range(SEEDS)] * len(rates), **double)
    return Learner(
        problem, estimator, optimizer, noise, epochs=epochs, max_grad_norm=1.0, log_every=4
    ).train(rollouts)


# %% [markdown]
# One detail in it: `numbers` says which random stream each run gets, and a seed gets the same one at every learning rate and for every rung. Its questions are then the same everywhere. What differs between two
# rungs at one seed is the rung, and not the luck of the questions.

# %% jupyter={"source_hidden": true}
lesson.ask(
    "one-update",
    "First with ONE update per rollout in place of four. `baseline` (score function), `surrogate`"
    " (ρA) and `clip` all train at the middle rate. How do their curves of J compare?",
    {
        "clip is the steadiest": (
            "At the first update after sampling π = π_old, every ρ is 1, and nothing is clipped."
            " The clip has nothing to do."
        ),
        "all three are one curve": (
            "With ρ = 1 the three gradients are the same vector (lesson 03), so the three trainings"
            " are the same training."
        ),
        "close, but different": (
            "They would be, if rounding or the ratio differed. In exact arithmetic they are equal;"
            " in float64 they agree to rounding."
        ),
    },
    answer="all three are one curve",
)

# %%
once = {
    name: climb(ladder.get(name).estimator, epochs=1, rates=RATES[1:2])
    for name in ("baseline", "surrogate", "clip")
}
for name, history in once.items():
    gap = (history["J"] - once["baseline"]["J"]).abs().max()
    print(
        f"{name:10} J at the end {history['J'][-1].mean():.3f}; equal to baseline's curve to 1e-9:"
        f" {bool(gap < 1e-9)}; clip fraction {history['clip_fraction'].max():g}"
    )

# %% [markdown]
# So three rungs of the ladder cannot be compared with one update per rollout. Their difference *is* what happens from the second update on. A paper that reports clip thresholds and one update per rollout reports
# a setting that does nothing.
#
# ## The race
#
# Eight rungs, four updates per rollout, three rates, six seeds: 144 trainings.

# %% jupyter={"source_hidden": true}
lesson.ask(
    "who-suffers",
    "Four updates per rollout, and the largest learning rate. Which rung loses most?",
    {
        "reinforce": (
            "It has no baseline, so wrong answers weigh 0: it never pushes anything down, and"
            " raising right answers again is mild even when they are stale."
        ),
        "baseline": (
            "Two answers in three are wrong and get a negative advantage, and log π has no floor:"
            " the score function goes on pushing wrong answers down with undiminished force, update"
            " after update, on samples of the past."
        ),
        "clip": (
            "The clip switches off just those tokens that have moved far enough the way their"
            " advantage wants. That is what it is for."
        ),
        "grpo": "It has the clip and an anchor, and so two reasons to stay near.",
    },
    answer="baseline",
)

# %%
RUNGS = [rung.name for rung in ladder.select()]
race = {name: climb(ladder.get(name).estimator) for name in RUNGS}
gain = {name: history["J"] - before for name, history in race.items()}  # [logs, rates, seeds]

print("gain in J at the end, mean of 6 seeds")
print(f"{'rung':12}" + "".join(f"  lr = {rate:<8g}" for rate in RATES))
for name in RUNGS:
    print(f"{name:12}" + "".join(f"  {each:<+13.3f}" for each in gain[name][-1].mean(-1).tolist()))

# %% [markdown]
# ## Learning rates first
#
# Read the table by columns, and then by rows. Each column is a comparison that someone could publish:

# %%
for place, rate in enumerate(RATES):
    order = sorted(RUNGS, key=lambda name: -float(gain[name][-1, place].mean()))
    print(f"lr = {rate:g}: " + " > ".join(order))
best = {name: int(gain[name][-1].mean(-1).argmax()) for name in RUNGS}
print("best rate of each:", {name: f"{RATES[place]:g}" for name, place in best.items()})

# %% [markdown]
# Three columns, three orders. At the smallest rate plain REINFORCE is ahead of everything that was built on it; at the middle one it is fifth and GRPO is first. No column is the truth about the rungs: a comparison at one learning rate compares how well that rate happens to suit each of them. So each gets its own best rate from now on. Two warnings:
#
# * Where the best rate is the first or the last of the sweep, the sweep was too short for that rung: its best may lie outside. A real one goes on until it turns.
# * The choice is made on the same numbers that are then shown. That flatters everyone; here everyone has had three tries.
#
# Why is REINFORCE so good here, and `baseline`, one part further, the worst of all? Rewards are 0 or 1, and without a baseline wrong answers weigh 0: REINFORCE imitates its own right answers, and that bears stale samples. `baseline` pushes wrong
# answers down, too, and log π has no floor. The ratio makes that milder, the clip more so: read the middle column downwards.
#
# And the std? `group_std` divides each advantage by a std of at most ½, so on the same samples its gradient is about twice as long as `group_mean`'s, or longer. Does that act like twice the learning rate?

# %%
for name in ("group_mean", "group_std"):
    norm = race[name]["gradient_norm"][:, 0].mean()
    print(f"{name:11} gradient norm, mean of the training at lr = {RATES[0]:g}: {norm:.2f}")

# %% [markdown]
# But two things in the loop undo a constant factor. The length of the gradient is cut,
#
# $$g\leftarrow g\cdot\min\!\big(1,\;c/\lVert g\rVert\big) \tag{9.3}$$
#
# `eq:gradient-norm-clip` · Pascanu et al. 2013, algorithm 1; here $c=1$, per run
#
# and Adam divides by the root of the mean square,
#
# $$\theta\leftarrow\theta-\text{lr}\;\hat m/(\sqrt{\hat v}+\epsilon),\qquad \hat m,\hat v:\ \text{bias-corrected running means of } g,\;g^2 \tag{9.4}$$
#
# `eq:adam-step` · Kingma & Ba 2015, algorithm 1
#
# Multiply every $g$ by 10, and $\hat m$ and $\sqrt{\hat v}$ both grow by 10. Below, five steps of Adam on two parameters, with gradients and with ten times the gradients:

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

# %% [markdown]
# Under Adam a constant factor is invisible (as long as ε is far below √v̂). What the std does *between* questions (it weighs hard and easy ones up, lesson 06) is not constant, and stays. Under SGD the same table would look different.
#
# ## Reading the curves
#
# Here are the learning curves, each rung at its best rate. The band is the 95 % interval of the mean over six seeds.

# %% jupyter={"source_hidden": true}
from course.lab.statistics import interval

logs = torch.tensor([0, *race["clip"].steps]) * 96  # completions


def with_start(values):
    """A curve of gains [logs, S] with its 0 before training."""
    return torch.cat([torch.zeros(1, values.shape[-1], **double), values])


def draw_race():
    figure, panels = figures.new_figure(1, 2, width=9.2, height=3.9, sharey=True)
    for ax, names in zip(panels, (RUNGS[:4], RUNGS[4:]), strict=True):
        for name in names:
            figures.band(ax, logs, *interval(with_start(gain[name][:, best[name]])), name)
        figures.expectation(ax, 0.0)
        ax.set_xticks([0, 1000, 2000])
    figures.describe(panels[0], "The lower four rungs", "completions", "J above the start's")
    figures.describe(panels[1], "The upper four", "completions", "")
    for ax in panels:
        figures.label_ends(ax)
    return figure


lesson.picture(
    draw_race(),
    "gain in J against completions for eight rungs at their best rates with overlapping intervals",
)

# %% [markdown]
# Everyone loses before it gains: the first updates, made on little evidence at nearly full speed, cost some of what supervision had taught. A comparison that stops there would rank the rungs by how slowly they start.
#
# And most of the bands overlap. Before you look for a winner, look at what else the log says. Some of these curves are misread every day.
#
# ### Reward
#
# The logged reward is the mean of 96 samples on questions drawn anew. Its own noise is about $\sqrt{J(1-J)/96}$, and then some for the choice of questions. The exact J next to it has none:

# %%
history, place = race["clip"], best["clip"]
print("rollout       ", [f"{step:5d}" for step in history.steps])
print("reward, seed 0", [f"{each:5.2f}" for each in history["reward"][:, place, 0].tolist()])
print("exact J       ", [f"{each:5.2f}" for each in history["J"][:, place, 0].tolist()])
print(
    f"noise of one reward at J = {before[0]:.2f}: at least"
    f" {(before[0] * (1 - before[0]) / 96).sqrt():.3f}"
)

# %% jupyter={"source_hidden": true}
lesson.ask(
    "greedy-or-sampled",
    "Training at the best rate has raised J, the chance that a **sampled** answer is right. What"
    " happened meanwhile to **greedy** accuracy on the same questions?",
    {
        "it rose by about as much": (
            "It would if both measured the same. J counts the probability of the right answer;"
            " greedy accuracy asks only whether it is the largest one."
        ),
        "it stayed, since greedy answers were right already": (
            "They were right for about two questions in three, so there was room in both"
            " directions."
        ),
        "it fell": (
            "Training pays for probability mass, not for rank. It sharpens what is likely already,"
            " on the questions it was asked, and can take the lead from an answer that was barely"
            " ahead."
        ),
    },
    answer="it fell",
)

# %%
print("          J before → after      greedy before → after   (mean of 6 seeds, best rate)")
for name in RUNGS:
    after = (race[name][what][-1, best[name]].mean() for what in ("J", "greedy"))
    print(
        f"{name:12}{before.mean():.3f} → {next(after):.3f}        {greedy(start).mean():.3f} →"
        f" {next(after):.3f}"
    )

# %% [markdown]
# If you had logged only greedy accuracy you would have called this training a failure, and if only the reward, a success. Both are true: J is what the objective asks for. With so few completions the policy mainly becomes *surer*. Entropy says so.
#
# ### Entropy, KL, clip fraction
#
# $$\mathcal H=\frac{1}{\sum_i|o_i|}\sum_{i,t}\Big[-\sum_v\pi(v\mid\cdot)\log\pi(v\mid\cdot)\Big] \tag{9.5}$$
#
# `eq:token-entropy` · Shannon 1948, §6; the mean over chosen tokens
#
# $$\mathrm{KL}_{\text{old}}=\frac{1}{\sum_i|o_i|}\sum_{i,t}\sum_v\pi_{\text{old}}(v\mid\cdot)\log\frac{\pi_{\text{old}}(v\mid\cdot)}{\pi(v\mid\cdot)} \tag{9.6}$$
#
# `eq:mean-token-kl` · the quantity of PPO's penalty, Schulman et al. 2017, eq. 8; where the distributions are not kept, the mean of $k_3$
#
# $$\text{clip fraction}=\frac{\#\{(i,t):\;A_{i,t}>0,\ \rho_{i,t}>1+\varepsilon\;\;\text{or}\;\;A_{i,t}<0,\ \rho_{i,t}<1-\varepsilon\}}{\sum_i|o_i|} \tag{9.7}$$
#
# `eq:flat-token-share` · lesson 04: the tokens whose slope in ρ is 0
#
# All three are measured **at the last of the four updates, before it is applied**. That place matters: at the first update KL and clip fraction are 0, always.

# %% jupyter={"source_hidden": true}
def draw_log():
    figure, panels = figures.new_figure(2, 3, width=9.6, height=5.4)
    shown = (
        ("entropy", "Entropy", "nats per token"),
        ("kl_old", "KL(π_old‖π), last update", "nats per token"),
        ("clip_fraction", "Clip fraction, last update", "share of tokens"),
        ("ratio_max", "Largest ρ, last update", "ρ"),
        ("gradient_norm", "Gradient norm before clipping", ""),
        ("silent_groups", "Silent groups", "share of groups"),
    )
    for ax, (what, title, unit) in zip(panels, shown, strict=True):
        for name in ("baseline", "surrogate", "clip", "grpo"):
            figures.band(ax, logs[1:], race[name][what][:, 2].mean(-1), None, name)
        figures.describe(ax, title, "completions", unit)
        ax.set_xticks([0, 1000, 2000])
    panels[3].set_yscale("log")
    panels[3].set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    panels[3].minorticks_off()
    panels[1].legend(frameon=False, fontsize=10, loc="upper right")
    return figure


lesson.picture(
    draw_log(),
    "entropy, KL, clip fraction, largest ratio, gradient norm and silent groups for four rungs at"
    " the largest rate",
)

# %% [markdown]
# The largest rate, where things go wrong. What to read:
#
# * **Clip fraction goes to 0 at the end** for everyone who has a clip. That is the learning rate (9.2) falling to 0, not convergence. For `baseline` and `surrogate` it is 0 by definition: they have no flat region.
# * **Entropy falls for everyone.** Falling entropy with a falling J is collapse; with a rising J it is learning. The curve alone cannot tell you.
# * **Largest ρ** goes far above 1 + ε = 1.2 with the clip, too. The clip takes a token's slope away; it does not hold the token (lesson 04).
# * **Silent groups rise** as the policy becomes sure, right or wrong. For a rung with the group's mean (here `grpo`) they say that the signal dries up, not that the task is solved.
# * **The gradient norm** falls steeply and, for some, rises again, while the learning rate only falls. For `grpo` silent groups add zeros to it. It warns of explosions; it does not measure progress.
# * **KL** is the price paid per rollout. Compare it between rungs before comparing rewards.

# %%
print("at the largest rate, end of training, mean of 6 seeds")
print("            gain in J   entropy   silent groups   largest ρ in the log")
for name in ("reinforce", "baseline", "surrogate", "clip", "grpo"):
    log = race[name]
    row = (
        gain[name][-1, 2].mean(),
        log["entropy"][-1, 2].mean(),
        log["silent_groups"][-1, 2].mean(),
        log["ratio_max"][:, 2].amax(),
    )
    print(f"{name:10} {row[0]:+9.3f} {row[1]:9.2f} {row[2]:12.2f} {row[3]:16.3g}")

# %% [markdown]
# Choose a rung, a learning rate and a curve. Thin lines are the six seeds.

# %% jupyter={"source_hidden": true}
from course.lesson import Choice

CURVES = {
    "gain in J": None,
    "greedy accuracy": "greedy",
    "reward": "reward",
    "entropy": "entropy",
    "KL(π_old‖π)": "kl_old",
    "clip fraction": "clip_fraction",
    "gradient norm": "gradient_norm",
    "silent groups": "silent_groups",
}


def draw_curve(rung, rate, curve):
    figure, [ax] = figures.new_figure(width=6.6, height=3.7)
    place, what = RATES.index(rate), CURVES[curve]
    values = gain[rung][:, place] if what is None else race[rung][what][:, place]
    for seed in values.T:
        ax.plot(
            logs[1:],
            seed,
            color=figures.style_of(rung)["color"],
            linewidth=0.8,
            alpha=0.5,
            label="_seed",
        )
    mean, half = interval(values)
    figures.band(ax, logs[1:], mean, half, rung)
    if what is None:
        figures.expectation(ax, 0.0)
    figures.describe(ax, f"{rung} at lr = {rate:g}", "completions", curve)
    return figure


lesson.explore(
    "curves",
    draw_curve,
    "take baseline at the largest rate and go through the curves; then clip; watch how far single"
    " seeds are from the mean",
    rung=Choice(RUNGS, "baseline", "rung"),
    rate=Choice(RATES, RATES[2], "learning rate"),
    curve=Choice(tuple(CURVES), "gain in J", "curve"),
)

# %% [markdown]
# ## Your turn: the clip fraction
#
# The commonest wrong version counts every ρ outside of 1 ± ε.

# %% jupyter={"source_hidden": true}
def test_clip_fraction(attempt):
    ratio = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.5]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    for mask in (
        torch.ones(2, 3, dtype=torch.bool),
        torch.tensor([[True, True, True], [True, False, False]]),
    ):
        for epsilon in (0.2, 0.6):
            leaf = ratio.clone().requires_grad_()
            term = torch.minimum(leaf * advantage, leaf.clamp(1 - epsilon, 1 + epsilon) * advantage)
            slope = torch.autograd.grad(term.sum(), leaf)[0]
            exact_share = float(((slope == 0) & mask).sum() / mask.sum())
            found = float(attempt(ratio, advantage, mask, epsilon))
            if abs(found - exact_share) > 1e-9:
                return (
                    f"for ρ = {ratio.tolist()}, A = {advantage.tolist()}, mask = {mask.tolist()}, ε"
                    f" = {epsilon} it gives {found:.3g}; the share of chosen tokens whose slope is"
                    f" 0 is {exact_share:.3g}"
                )
    return None


def clip_fraction_solution(ratio, advantage, mask, epsilon):
    flat = ((advantage > 0) & (ratio > 1 + epsilon)) | ((advantage < 0) & (ratio < 1 - epsilon))
    return (flat & mask).sum() / mask.sum()


exercise_clip = lesson.exercise(
    "clip-fraction",
    "Return the share of chosen tokens whose clipped objective is flat in ρ.",
    test=test_clip_fraction,
    solution=clip_fraction_solution,
    wrong=[
        lambda ratio, advantage, mask, epsilon: (
            (((ratio - 1).abs() > epsilon) & mask).sum() / mask.sum()
        ),
        lambda ratio, advantage, mask, epsilon: clip_fraction_solution(
            ratio, advantage, torch.ones_like(mask), epsilon
        ),
        lambda ratio, advantage, mask, epsilon: clip_fraction_solution(
            ratio, -advantage, mask, epsilon
        ),
    ],
    hints=[
        "Which side is flat depends on the sign of A.",
        (
            "A > 0 is flat above 1 + ε, A < 0 is flat below 1 − ε; the other two corners keep their"
            " slope."
        ),
        (
            "flat = ((A > 0) & (ρ > 1 + ε)) | ((A < 0) & (ρ < 1 − ε)); then (flat & mask).sum() /"
            " mask.sum()."
        ),
    ],
)


# %%
def my_clip_fraction(ratio, advantage, mask, epsilon):
    """ratio, advantage [n, T]; mask [n, T] bool, True where the policy chose the token; epsilon a
    number → a number.
    """
    return NotImplemented


exercise_clip.check(my_clip_fraction)

# %% [markdown]
# ## Who won?
#
# A mean over $n$ seeds has a standard error,
#
# $$\text{se}=\frac{1}{\sqrt n}\sqrt{\frac{1}{n-1}\sum_s(x_s-\bar x)^2},\qquad \text{95 \% interval: } \bar x\pm t_{n-1}\,\text{se} \tag{9.8}$$
#
# `eq:seed-standard-error` · Student 1908
#
# with $t_{n-1}$ = 4.3 for three seeds and 2.6 for six. Note the first: with three seeds the interval is more than twice as wide as the familiar ±1.96 se.
#
# Now run the experiment that most comparisons are: **three** of the six seeds, each rung at its best rate for them, and the highest mean wins. There are 20 ways to choose the three.

# %% jupyter={"source_hidden": true}
lesson.ask(
    "three-seeds",
    "Twenty races with three seeds each, from the same 144 trainings. How many different rungs come"
    " out on top at least once?",
    {
        "one: the best is the best": (
            "That would need a gap larger than the scatter. The bands of the learning curves"
            " overlap."
        ),
        "two to seven": (
            "With three seeds the winner is partly the draw of seeds. The next cell lists who wins"
            " how often."
        ),
        "all eight": (
            "Not quite: a rung that is clearly worse never wins. Seeds blur small gaps, not large"
            " ones."
        ),
    },
    answer="two to seven",
)

# %%
from collections import Counter
from itertools import combinations

wins = Counter()
for three in combinations(range(SEEDS), 3):
    means = {name: float(gain[name][-1][:, list(three)].mean(-1).max()) for name in RUNGS}
    wins[max(means, key=means.get)] += 1
print("wins in 20 races of three seeds:", dict(wins.most_common()))

# %% [markdown]
# What can be said, then? Compare two rungs **seed by seed**: same start, same questions. The difference of each seed has a mean and a standard error of its own, and what both have in common cancels.

# %%
from course.lab.statistics import mean_error

PAIRS = (
    ("clip", "baseline", 2),
    ("reinforce", "baseline", 2),
    ("grpo", "length_mean", 2),
    ("group_std", "group_mean", 1),
    ("length_mean", "group_std", 1),
)
print("difference of the final J, six seeds, paired; t = 2.57")
for better, worse, place in PAIRS:
    mean, error = mean_error(gain[better][-1, place] - gain[worse][-1, place])
    verdict = "differ" if abs(mean) > 2.571 * error else "cannot be told apart"
    print(
        f"lr = {RATES[place]:<7g} {better} − {worse}: {mean:+.3f} ± {2.571 * error:.3f}   {verdict}"
    )

# %% [markdown]
# That is what this race can carry: differences at a rate that is too large for all eight, and nothing about the finer steps. And where two rungs do not differ, one interval in twenty says by luck that they do; among five such intervals the chance of at least one is up to one in four. On another task, with longer answers or a longer training, the order may be another.

# %% jupyter={"source_hidden": true}
def test_paired(attempt):
    for a, b in (((0.5, 0.7, 0.9), (0.4, 0.6, 0.8)), ((0.2, 0.4, 0.9, 0.1), (0.1, 0.5, 0.5, 0.0))):
        found_mean, found_error = attempt(
            torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        )
        d = [x - y for x, y in zip(a, b, strict=True)]
        mean = sum(d) / len(d)
        error = (sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d)) ** 0.5
        if abs(float(found_mean) - mean) > 1e-9 or abs(float(found_error) - error) > 1e-9:
            return (
                f"for a = {a}, b = {b} it gives {float(found_mean):.3g} ± {float(found_error):.3g};"
                f" the seeds' differences are {[round(x, 2) for x in d]}: {mean:.3g} ± {error:.3g}"
            )
    return None


def paired_solution(a, b):
    difference = a - b
    return difference.mean(), difference.std() / len(difference) ** 0.5


exercise_paired = lesson.exercise(
    "paired",
    "Return the mean of the differences seed by seed, and its standard error.",
    test=test_paired,
    solution=paired_solution,
    wrong=[
        lambda a, b: (a.mean() - b.mean(), ((a.var() + b.var()) / len(a)) ** 0.5),
        lambda a, b: ((a - b).mean(), (a - b).std()),
        lambda a, b: ((a - b).mean(), (a - b).std(correction=0) / len(a) ** 0.5),
    ],
    hints=[
        "Subtract first, then look at the scatter: what two rungs share at one seed cancels.",
        (
            "The standard error of a mean of n numbers is their standard deviation (with n − 1)"
            " over √n."
        ),
        "d = a - b; return d.mean(), d.std() / len(d) ** 0.5",
    ],
)


# %%
def my_paired(a, b):
    """a, b [n]: the final J of two rungs, seed by seed → (mean difference, its standard error)."""
    return NotImplemented


exercise_paired.check(my_paired)

# %% [markdown]
# <!-- answers: 26 -->
# ## A term that nobody asked for
#
# **Is there an entropy bonus in my loss?** Some trainers had one on by default, and two runs of one name then differed by a term that stood in neither report's equations:
#
# $$J\leftarrow J+c_{\mathcal H}\sum_{i,t}w_{i,t}\,\mathcal H_{i,t} \tag{9.9}$$
#
# `eq:entropy-bonus` · Williams & Peng 1991; Schulman et al. 2017, eq. 9
#
# Here it is a field of the estimator, 0 unless you say otherwise, and an estimator shows what it has:

# %%
from course.estimator import replace

replace(ladder.grpo, entropy_coef=0.1)

# %%
bonus = climb(replace(ladder.grpo, entropy_coef=0.1), rates=RATES[1:2])
for name, log, column in (("grpo", race["grpo"], 1), ("grpo + entropy bonus", bonus, 0)):
    print(
        f"{name:22} entropy {log['entropy'][0, column].mean():.2f} →"
        f" {log['entropy'][-1, column].mean():.2f}   J {before.mean():.3f} →"
        f" {log['J'][-1, column].mean():.3f}"
    )

# %% [markdown]
# The two runs print the same name in a config that does not show the coefficient. The entropy curve is where it shows. If yours does not fall where everybody else's does, look for this term before you look for a discovery.
#
# ## Break it
#
# One of these two is `group_std`. In the other one part was sabotaged.

# %% jupyter={"source_hidden": true}
from dataclasses import dataclass

from course.parts import GroupStd
from course.parts.scale import inverse_std


@dataclass(frozen=True)
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
suspects = {"run A": climb(broken, rates=RATES[1:2]), "run B": race["group_std"]}


def draw_suspects():
    figure, panels = figures.new_figure(1, 3, width=9.4, height=3.3)
    for ax, (what, title) in zip(
        panels,
        (("J", "J"), ("entropy", "Entropy"), ("gradient_norm", "Gradient norm")),
        strict=True,
    ):
        for (name, log), colour in zip(suspects.items(), ("#444444", "#0f7f7f"), strict=True):
            values = log[what][:, -1 if log[what].shape[1] == 1 else 1]
            figures.band(ax, logs[1:], *interval(values), label=name, color=colour, linestyle="-")
        figures.describe(ax, title, "completions", "")
        ax.set_xticks([0, 1000, 2000])
    panels[1].legend(frameon=False)
    return figure


lesson.picture(
    draw_suspects(),
    "J, entropy and gradient norm of run A and run B; the bands overlap everywhere in J and"
    " entropy",
)

# %% [markdown]
# No curve tells them apart with any confidence. So look inside, at the advantages of one rollout: for every group that is not silent, the sum of A, and its standard deviation (population).

# %%
problem = LanguageModel(start, task, prompts=16, group=8)
rollout = problem.sample(lesson.noise(SEEDS, use=3, **double))
for name, estimator in (("run A", broken), ("run B", ladder.group_std)):
    advantage = estimator.freeze(rollout).advantage[..., 0]
    spread = advantage.std(-1, correction=0)
    loud = rollout.total_reward.amax(-1) > rollout.total_reward.amin(-1)
    print(
        f"{name}: |sum of A in a group| at most {advantage.sum(-1).abs()[loud].max():.2f}; std of A"
        f" in a group from {spread[loud].min():.2f} to {spread[loud].max():.2f}"
    )

# %% jupyter={"source_hidden": true}
lesson.ask(
    "which-axis",
    "Run B's groups all have Σ A = 0 and a std of 1. Run A's have neither. The rewards are 0 or 1."
    " Which fault explains run A?",
    {
        "the std was left out": (
            "Then A = R − mean: every group would still sum to 0, and its std could not exceed 0.5."
        ),
        "ddof = 1 in place of 0": (
            "Then every group would sum to 0 and have the same std, √(7/8) = 0.94."
        ),
        "the mean was taken over the batch": (
            "Then Σ A would not be 0, but each group would still be divided by its own std, and"
            " have a std of 1."
        ),
        "the std was taken over the questions": (
            "The mean is the group's, but each place in the group is divided by another number:"
            " that breaks Σ A = 0 and the std of 1 at once."
        ),
    },
    answer="the std was taken over the questions",
)

# %%
import inspect

print(inspect.getdoc(WrongAxis))
mean, error = mean_error(suspects["run A"]["J"][-1, 0] - suspects["run B"]["J"][-1, 1])
print(f"\nfinal J, run A − run B, paired: {mean:+.3f} ± {2.571 * error:.3f}")

# %% [markdown]
# The bug costs so little here that six seeds cannot see it. That is why estimators are tested on small tensors and not by their learning curves: two lines on one rollout, a sum and a std, find what a hundred trainings would not.
#
# ## The long runs
#
# What this lesson ran takes seconds. The committed figures took minutes each, most of them on two-digit sums; their data are in JSON files, and the next cell reads them. Each file carries its claims, what was measured, and whether they hold.

# %%
from course.lab.places import project_root
from course.lab.result import Result

FILES = ("tinylm_ladder", "tinylm_staleness", "tinylm_zero", "tinylm_group_size")
ran = {name: Result.load(project_root() / "figures" / f"{name}.json") for name in FILES}
for name, result in ran.items():
    print(
        f"{name}: {result.title}\n    {result.settings['seeds']} seeds; claims that hold:"
        f" {result.held} of {len(result.facts)}"
    )

# %% [markdown]
# **The ladder.** `tinylm_ladder` is the same race on two-digit sums, judged on held-out questions, with three rates and four updates per rollout; descendants take part, too. Two models choose the rate of each rung, and other models are judged at it, on other questions.

# %%
long = ran["tinylm_ladder"]
rates = long.settings["rates"]
print(
    "accuracy, mean of the two that choose:"
    + "".join(f"  lr = {rate:g}" for rate in rates)
    + "      gain at the best rate"
)
for name in RUNGS:
    sweep = "".join(f"{each:13.2f}" for each in long.array("rungs", name, "sweep").tolist())
    end, half = (long.array("rungs", name, what)[-1] for what in ("gain", "gain_half"))
    print(f"{name:24}{sweep}        {end:+.2f} ± {half:.2f}")

# %% [markdown]
# It makes no claim at all about who is better (0 of 0 above): read the intervals in the last column, and decide what you would dare to claim. (Its figure compares each rung with `reinforce` model by model: every interval holds 0.) Then read each row of the sweep from left to right: how much does a rung lose where the rate does not suit it?
#
# **How many updates can a rollout bear?** `tinylm_staleness` takes the four lower rungs from 1 to 16 updates on each rollout, at equal samples. It is this lesson's race once more, on a larger model and a harder task.

# %%
stale = ran["tinylm_staleness"]
print(
    "held-out accuracy;  updates per rollout:  "
    + "".join(f"{count:<9}" for count in stale.settings["updates"])
)
for name in stale.settings["rungs"]:
    print(
        f"{name:42}"
        + "".join(
            f"{each:<9.2f}" for each in stale.array("estimators", name, "accuracy_mean").tolist()
        )
    )
for fact in stale.facts:
    print(f"{'holds' if fact.holds else 'DOES NOT HOLD'}: {fact.claim}")

# %% [markdown]
# With one update, `baseline`, `surrogate` and `clip` are one number up to single answers. To the right they come apart, and `baseline` goes first, as in the race. The claims are compared seed by seed; each is written whether it holds or not, and one does not: TRPO takes one small step per rollout, and cannot be told from where it began.
#
# **From nothing.** `tinylm_zero` trains two-digit sums from random weights, without demonstrations: 1 for the exact answer, and up to ½ for its digits. Before you run the cell: which of the arms will learn anything? The credit for digits does not ask for the end token.

# %%
zero = ran["tinylm_zero"]
for row in zero.series["arms"].values():
    finals = " ".join(f"{each:.2f}" for each in row["final"])
    print(
        f"{row['label']:28} held out {row['final_mean']:.2f} ± {row['final_half']:.2f} ({finals})"
        f"   cut at the limit {sum(row['truncated'][-1]) / len(row['final']):.0%}"
    )

# %% [markdown]
# GRPO ends at .97 ± .07, and the same estimator without its KL at 0: nearly all its answers are cut at the limit. While the digits were learned, the end token was never worth anything, and by the time it would have been it had died out. GRPO's k3 pulls a rare token up with β·π_ref, however rare it has become. The balance of that pull with the reward, worked out on the three arms of `python -m bandits rare_prize`, predicts the share of silent groups that GRPO ends with: .458, and here it is .457 ± .04. The same three arms give an entropy bonus little chance; here it is a lottery: three of four models get somewhere, one stays at 0, and its difference to GRPO has an interval that holds 0. Credit for the end token in place of the KL: answers end, but groups fall silent just as well. A part that cost a little in every run from a warm start decides this one.
#
# **How large a group?** `tinylm_group_size` spends the same number of completions per rollout on many questions or on many answers to each.

# %%
sizes = ran["tinylm_group_size"]
for group in sizes.settings["groups"]:
    row = (float(sizes.array("sizes", str(group), name)[-1]) for name in ("gain", "gain_half"))
    silent = sizes.array("sizes", str(group), "silent").mean()
    print(
        f"G = {group:2d}: silent groups {silent:.2f}; gain in held-out accuracy {next(row):+.2f} ±"
        f" {next(row):.2f}"
    )

# %% [markdown]
# The share of silent groups is a clear function of G. The gain falls from small groups to large ones, but its intervals are wider than the differences, and the claim that G = 2 ends above G = 32 does not hold, model by model either. Three sizes chose the largest rate of the sweep, so that a wider one may still find a better. You now know what to write under such a table.
#
# ## Take away
#
# **A curve answers the question it measures, at the learning rate, budget and seeds it was run with.** Sweep the rate, pair the seeds, print the interval; and test an estimator on tensors, not on curves.
#
# ## Next
#
# Every curve here went after a reward that was right. Lesson 10 replaces the reward: by one that is designed, and by one that is learned from preferences and can be fooled.
