"""Evidence about the expert weights of Mixture-of-Experts checkpoints.

`open_run` is the door for notebooks; the commands are the door for everything else. Importing this
package loads nothing heavy.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes longer to load than this package
if TYPE_CHECKING:
    from moe_weights.run_reader import OpenedRun, open_run

    __version__: str

__all__ = ["OpenedRun", "__version__", "open_run"]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("moe-weights")
        except PackageNotFoundError:  # a source tree that nobody installed
            return "0+unknown"
    if name in __all__:
        from moe_weights import run_reader

        return getattr(run_reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, also those not loaded yet."""
    return sorted([*globals(), *__all__])
