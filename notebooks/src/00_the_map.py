# %% [markdown]
# # 00 · The map
#
# When you are through you can
#
# - say how GRPO is made from REINFORCE, in seven steps that each replace one part;
# - read the shape of a rollout's tensors, for a bandit and for a language model;
# - name the five stations of the training loop;
# - place pre-training, supervised fine-tuning, preference tuning and reinforcement learning, and say what the last can do that imitation cannot;
# - use the lessons: predict, explore, do, break it.
#
# You need Python and some calculus. You need not have heard of GRPO.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from course import ladder
from course.lab import figures

lesson = course.setup("00")
lesson.map()

# %% [markdown]
# Read it from the bottom up: every row, a **rung** of the ladder, is the row below with **one part replaced**. At the bottom is REINFORCE (1992), on top GRPO, *group relative policy optimization* (2024), which has trained reasoning models. The coloured bar is the rung's colour in every
# figure of the course. If you have read elsewhere that GRPO is PPO without a critic, or "PPO for bandits" (Giovanidis
# 2025): yes, and you will see which parts that sentence leaves out. [The glossary](GLOSSARY.md) has every word of the course, and its name elsewhere.
#
# ## Use it like this
#
# - **Predict.** A blue box asks before the answer is on the page. Commit to a choice; each wrong one says why it is wrong.
# - **Explore.** Sliders redraw a figure. Move one thing at a time.
# - **Do.** An exercise is checked against an exact answer. If yours differs, you get the case where it does.
# - **Break it.** Programs are sabotaged, and you find the fault from the curves.
#
# Try the first kind now.

# %% jupyter={"source_hidden": true}
lesson.ask("parts-changed")

# %%
for part, (mine, theirs) in ladder.grpo.diff(ladder.reinforce).items():
    print(f"{part:<12} {theirs.short:<16} → {mine.short}")

# %% [markdown]
# ## The loop
#
# All of them learn in the same loop. A **policy** $\pi_\theta$ is a model with parameters $\theta$ that writes answers to prompts, token by token.

# %% jupyter={"source_hidden": true}
from matplotlib.patches import FancyBboxPatch

STATIONS = (
    ("1 · sample", "the policy writes G\nanswers to each of\nQ prompts"),
    ("2 · reward", "a checker pays\neach answer its R"),
    ("3 · freeze", "advantage A and\nweight w of every\ntoken: constants"),
    ("4 · loss", "minus the objective\nL(θ), differentiated"),
    ("5 · step", "the optimiser\nmoves θ"),
)
figure, [ax] = figures.new_figure(width=9.4, height=3.0)
arrow = {"arrowstyle": "->", "color": "#555555", "linewidth": 1.4}
for place, (name, what) in enumerate(STATIONS):
    x = 2.5 * place
    box = FancyBboxPatch((x - 0.95, -0.75), 1.9, 1.5, boxstyle="round,pad=0.05")
    ax.add_patch(box)
    box.set(facecolor="white", edgecolor="#0057a3")
    ax.text(x, 0.55, name, ha="center", va="center", fontsize=10, weight="bold")
    ax.text(x, -0.15, what, ha="center", va="center", fontsize=9, color=figures.INK)
    if place:
        ax.annotate("", (x - 1.0, 0), (x - 1.5, 0), arrowprops=arrow)
for start, side, bend, said, height in (
    (0, -1, -0.13, "a new rollout from the new policy", -1.95),
    (7.5, 1, 0.45, "again on the same rollout: minibatches, epochs", 1.95),
):
    bent = {**arrow, "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", (start, 0.82 * side), (10, 0.82 * side), arrowprops=bent)
    ax.text((start + 10) / 2, height, said, ha="center", va="center", fontsize=9.5)
ax.set(xlim=(-1.1, 11.4), ylim=(-2.3, 2.3))
ax.set_axis_off()
lesson.picture(
    figure,
    "Five stations in a row: sample, reward, freeze, loss, step. An arrow leads from the step back"
    " to the sampling, a shorter one back to the loss.",
)

# %% [markdown]
# What was sampled in one round is a **rollout**. The rungs of the ladder differ in stations 3 and 4 alone. Does it work? Here is what the loop does to the course's language model, a small transformer, on sums of two-digit numbers. It was shown demonstrations first, until some of its answers were right, and then trained with GRPO: twenty seeds, recorded by `course tinylm train`. (More in lesson 09.)

# %% jupyter={"source_hidden": true}
from course.lab.places import measured
from course.lab.result import Result

saved = Result.load(measured("tinylm_train"))
curves, rollouts = torch.tensor(saved.array("accuracy")), torch.tensor(saved.array("rollouts"))
figure, [ax] = figures.new_figure(width=7.2, height=3.0)
grpo = figures.style_of("grpo")["color"]
ax.plot(rollouts, curves.T, color=grpo, linewidth=0.7, alpha=0.5)
ax.plot(rollouts, curves.median(0).values, color=grpo, linewidth=2.2)
ax.set_ylim(0, 1)
figures.describe(
    ax, "A small transformer learns to add (thick: median)", "rollouts", "questions answered right"
)
lesson.picture(
    figure,
    "Twenty thin lines, the share of questions that are answered right, rise from about a half to"
    " nearly 1 within some hundred rollouts. The questions were not trained on.",
)
print(f"demonstrations until {saved.settings['warm_target']:.0%} of its samples were right; then")
print("the most probable answer to a question that was not trained on was right for a share of")
for when, at in (("start", 0), ("end", -1)):
    low, high = curves[:, at].aminmax()
    print(f"{curves[:, at].median():.2f} (from {low:.2f} to {high:.2f}) at the {when}")

# %% [markdown]
# ## One objective
#
# All of the rungs are one formula. $R_i$ is what answer $i$ earned, and its **advantage** $A_i$ says how much that is above a **baseline** $b$, such as the mean of its **group**: all answers to the same prompt. The **ratio** $\rho=\pi_\theta/\pi_{old}$ compares the policy with itself at the time of sampling. The **KL divergence** compares it with a **reference** policy: $\mathrm{KL}(\pi_\theta\|\pi_{ref})=\mathbb E_{\pi_\theta}[\log\pi_\theta-\log\pi_{ref}]$ is 0 if the two are equal, else positive; with the natural logarithm its unit is the **nat**. Give every token an advantage $A_{i,t}$ and a weight $w_{i,t}$, both constants. Credit it with $R_{i,t}$ (on the ladder, all of $R_i$), let the KL count $\beta$ times, and climb
#
# $$L(\theta)=\sum_i\sum_tw_{i,t}\Big[\operatorname{surrogate}(\rho_{i,t},\log\pi_\theta,A_{i,t})-\beta\,\mathrm{kl}_{i,t}\Big]\tag{0.1}$$
#
# `eq:one-objective` · this course; Schulman et al. 2017 (PPO), eqs. 7 and 9, for the pattern
#
# $$A_{i,t}=\operatorname{scale}\big(R_{i,t}-b\big)\tag{0.2}$$
#
# `eq:advantage-of-parts` · this course; Schulman et al. 2016 (GAE), eq. 1, for $\Psi_t$
#
# Every word in it is a part that you can take out and replace. A **surrogate** is a function that is climbed for its gradient; its value, $L$, is not the expected reward, which is $J$ throughout the course. Here are bottom and top. What differs from the rung below is coloured, and these formulas are not from a textbook: the objects that train print them.

# %%
ladder.reinforce

# %%
ladder.grpo

# %% [markdown]
# Do not worry about the symbols yet. Each has its lesson. In code, (0.2) is `freeze` and (0.1) is `objective`:

# %%
lesson.code(course.estimator.Estimator.freeze, course.estimator.Estimator.objective)

# %% [markdown]
# ## The axes
#
# A **bandit** is the smallest problem there is: choose one of $K$ arms, be paid, done. A language model's answer is many such choices in a row.
# Whatever is kept per token ends in the same three axes, with others in front:
#
# | axis | meaning | on a bandit | on a language model |
# | --- | --- | --- | --- |
# | `...` | independent runs: seeds, settings | thousands at once | a few models at once |
# | `Q` | prompts | 1, or the contexts | the batch of questions |
# | `G` | the group: samples for one prompt | pulls | completions |
# | `T` | tokens of a sample | 1 | up to the longest completion, with a mask |

# %% jupyter={"source_hidden": true}
lesson.ask("bandit-shape")

# %%
from bandits.environments import Bernoulli
from bandits.exact import B3_MEANS, B3_POLICY
from bandits.policies import Softmax
from bandits.problem import Bandit

probability, mean = (
    torch.tensor([B3_POLICY], dtype=torch.float64),
    torch.tensor([B3_MEANS], dtype=torch.float64),
)
bandit = Bandit(Bernoulli(mean), Softmax.of(probability), group=5)
rollout = bandit.sample(lesson.noise(dtype=torch.float64))
for name in ("reward", "log_prob", "mask"):
    print(f"{name:<9}", tuple(getattr(rollout, name).shape))
print(
    "arms     ", rollout.data["action"][0].tolist(), "  rewards", rollout.reward[0, :, 0].tolist()
)

# %% [markdown]
# These three arms, **B3**, come back in most lessons: they pay 1 with probability .2, .5 and .8, and the policy starts at (.5, .3, .2).
#
# That object, a `Rollout`, is all that an estimator (a rung, as an object) ever sees: what was sampled. Now the same object from a language model: a small transformer,
# written in this repository, that subtracts one-digit numbers. It is warmed up on 60 batches of right answers, then asked four questions, four times each.

# %%
from course.learner import Learner
from course.train.optim import Adam
from tinylm import tasks
from tinylm.model import ModelSettings, Transformer
from tinylm.problem import LanguageModel
from tinylm.warm_start import LIKELIHOOD, Demonstrations

task = tasks.make(tasks.TaskSettings(name="subtraction", digits=1))
model = Transformer(
    ModelSettings(width=32, layers=1, heads=2, hidden=64, context=task.context), dtype=torch.float64
)
warm_up = Learner(
    Demonstrations(model, task, batch=64),
    LIKELIHOOD,
    Adam(1e-2),
    lesson.noise(dtype=torch.float64, use=1),
    log_every=10,
)
history = warm_up.train(60)
asked = LanguageModel(model, task, prompts=4, group=4).sample(
    lesson.noise(dtype=torch.float64, use=2)
)
for name in ("reward", "log_prob", "mask"):
    print(f"{name:<9}", tuple(getattr(asked, name).shape))

# %% jupyter={"source_hidden": true}
for q in range(4):
    answers = []
    for g in range(4):
        text = tasks.decode(asked.data["tokens"][q, g].tolist())
        answers.append(
            f"{text:<3} {'right' if asked.total_reward[q, g] else 'wrong'}, {asked.length[q, g]}"
            " tokens"
        )
    print(f"{tasks.decode(asked.data['prompt'][q].tolist()):<5}", " | ".join(answers))

# %% [markdown]
# Answers differ in length (a minus is a token, and so is the end), so the tensors are padded to $T$ and a **mask** says which tokens the policy chose. The reward
# sits on the last chosen token. Nothing else tells a language model from a bandit here:
#
# $$|o_i|=\sum_t\text{mask}_{i,t}\tag{0.3}$$
#
# `eq:answer-length` · Shao et al. 2024 (DeepSeekMath), eq. 3, for the symbol

# %% jupyter={"source_hidden": true}
figure, [left, right] = figures.new_figure(1, 2, width=8.0, height=4.2, width_ratios=(1, 2.6))
for ax, sampled, title in ((left, rollout, "bandit"), (right, asked, "language model")):
    prompts, group, length = sampled.reward.shape
    for q in range(prompts):
        for g in range(group):
            y = q * (group + 0.8) + g
            for t in range(length):
                chosen, paid = bool(sampled.mask[q, g, t]), float(sampled.reward[q, g, t])
                colour = "#e8e8e8" if not chosen else "#00875f" if paid else "#9fc5e8"
                ax.barh(y, 0.94, left=t + 0.03, height=0.86, color=colour)
        ax.text(
            -0.06,
            q * (group + 0.8) + (group - 1) / 2,
            f"q = {q + 1}",
            ha="right",
            va="center",
            fontsize=10,
        )
    ax.set(xlim=(-0.02, length), ylim=(18.4, -0.6), yticks=[])
    ax.set_xticks([t + 0.5 for t in range(length)], [str(t + 1) for t in range(length)])
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    figures.describe(ax, f"{title}: [{prompts}, {group}, {length}]", "token t", "")
lesson.picture(
    figure,
    "Rows are samples, grouped by prompt; columns are tokens. Blue: chosen. Green: chosen and paid"
    " 1. Grey: padding.",
)

# %% [markdown]
# Left $T=1$, right ragged.
#
# A mean is a choice of axes. So are four of the seven steps: the batch's mean, the group's mean and std, the mean over tokens.

# %% jupyter={"source_hidden": true}
lesson.ask("two-means")

# %%
R = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)  # [Q, G]
for name, b in (("the batch", R.mean()), ("its group", R.mean(-1, keepdim=True))):
    rows = ["  ".join(f"{x:+.2f}" for x in row) for row in (R - b).tolist()]
    print(f"R − mean of {name}, shape {tuple(b.shape)!s:<7}  easy: {rows[0]}   hard: {rows[1]}")

# %% [markdown]
# ## Runs never mix
#
# The dots in front of `Q` hold whole experiments. A loss $\ell=-L$ is computed per run and **summed** over runs, so the derivative with respect to one run's parameters contains that run alone:
#
# $$\frac{\partial}{\partial\theta^{(n)}}\sum_m\ell^{(m)}=\frac{\partial\ell^{(n)}}{\partial\theta^{(n)}}\tag{0.4}$$
#
# `eq:runs-apart` · this course
#
# Each run also draws from a random stream of its own. So two hundred runs cost one program, and the third run alone gives what it gave among the
# others:

# %%
from course.train.noise import Noise
from course.train.optim import SGD


def third_run(numbers):
    """Train the runs with these numbers together; returns the last one's policy."""
    count = len(numbers)
    noise = Noise((count,), lesson.seed, numbers=numbers, dtype=torch.float64)
    together = Bandit(
        Bernoulli(mean.expand(count, 1, 3)), Softmax.of(probability.expand(count, 1, 3)), group=8
    )
    Learner(together, ladder.group_mean, SGD(0.2), noise, log_every=50).train(50)
    return together.arm_policy.log_probs().detach().exp()[-1, 0]


print("run 3 among three:", [f"{x:.3f}" for x in third_run([0, 1, 2]).tolist()])
print("run 3 alone:      ", [f"{x:.3f}" for x in third_run([2]).tolist()])

# %% [markdown]
# Along `Q` a batch may be cut into minibatches. Advantages and weights are frozen once, for the whole batch, so the pieces add up:
#
# $$\sum_{\text{minibatches }B}\;\sum_{i\in B}\sum_tw_{i,t}[\dots]=\sum_i\sum_tw_{i,t}[\dots]\tag{0.5}$$
#
# `eq:minibatches-add` · this course

# %%
lm = LanguageModel(model, task, prompts=4, group=4)
frozen = ladder.length_mean.freeze(asked)
halves = [frozen.prompts(torch.tensor(half)) for half in ([0, 1], [2, 3])]
pieces = [ladder.length_mean.objective(lm.policy(half.rollout), half) for half in halves]
all_at_once = ladder.length_mean.objective(lm.policy(asked), frozen)
print(
    "two halves add up to the batch, to 1e-12:",
    abs(float((sum(pieces) - all_at_once).detach())) < 1e-12,
)

# %% [markdown]
# ## Explore: what each token is told
#
# Two prompts, four answers each, of different length. The colour of a cell is $\partial L/\partial\log\pi$ of that token, times the number of answers: red
# says "less of this", blue "more". Climb the ladder from the top of the menu, and watch what each replaced part changes. `drift` moves the policy away from
# the one that sampled, as several updates on one rollout do. It is saved at the bottom rung, where the one right answer to either prompt is told "more", and nobody "less".

# %% jupyter={"source_hidden": true}
from course.rollout import Policy, Rollout

LENGTHS = torch.tensor([[2, 3, 5, 6], [1, 4, 4, 6]])
MASK = torch.arange(6) < LENGTHS[..., None]
LAST = torch.nn.functional.one_hot(LENGTHS - 1, 6).double()
# direction of the drift
MOVES = (
    torch.tensor([[1.0, -1.0, 0.5, 1.0], [-0.5, 1.0, -1.0, 0.5]], dtype=torch.float64)[..., None]
    * MASK
)


def told(rung, right, drift):
    """[Q, G, T] the derivative of the rung's objective by log π of each token, times
    the 8 answers.
    """
    reward = torch.zeros(2, 4, dtype=torch.float64)
    reward[0, :right] = 1.0
    reward[1, 1] = 1.0
    old = torch.full((2, 4, 6), -1.0, dtype=torch.float64) * MASK
    sampled = Rollout(reward[..., None] * LAST, old, MASK, ref_log_prob=old)
    now = (old + drift * MOVES).requires_grad_()
    loss = ladder.get(rung).estimator.loss(Policy(now), sampled)
    [by_token] = torch.autograd.grad(loss, now)
    return reward, -8 * by_token


def draw_told(rung, right, drift):
    reward, cells = told(rung, right, drift)
    figure, [ax] = figures.new_figure(width=8.6, height=2.9)
    shown = torch.full((4, 13), torch.nan, dtype=torch.float64)  # prompt 1, a gap, prompt 2
    shown[:, :6], shown[:, 7:] = torch.where(MASK, cells, torch.nan)
    ax.imshow(shown.numpy(), cmap="RdBu", vmin=-1.6, vmax=1.6, aspect="auto")
    for g, row in enumerate(shown.tolist()):
        for t, value in enumerate(row):
            if value == value:
                colour = "white" if abs(value) > 0.9 else figures.INK
                ax.text(
                    t,
                    g,
                    f"{value:.2f}" if abs(value) > 5e-3 else "0",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=colour,
                )
        ax.text(6.4, g, f"R = {int(reward[1, g])}", ha="right", va="center", fontsize=10)
    ax.set_yticks(range(4), [f"R = {int(r)}" for r in reward[0]])
    ax.set_xticks(
        [2.5, 9.5], ["tokens of the answers to prompt 1", "tokens of the answers to prompt 2"]
    )
    ax.grid(False)
    ax.set_title(ladder.get(rung).estimator.text(), loc="left", fontsize=9, color=figures.INK)
    return figure


lesson.explore(
    "what-each-token-is-told",
    draw_told,
    "on `reinforce` only right answers are told anything; from `baseline` on wrong answers are told"
    " less; from `length_mean` on a long answer is told less per token than a short one",
    rung=course.lesson.Choice([rung.name for rung in ladder.select()], label="rung"),
    right=course.lesson.Slider(0, 4, 1, 1, "right answers to prompt 1"),
    drift=course.lesson.Slider(0.0, 0.6, 0.1, 0.0, "drift of the policy (nats)"),
)

# %% [markdown]
# Things to find. On `reinforce` a wrong answer is told nothing. Set the right answers to 0 or 4: from `group_mean` on, prompt 1 falls **silent**, since no answer is better than another. `group_std` makes both prompts equally loud. `length_mean` divides a row by its length. With drift, `clip` silences what has moved too far, and `grpo` speaks even where all are silent: that is the KL.

# %%
print(
    "reinforce: wrong answers are told nothing:",
    bool((told("reinforce", 1, 0.0)[1][0, 1:] == 0).all()),
)
for rung in ("group_mean", "group_std"):
    first_token = told(rung, 2, 0.0)[1][:, :, 0]  # 2 of 4 right, and 1 of 4
    print(
        f"{rung}: Σ A² of prompts 1 and 2:",
        [f"{x:.2f}" for x in first_token.square().sum(-1).tolist()],
    )
rows = [told(rung, 1, 0.0)[1][0, 0, 0] for rung in ("group_std", "length_mean")]
print(f"length_mean / group_std, answer of 2 tokens: {float(rows[1] / rows[0]):.2f}")
clipped, free = (told(rung, 1, 0.6)[1] for rung in ("clip", "surrogate"))
print(
    "drift .6: tokens silenced by the clip:",
    int(((clipped == 0) & (free != 0)).sum()),
    "of",
    int(MASK.sum()),
)
for rung in ("length_mean", "grpo"):
    print(
        f"all four right, drift .5, {rung}: prompt 1 is told nothing:",
        bool((told(rung, 4, 0.5)[1][0] == 0).all()),
    )

# %% [markdown]
# ## Do it: reward and length
#
# The first thing any of this needs from a rollout.

# %%
totals = lesson.exercise("reward-and-length")

# %%
def my_totals(reward, mask):
    """Token rewards [Q, G, T] and the mask [Q, G, T] (bool) → R [Q, G] and |o| [Q, G]."""
    return NotImplemented


totals.check(my_totals)

# %% [markdown]
# ## Do it: climb the ladder
#
# An estimator is an object, and `replace` swaps parts. Start from any rung and hand back GRPO. The checker does not look at the name: it compares the
# value of your objective with DeepSeekMath's formula, computed by hand on two prompts of ragged answers.

# %%
from course.estimator import replace
from course.parts import K3, GroupMean, GroupStd, SequenceMean  # noqa: F401  the exercise needs all

with_group_mean = replace(ladder.clip, baseline=GroupMean())
print(
    "replaced since the clip:",
    with_group_mean.changed,
    "  that is the rung group_mean:",
    with_group_mean == ladder.group_mean,
)

# %%
climb = lesson.exercise("climb-to-grpo")

# %%
def my_grpo(rung):
    """Any estimator → GRPO, by `replace(rung, part=…)`."""
    return NotImplemented


climb.check(my_grpo)

# %% [markdown]
# ## Before and after: where reinforcement learning sits
#
# | stage | data | what is maximised | what it can teach |
# | --- | --- | --- | --- |
# | pre-training | all text there is | log-likelihood of the next token | language, facts |
# | supervised fine-tuning (SFT) | answers written by someone | the same, on those answers | to answer like them |
# | preference tuning | pairs, one preferred | a learned reward, or the likelihood of the preferences | taste: what nobody can write down |
# | reinforcement learning on verifiable rewards | questions, and a checker | $\mathbb E[R]$ | to be right, also where no answer was written |
#
# The last three are post-training. (DeepSeek's R1-Zero went from the first directly to the last; R1 did not: [a slip](SLIPS.md).)
#
# You need no new objective for the first two. Take the bottom rung, let someone else write the samples, let each be worth 1, and let the weights be a mean over all tokens instead of over answers:
#
# $$\frac1{\sum_i|o_i|}\sum_i\sum_t1\cdot\log\pi_\theta(o_{i,t}\mid q,o_{i,<t}),\qquad o_i\text{ from a demonstrator}\tag{0.6}$$
#
# `eq:likelihood-is-reward-one` · maximum likelihood; this course for the reading
#
# The warm-up above was that object. Minus its value is the **cross-entropy**, in nats per token:

# %%
print(LIKELIHOOD.text())
print(
    "every demonstration is worth 1:",
    bool(
        (warm_up.problem.sample(lesson.noise(dtype=torch.float64, use=4)).total_reward == 1).all()
    ),
)
print(
    "cross-entropy, first and last batch:",
    " → ".join(f"{float(history['cross_entropy'][k]):.2f}" for k in (0, -1)),
    "nats per token",
)

# %% jupyter={"source_hidden": true}
lesson.ask("sft-or-rl")

# %%
from bandits.flow import ascend, follow

demonstrator = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
start = probability[0].log()
# E[1 · score] over demonstrations
imitate = follow(lambda log_prob: demonstrator - log_prob.exp(), start, rate=0.5, steps=400)
# E[R · score] over own samples
reinforce = ascend(ladder.reinforce, Bernoulli(mean), start, 1, rate=0.5, steps=400)

# %% jupyter={"source_hidden": true}
figure, [ax] = figures.new_figure(width=7.2, height=3.2)
figures.band(ax, range(401), imitate.exp() @ mean[0], label="SFT", color="#0057a3", linestyle="-")
figures.band(ax, range(401), reinforce.exp() @ mean[0], name="reinforce", label="RL")
figures.expectation(ax, y=float(demonstrator @ mean[0]))
figures.expectation(ax, y=0.8)
figures.describe(
    ax,
    "Imitation stops at what it imitates (dashed .68)",
    "updates",
    "expected reward J",
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "SFT rises quickly and stops at .68, the demonstrator's own reward; RL rises more slowly and"
    " approaches .8.",
)
print(
    f"J at the end: SFT {float(imitate[-1].exp() @ mean[0]):.3f}, RL"
    f" {float(reinforce[-1].exp() @ mean[0]):.3f}"
)

# %% [markdown]
# At this learning rate SFT is ahead early and RL at the end. The limits are the same at any rate that is small enough: the demonstrator's own policy for SFT, the best arm for RL. (If the fitted policy always gave its most probable answer, it would earn .8 as well; its *samples* earn .68.) Real pipelines do one after the other, and the policy after SFT is the reference that the KL term of GRPO holds on to.
#
# ## Break it
#
# Three programs train on B3 with the group's mean as baseline, groups of eight, 200 runs each. One is right. In one the **sign** of the advantage is flipped, as when a loss is maximised or an objective
# minimised. In one the sign is **lost**: it has $|A|$ in place of $A$. Nothing crashes.

# %%
from dataclasses import dataclass

from course.parts import ScoreFunction


@dataclass(frozen=True)
class Flipped(ScoreFunction):
    """The fault: −A."""

    def __call__(self, log_ratio, log_prob, advantage):
        return super().__call__(log_ratio, log_prob, -advantage)


@dataclass(frozen=True)
class SignLost(ScoreFunction):
    """The fault: |A|."""

    def __call__(self, log_ratio, log_prob, advantage):
        return super().__call__(log_ratio, log_prob, advantage.abs())


# %% jupyter={"source_hidden": true}
def train(surrogate):
    estimator = replace(ladder.baseline, baseline=GroupMean(), surrogate=surrogate)
    many = Bandit(
        Bernoulli(mean.expand(200, 1, 3)), Softmax.of(probability.expand(200, 1, 3)), group=8
    )
    history = Learner(
        many, estimator, SGD(0.5), lesson.noise(200, dtype=torch.float64, use=5), log_every=5
    ).train(150)
    values = history["expected_reward"]
    return [0, *history.steps], torch.cat([torch.full((1, 200), 0.41, dtype=torch.float64), values])


runs = {"run A": train(SignLost()), "run B": train(ScoreFunction()), "run C": train(Flipped())}


def draw_runs(names, levels):
    figure, [ax] = figures.new_figure(width=7.2, height=3.3)
    for (label, (steps, values)), colour in zip(
        runs.items(), ("#b8860b", "#000000", "#b8320f"), strict=True
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
        figures.band(
            ax, steps, values.mean(-1), label=names.get(label, label), color=colour, linestyle="-"
        )
    for level in levels:
        figures.expectation(ax, y=level)
    figures.describe(
        ax,
        "Three programs (dashed: their limits)" if names else "Three programs",
        "updates",
        "J (bands: 90 % of runs)",
    )
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_runs({}, []),
    "Run B rises to .8, run C falls to .2, run A rises a little and stops near .5.",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %% [markdown]
# Why .5? With the group's mean near $m=J$, an arm that pays with probability $q$ has
# $\mathbb E|A|=q(1-m)+(1-q)m=m+q(1-2m)$. Below $m=.5$ the better arms have more of it, above $.5$ the worse ones, and at $.5$ all are alike.

# %%
for m in (0.41, 0.5, 0.6):
    print(
        f"m = {m:<4}:  E|A| of the arms ", "  ".join(f"{m + q * (1 - 2 * m):.3f}" for q in B3_MEANS)
    )
names = {"run A": "A: |A|", "run B": "B: right", "run C": "C: −A"}
lesson.picture(
    draw_runs(names, [0.2, 0.5, 0.8]),
    "Run A: sign lost, stops at .5. Run B: right. Run C: sign flipped, ends at the worst arm's .2.",
)
for label, (_, values) in runs.items():
    low, high = (float(values[-1].quantile(x)) for x in (0.05, 0.95))
    print(
        f"{label}: mean of the last J {float(values[-1].mean()):.2f}, 90 % of runs from {low:.2f}"
        f" to {high:.2f}"
    )

# %% [markdown]
# A program that rises is not yet right: run A rose. Lesson 01 shows what tells such faults for certain.
#
# ## Where you are
#
# Your answers and passed exercises are noted in one small file of your own, which `course progress` names and `course progress --delete` removes. This table is what it holds, with the minutes of a first read and the seconds of computing per lesson.

# %% tags=["nbval-ignore-output"]
lesson.progress()

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# Every algorithm from REINFORCE to GRPO is one objective with one part replaced at a time, and what it holds per token ends in `[Q, G, T]`.
#
# ## Next
#
# Lesson 01 derives the bottom rung: why $R\,\nabla\log\pi_\theta$ is an unbiased gradient, and how to see that exactly instead of believing it.
