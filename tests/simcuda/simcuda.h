/* What the two halves of the simulated CUDA runtime share: settings, counters, time and work. */

#ifndef SIMCUDA_H
#define SIMCUDA_H

#include <cuda_runtime_api.h>
#include <stdint.h>

/* Settings: environment variables SIMCUDA_<NAME> when the library is loaded, or simcuda_set. */
#define SETTINGS(X)                                                                                \
  X(device_count, 1)                                                                               \
  X(mem_total, 24.0 * (1 << 30))                                                                   \
  X(major, 8)                                                                                      \
  X(minor, 0)                                                                                      \
  X(sm_count, 108)                                                                                 \
  X(launch_ns, 2000)         /* of device time for each piece of work, at least */                 \
  X(threads_per_us, 200000)  /* of a kernel that is no matrix product */                           \
  X(gflops, 10000)           /* of matrix products and convolutions, in float32 */                 \
  X(half_speedup, 2)         /* in 16 bits */                                                      \
  X(copy_mbps, 12000)        /* megabytes per second, between host and device */                   \
  X(virtual_clock, 0)        /* waiting takes no time; device time passes all the same */          \
  X(fail_malloc_in, 0)       /* the allocation of this number from now on fails */                 \
  X(lost_after, 0)           /* pieces of work from now on after which the device is gone */       \
  X(cudnn_workspace, 0)      /* bytes that each convolution asks for */                            \
  X(scalar_reads, 0)         /* what the host reads of a count on the device */                    \
  X(trace, 0)                /* names each call that is not simulated */

/* Counters of this process. `used` and `peak` are bytes of all devices together. */
#define COUNTERS(X)                                                                                \
  X(launches) X(gemms) X(convolutions) X(half_products) X(graph_launches)                          \
  X(h2d) X(d2h) X(h2d_bytes) X(syncs) X(mallocs) X(ooms)                         \
  X(busy_ns) X(used) X(peak)

#define AS_SETTING(name, value) SET_##name,
enum { SETTINGS(AS_SETTING) SETTING_COUNT };
#define AS_COUNTER(name) N_##name,
enum { COUNTERS(AS_COUNTER) COUNTER_COUNT };

extern double simcuda_settings[SETTING_COUNT];
#define SETTING(name) (simcuda_settings[SET_##name])

/* Add to a counter of this process. */
void simcuda_count(int counter, int64_t amount);

/* Put work of so many nanoseconds into a stream of the current device. */
cudaError_t simcuda_work(cudaStream_t stream, double ns);

/* Nanoseconds of a matrix product or convolution of so many operations (two per multiply-add). */
double simcuda_product_ns(double flops, int half);

#endif
