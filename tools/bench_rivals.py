"""The pool beside what users would pick instead, doing the same work in one run: real processes, and servers started here.

    python tools/bench_rivals.py [--quick] [--seed S] [--json] [--save]

A rival inserts what is absent and tells a reference of it, in every process the same where it can; it is used as its own
documentation recommends. The rivals take turns in every round, the order shifted by one from round to round, and what they answer
is checked. Exit status 1 if one finds what was not inserted, or does not find what was, or if a guard is passed: a ratio to a
rival of this run.
"""

import sys

if __name__ == "__main__":  # the processes of a measurement import this file too, and shall not pay for the rest
    from tools.rivals.contest import main

    sys.exit(main(__doc__ or ""))
