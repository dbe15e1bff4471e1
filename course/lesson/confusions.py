"""Questions that people who train with these methods often ask, with the public issues.

An issue is written as project#number.
"""

CONFUSIONS: dict[int, tuple[str, str]] = {
    1: ("Why does the GRPO loss start at 0 and then rise?", "open-r1#239, trl#2703"),
    2: ("The loss is 0: how can the gradient not be?", "trl#3452"),
    3: ("exp(log p − stopgrad(log p)) is 1: does the advantage not cancel?", "mlx-examples#1233"),
    4: (
        "Why is the clip fraction always 0? Is the number of updates per rollout the group size?",
        "trl#3120, trl#3757",
    ),
    5: ("Which side is clipped, and why min and not max?", "trl#3144, trl#3032"),
    6: (
        "Every reward function varies, but their sum does not: why is there no signal?",
        "trl#3857",
    ),
    7: ("NaN with one sample per group, or with rewards that are NaN?", "trl#5773"),
    8: ("How many groups are silent when G is small?", ""),
    9: ("Do silent groups still feel the KL, and dilute the mean?", "trl#5588, trl#6367"),
    10: (
        "1/length looks as if it removed length bias: does it?",
        "understand-r1-zero#10, #11, #25, trl#3138",
    ),
    11: ("Which aggregation is GRPO's, which DAPO's?", "verl#957"),
    12: (
        "Is a token mean over micro-batches the token mean over the batch?",
        "verl#906, verl#5625",
    ),
    13: ("KL in the loss or in the reward?", "verl#134, verl#509, trl#2608"),
    14: ("Why does a larger β give a larger KL (k1 in the loss)?", "open-instruct#534"),
    15: (
        "Is k3 in the loss biased, and does a ratio before it change anything on policy?",
        "trl#4967, trl#4638",
    ),
    16: ("Should RLOO use k3?", "trl#5889"),
    17: ("Which way round is the KL's ratio?", "rlhf-book#489"),
    18: ("Why does k3 overflow?", "trl#6550"),
    19: ("β = 0: why is no KL reported, and what about over-fitting?", "trl#4040"),
    20: (
        "Sampled at a temperature or with top-k, scored without: does it matter?",
        "trl#3029, trl#4159",
    ),
    21: ("The group's mean includes the sample itself: what does that do?", ""),
    22: ("What happens when samples are grouped wrongly?", ""),
    23: ("Ratio per token or per sequence, and why is GSPO's ε near 3e-4?", "verl#2775"),
    24: ("Is CISPO's ε an offset or an absolute bound?", ""),
    25: (
        "Why is the format reward stuck at 0, or amplified by the std?",
        "open-r1#235, open-instruct#659",
    ),
    26: ("Is there an entropy bonus that nobody asked for?", "verl#514"),
    27: ("REINFORCE++: does it normalise over the group or the batch?", ""),
    28: ("Is PPO's critic needed for one-step rewards, and what does it cost?", ""),
    29: (
        "The equation and the code differ by a sign or a detached tensor: who notices?",
        "d2l-en#2649, rlhf-book#125",
    ),
    30: ("My reward stays flat: why?", "open-r1#436, trl#5697"),
    32: ("How do per-turn and process rewards go into GRPO?", "SkyRL#201, RAGEN#128, trl#3090"),
    33: (
        "Sampler and trainer disagree: what is truncated importance sampling?",
        "trl#3867, trl#6789",
    ),
    34: (
        "Stale rollouts: does dropping and requeueing them select short answers?",
        "trl#7120, slime#1800",
    ),
    35: ("Why does the entropy collapse, or climb with clip-higher?", "verl#5953, rllm#116"),
    36: ("Which difference between two runs is noise?", "open-instruct#648, Search-R1#88"),
    37: (
        "Is GRPO on- or off-policy, and which curve does one watch, loss or reward?",
        "DeepSeek-R1#527",
    ),
    38: ("What does the group's z-score do to several rewards?", "trl#4785, SkyRL#2104"),
    39: ("Does RL cross the base model at large k?", "limit-of-RLVR#1, #6"),
    40: ("Reward hacking: is it removed, or delayed?", "trl#2771"),
    41: (
        "No aha: why do answers shrink, or grow into gibberish?",
        "VLM-R1#280, simpleRL-reason#65",
    ),
    42: (
        "Is SFT needed first, and from which checkpoint does RL start?",
        "R1-V#121, marin#8876",
    ),
    43: (
        "A critic: what does a cold start do, and why is its value clipped?",
        "verl#1209, AReaL#26",
    ),
    44: (
        "Batch size, steps per generation, number of generations: what do they mean together?",
        "trl#3662, trl#3020",
    ),
    45: (
        "β = 0: why does the training reward rise and the held-out one fall?",
        "autocontext#1076",
    ),
    46: ("Which questions are worth training on?", ""),
    47: ("On-policy distillation: why is the loss not the KL?", "slime#1068, verl#5041"),
    48: ("The same prompt twice in a batch: are the groups merged?", "NeMo-RL#3882"),
    49: (
        "Is the same learning rate for every variant a fair ablation?",
        "assignment5-alignment#8",
    ),
}
