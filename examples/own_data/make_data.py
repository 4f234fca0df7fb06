"""Write activity.csv: ten persons who walk, climb stairs and sit, as a wrist sensor sees it."""

import csv
from pathlib import Path

import numpy as np

STEPS_PER_SECOND = {"walking": 2.0, "stairs": 1.3, "sitting": 0.0}
SAMPLES_PER_SECOND = 20
BOUT = 64  # samples that an activity goes on


def main() -> None:
    """Write the file beside this one."""
    generator = np.random.default_rng(seed=1)
    with Path(__file__).with_name("activity.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "x", "y", "z", "activity"])
        for number in range(10):
            # Each person has a pace and a strength of their own, and does some things more.
            pace, strength = generator.uniform(0.8, 1.2), generator.uniform(0.5, 1.5)
            habits = generator.dirichlet([2.0] * len(STEPS_PER_SECOND))
            for activity in generator.choice(list(STEPS_PER_SECOND), size=15, p=habits):
                signal = bout(activity, pace, strength, generator)
                rows.writerows([f"user-{number}", *sample, activity] for sample in signal.round(3))


def bout(activity: str, pace: float, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the acceleration, shape (BOUT, 3), while a person does one thing."""
    phase = 2 * np.pi * pace * STEPS_PER_SECOND[activity] * np.arange(BOUT) / SAMPLES_PER_SECOND
    phase += generator.uniform(0, 2 * np.pi)
    climb = 0.5 * (activity == "stairs")
    axes = [np.sin(phase), np.sin(2 * phase) + climb, 0.5 * np.cos(phase)]
    return strength * np.stack(axes, axis=1) + generator.normal(0, 0.3, size=(BOUT, 3))


if __name__ == "__main__":
    main()
