/* What the two files of the driver of host memory share. */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H

enum { NOT_SUPPORTED = 801 };

typedef void (*host_function)(void *data);

#endif
