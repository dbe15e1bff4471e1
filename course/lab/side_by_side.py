"""Trainings side by side: each in a process of one thread, so that two cores do two at a time.

Small models keep no second core busy, however many threads they have. What a training gives does
not depend on the process it runs in.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from course import ladder
from course.errors import CourseError
from course.lab.result import cores
from course.lab.terminal import Progress
from course.registry import FILES, RUNGS

T = TypeVar("T")


class Spread(Protocol):
    """Calls `work(*task)` for every task, side by side; results are in the order of the tasks.

    `work` is a function of a module, or a `functools.partial` of one.
    """

    def __call__(
        self, work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], text: str
    ) -> list[T]: ...


@contextmanager
def side_by_side(workers: int | None, progress: Progress, device: str = "cpu") -> Iterator[Spread]:
    """A `Spread` over up to `workers` processes; None means one for each core, on a GPU one in all.

    With one, and where a rung of the user's own is in no file that another process could load,
    everything runs here. Raises `CourseError` if a process is killed.
    """
    own = [name for name, rung in RUNGS.items() if rung.kind == "own"]
    count = workers or (cores() if device == "cpu" else 1)
    if count == 1 or not FILES.keys() >= set(own):

        def here(work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], text: str) -> list[T]:
            return [work(*task) for task in progress(tasks, text, total=len(tasks))]

        yield here
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, ([FILES[name] for name in own],)) as pool:

        def there(work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], text: str) -> list[T]:
            # as bytes: tensors would otherwise travel through shared memory
            calls = [pool.submit(_call, pickle.dumps((work, task))) for task in tasks]
            try:
                done = progress(calls, text, total=len(calls))
                return [pickle.loads(call.result()) for call in done]
            except BrokenProcessPool as error:
                raise CourseError(
                    "workers: a process was killed, perhaps for want of memory; allowed is also"
                    " --workers 1"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield there


def _begin(own: Sequence[str]) -> None:
    """Begin a process: Ctrl-C ends it without a word, and it knows the user's own rungs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    for rung in own:
        ladder.get(rung)


def _call(sent: bytes) -> bytes:
    work, task = pickle.loads(sent)
    return pickle.dumps(work(*task))


__all__ = ["Spread", "side_by_side"]
