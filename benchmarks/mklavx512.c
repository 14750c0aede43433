/*
 * For AMD processors that have AVX-512. MKL, which PyTorch multiplies matrices with, does not take its AVX-512 code on them; with these
 * two functions in front of its own it does. The allocator keeps the memory of large tensors instead of
 * returning it to the system after every operation. Neither changes what is computed beyond rounding.
 *
 *     gcc -O2 -shared -fPIC -o libmklavx512.so benchmarks/mklavx512.c
 *     LD_PRELOAD=$PWD/libmklavx512.so python benchmarks/learning.py ...
 */
#include <malloc.h>

int mkl_serv_intel_cpu(void) { return 1; }
int mkl_serv_intel_cpu_true(void) { return 1; }

__attribute__((constructor)) static void keep_memory(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_TOP_PAD, 192 << 20);
}
