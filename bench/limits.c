// What this machine can do at most, measured in C: the figures that the targets are ratios of.
//
//   limits DIRECTORY [MIB]     DIRECTORY on a tmpfs mounted huge=never; MIB: size of the large blocks, 1024 unless said
//   limits prime MIB           touches that much memory and frees it
//
// A virtual machine gives memory that is free for some seconds back to its host, and the next touch of it waits for the
// host (20x slower here). Priming takes that wait out of what follows: everybody's fresh memory is the machine's own.
//
// Prints one JSON object: GB/s (1e9) for keys that end in _gbps, microseconds (median) for keys that end in _us.
// It leaves DIRECTORY/huge, a file of 2 MiB pages a quarter of MIB in size, for the floor of a fresh process.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define HUGE (2UL << 20)
#define ROUNDS 5
#define SMALL 2000

static size_t large;
static const char *directory;

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void check(int good, const char *what) {
  if (!good) {
    fprintf(stderr, "limits: %s: %s\n", what, strerror(errno));
    exit(1);
  }
}

static int ascending(const void *left, const void *right) {
  double a = *(const double *)left, b = *(const double *)right;
  return (a > b) - (a < b);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, ascending);
  return values[count / 2];
}

static void report_gbps(const char *key, double *seconds) {
  printf("\"%s\": %.3f, ", key, (double)large / median(seconds, ROUNDS) / 1e9);
  fflush(stdout);
}

static int unnamed(size_t size) {
  int file = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
  check(file >= 0, "O_TMPFILE");
  check(ftruncate(file, (off_t)size) == 0, "ftruncate");
  return file;
}

static char *map(int file, size_t size, int protection) {
  char *room = mmap(NULL, size + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(room != MAP_FAILED, "mmap");
  char *aligned = (char *)(((uintptr_t)room + HUGE - 1) & ~(HUGE - 1));
  char *at = mmap(aligned, size, protection, MAP_SHARED | MAP_FIXED, file, 0);
  check(at != MAP_FAILED, "mmap file");
  return at;
}

// One page of each 2 MiB, then the kernel makes them whole: explicit huge pages on a huge=never mount.
static int collapse(int file, size_t size) {
  for (size_t at = 0; at < size; at += HUGE) {
    if (fallocate(file, FALLOC_FL_KEEP_SIZE, (off_t)at, 4096) != 0) return -1;
  }
  char *bytes = map(file, size, PROT_READ);
  int result = madvise(bytes, size, MADV_COLLAPSE);
  munmap(bytes, size);
  return result;
}

static void write_all(int file, const char *from, size_t size) {
  for (size_t at = 0; at < size;) {
    ssize_t written = pwrite(file, from + at, size - at, (off_t)at);
    check(written > 0, "write");
    at += (size_t)written;
  }
}

// Touches memory and frees it at once, so that what is allocated next is memory that the host has already given.
static void prime(size_t size) {
  char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(bytes != MAP_FAILED, "mmap");
  madvise(bytes, size, MADV_HUGEPAGE);
  for (size_t at = 0; at < size; at += 4096) bytes[at] = 1;
  munmap(bytes, size);
}

static uint64_t sum(const char *bytes, size_t size) {
  const uint64_t *words = (const uint64_t *)(const void *)bytes;
  uint64_t total[8] = {0};
  for (size_t i = 0; i < size / 8; i += 8)
    for (int lane = 0; lane < 8; lane++) total[lane] += words[i + (size_t)lane];
  return total[0] + total[1] + total[2] + total[3] + total[4] + total[5] + total[6] + total[7];
}

static void memory(char *source) {
  double copy[ROUNDS], read[ROUNDS];
  char *target = mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(target != MAP_FAILED, "mmap anonymous");
  madvise(target, large, MADV_HUGEPAGE);
  memset(target, 1, large);
  volatile uint64_t sink = 0;
  for (int round = 0; round < ROUNDS; round++) {
    double start = now();
    memcpy(target, source, large);
    copy[round] = now() - start;
    start = now();
    sink += sum(target, large);
    read[round] = now() - start;
  }
  munmap(target, large);
  report_gbps("memcpy_warm_gbps", copy);
  report_gbps("read_warm_gbps", read);
}

static void files(const char *source) {
  double allocate[ROUNDS], small_pages[ROUNDS], huge[ROUNDS], resident[ROUNDS];
  double mapped[ROUNDS], read_huge[ROUNDS], read_small[ROUNDS];
  volatile uint64_t sink = 0;
  int huge_works = 1;
  for (int round = 0; round < ROUNDS; round++) {
    prime(large + large / 4);
    int file = unnamed(large);
    double start = now();
    check(fallocate(file, FALLOC_FL_KEEP_SIZE, 0, (off_t)large) == 0, "fallocate");
    allocate[round] = now() - start;
    close(file);

    file = unnamed(large);
    start = now();
    write_all(file, source, large);
    small_pages[round] = now() - start;
    char *bytes = map(file, large, PROT_READ);
    start = now();
    sink += sum(bytes, large);
    read_small[round] = now() - start;
    munmap(bytes, large);
    close(file);

    file = unnamed(large);
    start = now();
    huge_works = huge_works && collapse(file, large) == 0;
    huge[round] = now() - start;
    start = now();
    write_all(file, source, large);
    resident[round] = now() - start;
    start = now();
    bytes = map(file, large, PROT_READ | PROT_WRITE);
    memcpy(bytes, source, large);
    munmap(bytes, large);
    mapped[round] = now() - start;
    bytes = map(file, large, PROT_READ);
    start = now();
    sink += sum(bytes, large);
    read_huge[round] = now() - start;
    munmap(bytes, large);
    close(file);
  }
  report_gbps("fallocate_4k_gbps", allocate);
  report_gbps("write_fresh_4k_gbps", small_pages);
  report_gbps("read_new_mapping_4k_gbps", read_small);
  if (huge_works) {
    double both[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) both[round] = huge[round] + resident[round];
    report_gbps("seed_collapse_gbps", huge);
    report_gbps("write_resident_huge_gbps", resident);
    report_gbps("collapse_then_write_gbps", both);
    report_gbps("copy_into_mapping_huge_gbps", mapped);
    report_gbps("read_new_mapping_huge_gbps", read_huge);
  }
}

// A 1 KiB file made and sealed the cheap way, read back by open + fstat + read, and made the plain way.
static void small_files(const char *source) {
  static double created[SMALL], made[SMALL], plain[SMALL], got[SMALL];
  char path[4096], temporary[4096], bytes[1024];
  int folder = open(directory, O_DIRECTORY | O_CLOEXEC);
  check(folder >= 0, "open directory");
  for (int i = 0; i < SMALL; i++) {
    snprintf(path, sizeof path, "%s/s%d", directory, i);
    snprintf(temporary, sizeof temporary, "%s/s%d.tmp", directory, i);
    double start = now();
    int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    check(file >= 0 && write(file, source, sizeof bytes) == sizeof bytes, "create");
    created[i] = now() - start;
    close(file);
    check(rename(temporary, path) == 0, "rename");
    plain[i] = now() - start;
    unlink(path);
  }
  for (int i = 0; i < SMALL; i++) {
    snprintf(temporary, sizeof temporary, "s%d", i);
    double start = now();
    int file = open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0444);
    check(file >= 0 && write(file, source, sizeof bytes) == sizeof bytes, "fill");
    if (linkat(file, "", folder, temporary, AT_EMPTY_PATH) != 0) {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", file);
      check(linkat(AT_FDCWD, link, folder, temporary, AT_SYMLINK_FOLLOW) == 0, "linkat");
    }
    close(file);
    made[i] = now() - start;
  }
  for (int i = 0; i < SMALL; i++) {
    struct stat status;
    snprintf(temporary, sizeof temporary, "s%d", i);
    double start = now();
    int file = openat(folder, temporary, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    check(file >= 0 && fstat(file, &status) == 0 && read(file, bytes, sizeof bytes) == sizeof bytes, "read");
    close(file);
    got[i] = now() - start;
    unlinkat(folder, temporary, 0);
  }
  close(folder);
  printf("\"small_create_us\": %.2f, \"small_plain_us\": %.2f, ", median(created, SMALL) * 1e6, median(plain, SMALL) * 1e6);
  printf("\"small_link_us\": %.2f, \"small_read_us\": %.2f, ", median(made, SMALL) * 1e6, median(got, SMALL) * 1e6);
}

// Opening and mapping one large file, without reading it: the floor of a `get` that copies nothing.
static void open_and_map(void) {
  static double times[SMALL];
  char path[4096];
  snprintf(path, sizeof path, "%s/huge", directory);
  for (int i = 0; i < SMALL; i++) {
    struct stat status;
    double start = now();
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    check(file >= 0 && fstat(file, &status) == 0, "open");
    void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    check(bytes != MAP_FAILED, "mmap");
    close(file);
    times[i] = now() - start;
    munmap(bytes, (size_t)status.st_size);
  }
  printf("\"open_map_us\": %.2f, ", median(times, SMALL) * 1e6);
}

static void loopback(const char *source) {
  double seconds[ROUNDS];
  for (int round = 0; round < ROUNDS; round++) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
      int out = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(out, (struct sockaddr *)&address, length) != 0) _exit(1);
      for (size_t at = 0; at < large;) {
        ssize_t sent = send(out, source + at, large - at, 0);
        if (sent <= 0) _exit(1);
        at += (size_t)sent;
      }
      _exit(0);
    }
    int in = accept(listener, NULL, NULL);
    char *sink = malloc(1 << 20);
    check(in >= 0 && sink != NULL, "accept");
    double start = now();
    size_t received = 0;
    for (ssize_t got; (got = recv(in, sink, 1 << 20, 0)) > 0;) received += (size_t)got;
    seconds[round] = now() - start;
    check(received == large, "receive");
    close(in);
    close(listener);
    free(sink);
    waitpid(child, NULL, 0);
  }
  report_gbps("tcp_1_stream_gbps", seconds);
}

int main(int count, char **arguments) {
  if (count < 2) {
    fprintf(stderr, "usage: limits DIRECTORY [MIB]\n");
    return 2;
  }
  if (strcmp(arguments[1], "prime") == 0 && count > 2) {
    prime(strtoul(arguments[2], NULL, 10) << 20);
    return 0;
  }
  directory = arguments[1];
  large = (count > 2 ? strtoul(arguments[2], NULL, 10) : 1024) << 20;
  char *source = mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(source != MAP_FAILED && large >= 4 * HUGE, "source");
  madvise(source, large, MADV_HUGEPAGE);
  for (size_t i = 0; i < large; i += 8) *(uint64_t *)(void *)(source + i) = i;

  printf("{");
  memory(source);
  files(source);
  small_files(source);
  char path[4096];
  snprintf(path, sizeof path, "%s/huge", directory);
  int kept = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check(kept >= 0 && ftruncate(kept, (off_t)(large / 4)) == 0, "huge");
  int huge = collapse(kept, large / 4) == 0;
  write_all(kept, source, large / 4);
  close(kept);
  open_and_map();
  loopback(source);
  printf("\"huge_pages\": %s}\n", huge ? "true" : "false");
  return 0;
}
