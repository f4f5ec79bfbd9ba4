/* Adds the seconds in /run/lab-clock-offset, a signed 64-bit integer, to the wall-clock time that a
 * program reads. The file is mapped, so a change takes effect at once. Other clocks are not changed,
 * as when somebody sets the clock of a machine. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *offset;

__attribute__((constructor)) static void map_offset(void)
{
    int file = open("/run/lab-clock-offset", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *page = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        offset = page;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int result = syscall(SYS_gettimeofday, now, zone);
    if (result == 0 && now && offset)
        now->tv_sec += *offset;
    return result;
}

time_t time(time_t *now)
{
    struct timespec read = {0};
    clock_gettime(CLOCK_REALTIME, &read);
    if (now)
        *now = read.tv_sec;
    return read.tv_sec;
}
