/* The fake calls itself newer than 24.09, which is when options learned their size. */

#ifndef SPDK_VERSION_H
#define SPDK_VERSION_H

#define SPDK_VERSION_NUM(major, minor, patch) (((major) * 100 + (minor)) * 100 + (patch))
#define SPDK_VERSION SPDK_VERSION_NUM(25, 1, 0)
#define SPDK_VERSION_STRING "a fake SPDK"

#endif
