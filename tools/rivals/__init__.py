"""The pool beside what users would pick instead, doing the same work in the same run.

General layout, each using only those before it:

    names     the values: real topic names, extended under a seed
    rival     what a rival is: how it is started, opened and asked
    ours      shmpool
    embedded  dict, sys.intern, LMDB, SQLite, UltraDict
    served    Manager().dict, Redis, memcached
    catalog   all of them, by name
    member    a process that does the work and times it
    crew      the processes of one measurement, and what they answer
    memory    real memory of processes, servers and files
    rounds    the work of one round: what is asked of whom, and the checks that the answers are right
    figures   rounds become figures, ratios and verdicts
    showing   a run as tables
    readme    the README's table of them
    contest   the command of bench_rivals: all rounds of all rivals
    growing   one pool that fills up, and many that differ in one thing
    growth    the command of bench_growth
"""
