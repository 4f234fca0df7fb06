"""More rounds than a run was planned for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mest_fed.config import RunConfig, from_flat, to_flat, to_toml
from mest_fed.errors import InputError
from mest_fed.server.checkpoint import checkpoint_of_run, load_newest, whole
from mest_fed.server.run_folder import RunFolder
from mest_fed.server.seal import is_sealed_config, read_seal, with_config
from mest_fed.simulation.checkpoint import Snapshot

#: Where a checkpoint says how many rounds its run has, while config.toml may not say so yet.
_PLANNED = "planned_rounds"


@dataclass(frozen=True)
class NewPlan:
    """A run's configuration with another number of rounds, not yet written down.

    A checkpoint seals ``config.toml``, so that both must change. The checkpoint comes first: a
    process that dies between the two leaves what :func:`planned` finds out.

    Parameters
    ----------
    config : RunConfig
        The run, as it goes on.
    """

    config: RunConfig

    @classmethod
    def of(
        cls, config: RunConfig, folder: RunFolder, more: int
    ) -> "tuple[NewPlan | None, Snapshot]":
        """Plan more rounds for the run in a folder; return the checkpoint that is to say so, too.

        There is no plan where nothing is new; one may be that a process died before it was written.

        Parameters
        ----------
        config : RunConfig
            As the folder has it.
        folder : RunFolder
            Of the run.
        more : int
            Rounds beyond those that it was planned for; may be 0.

        Raises
        ------
        InputError
            If its checkpoint is not whole or not of this run, or as :func:`extended` does.
        """
        snapshot = Snapshot(*load_newest(folder.checkpoints))
        with checkpoint_of_run():
            before, seal = planned(config, snapshot.facts), read_seal(snapshot.facts)
        folder.check_seal(seal, config_known=before is not None)
        if not more:
            return before, snapshot
        return extended(config if before is None else before.config, snapshot, more), snapshot

    def write(self, folder: RunFolder, snapshot: Snapshot) -> None:
        """Have a folder and its checkpoint say so; what the run left at its end is removed."""
        folder.forget_end()
        text = to_toml(self.config)
        snapshot.facts["seal"] = with_config(snapshot.facts["seal"], text)
        snapshot.facts[_PLANNED] = self.config.run.rounds
        snapshot.save(folder.checkpoints)
        folder.write_config(text)


def planned(config: RunConfig, facts: Mapping[str, Any]) -> NewPlan | None:
    """Return the plan that a checkpoint has beyond its run's ``config.toml``, or None.

    Only the number of rounds may differ, and only as the checkpoint says.
    """
    seal, rounds = read_seal(facts), facts.get(_PLANNED)
    if rounds is None:
        return None
    other = _with_rounds(config, whole(rounds))
    return NewPlan(other) if other != config and is_sealed_config(seal, to_toml(other)) else None


def extended(config: RunConfig, snapshot: Snapshot, more: int) -> NewPlan:
    """Plan more rounds for a run.

    Parameters
    ----------
    config : RunConfig
        The run.
    snapshot : Snapshot
        Of its newest checkpoint.
    more : int
        Rounds beyond those that it was planned for.

    Raises
    ------
    InputError
        If ``server.stop_when`` has ended the run, or it would have too many rounds.
    """
    reason = snapshot.facts.get("progress", {}).get("stopped")
    if reason:
        raise InputError(
            f"--rounds {more} is not allowed: server.stop_when = {config.server.stop_when!r} has "
            f"ended the run ({reason}); allowed: a new run"
        )
    return NewPlan(_with_rounds(config, config.run.rounds + more))


def _with_rounds(config: RunConfig, rounds: int) -> RunConfig:
    return from_flat(to_flat(config) | {"run.rounds": rounds})
