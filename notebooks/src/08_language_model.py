# %% [markdown]
# # 08 · From bandits to a language model
#
# Seven lessons of bandits: does any of it hold for a language model? You will train one from scratch and list every answer it can give. After this lesson you can
#
# - write GRPO's training loop for a transformer in plain PyTorch;
# - say what SFT, preference tuning and reinforcement learning each replace, and why SFT is a policy gradient, too;
# - show that a prompt is a bandit whose arms are its completions, and where the token level departs from that, by how much;
# - find the fault of scoring without the sampling temperature before it costs a training run;
# - tell GRPO's aggregation from DAPO's.
#
# You need lessons 01 to 04, 06 and 07.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import dataclasses

import torch

import course
from course import ladder
from course.lab import figures
from course.lesson import Choice, Slider

lesson = course.setup("08")
ladder.grpo

# %% [markdown]
# ## Where this sits in the training of a model
#
# | stage | the data | what is maximised | whose answers |
# | --- | --- | --- | --- |
# | pre-training | text | $\log\pi_\theta$ of the text | nobody's in particular |
# | supervised fine-tuning (SFT) | questions with good answers | $\log\pi_\theta$ of those answers | the demonstrator's |
# | preference tuning | pairs: which of two answers is better | a reward model's score, or the pairs directly | mostly the policy's own |
# | reinforcement learning on verifiable rewards | questions with a check | $E[R]$, the ladder | the policy's own |
#
# Here the first stage is left out: the model is small enough to begin with SFT. (Stages can be skipped. “A Not So Gentle Introduction to PPO & GRPO” says that R1 skipped SFT; it was R1-**Zero** that did.)
#
# ## Questions, tokens, checks
#
# Sums of two numbers of one digit. A token is a character; one more token, number 18, written `⏎`, ends the answer. An answer has two digits, the first may be 0: `0+0=00⏎`.

# %%
from tinylm import tasks
from tinylm.tasks import decode, encode

task = tasks.make(tasks.TaskSettings(digits=1))
for row in (0, 37, 78):
    print(
        decode(task.prompt[row].tolist()),
        task.prompt[row].tolist(),
        "→",
        decode(task.target[row].tolist()),
        task.target[row].tolist(),
    )
print(
    f"{len(task.train)} questions to train on, {len(task.held_out)} held out, at most {task.limit}"
    f" tokens per answer, {tasks.VOCABULARY} tokens (17 characters, padding, end)"
)

# %% [markdown]
# No reward model is needed, since an answer can be **checked**. The reward is a function of the finished answer and is paid on its last token:
#
# $$R(q, o) = \mathbf 1[\,o \text{ is the right answer, and ends there}\,]. \tag{8.1}$$
# `eq:verifiable-reward` · DeepSeek-AI 2025 (R1, 2501.12948), §2.2.2
#
# Softer checks exist: the share of right digits, or the format alone.

# %% jupyter={"source_hidden": true}
from tinylm.rewards import DigitCredit, ExactMatch, Format

lesson.code(ExactMatch)
question = 78  # 7+8=
for text, tokens in (
    ("15⏎", [1, 5, tasks.END]),
    ("14⏎", [1, 4, tasks.END]),
    ("5⏎", [5, tasks.END, tasks.PAD]),
    ("153", [1, 5, 3]),
    ("1+⏎", [1, 10, tasks.END]),
):
    answer = torch.tensor(tokens)
    print(
        text,
        *(
            f"{type(reward).__name__} {float(reward(answer, torch.tensor(question), task)):.2g}  "
            for reward in (ExactMatch(), DigitCredit(), Format())
        ),
    )

# %% [markdown]
# ## A nano transformer
#
# One block, two heads. It maps the tokens so far to a distribution over the next one: that is the whole policy. You can read it in one sitting, from the last function up: `log_probs` asks for hidden states, which blocks make
# of tokens, and each block is attention and a small network. Comments give the shapes: $L$ tokens, $d$ numbers per token, $H$ heads, $V$ tokens to choose from.

# %%
from tinylm.model import MLP, PRESETS, Attention, Block, Transformer

double = {"dtype": torch.float64}  # so that your numbers are these
settings = dataclasses.replace(PRESETS["nano"], context=task.context)
model = Transformer(settings, **double)
print(settings, f"\n{model.size:,} weights")
lesson.code(Attention, MLP, Block, Transformer.hidden, Transformer.log_probs)

# %% [markdown]
# The probability of an answer is the product over its tokens,
#
# $$\log\pi_\theta(o\mid q) = \sum_{t=1}^{|o|}\log\pi_\theta(o_t\mid q, o_{<t}). \tag{8.2}$$
# `eq:answer-log-prob` · the chain rule of probability
#
# The course's own training computes the same numbers on a quicker path, [`tinylm/fast`](../tinylm/fast/forward.py): the question, and the first tokens that several answers share, are computed once, and sampling keeps
# keys and values. [Tests](../tests/tinylm/fast/test_forward.py) compare values, gradients and second derivatives of the two. Below, whatever scores many answers at once takes the quick path.
#
# ## The training loop
#
# Lesson 01 wrote the training loop for a bandit, in plain PyTorch. For a transformer it takes the same turns. First on **demonstrations**, questions with their right answers, so that the model is right now and then: get a batch, ask the model for
# $\log\pi$, make a loss, differentiate, shorten a gradient longer than 1, step.

# %%
from tinylm.warm_start import LIKELIHOOD, Demonstrations


def warm_up(model, problem, noise, updates):
    """Train on demonstrations, in place."""
    optimizer = torch.optim.Adam(model.parameters, lr=1e-2)
    for update in range(updates):
        batch = problem.sample(noise)
        tokens = batch.data["tokens"]  # [128, 1, 3]: one answer to each of 128 questions
        prompt = batch.data["prompt"].unsqueeze(1)  # [128, 1, 4]
        log_prob = model.log_probs(prompt, tokens)  # [128, 1, 3], 0 at padding
        loss = -log_prob.sum() / batch.mask.sum()  # the mean over tokens
        gradients = torch.autograd.grad(loss, model.parameters)
        length = float(sum(g.square().sum() for g in gradients)) ** 0.5
        for weight, g in zip(model.parameters, gradients, strict=True):
            weight.grad = g * min(1.0, 1.0 / length)
        optimizer.step()
        if update in (0, 19, 79):
            print(f"update {update + 1:2}: loss {loss.item():.2f} nats per token")


untrained = model.copy()
demonstrations = Demonstrations(model, task, batch=128)
warm_up(model, demonstrations, lesson.noise(use=1, **double), 80)

# %% [markdown]
# `Learner` takes the same turns: a problem that samples, an estimator that makes the loss, an optimiser, a cut. The two sets of weights agree:

# %%
from course.learner import Learner
from course.train.optim import Adam


def trainable(of):
    """A copy of a model whose weights can be trained."""
    new = of.copy()
    for weight in new.parameters:
        weight.requires_grad_()
    return new


by_learner = trainable(untrained)
Learner(
    Demonstrations(by_learner, task, batch=128),
    LIKELIHOOD,
    Adam(1e-2),
    lesson.noise(use=1, **double),
    max_grad_norm=1.0,
).train(80)
apart = max(
    float((a - b).detach().abs().max())
    for a, b in zip(model.parameters, by_learner.parameters, strict=True)
)
print(f"80 updates by hand and by Learner: weights equal to 1e-8: {apart < 1e-8}")
lesson.code(Learner.step)

# %% [markdown]
# ### Do it: GRPO's loop
#
# Now the policy writes the answers itself. `LanguageModel` is the problem: it asks questions, samples $G$ answers to each, checks them, and returns a `Rollout` with the axes `[Q, G, T]`, as a bandit does. A frozen copy of the
# model is the reference. What is left is yours: for every rollout the group's advantages, and then several updates with ratio, clip, KL and $1/|o|$. Your weights are compared with those of `Learner` and `ladder.grpo`.

# %%
from tinylm.problem import LanguageModel

problem = LanguageModel.of(ladder.grpo, model, task, prompts=8, group=4)
rollout = problem.sample(lesson.noise(use=3, **double))
for name in ("log_prob", "ref_log_prob", "mask", "total_reward"):
    print(f"rollout.{name:13}", tuple(getattr(rollout, name).shape))
for name in ("prompt", "tokens"):
    print(f'rollout.data["{name}"]', tuple(rollout.data[name].shape))
loop_exercise = lesson.exercise("training-loop", model=model, task=task)

# %%
def my_training(model, problem, noise, rollouts, epochs):
    """Train `model` in place: `rollouts` times problem.sample(noise) and `epochs` updates on it.

    Group mean and std (divisor G, + 1e-6), ratio per token, clip at 1 ± .2, minus .04·k3, 1/|o|,
    the mean over answers; torch.optim.Adam at 1e-3. rollout.log_prob is log π_old of the tokens.
    model.log_probs takes prompt [Q, G, 4] and tokens [Q, G, 3], and gives [Q, G, 3].
    """
    return NotImplemented


loop_exercise.check(my_training)

# %% [markdown]
# ### Which curve does one watch, and is this on-policy?
# <!-- answers: 37 -->
# Train for a while, 64 questions × 8 answers per rollout, four updates on each, and look at a fresh rollout every ten:

# %%
from tinylm.evaluate import accuracy, right_to_go

trained = trainable(model)
problem = LanguageModel.of(ladder.grpo, trained, task, prompts=64, group=8)
learner = Learner(problem, ladder.grpo, Adam(1e-3), lesson.noise(use=10, **double), epochs=4)
print("rollouts   J, exact   loss of a fresh rollout   largest ρ at update 1   at update 4")
for look in range(4):
    fresh = problem.sample(lesson.noise(use=11 + look, **double))
    with torch.no_grad():
        policy = problem.policy(fresh)
        loss = float(ladder.grpo.loss(policy, fresh))
        first = float((policy.log_prob - fresh.log_prob)[fresh.mask].exp().max())
    chance = float(right_to_go(trained, task, task.train)[:, 0].mean())
    learner.step(log=True)
    last = float(learner.history["ratio_max"][-1])
    print(f"{10 * look:8}   {chance:8.3f}   {loss + 0.0:23.4f}   {first:21.3f}   {last:11.2f}")
    if look < 3:
        learner.train(9)

# %% [markdown]
# J rises from .36 to .57, and the loss of a fresh rollout goes from 0 to .004. The loss is the negative mean of the advantages, which is 0 in every group, plus β times the KL, and that grows as the policy leaves the reference. So watch the reward and not the loss. On a fresh rollout every ρ is 1: the first update is **on-policy**. By the fourth
# update the same samples are **off-policy**, with a ρ of up to 3.57; that is what ratio and clip are for.
#
# ### Batch size, steps per generation, number of generations (optional)
# <!-- answers: 44 -->
# How do they fit together? Four numbers say it all: $Q$ prompts, $G$ answers to each, and the rollout is used for `epochs` passes of `minibatches` updates. Count the updates:

# %%
class Watched(LanguageModel):
    """The same problem, which keeps the model as it was before each update."""

    def policy(self, rollout):
        self.seen.append((self.model.copy(), tuple(rollout.mask.shape)))
        return super().policy(rollout)


for epochs, minibatches in ((1, 1), (1, 4), (4, 1), (2, 4)):
    counting = Watched(trainable(model), task, prompts=64, group=8)
    counting.seen = []
    noise = lesson.noise(use=5, **double)
    Learner(
        counting, ladder.clip, Adam(1e-3), noise, epochs=epochs, minibatches=minibatches
    ).step()
    shape = counting.seen[0][1]
    print(
        f"64 prompts × 8 = 512 answers, epochs {epochs}, minibatches {minibatches}:"
        f" {len(counting.seen)} updates, each on {shape[0]} × {shape[1]} answers"
    )

# %% [markdown]
# Only the first update of a rollout is on policy. In TRL a rollout has `per_device_train_batch_size` × processes × `steps_per_generation` answers, `num_generations` of them to each prompt, and serves
# `num_iterations` × `steps_per_generation` / `gradient_accumulation_steps` updates. In verl it has `train_batch_size` prompts × `rollout.n` answers, and serves `ppo_epochs` × `train_batch_size` / `ppo_mini_batch_size` updates.
#
# ## SFT is a policy gradient on demonstrations
#
# Training on demonstrations is called supervised fine-tuning, SFT. With demonstrated answers $o^*$ it maximises their log-likelihood, above as a mean over tokens:
#
# $$L_{\text{SFT}}(\theta) = \frac{1}{\sum_i|o^*_i|}\sum_i\sum_{t=1}^{|o^*_i|}\log\pi_\theta(o^*_{i,t}\mid q_i,o^*_{i,<t}). \tag{8.3}$$
# `eq:sft-log-likelihood` · Ouyang et al. 2022 (InstructGPT), §3.5
#
# Up to the divisor its gradient is $\sum 1\cdot\nabla\log\pi$. Put it beside $E_{o\sim\pi}[R\,\nabla\log\pi]$: the score is the same, every reward is 1, and the answers come from the demonstrator in place of the policy. So it
# needs no code of its own: it is the estimator of lesson 01 with another aggregation.

# %%
LIKELIHOOD

# %% jupyter={"source_hidden": true}
from tinylm.scoring import log_dists

demonstrations = Demonstrations(untrained, task, batch=128)
batch = demonstrations.sample(lesson.noise(use=9, **double))
log_dist = log_dists(untrained, batch.data["prompt"], batch.data["tokens"])
ours = LIKELIHOOD.loss(demonstrations.policy(batch), batch).detach()
theirs = torch.nn.functional.cross_entropy(
    log_dist[batch.mask], batch.data["tokens"][batch.mask]
).detach()
print(
    f"the estimator's loss {ours:.3g} is torch's cross-entropy to 1e-12:"
    f" {abs(float(ours - theirs)) < 1e-12}; before training ln 18 = {torch.tensor(18.0).log():.3g}"
    " would be even chances"
)

# %% [markdown]
# The other way round, REINFORCE on rewards of 0 and 1 without a baseline is SFT on **one's own right answers**: the wrong ones have weight 0. Here is what SFT did, and then the two gradients on one rollout:

# %% jupyter={"source_hidden": true}
for name, each in (("untrained", untrained), ("after SFT", model)):
    sampled = LanguageModel(each, task, prompts=256, group=4).sample(lesson.noise(use=2, **double))
    shaped = Format()(
        sampled.data["tokens"], sampled.data["question"].unsqueeze(-1).expand(256, 4), task
    ).mean()
    greedy = accuracy(each, task, questions=task.train).mean()
    print(
        f"{name}: {sampled.total_reward.mean():.1%} of the samples right, {shaped:.1%} well-formed;"
        f" greedy {greedy:.1%}"
    )

# %% jupyter={"source_hidden": true}
from tinylm.fast.packing import pack

rollout = LanguageModel(model, task, prompts=64, group=8).sample(lesson.noise(use=3, **double))
apart, shared = (
    pack(rollout.data["prompt"], rollout.data["tokens"], merge=merge)[0].tokens.numel()
    for merge in (False, True)
)
print(
    f"to compute for one update: {apart:,} tokens with each question once, {shared:,} with each"
    " common beginning once"
)


def gradient(estimator, rollout):
    """The estimator's gradient on a rollout, as one vector."""
    policy = LanguageModel(model, task).policy(rollout)
    return torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(
                estimator.objective(policy, estimator.freeze(rollout)), model.parameters
            )
        ]
    )


policy = LanguageModel(model, task).policy(rollout)
# log-likelihood of the right ones, per sample drawn
own = policy.log_prob[rollout.total_reward == 1].sum() / rollout.total_reward.numel()
own_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(own, model.parameters)])
print(
    "REINFORCE's gradient is that of SFT on one's own right answers, to 1e-12:",
    torch.allclose(gradient(ladder.reinforce, rollout), own_gradient, atol=1e-12),
)

# %% [markdown]
# So what a baseline adds is the wrong answers: they get a negative advantage, and the policy learns from what it should not say.

# %% jupyter={"source_hidden": true}
lesson.ask("format")

# %% [markdown]
# ## Format rewards: stuck at 0, or amplified
# <!-- answers: 25 -->
# Two complaints about format rewards have one cause each. **Stuck at 0:** a reward that no sample ever gets teaches nothing, since the groups are silent. Above you saw that .1 % of the untrained model's samples are right and 4 % well-formed;
# SFT makes the first reward likely. **Amplified:** where everything else in a group is equal, the std divides the bonus by itself.

# %% jupyter={"source_hidden": true}
from course.rollout import Rollout


def of_rewards(rewards, lengths=None):
    """Rewards [Q, G] (and lengths) as a rollout, the reward on the last token."""
    rewards = torch.tensor(rewards, dtype=torch.float64)
    lengths = (
        torch.ones_like(rewards, dtype=torch.long) if lengths is None else torch.tensor(lengths)
    )
    place = torch.arange(int(lengths.max()))
    mask = place < lengths.unsqueeze(-1)
    paid = torch.where(place == lengths.unsqueeze(-1) - 1, rewards.unsqueeze(-1), 0.0)
    return Rollout(paid, torch.zeros_like(paid), mask)


for rewards in ([0, 0, 0, 0.1], [0, 0, 0, 1], [0, 0, 0, 0]):
    for estimator in (ladder.group_mean, ladder.group_std):
        shown = estimator.freeze(of_rewards([rewards])).advantage.flatten().tolist()
        print(f"{rewards!s:18s} {ladder.name_of(estimator):11s}", [f"{a:.2f}" for a in shown])

# %% [markdown]
# ### My reward stays flat. Why? (optional)
# <!-- answers: 30 -->
# Three causes are outside of the algorithm, and each shows in a number that costs nothing to log. The same model, 256 questions × 8 answers:

# %%
from tinylm.sampling import sample

asked = task.train[torch.arange(256) % len(task.train)]


class Insisting(ExactMatch):
    """Pays only where the answer begins with '='. The model never writes it."""

    def __call__(self, completion, question, task):
        return super().__call__(completion, question, task) * (completion[..., 0] == 14)


for name, prompt, limit, reward in (
    ("as trained", task.prompt[asked], 3, ExactMatch()),
    ("cut after 2 tokens", task.prompt[asked], 2, ExactMatch()),
    ("prompt without its =", task.prompt[asked][:, :3], 3, ExactMatch()),
    ("reward wants '=' first", task.prompt[asked], 3, Insisting()),
):
    made = sample(model, prompt, 8, limit, lesson.noise(use=12, **double))
    tokens = torch.nn.functional.pad(made.tokens, (0, 3 - limit), value=tasks.PAD)
    paid = reward(tokens, asked.unsqueeze(-1).expand(256, 8), task)
    silent = (paid == paid[:, :1]).all(-1).double().mean()
    print(
        f"{name:23} mean reward {paid.mean():.2f}   cut {made.truncated.double().mean():.2f}"
        f"   silent groups {silent:.2f}"
    )

# %% [markdown]
# In the last three rows the reward is nearly 0 and at least 93 % of the groups are silent. In the first of them every answer is cut: raise the limit. In the second the prompt lacks a token that the model was trained with (a chat template, in a larger model): it is right 2 % of the time. In the third nothing is cut and the prompt is right, so
# the reward function is to blame: call it on an answer that you know to be right.

# %% [markdown]
# ## A prompt is a bandit
#
# Look at one question, and at the answer as a whole. The policy chooses one of finitely many completions, and gets a reward. That is a bandit, and its arms can be listed. With 17 characters to choose from, and an
# end token, there are
#
# $$K = \sum_{t=0}^{T-1} 17^t + 17^T = \sum_{t=0}^{T}17^t \tag{8.4}$$
# `eq:number-of-completions` · counting: those that end after $t$ characters, and those cut at the limit
#
# completions of at most $T$ tokens. Then, with (8.2) for the arms' probabilities,
#
# $$J(q) = \sum_{k=1}^{K}\pi_\theta(o_k\mid q)\,R_k, \qquad \nabla_\theta J(q) = \sum_k \pi_\theta(o_k\mid q)\,R_k\sum_t\nabla_\theta\log\pi_\theta(o_{k,t}\mid q,o_{k,<t}) \tag{8.5}$$
# `eq:prompt-objective` · lesson 01, with completions in the place of arms
#
# without sampling anything.

# %% jupyter={"source_hidden": true}
lesson.ask("arms")

# %% jupyter={"source_hidden": true}
from tinylm.bridge import Bridge, count

# J(q) of all questions, by one forward pass
chance = right_to_go(model, task, torch.arange(100))[:, 0]
question = int((chance - 0.5).abs().argmin())
bridge = Bridge(model, task, question)
text = decode(task.prompt[question].tolist())
print(
    f"{text} has {len(bridge.tokens):,} completions ({count(3):,} by (8.4)); their probabilities"
    f" sum to 1 to 1e-12: {abs(float(bridge.log_prob.exp().sum()) - 1) < 1e-12}"
)
print(f"J = {bridge.objective:.3g}; the share of right ones among 4,000 samples: ", end="")
drawn = sample(model, task.prompt[question][None], 4000, 3, lesson.noise(use=4, **double)).tokens
print(f"{float(ExactMatch()(drawn, torch.full(drawn.shape[:-1], question), task).mean()):.2f}")
top = bridge.log_prob.exp().topk(5)
print(
    "five likeliest arms:",
    ", ".join(
        f"{decode(bridge.tokens[k].tolist())} {p:.2f} (R = {bridge.reward[k]:.0f})"
        for p, k in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ),
)

# %% [markdown]
# How do the bandit's gradients become the transformer's? Let $c_k$ be what an estimator multiplies the score of arm $k$ with. By the chain rule
#
# $$\hat g_\theta = \sum_k c_k\,\nabla_\theta\log\pi_\theta(o_k\mid q) = \sum_k c_k \sum_t\nabla_\theta\log\pi_\theta(o_{k,t}\mid q, o_{k,<t}), \tag{8.6}$$
# `eq:pull-back` · the chain rule with (8.2)
#
# one backward pass. On policy and without $1/|o|$ the $c_k$ depend on probabilities and rewards alone, not on the network. So what you have found out about them on bandits holds here exactly, question by question: bias, $w_G(p)$, silent groups.

# %% jupyter={"source_hidden": true}
from course.exact import group_mean_factor, group_std_weight

lesson.code(Bridge.pull_back)
slope = bridge.gradient
print(
    f"RLOO, G = 4: E[ĝ] = ∇J on {model.size:,} weights, to 1e-10:"
    f" {bridge.microscope(ladder.rloo, 4, spread=False).relative_bias < 1e-10}"
)
mean = bridge.microscope(ladder.group_mean, 4, spread=False).expected
print(
    f"group mean, G = 4: E[ĝ] is {mean @ slope / (slope @ slope):.3g} ∇J;"
    f" lesson 06 says {group_mean_factor(4):.3g}"
)
for group in (2, 4, 8):
    found = bridge.microscope(ladder.group_std, group, spread=False).expected
    along = float(found @ slope / (slope @ slope))
    said = float(group_std_weight(bridge.objective, group, eps=1e-6))
    print(
        f"group std, G = {group}: E[ĝ] is {along:.3g} ∇J and nothing beside it:"
        f" {float((found - along * slope).norm() / slope.norm()) < 1e-10}; lesson 06's w_G(p) says"
        f" {said:.3g}"
    )

# %% [markdown]
# ## Before and after one update (optional)
#
# What does a step do to the next-token distribution? The rollout above is 64 questions with 8 answers each. Move the weights along a rung's gradient by a given **length** and look at a question of your choice. Then make the step longer: a gradient says nothing about long steps.

# %% jupyter={"source_hidden": true}
steps = {}
for name in ("reinforce", "baseline", "group_mean", "group_std"):
    direction = gradient(ladder.get(name).estimator, rollout)
    pieces = (direction / direction.norm()).split([w.numel() for w in model.parameters])
    steps[name] = {n: g.view_as(w) for (n, w), g in zip(model.weights.items(), pieces, strict=True)}
SHOWN = [*range(10), tasks.END]
NAMES = [*"0123456789", "⏎"]


def draw_update(rung, asked, place, length):
    row = int((task.prompt == torch.tensor(encode(asked))).all(-1).nonzero())
    at = ["first token", "second token", "end"].index(place)
    moved = model.copy()
    moved.weights = {
        name: weight + length * steps[rung][name] for name, weight in moved.weights.items()
    }
    figure, [ax] = figures.new_figure(width=7.2, height=3.0)
    with torch.no_grad():
        for who, shift, colour, label in (
            (model, -0.2, "#999999", "before"),
            (moved, 0.2, figures.style_of(rung)["color"], "after"),
        ):
            log_dist = log_dists(who, task.prompt[row][None], task.target[row][None, None])
            ax.bar(
                [i + shift for i in range(len(SHOWN))],
                log_dist[0, 0, at].exp()[SHOWN].tolist(),
                0.4,
                color=colour,
                label=(
                    f"{label} (right answers to all questions:"
                    f" {right_to_go(who, task, task.train)[:, 0].mean():.0%})"
                ),
            )
    right = SHOWN.index(int(task.target[row, at]))
    ax.set_xticks(range(len(SHOWN)), [f"[{n}]" if i == right else n for i, n in enumerate(NAMES)])
    ax.set_ylim(0, 1.1)
    ax.legend(frameon=False, loc="upper right", fontsize=10)
    figures.describe(
        ax,
        f"{asked}{decode(task.target[row, :at].tolist())}…   {rung}, step of length {length:.2g}",
        "next token, [the right one]",
        "probability",
    )
    return figure


lesson.explore(
    "update",
    draw_update,
    "next-token probabilities before and after an update; the right token is in brackets",
    rung=Choice(list(steps), value="group_mean", label="rung"),
    asked=Choice([text, "7+8=", "2+3=", "9+9="], label="question"),
    place=Choice(["first token", "second token", "end"], value="second token", label="which token"),
    length=Slider(-2.5, 0.0, 0.1, -1.5, "length of the step", log=True),
)

# %% [markdown]
# ## Where the token level departs
#
# So far the policy that is scored is the one that sampled. After an update it is not, and lesson 03's ratio comes in. For a bandit it is the **arm's**, the product over tokens:
# $\rho_i = \prod_t\rho_{i,t}$ with $\rho_{i,t} = \pi_\theta(o_{i,t})/\pi_{old}(o_{i,t})$, and
#
# $$\nabla J = E_{old}\Big[\rho_i A_i\sum_t\nabla\log\pi_\theta(o_{i,t})\Big] = E_{old}\Big[\sum_t\Big(\prod_s\rho_{i,s}\Big)A_i\nabla\log\pi_\theta(o_{i,t})\Big]. \tag{8.7}$$
#
# That is exact, however far the policy has moved, for $A_i=R_i-b$ with a $b$ that does not depend on answer $i$. (Giovanidis, in “GRPO is just PPO for bandits”, writes the ratio of whole outputs. DeepSeekMath's own objective for GRPO has a ratio **per token** and $1/|o_i|$.) With a ratio per token,
# $\nabla \sum_t\rho_{i,t}A_i = \sum_t\rho_{i,t}\,A_i\,\nabla\log\pi_\theta(o_{i,t})$:
# the factors of the *other* tokens are missing. What the surrogate claims about $J$ shows the same. With $\rho_{i,t} = 1 + x_t$,
# $\prod_t(1+x_t) - 1 = \sum_t x_t + {}$ products of two or more, so to first order
#
# $$\underbrace{J(\pi_{old}) + E_{old}\Big[\sum_t(\rho_{i,t}-1)A_i\Big]}_{\text{token level}} \;\approx\; \underbrace{J(\pi_{old}) + E_{old}\big[(\rho_i-1)A_i\big]}_{=\,J(\pi_\theta)} \tag{8.8}$$
# `eq:token-ratio-forecast` · Kakade & Langford 2002; the second is lesson 03's identity
#
# The right side is $J(\pi_\theta)$, since $E_{old}[\rho_i(R_i-b)]=J(\pi_\theta)-b$ and $E_{old}[R_i-b]=J(\pi_{old})-b$. How large are the products in practice? Take one rollout, use it for 32 updates with the bare ratio and no clip, which is harsher than usual practice, and list all arms after 1, 2, 4, 8, 16 and 32 of them.

# %% jupyter={"source_hidden": true}
lesson.ask("token-level")


# %% jupyter={"source_hidden": true}
from tinylm import token_level

watched = Watched(trainable(model), task, prompts=64, group=8)
watched.seen = []
Learner(
    watched,
    ladder.surrogate,
    Adam(1e-3),
    lesson.noise(use=5, **double),
    epochs=33,
    max_grad_norm=1.0,
).step()
old, moved = watched.seen[0][0], {n: watched.seen[n][0] for n in (1, 2, 4, 8, 16, 32)}
# hard to easy
asked = [int((chance - level).abs().argmin()) for level in torch.linspace(0.1, 0.75, 10).tolist()]
distances = [
    [
        token_level.ratio_row(Bridge(now, task, row, old=old, reference=old))
        for now in moved.values()
    ]
    for row in asked
]
print(
    "ratio per token: how far E[ĝ] is from ∇J, and the surrogate's forecast from J (10 questions)"
)
for n, column in zip(moved, zip(*distances, strict=True), strict=True):
    off = sorted(each["token"] for each in column)
    wrong = max(abs(each["forecast_token"] - each["J"]) for each in column)
    print(
        f"{n:2d} updates: {off[0]:.2%} to {off[-1]:.1%}, half of them below {off[5]:.1%}; forecast"
        f" off by up to {wrong:.1g}"
    )
print(
    "ratio of the answer: both exact to 1e-10:",
    max(each["sequence"] for row in distances for each in row) < 1e-10,
)

# %% jupyter={"source_hidden": true}
figure, panels = figures.new_figure(1, 2, width=8.8, height=3.5)
apart = [[each["kl"] for each in row] for row in distances]
for name, colour, marker, label in (
    ("token", "#b8320f", "o", "ratio per token"),
    ("sequence", "#00875f", "^", "ratio of the answer"),
):
    for i, (x, row) in enumerate(zip(apart, distances, strict=True)):
        y = [max(each[name], 1e-16) for each in row]
        panels[0].plot(
            x,
            y,
            linestyle="none",
            marker=marker,
            color=colour,
            markersize=5,
            label=label if i == 0 else None,
        )
panels[0].set_xscale("log")
panels[0].set_yscale("log")
panels[0].set_ylim(1e-17, 10)
panels[0].legend(frameon=False, loc="center")
figures.describe(panels[0], "how far E[ĝ] is off", "KL(π‖π_old), nats", "‖E[ĝ] − ∇J‖ / ‖∇J‖")
for name, colour, marker in (
    ("forecast_token", "#b8320f", "o"),
    ("forecast_sequence", "#00875f", "^"),
):
    for x, row in zip(apart, distances, strict=True):
        panels[1].plot(
            x,
            [max(abs(each[name] - each["J"]), 1e-16) for each in row],
            linestyle="none",
            marker=marker,
            color=colour,
            markersize=5,
        )
panels[1].set_xscale("log")
panels[1].set_yscale("log")
panels[1].set_ylim(1e-17, 10)
figures.describe(
    panels[1], "how far the forecast of J is off", "KL(π‖π_old), nats", "|forecast − J|"
)
lesson.picture(
    figure,
    "errors of the expected gradient and of the forecast over KL: with a ratio per token up to a"
    " tenth and a hundredth, with the answer's ratio both are exact to rounding",
)

# %% [markdown]
# Each point is one question after one number of updates. After 32 updates half of the questions are off by 1.1 % or less, the worst by 16.5 %. The ratio of the answer is exact in both panels, to rounding. Three tokens are an easy case: a longer answer has more factors that can move. The exact ratio has another price: the
# variance of a product grows with the length of the answer, which is why practice uses ratios per token, or their geometric mean (GSPO; both in lesson 03).
#
# ### The same for the KL (optional)
#
# Lesson 07 showed that penalties summed token by token drop the effect of a token on later ones. Here is how much that is, as a share of the gradient of the
# answers' KL (KL(ref‖π) for k3, KL(π‖ref) for the others):

# %%
found = [
    [
        token_level.kl_row(Bridge(now, task, row, reference=old, reward=ExactMatch(weight=0.0)))
        for now in (moved[8], moved[32])
    ]
    for row in asked[::3]
]
for name in ("k2", "exact", "k3", "k2 of the sequence", "k1 in the reward"):
    numbers = [each[name] for row in found for each in row]
    said = (
        "exact to 1e-10"
        if max(numbers) < 1e-10
        else f"off by {min(numbers):.1%} to {max(numbers):.1%}"
    )
    print(f"{name:20s} {said}")

# %% [markdown]
# ### Do it: the ratio of an answer
#
# The log-probabilities of tokens come padded.

# %%
stale = Bridge(moved[16], task, asked[4], old=old)
truth = (stale.log_prob - stale.outcomes.old[0].sum(-1)).exp()  # of all arms, by listing
ratio_exercise = lesson.exercise("ratio", stale=stale, truth=truth)

# %%
def answer_ratio(now, old, mask):
    """now, old [N, T]: log-probabilities of the tokens.

    mask [N, T]: True up to the end. → π(answer)/π_old(answer), [N].
    """
    return NotImplemented


ratio_exercise.check(answer_ratio)

# %% [markdown]
# ## The temperature belongs to the policy
# <!-- answers: 20 -->
# Samples are often drawn at a temperature $\tau$: logits $z$ are divided by it,
#
# $$\pi_\tau(v\mid s) = \frac{e^{z_v/\tau}}{\sum_u e^{z_u/\tau}} \propto \pi_1(v\mid s)^{1/\tau}. \tag{8.9}$$
# `eq:sampling-temperature` · Ackley, Hinton & Sejnowski 1985
#
# If you sample from $\pi_\tau$ and score with $\pi_1$, your samples are off-policy: they come from *another* policy. The ratio is not 1 before the first update, and $E[\nabla\log\pi_1]$ over these samples is not 0, so without the ratio a baseline adds bias. The same goes for top-k, where
# excluded tokens have $\pi = 0$. In a `Rollout`, `log_prob` belongs to the distribution that was sampled from, and `LanguageModel` scores at the same temperature:

# %%
from tinylm.model import next_token_log_dist

lesson.code(next_token_log_dist)
for temperature, scored in ((1.0, None), (1.5, None), (1.5, 1.0), (0.7, 1.0)):
    problem = LanguageModel(
        model, task, prompts=64, group=8, temperature=temperature, scored_temperature=scored
    )
    sampled = problem.sample(lesson.noise(use=6, **double))
    with torch.no_grad():
        ratio = ladder.clip.log_ratio(problem.policy(sampled), sampled).exp()[sampled.mask]
    outside = ((ratio < 0.8) | (ratio > 1.2)).double().mean()
    print(
        f"sampled at {temperature}, scored at {scored or temperature}: ρ from {ratio.min():.2g} to"
        f" {ratio.max():.2g} before any update, {outside:.0%} outside [.8, 1.2]"
    )

# %% [markdown]
# ## Which mean over tokens?
# <!-- answers: 11, 12 -->
# On bandits $T = 1$ and aggregation does nothing. Here answers have lengths, and the aggregation says what a token weighs. GRPO takes the mean over the tokens of each answer, then over answers; DAPO takes the mean over all
# tokens of the batch:
#
# $$w^{\text{GRPO}}_{i,t} = \frac1N\,\frac1{|o_i|}, \qquad w^{\text{DAPO}}_{i,t} = \frac1{\sum_j|o_j|}. \tag{8.10}$$
# `eq:token-mean-weight` · Shao et al. 2024 (DeepSeekMath), eq. 3; Yu et al. 2025 (DAPO), eq. 12
#
# (DAPO's paper divides within each group; this code, TRL and verl divide over the batch.)

# %%
ladder.token_mean

# %%
two = of_rewards([[1.0, 0.0]], lengths=[[2, 6]])
for name in ("group_std", "length_mean", "token_mean", "dr_grpo"):
    weight = ladder.get(name).estimator.freeze(two).weight[0]
    print(
        f"{name:12s} a token of the short answer weighs {weight[0, 0]:.3f}, of the long one"
        f" {weight[1, 0]:.3f}; the answers weigh {weight[0].sum():.3f} and {weight[1].sum():.3f}"
    )

# %% jupyter={"source_hidden": true}
lesson.ask("micro")

# %% jupyter={"source_hidden": true}
# two questions: short answers, long answers
ragged = of_rewards([[1.0, 0.0], [1.0, 0.0]], lengths=[[1, 1], [6, 6]])
frozen = ladder.token_mean.freeze(ragged)
print(
    "whole batch: a token of question 1 weighs",
    f"{frozen.weight[0, 0, 0]:.3f}, of question 2 {frozen.weight[1, 0, 0]:.3f}",
)
alone = [
    ladder.token_mean.freeze(ragged.prompts(torch.tensor([q]))).weight[0, 0, 0] / 2 for q in (0, 1)
]
print("mean of two micro-batches' means:         ", f"{alone[0]:.3f},               {alone[1]:.3f}")
sliced = [frozen.prompts(torch.tensor([q])).weight[0, 0, 0] for q in (0, 1)]
print(
    "frozen once, then sliced:                 ", f"{sliced[0]:.3f},               {sliced[1]:.3f}"
)

# %% [markdown]
# That is why `freeze` runs on the whole rollout, and minibatches slice what it found.
#
# ## Break it
#
# Two runs train with the `clip` rung and sample at temperature 1.5, with **one** update per rollout and four seeds per run. One of the runs has a fault. On the left is the chance of a right sample (at 1.5), on the right the share of tokens
# that the clip has made flat.


# %% jupyter={"source_hidden": true}
def climb(scored, estimator=ladder.clip, rollouts=40):
    """Four seeds at once: the chance of a right sample and the clip fraction along the way; at the
    end greedy accuracy and the chance of a right sample at temperature 1.
    """
    learned = Transformer(settings, (4,), **double)
    with torch.no_grad():
        for name, weight in model.weights.items():
            learned.weights[name].copy_(weight.expand_as(learned.weights[name]))
    problem = LanguageModel.of(
        estimator, learned, task, prompts=32, group=8, temperature=1.5, scored_temperature=scored
    )
    learner = Learner(
        problem,
        estimator,
        Adam(2e-3, betas=(0.9, 0.98)),
        lesson.noise(4, use=7, **double),
        max_grad_norm=1.0,
    )

    def look():
        return right_to_go(learned, task, task.train, temperature=1.5)[..., 0].mean(-1)

    path = [look()]
    for step in range(1, rollouts + 1):
        learner.step(log=True)
        if step % 5 == 0:
            path.append(look())
    return (
        torch.stack(path),
        learner.history["clip_fraction"],
        accuracy(learned, task, questions=task.train).mean(-1),
        right_to_go(learned, task, task.train)[..., 0].mean(-1),
    )


climbs = {"run A": climb(None), "run B": climb(1.0)}
figure, panels = figures.new_figure(1, 2, width=8.8, height=3.3)
for (name, (path, clipped, *_)), colour in zip(climbs.items(), ("#0057a3", "#c25fa0"), strict=True):
    figures.band(
        panels[0],
        range(0, 41, 5),
        path.mean(-1),
        path.std(-1),
        label=name,
        color=colour,
        linestyle="-",
    )
    figures.band(panels[1], range(1, 41), clipped.mean(-1), label=name, color=colour, linestyle="-")
figures.describe(
    panels[0], "learning (mean and spread of 4 seeds)", "rollouts", "chance of a right sample"
)
figures.describe(panels[1], "clipped", "rollouts", "share of tokens")
panels[1].set_ylim(-0.02, 0.4)
for ax in panels:
    figures.label_ends(ax)
lesson.picture(
    figure,
    "run A climbs with a clip fraction of 0; run B stalls, with a sixth to a fifth of the tokens"
    " clipped from the first update on",
)
for name, (path, clipped, *_) in climbs.items():
    print(
        f"{name}: {path[0].mean():.2f} → {path[-1].mean():.2f}; clipped {clipped[0].mean():.2f} in"
        f" the first update, {clipped[-1].mean():.2f} in the last"
    )

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %% [markdown]
# The reveal: run B has `scored_temperature=1.0` beside `temperature=1.5`. A clip fraction above 0 in the **first** update after a rollout is the sign to look for. It costs nothing to log.
#
# One thing is unexpected: the *greedy* answers. Look also at samples drawn at temperature 1 in place of 1.5:

# %% jupyter={"source_hidden": true}
from course.lab.statistics import paired_interval

climbs["run B without the clip"] = climb(1.0, ladder.surrogate)
right = climbs["run A"]
print(f"greedy before: {accuracy(model, task, questions=task.train).mean():.2f}")
for name, found in climbs.items():
    print(name)
    for what, first, second in (
        ("samples at 1.5", right[0][-1], found[0][-1]),
        ("samples at 1", right[3], found[3]),
        ("greedy", right[2], found[2]),
    ):
        mean, half = paired_interval(second, first)
        less = "" if found is right else f"   less run A, four pairs: {mean:+.3f} ± {half:.3f}"
        print(f"    {what:15} {second.mean():.2f}{less}")

# %% [markdown]
# By its samples run B is behind at both temperatures, by its greedy answers it is ahead. The two measure different things: a sample counts the *probability* of the right answer, greedy decoding asks only whether it is the *largest*. Our explanation is the clip. Where the model is sure, π_1 is above π_1.5, so ρ is above 1.2, and a right answer gets no push any more. Right answers that are not the favourite are still pushed up, and wrong ones that are the favourite are still pushed down. That changes ranks, and moves little probability. The third run has the same fault without a clip, and four pairs cannot tell its lead in greedy answers from 0: that fits, and does not prove it.
#
# An evaluation by greedy answers alone would have called the fault an improvement.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# A prompt is a bandit whose arms are its completions. At the level of whole answers, what you know of bandits holds on a transformer for each question, to rounding. Ratios and KLs per token are an approximation, whose size you can measure: after 32 updates on one rollout about one percent on half of our questions.
#
# ## Next
#
# Lesson 09 climbs the ladder on this model: which of the replaced parts matters, under which stress, and by how much.
