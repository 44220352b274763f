/* A driver of one GPU without a GPU, for the process that loads it as libcuda.so.1: device memory is a file of memory, and
 * a handle of it is the path by which others open that. It is gone with its process, but for who has it open, as a real
 * one's is. Stricter than a real one: a context must be current on the calling thread, what is copied must lie within an
 * allocation that is there, and nothing of what is copied to it arrives before cuStreamSynchronize. It counts what is
 * allocated, what is open, and what was freed while another had it open. A second copy of the library is another process.
 *
 * Built by tests/support/fake_cuda.py. Error codes: cuda.h, CUresult. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, ILLEGAL_ADDRESS = 700 };
enum { MOST = 64, CONTEXT = 0xC0DE };
static const size_t CAPACITY = 1u << 30;

typedef uint64_t pointer;
typedef struct { char reserved[64]; } handle;
typedef struct copy { struct copy *next; char *to; size_t size; char data[]; } copy;

static struct { char *base; size_t size; int file, own; } known[MOST];
static copy *under_way, **last = &under_way;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static int initialized, freed_in_use, failure;
static char failing[64];
static _Thread_local int depth;

static int usable(const char *name) {
    if (failure && !strcmp(name, failing)) return failure;
    return !initialized ? NOT_INITIALIZED : depth ? SUCCESS : INVALID_CONTEXT;
}

/* The memory that holds all of these bytes; -1: none. The lock is held. */
static int find(pointer at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (known[i].base && at >= (pointer)known[i].base && at + size <= (pointer)known[i].base + known[i].size)
            return i;
    return -1;
}

/* Map a file; takes it over. The lock is held. */
static int enter(int file, int own, pointer *at) {
    struct stat status;
    int i = 0;
    while (i < MOST && known[i].base) i++;
    char *base = i == MOST || fstat(file, &status) ? MAP_FAILED
               : mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) return close(file), INVALID_VALUE;
    known[i].base = base, known[i].size = status.st_size, known[i].file = file, known[i].own = own;
    *at = (pointer)base;
    return SUCCESS;
}

/* All that is under way arrives. The lock is held. */
static void arrive(void) {
    for (copy *next, *each = under_way; each; each = next) {
        next = each->next;
        memcpy(each->to, each->data, each->size);
        free(each);
    }
    under_way = NULL, last = &under_way;
}

/* Let go of memory that begins there and is this process's own, or is not. */
static int leave(pointer at, int own) {
    pthread_mutex_lock(&lock);
    int i = find(at, 1);
    int wrong = i < 0 || at != (pointer)known[i].base || known[i].own != own;
    if (!wrong) {
        arrive();
        if (own && flock(known[i].file, LOCK_EX | LOCK_NB)) freed_in_use++;
        munmap(known[i].base, known[i].size);
        close(known[i].file);
        known[i].base = NULL;
    }
    pthread_mutex_unlock(&lock);
    return wrong ? INVALID_VALUE : SUCCESS;
}

int cuInit(unsigned flags) { initialized = flags == 0; return flags ? INVALID_VALUE : SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return initialized ? SUCCESS : NOT_INITIALIZED; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal ? INVALID_DEVICE : SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)CONTEXT; return device ? INVALID_DEVICE : SUCCESS; }

int cuCtxPushCurrent_v2(void *context) {
    if (context != (void *)CONTEXT) return INVALID_CONTEXT;
    depth++;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    *context = (void *)CONTEXT;
    return SUCCESS;
}

int cuMemAlloc_v2(pointer *at, size_t size) {
    int wrong = usable("cuMemAlloc_v2");
    size_t taken = 0;
    if (wrong || !size) return wrong ? wrong : INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) taken += known[i].base && known[i].own ? known[i].size : 0;
    int file = size > CAPACITY - taken ? -1 : memfd_create("fake-gpu", MFD_CLOEXEC);
    wrong = file < 0 || ftruncate(file, size) ? OUT_OF_MEMORY : enter(file, 1, at);
    pthread_mutex_unlock(&lock);
    return wrong;
}

int cuMemFree_v2(pointer at) {
    int wrong = usable("cuMemFree_v2");
    return wrong ? wrong : leave(at, 1);
}

int cuIpcGetMemHandle(handle *of, pointer at) {
    int wrong = usable("cuIpcGetMemHandle");
    if (wrong) return wrong;
    pthread_mutex_lock(&lock);
    int i = find(at, 1);
    memset(of, 0, sizeof *of);
    if (i < 0 || !known[i].own) wrong = INVALID_VALUE;
    else snprintf(of->reserved, sizeof of->reserved, "/proc/%d/fd/%d", (int)getpid(), known[i].file);
    pthread_mutex_unlock(&lock);
    return wrong;
}

/* What this process has itself it can't open. */
static int is_own(const char *path) {
    char own[64];
    for (int i = 0; i < MOST; i++)
        if (known[i].base && known[i].own) {
            snprintf(own, sizeof own, "/proc/%d/fd/%d", (int)getpid(), known[i].file);
            if (!strcmp(path, own)) return 1;
        }
    return 0;
}

int cuIpcOpenMemHandle_v2(pointer *at, handle of, unsigned flags) {
    int wrong = usable("cuIpcOpenMemHandle_v2");
    if (wrong) return wrong;
    if (flags != 1 || of.reserved[0] != '/' || !memchr(of.reserved, 0, sizeof of.reserved)) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    if (is_own(of.reserved)) wrong = INVALID_CONTEXT;
    else {
        int file = open(of.reserved, O_RDWR | O_CLOEXEC);
        if (file >= 0) flock(file, LOCK_SH);
        wrong = file < 0 ? INVALID_VALUE : enter(file, 0, at);
    }
    pthread_mutex_unlock(&lock);
    return wrong;
}

int cuIpcCloseMemHandle(pointer at) {
    int wrong = usable("cuIpcCloseMemHandle");
    return wrong ? wrong : leave(at, 0);
}

int cuMemGetAddressRange_v2(pointer *base, size_t *size, pointer at) {
    int wrong = usable("cuMemGetAddressRange_v2");
    if (wrong) return wrong;
    pthread_mutex_lock(&lock);
    int i = find(at, 1);
    if (i >= 0) *base = (pointer)known[i].base, *size = known[i].size;
    pthread_mutex_unlock(&lock);
    return i < 0 ? INVALID_VALUE : SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, pointer from, size_t size) {
    int wrong = usable("cuMemcpyDtoH_v2");
    if (wrong) return wrong;
    pthread_mutex_lock(&lock);
    wrong = find(from, size) < 0 ? INVALID_VALUE : SUCCESS;
    if (!wrong) arrive(), memcpy(to, (void *)from, size);
    pthread_mutex_unlock(&lock);
    return wrong;
}

int cuMemcpyHtoD_v2(pointer to, const void *from, size_t size) {
    int wrong = usable("cuMemcpyHtoD_v2");
    if (wrong) return wrong;
    pthread_mutex_lock(&held);
    pthread_mutex_unlock(&held);
    pthread_mutex_lock(&lock);
    copy *each = find(to, size) < 0 ? NULL : malloc(sizeof *each + size);
    if (each) {
        each->next = NULL, each->to = (char *)to, each->size = size;
        memcpy(each->data, from, size);
        *last = each, last = &each->next;
    }
    pthread_mutex_unlock(&lock);
    return each ? SUCCESS : INVALID_VALUE;
}

int cuStreamSynchronize(void *stream) {
    int wrong = usable("cuStreamSynchronize");
    if (wrong || stream) return wrong ? wrong : INVALID_VALUE;
    pthread_mutex_lock(&lock);
    arrive();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
          : code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : code == NOT_INITIALIZED ? "CUDA_ERROR_NOT_INITIALIZED"
          : code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
          : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
          : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}

/* --- for the test ------------------------------------------------------------------------------------------------- */

/* Calls of that name fail from now on; code 0: none does. */
void fake_fail(const char *name, int code) {
    snprintf(failing, sizeof failing, "%s", name);
    failure = code;
}

/* Copies to the device wait from now on, or no more. Both on one thread. */
void fake_hold(int holds) { holds ? pthread_mutex_lock(&held) : pthread_mutex_unlock(&held); }

/* How many allocations are there (0), how many of others are open (1), how many were freed while another had them (2). */
int fake_count(int what) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++) count += known[i].base && known[i].own == !what;
    pthread_mutex_unlock(&lock);
    return what == 2 ? freed_in_use : count;
}
