"""Muon (https://kellerjordan.github.io/posts/muon): momentum whose steps are matrices with singular values of about one.

torch has it for matrices alone, timm for all; both compute in bfloat16, which takes a CPU without instructions for it several
times as long as the training step itself. This one computes in the parameters' own precision.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Of the polynomial a x + b x^3 + c x^5, which repeated takes singular values of (0, 1] to about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The more inputs a layer has, the smaller its weights begin, and the larger a share of them a step of one size is. From so many
# on, steps shrink as the weights do; docs/recipes.md has the runs.
WIDE = 576


class Muon(torch.optim.Optimizer):
    """Muon for all parameters, with the step's size that AdamW's has (arXiv:2502.16982, equation 4), and decoupled weight decay.

    A kernel of a convolution is the matrix (output channels, all else), a vector that of one row. The step of a matrix of n rows
    or columns, more than WIDE, is smaller than AdamW's by the root of n / WIDE.

    Args:
        params: parameters, or groups of them with their own `lr`, `momentum` and `weight_decay`.
        lr: learning rate; the step of each number is a fifth of it, as a root mean square, and less in a wide matrix.
        momentum: share of the old in the running mean of gradients, of which Nesterov's form is taken.
        weight_decay: times the learning rate, what each parameter shrinks by.

    Raises:
        ValueError: a rate or a decay below 0, or a momentum outside [0, 1).
    """

    def __init__(self, params: Iterable, lr: float = 0.01, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must be 0 or more, momentum {momentum} in [0, 1)")
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Change the parameters that have gradients; what `closure`, called before, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple, list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape are multiplied together
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"])
                matrix = ahead.reshape(len(ahead), -1) if ahead.ndim > 1 else ahead.reshape(1, -1)
                alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append((parameter, matrix))
            for (shape, *_), members in alike.items():
                longer = max(shape) if shape[0] == 1 else min(max(shape), WIDE)
                size = group["lr"] * 0.2 * longer**0.5
                for (parameter, _), direction in zip(members, orthogonalized(torch.stack([each for _, each in members]))):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(direction.reshape(parameter.shape), alpha=size)
        return loss


def orthogonalized(matrices: Tensor) -> Tensor:
    """The matrices (N, rows, columns) with singular values of about one, by five steps of Newton and Schulz; zeros stay zeros."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
