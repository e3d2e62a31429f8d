"""How fast each op and each network is here, how near to the hardware's limit, and beside what else: `gpucnn bench`.

`suites` says what is measured, `providers` and `peers` by whose code, `reference` what a right result is, `measure` how
it is timed, `processes` what needs a process of its own, `real_work` trains to an accuracy, `roofline` knows the limits
of the hardware, `records` keeps and compares runs, `report` shows them, and `command` puts these together. `import
gpucnn` imports none of it.
"""
