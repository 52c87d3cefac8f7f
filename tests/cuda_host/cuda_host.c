/* A CUDA driver of host memory: libcuda.so.1 for tests of buffers, streams, events and graphs on a
 * machine with no GPU.
 *
 * Device memory is malloc, copies are memcpy. What is asynchronous in CUDA is deferred here: it is
 * queued on its stream and done when the stream is waited for, so that a result read too early, or
 * an input overwritten too early, is wrong every time and not now and then. What the tests count
 * and what they make fail is told through the functions host_*, at the end of this file.
 *
 * A lost device is modelled after the driver: from then on every call that reaches the device
 * fails, frees included; contexts can still be pushed, popped and released, and the release of the
 * last reference to the primary context frees all that was allocated in it.
 *
 * For one thread at a time, as a runner is. Names and numbers are those of CUDA's public driver
 * API (docs.nvidia.com/cuda/cuda-driver-api); functions that are not here are in absent.c.
 */
#include "cuda_host.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    SYSTEM_DRIVER_MISMATCH = 803,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
};

/* What is allocated: every block, stream, event and graph is in one list, of a kind. */

enum kind { DEVICE, PINNED, STREAM, EVENT, GRAPH, EXEC, KINDS };
static const char *kind_names[KINDS] = {"device", "pinned", "streams", "events", "graphs", "execs"};

struct held {
    enum kind kind;
    size_t bytes;
    void *memory;
    struct held *next;
};
static struct held *all_held;

static struct held *hold(enum kind kind, void *memory, size_t bytes)
{
    struct held *made = calloc(1, sizeof *made);
    made->kind = kind;
    made->memory = memory;
    made->bytes = bytes;
    made->next = all_held;
    all_held = made;
    return made;
}

static int held_as(enum kind kind, const void *memory)
{
    for (struct held *one = all_held; one; one = one->next)
        if (one->kind == kind && one->memory == memory)
            return 1;
    return 0;
}

/* Whether [start, start + bytes) lies within one block. */
static int within(enum kind kind, const void *start, size_t bytes)
{
    for (struct held *one = all_held; one; one = one->next)
        if (one->kind == kind && (const char *)start >= (const char *)one->memory &&
            (const char *)start + bytes <= (const char *)one->memory + one->bytes)
            return 1;
    return 0;
}

static int let_go(enum kind kind, void *memory)
{
    for (struct held **place = &all_held; *place; place = &(*place)->next)
        if ((*place)->kind == kind && (*place)->memory == memory) {
            struct held *gone = *place;
            *place = gone->next;
            free(gone);
            return 1;
        }
    return 0;
}

/* What shall fail. A rule is for one function: calls after `skip` fail, `times` of them. */

struct rule {
    char name[48];
    long skip, times, seen;
    int code, lose;
};
#define RULES 8
static struct rule rules[RULES];
static int rule_count;

static int devices = 1, driver_version = 13000, initialized, lost;
static long abandoned; /* freed with a context that was not lost: nobody else did */

/* The order of calls, as text: a name and a stream's number. */
#define TRACE (1 << 16)
static char trace[TRACE];
static size_t traced;
static int tracing;

static void note(const char *format, ...)
{
    if (!tracing || traced + 100 > TRACE)
        return;
    va_list arguments;
    va_start(arguments, format);
    traced += vsnprintf(trace + traced, 99, format, arguments);
    va_end(arguments);
}

static int enter(const char *name, int reaches_device)
{
    for (int index = 0; index < rule_count; index++) {
        struct rule *rule = &rules[index];
        if (strcmp(rule->name, name))
            continue;
        rule->seen++;
        if (rule->seen > rule->skip && rule->seen <= rule->skip + rule->times) {
            lost = lost || rule->lose;
            note("%s fails\n", name);
            return rule->code;
        }
    }
    if (!initialized && strcmp(name, "cuInit") && strcmp(name, "cuDriverGetVersion"))
        return NOT_INITIALIZED;
    if (reaches_device && lost)
        return DEVICE_UNAVAILABLE;
    return SUCCESS;
}

#define ENTER(name, reaches_device)               \
    do {                                          \
        int failed = enter(name, reaches_device); \
        if (failed)                               \
            return failed;                        \
    } while (0)

/* Contexts: a device has its primary one; a thread has a stack of what is current. */

#define DEVICES 4
#define DEPTH 64
struct context {
    int device, retained;
};
static struct context primary[DEVICES];
static __thread struct context *current[DEPTH];
static __thread int depth;

#define NEED_CONTEXT                \
    do {                            \
        if (!depth)                 \
            return INVALID_CONTEXT; \
    } while (0)

/* Streams: a queue of what is still to be done. */

enum deed { COPY, RECORD, CALL };
struct work {
    enum deed deed;
    void *to;
    const void *from;
    size_t bytes;
    host_function function;
    struct work *next;
};
struct queue {
    struct work *first, **last;
};
struct stream {
    int number, capturing, broken;
    struct queue queue, captured;
};
struct event {
    struct stream *stream;
    int recorded, done;
    double seconds;
};
struct graph {
    struct queue queue;
};
static int stream_numbers;
static int capture_supported = 1;

/* With a rate, events read a clock that copies alone move on: bytes a microsecond. */
static int copy_rate;
static double copied;

static double now(void)
{
    if (copy_rate)
        return copied;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + 1e-9 * at.tv_nsec;
}

static void append(struct queue *queue, struct work work)
{
    struct work *made = malloc(sizeof *made);
    *made = work;
    made->next = NULL;
    if (!queue->first)
        queue->last = &queue->first;
    *queue->last = made;
    queue->last = &made->next;
}

static void clear(struct queue *queue)
{
    while (queue->first) {
        struct work *next = queue->first->next;
        free(queue->first);
        queue->first = next;
    }
}

static void do_work(const struct work *work)
{
    struct event *event;
    switch (work->deed) {
    case COPY:
        memcpy(work->to, work->from, work->bytes);
        if (copy_rate)
            copied += 1e-6 * work->bytes / copy_rate;
        break;
    case RECORD:
        event = work->to;
        event->seconds = now();
        event->done = 1;
        break;
    case CALL:
        work->function(work->to);
        break;
    }
}

static void drain(struct stream *stream)
{
    while (stream->queue.first) {
        struct work *work = stream->queue.first;
        stream->queue.first = work->next;
        do_work(work);
        free(work);
    }
}

static void drain_all(void)
{
    for (struct held *one = all_held; one; one = one->next)
        if (one->kind == STREAM)
            drain(one->memory);
}

/* Queue on a stream, or into the graph that it captures. */
static int enqueue(struct stream *stream, struct work work)
{
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    append(stream->capturing ? &stream->captured : &stream->queue, work);
    return SUCCESS;
}

static int number(struct stream *stream)
{
    return held_as(STREAM, stream) ? stream->number : -1;
}

/* A call that may not be made while a stream captures breaks the capture, as it does in CUDA. */
static int breaks_capture(void)
{
    int broken = 0;
    for (struct held *one = all_held; one; one = one->next)
        if (one->kind == STREAM && ((struct stream *)one->memory)->capturing)
            broken = ((struct stream *)one->memory)->broken = 1;
    return broken;
}

/* Start, version, devices */

int cuInit(unsigned flags)
{
    (void)flags;
    ENTER("cuInit", 0);
    if (!devices)
        return NO_DEVICE;
    initialized = 1;
    return SUCCESS;
}

int cuDriverGetVersion(int *version)
{
    ENTER("cuDriverGetVersion", 0);
    *version = driver_version;
    return SUCCESS;
}

int cuGetErrorString(int code, const char **text)
{
    switch (code) {
    case SUCCESS: *text = "no error"; break;
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NOT_INITIALIZED: *text = "initialization error"; break;
    case DEVICE_UNAVAILABLE: *text = "CUDA-capable device(s) is/are busy or unavailable"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case INVALID_CONTEXT: *text = "invalid device context"; break;
    case INVALID_HANDLE: *text = "invalid resource handle"; break;
    case NOT_READY: *text = "device not ready"; break;
    case NOT_SUPPORTED: *text = "operation not supported"; break;
    case SYSTEM_DRIVER_MISMATCH:
        *text = "system has unsupported display driver / cuda driver combination";
        break;
    case STREAM_CAPTURE_UNSUPPORTED:
        *text = "operation not permitted when stream is capturing";
        break;
    case STREAM_CAPTURE_INVALIDATED:
        *text = "operation failed due to a previous error during capture";
        break;
    default: *text = "unknown error"; break;
    }
    return SUCCESS;
}

int cuDeviceGetCount(int *count)
{
    ENTER("cuDeviceGetCount", 0);
    *count = devices;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal)
{
    ENTER("cuDeviceGet", 0);
    if (ordinal < 0 || ordinal >= devices)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int device)
{
    ENTER("cuDeviceGetName", 0);
    snprintf(name, size, "Host memory %d", device);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    (void)device;
    ENTER("cuDeviceTotalMem", 0);
    *bytes = (size_t)4 << 30;
    return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int device)
{
    (void)device;
    ENTER("cuDeviceComputeCapability", 0);
    *major = 8;
    *minor = 6;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    ENTER("cuDeviceGetAttribute", 0);
    switch (attribute) {
    case 13: *value = 1710000; break; /* clock, kHz */
    case 16: *value = 68; break;      /* multiprocessors */
    case 36: *value = 9501000; break; /* memory clock, kHz */
    case 37: *value = 320; break;     /* memory bus, bits */
    case 75: *value = 8; break;       /* compute capability */
    case 76: *value = 6; break;
    default: *value = 0; break;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(struct context **context, int device)
{
    ENTER("cuDevicePrimaryCtxRetain", 1);
    if (device < 0 || device >= DEVICES)
        return INVALID_DEVICE;
    primary[device].device = device;
    primary[device].retained++;
    *context = &primary[device];
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER("cuDevicePrimaryCtxRelease", 0);
    if (device < 0 || device >= DEVICES || !primary[device].retained)
        return INVALID_CONTEXT;
    if (--primary[device].retained == 0) {
        /* All that is left is freed with the context; with one context, that is all there is. */
        if (!lost)
            drain_all();
        while (all_held) {
            struct held *next = all_held->next;
            abandoned += !lost;
            if (all_held->kind == STREAM) {
                clear(&((struct stream *)all_held->memory)->queue);
                clear(&((struct stream *)all_held->memory)->captured);
            } else if (all_held->kind == GRAPH || all_held->kind == EXEC) {
                clear(&((struct graph *)all_held->memory)->queue);
            }
            free(all_held->memory);
            free(all_held);
            all_held = next;
        }
    }
    return SUCCESS;
}

int cuCtxPushCurrent_v2(struct context *context)
{
    ENTER("cuCtxPushCurrent", 0);
    if (!context || depth == DEPTH)
        return INVALID_CONTEXT;
    current[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(struct context **context)
{
    ENTER("cuCtxPopCurrent", 0);
    NEED_CONTEXT;
    depth--;
    if (context)
        *context = current[depth];
    return SUCCESS;
}

int cuCtxGetCurrent(struct context **context)
{
    ENTER("cuCtxGetCurrent", 0);
    *context = depth ? current[depth - 1] : NULL;
    return SUCCESS;
}

int cuCtxSetCurrent(struct context *context)
{
    ENTER("cuCtxSetCurrent", 0);
    if (depth)
        depth--;
    if (context)
        current[depth++] = context;
    return SUCCESS;
}

int cuCtxGetDevice(int *device)
{
    ENTER("cuCtxGetDevice", 0);
    NEED_CONTEXT;
    *device = current[depth - 1]->device;
    return SUCCESS;
}

int cuCtxSynchronize(void)
{
    ENTER("cuCtxSynchronize", 1);
    NEED_CONTEXT;
    if (breaks_capture())
        return STREAM_CAPTURE_UNSUPPORTED;
    drain_all();
    return SUCCESS;
}

/* Memory. Fresh memory is filled with what is no number, so that nothing reads zeros by luck. */

static int allocate(enum kind kind, void **memory, size_t bytes)
{
    NEED_CONTEXT;
    if (!bytes)
        return INVALID_VALUE;
    /* On the boundary that CUDA's own allocations begin on. */
    *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*memory)
        return OUT_OF_MEMORY;
    memset(*memory, 0xff, bytes);
    hold(kind, *memory, bytes);
    return SUCCESS;
}

static int release(enum kind kind, void *memory)
{
    NEED_CONTEXT;
    drain_all();
    if (!let_go(kind, memory))
        return INVALID_VALUE;
    free(memory);
    return SUCCESS;
}

int cuMemAlloc_v2(void **memory, size_t bytes)
{
    ENTER("cuMemAlloc", 1);
    return allocate(DEVICE, memory, bytes);
}

int cuMemFree_v2(void *memory)
{
    ENTER("cuMemFree", 1);
    return release(DEVICE, memory);
}

int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    ENTER("cuMemHostAlloc", 1);
    return allocate(PINNED, memory, bytes);
}

int cuMemFreeHost(void *memory)
{
    ENTER("cuMemFreeHost", 1);
    return release(PINNED, memory);
}

int cuMemGetInfo_v2(size_t *unused, size_t *total)
{
    ENTER("cuMemGetInfo", 1);
    NEED_CONTEXT;
    *total = (size_t)4 << 30;
    *unused = *total;
    for (struct held *one = all_held; one; one = one->next)
        if (one->kind == DEVICE)
            *unused -= one->bytes;
    return SUCCESS;
}

/* A copy that leaves its block is refused here, where a GPU would fault later. From memory that is
 * not page-locked, CUDA copies at once. */
static int copy(const char *name, void *to, const void *from, size_t bytes, int upload,
                struct stream *stream)
{
    void *device = upload ? to : (void *)from;
    const void *host = upload ? from : to;
    NEED_CONTEXT;
    if (!within(DEVICE, device, bytes))
        return INVALID_VALUE;
    note("%s %d\n", name, number(stream));
    if (!within(PINNED, host, bytes)) {
        if (breaks_capture())
            return STREAM_CAPTURE_UNSUPPORTED;
        if (stream)
            drain(stream);
        memcpy(to, from, bytes);
        return SUCCESS;
    }
    return enqueue(stream, (struct work){.deed = COPY, .to = to, .from = from, .bytes = bytes});
}

int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream)
{
    ENTER("cuMemcpyHtoDAsync", 1);
    return copy("cuMemcpyHtoDAsync", to, from, bytes, 1, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream)
{
    ENTER("cuMemcpyDtoHAsync", 1);
    return copy("cuMemcpyDtoHAsync", to, from, bytes, 0, stream);
}

int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, struct stream *stream)
{
    ENTER("cuMemcpyDtoDAsync", 1);
    NEED_CONTEXT;
    if (!within(DEVICE, to, bytes) || !within(DEVICE, from, bytes))
        return INVALID_VALUE;
    note("cuMemcpyDtoDAsync %d\n", number(stream));
    return enqueue(stream, (struct work){.deed = COPY, .to = to, .from = from, .bytes = bytes});
}

int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes)
{
    ENTER("cuMemcpyHtoD", 1);
    NEED_CONTEXT;
    drain_all();
    if (!within(DEVICE, to, bytes))
        return INVALID_VALUE;
    memcpy(to, from, bytes);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes)
{
    ENTER("cuMemcpyDtoH", 1);
    NEED_CONTEXT;
    drain_all();
    if (!within(DEVICE, from, bytes))
        return INVALID_VALUE;
    memcpy(to, from, bytes);
    return SUCCESS;
}

/* Streams, events, host functions */

int cuStreamCreate(struct stream **stream, unsigned flags)
{
    ENTER("cuStreamCreate", 1);
    NEED_CONTEXT;
    note("cuStreamCreate %u\n", flags);
    *stream = calloc(1, sizeof **stream);
    (*stream)->number = ++stream_numbers;
    hold(STREAM, *stream, 0);
    return SUCCESS;
}

int cuStreamDestroy_v2(struct stream *stream)
{
    ENTER("cuStreamDestroy", 1);
    NEED_CONTEXT;
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    drain(stream);
    clear(&stream->captured);
    let_go(STREAM, stream);
    free(stream);
    return SUCCESS;
}

int cuStreamSynchronize(struct stream *stream)
{
    ENTER("cuStreamSynchronize", 1);
    NEED_CONTEXT;
    if (!stream) {
        drain_all();
        return SUCCESS;
    }
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    if (breaks_capture())
        return STREAM_CAPTURE_UNSUPPORTED;
    note("cuStreamSynchronize %d\n", number(stream));
    drain(stream);
    return SUCCESS;
}

int cuStreamQuery(struct stream *stream)
{
    ENTER("cuStreamQuery", 1);
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    return stream->queue.first ? NOT_READY : SUCCESS;
}

int cuStreamIsCapturing(struct stream *stream, int *status)
{
    ENTER("cuStreamIsCapturing", 1);
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    *status = stream->capturing;
    return SUCCESS;
}

int cuEventCreate(struct event **event, unsigned flags)
{
    (void)flags;
    ENTER("cuEventCreate", 1);
    NEED_CONTEXT;
    *event = calloc(1, sizeof **event);
    hold(EVENT, *event, 0);
    return SUCCESS;
}

int cuEventDestroy_v2(struct event *event)
{
    ENTER("cuEventDestroy", 1);
    NEED_CONTEXT;
    drain_all();
    if (!let_go(EVENT, event))
        return INVALID_HANDLE;
    free(event);
    return SUCCESS;
}

int cuEventRecord(struct event *event, struct stream *stream)
{
    ENTER("cuEventRecord", 1);
    NEED_CONTEXT;
    if (!held_as(EVENT, event))
        return INVALID_HANDLE;
    note("cuEventRecord %d\n", number(stream));
    event->stream = stream;
    event->recorded = 1;
    event->done = 0;
    return enqueue(stream, (struct work){.deed = RECORD, .to = event});
}

int cuEventSynchronize(struct event *event)
{
    ENTER("cuEventSynchronize", 1);
    NEED_CONTEXT;
    if (!held_as(EVENT, event))
        return INVALID_HANDLE;
    if (event->recorded)
        drain(event->stream);
    return SUCCESS;
}

int cuEventQuery(struct event *event)
{
    ENTER("cuEventQuery", 1);
    if (!held_as(EVENT, event))
        return INVALID_HANDLE;
    return event->recorded && !event->done ? NOT_READY : SUCCESS;
}

int cuEventElapsedTime(float *milliseconds, struct event *start, struct event *end)
{
    ENTER("cuEventElapsedTime", 1);
    if (!held_as(EVENT, start) || !held_as(EVENT, end) || !start->recorded || !end->recorded)
        return INVALID_HANDLE;
    if (!start->done || !end->done)
        return NOT_READY;
    *milliseconds = (float)(1e3 * (end->seconds - start->seconds));
    return SUCCESS;
}

int cuEventElapsedTime_v2(float *milliseconds, struct event *start, struct event *end)
{
    return cuEventElapsedTime(milliseconds, start, end);
}

int cuLaunchHostFunc(struct stream *stream, host_function function, void *data)
{
    ENTER("cuLaunchHostFunc", 1);
    NEED_CONTEXT;
    note("cuLaunchHostFunc %d\n", number(stream));
    return enqueue(stream, (struct work){.deed = CALL, .to = data, .function = function});
}

/* Graphs: what a stream has captured, to be queued again with one call */

int cuStreamBeginCapture_v2(struct stream *stream, int mode)
{
    (void)mode;
    ENTER("cuStreamBeginCapture", 1);
    NEED_CONTEXT;
    if (!capture_supported)
        return NOT_SUPPORTED;
    if (!held_as(STREAM, stream))
        return INVALID_HANDLE;
    stream->capturing = 1;
    stream->broken = 0;
    return SUCCESS;
}

int cuStreamEndCapture(struct stream *stream, struct graph **graph)
{
    int failed = enter("cuStreamEndCapture", 1);
    if (!held_as(STREAM, stream) || !stream->capturing)
        return INVALID_HANDLE;
    stream->capturing = 0;
    if (failed || stream->broken) {
        clear(&stream->captured);
        return failed ? failed : STREAM_CAPTURE_INVALIDATED;
    }
    *graph = calloc(1, sizeof **graph);
    hold(GRAPH, *graph, 0);
    for (struct work *work = stream->captured.first; work; work = work->next)
        append(&(*graph)->queue, *work);
    clear(&stream->captured);
    return SUCCESS;
}

static int instantiate(struct graph **made, struct graph *graph)
{
    if (!held_as(GRAPH, graph))
        return INVALID_HANDLE;
    *made = calloc(1, sizeof **made);
    hold(EXEC, *made, 0);
    for (struct work *work = graph->queue.first; work; work = work->next)
        append(&(*made)->queue, *work);
    return SUCCESS;
}

int cuGraphInstantiate_v2(struct graph **made, struct graph *graph, void **node, char *log,
                          size_t size)
{
    (void)node, (void)log, (void)size;
    ENTER("cuGraphInstantiate", 1);
    return instantiate(made, graph);
}

int cuGraphInstantiateWithFlags(struct graph **made, struct graph *graph, unsigned long long flags)
{
    (void)flags;
    ENTER("cuGraphInstantiate", 1);
    return instantiate(made, graph);
}

int cuGraphLaunch(struct graph *made, struct stream *stream)
{
    ENTER("cuGraphLaunch", 1);
    NEED_CONTEXT;
    if (!held_as(EXEC, made))
        return INVALID_HANDLE;
    note("cuGraphLaunch %d\n", number(stream));
    for (struct work *work = made->queue.first; work; work = work->next) {
        int failed = enqueue(stream, *work);
        if (failed)
            return failed;
    }
    return SUCCESS;
}

/* The driver reads through the handle: one that is no more crashes, or worse. */
static int destroy_graph(const char *name, enum kind kind, struct graph *graph)
{
    if (!held_as(kind, graph)) {
        fprintf(stderr, "a graph is destroyed twice, or after its context\n");
        abort();
    }
    ENTER(name, 1);
    let_go(kind, graph);
    clear(&graph->queue);
    free(graph);
    return SUCCESS;
}

int cuGraphDestroy(struct graph *graph)
{
    return destroy_graph("cuGraphDestroy", GRAPH, graph);
}

int cuGraphExecDestroy(struct graph *made)
{
    return destroy_graph("cuGraphExecDestroy", EXEC, made);
}

/* What tests ask and set */

void host_set(const char *name, int value)
{
    if (!strcmp(name, "devices"))
        devices = value;
    else if (!strcmp(name, "driver"))
        driver_version = value;
    else if (!strcmp(name, "capture"))
        capture_supported = value;
    else if (!strcmp(name, "rate"))
        copy_rate = value;
    else if (!strcmp(name, "trace")) {
        tracing = value;
        traced = 0;
        trace[0] = 0;
    }
}

void host_fail(const char *name, long skip, long times, int code, int lose)
{
    if (rule_count == RULES)
        abort();
    struct rule *rule = &rules[rule_count++];
    memset(rule, 0, sizeof *rule);
    snprintf(rule->name, sizeof rule->name, "%s", name);
    rule->skip = skip;
    rule->times = times;
    rule->code = code;
    rule->lose = lose;
}

void host_heal(void)
{
    rule_count = 0;
    lost = 0;
    abandoned = 0;
    devices = 1;
    driver_version = 13000;
    capture_supported = 1;
    copy_rate = 0;
    copied = 0;
    host_set("trace", 0);
}

long host_live(const char *name)
{
    long count = 0;
    if (!strcmp(name, "contexts")) {
        for (int device = 0; device < DEVICES; device++)
            count += primary[device].retained;
        return count;
    }
    if (!strcmp(name, "current"))
        return depth;
    if (!strcmp(name, "abandoned"))
        return abandoned;
    for (struct held *one = all_held; one; one = one->next)
        count += !strcmp(kind_names[one->kind], name);
    return count;
}

const char *host_trace(void)
{
    return trace;
}

__attribute__((constructor)) static void read_environment(void)
{
    if (getenv("CUDA_HOST_DEVICES"))
        devices = atoi(getenv("CUDA_HOST_DEVICES"));
    if (getenv("CUDA_HOST_DRIVER"))
        driver_version = atoi(getenv("CUDA_HOST_DRIVER"));
}
