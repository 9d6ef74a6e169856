/* The part of SPDK's log that the shim uses. */

#ifndef SPDK_LOG_H
#define SPDK_LOG_H

enum spdk_log_level { SPDK_LOG_ERROR };

void spdk_log_set_print_level(enum spdk_log_level level);

#endif
