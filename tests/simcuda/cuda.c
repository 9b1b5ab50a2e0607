/* Simulated CUDA runtime, driver and management library: memory, streams, events, graphs, errors.
 *
 * Kernels do nothing. What is real: allocation against a limit, the order of work in streams, time
 * that passes on the device while the host goes on, and the errors that misuse leads to. The host
 * side of torch runs on it unchanged. */

#define _GNU_SOURCE
#include "simcuda.h"

#include <ctype.h>
#include <cuda.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST_DEVICES = 8, MOST_PROCESSES = 256, KERNELS = 1 << 16, HEADER = 1024 };

/* ---- settings, counters ------------------------------------------------------------------- */

#define AS_VALUE(name, value) value,
double simcuda_settings[SETTING_COUNT] = {SETTINGS(AS_VALUE)};
#define AS_NAME(name, ...) #name,
static const char *setting_names[] = {SETTINGS(AS_NAME)};
static const char *counter_names[] = {COUNTERS(AS_NAME)};

/* One process. The table lies in the file SIMCUDA_SHARED, so that processes share the memory of a
 * device and a test can read the counters of those that have ended. */
typedef struct {
  int64_t pid;
  int64_t counters[COUNTER_COUNT];
  int64_t used[MOST_DEVICES];
} Process;

static Process alone[MOST_PROCESSES];
static Process *table = alone;
static Process *ours;
static int visible[MOST_DEVICES], visible_count;
static pthread_mutex_t mutex;

#define LOCKED __attribute__((cleanup(unlock))) int locked_ = (pthread_mutex_lock(&mutex), 0)
static void unlock(int *unused) {
  pthread_mutex_unlock(&mutex);
}

static Process *process(void) {
  while (ours == NULL) {
    for (int i = 0; i < MOST_PROCESSES && ours == NULL; i++) {
      int64_t free_ = 0;
      if (__atomic_compare_exchange_n(&table[i].pid, &free_, getpid(), 0, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST))
        ours = &table[i];
    }
    if (ours == NULL) abort(); /* more processes than a test should start */
  }
  return ours;
}

static void add(int counter, int64_t amount) { process()->counters[counter] += amount; }

void simcuda_count(int counter, int64_t amount) {
  LOCKED;
  add(counter, amount);
}

static double parse(const char *text) {
  char *end;
  double value = strtod(text, &end);
  switch (toupper(*end)) {
    case 'K': return value * (1 << 10);
    case 'M': return value * (1 << 20);
    case 'G': return value * (1 << 30);
  }
  return value;
}

/* Change a setting; -1 if there is none of that name. */
int simcuda_set(const char *name, double value) {
  LOCKED;
  for (int i = 0; i < SETTING_COUNT; i++)
    if (strcmp(name, setting_names[i]) == 0) {
      simcuda_settings[i] = value;
      return 0;
    }
  return -1;
}

/* Read a counter of this process, or a setting; NaN if there is none of that name. */
double simcuda_get(const char *name) {
  LOCKED;
  for (int i = 0; i < COUNTER_COUNT; i++)
    if (strcmp(name, counter_names[i]) == 0) return (double)process()->counters[i];
  for (int i = 0; i < SETTING_COUNT; i++)
    if (strcmp(name, setting_names[i]) == 0) return simcuda_settings[i];
  return 0.0 / 0.0;
}

static void identify(int device, unsigned char *uuid) {
  memset(uuid, 0, 16);
  memcpy(uuid, "simulated", 9);
  uuid[15] = (unsigned char)visible[device];
}

static void uuid_text(int physical, char *text, size_t size) {
  snprintf(text, size, "GPU-73696d75-6c61-7465-6400-0000000000%02x", physical);
}

static void read_visible(void) {
  int count = (int)SETTING(device_count);
  visible_count = 0;
  const char *list = getenv("CUDA_VISIBLE_DEVICES");
  if (list == NULL) {
    for (visible_count = 0; visible_count < count; visible_count++)
      visible[visible_count] = visible_count;
    return;
  }
  char copy[1024], *place = NULL, text[64];
  snprintf(copy, sizeof copy, "%s", list);
  for (char *name = strtok_r(copy, ",", &place); name; name = strtok_r(NULL, ",", &place)) {
    int found = -1;
    for (int i = 0; i < count; i++) {
      uuid_text(i, text, sizeof text);
      if (strncmp(name, "GPU-", 4) == 0 ? strcmp(name, text) == 0 : atoi(name) == i) found = i;
    }
    if (found < 0 || visible_count == MOST_DEVICES) return; /* as the driver: the rest is ignored */
    visible[visible_count++] = found;
  }
}

static void after_fork(void) { ours = NULL; }

static void open_table(void) {
  const char *path = getenv("SIMCUDA_SHARED");
  if (path == NULL) return;
  int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  size_t size = HEADER + sizeof alone;
  if (file < 0 || ftruncate(file, (off_t)size) != 0) abort();
  char *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) abort();
  int length = 0;
  for (int i = 0; i < COUNTER_COUNT; i++)
    length += snprintf(mapped + length, (size_t)(HEADER - length), "%s\n", counter_names[i]);
  table = (Process *)(mapped + HEADER);
}

/* Read the settings: at the start, and in a fork that becomes another program. */
void simcuda_begin(void) {
  for (int i = 0; i < SETTING_COUNT; i++) {
    char name[64] = "SIMCUDA_";
    for (int j = 0; setting_names[i][j]; j++)
      name[8 + j] = (char)toupper(setting_names[i][j]), name[9 + j] = 0;
    const char *text = getenv(name);
    if (text != NULL) simcuda_settings[i] = parse(text);
  }
  read_visible();
  open_table();
}

__attribute__((constructor)) static void start(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&mutex, &attributes);
  simcuda_begin();
  pthread_atfork(NULL, NULL, after_fork);
}

/* ---- errors ------------------------------------------------------------------------------- */

static __thread cudaError_t last_error;
static __thread int current; /* device */
static int lost;

static cudaError_t fail(cudaError_t error) { return last_error = error; }

#define REQUIRE(condition, error)            \
  do {                                       \
    if (!(condition)) return fail(error);    \
  } while (0)
#define REQUIRE_DEVICE                                     \
  do {                                                     \
    if (lost) return fail(cudaErrorDevicesUnavailable);     \
    if (!visible_count) return fail(cudaErrorNoDevice);    \
  } while (0)

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = lost ? cudaErrorDevicesUnavailable : cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

#define ERRORS(X)                                                          \
  X(cudaSuccess, "no error")                                               \
  X(cudaErrorInvalidValue, "invalid argument")                             \
  X(cudaErrorMemoryAllocation, "out of memory")                            \
  X(cudaErrorInitializationError, "initialization error")                  \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")       \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                      \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle")             \
  X(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable") \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")               \
  X(cudaErrorNotReady, "device not ready")                                 \
  X(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled")   \
  X(cudaErrorHostMemoryAlreadyRegistered, "memory is already registered")  \
  X(cudaErrorNotSupported, "operation not supported")                      \
  X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")

const char *cudaGetErrorName(cudaError_t error) {
#define AS_ERROR_NAME(value, text) \
  if (error == value) return #value;
  ERRORS(AS_ERROR_NAME)
  return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error) {
#define AS_ERROR_TEXT(value, text) \
  if (error == value) return text;
  ERRORS(AS_ERROR_TEXT)
  return "unknown error";
}

/* ---- time --------------------------------------------------------------------------------- */

typedef struct Graph Graph;

struct CUstream_st {
  int device;
  int64_t done; /* when all its work will be finished */
  Graph *capture;
  unsigned flags;
  int priority;
  struct CUstream_st *next;
};

struct CUevent_st {
  int device;
  int64_t at; /* -1: not recorded */
  unsigned flags;
  Graph *capture;
};

static struct CUstream_st null_streams[MOST_DEVICES], *streams;
static int64_t skew; /* by which a virtual clock runs ahead */

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec + skew;
}

static void wait_until(int64_t moment) {
  int64_t left = moment - now();
  if (left <= 0) return;
  if (SETTING(virtual_clock)) {
    skew += left;
    return;
  }
  pthread_mutex_unlock(&mutex); /* held once by whoever waits */
  struct timespec t = {left / 1000000000LL, left % 1000000000LL};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
  pthread_mutex_lock(&mutex);
}

static struct CUstream_st *stream_of(cudaStream_t stream) {
  if ((uintptr_t)stream > 2) return stream;
  null_streams[current].device = current; /* 0, and the legacy and per-thread handles 1 and 2 */
  return &null_streams[current];
}

static int64_t device_done(int device) {
  int64_t done = null_streams[device].done;
  for (struct CUstream_st *s = streams; s; s = s->next)
    if (s->device == device && s->done > done) done = s->done;
  return done;
}

struct Graph {
  double ns;
  size_t nodes;
  uint64_t id;
  struct UserObject *objects[64];
  int object_count;
};

cudaError_t simcuda_work(cudaStream_t handle, double ns) {
  LOCKED;
  REQUIRE_DEVICE;
  if (SETTING(lost_after) > 0 && --SETTING(lost_after) == 0) {
    lost = 1;
    return fail(cudaErrorDevicesUnavailable);
  }
  struct CUstream_st *stream = stream_of(handle);
  if (stream->capture != NULL) {
    stream->capture->ns += ns;
    stream->capture->nodes++;
    return cudaSuccess;
  }
  int64_t moment = now();
  stream->done = (stream->done > moment ? stream->done : moment) + (int64_t)ns;
  add(N_busy_ns, (int64_t)ns);
  return cudaSuccess;
}

double simcuda_product_ns(double flops, int half) {
  if (half) simcuda_count(N_half_products, 1);
  return SETTING(launch_ns) + flops / (SETTING(gflops) * (half ? SETTING(half_speedup) : 1));
}

cudaError_t cudaDeviceSynchronize(void) {
  LOCKED;
  REQUIRE_DEVICE;
  add(N_syncs, 1);
  wait_until(device_done(current));
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  LOCKED;
  REQUIRE_DEVICE;
  *stream = calloc(1, sizeof **stream);
  **stream = (struct CUstream_st){
      .device = current, .flags = flags, .priority = priority, .next = streams};
  streams = *stream;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  return cudaStreamCreateWithPriority(stream, 0, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  LOCKED;
  for (struct CUstream_st **s = &streams; *s; s = &(*s)->next)
    if (*s == stream) {
      *s = stream->next;
      free(stream);
      return cudaSuccess;
    }
  return fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = stream_of(stream)->priority;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  LOCKED;
  REQUIRE_DEVICE;
  return stream_of(stream)->done <= now() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  LOCKED;
  REQUIRE_DEVICE;
  REQUIRE(stream_of(stream)->capture == NULL, cudaErrorStreamCaptureUnsupported);
  add(N_syncs, 1);
  wait_until(stream_of(stream)->done);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  LOCKED;
  struct CUstream_st *stream = stream_of(handle);
  if (event->capture != NULL) stream->capture = event->capture;
  if (event->at > stream->done) stream->done = event->at;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  cudaError_t error = simcuda_work(stream, 0);
  if (error == cudaSuccess) function(data);
  return error;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data,
                                  unsigned flags) {
  cudaError_t error = simcuda_work(stream, 0);
  if (error == cudaSuccess) function(stream, cudaSuccess, data);
  return error;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  LOCKED;
  REQUIRE_DEVICE;
  *event = calloc(1, sizeof **event);
  **event = (struct CUevent_st){.device = current, .at = -1, .flags = flags};
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags) {
  LOCKED;
  REQUIRE_DEVICE;
  struct CUstream_st *stream = stream_of(handle);
  REQUIRE(event->device == stream->device, cudaErrorInvalidResourceHandle);
  event->capture = stream->capture;
  int64_t moment = now();
  event->at = stream->done > moment ? stream->done : moment;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  LOCKED;
  REQUIRE_DEVICE;
  return event->at <= now() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LOCKED;
  REQUIRE_DEVICE;
  add(N_syncs, 1);
  wait_until(event->at);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start_, cudaEvent_t end) {
  LOCKED;
  REQUIRE_DEVICE;
  unsigned untimed = (start_->flags | end->flags) & cudaEventDisableTiming;
  REQUIRE(start_->at >= 0 && end->at >= 0 && !untimed, cudaErrorInvalidResourceHandle);
  if (start_->at > now() || end->at > now()) return cudaErrorNotReady;
  *ms = (float)((double)(end->at - start_->at) / 1e6);
  return cudaSuccess;
}

/* ---- graphs ------------------------------------------------------------------------------- */

struct UserObject {
  void *data;
  cudaHostFn_t destroy;
  int references;
};

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  LOCKED;
  static uint64_t ids;
  REQUIRE((uintptr_t)stream > 2, cudaErrorStreamCaptureUnsupported);
  stream->capture = calloc(1, sizeof(Graph));
  stream->capture->id = ++ids;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  LOCKED;
  Graph *captured = stream_of(stream)->capture;
  REQUIRE(captured != NULL, cudaErrorInvalidValue);
  for (struct CUstream_st *s = streams; s; s = s->next)
    if (s->capture == captured) s->capture = NULL;
  *graph = (cudaGraph_t)captured;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  LOCKED;
  *status = stream_of(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
  if (edges) *edges = NULL;
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                        unsigned long long *id, cudaGraph_t *graph,
                                        const cudaGraphNode_t **dependencies, size_t *count) {
#endif
  LOCKED;
  Graph *captured = stream_of(stream)->capture;
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = captured ? captured->id : 0;
  if (graph) *graph = (cudaGraph_t)captured;
  if (dependencies) *dependencies = NULL;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  static __thread enum cudaStreamCaptureMode ours_ = cudaStreamCaptureModeGlobal;
  enum cudaStreamCaptureMode before = ours_;
  ours_ = *mode;
  *mode = before;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  /* only the count is asked for */
  *count = ((Graph *)graph)->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
  Graph *copy = malloc(sizeof *copy);
  *copy = *(Graph *)graph;
  copy->object_count = 0; /* the graph keeps them */
  *exec = (cudaGraphExec_t)copy;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  simcuda_count(N_graph_launches, 1);
  return simcuda_work(stream, SETTING(launch_ns) + ((Graph *)exec)->ns);
}

static void release(struct UserObject *object, int count) {
  object->references -= count;
  if (object->references > 0) return;
  object->destroy(object->data);
  free(object);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Graph *destroyed = (Graph *)graph;
  for (int i = 0; i < destroyed->object_count; i++) release(destroyed->objects[i], 1);
  free(destroyed);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  free(exec);
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *data, cudaHostFn_t destroy,
                                 unsigned references, unsigned flags) {
  struct UserObject *made = malloc(sizeof *made);
  *made = (struct UserObject){data, destroy, (int)references};
  *object = (cudaUserObject_t)made;
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  release((struct UserObject *)object, (int)count);
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t handle, cudaUserObject_t object, unsigned count,
                                      unsigned flags) {
  Graph *graph = (Graph *)handle;
  REQUIRE(graph->object_count < 64, cudaErrorInvalidValue);
  graph->objects[graph->object_count++] = (struct UserObject *)object;
  if (!(flags & cudaGraphUserObjectMove)) ((struct UserObject *)object)->references += (int)count;
  return cudaSuccess;
}

/* ---- devices ------------------------------------------------------------------------------ */

cudaError_t cudaGetDeviceCount(int *count) {
  *count = visible_count;
  return visible_count ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
  REQUIRE_DEVICE;
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  REQUIRE_DEVICE;
  REQUIRE(device >= 0 && device < visible_count, cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

enum { THREADS_PER_SM = 2048, SHARED_KIB = 164, SHARED_OPTIN_KIB = 163, L2_MIB = 40 };

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  REQUIRE_DEVICE;
  REQUIRE(device >= 0 && device < visible_count, cudaErrorInvalidDevice);
  memset(found, 0, sizeof *found);
  snprintf(found->name, sizeof found->name, "Simulated GPU");
  identify(device, (unsigned char *)&found->uuid);
  found->totalGlobalMem = (size_t)SETTING(mem_total);
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerMultiprocessor = SHARED_KIB << 10;
  found->sharedMemPerBlockOptin = SHARED_OPTIN_KIB << 10;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->warpSize = 32;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 0x7fffffff;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->totalConstMem = 65536;
  found->major = (int)SETTING(major);
  found->minor = (int)SETTING(minor);
  found->multiProcessorCount = (int)SETTING(sm_count);
  found->maxThreadsPerMultiProcessor = THREADS_PER_SM;
  found->maxBlocksPerMultiProcessor = 32;
  found->l2CacheSize = L2_MIB << 20;
  found->memoryBusWidth = 5120;
  found->concurrentKernels = found->unifiedAddressing = found->cooperativeLaunch = 1;
  found->managedMemory = found->canMapHostMemory = 1;
  found->pciBusID = 1 + visible[device];
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp found;
  cudaError_t error = cudaGetDeviceProperties(&found, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = found.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = found.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = found.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = found.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = found.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = found.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = found.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)found.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_OPTIN_KIB << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_KIB << 10; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = found.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_PER_SM; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrComputeCapabilityMajor: *value = found.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = found.minor; break;
    case cudaDevAttrL2CacheSize: *value = found.l2CacheSize; break;
    case cudaDevAttrClockRate: *value = 1410000; break;
    case cudaDevAttrMemoryClockRate: *value = 1215000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = found.memoryBusWidth; break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrManagedMemory: *value = 1; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, (size_t)size, "0000:%02x:00.0", 1 + visible[device]);
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = device != peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  return cudaSuccess;
}

/* ---- memory ------------------------------------------------------------------------------- */

typedef struct {
  char *start;
  size_t size; /* as charged; 0 for host memory */
  size_t length;
  int device;
} Allocation;

static Allocation *allocations;
static size_t allocation_count, allocation_room;

static int64_t device_used(int device) {
  int64_t used = 0;
  for (int i = 0; i < MOST_PROCESSES; i++)
    if (table[i].pid && (table[i].pid == getpid() || kill((pid_t)table[i].pid, 0) == 0))
      used += table[i].used[visible[device]];
  return used;
}

static Allocation *find(const void *address) {
  for (size_t i = 0; i < allocation_count; i++) {
    Allocation *a = &allocations[i];
    if ((const char *)address >= a->start && (const char *)address < a->start + a->length) return a;
  }
  return NULL;
}

static void remember(Allocation made) {
  if (allocation_count == allocation_room) {
    allocation_room = allocation_room ? 2 * allocation_room : 256;
    allocations = realloc(allocations, allocation_room * sizeof *allocations);
  }
  allocations[allocation_count++] = made;
}

static void charge(int device, int64_t bytes) {
  Process *us = process();
  us->used[visible[device]] += bytes;
  us->counters[N_used] += bytes;
  if (us->counters[N_used] > us->counters[N_peak]) us->counters[N_peak] = us->counters[N_used];
}

cudaError_t cudaMalloc(void **address, size_t size) {
  LOCKED;
  REQUIRE_DEVICE;
  size_t unit = size > 1 << 20 ? 2 << 20 : 4096; /* as the driver rounds */
  size_t rounded = (size + unit - 1) / unit * unit;
  add(N_mallocs, 1);
  int injected = SETTING(fail_malloc_in) > 0 && --SETTING(fail_malloc_in) == 0;
  if (injected || (double)device_used(current) + (double)rounded > SETTING(mem_total)) {
    add(N_ooms, 1);
    return fail(cudaErrorMemoryAllocation);
  }
  static char *next = (char *)0x200000000000; /* addresses go up, as on a device */
  void *made = mmap(next, rounded ? rounded : unit, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(made != MAP_FAILED, cudaErrorMemoryAllocation);
  next = (char *)made + (rounded + (4 << 20)) / (2 << 20) * (2 << 20);
  charge(current, (int64_t)rounded);
  remember((Allocation){made, rounded, rounded ? rounded : unit, current});
  *address = made;
  return cudaSuccess;
}

cudaError_t cudaFree(void *address) {
  LOCKED;
  if (address == NULL) return cudaSuccess;
  REQUIRE_DEVICE;
  Allocation *found = find(address);
  REQUIRE(found != NULL && found->start == address, cudaErrorInvalidValue);
  wait_until(device_done(found->device));
  found = find(address); /* others may have allocated meanwhile */
  charge(found->device, -(int64_t)found->size);
  munmap(found->start, found->length);
  *found = allocations[--allocation_count];
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **address, size_t size, cudaStream_t stream) {
  return cudaMalloc(address, size);
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
  return cudaFree(address);
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
  LOCKED;
  REQUIRE_DEVICE;
  *total = (size_t)SETTING(mem_total);
  int64_t used = device_used(current);
  *left = used < (int64_t)*total ? *total - (size_t)used : 0;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
  LOCKED;
  REQUIRE(posix_memalign(address, 4096, size ? size : 1) == 0, cudaErrorMemoryAllocation);
  remember((Allocation){*address, 0, size, -1});
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *address) {
  LOCKED;
  Allocation *found = find(address);
  if (found != NULL) *found = allocations[--allocation_count];
  free(address);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void *address, size_t size, unsigned flags) {
  LOCKED;
  remember((Allocation){address, 0, size, -1});
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *address) {
  LOCKED;
  Allocation *found = find(address);
  REQUIRE(found != NULL, cudaErrorInvalidValue);
  *found = allocations[--allocation_count];
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
  LOCKED;
  Allocation *at = find(address);
  memset(found, 0, sizeof *found);
  found->type = at == NULL ? cudaMemoryTypeUnregistered
                           : at->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  found->device = at != NULL && at->device >= 0 ? at->device : 0;
  if (at != NULL && at->device >= 0) found->devicePointer = (void *)address;
  if (at == NULL || at->device < 0) found->hostPointer = (void *)address;
  return cudaSuccess;
}

static int on_device(const void *address) {
  Allocation *found = find(address);
  return found != NULL && found->device >= 0;
}

/* Values are meaningless on the device, so what decides the host's path is read as harmless: a
 * truth value as true, a number as the integer that the setting has (a float is next to zero). */
static void read_back(void *target, const void *source, size_t size) {
  if (size > 16) {
    memmove(target, source, size);
    return;
  }
  memset(target, 0, size);
  if (size == 1) *(char *)target = 1;
  if (size == 4 || size == 8) *(int32_t *)target = (int32_t)SETTING(scalar_reads);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size,
                            enum cudaMemcpyKind kind, cudaStream_t stream) {
  LOCKED;
  int to = on_device(target), from = on_device(source);
  /* the addresses tell */
  double ns = SETTING(launch_ns) + (double)size * 1e3 / SETTING(copy_mbps);
  cudaError_t error = simcuda_work(stream, ns);
  if (error != cudaSuccess) return error;
  if (to && !from) {
    add(N_h2d, 1);
    add(N_h2d_bytes, (int64_t)size);
    memmove(target, source, size);
  } else if (from && !to) {
    add(N_d2h, 1);
    if (find(target) == NULL) wait_until(stream_of(stream)->done); /* not pinned */
    read_back(target, source, size);
  } else if (!to) {
    memmove(target, source, size);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
  cudaError_t error = cudaMemcpyAsync(target, source, size, kind, NULL);
  return error == cudaSuccess ? cudaStreamSynchronize(NULL) : error;
}

cudaError_t cudaMemcpyPeerAsync(void *target, int target_device, const void *source,
                                int source_device, size_t size, cudaStream_t stream) {
  return cudaMemcpyAsync(target, source, size, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source,
                              size_t source_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (size_t row = 0; row < height && error == cudaSuccess; row++)
    error = cudaMemcpyAsync((char *)target + row * target_pitch,
                            (const char *)source + row * source_pitch, width, kind, stream);
  return error;
}

cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *source, size_t size, size_t offset,
                               enum cudaMemcpyKind kind) {
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  *address = (void *)symbol;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
  cudaError_t error =
      simcuda_work(stream, SETTING(launch_ns) + (double)size * 1e3 / (10 * SETTING(copy_mbps)));
  if (error != cudaSuccess) return error;
  if (value != 0 || size < 1 << 20)
    memset(address, value, size);
  else { /* whole pages become zero again without being touched */
    char *first = (char *)(((uintptr_t)address + 4095) & ~(uintptr_t)4095);
    char *last = (char *)(((uintptr_t)address + size) & ~(uintptr_t)4095);
    memset(address, 0, (size_t)(first - (char *)address));
    memset(last, 0, (size_t)((char *)address + size - last));
    madvise(first, (size_t)(last - first), MADV_DONTNEED);
  }
  return cudaSuccess;
}

cudaError_t cudaMemset(void *address, int value, size_t size) {
  return cudaMemsetAsync(address, value, size, NULL);
}

/* ---- kernels ------------------------------------------------------------------------------ */

static struct {
  const void *function;
  const char *name;
  int64_t launches;
} kernels[KERNELS];

static int kernel_place(const void *function) {
  unsigned place = (unsigned)(((uintptr_t)function * 0x9E3779B97F4A7C15ull) >> 48);
  while (kernels[place].function != NULL && kernels[place].function != function)
    place = (place + 1) % KERNELS;
  return (int)place;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}

char __cudaInitModule(void **handle) {
  return 1;
}

void __cudaRegisterFunction(void **handle, const char *function, char *device_function,
                            const char *name, int limit, void *a, void *b, void *c, void *d,
                            int *e) {
  int place = kernel_place(function);
  kernels[place].function = function;
  kernels[place].name = name;
}

void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external,
                       size_t size, int constant, int global) {
}

/* Launches in this process of kernels whose (mangled) name holds `part`. */
int64_t simcuda_kernels(const char *part) {
  LOCKED;
  int64_t launches = 0;
  for (int i = 0; i < KERNELS; i++)
    if (kernels[i].name != NULL && strstr(kernels[i].name, part)) launches += kernels[i].launches;
  return launches;
}

typedef struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} Configuration;

static __thread Configuration configurations[16];
static __thread int configuration_count;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configurations[configuration_count++] = (Configuration){grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  Configuration popped = configurations[--configuration_count];
  *grid = popped.grid, *block = popped.block, *shared = popped.shared;
  *(cudaStream_t *)stream = popped.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
  double threads = (double)block.x * block.y * block.z;
  double blocks = (double)grid.x * grid.y * grid.z;
  REQUIRE(blocks > 0 && threads > 0 && threads <= 1024, cudaErrorInvalidConfiguration);
  {
    LOCKED;
    add(N_launches, 1);
    kernels[kernel_place(function)].launches++;
  }
  double us = blocks * threads / SETTING(threads_per_us);
  return simcuda_work(stream, SETTING(launch_ns) + 1e3 * us);
}

/* The handle of a kernel is the address of its host function. */
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel((const void *)kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block,
                                        void **arguments, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function,
                                void **arguments) {
  return cudaLaunchKernel(function, configuration->gridDim, configuration->blockDim, arguments, 0,
                          configuration->stream);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = (int)(10 * SETTING(major) + SETTING(minor));
  found->maxDynamicSharedSizeBytes = SHARED_OPTIN_KIB << 10;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                   const void *function,
                                                                   int block_size, size_t shared,
                                                                   unsigned flags) {
  int most = THREADS_PER_SM / (block_size > 0 ? block_size : 1);
  if (shared > 0 && most > (int)((SHARED_KIB << 10) / shared))
    most = (int)((SHARED_KIB << 10) / shared);
  *blocks = most < 1 ? 1 : most > 32 ? 32 : most;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                          int block_size, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size,
                                                                shared, 0);
}

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

/* ---- driver ------------------------------------------------------------------------------- */

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  char versioned[128];
  snprintf(versioned, sizeof versioned, "%s_v2", symbol);
  *function = dlsym(RTLD_DEFAULT, versioned);
  if (*function == NULL) *function = dlsym(RTLD_DEFAULT, symbol);
  if (result != NULL)
    *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

CUresult cuInit(unsigned flags) {
  return visible_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = visible_count;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return ordinal < visible_count ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  /* both libraries number these alike */
  return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = cudaGetErrorString((cudaError_t)error);
  return CUDA_SUCCESS;
}

static int contexts; /* any address will do for a context */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = ours != NULL;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)&contexts;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = ours != NULL ? (CUcontext)&contexts : NULL;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  return CUDA_SUCCESS;
}

/* ---- management library ------------------------------------------------------------------- */

enum { NVML_SUCCESS = 0, NVML_INVALID = 2, NVML_NOT_SUPPORTED = 3, NVML_NOT_FOUND = 6,
       NVML_INSUFFICIENT_SIZE = 7 };

typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned instance, compute_instance;
} NvmlProcess;

typedef struct {
  unsigned pid;
  unsigned long long used;
} NvmlProcessV1;

static int physical(void *handle) { return (int)(intptr_t)handle - 1; }

int nvmlInit_v2(void) { return NVML_SUCCESS; }
int nvmlInit(void) { return NVML_SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return flags ? NVML_INVALID : NVML_SUCCESS; }
int nvmlShutdown(void) { return NVML_SUCCESS; }

const char *nvmlErrorString(int error) { return error ? "Not Supported" : "Success"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  snprintf(text, size, "simulated");
  return NVML_SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  *count = (unsigned)SETTING(device_count);
  return NVML_SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  if (index >= (unsigned)SETTING(device_count)) return NVML_INVALID;
  *handle = (void *)(intptr_t)(index + 1);
  return NVML_SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
  uuid_text(physical(handle), text, size);
  return NVML_SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
  char text[64];
  for (int i = 0; i < (int)SETTING(device_count); i++) {
    uuid_text(i, text, sizeof text);
    if (strcmp(uuid, text) == 0) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, handle);
  }
  return NVML_NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **handle) {
  unsigned bus = 0;
  sscanf(place, "%*x:%x", &bus);
  return bus ? nvmlDeviceGetHandleByIndex_v2(bus - 1, handle) : NVML_NOT_FOUND;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
  snprintf(text, size, "Simulated GPU");
  return NVML_SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is) {
  *is = 0;
  return NVML_SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, NvmlProcess *found) {
  unsigned room = *count, running = 0;
  for (int i = 0; i < MOST_PROCESSES; i++) {
    int64_t used = table[i].used[physical(handle)];
    if (!table[i].pid || !used || kill((pid_t)table[i].pid, 0) != 0) continue;
    if (running < room && found != NULL)
      found[running] = (NvmlProcess){(unsigned)table[i].pid, (unsigned long long)used, -1u, -1u};
    running++;
  }
  *count = running;
  return running > room ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

/* the first form, which torch asks when memory runs out */
int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *count, NvmlProcessV1 *found) {
  NvmlProcess all[MOST_PROCESSES];
  unsigned running = MOST_PROCESSES;
  nvmlDeviceGetComputeRunningProcesses_v3(handle, &running, all);
  for (unsigned i = 0; i < running && i < *count && found != NULL; i++)
    found[i] = (NvmlProcessV1){all[i].pid, all[i].used};
  int short_of = running > *count;
  *count = running;
  return short_of ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static int64_t busy(void) {
  int64_t ns = 0;
  for (int i = 0; i < MOST_PROCESSES; i++) ns += table[i].counters[N_busy_ns];
  return ns;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *mj) {
  *mj = (unsigned long long)((double)busy() * 250e-6); /* 250 W while it works */
  return NVML_SUCCESS;
}

int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *mhz) {
  *mhz = 1410;
  return NVML_SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(void *handle, int clock, unsigned *mhz) {
  return nvmlDeviceGetClockInfo(handle, clock, mhz);
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
  *celsius = 50;
  return NVML_SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *mw) {
  *mw = 250000;
  return NVML_SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
  *reasons = 0;
  return NVML_SUCCESS;
}
