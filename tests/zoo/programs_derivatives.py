"""Programs that differentiate within forward: forces, penalties of gradients, physics-informed losses, inner steps."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from zoo.programs import Call, Layers, normal, program


class Field(nn.Module):
    """u(t, x), a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        self.viscosity = nn.Parameter(torch.tensor(0.3))

    def u(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.stack([t, x], dim=-1)).squeeze(-1)


def points(g: Generator, scale: float) -> Call:
    return tuple(scale * torch.rand((7,), generator=g, dtype=torch.float64) for _ in range(2)), {}


@program("burgers_residual", points)
class BurgersResidual(Field):
    """u_t + u u_x − ν u_xx by autograd.grad, at points that forward makes require a gradient."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t, x = t.clone().requires_grad_(), x.clone().requires_grad_()
        u = self.u(t, x)
        u_t, u_x = torch.autograd.grad(u.sum(), (t, x), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x, x, torch.ones_like(u_x), create_graph=True)
        return (u_t + u * u_x - self.viscosity * u_xx).square().mean()


@program("burgers_by_func", points)
class BurgersByFunc(Field):
    """The same by vmap of grad."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        def u(t: Tensor, x: Tensor) -> Tensor:
            return self.u(t, x)

        first = vmap(grad(u, argnums=(0, 1)))
        u_t, u_x = first(t, x)
        u_xx = vmap(grad(grad(u, argnums=1), argnums=1))(t, x)
        return (u_t + vmap(u)(t, x) * u_x - self.viscosity * u_xx).square().mean()


@program("force_of_an_energy", normal(5, 3))
class ForceOfAnEnergy(Layers):
    """−∂E/∂x beside E, as in models of molecules."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.last(self.second(self.first(x)).tanh()).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -force


@program("gradient_penalty", normal(5, 3))
class GradientPenalty(Layers):
    """Of a critic between two batches (Gulrajani et al. 2017)."""

    def forward(self, x: Tensor) -> Tensor:
        between = (0.3 * x + 0.7 * x.flip(0)).detach().requires_grad_()
        score = self.last(self.first(between).tanh()).sum(-1)
        (slope,) = torch.autograd.grad(
            outputs=score, inputs=between, grad_outputs=torch.ones_like(score), create_graph=True, retain_graph=True
        )
        return self.last(self.first(x).tanh()).mean() + ((slope.norm(dim=1) - 1) ** 2).mean()


@program("inner_step", normal(5, 3))
class InnerStep(Layers):
    """A step of gradient descent on a weight within forward, through which the loss is differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        h = self.first(x).tanh()
        for _ in range(2):
            inner = (h @ weight.t()).square().mean()
            (slope,) = torch.autograd.grad(inner, weight, create_graph=True)
            weight = weight - 0.1 * slope
        return self.last((h @ weight.t()).tanh())


@program("first_order_inner_step", normal(5, 3))
class FirstOrderInnerStep(Layers):
    """The same without a gradient through the step."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        inner = self.second(h).square().mean()
        (slope,) = torch.autograd.grad(inner, self.second.weight, retain_graph=True)
        return self.last((h @ (self.second.weight - 0.1 * slope).t()).tanh())


@program("vmap_of_grad", normal(5, 3))
class VmapOfGrad(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(grad(lambda row: self.last(self.first(row).tanh()).pow(2).sum()))(x)


@program("divergence_by_jacrev", normal(5, 4))
class DivergenceByJacrev(Layers):
    """The trace of a Jacobian for each sample, as continuous flows have it."""

    def forward(self, x: Tensor) -> Tensor:
        jacobian = vmap(jacrev(lambda row: self.second(row).tanh()))(x)
        return jacobian.diagonal(dim1=-2, dim2=-1).sum(-1) + self.last(x).sum(-1)


@program("laplacian_by_hessian", normal(5, 3))
class LaplacianByHessian(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(hessian(lambda row: self.last(self.first(row).sin()).sum()))(x).diagonal(dim1=-2, dim2=-1).sum(-1)


@program("directional_by_jvp", normal(5, 3))
class DirectionalByJvp(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = jvp(lambda v: self.last(self.first(v).tanh()), (x,), (torch.ones_like(x),))
        return value, slope


@program("gradients_by_functional_call", normal(5, 3))
class GradientsByFunctionalCall(Layers):
    """Gradients of each sample with respect to the parameters of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        own = dict(self.second.named_parameters())

        def value(p: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.second, p, (row,)).tanh().sum()

        slopes = vmap(grad(value), in_dims=(None, 0))(own, self.first(x))
        return self.last(slopes["weight"].mean(1)) + slopes["bias"].sum()


@program("jacobian_by_loop", normal(5, 3))
class JacobianByLoop(Layers):
    """Rows of a Jacobian, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        y = self.last(self.first(x).tanh())
        rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0] for i in range(y.shape[1])]
        return torch.stack(rows, 1).square().sum()


@program("backward_within", normal(5, 3))
class LangevinSampler(Layers):
    """Langevin steps on an input, as in energy models: each by autograd.grad without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.detach()
        for _ in range(3):
            z = z.detach().requires_grad_()
            energy = self.last(self.first(z).tanh()).square().sum()
            z = z - 0.1 * torch.autograd.grad(energy, z)[0]
        return self.last(self.first(z.detach()).tanh()) - self.last(self.first(x).tanh())


@program("penalty_and_branch", normal(5, 3))
class PenaltyAndBranch(Layers):
    """A derivative within forward, and a decision by it."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.detach().requires_grad_()
        y = self.last(self.first(z).tanh())
        (slope,) = torch.autograd.grad(y.sum(), z, create_graph=True)
        if slope.norm() > 1.0:
            return y.mean() + slope.square().mean()
        return y.mean() * slope.sum()
