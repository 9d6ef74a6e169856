/* What Python sees of the shim. cffi reads this file as it is: declarations only, no directives. */

/* How a command is carried out. There is one reset at a time; it ends the commands before it, those after it wait. */
enum drive_kind { DRIVE_IO = 0, DRIVE_ADMIN = 1, DRIVE_RESET = 2 };

enum drive_state {
    DRIVE_CONNECTING = 0, /* drive_open has not ended yet */
    DRIVE_READY = 1,
    DRIVE_RECOVERING = 2, /* the controller is being reset or connected again */
    DRIVE_GONE = 3,       /* removed, or its namespace was, or another drive is in its place */
    DRIVE_FAILED = 4      /* it could not be opened; `error` says why */
};

/* One command, 64 bytes. `opcode` is NVMe's; `flags` are bits 31:16 of command dword 12 of an I/O command. */
struct drive_command {
    uint64_t tag;    /* below commands_max, not in use */
    uint64_t buffer; /* address of DMA memory */
    uint64_t lba;
    uint32_t length; /* bytes at `buffer`, of admin commands */
    uint32_t blocks;
    uint32_t nsid; /* of admin commands */
    uint8_t kind;
    uint8_t opcode;
    uint16_t flags;
    uint32_t dwords[6]; /* command dwords 10 to 15 of admin commands */
};

/* Its end. `status` is SCT << 8 | SC. */
struct drive_completion {
    uint32_t tag;
    uint32_t status;
};

/* What the reactor says of itself; read it at any time. */
struct drive_view {
    uint32_t state;
    uint32_t nsid;
    uint64_t reads;
    uint64_t writes;
    uint64_t other_commands;
    uint64_t failures;   /* commands that ended with another status than success */
    uint64_t resets;     /* times that the controller was reset or connected again */
    uint64_t lost;       /* times that it went away by itself */
    uint64_t timeouts;   /* commands that took longer than their timeout */
    uint64_t queue_full; /* times that SPDK took no more commands */
    uint8_t controller[4096]; /* what Identify said when it was opened */
    uint8_t namespace_[4096];
    char error[256];
};

struct drive_options {
    const char *transport; /* SPDK's form of a transport id */
    const char *host_nqn;  /* empty: SPDK's own */
    uint32_t nsid;         /* 0: the first one */
    uint32_t commands_max; /* a power of two */
    int32_t core;          /* where the reactor runs; -1: anywhere */
    uint32_t io_timeout_ms;
    uint32_t admin_timeout_ms;
    uint32_t drain_timeout_ms; /* what a reset gives outstanding commands to end by themselves */
    uint32_t keep_alive_ms;
};

struct environment_options {
    const char *name;
    const char *core_mask;
    int32_t memory_mib;
    int32_t shm_id;
    bool no_huge;
    bool no_pci;
    bool quiet; /* errors only, in SPDK's and DPDK's logs */
};

struct drive;

/* Start SPDK, once in a process. The caller's thread stays on the cores that it was on. A negative errno if it fails. */
int environment_start(const struct environment_options *options);
const char *environment_version(void);
/* DMA memory on a page boundary, or NULL. */
void *environment_allocate(size_t bytes);
void environment_free(void *memory);

/* Where a buffer lies. */
uint64_t drive_address(const char *buffer);

/* Start a reactor that connects to a drive. NULL without memory or threads; how it went is in the view. */
struct drive *drive_open(const struct drive_options *options);
const struct drive_view *drive_view(struct drive *drive);
/* The ring of `commands_max` commands: fill the entries that follow those submitted before, then submit them at once. */
struct drive_command *drive_commands(struct drive *drive);
void drive_submit(struct drive *drive, uint32_t count);
/* Readable when there are completions, or the state has changed. */
int drive_eventfd(struct drive *drive);
/* Take up to `room` completions, in the order in which the commands ended; clears the event. */
uint32_t drive_reap(struct drive *drive, struct drive_completion *into, uint32_t room);
/* Detach, end the reactor and free everything; whatever is outstanding is forgotten. */
void drive_close(struct drive *drive);
