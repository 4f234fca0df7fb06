"""What the server sends: one set of arrays for each tier, masks only to those who lack them."""

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from mest_fed.server.global_model import GlobalModel
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire import MaskSet, decode, encode, mask_hash
from mest_fed.wire.records import to_record
from mest_fed.wire.values import value_codec

_MASK_SETS_KEPT = 16


class ModelBroadcast:
    """Encodes the global model for the tiers of a fleet.

    A tier's mask stays the same until :meth:`forget_tiers`; its values are encoded once a round.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    distribution : str
        How density spreads over layers.
    values : str
        Value codec.
    spec_of : callable, optional
        Gives the specification of a density's model where that is narrower than ``spec``.
    """

    def __init__(
        self,
        spec: ModelSpec,
        distribution: str,
        values: str,
        spec_of: Callable[[float], ModelSpec] | None = None,
    ) -> None:
        self.spec = spec
        self.spec_of = spec_of or (lambda density: spec)
        self.distribution = distribution
        self.values = values
        self.tiers: dict[float, MaskSet] = {}
        self.mask_sets: dict[bytes, MaskSet] = {}
        #: Tier -> its masks, and their hash.
        self._named: dict[float, tuple[MaskSet, bytes]] = {}
        self._states: dict[float, SparseState] = {}
        self._arrays: dict[float, ArrayRecord] = {}
        self._headers: dict[tuple[float, bytes], ConfigRecord] = {}

    def forget_tiers(self) -> None:
        """Have every tier's mask chosen anew, after the global mask has changed."""
        self.tiers = {}

    def open_round(self) -> None:
        """Have every tier's values encoded anew."""
        self._states, self._arrays, self._headers = {}, {}, {}

    def state(self, model: GlobalModel, density: float) -> SparseState:
        """Return what a tier is sent in this round, as a node decodes it."""
        if density not in self.tiers:
            self.tiers[density] = model.tier_masks(density, self.distribution)
            self._remember(self.tiers[density])
        if density not in self._states:
            spec = self.spec_of(density)
            exact = model.state(self.tiers[density], spec)
            if not value_codec(self.values).exact:
                # 8-bit uploads are differences from what was received, rounding and all.
                payload, _ = encode(exact, spec, values=self.values)
                exact = decode(payload, spec)
            self._states[density] = exact
        return self._states[density]

    def content(
        self, model: GlobalModel, density: float, known: bytes, order: Mapping[str, int | bool]
    ) -> RecordDict:
        """Return a message's content for a node of a tier.

        Parameters
        ----------
        model : GlobalModel
            What to send.
        density : float
            The node's tier.
        known : bytes
            Hash of the mask set that the node holds; empty if none.
        order : mapping of str to int or bool
            What the node should do. It travels in the header's record: Flower's clipping mods
            expect a single ConfigRecord.
        """
        key = (density, known)
        if key not in self._headers:
            base = self.mask_sets.get(known)
            state = self.state(model, density)
            spec = self.spec_of(density)
            payload, _ = encode(state, spec, values=self.values, known=base)
            record = to_record(payload)
            self._headers[key] = record.config_records["mest"]
            # All headers of a tier go with the same arrays, so that an engine can share them.
            self._arrays.setdefault(density, record.array_records["arrays"])
        instruction = ConfigRecord({**self._headers[key], **order})
        return RecordDict({"arrays": self._arrays[density], "mest": instruction})

    def tier_hash(self, density: float) -> bytes:
        """Return the hash of a tier's mask set."""
        masks = self.tiers[density]
        if density not in self._named or self._named[density][0] is not masks:
            self._named[density] = masks, mask_hash(masks)
        return self._named[density][1]

    def _remember(self, masks: MaskSet) -> None:
        self.mask_sets[mask_hash(masks)] = masks
        while len(self.mask_sets) > _MASK_SETS_KEPT:
            del self.mask_sets[next(iter(self.mask_sets))]
