"""Maps that the backward pass computes again from what it has to keep anyway, instead of keeping them too.

A batch norm keeps its input for the backward pass; the ReLU behind it and the next convolution keep its output, split attention
and the sum at the end of a block keep theirs. All of these are cheap functions of the convolutions' outputs. Inside
`recomputing()` layers say so with `offer`, and what autograd would keep of an offered tensor, or of a view of it, is computed
when it is asked for. The nodes of the graph, and so the gradients, are torch's own.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Outputs of blocks follow from each other; of a long stage some are kept, or one of the first would be computed from all.
_LONGEST_CHAIN = 6

_local = threading.local()


@contextmanager
def recomputing(x: Tensor) -> Iterator[None]:
    """Let autograd forget, in a forward pass on `x`, what layers offer to compute again.

    Nothing changes where nothing is kept, where the forward pass is compiled or traced, and where somebody else decides what is
    kept: an outer `recomputing`, `torch.utils.checkpoint`, `save_on_cpu`, the transforms of torch.func.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _can_be_hooked(x):
        yield
        return
    plan = _Plan()
    outer, _local.plan = getattr(_local, "plan", None), plan
    try:
        with saved_tensors_hooks(plan.pack, _unpack):
            yield
    finally:
        _local.plan = outer


# torch 2.6 does not tell which hooks are set; there everything is kept, as autograd does by itself.
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def _can_be_hooked(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type != "meta"
        and not torch.jit.is_tracing()
        and _top_hooks is not None  # first: torch 2.6 cannot compile what comes next
        and torch._C._autograd._saved_tensors_hooks_is_enabled()
        and _top_hooks(False) is None
    )


def _plan() -> "_Plan | None":
    """That of the innermost `recomputing`, unless other hooks have been set inside it, as checkpointing does."""
    if torch.compiler.is_compiling() or (plan := getattr(_local, "plan", None)) is None:
        return None
    hooks = _top_hooks(False)
    return plan if torch.is_grad_enabled() and hooks is not None and hooks[0] == plan.pack else None


def normed(x: Tensor, norm: nn.Module | None, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """`activation(norm(x))`, offered to be computed again where `x` is kept: for the norms that keep their input."""
    given, plan = x, _plan()
    if norm is not None:
        x = norm(x)
    again = None if plan is None or norm is None else _norm_again(norm, given, x)
    if activation is not None:
        x = activation(x)
    if again is not None and activation is None:
        plan.offer(x, again, [given])
    elif again is not None and isinstance(activation, nn.ReLU):
        plan.offer(x, lambda source: again(source).relu_(), [given])
    return x


def offer(result: Tensor, compute: Callable[..., Tensor], *sources: Tensor) -> None:
    """Let `result` be computed again from `sources`, in the order of `compute`'s arguments, which it must not change.

    A source is itself computed again if it was offered, and kept otherwise.
    """
    if (plan := _plan()) is not None and result.requires_grad:
        plan.offer(result, compute, sources)


def _norm_again(norm: nn.Module, x: Tensor, result: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What `norm` did to `x`, as a function; None for norms that do not keep `x` itself for the backward pass."""
    node = result.grad_fn
    kept = getattr(node, "_saved_input", None)
    if kept is None or kept.data_ptr() != x.data_ptr() or kept.dtype != x.dtype:
        # torch's SyncBatchNorm, between processes, is a function of Python, which keeps the same.
        kept = getattr(node, "saved_tensors", ())
        if not isinstance(norm, nn.SyncBatchNorm) or len(kept) != 5 or kept[0].data_ptr() != x.data_ptr():
            return None
        return _affine(norm, kept[2], kept[3])
    if isinstance(norm, nn.GroupNorm):
        return lambda x: torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, torch.backends.cudnn.enabled)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    if norm.training or norm.running_mean is None:
        mean, inverse_deviation = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
        return None if mean is None or inverse_deviation is None else _affine(norm, mean, inverse_deviation)
    return _affine(norm, norm.running_mean.clone(), (norm.running_var + norm.eps).rsqrt())


def _affine(norm: nn.Module, mean: Tensor, inverse_deviation: Tensor) -> Callable[[Tensor], Tensor] | None:
    if mean.shape != inverse_deviation.shape or mean.shape != (norm.num_features,):
        return None
    variance = inverse_deviation.detach() ** -2  # that with which torch's kernel arrives at the same factors
    weight, bias, mean = norm.weight, norm.bias, mean.detach()
    return lambda x: torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, 0.0, torch.backends.cudnn.enabled)


class _Recipe:
    """How an offered tensor is computed, with its value between the first and the last use of it in a backward pass."""

    def __init__(self, result: Tensor, compute: Callable[..., Tensor], sources: "list[_Recipe | _Saved]"):
        self.result = weakref.ref(result)
        self.version = result._version
        self.size, self.stride, self.dtype = result.shape, result.stride(), result.dtype
        self.compute, self.sources = compute, sources
        self.length = 1 + max(source.length for source in sources)
        self.uses = 0
        self.value: Tensor | None = None

    def unchanged(self) -> Tensor | None:
        """The tensor itself, as long as anybody has it."""
        result = self.result()
        return result if result is not None and result._version == self.version else None

    def use(self) -> Tensor:
        value = self.look()
        self.uses -= 1
        if self.uses <= 0:
            self.value = None
        return value

    def look(self) -> Tensor:
        """The value, for something that is computed from it."""
        if (result := self.unchanged()) is not None:
            return result.detach()
        if self.value is not None:
            return self.value
        sources = [source.look() for source in self.sources]
        with torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
            value = self.compute(*sources)
        if value.stride() != self.stride or value.dtype != self.dtype:
            value = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=value.device).copy_(value)
        if self.uses > 0:
            self.value = value
        return value


class _Saved:
    """What autograd holds in the place of a tensor: the tensor, or the recipe of the one that it is a view of."""

    length = 0

    def __init__(self, tensor: Tensor):
        self.tensor: Tensor | None = tensor
        self.version = tensor._version
        self.recipe: _Recipe | None = None

    def replace(self, recipe: _Recipe) -> None:
        self.geometry = self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()
        self.recipe, self.tensor = recipe, None
        recipe.uses += 1

    def unchanged(self) -> bool:
        return self.tensor is not None and self.tensor._version == self.version

    def look(self) -> Tensor:
        if self.recipe is not None:
            size, stride, offset = self.geometry
            return self.recipe.use().as_strided(size, stride, offset)
        if not self.unchanged():
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{self.tensor.type()} of {list(self.tensor.shape)} is at version {self.tensor._version}, expected {self.version}"
            )
        return self.tensor


class _Plan:
    """The offers of a forward pass, and what autograd has kept in it so far."""

    def __init__(self):
        self.saved: dict[int, list[weakref.ref[_Saved]]] = {}
        self.recipes: dict[int, _Recipe] = {}

    def pack(self, tensor: Tensor) -> _Saved:
        saved, address = _Saved(tensor), _address(tensor)
        if (recipe := self.recipe_of(address)) is not None:
            saved.replace(recipe)
        else:
            # A ReLU keeps its result before anybody can offer it.
            self.saved.setdefault(address, []).append(weakref.ref(saved))
        return saved

    def recipe_of(self, address: int) -> _Recipe | None:
        recipe = self.recipes.get(address)
        # While somebody has the tensor, nothing else is at its address.
        return recipe if recipe is not None and recipe.unchanged() is not None else None

    def offer(self, result: Tensor, compute: Callable[..., Tensor], sources) -> None:
        address = _address(result)
        if not address or result.storage_offset() or result.untyped_storage().nbytes() != result.nbytes:
            return
        recipe = _Recipe(result, compute, [self._source(each) for each in sources])
        if recipe.length > _LONGEST_CHAIN:
            return
        self.recipes[address] = recipe
        for reference in self.saved.pop(address, ()):
            if (saved := reference()) is not None and saved.unchanged():
                saved.replace(recipe)

    def _source(self, tensor: Tensor) -> "_Recipe | _Saved":
        recipe = self.recipe_of(_address(tensor))
        return _Saved(tensor.detach()) if recipe is None or tensor.shape != recipe.size else recipe


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _unpack(saved: _Saved) -> Tensor:
    return saved.look()
