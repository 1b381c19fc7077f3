"""Side-by-side measurements: `make bench`, or `python -m benchmarks`.

A subject is a file of `benchmarks.cases`; the table `CASES` there has its rows. What
takes time is measured by `timing`, in turns; what is compared is first checked to
compute the same thing.
"""
