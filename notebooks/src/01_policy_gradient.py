# %% [markdown]
# # 01 · Policy gradient for one-step rewards
#
# When you are through you can
#
# - write down what is maximised when a policy answers questions and is paid per answer, and say why no discount belongs there;
# - derive $\nabla J=\mathbb E[R\,\nabla\log\pi_\theta]$, and see it hold exactly, by listing everything that can happen;
# - turn it into the first rung of the ladder, an objective that automatic differentiation can use;
# - tell a broken gradient from a right one when the learning curve does not.
#
# You need Python with a little PyTorch, means and probabilities, and calculus as far as the chain rule. Nothing about reinforcement learning.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it: that is where you learn.

# %%
import torch

import course
from course import exact, ladder
from course.lab import figures

lesson = course.setup("01")
ladder.reinforce

# %% [markdown]
# That is the goal, the lowest rung: $N$ answers were sampled, answer $i$ has $|o_i|$ tokens and earned $R_i$, and each of its tokens
# contributes $R_i\log\pi_\theta$. You will derive it from nothing. (The formula was not typed: the object that trains prints itself.)
#
# ## What is maximised
#
# Somebody asks a question $q$, with frequency $d(q)$. The policy $\pi_\theta(o\mid q)$ draws an answer $o$, and the answer earns
# $r(q,o)$. The policy should earn much on average:
#
# $$J(\theta)=\sum_q d(q)\sum_o\pi_\theta(o\mid q)\,r(q,o)=\mathbb E_{q\sim d,\;o\sim\pi_\theta}[R]\tag{1.1}$$
#
# `eq:expected-reward` · Giovanidis 2025, step 1
#
# Our specimen is small enough to list: one question, three answers, which we call arms. The policy gives them
# $\pi=(.5,.3,.2)$, and each arm pays 1 with probability $.2$, $.5$ or $.8$, otherwise 0. Its name in this course is **B3**.
#
# Its parameters $\theta$ are three numbers, one per arm, called **logits**: $\pi_a=e^{\theta_a}/\sum_ce^{\theta_c}$, a **softmax**. $\nabla$ is
# the derivative by each of them.

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
# ## Why there is no discount: γ = 0 per question
#
# Reinforcement learning usually maximises a discounted stream $\mathbb E[r_0+\gamma r_1+\gamma^2r_2+\dots]$, where a deed now changes
# what can be earned later. Here nothing carries over: whatever you answer, the next question comes from the same $d(q)$. So every term
# of the stream is $J$ again, and
#
# $$\mathbb E\Big[\sum_{k\ge0}\gamma^kr_k\Big]=J+\gamma J+\gamma^2J+\dots=\frac{J}{1-\gamma}.$$
#
# Any $\gamma<1$ has the same gradient up to a factor. Giovanidis 2025 sets $\gamma=0$ with an arrow; this is why nothing is
# lost by it. What you save is noise: the next question's reward says nothing about this answer. Check both on two
# questions in a row.

# %%
from course.exact import softmax_score

gamma = 0.9
logits = probability.log().requires_grad_()
pi = logits.softmax(0)
two_in_a_row = torch.einsum(
    "a,b,ab->", pi, pi, mean[:, None] + gamma * mean[None, :]
)  # r₀ + γ r₁ over all pairs of answers
[stream] = torch.autograd.grad(two_in_a_row, logits)
score = softmax_score(probability.log())  # ∇ log π of each arm, derived further down
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
# ## Why one step needs no policy-gradient theorem
#
# In general the policy also decides where it ends up. With $d^{\pi}(s)$, how often state $s$ is visited, and $V^\pi(s)$, what the
# choice made there is paid on average,
#
# $$J(\theta)=\sum_sd^{\pi}(s)\,V^{\pi}(s),$$
#
# and both factors depend on $\theta$. The policy-gradient theorem (Sutton et al. 1999) is what gets rid of $\nabla d^\pi$. With one
# step there is nothing to get rid of: in (1.1) $d(q)$ belongs to whoever asks, and $\theta$ stands in $\pi_\theta$ alone.
#
# Here is the smallest case with two steps. A first choice picks a room, left or right. A second choice, in the room, is paid.

# %%
first = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)  # logits: left, right
# logits in each room
second = torch.tensor([[0.5, 0.0], [-0.4, 0.1]], dtype=torch.float64, requires_grad=True)
# [room, choice]: the right room pays better
pay = torch.tensor([[0.0, 0.2], [0.6, 1.0]], dtype=torch.float64)


def two_steps(rooms):
    """Σ_s d(s) V(s) for d = `rooms` [2]."""
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
# An answer of a language model has many tokens, so is it not a chain of rooms? It is. But you may also take the **whole answer as one
# choice**, since its probability is the product of its tokens', each given those before it, $o_{<t}$:
#
# $$\nabla\log\pi_\theta(o\mid q)=\sum_{t=1}^{|o|}\nabla\log\pi_\theta(o_t\mid q,o_{<t})\tag{1.2}$$
#
# `eq:answer-score` · Williams 1992, episodic REINFORCE
#
# Then it is one step again. Every token shares in what the whole answer earns; that is $\gamma=1$ per token, beside $\gamma=0$ per
# question. List the four walks through the rooms as four answers of two tokens:

# %%
from course.exact import Outcomes


def leaves_and_scores(walk):
    """log π of the two tokens of a walk [2], and their gradients by the six logits [2, 6]."""
    room, choice = walk
    tokens = torch.stack([first.log_softmax(0)[room], second[room].log_softmax(0)[choice]])
    by = [
        torch.autograd.grad(
            token, [first, second], allow_unused=True, materialize_grads=True, retain_graph=True
        )
        for token in tokens
    ]
    return tokens.detach(), torch.stack(
        [torch.cat([g.flatten() for g in gradients]) for gradients in by]
    )


walks = [(0, 0), (0, 1), (1, 0), (1, 1)]
tokens, scores = (
    torch.stack(column).unsqueeze(0) for column in zip(*map(leaves_and_scores, walks), strict=True)
)
earned = torch.zeros(1, 4, 2, dtype=torch.float64)
earned[0, :, 1] = pay.flatten()  # the reward sits on the last token
chain = Outcomes.of_sequences(tokens, earned, score=scores)
whole = torch.cat([full[0], full[1].flatten()])
print(
    "E[R · Σ_t ∇log π(o_t)] is the true gradient of both choices:",
    torch.allclose(exact.gradient(chain), whole, atol=1e-12),
)

# %% [markdown]
# ## The derivation
#
# Take (1.1) and differentiate. Only $\pi_\theta$ depends on $\theta$:
#
# $$\nabla J=\sum_qd(q)\sum_or(q,o)\,\nabla\pi_\theta(o\mid q).$$
#
# You cannot sample from this: $\nabla\pi_\theta$ is no probability. But $\nabla\log\pi=\nabla\pi/\pi$, so $\nabla\pi=\pi\,\nabla\log\pi$, and
# the $\pi$ in front makes an expectation of it:
#
# $$\nabla J=\sum_qd(q)\sum_o\pi_\theta(o\mid q)\,r(q,o)\,\nabla\log\pi_\theta(o\mid q)=\mathbb E\big[R\,\nabla\log\pi_\theta(o\mid q)\big]\tag{1.3}$$
#
# `eq:one-step-policy-gradient` · Williams 1992, theorem 1; Giovanidis 2025, step 1
#
# $\nabla\log\pi$ is called the **score**. For a softmax over logits $\theta$ it is simple:
# $\log\pi_a=\theta_a-\log\sum_ce^{\theta_c}$, and the derivative of the second term by $\theta_b$ is $e^{\theta_b}/\sum_ce^{\theta_c}=\pi_b$, so
#
# $$\frac{\partial\log\pi_a}{\partial\theta_b}=\mathbf 1[a=b]-\pi_b\tag{1.4}$$
#
# `eq:softmax-score` · Sutton & Barto 2018, §2.8

# %%
for arm, row in enumerate(softmax_score(probability.log()).tolist()):
    print(f"score of arm {arm + 1}: ", "  ".join(f"{x:+.1f}" for x in row))
lesson.code(softmax_score, exact.gradient)

# %% [markdown]
# A sample of arm $a$ with reward 1 raises logit $a$ by $1-\pi_a$ and lowers the others by their own probabilities: a rare arm jumps, a
# common one hardly moves.
#
# ## Do it: the gradient in closed form
#
# Put (1.4) into (1.3) for one question. Your result is a formula without a sum over samples.

# %%
closed_form = lesson.exercise("closed-form")

# %%
def my_gradient(pi, mean):
    """π [K] and each arm's mean reward [K] → ∂J/∂θ [K]."""
    return NotImplemented


closed_form.check(my_gradient)

# %% [markdown]
# Three ways to the same three numbers: your formula $\pi_b(r_b-J)$ (here the folded solution's), the sum (1.3), and automatic
# differentiation of $J$. The first number is the largest, and negative: that was the first question.

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
# An arm is drawn, and it pays or not. (1.3) says: weigh each of the six cases with its probability, and $R\cdot$score averages to $\nabla J$.

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
# You cannot list a language model's answers, but you can sample $N$ of them and average. The rewards of an answer's tokens are added up
# first; a reward that can be verified sits on the last token, and the rest are 0:
#
# $$R_i=\sum_{t=1}^{|o_i|}r_{i,t}\tag{1.5}$$
#
# `eq:answer-return` · Williams 1992, episodic REINFORCE
#
# $$\hat g=\frac1N\sum_{i=1}^NR_i\sum_{t=1}^{|o_i|}\nabla\log\pi_\theta(o_{i,t}\mid q,o_{i,<t})\tag{1.6}$$
#
# `eq:sum-over-the-answer` · Williams 1992, theorem 1, with (1.2)
#
# Mind what (1.6) is: one random vector. Giovanidis 2025 writes an expectation in front of his sampled mean, where a sample has replaced it.
#
# Automatic differentiation wants a function, not a gradient. Take one whose gradient is (1.6), with the samples and
# their $A_{i,t}=R_i$ as **constants**:
#
# $$\text{per token}\quad A_{i,t}\log\pi_\theta(o_{i,t}\mid q,o_{i,<t}),\qquad A_{i,t}\ \text{never differentiated}\tag{1.7}$$
#
# `eq:score-function-surrogate` · Williams 1992; Sutton et al. 1999
#
# Weighted as in (1.6), that is the rung you saw at the start. It prints $J(\theta)$, but it is not (1.1): its value means nothing. Only its
# gradient does, which is $\nabla J$ on average as long as the answers come from $\pi_\theta$ itself.

# %%
from course.parts import ScoreFunction, SequenceSum, TotalReturn

lesson.code(TotalReturn, SequenceSum, ScoreFunction)
ladder.reinforce

# %% [markdown]
# "Constants" is the delicate word. Giovanidis 2025 writes the objective as $\mathbb E_{o\sim\pi_\theta}[A\log\pi_\theta]$; differentiate *that*,
# and the $\pi_\theta$ that samples is differentiated, too, which adds $\mathbb E[A\log\pi_\theta\,\nabla\log\pi_\theta]$. See how far it leads:

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
# Taken literally it runs nearly opposite to $\nabla J$: away from the best arm.
#
# ## Do it: the loss
#
# Optimisers minimise, so code holds a **loss**, minus the objective. Write the loss of one batch. Samples have two tokens here, and the
# checker averages your gradient over every batch of two walks through the rooms.

# %%
loss_exercise = lesson.exercise(
    "reinforce-loss", tokens=tokens, earned=earned, scores=scores, whole=whole
)

# %%
def my_loss(log_prob, reward):
    """log π [N, T] of the sampled tokens, differentiable, and rewards [N, T] → a tensor with one
    number, to be minimised.
    """
    return NotImplemented


loss_exercise.check(my_loss)

# %% [markdown]
# ## How good is one batch? The microscope
#
# An estimator of $\nabla J$ can have two faults: it is wrong on average, or it scatters. The first is its **bias**,
#
# $$\operatorname{bias}=\mathbb E[\hat g]-\nabla J\tag{1.8}$$
#
# `eq:gradient-bias` · definition
#
# the second its **scatter**, the standard deviation over all logits together, $\sqrt{\mathbb E\|\hat g-\mathbb E[\hat g]\|^2}$.
# `course.exact.microscope` computes both: it forms every batch that can occur, gives each to the very estimator that trains, and
# weighs the results.

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
# One sample's scatter is four times as long as the gradient itself: right on average, and by itself mostly noise. Now sample for real, and watch
# the mean of the samples settle; the shaded fans are not fitted, they are $\pm2$ exact standard errors around the exact $\nabla J$.

# %% jupyter={"source_hidden": true}
from bandits.environments import Bernoulli
from bandits.policies import Softmax
from bandits.problem import Bandit

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
# ## Climbing
#
# With a gradient in hand you walk uphill, a learning rate $\alpha$ at a time:
#
# $$\theta\leftarrow\theta+\alpha\,\hat g\tag{1.9}$$
#
# `eq:gradient-ascent` · Sutton & Barto 2018, eq. 13.1
#
# How fast is that at its best, without any noise? Let one of $K$ arms pay 1 and the others 0, and start at the uniform policy; then the others
# stay alike. With $p$ the best arm's probability, $J=p$, and your closed form gives the best logit $p(1-p)$ and each other one
# $-p(1-p)/(K-1)$. The log-odds $u=\log\frac{p}{1-p}$ move at the difference, $\dot u=\frac{K}{K-1}p(1-p)$ per unit of time, of which a
# step takes $\alpha$. Since $\frac1{1-p}=1+e^u$, the speed of $\frac1{1-p}$ is $e^u\,\dot u=\frac{p}{1-p}\cdot\frac{K}{K-1}p(1-p)=\frac{K}{K-1}p^2$, which tends to $\frac K{K-1}$. So after
# $t$ steps $\frac1{1-p}$ is near $\frac{K}{K-1}\alpha t$, or
#
# $$t\,(1-p)\to\frac{K-1}{K\alpha}\tag{1.10}$$
#
# `eq:softmax-gradient-rate` · Mei et al. 2020 (2005.06392) for the order 1/t; the constant is derived here

# %% jupyter={"source_hidden": true}
lesson.ask("last-nine")

# %%
from bandits.flow import follow

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
# (1.10) alone gives 180 and 1,800 steps; the 40 or so on top were spent on getting away from $p=.1$. A softmax policy turns slow where it is
# nearly sure: its gradient is $p(1-p)$.
#
# ## What the samples add: the offset
#
# Now add 4 to every reward of B3, as if every answer got four points for being polite.

# %% jupyter={"source_hidden": true}
lesson.ask("offset")

# %%
for offset in (0.0, 4.0):
    seen = exact.microscope(ladder.reinforce, b3(offset=offset), 1)
    row = "  ".join(f"{x:+.3f}" for x in seen.gradient.tolist())
    print(f"offset {offset:.0f}: ∇J = {row}   scatter of one sample {seen.std:.3g}")

# %% [markdown]
# The signal is the same, the noise more than six times as loud. What that does to learning is a classic: ten arms, rewards with mean
# near 4, one pull per update. Sutton & Barto 2018 (figure 2.5) print the ends of two such curves, .49 for $\alpha=.1$ and .27 for
# $\alpha=.4$. Their "gradient bandit" is (1.6) with the softmax score, and here is ours beside the printed ends, and once more with the same arms
# four points lower.

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

# %%
for rate, place in ((0.1, 0), (0.4, 1)):
    near_four, near_zero = (float(curves[offset][1][-1, place].mean()) for offset in (4.0, 0.0))
    print(
        f"α = {rate}: rewards near 4 end at {near_four:.2f} (book {book.PUBLISHED[rate, False]}),"
        f" near 0 at {near_zero:.2f}"
    )

# %% [markdown]
# $\nabla J$ was the same in all of it. Near 4, whatever is pulled first is praised fourfold, pulled again, and praised again.
#
# ## Explore: learning rate and offset
#
# B3 again, one sample per update. The dashed line follows the *expected* gradient, with $J$ counted without the offset, so the
# offset does not touch it. Grey lines are single runs, and black is the mean of a hundred.

# %% jupyter={"source_hidden": true}
from bandits.environments import Discrete
from course.learner import Learner
from course.train.optim import SGD

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
    right.hist(runs[-1].numpy(), bins=torch.linspace(0.2, 0.8, 25).tolist(), color="#555555")
    right.set_ylim(0, 100)
    figures.describe(right, "where 100 runs end", "J without the offset", "runs")
    return figure


lesson.explore(
    "rate-and-offset",
    draw_climb,
    "move the offset: the dashed line stays, the runs do not",
    rate=course.lesson.Slider(-2.0, 0.5, 0.25, -1.0, "learning rate α", log=True),
    offset=course.lesson.Slider(-4, 4, 1, 0, "offset of all rewards"),
)

# %%
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
# With +4 and with −4 most runs stand in heaps at .2 and .5: they committed to a worse arm, praised whenever it is pulled, or left over when both
# others had been punished. With 0 nearly all are fine, and with −1, too. So the offset matters, and no particular offset is
# "none". Which one is best is a question with an answer, in lesson 02.
#
# ## Break it
#
# Three programs train on B3 with batches of eight. All three add .05 times the **entropy**, $-\sum_a\pi_a\log\pi_a$, to what they climb, as many
# training scripts do. It is largest for the uniform policy, so this bonus pulls gently there. One program is right. In one the log-probability is **detached**, so that no gradient flows through
# it. In one an index is off by one, and the reward of an arm is credited to $\log\pi$ of the **next arm**, cyclically. None raises an error.

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
# The dashed lines come from the expected gradient of each fault. A rising curve is no proof: **both** broken programs ended above where they began.
#
# ## Who notices?
#
# The equation says one thing, the code another: a sign, a detached tensor, a wrong index. Readers of textbooks and libraries find such pairs years
# later, because the notebook still runs. Who notices? Not the error handler, and not the curve. A comparison with an answer
# that was found **in another way** does, at once. Here the other way is automatic differentiation of $J$, and the comparison takes one line.
# <!-- answers: 29 -->

# %%
# each arm scored as the next: rows come in pairs (paid, not paid)
shifted = copy_with(B3, score=B3.score[:, [2, 3, 4, 5, 0, 1]])
flipped = copy_with(B3, reward=-B3.reward)
suspects = {
    "right": exact.microscope(ladder.reinforce, B3, 4),
    "sign flipped": exact.microscope(ladder.reinforce, flipped, 4),
    "next arm": exact.microscope(ladder.reinforce, shifted, 4),
    "detached": None,  # nothing flows: E[ĝ] = 0
}
for name, seen in suspects.items():
    found = torch.zeros(3, dtype=torch.float64) if seen is None else seen.expected
    row = "  ".join(f"{x + 0.0:+.3f}" for x in found.tolist())
    print(
        f"{name:<13} E[ĝ] = {row}   equal to ∇J to 1e-12:"
        f" {torch.allclose(found, by_autograd, atol=1e-12)}"
    )

# %% [markdown]
# This is how every estimator of this course is tested, and how your exercises are checked. Do it with your own code: a bandit with three arms
# is a small price.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# $\mathbb E[R\,\nabla\log\pi_\theta]=\nabla J$, for a single sample already. With one step per question it takes two lines and no theorem;
# and it says nothing about the scatter.
#
# ## Next
#
# You have seen an offset of 4 ruin the learning without touching $\nabla J$. Lesson 02 replaces one part, the baseline: subtract from $R_i$ something
# that does not depend on the sample, and the scatter changes while the mean does not.
