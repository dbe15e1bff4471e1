# %% [markdown]
# # 10b · My reward is flat
#
# An optional page: nine causes of a reward that does not rise, in the order in which one looks, from what costs a minute to what costs a day. Each is shown on the tiny language model, with its curve and its cure. After this page you can
#
# - say which numbers to log beside the reward, and what each of nine faults does to them;
# - find a fault in the reading, the counting or the grouping before you touch the algorithm.
#
# You need lesson 08 (the tiny language model) and lesson 06 (silent groups).
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import dataclasses

import torch

import course
from course import ladder
from course.lab import figures
from course.lesson import Choice

lesson = course.setup("10b")
double = torch.float64

# %% [markdown]
# ## A healthy run
# <!-- answers: 30 -->
#
# One-digit sums, answers of two digits and an end token, a model of 6,840 weights that SFT has brought to 36 % (lesson 08). Then 30 rollouts of 32 questions × 8 answers, two updates on each, group mean, Adam at 3e-3. The reward is the check. Beside the reward three numbers are worth a column of the log: the share of answers **cut** at the limit, the share of **silent** groups, and the **entropy** per token.

# %%
from course.learner import Learner
from course.train.optim import Adam
from tinylm import tasks
from tinylm.evaluate import right_to_go
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.rewards import DigitCredit, ExactMatch
from tinylm.warm_start import LIKELIHOOD, Demonstrations

task = tasks.make(tasks.TaskSettings(digits=1))
untrained = Transformer(dataclasses.replace(PRESETS["nano"], context=task.context), dtype=double)


def trainable(of):
    """A copy of a model whose weights can be trained."""
    new = of.copy()
    for weight in new.parameters:
        weight.requires_grad_()
    return new


model = trainable(untrained)
noise = lesson.noise(use=1, dtype=double)
start = Learner(
    Demonstrations(model, task, batch=128), LIKELIHOOD, Adam(1e-2), noise, max_grad_norm=1.0
)
_ = start.train(80)

# %% jupyter={"source_hidden": true}
@dataclasses.dataclass
class Run:
    """What was measured: J at seven looks, exactly and on all training questions; and the log."""

    steps: list
    right: list
    log: dict
    apart: float  # mean |log π_old − log μ| per token of one more rollout, before any update on it


def train(
    of=None,
    *,
    problem=LanguageModel,
    estimator=ladder.group_mean,
    rate=3e-3,
    rollouts=30,
    epochs=2,
    asks=task,
    stale=False,
    **settings,
):
    """Train a copy of a model (default: the warm start); `settings` are the problem's."""
    mine = trainable(model if of is None else of)
    settings = {"prompts": 32, "group": 8, **settings}
    if stale:
        settings["sampler"] = mine.copy()
    learner = Learner(
        problem.of(estimator, mine, asks, **settings),
        estimator,
        Adam(rate),
        lesson.noise(use=10, dtype=double),
        epochs=epochs,
    )
    steps, right = [0], [float(right_to_go(mine, task, task.train)[..., 0].mean())]
    for _ in range(6):
        learner.train(rollouts // 6)
        steps.append(learner.steps)
        right.append(float(right_to_go(mine, task, task.train)[..., 0].mean()))
    names = ("reward", "truncated", "silent_groups", "entropy")
    last = learner.problem.sample(lesson.noise(use=11, dtype=double))
    drawn = last.log_prob if last.sampler_log_prob is None else last.sampler_log_prob
    apart = float((last.log_prob - drawn)[last.mask].abs().mean())
    return Run(steps, right, {name: learner.history[name].tolist() for name in names}, apart)


def tell(**runs):
    """The log of each run, its first and its last three rollouts averaged, and J."""
    print(f"{'':<24}reward        cut           silent groups entropy       J")
    for name, run in runs.items():
        pieces = []
        for column in ("reward", "truncated", "silent_groups", "entropy"):
            first, last = (sum(part) / 3 for part in (run.log[column][:3], run.log[column][-3:]))
            pieces.append(f"{first:.2f} → {last:.2f}")
        pieces.append(f"{run.right[0]:.2f} → {run.right[-1]:.2f}")
        print(f"{name.replace('_', ' '):<24}" + "   ".join(pieces))


def curves(title, text, **runs):
    """J along each run; the first is the faulty one."""
    figure, [ax] = figures.new_figure(width=6.8, height=2.5)
    for (name, run), colour, dash in zip(
        runs.items(),
        ("#b8320f", "#00875f", "#332288", "#9a6a00"),
        (figures.SOLID, figures.DASH, figures.DOT, figures.DASHDOT),
        strict=False,
    ):
        ax.plot(run.steps, run.right, color=colour, linestyle=dash, label=name.replace("_", " "))
    ax.set_ylim(0, max(0.1, 1.15 * max(max(run.right) for run in runs.values())))
    figures.describe(ax, title, "rollouts", "J, exact")
    figures.label_ends(ax)
    lesson.picture(figure, text)


# %%
healthy = train()
tell(healthy=healthy)

# %% [markdown]
# J is the share of right answers, computed exactly on all questions. It goes from .36 to .53, and keeps rising. That is the curve that every fault below is held against.
#
# ## First: read ten answers
#
# Print prompt and answer as the model sees them, tokens and all. It takes a minute and finds the two most common causes.
#
# ### 1 · Answers are cut at the limit
# The limit here is one token too short, so no answer reaches its end, and no check passes:

# %%
short = dataclasses.replace(task, target=task.target[:, :2].contiguous())  # a limit of 2 tokens
cut = train(asks=short)
tell(limit_of_2=cut, limit_of_3=healthy)
curves(
    "cut at the limit",
    "With a limit of two tokens J stays at 0.36; with three it rises to 0.53.",
    limit_of_2=cut,
    limit_of_3=healthy,
)

# %% [markdown]
# **Look at** the share that is cut: 100 %. **Cure**: raise the limit (`max_completion_length` in TRL) until a few per cent are cut; or say in the prompt how long an answer may be. Leaving cut answers out of the loss (`mask_truncated_completions`) does not help where all are cut: nothing is left.
#
# ### 2 · Nobody pays for the end token

# %% jupyter={"source_hidden": true}
lesson.ask("no-end")

# %%
options = {"rate": 5e-3, "rollouts": 60, "estimator": ladder.group_std}
without = train(untrained, reward=DigitCredit(), **options)
with_end = train(untrained, reward=DigitCredit(end=True), **options)
tell(digits_alone=without, digits_and_end=with_end)
curves(
    "from random weights, credit for each digit",
    "With credit for digits alone J stays at 0; with the end token credited it rises to 0.2.",
    digits_alone=without,
    digits_and_end=with_end,
)

# %% [markdown]
# Here the *logged* reward rises, and the accuracy that you care about is flat. **Look at** the share that is cut, and at the answers: two digits and then more characters, up to the limit. **Cure**: let the reward look at the whole answer with its end.
#
# ## Second: call the reward by hand
#
# ### 3 · The reward never fires
# This reward wants the answer to begin with `=`, as its author's prompts did. No answer ever does:

# %%
class Insisting(ExactMatch):
    """Pays only where the answer begins with '='."""

    def __call__(self, completion, question, task):
        return super().__call__(completion, question, task) * (completion[..., 0] == 14)


never = train(reward=Insisting())
tell(wants_an_equals_sign=never, right=healthy)
known = task.target[78]  # 7+8=15 and the end: an answer that is known to be right
for name, reward in (("Insisting", Insisting()), ("ExactMatch", ExactMatch())):
    print(f"{name} pays {float(reward(known, torch.tensor(78), task)):.0f} for a right answer")
curves(
    "a reward that never fires",
    "With a reward that never fires J stays at 0.36.",
    wants_an_equals_sign=never,
    right=healthy,
)

# %% [markdown]
# In the log this looks like 1, but nothing is cut. **Look at** what the reward pays for an answer that you know to be right, and for one that you know to be wrong. Two calls. **Cure**: mend the parser. An exception that is caught and returned as 0 is the usual culprit.
#
# ## Third: look at the groups
#
# ### 4 · Wrong grouping
# Eight answers to each of 32 questions come as 256 rows. Which row belongs to which question? There are two ways to be wrong about it. The sampler repeats each question eight times in a row, $q_1q_1\dots q_2q_2\dots$; the reward function gets $q_1q_2\dots q_1q_2\dots$. Or the rewards are right, and the *mean* is taken over rows of eight answers to different questions.

# %% jupyter={"source_hidden": true}
lesson.ask("wrong-rows")

# %% jupyter={"source_hidden": true}
from course.parts import Baseline, GroupMean


def cut_wrongly(tensor):
    """[..., Q, G] → the same numbers in rows of G that hold answers to different questions."""
    return tensor.transpose(-1, -2).reshape(tensor.shape)


def put_back(rows):
    """Undo `cut_wrongly`: [..., Q, G]."""
    *runs, questions, group = rows.shape
    return rows.reshape(*runs, group, questions).transpose(-1, -2)


@dataclasses.dataclass(frozen=True)
class MixedMean(Baseline):
    """The mean of a row that is no group."""

    def __call__(self, returns, rollout):
        rows = GroupMean()(cut_wrongly(returns), rollout).squeeze(-1).expand(returns.shape)
        return put_back(rows).unsqueeze(-1)


# %%
class Tiled(LanguageModel):
    """Judges the answers of each question against other questions' solutions."""

    def judged_against(self, tokens, question):
        count, group = tokens.shape[:-1]
        return question.repeat(group).view(count, group)  # q1 q2 … q1 q2 …: the fault


judged = train(problem=Tiled)
mixed = train(estimator=course.replace(ladder.group_mean, baseline=MixedMean()))
tell(judged_by_other_rows=judged, mean_of_other_rows=mixed, right=healthy)
curves(
    "two ways to mix rows",
    "Judged against other questions J falls to 0.19; with the mean of mixed rows it rises like the"
    " right one.",
    judged_by_other_rows=judged,
    mean_of_other_rows=mixed,
    right=healthy,
)

# %% [markdown]
# The first one is fatal: about 8 % of the answers are paid, since sums such as 9 are frequent, and the policy learns the frequent sums. The second one hardly shows here: a mean over other questions is still a baseline. It costs where questions are paid differently (lesson 06, *Break it*), and with a std. **Look at** one group with its prompt, answers and rewards, printed side by side. **Cure**: an assertion that all prompts of a group are equal, before the advantages.
#
# ## Do it: group by the prompt

# %%
by_prompt = lesson.exercise("by-prompt")

# %%
def my_advantages(prompt, reward):
    """prompt [N]: the number of each row's question; reward [N]; rows in any order → r − mean of
    the rows with the same question, [N].
    """
    return NotImplemented


by_prompt.check(my_advantages)

# %% [markdown]
# ### 5 · Groups without variance
# From random weights one answer in some 7,000 is right. Nearly every group holds eight wrong answers, all advantages are 0, and there is no gradient:

# %%
silent = train(untrained)
larger = train(untrained, prompts=8, group=32)
tell(groups_of_8=silent, groups_of_32=larger, credit_for_digits=with_end, warm_start=healthy)
curves(
    "groups without variance",
    "From random weights J stays near 0 with groups of 8 and of 32; from the warm start it rises to"
    " 0.53.",
    groups_of_8=silent,
    groups_of_32=larger,
    warm_start=healthy,
)

# %% [markdown]
# **Look at** the share of silent groups, and whether they are all wrong or all right. **Cure**: where all is wrong, easier questions, credit for parts, or SFT first. A larger group helps where $p$ is near $\frac1G$, and here $p$ is hundreds of times smaller. Where all is right, harder questions. Some silent groups are no illness: about a tenth of the healthy run's groups are silent.
#
# ## Fourth: count
#
# ### 6 · Batch and generation counts confused

# %% jupyter={"source_hidden": true}
lesson.ask("eight")

# %%
one = train(prompts=1, group=8)
tell(one_question_x_8=one, questions_32_x_8=healthy)
curves(
    "8 answers, or 8 questions?",
    "With one question per update J falls to 0.2 and wanders; with 32 questions it rises to 0.53.",
    one_question_x_8=one,
    questions_32_x_8=healthy,
)

# %% [markdown]
# A “batch size of 8” with 8 generations is **one question**. Each step makes the model better at that one and forgets others. **Look at** the shape: how many *questions* does one update see? **Cure**: count in answers. In TRL the batch size counts answers; in verl the train batch counts questions.

# %%
counts = lesson.exercise("counts")

# %%
def questions_per_update(per_device, processes, accumulation, generations):
    """TRL: answers per device and forward pass, devices, gradient accumulation steps, G → how many
    different questions one optimiser step sees.
    """
    return NotImplemented


counts.check(questions_per_update)

# %% [markdown]
# ## Fifth: the step
#
# ### 7 · One learning rate for all variants
# “My variant is flat” often means: it runs at the learning rate that suits another. Two variants, one update per rollout and four, at three rates:

# %%
rates = (1e-4, 1e-3, 1e-2)
sweep = {
    (epochs, rate): train(rate=rate, epochs=epochs)
    for epochs in (1, 4)
    for rate in rates
}
print("J after 30 rollouts         " + "".join(f"{f'rate {rate:g}':>12}" for rate in rates))
for epochs in (1, 4):
    row = "".join(f"{sweep[epochs, rate].right[-1]:>12.2f}" for rate in rates)
    print(f"{f'{epochs} updates per rollout':<28}{row}")

# %% [markdown]
# At 1e-2 four updates look harmful, at 1e-3 they help: the answer to “which variant is better” was the choice of a rate. **Look at** a sweep of at least three rates a factor of three to ten apart, for each arm of the comparison; the best must lie inside. **Cure**: choose anew for each variant, on other seeds than those you report.
#
# ## Sixth: the policy
#
# ### 8 · The entropy is gone
# A model that is sure gives the same answer eight times. Here the logits are six times as large, as after far too much SFT. Greedy it answers as before:

# %%
sure = model.copy()
sure.weights["head"] = sure.weights["head"] * 6
frozen = train(sure)
warm = train(sure, temperature=6.0)
tell(too_sure=frozen, at_temperature_6=warm, healthy=healthy)
curves(
    "too sure to try anything",
    "The sure model stays near 0.5; sampled and scored at temperature 6 it rises to 0.68.",
    too_sure=frozen,
    at_temperature_6=warm,
)

# %% [markdown]
# **Look at** the entropy, and at silent groups that are all wrong. **Cure**: sample *and score* at a higher temperature; begin from an earlier checkpoint; a smaller learning rate, if it fell during RL; an entropy bonus or clip-higher before it is gone. Afterwards is late: what is never sampled is never learned.
#
# ## Last: the sampler
#
# ### 9 · The sampler is not the learner
# Another program draws the answers, and the new weights never arrive there. The learner trains on answers of the model that it was at the start.

# %% jupyter={"source_hidden": true}
lesson.ask("never-synced")

# %%
from course.parts import SequenceTIS

apart = train(stale=True, rollouts=48)
together = train(rollouts=48)
weighed = train(
    stale=True, rollouts=48, estimator=course.replace(ladder.group_mean, correction=SequenceTIS())
)
tell(never_synced=apart, synced=together, never_synced_weighed=weighed)
for name, run in (("never synced", apart), ("synced", together)):
    print(f"{name}: mean |log π − log μ| of a fresh rollout {run.apart:.2g}")
curves(
    "an old sampler",
    "Never synced, J falls below 0.1; synced it rises to 0.54; never synced but with importance"
    " weights it rises to 0.59.",
    never_synced=apart,
    synced=together,
    never_synced_weighed=weighed,
)

# %% [markdown]
# The logged reward stays around .36, since it is the *old* model's. The learner's own accuracy falls: it is pushed along a gradient that belongs to another policy, again and again. **Look at** $\log\pi-\log\mu$ of the sampled tokens before the first update, where μ is the sampler: it must be 0, up to rounding. **Cure**: send the weights. Where sampler and learner differ by a little and always will (other kernels, other precision, a few updates of delay), weigh each answer by its truncated ratio $\min(\pi_{old}/\mu,\,C)$: **truncated importance sampling**, TIS. Here it repairs even a sampler that is 48 rollouts old, because three tokens make a tame ratio. Do not count on that with a thousand.
#
# ## All in one place

# %% jupyter={"source_hidden": true}
CAUSES = {
    "1 cut at the limit": cut,
    "2 end not paid": without,
    "3 never fires": never,
    "4 judged by other rows": judged,
    "5 groups without variance": silent,
    "6 one question": one,
    "7 rate too large": sweep[4, 1e-2],
    "8 entropy gone": frozen,
    "9 never synced": apart,
}
COLUMNS = {
    "reward": "logged reward",
    "truncated": "share cut",
    "silent_groups": "share of silent groups",
    "entropy": "entropy, nats per token",
}


def smooth(row, width=5):
    """A running mean, so that a curve of 30 rollouts can be read."""
    row = torch.tensor(row, dtype=double)
    kernel = torch.ones(1, 1, width, dtype=double) / width
    padded = torch.nn.functional.pad(row[None, None], (width // 2, width // 2), mode="replicate")
    return torch.nn.functional.conv1d(padded, kernel)[0, 0]


def draw_cause(cause):
    figure, panels = figures.new_figure(1, 4, width=10.4, height=2.6)
    for ax, (column, title) in zip(panels, COLUMNS.items(), strict=True):
        for run, colour, dash in (
            (healthy, "#999999", figures.DASH),
            (CAUSES[cause], "#b8320f", figures.SOLID),
        ):
            row = smooth(run.log[column])
            share = torch.linspace(0, 1, len(row))
            ax.plot(share, row, color=colour, linestyle=dash)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 1], ["start", "end"])
        ax.set_ylim(-0.03, 3.0 if column == "entropy" else 1.05)
        figures.describe(ax, title, "", "")
    return figure


# %%
lesson.explore(
    "causes",
    draw_cause,
    "Red is the fault, grey the healthy run. Which column gives each fault away? One of the nine"
    " looks healthy in all columns but for a reward that stays where it was.",
    cause=Choice(tuple(CAUSES), "1 cut at the limit", "cause"),
)

# %% [markdown]
# ## Break it
#
# One more run, from somebody else. The reward is the right one, called by hand it pays 1 for a right answer. The limit is three tokens. It starts from the same warm start as the healthy run.

# %% jupyter={"source_hidden": true}
suspect = lesson.hidden("suspect")  # in the file of exercises: look after you have answered
strange = train(asks=suspect(task))
tell(suspect=strange, healthy=healthy)
first = [run.log["reward"][0] for run in (strange, healthy)]
print(f"reward of the very first rollout: {first[0]:.2f}, healthy {first[1]:.2f}")

# %% jupyter={"source_hidden": true}
lesson.ask("which-cause")

# %% [markdown]
# Read what the model is asked:

# %%
from tinylm.tasks import decode

for asked in (suspect(task), task):
    print([decode(asked.prompt[row].tolist()) for row in (37, 78)], end="   ")
print()
lesson.code(suspect)

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# Read ten answers, call the reward by hand, print one group, count the questions of an update. Only then sweep the learning rate, and look at entropy and sampler. Seven of the nine causes lie outside of the algorithm, and most show in numbers that cost nothing to log: the share cut, the share of silent groups, the entropy, and $\log\pi-\log\mu$.
