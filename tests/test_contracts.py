"""Every registered method, operator and prior keeps the contract that plug-ins are held to."""

import pytest
import torch

from baselines.hessian import InverseHessian
from baselines.scalar import ScalarSteps
from dipa_bench import registry
from dipa_bench.preconditioners import Dense, Identity
from dipa_bench.testing import MethodContract, PreconditionerContract, PriorContract


class TestIdentity(PreconditionerContract):
    def make(self, task):
        return Identity()


class TestHessian(PreconditionerContract):
    def make(self, task):
        return InverseHessian(0.1 * task.largest())


class TestScalarSteps(PreconditionerContract):
    def make(self, task):
        operator = ScalarSteps(2)
        operator.steps.copy_(torch.tensor([0.5, 2.0]))
        return operator


class TestDense(PreconditionerContract):
    def make(self, task):
        operator = Dense(task.shape)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            operator.matrix.add_(0.1 * torch.randn(operator.matrix.shape, generator=generator))
        return operator


@pytest.mark.parametrize("name", registry.names("methods"))
class TestMethods(MethodContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        type(self).name = name


class TestShippedPrior(PriorContract):
    name = "dncnn-small"


class TestTotalVariation(PriorContract):
    name = "tv"
