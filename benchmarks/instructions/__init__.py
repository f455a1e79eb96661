"""Instructions of the CPU kernels, counted under valgrind: the same from run to run, where times are not."""
