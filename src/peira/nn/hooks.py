"""What a network computes inside, seen and replaced through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[Tensor], Tensor]


@contextmanager
def capture(model: nn.Module, *names: str, detach: bool = True) -> Iterator[dict[str, Tensor]]:
    """See what the named modules put out, while the block runs.

    Args:
        model: any network.
        names: of its modules, as `named_modules` gives them.
        detach: cut the outputs off the graph; without it they can be differentiated.

    Yields:
        Name -> output of that module in the last forward pass so far.

    Raises:
        ValueError: no such module; an output that is not one tensor (name a module inside it).
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Change:
        def watch(output: Tensor) -> Tensor:
            seen[name] = output.detach() if detach else output
            return output

        return watch

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(_hook(model, name, keep(name)))
        yield seen


@contextmanager
def replace_output(model: nn.Module, name: str, change: Change) -> Iterator[None]:
    """While the block runs, the named module's output becomes `change(output)`.

    Raises:
        ValueError: as `capture`.
    """
    with _hook(model, name, change):
        yield


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of that name; raises ValueError with the names there are."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"no module {name!r}; there are: {', '.join(filter(None, modules))}")
    return modules[name]


@contextmanager
def _hook(model: nn.Module, name: str, change: Change) -> Iterator[None]:
    def apply(
        module: nn.Module, inputs: tuple[object, ...], output: object
    ) -> Float[Tensor, "..."]:
        if not isinstance(output, Tensor):
            inside = [f"{name}.{part}" if name else part for part, _ in module.named_children()]
            raise ValueError(
                f"{name!r} puts out a {type(output).__name__}, not one tensor; "
                f"name a module inside it: {', '.join(inside) or 'it has none'}"
            )
        return change(output)

    handle: RemovableHandle = module_named(model, name).register_forward_hook(apply)
    try:
        yield
    finally:
        handle.remove()
