"""All faults, by group, and how many trials of each a smaller campaign has."""

from collections.abc import Mapping, Sequence

from faults import arithmetic, damage, disk, services, signals, soak, surroundings
from faults.fault import Fault

GROUPS: Mapping[str, Sequence[Fault]] = {
    "signals": signals.FAULTS,
    "disk": disk.FAULTS,
    "damage": damage.FAULTS,
    "services": services.FAULTS,
    "surroundings": surroundings.FAULTS,
    "arithmetic": arithmetic.FAULTS,
    "soak": soak.FAULTS,
}


def find(name: str) -> Fault:
    """Returns the fault of this name."""
    return next(fault for faults in GROUPS.values() for fault in faults if fault.name == name)


def chosen(factor: float, groups: Sequence[str] = tuple(GROUPS)) -> list[tuple[Fault, int]]:
    """Returns the trials of a campaign, as pairs of a fault and the number of the trial.

    The trials of all faults stand in one row, and every (1 / factor)th is taken. So a small campaign has trials of
    rare faults too, though not of every one, and a campaign of a group has the trials that the whole one has of it.
    """
    every = [
        (name, fault, index) for name, faults in GROUPS.items() for fault in faults for index in range(fault.trials)
    ]
    taken = [
        (name, fault, index) for i, (name, fault, index) in enumerate(every) if int((i + 1) * factor) > int(i * factor)
    ]
    return [(fault, index) for name, fault, index in taken if name in groups]
