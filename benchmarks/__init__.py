"""How fast this project's command line trains, beside other loops on the same rows and weights: `make bench`.

fixture.py builds what all train on, peers/ are the loops (each a process of its own), compare.py runs them in turn,
figures.py makes ratios and bars of what they measured, report.py writes them down.
"""
