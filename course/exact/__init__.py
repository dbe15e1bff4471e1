"""The microscope: what can happen, what an estimator makes of it on average, exactly, and closed
forms as the second way.
"""

from course.exact.closed_forms import (
    KLMoments,
    control_variate,
    control_variate_minimum,
    covariance_at_baseline,
    gaussian_control_variate,
    gaussian_kl_moments,
    group_mean_factor,
    group_std_weight,
    optimal_baseline,
    optimal_baseline_per_coordinate,
    relative_distance,
    rloo_covariance,
    rloo_crossover,
    silent_probability,
    variance_at_baseline,
)
from course.exact.counting import compositions, log_multinomial
from course.exact.lumps import AmongOthers, among_others, total_variance
from course.exact.moments import Microscope, microscope
from course.exact.multisets import Groups, every_group
from course.exact.outcomes import (
    Outcomes,
    gradient,
    gradient_coefficient,
    kl,
    kl_coefficient,
    kl_gradient,
    objective,
    probability,
    sampling_probability,
    softmax_score,
    tabular_score,
)

__all__ = [
    "AmongOthers",
    "Groups",
    "KLMoments",
    "Microscope",
    "Outcomes",
    "among_others",
    "compositions",
    "control_variate",
    "control_variate_minimum",
    "covariance_at_baseline",
    "every_group",
    "gaussian_control_variate",
    "gaussian_kl_moments",
    "gradient",
    "gradient_coefficient",
    "group_mean_factor",
    "group_std_weight",
    "kl",
    "kl_coefficient",
    "kl_gradient",
    "log_multinomial",
    "microscope",
    "objective",
    "optimal_baseline",
    "optimal_baseline_per_coordinate",
    "probability",
    "relative_distance",
    "rloo_covariance",
    "rloo_crossover",
    "sampling_probability",
    "silent_probability",
    "softmax_score",
    "tabular_score",
    "total_variance",
    "variance_at_baseline",
]
