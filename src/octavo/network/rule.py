"""Rules: which sites are quantized, and how. The first rule that matches a site decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from octavo.arguments import check_fields
from octavo.errors import QuantizationError
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where a tensor is quantized.

    name       "layer1.0.conv1.input": layer, role and, from the second call of a layer on, its number ("conv1@1.input")
    layer      the user's layer, or layer and operation for one that has no layer of its own ("attention.matmul")
    operation  "conv2d", "linear", "matmul", …
    role       "input", "weight", "lhs", "rhs", …
    node       name of the graph node that reads the tensor
    """

    name: str
    layer: str
    operation: str
    role: str
    node: str


@dataclass(frozen=True)
class Rule:
    """What to do with the sites it matches.

    layer      glob over the layer's path, matched on whole components from the root: "layer1" is layer1 and all below
               it, "*.conv1" is conv1 one level down, "**.conv1" is conv1 at any depth, "*" is everything
    operation  only sites of this operation
    role       only sites of this role
    skip       leave them in float
    bits       quantize to this many bits in place of the target's
    scheme     quantize by this scheme in place of the target's; `axis` 0 stands for the output channel
    exact      `layer` is no glob but the name of one layer: not what lies below it, and not its other calls
    """

    layer: str = "*"
    operation: str | None = None
    role: str | None = None
    skip: bool = False
    bits: int | None = None
    scheme: Scheme | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def matches(self, site: Site) -> bool:
        """Whether this rule speaks of `site`."""
        return (
            self.operation in (None, site.operation)
            and self.role in (None, site.role)
            and (site.layer == self.layer if self.exact else _matches(self.layer.split("."), site.layer.split(".")))
        )

    @property
    def matches_everything(self) -> bool:
        """Whether it is the kind of rule that ends a list, and may find nothing left to decide."""
        return self.layer in ("*", "**") and not self.exact and self.operation is None and self.role is None

    def __str__(self) -> str:
        shown = [repr(self.layer)]
        given = {name: getattr(self, name) for name in ("operation", "role", "bits", "scheme")}
        shown += [f"{name}={value!r}" for name, value in given.items() if value is not None]
        return f"Rule({', '.join(shown + ['skip=True'] * self.skip + ['exact=True'] * self.exact)})"


EVERYTHING = Rule()


def decide(sites: Sequence[Site], rules: Sequence[Rule]) -> list[Rule | None]:
    """For each site the first rule that matches it, None if there is none.

    raises  QuantizationError for a rule that matches no site, or that earlier rules leave nothing to decide
    """
    deciding = [next((i for i, rule in enumerate(rules) if rule.matches(site)), None) for site in sites]
    for i, rule in enumerate(rules if sites else ()):  # without a single site it is not the rules that are wrong
        if not any(rule.matches(site) for site in sites):
            _unused(rule, f"it matches none of the {len(sites)} sites ({_examples(sites)})", "correct its pattern")
        if i not in deciding and not rule.matches_everything:
            _unused(rule, "earlier rules match all of its sites", "put it before them: the first match wins")
    return [None if i is None else rules[i] for i in deciding]


def _unused(rule: Rule, seen: str, remedy: str) -> None:
    raise QuantizationError(asked=f"apply {rule}", seen=seen, remedy=remedy)


def _examples(sites: Sequence[Site]) -> str:
    layers = list(dict.fromkeys(site.layer for site in sites))
    return "layers " + ", ".join(layers[:6]) + (", …" if len(layers) > 6 else "")


def _matches(pattern: list[str], path: list[str]) -> bool:
    """Whether `pattern` covers the first components of `path`; `**` covers any number of them."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[start:]) for start in range(len(path) + (len(pattern) == 1)))
    if not path:
        return False
    # A repeated call is "conv1@1": the pattern may name the layer or this one call of it.
    here = fnmatchcase(path[0], pattern[0]) or fnmatchcase(path[0].split("@")[0], pattern[0])
    return here and _matches(pattern[1:], path[1:])
