"""Tables, and a picture, of what the examples have made.

    python examples/show.py loop/rm-out loop/rm-debiased --picture loop/loop.png
    python examples/show.py --best_of_n best-of-n/audit/audit.json

The first reads the audits of a loop: the mean over all answers of a round is the best of 1 there.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

PANELS = {"reward": "reward (the proxy)", "gold": "true reward", "length": "characters"}


def main() -> None:
    args = parse_arguments()
    if args.best_of_n:
        points = curve_of(args.best_of_n)
        print_table("n", [(point["n"], point) for point in points])
    loops = {Path(folder).name: rounds_of(Path(folder)) for folder in args.loops}
    for name, rounds in loops.items():
        print(f"\n{name}")
        print_table("round", list(enumerate(rounds)))
    if args.picture:
        draw(loops, args.picture)


def curve_of(audit: str | Path) -> list[dict]:
    """The curve of the best of n in an audit.json."""
    return json.loads(Path(audit).read_text(encoding="utf-8"))["curves"]["best_of_n"]


def rounds_of(folder: Path) -> list[dict]:
    """The mean reward, true reward and length of each round's answers."""
    rounds = []
    while (audit := folder / f"audit-{len(rounds)}" / "audit.json").exists():
        rounds.append(curve_of(audit)[0])
    return rounds


def print_table(title: str, rows: list[tuple[int, dict]]) -> None:
    print(f"{title:>5}" + "".join(f"{name:>20}" for name in PANELS.values()))
    for number, means in rows:
        cells = ""
        for quantity in PANELS:
            cell = "-"  # an audit without the true reward
            if means[quantity] is not None:
                cell = f"{means[quantity]:.2f}"
            cells += f"{cell:>20}"
        print(f"{number:5}{cells}")


def draw(loops: dict[str, list[dict]], picture: str) -> None:
    """A panel for each quantity, a line for each reward model."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (quantity, title) in zip(panels, PANELS.items(), strict=True):
        for name, rounds in loops.items():
            axes.plot([means[quantity] for means in rounds], marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel("steps of DPO")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(picture, dpi=110)
    print(f"\nwrote {picture}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loops", nargs="*", help="folders with audit-0, audit-1, ...")
    parser.add_argument("--picture", help="PNG to write")
    parser.add_argument("--best_of_n", metavar="AUDIT", help="an audit.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
