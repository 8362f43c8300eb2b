"""Every registered method, operator and prior keeps the contract that plug-ins are held to."""

from dataclasses import replace

import pytest
import torch

from baselines import backprojection, circulant, nystrom
from baselines.barzilai_borwein import RULES, BarzilaiBorwein
from baselines.hessian import InverseHessian
from baselines.polynomial import PolynomialParameters, build
from baselines.sr1 import SR1
from dipa_bench import registry
from dipa_bench.errors import UserError
from dipa_bench.preconditioners import Identity
from dipa_bench.testing import MethodContract, PreconditionerContract, PriorContract


class TestIdentity(PreconditionerContract):
    def make(self, task):
        return Identity()


class TestHessian(PreconditionerContract):
    def make(self, task):
        return InverseHessian(0.1 * task.norm_squared())


class TestPolynomial(PreconditionerContract):
    @pytest.fixture(autouse=True, params=["l2", "chebyshev", "neumann"])
    def _of_family(self, request):
        self.family = request.param

    @pytest.fixture(autouse=True, params=[2, 3])  # a bound in closed form, and a measured one
    def _of_degree(self, request):
        self.degree = request.param

    def make(self, task):
        return build(task, PolynomialParameters(family=self.family, degree=self.degree))


@pytest.mark.covering
@pytest.mark.parametrize("name", registry.names("operators"))
class TestLearnedOperators(PreconditionerContract):
    """Two entries each, away from the identity."""

    @pytest.fixture(autouse=True)
    def _named(self, name):
        self.spec = registry.get("operators", name)

    def make(self, task):
        if reason := self.spec.obstacle(task.shape):
            pytest.skip(reason)
        operator = self.spec.build(task.shape, self.spec.parameters(), 2).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for part in operator.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=generator))
        return operator


class TestCirculant(PreconditionerContract):
    def make(self, task):
        return circulant.build(task, circulant.HessianParameters())


class TestNystrom(PreconditionerContract):
    def make(self, task):
        return nystrom.build(task, nystrom.NystromParameters(rank=12))


class TestBackProjection(PreconditionerContract):
    def make(self, task):
        parameters = backprojection.BackProjectionParameters()
        return backprojection.build(replace(task, iterations=2), parameters)


class TestBarzilaiBorwein(PreconditionerContract):
    @pytest.fixture(autouse=True, params=RULES)
    def _of_rule(self, request):
        self.rule = request.param

    def make(self, task):
        return BarzilaiBorwein(self.rule, 10.0, task.norm_squared())


class TestSR1(PreconditionerContract):
    def make(self, task):
        return SR1(2e-6, task.norm_squared())


METHODS = registry.names("methods")
END_TO_END = [name for name in METHODS if registry.get("methods", name).rule == "end-to-end"]
NETWORKS = [name for name in METHODS if name.startswith("ndipa")]


@pytest.mark.covering
@pytest.mark.parametrize("name", sorted({*METHODS} - {*NETWORKS, *END_TO_END}))
class TestMethods(MethodContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        type(self).name = name


@pytest.mark.parametrize("name", END_TO_END)
class TestEndToEnd(MethodContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        type(self).name = name


@pytest.mark.covering
@pytest.mark.parametrize("name", NETWORKS)
class TestNetworkMethods(MethodContract):
    tasks = ("sr", "mri")

    @pytest.fixture(autouse=True)
    def _named(self, name):
        type(self).name = name


@pytest.mark.covering
@pytest.mark.parametrize("name", registry.names("priors"))
class TestPriors(PriorContract):
    @pytest.fixture(autouse=True)
    def _named(self, name, monkeypatch):
        """One without its weights or package is skipped with what it says of them."""

        def refuse(*arguments, **options):
            raise OSError("the tests download nothing")

        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        type(self).name = name
        try:
            self.make()
        except UserError as error:
            pytest.skip(str(error))
