"""Choose the device to compute on: the requested one, or the best available one."""

from __future__ import annotations

import ctypes
import sys

import torch

from course.errors import CourseError


def available() -> list[str]:
    """The devices that can be used, by their torch names; the CPU comes first.

    A Mac's GPU (mps) is not among them: it has no float64, in which sums and checks are done here.
    """
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return names


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`; None and "auto" give a CUDA GPU if there is one, else the CPU.

    Raises `CourseError` if this machine does not have the device.
    """
    names = available()
    if name is None or name == "auto":
        return torch.device("cuda" if "cuda" in names else "cpu")
    if name not in names:
        raise CourseError(
            f"device: got {name!r}; allowed is what this machine has: {', '.join(names)} (or auto)"
        )
    return torch.device(name)


def keep_memory() -> None:
    """Ask the C library to keep freed memory for the next tensor (glibc only, else no effect).

    By default it returns large blocks to the system, and every page must be faulted in again. That
    takes about a tenth of the time of training a small transformer on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, most in (
            (-3, 1 << 30),
            (-1, (1 << 31) - 1),
        ):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, in bytes
            mallopt(setting, most)
