"""glibc's allocator: how a process must start so that its memory can be measured."""

#: Settings of glibc that a process must start with, so that freed memory leaves it and the figure
#: is about the work and not about arenas.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
