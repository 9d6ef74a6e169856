/* SPDK's environment: memory for DMA, and the process-wide start. */

#define _GNU_SOURCE

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <spdk/env.h>
#include <spdk/log.h>
#include <spdk/version.h>

#include "interface.h"

#define PAGE_BYTES 4096

int environment_start(const struct environment_options *options)
{
    struct spdk_env_opts env = {0};
    cpu_set_t cores;

#if SPDK_VERSION >= SPDK_VERSION_NUM(24, 9, 0)
    env.opts_size = sizeof(env);
#endif
    spdk_env_opts_init(&env);
    env.name = options->name;
    env.core_mask = options->core_mask;
    env.mem_size = options->memory_mib;
    env.shm_id = options->shm_id;
    env.no_huge = options->no_huge;
    env.no_pci = options->no_pci;
    if (options->quiet) {
        env.env_context = "--log-level=*:error";
        spdk_log_set_print_level(SPDK_LOG_ERROR);
    }
    int saved = pthread_getaffinity_np(pthread_self(), sizeof(cores), &cores);
    int result = spdk_env_init(&env);
    if (saved == 0) {
        pthread_setaffinity_np(pthread_self(), sizeof(cores), &cores);
    }
    return result;
}

const char *environment_version(void)
{
    return SPDK_VERSION_STRING;
}

void *environment_allocate(size_t bytes)
{
    return spdk_dma_zmalloc(bytes, PAGE_BYTES, NULL);
}

void environment_free(void *memory)
{
    spdk_dma_free(memory);
}
