# %% [markdown]
# # 07 · The KL anchor
#
# One term of GRPO is left: −β·k₃. After this lesson you can
#
# * say what k₁, k₂ and k₃ estimate, how noisy each is, and where k₃ comes from;
# * tell an estimator's *value* from the *gradient* it trains with, and name the divergence behind each of them in the loss and in the reward;
# * predict where training stops for a given β, with and without the std;
# * say what the anchor does not do: it does not replace a critic.
#
# You need lesson 04 (π_old and ρ) and lesson 06 (the group's mean and std, $w_G(p)$). Everything happens on three arms, two arms or two tokens, so that
# every expectation can be written out.
#
# Running all cells takes {{time}}. Answer each blue question before you run the cell below it.

# %%
import torch

import course
from course import ladder
from course.lab import figures

lesson = course.setup("07")
ladder.grpo

# %% [markdown]
# The coloured term is new. The rung below is the same objective without it:

# %% jupyter={"source_hidden": true}
for name, (mine, below) in ladder.grpo.diff(ladder.length_mean).items():
    print(f"{name}: {below.short} → {mine.short}")

# %% [markdown]
# ## The divergence
#
# A language model that is trained on one reward can lose other things that it could do before. An anchor keeps the policy near a frozen copy,
# the **reference** $\pi_{\text{ref}}$: usually the model before this training. "Near" is measured by the Kullback–Leibler divergence, in nats (its logarithm is the natural one):
#
# $$\mathrm{KL}(\pi\Vert\pi_{\text{ref}})=\sum_a \pi(a)\,\log\frac{\pi(a)}{\pi_{\text{ref}}(a)} \tag{7.1}$$
#
# `eq:kl-divergence` · Kullback & Leibler 1951, §2
#
# It is 0 where the two agree and positive elsewhere. Swap the two and you get another number. Here is the pair of distributions
# that we use throughout: the reference likes the second arm and almost never plays the third.

# %%
from course.parts.kl import exact_kl

policy = torch.tensor([0.50, 0.30, 0.20], dtype=torch.float64).log()
reference = torch.tensor([0.25, 0.72, 0.03], dtype=torch.float64).log()

print(f"KL(π‖ref) = {exact_kl(policy, reference):.3f} nats   (reverse: the average is over π)")
print(
    f"KL(ref‖π) = {exact_kl(reference, policy):.3f} nats   (forward: the average is over the"
    " reference)"
)
lesson.code(exact_kl)

# %% [markdown]
# The **reverse** KL averages over your own samples, the **forward** KL over the reference's. The GRPO paper writes the reverse one in its objective. You will see which one its gradient descends.
#
# ## Three ways to estimate it from one sample
#
# The sum in (7.1) runs over every possible answer. You have only the answers that you sampled, each with two numbers: its log-probability under π
# and under the reference. Let (this $r$ is a ratio, no reward)
#
# $$r=\frac{\pi_{\text{ref}}(a)}{\pi(a)},\qquad k_1=-\log r \tag{7.2}$$
#
# `eq:kl-k1-estimate` · Schulman 2020, "Approximating KL divergence"
#
# By (7.1) the mean of $k_1$ over π is the KL: one sampled answer takes the place of the sum over all. But single values can be negative, although
# the KL never is. Schulman's second proposal, $k_2=\tfrac12(\log r)^2$, is never negative, but its mean is not the KL, only close to it where π is close to the reference. The third starts from a second fact
# about $r$: its mean is known, $\mathbb E_\pi[r]=\sum_a\pi(a)\,\frac{\pi_{\text{ref}}(a)}{\pi(a)}=\sum_a\pi_{\text{ref}}(a)=1$.
# So $r-1$ has mean 0, and any multiple of it may be added to $k_1$ without changing the mean. Something with a known mean that is added to cancel noise
# is a **control variate**. With the multiple 1:
#
# $$k_3=(r-1)-\log r\;\ge\;0 \tag{7.3}$$
#
# `eq:kl-k3-estimate` · Schulman 2020; Shao et al. 2024, eq. 4
#
# It is never negative because $\log r\le r-1$: the logarithm lies below its tangent at 1.

# %%
from course.parts.kl import k1, k2, k3

lesson.code(k1, k2, k3)

# %%
log_r = reference - policy
print("arm            1       2       3     mean over π")
for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3)):
    values = estimate(log_r)
    print(
        f"{name}      "
        + "".join(f"{value:8.3f}" for value in values.tolist())
        + f"{(policy.exp() * values).sum():12.3f}"
    )
print(f"\nKL(π‖ref) = {exact_kl(policy, reference):.3f}")

# %% [markdown]
# $k_1$ and $k_3$ hit the KL on average, $k_2$ misses it. From arm to arm all three scatter. How much?
#
# ## How noisy
#
# Let the policy be $\mathcal N(0,1)$ and the reference $\mathcal N(\mu,1)$: there all moments can be worked out, and the true KL is $\tfrac{\mu^2}2$.

# %% jupyter={"source_hidden": true}
lesson.ask("noise-near-reference")

# %% jupyter={"source_hidden": true}
from bandits.ablations.kl_estimators import COLOURS
from bandits.theory import kl_estimators as by_estimator

means = (0.03, 0.06, 0.1, 0.2, 0.35, 0.6, 1.0, 1.4)
noise_of = by_estimator.gaussian_values(means, runs=20, samples=2000)  # 40,000 samples for each μ

print(
    "true KL      "
    + "".join(f"{name:>8}" for name in ("k1", "k2", "k3"))
    + "    std of one sample / true KL, measured"
)
for place, mu in enumerate(means):
    print(
        f"{mu**2 / 2:8.4f}     "
        + "".join(f"{noise_of[name]['std'][place]:8.2f}" for name in ("k1", "k2", "k3"))
    )

# %% jupyter={"source_hidden": true}
from course.exact import control_variate, control_variate_minimum, gaussian_kl_moments
from course.lab.statistics import student


def draw_noise():
    figure, [ax] = figures.new_figure(width=7.6, height=3.9)
    true = torch.tensor(means, dtype=torch.float64) ** 2 / 2
    closed = gaussian_kl_moments(torch.tensor(means, dtype=torch.float64))
    for name, label in (
        ("k1", "k1, unbiased"),
        ("k2", "k2, biased"),
        ("k3", "k3, unbiased"),
        ("best", "k1 + λ*(r − 1)"),
    ):
        row = noise_of[name]
        figures.band(
            ax,
            true,
            row["std"],
            student(0.05, runs=20) * row["std_error"],
            color=COLOURS[name],
            linestyle="-",
            label=label,
            marker="o",
            markersize=4,
        )
        figures.expectation(ax, closed[name].std, true)
    for kl, table in by_estimator.PUBLISHED.items():
        figures.expectation(ax, [row[2] for row in table.values()], [kl] * len(table), marker="D")
    ax.set_xscale("log")
    ax.set_yscale("log")
    figures.describe(
        ax,
        "Noise of one sample: k1 drowns near the reference",
        "true KL (nats)",
        "std of one sample / true KL",
    )
    ax.text(
        0.40,
        0.90,
        "- -  closed form (7.4)    ◇  Schulman's table",
        transform=ax.transAxes,
        color=figures.INK,
    )
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_noise(),
    "standard deviation over true KL: k1 falls from 67 at small KL as 2/μ; k2 and k3 stay near 1.4;"
    " k3 rises at large KL",
)

# %% [markdown]
# Measured points, closed forms and the published table agree. Near the reference $k_3$ is far quieter than $k_1$: 1.4 against 20 at a KL of .005. From a KL of .63 on (here $2/\mu$ meets the last ratio of (7.4)) it is
# *noisier* (the line turns up), because $r$ then has a long tail.
#
# ### The closed forms (optional)
#
# With $x\sim\mathcal N(0,1)$,
# $\log r=\mu x-\tfrac{\mu^2}2$ is itself Gaussian, with mean $-\tfrac{\mu^2}2$ and variance $\mu^2$, and the true KL is $\tfrac{\mu^2}2$.
#
# * $k_1=-\log r$: standard deviation $\mu$. Divided by the KL: $2/\mu$. It grows without bound as the policies approach each other.
# * $k_2=\tfrac12(\log r)^2$: mean $\tfrac12(\mu^2+\tfrac{\mu^4}4)$, which is too large by $\tfrac{\mu^2}4$ of the KL. A Gaussian with mean $m$ and variance $s^2$ has a square with variance
#   $2s^4+4m^2s^2$, here $2\mu^4+\mu^6$, so the standard deviation is $\tfrac{\mu^2}2\sqrt{2+\mu^2}$.
# * $k_3$: a mean weighted with $r$ is a mean over the reference, $\mathbb E_\pi[r\,f]=\mathbb E_{\text{ref}}[f]$. There $x\sim\mathcal N(\mu,1)$, so $\mathbb E_\pi[r\log r]=\mathbb E_{\text{ref}}[\mu x-\tfrac{\mu^2}2]=\tfrac{\mu^2}2$, and
#   $\mathrm{Cov}(r,\log r)=\tfrac{\mu^2}2-1\cdot(-\tfrac{\mu^2}2)=\mu^2$. Likewise $\mathbb E_\pi[r^2]=\mathbb E_{\text{ref}}[e^{\mu x-\mu^2/2}]=e^{\mu^2}$, so $\mathrm{Var}(r)=e^{\mu^2}-1$. Together
#   $\mathrm{Var}(k_3)=\mathrm{Var}(r)-2\,\mathrm{Cov}(r,\log r)+\mathrm{Var}(\log r)=e^{\mu^2}-1-2\mu^2+\mu^2$. Over the KL:
#
# $$\frac{\text{std}(k_1)}{\mathrm{KL}}=\frac2\mu,\qquad \frac{\text{std}(k_2)}{\mathrm{KL}}=\sqrt{2+\mu^2},\qquad
# \frac{\text{std}(k_3)}{\mathrm{KL}}=\frac{2\sqrt{e^{\mu^2}-1-\mu^2}}{\mu^2} \tag{7.4}$$
#
# `eq:kl-gaussian-moments` · Schulman 2020, whose table rounds these; closed forms derived here
#
# ### Why the multiple 1? (optional)
#
# Any λ in $-\log r+\lambda(r-1)$ is unbiased. Its variance is a parabola in λ, $\mathrm{Var}(\log r)-2\lambda\,\mathrm{Cov}(\log r,r)+\lambda^2\,\mathrm{Var}(r)$, and the bottom of the parabola is at
#
# $$\lambda^*=\frac{\mathrm{Cov}(\log r,\,r)}{\mathrm{Var}(r)} \tag{7.5}$$
#
# `eq:kl-control-variate` · the general rule: Glasserman 2003, §4.1; for two Gaussians $\lambda^*=\mu^2/(e^{\mu^2}-1)$, derived here
#
# So 1 is not the least noisy choice (the green line in the figure is λ*). It is chosen because with any other λ the estimate can be negative.

# %%
from bandits.environments import Deterministic
from bandits.exact import outcomes

no_reward = Deterministic(torch.zeros(1, 3, dtype=torch.float64))
sure, even = (
    torch.tensor(each, dtype=torch.float64).log() for each in ((0.9, 0.05, 0.05), (0.3, 0.3, 0.4))
)
best = float(control_variate(outcomes(no_reward, sure.unsqueeze(0), reference=even.unsqueeze(0))))
pi, log_r_even = sure.exp(), even - sure
for scale in (best, 1.0):
    values = k1(log_r_even) + scale * torch.expm1(log_r_even)
    mean, least = (pi * values).sum(), control_variate_minimum(scale)  # least: over all r > 0
    print(
        f"λ = {scale:.3f}: mean {mean:.3f}, std {(pi * (values - mean) ** 2).sum().sqrt():.3f},"
        f" least value that any r can give {least:+.3f}"
    )
print(
    f"k1 alone:  mean {(pi * k1(log_r_even)).sum():.3f}, std"
    f" {(pi * (k1(log_r_even) - exact_kl(sure, even)) ** 2).sum().sqrt():.3f}"
)

# %% [markdown]
# All three have the KL as their mean. Here, with a policy that is nearly sure and a reference that is not, the best λ is over eleven times quieter than $k_3$, and $k_3$ is even noisier than $k_1$. The price of the best λ is the last number of its line: it can be negative.
# (Schulman's note says so, too: he picks 1 for the sign.)
#
# ### On samples of π itself
#
# One condition is easy to forget: the mean is taken **over samples of π itself**. From the second update of a rollout on, the samples are π_old's.
# Giovanidis ("GRPO is just PPO for bandits") calls $k_3$ unbiased without that condition, while its samples come from π_old.

# %%
old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()  # sampled from here, not from π
ratio = (policy - old).exp()
print(f"KL(π‖ref)                 {exact_kl(policy, reference):.3f}")
print(f"k3 on samples of π_old    {(old.exp() * k3(log_r)).sum():.3f}")
print(f"ρ·k3 on samples of π_old  {(old.exp() * ratio * k3(log_r)).sum():.3f}")

# %% [markdown]
# ## A value is not a gradient
#
# So far we asked which *number* an estimate gives. Training uses its gradient. With a penalty in the loss you differentiate **the estimate on the samples you have**, with
# the samples held fixed. The gradient of an unbiased estimate need not be an unbiased estimate of the gradient: the sampling depends on θ, too.
#
# First the right gradients. With the score $s(a)=\nabla\log\pi_\theta(a)$, whose mean over π is 0 (lesson 01):
#
# $$\nabla\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}})=\mathbb E_\pi\!\left[\log\frac{\pi}{\pi_{\text{ref}}}\;s\right],\qquad
# \nabla\,\mathrm{KL}(\pi_{\text{ref}}\Vert\pi)=-\,\mathbb E_{\text{ref}}[s]=\mathbb E_\pi[(1-r)\,s] \tag{7.6}$$
#
# `eq:kl-two-gradients` · derived below
#
# *Reverse:* $\nabla\sum_a\pi\log\frac\pi{\pi_{\text{ref}}}=\sum_a\nabla\pi\,\log\frac\pi{\pi_{\text{ref}}}+\sum_a\pi\,\frac{\nabla\pi}{\pi}$; the last sum is $\nabla 1=0$, and $\nabla\pi=\pi s$.
# *Forward:* only $-\sum_a\pi_{\text{ref}}\log\pi$ depends on θ, which gives $-\mathbb E_{\text{ref}}[s]=-\mathbb E_\pi[r\,s]$; add $\mathbb E_\pi[s]=0$.
#
# Now the three estimates. On each sample $\nabla\log r=-s$ and $\nabla r=-r\,s$, so
#
# $$\begin{aligned}
# \mathbb E_\pi[\nabla k_1]&=\mathbb E_\pi[s]=0\\
# \mathbb E_\pi[\nabla k_2]&=\mathbb E_\pi[-\log r\;s]=\nabla\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}})\\
# \mathbb E_\pi[\nabla k_3]&=\mathbb E_\pi[(1-r)\,s]=\nabla\,\mathrm{KL}(\pi_{\text{ref}}\Vert\pi)
# \end{aligned} \tag{7.7}$$
#
# `eq:kl-k1-in-loss` · Tang & Munos 2025 (2506.09477)<br>
# `eq:kl-k2-in-loss` · Tang & Munos 2025<br>
# `eq:kl-k3-in-loss` · Xu 2025, eq. 6 (with a minus and β); Tang & Munos 2025
#
# The unbiased $k_1$ has a gradient with mean 0: noise, and no direction. The biased $k_2$ descends the divergence that the papers write. And GRPO's $k_3$, unbiased in value for
# the reverse KL, descends the **forward** one. (Xu's "From PPO to GRPO" has the reverse KL in its eq. 4 and, correctly, this gradient in its eq. 6: they are not the gradient of the same objective.)

# %% jupyter={"source_hidden": true}
lesson.ask("ratio-on-policy")

# %% [markdown]
# ## In the loss, times ρ, or in the reward
# <!-- answers: 15 -->
#
# Is $k_3$ in the loss biased? Its value is not; its gradient belongs to another divergence. And a ratio in front of it changes the gradient on policy, too: ρ is 1 there, but $\nabla\rho=s$.
#
# $$\mathbb E_{\text{old}}[\nabla(\rho\,k)]=\mathbb E_\pi[\nabla k+k\,s]=\nabla\,\mathbb E_\pi[k]=\nabla\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}})\quad\text{for } k=k_1,\,k_3 \tag{7.8}$$
#
# `eq:kl-times-ratio` · Tang & Munos 2025; "A Comedy of Estimators" 2025 (2512.21852)
#
# The first step is the product rule, $\nabla(\rho k)=\rho(\nabla k+k\,s)$, with $\mathbb E_{\text{old}}[\rho\,\cdot]=\mathbb E_\pi[\cdot]$; the second is the derivative of $\sum_a\pi(a)\,k(a)$. Both hold for every $k$, and for
# samples of any π_old. The last one needs a $k$ whose mean is the KL, so ρ·k₁ and ρ·k₃ have the reverse KL's gradient and ρ·k₂ has not.
#
# The third place is the reward: $R_i\leftarrow R_i-\beta\,k$. There $k$ is a constant for the gradient, and multiplies the score like any reward.
#
# $$\nabla J\;\text{with}\;R\leftarrow R-\beta k_1:\qquad \mathbb E_\pi[(R-\beta k_1)\,s]=\nabla\,\mathbb E_\pi[R]-\beta\,\nabla\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}}) \tag{7.9}$$
#
# `eq:kl-in-reward` · Ouyang et al. 2022 (InstructGPT), eq. 2
#
# In the reward it is the *value* that multiplies the score, so $k_1$, useless in the loss, is exactly right there, **on policy**, and $k_3$ is not. The next cell asks the estimators themselves: all groups are
# enumerated, every reward is 0, β = 1, and what each penalty descends is compared with the true gradients.

# %% jupyter={"source_hidden": true}
# differentiates the divergences themselves
truth = by_estimator.divergence_gradients(policy, reference)
known = {
    "nothing": torch.zeros(3, dtype=torch.float64),
    "KL(π‖ref)": truth["KL(π‖ref)"],
    "KL(ref‖π)": truth["KL(ref‖π)"],
}


def descends(penalty):
    # −E[ĝ], through the very estimator that trains
    found = by_estimator.penalty_gradient(penalty, policy, reference)
    return next(
        (name for name, gradient in known.items() if torch.allclose(found, gradient, atol=1e-9)),
        "neither",
    )


for name, penalty in by_estimator.placements().items():
    if not name.startswith("inverted"):
        print(f"{name:22} descends {descends(penalty)}")

# %% [markdown]
# "On policy" matters for $k_1$ in the reward. A reward is computed once, from the policy that sampled, so it holds $\log\frac{\pi_{\text{old}}}{\pi_{\text{ref}}}$. Weighted with ρ, its gradient is
# $\mathbb E_\pi[\log\frac{\pi_{\text{old}}}{\pi_{\text{ref}}}s]$, which misses $\mathbb E_\pi[\log\frac\pi{\pi_{\text{old}}}s]=\nabla\mathrm{KL}(\pi\Vert\pi_{\text{old}})$. How much that is when one logit of π_old lies higher than that of π:

# %%
from bandits.flow import expected_gradient
from course.estimator import Estimator
from course.parts import K1, ImportanceSampling, InLossTimesRatio, InReward

for shift in (0.25, 0.5, 1.0):
    sampled = torch.log_softmax(policy + torch.tensor([shift, 0.0, 0.0], dtype=torch.float64), 0)
    for name, place in (("k1 in the reward", InReward()), ("ρ·k1 in the loss", InLossTimesRatio())):
        estimator = Estimator(surrogate=ImportanceSampling(), kl=K1(1.0, place))
        found = -expected_gradient(
            estimator, no_reward, policy, 1, old=sampled, reference=reference
        )
        off = float((found - known["KL(π‖ref)"]).norm() / known["KL(π‖ref)"].norm())
        print(f"logit of arm 1 moved by {shift:<4}  {name}: off by {off:.2f} of ‖∇KL(π‖ref)‖")

# %% [markdown]
# <!-- answers: 13, 16 -->
# **KL in the loss or in the reward?** Both are in use, and one letter β means another penalty in each place. In the reward take $k_1$; in the loss take ρ·k₁, ρ·k₃ or, on policy, $k_2$ for the reverse KL,
# $k_3$ for the forward one. **Should RLOO use $k_3$?** RLOO keeps its KL in the reward, where $k_3$ descends neither. The course refuses that combination unless you insist:

# %%
from course.errors import Clash
from course.parts import K2, K3

try:
    K3(0.04, InReward())
except Clash as clash:
    print(clash)

# %% [markdown]
# ### In the reward, under a mean and a std (optional)
#
# In the reward the penalty also passes through the baseline and the std. A mean that includes the sample scales it by (G−1)/G, here ¾. The std does something
# stranger. Take no reward but the penalty, and two β that differ by a factor of 100:

# %%
from course.parts import GroupMean, GroupStd

scaled = {"baseline": GroupMean(), "scale": GroupStd(eps=0.0)}
for beta in (1.0, 0.01):
    pull = by_estimator.penalty_gradient(K1(beta, InReward()), policy, reference, 4)
    pull_mean = by_estimator.penalty_gradient(
        K1(beta, InReward()), policy, reference, 4, baseline=GroupMean()
    )
    pull_std = by_estimator.penalty_gradient(K1(beta, InReward()), policy, reference, 4, **scaled)
    print(
        f"β = {beta:4}: length of the pull {pull.norm():.3g} alone, {pull_mean.norm():.3g} under"
        f" the group's mean, {pull_std.norm():.3g} under mean and std"
    )

# %% [markdown]
# Under a std β cancels where all other rewards of a group are alike: a silent group (lesson 06) is not silent any more, and pulls at full strength however small β is (here with eps = 0; an eps bounds it).
# In the loss, GRPO's place, this does not happen.
#
# ### A teacher in place of the reference: on-policy distillation (optional)
# <!-- answers: 47 -->
#
# Leave out the reward, put a **teacher** where the reference was, and what is left is a method of its own: sample from your policy, and descend KL(π‖teacher). People then watch the loss, and it does not fall as the KL does.
# Four ways to write it, with the loss that each prints, on average over groups of four:

# %%
from bandits.exact import outcomes
from course.exact import microscope
from course.parts import LeaveOneOut

listed = outcomes(no_reward, policy.unsqueeze(0), reference=reference.unsqueeze(0))
print(f"KL(π‖teacher) = {exact_kl(policy, reference):.3f}")
for name, parts in {
    "k1 in the loss": {"kl": K1(1.0)},
    "k3 in the loss": {"kl": K3(1.0)},
    "k1 in the reward": {"kl": K1(1.0, InReward())},
    "k1 in the reward, leave-one-out": {"kl": K1(1.0, InReward()), "baseline": LeaveOneOut()},
}.items():
    estimator = Estimator(surrogate=ImportanceSampling(), **parts)
    seen = microscope(estimator, listed, 4, covariance=False)
    what = next(
        (n for n, g in known.items() if torch.allclose(-seen.expected, g, atol=1e-9)), "neither"
    )
    print(f"{name:32} loss {abs(-seen.value):.3f}   descends {what}")

# %% [markdown]
# The first two print KL(π‖teacher) and do not descend it. The third prints it and descends it. With a baseline, the last row, the same gradient comes with a loss of 0, and that loss stays 0 however far the student is from the teacher. Log the KL itself.
#
# ### Reverse and forward, on two arms
#
# With two arms the pull on the logit of arm 1 is one number. Its score is $s=1-p$ on arm 1 and $-p$ on arm 2, so for $k_2$ (7.7) is
# $p(1-p)\big[\log\frac p{p_{\text{ref}}}-\log\frac{1-p}{1-p_{\text{ref}}}\big]=p(1-p)(\operatorname{logit} p-\operatorname{logit} p_{\text{ref}})$ with $\operatorname{logit}p=\log\frac p{1-p}$, and for $k_3$
# $p(1-p)\big[\big(1-\frac{p_{\text{ref}}}p\big)-\big(1-\frac{1-p_{\text{ref}}}{1-p}\big)\big]=p-p_{\text{ref}}$. Move both probabilities:

# %% jupyter={"source_hidden": true}
from course.lesson import Choice, Slider


def draw_pull(p, p_ref):
    figure, (values, pulls) = figures.new_figure(1, 2, width=9.0, height=3.5)
    anchor = torch.tensor([p_ref, 1 - p_ref], dtype=torch.float64).log()
    now = torch.tensor([p, 1 - p], dtype=torch.float64).log()
    both = anchor - now
    wide = max(2.0, 1.15 * float(both.abs().max()))
    x = torch.linspace(-wide, wide, 121, dtype=torch.float64)
    for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3)):
        figures.band(values, x, estimate(x), color=COLOURS[name], linestyle="-", label=name)
        values.plot(both, estimate(both), "o", color=COLOURS[name], markersize=6, label="_")
    values.set_ylim(-2.2, 4.2)
    values.axhline(0, color=figures.INK, linewidth=0.8)
    figures.describe(
        values, "Value (dots: the two arms)", "log r = log π_ref − log π", "estimate (nats)"
    )
    grid = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    reverse = (
        grid
        * (1 - grid)
        * (torch.logit(grid) - torch.logit(torch.tensor(p_ref, dtype=torch.float64)))
    )
    for name, curve, part in (
        ("k1", 0 * grid, K1(1.0)),
        ("k2", reverse, K2(1.0)),
        ("k3", grid - p_ref, K3(1.0)),
    ):
        figures.band(
            pulls, grid, -curve, color=COLOURS[name], linestyle="-", label=f"{name} in the loss"
        )
        pulls.plot(
            p,
            -float(by_estimator.penalty_gradient(part, now, anchor)[0]),
            "o",
            color=COLOURS[name],
            markersize=7,
            label="_",
        )
    figures.expectation(pulls, x=p_ref)
    pulls.set_ylim(-1, 1)
    figures.describe(
        pulls,
        "Pull on arm 1 (dots: enumerated)",
        "probability p of arm 1 (dashed: reference)",
        "−E[∇k] on its logit",
    )
    values.legend(frameon=False, loc="lower left")
    pulls.legend(frameon=False, loc="upper right")
    return figure


lesson.explore(
    "pull",
    draw_pull,
    "the blue pull never moves; far from the reference the red one (k3) stays strong where the"
    " yellow one (k2) fades with p(1 − p)",
    p=Slider(0.02, 0.98, 0.02, 0.9, "p, policy"),
    p_ref=Slider(0.02, 0.98, 0.02, 0.2, "p_ref, reference"),
)

# %% [markdown]
# Put p at .98 and the reference at .2: $k_3$ pulls with .78, $k_2$ with about .1. A softmax that is nearly sure has hardly any gradient left for the reverse KL, because of the factor $p(1-p)$; the forward KL
# still sees the reference's mass on the other arm.
#
# ## Do it: k₃
#
# The first exercise is the line that is easily written the wrong way round.

# %%
exercise_k3 = lesson.exercise("write-k3")


# %%
def my_k3(log_prob, ref_log_prob):
    """log_prob, ref_log_prob [n]: log π and log π_ref of each sample, in nats → [n] its estimate of
    KL(π‖ref).
    """
    return NotImplemented


exercise_k3.check(my_k3)

# %% [markdown]
# The second one is about the gradient. On policy, the gradient of GRPO's objective multiplies each sample's score by one number. Which?

# %%
exercise_coefficient = lesson.exercise("grpo-coefficient")


# %%
def my_coefficient(advantage, log_prob, ref_log_prob, beta):
    """advantage, log_prob, ref_log_prob [n]; beta a number → [n] the factor c of each sample's
    score.
    """
    return NotImplemented


exercise_coefficient.check(my_coefficient)

# %% [markdown]
# ## k₁ in the loss, and no reward
#
# What does $k_1$ in the loss do beyond its mean, over many updates? Here is the smallest case: **no reward at all**, a policy that starts *on* the reference, 30 rollouts of 8 samples, four updates on each.

# %% jupyter={"source_hidden": true}
lesson.ask("k1-in-the-loss")

# %% jupyter={"source_hidden": true}
from bandits.policies import Softmax
from bandits.problem import Bandit
from course.estimator import replace
from course.learner import Learner
from course.train.optim import SGD


def distance_after(penalty, epochs, runs=200):
    start = Softmax(policy.expand(runs, 1, 3))
    nothing = Deterministic(torch.zeros(runs, 1, 3, dtype=torch.float64))
    bandit = Bandit(nothing, start, group=8, reference="start")
    estimator = replace(ladder.group_mean, kl=penalty)
    Learner(
        bandit,
        estimator,
        SGD(0.3),
        lesson.noise(runs, dtype=torch.float64),
        epochs=epochs,
        log_every=30,
    ).train(30)
    return float(exact_kl(start.log_probs().detach(), policy).mean())


print("KL(π‖ref) in nats, mean of 200 runs       β = .3    β = 1   β = 2")
for name, part in (("k1", K1), ("k2", K2), ("k3", K3)):
    for epochs in (1, 4):
        found = [distance_after(part(beta), epochs) for beta in (0.3, 1.0, 2.0)]
        print(
            f"{name} in the loss, {epochs} update(s) per rollout   "
            + "".join(f"{each:9.3f}" for each in found)
        )

# %% [markdown]
# <!-- answers: 14 -->
# **A larger β, a larger KL?** Users report it (open-instruct#534), and here it is. $k_2$ and $k_3$ stay at 0, where they start. $k_1$ in the loss walks away from the reference, farther with a larger β (.769 nats at β = 2, four updates). Nothing in it looks at the reference: it makes whatever was sampled less likely, in steps of size β. The remedy is another estimator or another place, not a smaller β.
#
# ## Token by token (optional)
#
# A completion has many tokens, and GRPO has a penalty **per token**. In the reward that changes nothing: $k_1$ of an answer is the sum of its tokens' $k_1$. In the loss it
# does. Let $\mathrm{KL}_t=\sum_v\pi(v\mid o_{<t})\log\frac{\pi(v\mid o_{<t})}{\pi_{\text{ref}}(v\mid o_{<t})}$ be the divergence of the distributions of token $t$, after the tokens before it. Take answers of two tokens:
# $\mathrm{KL}_1$ is one number, and $\mathrm{KL}_2$ depends on the first token $o_1$. The logarithm of a product is a sum, so the answer's KL is $\mathrm{KL}_1+\mathbb E_{o_1}[\mathrm{KL}_2(o_1)]$. The second summand depends on θ twice: through
# the second token's distribution, and through *which first token leads there*. The product rule on $\sum_{o_1}\pi(o_1)\,\mathrm{KL}_2(o_1)$ gives both; a penalty that is differentiated token by token has only the first:
#
# $$\nabla\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}})=\mathbb E\Big[\sum_t\nabla\,\mathrm{KL}_t\Big]+\mathbb E\big[\mathrm{KL}_2(o_1)\;\nabla\log\pi(o_1)\big] \tag{7.10}$$
#
# `eq:kl-later-tokens` · derived here for two tokens; see "A Comedy of Estimators" 2025

# %%
from course.exact import kl_gradient

two = by_estimator.two_tokens()  # three words, two tokens, all 9 answers listed
whole, dropped = kl_gradient(two), by_estimator.later_tokens(two)
for name, gradient in by_estimator.sequence_gradients(two).items():
    missed = (whole - gradient).norm() / whole.norm()
    what = (
        "nothing"
        if missed < 1e-9
        else (
            "the last term of (7.10)"
            if torch.allclose(whole - gradient, dropped)
            else "something else"
        )
    )
    print(f"{name:28} misses {missed:5.1%} of the length of ∇KL: {what}")

# %% [markdown]
# On this pair of policies the dropped term is most of the gradient. That is a property of this pair, not a law: it is 0 only where the second token's KL is the same after every first one.
# A penalty in the loss holds each *next-token distribution* near the reference's, on the prefixes that were sampled. It does not steer away from prefixes whose continuation differs.
#
# ## Two practical questions (optional)
# <!-- answers: 18 -->
#
# **Why does $k_3$ overflow?** It contains $r=\pi_{\text{ref}}/\pi$, and nothing bounds that from above. One token that the reference finds likely and that the policy has nearly given up is enough:

# %%
log_r_extreme = torch.tensor([1.0, 10.0, 50.0, 100.0])  # float32, as in training
print("log r              ", [f"{value:g}" for value in log_r_extreme.tolist()])
print("k3                 ", [f"{value:.3g}" for value in K3(1.0).estimate(log_r_extreme).tolist()])
print(
    "k3, |log r| ≤ 20   ",
    [f"{value:.3g}" for value in K3(1.0, max_log_r=20.0).estimate(log_r_extreme).tolist()],
)
print("k2                 ", [f"{value:.3g}" for value in K2(1.0).estimate(log_r_extreme).tolist()])

# %% [markdown]
# (Beyond the bound the gradient of the bounded $k_3$ is 0: it does not explode, and it does not pull back either.)
#
# <!-- answers: 19 -->
# **With β = 0, why is no KL reported?** Nothing asks for the reference, so none is kept and its log-probabilities are not computed. That saves a copy of the weights and a forward pass, and you no longer see how far the
# policy has moved. Give the problem a reference all the same, and the metric is there:

# %%
from bandits.environments import Bernoulli
from course.estimator import uses_reference

arms = Bernoulli(torch.tensor([[0.2, 0.5, 0.8]], dtype=torch.float64))
print(
    f"grpo asks for a reference: {uses_reference(ladder.grpo)}; length_mean does:"
    f" {uses_reference(ladder.length_mean)}"
)
for kept in (None, "start"):
    bandit = Bandit(arms, Softmax(policy.unsqueeze(0)), group=8, reference=kept)
    history = Learner(
        bandit, ladder.length_mean, SGD(0.3), lesson.noise(dtype=torch.float64)
    ).train(20)
    print(
        f"reference {kept}: kl_ref",
        (
            f"{float(history['kl_ref'][-1]):.2f} nats"
            if "kl_ref" in history.names
            else "is not logged"
        ),
    )

# %% [markdown]
# ## Where training stops
#
# On one prompt with a right answer (reward 1) and a wrong one (reward 0), let $p$ be the probability of the right one and $z$ its logit. A softmax has $\partial p/\partial z=p(1-p)$. Lesson 06: the expected gradient is $w_G(p)\nabla p$, so the group's
# mean and std push $z$ with $p(1-p)\,w_G(p)$, and the mean alone with $p(1-p)\tfrac{G-1}G$. This lesson: $k_2$ pulls back with $\beta\,p(1-p)(\operatorname{logit}p-\operatorname{logit}p_{\text{ref}})$, $k_3$ with $\beta(p-p_{\text{ref}})$. Where push and pull
# are equal, training stops (on policy, eps = 0). Divide by $\beta p(1-p)$ in the first and third line, by β in the second:
#
# $$\begin{aligned}
# \text{std, }k_2:&\quad \operatorname{logit}p=\operatorname{logit}p_{\text{ref}}+w_G(p)/\beta\\
# \text{std, }k_3:&\quad p-w_G(p)\,p(1-p)/\beta=p_{\text{ref}}\\
# \text{no std, }k_2:&\quad \operatorname{logit}p=\operatorname{logit}p_{\text{ref}}+\tfrac{G-1}{G\beta}
# \end{aligned} \tag{7.11}$$
#
# `eq:kl-fixed-points` · Mroueh 2025 (2503.06639) and Vojnovic & Yun 2025 (2502.18548) at G = ∞; at finite G derived here
#
# The last line has a name, **exponential tilting**. The policy that maximises $\mathbb E[R]-\beta'\,\mathrm{KL}(\pi\Vert\pi_{\text{ref}})$ is $\pi(a)\propto\pi_{\text{ref}}(a)\,e^{R(a)/\beta'}$, which moves the logit by $1/\beta'$; here $\beta'=\beta\,\tfrac G{G-1}$. You derive it below.

# %% jupyter={"source_hidden": true}
lesson.ask("one-part-another-limit")

# %% jupyter={"source_hidden": true}
from bandits.ablations.kl_fixed_points import NAMES, STYLES
from bandits.theory import kl_fixed_points as fixed

paths = {
    kind: fixed.settle(each, 0.3, 0.3, 0.5, 8, 0.15, 100)
    for kind, each in fixed.estimators(0.5).items()
}
for kind, path in paths.items():
    root = torch.sigmoid(torch.tensor(fixed.limits(kind, 0.3, 0.5, 8)[0][0], dtype=torch.float64))
    print(
        f"{kind:11} ends at p = {torch.sigmoid(path[-1]):.3f};  root of its equation (7.11):"
        f" {root:.3f}"
    )


# %% jupyter={"source_hidden": true}
def draw_limits():
    figure, [ax] = figures.new_figure(width=7.4, height=3.6)
    for kind, path in paths.items():
        figures.band(
            ax,
            range(41),
            torch.sigmoid(path[:41]),
            label=NAMES[kind],
            **{**STYLES[kind], "linestyle": "-"},
        )
        figures.expectation(
            ax, float(torch.sigmoid(torch.tensor(fixed.limits(kind, 0.3, 0.5, 8)[0][0])))
        )
    ax.set_ylim(0.2, 1.02)
    figures.describe(
        ax,
        "One replaced part, another limit (dashed: roots of 7.11)",
        "updates (exact natural gradient)",
        "p (β = .5, G = 8)",
    )
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_limits(),
    "three curves from p = 0.3 that settle on 0.987, 0.854 and 0.712, each on the dashed root of"
    " its equation",
)

# %% [markdown]
# The runs are exact: every group of 8 is enumerated at every update. (The steps are natural gradients, lesson 03b, which stop at the same points as plain ones.) Each ends on the root of its own equation. So "β = .04" means something only together with the estimator, its place, and whether there is a std.

# %%
exercise_tilt = lesson.exercise("tilting")


# %%
def my_tilt(ref, reward, beta):
    """ref, reward [K]: the reference's probabilities and each arm's reward; beta > 0 → [K]
    probabilities of the best policy.
    """
    return NotImplemented


exercise_tilt.check(my_tilt)

# %% [markdown]
# ## What it does not do: replace a critic
#
# A critic or a baseline makes the gradient less noisy. Thaker's "From PPO to GRPO" says that the KL term is there "to compensate for the increased variance" that comes with leaving out the critic. That can mean two things: less noise in an update,
# or less harm from it over many updates. You can measure both. First the noise:

# %% jupyter={"source_hidden": true}
lesson.ask("no-critic")

# %%
from bandits.exact import b3

print("std of the gradient on B3, G = 4      on the reference   reference elsewhere")
for beta in (0.0, 0.04, 0.5, 1.0, 2.0):
    rung = replace(ladder.length_mean, kl=K3(beta))
    on, off = (
        microscope(rung, b3(reference=anchor.unsqueeze(0)), 4).std for anchor in (policy, reference)
    )
    print(f"GRPO, β = {beta:4}                       {on:14.3f} {off:18.3f}")
none, centred = (
    microscope(ladder.get(name).estimator, b3(), 4).std for name in ("reinforce", "rloo")
)
print(
    f"what a baseline does: {none:.3f} without, {centred:.3f} with the mean of the others (RLOO),"
    " at equal E[ĝ] = ∇J"
)

# %% [markdown]
# On the reference the column is constant. Away from it, for this pair, the anchor at β = .04 leaves .359 of .361, and larger β add to the noise. A baseline takes off 18 % and leaves the mean of the gradient where it is.
#
# Now many updates. All three arms pay 1 with probability ½: nothing can be learned, and whatever moves the policy is noise. Groups of 4, 60 rollouts, 200 runs:

# %%
coins = Bernoulli(torch.full((200, 1, 3), 0.5, dtype=torch.float64))
for name, parts in {
    "GRPO, β = 0": {"kl": K3(0.0)},
    "GRPO, β = .04": {"kl": K3(0.04)},
    "GRPO, β = .5": {"kl": K3(0.5)},
}.items():
    start = Softmax(policy.expand(200, 1, 3))
    drifting = Bandit(coins, start, group=4, reference="start")
    noise = lesson.noise(200, dtype=torch.float64)
    Learner(drifting, replace(ladder.grpo, **parts), SGD(0.3), noise, log_every=60).train(60)
    far = exact_kl(start.log_probs().detach()[:, 0], policy)
    print(f"{name:14} KL(π‖start) {far.mean():.3f} ± {2 * far.std() / 200**0.5:.3f} nats")

# %% [markdown]
# Noise carries the policy .096 nats away without a KL, .081 with GRPO's β, and .020 with β = .5 (± two standard errors). So an anchor limits how far noise can carry the policy, as it limits every movement, also the one that the reward asks for (7.11). A critic takes noise out of each
# update and leaves the gradient's mean alone. What replaced it in GRPO is the group; the anchor was used beside a critic, too (InstructGPT's PPO).
#
# ### Nor is it PPO's own penalty (optional)
#
# PPO's penalty holds the policy near π_old, the policy that sampled *this rollout*, and averages over π_old: KL(π_old‖π) (Vera's "GRPO" writes it the other way round). The reference does not appear in it:

# %%
ladder.ppo_kl

# %% [markdown]
# ## What it buys
#
# By (7.11) training stops before p = 1, so on that prompt's reward alone it costs in the end. It can buy something that the reward does not ask for. The file `figures/tinylm_kl.json` holds runs of a nano transformer that can add and
# subtract digits, where **only sums are rewarded**. The next cell reads it; its ± are standard errors.

# %% jupyter={"source_hidden": true}
from course.lab.places import measured
from course.lab.result import Result
from course.lab.statistics import interval

ran = Result.load(measured("tinylm_kl"))
print(
    f"{ran.settings['seeds']} models; accuracy on differences"
    f" {ran.array('start', 'subtraction').mean():.2f} before,"
    f" {ran.array('none', 'subtraction_mean'):.2f} after training without KL"
)
print(
    f"the same on sums, which are rewarded: {ran.array('start', 'accuracy').mean():.2f} before,"
    f" {ran.array('none', 'accuracy_mean'):.2f} after"
)
print(f"distance from the reference without KL: {ran.array('none', 'kl_start_mean'):.2f} nats")
for fact in ran.facts:
    if "differences" in fact.claim or "destroys" in fact.claim:
        print(
            f"{'holds' if fact.holds else 'DOES NOT HOLD'}: {fact.claim}: {fact.measured:+.2f} ±"
            f" {fact.standard_error:.2f}"
        )


# %% jupyter={"source_hidden": true}
def draw_bought():
    figure, (distance, kept) = figures.new_figure(1, 2, width=9.2, height=3.7)
    betas = ran.settings["betas"]
    shown = {
        "k1 in the loss": "#4a98e0",
        "k2 in the loss": COLOURS["k2"],
        "k3 in the loss": COLOURS["k3"],
        "k1 in the reward": "#0057a3",
    }
    for name, colour in shown.items():
        far = ran.array("penalties", name, "kl_start")
        figures.band(
            distance,
            betas,
            far.mean(-1),
            color=colour,
            linestyle="-",
            label=name,
            marker="o",
            markersize=4,
        )
        gain = torch.from_numpy(
            ran.array("penalties", name, "subtraction") - ran.array("none", "subtraction")
        )
        figures.band(
            kept,
            betas,
            gain.mean(-1),
            color=colour,
            linestyle="-",
            label=name,
            marker="o",
            markersize=4,
        )
        kept.errorbar(betas, *interval(gain), color=colour, linestyle="none", linewidth=1)
    figures.expectation(distance, float(ran.array("none", "kl_start_mean")))
    figures.expectation(kept, 0.0)
    distance.set_yscale("log")
    for ax in (distance, kept):
        ax.set_xscale("log")
        ax.set_xticks(betas, [f"{beta:g}" for beta in betas])
        ax.set_xticks([], minor=True)
    kept.set_ylim(-0.4, 0.2)
    figures.describe(
        distance, "How far training went", "β (dashed: no KL)", "KL(π‖ref) of an answer (nats)"
    )
    figures.describe(
        kept, "What it keeps: differences", "β (dashed: no KL)", "accuracy less that without KL"
    )
    figures.label_ends(distance)
    figures.label_ends(kept)
    return figure


lesson.picture(
    draw_bought(),
    "left: distance falls with beta for k2, k3 in the loss and k1 in the reward, and explodes for"
    " k1 in the loss; right: at β = 1 the anchors keep some of the skill that is not rewarded, at"
    " β = .1 none does",
)

# %% [markdown]
# On the left, the three anchors end nearer to the reference the larger β is, and $k_1$ in the loss, at β = 1, ends some twenty times as far away as no KL does. On the right is what an anchor buys, with 95 % intervals of
# differences model by model. Without a KL, accuracy on differences falls from .53 to .14. At β = 1 the anchors keep .07 to .12 more, and none of their bars touches the dashed line; at β = .1 all of them do. All use the rate that is best without KL.
#
# ## Break it
#
# A common bug of this term is the ratio written the other way round: log π − log π_ref where log r = log π_ref − log π is meant. Below are three runs of 60 exact updates with **no reward**, the penalty alone, β = 1. An anchor should lead the
# policy back to the reference. One run is right, two have the bug, and they differ in the estimator and its place, too.

# %% jupyter={"source_hidden": true}
from course.parts.kl import Reference


class Inverted(Reference):
    """The bug: the log-ratio with its sign flipped."""

    def log_r(self, log_prob, rollout):
        return log_prob - rollout.ref_log_prob


from bandits.flow import ascend

RUNS = {
    "run A": K3(1.0),
    "run B": K1(1.0, InReward(), Inverted()),
    "run C": K3(1.0, anchor=Inverted()),
}
homeward = {
    name: exact_kl(
        ascend(Estimator(kl=part), no_reward, policy, 1, rate=0.2, steps=60, reference=reference),
        reference,
    )
    for name, part in RUNS.items()
}


def draw_broken():
    figure, [ax] = figures.new_figure(width=7.0, height=3.5)
    for (name, path), colour in zip(
        homeward.items(), ("#444444", "#b8860b", "#0f7f7f"), strict=True
    ):
        figures.band(ax, range(len(path)), path, color=colour, linestyle="-", label=name)
    ax.set_yscale("log")
    figures.describe(ax, "Penalty only, no reward", "updates (exact)", "KL(π‖ref), nats")
    figures.label_ends(ax)
    return figure


lesson.picture(
    draw_broken(),
    "three curves from .46 nats: run A and run C fall, run C a little lower, run B rises above 3",
)

# %% jupyter={"source_hidden": true}
lesson.ask("which-fault")

# %% jupyter={"source_hidden": true}
for name, part in RUNS.items():
    bug = isinstance(part.anchor, Inverted)
    print(
        f"{name}: {part.plain} in the {'reward' if part.in_reward else 'loss'}, ratio"
        f" {'INVERTED' if bug else 'right'}: {homeward[name][0]:.3f} → {homeward[name][-1]:.3g}"
        " nats"
    )

print("\nwhat the bug makes of each:")
half_chi = truth["½χ²(π‖ref)"]
for name, penalty in by_estimator.placements().items():
    if name.startswith("inverted"):
        found = by_estimator.penalty_gradient(penalty, policy, reference)
        named = {**known, "−KL(π‖ref): away from it": -known["KL(π‖ref)"], "½χ²(π‖ref)": half_chi}
        print(
            f"  {name:26} descends"
            f" {next(what for what, g in named.items() if torch.allclose(found, g, atol=1e-9))}"
        )

# %% [markdown]
# <!-- answers: 17 -->
# **Which way round?** log r = log π_ref − log π, always. A KL curve that falls does not prove it: run C has the bug and comes back faster than the right one, because inverted $k_3$ descends $\tfrac12\chi^2=\tfrac12\big(\mathbb E_\pi[\pi/\pi_{\text{ref}}]-1\big)$, an anchor of another strength. In the reward, or with ρ in front of $k_1$, the bug drives the policy away. A
# test on three arms, as in the first exercise, finds it at once: the mean over π has to be the KL.

# %% [markdown]
# {{at work}}

# %% [markdown]
# ## Take away
#
# **Which KL, and where, decides what is optimised.** The letter in the paper is not enough: $k_1$ in the loss has no direction, $k_1$ in the reward descends the reverse KL, $k_3$ in the loss the forward one, and each stops at another p. It is an
# anchor and holds the policy near the reference. It does not make an update less noisy, as a critic does.
#
# ## Next
#
# That was the last part of GRPO. On the arms every expectation could be listed. Lesson 08 replaces the arms by a transformer: a prompt becomes a bandit whose arms are its completions, and you see how far that stays exact.
#
# ## Appendix: large steps (optional)
#
# A fixed point is a place where small steps stop. Large steps can jump over it. Mroueh analyses a recursion: put the *old* p into $w_G$, solve for the new one. That is a natural-gradient step of size 1/β, and
# it is drawn as a cobweb: up to the curve, across to the diagonal, and again. Green: the flow, small steps from the same start.

# %% jupyter={"source_hidden": true}
SIZES = {"8": 8, "64": 64, "256": 256, "∞": float("inf")}


def draw_cobweb(p_ref, beta, group):
    size, start = SIZES[group], fixed.logit(p_ref)
    figure, [ax] = figures.new_figure(width=6.4, height=4.6)
    low, high = min(start - 1.5, -3.0), 19.0
    x = torch.linspace(low, high, 161, dtype=torch.float64)
    curve = start + fixed.weight(x, size) / beta
    ax.plot(x, curve.clamp(max=60), color=STYLES["std, k2"]["color"], linewidth=2)
    figures.expectation(ax, x, x)
    steps = [start]
    for _ in range(12):
        steps.append(
            min(fixed.recursion(steps[-1], p_ref, beta, size), 60.0) if steps[-1] < 60 else 60.0
        )
    corners = torch.tensor(steps, dtype=torch.float64).repeat_interleave(2)
    ax.plot(corners[:-1], torch.cat([corners[:1], corners[2:]]), color="#0057a3", linewidth=1.8)
    flow, at = [start], torch.tensor(start, dtype=torch.float64)
    for _ in range(60):
        at = (at + 0.1 / beta * fixed.drift("std, k2", at, p_ref, beta, size)).clamp(max=60)
        flow.append(float(at))
    ax.plot(flow, flow, "o", color="#00875f", markersize=4)
    for root, stable in fixed.roots(
        lambda z: fixed.drift("std, k2", z, p_ref, beta, size), points=401
    ):
        ax.plot(
            root,
            root,
            "o",
            color=figures.INK,
            markersize=9,
            markerfacecolor=figures.INK if stable else "white",
            markeredgewidth=1.5,
            zorder=4,
        )
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    shown = [p for p in (0.001, 0.1, 0.9, 0.999, 1 - 1e-5, 1 - 1e-7) if low < fixed.logit(p) < high]
    names = [f"{p:g}" if p < 0.9995 else f"1 − {1 - p:.0e}" for p in shown]
    ax.set_xticks([fixed.logit(p) for p in shown], names)
    ax.set_yticks([fixed.logit(p) for p in shown], names)
    key = "blue: recursion, 12 steps   green: flow, small steps\n● stable  ○ repelling"
    figures.describe(ax, "std, k2: old p → next p", f"old p (logit scale)\n{key}", "next p")
    return figure


lesson.explore(
    "cobweb",
    draw_cobweb,
    "at p_ref = .001, β = .7 the flow stops at the first fixed point and the recursion jumps to"
    " the top; with a larger β they agree; at G = ∞ and a small β there is no fixed point",
    steady=False,  # its labels grow
    p_ref=Choice((0.001, 0.01, 0.1, 0.3), 0.001, "p_ref"),
    beta=Slider(-0.7, 0.7, 0.05, -0.15, "β", log=True),
    group=Choice(tuple(SIZES), "256", "G"),
)

# %% [markdown]
# Try p_ref = .3 at G = ∞: at β = 2 there are two fixed points, a stable one and a repelling one; at β = .5 none, and p goes to 1 although the anchor pulls all the way. At any finite G a last one is left, because
# $w_G\le\sqrt{G-1}$.
