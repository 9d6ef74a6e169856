/* One drive inside the shim: its reactor thread owns everything here but the producer's end of the command ring and the
 * consumer's end of the completion ring. */

#ifndef DRIVE_H
#define DRIVE_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <time.h>

#include <spdk/nvme.h>

#include "interface.h"
#include "ring.h"

/* Statuses that the shim itself gives (NVM Express Base 2.0, figures 96 and 100). */
enum {
    STATUS_SUCCESS = 0x000,
    STATUS_INVALID_FIELD = 0x002,
    STATUS_INTERNAL_ERROR = 0x006,
    STATUS_ABORT_REQUESTED = 0x007,
    STATUS_INVALID_NAMESPACE = 0x00B,
    STATUS_HOST_PATHING_ERROR = 0x370,
};

#define BLOCK_BYTES 4096u

struct request {
    struct drive *drive;
    struct drive_command command;
    uint64_t submitted_ns;
    bool abort_sent;
    uint32_t status;
    TAILQ_ENTRY(request) link;
};

TAILQ_HEAD(request_list, request);

enum phase {
    PHASE_CONNECTED,
    PHASE_DRAINING,      /* a reset lets outstanding commands end */
    PHASE_DISCONNECTING, /* queues are gone, SPDK still ends admin commands */
    PHASE_RECONNECTING,
    PHASE_WAITING, /* until the next attempt */
    PHASE_GONE,    /* for good */
};

struct drive {
    struct drive_view view;
    struct drive_options options;
    struct spdk_nvme_transport_id transport;
    char host_nqn[SPDK_NVMF_NQN_MAX_LEN + 1];

    struct ring command_ring;
    struct ring completion_ring;
    struct drive_command *commands;
    struct drive_completion *completions;
    int done_fd;
    _Atomic uint32_t sleeping; /* a futex: 1 while the reactor waits for commands */
    atomic_bool signalled; /* done_fd has been written since the last reap */
    atomic_bool stopping;
    atomic_bool removed; /* hot removal was seen */
    pthread_t thread;

    struct spdk_nvme_ctrlr *controller;
    struct spdk_pci_device *slot; /* NULL over the network */
    LIST_ENTRY(drive) attached;
    struct spdk_nvme_ns *namespace;
    struct spdk_nvme_qpair *queue;
    uint64_t blocks;
    bool active; /* the namespace is there */
    bool lost;   /* SPDK said that the queue is dead */
    bool is_pcie;
    bool shares_core; /* with the thread that opened the drive, so that it may spin only a little */
    uint64_t spin_until_ns;

    struct request *requests;       /* by tag */
    struct request_list pending;    /* not given to SPDK yet */
    struct request_list io;         /* with SPDK, oldest first */
    struct request_list admin;      /* the same */
    struct request_list held;       /* ended by a reset that still goes on */
    struct request *reset;          /* asked for and not answered */
    uint32_t outstanding;           /* in `io` and `admin` */
    bool hold;                      /* completions go to `held` */

    enum phase phase;
    uint64_t due_ns; /* of the next attempt, the end of draining, or of patience */
    uint32_t attempts;
    bool patient; /* commands wait for the controller instead of failing */
};

static inline bool is_outstanding(const struct drive *drive)
{
    return drive->outstanding != 0;
}

/* Only the reactor counts; others may look at any time. */
static inline void bump(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

uint64_t now_ns(void);

/* commands.c */
bool commands_take(struct drive *drive);
bool commands_submit(struct drive *drive, uint64_t now);
void commands_refuse(struct drive *drive, uint32_t status);
void commands_release(struct drive *drive);
void commands_abort(struct drive *drive, struct request *request);
void request_complete(struct request *request, uint32_t status);

/* attach.c: what returns an int gives 0, or a negative errno with the cause in the view. */
bool attach(struct drive *drive);
int attach_namespace(struct drive *drive);
int attach_queue(struct drive *drive);
void attach_free_queue(struct drive *drive);
bool attach_is_pulled(struct drive *drive);
bool attach_is_same(const struct drive *drive);
void attach_fail(struct drive *drive, const char *cause);
void attach_end(struct drive *drive);

/* controller.c */
void controller_reset(struct drive *drive, struct request *request, uint64_t now);
void controller_lose(struct drive *drive, uint64_t now);
bool controller_step(struct drive *drive, uint64_t now);
void controller_tick(struct drive *drive, uint64_t now);

/* reactor.c */
void *reactor_run(void *argument);

/* drive.c */
void drive_rest(struct drive *drive, const struct timespec *longest);
void drive_notify(struct drive *drive);
void drive_set_state(struct drive *drive, enum drive_state state);

#endif
