/* Simulated cuBLAS, cuBLASLt and cuDNN: they take the time of their operations and compute nothing.
 *
 * Handles and enumerations are passed as pointers and ints, as in the libraries' binary interface;
 * of cuDNN, the graph interface that torch convolves with is kept as bags of attributes. */

#include <cudnn.h>
#include <stdlib.h>
#include <string.h>

#include "simcuda.h"

enum { BLAS_SUCCESS = 0, BLAS_FAILED = 13 };

static int product(cudaStream_t stream, int counter, double flops, int type) {
  int half = type == CUDA_R_16F || type == CUDA_R_16BF;
  simcuda_count(counter, 1);
  return simcuda_work(stream, simcuda_product_ns(flops, half)) == cudaSuccess ? BLAS_SUCCESS
                                                                             : BLAS_FAILED;
}

/* ---- cuBLAS ------------------------------------------------------------------------------- */

typedef struct {
  cudaStream_t stream;
  int pointer_mode, math_mode;
} Blas;

int cublasCreate_v2(Blas **handle) {
  *handle = calloc(1, sizeof **handle);
  return BLAS_SUCCESS;
}

int cublasDestroy_v2(Blas *handle) {
  free(handle);
  return BLAS_SUCCESS;
}

int cublasSetStream_v2(Blas *handle, cudaStream_t stream) {
  handle->stream = stream;
  return BLAS_SUCCESS;
}

int cublasSetWorkspace_v2(Blas *handle, void *workspace, size_t size) {
  return BLAS_SUCCESS;
}

int cublasSetMathMode(Blas *handle, int mode) {
  handle->math_mode = mode;
  return BLAS_SUCCESS;
}

int cublasGetMathMode(Blas *handle, int *mode) {
  *mode = handle->math_mode;
  return BLAS_SUCCESS;
}

int cublasSetPointerMode_v2(Blas *handle, int mode) {
  handle->pointer_mode = mode;
  return BLAS_SUCCESS;
}

int cublasGetPointerMode_v2(Blas *handle, int *mode) {
  *mode = handle->pointer_mode;
  return BLAS_SUCCESS;
}

static int gemm(Blas *handle, double m, double n, double k, double batch, int type) {
  return product(handle->stream, N_gemms, 2 * m * n * k * batch, type);
}

#define MATRICES int transa, int transb, int m, int n, int k

#define PLAIN_GEMM(name, type, code)                                                               \
  int name(Blas *handle, MATRICES, const type *alpha, const type *a, int lda, const type *b,       \
           int ldb, const type *beta, type *c, int ldc) {                                          \
    return gemm(handle, m, n, k, 1, code);                                                         \
  }
PLAIN_GEMM(cublasSgemm_v2, float, CUDA_R_32F)
PLAIN_GEMM(cublasDgemm_v2, double, CUDA_R_64F)

#define STRIDED_GEMM(name, type, code)                                                             \
  int name(Blas *handle, MATRICES, const type *alpha, const type *a, int lda, long long stridea,   \
           const type *b, int ldb, long long strideb, const type *beta, type *c, int ldc,          \
           long long stridec, int batch) {                                                         \
    return gemm(handle, m, n, k, batch, code);                                                     \
  }
STRIDED_GEMM(cublasSgemmStridedBatched, float, CUDA_R_32F)
STRIDED_GEMM(cublasDgemmStridedBatched, double, CUDA_R_64F)

#define GEMV(name, type, code)                                                                     \
  int name(Blas *handle, int trans, int m, int n, const type *alpha, const type *a, int lda,       \
           const type *x, int incx, const type *beta, type *y, int incy) {                         \
    return gemm(handle, m, n, 1, 1, code);                                                         \
  }
GEMV(cublasSgemv_v2, float, CUDA_R_32F)
GEMV(cublasDgemv_v2, double, CUDA_R_64F)

int cublasGemmEx(Blas *handle, MATRICES, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc,
                 int compute, int algorithm) {
  return gemm(handle, m, n, k, 1, type_a);
}

int cublasSgemmEx(Blas *handle, MATRICES, const float *alpha, const void *a, int type_a, int lda,
                  const void *b, int type_b, int ldb, const float *beta, void *c, int type_c,
                  int ldc) {
  return gemm(handle, m, n, k, 1, type_a);
}

int cublasGemmStridedBatchedEx(Blas *handle, MATRICES, const void *alpha, const void *a, int type_a,
                               int lda, long long stridea, const void *b, int type_b, int ldb,
                               long long strideb, const void *beta, void *c, int type_c, int ldc,
                               long long stridec, int batch, int compute, int algorithm) {
  return gemm(handle, m, n, k, batch, type_a);
}

/* ---- cuBLASLt ----------------------------------------------------------------------------- */

enum { LT_TRANSA = 3, LT_BATCH_COUNT = 5 };

typedef struct {
  int type;
  uint64_t rows, cols;
  int32_t batch;
} Layout;

typedef struct {
  int32_t transa;
} Operation;

typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Heuristic;

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols,
                               int64_t ld) {
  *layout = malloc(sizeof **layout);
  **layout = (Layout){type, rows, cols, 1};
  return BLAS_SUCCESS;
}

int cublasLtMatrixLayoutSetAttribute(Layout *layout, int attribute, const void *value,
                                     size_t size) {
  if (attribute == LT_BATCH_COUNT && size == sizeof layout->batch)
    memcpy(&layout->batch, value, size);
  return BLAS_SUCCESS;
}

int cublasLtMatrixLayoutDestroy(Layout *layout) {
  free(layout);
  return BLAS_SUCCESS;
}

int cublasLtMatmulDescCreate(Operation **operation, int compute, int scale) {
  *operation = calloc(1, sizeof **operation);
  return BLAS_SUCCESS;
}

int cublasLtMatmulDescSetAttribute(Operation *operation, int attribute, const void *value,
                                   size_t size) {
  if (attribute == LT_TRANSA && size == sizeof operation->transa)
    memcpy(&operation->transa, value, size);
  return BLAS_SUCCESS;
}

int cublasLtMatmulDescDestroy(Operation *operation) {
  free(operation);
  return BLAS_SUCCESS;
}

int cublasLtMatmulPreferenceCreate(void **preference) {
  *preference = malloc(1);
  return BLAS_SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value,
                                         size_t size) {
  return BLAS_SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(void *preference) {
  free(preference);
  return BLAS_SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, Operation *operation, Layout *a, Layout *b,
                                   Layout *c, Layout *d, void *preference, int wanted,
                                   Heuristic *found, int *count) {
  *count = wanted > 0;
  if (wanted > 0) memset(found, 0, sizeof *found);
  return BLAS_SUCCESS;
}

int cublasLtMatmul(void *handle, Operation *operation, const void *alpha, const void *a,
                   Layout *layout_a, const void *b, Layout *layout_b, const void *beta,
                   const void *c, Layout *layout_c, void *d, Layout *layout_d,
                   const void *algorithm, void *workspace, size_t size, cudaStream_t stream) {
  double k = (double)(operation->transa ? layout_a->rows : layout_a->cols);
  double outputs = (double)layout_d->rows * (double)layout_d->cols * layout_d->batch;
  return product(stream, N_gemms, 2 * outputs * k, layout_a->type);
}

/* ---- cuDNN -------------------------------------------------------------------------------- */

size_t cudnnGetVersion(void) { return 99900; } /* the newest of the major version: torch accepts */
size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t status) { return status ? "not simulated" : "none"; }

void cudnnGetLastErrorString(char *message, size_t size) {
  if (size > 0) message[0] = 0;
}

cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int *value) {
  *value = type == MAJOR_VERSION ? 9 : type == MINOR_VERSION ? 99 : 0;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  *handle = calloc(1, sizeof(cudaStream_t));
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  *(cudaStream_t *)handle = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  *stream = *(cudaStream_t *)handle;
  return CUDNN_STATUS_SUCCESS;
}

/* What descriptors hold. A bag lives as long as a descriptor or another bag refers to it: torch
 * destroys graph and tensors before it executes a plan that was made of them. */
typedef struct Bag Bag;

typedef struct Attribute {
  int name, type;
  int64_t count;
  void *values; /* of type CUDNN_TYPE_BACKEND_DESCRIPTOR: Bag * */
  struct Attribute *next;
} Attribute;

struct Bag {
  int references;
  Attribute *attributes;
};

typedef struct {
  Bag *bag;
} Descriptor;

static void drop(Bag *bag) {
  if (--bag->references > 0) return;
  for (Attribute *a = bag->attributes, *next; a; a = next) {
    next = a->next;
    for (int64_t i = 0; a->type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < a->count; i++)
      drop(((Bag **)a->values)[i]);
    free(a->values);
    free(a);
  }
  free(bag);
}

static Bag *new_bag(void) {
  Bag *bag = calloc(1, sizeof *bag);
  bag->references = 1;
  return bag;
}

static size_t size_of(int type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR: return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return 8;
    case CUDNN_TYPE_FRACTION: return 16;
    default: return 4; /* float, int32 and the enumerations */
  }
}

static Attribute *look_up(Bag *bag, int name) {
  for (Attribute *a = bag->attributes; a; a = a->next)
    if (a->name == name) return a;
  return NULL;
}

/* Put an attribute into a bag; bags among the values are referred to once more. */
static void put(Bag *bag, int name, int type, int64_t count, const void *values) {
  Attribute *a = look_up(bag, name);
  if (a == NULL) {
    a = calloc(1, sizeof *a);
    a->name = name;
    a->next = bag->attributes;
    bag->attributes = a;
  }
  void *before = a->values;
  int64_t counted = a->count;
  size_t size = (size_t)count * size_of(type);
  a->values = malloc(size ? size : 1);
  memcpy(a->values, values, size);
  a->count = count;
  a->type = type;
  for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < count; i++)
    ((Bag **)a->values)[i]->references++;
  for (int64_t i = 0; before && type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < counted; i++)
    drop(((Bag **)before)[i]);
  free(before);
}

static Bag *bag_in(Bag *bag, int name) {
  Attribute *a = look_up(bag, name);
  return a && a->count ? *(Bag **)a->values : NULL;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *made) {
  Descriptor *descriptor = malloc(sizeof *descriptor);
  descriptor->bag = new_bag();
  *made = descriptor;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t destroyed) {
  drop(((Descriptor *)destroyed)->bag);
  free(destroyed);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values) {
  Bag *bag = ((Descriptor *)descriptor)->bag;
  if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    put(bag, name, type, count, values);
    return CUDNN_STATUS_SUCCESS;
  }
  Bag **bags = malloc((size_t)(count ? count : 1) * sizeof *bags);
  for (int64_t i = 0; i < count; i++) bags[i] = ((Descriptor *const *)values)[i]->bag;
  put(bag, name, type, count, bags);
  free(bags);
  return CUDNN_STATUS_SUCCESS;
}

/* The one engine configuration that the heuristics of a graph find. */
static cudnnStatus_t find_engine(Bag *heuristics) {
  Bag *engine = new_bag(), *configuration = new_bag();
  Bag *graph = bag_in(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
  if (graph == NULL) return CUDNN_STATUS_BAD_PARAM;
  int64_t index = 0;
  put(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
  put(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
  put(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
  put(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &configuration);
  drop(engine);
  drop(configuration);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Bag *bag = ((Descriptor *)descriptor)->bag;
  int64_t workspace = (int64_t)SETTING(cudnn_workspace), engines = 1;
  if (bag_in(bag, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)) return find_engine(bag);
  if (bag_in(bag, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG))
    put(bag, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace);
  if (bag_in(bag, CUDNN_ATTR_OPERATIONGRAPH_OPS))
    put(bag, CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT, CUDNN_TYPE_INT64, 1, &engines);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted,
                                       int64_t *count, void *values) {
  Attribute *a = look_up(((Descriptor *)descriptor)->bag, name);
  int64_t found = a == NULL ? 0 : a->count;
  if (count != NULL) *count = found;
  if (values == NULL || a == NULL) return CUDNN_STATUS_SUCCESS;
  int64_t copied = wanted < found ? wanted : found;
  if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    memcpy(values, a->values, (size_t)copied * size_of(type));
    return CUDNN_STATUS_SUCCESS;
  }
  for (int64_t i = 0; i < copied; i++) { /* the caller's descriptors get to hold what is found */
    Descriptor *target = ((Descriptor **)values)[i];
    Bag *bag = ((Bag **)a->values)[i];
    bag->references++;
    drop(target->bag);
    target->bag = bag;
  }
  return CUDNN_STATUS_SUCCESS;
}

static double elements(Bag *tensor, int64_t *first) {
  Attribute *sizes = look_up(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS);
  double number = 1;
  for (int64_t i = 0; i < sizes->count; i++) number *= (double)((int64_t *)sizes->values)[i];
  *first = sizes->count ? ((int64_t *)sizes->values)[0] : 1;
  return number;
}

static const int convolutions[][2] = {
    /* weights, outputs: of the forward, of the gradients of inputs and of weights */
    {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y},
    {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY},
    {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY},
};

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  Bag *configuration = bag_in(((Descriptor *)plan)->bag, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  Bag *engine = bag_in(configuration, CUDNN_ATTR_ENGINECFG_ENGINE);
  Bag *graph = bag_in(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
  Attribute *operations = look_up(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
  double ns = 0;
  for (int64_t i = 0; i < operations->count; i++) {
    Bag *operation = ((Bag **)operations->values)[i];
    for (int kind = 0; kind < 3; kind++) {
      Bag *weights = bag_in(operation, convolutions[kind][0]);
      Bag *outputs = bag_in(operation, convolutions[kind][1]);
      if (weights == NULL || outputs == NULL) continue;
      int64_t channels, batch;
      double flops = 2 * elements(weights, &channels) * elements(outputs, &batch);
      Attribute *type = look_up(weights, CUDNN_ATTR_TENSOR_DATA_TYPE);
      int code = *(int *)type->values;
      simcuda_count(N_convolutions, 1);
      ns += simcuda_product_ns(flops / (double)channels,
                               code == CUDNN_DATA_HALF || code == CUDNN_DATA_BFLOAT16);
    }
  }
  cudaError_t error = simcuda_work(*(cudaStream_t *)handle, ns);
  return error == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

/* Batch normalisation and bilinear sampling: the time of a launch, no workspace. They stand under
 * names of their own, so that arguments that do not matter need not be declared: callers clean up. */

static int launch(cudaStream_t *handle) {
  simcuda_count(N_launches, 1);
  cudaError_t error = simcuda_work(*handle, SETTING(launch_ns));
  return error == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

#define LAUNCH(name, function)                    \
  int name(cudaStream_t *handle) __asm__(function); \
  int name(cudaStream_t *handle) { return launch(handle); }
LAUNCH(infer, "cudnnBatchNormalizationForwardInference")
LAUNCH(train, "cudnnBatchNormalizationForwardTrainingEx")
LAUNCH(train_back, "cudnnBatchNormalizationBackwardEx")
LAUNCH(sample, "cudnnSpatialTfSamplerForward")
LAUNCH(sample_back, "cudnnSpatialTfSamplerBackward")

#define SIZE(name, function, ...)                     \
  int name(__VA_ARGS__, size_t *size) __asm__(function); \
  int name(__VA_ARGS__, size_t *size) {                  \
    *size = 0;                                           \
    return CUDNN_STATUS_SUCCESS;                         \
  }
SIZE(reserve, "cudnnGetBatchNormalizationTrainingExReserveSpaceSize", void *a, int b, int c,
     void *d, void *e)
SIZE(workspace, "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize", void *a, int b, int c,
     void *d, void *e, void *f, void *g, void *h)
SIZE(workspace_back, "cudnnGetBatchNormalizationBackwardExWorkspaceSize", void *a, int b, int c,
     void *d, void *e, void *f, void *g, void *h, void *i, void *j)
