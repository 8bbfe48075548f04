"""How fast this project's command line trains, beside other loops on the same rows and weights (`make bench`), and what
it reaches on real sets (`make results`).

fixture.py builds what all train on, peers/ are the loops (each a process of its own), compare.py runs them in turn,
figures.py makes ratios and bars of what they measured, report.py writes them down.

recipes.py says what is trained on which set, results.py trains it, results_page.py writes down what came out, and
results.json keeps it. tsexam.py makes the rows of one of the sets.
"""
