/* A driver for tests of the CUDA back end where there is no GPU: device memory is host memory, one kernel
 * (layer_norm_bwd_affine_final) is written out by hand, a capture is a list. Its results are the real driver's: 0 success,
 * 1 invalid value, 2 out of memory, 201 no current context, 222 unsupported PTX version, 400 invalid handle, 500 not
 * found, 900 not while capturing, 901 capture invalidated. `fake_live` counts what was made and not given back. */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef struct { float *dgamma, *dbeta; const float *partial; unsigned parts, cols, accumulate; } Sum;
typedef struct { int kind; char *to; const char *from; size_t bytes; Sum sum; } Op;
typedef struct { Op ops[64]; int count; } Graph;
typedef struct { char *text; } Module;
typedef struct { int shared; } Function;

static __thread void *current;
static int live, capturing, invalidated;
static Graph recording;
static Function the_function = {48 << 10};

#define NEEDS_CONTEXT if (!current) return 201
#define NOT_IN_CAPTURE NEEDS_CONTEXT; if (capturing) { invalidated = 1; return 900; }

int fake_live(void) { return live; }

static void execute(const Op *op) {
    if (op->kind == 0) memmove(op->to, op->from, op->bytes);
    if (op->kind == 1) memset(op->to, 0, op->bytes);
    if (op->kind == 2) {
        const Sum *s = &op->sum;
        for (unsigned c = 0; c < s->cols; c++) {
            float gamma = 0, beta = 0;
            for (unsigned p = 0; p < s->parts; p++) {
                gamma += s->partial[p * s->cols + c];
                beta += s->partial[(s->parts + p) * s->cols + c];
            }
            s->dgamma[c] = (s->accumulate ? s->dgamma[c] : 0) + gamma;
            s->dbeta[c] = (s->accumulate ? s->dbeta[c] : 0) + beta;
        }
    }
}

static int submit(Op op) {
    NEEDS_CONTEXT;
    if (!capturing) execute(&op);
    else if (recording.count == 64) return 1;
    else recording.ops[recording.count++] = op;
    return 0;
}

int cuInit(unsigned flags) { return flags != 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal != 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake GPU", length); return device != 7; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 8 : which == 76 ? 0 : which == 16 ? 4 : which == 97 ? 99 << 10 : -1;
    return device != 7 || *value < 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { live++; *context = &live; return device != 7; }
int cuDevicePrimaryCtxRelease_v2(int device) { live--; return device != 7; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuGetErrorName(int code, const char **text) { *text = code == 1 ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = "as the fake driver says"; return code == 0; }

int cuStreamCreate(void **stream, unsigned flags) { NEEDS_CONTEXT; live++; *stream = &capturing; return flags != 1; }
int cuStreamDestroy_v2(void *stream) { live--; return stream != &capturing; }
int cuStreamSynchronize(void *stream) { NOT_IN_CAPTURE; return stream == &capturing ? 0 : 400; }

int cuMemAlloc_v2(u64 *address, size_t bytes) {
    NOT_IN_CAPTURE;
    if (bytes == 0) return 1;
    if (bytes > (size_t)1 << 30) return 2;
    live++;
    *address = (u64)aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset((void *)*address, 0xff, bytes);
    return 0;
}
int cuMemFree_v2(u64 address) { NOT_IN_CAPTURE; live--; free((void *)address); return 0; }
int cuMemAllocHost_v2(void **buffer, size_t bytes) { NOT_IN_CAPTURE; live++; *buffer = malloc(bytes); return 0; }
int cuMemFreeHost(void *buffer) { NOT_IN_CAPTURE; live--; free(buffer); return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { NEEDS_CONTEXT; *available = 1 << 29; *total = 1 << 30; return 0; }
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream) {
    NOT_IN_CAPTURE;
    memcpy((void *)to, from, bytes);
    return stream != &capturing;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream) {
    NOT_IN_CAPTURE;
    memcpy(to, (void *)from, bytes);
    return stream != &capturing;
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *stream) {
    Op op = {0, (char *)to, (const char *)from, bytes};
    return stream == &capturing ? submit(op) : 400;
}
int cuMemsetD8Async(u64 to, unsigned char value, size_t count, void *stream) {
    Op op = {1, (char *)to, 0, count};
    return stream == &capturing && value == 0 ? submit(op) : 400;
}
int cuMemsetD32Async(u64 to, unsigned value, size_t count, void *stream) {
    Op op = {1, (char *)to, 0, 4 * count};
    return stream == &capturing && value == 0 && to % 4 == 0 ? submit(op) : 400;
}

int cuModuleLoadDataEx(void **module, const char *text, unsigned count, int *options, void **values) {
    NOT_IN_CAPTURE;
    if (count != 2 || options[0] != 5 || options[1] != 6 || (size_t)values[1] < 100) return 1;
    if (strstr(text, ".version 9")) return 222;
    if (!strstr(text, ".version 8.4")) { strcpy(values[0], "ptxas fatal: no PTX"); return 218; }
    Module *made = malloc(sizeof *made);
    made->text = strdup(text);
    live++;
    *module = made;
    return 0;
}
int cuModuleUnload(void *module) { live--; free(((Module *)module)->text); free(module); return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    char entry[256] = ".entry ";
    strncat(strncat(entry, name, 200), "(", 2);
    if (!strstr(((Module *)module)->text, entry)) return 500;
    *function = strcmp(name, "layer_norm_bwd_affine_final") == 0 ? &the_function : calloc(1, sizeof(Function));
    return 0;
}
int cuFuncLoad(void *function) { return capturing ? 900 : function == 0; }
int cuFuncSetAttribute(Function *function, int which, int value) {
    if (which != 8 || value > 99 << 10) return 1;
    function->shared = value;
    return 0;
}
int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    if (function != &the_function || stream != &capturing || extra) return 400;
    if (!(gx && gy && gz && bx && by && bz) || bx * by * bz > 1024 || (int)shared > function->shared) return 1;
    Op op = {2};
    op.sum.dgamma = *(float **)arguments[0];
    op.sum.dbeta = *(float **)arguments[1];
    op.sum.partial = *(const float **)arguments[2];
    op.sum.parts = *(unsigned *)arguments[3];
    op.sum.cols = *(unsigned *)arguments[4];
    op.sum.accumulate = *(unsigned *)arguments[5];
    return submit(op);
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
    NOT_IN_CAPTURE;
    if (stream != &capturing || mode != 1) return 1;
    capturing = 1;
    invalidated = 0;
    recording.count = 0;
    return 0;
}
int cuStreamEndCapture(void *stream, void **graph) {
    NEEDS_CONTEXT;
    if (!capturing || stream != &capturing) return 1;
    capturing = 0;
    *graph = 0;
    if (invalidated) return 901;
    Graph *made = malloc(sizeof *made);
    *made = recording;
    live++;
    *graph = made;
    return 0;
}
int cuGraphInstantiateWithFlags(void **executable, const Graph *graph, u64 flags) {
    Graph *made = malloc(sizeof *made);
    *made = *graph;
    live++;
    *executable = made;
    return flags != 0;
}
int cuGraphDestroy(void *graph) { live--; free(graph); return 0; }
int cuGraphExecDestroy(void *graph) { live--; free(graph); return 0; }
int cuGraphUpload(void *graph, void *stream) { return !graph || stream != &capturing; }
int cuGraphLaunch(const Graph *graph, void *stream) {
    NOT_IN_CAPTURE;
    for (int i = 0; i < graph->count; i++) execute(&graph->ops[i]);
    return stream != &capturing;
}
