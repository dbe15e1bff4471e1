

# %% [markdown]
# # 01 · Policy gradient for one-step rewards
#
# When you are through you can
#
# - write down what is maximised when a policy answers questions and is paid per answer;
# - derive $\nabla J=\mathbb E[R\,\nabla\log\pi_\theta]$, and see it hold exactly, by listing everything that can happen;
# - turn it into a loss, and the loss into a training loop of a dozen lines of PyTorch;
# - tell a broken gradient from a right one when the learning curve does not;
# - say why one-step rewards need no discount.
#
# You need Python with a little PyTorch, probabilities, and calculus as far as the chain rule. Nothing about reinforcement learning.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from course import exact, ladder
from course.lab import figures

lesson = course.setup("01")
ladder.reinforce

# %% [markdown]
# That is the goal, the lowest rung, called **REINFORCE** (Williams 1992). $N$ answers were sampled: a **rollout**. Answer $i$ has $|o_i|$ tokens and earned $R_i$, and each of its tokens contributes $R_i\log\pi_\theta$. You will derive it from nothing.
#
# ## What is maximised
#
# A question $q$ is asked with frequency $d(q)$. The **policy** $\pi_\theta(o\mid q)$ draws an answer $o$. It earns a reward $R$, which may be random; the mean for this answer is $r(q,o)=\mathbb E[R\mid q,o]$. The policy should earn much on average:
#
# $$J(\theta)=\sum_q d(q)\sum_o\pi_\theta(o\mid q)\,r(q,o)=\mathbb E_{q\sim d,\;o\sim\pi_\theta}[R]\tag{1.1}$$
#
# `eq:expected-reward` · Giovanidis 2025, step 1
#
# In the words of reinforcement learning the question is a **state** and the answer an **action**. If actions led to new states, this would be a Markov decision process (**MDP**), and the sequence of states and actions a **trajectory**. Here everything ends after one action: a **bandit**.
#
# Our specimen is small enough to list: one question, three answers, called **arms**. The policy gives them $\pi=(.5,.3,.2)$, and each arm pays 1 with probability $.2$, $.5$ or $.8$, otherwise 0. Its name in this course is **B3**.
#
# Its parameters $\theta$ are three numbers, one per arm, called **logits**: $\pi_a=e^{\theta_a}/\sum_ce^{\theta_c}$, a **softmax**. $\nabla$ is the vector of derivatives with respect to them.

# %%
from bandits.exact import B3_MEANS, B3_POLICY, b3

B3 = b3()  # every arm with every reward it can pay
probability, mean = (
    torch.tensor(B3_POLICY, dtype=torch.float64),
    torch.tensor(B3_MEANS, dtype=torch.float64),
)
print(f"by hand  .5·.2 + .3·.5 + .2·.8 = {float(probability @ mean):.3g}")
print(f"listed   J = {exact.objective(B3):.3g}")

# %%
lesson.code(exact.objective)

# %% jupyter={"source_hidden": true}
lesson.ask("largest-move")

# %% [markdown]
# ## The derivation
#
# Differentiate (1.1). Only $\pi_\theta$ depends on $\theta$, so $\nabla J=\sum_qd(q)\sum_or(q,o)\,\nabla\pi_\theta(o\mid q)$. You cannot estimate this by sampling answers, since $\nabla\pi_\theta$ is not a probability: some of its entries are negative. But the chain rule says $\nabla\log\pi=\nabla\pi/\pi$, so $\nabla\pi=\pi\,\nabla\log\pi$. This is the **log-derivative trick**. The $\pi$ in front makes an expectation of the sum:
#
# $$\nabla J=\sum_qd(q)\sum_o\pi_\theta(o\mid q)\,r(q,o)\,\nabla\log\pi_\theta(o\mid q)=\mathbb E\big[R\,\nabla\log\pi_\theta(o\mid q)\big]\tag{1.2}$$
#
# `eq:one-step-policy-gradient` · Williams 1992, theorem 1; Giovanidis 2025, step 1
#
# The last step puts the random $R$ in place of its mean: given question and answer, $\nabla\log\pi_\theta$ is fixed, and $R$ is $r(q,o)$ on average.
#
# $\nabla\log\pi$ is called the **score**. For a softmax over logits it is simple. $\log\pi_a=\theta_a-\log\sum_ce^{\theta_c}$. The derivative of the first term with respect to $\theta_b$ is 1 if $a=b$, else 0. That of the second is $e^{\theta_b}/\sum_ce^{\theta_c}=\pi_b$. So
#
# $$\frac{\partial\log\pi_a}{\partial\theta_b}=\mathbf 1[a=b]-\pi_b\tag{1.3}$$
#
# `eq:softmax-score` · Sutton & Barto 2018, §2.8
#
# The score is 0 on average: probabilities add up to 1, and 1 has no gradient.
#
# $$\mathbb E[\nabla\log\pi_\theta]=\sum_o\pi_\theta(o)\,\frac{\nabla\pi_\theta(o)}{\pi_\theta(o)}=\nabla\sum_o\pi_\theta(o)=\nabla1=0\tag{1.4}$$
#
# `eq:mean-score` · Williams 1992, in the proof of theorem 1
#
# On B3, for the first logit: $.5\cdot.5+.3\cdot(-.5)+.2\cdot(-.5)=0$.

# %%
from course.exact import softmax_score

score = softmax_score(probability.log())  # [arm, logit]
for arm, row in enumerate(score.tolist()):
    print(f"score of arm {arm + 1}: ", "  ".join(f"{x:+.1f}" for x in row))
print("mean, Σ π·score: ", "  ".join(f"{x:.1f}" for x in (probability @ score).abs().tolist()))
lesson.code(softmax_score, exact.gradient)

# %% [markdown]
# With reward 1, arm $a$'s logit rises by $1-\pi_a$ and the others fall by their own probabilities: a rare arm jumps, a common one hardly moves.
#
# ## Do it: the gradient in closed form
#
# Put (1.3) into (1.2) for one question. Your result is a formula without a sum over samples.

# %%
closed_form = lesson.exercise("closed-form")

# %%
def my_gradient(pi, mean):
    """π [K] and each arm's mean reward [K] → ∂J/∂θ [K]."""
    return NotImplemented


closed_form.check(my_gradient)

# %% [markdown]
# Three ways to the same numbers: your formula $\pi_b(r_b-J)$ (here the folded solution's), the sum (1.2), and automatic differentiation of $J$. The first is the largest, and negative: that was the first question.

# %%
theta = probability.log().requires_grad_()
[by_autograd] = torch.autograd.grad((theta.softmax(0) * mean).sum(), theta)
for label, gradient in (
    ("π(r − J)     ", closed_form.solution(probability, mean)),
    ("E[R ∇log π]  ", exact.gradient(B3)),
    ("autograd of J", by_autograd),
):
    print(label, "  ".join(f"{x:+.3f}" for x in gradient.tolist()))

# %% [markdown]
# ## Seen exactly: six things can happen
#
# An arm is drawn, and it pays or not. By (1.2), each case weighed with its probability, $R\cdot$score averages to $\nabla J$.

# %% jupyter={"source_hidden": true}
lesson.ask("reward-zero")

# %%
chance, reward = exact.probability(B3)[0], B3.total_reward[0]
terms = chance[:, None] * reward[:, None] * B3.total_score[0]
print("arm  R   chance   chance · R · score")
for case in range(6):
    row = "  ".join(f"{x + 0.0:+.3f}" for x in terms[case].tolist())
    print(f"  {case // 2 + 1}  {reward[case]:.0f}   {chance[case]:.3f}    {row}")
print("  sum              ", "  ".join(f"{x:+.3f}" for x in terms.sum(0).tolist()))
print("equal to ∇J to 1e-12:", torch.allclose(terms.sum(0), by_autograd, atol=1e-12))

# %% [markdown]
# ## From six cases to a batch
#
# You cannot list a language model's answers, but you can sample $N$ of them and average. An answer's probability is the product of its tokens' probabilities, each given those before it, $o_{<t}$. So its logarithm is a sum, and the score is one, too:
#
# $$\nabla\log\pi_\theta(o\mid q)=\sum_{t=1}^{|o|}\nabla\log\pi_\theta(o_t\mid q,o_{<t})\tag{1.5}$$
#
# `eq:answer-score` · Williams 1992, episodic REINFORCE
#
# The rewards of an answer's tokens are added up first (a verifiable reward sits on the last, the others are 0):
#
# $$R_i=\sum_{t=1}^{|o_i|}r_{i,t}\tag{1.6}$$
#
# `eq:answer-return` · Williams 1992, episodic REINFORCE
#
# The mean of $N$ samples of (1.2) is then
#
# $$\hat g=\frac1N\sum_{i=1}^NR_i\sum_{t=1}^{|o_i|}\nabla\log\pi_\theta(o_{i,t}\mid q_i,o_{i,<t})\tag{1.7}$$
#
# `eq:sum-over-the-answer` · Williams 1992, theorem 1, with (1.5)
#
# It is a random vector, one for each batch, and its mean is $\nabla J$. Every token shares in what the whole answer earned. Check that on the smallest policy with two tokens, of two values each: two logits for the first token, two for the second token after either first token. Six logits, four answers. (The folded cell lists them.)

# %% jupyter={"source_hidden": true}
from course.exact import Outcomes

first = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)  # logits of token 1
# logits of token 2, [token 1, token 2]
second = torch.tensor([[0.5, 0.0], [-0.4, 0.1]], dtype=torch.float64, requires_grad=True)
# what each answer earns, [token 1, token 2]
pay = torch.tensor([[0.0, 0.2], [0.6, 1.0]], dtype=torch.float64)


def leaves_and_scores(answer):
    """log π of an answer's two tokens [2], and their gradients with respect to the
    six logits [2, 6].
    """
    one, two = answer
    tokens = torch.stack([first.log_softmax(0)[one], second[one].log_softmax(0)[two]])
    by = [
        torch.autograd.grad(
            token, [first, second], allow_unused=True, materialize_grads=True, retain_graph=True
        )
        for token in tokens
    ]
    return tokens.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in by])


answers = [(0, 0), (0, 1), (1, 0), (1, 1)]
tokens, scores = (
    torch.stack(column).unsqueeze(0) for column in zip(*map(leaves_and_scores, answers))
)
earned = torch.zeros(1, 4, 2, dtype=torch.float64)
earned[0, :, 1] = pay.flatten()  # the reward sits on the last token
chain = Outcomes.of_sequences(tokens, earned, score=scores)

# %%
joint = first.softmax(0)[:, None] * second.softmax(1)  # the probability of each answer
whole = torch.cat([g.flatten() for g in torch.autograd.grad((joint * pay).sum(), [first, second])])
print("∇J of the six logits:", "  ".join(f"{x:+.3f}" for x in whole.tolist()))
print(
    "E[R · Σ_t ∇log π(o_t)] is that to 1e-12:",
    torch.allclose(exact.gradient(chain), whole, atol=1e-12),
)

# %% [markdown]
# ## The loss
#
# Automatic differentiation wants a function, not a gradient. Take one whose gradient is (1.7), with the samples and their $A_{i,t}=R_i$ as **constants**:
#
# $$\text{per token}\quad A_{i,t}\log\pi_\theta(o_{i,t}\mid q,o_{i,<t}),\qquad A_{i,t}\ \text{never differentiated}\tag{1.8}$$
#
# `eq:score-function-surrogate` · Williams 1992; Sutton et al. 1999
#
# $A$ is the **advantage**, on this rung the reward itself. A function that is used for its gradient and not for its value is a **surrogate**. Weighed as in (1.7), this one is the rung that you saw at the start. It prints $L(\theta)$ and not $J(\theta)$, because its value is not the expected reward. Its gradient is $\nabla J$ on average, as long as the answers come from $\pi_\theta$ itself, which is called **on-policy**.

# %%
from course.parts import ScoreFunction, SequenceSum, TotalReturn

lesson.code(TotalReturn, SequenceSum, ScoreFunction)
ladder.reinforce

# %% [markdown]
# "Constants" is the delicate word. Differentiate $\mathbb E_{o\sim\pi_\theta}[A\log\pi_\theta]$ as it stands, and the $\pi_\theta$ that samples is differentiated, too. By the product rule this adds $\mathbb E[A\log\pi_\theta\,\nabla\log\pi_\theta]$:

# %%
theta = probability.log().requires_grad_()
[literal] = torch.autograd.grad((theta.softmax(0) * mean * theta.log_softmax(0)).sum(), theta)
# the sampling is held fixed
[held] = torch.autograd.grad((probability * mean * theta.log_softmax(0)).sum(), theta)
print(
    "sampling held fixed:",
    "  ".join(f"{x:+.3f}" for x in held.tolist()),
    " = ∇J:",
    torch.allclose(held, by_autograd, atol=1e-12),
)
print(
    "taken literally:    ",
    "  ".join(f"{x:+.3f}" for x in literal.tolist()),
    " = ∇J:",
    torch.allclose(literal, by_autograd, atol=1e-12),
)

# %% [markdown]
# Taken literally it runs away from the best arm. ([Who writes it so](SLIPS.md).)
#
# ## Do it: the loss
#
# Optimisers minimise, so code holds a **loss**, minus the objective. Write that of one batch. The checker averages your gradient over every batch of two of the four answers.

# %%
loss_exercise = lesson.exercise("reinforce-loss", chain=chain, whole=whole)

# %%
def my_loss(log_prob, reward):
    """log π [N, T] of the sampled tokens, differentiable, and rewards [N, T] → a tensor with one
    number, to be minimised.
    """
    return NotImplemented


loss_exercise.check(my_loss)

# %% [markdown]
# ## The training loop
#
# With a gradient you walk uphill, a **learning rate** $\alpha$ at a time:
#
# $$\theta\leftarrow\theta+\alpha\,\hat g\tag{1.9}$$
#
# `eq:gradient-ascent` · Sutton & Barto 2018, eq. 13.1
#
# Each update samples answers, asks for their rewards, forms the loss, differentiates it and steps. On B3 that is a dozen lines of plain PyTorch:

# %%
def train_by_hand(offset=0.0, updates=200):
    """REINFORCE on B3 with `offset` added to every reward: the logits, and [loss, J] by update."""
    theta = probability.log().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.5)
    noise, seen = lesson.noise(dtype=torch.float64, use=3), []
    for _ in range(updates):
        log_pi = theta.log_softmax(0)
        pi = log_pi.detach().exp()
        arm = (pi.cumsum(0)[:-1, None] <= noise.uniform(8)).sum(0)  # sample eight answers
        reward = (noise.uniform(8) < mean[arm]).double() + offset  # ask for their rewards
        loss = -(reward * log_pi[arm]).mean()  # minus (1.8), weighed as in (1.7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # (1.9)
        seen.append((float(loss.detach()), float(pi @ mean)))
    return theta.detach(), torch.tensor(seen)


theta, seen = train_by_hand()
print(f"J before the first update {seen[0, 1]:.3f}, before the last {seen[-1, 1]:.3f}")

# %% [markdown]
# `Learner` is the loop of this course. You give it a problem that samples, an estimator that makes the loss, and an optimiser that steps. With the same random numbers it must end at the same policy:

# %%
from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit
from course.learner import Learner
from course.train.optim import SGD

bandit = Bandit(Bernoulli(mean[None]), Softmax.of(probability[None]), group=8)
learner = Learner(bandit, ladder.reinforce, SGD(0.5), lesson.noise(dtype=torch.float64, use=3))
learner.train(200)
same = torch.allclose(bandit.arm_policy.log_probs()[0], theta.log_softmax(0), atol=1e-12)
print("the policy after 200 updates:", [f"{x:.3f}" for x in theta.softmax(0).tolist()])
print("by hand and by Learner the same to 1e-12:", same)
lesson.code(Learner.step)

# %% [markdown]
# ## Which curve do you watch?
# <!-- answers: 37 -->
#
# Take 1 from every reward of B3, so that they are 0 and −1, and train again.

# %% jupyter={"source_hidden": true}
lesson.ask("which-curve")

# %%
print("rewards      loss, updates 1–20   181–200      J at the start   at the end")
for offset, rewards in ((0.0, "0 and 1"), (-1.0, "−1 and 0")):
    _, seen = train_by_hand(offset)
    early, late = float(seen[:20, 0].mean()), float(seen[-20:, 0].mean())
    start, end = seen[0, 1], seen[-1, 1]
    print(f"{rewards:<12} {early:>+18.3f}   {late:>+7.3f}      {start:.3f}            {end:.3f}")

# %% [markdown]
# In one run the loss falls, in the other it rises, and both learn. Watch the mean reward, best on questions that are not trained on.

# %% [markdown]
# ## Why there is no discount: γ = 0 per question
#
# Reinforcement learning usually maximises a discounted stream, $\mathbb E[r_0+\gamma r_1+\gamma^2r_2+\dots]$, since an action now changes what can be earned later. Here nothing carries over: whatever you answer, the next question comes from the same $d(q)$. So every expected reward is $J$ again, and the stream is $J+\gamma J+\gamma^2J+\dots=J/(1-\gamma)$. Any $\gamma<1$ has the same gradient up to a factor, and $\gamma=0$ also saves noise: the next reward says nothing about this answer. Check both on two questions in a row.

# %% jupyter={"source_hidden": true}
gamma = 0.9
logits = probability.log().requires_grad_()
pi = logits.softmax(0)
two_in_a_row = torch.einsum(
    "a,b,ab->", pi, pi, mean[:, None] + gamma * mean[None, :]
)  # r₀ + γ r₁ over all pairs of answers
[stream] = torch.autograd.grad(two_in_a_row, logits)
cross = torch.einsum(
    "a,b,b,ad->d", probability, probability, mean, score
)  # E[r₁ · ∇log π(first answer)]
print(
    "gradient of r₀ + γr₁ is (1 + γ)∇J:",
    torch.allclose(stream, (1 + gamma) * exact.gradient(B3), atol=1e-12),
)
print(
    "E[next reward · this answer's score] is 0:",
    torch.allclose(cross, torch.zeros(3, dtype=torch.float64), atol=1e-12),
)

# %% [markdown]
# ## Why one step needs no policy-gradient theorem (optional)
#
# In general the policy also decides which states it meets. Let $d^{\pi}(s)$ be how often state $s$ is visited, and $\bar r^{\pi}(s)$ what the choice made there pays on average. Then
#
# $$J(\theta)=\sum_sd^{\pi}(s)\,\bar r^{\pi}(s),$$
#
# and both factors depend on $\theta$. The policy-gradient theorem (Sutton et al. 1999) shows how to do without $\nabla d^\pi$, which needs a model of where actions lead. With one step there is no such term: in (1.1) $d(q)$ belongs to whoever asks, and $\theta$ appears in $\pi_\theta$ alone.
#
# What if one forgets the term where it matters? Read the four answers above as a walk. The first token picks a room, left or right. The second is a choice in that room, and it is paid.

# %%
def two_steps(rooms):
    """Σ_s d(s)·r̄(s) for d = `rooms` [2]."""
    return (rooms * (second.softmax(-1) * pay).sum(-1)).sum()


print(f"J = {two_steps(first.softmax(0)).item():.3g}")

# %% jupyter={"source_hidden": true}
lesson.ask("frozen-rooms")

# %%
rooms = first.softmax(0)
full = torch.autograd.grad(two_steps(rooms), [first, second])
frozen = torch.autograd.grad(
    two_steps(rooms.detach()), [first, second], allow_unused=True, materialize_grads=True
)
print("first choice, true gradient:", [f"{x:.3g}" for x in full[0].tolist()])
print("first choice, d frozen:     ", [f"{x:.3g}" for x in frozen[0].tolist()])
print("second choice, the two agree:", torch.allclose(full[1], frozen[1], atol=1e-12))

# %% [markdown]
# The theorem would put the missing term back. But there is a shorter way, which you have gone already: take the **whole answer as one choice**. By (1.5) its score is the sum over both tokens, and (1.2) is exact again. So an answer of many tokens is still one step: $\gamma=1$ per token, beside $\gamma=0$ per question.

# %% [markdown]
# ## How good is one batch? The microscope
#
# An estimator can be wrong on average, or scatter. The first is its **bias**,
#
# $$\operatorname{bias}=\mathbb E[\hat g]-\nabla J\tag{1.10}$$
#
# `eq:gradient-bias` · definition
#
# and if that is 0 it is **unbiased**. The second is its **scatter**, the standard deviation over all logits together, $\sqrt{\mathbb E\|\hat g-\mathbb E[\hat g]\|^2}$. `course.exact.microscope` computes both: it forms every batch that can occur, gives each to the very estimator that trains, and weighs the results.

# %% jupyter={"source_hidden": true}
lesson.ask("four-times-the-samples")

# %%
print("samples   bias is 0 to 1e-12   scatter / ‖∇J‖   · √samples")
for group in (1, 4, 16):
    seen = exact.microscope(ladder.reinforce, B3, group)
    relative = seen.std / float(seen.gradient.norm())
    print(
        f"{group:>7}   {float(seen.bias.norm()) < 1e-12!s:<18}   {relative:<14.3g}  "
        f" {relative * group**0.5:.3g}"
    )

# %% [markdown]
# One sample is right on average and by itself mostly noise: its scatter is four times the gradient's length. Now sample for real. The shaded fans are not fitted: they are $\pm2$ exact **standard errors** (one sample's standard deviation over $\sqrt N$, logit by logit) around the exact $\nabla J$.

# %% jupyter={"source_hidden": true}
samples = 4096
bandit = Bandit(Bernoulli(mean[None]), Softmax.of(probability[None]), group=samples)
rollout = bandit.sample(lesson.noise(dtype=torch.float64))
each = rollout.total_reward[0, :, None] * score[rollout.data["action"][0]]  # [N, 3] R_i · score
running = each.cumsum(0) / torch.arange(1, samples + 1, dtype=torch.float64)[:, None]
spread = exact.covariance_at_baseline(B3, 0.0)[0].diagonal().sqrt()
figure, [ax] = figures.new_figure(width=7.2, height=3.4)
count = torch.unique(torch.logspace(0, 3.6123, 200).round().long().clamp(1, samples))
for arm, colour in enumerate(("#b8320f", "#b8860b", "#0057a3")):
    error = 2 * spread[arm] / count.sqrt()
    ax.fill_between(
        count,
        by_autograd[arm] - error,
        by_autograd[arm] + error,
        color=colour,
        alpha=0.12,
        linewidth=0,
    )
    figures.band(
        ax, count, running[count - 1, arm], label=f"∂J/∂θ{'₁₂₃'[arm]}", color=colour, linestyle="-"
    )
    figures.expectation(ax, y=float(by_autograd[arm]))
ax.set_xscale("log")
ax.set_ylim(-0.42, 0.42)
figures.describe(
    ax, "The mean of R·score finds ∇J (dashed)", "samples averaged", "gradient of each logit"
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "Three running means settle on the three exact components of the gradient, nearly always inside"
    " fans of two standard errors.",
)

# %% [markdown]
# ## What the samples add: the offset
#
# Add 4 to every reward of B3, as if every answer got four points for being polite.

# %% jupyter={"source_hidden": true}
lesson.ask("offset")

# %%
for offset in (0.0, 4.0):
    seen = exact.microscope(ladder.reinforce, b3(offset=offset), 1)
    row = "  ".join(f"{x:+.3f}" for x in seen.gradient.tolist())
    print(f"offset {offset:.0f}: ∇J = {row}   scatter of one sample {seen.std:.3g}")

# %% [markdown]
# The signal is the same, the noise more than six times as loud. What that does is a classic, the **gradient bandit** of Sutton & Barto 2018: (1.7) on ten arms with rewards near 4, one pull per update. Their two curves without a baseline end at .49 for $\alpha=.1$ and .27 for $\alpha=.4$, read off figure 2.5. Here is ours beside those ends, and the same arms four points lower.

# %% jupyter={"source_hidden": true}
from bandits.theory import gradient_bandit as book
from course.lab.statistics import interval

curves = {}
for offset in (4.0, 0.0):
    settings = book.Setup(runs=1000, mean=offset, log_every=40)
    # share 0 of a baseline: none
    history = book.train(settings, book.OWN, [0.1, 0.4], [0.0, 0.0], dtype=torch.float64)
    curves[offset] = history.steps, history["optimal_action"]
figure, [ax] = figures.new_figure(width=7.6, height=3.6)
for offset, colour in ((4.0, "#b8320f"), (0.0, "#0057a3")):
    for place, rate in enumerate((0.1, 0.4)):
        steps, best = curves[offset][0], curves[offset][1][:, place]
        label = f"rewards near {offset:.0f}, α = {rate:g}"
        figures.band(
            ax,
            steps,
            *interval(best),
            label=label,
            color=colour,
            linestyle=(figures.SOLID, figures.DASH)[place],
        )
for end in (book.PUBLISHED[0.1, False], book.PUBLISHED[0.4, False]):
    figures.expectation(ax, end, 1000, marker="D")
ax.set_ylim(0, 1)
figures.describe(
    ax,
    "The offset is all that differs (◇: the book's ends)",
    "pulls, one update each",
    "probability of the best arm",
)
figures.label_ends(ax)
lesson.picture(
    figure,
    "With rewards near 4 both curves end low, where the book's do; with the same arms near 0 both"
    " end far higher.",
)

# %% jupyter={"source_hidden": true}
for rate, place in ((0.1, 0), (0.4, 1)):
    near_four, near_zero = (float(curves[offset][1][-1, place].mean()) for offset in (4.0, 0.0))
    print(
        f"α = {rate}: rewards near 4 end at {near_four:.2f} (book {book.PUBLISHED[rate, False]}),"
        f" near 0 at {near_zero:.2f}"
    )

# %% [markdown]
# At the same policy $\nabla J$ is the same in all four. Near 4, whatever is pulled first is praised fourfold, pulled again, and praised again.
#
# ## Explore: learning rate and offset
#
# B3 again, one sample per update. The dashed line follows the *expected* gradient, which the offset does not touch. Grey lines are single runs, black is the mean of a hundred. With the offset +4 they gather at .2, .5 and .8, one level for each arm.

# %% jupyter={"source_hidden": true}
from bandits.environments import Discrete
from bandits.flow import follow

exponents = torch.arange(-2.0, 0.51, 0.25, dtype=torch.float64)  # of the learning rate
offsets = torch.arange(-4.0, 4.1, 1.0, dtype=torch.float64)
grid = (len(exponents), len(offsets), 100)
paid = torch.stack([1 + offsets, offsets], -1)[None, :, None, None, None, :].expand(*grid, 1, 3, 2)
chances = torch.stack([mean, 1 - mean], -1).expand(*grid, 1, 3, 2)
many = Bandit(Discrete(paid, chances), Softmax.of(probability.expand(*grid, 1, 3)), group=1)
rates = (10**exponents)[:, None, None].expand(grid)
history = Learner(
    many, ladder.reinforce, SGD(rates), lesson.noise(*grid, dtype=torch.float64, use=1), log_every=5
).train(300)
sampled_steps = torch.tensor([0, *history.steps])
start = torch.full((1, *grid), float(probability @ mean), dtype=torch.float64)
sampled = torch.cat(
    [start, history["expected_reward"] - offsets[:, None]]
)  # [logs, rate, offset, run]
flows = [
    follow(
        lambda log_prob: closed_form.solution(log_prob.exp(), mean),
        probability.log(),
        rate=float(10**x),
        steps=300,
    ).exp()
    @ mean
    for x in exponents
]


def draw_climb(rate, offset):
    place, shift = round((float(torch.tensor(rate).log10()) + 2) / 0.25), round(offset + 4)
    runs = sampled[:, place, shift]
    figure, [left, right] = figures.new_figure(1, 2, width=9, height=3.3, width_ratios=(2, 1))
    left.plot(sampled_steps, runs[:, :25], color="#999999", linewidth=0.6, alpha=0.6)
    left.plot(sampled_steps, runs.mean(-1), color="#000000", linewidth=2.0)
    figures.expectation(left, flows[place], torch.arange(301))
    left.set_ylim(0.15, 0.85)
    figures.describe(
        left,
        f"α = {rate:.2g}, offset {offset:+.0f}",
        "updates, one sample each",
        "J without the offset",
    )
    bins = torch.linspace(0.2, 0.8, 25).tolist()
    right.hist(runs[-1].numpy(), bins=bins, histtype="stepfilled", color="#555555")
    right.set_ylim(0, 100)
    figures.describe(right, "where 100 runs end", "J without the offset", "runs")
    return figure


lesson.explore(
    "rate-and-offset",
    draw_climb,
    "move the offset to 0: the dashed line stays, and the runs gather around it, no more at .2, .5"
    " and .8",
    rate=course.lesson.Slider(-2.0, 0.5, 0.25, -0.5, "learning rate α", log=True),
    offset=course.lesson.Slider(-4, 4, 1, 4, "offset of all rewards"),
)

# %% jupyter={"source_hidden": true}
fine = (sampled[-1] > 0.75).double().mean(-1)  # [rate, offset]
place = exponents.tolist().index(-0.5)
for offset in (4, -4, 0, -1):
    ends = sampled[-1, place, offset + 4]
    near = [int(((ends - pay).abs() < 0.05).sum()) for pay in (0.2, 0.5)]
    print(
        f"α = {10 ** float(exponents[place]):.2f}, offset {offset:+d}: of 100 runs"
        f" {100 * float(fine[place, offset + 4]):>3.0f} end above .75, {near[1]:>2} near .5,"
        f" {near[0]:>2} near .2"
    )

# %% [markdown]
# With +4 and with −4 most runs end at .2 and .5: they committed to a worse arm, praised whenever it was pulled, or left over when both others had been punished. With 0 nearly all are fine, and with −1, too. So the offset matters. Which one is best is a question with an answer, in lesson 02.
#
# ## Break it
#
# Three programs train on B3 with batches of eight. All add .05 times the **entropy**, $-\sum_a\pi_a\log\pi_a$, as many training scripts do; it is largest for the uniform policy, so this bonus pulls gently there. One program is right. In one the log-probability is **detached**, so that no gradient flows through it. In one an index is off, and the reward of an arm is credited to $\log\pi$ of the **next arm**. None raises an error.

# %%
from dataclasses import dataclass
from dataclasses import replace as copy_with

from course.estimator import replace


@dataclass(frozen=True)
class Detached(ScoreFunction):
    """The fault: a detached tensor."""

    def __call__(self, log_ratio, log_prob, advantage):
        return advantage * log_prob.detach()


class NextArm(Bandit):
    """The fault: scored with the log-probability of the next arm."""

    def policy(self, rollout):
        shifted = (rollout.data["action"] + 1) % 3
        return super().policy(copy_with(rollout, data=rollout.data | {"action": shifted}))

# %% jupyter={"source_hidden": true}
right_estimator = replace(ladder.reinforce, entropy_coef=0.05)


def train(problem, estimator):
    noise = lesson.noise(100, dtype=torch.float64, use=2)
    bandit = problem(
        Bernoulli(mean.expand(100, 1, 3)), Softmax.of(probability.expand(100, 1, 3)), group=8
    )
    history = Learner(bandit, estimator, SGD(0.5), noise, log_every=10).train(600)
    return history.steps, history["expected_reward"]


runs = {
    "run A": train(Bandit, replace(right_estimator, surrogate=Detached())),
    "run B": train(NextArm, right_estimator),
    "run C": train(Bandit, right_estimator),
}


def draw_runs(limits=None):
    figure, [ax] = figures.new_figure(width=7.2, height=3.4)
    for (label, (steps, values)), colour in zip(
        runs.items(), ("#b8860b", "#4a98e0", "#000000"), strict=True
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
        text = label if limits is None else f"{label}: {limits[label][0]}"
        figures.band(ax, steps, values.mean(-1), label=text, color=colour, linestyle="-")
        if limits is not None:
            figures.expectation(ax, y=limits[label][1])
    ax.set_ylim(0.3, 0.85)
    figures.describe(
        ax,
        "Three programs, all three end above where they began",
        "updates of eight samples",
        "J (bands: 90 % of runs)",
    )
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_runs(),
    "Run C climbs to about .8. Run A climbs slowly to .5, run B stays near .44. All three began at"
    " .41.",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %% jupyter={"source_hidden": true}
def limit(credited):
    """J after many steps of the expected gradient Σ π_a r_a · score of credited[a], with the
    entropy bonus.
    """

    def pull(log_prob):
        pi = log_prob.exp()
        entropy = -(pi * log_prob).sum()
        push = (
            torch.zeros(3, dtype=torch.float64)
            if credited is None
            else (pi * mean) @ softmax_score(log_prob)[credited]
        )
        return push - 0.05 * pi * (log_prob + entropy)

    return float(follow(pull, probability.log(), rate=0.5, steps=4000)[-1].exp() @ mean)


limits = {
    "run A": ("detached", limit(None)),
    "run B": ("next arm", limit([1, 2, 0])),
    "run C": ("right", limit([0, 1, 2])),
}
lesson.picture(
    draw_runs(limits),
    "Run A is detached, run B credits the next arm, run C is right; dashed lines are the exact"
    " limits.",
)
for label, (fault, value) in limits.items():
    print(
        f"{label}: {fault:<9} exact limit {value:.3f}, mean of the runs' last"
        f" {float(runs[label][1][-1].mean()):.3f}"
    )

# %% [markdown]
# The dashed lines follow each fault's expected gradient. A rising curve is no proof: **both** broken programs ended above where they began.
#
# ## Who notices?
# <!-- answers: 29 -->
#
# The equation says one thing, the code another: a sign, a detached tensor, a wrong index. Readers of textbooks find such pairs years later, because the notebook still runs. No error message tells you, nor does the curve. A comparison with an answer that was found **in another way** does, at once. Here the other way is automatic differentiation of $J$.

# %%
# each arm scored as the next: rows come in pairs (paid, not paid)
shifted = copy_with(B3, score=B3.score[:, [2, 3, 4, 5, 0, 1]])
flipped = copy_with(B3, reward=-B3.reward)
suspects = {
    "right": exact.microscope(ladder.reinforce, B3, 4),
    "sign flipped": exact.microscope(ladder.reinforce, flipped, 4),
    "next arm": exact.microscope(ladder.reinforce, shifted, 4),
    "detached": exact.microscope(replace(ladder.reinforce, surrogate=Detached()), B3, 4),
}
for name, seen in suspects.items():
    row = "  ".join(f"{x + 0.0:+.3f}" for x in seen.expected.tolist())
    print(
        f"{name:<13} E[ĝ] = {row}   equal to ∇J to 1e-12:"
        f" {torch.allclose(seen.expected, by_autograd, atol=1e-12)}"
    )

# %% [markdown]
# ## Do it: your own loss under the microscope
#
# That is how every estimator of this course is tested. `exact.expected_gradient` does it for a loss that is a plain function: it calls the loss on every batch of two of the four answers and averages the negative gradients. Here is yours, as it is and broken in four ways. (If it is not written yet, the folded solution takes its place.)

# %%
yours = my_loss
if my_loss(tokens[0], earned[0]) is NotImplemented:
    yours = loss_exercise.solution

losses = {
    "yours": yours,
    "minus forgotten": lambda log_prob, reward: -yours(log_prob, reward),
    "detached": lambda log_prob, reward: yours(log_prob.detach(), reward),
    "rewards of the neighbour": lambda log_prob, reward: yours(log_prob, reward.roll(1, 0)),
    "mean over tokens": lambda log_prob, reward: yours(log_prob / 2, reward),
}
print(f"{'∇J':<25}", "  ".join(f"{x:+.3f}" for x in whole.tolist()))
for name, loss in losses.items():
    found = exact.expected_gradient(loss, chain, 2)
    print(f"{name:<25}", "  ".join(f"{x + 0.0:+.3f}" for x in found.tolist()))

# %% [markdown]
# Two of the faults look alike: if nothing flows, the gradient is 0; if what flows is independent of the rewards, it is 0 on average, by (1.4). Now tell them apart: write a function that sees $\mathbb E[\hat g]$ and $\nabla J$, and names the fault. There is one more than above: each token is weighed with its *own* reward, not with the answer's. Think what that leaves of the first token.

# %%
fault_exercise = lesson.exercise("find-the-fault", chain=chain, whole=whole)

# %%
def my_diagnosis(found, right):
    """E[ĝ] of a loss and ∇J, [6] each (two logits of token 1, four of token 2) → "none", "sign",
    "zero", "scaled" or "first token".
    """
    return NotImplemented


fault_exercise.check(my_diagnosis)

# %% [markdown]
# And now the verdict on your own loss and its broken copies (the folded solution's verdict, as long as yours is not written):

# %% jupyter={"source_hidden": true}
for name, loss in losses.items():
    found = exact.expected_gradient(loss, chain, 2)
    said = my_diagnosis(found, whole)
    said = fault_exercise.solution(found, whole) if said is NotImplemented else said
    print(f"{name:<25} fault: {said}")

# %% [markdown]
# Do this with your code at work: four answers suffice.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# $\mathbb E[R\,\nabla\log\pi_\theta]=\nabla J$, for a single sample already. With one step per question that takes two lines, and it says nothing about the scatter.
#
# ## Next
#
# An offset of 4 ruined the learning without touching $\nabla J$. Lesson 02 replaces one part, the baseline, which takes such an offset out.

# %% [markdown]
# ## Appendix (optional): how fast is the climb without noise?
#
# Let one of $K$ arms pay 1 and the others 0, and start at the uniform policy; then the others stay alike. With $p$ the best arm's probability, $J=p$. Follow the exact gradient.
#
# 1. Your closed form $\pi_b(r_b-J)$ gives the best logit $p(1-p)$. Each other arm has $\pi_b=\frac{1-p}{K-1}$, so its logit gets $-\frac{p(1-p)}{K-1}$.
# 2. Let $u=\log\frac{p}{1-p}$ be the log-odds. Since $\frac p{1-p}=\frac{1}{K-1}e^{\theta_{best}-\theta_{other}}$, $u$ is the difference of the two logits, up to a constant, and moves at $\dot u=p(1-p)+\frac{p(1-p)}{K-1}=\frac{K}{K-1}p(1-p)$ per unit of time. One step is $\alpha$ units of time.
# 3. Look at $\frac1{1-p}=1+e^u$. It moves at $e^u\,\dot u=\frac{p}{1-p}\cdot\frac{K}{K-1}p(1-p)=\frac{K}{K-1}p^2$.
# 4. Near the top $p^2\to1$, so after $t$ steps $\frac1{1-p}$ is near $\frac{K}{K-1}\alpha t$, or
#
# $$t\,(1-p)\to\frac{K-1}{K\alpha}\tag{1.11}$$
#
# `eq:softmax-gradient-rate` · Mei et al. 2020 (2005.06392) for the order 1/t; the constant is derived here

# %% jupyter={"source_hidden": true}
lesson.ask("last-nine")

# %%
arms, rate = 10, 0.5
pays = torch.eye(arms, dtype=torch.float64)[0]
climb = follow(
    lambda log_prob: closed_form.solution(log_prob.exp(), pays),
    torch.full((arms,), 1 / arms, dtype=torch.float64).log(),
    rate=rate,
    steps=4000,
)
missing = 1 - climb[:, 0].exp()
for share in (0.1, 0.01, 0.001):
    print(f"1 − p below {share:<5}: after {int((missing > share).sum()):>4} steps")
print(
    f"t·(1 − p) at step 4000: {float(4000 * missing[-1]):.3g};  (K − 1)/(Kα) ="
    f" {(arms - 1) / (arms * rate):.3g}"
)

# %% [markdown]
# (1.11) alone gives 180 and 1,800 steps; the 40 or so on top were spent on getting away from $p=.1$. A softmax policy turns slow where it is nearly sure: its gradient is $p(1-p)$.
