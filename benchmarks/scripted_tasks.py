"""Which tasks of a suite the scripted demonstrator does, and in how many initial states: attempts alone, nothing is rendered.

    python benchmarks/scripted_tasks.py --suite libero_10 --states 0 10 20 30 40

Prints a row per task as it is done: in how many initial states one of the attempts was solved, in how many the first, the
control steps of the longest solved attempt, and why attempts failed. `--tasks` chooses; by default all those of the suite.
"""

import argparse
from collections import Counter

from simulation.demonstration import attempt_until_solved
from simulation.environment import TaskEnvironment
from simulation.libero import SCRIPTED_TASKS, suite_tasks


def main() -> None:
    """Attempt each task in each initial state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--tasks", type=int, nargs="*", default=[], help="[default: all of the suite]")
    parser.add_argument("--scripted", action="store_true", help="the tasks that the demonstrator is said to do")
    parser.add_argument("--states", type=int, nargs="+", default=[0, 10, 20, 30, 40])
    arguments = parser.parse_args()
    tasks = arguments.tasks or range(suite_tasks(arguments.suite))
    solved = tried = 0
    for task in SCRIPTED_TASKS.get(arguments.suite, ()) if arguments.scripted else tasks:
        with TaskEnvironment(arguments.suite, task) as environment:
            runs = [attempt_until_solved(environment, state) for state in arguments.states]
            ends = [run[-1] for run in runs]
            failures = Counter(attempt.failure for run in runs for attempt in run if attempt.failure)
            print(
                f"{task:3}  {sum(end.solved for end in ends)} of {len(ends)}"
                f"  first {sum(run[0].solved for run in runs)}"
                f"  steps {max((len(end.actions) for end in ends if end.solved), default=0)}"
                f"  {environment.instruction}  {dict(failures) or ''}",
                flush=True,
            )
            solved, tried = solved + sum(end.solved for end in ends), tried + len(ends)
    print(f"{arguments.suite}: {solved} of {tried}")


if __name__ == "__main__":
    main()
