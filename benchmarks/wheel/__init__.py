"""Where the wheels work: every pair of Python and torch that can be had, each in a fresh environment.

matrix        makes the environments; what nobody tried is said to be untested
cell          runs in one of them, with its Python
table         prints the outcomes, here and in README.md
"""
