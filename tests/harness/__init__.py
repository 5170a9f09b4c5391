"""Runs msr_cuda's CUDA kernels on the CPU, for tests; see cuda_on_cpu.h for how."""
