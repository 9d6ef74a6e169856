/* The part of SPDK's environment that the shim uses. */

#ifndef SPDK_ENV_H
#define SPDK_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spdk_env_opts {
    const char *name;
    const char *core_mask;
    int shm_id;
    int mem_size;
    bool no_pci;
    bool no_huge;
    void *env_context;
    size_t opts_size;
};

struct spdk_pci_device;

void spdk_env_opts_init(struct spdk_env_opts *options);
int spdk_env_init(const struct spdk_env_opts *options);
void *spdk_dma_zmalloc(size_t size, size_t align, uint64_t *unused);
void spdk_dma_free(void *memory);
bool spdk_pci_device_is_removed(struct spdk_pci_device *device);

#endif
