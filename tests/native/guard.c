// An allocator for tests: what posix_memalign and aligned_alloc return lies between inaccessible pages, and what was
// freed becomes inaccessible too. Those two allocate the data of every tensor on the CPU, and the kernels' scratch
// memory.
//
// Preloaded by tests/kernels/test_guard_pages.py. With DWSEP_GUARD=end a block ends at the page behind it, up to the
// alignment that was asked for; with DWSEP_GUARD=start it begins right behind the page before it. What is left of its
// own pages is filled with a pattern, which is checked when the block is freed.

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define REGION ((size_t)64 << 30) /* of addresses, each used once; memory is taken only by living blocks */
#define PATTERN 0xa5

struct block {
  size_t size;  /* asked for */
  size_t pages; /* accessible */
  char* first;  /* accessible byte */
};

void __libc_free(void* pointer);

static char* region;
static struct block* blocks; /* by the page in which the block begins */
static size_t used;          /* pages of the region */
static int at_start;

static void fail(const char* message) {
  ssize_t ignored = write(2, message, strlen(message));
  (void)ignored;
  abort();
}

__attribute__((constructor)) static void prepare(void) {
  const char* mode = getenv("DWSEP_GUARD");
  at_start = mode != NULL && strcmp(mode, "start") == 0;
  const size_t table = REGION / PAGE * sizeof(struct block);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (sysconf(_SC_PAGESIZE) != (long)PAGE) fail("guard: pages of 4096 bytes are needed\n");
  blocks = mmap(NULL, table, PROT_READ | PROT_WRITE, flags, -1, 0);
  char* start = mmap(NULL, REGION, PROT_NONE, flags, -1, 0);
  if (blocks == MAP_FAILED || start == MAP_FAILED) fail("guard: no address space\n");
  region = start;
}

static void* allocate(size_t alignment, size_t size) {
  if (alignment > PAGE) fail("guard: alignment above a page\n");
  if (region == NULL) fail("guard: allocation before the constructor\n");
  const size_t pages = (size + PAGE - 1) / PAGE + (size == 0);
  const size_t begin = __atomic_fetch_add(&used, pages + 1, __ATOMIC_RELAXED) + 1;
  if (begin + pages + 1 > REGION / PAGE) fail("guard: out of addresses\n");
  char* first = region + begin * PAGE;
  if (mprotect(first, pages * PAGE, PROT_READ | PROT_WRITE) != 0) return NULL;
  memset(first, PATTERN, pages * PAGE);
  const size_t slack = at_start ? 0 : (pages * PAGE - size) / alignment * alignment;
  char* data = first + slack;
  blocks[(size_t)(data - region) / PAGE] = (struct block){size, pages, first};
  return data;
}

static void check(const char* begin, const char* end, const char* message) {
  for (; begin < end; ++begin) {
    if (*(const unsigned char*)begin != PATTERN) fail(message);
  }
}

int posix_memalign(void** result, size_t alignment, size_t size) {
  *result = allocate(alignment, size);
  return *result == NULL ? ENOMEM : 0;
}

void* aligned_alloc(size_t alignment, size_t size) { return allocate(alignment, size); }

void free(void* pointer) {
  char* data = pointer;
  if (region == NULL || data < region || data >= region + REGION) {
    __libc_free(pointer);
    return;
  }
  struct block* block = &blocks[(size_t)(data - region) / PAGE];
  if (block->first == NULL) fail("guard: freed twice\n");
  char* end = block->first + block->pages * PAGE;
  check(block->first, data, "guard: written before the beginning of a block\n");
  check(data + block->size, end, "guard: written behind the end of a block\n");
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(block->first, block->pages * PAGE, PROT_NONE, flags, -1, 0) == MAP_FAILED) fail("guard: cannot free\n");
  block->first = NULL;
}
