# %% [markdown]
# # 05 · Critics and GAE
#
# When you are through you can
#
# - write the policy gradient of an answer as a sum over its tokens, and say which rewards a token may be credited with;
# - derive TD, n-step returns and GAE from one definition, and write GAE in five lines;
# - say what a critic buys and what it costs, in noise, in bias and in parameters;
# - recognise the most common fault of hand-written critics: the value of the state *after* the token.
#
# You need lessons 01 to 04: the score, a baseline, the ratio, the clip.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import dataclasses
import math

import torch

import course
from course import ladder
from course.estimator import replace
from course.exact import Outcomes, microscope
from course.lab import figures
from course.lesson import Choice, Slider
from course.parts import GAE, Constant, RewardToGo, Value

lesson = course.setup("05")
ladder.clip

# %% [markdown]
# The last rung. Its advantage $A_{i,t}$ carries a $t$, yet every token of answer $i$ gets the same number. Now each token gets its own.

# %% [markdown]
# ## The token view of an answer
#
# An answer $o_i$ to a question $q$ is written token by token. Before token $t$ the policy is in the **state**
# $s_{i,t} = (q, o_{i,<t})$: the question and what is written so far. Its **action** is the next token $o_{i,t}$. The next state is the
# state with that token behind it. That makes a **Markov decision process** (MDP): next state and reward depend on state and action alone. One walk through it, here one answer, is a **trajectory**. The answer's reward is the sum of what its tokens were paid,
#
# $$R_i = \sum_{t=1}^{|o_i|} r_{i,t}, \tag{5.1}$$
# `eq:sum-of-token-rewards` · Williams 1992, episodic REINFORCE; Sutton & Barto 2018, eq. 3.7
#
# and a verifiable reward pays the last token alone: $r_{i,t} = 0$ before it.
#
# (Between *questions* nothing is carried over, $\gamma = 0$. Between the *tokens* of one answer nothing is lost, $\gamma = 1$: they earn one reward together.)
#
# The probability of the answer is the product over its tokens, so its score is a sum:
#
# $$\nabla\log\pi_\theta(o_i\mid q) = \sum_{t=1}^{|o_i|} \nabla\log\pi_\theta(o_{i,t}\mid s_{i,t}). \tag{5.2}$$
# `eq:token-scores-add` · Williams 1992, episodic REINFORCE
#
# Take a policy small enough to list. It answers one question with three tokens, each `0` or `1`: 8 answers, 7 states (prefixes),
# and one logit for each state. Only `101` is right.

# %%
tokens = torch.tensor([[k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)])  # every answer, [8, 3]
# its states, [8, 3]
node = torch.stack(
    [torch.zeros_like(tokens[:, 0]), 1 + tokens[:, 0], 3 + 2 * tokens[:, 0] + tokens[:, 1]], -1
)
# π(1 | state), for each of the 7 states
one = torch.tensor([0.5, 0.3, 0.6, 0.5, 0.4, 0.7, 0.2], dtype=torch.float64)
log_prob = torch.where(tokens == 1, one[node], 1 - one[node]).log()
# by the logits
token_score = torch.zeros(8, 3, 7, dtype=torch.float64).scatter(
    -1, node[..., None], (tokens - one[node])[..., None]
)
right = (tokens == torch.tensor([1, 0, 1])).all(-1).double()
reward = torch.zeros(8, 3, dtype=torch.float64)
reward[:, -1] = right
p = log_prob.sum(-1).exp()
for row, chance in zip(tokens.tolist(), p.tolist(), strict=True):
    print("".join(map(str, row)), f"{chance:.3g}", "  right" if row == [1, 0, 1] else "")

# %% [markdown]
# The microscope of lesson 01 takes such a list. Here is where (5.2) lives:

# %%
outcomes = Outcomes.of_sequences(log_prob[None], reward[None], score=token_score[None])
lesson.code(Outcomes.total_score.fget)
theta = one.logit().requires_grad_()
chosen = torch.where(tokens == 1, theta[node].sigmoid(), 1 - theta[node].sigmoid())
# ∇ log of the product, for answer 101
[direct] = torch.autograd.grad(chosen.prod(-1)[5].log(), theta)
print(
    "the sum of the tokens' scores is the answer's score, to 1e-12:",
    torch.allclose(direct, outcomes.total_score[0, 5], atol=1e-12),
)

# %% [markdown]
# Put (5.2) into lesson 01's $\nabla J = E[R_i\,\nabla\log\pi_\theta(o_i\mid q)]$, and there is one term for each token:
# $\nabla J = E[\sum_t \Psi_{i,t}\,\nabla\log\pi_\theta(o_{i,t}\mid s_{i,t})]$ with $\Psi_{i,t} = R_i$.
# $\Psi$ is what the rest of the lesson replaces: by the rewards still to come, by those minus a value, by a critic's guess.

# %% jupyter={"source_hidden": true}
lesson.ask("causality")

# %% [markdown]
# ## Causality: the reward-to-go
#
# Take a reward $r_{i,u}$ paid **before** token $t$, so $u < t$. Given the state $s_{i,t}$ it is a constant, and the score has mean zero over the token (lesson 01):
# $E[r_{i,u}\,\nabla\log\pi_\theta(o_{i,t}\mid s_{i,t})\mid s_{i,t}] = r_{i,u}\,E[\nabla\log\pi_\theta(o_{i,t}\mid s_{i,t})\mid s_{i,t}] = 0$.
#
# What is 0 in every state is 0 on average over the states. So drop what was paid before. What is left is the **reward-to-go**; with $\gamma = 1$ it has the same expected gradient as $R_i$:
#
# $$\Psi_{i,t} = R_{i,t} = \sum_{l\ge0} \gamma^l\, r_{i,t+l}. \tag{5.3}$$
# `eq:reward-to-go` · Sutton et al. 1999 (policy gradient theorem); Schulman et al. 2016 (GAE), §2

# %%
to_go = replace(ladder.reinforce, credit=RewardToGo())
to_go

# %%
paid = reward.clone()
paid[:, 0] += 0.5 * (tokens[:, 0] == 1)
fee = reward.clone()
fee[:, 0] -= 0.14  # for every answer
for text, rewards in (("paid twice", paid), ("paid at the end", reward), ("a fee, then paid", fee)):
    listed = Outcomes.of_sequences(log_prob[None], rewards[None], score=token_score[None])
    for name, estimator in (("total return  ", ladder.reinforce), ("reward-to-go  ", to_go)):
        seen = microscope(estimator, listed, 1)
        print(
            f"{text:16s} {name} unbiased to 1e-12: {seen.relative_bias < 1e-12}   noise"
            f" {seen.std / seen.gradient.norm():.3g} × ‖∇J‖"
        )

# %% [markdown]
# All are unbiased. Paid twice, the reward-to-go is quieter. That is usual, not a law: in the last pair a fee of .14 on the first token serves the total return as a baseline, and the reward-to-go drops it. The middle pair agrees: **with one reward at the end, every token's reward-to-go is the
# whole return.** That is why GRPO can give all tokens of an answer one number and lose nothing in the mean. Which token earned it, the question of **credit assignment**, stays open.
#
# ### Why γ = 1 within an answer (optional)
# With $\gamma < 1$ the early tokens of an answer are told that its reward is worth less. That is a biased gradient of $J$.
# (It is not the gradient of the discounted return either, which has a $\gamma^t$ more in front of each term: Nota & Thomas 2020.)

# %%
for gamma in (1.0, 0.9, 0.5):
    seen = microscope(replace(ladder.reinforce, credit=RewardToGo(gamma)), outcomes, 1)
    print(
        f"γ = {gamma:g}: bias {seen.relative_bias if seen.relative_bias > 1e-12 else 0:.3g} × ‖∇J‖;"
        f" the first of 100 tokens sees {gamma**99:.3g}"
    )

# %% [markdown]
# ## The value of a state
#
# Lesson 02 had the value of a question, $V(q)$. The **value** of a state is the same for every place in the answer: what the policy will collect **from there on**, on average. $Q$ is that after a token has been chosen, and the **advantage** is what the choice changed:
#
# $$V(s_t) = E\big[R_{i,t}\mid s_t\big], \qquad Q(s_t, o_t) = E\big[R_{i,t}\mid s_t, o_t\big] = r_t + \gamma V(s_{t+1}), \qquad
# A(s_t,o_t) = Q(s_t,o_t) - V(s_t). \tag{5.4}$$
#
# The second form of $Q$ needs no average, since the next state is certain. The value before the first token is $V(q)$ again. Average $Q$ over the next token, and each value is tied to those one token later:
#
# $V(s_t) = \sum_o \pi_\theta(o\mid s_t)\,Q(s_t,o) = E[r_t + \gamma V(s_{t+1})\mid s_t]$.
# That is the **Bellman recursion** (or Bellman equation). With it you compute all values backwards, from the last token to the first.
#
# Where one answer alone is right and pays 1, and $\gamma = 1$, a value is a probability. On a wrong prefix it is 0. On a right one it is the chance to finish:
#
# $$V(s_t) = \prod_{u\ge t} \pi_\theta(o^*_u\mid q, o^*_{<u}), \qquad o^* \text{ the right answer}. \tag{5.5}$$
# `eq:value-of-right-prefix` · from (5.4), $\gamma = 1$
#
# Along `101` of the small policy: $.5\cdot.4\cdot.7 = .14$ before the first token, $.4\cdot.7 = .28$ after it, then .7. It holds on the language model too, where it needs one forward pass:

# %%
from tinylm.evaluate import right_to_go

lesson.code(right_to_go)


# %%
def exact_values(rewards):
    """Rewards [8, 3] → V of the state before each token [8, 3]: the average reward-to-go of all
    answers through that state.
    """
    rest = rewards.flip(-1).cumsum(-1).flip(-1)
    # [8, 8, 3]: do two answers stand in the same state before token t?
    same = node[:, None] == node
    return (same * (p[:, None] * rest)).sum(1) / (same * p[:, None]).sum(1)


value = exact_values(reward)
print("along 101, by listing:   ", [f"{v:.3g}" for v in value[5].tolist()])
product = log_prob[5].flip(-1).cumsum(-1).flip(-1).exp()
print("along 101, by (5.5):     ", [f"{v:.3g}" for v in product.tolist()])
print(
    "along 111, by listing:   ",
    [f"{v:.3g}" for v in value[7].tolist()],
    "  (lost with the second token)",
)

# %% [markdown]
# ## Do it: all values, backwards

# %%
values = lesson.exercise("values", one=one, right=right)

# %%
def my_values(one, pay):
    """one [7]: π(1 | state).

    pay [8]: the reward of each answer, 000 to 111. → V of each state, [7].
    """
    return NotImplemented


values.check(my_values)

# %% [markdown]
# ## A value as the baseline
#
# Lesson 02: a baseline of a token may depend on anything but that token and what comes after it. $V(s_{i,t})$ depends on what is written *before* token $t$, so it is one:
#
# $$E\big[V(s_{i,t})\,\nabla\log\pi_\theta(o_{i,t}\mid s_{i,t})\big] = 0, \qquad A_{i,t} = R_{i,t} - V_{i,t}. \tag{5.6}$$
# `eq:value-baseline` · Sutton & Barto 2018, eq. 13.10; Schulman et al. 2016 (GAE), §2
#
# A model that guesses $V$ is called the **critic**, the policy beside it the **actor**, and a method with both **actor–critic**. As a rung: `clip` with the critic's stored value in the place of the batch mean, and a term that trains the critic (below).

# %%
ladder.ppo_value

# %%
listed = dataclasses.replace(outcomes, value=value[None])
with_value = replace(ladder.reinforce, baseline=Value())
for name, estimator in (
    ("no baseline", ladder.reinforce),
    ("V(q), one number", replace(ladder.reinforce, baseline=Constant(float(value[0, 0])))),
    ("V of each state", with_value),
):
    seen = microscope(estimator, listed, 1)
    print(
        f"{name:17s} unbiased to 1e-12: {seen.relative_bias < 1e-12}   noise"
        f" {seen.std / seen.gradient.norm():.3g} × ‖∇J‖"
    )
lesson.code(Value)

# %% [markdown]
# ## One step ahead: the temporal difference
#
# $R_{i,t} - V_{i,t}$ waits for the end of the answer. The critic also knows something one token later: replace all that follows token $t$ by
# the value of the next state. To put a guess in the place of what really followed is called to **bootstrap**.
#
# $$R^{(1)}_{i,t} = r_{i,t} + \gamma V_{i,t+1}, \qquad \delta_{i,t} = r_{i,t} + \gamma V_{i,t+1} - V_{i,t}. \tag{5.7}$$
# `eq:one-step-td` · Sutton & Barto 2018, eqs. 6.5 and 13.12. $\delta$ is the **temporal difference** (TD).
#
# After the last token nothing is to come: $V = 0$ there. With the **exact** value, (5.4) says $\delta_{i,t} = A(s_t,o_t)$: no average, no noise of later
# tokens. It says at which token an answer was lost:

# %%
def deltas(rewards, values):
    """δ of each token, [..., T] from rewards and values [..., T], with γ = 1."""
    return rewards + torch.nn.functional.pad(values[..., 1:], (0, 1)) - values


for k in (5, 4, 7):
    print(
        "".join(map(str, tokens[k].tolist())),
        "δ:",
        [f"{d:+.2f}" for d in deltas(reward, value)[k].tolist()],
        f"  R − V(q): {right[k] - value[k, 0]:+.2f}",
    )

# %% [markdown]
# The $\delta$s of an answer add up to $R_i - V(q)$, since every $V$ between comes once with plus and once with minus. It is the same blame, handed out to the tokens that deserve it. In `100` the last token takes it (−.70), in
# `111` the second one (−.28).

# %% jupyter={"source_hidden": true}
lesson.ask("constant-critic")

# %% [markdown]
# ## Between the two: n steps, and GAE
#
# Take $n$ real rewards before you trust the critic. That is the **$n$-step return**:
#
# $$R^{(n)}_{i,t} = \sum_{l=0}^{n-1}\gamma^l r_{i,t+l} + \gamma^n V_{i,t+n}, \qquad
# R^{(n)}_{i,t} - V_{i,t} = \sum_{l=0}^{n-1}\gamma^l\,\delta_{i,t+l}. \tag{5.8}$$
#
# The second form telescopes: in $\sum_l \gamma^l(r_{t+l} + \gamma V_{t+l+1} - V_{t+l})$ each $\gamma^{l+1}V_{t+l+1}$ meets its negative in the next term, and
# $-V_t$ and $\gamma^n V_{t+n}$ remain. Once $n$ reaches the end, $R^{(n)}$ is the reward-to-go and stays so.
#
# Which $n$? Take all, with weights that fall by $\lambda < 1$ and sum to 1 ($\lambda = 1$ is the limit):
#
# $$R^\lambda_{i,t} = (1-\lambda)\sum_{n\ge1}\lambda^{n-1} R^{(n)}_{i,t}. \tag{5.9}$$
# `eq:lambda-average` · Schulman et al. 2016 (GAE), eq. 16; Sutton & Barto 2018, eq. 12.2
#
# Subtract $V_{i,t}$, put in (5.8), and collect what each $\delta_{i,t+l}$ gets. It appears in all terms with $n > l$, whose weights add up to
# $(1-\lambda)(\lambda^{l} + \lambda^{l+1} + \dots) = \lambda^l$. That is **generalised advantage estimation** (GAE):
#
# $$A_{i,t} = R^\lambda_{i,t} - V_{i,t} = \sum_{l\ge0}(\gamma\lambda)^l\,\delta_{i,t+l}. \tag{5.10}$$
# `eq:gae-sum` · Schulman et al. 2016 (GAE), eq. 16
#
# The sum begins at $l = 0$, so a token is credited with its own step.
#
# Code walks backwards through the answer. Split off the first term of (5.10): $A_{i,t} = \delta_{i,t} + \gamma\lambda A_{i,t+1}$.
#
# ### The same for returns, as the code has it (optional)
#
# Now add $V_{i,t}$ on both sides. On the left $A_{i,t} + V_{i,t} = R^\lambda_{i,t}$. On the right put in $\delta_{i,t} + V_{i,t} = r_{i,t} + \gamma V_{i,t+1}$ and
# $A_{i,t+1} = R^\lambda_{i,t+1} - V_{i,t+1}$, and collect $V_{i,t+1}$:
#
# $$R^\lambda_{i,t} = r_{i,t} + \gamma\big((1-\lambda)V_{i,t+1} + \lambda R^\lambda_{i,t+1}\big). \tag{5.11}$$
# `eq:lambda-recursion` · Sutton & Barto 2018, exercise 12.1

# %%
from course.parts.credit import lambda_return

lesson.code(lambda_return)

# %% [markdown]
# (The mask is for tokens that the policy did not write: they take no step in time. An answer that was cut off at the length limit has no end to wait for; there `bootstrap` is the critic's value of the state after its last token.)
#
# The three forms, on the answer `101` with a critic that is wrong on purpose:

# %%
guess, gae_lambda, steps = torch.tensor([0.4, 0.1, 0.9], dtype=torch.float64), 0.6, 3
ahead = torch.cat([guess, torch.zeros(1)])
n_step = [
    [float(reward[5, t : t + n].sum()) + float(ahead[min(t + n, 3)]) for n in range(1, 200)]
    for t in range(steps)
]
average = [
    (1 - gae_lambda) * sum(gae_lambda**k * each for k, each in enumerate(row)) for row in n_step
]
delta = deltas(reward[5], guess)
summed = [
    float(guess[t]) + sum(gae_lambda**l * float(delta[t + l]) for l in range(steps - t))
    for t in range(steps)
]
walked = lambda_return(reward[5], guess, torch.ones(3, dtype=torch.bool), 1.0, gae_lambda)
for name, row in (
    ("weighted average (5.9)", average),
    ("sum of δ (5.10)", summed),
    ("recursion (5.11)", walked.tolist()),
):
    print(f"{name:24s}", [f"{x:.3f}" for x in row])

# %% [markdown]
# ### Two ends, and PPO
#
# $\lambda = 0$ leaves $n = 1$ alone: TD. $\lambda = 1$ leaves the last: the reward-to-go minus the value, (5.6), often called Monte Carlo. With GAE in the place of
# the total return, PPO stands before you (the published one also has an entropy bonus, and $\gamma = .99$ for robots):

# %%
ladder.ppo

# %% [markdown]
# ## Do it: GAE

# %%
gae_exercise = lesson.exercise("gae")

# %%
def my_gae(reward, value, gamma, gae_lambda):
    """reward [T], value [T] (of the state before each token), two numbers → advantage [T]."""
    return NotImplemented


gae_exercise.check(my_gae)

# %% jupyter={"source_hidden": true}
lesson.ask("best-lambda")

# %% [markdown]
# ## Bias against noise, exactly
#
# Three critics: the exact one, one that says .5 everywhere, one that is the exact one plus an error of its own in every state. For each $\lambda$ the
# microscope lists all answers. For the constant critic you can say beforehand what will come out: all its $\delta$s are 0 but the last, so
# $A_{i,t} = \lambda^{|o|-t}(R_i - .5)$, and each token's share of $\nabla J$ is multiplied by $\lambda^{|o|-t}$.

# %%
errors = 0.3 * lesson.noise(dtype=torch.float64).normal(7)[node]
critics = {
    "exact": value,
    ".5 everywhere": torch.full_like(value, 0.5),
    "exact + errors": value + errors,
}
grid = torch.linspace(0, 1, 21).tolist()
measured = {}
for name, guess in critics.items():
    seen = [
        microscope(
            replace(with_value, credit=GAE(1.0, lam)),
            dataclasses.replace(outcomes, value=guess[None]),
            1,
        )
        for lam in grid
    ]
    measured[name] = [(each.relative_bias, each.std / float(each.gradient.norm())) for each in seen]
    for lam in (0.0, 0.5, 1.0):
        bias, noise = measured[name][grid.index(lam)]
        print(
            f"{name:15s} λ = {lam:<4g} bias {bias if bias > 1e-12 else 0:.3g}   noise {noise:.3g}"
        )

# %% jupyter={"source_hidden": true}
share = torch.einsum(
    "k,kt,ktd->td", p * right, torch.ones(8, 3, dtype=torch.float64), token_score
)  # ∇J, token by token
figure, panels = figures.new_figure(1, 2, width=8.6, height=3.4)
for name, style in (("exact", "-"), (".5 everywhere", "--"), ("exact + errors", ":")):
    for ax, what in zip(panels, (0, 1), strict=True):
        figures.band(
            ax,
            grid,
            [row[what] for row in measured[name]],
            label=name,
            color="#661100",
            linestyle=style,
        )
want = [
    float(
        sum((1 - lam ** (2 - t)) ** 2 * share[t].square().sum() for t in range(3)).sqrt()
        / share.sum(0).norm()
    )
    for lam in grid
]
figures.expectation(panels[0], want[::2], grid[::2], marker="o", label="closed form")
figures.describe(panels[0], "how far off on average", "λ", "‖E[ĝ] − ∇J‖ / ‖∇J‖")
figures.describe(panels[1], "how noisy one answer is", "λ", "standard deviation of ĝ / ‖∇J‖")
panels[1].set_ylim(bottom=0)
panels[0].legend(frameon=False)
lesson.picture(
    figure,
    "bias and noise over λ for three critics: the exact one is unbiased everywhere and quietest at"
    " λ = 0; the wrong ones are biased below 1",
)

# %% [markdown]
# - The exact critic is unbiased at every $\lambda$, and quietest at $\lambda = 0$, where its noise is 1.3 against 2.15. TD is “biased” only as far as its values are wrong.
# - The constant critic at $\lambda = 0$ trains the last token alone: its bias is .934.
# - At $\lambda = 1$ all three are unbiased. (5.6) asks only that the critic does not look at the token.
#
# ### Two limits of these sentences (optional)
#
# Which errors of a critic do harm below $\lambda = 1$, and is $\lambda = 1$ always safe? Let an answer of the small policy end after its second token if that is a `0`, so that lengths differ; now `111` is right. Every value of the critic is too large by .3. And then cut all
# answers off after two tokens, and bootstrap those that had not ended:

# %% jupyter={"source_hidden": true}
def small(answers, right, offset, cut=()):
    """These answers of the small policy; exact values plus an offset, also behind those cut off."""
    count, size = len(answers), max(map(len, answers))
    mask = torch.tensor([[t < len(a) for t in range(size)] for a in answers])
    made = torch.tensor([[int(c) for c in a.ljust(size, "0")] for a in answers])
    state = torch.stack(
        [torch.zeros(count).long(), 1 + made[:, 0], 3 + 2 * made[:, 0] + made[:, 1]][:size], -1
    )
    log_p = torch.where(mask, torch.where(made == 1, one[state], 1 - one[state]).log(), 0)
    score = torch.zeros(count, size, 7, dtype=torch.float64).scatter(
        -1, state[..., None], ((made - one[state]) * mask)[..., None]
    )
    chance = {a: float(x) for a, x in zip(("", "0", "1", "00", "01", "10", "11"), one)}

    def exact(prefix):  # of the right answer, by (5.5)
        rest = range(len(prefix), len(right))
        ways = [chance[right[:t]] if right[t] == "1" else 1 - chance[right[:t]] for t in rest]
        return math.prod(ways) if right.startswith(prefix) else 0.0

    value = [[exact(a[:t]) if t < len(a) else 0.0 for t in range(size)] for a in answers]
    paid = [[float(a == right and t == len(a) - 1) for t in range(size)] for a in answers]
    double = {"dtype": torch.float64}
    return Outcomes.of_sequences(
        log_p[None],
        torch.tensor(paid, **double)[None],
        mask=mask[None],
        score=score[None],
        value=torch.where(mask, torch.tensor(value, **double) + offset, 0)[None],
        truncated=torch.tensor([a in cut for a in answers])[None],
        bootstrap=torch.tensor([exact(a) + offset if a in cut else 0 for a in answers], **double)[
            None
        ],
    )


# %%
alike, differ = [f"{k:03b}" for k in range(8)], ["00", "10", "010", "011", "110", "111"]
problems = ("equal lengths", alike, "101"), ("lengths differ", differ, "111")
for name, answers, right_one in problems:
    row = [
        microscope(replace(with_value, credit=GAE(1.0, lam)), small(answers, right_one, 0.3), 1)
        for lam in (0.0, 0.5, 0.95, 1.0)
    ]
    print(
        f"offset 0.3, {name:<15} bias at λ = 0, 0.5, 0.95, 1:",
        [float(f"{x.relative_bias:.3g}") if x.relative_bias > 1e-12 else 0.0 for x in row],
    )
at_end = replace(with_value, credit=GAE(1.0, 1.0))
true = microscope(at_end, small(differ, "111", 0.0), 1).gradient[:3]  # of the first two tokens
for offset in (0.0, 0.3):
    cut = small(["00", "10", "01", "11"], "111", offset, cut=("01", "11"))
    got = microscope(at_end, cut, 1).expected[:3]
    off = float((got - true).norm() / true.norm())
    shown = off if off > 1e-12 else 0
    print(f"cut off and bootstrapped, offset {offset}: bias at λ = 1: {shown:.3g}")

# %% [markdown]
# - An error that is the same in every state does no harm as long as all answers have one length: every $\delta$ but the last keeps its value, and the last is shifted by a constant, which is a baseline. Where lengths differ the shift comes sooner or later, and that depends on the tokens: a bias.
# - At $\lambda = 1$ a wrong critic is harmless **if every answer ended by itself**. An answer that was cut off gets its reward from the critic, and a wrong value there is a wrong reward.

# %% [markdown]
# ## A critic has to be learned
#
# Nobody is given $V$. It is fitted, beside the policy, to the returns that were seen:
#
# $$L_V = \tfrac12\,(V_{i,t} - R_{i,t})^2. \tag{5.12}$$
# `eq:critic-regression` · Schulman et al. 2017 (PPO), eq. 9, there without the ½
#
# The target $R_{i,t}$ is the rung's own return, frozen: the total return in `ppo_value`, $R^\lambda_{i,t}$ in `ppo`, where below $\lambda = 1$ the critic
# partly learns from its own older guesses. `value_coef` times $L_V$ is subtracted from the objective, the last term of the rung above.
#
# Where does the critic live? All layers of a transformer but the last are its **trunk**, which turns a state into a list of numbers. The policy's last layer makes logits of them. A **value head** is one more last layer, which makes one number of them, the value. Critic and policy may share a trunk, or
# the critic may be a network of its own.
#
# ### Watch one learn (optional)
#
# On the tiny language model of lesson 08 (`7+8=` is a question, `15` and an
# end token, written `⏎`, its answer) you can watch it learn, because (5.5) says what is right. First a policy that is right about half the time:

# %%
from course.learner import Learner
from course.train.optim import Adam
from tinylm import tasks
from tinylm.model import PRESETS, Transformer
from tinylm.problem import LanguageModel
from tinylm.warm_start import LIKELIHOOD, Demonstrations

double = {"dtype": torch.float64}  # so that your numbers are these
task = tasks.make(tasks.TaskSettings(digits=1))
settings = dataclasses.replace(PRESETS["nano"], context=task.context)
policy = Transformer(settings, **double)
Learner(
    Demonstrations(policy, task, batch=128),
    LIKELIHOOD,
    Adam(1e-2),
    lesson.noise(use=1, **double),
    max_grad_norm=1.0,
).train(100)
success = right_to_go(policy, task, task.train)[:, 0]  # V(q) of every training question
print(
    f"{policy.size:,} weights; chance of a right answer: mean {success.mean():.3g}, from"
    f" {success.min():.2g} to {success.max():.2g}"
)

# %% [markdown]
# The critic here is a second transformer with a value head. It starts as a copy of the policy, and learns while the policy stands still. What
# it competes with is the **mean of a group** (next lesson): $G$ answers to the same question, right with probability $p$, estimate
# $V(q) = p$ with an error of
#
# $$\sqrt{E_q\big[p\,(1-p)\big]\,/\,G}. \tag{5.13}$$
# `eq:group-mean-error` · the variance of a mean of $G$ draws of 0 or 1

# %%
from tinylm import evaluate


def copy_of(model, runs=(), value=False):
    """The same weights once more, for every run; with `value`, a value head of zeros."""
    twin = Transformer(
        dataclasses.replace(model.settings, value=value or model.settings.value), runs, **double
    )
    with torch.no_grad():
        for name, weight in model.weights.items():
            twin.weights[name].copy_(weight.expand_as(twin.weights[name]))
    return twin



# %%
from tinylm.scoring import log_dists, states_before

critic = copy_of(policy, value=True)
problem = LanguageModel(policy, task, prompts=32, group=4, critic=critic)
problem.parameters = critic.parameters  # the learner moves nothing else
monte_carlo = replace(ladder.ppo, credit=GAE(1.0, 1.0))  # λ = 1
fit = Learner(
    problem,
    replace(monte_carlo, value_coef=1.0),
    Adam(1e-3),
    lesson.noise(use=2, **double),
    epochs=2,
    max_grad_norm=1.0,
)
test = problem.sample(lesson.noise(use=3, **double))  # answers to look at, always the same
truth = evaluate.exact_values(policy, task, test.data["question"], test.data["tokens"])


def judged(prompt, answers):
    """The critic's value of the state before each token."""
    return critic.values(states_before(critic, prompt, answers)).detach()


path = []
for step in range(101):
    if step % 5 == 0:
        now = judged(test.data["prompt"], test.data["tokens"])
        path.append(
            [
                step * 32 * 4,
                *(float(square.sqrt()) for square in evaluate.value_errors(now, truth, test.mask)),
            ]
        )
    fit.step()
print(
    f"error of V(q): {path[0][1]:.3g} → {path[-1][1]:.3g};  of later states: {path[0][2]:.3g} →"
    f" {path[-1][2]:.3g}"
)

# %% jupyter={"source_hidden": true}
figure, [ax] = figures.new_figure(width=7.2, height=3.6)
seen_answers, first, later = zip(*path, strict=True)
figures.band(
    ax, seen_answers, first, label="critic, of the question", color="#661100", linestyle="-"
)
figures.band(
    ax, seen_answers, later, label="critic, of later states", color="#661100", linestyle=":"
)
figures.expectation(ax, float(success.std(correction=0)), label="one number for all questions")
group_line = ax.axhline(
    float(evaluate.group_mean_error(success, 8)),
    label="mean of 8 answers, (5.13)",
    **figures.style_of("group_mean"),
)
ax.set_ylim(bottom=0)
figures.describe(
    ax, "a critic while it learns", "answers seen", "RMS error against the exact value"
)
ax.legend(frameon=False, loc="upper right", fontsize=10)
lesson.picture(
    figure,
    "error of the critic's values against the exact ones while it learns, beside the error of one"
    " number for all and of a group's mean",
)

# %%
print(f"one number for all questions: {success.std(correction=0):.3g}")
for group in (2, 8, 32):
    print(f"mean of a group of {group:2d}: {evaluate.group_mean_error(success, group):.3g}")
needed = next(row[0] for row in path if row[1] < float(evaluate.group_mean_error(success, 8)))
print(
    f"the critic is first better than the mean of 8 after {needed:,} answers,"
    f" {needed / len(task.train):.0f} for each of {len(task.train)} questions"
)
level = float(evaluate.group_mean_error(success, 8))
print(f"of the {len(path)} looks, better: {sum(row[1] < level for row in path)}")

# %% [markdown]
# This critic had to see some 20 answers to each question, all of one fixed policy, to be about as good on the question as the mean of 8 fresh ones. (It is one critic, and its error crosses the line more than once: take the order of magnitude.) On later states it stays
# worse: to know that a digit is wrong it has to do the sum. And in training the policy moves on meanwhile.
#
# ## Cold start, and the clipped value (optional)
# <!-- answers: 43 -->
#
# A critic whose value head is untrained says one number everywhere: a *cold start*. You have met it above. All its $\delta$s are 0 but the last, so a token that is $l$ tokens away from the end gets $\lambda^l$ of its share of the gradient. Is that much? It depends on the length:

# %% jupyter={"source_hidden": true}
def chance_right(model):
    """Of each seed: the mean over the training questions, [4 seeds]."""
    return right_to_go(model, task, task.train)[..., 0].mean(-1)


def curve(estimator, kind, values=None, rollouts=40, look=chance_right):
    """What `look` sees (the chance of a right answer), after every 5 rollouts: [9, …, 4 seeds]."""
    model = copy_of(policy, (4,))
    own = None if values is None else copy_of(values, (4,))
    problem = kind(model, task, prompts=32, group=8, critic=own)
    learner = Learner(
        problem,
        estimator,
        Adam(1.5e-3, betas=(0.9, 0.98)),
        lesson.noise(4, use=4, **double),
        epochs=2,
        max_grad_norm=1.0,
    )
    found = [look(model)]
    for step in range(1, rollouts + 1):
        learner.step()
        if step % 5 == 0:
            found.append(look(model))
    return torch.stack(found)


# %%
for length in (3, 100, 1000):
    shares = ", ".join(f"{lam ** (length - 1):.2g} at λ = {lam:g}" for lam in (0.95, 0.99, 1.0))
    print(f"answers of {length:>4} tokens: the first token's share {shares}")

cold = copy_of(policy, value=True)  # its value head says 0 everywhere
for name, start in (("fitted", critic), ("cold", cold)):
    estimator = replace(ladder.ppo, credit=GAE(1.0, 0.95))
    lines = curve(estimator, LanguageModel, values=start, rollouts=20)
    print(
        f"three tokens, λ = 0.95, {name:<6} critic: chance of a right answer"
        f" {lines[0].mean():.2f} → {lines[-1].mean():.2f} in 20 rollouts"
    )

# %% [markdown]
# With answers of three tokens you cannot see it: the first token keeps .9 of its share, and both runs rise alike. With a thousand tokens and $\lambda = .95$ nothing reaches the first one until the critic has learned something about it. So fit the critic first, while the policy stands still, as above; or take $\lambda = 1$, where it does not matter.
#
# Libraries often **clip the value**, by analogy with the ratio: within one rollout a value counts at most `width` away from $V_{old}$, and the larger of the two losses is taken. The slope of the loss in $V$, for $V_{old} = .2$ and a right answer, $R = 1$:

# %%
def value_loss(value, old, target, width):
    """½ max((V − R)², (V held within ± width of V_old − R)²)."""
    held = value.clamp(old - width, old + width)
    return torch.maximum((value - target) ** 2, (held - target) ** 2) / 2


for now in (0.3, 0.6, 0.8):
    row = []
    for width in (math.inf, 0.5, 0.2):
        place = torch.tensor(now, requires_grad=True)
        [slope] = torch.autograd.grad(value_loss(place, 0.2, 1.0, width), place)
        row.append(f"width {width:g}: {float(slope) + 0.0:+.1f}")
    print(f"V = {now}:  slope  {',  '.join(row)}")

# %% [markdown]
# It is flat where the value has already moved by `width` towards its target: a brake on the critic, not a bound, as with the ratio. Its width is in units of reward, so it has to fit your rewards. verl clips at .5 by default.
# In a large study of PPO on control tasks it did not help: Andrychowicz et al. 2021 advise against it.
#
# ## Explore: credit, token by token (optional)
#
# Here are answers to two questions, with the exact values, with those just learned, or with a critic that says .5. Choose $\lambda$ and look which token is
# praised or blamed. At $\lambda = 1$ the bars are $R - V$; at $\lambda = 0$ with exact values, the wrong digit stands out alone.

# %% jupyter={"source_hidden": true}
from tinylm.tasks import CHARACTERS, END, encode


def spelled(text):
    """«15⏎» → tokens [3], padded."""
    row = [END if c == "⏎" else CHARACTERS.index(c) for c in text]
    return torch.tensor(row + [tasks.PAD] * (task.limit - len(row)))


answers, tables = {}, {}
for question, given in (("7+8=", ("15⏎", "14⏎", "05⏎")), ("2+3=", ("05⏎", "06⏎", "15⏎"))):
    row = int((task.prompt == torch.tensor(encode(question))).all(-1).nonzero())
    for text in given:
        made = spelled(text)[None, None]
        answers[f"{question} {text}"] = text, float((made[0, 0] == task.target[row]).all())
        learned = judged(task.prompt[row][None], made)
        exact = evaluate.exact_values(policy, task, torch.tensor([row]), made)
        tables[f"{question} {text}"] = {
            "exact": exact[0, 0].detach(),
            "learned": learned[0, 0].detach(),
            ".5 everywhere": torch.full((3,), 0.5, **double),
        }


def draw_credit(answer, critic, lam):
    text, pay = answers[answer]
    guess = tables[answer][critic]
    pays = torch.zeros(3, **double)
    pays[-1] = pay
    advantage = lambda_return(pays, guess, torch.ones(3, dtype=torch.bool), 1.0, lam) - guess
    figure, (left, ax) = figures.new_figure(1, 2, width=7.6, height=2.9)
    left.plot(range(4), [*guess.tolist(), pay], "o-", color="#661100")
    left.set_xticks(range(4), ["before", *(f"after {c}" for c in text)])
    left.set_ylim(-0.1, 1.1)
    figures.describe(left, f"value on the way ({critic})", "", "V; last: the reward")
    ax.bar(
        range(3),
        advantage.tolist(),
        0.6,
        color=["#00875f" if a > 0 else "#b8320f" for a in advantage.tolist()],
    )
    ax.axhline(0, color="#777777", linewidth=0.8)
    ax.set_xticks(range(3), [f"token {c}" for c in text])
    ax.set_ylim(-1.1, 1.1)
    figures.describe(ax, f"{answer}   λ = {lam:.2f}", "", "advantage")
    return figure


lesson.explore(
    "credit",
    draw_credit,
    "With the exact critic, go from λ = 1 to λ = 0: the blame moves to the one wrong digit. Then"
    " take the critic that says .5: at λ = 0 only the last token is told anything.",
    answer=Choice(list(answers), value="7+8= 14⏎", label="answer"),
    critic=Choice(["exact", "learned", ".5 everywhere"], label="critic"),
    lam=Slider(0.0, 1.0, 0.05, 0.5, "λ"),
)

# %% [markdown]
# ## Is a critic needed for one-step rewards?
# <!-- answers: 28 -->
#
# “GRPO is just PPO for bandits” (Giovanidis) says that the value function “was never necessary in the first place”. That is true of **bias**: every line below but one is
# unbiased, with a critic or without. It is not true of **noise**. Batches of 8 answers of the small policy, exactly:

# %%
rows = {
    "no baseline": ladder.reinforce,
    "mean of the other 7 (RLOO)": ladder.rloo,
    "exact V(q), one number": replace(ladder.reinforce, baseline=Constant(float(value[0, 0]))),
    "group mean": replace(ladder.reinforce, baseline=ladder.group_mean.baseline),
    "exact V of each state, λ = 1": replace(with_value, credit=GAE(1.0, 1.0)),
    "exact V of each state, λ = 0": replace(with_value, credit=GAE(1.0, 0.0)),
}
for name, estimator in rows.items():
    seen = microscope(estimator, listed, 8)
    print(
        f"{name:30s} bias {seen.relative_bias if seen.relative_bias > 1e-12 else 0:.3g}   noise"
        f" {seen.std / seen.gradient.norm():.3g} × ‖∇J‖"
    )

# %% [markdown]
# (RLOO, leave-one-out, is lesson 02's mean of the others; the group mean is it times 7/8, shrunk, and looks quieter: lesson 06.) The mean of the others buys next to nothing here, a *perfect* critic that is trusted at every
# token cuts the noise to about half. A real one must be learned. The rest of the answer is its price.

# %% jupyter={"source_hidden": true}
lesson.ask("price")

# %% [markdown]
# ## What a critic costs, measured (optional)
#
# The ablation `course tinylm critic` trains PPO and the group mean on sums of numbers with two digits from one warm start, with the same number of answers, each at its best
# learning rate, which was chosen on other models and questions. Each model is trained both ways from the same weights and with the same random streams, and the two ends are subtracted. These are the numbers
# that its file holds: the mean of these differences, ± half of its 95% interval.

# %%
from course.lab.places import measured
from course.lab.result import Result

found = Result.load(measured("tinylm_critic"))
price = found.series["price"]
for name in ("group", "shared", "own"):
    ratio = price["seconds"][name] / price["seconds"]["group"]
    print(
        f"{name:7s} {price['parameters'][name]:>9,} parameters   {price['bytes'][name] / 1e6:.3g}"
        f" MB   a step takes {ratio:.2f} × the group mean's"
    )
print(
    f"\n{'less the group mean':28s}"
    + "".join(f"λ = {lam:<14g}" for lam in found.settings["lambdas"])
)
for place in ("own", "shared"):
    cells = [found.series[place][f"{lam:g}"] for lam in found.settings["lambdas"]]
    print(
        f"critic, {place:20s}"
        + "".join(
            f"{cell['over_group']:+.3f} ± {cell['over_group_half']:.3f}    " for cell in cells
        )
    )
begun = found.series["start_over_group"]
print(f"{'the warm start itself':28s}{begun['mean']:+.3f} ± {begun['mean_half']:.3f}")

# %% [markdown]
# Parameters: a critic of its own doubles them; on a shared trunk it costs one number per hidden unit, and its error then pulls at the policy's own features. With $\lambda = 1$ and $.95$ **the critic
# wins, by about two points of a hundred**: both intervals lie above 0, with either place. With $\lambda = 0$ PPO ends where it began: compare its row with that of the warm start.
#
# Is it because the critic's values are so accurate? Here are their errors against the exact values, compared with each other and with the error of a mean of 8 answers:

# %%
for fact in found.facts:
    if "RMS error" in fact.claim:
        print(f"{'holds' if fact.holds else 'does not hold'}: {fact.claim}")
        print(f"   {fact.measured:.3f}, standard error {fact.standard_error:.3f}")

# %% [markdown]
# No. A shared trunk's values are clearly further off than the mean of 8 answers, and it wins all the same. (For a network of its own ten models cannot tell the two apart.) A critic need not be accurate to be a good baseline. Larger wins are expected where an answer is long,
# where rewards come on the way, or where $G$ fresh answers to the same question cannot be had (several turns).

# %% [markdown]
# ## Break it
#
# Someone wrote the critic's part again, by hand. Both runs below start from the policy above, with **exact** values (so nobody has to wait for the critic), $\lambda = 1$, the same questions, the
# same learning rate, four seeds each. One of them has a fault. Under the picture: the mean advantage that each gave to tokens of its first answers.

# %% jupyter={"source_hidden": true}
class WithExactValues(LanguageModel):
    """The language model whose rollouts come with exact values."""

    def sample(self, noise):
        rollout = super().sample(noise)
        exact = evaluate.exact_values(
            self.model, self.task, rollout.data["question"], rollout.data["tokens"]
        )
        return dataclasses.replace(
            rollout,
            value=torch.where(rollout.mask, exact, 0.0),
            bootstrap=torch.zeros_like(exact[..., 0]),
        )


Suspect = lesson.hidden("Suspect")  # in the file of exercises: look after you have answered
known = replace(monte_carlo, value_coef=0.0)  # nothing to learn for a critic that knows
runs = {
    "run A": curve(known, WithExactValues),
    "run B": curve(replace(known, baseline=Suspect()), WithExactValues),
}
figure, [ax] = figures.new_figure(width=6.6, height=3.4)
for (name, lines), colour in zip(runs.items(), ("#0057a3", "#c25fa0"), strict=True):
    for seed in range(4):
        ax.plot(range(0, 41, 5), lines[:, seed], color=colour, linewidth=0.8, alpha=0.6)
    figures.band(ax, range(0, 41, 5), lines.mean(-1), label=name, color=colour, linestyle="-")
ax.set_ylim(0, 0.8)
figures.describe(ax, "two runs, one fault", "rollouts", "chance of a right answer")
figures.label_ends(ax, [line for line in ax.get_lines() if str(line.get_label()).startswith("run")])
lesson.picture(figure, "run A climbs steadily, run B falls and stays low")
first = WithExactValues(policy, task, prompts=32, group=32).sample(lesson.noise(use=5, **double))
so_far = (
    (first.data["tokens"] == task.target[first.data["question"]].unsqueeze(-2)).long().cumprod(-1)
)
before = torch.nn.functional.pad(so_far[..., :-1], (1, 0), value=1)
for (name, lines), estimator in zip(
    runs.items(), (known, replace(known, baseline=Suspect())), strict=True
):
    given = estimator.freeze(first).advantage
    good = [f"{given[..., t][so_far[..., t] == 1].mean():+.2f}" for t in range(3)]
    print(
        f"{name}: {lines[0].mean():.2f} → {lines[-1].mean():.2f}   right tokens 1, 2, 3:"
        f" {', '.join(good)}   the first wrong token:"
        f" {given[(before == 1) & (so_far == 0)].mean():+.2f}"
    )

# %% jupyter={"source_hidden": true}
lesson.ask("break-it")

# %% [markdown]
# The reveal. The faulty part subtracts $V(s_{i,t+1})$ in place of $V(s_{i,t})$, an index shifted by one. Such a “baseline” depends on the token, so (5.6) does not hold. On
# average $R_{i,t} - V(s_{i,t+1})$ is $r_{i,t}$ given the token, by (5.4) with $\gamma = 1$: **0** before the last token, since all that token $t$ has gained is subtracted
# again. Only the last token, which is paid and has no value behind it, still learns. On the small policy, exactly:

# %%
lesson.code(Suspect)
for name, guess in critics.items():
    for part in (Value(), Suspect()):
        seen = microscope(
            replace(with_value, baseline=part), dataclasses.replace(outcomes, value=guess[None]), 1
        )
        by_token = [
            float(seen.expected[a:b] @ seen.gradient[a:b] / seen.gradient[a:b].square().sum())
            for a, b in ((0, 1), (1, 3), (3, 7))
        ]
        print(
            f"{name:15s} {type(part).__name__:11s} share of ∇J that arrives at tokens 1, 2, 3:",
            [f"{abs(x) if abs(x) < 1e-12 else x:.2f}" for x in by_token],
        )

# %% [markdown]
# Look at the middle pair: a critic that says .5 everywhere **hides** the fault, because a constant is a baseline wherever it stands. A poor critic does nearly the same. Here is the fault once more, with
# the critic that was learned above (and goes on learning):

# %%
for name, part in (("Value", Value()), ("Suspect", Suspect())):
    lines = curve(replace(monte_carlo, baseline=part), LanguageModel, values=critic)
    print(
        f"{name:11s} {lines[0].mean():.2f} → {lines[-1].mean():.2f}   seeds from"
        f" {lines[-1].min():.2f} to {lines[-1].max():.2f}"
    )

# %% [markdown]
# With the learned critic both runs climb, with exact values one falls. So test such code with exact values, not with a learning curve.
#
# ### Why did run B fall, and not stay? (optional)
#
# On average run B gave no token a wrong sign. Split its advantages into two halves: those before the last place, which are 0 on
# average, and those at the last place.

# %%


def right_and_early(model):
    """[2, 4 seeds]: the chance of a right answer, and of an end token in the second place, where it
    is never right.
    """
    rows = task.train.expand(*model.runs, -1)
    log_dist = log_dists(model, task.prompt[rows], task.target[rows].unsqueeze(-2))
    return torch.stack([chance_right(model), log_dist[..., 0, 1, END].detach().exp().mean(-1)])


class Before(Suspect):
    """Run B's advantages before the last place; 0 there."""

    last = False

    def __call__(self, returns, rollout):
        after = super().__call__(returns, rollout)
        # R − R = 0
        return torch.where(
            (torch.arange(after.shape[-1]) == after.shape[-1] - 1) == self.last,
            after,
            returns.unsqueeze(-1),
        )


class AtLast(Before):
    """Run B's advantages at the last place alone."""

    last = True


for name, part in (
    ("before the last place: 0 on average", Before()),
    ("at the last place: praise for the end token", AtLast()),
):
    (was, early), (now, early_now) = (
        curve(replace(known, baseline=part), WithExactValues, look=right_and_early)[[0, -1]]
        .mean(-1)
        .tolist()
    )
    print(
        f"{name:44s} right {was:.2f} → {now:.2f}   end token in the second place {early:.3f} →"
        f" {early_now:.3f}"
    )

# %% [markdown]
# Either half is enough. The first is noise alone: a random walk away from a trained policy. The second praises every right end token, and weights
# that are shared by all places make the end token likelier at the others, too, where no signal pulls it back. **A mean of 0 is not a standstill.**

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# A critic gives every token its own credit. At $\lambda = 1$ it is one more unbiased baseline; below 1 it is believed, and its errors become bias. It has to be learned, and a network of its own doubles the parameters.
#
# ## Next
#
# Lesson 06 asks the same question, *how well does this policy do on this prompt?*, and answers it without a critic: with the other answers to the same prompt.
