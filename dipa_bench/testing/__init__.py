"""Contracts as tests: a plug-in's author subclasses them, pytest does the rest.

from dipa_bench.testing import MethodContract

class TestMyMethod(MethodContract):
    name = "my-method"
"""

from dipa_bench.testing.contracts import MethodContract, PreconditionerContract, PriorContract
from dipa_bench.testing.problems import small_task

__all__ = ["MethodContract", "PreconditionerContract", "PriorContract", "small_task"]
