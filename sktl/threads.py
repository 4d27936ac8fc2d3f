"""Computing in one thread of torch's, without a word to the process's other threads.

:func:`torch.set_num_threads` is for the whole process: what it was given last, in whichever
thread, is what threads that start later begin with. Below it, OpenMP and MKL have a number for
each thread, and these are what is set here.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController

_WORTH_SHARING = 2**25  # multiplications: some milliseconds of one core


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute alone in the thread that enters, which must leave, too.

    Where torch's OpenMP or MKL can't be found, other threads go on helping it.
    """
    torch.get_num_threads()  # else torch would set the number when the thread first computes
    of_mkl = _mkl_threads()
    with _openmp().limit(limits=1):
        before = of_mkl(1)
        try:
            yield
        finally:
            of_mkl(before)


@contextlib.contextmanager
def suited_threads(n_products: int) -> Iterator[None]:
    """Compute in one thread where the work is too small to be shared.

    Parameters
    ----------
    n_products : int
        Multiplications in one step of the work.
    """
    with one_thread() if n_products < _WORTH_SHARING else contextlib.nullcontext():
        yield


def stay_alone() -> None:
    """Compute alone from here on, in a thread of one's own."""
    torch.get_num_threads()
    _openmp().limit(limits=1)
    _mkl_threads()(1)


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@cache
def _mkl_threads() -> Callable[[int], int]:
    """Function that sets the number of threads of MKL for this thread, and gives the one before.

    torch has set it where :func:`torch.set_num_threads` was called; otherwise MKL asks OpenMP.
    MKL is a part of torch's library, where threadpoolctl doesn't look.
    """
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[[int], int] = ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
            return found
    return lambda n: n
