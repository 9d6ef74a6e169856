/* Levers of the fake SPDK: one drive in memory whose answers a test decides. Every field may be changed at any time. */

#ifndef FAKE_SPDK_H
#define FAKE_SPDK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_BLOCKS 1024u

struct fake {
    /* What it does. */
    atomic_bool hold;           /* commands stay where they are */
    atomic_bool silent;         /* aborts do not help, either */
    atomic_bool dead;           /* nothing is there: queues fail, and no connection is made */
    atomic_bool slow;           /* controllers do not become ready, nor give up */
    atomic_bool pulled;         /* like a drive taken out of its slot */
    atomic_bool inactive;       /* the namespace was deleted */
    atomic_bool other;          /* another drive is in its place: another serial number */
    atomic_bool forgets;        /* anything may be in deallocated blocks */
    atomic_bool only_writes;    /* there is no Write Zeroes */
    atomic_uint room;           /* commands that a queue takes before -ENOMEM */
    atomic_uint next_status;    /* SCT << 8 | SC of the next command, once */
    atomic_int next_error;      /* what the next submission returns, once */
    atomic_uint block_bits;     /* of the namespace: 9 or 12 */
    /* What it saw. */
    atomic_uint connections;
    atomic_uint scans;          /* of the PCI bus for drives */
    atomic_uint attempts;       /* to connect again that have begun */
    atomic_uint controllers;    /* that are attached now */
    atomic_uint queues;         /* that are there now */
    atomic_uint aborts;
    atomic_uint performed;      /* I/O commands that took effect */
    atomic_uint last_flags;     /* of the last write, of data or zeroes */
    atomic_uint firmware_bytes;
    atomic_uint firmware_slot;
    atomic_uint dma_pieces;     /* not freed yet */
};

extern struct fake fake;

void fake_begin(void); /* as after power-on */
uint32_t fake_get(const char *name);
void fake_set(const char *name, uint32_t value);

#endif
