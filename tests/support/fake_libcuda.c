/* A driver of one GPU without a GPU, for the process that loads it as libcuda.so.1: device memory is a file of /dev/shm,
 * and a handle of it is the file's name. As strict as the real one: a context must be current on the calling thread, and
 * what is copied must lie within an allocation that is open.
 *
 * Built by tests/support/fake_cuda.py. Error codes: cuda.h, CUresult. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
enum { MOST = 64, CONTEXT = 0xC0DE };

typedef uint64_t pointer;
typedef struct { char reserved[64]; } handle;

static struct { char *base; size_t size; } opened[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized;
static _Thread_local int depth;

static int usable(void) { return !initialized ? NOT_INITIALIZED : depth ? SUCCESS : INVALID_CONTEXT; }

/* The allocation that holds all of these bytes; -1: none. */
static int find(pointer at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (opened[i].base && at >= (pointer)opened[i].base && at + size <= (pointer)opened[i].base + opened[i].size)
            return i;
    return -1;
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

int cuIpcOpenMemHandle_v2(pointer *at, handle of, unsigned flags) {
    int wrong = usable(), i = 0;
    struct stat status;
    if (wrong) return wrong;
    if (flags != 1 || of.reserved[0] != '/' || !memchr(of.reserved, 0, sizeof of.reserved)) return INVALID_VALUE;
    int file = shm_open(of.reserved, O_RDWR, 0);
    if (file < 0) return INVALID_VALUE;
    fstat(file, &status);
    char *base = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (base == MAP_FAILED) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    while (i < MOST && opened[i].base) i++;
    if (i < MOST) opened[i].base = base, opened[i].size = status.st_size;
    pthread_mutex_unlock(&lock);
    *at = (pointer)base;
    return i < MOST ? SUCCESS : INVALID_VALUE;
}

int cuIpcCloseMemHandle(pointer at) {
    int wrong = usable();
    if (wrong) return wrong;
    pthread_mutex_lock(&lock);
    int i = find(at, 1);
    if (i >= 0) {
        munmap(opened[i].base, opened[i].size);
        opened[i].base = NULL;
    }
    pthread_mutex_unlock(&lock);
    return i < 0 ? INVALID_VALUE : SUCCESS;
}

int cuMemGetAddressRange_v2(pointer *base, size_t *size, pointer at) {
    int wrong = usable(), i = find(at, 1);
    if (wrong || i < 0) return wrong ? wrong : INVALID_VALUE;
    *base = (pointer)opened[i].base;
    *size = opened[i].size;
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, pointer from, size_t size) {
    int wrong = usable();
    if (wrong || find(from, size) < 0) return wrong ? wrong : INVALID_VALUE;
    memcpy(to, (void *)from, size);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(pointer to, const void *from, size_t size) {
    int wrong = usable();
    if (wrong || find(to, size) < 0) return wrong ? wrong : INVALID_VALUE;
    memcpy((void *)to, from, size);
    return SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
          : code == NOT_INITIALIZED ? "CUDA_ERROR_NOT_INITIALIZED"
          : code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
          : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}
