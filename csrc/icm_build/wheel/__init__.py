"""Wheels: building, auditing and trying them. `python -m icm_build.wheel`, with csrc on PYTHONPATH; `make wheel`.

setup.py builds a wheel for the machine at hand; what is here makes of it one for others, and shows that it is.
"""
