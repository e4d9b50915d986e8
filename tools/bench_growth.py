"""How the pool's costs grow: with values, load factor, value size, processes and stripes; waits with the insert rate; attaching.

    python tools/bench_growth.py [--quick] [--seed S] [--json] [--save]

Times are medians over rounds. A plain dict grows beside the pool in the same rounds. Exit status 1 if a guard is passed: how much
dearer the largest pool's lookups are than the smallest's, beside the same of the dict; and attaching to the largest, beside the
smallest.
"""

import sys

if __name__ == "__main__":  # the processes of a measurement import this file too, and shall not pay for the rest
    from tools.rivals.growth import main

    sys.exit(main(__doc__ or ""))
