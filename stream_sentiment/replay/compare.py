"""Every difference between what a replay says and what stands on the live topics.

In: the outputs of both and `Scope`, what was replayed. Out: `Comparison`. Pure; raises nothing.

The live topics hold more than the replay can know: outputs of records before its beginning or after its end, and what no record caused
(a clock, an erasure). Those are counted and not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from stream_sentiment.replay.outputs import KINDS, Kind, Output

What = Literal["only_live", "only_replay", "differs"]
#: Resolutions that come from outside of the log.
_OUTSIDE = frozenset({"erased", "acknowledged_by_service", "superseded"})


@dataclass(slots=True)
class Scope:
    """What was replayed and reported, the warm-up left out."""

    #: Offsets [begin, end) by topic and partition.
    slices: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    messages: set[int] = field(default_factory=set)
    #: Event time of the first reported and of the newest record, by tenant and conversation or product, RFC 3339.
    first: dict[tuple[str, str], str] = field(default_factory=dict)
    last: dict[tuple[str, str], str] = field(default_factory=dict)
    #: The same of every tenant, for its storms.
    tenants: dict[str, str] = field(default_factory=dict)
    #: Outputs of the warm-up: the replay has made them, and reports nothing of them.
    before: set[int] = field(default_factory=set)

    def add(self, tenant: str, entity: str, message: str | None, at: str) -> None:
        """One record that is reported on."""
        if message:
            self.messages.add(_hash(tenant, entity, message))
        name = tenant, entity
        self.first[name] = min(at, self.first.get(name, at))
        self.last[name] = max(at, self.last.get(name, at))
        self.tenants[tenant] = min(at, self.tenants.get(tenant, at))

    def pass_over(self, output: Output) -> None:
        """One output of the warm-up."""
        self.before.add(_hash(output.kind, output.id))
        self.before.add(_hash(output.kind, output.id, output.to_json().decode()))

    def passed_over(self, output: Output) -> bool:
        """Whether the warm-up has made just this one."""
        return bool(self.before) and _hash(output.kind, output.id, output.to_json().decode()) in self.before

    def holds(self, output: Output) -> bool:
        """Whether a live output is one that the replay must have made, too."""
        if self.before and _hash(output.kind, output.id) in self.before:
            return False
        name = output.tenant_id, output.entity_id
        if output.place is not None and output.kind == "dead_letters":
            begin, end = self.slices.get(output.place[:2], (0, 0))
            return begin <= output.place[2] < end
        if output.place is not None:  # a storm's notice
            known = output.place[:2] in self.slices and output.tenant_id in self.tenants
            return known and str(output.value.get("began_at")) >= self.tenants[output.tenant_id]
        if name not in self.first or output.value.get("resolution") in _OUTSIDE:
            return False
        if output.kind == "states":
            return True
        if output.at > self.last[name]:
            return False  # later than all that was replayed: told by a clock, or by a newer record
        if output.message is not None:
            return _hash(*name, output.message) in self.messages
        return output.at >= self.first[name]


@dataclass(frozen=True, slots=True)
class Difference:
    """`fields`: of an output that both have, name -> [live, replay]."""

    kind: Kind
    what: What
    id: str
    tenant_id: str
    entity_id: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "what": self.what,
            "id": self.id,
            "tenant_id": self.tenant_id,
            "entity_id": self.entity_id,
            "fields": dict(self.fields),
        }


_Name = tuple[Kind, str]


@dataclass(slots=True)
class _Twins:
    """The replay's outputs of one id, and which of them the live topics have shown."""

    outputs: list[Output] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Comparison:
    equal: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)  # live outputs that the replay cannot have
    copies: Counter[str] = field(default_factory=Counter)  # of a live output, with the same id
    differences: list[Difference] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        counts = {"equal": self.equal, "outside": self.outside, "copies": self.copies}
        return {
            "same": not self.differences,
            **{name: {kind: counted[kind] for kind in KINDS} for name, counted in counts.items()},
            "differences": [difference.as_dict() for difference in self.differences],
        }


def compare(replayed: Iterable[Output], live: Iterable[Output], scope: Scope) -> Comparison:
    """Set both side by side by kind and id. A state is compared where both are of the same version: the live one may have gone on.

    An id may stand for several outputs: a message that was sent again so late that it is not remembered is scored twice.
    """
    result = Comparison()
    expected: dict[_Name, _Twins] = {}
    for output in replayed:
        expected.setdefault((output.kind, output.id), _Twins()).outputs.append(output)
    newest: dict[str, Output] = {}
    for output in live:
        if output.kind == "states":
            known = newest.get(output.id)
            if known is None or output.value["state_version"] >= known.value["state_version"]:
                newest[output.id] = output
            continue
        _one(output, expected, scope, result)
    for output in newest.values():
        twins = expected.get(("states", output.id))
        if twins is not None and output.value["state_version"] > twins.outputs[0].value["state_version"]:
            result.outside["states"] += 1
            twins.seen.add(0)
        else:
            _one(output, expected, scope, result)
    for twins in expected.values():
        result.differences += [
            _difference("only_replay", output) for place, output in enumerate(twins.outputs) if place not in twins.seen
        ]
    result.differences.sort(key=lambda item: (KINDS.index(item.kind), item.tenant_id, item.entity_id, item.id))
    return result


def _one(output: Output, expected: Mapping[_Name, _Twins], scope: Scope, result: Comparison) -> None:
    twins = expected.get((output.kind, output.id))
    if twins is None:
        if scope.holds(output):
            result.differences.append(_difference("only_live", output))
        else:
            result.outside[output.kind] += 1
        return
    same = [place for place, twin in enumerate(twins.outputs) if twin.value == output.value]
    unseen = [place for place in same if place not in twins.seen]
    if same and not unseen:
        result.copies[output.kind] += 1
    elif unseen:
        twins.seen.add(unseen[0])
        result.equal[output.kind] += 1
    elif scope.passed_over(output):
        result.outside[output.kind] += 1
    else:
        # Beside the first that has no equal yet; where all have, this one is a copy that says something else.
        place = next((place for place in range(len(twins.outputs)) if place not in twins.seen), 0)
        result.copies[output.kind] += place in twins.seen
        twins.seen.add(place)
        result.differences.append(_difference("differs", output, twins.outputs[place]))


def _difference(what: What, output: Output, twin: Output | None = None) -> Difference:
    fields: dict[str, Any] = {}
    if twin is not None:
        names = sorted(output.value.keys() | twin.value.keys())
        fields = {
            name: [output.value.get(name), twin.value.get(name)]
            for name in names
            if output.value.get(name) != twin.value.get(name)
        }
    return Difference(output.kind, what, output.id, output.tenant_id, output.entity_id, fields)


def _hash(*parts: str) -> int:
    """Eight bytes a message instead of its three ids: a replay may read millions."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
